"""What a person wants to know of a judge, on the terminal: of a run, and of the weights that it taught."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from pipelines.report.text import Range, percent


def shown(facts: Mapping[str, Any]) -> list[str]:
    """What a person wants to know of a run, in lines."""
    found, agreed = facts["estimate"], facts["agreement"]
    lines = [
        f"{facts['answered']} of {facts['pairs']} pairs answered in both orders; {facts['conflicts']} change with the "
        f"order ({facts['first_shown_in_both']} name the week shown first both times, {facts['second_shown_in_both']} "
        f"the other); {facts['in_no_form']} answers in no form, {facts['given_up']} questions given up.",
        f"{facts['calls']:,} calls and {facts['tokens']:,} tokens in all. Decided by {_principles(facts)}.",
    ]
    if "why" in found:
        lines.append(f"Flip rate and position bias are not known: {found['why']}")
    else:
        lines.append(_errors(found))
    if agreed is not None and agreed["kappa"] is not None:
        lines.append(f"Of {agreed['pairs']} pairs that people answered too: Cohen's kappa {agreed['kappa']:.2f}.")
    return [*lines, f"{'Trusted' if facts['trusted'] else 'UNTRUSTED'}: {facts['why']}."]


def _principles(facts: Mapping[str, Any]) -> str:
    """How often each principle decided, the most frequent first."""
    counts: Mapping[str, int] = facts["principles"]
    said = [
        f"{'no principle' if number == 'none' else f'principle {number}'} ({percent(count / sum(counts.values()))})"
        for number, count in sorted(counts.items(), key=lambda each: -each[1])
        if count
    ]
    return ", ".join(said) or "nothing"


def _errors(found: Mapping[str, Any]) -> str:
    (low, high), (least, most) = found["wrong_interval"], found["bias_interval"]
    return (
        f"Wrong answers {found['wrong']:.2f} (95% interval {low:.2f} to {high:.2f}), liking of the week shown first "
        f"{found['bias']:+.2f} in log odds ({least:+.2f} to {most:+.2f})."
    )


def version_shown(facts: Mapping[str, Any], title: str) -> list[RenderableType]:
    """Weights that a judge's answers taught, corrected, and whether it is trusted."""
    interval = f"{percent(facts['confidence'])} interval"
    table = Table("component", "weight", interval, "unit", title=title, title_justify="left")
    for name in facts["rewards"]:
        value, ends = Range(facts["weights"][name], *facts["intervals"][name]).texts(sign=True)
        table.add_row(name, value, ends, facts["units"][name])
    judge = facts["judge"]
    trust = "trusted" if judge["trusted"] else "UNTRUSTED"
    said = f"By {judge['rater']}, {trust}: {judge['why']}. {facts['pairs']} pairs. {_errors(facts['noise'])}"
    return [table, escape(said)]
