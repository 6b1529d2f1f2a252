"""What the calendar does to the notification world: local hours, weekends, and how much there is to notify about.

Z time zones, in the order of behaviour.ZONES.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from policies.behaviour import DAY, SECOND, STEP, STEPS_PER_DAY, ZONES

Floats = NDArray[np.float64]

_DEMAND_KEY = 0xDE3A4D
_DEMAND_DAYS = 60
"""Days of the past that demand is made of; what is left out is below 0.8^60, 2e-6 of it."""


@dataclass(frozen=True)
class Hour:
    """The middle of one step, by the clocks of the zones."""

    hour: Floats
    """[Z] in [0, 24)"""
    weekday: NDArray[np.int64]
    """[Z] Monday 0"""

    @property
    def weekend(self) -> NDArray[np.bool_]:
        """[Z]"""
        found: NDArray[np.bool_] = self.weekday >= 5
        return found

    @property
    def activity(self) -> Floats:
        """[Z] activity by local hour, mean 1 over a day: 1.8 at 19:00, 0.2 at 7:00."""
        found: Floats = 1 + 0.8 * np.cos(2 * np.pi * (self.hour - 19) / 24)
        return found

    def by_weekday(self, week: float, weekend: float) -> Floats:
        """[Z] the factor of the day."""
        return np.where(self.weekend, weekend, week)


def local_hours(start: int, first: int, last: int) -> Mapping[int, Hour]:
    """Step -> clocks of steps `first` <= s < `last` counted from `start` (us); daylight saving included."""
    zones = [ZoneInfo(name) for name in ZONES]
    origin = datetime.fromtimestamp(start // SECOND, UTC)
    clock = {}
    for step in range(first, last):
        moments = [(origin + timedelta(hours=4 * step + 2)).astimezone(zone) for zone in zones]
        hours = np.array([moment.hour + moment.minute / 60 for moment in moments])
        clock[step] = Hour(hours, np.array([moment.weekday() for moment in moments]))
    return clock


def demand(start: int, first: int, last: int, persistence: float, spread: float) -> Mapping[int, float]:
    """Step -> world-wide demand d of its day, mean 1: log d is an AR(1) over days, d_t = exp(x_t - spread^2 / 2).

    x_t = persistence x_{t-1} + spread sqrt(1 - persistence^2) z_t, stationary. z_t is keyed by the calendar day alone:
    the log of one seed and the truth of another live through the same days, so that errors over users are the errors
    of their difference.
    """
    shocks = np.sqrt(1 - persistence**2) * spread * persistence ** np.arange(_DEMAND_DAYS)
    days = range(first // STEPS_PER_DAY, (last - 1) // STEPS_PER_DAY + 1)
    level = {}
    for day in days:
        today = start // DAY + day
        z = [ndtri(_uniform(today - back)) for back in range(_DEMAND_DAYS)]
        level[day] = float(np.exp(shocks @ np.array(z) - spread**2 / 2))
    return {step: level[(step * STEP) // DAY] for step in range(first, last)}


def _uniform(day: int) -> float:
    key = np.array([_DEMAND_KEY, day], np.uint64)
    return float(max(np.random.Generator(np.random.Philox(key=key)).random(), 1e-12))
