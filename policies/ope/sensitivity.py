"""How much hidden confounding an estimate from estimated propensities bears."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.base import Booleans, Floats, Integers
from policies.ope.sample import Sample
from policies.ope.summaries import Normalised

GAMMAS = tuple(float(each) for each in np.round(np.geomspace(1.0, 10.0, 47), 3))
"""Values of Gamma that are looked at: steps of 5%."""


def bounds(sample: Sample, ratio: Floats, estimated: Booleans, gammas: Sequence[float]) -> tuple[Floats, Floats]:
    """([J, K], [J, K]) least and largest WPDIS value, raw units per user-week or decision, if hidden causes moved the
    odds of a decision by at most each of `gammas` [J].

    The marginal sensitivity model: where a propensity p was `estimated` [n], the true one p* has
    1 / gamma <= (p / (1 - p)) / (p* / (1 - p*)) <= gamma, so that 1 / p* lies in [1 + (1 / p - 1) / gamma,
    1 + (1 / p - 1) gamma]. Weights multiply along a user's rows; in each step the total is the extreme of
    n_k (sum_u w_uk r_uk) / (sum_u w_uk) over all weights within their limits, which has the largest weights on one side
    of a threshold of r and the least on the other. Steps choose their extremes apart: an outer bound, exact for one
    step and per decision. Steps that nobody follows count as in WPDIS (`Normalised.terms`); gamma = 1 gives it.
    `ratio` [n] rho_k by the estimated p. Source: Tan 2006; Zhao, Small and Bhattacharya 2019, section 4.
    """
    odds = 1 / sample.propensity - 1
    live = sample.weights(ratio)[1] > 0
    ranked = [_Ranked.of(sample.reward, rows[live[rows]]) for rows in sample.steps]
    shape = (len(gammas), len(ranked), sample.reward.shape[1])
    low, high = np.zeros(shape), np.zeros(shape)
    for place, gamma in enumerate(gammas):
        inverse = [np.where(estimated, 1 + odds * factor, 1 + odds) for factor in (1 / gamma, gamma)]
        least, most = (sample.weights(ratio * sample.propensity * each)[1] for each in inverse)
        for group, each in enumerate(ranked):
            if len(each.rows):
                low[place, group], high[place, group] = each.means(least[each.rows], most[each.rows])
    observed = np.tile([float(len(rows)) for rows in sample.steps], (len(gammas), 1))
    followed = np.tile([float(len(each.rows) > 0) for each in ranked], (len(gammas), 1))
    least_of_all, most_of_all = (Normalised(mean, followed, observed).total() for mean in (low, high))
    return least_of_all / sample.exposure.sum(), most_of_all / sample.exposure.sum()


@dataclass(frozen=True)
class _Ranked:
    """m rows of one step that have weight, in the order of every component's reward: the same for every gamma."""

    rows: Integers
    """[m]."""
    order: Integers
    """[K, m] their places from the largest reward down."""
    reward: Floats
    """[K, m] in that order."""

    @classmethod
    def of(cls, reward: Floats, rows: Integers) -> "_Ranked":
        own = np.ascontiguousarray(reward[rows].T)
        order = np.argsort(-own, axis=1)
        return cls(rows, order, np.take_along_axis(own, order, axis=1))

    def means(self, least: Floats, most: Floats) -> tuple[Floats, Floats]:
        """([K], [K]) the least and the largest of sum w r / sum w over `least` <= w <= `most`, both [m] above 0."""
        more, base = (most - least)[self.order], (least[self.order] * self.reward).sum(axis=1, keepdims=True)
        total = least.sum()
        smallest = _means(more[:, ::-1], self.reward[:, ::-1], base, total)
        return smallest.min(axis=1), _means(more, self.reward, base, total).max(axis=1)


def _means(more: Floats, reward: Floats, base: Floats, total: float) -> Floats:
    """[K, m + 1] sum w r / sum w where the first j of m rows have `more` than their least, j = 0..m; with the least
    they are `base` [K, 1] and `total`.

    Summed from either end, for the weights of long trajectories differ by more than the digits of a number.
    """
    above, below = (np.pad(np.cumsum(each, axis=1), ((0, 0), (1, 0))) for each in (more * reward, more))
    found: Floats = (base + above) / (total + below)
    return found
