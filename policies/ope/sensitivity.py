"""How much hidden confounding an estimate from estimated propensities bears."""

import numpy as np

from policies.base import Booleans, Floats
from policies.ope.sample import Sample

GAMMAS = tuple(float(each) for each in np.round(np.geomspace(1.0, 10.0, 47), 3))
"""Values of Gamma that are looked at: steps of 5%."""


def bounds(sample: Sample, ratio: Floats, estimated: Booleans, gamma: float) -> tuple[Floats, Floats]:
    """([K], [K]) least and largest WPDIS value, raw units per user-week or decision, if hidden causes moved the odds of
    a decision by at most `gamma`.

    The marginal sensitivity model: where a propensity p was `estimated` [n], the true one p* has
    1 / gamma <= (p / (1 - p)) / (p* / (1 - p*)) <= gamma, so that 1 / p* lies in [1 + (1 / p - 1) / gamma,
    1 + (1 / p - 1) gamma]. Weights multiply along a user's rows; in each step the total is the extreme of
    n_k (sum_u w_uk r_uk) / (sum_u w_uk) over all weights within their limits, which has the largest weights on one side
    of a threshold of r and the least on the other. Steps choose their extremes apart: an outer bound, exact for one
    step and per decision. gamma = 1 gives WPDIS. `ratio` [n] rho_k by the estimated p.
    Source: Tan 2006; Zhao, Small and Bhattacharya 2019, section 4.
    """
    odds = 1 / sample.propensity - 1
    inverse = [np.where(estimated, 1 + odds * factor, 1 + odds) for factor in (1 / gamma, gamma)]
    least, most = (sample.weights(ratio * sample.propensity * each)[1] for each in inverse)
    low, high = np.zeros(sample.reward.shape[1]), np.zeros(sample.reward.shape[1])
    for group in range(int(sample.group.max()) + 1):
        rows = np.flatnonzero(sample.group == group)
        for component in range(len(low)):
            reward = sample.reward[rows, component]
            low[component] += len(rows) * -_largest_mean(-reward, least[rows], most[rows])
            high[component] += len(rows) * _largest_mean(reward, least[rows], most[rows])
    return low / sample.exposure.sum(), high / sample.exposure.sum()


def _largest_mean(reward: Floats, least: Floats, most: Floats) -> float:
    """The largest of sum w r / sum w over least <= w <= most; 0 of no rows, NaN where no weight is above 0."""
    if not len(reward):
        return 0.0
    order = np.argsort(-reward)
    reward, least, most = reward[order], least[order], most[order]
    # The first j rows, those of the largest rewards, have their most, the others their least; j = 0..n.
    above = np.append(0.0, np.cumsum((most - least) * reward)) + least @ reward
    below = np.append(0.0, np.cumsum(most - least)) + least.sum()
    if not (below > 0).any():
        return float("nan")
    return float(np.max(above[below > 0] / below[below > 0]))
