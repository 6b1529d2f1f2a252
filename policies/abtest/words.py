"""The reasons of a reading, in words a person can act on."""

import math
from collections.abc import Mapping
from typing import Any

from policies.abtest.config import AbtestConfig

Turned = tuple[float, float, float] | None
"""(estimate, low, high) of a relative difference, more being better."""


def goal_reason(name: str, state: str, turned: Turned, figures: Mapping[str, Any], config: AbtestConfig) -> str:
    """Why a goal is better, worse or undecided."""
    if turned is None:
        return _unreadable(name, figures, config)
    about = f"{name}: {_between(turned)} (p = {figures['p_holm']:.2g} over {config.tests} tests)"
    if state == "better":
        return f"{about}: shown to be better."
    if state == "worse":
        return f"{about}: shown to be worse. Stop the treatment, or find whom it harms before it goes on."
    effect = config.metrics[name].effect
    if effect is not None and turned[2] < effect:
        return f"{about}: not shown, and an effect of {_percent(effect)} is excluded. More users will not help: stop."
    return f"{about}: not shown. {_more_users(turned[0], turned[0] - turned[1], 0.0, figures)}"


def guardrail_reason(
    name: str, state: str, turned: Turned, figures: Mapping[str, Any], margin: float, config: AbtestConfig
) -> str:
    """Why a guardrail holds, is broken or is undecided."""
    if turned is None:
        return _unreadable(name, figures, config)
    about = f"{name}: {_between(turned)}, a loss of {_percent(margin)} is tolerated"
    if state == "holds":
        return f"{about}: holds" + (", though it is worse." if turned[2] < 0 else ".")
    if state == "broken":
        return f"{about}: broken. Stop the treatment: more users would only say so more exactly."
    return f"{about}: not excluded. {_more_users(turned[0], turned[0] - turned[1], -margin, figures)}"


def _unreadable(name: str, figures: Mapping[str, Any], config: AbtestConfig) -> str:
    if min(figures["users"]) < config.min_users:
        found = " and ".join(f"{n:,}" for n in figures["users"])
        return (
            f"{name}: too early, {found} users counted in the two arms where {config.min_users:,} in each are needed. "
            "Read again later."
        )
    if figures["difference"] is None:
        return (
            f"{name}: cannot be read: fewer than {config.min_events} users have anything but 0, or all have the same. "
            "It decides nothing: read again when more has happened, or name another metric."
        )
    return (
        f"{name}: the control's value is 0, so that no change is a share of it. Look at the difference itself, or "
        "name another metric."
    )


def _between(turned: tuple[float, float, float]) -> str:
    estimate, low, high = turned
    return f"{_change(estimate)} than the control, between {_change(low)} and {_change(high)}"


def _more_users(estimate: float, half: float, bound: float, figures: Mapping[str, Any]) -> str:
    """What would decide, from half-widths that shrink with the root of the number of users."""
    users = sum(figures["users"])
    if bound < 0 and estimate <= bound:
        return "The estimate itself lies beyond it: more users are unlikely to help, another policy would."
    distance = abs(estimate - bound)
    if distance < half / 10:
        return "The estimate is next to it: no experiment of this kind will decide; plan for a smaller effect, or stop."
    needed = math.ceil(users * (half / distance) ** 2 / 100) * 100
    return f"About {needed:,} users instead of {users:,} would do, if the estimate holds."


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _change(value: float) -> str:
    return f"{_percent(abs(value))} {'better' if value >= 0 else 'worse'}"
