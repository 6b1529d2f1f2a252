"""Which actions are legal: consent, quiet hours, caps and the minimum gap, by one function for log and night."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.contract import HOLD
from models.errors import InputError


@dataclass(frozen=True)
class Constraints:
    """Configured limits on sends; each that is None does not bind."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    consent: bool = True
    """While notifications are off, `hold` is the only legal action."""
    quiet_hours: tuple[float, float] | None = None
    """Local hours [from, to) in which nothing is sent; may cross midnight, as (22, 8)."""
    max_sends_24h: int | None = None
    """Sends in the 24 hours before, above which nothing more is sent."""
    max_sends_7d: int | None = None
    """Sends in the 7 days before, above which nothing more is sent."""
    min_gap_hours: float | None = None
    """Hours since the last send."""

    def __post_init__(self) -> None:
        if self.quiet_hours is not None and not all(0 <= hour < 24 for hour in self.quiet_hours):
            raise InputError(f"constraints.quiet_hours is {self.quiet_hours}; hours must lie in [0, 24).")
        for key in ("max_sends_24h", "max_sends_7d", "min_gap_hours"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise InputError(f"constraints.{key} is {value}; give 0 or more, or leave it out.")


def legal_actions(
    known: Mapping[str, NDArray[Any]], logged_legal: NDArray[np.bool_], actions: tuple[str, ...], limits: Constraints
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """[N, A] the actions that are legal both by the log and under the limits, and [N] the rule that decided.

    legal = logged_legal and not (some rule binds and the action is a send); `hold` is legal wherever a rule left
    nothing else. The rule is "" or the first of consent, quiet_hours, max_sends_24h, max_sends_7d, min_gap that took
    away every send. `known` holds [N] notifications_on (0 or 1), local_hour ([0, 24)), sends_24h, sends_7d (counts)
    and hours_since_send (NaN or the lookback where never). Without a `hold` there is nothing to fall back on, and no
    limit binds.
    """
    legal = np.array(logged_legal, dtype=bool)
    rule = np.full(len(legal), "", dtype=object)
    if actions[0] != HOLD:
        return legal, rule
    could_send = legal[:, 1:].any(axis=1)
    for name, binds in _rules(known, limits):
        rule[could_send & binds & (rule == "")] = name
    bound = rule != ""
    legal[bound, 1:] = False
    legal[bound, 0] = True
    return legal, rule


def _rules(known: Mapping[str, NDArray[Any]], limits: Constraints) -> list[tuple[str, NDArray[np.bool_]]]:
    """The configured rules in their fixed order, each with [N] where it binds."""
    rules = []
    if limits.consent:
        rules.append(("consent", np.asarray(known["notifications_on"]) == 0))
    if limits.quiet_hours is not None:
        start, end = limits.quiet_hours
        hour = np.asarray(known["local_hour"])
        quiet = (hour >= start) & (hour < end) if start <= end else (hour >= start) | (hour < end)
        rules.append(("quiet_hours", quiet))
    if limits.max_sends_24h is not None:
        rules.append(("max_sends_24h", np.asarray(known["sends_24h"]) >= limits.max_sends_24h))
    if limits.max_sends_7d is not None:
        rules.append(("max_sends_7d", np.asarray(known["sends_7d"]) >= limits.max_sends_7d))
    if limits.min_gap_hours is not None:
        rules.append(("min_gap", np.asarray(known["hours_since_send"]) < limits.min_gap_hours))
    return rules
