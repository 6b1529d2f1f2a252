"""A lower bound on a policy's value that holds at any sample size, for what cannot be negative and is bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope.intervals import Keys
from policies.ope.merging import Sums
from policies.ope.sample import DAYS_PER_WEEK, MICROSECONDS_PER_DAY, Sample

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


def check_most(table: Transitions, stated: Mapping[str, float]) -> None:
    """Raise InputError naming the component and the first decision whose reward is more than `stated`, or than its
    definition allows: a floor would rest on what is not so."""
    for name, most in {**MOST_A_DECISION, **stated}.items():
        if name not in table.contract.rewards:
            continue
        reward = table.reward[:, table.contract.rewards.index(name)]
        above = reward > most
        if above.any():
            row = int(above.argmax())
            at = np.datetime64(int(table.decided_at[row]), "us")
            limit = f"evaluate.most_per_decision.{name} = {most:g}" if name in stated else f"{most:g}, by definition"
            raise InputError(
                f"rewards: {name} is {reward[row]:g} at the decision of user {table.user_id[table.user[row]]} at {at}, "
                f"and {int(above.sum())} of {len(above)} decisions have more than the most that one may bring ({limit}"
                f"); correct the log, or state {float(reward.max()):g} or more in evaluate.most_per_decision."
            )


@dataclass(frozen=True)
class Capped(Sums):
    """What a policy's floors need, summed over users: those that choose the cap (TUNES), and the others (BOUNDS).

    X_u = sum_k min(w_k, c) r_k for every cap c, Delta_u the exposure.
    """

    MOST: ClassVar[tuple[str, ...]] = ("rows", "until", "before", "negative")

    number: Floats
    """[2] users."""
    earned: Floats
    """[2, C, K] sum of X_u."""
    squared: Floats
    """[2, C, K] sum of X_u^2."""
    crossed: Floats
    """[2, C, K] sum of X_u Delta_u."""
    exposure: Floats
    """[2] sum of Delta_u."""
    exposure_squared: Floats
    """[2] sum of Delta_u^2."""
    rows: float
    """The most decisions of a user."""
    until: float
    """The end of the last user's trajectory, days since the epoch; 0 per decision."""
    before: float
    """Minus the time of the first decision, in such days."""
    negative: Booleans
    """[K] whether any reward is."""

    @classmethod
    def of(cls, sample: Sample, ratio: Floats, keys: Keys, asked: Booleans) -> "Capped":
        """`ratio` [n] rho_k, `keys` [U] who they are, `asked` [K] the components to sum: 0 of the others."""
        _, weight = sample.weights(ratio)
        group = np.where(keys % np.uint64(TUNING) == 0, TUNES, BOUNDS)
        reward, exposure = sample.reward[:, asked], sample.exposure
        earned, squared, crossed = (np.zeros((2, len(CAPS), len(asked))) for _ in range(3))
        for place, cap in enumerate(CAPS):
            x = sample.per_user(np.minimum(weight, cap)[:, None] * reward)
            for each in (TUNES, BOUNDS):
                own = group == each
                earned[each, place, asked] = x[own].sum(axis=0)
                squared[each, place, asked] = (x[own] ** 2).sum(axis=0)
                crossed[each, place, asked] = exposure[own] @ x[own]
        begin = sample.at[sample.start] / MICROSECONDS_PER_DAY
        return cls(
            number=np.bincount(group, minlength=2).astype(np.float64),
            earned=earned,
            squared=squared,
            crossed=crossed,
            exposure=np.bincount(group, exposure, 2).astype(np.float64),
            exposure_squared=np.bincount(group, exposure**2, 2).astype(np.float64),
            rows=float(np.bincount(sample.user[~sample.closed]).max()),
            until=float((begin + exposure * DAYS_PER_WEEK).max()) if sample.sequential else 0.0,
            before=float(-begin.min()) if sample.sequential else 0.0,
            negative=np.any(sample.reward < 0, axis=0, keepdims=True)[0],
        )

    @property
    def days(self) -> float:
        """The most days of a user: from the first decision of anybody to the end of what is observed; 0 per decision.

        Not the largest exposure found, which a small log of users who rarely stay long may not show.
        """
        return self.until + self.before

    def floor(self, most: Floats, alpha: float) -> Floats:
        """[K] b with P(V(pi) < b) <= `alpha`, raw units per user-week or decision; NaN where `most` [K] is.

        V = E[X] / E[Delta] is the v at which Y_u = X_u - v Delta_u has mean 0. b is the v at which the lower bound of
        that mean is 0, over the n users that did not choose c,
        mean Y - sqrt(2 var Y ln(2 / alpha) / n) - 7 (c most + v d) ln(2 / alpha) / (3 (n - 1)),
        d the most that exposures differ by; 0 if negative. The bound falls in v, so it is above 0 at V, but for
        `alpha`, where b is above V. To cap weights of what is not negative can only lower X. c is the one of CAPS that
        would have given one user in five the best b for n users. A component of which any reward is negative has none.
        Source: Maurer and Pontil 2009, theorem 4; Thomas, Theocharous and Ghavamzadeh 2015.
        """
        found: Floats = np.full(len(most), np.nan)
        if (self.number < 2).any() or not self.exposure[BOUNDS]:
            return found
        known = np.isfinite(most) & ~self.negative.astype(np.bool_)
        if known.any():
            tuned, bound = (self._floors(each, most[known], known, alpha) for each in (TUNES, BOUNDS))
            found[known] = np.take_along_axis(bound, tuned.argmax(axis=0)[None], axis=0)[0]
        return found

    def _floors(self, group: int, most: Floats, known: Booleans, alpha: float) -> Floats:
        """[C, K] the floor of each cap from the sums of one group, as if it were as many users as bound.

        It solves a - b v = sqrt(k (A - 2 B v + C v^2)) with the sampling variances A of X, B of both and C of Delta.
        b^2 > k C, as no variance of what lies between 0 and d is above d times its mean: of the roots the lesser is
        where the bound is 0.
        """
        n, number = self.number[group], self.number[BOUNDS]
        mean, span = self.earned[group][:, known] / n, self.exposure[group] / n
        both = (self.crossed[group][:, known] - n * mean * span) / (n - 1)
        of_x = np.maximum(self.squared[group][:, known] - n * mean**2, 0.0) / (n - 1)
        of_exposure = max(self.exposure_squared[group] - n * span**2, 0.0) / (n - 1)
        log = float(np.log(2 / alpha))
        k, slack = 2 * log / number, 7 * log / (3 * (number - 1))
        # A decision's exposure is 1, so that of a user is 1 or more; that of a trajectory may be nothing.
        apart = self.days / DAYS_PER_WEEK if self.days else self.rows - 1
        a, b = mean - slack * CAPS[:, None] * most, span + slack * apart
        inside = k * (b**2 * of_x - 2 * a * b * both + a**2 * of_exposure) - k**2 * (of_x * of_exposure - both**2)
        root = (a * b - k * both - np.sqrt(np.maximum(inside, 0.0))) / (b**2 - k * of_exposure)
        # Where X is too small for any floor there is no root that counts.
        found: Floats = np.where(a > 0, np.maximum(root, 0.0), 0.0)
        return found
