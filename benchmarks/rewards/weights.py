"""Weights learned from preferences, held against the rater's: coverage of intervals, and what active choice saves.

User-weeks are those of a simulated log. A rater has hidden weights w* (TRUTH, per raw unit) and chooses the left of two
with probability sigma(w*.(phi_left - phi_right)), side by chance.

A. `weights_coverage`: of each weight the share of repetitions whose 95% interval, from PAIRS random pairs, holds the
   truth; `weights_width`: the median over repetitions of its width against 2 x 1.96 standard errors of Fisher's
   information at the truth, for the same pairs. A repetition whose pairs `fit` refuses, as a component never differs in
   them, is counted in `weights_refused`.
B. `active_to_random_pairs`: pairs that active choice, batch by batch, needs for the accuracy that random choice has
   after PAIRS, as a share of PAIRS, with an interval over seeds; by the cosine of learned and true weights in standard
   deviations of a user-week, and by the share of other pairs that are ordered as the truth does. Below 1 is fewer.
   `least_gain` is the smallest, over the batches, of what active choice is ahead by: never worse than random.
   `active_to_random_pairs_unlike` is the same where the model of the rater is wrong: the more unlike two weeks are, the
   noisier the answer, so that large differences, which active choice likes to ask of, tell no more than small ones.
"""

import json
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from benchmarks.study.source import Source, log_of
from models.errors import InputError
from models.rewards.answers import Answers, Pair
from models.rewards.bradley_terry import maximise
from models.rewards.choices import choices_of
from models.rewards.preferences import Known, PreferenceConfig, choose, fit, model_of, random_pairs, scale_of
from models.rewards.weeks import Weeks, weeks_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# Into a file a table is as wide as it needs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

SOURCE = Source(Path("configs/demo.toml"))
TRUTH = {"sends": -0.17, "clicks": 1.0, "visits": 0.05, "weekly_active_days": 0.5, "disables": -2.0}
"""Of the rater that is to be found, per raw unit, on the scale of the rater's own noise."""
PAIRS, BATCH, OTHERS, RESAMPLES = 200, 10, 4000, 2000
COVERAGE, WIDTH = (0.93, 0.97), 1.25
MEASURES = ("cosine", "accuracy")
RATERS = {"active_to_random_pairs": False, "active_to_random_pairs_unlike": True}
"""Key of the summary, and whether that rater is noisier the more unlike two weeks are."""
NOBODY = np.zeros((0, 2), dtype=np.int64)


def part(
    seed: int, workers: int, out: Path, repetitions: int = 1000, seeds: int = 60, users: int = 2000, pairs: int = PAIRS
) -> dict[str, Any]:
    """Both parts; writes OUT/weights.json and returns what belongs into the summary."""
    source = SOURCE.but(simulate__users=users)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        chunks = np.array_split(np.arange(repetitions), max(repetitions // 25, workers))
        rows = [each for found in pool.map(_repetitions, *_for_all(chunks, source, seed, pairs)) for each in found]
        chunks = np.array_split(np.arange(seeds), max(seeds // 3, workers))
        curves = {
            key: [each for part in pool.map(_curves, *_for_all(chunks, source, seed, pairs, unlike)) for each in part]
            for key, unlike in RATERS.items()
        }
    found = {**coverage_of(rows), **{key: saved(np.array(each), seed) for key, each in curves.items()}}
    out.mkdir(parents=True, exist_ok=True)
    details = {**found, "repetitions": repetitions, "seeds": seeds, "users": users, "pairs": pairs, "curves": curves}
    (out / "weights.json").write_text(json.dumps(details, indent=1, allow_nan=False) + "\n")
    return found


def _for_all(chunks: list[NDArray[np.int64]], *shared: Any) -> list[list[Any]]:
    return [[each.tolist() for each in chunks], *([one] * len(chunks) for one in shared)]


@lru_cache(maxsize=1)
def weeks_from(source: Source, seed: int) -> tuple[Weeks, tuple[str, ...], NDArray[np.float64]]:
    """The user-weeks of a simulated log, its components, and the hidden weights [K]."""
    log = log_of(source, seed)
    rewards = log.contract.rewards
    return weeks_of(log, source.config.learned.days), rewards, np.array([TRUTH[name] for name in rewards])


def answered(
    weeks: Weeks,
    pairs: NDArray[np.int64],
    truth: NDArray[np.float64],
    rng: np.random.Generator,
    unlike: bool = False,
) -> Answers:
    """What the rater of hidden weights `truth` [K] says of `pairs` [n, 2].

    With `unlike` utilities are divided by the root mean square of the difference in standard deviations, 1 for the
    usual pair, a quarter at least.
    """
    gap = weeks.totals[pairs[:, 0]] - weeks.totals[pairs[:, 1]]
    noise = np.sqrt(((gap / weeks.totals.std(axis=0)) ** 2).mean(axis=1) / 2) if unlike else 1.0
    left = rng.random(len(pairs)) < expit(gap @ truth / np.maximum(noise, 0.25))
    named = zip(weeks.id[pairs].tolist(), left.tolist(), strict=True)
    return Answers(tuple(Pair(one, other, "left" if first else "right", "rater") for (one, other), first in named))


# A. Intervals


def _repetitions(numbers: list[int], source: Source, seed: int, pairs: int) -> list[dict[str, Any] | None]:
    weeks, rewards, truth = weeks_from(source, seed)
    return [repetition(weeks, rewards, truth, pairs, np.random.default_rng([seed, 1, each])) for each in numbers]


def repetition(
    weeks: Weeks, rewards: tuple[str, ...], truth: NDArray[np.float64], pairs: int, rng: np.random.Generator
) -> dict[str, Any] | None:
    """By component whether the interval holds the truth, its width to Fisher's, and the estimate; None if refused."""
    answers = answered(weeks, random_pairs(weeks, NOBODY, pairs, rng), truth, rng)
    try:
        found = fit(weeks, rewards, answers, trade_offs=False)
    except InputError:
        return None
    size = len(rewards)
    theta = np.zeros(found.model.size)
    theta[:size] = truth * found.scale
    basis = found.model.free
    inverse = basis @ np.linalg.inv(basis.T @ found.model.information(theta) @ basis) @ basis.T
    fisher = 2 * 1.959964 * np.sqrt(np.diag(inverse)[:size]) / found.scale
    low, high = found.intervals.T
    values = zip(rewards, (low <= truth) & (truth <= high), (high - low) / fisher, found.weights, strict=True)
    return {name: (bool(held), float(width), float(weight)) for name, held, width, weight in values}


def coverage_of(rows: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Shares and medians over the repetitions that were not refused."""
    kept = [row for row in rows if row is not None]
    return {
        "weights_coverage": {name: float(np.mean([row[name][0] for row in kept])) for name in kept[0]},
        "weights_width": {name: float(np.median([row[name][1] for row in kept])) for name in kept[0]},
        "weights_mean": {name: float(np.mean([row[name][2] for row in kept])) for name in kept[0]},
        "weights_truth": {name: TRUTH[name] for name in kept[0]},
        "weights_refused": len(rows) - len(kept),
    }


# B. Active choice


def _curves(numbers: list[int], source: Source, seed: int, pairs: int, unlike: bool) -> list[list[list[list[float]]]]:
    weeks, _, truth = weeks_from(source, seed)
    found = []
    for each in numbers:
        others = random_pairs(weeks, NOBODY, OTHERS, np.random.default_rng([seed, 2, each]))
        ways = [
            curve(weeks, truth, others, pairs, active, unlike, np.random.default_rng([seed, 3 + active, each]))
            for active in (False, True)
        ]
        found.append(ways)
    return found


def curve(
    weeks: Weeks,
    truth: NDArray[np.float64],
    others: NDArray[np.int64],
    pairs: int,
    active: bool,
    unlike: bool,
    rng: np.random.Generator,
) -> list[list[float]]:
    """[batches, measures] after each batch of BATCH pairs, chosen by what the earlier ones told or at random."""
    asked, answers, known, found = NOBODY, Answers(()), None, []
    for _ in range(pairs // BATCH):
        if active:
            batch = choose(known, weeks, asked, BATCH, int(rng.integers(2**31)))
        else:
            batch = random_pairs(weeks, asked, BATCH, rng)
        asked = np.concatenate([asked, batch])
        answers += answered(weeks, batch, truth, rng, unlike)
        known = learned(weeks, answers)
        found.append(measured(weeks, truth, known.weights, others))
    return found


def learned(weeks: Weeks, answers: Answers) -> Known:
    """Weights from any number of answers: 0 in directions that they do not tell, where `fit` would refuse."""
    columns = np.arange(weeks.totals.shape[1])
    choices = choices_of(weeks, columns, answers)
    scale = scale_of(choices)
    model = model_of(choices, scale, 1, PreferenceConfig())
    theta, size = maximise(model, np.zeros(model.size), model.free), len(columns)
    blind = np.eye(size) - model.identified[:size] @ model.identified[:size].T
    # What nothing is known of stays as uncertain as before the first answer.
    cover = model.covariance(theta)[:size, :size] + blind
    names = tuple(str(column) for column in columns)
    return Known(names, columns, scale, theta[:size] / scale, cover / np.outer(scale, scale))


def measured(
    weeks: Weeks, truth: NDArray[np.float64], weights: NDArray[np.float64], others: NDArray[np.int64]
) -> list[float]:
    """By MEASURES: cosine in standard deviations of a user-week, share of `others` [n, 2] ordered as the truth does."""
    scale = weeks.totals.std(axis=0)
    one, other = truth * scale, weights * scale
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    gap = weeks.totals[others[:, 0]] - weeks.totals[others[:, 1]]
    differ = gap @ truth != 0
    same = np.sign(gap @ truth) == np.sign(gap @ weights)
    return [float(one @ other) / size if size else 0.0, float(same[differ].mean())]


def saved(curves: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """By measure the ratio of pairs, with intervals over the seeds' curves [seeds, 2 ways, batches, measures]."""
    rng = np.random.default_rng([seed, 9])
    drawn = rng.integers(len(curves), size=(RESAMPLES, len(curves)))
    found = {}
    for place, name in enumerate(MEASURES):
        means = curves[..., place]
        ratios = np.array([ratio_of(*means[rows].mean(axis=0)) for rows in drawn])
        low, high = np.quantile(ratios, [0.025, 0.975])
        gain = means[:, 1] - means[:, 0]
        worst = int(gain.mean(axis=0).argmin())
        found[name] = {
            "estimate": ratio_of(*means.mean(axis=0)),
            "low": float(low),
            "high": float(high),
            "random_at_end": float(means[:, 0, -1].mean()),
            "active_at_end": float(means[:, 1, -1].mean()),
            "least_gain": float(gain[:, worst].mean()),
            "least_gain_error": float(gain[:, worst].std(ddof=1) / len(gain) ** 0.5),
            "least_gain_pairs": (worst + 1) * BATCH,
            "curves": means.mean(axis=0).tolist(),
        }
    return found


def ratio_of(random: NDArray[np.float64], active: NDArray[np.float64]) -> float:
    """Batches until the mean curve `active` [batches] has reached the end of `random`, as a share of all.

    Between batches the curve is a line; before the first it starts at nothing learned, as `random` does. Above 1, by as
    much as `random` had needed for where `active` ended, where it never gets there.
    """
    batches = len(random)
    steps = np.arange(1, batches + 1)
    reached = np.maximum.accumulate(active)
    if reached[-1] < random[-1]:
        return float(batches / np.interp(reached[-1], np.maximum.accumulate(random), steps))
    return float(np.interp(random[-1], reached, steps) / batches)


# Shown


@app.command()
def main(
    seed: Annotated[int, typer.Option()] = 7,
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 2,
    out: Annotated[Path, typer.Option()] = Path("runs/study-rewards"),
    repetitions: Annotated[int, typer.Option(min=1, help="of 200 pairs each")] = 1000,
    seeds: Annotated[int, typer.Option(min=2, help="of active against random choice")] = 60,
    users: Annotated[int, typer.Option(min=50, help="of the simulated log")] = 2000,
) -> None:
    """Print coverage, widths and the pairs saved; exit code 1 where a bar is missed."""
    found = part(seed, workers, out, repetitions, seeds, users)
    console.print(coverage_shown(found), saved_shown(found))
    raise typer.Exit(0 if met(found) else 1)


def met(found: dict[str, Any]) -> bool:
    """Whether every bar is: coverage, width, and never worse than random, in all and at any number of pairs."""
    low, high = COVERAGE
    held = all(low <= each <= high for each in found["weights_coverage"].values())
    narrow = all(each <= WIDTH for each in found["weights_width"].values())
    return held and narrow and all(_no_worse(each) for key in RATERS for each in found[key].values())


def no_worse(found: Mapping[str, Any]) -> tuple[float, bool]:
    """The least lead of active choice over random, of all raters, measures and numbers of pairs, and whether it is
    never clearly a lag."""
    every = [each for key in RATERS for each in found[key].values()]
    return min(each["least_gain"] for each in every), all(_no_worse(each) for each in every)


def _no_worse(found: dict[str, Any]) -> bool:
    return bool(found["high"] <= 1 and found["least_gain"] + 1.96 * found["least_gain_error"] >= 0)


def coverage_shown(found: dict[str, Any]) -> Table:
    table = Table("component", "truth", "mean estimate", "coverage of 95%", "median width / Fisher's")
    for name, held in found["weights_coverage"].items():
        truth, mean = found["weights_truth"][name], found["weights_mean"][name]
        table.add_row(name, f"{truth:g}", f"{mean:.3f}", f"{held:.1%}", f"{found['weights_width'][name]:.3f}")
    table.caption = f"refused: {found['weights_refused']}"
    return table


def saved_shown(found: dict[str, Any]) -> Table:
    table = Table(
        "rater", "measure", "active / random pairs", "95% interval", "random, active at the end", "least gain"
    )
    for key, unlike in RATERS.items():
        for name, each in found[key].items():
            between = f"{each['low']:.2f} to {each['high']:.2f}"
            ends = f"{each['random_at_end']:.4f}, {each['active_at_end']:.4f}"
            least = f"{each['least_gain']:+.4f} (se {each['least_gain_error']:.4f}) at {each['least_gain_pairs']}"
            rater = "noisier on unlike weeks" if unlike else "as the model"
            table.add_row(rater, name, f"{each['estimate']:.2f}", between, ends, least)
    return table


if __name__ == "__main__":
    sys.exit(app())
