"""What a run found: summary.json, and the table and verdict in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

COLOUR = {"PROMOTE": "green", "REFUSE": "red", "INCONCLUSIVE": "yellow"}
ON_POLICY = "on_policy"
UNTRUSTED = " †"
WEIGHED = ("wpdis", "pdis", "ips")
"""Estimators without a model."""
SEEN = 0.0005
"""An estimate from here on is not shown as 0."""
SHOWN_ACTIONS = 5
"""Actions whose calibration the terminal shows."""


def headline_estimator(policy: Mapping[str, Any], preferred: str) -> str:
    """The estimator a policy is quoted by: the preferred one, or the mean of the log for the policy that wrote it."""
    return preferred if preferred in policy["estimates"] else ON_POLICY


def policies(evaluation: Mapping[str, Any], estimator: str) -> dict[str, dict[str, Any]]:
    """Per policy and metric: estimate, interval, difference from the logging policy, and the truth where known."""
    found = {}
    for name, policy in evaluation["policies"].items():
        quoted = headline_estimator(policy, estimator)
        truth = policy.get("truth") or {}
        found[name] = {
            metric: {
                **figures,
                "estimator": quoted,
                "rows": policy["rows"],
                "trusted": policy["trusted"],
                "truth": truth.get(metric),
            }
            for metric, figures in policy["estimates"][quoted].items()
        }
    return found


def number(value: float | None, digits: int = 3) -> str:
    """A figure as a person reads it: three significant digits, thousands separated, a dash where there is none."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size and size < 10 ** -(digits + 1):
        return f"{value:.1e}"
    decimals = digits if size < 1 else max(digits - len(str(int(size))), 0)
    return f"{value:.{decimals}f}"


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """Policies by metrics: estimate, interval and, where known, the truth beneath."""
    evaluation = summary["evaluation"]
    table = Table(title=f"Value {evaluation['unit']}", title_justify="left", caption_justify="left")
    table.add_column("policy")
    table.add_column("rows")
    for metric in evaluation["components"]:
        table.add_column(metric, justify="right")
    has_truth = False
    for name, metrics in summary["policies"].items():
        cells = []
        for metric in evaluation["components"]:
            figures = metrics.get(metric)
            if figures is None:
                cells.append("–")
                continue
            cell = f"{number(figures['estimate'])}\n[{number(figures['low'])}, {number(figures['high'])}]"
            if figures["truth"]:
                has_truth = True
                cell += f"\ntruth {number(figures['truth']['value'])}"
            cells.append(cell)
        first = next(iter(metrics.values()))
        mark = "" if first["trusted"] else UNTRUSTED
        table.add_row(
            f"{name}{mark}\n{first['estimator']}", first["rows"], *(Text(cell) for cell in cells), end_section=True
        )
    table.caption = "estimate and interval" + (", and the simulator's own value" if has_truth else "")
    if not all(next(iter(metrics.values()))["trusted"] for metrics in summary["policies"].values()):
        table.caption += f"\n{UNTRUSTED.strip()} too little overlap with the log: extrapolated, its interval too narrow"
    return table


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[RenderableType]:
    """Every policy by every estimator, the log's propensities, and what to know before believing them."""
    unit = "rows" if evaluation["clusters"] == "rows" else "users"
    table = Table(title=f"Value {evaluation['unit']}", title_justify="left", caption_justify="left")
    for column in ("policy", "estimator"):
        table.add_column(column)
    for column in (*evaluation["components"], f"effective {unit}"):
        table.add_column(column, justify="right")
    for name, policy in evaluation["policies"].items():
        mark = "" if policy["trusted"] else UNTRUSTED
        size = f"{number(policy['diagnostics']['ess'])} of {policy['users']:,}"
        for place, (estimator, metrics) in enumerate(policy["estimates"].items()):
            cells = [_figure(metrics[metric]) for metric in evaluation["components"]]
            first = (name + mark, size) if place == 0 else ("", "")
            table.add_row(first[0], estimator, *(Text(cell) for cell in cells), first[1])
        table.add_section()
    table.caption = f"estimate and {evaluation['confidence']:.0%} interval, resampling {unit}"
    if not all(policy["trusted"] for policy in evaluation["policies"].values()):
        table.caption += f"\n{UNTRUSTED.strip()} too little overlap with the log: extrapolated, its interval too narrow"
    calibration = evaluation["calibration"]
    tables = [table, _mean_weights(calibration), *([_bins(calibration)] if calibration["bins"] else [])]
    return [*tables, *(Text(f"• {note}") for note in notes(evaluation))]


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What intervals resample where it is not users, what `never` is said to send, and the evaluation's warnings."""
    rows = evaluation.get("clusters") == "rows"
    told = ["The log has no users that come back: every row is a cluster of its own, and intervals resample rows."]
    return [*(told if rows else []), *_impossible(evaluation), *(evaluation.get("warnings") or [])]


def _impossible(evaluation: Mapping[str, Any]) -> list[str]:
    """Sends of the policy that never sends: estimates of what is known to be 0 show how far off a model is."""
    estimates = evaluation.get("policies", {}).get("never", {}).get("estimates", {})
    sends = {name: each["sends"]["estimate"] for name, each in estimates.items() if "sends" in each}
    # Weights alone are 0 exactly where no row that it follows was a send; where `hold` may be illegal some are.
    if not any(sends.get(name) == 0 for name in WEIGHED):
        return []
    off = [f"{name} {number(value, 4)}" for name, value in sends.items() if value is not None and abs(value) >= SEEN]
    if not off:
        return []
    return [
        f"never sends nothing, so that any sends it is said to have are error ({', '.join(off)} "
        f"{evaluation['unit']}): of the fitted value functions, which the interval of fqe leaves out. Shown as "
        "estimated and not clipped: the same error is in figures whose truth nobody knows."
    ]


def _figure(found: Mapping[str, Any]) -> str:
    """An estimate with its interval."""
    if found["estimate"] is None:
        return "–"
    return f"{number(found['estimate'], 4)} [{number(found['low'], 4)}, {number(found['high'], 4)}]"


def _mean_weights(found: Mapping[str, Any]) -> Table:
    """Mean weight of the actions, which should be 1, the furthest from it first."""
    table = Table(title="Propensities: mean of 1{action} / propensity, 1 where they are right", title_justify="left")
    for column in ("action", "mean weight", "standard error", "decisions"):
        table.add_column(column, justify="left" if column == "action" else "right")
    actions = sorted(found["actions"].items(), key=lambda pair: -abs(pair[1]["mean_weight"] - 1))
    for name, each in actions[:SHOWN_ACTIONS]:
        table.add_row(name, number(each["mean_weight"]), number(each["se"]), f"{each['decisions']:,}")
    if len(actions) > SHOWN_ACTIONS:
        table.caption = f"the {SHOWN_ACTIONS} furthest from 1 of {len(actions)}"
    return table


def _bins(found: Mapping[str, Any]) -> Table:
    """How often the second action was taken where the log states so much for it."""
    table = Table(title="The second action: stated and observed", title_justify="left")
    for column in ("stated", "observed", "decisions"):
        table.add_column(column, justify="right")
    for each in found["bins"]:
        table.add_row(number(each["predicted"]), number(each["observed"]), f"{each['n']:,}")
    return table


def verdict_panel(verdict: Mapping[str, Any]) -> Panel:
    """The verdict first, then why."""
    colour = COLOUR[verdict["verdict"]]
    lines = [Text(f"{verdict['candidate']}: {verdict['verdict']}", style=f"bold {colour}")]
    lines += [Text(f"• {reason}") for reason in verdict["reasons"]]
    return Panel(Group(*lines), title="Verdict", title_align="left", border_style=colour)
