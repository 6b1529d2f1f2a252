"""Weighted per-decision importance sampling."""

import numpy as np

from policies.base import Floats
from policies.ope.sample import Sample
from policies.ope.summaries import Normalised


def wpdis(sample: Sample, ratio: Floats) -> Normalised:
    """Sums [U, G, K] of w_k r_k, w_k and rows, from `ratio` [n] rho_k = pi(a_k|s_k) / mu(a_k|s_k).

    Per week the total is sum_k n_k (sum_u w_uk r_uk) / (sum_u w_uk) over the n_k users still observed at step k, w_uk =
    prod_{j<=k} rho_uj; per decision the groups are the forced rows and those with a choice, and w = rho. A constant
    reward is returned exactly, whatever the weights and however ragged the trajectories. Biased in small samples,
    consistent. Source: Precup, Sutton and Singh 2000; users who are no longer observed leave the normaliser.
    """
    _, weight = sample.weights(ratio)
    return Normalised(
        weighted=sample.per_user_group(weight[:, None] * sample.reward),
        weight=sample.per_user_group(weight),
        observed=sample.per_user_group(np.ones_like(weight)),
    )
