"""The effect of one arm against another on one metric: difference, variance by the delta method, CUPED.

Legend: n users of an arm; every metric is a ratio of two totals over users, sum y / sum d (d: weeks covered, or sends).
"""

from dataclasses import dataclass

import numpy as np

from policies.base import Booleans, Floats

ROUNDING = 1e-9
"""A standard error below this share of the value is rounding: every user has the same."""
NO_BEFORE = "nothing is known of the users from before the experiment"


@dataclass(frozen=True)
class Measure:
    """One metric of n users: what its two totals are made of, now and before the experiment."""

    top: Floats
    """[n] y"""
    bottom: Floats
    """[n] d"""
    top_before: Floats
    """[n] y before; 0 for a user who was not there"""
    bottom_before: Floats
    """[n] d before"""

    def of(self, rows: Booleans) -> "Measure":
        """The users marked in `rows` [n]."""
        return Measure(self.top[rows], self.bottom[rows], self.top_before[rows], self.bottom_before[rows])


@dataclass(frozen=True)
class Effect:
    """What a treatment changes in a metric; NaN where the log does not say."""

    control: float
    """sum y / sum d of the control, as it was."""
    treatment: float
    difference: float
    """Treatment minus control, less what the pre-period explains."""
    variance: float
    """Of the difference."""
    relative: float
    """difference / |control|."""
    relative_variance: float
    explained: float
    """Share of the variance that the pre-period took away; 0 without CUPED."""
    without_cuped: str | None
    """Why no pre-period was used; None where one was."""
    active: int
    """Users of both arms who have anything but 0."""

    @property
    def z(self) -> float:
        return float(self.difference / np.sqrt(self.variance)) if self.variance > 0 else float("nan")

    def readable(self, least: int) -> bool:
        """Whether there is a variance above 0, from `least` active users or more: of a few rare events the mean is not
        normal, and of none the variance is 0."""
        rounding = (ROUNDING * max(abs(self.control), abs(self.treatment))) ** 2
        return bool(np.isfinite(self.difference) and self.variance > rounding and self.active >= least)


def ratio(top: Floats, bottom: Floats) -> tuple[float, Floats]:
    """R = sum y / sum d and [n] each user's influence on it, (y - R d) / mean d, of mean 0; NaN where sum d is 0.

    Var(R) is Var(influence) / n: the delta method. Source: Deng, Knoblich & Lu 2018.
    """
    if not bottom.sum() > 0:
        return float("nan"), np.full(len(top), np.nan)
    value = float(top.sum() / bottom.sum())
    return value, (top - value * bottom) / bottom.mean()


def effect(control: Measure, treatment: Measure, cuped: bool = True) -> Effect:
    """R_1 - R_0 - theta (X_1 - X_0), X the same metric before the experiment; 0 = control, 1 = treatment.

    theta = (sum_a Cov_a(y, x) / n_a) / (sum_a Var_a(x) / n_a) over influences, which makes the variance sum_a Var_a(y -
    theta x) / n_a smallest: (1 - rho^2) times that without. Both X have the same expectation, so the difference stays
    unbiased. The relative effect divides by the control's |R_0|, whose own noise its variance counts. A user without a
    pre-period has influence 0 on X. Source: Deng, Xu, Kohavi & Walker 2013.
    """
    (base, y0), (other, y1) = ratio(control.top, control.bottom), ratio(treatment.top, treatment.bottom)
    x0, gap0 = ratio(control.top_before, control.bottom_before)[::-1]
    x1, gap1 = ratio(treatment.top_before, treatment.bottom_before)[::-1]
    plain = _mean_variance(y0) + _mean_variance(y1)
    spread = _mean_variance(x0) + _mean_variance(x1)
    why = None if cuped else "pre_days is 0"
    if cuped and not spread > 0:
        why = NO_BEFORE
    theta, shift = 0.0, 0.0
    if why is None:
        theta = float((_mean_covariance(y0, x0) + _mean_covariance(y1, x1)) / spread)
        shift = theta * (gap1 - gap0)
        y0, y1 = y0 - theta * x0, y1 - theta * x1
    difference, size = other - base - shift, abs(base)
    variance = _mean_variance(y0) + _mean_variance(y1)
    relative = relative_variance = float("nan")
    if size > 0:
        relative = difference / size
        # The control moves the difference down by its influence, and what it is divided by up or down.
        moved = y0 + relative * np.sign(base) * ratio(control.top, control.bottom)[1]
        relative_variance = (_mean_variance(moved) + _mean_variance(y1)) / size**2
    explained = 1 - variance / plain if why is None and plain > 0 else 0.0
    active = int(np.count_nonzero(control.top) + np.count_nonzero(treatment.top))
    return Effect(base, other, difference, variance, relative, relative_variance, explained, why, active)


def _mean_variance(influence: Floats) -> float:
    """Variance of the mean of the influences."""
    return float(influence.var(ddof=1) / len(influence)) if len(influence) > 1 else float("nan")


def _mean_covariance(a: Floats, b: Floats) -> float:
    # Influences have mean 0.
    return float(a @ b / (len(a) - 1) / len(a)) if len(a) > 1 else float("nan")
