"""How often 95% intervals hold the truth: `make coverage`, 500 simulated logs whose true values are known.

Targets are mixtures (1 - kappa) mu + kappa pi of the logging policy mu; kappas are found on pilot logs so that the
trajectory weights keep a given share of the users effective. Three of them are the bands of the bar, the others go on
to where the intervals break. Seeds are fixed beforehand; those of logs, pilot logs and truth never meet.

Bar: for each band, estimator of SOUND, V(pi) and V(pi) - V(mu), and metric, and for on_policy and V(mu), the interval
holds the truth in 92 to 98% of the logs; each estimator's mean over these cells lies in 93.5 to 96.5%. Judged from 500
logs on; exit code 1 where it is missed. Writes OUT/summary.json and OUT/figures.npz, with --docs the page and picture.
"""

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.coverage_found import found_of
from benchmarks.coverage_log import Evaluated, Setting, evaluated, find_kappas
from benchmarks.coverage_page import shown, write_page
from benchmarks.coverage_truth import Moments, Truth, moments, truth_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

BANDS = {"above 80%": (0.8, 1.0, 0.88), "30-50%": (0.3, 0.5, 0.4), "10-20%": (0.1, 0.2, 0.17)}
"""Name -> least and largest share of effective users, and the one that is aimed at."""
FURTHER = (0.05, 0.02, 0.01)
"""Shares of effective users beyond the bands."""
LOGS, PILOTS, TRUTH = 10_001, 1_000_001, 2_000_001
"""First seed of each kind; the design was settled on seeds below them all."""
PILOT_LOGS = 4
CHUNK = 40_000
"""Users of one world of the truth."""
WORLDS = (5, 50, 40)
"""Worlds in which every target acts, those of the bands alone, and the logging policy only: what is hard to know is the
small difference of the first band, and the logging policy's own value, on which every other rests."""
ENOUGH_LOGS = 500
"""Fewer are no test of the bar: one cell's own standard error is then above a point."""


@app.command()
def main(
    logs: Annotated[int, typer.Option(min=2)] = ENOUGH_LOGS,
    users: Annotated[int, typer.Option(min=50, help="of each log")] = 10_000,
    days: Annotated[int, typer.Option(min=3, help="of each log")] = 14,
    few: Annotated[int, typer.Option(min=25, help="of its users, asked alone as well")] = 2_000,
    worlds: Annotated[tuple[int, int, int], typer.Option(min=1, help="for the truth, see WORLDS")] = WORLDS,
    processes: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option()] = Path("runs/coverage"),
    docs: Annotated[Path | None, typer.Option(help="folder whose coverage.md and coverage.svg are made anew")] = None,
) -> None:
    """Simulate, evaluate, compare with the truth; exit code 1 where the bar is missed."""
    started = time.perf_counter()
    # A worker's libraries read it when they are loaded.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    shares = [aim for _, _, aim in BANDS.values()] + list(FURTHER)
    kappas = find_kappas(Setting(users, days), shares, range(PILOTS, PILOTS + PILOT_LOGS))
    setting = Setting(users, days, kappas, bands=len(BANDS), few=few)
    console.print(f"kappas {', '.join(map(str, kappas))} for effective shares {', '.join(map(str, shares))}")
    chunk = min(CHUNK, 20 * users)
    acting = np.repeat([len(kappas), len(BANDS), 0], worlds)
    work: list[Any] = [partial(moments, setting, TRUTH + each, chunk, int(n)) for each, n in enumerate(acting)]
    work += [partial(evaluated, setting, LOGS + each) for each in range(logs)]
    known, said = _gathered(_done(work, processes), len(kappas))
    bands = {name: (low, high) for name, (low, high, _) in BANDS.items()}
    found = found_of(setting, bands, known, sorted(said, key=lambda each: each.seed))
    summary: dict[str, Any] = {
        **found.summary(judged=logs >= ENOUGH_LOGS),
        "seeds": {"logs": [LOGS, LOGS + logs - 1], "pilots": [PILOTS, PILOTS + PILOT_LOGS - 1],
                  "truth": [TRUTH, TRUTH + len(acting) - 1]},
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(sum(map(_cpu, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))), 1),
        "processes": processes,
        "threads": 1,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    found.save(out / "figures.npz")
    (out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    if docs is not None:
        write_page(docs, summary)
    console.print(shown(summary))
    for miss in summary["misses"]:
        console.print(f"[red]missed[/] {miss}")
    console.print(f"Written: {out / 'summary.json'}")
    raise typer.Exit(1 if summary["misses"] else 0)


def _done(work: list[Any], processes: int) -> Iterator[Any]:
    """The result of each job as it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with multiprocessing.get_context("spawn").Pool(processes) as pool, Progress(*columns, console=console) as progress:
        yield from progress.track(pool.imap_unordered(_run, work), len(work), description="worlds and logs")


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _run(job: Any) -> Any:
    return job()


def _gathered(results: Iterator[Any], targets: int) -> tuple[Truth, list[Evaluated]]:
    worlds: dict[int, Moments] = {}
    said = []
    for result in results:
        if isinstance(result, Evaluated):
            said.append(result)
        else:
            acting = result.policies - 1
            worlds[acting] = worlds.get(acting, Moments.none(acting + 1)) + result
    return truth_of(worlds, targets), said


if __name__ == "__main__":
    app()
