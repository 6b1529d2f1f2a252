"""`make study`: the 128-policy study, the headline of the KDD 2022 paper, and the gate held against the truth.

Everything is left in OUT: `summary.json`, `details.json`, and `parts/`, from which a run that was killed goes on.
"""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console

from benchmarks.study import estimators, halves, headline, promotion, truth
from benchmarks.study.findings import findings
from benchmarks.study.members import load, train
from benchmarks.study.page import fill, shown
from benchmarks.study.parts import Clock, Part, Parts, code, plain
from benchmarks.study.pictures import draw
from benchmarks.study.source import Source
from benchmarks.study.truth import Candidate, Truth
from models.errors import InputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# Into a file a table is as wide as it needs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

SHOWING = ("study.__main__", "study.findings", "study.page", "study.pictures")
CLOCK, NETWORKS = "seconds.json", "members.safetensors"
K = TypeVar("K")
TOGETHER = 4
"""Policies to a part: what they share is made once, and no more is lost with a killed run."""


@dataclass(frozen=True)
class Plan:
    """How large the study is."""

    source: Source
    out: Path
    workers: int
    members: int
    seeds: int
    sizes: tuple[int, ...]
    epsilons: tuple[float, ...]
    headline_truth: int
    headline_steps: int
    log_sizes: tuple[int, ...]
    logs: tuple[int, ...]
    """Of each size."""
    judged: int

    def settings(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        own = {key: value for key, value in vars(self).items() if key not in {"source", "out", "workers"}}
        config = self.source.config.model_dump(mode="json", exclude={"run_dir", "data"})
        found: dict[str, Any] = json.loads(json.dumps({**own, "config": config, "code": code(SHOWING)}))
        return found


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="the world, the log, the learners and the gate")] = Path(
        "configs/study.toml"
    ),
    out: Annotated[Path, typer.Option()] = Path("runs/study"),
    docs: Annotated[Path | None, typer.Option(help="renew the page study.md and its pictures in this folder")] = None,
    shown_only: Annotated[bool, typer.Option(help="compute nothing: the page from what OUT holds")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 2,
    members: Annotated[int, typer.Option(min=1, max=128, help="in each half")] = 128,
    users: Annotated[int | None, typer.Option(min=100, help="of the log that members learn from")] = None,
    truth_users: Annotated[int | None, typer.Option(min=10, help="of the world that tells the truth")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="updates")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="of the headline: logs of each size and exploration")] = 20,
    sizes: Annotated[list[int] | None, typer.Option(help="users of the headline's logs: 500, 2000, 8000")] = None,
    epsilons: Annotated[list[float] | None, typer.Option(help="explorations of those: 0.05, 0.1, 0.3")] = None,
    headline_truth: Annotated[int, typer.Option(min=10, help="users behind each truth of the headline")] = 2000,
    headline_steps: Annotated[int, typer.Option(min=1, help="updates of the headline's learners")] = 1000,
    log_sizes: Annotated[list[int] | None, typer.Option(help="users of the gate's logs: 2000, 6000, 18000")] = None,
    logs: Annotated[list[int] | None, typer.Option(help="how many of each: 20, 10, 6")] = None,
    judged: Annotated[int, typer.Option(min=1, help="members that the gate judges, each at four shares")] = 26,
) -> None:
    """Learn, tell the truth, estimate, judge; write OUT/summary.json."""
    if shown_only:
        _show(json.loads((out / "details.json").read_text()), docs)
        return
    changed = {"simulate__users": users, "simulate__truth_users": truth_users, "train__steps": steps}
    plan = Plan(
        source=Source(config).but(**{key: value for key, value in changed.items() if value is not None}),
        out=out,
        workers=workers,
        members=members,
        seeds=seeds,
        sizes=tuple(sizes or (500, 2000, 8000)),
        epsilons=tuple(epsilons or (0.05, 0.1, 0.3)),
        headline_truth=headline_truth,
        headline_steps=headline_steps,
        log_sizes=tuple(log_sizes or (2000, 6000, 18000)),
        logs=tuple(logs or (20, 10, 6)),
        judged=judged,
    )
    if len(plan.logs) != len(plan.log_sizes):
        raise InputError(f"--logs: {len(plan.logs)} numbers for {len(plan.log_sizes)} of --log-sizes; give one each.")
    torch.set_num_threads(1)
    parts = Parts.of(out / "parts", plan.settings(), workers, console)
    details = study(plan, parts)
    found = {key: details[key] for key in SUMMARY}
    _write(out / "details.json", details)
    _write(out / "summary.json", found)
    _show(details, docs)
    console.print(f"Written: {out / 'summary.json'}")


def _show(details: dict[str, Any], docs: Path | None) -> None:
    console.print(shown(details))
    for each in findings(details):
        console.print(each, markup=False, highlight=False)
    if docs is not None:
        draw(details, docs)
        fill(docs / "study.md", details)


SUMMARY = ("policies", "ddqn_beat_logging", "ddqn_cql_beat_logging", "estimators", "headline", "gate", "seconds",
           "threads", "users")  # fmt: skip


def study(plan: Plan, parts: Parts) -> dict[str, Any]:
    """All results; the keys of SUMMARY and what the page says beside them."""
    clock, place = Clock(parts.folder / CLOCK), parts.folder / NETWORKS
    metrics = plan.source.config.gate.metrics
    with clock("learning"):
        (stopped,) = parts("learning", [Part("members", _train, (plan, place))])
    names = list(load(place))
    with clock("truth"):
        true = _truths(plan, parts, "truth of members", [Candidate(name) for name in names])
        members = {name: true[name] for name in names}
        asked = promotion.candidates(members, plan.judged)
        mixtures = _truths(plan, parts, "truth of mixtures", [each for each in asked if each.share < 1])
        known = {each.name: {**members, **mixtures}[each.name] for each in asked}
    with clock("estimates"):
        said = _estimates(plan, parts, names)
    with clock("headline"):
        cells = _headline(plan, parts)
    with clock("verdicts"):
        verdicts = _verdicts(plan, parts, asked)
    halved = halves.compared(members, metrics, said)
    estimates = {name: each["estimates"] for name, each in said.items()}
    found: dict[str, Any] = plain(
        {
            "policies": plan.members,
            **{f"{kind}_beat_logging": each["beat"] for kind, each in halved.items()},
            "estimators": estimators.summary([(estimates[name], members[name]) for name in names]),
            "headline": headline.summary(cells),
            "gate": promotion.summary(known, verdicts, metrics),
            "seconds": round(sum(clock.seconds.values()), 1),
            "threads": plan.workers,
            "users": plan.source.world.users,
            "halves": halved,
            "stopped": stopped,
            "truth": true,
            "estimates": estimates,
            "candidates": known,
            "by_share": estimators.by_share(asked, known, verdicts[min(verdicts)]),
            "gate_groups": promotion.groups(known, metrics),
            "promoted": promotion.by_candidate(known, verdicts),
            "seconds_by_part": clock.seconds,
            "settings": plan.settings(),
        }
    )
    return found


def _train(plan: Plan, place: Path) -> dict[str, str]:
    return train(plan.source, plan.members, plan.workers, place, progress=True)


def _groups(several: Sequence[Any]) -> list[Sequence[Any]]:
    return [several[start : start + TOGETHER] for start in range(0, len(several), TOGETHER)]


def _truths(plan: Plan, parts: Parts, label: str, several: Sequence[Candidate]) -> dict[str, Truth]:
    work = [
        Part(f"truth/{group[0].file}", truth.truths, (plan.source, parts.folder / NETWORKS, group))
        for group in _groups(several)
    ]
    return {name: each for found in parts(label, work) for name, each in found.items()}


def _estimates(plan: Plan, parts: Parts, names: Sequence[str]) -> dict[str, Any]:
    work = [
        Part(
            f"estimates/{group[0].replace('/', '-')}",
            estimators.study_members,
            (plan.source, parts.folder / NETWORKS, group, len(names)),
        )
        for group in _groups(names)
    ]
    return {name: each for found in parts("estimates of members", work) for name, each in found.items()}


def _headline(plan: Plan, parts: Parts) -> dict[tuple[int, float], list[dict[str, Any]]]:
    source = plan.source.but(simulate__truth_users=plan.headline_truth, train__steps=plan.headline_steps)
    cells = list(itertools.product(plan.sizes, plan.epsilons))
    work = {
        (users, epsilon): [
            Part(f"headline/{users}-{epsilon:g}-{seed}", headline.cell, (source, users, epsilon, seed))
            for seed in range(plan.seeds)
        ]
        for users, epsilon in cells
    }
    return _by_key("headline", parts, work)


def _verdicts(plan: Plan, parts: Parts, asked: Sequence[Candidate]) -> dict[int, list[dict[str, Any]]]:
    # No two logs share their luck, whatever their size.
    seeds = itertools.count(plan.source.config.seed + promotion.LOG_SEED)
    work = {
        users: [
            Part(
                f"verdicts/{users}-{number}",
                promotion.log_verdicts,
                (
                    plan.source.but(simulate__users=users),
                    parts.folder / NETWORKS,
                    asked,
                    next(seeds),
                    users == min(plan.log_sizes),
                ),
            )
            for number in range(logs)
        ]
        for users, logs in zip(plan.log_sizes, plan.logs, strict=True)
    }
    return _by_key("verdicts", parts, work)


def _by_key(label: str, parts: Parts, work: Mapping[K, Sequence[Part]]) -> dict[K, list[dict[str, Any]]]:
    """What the parts of each key give; the last keys, which have the most users, are made first."""
    keys = [*work][::-1]
    found = iter(parts(label, [part for key in keys for part in work[key]]))
    made = {key: [*itertools.islice(found, len(work[key]))] for key in keys}
    return {key: made[key] for key in work}


def _write(path: Path, found: Any) -> None:
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(app())
