"""One-step inverse propensity scoring."""

from policies.base import Floats
from policies.ope.sample import Sample
from policies.ope.summaries import Additive


def ips(sample: Sample, ratio: Floats) -> Additive:
    """Sums [U, K] of sum_k rho_k r_k, in raw units, from `ratio` [n] rho_k = pi(a_k|s_k) / mu(a_k|s_k).

    Unbiased for pi at one decision with the logging policy before it: the whole of `per = "decision"`. Per week it
    leaves out what earlier actions of pi would have changed, and is shown beside the others for its small variance.
    Source: Horvitz and Thompson 1952.
    """
    return Additive(sample.per_user(ratio[:, None] * sample.reward))
