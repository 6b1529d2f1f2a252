"""The arithmetic under the kernels against definitions spelled out row by row, on random and unkind data."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.etl.features import (
    CLICK,
    DAY,
    HOUR,
    KINDS,
    PAGE_VIEW,
    QUARTER,
    SESSION_START,
    Happenings,
    Ints,
    Keys,
    Probes,
    Seeing,
    Seen,
    local_clock,
    visits,
)
from pipelines.etl.history import mark
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.transitions import transitions
from tests.pipelines.hostile import PLAN, START, ZONES, Row, a_decision, a_user, an_event, finish, tables_of

USERS_AT_MOST = 4
TIMES = st.integers(-30, 30)
WHO = st.integers(0, USERS_AT_MOST - 1)
quick = settings(max_examples=150, deadline=None)


def ints(values: Any) -> Ints:
    return np.array(list(values), dtype=np.int64)


# Keys


@quick
@given(bounds=st.lists(TIMES, min_size=1, max_size=5), moments=st.lists(st.tuples(WHO, TIMES), min_size=1, max_size=30))
def test_keys_are_in_the_order_of_user_and_time(bounds: list[int], moments: list[tuple[int, int]]) -> None:
    """Inside [first, last] exactly; outside, all that a comparison with something inside can tell."""
    first, last = min(bounds), max(bounds)
    keys = Keys.over(USERS_AT_MOST, ints(bounds))
    found = keys(*(ints(column) for column in zip(*moments, strict=True))).tolist()
    for (user, at), key in zip(moments, found, strict=True):
        for (other, then), theirs in zip(moments, found, strict=True):
            if user != other:
                assert (key < theirs) == (user < other)
            elif first <= at <= last:
                assert (key < theirs, key == theirs) == (at < then, at == then)
            elif (at < first) == (then < first) and (at > last) == (then > last):
                assert key == theirs


@pytest.mark.parametrize("users", [1, 2, 3, 40_000])
def test_keys_fill_63_bits_and_no_more(users: int) -> None:
    """width = last - first + 3, and users · width must stay below 2^63."""
    widest = ((1 << 63) - 1) // users
    first = -(1 << 61)
    keys = Keys.over(users, ints([first, first + widest - 3]))
    ends = keys(ints([0, users - 1, users - 1]), ints([first - 5, first, first + widest + 5]))
    assert keys.width == widest
    assert ends.tolist() == [0, (users - 1) * widest + 1, users * widest - 1]
    with pytest.raises(OverflowError, match=f"{users} users over .* days do not fit one key"):
        Keys.over(users, ints([first, first + widest - 2]))


def test_keys_of_nothing() -> None:
    assert Keys.over(0)(ints([]), ints([])).tolist() == []
    assert Keys.over(3, ints([])).width == 3


# What a probe had seen

ROWS = st.lists(st.tuples(WHO, TIMES, TIMES, TIMES), max_size=40)
"""(user, at, visible, last); a row may become visible only after its window ended, before or after it happened."""
ASKED = st.lists(st.tuples(WHO, TIMES), min_size=1, max_size=20)


def seen_of(rows: list[tuple[int, int, int, int]], asked: list[tuple[int, int]]) -> tuple[Seen, Ints]:
    """By user and time, and the end of each row's window."""
    columns = zip(*rows, strict=True) if rows else ((), (), (), ())
    user, _, visible, last = (ints(column) for column in columns)
    who, at = (ints(column) for column in zip(*asked, strict=True))
    probes = Probes(who, at, {})
    keys = Keys.over(USERS_AT_MOST, probes.at)
    return Seen(Seeing(keys, probes), user, visible), last


@quick
@given(rows=ROWS, asked=ASKED)
def test_what_a_probe_counts(rows: list[tuple[int, int, int, int]], asked: list[tuple[int, int]]) -> None:
    rows = sorted(rows, key=lambda row: row[:2])
    seen, last = seen_of(rows, asked)
    wanted = [sum(who == user and visible <= t <= end for who, _, visible, end in rows) for user, t in asked]
    assert seen.count(last).tolist() == wanted
    assert seen.until(seen.probe.keys(seen.user, last)).tolist() == wanted
    # Without an end, all that was ever seen.
    ever = [sum(who == user and visible <= t for who, _, visible, _ in rows) for user, t in asked]
    assert seen.count(np.full(len(rows), 31)).tolist() == ever


@quick
@given(rows=ROWS, asked=ASKED)
def test_the_latest_row_that_a_probe_had_seen(
    rows: list[tuple[int, int, int, int]], asked: list[tuple[int, int]]
) -> None:
    """By the time it happened, not by when it came to be known."""
    rows = sorted(rows, key=lambda row: row[:2])
    seen, _ = seen_of(rows, asked)
    assert seen.latest().tolist() == [
        max((n for n, (who, _, visible, _) in enumerate(rows) if who == user and visible <= t), default=-1)
        for user, t in asked
    ]


# Sessions

SHOWN = st.lists(
    st.tuples(
        WHO, st.integers(0, 25), st.sampled_from([0, 0, 0, 1, 3, 8, 20]), st.sampled_from([SESSION_START, PAGE_VIEW])
    ),
    max_size=40,
)
"""(user, at, how much later it was logged, kind)"""


@quick
@given(shown=SHOWN, gap=st.sampled_from([0, 1, 3, 6]), seed=st.integers(0, 99))
def test_visits_are_those_of_the_definition(shown: list[tuple[int, int, int, int]], gap: int, seed: int) -> None:
    """A page view starts a session unless a row before it, logged no later, is at most the gap away: in O(n²)."""
    rows = [(user, at, at + lag, kind) for user, at, lag, kind in shown]
    rows += [(user, at, logged, CLICK) for user, at, logged, _ in rows[:5]]
    random.Random(seed).shuffle(rows)
    wanted = []
    # At one instant, first logged first, and a session start before the views that it explains.
    ordered = sorted(row for row in rows if row[3] != CLICK)
    for place, (user, at, logged, kind) in enumerate(ordered):
        before = [row for row in ordered[:place] if row[0] == user and row[1] >= at - gap and row[2] <= logged]
        if kind == SESSION_START or not before:
            wanted.append((user, at, logged, kind))
    columns = [ints(column) for column in zip(*rows, strict=True)] if rows else [ints([])] * 4
    given_rows = Happenings(columns[0], columns[1], columns[2], columns[3].astype(np.int8), columns[0] * 0 - 1)
    found = visits(given_rows, gap)
    assert list(zip(*(c.tolist() for c in (found.user, found.at, found.logged, found.kind)), strict=True)) == wanted


def test_the_kinds_are_in_the_order_that_the_definition_takes() -> None:
    assert (KINDS[SESSION_START], KINDS[PAGE_VIEW]) == ("session_start", "page_view")
    assert SESSION_START < PAGE_VIEW


# Clocks


@settings(max_examples=40, deadline=None)
@given(
    near=st.lists(st.tuples(st.integers(0, 400 * DAY), st.sampled_from(ZONES)), min_size=1, max_size=30),
    far=st.lists(st.integers(-200 * 365, 300 * 365), max_size=3),
)
def test_local_clock_is_that_of_the_time_zones(near: list[tuple[int, str | None]], far: list[int]) -> None:
    """Dense and sparse, and around every change of the clock to the microsecond."""
    spring = int(datetime(2024, 3, 10, 7, tzinfo=UTC).timestamp()) * 1_000_000
    moments = [(START + at, zone) for at, zone in near]
    moments += [(START + days * DAY + QUARTER // 3, None) for days in far]
    moments += [(spring + each, "America/New_York") for each in (-1, 0, 1, HOUR - 1)]
    hours, weekdays = local_clock(ints(at for at, _ in moments), np.array([zone for _, zone in moments], dtype=object))
    for (at, zone), hour, weekday in zip(moments, hours.tolist(), weekdays.tolist(), strict=True):
        clock = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).astimezone(ZoneInfo(zone or "UTC"))
        since = clock.replace(tzinfo=None) - clock.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        assert hour == pytest.approx(since / timedelta(hours=1), abs=1e-9)
        assert weekday == clock.weekday()


# Users whose times span too much for one key

LATE = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
MANY = 1400
"""2^63 us are 292,271 years: as many users over the 230 years from 1970 to 2200 do not fit, 1,270 would."""


def centuries(seed: int) -> list[Row]:
    """Users of 1970, of 2200 and of both, and among them some of 2024 who do everything that hurts."""
    rng, rows = random.Random(seed), []
    for number in range(MANY):
        user = f"u{number:04d}"
        if number % 25 == 0:
            rows += a_user(rng, user)
            continue
        eras = [0, LATE] if number % 7 == 0 else [rng.choice([0, LATE])]
        for place, era in enumerate(eras):
            at = era + rng.randrange(20 * DAY)
            rows += [{**a_decision(rng, user, 10 * place + n, at + n * HOUR), "logged": at + n * HOUR} for n in (0, 1)]
            event = {**an_event(rng, user, place, at + 2 * HOUR, 1), "logged": at + 2 * HOUR}
            rows.append({**event, "label": "click", "decision_id": f"d{10 * place}"})
        zone = {"time_zone": rng.choice(ZONES), "attribute:tenure": 5.0, "attribute_category:plan": "free"}
        rows.append({"dataset": USERS, "user_id": user, "at": -DAY, "logged": None, **zone})
    rng.shuffle(rows)
    return finish(rows)


def test_users_of_more_centuries_than_a_key_holds_are_made_apart() -> None:
    """In halves, as often as it takes: the rows are those of each user alone."""
    end = LATE + 60 * DAY
    # A silent row a week for two centuries would prove nothing more.
    plan = replace(PLAN, as_of=end, watermark=end - DAY, log_start=0, max_gap=2 * end)
    tables = tables_of(centuries(3))
    with pytest.raises(OverflowError):
        Keys.over(MANY, ints([0, end]))
    together = transitions(mark(tables, plan), plan)
    users = sorted(set(tables[DECISIONS]["user_id"].to_pylist()))
    assert len(users) == MANY
    groups = [[user] for user in users[:30]] + [users[first : first + 100] for first in range(30, MANY, 100)]
    apart = []
    for group in groups:
        mine = {code: table.filter(pc.is_in(table["user_id"], pa.array(group))) for code, table in tables.items()}
        apart.append(transitions(mark(mine, plan), plan))
    assert together.equals(pa.concat_tables(apart))
    assert together.num_rows > 2 * MANY * 0.8
    # Both centuries are there, each with its own clicks.
    made = together.select(["ds", "reward_clicks"]).to_pylist()
    assert {row["ds"][:4] for row in made} == {"1970", "2024", "2200"}
    for year in ("1970", "2200"):
        assert sum(row["reward_clicks"] or 0 for row in made if row["ds"].startswith(year)) > 50
    assert tables[EVENTS].num_rows > MANY
