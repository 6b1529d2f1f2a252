"""The state as a linear model reads it: standardised, without holes, crossed with the action."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.base import Booleans, Floats, Integers

LEAST_ROWS = 30
"""Training rows an action needs; one taken less often has no effect that could be told, and is never chosen."""

LEAST_VARIED = 0.01
"""Share of training rows that must differ from a column's median; what a rarer value does could not be told."""
REACH = 3.0
"""Standard deviations from the mean beyond which a column counts as there: a line fitted where the log is must not be
followed to where it hardly was. A policy that sends less than the log gets to states that are rare in it."""


@dataclass(frozen=True)
class Design:
    """Fitted on training rows: D columns, which are features and, after them, where features were unknown."""

    mean: Floats
    """[S] of the known values."""
    spread: Floats
    """[D] standard deviations."""
    centre: Floats
    """[D] means."""
    kept: Booleans
    """[2 S] columns that vary enough."""

    @classmethod
    def of(cls, state: NDArray[Any]) -> "Design":
        """From `state` [n, S], NaN where unknown."""
        known = ~np.isnan(state)
        mean = np.where(known, state, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
        columns = _filled(state, mean)
        kept: Booleans = (columns != np.median(columns, axis=0)).mean(axis=0) >= LEAST_VARIED
        return cls(mean, columns.std(axis=0)[kept], columns.mean(axis=0)[kept], kept)

    def __call__(self, state: NDArray[Any]) -> Floats:
        """[N, D] of `state` [N, S]: (x - mean) / standard deviation within REACH, unknown at its mean and flagged."""
        found: Floats = (_filled(state, self.mean)[:, self.kept] - self.centre) / self.spread
        return np.clip(found, -REACH, REACH)


def _filled(state: NDArray[Any], mean: Floats) -> Floats:
    """[N, 2 S]: the values, the mean where unknown, then 1 where unknown."""
    unknown = np.isnan(state)
    return np.concatenate([np.where(unknown, mean, state.astype(np.float64)), unknown.astype(np.float64)], axis=1)


def crossed(known: Floats, action: Integers, among: Integers) -> Floats:
    """[N, D + E + E D]: the state `known` [N, D], which of the E actions `among` was taken, and their products."""
    taken = (action[:, None] == among).astype(np.float64)
    products = (taken[:, :, None] * known[:, None, :]).reshape(len(known), -1)
    return np.concatenate([known, taken, products], axis=1)
