"""What estimators return: sums per user that add, so that parts of a log merge and a resample is one matrix product.

The first axis of every array is users U, or resamples R of them once `over` has counted each user so often. Two
summaries of the same resamples over different users add up to the summary of all of them.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from policies.base import Floats
from policies.ope.grouped import Grouped, PerUser, over

UNFOLLOWED = 0.01
"""Share of rows that may lie in groups where nobody followed the policy: the last steps of the longest trajectories."""


class Summed(Protocol):
    """Sums over users, one row for each resample."""

    def __add__(self, other: Self, /) -> Self:
        """The sums of both; of more groups of rows where one of them has more."""

    def total(self) -> Floats:
        """[R, K] the total over users; NaN where the resample cannot say."""


class Summary(Protocol):
    """What an estimator reads of each user."""

    def over(self, counts: Floats) -> Summed:
        """The sums over users, user u counted `counts` [R, U] times."""


def total(summed: Summed) -> Floats:
    """[R, K] what is usually read of sums."""
    return summed.total()


@dataclass(frozen=True)
class Additive:
    """A total that is a plain sum over users."""

    sums: Floats
    """[U, K]."""

    def over(self, counts: Floats) -> "Additive":
        return Additive(counts @ self.sums)

    def __add__(self, other: "Additive", /) -> "Additive":
        return Additive(self.sums + other.sums)

    def total(self) -> Floats:
        """[R, K] sum_u c_u x_u."""
        return self.sums


@dataclass(frozen=True)
class Normalised:
    """A total whose weights are normalised in each group over the users observed there, times their number."""

    weighted: PerUser
    """[U, G, K] sum of w r."""
    weight: PerUser
    """[U, G] sum of w."""
    observed: PerUser
    """[U, G] rows observed."""
    corrects: bool = False
    """Whether r is what a model left over: where nobody followed the policy, the model then stands as it is."""

    def over(self, counts: Floats) -> "Normalised":
        weighted, weight, observed = (over(counts, each) for each in (self.weighted, self.weight, self.observed))
        return Normalised(weighted, weight, observed, self.corrects)

    def __add__(self, other: "Normalised", /) -> "Normalised":
        groups = max(self.weight.shape[1], other.weight.shape[1])
        mine, theirs = ([_with_groups(each, groups) for each in part._summed()] for part in (self, other))
        weighted, weight, observed = (a + b for a, b in zip(mine, theirs, strict=True))
        return Normalised(weighted, weight, observed, self.corrects)

    def _summed(self) -> tuple[Floats, Floats, Floats]:
        """Sums over users, which `over` has taken."""
        found = [each for each in (self.weighted, self.weight, self.observed) if not isinstance(each, Grouped)]
        assert len(found) == 3, "these are sums of each user"
        return found[0], found[1], found[2]

    def terms(self) -> Floats:
        """[R, G, K] n_g (sum_u c_u (w r)_ug) / (sum_u c_u w_ug), n_g = sum_u c_u observed_ug, in each resample.

        A group where rows are observed but none has weight takes the mean of the group before it, or 0 where r corrects
        a model, as long as such groups hold no more than UNFOLLOWED of all rows; beyond that every term is NaN: the log
        does not follow the policy so far.
        """
        weighted, weight, observed = self._summed()
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = weighted / weight[..., None]
        unfollowed = weight == 0
        mean[unfollowed] = 0.0 if self.corrects else np.nan
        if not self.corrects:
            for group in range(1, mean.shape[1]):
                gap = unfollowed[:, group]
                mean[gap, group] = mean[gap, group - 1]
        too_many = (observed * unfollowed).sum(axis=1) > UNFOLLOWED * observed.sum(axis=1)
        found: Floats = np.where(observed[..., None] > 0, observed[..., None] * mean, 0.0)
        found[too_many] = np.nan
        return found

    def total(self) -> Floats:
        """[R, K] the sum of the terms."""
        found: Floats = self.terms().sum(axis=1)
        return found


@dataclass(frozen=True)
class Corrected:
    """A model's total, and the normalised corrections that the log adds to it step by step."""

    model: Additive
    correction: Normalised

    def over(self, counts: Floats) -> "Corrected":
        return Corrected(self.model.over(counts), self.correction.over(counts))

    def __add__(self, other: "Corrected", /) -> "Corrected":
        return Corrected(self.model + other.model, self.correction + other.correction)

    def terms(self) -> Floats:
        """[R, 1 + G, K] the model's total, then the correction of each group."""
        return np.concatenate([self.model.total()[:, None], self.correction.terms()], axis=1)

    def total(self) -> Floats:
        found: Floats = self.terms().sum(axis=1)
        return found


def _with_groups(values: Floats, groups: int) -> Floats:
    """`values` [R, G, ...] with zeros for the groups that it lacks."""
    lacking = groups - values.shape[1]
    return np.pad(values, [(0, 0), (0, lacking)] + [(0, 0)] * (values.ndim - 2))
