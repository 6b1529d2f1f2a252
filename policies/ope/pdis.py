"""Per-decision importance sampling."""

from policies.base import Floats
from policies.ope.sample import Sample
from policies.ope.summaries import Additive


def pdis(sample: Sample, ratio: Floats) -> Additive:
    """Sums [U, K] of sum_k w_k r_k, in raw units, from `ratio` [n] rho_k = pi(a_k|s_k) / mu(a_k|s_k).

    w_k = prod_{j<=k} rho_j: unbiased where propensities are right, and of a variance that grows with every step at
    which pi differs from mu. Per decision w = rho, and it is one-step IPS. Source: Precup, Sutton and Singh 2000.
    """
    _, weight = sample.weights(ratio)
    return Additive(sample.per_user(weight[:, None] * sample.reward))
