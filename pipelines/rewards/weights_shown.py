"""Learned weights on the terminal: what `tactful rewards fit` and `report` print."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from pipelines.report.text import MISSING, Range, fixed, percent, short

NO_BOUNDS = "unbounded"


def shown(facts: Mapping[str, Any], title: str) -> list[RenderableType]:
    """Weights, raters, and how well held-out comparisons are predicted."""
    return [_weights(facts, title), _raters(facts), *_sentences(facts)]


def _weights(facts: Mapping[str, Any], title: str) -> Table:
    interval = f"{percent(facts['confidence'])} interval"
    table = Table("component", "weight", interval, f"in {facts['unit']}", interval, title=title, title_justify="left")
    for name in facts["rewards"]:
        value, ends = weight_of(facts, name).texts(sign=True)
        ratio, between = ratio_texts(facts, name)
        table.add_row(name, value, ends, ratio, between)
    return table


def weight_of(facts: Mapping[str, Any], name: str) -> Range:
    low, high = facts["intervals"][name]
    return Range(facts["weights"][name], low, high)


def ratio_texts(facts: Mapping[str, Any], name: str) -> tuple[str, str]:
    """(estimate, interval) of what one unit is worth in the component that ratios are told in."""
    if name == facts["unit"]:
        return "1", "the unit"
    found = Range.of(facts["ratios"][name])
    if found.low is None:
        return (MISSING if found.value is None else short(found.value, sign=True)), NO_BOUNDS
    return found.texts(sign=True)


def _raters(facts: Mapping[str, Any]) -> Table:
    table = Table("rater", "pairs", "left / tie / right", "reliability", "log odds of left", "agrees with the fit")
    for each in facts["raters"]:
        low, high = each["side_interval"] or (None, None)
        side, ends = Range(each["side"] if each["side_interval"] else None, low, high).texts(sign=True)
        table.add_row(
            escape(each["name"]),
            str(each["pairs"]),
            f"{each['left']} / {each['ties']} / {each['right']}",
            fixed(each["reliability"], 2),
            f"{side} ({ends})" if ends else side,
            percent(each["agreement"], 1),
        )
    return table


def _sentences(facts: Mapping[str, Any]) -> list[str]:
    found = facts["held_out"]
    if found is None:
        said = ["Nothing could be held out: the answers are too few, or all linked."]
    else:
        low, high = found["accuracy_interval"]
        said = [
            f"Held out: {percent(found['accuracy'], 1)} of {found['comparisons']} comparisons right "
            f"({percent(low, 1)} to {percent(high, 1)}), by the side alone {percent(found['accuracy_by_side'], 1)}, "
            f"by chance 50%; log loss {fixed(found['log_loss'], 3)}, by chance 0.693."
        ]
    return said + [escape(each) for each in facts["not_learned"]]
