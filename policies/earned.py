"""What a policy earned, as a ratio of two totals over users, against what was predicted of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri


@dataclass(frozen=True)
class Moments:
    """Sums over n users of what each earned, y, and what it is divided by, d (weeks, decisions or sends)."""

    n: int
    y: float
    d: float
    yy: float
    """sum y^2"""
    yd: float
    dd: float

    @property
    def value(self) -> float | None:
        """R = sum y / sum d; None where sum d is 0."""
        return self.y / self.d if self.d > 0 else None

    @property
    def standard_error(self) -> float | None:
        """Of R, users being independent: sqrt(n / (n - 1) sum (y - R d)^2) / sum d, the delta method.

        None of fewer than two users, or where R is None. Source: Deng, Knoblich & Lu 2018.
        """
        if self.value is None or self.n < 2:
            return None
        spread = max(self.yy - 2 * self.value * self.yd + self.value**2 * self.dd, 0.0)
        return math.sqrt(self.n / (self.n - 1) * spread) / self.d


def normal_interval(estimate: float, error: float, confidence: float) -> dict[str, float]:
    """{estimate, low, high}: the estimate and the normal quantile of `confidence`, two-sided, times the error."""
    half = float(ndtri((1 + confidence) / 2)) * error
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def against(
    found: Moments, predicted: Mapping[str, Any] | None, confidence: float, alarm: float
) -> dict[str, dict[str, float] | None]:
    """`realised`, `predicted` and `difference` (realised minus predicted) with their intervals; None where unknown.

    The error of a prediction is the width of its interval over that of a normal one; prediction and realisation are
    taken for independent. `difference` has also alarm_low and alarm_high: the level `alarm` around it.
    """
    value, error = found.value, found.standard_error
    none: dict[str, dict[str, float] | None] = {"realised": None, "predicted": None, "difference": None}
    if value is None or error is None:
        return none
    none["realised"] = normal_interval(value, error, confidence)
    if predicted is None or None in (predicted["estimate"], predicted["low"], predicted["high"]):
        return none
    theirs = {key: float(predicted[key]) for key in ("estimate", "low", "high")}
    width = theirs["high"] - theirs["low"]
    both = math.hypot(error, width / (2 * float(ndtri((1 + confidence) / 2))))
    gap = value - theirs["estimate"]
    wide = normal_interval(gap, both, 1 - alarm)
    difference = {**normal_interval(gap, both, confidence), "alarm_low": wide["low"], "alarm_high": wide["high"]}
    return {**none, "predicted": theirs, "difference": difference}
