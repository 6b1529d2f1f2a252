"""Doubly robust, with Q fitted on other users."""

import numpy as np

from policies.base import Floats
from policies.ope.sample import Sample
from policies.ope.summaries import Additive


def dr(sample: Sample, ratio: Floats, probability: Floats, q: Floats) -> Additive:
    """Sums [U, K] of sum_k [w_{k-1} V(s_k) + w_k (r_k - Q(s_k, a_k))], V(s) = sum_a pi(a|s) Q(s, a), in raw units.

    `ratio` [n] rho_k, `probability` [n, A] pi, `q` [n, A, K] fitted on users that are not in the sample. Unbiased for
    any such q where propensities are right; exact with no variance from the actions where q is the true value.

    A part of pi that is the logging policy itself may be given in `probability` as the action it took (see
    `Target.mixture`): its mean over mu is the same, it needs no propensity of an action not taken, and with pi = mu the
    sum is then sum_k r_k for any q: all w are 1 and V(s_k) = Q(s_k, a_k). Source: Jiang and Li 2016; Thomas and
    Brunskill 2016.
    """
    before, after = sample.weights(ratio)
    value = np.einsum("na,nak->nk", probability, q)
    taken = q[np.arange(len(q)), sample.action]
    return Additive(sample.per_user(before[:, None] * value + after[:, None] * (sample.reward - taken)))
