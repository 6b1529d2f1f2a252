"""Delta tables: immutable Parquet files in a run's own folder, swapped in by one commit of the Delta log.

A file is named by the hash of its content, so that a task that runs twice leaves one file, and so that a table's
fingerprint can be told from the names alone.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, create_table_with_add_actions

from models.errors import InputError, TransientError
from pipelines.etl.schemas import Layout

ETL_HASH = "etl_hash"


@dataclass(frozen=True)
class Staged:
    """A written file that no commit names yet."""

    path: str
    """Relative to the table."""
    partition: Mapping[str, str]
    rows: int
    size: int


def check_hash(table: Path, etl_hash: str, rebuild: bool) -> None:
    """Raise InputError where the table was made by another configuration and `rebuild` is not asked for."""
    base = opened(table)
    if rebuild or base is None:
        return
    found = fact(base, ETL_HASH)
    if found != etl_hash:
        raise InputError(
            f"{table}: its rows were made by another configuration (etl hash {found}, now {etl_hash}); run the ETL "
            "with --rebuild to replace them, or give `run_dir` another folder."
        )


def opened(table: Path) -> DeltaTable | None:
    """The table as it stands, None where there is none yet."""
    return DeltaTable(table) if DeltaTable.is_deltatable(str(table)) else None


def fact(table: DeltaTable, key: str) -> str | None:
    """What the newest commit that speaks of the key says of it; None where none does."""
    return next((str(entry[key]) for entry in table.history() if key in entry), None)


def new_run() -> str:
    """A folder name of its own for the files of one run."""
    return uuid.uuid4().hex


def write(rows: pa.Table, table: Path, run: str, layout: Layout, partition: Mapping[str, str]) -> Staged:
    """Write one file of one partition where no reader sees it yet."""
    folder = Path(run, *(f"{name}={partition[name]}" for name in layout.partitions))
    sink = pa.BufferOutputStream()
    columns = [field for field in layout.schema if field.name not in layout.partitions]
    texts = [field.name for field in columns if pa.types.is_string(field.type)]
    pq.write_table(
        rows.select([field.name for field in columns]).cast(pa.schema(columns)),
        sink,
        compression="zstd",
        use_dictionary=[name for name in texts if name not in ("decision_id", "row_id")],
        write_statistics=["user_id"] if "user_id" in texts else False,
        coerce_timestamps="us",
    )
    content = sink.getvalue()
    name = hashlib.sha256(content).hexdigest()[:32] + ".parquet"
    (table / folder).mkdir(parents=True, exist_ok=True)
    unfinished = table / folder / f".{name}.{uuid.uuid4().hex}"
    unfinished.write_bytes(content)
    # Another attempt of the same task may have left the very same file.
    os.replace(unfinished, table / folder / name)
    return Staged(str(folder / name), dict(partition), rows.num_rows, content.size)


def commit(
    table: Path,
    staged: Iterable[Staged],
    layout: Layout,
    facts: Mapping[str, str],
    base: DeltaTable | None,
    replace: Mapping[str, Iterable[str]] | None = None,
) -> int:
    """Swap in the files, whole or not at all; `facts` go into the commit. Returns the new version.

    They replace the whole table, or the partitions whose column has one of the values `replace` gives: then the table
    must have their columns. `base` is the table as `opened` at the start of the run: who began before another's commit
    does not undo it.

    Raises TransientError where another writer committed first.
    """
    actions = [_add(each) for each in staged]
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
            filters = [(name, "in", sorted(values)) for name, values in (replace or {}).items()]
            mode = "append" if any(not values for *_, values in filters) else "overwrite"
            base.create_write_transaction(
                actions, mode, schema, partitions, filters or None, commit_properties=properties
            )
        else:
            create_table_with_add_actions(
                str(table), schema, actions, mode="overwrite", partition_by=partitions, commit_properties=properties
            )
    except CommitFailedError as error:
        raise TransientError(f"{table}: another writer committed first ({error}); run it again.") from None
    return int(DeltaTable(table).version())


def discard(table: Path, run: str) -> None:
    """Remove the files of a run that no commit names."""
    shutil.rmtree(table / run, ignore_errors=True)


def files(table: DeltaTable) -> list[tuple[str, dict[str, str]]]:
    """Path, relative to the table, and partition values of every file of its version, in order."""
    adds = pa.table(table.get_add_actions(flatten=True))
    names = [name for name in adds.column_names if name.startswith("partition.")]
    rows = adds.select(["path", *names]).to_pylist()
    found = [(row["path"], {name.removeprefix("partition."): str(row[name]) for name in names}) for row in rows]
    return sorted(found, key=lambda each: each[0])


def place(table: DeltaTable, path: str) -> Path:
    """Where a file of the table lies."""
    return Path(url2pathname(urlparse(table.table_uri).path)) / unquote(path)


def fingerprint(table: DeltaTable) -> str:
    """Hash of the content of the table's files: equal for equal rows, whatever runs and executors wrote them."""
    named = sorted(str(Path(*Path(path).parts[1:])) for path, _ in files(table))
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def _add(staged: Staged) -> AddAction:
    values: dict[str, Any] = dict(staged.partition)
    return AddAction(
        path=staged.path,
        size=staged.size,
        partition_values=values,
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=f'{{"numRecords": {staged.rows}}}',
    )
