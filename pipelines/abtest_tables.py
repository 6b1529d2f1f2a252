"""A plan and a reading of an experiment in the terminal."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.summary import number

COLOUR = {"BETTER": "green", "HARM": "red", "INVALID": "red", "UNDECIDED": "yellow"}


def plan_table(found: Mapping[str, Any]) -> Group:
    """Users and days for every metric, and the line for the configuration."""
    table = Table(title="What the experiment needs", title_justify="left", caption_justify="left")
    for column in ("metric", "value", "sd", "to find", "CUPED", "users", "days", "detectable"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, row in found["metrics"].items():
        goal = row["role"] == "goal"
        table.add_row(
            f"{name}\n{found['units'][name]}",
            number(row["value"]),
            number(row["standard_deviation"]),
            f"{_percent(row['effect'])} effect" if goal else f"{_percent(row['margin'])} margin",
            f"-{_percent(row['explained'])}",
            f"{row['users']:,}",
            "–" if row["days"] is None else str(row["days"]),
            _percent(row["detectable"]),
        )
    days = found["planned_on"]["days"]
    table.caption = (
        f"power {found['power']:g}, alpha {found['alpha']:g} over {found['tests']} tests, method {found['method']}; "
        f"from {days:g} days of {found['exist']:,} users\nsd: one user's influence; CUPED: variance that the pre-"
        "period takes; detectable: with the users of the log"
    )
    return Group(table, *(Text(line) for line in plan_words(found)))


def plan_words(found: Mapping[str, Any]) -> list[str]:
    """What the plan comes to."""
    arms = ", ".join(f"{arm} {n:,}" for arm, n in found["users_by_arm"].items())
    lines = [f"{found['users']:,} users in all ({arms}), by {found['decided_by']}."]
    if found["days"] is not None:
        lines.append(f"{found['days']} days from the start to the reading.")
    elif found["method"] == "looks":
        lines.append(
            f"The log has {found['exist']:,} users: too few. Plan a later last look, a larger effect or fewer goals."
        )
    else:
        lines += _fixed_cohort(found)
    if found["planned_on"]["days"] < found["horizon_days"]:
        lines.append(
            f"The log has room for {found['planned_on']['days']:g} of {found['horizon_days']:g} days: a longer watch "
            "leaves less noise, so the plan is cautious."
        )
    if found["without_cuped"]:
        lines.append(f"No variance is taken away by a pre-period: {found['without_cuped']}.")
    if found["method"] == "always_valid":
        lines += ["", "[abtest]", f"users = {found['users']}"]
    return lines


def _fixed_cohort(found: Mapping[str, Any]) -> list[str]:
    """What to do where the users of the log are all there will ever be, and too few."""
    name = found["decided_by"]
    row = found["metrics"][name]
    key = "effect" if row["role"] == "goal" else "margin"
    # Two digits, rounded up: a little less than it can show would ask for a little more than there are.
    unit = 10.0 ** (math.floor(math.log10(row["detectable"])) - 1)
    shown = math.ceil(row["detectable"] / unit) * unit
    return [
        f"No new users come in the log's last week: its {found['exist']:,} users are a fixed cohort, and too few.",
        f"• All of them together can show {name} with {key} = {shown:.2g}: plan that, or fewer goals.",
        f"• A longer abtest.window_days (now {found['horizon_days']:g}) leaves less noise; so does method = "
        '"looks", where all enrol at once and count until the last look.',
        "• Where users will join whom the log does not show, say how many a day: abtest.users_per_day.",
    ]


def read_table(found: Mapping[str, Any]) -> Group:
    """Every comparison with its verdict, segments, and what evaluation had predicted."""
    parts: list[Any] = [Text(line) for line in who(found)]
    for arm, comparison in found["comparisons"].items():
        if comparison["metrics"]:
            parts.append(_comparison(arm, comparison, found))
        colour = COLOUR[comparison["verdict"]]
        lines = [Text(f"{arm}: {comparison['verdict']}", style=f"bold {colour}")]
        lines += [Text(f"• {reason}") for reason in comparison["reasons"]]
        parts.append(Panel(Group(*lines), title="Verdict", title_align="left", border_style=colour))
    if found["segments"]:
        parts.append(_segments(found["segments"]))
    if found["predicted"] is not None:
        parts += _predictions(found["predicted"])
    return Group(*parts)


def who(found: Mapping[str, Any]) -> list[str]:
    """Who took part, who was counted and who was left out."""
    sizes = ", ".join(
        f"{arm} {n:,} ({counted:,} counted)"
        for arm, n, counted in zip(found["arms"], found["enrolled"], found["counted"], strict=True)
    )
    ratio = found["sample_ratio"]
    lines = [
        f"{found['start']} to {found['end']}, method {found['method']}",
        f"users: {sizes}; sample ratio p = {ratio['p']:.3g}" + ("" if ratio["ok"] else ", a mismatch"),
    ]
    left = found["left_out"]
    if any(left.values()):
        lines.append(
            f"left out: {left['crossed']:,} seen in two arms, {left['late']:,} enrolled after the first look, "
            f"{left['unusable']:,} without a usable row"
        )
    if found["decided_elsewhere"]:
        lines.append(f"{found['decided_elsewhere']:,} users were later decided about by another policy too; they stay.")
    reasons = {
        figures["without_cuped"]
        for comparison in found["comparisons"].values()
        for figures in comparison["metrics"].values()
        if figures["without_cuped"]
    }
    return [*lines, *(f"No CUPED: {why}." for why in sorted(reasons))]


def _comparison(arm: str, comparison: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    control = found["arms"][0]
    table = Table(title=f"{arm} against {control}", title_justify="left", caption_justify="left")
    for column in ("metric", control, arm, "difference", "relative", "CUPED", "p", "state"):
        table.add_column(column, justify="left" if column in ("metric", "state") else "right")
    for name, row in comparison["metrics"].items():
        table.add_row(
            f"{name}\n{found['units'][name]}",
            number(row["control"]),
            number(row["treatment"]),
            _with_ends(row["difference"]),
            _with_ends(row["relative"], percent=True),
            "–" if row["explained"] is None else f"-{_percent(row['explained'])}",
            f"{row['p_holm']:.2g}" if "p_holm" in row else "–",
            f"{row['state']}\n{row['role']}",
        )
    table.caption = "difference and interval over all looks; of goals for all of them together, p by Holm"
    return table


def _segments(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Segments, to explore", title_justify="left", caption_justify="left")
    for column in ("group", "arm", "metric", "users", "difference", "relative", "p"):
        table.add_column(column, justify="left" if column in ("group", "arm", "metric") else "right")
    for row in rows:
        table.add_row(
            Text(row["group"]),
            row["arm"],
            row["metric"],
            f"{sum(row['users']):,}",
            _with_ends(row["difference"]),
            _with_ends(row["relative"], percent=True),
            f"{row['p_holm']:.2g}",
        )
    table.caption = f"intervals for all {len(rows)} rows together, p by Holm; what stands out is to be tested anew"
    return table


def _predictions(predicted: Mapping[str, Any]) -> list[Any]:
    note = [Text(f"Not compared with what evaluation predicted: {predicted['left_out']}.")]
    if not predicted["rows"]:
        return note if predicted["left_out"] else []
    table = Table(title="Against what evaluation predicted", title_justify="left", caption_justify="left")
    for column in ("treatment", "metric", "predicted", "read", "z", "agrees"):
        table.add_column(column, justify="left" if column in ("treatment", "metric", "agrees") else "right")
    for row in predicted["rows"]:
        table.add_row(
            row["treatment"] + ("" if row["trusted"] else " †"),
            row["metric"],
            _with_ends(row["predicted"]),
            _with_ends(row["read"]),
            f"{row['z']:.2f}",
            "yes" if row["agrees"] else "no",
        )
    if not all(row["trusted"] for row in predicted["rows"]):
        table.caption = "† too little overlap with the log: predicted by extrapolation"
    return [table, *(note if predicted["left_out"] else [])]


def _with_ends(found: Mapping[str, Any] | None, percent: bool = False) -> Text:
    if found is None or found["low"] is None:
        return Text("–")
    show = _percent if percent else number
    return Text(f"{show(found['estimate'])}\n[{show(found['low'])}, {show(found['high'])}]")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"
