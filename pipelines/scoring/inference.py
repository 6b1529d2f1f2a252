"""A policy over a table of states that is already there: what its networks say, and the whole decision under a quota.

| column                       | type          | meaning |
|------------------------------|---------------|---------|
| candidate_id, user_id        | string        | as in the scores table |
| decide_at                    | timestamp     | UTC |
| state                        | array<float>  | [S] in the order of the contract, raw units; null or NaN where unknown |
| notifications_on, local_hour, sends_24h, sends_7d, hours_since_send | double | what limits read, see `constraints.legal_actions` |

It is a DataFrame, or a folder of plain Parquet files, which the tasks then read with Arrow themselves. Asking for the
networks alone needs no column but the state. A decision takes two passes, as a night does: every row is judged once and
laid aside with its part of the volume, one price is found, and the rows are drawn at it. Tasks write the files of a
Delta table, and one commit swaps them in: no row goes through the JVM, nor to the driver.
"""  # noqa: E501

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_type
from pyspark.sql.types import StructType

from models import artifact
from models.errors import InputError
from pipelines.etl import staging, store
from pipelines.etl.blocks import Batches
from pipelines.etl.buckets import RESULT
from pipelines.etl.files import Piece, packed, survey
from pipelines.etl.schemas import Layout
from pipelines.scoring.desk import as_table, from_table, lay, taken
from pipelines.scoring.passes import by_kind, scores_of, staged_in, sum_of
from pipelines.scoring.quota import Quota, meet
from pipelines.scoring.rounds import ONLY_LEGAL_ACTION, Judged, Price
from pipelines.scoring.tasks import JUDGED, SCORES, VOLUME, Night, champion_of, results, scores_layout, written
from policies.budget import Volume
from policies.constraints import legal_actions

STATE = "state"
IDS = ("candidate_id", "user_id", "decide_at")
FACTS = ("notifications_on", "local_hour", "sends_24h", "sends_7d", "hours_since_send")
TASKS_A_CORE = 4
ROWS_OF_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"


@dataclass(frozen=True)
class Network:
    """The part of an artifact's graph that some of its outputs need; sent to the workers."""

    graph: bytes
    outputs: tuple[str, ...]
    features: int

    @classmethod
    def of(cls, folder: Path, outputs: Sequence[str] = ("q",)) -> "Network":
        """Raises InputError as `artifact.load` does, and for an output that the graph has not."""
        loaded = artifact.load(folder)
        known = [each.name for each in loaded.session.get_outputs()]
        for name in outputs:
            if name not in known:
                raise InputError(f"{folder}: no output {name!r} (known: {', '.join(known)}); ask for one of these.")
        graph = artifact.only((folder / artifact.GRAPH).read_bytes(), outputs)
        return cls(graph, tuple(outputs), len(loaded.contract.features))


@lru_cache(maxsize=2)
def _session(graph: bytes) -> onnxruntime.InferenceSession:
    """Once per worker process."""
    return artifact.session_of(graph)


def states_of(column: pa.Array, features: int) -> NDArray[np.float32]:
    """[N, S] the states of an array<float> column, without a copy where none of them is null.

    Raises InputError where a state is null or has another number of features.
    """
    lengths = np.diff(column.offsets.to_numpy())
    wrong = (lengths != features) | np.asarray(column.is_null())
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{STATE}: {int(wrong.sum())} of {len(wrong)} rows have not {features} features, as the policy needs; the "
            f"first has {'none' if not column[row].is_valid else int(lengths[row])}."
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(-1, features)


def predict_states(network: Network) -> Callable[[Batches], Batches]:
    """Batches whose `state` is the table's -> the same with the network's outputs in its place, for `mapInArrow`.

    Each output is array<float>: [A] for q and behaviour, [A K] for values.
    """

    def run(batches: Batches) -> Batches:
        session = _session(network.graph)
        for batch in batches:
            at = batch.schema.get_field_index(STATE)
            found = artifact.asked(session, states_of(batch.column(at), network.features))
            kept = [(name, batch.column(name)) for name in batch.schema.names if name != STATE]
            outputs = [(name, _lists(each)) for name, each in zip(network.outputs, found, strict=True)]
            names, columns = zip(*kept, *outputs, strict=True)
            yield pa.record_batch(list(columns), list(names))

    return run


@dataclass(frozen=True)
class States:
    """The table, wherever it lies."""

    spark: SparkSession
    frame: DataFrame | None
    pieces: tuple[Piece, ...] = ()
    """Row groups of its files, where tasks read them."""
    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    @classmethod
    def of(cls, spark: SparkSession, table: DataFrame | Path) -> "States":
        """Raises InputError for a folder without Parquet files, or with one that is none."""
        if isinstance(table, DataFrame):
            kinds = {name: to_arrow_type(table.schema[name].dataType, timezone="UTC") for name in table.columns}
            return cls(spark, table, (), kinds)
        lake = survey(STATE, table, lambda _: True)
        if not lake.types:
            raise InputError(f"{table}: no Parquet file; name the folder of the table of states.")
        return cls(spark, None, lake.groups, lake.types)

    def over(self, columns: Sequence[str], kernel: Callable[[Batches], Batches], schema: pa.Schema) -> DataFrame:
        """What the kernel makes of the columns, batch by batch of spark.sql.execution.arrow.maxRecordsPerBatch rows.

        Raises InputError for a column that is missing.
        """
        missing = [name for name in columns if name not in self.types]
        if missing:
            raise InputError(f"{STATE}: the table lacks {', '.join(missing)}; needed are {', '.join(columns)}.")
        wanted = from_arrow_schema(schema)
        if self.frame is not None:
            return self.frame.select(*columns).mapInArrow(kernel, wanted)
        cores = self.spark.sparkContext.defaultParallelism
        rows = int(self.spark.conf.get(ROWS_OF_BATCH, "10000") or 0)
        return _dealt(self.spark, packed(self.pieces, cores), lambda some: kernel(_read(some, columns, rows)), wanted)


def _read(tasks: Iterable[list[Piece]], columns: Sequence[str], rows: int) -> Batches:
    for piece in (piece for task in tasks for piece in task):
        with pq.ParquetFile(piece.path) as file:
            groups = file.iter_batches(rows, [piece.group], list(columns), use_threads=False)
            yield from (batch.select(list(columns)) for batch in groups)


def _dealt(
    spark: SparkSession, items: Sequence[Any], kernel: Callable[[Iterable[Any]], Batches], schema: StructType
) -> DataFrame:
    """What the kernel makes of the items, some to each task."""
    dealt = tuple(items)

    def run(batches: Batches) -> Batches:
        yield from kernel(dealt[place] for batch in batches for place in batch.column("id").to_pylist())

    tasks = min(len(dealt), TASKS_A_CORE * spark.sparkContext.defaultParallelism)
    return spark.range(0, len(dealt), 1, max(tasks, 1)).mapInArrow(run, schema)


def predicted(states: States, network: Network, keep: Sequence[str] = ()) -> DataFrame:
    """The network's outputs at every state, beside the columns of `keep`.

    Raises InputError for a column that is missing, and states of another number of features.
    """
    return states.over([*keep, STATE], predict_states(network), _schema(states, network, keep))


def write_predicted(states: States, network: Network, keep: Sequence[str], table: Path) -> int:
    """Commit what `predicted` says as a Delta table, in place of what stands there; returns its version.

    Raises InputError as `predicted`, TransientError where another writer committed first.
    """
    table = table.resolve()
    base, run, layout = store.opened(table), staging.new_run(), Layout(_schema(states, network, keep), ())

    def kernel(batches: Batches) -> Batches:
        for batch in predict_states(network)(batches):
            staged = staging.write(pa.Table.from_batches([batch]), table, run, layout, {})
            yield results([(SCORES, json.dumps(asdict(staged)).encode())])

    try:
        found = by_kind(states.over([*keep, STATE], kernel, RESULT).toArrow())
        return store.commit(table, staged_in(found), layout, {}, base)
    except BaseException:
        store.discard(table, run)
        raise


def _schema(states: States, network: Network, keep: Sequence[str]) -> pa.Schema:
    kept = [pa.field(name, states.types[name]) for name in keep if name in states.types]
    return pa.schema([*kept, *(pa.field(name, pa.list_(pa.float32())) for name in network.outputs)])


def _lists(found: NDArray[np.float32]) -> pa.Array:
    """[N, ...] as N lists, without a copy."""
    flat = found.reshape(len(found), -1)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * np.int32(flat.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.ravel()))


def judge_states(job: Night) -> Callable[[Batches], Batches]:
    """Batches of the table -> RESULT rows: the files that were laid aside, and the volume of their rows."""

    def run(batches: Batches) -> Batches:
        champion, volumes = champion_of(job), list[Volume]()
        for batch in batches:
            judged = _judged(batch, job)
            name = f"{uuid.uuid4().hex}.arrow"
            lay(as_table(judged), job.desk / name)
            volumes.append(judged.volume(champion, (-np.inf, np.inf)))
            yield results([(JUDGED, json.dumps(name).encode())])
        if volumes:
            yield results([(VOLUME, reduce(add, volumes).packed())])

    return run


def weigh_states(job: Night, window: tuple[float, float]) -> Callable[[Iterable[str]], Batches]:
    """Names of files that were laid aside -> the volume of their rows, told apart inside `window`."""

    def run(names: Iterable[str]) -> Batches:
        champion = champion_of(job)
        for name in names:
            yield results([(VOLUME, _on_desk(job, name).volume(champion, window).packed())])

    return run


def finish_states(job: Night, price: Price) -> Callable[[Iterable[str]], Batches]:
    """Names of files that were laid aside -> scores and counts at that price."""

    def run(names: Iterable[str]) -> Batches:
        for name in names:
            yield results(written(_on_desk(job, name), job, price, 0))

    return run


@dataclass(frozen=True)
class Decided:
    """A night of the scores table."""

    version: int
    """Of the table."""
    quota: Quota
    counts: dict[str, Any]
    """What stands in it, as in the manifest of a night: candidates, by_action, by_rule, expected_sends, sends, ..."""


def decided(states: States, job: Night, quota: float) -> Decided:
    """Score every row at the price whose expected sends are `quota`, and commit them as the night `job.night`.

    Raises InputError as `meet` does, for a column that is missing, states of another number of features, and where
    there is no row; TransientError where another writer committed first.
    """
    base, layout = store.opened(job.root), scores_layout(job.plan.contract)
    try:
        laid = by_kind(states.over([*IDS, STATE, *FACTS], judge_states(job), RESULT).toArrow())
        if VOLUME not in laid:
            raise InputError(f"{STATE}: the table has no row to decide about.")
        names = [json.loads(each) for each in laid[JUDGED]]

        def over_desk(kernel: Callable[[Iterable[str]], Batches]) -> dict[str, list[bytes]]:
            return by_kind(_dealt(states.spark, names, kernel, from_arrow_schema(RESULT)).toArrow())

        def weigh(_: Price, window: tuple[float, float]) -> tuple[float, Volume]:
            volume = sum_of(over_desk(weigh_states(job, window))[VOLUME])
            return volume.bounds(job.default.lambda_)[0], volume

        found = meet(quota, champion_of(job).decision, sum_of(laid[VOLUME]), weigh, drawn=False, nearest=False)
        staged, counts = scores_of(over_desk(finish_states(job, found.price)))
        # A user's states may lie in several parts, which each counted them.
        del counts["users"]
        facts = {"policy_version": str(job.version)}
        version = store.commit(job.root, staged, layout, facts, base, {"night": [job.night]})
    except BaseException:
        store.discard(job.root, job.run)
        raise
    store.discard(job.root, str(job.desk.relative_to(job.root)))
    return Decided(version, found, counts)


def _judged(batch: pa.RecordBatch, job: Night) -> Judged:
    contract, champion = job.plan.contract, champion_of(job)
    q, logits, values = champion.predict(states_of(batch.column(STATE), len(contract.features)))
    facts = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in FACTS}
    offered = np.ones(q.shape, dtype=np.bool_)
    legal, rule = legal_actions(facts, offered, contract.actions, job.plan.constraints)
    free = rule == ""
    reason = rule.copy()
    reason[free] = None
    reason[free & (legal.sum(axis=1) == 1)] = ONLY_LEGAL_ACTION
    ids = [batch.column(name) for name in IDS]
    nothing = np.empty((len(q), 0), np.float32)
    asked = pa.table(ids, ["row_id", "user_id", "at"])
    asked = asked.set_column(2, "at", asked["at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    return Judged(asked, reason, legal, q, logits, values, np.full(q.shape, np.nan), nothing)


def _on_desk(job: Night, name: str) -> Judged:
    return from_table(taken(job.desk / name), job.plan.contract)
