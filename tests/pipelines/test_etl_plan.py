"""How much work a run of the ETL is, counted rather than timed: shuffles, rows sent to the driver, steps under skew."""

import math
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from models.contract import REWARD_PREFIX
from pipelines.config import validate
from pipelines.etl import features
from pipelines.etl.buckets import PARTIAL, RESULT, TRANSITIONS, run_buckets
from pipelines.etl.features import HOUR, Ints
from pipelines.etl.flow import run_etl, shuffled
from pipelines.etl.history import mark
from pipelines.etl.schemas import DECISIONS, EVENTS
from pipelines.etl.sources import open_sources
from pipelines.etl.transitions import transitions
from tests.pipelines.hostile import PLAN, SCHEMAS, START, Row, a_log, configured, finish, tree, write_days, write_lake
from tests.pipelines.inprocess import Frame, in_process

MAPPED = {"decisions": "action", "events": "kind", "users": "time_zone"}
"""A text column of each dataset; an expression over it is Spark's to read."""
SESSION = HOUR // 2


@pytest.mark.parametrize("mapped", [False, True], ids=["plain Parquet", "through Spark"])
def test_the_raw_rows_are_shuffled_once_and_by_bucket(spark: SparkSession, tmp_path: Path, mapped: bool) -> None:
    write_lake(a_log(3, 5), tmp_path, 2)
    made = tree(tmp_path, "run")
    for name, column in MAPPED.items():
        made["data"][name] |= {"columns": {column: f"concat({column}, '')"}} if mapped else {}
    sources = open_sources(spark, validate(made, "test"), range(3), None)
    assert [source.frame is not None for source in sources] == [mapped] * 3
    # The kernel is planned, not run, and of its job only what it sends back matters to the plan.
    job: Any = None
    blocks = shuffled(spark, sources, 8, None).mapInArrow(run_buckets(job), from_arrow_schema(RESULT))
    plan = blocks._jdf.queryExecution().executedPlan().toString()
    exchanges = [line.strip() for line in plan.splitlines() if "Exchange" in line]
    assert len(exchanges) == 1, plan
    assert "bucket#" in exchanges[0]
    assert ", 8" in exchanges[0]
    assert not any(word in plan for word in ("Sort", "Join", "Window", "Aggregate")), plan


def sent_back(folder: Path, log: list[Row]) -> tuple[int, Counter[str], int]:
    """A run over the log: events read, and rows of each kind and rows of the partials that reached the driver."""
    folder.mkdir()
    write_days(log, folder)
    seen: list[pa.Table] = []
    as_usual = Frame.toArrow

    def recorded(frame: Frame) -> pa.Table:
        seen.append(as_usual(frame))
        return seen[-1]

    with in_process() as session, patch.object(Frame, "toArrow", recorded):
        report = run_etl(session, configured(folder, buckets=4))
    (results,) = [table for table in seen if table.schema.names == RESULT.names]
    rows = results.to_pylist()
    partials = [pa.ipc.open_stream(row["payload"]).read_all() for row in rows if row["kind"] == PARTIAL]
    kinds = Counter(row["kind"] for row in rows)
    return report["rows"]["events"]["read"], kinds, sum(partial.num_rows for partial in partials)


def test_no_row_comes_to_the_driver(tmp_path: Path) -> None:
    log = a_log(5, 20)
    again = [{**row, "row_id": row["row_id"] and row["row_id"] + "-again"} for row in log if row["dataset"] == EVENTS]
    once, twice = sent_back(tmp_path / "once", log), sent_back(tmp_path / "twice", finish(log + again))
    assert twice[0] == 2 * once[0] > 0
    assert once[1][TRANSITIONS] > 0
    assert twice[1:] == once[1:]


def views(count: int) -> dict[int, pa.Table]:
    """One user with one decision and so many page views within a session's gap, the last of them logged first."""
    decision: Row = {"user_id": "u", "at": START, "logged": START, "row_id": "d", "label": "hold", "propensity": 0.5}
    decision |= {"context:relevance": 0.5, "category:topic": "news", "outcome:steps": 1.0}
    nth = np.arange(count)
    one = {"user_id": "u", "label": "page_view"}
    columns: dict[str, Any] = {
        "at": START + HOUR + nth * (SESSION // count),
        "logged": START + 2 * HOUR + (count - nth),
        "row_id": pa.array(nth).cast(pa.string()),
    }
    columns |= {name: pa.repeat(value, count) for name, value in one.items()}
    schema = SCHEMAS[EVENTS]
    full = {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in schema}
    return {DECISIONS: pa.Table.from_pylist([decision], SCHEMAS[DECISIONS]), EVENTS: pa.table(full, schema=schema)}


def worked(count: int) -> list[tuple[int, int, int]]:
    """(ranges, levels, elements compared) of every search for a least value among the page views of one user."""
    found, as_usual, minimum = [], features._least, np.minimum

    def counted(values: Ints, first: Ints, last: Ints) -> Ints:
        asked: list[int] = []
        halved: list[int] = []

        def least(a: Ints, b: Ints) -> Ints:
            # A level answers the ranges of its length, and but for the last makes the minima of twice the length.
            (asked if len(asked) == len(halved) else halved).append(len(a))
            return minimum(a, b)

        with patch.object(np, "minimum", least):
            answer = as_usual(values, first, last)
        found.append((len(first), len(asked), sum(asked) + sum(halved)))
        return answer

    with patch.object(features, "_least", counted):
        made = transitions(mark(views(count), PLAN), PLAN)
    # Each view was known before every earlier one, so that none explains it: all start a session.
    assert made[f"{REWARD_PREFIX}visits"][0].as_py() == count
    return found


def test_one_user_with_most_events_costs_no_more_than_sorting_them() -> None:
    count = 200_000
    ((ranges, levels, elements),) = worked(count)
    assert ranges == count - 1
    assert levels <= math.ceil(math.log2(count)) == 18
    assert elements <= count * (levels + 1)
    ((ranges, deeper, _),) = worked(2 * count)
    assert ranges == 2 * count - 1
    assert deeper <= levels + 1
