"""Weighted doubly robust, with Q fitted on other users; and MAGIC, which trusts its steps only as far as they help."""

import numpy as np
from scipy.optimize import nnls

from policies.base import Floats
from policies.ope.sample import Sample
from policies.ope.summaries import Additive, Corrected, Normalised

MODEL_QUANTILES = (0.05, 0.95)
"""The interval of WDR outside which a blend of MAGIC counts as biased (Thomas and Brunskill 2016, section 7: 10%)."""
MOST_STEPS = 24
"""Lengths that MAGIC blends; of a longer trajectory as many, spaced evenly."""
RIDGE = 1e-9
"""Share of the mean variance added to each, so that blends that are all alike have one answer."""


def wdr(sample: Sample, ratio: Floats, probability: Floats, q: Floats) -> Corrected:
    """Sums of V(s_0), and per step of w_k d_k and w_k, with d_k = r_k + V(s_{k+1}) - Q(s_k, a_k), in raw units.

    The total is sum_u V(s_u0) + sum_k n_k (sum_u w_uk d_uk) / (sum_u w_uk) over the n_k users still observed at step k;
    V(s) = sum_a pi(a|s) Q(s, a), 0 after the last row. `ratio` [n] rho_k,
    `probability` [n, A] pi, `q` [n, A, K] fitted on users that are not in the sample. A constant reward is returned
    exactly where q is exact, however ragged the trajectories. Per decision d = r - Q and the groups are those of WPDIS.
    Biased in small samples, consistent. Source: Thomas and Brunskill 2016, eq. 10, its terms gathered by step.
    """
    value = np.einsum("na,nak->nk", probability, q)
    left = sample.reward - q[np.arange(len(q)), sample.action]
    if sample.sequential:
        goes_on = np.diff(sample.user, append=-1) == 0
        left[goes_on] += value[1:][goes_on[:-1]]
    _, weight = sample.weights(ratio)
    return Corrected(
        model=Additive(value[sample.start] if sample.sequential else sample.per_user(value)),
        correction=Normalised(
            weighted=sample.per_user_group(weight[:, None] * left),
            weight=sample.per_user_group(weight),
            observed=sample.per_user_group(np.ones_like(weight)),
            corrects=True,
        ),
    )


def magic(terms: Floats) -> Floats:
    """[R + 1, K] the blend of least estimated mean squared error, from the `terms` [R + 1, 1 + G, K] of WDR.

    g_j = the first j + 1 terms: of g_0, the model alone, to g_G, WDR itself. Weights x >= 0 that sum to 1 minimise
    x' (Omega + b b') x, Omega the covariance of g over the resamples 1..R and b_j how far g_j lies outside WDR's own
    90% interval; they are those of the log itself (row 0) in every resample, per component. NaN where WDR is.
    Source: Thomas and Brunskill 2016, section 7.
    """
    lengths = np.unique(np.linspace(0, terms.shape[1] - 1, MOST_STEPS).round().astype(np.int64))
    blends = np.cumsum(terms, axis=1)[:, lengths]
    found: Floats = np.full((len(terms), terms.shape[2]), np.nan)
    for component in range(terms.shape[2]):
        g = blends[:, :, component]
        clear = ~np.isnan(g[1:]).any(axis=1)
        if np.isnan(g[0]).any() or clear.sum() < 2:
            continue
        found[:, component] = g @ _weights(g[0], g[1:][clear])
    return found


def _weights(own: Floats, resampled: Floats) -> Floats:
    """[J] on the simplex; `own` [J], `resampled` [R, J]."""
    low, high = np.quantile(resampled[:, -1], MODEL_QUANTILES)
    bias = np.where(own > high, own - high, np.where(own < low, own - low, 0.0))
    error = np.cov(resampled, rowvar=False).reshape(len(own), len(own)) + np.outer(bias, bias)
    scale = float(np.trace(error)) / len(own)
    if scale == 0:
        last: Floats = np.eye(len(own))[-1]
        return last
    root = np.linalg.cholesky(error / scale + RIDGE * np.eye(len(own)))
    # min |L'x|^2 + (1'x - 1)^2 over x >= 0 is, but for its length, the minimum of x'Mx on the simplex: for x = t s with
    # s on the simplex the best t leaves q / (1 + q), which grows with q = s'Ms.
    x, _ = nnls(np.vstack([root.T, np.ones(len(own))]), np.append(np.zeros(len(own)), 1.0))
    weights: Floats = x / x.sum()
    return weights
