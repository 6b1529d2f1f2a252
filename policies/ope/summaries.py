"""What estimators return: sums per user that add, so that parts of a log merge and a resample is one matrix product."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from policies.base import Floats

UNFOLLOWED = 0.01
"""Share of rows that may lie in groups where nobody followed the policy: the last steps of the longest trajectories."""


class Summary(Protocol):
    """Per-user sums, and the total they make when user u is counted c_u times."""

    def totals(self, counts: Floats) -> Floats:
        """[R, K] totals over users from `counts` [R, U]; NaN where the resample cannot say."""


@dataclass(frozen=True)
class Additive:
    """A total that is a plain sum over users."""

    sums: Floats
    """[U, K]."""

    def totals(self, counts: Floats) -> Floats:
        """[R, K] sum_u c_u x_u."""
        total: Floats = counts @ self.sums
        return total


@dataclass(frozen=True)
class Normalised:
    """A total whose weights are normalised in each group over the users observed there, times their number."""

    weighted: Floats
    """[U, G, K] sum of w r."""
    weight: Floats
    """[U, G] sum of w."""
    observed: Floats
    """[U, G] rows observed."""

    def totals(self, counts: Floats) -> Floats:
        """[R, K] sum_g n_g (sum_u c_u (w r)_ug) / (sum_u c_u w_ug), n_g = sum_u c_u observed_ug, anew in each resample.

        A group where rows are observed but none has weight takes the mean of the group before it, as long as such
        groups hold no more than UNFOLLOWED of all rows; beyond that the total is NaN: the log does not follow the
        policy so far.
        """
        users, groups, components = self.weighted.shape
        above = (counts @ self.weighted.reshape(users, -1)).reshape(-1, groups, components)
        below = counts @ self.weight
        number = counts @ self.observed
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = above / below[..., None]
        unfollowed = below == 0
        mean[unfollowed] = np.nan
        for group in range(1, groups):
            gap = unfollowed[:, group]
            mean[gap, group] = mean[gap, group - 1]
        too_many = (number * unfollowed).sum(axis=1) > UNFOLLOWED * number.sum(axis=1)
        total: Floats = np.where(number[..., None] > 0, number[..., None] * mean, 0.0).sum(axis=1)
        total[too_many] = np.nan
        return total
