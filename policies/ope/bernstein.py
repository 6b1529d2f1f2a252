"""A lower bound on a policy's value that holds at any sample size, for what cannot be negative and is bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import Booleans, Floats
from policies.ope.intervals import Keys
from policies.ope.merging import Sums
from policies.ope.sample import DAYS_PER_WEEK, Sample

MOST_A_DECISION = {"sends": 1.0, "disables": 1.0}
"""The most that one decision's interval can hold of a component, by its definition."""
MOST_A_DAY = {"weekly_active_days": 1.0}
"""The most that one day can hold."""
TUNING = 5
"""One user in so many chooses the cap, and is not in the bound."""
CAPS = np.geomspace(1.0, 1000.0, 40)
"""Caps that are tried, fixed beforehand so that parts of a log add up: steps of 19%."""
TUNES, BOUNDS = 0, 1


def most_per_user(rows: float, days: float, components: Sequence[str], stated: Mapping[str, float]) -> Floats:
    """[K] what no user's rewards can exceed, raw units; NaN where nothing says so.

    By definition of the component or as `stated` per decision, times the most decisions (`rows`) or `days` of any user:
    those are given by the log's times, which evaluation holds fixed, and not by what was earned.
    """
    by_decision = {**MOST_A_DECISION, **stated}
    most = [
        by_decision[name] * rows if name in by_decision else MOST_A_DAY.get(name, np.nan) * days or np.nan
        for name in components
    ]
    return np.array(most, dtype=np.float64)


@dataclass(frozen=True)
class Capped(Sums):
    """What a policy's floors need, summed over users: those that choose the cap (TUNES), and the others (BOUNDS)."""

    MOST: ClassVar[tuple[str, ...]] = ("rows", "days", "negative")

    number: Floats
    """[2] users."""
    earned: Floats
    """[2, C, K] sum of X_u = sum_k min(w_k, c) r_k for every cap c."""
    squared: Floats
    """[2, C, K] sum of X_u^2."""
    exposure: float
    """Of all users."""
    users: float
    rows: float
    """The most decisions of a user."""
    days: float
    """The most days of a user; 0 per decision."""
    negative: Booleans
    """[K] whether any reward is."""

    @classmethod
    def of(cls, sample: Sample, ratio: Floats, keys: Keys, asked: Booleans) -> "Capped":
        """`ratio` [n] rho_k, `keys` [U] who they are, `asked` [K] the components to sum: 0 of the others."""
        _, weight = sample.weights(ratio)
        group = np.where(keys % np.uint64(TUNING) == 0, TUNES, BOUNDS)
        reward = sample.reward[:, asked]
        earned, squared = (np.zeros((2, len(CAPS), len(asked))) for _ in range(2))
        for place, cap in enumerate(CAPS):
            x = sample.per_user(np.minimum(weight, cap)[:, None] * reward)
            for each in (TUNES, BOUNDS):
                earned[each, place, asked] = x[group == each].sum(axis=0)
                squared[each, place, asked] = (x[group == each] ** 2).sum(axis=0)
        return cls(
            number=np.bincount(group, minlength=2).astype(np.float64),
            earned=earned,
            squared=squared,
            exposure=float(sample.exposure.sum()),
            users=float(sample.users),
            rows=float(np.bincount(sample.user[~sample.closed]).max()),
            days=float(sample.exposure.max() * DAYS_PER_WEEK) if sample.sequential else 0.0,
            negative=np.any(sample.reward < 0, axis=0, keepdims=True)[0],
        )

    def floor(self, most: Floats, alpha: float) -> Floats:
        """[K] b with P(V(pi) < b) <= `alpha`, raw units per user-week or decision; NaN where `most` [K] is.

        Of the n users that did not choose c, with X_u = sum_k min(w_k, c) r_k <= c most,
        b = mean X - sqrt(2 var X ln(2 / alpha) / n) - 7 c most ln(2 / alpha) / (3 (n - 1)), over the mean exposure; 0
        if negative. To cap weights of what is not negative can only lower it. c is the one of CAPS that would have
        given one user in five the best bound for n users. A component of which any reward is negative has none. Source:
        Maurer and Pontil 2009, theorem 4; Thomas, Theocharous and Ghavamzadeh 2015.
        """
        found: Floats = np.full(len(most), np.nan)
        if (self.number < 2).any():
            return found
        known = np.isfinite(most) & ~self.negative.astype(np.bool_)
        if known.any():
            tuned, bound = (self._bounds(each, most[known], known, alpha) for each in (TUNES, BOUNDS))
            best = np.take_along_axis(bound, tuned.argmax(axis=0)[None], axis=0)[0]
            found[known] = np.maximum(best, 0.0) / (self.exposure / self.users)
        return found

    def _bounds(self, group: int, most: Floats, known: Booleans, alpha: float) -> Floats:
        """[C, K] the bound of each cap from the mean and variance of one group, as if it were as many as bound."""
        n, number = self.number[group], self.number[BOUNDS]
        mean = self.earned[group][:, known] / n
        variance = np.maximum(self.squared[group][:, known] - n * mean**2, 0.0) / (n - 1)
        log = float(np.log(2 / alpha))
        slack = 7 * CAPS[:, None] * most * log / (3 * (number - 1))
        found: Floats = mean - np.sqrt(2 * variance * log / number) - slack
        return found
