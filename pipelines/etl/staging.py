"""Writing the files of a table where no reader sees them yet. Workers do it: Arrow and nothing else.

A file is named by the hash of its content, so that a task that runs twice leaves one file, and so that a table's
fingerprint can be told from the names alone.
"""

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.etl.schemas import Layout


@dataclass(frozen=True)
class Staged:
    """A written file that no commit names yet."""

    path: str
    """Relative to the table."""
    partition: Mapping[str, str]
    rows: int
    size: int


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
