"""What says whether an off-policy estimate deserves belief: weights, support, calibration of propensities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope.sample import DAYS_PER_WEEK, MICROSECONDS_PER_DAY, Sample

SUPPORT_FLOOR = 1e-3
"""An action counts as taken by a policy, and as shown by the log, where its probability is above this."""
EDGES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 1.25, 2.0, 3.0, 10.0, 100.0, 1000.0)
"""Bins of the histogram of weights; one more ends at the largest weight found."""
EXPLORATION = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Shares of uniform draws whose effect on the effective sample size is told."""
DOMINANT = 0.5
"""Share of all weight at which one user is the estimate."""
FEW_CLUSTERS = 30
"""Below so many users or rows a bootstrap over them promises no coverage: with five to thirty clusters usual inference
rejects too often. Source: Cameron, Gelbach and Miller 2008."""
BINS = 10
"""Bins of predicted probability in the calibration of propensities."""


def weight_diagnostics(sample: Sample, ratio: Floats) -> dict[str, float]:
    """Effective sample size in users, largest weight's share, mean weight and its standard error, from `ratio` [n].

    A user's weight w_u is, per week, that of the whole trajectory (prod rho); per decision, the mean rho of its rows.
    ess = (sum w_u)^2 / sum w_u^2: U where all are 1. largest_weight = max w_u / sum w_u. mean_weight, which is 1 on
    average where propensities are right, is the mean over trajectories or over rows; its error is clustered by user.
    Source: Kish 1965.
    """
    total, number = _user_weights(sample, ratio)
    weight = total / number
    squared = float((weight**2).sum())
    mean = float(total.sum() / number.sum())
    return {
        "ess": float(weight.sum() ** 2 / squared) if squared > 0 else 0.0,
        "largest_weight": float(weight.max() / weight.sum()) if squared > 0 else 1.0,
        "mean_weight": mean,
        "mean_weight_se": float(np.sqrt(((total - mean * number) ** 2).sum()) / number.sum()),
    }


def _user_weights(sample: Sample, ratio: Floats) -> tuple[Floats, Floats]:
    """[U] sums of the weights that stand for a user and [U] how many they are."""
    weight = _last_weights(sample, ratio)
    if not sample.sequential:
        return sample.per_user(weight), sample.per_user(np.ones_like(weight))
    return weight, np.ones(sample.users)


def _last_weights(sample: Sample, ratio: Floats) -> Floats:
    """[U] weights of whole trajectories; per decision [n] those of the rows."""
    _, after = sample.weights(ratio)
    return after[np.append(sample.start[1:], len(after)) - 1] if sample.sequential else after


def ess_if_explored(sample: Sample, ratio: Floats) -> dict[str, float]:
    """Effective sample size in users, had the log drawn a share e of its decisions uniformly: by e of EXPLORATION.

    Under mu_e = (1 - e) mu + e / |legal| the weights are w' = prod pi / mu_e, and U / E_mu_e[w'^2] = U / E_pi[w'] is
    estimated by U sum w / sum (w w'), from this log's own weights w: as uncertain as they are where they are few.
    """
    found = {}
    for share in EXPLORATION:
        explored = (1 - share) * sample.propensity + share / sample.legal.sum(axis=1)
        w, then = (_last_weights(sample, each) for each in (ratio, ratio * sample.propensity / explored))
        both = float((w * then).sum())
        found[f"{share:g}"] = float(sample.users * w.sum() / both) if both > 0 else 0.0
    return found


def too_few_carry(sample: Sample, ratio: Floats, one_step: bool = False) -> str | None:
    """Why weights `ratio` [n] can carry no estimate: nobody has weight, or one user DOMINANT of it; else None.

    A user's weight is, per week, that of the whole trajectory (with `one_step` the sum of its rows'); per decision, the
    sum of its rows'.
    """
    weight = sample.per_user(ratio) if one_step else _user_weights(sample, ratio)[0]
    total = float(weight.sum())
    if total == 0:
        return "no user of the log acts as the policy would"
    share = float(weight.max()) / total
    return f"one of {sample.users} users holds {share:.0%} of the weight" if share >= DOMINANT else None


def supported(sample: Sample, probability: Floats) -> Booleans:
    """[n] whether the log could have shown what the policy does: every action with pi > 1e-3 has mu > 1e-3.

    mu is known by propensities alone: of the logged action it is p, and of the other of two actions 1 - p. With three
    actions or more the others share 1 - p in a way the log does not say: they count as shown where 1 - p > 1e-3, which
    is necessary and not sufficient. A row whose logged action the configured constraints forbid is not supported.
    """
    row = np.arange(len(sample.action))
    other = probability > SUPPORT_FLOOR
    other[row, sample.action] = False
    taken = probability[row, sample.action] > SUPPORT_FLOOR
    found: Booleans = (
        sample.legal[row, sample.action]
        & (~taken | (sample.propensity > SUPPORT_FLOOR))
        & (~other.any(axis=1) | (1 - sample.propensity > SUPPORT_FLOOR))
    )
    return found


def support(sample: Sample, probability: Floats) -> float:
    """Share of user-weeks, or of decisions, that are `supported`.

    A user-week is seven days from the user's first row; it is supported where each of its rows is.
    """
    shown = supported(sample, probability)
    if not sample.sequential:
        return float(shown.mean())
    since = sample.at - sample.at[sample.start][sample.user]
    week = since // int(DAYS_PER_WEEK * MICROSECONDS_PER_DAY)
    first = (np.diff(sample.user, prepend=-1) != 0) | (np.diff(week, prepend=-1) != 0)
    return float(np.logical_and.reduceat(shown, np.flatnonzero(first)).mean())


def histogram(sample: Sample, ratio: Floats) -> dict[str, list[float]]:
    """Counts of users (per week, by the weight of the trajectory) or rows (per decision, by rho) in bins of weight."""
    weight = _user_weights(sample, ratio)[0] if sample.sequential else ratio
    edges = [*EDGES, max(float(weight.max()), EDGES[-1] * 10)]
    return {"edges": edges, "counts": [int(count) for count in np.histogram(weight, edges)[0]]}


def calibration(table: Transitions, actions: Sequence[str]) -> dict[str, Any]:
    """Whether the propensities are those that the log was drawn with, over decisions with a choice left to chance.

    `actions`: per action, the mean of 1{A = a} / p over the rows where it is legal, which should be 1, with its
    standard error clustered by user. `inverse_sum`: c = mean |legal| / mean(1 / p), about what the recorded
    propensities sum to over the legal actions (1 where they are right, above 1 where they are too large). `bins` (two
    actions only): predicted probability of the second action against how often it was taken. An action that the log
    never takes where it is legal makes its mean fall below 1 too: that is missing support, and it looks the same.
    """
    row = np.arange(len(table.action))
    chance = (table.legal.sum(axis=1) > 1) & (table.propensity < 1 - 1e-9)
    inverse = 1.0 / table.propensity
    found: dict[str, Any] = {"actions": {}, "bins": [], "inverse_sum": None}
    for number, name in enumerate(actions):
        rows = chance & table.legal[:, number]
        if rows.any():
            weight = (table.action == number)[rows] * inverse[rows]
            mean = float(weight.mean())
            spread = np.bincount(table.user[rows], weight - mean)
            error = float(np.sqrt((spread**2).sum()) / len(weight))
            found["actions"][name] = {"mean_weight": mean, "se": error, "decisions": len(weight)}
    legal_taken = table.legal[row, table.action]
    drawn = float((inverse * legal_taken)[chance].sum())
    if drawn > 0:
        found["inverse_sum"] = float(table.legal[chance].sum() / drawn)
    if len(actions) == 2:
        sent = (table.action == 1)[chance]
        predicted = np.where(sent, table.propensity[chance], 1 - table.propensity[chance])
        # 1 - 0.8 falls short of 0.2 by a rounding and belongs beside it.
        place = np.minimum((predicted * BINS + 1e-9).astype(np.int64), BINS - 1)
        for each in np.unique(place):
            inside = place == each
            found["bins"].append(
                {
                    "predicted": float(predicted[inside].mean()),
                    "observed": float(sent[inside].mean()),
                    "n": int(inside.sum()),
                }
            )
    return found
