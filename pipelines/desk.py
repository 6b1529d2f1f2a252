"""What the first pass of a night leaves for the second, in the run's own folder: judged candidates and raw rows."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.contract import Contract
from pipelines.rounds import Judged

SHAPES = ("legal", "q", "logits", "values", "fixed")


def lay(table: pa.Table, path: Path) -> None:
    """Write a file whole or not at all; a task that runs twice writes it twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table, unfinished, compression="lz4", use_dictionary=False, write_statistics=False)
    os.replace(unfinished, path)


def as_table(judged: Judged) -> pa.Table:
    """One column for each number of a row; the state stays behind."""
    columns = {name: judged.asked[name] for name in judged.asked.column_names}
    columns["reason"] = pa.array(judged.reason, pa.string())
    for name in SHAPES:
        found = getattr(judged, name)
        flat = found.reshape(len(found), int(np.prod(found.shape[1:])))
        columns |= {f"{name}{place}": pa.array(flat[:, place]) for place in range(flat.shape[1])}
    return pa.table(columns)


def from_table(table: pa.Table, contract: Contract) -> Judged:
    """What `as_table` was given, without its state."""
    rows, actions = table.num_rows, len(contract.actions)
    found = {}
    for name in SHAPES:
        shape = (rows, actions, len(contract.rewards)) if name == "values" else (rows, actions)
        columns = [table[f"{name}{place}"].to_numpy() for place in range(int(np.prod(shape[1:])))]
        found[name] = np.column_stack(columns).reshape(shape)
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
