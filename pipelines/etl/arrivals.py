"""What arrived when: rows per dataset and arrival day, read before anything is made of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError
from pipelines.etl.blocks import Batches, arrival_day
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, UNKNOWN_DAY, USERS, Days, days_of

if TYPE_CHECKING:
    # Workers import this module for its kernel, and need none of these.
    from pyspark.sql import SparkSession

    from pipelines.config import Config
    from pipelines.etl.sources import Source

EPOCH = date(1970, 1, 1)
TIMES = ["user_id", "at", "logged", "day"]
SCHEMA = pa.schema(
    [
        ("day", pa.int32()),
        ("rows", pa.int64()),
        ("good", pa.int64()),
        ("logged", pa.int64()),
        ("first", pa.int64()),
        ("misplaced", pa.int64()),
        ("zone", pa.string()),
    ]
)


@dataclass(frozen=True)
class Arrived:
    """The rows of one dataset that arrived on one day."""

    day: int | None
    """Days since the epoch; None where nothing tells."""
    rows: int
    good: int
    """Those with a user and a time in order, neither late nor ahead of as_of."""
    logged: int | None
    """Latest `logged` of the good ones, us."""
    first: int | None
    """Earliest moment that the good ones can change anything, us."""
    misplaced: int
    """Rows that were logged on another day than that of their folder."""

    @property
    def text(self) -> str:
        """YYYY-MM-DD."""
        # A clock can be further ahead than Python's dates reach.
        return UNKNOWN_DAY if self.day is None else str(np.datetime64(self.day, "D"))


Arrivals = dict[int, list[Arrived]]
"""By dataset, in order of the day."""


def read_arrivals(
    spark: "SparkSession", sources: Iterable["Source"], as_of: int, max_lateness: int, days: Days | None
) -> Arrivals:
    """Count what arrived, of each dataset, on `days` (first and last; of users, until then) or ever; rows of no known
    day always count.

    Times in us. Raises InputError for a time zone of `users` that does not exist.
    """
    found: Arrivals = {}
    for source in sources:
        names = [*TIMES, *(["time_zone"] if source.code == USERS else [])]
        late = max_lateness if source.code != USERS else np.iinfo(np.int64).max
        counted = source.over(
            spark, _count(source.code, as_of, late, days_of(source.code, days)), SCHEMA, names
        ).toArrow()
        _check_zones(counted["zone"])
        found[source.code] = _by_day(counted.filter(pc.is_valid(counted["rows"])))
    return found


def arrivals_of(tables: Mapping[int, pa.Table], as_of: int, max_lateness: int) -> Arrivals:
    """What `read_arrivals` counts in raw datasets that lie in memory, by dataset, over all days; no zone is checked."""
    late = {code: np.iinfo(np.int64).max if code == USERS else max_lateness for code in tables}
    counts = {code: _counted(table.select(TIMES), code, as_of, late[code], None) for code, table in tables.items()}
    return {code: _by_day(pa.Table.from_batches([counted])) for code, counted in counts.items()}


def _by_day(counted: pa.Table) -> list[Arrived]:
    total = counted.group_by("day", use_threads=False).aggregate(
        [("rows", "sum"), ("good", "sum"), ("logged", "max"), ("first", "min"), ("misplaced", "sum")]
    )
    columns = ("day", "rows_sum", "good_sum", "logged_max", "first_min", "misplaced_sum")
    rows = [Arrived(*(row[name] for name in columns)) for row in total.to_pylist()]
    return sorted(rows, key=lambda row: (row.day is None, row.day))


def _count(code: int, as_of: int, max_lateness: int, days: Days | None) -> Callable[[Batches], Batches]:
    def run(batches: Batches) -> Batches:
        zones: set[str] = set()
        for batch in batches:
            table = pa.Table.from_batches([batch])
            if "time_zone" in table.column_names:
                zones.update(pc.unique(table["time_zone"]).drop_null().to_pylist())
            yield _counted(table, code, as_of, max_lateness, days)
        empty = [pa.nulls(len(zones), field.type) for field in SCHEMA][:-1]
        yield pa.record_batch([*empty, pa.array(sorted(zones), pa.string())], schema=SCHEMA)

    return run


def _counted(table: pa.Table, code: int, as_of: int, max_lateness: int, days: Days | None) -> pa.RecordBatch:
    day = arrival_day(table)
    lag = pc.subtract(table["logged"], table["at"])
    good = pc.and_(pc.is_valid(table["user_id"]), pc.and_(pc.greater_equal(lag, 0), pc.less_equal(lag, max_lateness)))
    good = pc.fill_null(pc.and_(good, pc.less_equal(table["logged"], as_of)), False)
    placed = pc.fill_null(pc.equal(arrival_day(table.set_column(3, "day", pa.nulls(len(day), pa.int32()))), day), True)
    counted = pa.table(
        {
            "day": day,
            "rows": pa.repeat(pa.scalar(1, pa.int64()), len(day)),
            "good": pc.cast(good, pa.int64()),
            "logged": pc.if_else(good, table["logged"], pa.scalar(None, pa.int64())),
            # A row of `users` changes nothing before it is known, however long it has held.
            "first": pc.if_else(good, table["logged" if code == USERS else "at"], pa.scalar(None, pa.int64())),
            "misplaced": pc.cast(pc.invert(placed), pa.int64()),
        }
    )
    if days is not None:
        inside = pc.and_(pc.greater_equal(day, days[0]), pc.less_equal(day, days[1]))
        counted = counted.filter(pc.fill_null(inside, True))
    sums = counted.group_by("day", use_threads=False).aggregate(
        [("rows", "sum"), ("good", "sum"), ("logged", "max"), ("first", "min"), ("misplaced", "sum")]
    )
    columns = [sums[name] for name in ("day", "rows_sum", "good_sum", "logged_max", "first_min", "misplaced_sum")]
    made = pa.table([*columns, pa.nulls(sums.num_rows, pa.string())], schema=SCHEMA)
    return made.combine_chunks().to_batches()[0] if made.num_rows else pa.RecordBatch.from_pylist([], schema=SCHEMA)


def _check_zones(zones: pa.ChunkedArray) -> None:
    for zone in pc.unique(zones).drop_null().to_pylist():
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            raise InputError(
                f"data.users: time_zone {zone!r} does not exist; give IANA names such as Europe/Berlin, or null for "
                "UTC."
            ) from None


def check_arrivals(arrivals: Arrivals) -> None:
    """Raise InputError where a dataset has no rows, or none that is in order."""
    for code in (DECISIONS, EVENTS):
        if code not in arrivals:
            continue
        rows = sum(day.rows for day in arrivals[code])
        if not rows:
            raise InputError(f"data.{NAMES[code]}: no rows; check its path and that the log was delivered.")
        if not any(day.good for day in arrivals[code]):
            raise InputError(
                f"data.{NAMES[code]}: none of its {rows} rows has a user, a time and a logged_at in order before "
                "etl.as_of; check the mapping of its time columns."
            )


def check_days(config: "Config", arrivals: Arrivals, first: int | None, last: int | None) -> None:
    """Raise InputError for an arrival day without good rows between `first` and `last` (by default those that there
    are), unless it is known."""
    known = set(config.etl.known_gaps)
    for code in (DECISIONS, EVENTS):
        there = {day.day for day in arrivals.get(code, []) if day.good and day.day is not None}
        if not there:
            continue
        low, high = min(there) if first is None else first, max(there) if last is None else last
        span = ((day, EPOCH + timedelta(days=day)) for day in range(low, high + 1))
        missing = [str(text) for day, text in span if day not in there and text not in known]
        if missing:
            listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise InputError(
                f"data.{NAMES[code]}: no row arrived on {listed}, between {EPOCH + timedelta(days=low)} and "
                f"{EPOCH + timedelta(days=high)}; deliver the missing days, or list them in etl.known_gaps if nothing "
                "happened then."
            )
