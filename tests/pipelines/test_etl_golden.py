"""A tiny log by hand, with the arithmetic; and a click window, a session and a week, edge by edge."""

import numpy as np
import pytest

from pipelines.etl.features import (
    CLICK,
    DAY,
    HOUR,
    KINDS,
    PAGE_VIEW,
    SESSION_START,
    Happenings,
    People,
    Probes,
    Sends,
    known,
    local_clock,
    visits,
)
from pipelines.etl.rewards import Intervals, Notified, active_days, clicks_within

MINUTE = HOUR // 60


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def happened(*rows: tuple[int, int, int, int]) -> Happenings:
    """(at, logged, kind, decision) of user 0."""
    at, logged, kind, decision = (ints(*column) for column in zip(*rows, strict=True))
    return Happenings(np.zeros(len(at), np.int64), at, logged, kind.astype(np.int8), decision)


def test_active_days_of_three_visits() -> None:
    """Visits on days 0, 3 and 20: active on (0, 10] (the first two overlap) and (20, 27].

    (-1, 2] has 2 days of it, (2, 12] has 10 - 2 = 8, (12, 21.5] has 1.5, (21.5, 40] has 27 - 21.5 = 5.5.
    """
    edges = ints(-DAY, 2 * DAY, 12 * DAY, 21 * DAY + DAY // 2, 40 * DAY)
    user = np.zeros(4, np.int64)
    found = active_days(Intervals(user, edges[:-1], edges[1:]), np.zeros(3, np.int64), ints(0, 3, 20) * DAY)
    assert found.tolist() == [2.0, 8.0, 1.5, 5.5]
    # Another user's visits, before and after in code, change nothing.
    others = active_days(Intervals(user + 1, edges[:-1], edges[1:]), ints(0, 1, 1, 1, 2), ints(1, 0, 3, 20, 2) * DAY)
    assert others.tolist() == [2.0, 8.0, 1.5, 5.5]


def test_intervals_are_open_on_the_left_and_closed_on_the_right() -> None:
    intervals = Intervals(ints(0, 0, 0, 1), ints(0, 10, 10, 0), ints(10, 10, 20, 10))
    assert intervals.count(ints(0, 0, 0, 0, 1), ints(0, 10, 11, 20, 10)).tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("at", "decision", "counts"),
    [
        (100, 7, True),  # at the very moment of the send
        (100 + DAY, 7, True),  # at the end of the window
        (101 + DAY, 7, False),  # a microsecond too late
        (99, 7, False),  # before the send
        (200, 8, False),  # about a decision that sent nothing
        (200, -1, False),  # about nothing
    ],
)
def test_a_click_is_paid_within_the_window_of_its_own_send(at: int, decision: int, counts: bool) -> None:
    sent = Notified(ints(0, 1), ints(7, 8), ints(100, 100))
    clicks, send = clicks_within(happened((at, at, CLICK, decision)), sent, DAY)
    assert len(clicks.at) == counts
    assert send.tolist() == ([0] if counts else [])


@pytest.mark.parametrize(
    ("rows", "starts"),
    [
        # Views 20 minutes apart are one session; a view 31 minutes after the last one starts another.
        ([(0, 0, PAGE_VIEW), (20, 20, PAGE_VIEW), (40, 40, PAGE_VIEW), (71, 71, PAGE_VIEW)], [0, 71]),
        # Exactly 30 minutes is still the same session.
        ([(0, 0, PAGE_VIEW), (30, 30, PAGE_VIEW)], [0]),
        # A view that only became known later cannot stop one from starting a session.
        ([(0, 90, PAGE_VIEW), (20, 20, PAGE_VIEW)], [0, 20]),
        # Nor does the one that became known later count itself, if an earlier one was known by then.
        ([(0, 0, PAGE_VIEW), (20, 90, PAGE_VIEW), (40, 40, PAGE_VIEW)], [0, 40]),
        # A session start is always one, and explains the views after it.
        ([(0, 0, SESSION_START), (1, 1, PAGE_VIEW), (5, 5, SESSION_START)], [0, 5]),
        # Two views at one moment are one session.
        ([(0, 0, PAGE_VIEW), (0, 0, PAGE_VIEW)], [0]),
    ],
)
def test_sessions(rows: list[tuple[int, int, int]], starts: list[int]) -> None:
    found = visits(happened(*((at * MINUTE, logged * MINUTE, kind, -1) for at, logged, kind in rows)))
    assert (found.at // MINUTE).tolist() == starts


@pytest.mark.parametrize(
    ("utc", "zone", "hour", "weekday"),
    [
        ("2024-03-10T06:59:00", "America/New_York", 1 + 59 / 60, 6),  # Sunday, a minute before the clocks change
        ("2024-03-10T07:00:00", "America/New_York", 3.0, 6),
        ("2024-04-06T14:59:00", "Australia/Lord_Howe", 1 + 59 / 60, 6),  # +11:00; half an hour back at 15:00 UTC
        ("2024-04-06T15:00:00", "Australia/Lord_Howe", 1.5, 6),
        ("2024-02-29T20:00:00", "Asia/Kathmandu", 1.75, 4),  # +05:45, Friday there
        ("2024-02-29T20:00:00", None, 20.0, 3),
    ],
)
def test_local_clock(utc: str, zone: str | None, hour: float, weekday: int) -> None:
    at = np.array([utc], dtype="datetime64[us]").astype(np.int64)
    hours, weekdays = local_clock(at, np.array([zone], dtype=object))
    assert hours[0] == pytest.approx(hour)
    assert weekdays[0] == weekday


def test_an_attribute_is_known_once_it_is_valid_and_logged() -> None:
    """Score 1 holds from 10; score 2 from 20, but it was only logged at 30: until then 1 is what was known."""
    none = ints()
    people = People(ints(0, 0), ints(10, 20), np.array([None, None]), {"score": np.array([1.0, 2.0])}, ints(10, 30))
    probes = Probes(ints(0, 0, 0, 0), ints(10, 11, 29, 30), {})
    events = Happenings(none, none, none, np.empty(0, np.int8), none)
    sends = Sends(none, none, none)
    found = known(probes, sends, events, visits(events), people, 28 * DAY, (1.0, 10.0))["attribute:score"]
    assert np.isnan(found[0])
    assert found[1:].tolist() == [1.0, 1.0, 2.0]


def test_kinds_are_those_of_the_design() -> None:
    design = "delivered, click, dismiss, disable, enable, session_start, page_view, account_closed"
    assert ", ".join(KINDS) == design
