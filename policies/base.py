"""What acts: a stochastic policy over the legal actions.

Legend of shapes in this package: N rows, U users, A actions, S state features, K reward components, G groups in which
weights are normalised, R bootstrap replicates, M fitted Q functions.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class Policy(Protocol):
    """A rule that gives every action its probability in a state."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def learned(self) -> bool:
        """Whether the log taught it anything: then only the test split may judge it."""

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] probabilities for `state` [N, S] (NaN where unknown) and `legal` [N, A]; rows sum to 1, 0 where
        illegal."""


def checked_probabilities(policy: Policy, state: NDArray[np.float32], legal: Booleans) -> Floats:
    """[N, A] probabilities of `policy`, having held it to its word: rows that sum to 1 (to 1e-6), nothing illegal.

    Raises InputError naming the policy, the first offending row and what was found.
    """
    found: NDArray[Any] = np.asarray(policy.action_probabilities(state, legal), dtype=np.float64)
    if found.shape != legal.shape:
        raise InputError(
            f"{policy.name}: probabilities of shape {found.shape}; {legal.shape} (rows, actions) are needed."
        )
    off = ~np.isfinite(found).all(1) | (found < 0).any(1) | (np.abs(found.sum(1) - 1) > 1e-6) | (found * ~legal).any(1)
    if off.any():
        row = int(off.argmax())
        raise InputError(
            f"{policy.name}: {int(off.sum())} of {len(off)} rows are not probabilities over the legal actions, "
            f"first row {row}: "
            f"{found[row].tolist()} where legal is {legal[row].tolist()}; a policy must give 0 to illegal actions "
            "and sum to 1."
        )
    return found
