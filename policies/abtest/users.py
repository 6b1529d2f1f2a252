"""From transitions to users: what each earned and how long it was watched, in the experiment and before it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.abtest.config import CTR
from policies.abtest.effects import Measure
from policies.base import Booleans, Floats, Integers

DAY = 86_400_000_000
DAYS_PER_WEEK = 7.0


@dataclass(frozen=True)
class Users:
    """U users of the experiment, L cut-offs, K reward components, S state features."""

    components: tuple[str, ...]
    features: tuple[str, ...]
    arm: Integers
    """[U] place among the arms, 0 the control."""
    enrolled: Integers
    """[U] time of the first decision by an arm, us."""
    until: Integers
    """[U, L] up to when each user counts at each cut-off, us."""
    total: Floats
    """[U, L, K] rewards from the enrolment until then, raw units."""
    weeks: Floats
    """[U, L] weeks covered."""
    before: Floats
    """[U, K] rewards before the enrolment."""
    weeks_before: Floats
    """[U]"""
    state: NDArray[np.float32]
    """[U, S] state at the enrolment, NaN where unknown: nothing in it can be an effect of the treatment."""

    def __len__(self) -> int:
        return len(self.arm)

    def where(self, rows: Booleans) -> "Users":
        """The users marked in `rows` [U]."""
        per_user = ("arm", "enrolled", "until", "total", "weeks", "before", "weeks_before", "state")
        return Users(self.components, self.features, **{name: getattr(self, name)[rows] for name in per_user})

    def measure(self, metric: str, cut: int) -> Measure:
        """A component per user-week, or clicks per send, at the cut-off numbered `cut`.

        Raises InputError where the metric is not a component or its values are not finite.
        """
        names = ("clicks", "sends") if metric == CTR else (metric,)
        for name in names:
            if name not in self.components:
                raise InputError(
                    f"abtest.metrics: {metric!r} needs the reward component {name!r}; found "
                    f"{', '.join(self.components)}."
                )
        place = [self.components.index(name) for name in names]
        top, top_before = self.total[:, cut, place[0]], self.before[:, place[0]]
        bottom, bottom_before = self.weeks[:, cut], self.weeks_before
        if metric == CTR:
            bottom, bottom_before = self.total[:, cut, place[1]], self.before[:, place[1]]
        lost = int((~np.isfinite(top + bottom + top_before + bottom_before)).sum())
        if lost:
            raise InputError(
                f"abtest.metrics: {metric} is not a number for {lost} of {len(self)} users; correct the rewards in the "
                "log, a user is never counted as 0."
            )
        return Measure(top, bottom, top_before, bottom_before)


def join(parts: Sequence[Users]) -> Users:
    """Users of several buckets; a user is in one bucket only."""
    names = ("arm", "enrolled", "until", "total", "weeks", "before", "weeks_before", "state")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Users(parts[0].components, parts[0].features, **joined)


def cut(table: Transitions, arm: Integers, enrolled: Integers, until: Integers, pre_days: float) -> Users:
    """What the users with `arm` >= 0 earned in (enrolled, until] and in the `pre_days` before their enrolment.

    `arm`, `enrolled` [U] and `until` [U, L] are by the table's user codes. An interval that reaches over an end counts
    by the share of it that lies inside, time and reward alike; of a terminal one, which takes in the time after the
    account was closed, the reward counts in full where it begins inside. Rows that are not usable are not there: their
    time counts nowhere. A user who has no usable row from the enrolment on has no state and covers no time.
    """
    begin = table.decided_at
    end = begin + np.rint(table.elapsed_days * DAY).astype(np.int64)
    users, cuts = until.shape
    components = table.reward.shape[1]
    total, weeks = np.zeros((users, cuts, components)), np.zeros((users, cuts))

    def sums(low: Integers, high: Integers) -> tuple[Floats, Floats]:
        inside = np.maximum(np.minimum(end, high[table.user]) - np.maximum(begin, low[table.user]), 0)
        begins = (begin >= low[table.user]) & (begin < high[table.user])
        whole = begins & (table.terminal | (end == begin))
        share = np.where(whole, 1.0, np.where(table.terminal, 0.0, inside / np.maximum(end - begin, 1)))
        earned = [np.bincount(table.user, share * reward, users) for reward in table.reward.T]
        covered = np.bincount(table.user, inside / (DAY * DAYS_PER_WEEK), users)
        return np.stack(earned, axis=1), np.asarray(covered, np.float64)

    for number in range(cuts):
        total[:, number], weeks[:, number] = sums(enrolled, until[:, number])
    before, weeks_before = sums(enrolled - round(pre_days * DAY), enrolled)
    state = np.full((users, table.state.shape[1]), np.nan, np.float32)
    after = np.flatnonzero(begin >= enrolled[table.user])
    # Rows are in the order of time: of a user's the first is assigned last.
    state[table.user[after[::-1]]] = table.state[after[::-1]]
    found = Users(
        table.contract.rewards, table.contract.features, arm, enrolled, until, total, weeks, before, weeks_before, state
    )
    return found.where(arm >= 0)
