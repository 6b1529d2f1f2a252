"""What goes through the shuffle: not rows but blocks of rows, Arrow tables of one dataset and user bucket as bytes.

The JVM then moves a few thousand byte strings instead of taking millions of rows apart, and a kernel gets back the very
columns that were put in. A block has at most ROWS rows, so that neither side ever holds more than that beyond its own.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.etl.features import DAY, Ints
from pipelines.etl.hashing import bucket_of, xxhash64

SCHEMA = pa.schema([("bucket", pa.int32()), ("dataset", pa.int32()), ("block", pa.large_binary())])
ROWS = 1 << 19
BYTES = 1 << 27
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")

Batches = Iterator[pa.RecordBatch]


def to_blocks(
    dataset: int, schema: pa.Schema, buckets: int, days: tuple[int, int] | None
) -> Callable[[Batches], Batches]:
    """Batches of raw rows -> blocks by bucket of the user id, for `mapInArrow`.

    Rows come with `day` null or the day of the folder they lay in; they leave with their arrival day (see
    `arrival_day`). With `days`, first and last, only rows that arrived then are let through, and those of no known day.
    """

    def run(batches: Batches) -> Batches:
        for table in gathered(batches, schema):
            day = arrival_day(table)
            table = table.set_column(table.schema.get_field_index("day"), "day", day)
            if days is not None:
                inside = pc.and_(pc.greater_equal(day, days[0]), pc.less_equal(day, days[1]))
                table = table.filter(pc.fill_null(inside, True))
            if table.num_rows:
                yield from _split(table, dataset, buckets)

    return run


def gathered(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Small batches as tables of about ROWS rows (or BYTES bytes) in the schema's types."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS or size >= BYTES:
            yield pa.Table.from_batches(held).cast(schema)
            held, rows, size = [], 0, 0
    if rows:
        yield pa.Table.from_batches(held).cast(schema)


def arrival_day(table: pa.Table) -> pa.Array:
    """[N] days since the epoch: of the folder, else of `logged`, else of the row's own time, else null."""
    moment = pc.coalesce(*(table[name] for name in ("logged", "at") if name in table.column_names))
    missing = np.asarray(moment.is_null().to_numpy(), dtype=bool)
    day: Ints = np.asarray(pc.fill_null(moment, 0).to_numpy(), dtype=np.int64) // DAY
    computed = pa.array(day.astype(np.int32), mask=missing)
    return pc.coalesce(table["day"], computed).combine_chunks()


def _split(table: pa.Table, dataset: int, buckets: int) -> Iterator[pa.RecordBatch]:
    users = table["user_id"].combine_chunks().dictionary_encode()
    codes = pc.fill_null(users.indices, len(users.dictionary)).to_numpy()
    each = bucket_of(xxhash64(pa.concat_arrays([users.dictionary, pa.nulls(1, pa.string())])), buckets)
    # A sort by radix, where there are few buckets.
    bucket = each[codes].astype(np.uint16 if buckets <= 1 << 16 else np.int32)
    ordered = table.take(pa.array(np.argsort(bucket, kind="stable"))).combine_chunks()
    count = np.bincount(bucket, minlength=1)
    ends = np.cumsum(count)
    for number in np.flatnonzero(count):
        yield block(ordered.slice(ends[number] - count[number], count[number]), dataset, int(number))


def block(rows: pa.Table, dataset: int, bucket: int) -> pa.RecordBatch:
    """One block; without rows it still says that there is such a bucket."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_COMPRESSED) as stream:
        stream.write_table(rows)
    return pa.record_batch([[bucket], [dataset], [sink.getvalue().to_pybytes()]], schema=SCHEMA)


def from_blocks(batches: Batches) -> Iterator[tuple[int, dict[int, pa.Table]]]:
    """Each bucket of a Spark partition with its tables by dataset."""
    found: dict[int, dict[int, list[pa.Table]]] = {}
    for batch in batches:
        for bucket, dataset, content in zip(*(batch.column(name) for name in SCHEMA.names), strict=True):
            rows = pa.ipc.open_stream(content.as_buffer()).read_all()
            found.setdefault(bucket.as_py(), {}).setdefault(dataset.as_py(), []).append(rows)
    for bucket in sorted(found):
        yield bucket, {dataset: pa.concat_tables(parts) for dataset, parts in found.pop(bucket).items()}
