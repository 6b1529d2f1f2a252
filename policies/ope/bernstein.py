"""A lower bound on a policy's value that holds at any sample size, for what cannot be negative and is bounded."""

from collections.abc import Mapping, Sequence

import numpy as np

from policies.base import Booleans, Floats
from policies.ope.intervals import Keys
from policies.ope.sample import DAYS_PER_WEEK, Sample

MOST_A_DECISION = {"sends": 1.0, "disables": 1.0}
"""The most that one decision's interval can hold of a component, by its definition."""
MOST_A_DAY = {"weekly_active_days": 1.0}
"""The most that one day can hold."""
TUNING = 5
"""One user in so many chooses the cap, and is not in the bound."""
CAPS = 40
"""Caps that are tried."""


def most_per_user(sample: Sample, components: Sequence[str], stated: Mapping[str, float]) -> Floats:
    """[K] what no user's rewards can exceed, raw units; NaN where nothing says so.

    By definition of the component or as `stated` per decision, times the most decisions or days of any user: those are
    given by the log's times, which evaluation holds fixed, and not by what was earned.
    """
    rows = float(np.bincount(sample.user).max())
    days = float(sample.exposure.max() * DAYS_PER_WEEK) if sample.sequential else 0.0
    by_decision = {**MOST_A_DECISION, **stated}
    most = [
        by_decision[name] * rows if name in by_decision else MOST_A_DAY.get(name, np.nan) * days or np.nan
        for name in components
    ]
    return np.array(most, dtype=np.float64)


def floor(sample: Sample, ratio: Floats, keys: Keys, most: Floats, alpha: float) -> Floats:
    """[K] b with P(V(pi) < b) <= `alpha`, raw units per user-week or decision; NaN where `most` [K] is.

    Of the n users that did not choose c, with X_u = sum_k min(w_k, c) r_k <= c most,
    b = mean X - sqrt(2 var X ln(2 / alpha) / n) - 7 c most ln(2 / alpha) / (3 (n - 1)), over the mean exposure; 0 if
    negative. To cap weights of what is not negative can only lower it. c is the one that would have given one user in
    five the best bound for n users. A component of which any reward is negative has none. Source: Maurer and Pontil
    2009, theorem 4; Thomas, Theocharous and Ghavamzadeh 2015.
    """
    _, weight = sample.weights(ratio)
    chooses = keys % np.uint64(TUNING) == 0
    found: Floats = np.full(len(most), np.nan)
    if chooses.sum() < 2 or (~chooses).sum() < 2:
        return found
    bounded = np.isfinite(most) & ~(sample.reward < 0).any(axis=0)
    caps = np.geomspace(1.0, max(float(weight[chooses[sample.user]].max()), 1.0), CAPS)
    users = int((~chooses).sum())
    for component in np.flatnonzero(bounded):
        reward = sample.reward[:, component]
        known = [
            (cap, _bound(sample, np.minimum(weight, cap) * reward, chooses, cap * most[component], users, alpha))
            for cap in caps
        ]
        cap = max(known, key=lambda each: each[1])[0]
        capped = np.minimum(weight, cap) * reward
        low = _bound(sample, capped, ~chooses, cap * most[component], users, alpha)
        found[component] = max(low, 0.0) / sample.exposure.mean()
    return found


def _bound(sample: Sample, earned: Floats, users: Booleans, most: float, number: int, alpha: float) -> float:
    """The bound on the mean per user from the mean and variance of some `users` [U], as if there were `number`."""
    x = sample.per_user(earned)[users]
    log = float(np.log(2 / alpha))
    return float(x.mean() - np.sqrt(2 * x.var(ddof=1) * log / number) - 7 * most * log / (3 * (number - 1)))
