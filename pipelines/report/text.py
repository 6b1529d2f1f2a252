"""Numbers and names as a reader of the report sees them: few digits, units, a true minus, a dash for the unknown."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

MISSING = "–"
MINUS = "−"

METRICS = {
    "sends": "Notifications sent",
    "clicks": "Clicks",
    "visits": "Visits",
    "weekly_active_days": "Weekly-active days",
    "disables": "Users switching off",
    "ctr": "Click-through rate",
}
POLICIES = {
    "logging": "Logging policy",
    "never": "Never send",
    "always": "Always send",
    "random": "Random sends",
    "click_threshold": "Click-probability threshold",
    "survival_uplift": "Visit uplift (survival)",
    "behaviour": "Cloned logging policy",
}
ALONE = " alone"
"""Follows the name of a policy where it acts without the part of the logging policy it is deployed with."""
ESTIMATORS = {
    "dr": "doubly robust",
    "wpdis": "weighted per-decision importance sampling",
    "pdis": "per-decision importance sampling",
    "wdr": "weighted doubly robust",
    "magic": "MAGIC (model and weighted doubly robust)",
    "mis": "state-marginalised importance sampling",
    "ips": "inverse propensity (one step)",
    "fqe": "fitted Q evaluation",
    "on_policy": "mean of the log",
}
ROWS = {"all": "all users", "test": "test users", "choice": "rows with a choice"}

_LONG = re.compile(r"(?<![\w.])-?\d+\.\d{4,}(?:[eE][-+]?\d+)?(?![\w.]*[A-Za-z_])")


def known(value: object) -> float | None:
    """The number, or None for what is missing, not finite or not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def fixed(value: float, places: int, sign: bool = False) -> str:
    """`value` with `places` decimals and thousands separated; a zero carries no sign."""
    rounded = round(value, places) + 0.0
    text = f"{rounded:{'+' if sign and rounded else ''},.{places}f}"
    return text.replace("-", MINUS)


def places(low: float | None, high: float | None, most: int = 5) -> int | None:
    """Decimals that show half the interval with two digits, with one from 3.55 on; None without an interval.

    The rounding of the Particle Data Group (Review of Particle Physics, section 5.3).
    """
    if low is None or high is None or high <= low:
        return None
    half = (high - low) / 2
    power = math.floor(math.log10(half))
    digits = 1 if half / 10**power >= 3.55 else 2
    return min(max(digits - 1 - power, 0), most)


def plain(value: object, sign: bool = False) -> str:
    """A number with three significant digits, whole numbers in full."""
    number = known(value)
    if number is None:
        return MISSING
    if number == int(number) or abs(number) >= 1000:
        return fixed(number, 0, sign)
    decimals = 2 - math.floor(math.log10(abs(number)))
    if decimals > 6:
        return f"{number:{'+' if sign else ''}.1e}".replace("-", MINUS)
    return fixed(number, max(decimals, 0), sign)


def like(value: float, decimals: int | None) -> str:
    """A figure with the decimals of the interval beside it."""
    return plain(value) if decimals is None else fixed(value, decimals)


def whole(value: object) -> float | None:
    """An effective sample size: whole from ten on."""
    number = known(value)
    return number if number is None or number < 10 else float(round(number))


def short(value: float, sign: bool = False) -> str:
    """At most three significant digits and no trailing zeros: for scales and settings."""
    number = round(value, 2 - math.floor(math.log10(abs(value)))) if value else 0.0
    if abs(number) >= 1000 or number == int(number):
        return fixed(number, 0, sign)
    return f"{number:{'+' if sign else ''}g}".replace("-", MINUS)


def percent(share: object, decimals: int | None = None, sign: bool = False) -> str:
    """A share as a percentage: one decimal below ten, none above, unless told."""
    number = known(share)
    if number is None:
        return MISSING
    if decimals is None:
        decimals = 0 if abs(number) >= 0.0995 or number == 0 else 1
    return fixed(100 * number, decimals, sign) + "%"


@dataclass(frozen=True)
class Range:
    """An estimate and its interval, ready to be read or drawn; None where the log could not say."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any] | None, scale: float = 1.0) -> "Range":
        """From {"estimate", "low", "high"}, each times `scale`."""
        numbers = [known((found or {}).get(key)) for key in ("estimate", "low", "high")]
        return cls(*(None if number is None else number * scale for number in numbers))

    def scaled(self, scale: float) -> "Range":
        """Each figure times `scale`; a negative scale turns the interval round."""
        low, high = (None if x is None else x * scale for x in (self.low, self.high))
        if scale < 0:
            low, high = high, low
        return Range(None if self.value is None else self.value * scale, low, high)

    def texts(self, unit: str = "", sign: bool = False, most: int = 5) -> tuple[str, str]:
        """(estimate, `low to high`), all with the decimals the interval's width deserves."""
        decimals = places(self.low, self.high, most)
        if decimals is not None and self.excludes_zero:
            # A bound that the log tells from zero must not read as zero.
            near = min(abs(self.low or 0), abs(self.high or 0))
            decimals += next((more for more in range(3) if round(near, decimals + more)), 0)

        def show(number: float | None) -> str:
            if number is None:
                return MISSING
            return (plain(number, sign) if decimals is None else fixed(number, decimals, sign)) + unit

        if self.low is None or self.high is None:
            return show(self.value), ""
        if self.low == self.high == self.value:
            return show(self.value), "exactly"
        return show(self.value), f"{show(self.low)} to {show(self.high)}"

    @property
    def excludes_zero(self) -> int:
        """+1 where the whole interval lies above zero, -1 where below, 0 otherwise."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def contains(self, value: float) -> bool | None:
        """Whether the interval holds `value`; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


def tidy(text: object) -> str:
    """Free text from a step with over-long decimals cut to four significant digits; anything else as words."""
    if text is None:
        return MISSING
    if isinstance(text, bool):
        return "yes" if text else "no"
    if isinstance(text, (int, float)):
        return plain(text)
    if isinstance(text, Mapping):
        return ", ".join(f"{key}: {tidy(value)}" for key, value in text.items()) or "none"
    if isinstance(text, Sequence) and not isinstance(text, str):
        return ", ".join(tidy(value) for value in text) or "none"
    return _LONG.sub(lambda found: f"{float(found[0]):.4g}", str(text))


def words(name: str) -> str:
    """`log_steps_post_30m` as `Log steps post 30m`."""
    spaced = name.replace("_", " ").strip()
    return spaced[:1].upper() + spaced[1:]


def metric_name(key: str) -> str:
    return METRICS.get(key) or words(key)


def policy_name(key: str) -> str:
    plain, alone, _ = key.partition(ALONE)
    return POLICIES.get(plain, plain) + alone


def estimator_name(key: str) -> str:
    return ESTIMATORS.get(key, key)


def rows_name(key: str) -> str:
    return ROWS.get(key, key)


def moment(text: object) -> str:
    """An ISO time as `29 March 2026, 06:14 UTC`; anything else as it is."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return tidy(text)
    zone = " UTC" if found.utcoffset() == timedelta(0) else f" {found:%Z}".rstrip()
    return f"{found.day} {found:%B %Y, %H:%M}{zone}"


def duration(seconds: object) -> str:
    """`1 min 05 s`, `12.3 s`."""
    number = known(seconds)
    if number is None:
        return MISSING
    if number < 60:
        return f"{fixed(number, 1)} s"
    whole = round(number)
    return f"{whole // 60} min {whole % 60:02d} s"
