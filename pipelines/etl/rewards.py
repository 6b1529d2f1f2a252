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

from pipelines.etl.features import CLICK, DAY, DISABLE, Floats, Happenings, Ints, Windows, visits

WEEK = 7 * DAY
_ALWAYS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Intervals:
    """N intervals (start, end] of users, us."""

    user: Ints
    start: Ints
    end: Ints

    def count(self, user: Ints, at: Ints) -> Ints:
        """[N] how many of the given moments lie in each interval."""
        always = np.full(len(at), _ALWAYS)
        until = Windows(self.user, self.end).count(user, at, always)
        return until - Windows(self.user, self.start).count(user, at, always)


@dataclass(frozen=True)
class Notified:
    """M notifications sent, by the codes of their user and decision."""

    user: Ints
    decision: Ints
    at: Ints


def active_days(intervals: Intervals, user: Ints, at: Ints) -> Floats:
    """[N] measure, in days of 86,400 s, of the moments in each interval that a visit precedes by at most 7 days.

    With C(x) the measure of the union of [v, v + 7 d) over the user's visits v, up to x: C(end) - C(start).
    """
    order = np.lexsort((at, user))
    user, at = user[order], at[order]
    if not len(user):
        return np.zeros(len(intervals.user))
    last = np.append(user[1:] != user[:-1], True)
    until_next = np.where(last, 0, np.append(at[1:], 0) - at)
    full = np.append(0, np.cumsum(np.minimum(until_next, WEEK)))[:-1]

    def covered(moment: Ints) -> Ints:
        """C(moment), but for what the users before have summed up."""
        row = Windows(intervals.user, moment).latest(user, at, np.arange(len(user)))
        first = np.searchsorted(user, intervals.user, "left")
        inside = full[row] - full[np.minimum(first, len(user) - 1)] + np.minimum(moment - at[row], WEEK)
        return np.where(row < 0, 0, inside)

    return (covered(intervals.end) - covered(intervals.start)) / DAY


def clicks_within(events: Happenings, sent: Notified, window: int) -> tuple[Happenings, Ints]:
    """The clicks that follow their own send by at most `window` us, and [clicks] the index of that send.

    Of several sends of one user and decision id the earliest counts.
    """
    clicks = events.where(events.kind == CLICK)
    order = np.lexsort((sent.at, sent.decision, sent.user))
    wide = int(max(sent.decision.max(initial=0), clicks.decision.max(initial=0))) + 1
    keys = (sent.user * wide + sent.decision)[order]
    key = clicks.user * wide + clicks.decision
    place = np.searchsorted(keys, key, "left")
    inside = np.minimum(place, max(len(keys) - 1, 0))
    if not len(keys):
        return clicks.where(np.zeros(len(key), bool)), np.empty(0, np.int64)
    send = order[inside]
    lag = clicks.at - sent.at[send]
    good = (clicks.decision >= 0) & (place < len(keys)) & (keys[inside] == key) & (lag >= 0) & (lag <= window)
    return clicks.where(good), send[good]


def interval_rewards(
    intervals: Intervals, is_send: NDArray[np.bool_], events: Happenings, clicks: Happenings, session_gap: int
) -> dict[str, Floats]:
    """Every built-in component, [N] float64 in its raw unit; `clicks` are those within their windows."""
    seen = visits(events, session_gap)
    off = events.where(events.kind == DISABLE)
    return {
        "sends": is_send.astype(np.float64),
        "clicks": intervals.count(clicks.user, clicks.at).astype(np.float64),
        "visits": intervals.count(seen.user, seen.at).astype(np.float64),
        "weekly_active_days": active_days(intervals, seen.user, seen.at),
        "disables": (intervals.count(off.user, off.at) > 0).astype(np.float64),
    }
