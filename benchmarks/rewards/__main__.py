"""`make study-rewards`: rewards that are learned, against a utility that is hidden from the learner.

Four parts, one after another, each in so many processes of one thread: weights, truth, goal, judge. OUT has
`summary.json`, `details.json`, and `parts/`, from which a run that was killed goes on.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.rewards import goal, judge, truth, weights
from benchmarks.rewards.page import draw, fill, findings
from benchmarks.study.parts import Clock, Part, Parts, code, plain
from models.errors import InputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

SUMMARY = ("weights_coverage", "active_to_random_pairs", "gain_of_truth", "judge_cosine", "naive_hacked",
           "conservative_hacked")  # fmt: skip
SHOWING = ("rewards.__main__", "rewards.page")
CLOCK = "seconds.json"


@dataclass(frozen=True)
class Plan:
    """What a part is told."""

    seed: int
    workers: int
    out: Path
    small: bool
    """Toy sizes: whether everything runs, not what comes out."""


def _weights(plan: Plan) -> dict[str, Any]:
    size = {"repetitions": 4, "seeds": 2, "users": 300, "pairs": 60} if plan.small else {}
    return weights.part(plan.seed, plan.workers, plan.out, **size)


def _truth(plan: Plan) -> dict[str, Any]:
    size = truth.Size(2, 300, 60, 20, 40) if plan.small else truth.Size()
    return truth.part(plan.seed, plan.workers, plan.out, size=size)


def _goal(plan: Plan) -> dict[str, Any]:
    size = goal.Size(2, 1, 300, 100, 20, 20, 200) if plan.small else goal.Size()
    settings = {"part": "goal", "seed": plan.seed, "size": vars(size)}
    parts = Parts.of(plan.out / "parts", settings, plan.workers, console)
    return goal.part(plan.seed, parts, Path("configs/study.toml"), size)


def _judge(plan: Plan) -> dict[str, Any]:
    size = {"seeds": 2, "users": 120, "pairs": 60} if plan.small else {}
    return judge.part(plan.seed, plan.workers, plan.out, **size)


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "weights": _weights,
    "truth": _truth,
    "goal": _goal,
    "judge": _judge,
}


@app.command()
def main(
    out: Annotated[Path, typer.Option()] = Path("runs/study-rewards"),
    docs: Annotated[Path | None, typer.Option(help="renew the page rewards.md and its pictures in this folder")] = None,
    shown_only: Annotated[bool, typer.Option(help="compute nothing: the page from what OUT holds")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 2,
    small: Annotated[bool, typer.Option(help="toy sizes, in a minute or two")] = False,
    only: Annotated[list[str] | None, typer.Option(help="these parts: weights, truth, goal, judge")] = None,
) -> None:
    """Learn rewards, act by them, hold them against the truth; write OUT/summary.json."""
    if not shown_only:
        torch.set_num_threads(1)
        study(Plan(seed, workers, out, small), _wanted(only))
    details = json.loads((out / "details.json").read_text())
    for each in findings(details):
        console.print(each, markup=False, highlight=False)
    if docs is not None:
        draw(details, docs)
        fill(docs / "rewards.md", details)
    console.print(f"Written: {out / 'summary.json'}")


def _wanted(only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or () if name not in PARTS]
    if unknown:
        raise InputError(f"--only: {unknown[0]!r} is no part; there are {', '.join(PARTS)}.")
    return [name for name in PARTS if not only or name in only]


def study(plan: Plan, names: Sequence[str]) -> None:
    """The parts, and OUT/summary.json and details.json from all that there are: those of other calls are kept."""
    settings = {"seed": plan.seed, "small": plan.small, "code": code(SHOWING)}
    parts = Parts.of(plan.out / "parts", settings, 1, console)
    clock = Clock(parts.folder / CLOCK)
    for number, name in enumerate(names, 1):
        console.print(f"[bold]{number} of {len(names)}: {name}[/]")
        with clock(name):
            parts(name, [Part(name, _plainly, (name, plan))])
    found = {name: json.loads(place.read_text()) for name in PARTS
             if (place := parts.folder / f"{name}.json").exists()}  # fmt: skip
    details = {"parts": found, "seconds_by_part": clock.seconds, "settings": settings, "workers": plan.workers,
               "commit": _commit()}  # fmt: skip
    _write(plan.out / "details.json", details)
    _write(plan.out / "summary.json", summary(details))


def _plainly(name: str, plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = plain(PARTS[name](plan))
    return found


def summary(details: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of SUMMARY that the parts told, and how long it took, of what, and how large it was."""
    told = {key: value for part in details["parts"].values() for key, value in part.items()}
    return {
        **{key: told[key] for key in SUMMARY if key in told},
        "seconds": round(sum(details["seconds_by_part"].values()), 1),
        "seconds_by_part": details["seconds_by_part"],
        "commit": details["commit"],
        "threads": details["workers"],
        "small": details["settings"]["small"],
        "sizes": {name: each["size"] for name, each in details["parts"].items() if "size" in each},
    }


def _commit() -> str | None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return asked.stdout.strip() if asked.returncode == 0 else None


def _write(path: Path, found: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(app())
