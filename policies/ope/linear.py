"""Fitted Q evaluation without a network: one linear regression for each step of the trajectory, exact and fast."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.table import Transitions
from policies.base import Booleans, Floats

RIDGE = 1.0
"""Weight of the penalty, in rows: coefficients of standardised features lean towards 0 as if by one more row each."""


def fit_linear(
    table: Transitions, rows: Booleans, ahead: NDArray[np.float32], extra: NDArray[np.float32] | None
) -> NDArray[Any]:
    """Q [M, N, A, K] in raw units, a `policies.ope.fqe.FitQ`: backward in the step k of a user's row, by least squares.

    Q_k(s, a) = m_k + x(s)' B_ka, x the standardised state and time left with 1 before it (an unknown value is the
    mean), m_k the mean of the targets y = r + sum_a' ahead(a') Q_{k+1}(s', a') and B_ka = argmin sum |y - m_k - x'B|^2
    + RIDGE |B|^2 over the member's rows of step k and action a. Where a member has no row of step k, Q_k is 0.

    Made for logs whose users decide about equally often, such as once a day: there a step has many rows. Source:
    Le, Voloshin and Yue 2019; the finite-horizon form of Jiang and Li 2016.
    """
    members, actions, components = len(rows), table.legal.shape[1], table.reward.shape[1]
    first = np.flatnonzero(np.diff(table.user, prepend=-1))
    step = np.arange(len(table.user)) - first[table.user]
    x = _design(table, np.any(rows, axis=0, keepdims=True)[0], extra)
    goes_on = (table.next_row >= 0) & (ahead.sum(axis=-1) > 0).any(axis=0)
    q = np.zeros((members, len(step), actions, components))
    order, together = np.argsort(step, kind="stable"), _alike(rows)
    for place in np.split(order, np.cumsum(np.bincount(step)))[-2::-1]:
        on = place[goes_on[place]]
        y = np.repeat(table.reward[place][None], members, axis=0)
        y[:, goes_on[place]] += np.einsum("mna,mnak->mnk", ahead[:, on], q[:, on + 1])
        for alike in together:
            own = rows[alike[0], place]
            if own.any():
                mean = y[alike][:, own].mean(axis=1, keepdims=True)
                for action in range(actions):
                    those = own & (table.action[place] == action)
                    # Members that learn from the same rows share one factorisation.
                    left = (y[alike][:, those] - mean).transpose(1, 0, 2).reshape(-1, len(alike) * components)
                    fitted = (x[place] @ _ridge(x[place[those]], left)).reshape(len(place), len(alike), components)
                    for number, member in enumerate(alike):
                        q[member, place, action] = mean[number] + fitted[:, number]
    return q


def _alike(rows: Booleans) -> list[list[int]]:
    """The members, those with the same rows [M, N] together."""
    found: dict[bytes, list[int]] = {}
    for member, own in enumerate(rows):
        found.setdefault(np.packbits(own).tobytes(), []).append(member)
    return list(found.values())


def _design(table: Transitions, used: Booleans, extra: NDArray[np.float32] | None) -> Floats:
    """[N, 1 + S + E]: 1, then state and time left in standard deviations of the `used` rows, 0 where unknown."""
    state = table.state if extra is None else np.concatenate([table.state, extra], axis=1)
    known = np.where(np.isfinite(state), state, np.nan).astype(np.float64)
    count = np.maximum((~np.isnan(known[used])).sum(axis=0), 1)
    centred = known - np.nansum(known[used], axis=0) / count
    spread = np.sqrt(np.nansum(centred[used] ** 2, axis=0) / count)
    spread[spread <= 1e-9] = 1.0
    return np.column_stack([np.ones(len(state)), np.nan_to_num(centred / spread)])


def _ridge(x: Floats, y: Floats) -> Floats:
    """[D, K] (X'X + RIDGE I)^-1 X'y."""
    found: NDArray[Any] = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return found
