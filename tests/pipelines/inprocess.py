"""The ETL without Spark: the same functions on the same blocks in this process, a run in a fraction of a second.

What Spark itself does (partitions, shuffles, retries) is not here; tests that are about it use a session.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema

from pipelines import simulate as lake
from pipelines.config import Config
from pipelines.etl import flow, quality
from policies.simulator import simulate

Kernel = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


class Frame:
    """Partitions of batches, with the part of a Spark DataFrame that the ETL uses."""

    def __init__(self, partitions: list[list[pa.RecordBatch]], schema: pa.Schema) -> None:
        self.partitions, self.schema = partitions, schema

    def mapInArrow(self, kernel: Kernel, schema: Any) -> "Frame":
        return Frame([list(kernel(iter(part))) for part in self.partitions], to_arrow_schema(schema))

    def unionAll(self, other: "Frame") -> "Frame":
        return Frame(self.partitions + other.partitions, self.schema)

    def repartitionById(self, partitions: int, column: str) -> "Frame":
        found: list[list[pa.RecordBatch]] = [[] for _ in range(partitions)]
        for batch in (batch for part in self.partitions for batch in part):
            for row, place in enumerate(batch.column(column).to_pylist()):
                found[place].append(batch.slice(row, 1))
        return Frame(found, self.schema)

    def toArrow(self) -> pa.Table:
        # As Spark gives them back: by the schema that was announced, whose texts and bytes are small ones.
        tables = [pa.Table.from_batches([batch]).cast(self.schema) for part in self.partitions for batch in part]
        return pa.concat_tables([self.schema.empty_table(), *tables])


class Session:
    """The part of a Spark session that the ETL uses over plain Parquet; its own context and status tracker."""

    defaultParallelism = 2

    @property
    def sparkContext(self) -> "Session":
        return self

    def statusTracker(self) -> "Session":
        return self

    def getJobIdsForGroup(self, _: str) -> list[int]:
        return []

    def setJobGroup(self, *_: str) -> None:
        """Nobody watches."""

    def setLocalProperty(self, *_: str | None) -> None:
        """Nobody watches."""

    def range(self, start: int, end: int, step: int, partitions: int) -> Frame:
        schema = pa.schema([("id", pa.int64())])
        ids = range(start, end, step)
        parts = [[pa.record_batch([pa.array(ids[n::partitions], pa.int64())], schema)] for n in range(partitions)]
        return Frame(parts, schema)


def _no_suites(*found: Any, **_: Any) -> dict[str, Any]:
    folder = next(each for each in found if isinstance(each, Path))
    folder.mkdir(parents=True, exist_ok=True)
    return {"suites": [], "seconds": {}}


@contextmanager
def unjudged() -> Iterator[None]:
    """Without the quality suites, which have tests of their own: the few rows of a hostile day are no sample."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(quality, "check_profiles", _no_suites))
        stack.enter_context(patch.object(quality, "propensity_sums", lambda _: {}))
        yield


@contextmanager
def in_process(judged: bool = False) -> Iterator[Any]:
    """A session for `run_etl` without Spark, and unless `judged` without the quality suites."""
    with patch.object(flow, "DataFrame", Frame), nullcontext() if judged else unjudged():
        yield Session()


def simulated_log(config: Config) -> None:
    """The raw log of the configuration's world, and its transitions."""
    assert config.simulate is not None
    tables = lake.tables(simulate(config.simulate, config.seed))
    lake.write(tables, {name: getattr(config.data, name).path for name in tables})
    with in_process() as session:
        flow.run_etl(session, config)
