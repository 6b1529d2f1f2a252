"""Which of many policies nobody beats, how sure a log is of it, and which is best within a budget.

M policies, D objectives, R bootstrap replicates. Every objective is signed so that more is better.
"""

import numpy as np

from policies.base import Booleans, Floats


def non_dominated(values: Floats) -> Booleans:
    """[..., M] whether no policy is at least as good in every objective and better in one, of `values` [..., M, D].

    Policies that are equal in everything do not dominate each other; one with a NaN (the log cannot say) is not on the
    front and keeps nobody off it.
    """
    known: Booleans = np.all(~np.isnan(values), axis=-1)
    filled = np.where(known[..., None], values, -np.inf)
    beaten = np.zeros(known.shape, dtype=np.bool_)
    for rival in range(values.shape[-2]):
        other = filled[..., rival : rival + 1, :]
        beaten |= (other >= filled).all(axis=-1) & (other > filled).any(axis=-1)
    found: Booleans = known & ~beaten
    return found


def front(replicates: Floats) -> tuple[Booleans, Floats]:
    """[M] whether each policy is on the front of the log, and [M] the share of the resamples whose front it is on.

    `replicates` [R + 1, M, D], the log itself first, then resamples that all policies share. That share says what other
    users of the same kind might have shown; what another seed would have learned it does not say.
    """
    found = non_dominated(replicates)
    return found[0], found[1:].mean(axis=0)


def best_within(value: Floats, cost: Floats, budget: float) -> int | None:
    """The policy of the largest `value` [M] among those whose `cost` [M] is at most `budget`; None where none is.

    Of equal ones the cheapest, then the first. A NaN in either is never chosen.
    """
    allowed = np.flatnonzero((cost <= budget) & ~np.isnan(value))
    if not len(allowed):
        return None
    return int(allowed[np.lexsort((cost[allowed], -value[allowed]))[0]])
