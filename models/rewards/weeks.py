"""User-weeks: the stretches of a log that people compare, and what each of them earned."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.columns import MICROSECONDS_PER_DAY
from models.errors import InputError
from models.table import Transitions

ID_LENGTH = 16


@dataclass(frozen=True)
class Weeks:
    """W stretches of equal length in a table of N transitions, sorted as the table is; K reward components."""

    id: NDArray[np.object_]
    """[W] a name that says nothing of the user: a hash of who, when and how long."""
    user: NDArray[np.int64]
    """[W] code in the table."""
    start: NDArray[np.int64]
    """[W] us, UTC."""
    first: NDArray[np.int64]
    """[W] place of its first row."""
    end: NDArray[np.int64]
    """[W] place after its last row: a stretch is the rows first .. end - 1."""
    totals: NDArray[np.float64]
    """[W, K] sum of each component over its rows, raw units."""
    days: NDArray[np.float64]
    """[W] sum of Delta over its rows: near the length asked for, as rows belong to the stretch they begin in."""

    def places(self, ids: NDArray[np.object_] | list[str]) -> NDArray[np.int64]:
        """Where each of `ids` is. Raises InputError naming the first that is not among them."""
        known = {name: place for place, name in enumerate(self.id)}
        for name in ids:
            if name not in known:
                raise InputError(
                    f"answers: {name!r} is none of the {len(self.id)} user-weeks of this log; answers belong to the "
                    "questions, and the version of the transitions, that they were asked about."
                )
        return np.array([known[name] for name in ids], dtype=np.int64)

    def only(self, places: NDArray[np.int64]) -> "Weeks":
        """Those at `places`."""
        return Weeks(**{name: values[places] for name, values in vars(self).items()})

    def sums(self, of_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[W, ...] sums over each stretch of a quantity `of_rows` [N, ...]."""
        before = np.concatenate([np.zeros((1, *of_rows.shape[1:])), np.cumsum(of_rows, axis=0)])
        found: NDArray[np.float64] = before[self.end] - before[self.first]
        return found


def weeks_of(table: Transitions, days: float = 7.0, rows: NDArray[np.bool_] | None = None) -> Weeks:
    """The whole stretches of `days` days of every user of `table`, one after another from the user's first row.

    Only rows marked in `rows` [N] count (those past the warm-up by default). A stretch is whole where nothing of it was
    left out and its user's rows go on to its end, or their account closed in it; what is left at the end of a user's
    log belongs to none.

    Raises InputError where `days` is not positive or the log has no whole stretch.
    """
    if not days > 0:
        raise InputError(f"learned.days is {days}; it must be above 0.")
    kept = np.flatnonzero(~table.warm_up if rows is None else rows & ~table.warm_up)
    if not len(kept):
        raise _too_short(table, days)
    user, at = table.user[kept], table.decided_at[kept]
    opens = np.append(True, user[1:] != user[:-1])
    head = np.maximum.accumulate(np.where(opens, np.arange(len(kept)), 0))
    length = round(days * MICROSECONDS_PER_DAY)
    number = (at - at[head]) // length
    # Of what was left out between two rows, by `rows` or as an unusable row, nobody knows what it earned.
    after_gap = ~opens & ((kept != np.roll(kept, 1) + 1) | np.roll(table.truncated[kept], 1))
    fresh = opens | (number != np.roll(number, 1)) | after_gap
    begin = np.flatnonzero(fresh)
    stop = np.append(begin[1:], len(kept))
    first, end = kept[begin], kept[stop - 1] + 1
    start = at[head[begin]] + number[begin] * length
    closed = table.decided_at[end - 1] + table.elapsed_days[end - 1] * MICROSECONDS_PER_DAY
    lone = np.append(True, (start[1:] != start[:-1]) | (user[begin][1:] != user[begin][:-1]))[: len(begin)]
    alone = lone & np.append(lone[1:], True)[: len(begin)]
    whole = alone & ~after_gap[begin] & ((closed >= start + length) | table.terminal[end - 1])
    if not whole.any():
        raise _too_short(table, days)
    first, end, start, who = first[whole], end[whole], start[whole], user[begin][whole]
    named = [f"{table.user_id[u]}\0{t}\0{length}" for u, t in zip(who, start, strict=True)]
    ids = np.array([hashlib.sha256(each.encode()).hexdigest()[:ID_LENGTH] for each in named], dtype=object)
    bare = Weeks(ids, who, start, first, end, np.zeros((0, 0)), np.zeros(0))
    return replace(bare, totals=_settled(bare.sums(table.reward)), days=bare.sums(table.elapsed_days))


def _settled(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """[W, K] each column on a grid of 2^-40 of its largest value: what differs by the rounding of sums alone is equal,
    and no weight is learned from it."""
    _, exponent = np.frexp(np.abs(totals).max(axis=0))
    step = np.ldexp(1.0, exponent - 40)
    found: NDArray[np.float64] = np.round(totals / step) * step
    return found


def _too_short(table: Transitions, days: float) -> InputError:
    return InputError(
        f"learned.days: none of {len(table.user_id)} users has {days:g} whole days of decisions past the warm-up; a "
        "longer log, or fewer days, are needed."
    )
