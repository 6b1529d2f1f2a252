"""A sweep as a person reads it: the table in the terminal, a member as lines of configuration and as an MLflow run."""

import json
import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from models.members import Learner
from pipelines.config import Config
from pipelines.summary import UNTRUSTED, number
from policies.sweep import SENDS, WEIGHTED


def members_table(found: Mapping[str, Any]) -> Table:
    """Members by objectives, fewest sends first: estimate and interval, what it is learned under, the front."""
    objectives, estimator = found["objectives"], found["estimator"]
    shown = [*objectives, WEIGHTED]
    table = Table(
        title=f"Value {found['unit']}, {found['users']:,} {found['rows']} users", title_justify="left",
        caption_justify="left",
    )  # fmt: skip
    for name in ("member", *(f"w {name}" for name in found["swept"]), *(("alpha",) if found["alphas"] else ())):
        table.add_column(name)
    for name in shown:
        table.add_column(f"{name} {arrow(objectives[name])}" if name in objectives else name, justify="right")
    table.add_column("front", justify="right")
    first = next((name for name, way in objectives.items() if way == "down"), next(iter(objectives)))
    rows = [("logging", None, found["logging"])]
    rows += [(name, member, member["estimates"][estimator]) for name, member in found["members"].items()]
    for name, member, figures in sorted(rows, key=lambda row: row[2][first]["estimate"] or 0.0):
        cells = ["", *("" for _ in found["swept"]), *(("",) if found["alphas"] else ())]
        share = ""
        if member is not None:
            weights = [f"{member['weights'][each]:g}" for each in found["swept"]]
            cells = ["" if member["trusted"] else UNTRUSTED, *weights]
            cells += [f"{member['alpha']:g}"] if found["alphas"] else []
            share = ("● " if member["front"] else "") + f"{member['front_probability']:.0%}"
        cells[0] = name + cells[0]
        values = [
            f"{number(each['estimate'])}\n[{number(each['low'])}, {number(each['high'])}]"
            for each in (figures[metric] for metric in shown)
        ]
        table.add_row(*(Text(cell) for cell in (*cells, *values, share)), end_section=True)
    table.caption = (
        f"estimator {estimator}, intervals of {found['confidence']:.0%}; ● nobody beats it; % of resamples in which "
        "nobody does"
    )
    if not all(member["trusted"] for member in found["members"].values()):
        table.caption += f"\n{UNTRUSTED.strip()} too little overlap with the log: not on the front, and never picked"
    return table


def arrow(direction: str) -> str:
    return "↑" if direction == "up" else "↓"


def toml_of(config: Config, learner: str, weights: Mapping[str, float], alpha: float) -> str:
    """The lines that make `tactful train` learn a member of the sweep of `config`."""
    given = config.learning.learners[learner]
    own = isinstance(given, Learner) and given.weights is not None
    lines = [f"[train.learners.{_key(learner)}.weights]" if own else "[train.weights]"]
    if config.learning.weights_from is not None:
        lines.insert(0, "# in place of train.weights_from")
    lines += [f"{_key(name)} = {weight!r}" for name, weight in weights.items()]
    if config.sweep is not None and config.sweep.alpha:
        named = isinstance(given, Learner)
        lines += ["", f"[train.learners.{_key(learner)}]" if named else "[train.learners]"]
        if isinstance(given, Learner) and given.kind != "ddqn_cql":
            # Double DQN has no alpha: its members are those of the penalty.
            lines += ['kind = "ddqn_cql"']
        lines += [f"{'alpha' if named else _key(learner)} = {alpha!r}"]
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def picked(found: Mapping[str, Any], name: str) -> str:
    """What was picked: comments that say what it sends and brings, then its lines of configuration; valid TOML."""
    member = found["members"][name]
    figures = member["estimates"][found["estimator"]]
    sends = figures[SENDS]["relative"]
    said = [f"# {name}, {found['unit']} on {found['rows']} users:"]
    for metric in dict.fromkeys([SENDS, *found["objectives"], WEIGHTED]):
        each = figures[metric]
        said.append(f"#   {metric} {number(each['estimate'])} ({number(each['low'])} to {number(each['high'])})")
    said.append(
        "#   " + ", ".join(_share(sends[end], word) for end, word in (("estimate", "sends"), ("high", "at most")))
    )
    if found["seeds"] != found["train_seeds"]:
        said.append(f"# Learned with {found['seeds']} seeds: set train.seeds to that for the same policy.")
    return "\n".join([*said, member["toml"]])


def _share(relative: float | None, word: str) -> str:
    return (
        f"{word} {'an unknown share' if relative is None else f'{1 + relative:.1%}'} of what the logging policy sends"
    )


def run_figures(found: Mapping[str, Any], name: str) -> dict[str, float]:
    """The metrics of a member's MLflow run: each estimate as METRIC, its interval as METRIC_low and METRIC_high."""
    member = found["members"][name]
    figures = {
        f"{metric}{suffix}": each[key]
        for metric, each in member["estimates"][found["estimator"]].items()
        for key, suffix in (("estimate", ""), ("low", "_low"), ("high", "_high"))
    }
    figures |= {"front_probability": member["front_probability"], "ess": member["diagnostics"]["ess"]}
    return {key: value for key, value in figures.items() if value is not None}
