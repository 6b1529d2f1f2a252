"""Delta tables from Spark: immutable Parquet files in a run's own folder, swapped in by one commit of the Delta log."""

import shutil
import time
import uuid
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from models.errors import InputError, TactfulError, TransientError
from pipelines.etl.raw import row_hash
from pipelines.etl.schemas import Layout

ETL_HASH = "etl_hash"


def check_hash(table: Path, etl_hash: str, rebuild: bool) -> None:
    """Raise InputError where the table was made by another configuration and `rebuild` is not asked for."""
    if rebuild or not DeltaTable.is_deltatable(str(table)):
        return
    found = next((entry[ETL_HASH] for entry in DeltaTable(table).history() if ETL_HASH in entry), None)
    if found != etl_hash:
        raise InputError(
            f"{table}: its rows were made by another configuration (etl hash {found}, now {etl_hash}); run the ETL "
            "with --rebuild to replace them, or give `run_dir` another folder."
        )


def stage(rows: DataFrame, table: Path, layout: Layout) -> Path:
    """Write the rows under a folder of their own, sorted; no reader sees them yet."""
    folder = table / uuid.uuid4().hex
    try:
        rows.sortWithinPartitions(*layout.order).write.partitionBy(*layout.partitions).parquet(str(folder))
    except BaseException:
        discard(folder)
        raise
    return folder


def fingerprint(rows: DataFrame) -> str:
    """Hex sum of the rows' 64-bit hashes modulo 2^64: equal for equal rows in any order, in any files."""
    total = rows.select(row_hash(rows.columns).cast("decimal(38,0)").alias("hash")).agg(F.sum("hash")).first()
    return f"{int(total[0] or 0) % 2**64:016x}" if total else f"{0:016x}"


def commit(
    table: Path,
    folder: Path,
    layout: Layout,
    facts: dict[str, str],
    rows: int,
    base: DeltaTable | None,
    replace: list[tuple[str, str, str]] | None = None,
) -> int:
    """Swap in the files of the folder, whole or not at all; `facts` go into the commit. Returns the new version.

    They replace the whole table, or the partitions that `replace` ((column, "=", value), ...) selects: then the table
    must have their columns. `base` is the table as `opened` at the start of the run: who began before another's commit
    does not undo it.

    Raises TransientError where another writer committed first, TactfulError where the files do not hold `rows` rows.
    """
    paths = sorted(folder.glob("/".join("*" * len(layout.partitions)) + "/*.parquet"))
    counts = [pq.ParquetFile(path).metadata.num_rows for path in paths]
    if sum(counts) != rows:
        discard(folder)
        raise TactfulError(f"{folder}: {sum(counts)} rows in its files, {rows} were made; run it again.")
    actions = [_add(path, table, layout, count) for path, count in zip(paths, counts, strict=True)]
    properties = CommitProperties(custom_metadata=dict(facts), max_commit_retries=0)
    schema, partitions = Schema.from_arrow(layout.schema), list(layout.partitions)
    try:
        now = opened(table)
        if (now.version() if now else None) != (base.version() if base else None):
            raise CommitFailedError(f"version {now.version() if now else None} was not there at the start")
        if base is not None and replace is not None and base.schema() != schema:
            raise InputError(
                f"{table}: its columns are not those of these rows, and what it holds must not be lost; move it away, "
                "or give `run_dir` another folder."
            )
        if base is not None and base.schema() == schema:
            base.create_write_transaction(
                actions, "overwrite", schema, partitions, replace, commit_properties=properties
            )
        else:
            create_table_with_add_actions(
                str(table), schema, actions, mode="overwrite", partition_by=partitions, commit_properties=properties
            )
    except CommitFailedError as error:
        discard(folder)
        raise TransientError(f"{table}: another writer committed first ({error}); run it again.") from None
    except BaseException:
        discard(folder)
        raise
    return int(DeltaTable(table).version())


def opened(table: Path) -> DeltaTable | None:
    """The table as it stands, None where there is none yet."""
    return DeltaTable(table) if DeltaTable.is_deltatable(str(table)) else None


def discard(folder: Path) -> None:
    """Remove files that no commit names."""
    shutil.rmtree(folder, ignore_errors=True)


def _add(path: Path, table: Path, layout: Layout, rows: int) -> AddAction:
    values = dict(part.split("=", 1) for part in path.parent.parts[-len(layout.partitions) :])
    return AddAction(
        path=str(path.relative_to(table)),
        size=path.stat().st_size,
        partition_values=values,
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=f'{{"numRecords": {rows}}}',
    )
