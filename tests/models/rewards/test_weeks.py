"""User-weeks against a loop that asks of each stretch by itself, and of what belongs to none."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.columns import MICROSECONDS_PER_DAY as DAY
from models.errors import InputError
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions


def naive(table: Transitions, days: float, rows: NDArray[np.bool_]) -> list[tuple[int, int, int, int, list[float]]]:
    """(user, start, first, end, totals) of every whole stretch."""
    found = []
    for user in range(len(table.user_id)):
        mine = [i for i in range(len(table.user)) if table.user[i] == user]
        counted = [i for i in mine if rows[i] and not table.warm_up[i]]
        if not counted:
            continue
        head, length = table.decided_at[counted[0]], round(days * DAY)
        start = head
        while start <= table.decided_at[mine[-1]]:
            inside = [i for i in mine if start <= table.decided_at[i] < start + length]
            whole = bool(inside) and all(i in counted for i in inside)
            if whole:
                before = inside[0] - 1
                gap = inside[0] != counted[0] and (before not in counted or table.truncated[before])
                holes = any(table.truncated[i] for i in inside[:-1])
                last = inside[-1]
                ends = table.decided_at[last] + table.elapsed_days[last] * DAY
                if not gap and not holes and (ends >= start + length or table.terminal[last]):
                    totals = [float(sum(table.reward[i, k] for i in inside)) for k in range(table.reward.shape[1])]
                    found.append((user, int(start), inside[0], last + 1, totals))
            start += length
    return found


def test_stretches_are_those_of_a_loop(table_of: Callable[..., Transitions]) -> None:
    rng = np.random.default_rng(4)
    users, at, elapsed, truncated, terminal = [], [], [], [], []
    for user in range(40):
        steps = rng.choice([0.4, 1.0, 2.5, 9.0], p=[0.3, 0.4, 0.25, 0.05], size=rng.integers(1, 30))
        times = np.concatenate([[0.0], np.cumsum(steps)[:-1]]) + rng.random()
        hole = (rng.random(len(steps)) < 0.05) & (np.arange(len(steps)) < len(steps) - 1)
        ends = rng.random() < 0.3
        users += [user] * len(steps)
        at += times.tolist()
        elapsed += np.where(hole, steps / 2, steps).tolist()
        truncated += [*hole.tolist()[:-1], not ends]
        terminal += [*([False] * (len(steps) - 1)), ends]
    n = len(users)
    table = table_of(
        users,
        state=np.zeros((n, 1)),
        reward=rng.integers(0, 5, (n, 2)),
        decided_at=np.round(np.array(at) * DAY).astype(np.int64),
        elapsed_days=np.array(elapsed),
        truncated=np.array(truncated),
        terminal=np.array(terminal),
        warm_up=rng.random(n) < 0.02,
    )
    for rows in (np.ones(n, dtype=bool), rng.random(n) < 0.97):
        for days in (7.0, 2.5):
            weeks = weeks_of(table, days, rows)
            wanted = naive(table, days, rows)
            assert len(wanted) > 20
            stretches = zip(weeks.user, weeks.start, weeks.first, weeks.end, weeks.totals.tolist(), strict=True)
            assert [(int(u), int(s), int(f), int(e), t) for u, s, f, e, t in stretches] == wanted
            spent = [table.elapsed_days[first:end].sum() for _, _, first, end, _ in wanted]
            assert weeks.days == pytest.approx(spent)


def week(table_of: Callable[..., Transitions], **columns: NDArray[np.bool_]) -> Transitions:
    """One user, a row a day for 14 days, each earning 1."""
    return table_of([0] * 14, state=np.zeros((14, 1)), reward=np.ones(14), **columns)


def test_two_weeks_of_a_row_a_day(table_of: Callable[..., Transitions]) -> None:
    weeks = weeks_of(week(table_of))
    assert weeks.first.tolist() == [0, 7]
    assert weeks.end.tolist() == [7, 14]
    assert weeks.totals.tolist() == [[7.0], [7.0]]
    assert weeks.days.tolist() == [7.0, 7.0]
    assert weeks.sums(np.arange(14.0)).tolist() == [21.0, 70.0]  # 0 + .. + 6, and 7 + .. + 13
    assert weeks.places([weeks.id[1], weeks.id[0]]).tolist() == [1, 0]


def test_a_name_says_nothing_of_the_user_and_stays_when_others_are_left_out(
    table_of: Callable[..., Transitions],
) -> None:
    table = table_of([0] * 7 + [1] * 7, state=np.zeros((14, 1)), reward=np.ones(14))
    weeks = weeks_of(table)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in weeks.id)
    assert weeks_of(table.where(table.user == 1)).id.tolist() == weeks.id[1:].tolist()


@pytest.mark.parametrize(
    ("column", "row", "left"),
    [("truncated", 3, [7]), ("truncated", 6, [0]), ("warm_up", 10, [0]), ("warm_up", 0, [1])],
)
def test_a_week_with_a_gap_is_not_whole(
    table_of: Callable[..., Transitions], column: str, row: int, left: list[int]
) -> None:
    """What an unusable row, or one left out, would have earned is unknown: not 0. Before the first row nothing is."""
    marked = np.zeros(14, dtype=bool)
    marked[row] = True
    if column == "truncated":
        marked[13] = True
    assert weeks_of(week(table_of, **{column: marked})).first.tolist() == left


def test_a_closed_account_ends_a_week_and_a_watermark_does_not(table_of: Callable[..., Transitions]) -> None:
    closed = week(table_of, terminal=np.arange(14) == 13)
    cut = replace(closed, decided_at=closed.decided_at + np.arange(14) // 13 * DAY // 2)
    assert weeks_of(cut).first.tolist() == [0, 7]
    short = closed.where(np.arange(14) < 12)
    assert weeks_of(short).first.tolist() == [0]
    ended = replace(short, terminal=np.arange(12) == 11, truncated=np.zeros(12, dtype=bool))
    assert weeks_of(ended).first.tolist() == [0, 7]


def unknown_week(weeks: Weeks) -> None:
    weeks.places([weeks.id[0], "nobody"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: weeks_of(table, 0.0), r"learned\.days is 0\.0; it must be above 0"),
        (lambda table: weeks_of(table, float("nan")), r"learned\.days is nan"),
        (lambda table: weeks_of(table, 15.0), r"none of 1 users has 15 whole days.*a longer log, or fewer days"),
        (lambda table: weeks_of(table, 7.0, np.zeros(14, dtype=bool)), r"learned\.days: none of 1 users"),
        (lambda table: unknown_week(weeks_of(table)), r"'nobody' is none of the 2 user-weeks of this log"),
    ],
)
def test_bad_input(table_of: Callable[..., Transitions], call: Callable[[Transitions], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(week(table_of))


def test_a_week_of_another_length_has_another_name(table_of: Callable[..., Transitions]) -> None:
    """Else answers about weeks would be read as answers about their first days."""
    table = table_of([0] * 8, state=np.zeros(8), reward=np.arange(8.0))
    weeks, single = weeks_of(table, 7.0), weeks_of(table, 1.0)
    assert weeks.start[0] == single.start[0]
    assert not set(weeks.id) & set(single.id)


def test_what_differs_by_the_rounding_of_sums_alone_is_equal(table_of: Callable[..., Transitions]) -> None:
    """300 weeks of 21 rows of a third: 7 each, whatever was summed before; and a real difference stays one."""
    rows, users = 22, 300
    reward = np.stack([np.full(rows * users, 1 / 3), np.zeros(rows * users)], axis=1)
    reward[0, 1] = 1e-6
    reward[5, 1] = 1.0
    table = table_of(
        np.repeat(np.arange(users), rows).tolist(),
        state=np.zeros(rows * users),
        reward=reward,
        decided_at=np.tile(np.arange(rows) * DAY // 3, users),
        elapsed_days=np.full(rows * users, 1 / 3),
    )
    found = weeks_of(table, 7.0)
    assert len(found.id) == users
    assert len(set(found.totals[:, 0])) == 1
    assert found.totals[0, 0] == pytest.approx(7.0, rel=1e-11)
    assert found.totals[0, 1] == pytest.approx(1 + 1e-6, rel=1e-11)
