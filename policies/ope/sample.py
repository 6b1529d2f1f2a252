"""The rows a policy is evaluated on, cut into trajectories or single decisions, and what every estimator reads of
them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.ope.grouped import PerUser, grouped

DAYS_PER_WEEK = 7.0
MICROSECONDS_PER_DAY = 86_400_000_000
FORCED, CHOICE = 0, 1


@dataclass(frozen=True)
class Sample:
    """n rows of U users, sorted by user and time; every user has at least one."""

    rows: Integers
    """[n] their places in the table."""
    user: Integers
    """[n] dense code 0..U-1, non-decreasing."""
    group: Integers
    """[n] where normalised forms normalise: the step k of a trajectory, or FORCED / CHOICE for single decisions."""
    sequential: bool
    """Whether weights multiply along a user's rows (per week) or stand for one decision each (per decision)."""
    at: Integers
    """[n] time of the decision, microseconds since the epoch."""
    action: Integers
    """[n] logged action."""
    propensity: Floats
    """[n] mu(a_k | s_k)."""
    legal: Booleans
    """[n, A]."""
    reward: Floats
    """[n, K] raw units."""
    exposure: Floats
    """[U] what a user's total is divided by in the end: user-weeks covered, or decisions."""
    left_out: int
    """Rows after the end of their user's trajectory."""
    closed: Booleans
    """[n] steps after the account was closed: nothing is decided or earned, and the user still counts as observed."""

    @property
    def users(self) -> int:
        return len(self.exposure)

    @property
    def decisions(self) -> int:
        """Rows at which something was decided."""
        return len(self.rows) - int(self.closed.sum())

    def ratios(self, ratio: Floats) -> Floats:
        """[n] rho of the rows, from `ratio` [N] of the whole table; 1 where the account is closed."""
        found: Floats = np.where(self.closed, 1.0, ratio[self.rows])
        return found

    @cached_property
    def start(self) -> Integers:
        """[U] place in the sample of each user's first row."""
        found: Integers = np.flatnonzero(np.diff(self.user, prepend=-1)).astype(np.int64)
        return found

    def per_user(self, values: Floats) -> Floats:
        """[U, ...] sums of `values` [n, ...] over each user's rows."""
        total: Floats = np.add.reduceat(values, self.start, axis=0)
        return total

    def per_user_group(self, values: Floats) -> PerUser:
        """[U, G, ...] sums of `values` [n, ...] over each user's rows of each group."""
        return grouped(self.user, self.group, values)

    @cached_property
    def steps(self) -> list[Integers]:
        """Places of the rows of each group, in their order."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.group))[:-1])

    def weights(self, ratio: Floats) -> tuple[Floats, Floats]:
        """Weight before and after each row, [n] and [n], from `ratio` [n] rho_k = pi(a_k|s_k) / mu(a_k|s_k).

        Per week (w_{k-1}, w_k) with w_k = prod_{j<=k} rho_j and w_{-1} = 1; per decision (1, rho_k).
        """
        before = np.ones_like(ratio)
        if not self.sequential:
            return before, ratio
        after = ratio.copy()
        # A row of step k follows that of step k - 1 of its user.
        for rows in self.steps[1:]:
            before[rows] = after[rows - 1]
            after[rows] *= before[rows]
        return before, after


def trajectory_rows(table: Transitions) -> Booleans:
    """[N] whether a row lies on its user's trajectory: from the first row to the first terminal or truncated one,
    inclusive."""
    ended = (table.terminal | table.truncated).astype(np.int64)
    before = np.cumsum(ended) - ended
    first = np.diff(table.user, prepend=-1) != 0
    at_start = np.maximum.accumulate(np.where(first, before, 0))
    found: Booleans = before == at_start
    return found


@dataclass(frozen=True)
class Pace:
    """How often a log decides about a user, the same of every part of it."""

    gap_days: float
    """Median time from a decision to the user's next one; inf where nobody has a next one."""
    steps: int
    """Of the longest trajectory."""

    @classmethod
    def of(cls, table: Transitions) -> "Pace":
        rows = trajectory_rows(table)
        follows = table.next_row >= 0
        gap = float(np.median(table.elapsed_days[follows])) if follows.any() else np.inf
        return cls(gap if gap > 0 else np.inf, int(np.bincount(table.user[rows]).max(initial=0)))


def take(
    table: Transitions,
    rows: Booleans,
    per: Literal["week", "decision"],
    part: bool = False,
    pace: Pace | None = None,
) -> Sample:
    """The sample of the rows of `table` marked in `rows` [N], whole users where `per` is week.

    Exposure per week is sum_k Delta_k / 7 over the trajectory, per decision the number of rows. With `pace` (per week)
    a user whose account was closed stays for the steps that were left: as many as the time of the last row has room
    for, and no more than the longest trajectory. Who leaves because of what was sent is else taken for one who was
    never there, and weights that are normalised over those still observed would speak of the others alone.

    Raises InputError where no row is left and, but for a `part` of a log, where the rows cover no time at all.
    """
    kept = rows & trajectory_rows(table) if per == "week" else rows
    place = np.flatnonzero(kept).astype(np.int64)
    if not len(place):
        raise InputError("evaluate: no rows to evaluate on; give the split users (etl.split) or a longer log.")
    first = np.diff(table.user[place], prepend=-1) != 0
    user = np.cumsum(first) - 1
    legal = table.legal[place]
    start = np.flatnonzero(first)
    if per == "week":
        group = np.arange(len(place)) - start[user]
        exposure: NDArray[Any] = np.add.reduceat(table.elapsed_days[place], start) / DAYS_PER_WEEK
        if not part:
            check_exposure(float(exposure.sum()))
    else:
        group = np.where(legal.sum(axis=1) > 1, CHOICE, FORCED)
        exposure = np.bincount(user).astype(np.float64)
    found = Sample(
        rows=place,
        user=user.astype(np.int64),
        group=group.astype(np.int64),
        sequential=per == "week",
        at=table.decided_at[place],
        action=table.action[place],
        propensity=table.propensity[place],
        legal=legal,
        reward=np.asarray(table.reward[place], dtype=np.float64),
        exposure=exposure.astype(np.float64),
        left_out=int(rows.sum()) - len(place),
        closed=np.zeros(len(place), dtype=np.bool_),
    )
    return found if pace is None or per == "decision" else _stayed(found, table, pace)


def _stayed(sample: Sample, table: Transitions, pace: Pace) -> Sample:
    """With the steps that closed accounts had left."""
    left = np.where(table.terminal[sample.rows], np.rint(table.elapsed_days[sample.rows] / pace.gap_days) - 1, 0)
    more = np.clip(left, 0, np.maximum(pace.steps - 1 - sample.group, 0)).astype(np.int64)
    if not more.any():
        return sample
    # A terminal row is its user's last: copies of it follow it, each a step later.
    copies = np.repeat(np.arange(len(more)), more + 1)
    first = np.diff(copies, prepend=-1) != 0
    since = np.arange(len(copies)) - np.flatnonzero(first)[np.cumsum(first) - 1]
    closed = since > 0
    legal = sample.legal[copies]
    legal[closed] = np.arange(legal.shape[1]) == 0
    return replace(
        sample,
        rows=sample.rows[copies],
        user=sample.user[copies],
        group=sample.group[copies] + since,
        at=sample.at[copies],
        action=np.where(closed, 0, sample.action[copies]),
        propensity=np.where(closed, 1.0, sample.propensity[copies]),
        legal=legal,
        reward=np.where(closed[:, None], 0.0, sample.reward[copies]),
        closed=closed,
    )


def check_exposure(total: float) -> None:
    """Raise InputError where the rows cover no time at all: nothing could be said of a week."""
    if total <= 0:
        raise InputError(
            "evaluate: the rows cover no time (elapsed_days sum to 0); a log that spans some days is needed."
        )


def check_propensities(table: Transitions) -> None:
    """Hold the log to what evaluation needs: every propensity known and in (0, 1], and some choice left to chance.

    Raises InputError with the count, the first decision and the remedy. A propensity that is unknown is never taken as
    1.
    """
    check_range(table)
    check_chance(*choices(table))


def check_range(table: Transitions) -> None:
    """Raise InputError, with the count and the first decision, where a propensity is unknown or outside (0, 1]."""

    def refuse(off: Booleans, what: str, remedy: str) -> None:
        if off.any():
            row = int(off.argmax())
            at = np.datetime64(int(table.decided_at[row]), "us")
            who = table.user_id[table.user[row]]
            raise InputError(
                f"propensity: {int(off.sum())} of {len(off)} usable decisions {what}, first that of user {who} at {at} "
                f"(found {table.propensity[row]}); {remedy}"
            )

    p = table.propensity
    refuse(np.isnan(p), "have none", "log the probability of the action taken, or leave those decisions out.")
    refuse((p <= 0) | (p > 1), "lie outside (0, 1]", "log the probability of the action taken.")


def choices(table: Transitions) -> tuple[int, int]:
    """How many decisions have more than one legal action, and how many of them were left to chance."""
    choice = table.legal.sum(axis=1) > 1
    return int(choice.sum()), int((choice & (table.propensity < 1 - 1e-12)).sum())


def check_chance(choice: int, chance: int) -> None:
    """Raise InputError where none of a log's decisions has a `choice`, or none of those was left to `chance`."""
    if not choice:
        raise InputError("legal: no decision has more than one legal action; there is nothing to evaluate.")
    if not chance:
        raise InputError(
            f"propensity: all {choice} decisions with a choice were made with probability 1: the logging policy never "
            "explored, so the log cannot say what another action would have done; log with some randomisation first."
        )


def check_rewards(table: Transitions) -> None:
    """Raise InputError naming the component and the first decision whose reward is no finite number."""
    off = ~np.isfinite(table.reward)
    if off.any():
        row, component = (int(place) for place in np.argwhere(off)[0])
        at = np.datetime64(int(table.decided_at[row]), "us")
        raise InputError(
            f"rewards: {table.contract.rewards[component]} is {table.reward[row, component]} at the decision of user "
            f"{table.user_id[table.user[row]]} at {at}, and {int(off.any(axis=1).sum())} of {len(off)} decisions have "
            "a reward that is no number; correct the log, or leave those decisions out: a mean over the others would "
            "be of those whose outcome is known."
        )


def ends(table: Transitions) -> Integers:
    """[N] end of the interval of each row, microseconds since the epoch."""
    return table.decided_at + np.rint(table.elapsed_days * MICROSECONDS_PER_DAY).astype(np.int64)


def days_left(table: Transitions, log_end: int | None = None) -> Floats:
    """[N] days from each row to the end of what is observed of its user, the state that an undiscounted value needs.

    The end of the user's trajectory where it was truncated. Where the account was closed, the end of the log: to count
    down to the closing would tell the value function what nobody knew. `log_end`, us, is by default the table's.
    """
    end_us = ends(table)
    horizon = np.full(int(table.user.max()) + 1, end_us.max() if log_end is None else log_end, dtype=np.int64)
    last = np.flatnonzero(trajectory_rows(table) & table.truncated & ~table.terminal)
    horizon[table.user[last]] = end_us[last]
    left: Floats = np.maximum(horizon[table.user] - table.decided_at, 0) / MICROSECONDS_PER_DAY
    return left
