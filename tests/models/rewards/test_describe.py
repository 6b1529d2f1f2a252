"""A user-week in words: every event where it belongs, every component by name and unit, and nobody to be recognised."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.contract import Contract
from models.rewards.describe import Clock, clock_of, facts_of, in_words, number
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions

HOUR = 3_600_000_000
DAY = 24 * HOUR
FEATURES = ("notifications_on", "candidate_missing", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
REWARDS = ("sends", "clicks", "visits", "weekly_active_days", "disables", "minutes")
UNITS = {"minutes": "min read"}
MONDAY = 18_995 * DAY
"""2022-01-03 was a Monday."""

Rows = list[tuple[float, str, dict[str, float], dict[str, float]]]


def story(rows: Rows, days: float = 7.0, features: tuple[str, ...] = FEATURES, **columns: Any) -> tuple[Any, Weeks]:
    """One user's table: (hours since a Monday's midnight, action, state, reward) each, the last row at the end."""
    at = np.array([MONDAY + round(hours * HOUR) for hours, *_ in rows])
    actions = ("hold", "send", "badge")
    state = np.full((len(rows), len(features)), np.nan, dtype=np.float32)
    for row, (hours, _, given, _) in enumerate(rows):
        day, hour = divmod(hours, 24)
        turns = {"hour": 2 * np.pi * hour / 24, "weekday": 2 * np.pi * (day % 7) / 7}
        clock = {f"{name}_sin": np.sin(turn) for name, turn in turns.items()}
        clock |= {f"{name}_cos": np.cos(turn) for name, turn in turns.items()}
        told = {"notifications_on": 1.0, "candidate_missing": 0.0, **clock, **given}
        state[row] = [told[name] for name in features]
    reward = np.array([[given.get(name, 0.0) for name in REWARDS] for *_, given in rows])
    reward[:, 0] = [action != "hold" for _, action, *_ in rows]
    n = len(rows)
    legal = np.ones((n, 3), dtype=bool)
    legal[np.array([given.get("notifications_on") == 0 for _, _, given, _ in rows]), 1:] = False
    table = Transitions(
        contract=Contract(actions, features, REWARDS, UNITS),
        user=np.zeros(n, dtype=np.int64),
        user_id=np.array(["ann@example.org"], dtype=object),
        decided_at=at,
        state=state,
        legal=columns.pop("legal", legal),
        action=np.array([actions.index(action) for _, action, *_ in rows]),
        propensity=np.full(n, 0.5),
        estimated=np.zeros(n, dtype=bool),
        reward=reward,
        elapsed_days=np.append(np.diff(at), [DAY]) / DAY,
        terminal=columns.pop("terminal", np.zeros(n, dtype=bool)),
        truncated=np.arange(n) == n - 1,
        silent=columns.pop("silent", np.zeros(n, dtype=bool)),
        warm_up=np.zeros(n, dtype=bool),
        split=np.zeros(n, dtype=np.int8),
        version=0,
        fingerprint="test",
    )
    assert not columns
    return table, weeks_of(table, days)


WEEK: Rows = [
    (9 + 1 / 3, "send", {}, {"clicks": 1, "visits": 2, "weekly_active_days": 1.0}),
    (30, "hold", {"candidate_missing": 1.0}, {"weekly_active_days": 0.25}),
    (36, "hold", {"candidate_missing": 1.0}, {"weekly_active_days": 0.5}),
    (48, "hold", {}, {"clicks": 1}),
    (60.5, "badge", {}, {"disables": 1, "minutes": 12.25}),
    (72, "hold", {"notifications_on": 0.0}, {}),
    (96, "hold", {"notifications_on": 0.0}, {"visits": 3}),
    (177.4, "send", {}, {}),
]


def test_a_week_is_told_line_by_line() -> None:
    """From Monday 09:20 on; the last row is of the next week. Delta of the first seven: 177.4 h - 9.333 h = 7.00 d, of
    which weekly active 1.0 + 0.25 + 0.5 = 1.75 d, 25%."""
    table, weeks = story(WEEK)
    assert in_words(table, weeks, 0).splitlines() == [
        "7 decisions of one user, and what came of them in 7 days.",
        "Mon 09:20: sent; clicked, visited 2 times.",
        "Tue 06:00: held 2 times with nothing waiting; nothing came of it.",
        "Wed 00:00: held although something was waiting; clicked.",
        "Wed 12:30: sent badge; switched notifications off, minutes 12.2 min read.",
        "Thu 00:00: held while notifications were off; nothing came of it.",
        "Fri 00:00: held while notifications were off; visited 3 times.",
        "In all:",
        "- sends: 2 notifications",
        "- clicks: 2 clicks",
        "- visits: 5 sessions",
        "- weekly_active_days: 1.75 days, 25% of the time",
        "- disables: 1 users switching off",
        "- minutes: 12.2 min read",
    ]


def test_the_facts_add_up_to_the_totals() -> None:
    table, weeks = story(WEEK)
    facts = facts_of(table, weeks, 0)
    for name in REWARDS[1:]:
        total = weeks.totals[0, REWARDS.index(name)]
        assert sum(fact.earned.get(name, 0.0) for fact in facts) == pytest.approx(total)
    assert sum(fact.count for fact in facts) == 7
    assert facts[0].hours == 0.0
    assert [fact.until for fact in facts[:-1]] == pytest.approx([fact.hours for fact in facts[1:]])


def test_without_a_clock_times_are_hours_since_the_start() -> None:
    table, weeks = story(WEEK, features=("notifications_on", "candidate_missing"))
    assert clock_of(table, weeks, 0) is None
    assert [fact.when for fact in facts_of(table, weeks, 0)[:3]] == ["hour 0.0", "hour 20.7", "hour 38.7"]


def test_without_a_weekday_days_are_counted() -> None:
    table, weeks = story(WEEK, features=("hour_sin", "hour_cos"))
    assert [fact.when for fact in facts_of(table, weeks, 0)[:3]] == ["day 1, 09:20", "day 2, 06:00", "day 3, 00:00"]


def test_what_the_state_does_not_say_is_not_told() -> None:
    table, weeks = story(WEEK, features=("hour_sin", "hour_cos"))
    # Thursday: only hold was legal, but nothing says that notifications were off.
    assert [fact.why for fact in facts_of(table, weeks, 0)] == ["", "", "", "", "", "barred", "barred"][1:]


def test_an_unknown_hour_is_no_clock() -> None:
    rows: Rows = [(hours, action, {"hour_sin": np.nan}, reward) for hours, action, _, reward in WEEK]
    table, weeks = story(rows)
    assert facts_of(table, weeks, 0)[0].when == "hour 0.0"


@pytest.mark.parametrize("hours", [0.0, 23.9, 24.0, 47.99, 71.5, 167.95])
def test_midnight_is_of_the_day_that_begins(hours: float) -> None:
    rows: Rows = [(hours, "send", {}, {}), (hours + 168, "hold", {}, {})]
    table, weeks = story(rows)
    clock = clock_of(table, weeks, 0)
    assert clock is not None
    assert clock.hour == pytest.approx(hours % 24, abs=1e-4)
    assert clock.weekday == int(hours // 24) % 7


def test_a_second_week_keeps_the_clock_of_its_own_start() -> None:
    rows: Rows = [(9.0, "send", {}, {}), (9.0 + 7 * 24 + 20, "send", {}, {}), (9.0 + 14 * 24, "hold", {}, {})]
    table, weeks = story(rows)
    # The second week starts on Monday at 9:00; its first row is 20 hours later, on Tuesday at 5:00.
    assert len(weeks.id) == 2
    assert clock_of(table, weeks, 1) == Clock(pytest.approx(9.0, abs=1e-4), 0)
    (fact,) = facts_of(table, weeks, 1)
    assert (fact.hours, fact.when) == (20.0, "Tue 05:00")


def test_silence_and_a_closed_account_are_told() -> None:
    rows: Rows = [(9.0, "send", {}, {}), (33.0, "hold", {}, {}), (81.0, "send", {}, {})]
    ends = np.array([False, False, True])
    table, weeks = story(rows, silent=np.array([False, True, False]), terminal=ends)
    assert [line.split(": ", 1)[1] for line in in_words(table, weeks, 0).splitlines()[1:4]] == [
        "sent; nothing came of it.",
        "no decision for 2 days; nothing came of it.",
        "sent; closed the account.",
    ]


def test_nothing_says_who_or_on_which_date() -> None:
    table, weeks = story(WEEK)
    text = in_words(table, weeks, 0)
    assert "ann" not in text + repr(facts_of(table, weeks, 0))
    assert not re.search(r"20\d\d|\d{5,}", text)
    assert max(fact.until for fact in facts_of(table, weeks, 0)) < 200
    # Another person, some weeks later, with the same happenings: the same words.
    later = replace(
        table, user_id=np.array(["bob"], dtype=object), decided_at=table.decided_at + 21 * DAY, fingerprint="other"
    )
    assert in_words(later, weeks_of(later), 0) == in_words(table, weeks, 0)


def test_actions_without_hold_are_chosen(table_of: Callable[..., Transitions]) -> None:
    table = table_of([0, 0], state=[[0.0], [0.0]], reward=[[1.5], [0.0]], action=np.array([1, 0]))
    table = replace(table, contract=Contract(("left", "right"), ("f0",), ("column_of_mine",)))
    assert in_words(table, weeks_of(table, 1.0), 0).splitlines() == [
        "1 decision of one user, and what came of them in 1 day.",
        "hour 0.0: chose right; column_of_mine 1.5.",
        "In all:",
        "- column_of_mine: 1.5",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-2.0, "-2"), (0.12345, "0.123"), (1234.5, "1234"), (12.34, "12.3"), (1e-7, "1e-07")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
