"""Where a policy would go, of the states that a log has: rows reweighted as marginalised importance sampling does."""

import numpy as np

from models.contract import SPLITS
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers, Policy
from policies.ope.mis import Bins, default_cuts
from policies.ope.target import Target


def visits_weight(table: Transitions, policy: Policy, cuts: dict[str, int] | None = None) -> Floats:
    """[N] w_k(z_k): how much more often `policy` would be in the state of each row than the policy of the log was.

    w_0 = 1 and w_{k+1}(z') = E_mu[w_k(z_k) rho_k | z_{k+1} = z'] over the users observed at step k + 1, then divided by
    the mean at that step; z are bins (`cuts`, by default those of `policies.ope.mis`). Rows after a gap begin anew.
    Within a bin states are as common as in the log, and a state that the log does not have gets no weight: what is
    beyond the log stays unseen. Source: Xie, Ma and Wang 2019, with z in place of the state.

    Raises InputError where no feature can be binned by, and as `Bins.of` and `Target.of` do.
    """
    cuts = cuts or default_cuts(table.contract.features)
    if not cuts:
        raise InputError("evaluate.marginal: missing, and no feature has a default; say which features sends move.")
    place = Bins.of(table, cuts).place(table)
    ratio, after = Target.of(policy, table).ratio, table.next_row
    head = np.ones(len(after), dtype=np.bool_)
    head[after[after >= 0]] = False
    weight = np.zeros(len(after))
    now: Integers = np.flatnonzero(head)
    weight[now] = 1.0
    while len(now):
        goes = now[after[now] >= 0]
        now = after[goes]
        if not len(now):
            break
        z = place[now]
        arriving, there = np.bincount(z, weights=weight[goes] * ratio[goes]), np.bincount(z)
        found = (arriving / np.maximum(there, 1))[z]
        weight[now] = found / found.mean() if found.any() else 0.0
    return weight


def visited_rows(table: Transitions, weight: Floats, split: str, number: int, seed: int) -> Integers:
    """[number] places of rows of one split past the warm-up, drawn with replacement by `weight` [N].

    Raises InputError where none of them has any: the log says nothing of where the policy goes.
    """
    rows: Booleans = (table.split == SPLITS.index(split)) & ~table.warm_up & (weight > 0)
    if not rows.any():
        raise InputError(
            f"learned.goal: no state of the {split} users is one that the policy visits; a log of a policy that "
            "explores more is needed."
        )
    there = np.flatnonzero(rows)
    share = weight[there] / weight[there].sum()
    found: Integers = np.random.default_rng(seed).choice(there, size=number, p=share)
    return found
