"""Finite decision processes, solved exactly by backward induction.

S states, A actions, K reward components, H decisions; undiscounted, as evaluation is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.errors import InputError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Mdp:
    """A finite decision process. Raises InputError where rows are no probabilities or a state has no legal action."""

    transition: Sequence[csr_array]
    """A matrices [S, S]: rows of action a are P(s' | s, a)"""
    reward: Floats
    """[S, A, K] expected, in raw units"""
    legal: Booleans
    """[S, A]"""

    def __post_init__(self) -> None:
        for action, rows in enumerate(self.transition):
            if rows.data.min(initial=0) < 0 or not np.allclose(rows.sum(1), 1, atol=1e-9):
                raise InputError(f"transition of action {action}: rows must be probabilities that sum to 1.")
        if not self.legal.any(1).all():
            raise InputError(f"legal: state {int(np.argmin(self.legal.any(1)))} has no legal action; give it one.")


def solve(mdp: Mdp, weights: Floats, horizon: int) -> tuple[Integers, Floats]:
    """[H, S] the best action at each of H = `horizon` decisions, and [S] the total of weights . r that it earns.

    V_h(s) = max over legal a of w . r(s, a) + sum_s' P(s' | s, a) V_{h+1}(s'), and V_H = 0 (Puterman 1994, sec. 4.5).
    """
    states = len(mdp.legal)
    value, best = np.zeros(states), np.zeros((horizon, states), np.int64)
    for decision in range(horizon - 1, -1, -1):
        following = np.column_stack([rows @ value for rows in mdp.transition])
        q = np.where(mdp.legal, mdp.reward @ weights + following, -np.inf)
        best[decision], value = q.argmax(1), q.max(1)
    return best, value


def totals(mdp: Mdp, actions: Integers, horizon: int) -> Floats:
    """[S, K] what a policy earns from each state in `horizon` decisions; `actions` [S], or one row per decision [H, S].

    Raises InputError where it takes an illegal action.
    """
    states = np.arange(len(mdp.legal))
    plan = np.broadcast_to(actions, (horizon, len(states)))
    earned = np.zeros((len(states), mdp.reward.shape[2]))
    for action in plan[::-1]:
        if not mdp.legal[states, action].all():
            state = int(np.argmin(mdp.legal[states, action]))
            raise InputError(f"actions: {action[state]} is illegal in state {state}; mask it by `legal`.")
        following = np.stack([rows @ earned for rows in mdp.transition], 1)
        earned = mdp.reward[states, action] + following[states, action]
    return earned
