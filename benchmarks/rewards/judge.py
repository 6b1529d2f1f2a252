"""What a judge's answers are worth once they are corrected: `judge_cosine`, by a real client and a server that errs.

Per seed one simulated log, whose user-weeks are described in words. A server on 127.0.0.1 knows the hidden weights
TRUTH per raw unit, and says A with the probability sigma(w.d + BIAS), turned round with the probability WRONG; every
request fails with the probability FAULTS, in one of BROKEN. On even seeds each question has noise of its own; on odd
ones the judge has one opinion of a pair, so that only its errors and its liking for the first differ between the two
orders. The client asks 1,000 pairs in both orders, drawn as `tactful rewards judge` draws them. Stated beforehand:

- `judge_cosine` is the mean over seeds of the cosine of learned and true weights, both times the standard deviation of
  their component over user-weeks; the bar is 0.95, for each seed and for the mean. Per raw unit it is reported too.
- `covered`: of how many seeds the 95% interval holds WRONG, and BIAS.
- beside it, on the same answers: no correction (b = e = 0) in both orders, and in the first order alone.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.rewards.weights import TRUTH
from benchmarks.study.headline import interval
from benchmarks.study.source import Source, log_of
from models.rewards.describe import in_words
from models.rewards.judge.client import Client
from models.rewards.judge.fit import NOTHING, Judged, fit_judged
from models.rewards.judge.judging import Session, codes_of, draw_pairs, judge, leverage
from models.rewards.judge.prompt import constitution, harmless
from models.rewards.judge.settings import JudgeConfig
from models.rewards.judge.transcript import Transcript
from models.rewards.weeks import Weeks, weeks_of
from tests.models.rewards.openai_server import Messages, Server, answer, chance, shown

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SOURCE = Source(Path("configs/demo.toml"))
WRONG, BIAS, FAULTS, BAR = 0.2, 0.5, 0.05, 0.95
BROKEN = ("429", "500", "503", "dropped", "truncated", "cut-off", "no-choices", "wrong-schema", "prose", "fenced")
CONSTITUTION = Path("configs/constitution.md")
SEED = 70_000
WAYS = ("corrected", "uncorrected", "one_order")


def part(seed: int, workers: int, out: Path, seeds: int = 10, users: int = 1000, pairs: int = 1000) -> dict[str, Any]:
    """Every seed and what they come to; writes OUT/judge.json and returns what belongs into the summary."""
    started = time.perf_counter()
    numbers = [seed + SEED + number for number in range(seeds)]
    source = SOURCE.but(simulate__users=users)
    if workers == 1:
        rows = [one(source, pairs, number) for number in numbers]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            rows = list(pool.map(one, [source] * seeds, [pairs] * seeds, numbers))
    found = summary(rows)
    details = {**found, "seeds": rows, "users": users, "seconds": round(time.perf_counter() - started, 1)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "judge.json").write_text(json.dumps(details, indent=1, allow_nan=False) + "\n")
    return found


def one(source: Source, pairs: int, seed: int) -> dict[str, Any]:
    """One log, one judge: cosines, estimates and what the client went through."""
    log = log_of(source, seed)
    weeks = weeks_of(log, source.config.learned.days)
    true = np.array([TRUTH[name] for name in log.contract.rewards])
    words = [in_words(log, weeks, place) for place in range(len(weeks.id))]
    drawn = draw_pairs(leverage(weeks.totals), pairs, seed)
    say, fault = judging({harmless(text): each for text, each in zip(words, weeks.totals @ true, strict=True)}, seed)
    with Server(say, fault) as server, tempfile.TemporaryDirectory() as folder:
        settings = JudgeConfig(server.url, "tiny", CONSTITUTION, budget_calls=20 * pairs, budget_tokens=10**9)
        with Transcript(Path(folder) / "judge.jsonl") as kept:
            client = Client(settings, kept, sleep=lambda seconds: None)
            session = judge(client, constitution(CONSTITUTION), drawn, words.__getitem__)
            calls = kept.calls
    if session.stopped is not None:
        raise session.stopped
    heard = [each for opinion in session.opinions for each in opinion.heard]
    return {
        **_fits(session, weeks, true, seed),
        "one_opinion": seed % 2 == 1,
        "calls": calls,
        "conflicts": sum(each.conflict for each in session.opinions) / len(session.opinions),
        "asked_again": sum(each.asked_again for each in heard),
        "no_answer": sum(each.said is None for each in heard),
    }


def judging(
    utility: Mapping[str, float], seed: int
) -> tuple[Callable[[Messages], str], Callable[[int, Messages], str | None]]:
    """What the judge says, and which of its answers are broken; both by the weeks, their order and the try alone."""
    # By place and not by words, so that other words are the same luck.
    place = {words: number for number, words in enumerate(utility)}
    tries: Counter[tuple[int, int, int]] = Counter()

    def say(messages: Messages) -> str:
        first, second = shown(messages)
        a, b = place[first], place[second]
        own = chance(seed, "noise", min(a, b), max(a, b), a < b if seed % 2 == 0 else "")
        noise = np.log(own / (1 - own)) * (1 if a < b or seed % 2 == 0 else -1)
        says_a = utility[first] - utility[second] + BIAS + noise > 0
        return answer("A" if says_a != (chance(seed, "wrong", a, b) < WRONG) else "B")

    def fault(number: int, messages: Messages) -> str | None:
        a, b = (place[words] for words in shown(messages))
        tries[a, b, len(messages)] += 1
        drawn = chance(seed, "fault", a, b, len(messages), tries[a, b, len(messages)])
        return BROKEN[int(drawn / FAULTS * len(BROKEN))] if drawn < FAULTS else None

    return say, fault


def _fits(session: Session, weeks: Weeks, true: NDArray[np.float64], seed: int) -> dict[str, Any]:
    left, right, first, second = codes_of(session.opinions)
    d = weeks.totals[left] - weeks.totals[right]
    nothing = np.full_like(second, NOTHING)
    fits = {
        "corrected": fit_judged(d, first, second, seed=seed),
        "uncorrected": fit_judged(d, first, second, corrected=False, resamples=2),
        "one_order": fit_judged(d, first, nothing, corrected=False, resamples=2),
    }
    found, spread = fits["corrected"], weeks.totals.std(axis=0)
    return {
        "cosine": {way: cosine(each.weights * spread, true * spread) for way, each in fits.items()},
        "cosine_raw": {way: cosine(each.weights, true) for way, each in fits.items()},
        "length": {way: _length(each, spread) / float(np.linalg.norm(true * spread)) for way, each in fits.items()},
        "wrong": [found.wrong, *found.wrong_interval],
        "bias": [found.bias, *found.bias_interval],
    }


def _length(found: Judged, spread: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.weights * spread))


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """a.b / (|a| |b|)"""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`judge_cosine`, and under `judge` what lies behind it: means over seeds with their 95% intervals."""
    cosines = {way: [row["cosine"][way] for row in rows] for way in WAYS}
    return {
        "judge_cosine": float(np.mean(cosines["corrected"])),
        "judge": {
            "bar": BAR,
            "seeds": len(rows),
            "above_bar": sum(each >= BAR for each in cosines["corrected"]),
            "cosine": {way: _over(each) for way, each in cosines.items()},
            "cosine_raw": {way: _over([row["cosine_raw"][way] for row in rows]) for way in WAYS},
            "length": {way: _over([row["length"][way] for row in rows]) for way in WAYS},
            "wrong": _estimated([row["wrong"] for row in rows], WRONG),
            "bias": _estimated([row["bias"] for row in rows], BIAS),
            "conflicts": _over([row["conflicts"] for row in rows]),
            "calls": sum(row["calls"] for row in rows),
            "asked_again": sum(row["asked_again"] for row in rows),
            "no_answer": sum(row["no_answer"] for row in rows),
        },
    }


def _over(values: Sequence[float]) -> dict[str, Any]:
    return {**interval(values), "least": float(np.min(values))}


def _estimated(rows: Sequence[Sequence[float]], truth: float) -> dict[str, Any]:
    covered = sum(low <= truth <= high for _, low, high in rows)
    width = float(np.median([high - low for _, low, high in rows]))
    return {**_over([value for value, _, _ in rows]), "truth": truth, "covered": covered, "width": width}


def shown_as(found: Mapping[str, Any]) -> Table:
    """The summary for a terminal."""
    told, table = found["judge"], Table("", "truth", "mean over seeds", "95% interval", "least")
    for name in ("cosine", "cosine_raw", "length"):
        for way in WAYS:
            _row(table, f"{name}, {way}", "1", told[name][way])
    for name in ("wrong", "bias"):
        _row(
            table,
            f"{name} (covered {told[name]['covered']} of {told['seeds']})",
            f"{told[name]['truth']:g}",
            told[name],
        )
    return table


def _row(table: Table, name: str, truth: str, told: Mapping[str, Any]) -> None:
    table.add_row(
        name, truth, f"{told['mean']:.3f}", f"{told['low']:.3f} to {told['high']:.3f}", f"{told['least']:.3f}"
    )


@app.command()
def main(
    out: Annotated[Path, typer.Option()] = Path("runs/study-rewards"),
    seed: Annotated[int, typer.Option()] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 1,
    seeds: Annotated[int, typer.Option(min=2)] = 10,
    users: Annotated[int, typer.Option(min=50)] = 1000,
    pairs: Annotated[int, typer.Option(min=20)] = 1000,
) -> None:
    """Ask, fit, and hold against the truth."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = part(seed, workers, out, seeds, users, pairs)
    console = Console(soft_wrap=True)
    console.print(shown_as(found))
    told = found["judge"]
    console.print(
        f"judge_cosine {found['judge_cosine']:.3f}, the bar {BAR:g}; {told['above_bar']} of {told['seeds']} seeds "
        f"reach it. {told['calls']:,} requests, {told['asked_again']} asked again, {told['no_answer']} unanswered; "
        f"{time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    app()
