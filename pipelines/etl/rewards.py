"""Rewards, each paid to the interval (t_k, e_k] in which it happens, so that its sum over a user's rows is the metric.

| component          | unit                | over row k |
|--------------------|---------------------|------------|
| sends              | notifications       | 1 if the action is not hold |
| clicks             | clicks              | clicks in (t_k, e_k], each within the click window of its own send |
| visits             | sessions            | sessions that start in (t_k, e_k] |
| weekly_active_days | days                | measure of the moments in (t_k, e_k] with a visit in the 7 days before |
| disables           | users switching off | 1 if notifications were switched off in (t_k, e_k] |
| column:NAME        | the column's        | the column of the decision row; 0 on a silent row |
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.etl.features import CLICK, DAY, DISABLE, Floats, Happenings, Ints, Keys

WEEK = 7 * DAY


@dataclass(frozen=True)
class Intervals:
    """N intervals (start, end] of users, us."""

    user: Ints
    start: Ints
    end: Ints

    def count(self, user: Ints, at: Ints) -> Ints:
        """[N] how many of the given moments, by user and time, lie in each interval."""
        users = int(max(self.user.max(initial=0), user.max(initial=0))) + 1
        keys = Keys.over(users, self.start, self.end)
        moments = keys(user, at)
        until, before = (np.searchsorted(moments, keys(self.user, each), "right") for each in (self.end, self.start))
        return until - before


@dataclass(frozen=True)
class Notified:
    """M notifications sent, by the codes of their user and decision."""

    user: Ints
    decision: Ints
    at: Ints


def active_days(intervals: Intervals, user: Ints, at: Ints) -> Floats:
    """[N] measure, in days of 86,400 s, of the moments in each interval that a visit precedes by at most 7 days.

    The visits are given by user and time. With C(x) the measure of the union of [v, v + 7 d) over the user's visits v,
    up to x: C(end) - C(start).
    """
    if not len(user):
        return np.zeros(len(intervals.user))
    last = np.append(user[1:] != user[:-1], True)
    until_next = np.where(last, 0, np.append(at[1:], 0) - at)
    full = np.append(0, np.cumsum(np.minimum(until_next, WEEK)))[:-1]
    users = int(max(intervals.user.max(initial=0), user.max())) + 1
    keys = Keys.over(users, intervals.start, intervals.end)
    visited = keys(user, at)
    first = np.searchsorted(user, intervals.user, "left")

    def covered(moment: Ints) -> Ints:
        """C(moment), us."""
        row = np.searchsorted(visited, keys(intervals.user, moment), "right") - 1
        inside = full[row] - full[np.minimum(first, len(user) - 1)] + np.minimum(moment - at[row], WEEK)
        return np.where(row < first, 0, inside)

    return (covered(intervals.end) - covered(intervals.start)) / DAY


def clicks_within(events: Happenings, sent: Notified, window: int) -> tuple[Happenings, Ints]:
    """The clicks that follow their own send by at most `window` us, and [clicks] the index of that send.

    Of several sends of one user and decision id the last before the click counts.
    """
    clicks = events.of(CLICK)
    if not len(sent.at):
        return clicks.where(np.zeros(len(clicks.at), bool)), np.empty(0, np.int64)
    order = np.lexsort((sent.at, sent.decision, sent.user))
    wide = int(max(sent.decision.max(initial=0), clicks.decision.max(initial=0))) + 1
    keys, at = (sent.user * wide + sent.decision)[order], sent.at[order]
    key = clicks.user * wide + clicks.decision
    place = np.searchsorted(keys, key, "right") - 1
    # An id is a user's own for some days at least, so that hardly ever one step back is needed.
    while len(early := np.flatnonzero((place > 0) & (keys[place] == key) & (at[place] > clicks.at))):
        place[early] -= 1
    lag = clicks.at - at[place]
    good = (clicks.decision >= 0) & (place >= 0) & (keys[place] == key) & (lag >= 0) & (lag <= window)
    return clicks.where(good), order[place[good]]


def interval_rewards(
    intervals: Intervals, is_send: NDArray[np.bool_], events: Happenings, visited: Happenings, clicks: Happenings
) -> dict[str, Floats]:
    """Every built-in component, [N] float64 in its raw unit; `clicks` are those within their windows.

    Events, visits and clicks are given by user and time.
    """
    off = events.of(DISABLE)
    return {
        "sends": is_send.astype(np.float64),
        "clicks": intervals.count(clicks.user, clicks.at).astype(np.float64),
        "visits": intervals.count(visited.user, visited.at).astype(np.float64),
        "weekly_active_days": active_days(intervals, visited.user, visited.at),
        "disables": (intervals.count(off.user, off.at) > 0).astype(np.float64),
    }
