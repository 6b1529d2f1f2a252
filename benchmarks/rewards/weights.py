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
"""

import json
import sys
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
"""The weights of configs/demo.toml, and a little for a visit."""
PAIRS, BATCH, OTHERS, RESAMPLES = 200, 10, 4000, 2000
COVERAGE, WIDTH = (0.93, 0.97), 1.25
MEASURES = ("cosine", "accuracy")
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
        curves = [each for found in pool.map(_curves, *_for_all(chunks, source, seed, pairs)) for each in found]
    found = {**coverage_of(rows), **saved(np.array(curves), seed)}
    out.mkdir(parents=True, exist_ok=True)
    details = {**found, "repetitions": repetitions, "seeds": seeds, "users": users, "pairs": pairs, "curves": curves}
    (out / "weights.json").write_text(json.dumps(details, indent=1, allow_nan=False) + "\n")
    return found


def _for_all(chunks: list[NDArray[np.int64]], source: Source, seed: int, pairs: int) -> list[list[Any]]:
    return [[each.tolist() for each in chunks], *([one] * len(chunks) for one in (source, seed, pairs))]


@lru_cache(maxsize=1)
def weeks_from(source: Source, seed: int) -> tuple[Weeks, tuple[str, ...], NDArray[np.float64]]:
    """The user-weeks of a simulated log, its components, and the hidden weights [K]."""
    log = log_of(source, seed)
    rewards = log.contract.rewards
    return weeks_of(log, source.config.learned.days), rewards, np.array([TRUTH[name] for name in rewards])


def answered(weeks: Weeks, pairs: NDArray[np.int64], truth: NDArray[np.float64], rng: np.random.Generator) -> Answers:
    """What the rater of hidden weights `truth` [K] says of `pairs` [n, 2]."""
    gap = weeks.totals[pairs[:, 0]] - weeks.totals[pairs[:, 1]]
    left = rng.random(len(pairs)) < expit(gap @ truth)
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


def _curves(numbers: list[int], source: Source, seed: int, pairs: int) -> list[list[list[list[float]]]]:
    weeks, _, truth = weeks_from(source, seed)
    found = []
    for each in numbers:
        others = random_pairs(weeks, NOBODY, OTHERS, np.random.default_rng([seed, 2, each]))
        ways = [
            curve(weeks, truth, others, pairs, active, np.random.default_rng([seed, 3 + active, each]))
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
        answers += answered(weeks, batch, truth, rng)
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
    """Ratios of pairs with intervals over the seeds' curves [seeds, 2 ways, batches, measures]."""
    rng = np.random.default_rng([seed, 9])
    drawn = rng.integers(len(curves), size=(RESAMPLES, len(curves)))
    found = {}
    for place, name in enumerate(MEASURES):
        means = curves[..., place]
        ratios = np.array([ratio_of(*means[rows].mean(axis=0)) for rows in drawn])
        low, high = np.quantile(ratios, [0.025, 0.975])
        ends = means[:, :, -1]
        gain = ends[:, 1] - ends[:, 0]
        found[name] = {
            "estimate": ratio_of(*means.mean(axis=0)),
            "low": float(low),
            "high": float(high),
            "random_at_end": float(ends[:, 0].mean()),
            "active_at_end": float(ends[:, 1].mean()),
            "gain_error": float(gain.std(ddof=1) / len(gain) ** 0.5),
            "curves": means.mean(axis=0).tolist(),
        }
    return {"active_to_random_pairs": found}


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
    """Whether every bar is: coverage, width, and never worse than random."""
    low, high = COVERAGE
    held = all(low <= each <= high for each in found["weights_coverage"].values())
    narrow = all(each <= WIDTH for each in found["weights_width"].values())
    return held and narrow and all(each["high"] <= 1 for each in found["active_to_random_pairs"].values())


def coverage_shown(found: dict[str, Any]) -> Table:
    table = Table("component", "truth", "mean estimate", "coverage of 95%", "median width / Fisher's")
    for name, held in found["weights_coverage"].items():
        truth, mean = found["weights_truth"][name], found["weights_mean"][name]
        table.add_row(name, f"{truth:g}", f"{mean:.3f}", f"{held:.1%}", f"{found['weights_width'][name]:.3f}")
    table.caption = f"refused: {found['weights_refused']}"
    return table


def saved_shown(found: dict[str, Any]) -> Table:
    table = Table("measure", "active pairs / random pairs", "95% interval", "random at the end", "active at the end")
    for name, each in found["active_to_random_pairs"].items():
        between = f"{each['low']:.2f} to {each['high']:.2f}"
        ends = (f"{each['random_at_end']:.4f}", f"{each['active_at_end']:.4f}")
        table.add_row(name, f"{each['estimate']:.2f}", between, *ends)
    return table


if __name__ == "__main__":
    sys.exit(app())
