"""Fitted Q evaluation: the value that a fitted Q function gives where a user starts; and the fit of many at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope.sample import Sample, days_left, trajectory_rows
from policies.ope.summaries import Additive

FitQ = Callable[[Transitions, Booleans, NDArray[np.float32], NDArray[np.float32] | None], NDArray[Any]]
"""(table, rows_fit [M, N], next_probabilities [M, N, A], extra_state [N, E] or None) -> Q [M, N, A, K] in raw units.

Member m solves Q(s, a) = E[r + sum_a' next_probabilities(a') Q(s', a')], undiscounted, on its rows alone; a row that
ends a trajectory (terminal or truncated) has target r. `next_probabilities` of row i is what the policy does at the row
after i.
"""


@dataclass(frozen=True)
class Fit:
    """One Q function that is needed: whose, learned from which rows, used on which."""

    probability: Floats
    """[N, A] the policy evaluated, at every row of the table."""
    fit: Booleans
    """[N] rows it may learn from."""
    use: Booleans
    """[N] rows it is read at."""


def fqe(sample: Sample, probability: Floats, q: Floats) -> Additive:
    """Sums [U, K] of V(s_0) = sum_a pi(a|s_0) Q(s_0, a) per week, of sum_k V(s_k) per decision; in raw units.

    `probability` [n, A], `q` [n, A, K] fitted on users not in the sample. As good as q: nothing here corrects an error
    of the fit, and an interval over users leaves that error out. Source: Le, Voloshin and Yue 2019.
    """
    value = np.einsum("na,nak->nk", probability, q)
    return Additive(value[sample.start] if sample.sequential else sample.per_user(value))


def folds(user_id: NDArray[np.object_]) -> NDArray[np.int64]:
    """[U] 0 or 1 for each user id, by a hash of the id alone: the same in every log, order and process."""
    return np.array([blake2b(str(name).encode(), digest_size=1).digest()[0] & 1 for name in user_id], dtype=np.int64)


def fit_all(table: Transitions, fits: Sequence[Sequence[Fit]], sequential: bool, fit: FitQ) -> list[Floats]:
    """Q [N, A, K] for each policy of `fits`, all their Q functions fitted as one population.

    Each policy has one Fit or several (folds), whose `use` rows are disjoint. Raises InputError as `asked_of` does.
    """
    members = [member for each in fits for member in each]
    if not members:
        return []
    fitted = iter(fit(table, *asked_of(table, members, sequential)))
    found = []
    for each in fits:
        q: Floats = np.zeros((*table.legal.shape, table.reward.shape[1]))
        for member in each:
            q[member.use] = next(fitted)[member.use]
        found.append(q)
    return found


def asked_of(
    table: Transitions, members: Sequence[Fit], sequential: bool, log_end: int | None = None
) -> tuple[Booleans, NDArray[np.float32], NDArray[np.float32] | None]:
    """(rows_fit, next_probabilities, extra_state) that a `FitQ` is asked for `members`.

    Per decision there is no next state: the probabilities are 0, and the fit is the regression of r on (s, a).

    Raises InputError where a Fit has no rows to learn from.
    """
    usable = trajectory_rows(table) if sequential else np.ones(len(table.user), dtype=np.bool_)
    rows_fit = np.stack([member.fit & usable for member in members])
    for member, rows in zip(members, rows_fit, strict=True):
        if not rows.any():
            raise InputError(
                f"evaluate: no rows to fit a value function on for {int(member.use.sum())} rows that need one: "
                "every user of the "
                "other fold or split is missing; more users, or shares in etl.split, are needed."
            )
    ahead = np.zeros((len(members), *table.legal.shape), dtype=np.float32)
    if sequential:
        going = table.next_row >= 0
        for out, member in zip(ahead, members, strict=True):
            out[going] = member.probability[table.next_row[going]]
    return rows_fit, ahead, time_left(table, sequential, log_end)


def time_left(table: Transitions, sequential: bool, log_end: int | None = None) -> NDArray[np.float32] | None:
    """[N, 1] what joins the state of a value function: the days left, or nothing per decision."""
    return days_left(table, log_end)[:, None].astype(np.float32) if sequential else None
