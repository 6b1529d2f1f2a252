"""Delta tables: files written in a run's own folder (staging.py), swapped in by one commit of the Delta log."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from models.errors import InputError, TransientError
from pipelines.etl.schemas import Layout
from pipelines.etl.staging import Staged

ETL_HASH = "etl_hash"


def opened(table: Path) -> DeltaTable | None:
    """The table as it stands, None where there is none yet."""
    return DeltaTable(table) if DeltaTable.is_deltatable(str(table)) else None


def fact(table: DeltaTable, key: str) -> str | None:
    """What the newest commit that speaks of the key says of it; None where none does."""
    return next((str(entry[key]) for entry in table.history() if key in entry), None)


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
            # The first of two first tables stays: whoever finds one there came second.
            mode = "overwrite" if base is not None else "error"
            create_table_with_add_actions(
                str(table), schema, actions, mode=mode, partition_by=partitions, commit_properties=properties
            )
    except (CommitFailedError, DeltaError) as error:
        if not isinstance(error, CommitFailedError) and (base is not None or not DeltaTable.is_deltatable(str(table))):
            raise
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


def fingerprint(table: DeltaTable, partition: Mapping[str, str] | None = None) -> str:
    """Hash of the content of the table's files, or of those of one partition: equal for equal rows, whatever runs and
    executors wrote them."""
    wanted = (partition or {}).items()
    named = sorted(str(Path(*Path(path).parts[1:])) for path, values in files(table) if wanted <= values.items())
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
