"""Value functions that are fitted on some users and read at others, by a process that has no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contract import SPLITS
from models.table import Transitions
from policies.base import Booleans, Floats, Policy
from policies.ope.fqe import Fit, asked_of, folds, time_left
from policies.ope.target import Target
from policies.tally import Key, Part, Plan

Network = Callable[[int, NDArray[np.float32]], NDArray[np.float64]]
"""(member, state [N, S + E]) -> Q [N, A, K] in raw units, at rows of any log."""
FitNetwork = Callable[[Transitions, Booleans, NDArray[np.float32], NDArray[np.float32] | None], Network]
"""A `policies.ope.fqe.FitQ` that returns the functions it fitted rather than their values."""


@dataclass(frozen=True)
class ValueFunctions:
    """Q of every policy and mixture, as they were fitted on a sample of a log."""

    network: Network
    members: Mapping[Key, tuple[int, ...]]
    """Of what learned, the function of the users that are not in the test split; of the others, by fold of the user who
    is asked about."""
    sequential: bool
    log_end: int
    """End of the whole log, us: days left are counted to it."""

    @classmethod
    def of(
        cls, table: Transitions, targets: Mapping[str, Target], plan: Plan, log_end: int, fit: FitNetwork
    ) -> "ValueFunctions":
        """Fitted on `table`, some users of a log that ends at `log_end`.

        Raises InputError as `policies.ope.fqe.asked_of` does.
        """
        fits = fits_of(table, targets, plan)
        members, number = {}, 0
        for key, each in fits.items():
            members[key] = tuple(range(number, number + len(each)))
            number += len(each)
        every, sequential = [member for each in fits.values() for member in each], plan.config.per == "week"
        network = fit(table, *asked_of(table, every, sequential, log_end)) if every else _none
        return cls(network, members, sequential, log_end)

    def at(self, table: Transitions, plan: Plan) -> Callable[[Key], Floats]:
        """Q [N, A, K] of a policy or a mixture at the rows of `table` that it is asked about; 0 elsewhere."""
        left = time_left(table, self.sequential, self.log_end)
        state = table.state if left is None else np.concatenate([table.state, left], axis=1)
        fold, test = folds(table.user_id)[table.user], table.split == SPLITS.index("test")

        def q(key: Key) -> Floats:
            members = self.members[plan.same(key)]
            found: Floats = np.zeros((*table.legal.shape, table.reward.shape[1]))
            for number, member in enumerate(members):
                rows = fold == number if len(members) > 1 else test
                found[rows] = self.network(member, state[rows])
            return found

        return q


def part_of(
    table: Transitions, plan: Plan, policies: Sequence[Policy], values: ValueFunctions, buckets: Sequence[int]
) -> Part:
    """Some users of a log, with what the policies do there and the value functions say."""
    targets = {policy.name: Target.of(policy, table) for policy in policies}
    return Part.of(table, plan, targets, values.at(table, plan), buckets)


def fits_of(table: Transitions, targets: Mapping[str, Target], plan: Plan) -> dict[Key, list[Fit]]:
    """The value functions that every policy and mixture needs, read at rows whose users they were not fitted on."""
    fold = folds(table.user_id)[table.user]
    test = table.split == SPLITS.index("test")
    found: dict[Key, list[Fit]] = {}
    for name, target in targets.items():
        if name in plan.learned:
            found[name] = [Fit(target.probability, ~test, test)]
        else:
            found[name] = [Fit(target.probability, fold != each, fold == each) for each in (0, 1)]
    for share in plan.shares:
        if plan.same(share) == share:
            found[share] = [Fit(plan.target(targets, share, table).probability, ~test, test)]
    return found


def _none(member: int, state: NDArray[np.float32]) -> NDArray[np.float64]:
    raise AssertionError("no policy is asked about")
