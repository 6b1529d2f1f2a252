"""What the first pass of a night leaves for the second, in the run's own folder: judged candidates and raw rows."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.contract import Contract
from pipelines.scoring.rounds import Judged

SHAPES = ("legal", "q", "logits", "values", "fixed")


def lay(table: pa.Table, path: Path) -> None:
    """Write a file whole or not at all; a task that runs twice writes it twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    # Read back once, by ourselves: encoding it as Parquet costs three times as much.
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    os.replace(unfinished, path)


def taken(path: Path) -> pa.Table:
    """What was laid there."""
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()


def as_table(judged: Judged) -> pa.Table:
    """One column for each array, a row's numbers as one list; the state stays behind."""
    columns = {name: judged.asked[name] for name in judged.asked.column_names}
    columns["reason"] = pa.array(judged.reason, pa.string())
    for name in SHAPES:
        found = getattr(judged, name)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), int(np.prod(found.shape[1:])))
    return pa.table(columns)


def from_table(table: pa.Table, contract: Contract) -> Judged:
    """What `as_table` was given, without its state."""
    rows, actions = table.num_rows, len(contract.actions)
    found = {}
    for name in SHAPES:
        shape = (rows, actions, len(contract.rewards)) if name == "values" else (rows, actions)
        flat = table[name].combine_chunks().flatten()
        found[name] = flat.to_numpy(zero_copy_only=False).reshape(shape)
    return Judged(
        asked=table.select(["row_id", "user_id", "at"]),
        reason=np.asarray(table["reason"].to_numpy(), dtype=object),
        state=np.empty((rows, 0), np.float32),
        **found,
    )


def joined(parts: Sequence[Judged]) -> Judged:
    """The rows of all parts, without their states."""
    columns = {each.name: [getattr(part, each.name) for part in parts] for each in fields(Judged)}
    asked, _ = columns.pop("asked"), columns.pop("state")
    found = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    rows = sum(len(part.reason) for part in parts)
    return Judged(asked=pa.concat_tables(asked), state=np.empty((rows, 0), np.float32), **found)
