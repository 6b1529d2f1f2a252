"""Which of many learned policies to keep: what a small share of each would earn, on the validation split.

The weights of whole trajectories say nothing about a policy that differs from the log at every decision; the first
derivative of the value in the rollout share does, since it asks for one weight at a time:

    d/dkappa V((1 - kappa) mu + kappa pi) at 0 = 7 E_u[sum_k (rho_k - 1) G_k] / E_u[sum_k Delta_k],

G_k what the log earned from decision k on. It is the performance difference lemma with the log's own states (Kakade and
Langford 2002) and, since E_mu[rho_k - 1 | s_k] = 0, unbiased with any function of the state taken from G_k. Per
decision G_k = r_k and the slope is V(pi) - V(mu) itself. It ranks candidates for a first rollout, and judges nothing:
the gate does, on the test split.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.contract import SPLITS
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope.sample import Sample, days_left, take

RIDGE = 1e-3
"""Share of each feature's variance added to it, so that features that repeat each other do no harm."""


@dataclass(frozen=True)
class Slope:
    """The log's validation rows, ready to weigh any policy; see the head of this file."""

    rows: Booleans
    """[N] rows of the table that a policy's probabilities are needed at."""
    sample: Sample
    """n rows of U users."""
    propensity: Floats
    """[n] mu(a_k | s_k)."""
    advantage: Floats
    """[n, K] G_k less its mean given the state, as training users tell it; raw units."""

    @classmethod
    def of(cls, table: Transitions, cloned: Floats, per: Literal["week", "decision"]) -> "Slope":
        """`cloned` [N, A] is the logging policy as it was cloned, which stands in where a propensity is unknown.

        Raises InputError where the validation split has no rows, or covers no time.
        """
        sample = _sample(table, "validation", per)
        taken = cloned[sample.rows, sample.action]
        rows = np.zeros(len(table.user), dtype=np.bool_)
        rows[sample.rows] = True
        advantage = _returns(sample) - _baseline(table, sample, per)
        return cls(rows, sample, np.where(np.isnan(sample.propensity), taken, sample.propensity), advantage)

    def __call__(self, probabilities: Floats) -> Floats:
        """[U, K] what each user contributes to the slope, raw units per user-week (or decision); their mean is it.

        `probabilities` [n, A] of the policy at `rows`.
        """
        ratio = probabilities[np.arange(len(self.propensity)), self.sample.action] / self.propensity
        total = self.sample.per_user((ratio - 1)[:, None] * self.advantage)
        found: Floats = total / self.sample.exposure.mean()
        return found


def _sample(table: Transitions, split: str, per: Literal["week", "decision"]) -> Sample:
    return take(table, table.split == SPLITS.index(split), per)


def _returns(sample: Sample) -> Floats:
    """[n, K] G_k: a user's rewards from row k to the last; per decision the row's own."""
    if not sample.sequential:
        return sample.reward
    before = np.cumsum(sample.reward, axis=0) - sample.reward
    total = sample.per_user(sample.reward)
    found: Floats = total[sample.user] - (before - before[sample.start][sample.user])
    return found


def _baseline(table: Transitions, sample: Sample, per: Literal["week", "decision"]) -> Floats:
    """[n, K] E[G | s] by ridge regression on the state, and on the days left, over the training users' rows."""
    training = _sample(table, "train", per)
    left = days_left(table)[:, None] if per == "week" else np.zeros((len(table.user), 1))
    known = np.concatenate([table.state.astype(np.float64), left], axis=1)
    fit, use = known[training.rows], known[sample.rows]
    count = (~np.isnan(fit)).sum(axis=0)
    mean = np.nansum(fit, axis=0) / np.maximum(count, 1)
    fit, use = (np.nan_to_num(each - mean) for each in (fit, use))
    spread = fit.std(axis=0)
    spread[spread == 0] = 1.0
    fit, use = fit / spread, use / spread
    returns = _returns(training)
    centre = returns.mean(axis=0)
    gram = fit.T @ fit + RIDGE * len(fit) * np.eye(fit.shape[1])
    found: Floats = centre + use @ np.linalg.solve(gram, fit.T @ (returns - centre))
    return found
