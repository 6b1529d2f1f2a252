"""Why no row of a dataset is in order: the first thing that goes wrong with a log whose times are not mapped yet."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError
from pipelines.etl.arrivals import Arrivals
from pipelines.etl.blocks import Batches, arrival_day
from pipelines.etl.buckets import ROW_ID, TIME_OF
from pipelines.etl.marks import REMEDIES, Marks, Plan, mark_times
from pipelines.etl.offenders import TIMES, form_of, part_of
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, NUMBER, TIME, Days

if TYPE_CHECKING:
    # Workers import this module for its kernel, and need neither.
    from pyspark.sql import SparkSession

    from pipelines.config import Config
    from pipelines.etl.sources import Source

NAMED_BY = re.compile(r"`([^`]+)`|(\w+)")
"""The names in a mapped expression, among them those of the log's own columns."""
READ = ["user_id", "row_id", "at", "logged", "found", "day"]
SCHEMA = pa.schema([("reason", pa.string()), ("rows", pa.int64()), ("example", pa.string())])


def check_usable(
    spark: "SparkSession",
    config: "Config",
    sources: Iterable["Source"],
    arrivals: Arrivals,
    plan: Plan,
    days: Days | None = None,
) -> None:
    """Raise InputError where decisions or events have rows and none is in order: reasons, an example and the remedy.

    `arrivals`: what arrived on `days` (None: ever), counted by the `as_of` of `plan`.
    """
    for source in sources:
        counted = arrivals[source.code]
        if (
            source.code not in (DECISIONS, EVENTS)
            or not any(day.rows for day in counted)
            or any(day.good for day in counted)
        ):
            continue
        mapped = getattr(config.data, NAMES[source.code]).columns
        found = source.over(spark, _reasons(source, mapped, plan, days), SCHEMA, READ).toArrow().to_pylist()
        counts: Counter[str] = Counter()
        for row in found:
            counts[row["reason"]] += row["rows"]
        if not counts:
            # Other rows lie there than were counted; `check_arrivals` says what there is to say.
            continue
        commonest, _ = counts.most_common(1)[0]
        example = next(row["example"] for row in found if row["reason"] == commonest)
        listed = ", ".join(f"{reason} {rows}" for reason, rows in counts.most_common())
        key = f"data.{NAMES[source.code]}"
        raise InputError(
            f"{key}: none of its {counts.total()} rows can be used: {listed}; found {example}: {REMEDIES[commonest]}, "
            f"or turn what stands there into one in {key}.columns (docs/your-log.md)."
        )


def _reasons(
    source: "Source", mapped: Mapping[str, str], plan: Plan, days: Days | None
) -> Callable[[Batches], Batches]:
    row_id, time = ROW_ID[source.code], TIME_OF[source.code]
    # A source holds a DataFrame, which does not travel to the workers.
    numbers = {column.name for column in source.columns if column.kind == NUMBER}
    names = {
        column.name: [column.name, *("".join(found) for found in NAMED_BY.findall(mapped.get(column.name, "")))]
        for column in source.columns
        if column.kind == TIME
    }

    def run(batches: Batches) -> Batches:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            if days is not None:
                day = arrival_day(table)
                inside = pc.and_(pc.greater_equal(day, days[0]), pc.less_equal(day, days[1]))
                table = table.filter(pc.fill_null(inside, True))
            marks = Marks(table.num_rows)
            mark_times(marks, table, plan, row_id, time)
            reasons = marks.reasons()
            found = [
                (
                    reason,
                    pc.sum(pc.equal(reasons, reason)).as_py(),
                    _example(table, reasons, reason, time, numbers, names),
                )
                for reason in pc.unique(reasons).drop_null().to_pylist()
            ]
            yield pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in found], SCHEMA)

    return run


def _example(
    table: pa.Table,
    reasons: pa.Array,
    reason: str,
    time: str,
    numbers: Collection[str],
    names: Mapping[str, Collection[str]],
) -> str:
    """What is wrong with the first such row: its ids, the form of its time where it could not be read, else its times.

    9 stands for a digit and a for a letter: a column mapped by mistake may say who somebody is, and the form is enough.
    """
    row = table.slice(pc.index(reasons, reason).as_py(), 1).to_pylist()[0]
    if reason == "oversized_user_id":
        return f"user_id of {len(row['user_id'].encode()):,} bytes"
    missing = reason.removeprefix("missing_")
    if missing != reason and missing not in TIMES:
        return f"{missing} null"
    if missing in TIMES and row["found"] and (part := part_of(row["found"], missing, numbers)):
        return _masked(part, names[missing])
    # A clock can be further ahead than Python's dates reach.
    return ", ".join(
        f"{name} {'null' if at is None else np.datetime64(at, 'us')}"
        for name, at in ((time, row["at"]), ("logged_at", row["logged"]))
    )


def _masked(part: str, names: Collection[str]) -> str:
    """`NAME=text, NAME=text` with the form of each text; only what is one of the names is taken for one."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pieces = re.split(rf"((?:^|, )(?:{known})=)", part)
    return "".join(piece if place % 2 else form_of(piece) for place, piece in enumerate(pieces))
