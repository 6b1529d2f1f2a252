"""Columns of stored transitions as arrays, checked: what every reader of the table makes of its rows."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.contract import REWARD_PREFIX, SPLITS, STATE_PREFIX, Contract
from models.errors import InputError

MICROSECONDS_PER_DAY = 86_400_000_000
CLICKED = "clicks_attributed"
FLAGS = ("terminal", "truncated", "silent", "warm_up")
PLAIN = (
    "user_id",
    "decision_id",
    "decided_at",
    "split",
    "action",
    "legal",
    "propensity",
    "propensity_source",
    "elapsed_days",
    "usable",
    *FLAGS,
)


def columns_of(contract: Contract) -> list[str]:
    """Columns of the table that every reader needs."""
    return [
        *PLAIN,
        *(STATE_PREFIX + name for name in contract.features),
        *(REWARD_PREFIX + name for name in contract.rewards),
    ]


def ordered(rows: pa.Table, *before: str) -> pa.Table:
    """Files arrive in any order: by `before`, then user, then time, then decision id, which orders ties."""
    keys = (*before, "user_id", "decided_at", "decision_id")
    return rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in keys]))


def arrays_of(rows: pa.Table, contract: Contract, path: str) -> dict[str, NDArray[Any]]:
    """Arrays of one bucket's sorted usable rows; a user is in one bucket only."""
    ids = rows["user_id"].combine_chunks().dictionary_encode()
    part: dict[str, NDArray[Any]] = {
        "user": ids.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        "user_id": ids.dictionary.to_numpy(zero_copy_only=False).astype(object),
        "decided_at": rows["decided_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        "state": _matrix(rows, [STATE_PREFIX + name for name in contract.features], np.dtype(np.float32)),
        "legal": _legal(rows, contract, path),
        "action": _code(rows, "action", contract.actions, path).astype(np.int64),
        "propensity": rows["propensity"].to_numpy().astype(np.float64),
        "estimated": pc.equal(rows["propensity_source"], "estimated").fill_null(False).to_numpy(),
        "reward": _matrix(rows, [REWARD_PREFIX + name for name in contract.rewards], np.dtype(np.float64)),
        "elapsed_days": rows["elapsed_days"].to_numpy().astype(np.float64),
        "split": _code(rows, "split", SPLITS, path).astype(np.int8),
        **{name: rows[name].to_numpy().astype(np.bool_) for name in FLAGS},
    }
    if CLICKED in rows.column_names:
        part["clicked"] = rows[CLICKED].to_numpy().astype(np.float64)
    _check(rows, part, contract, path)
    only = (part["legal"].sum(axis=1) == 1) & part["legal"][np.arange(rows.num_rows), part["action"]]
    # Where the logged action was the only legal one there is nothing to estimate.
    part["propensity"] = np.where(np.isnan(part["propensity"]) & only, 1.0, part["propensity"])
    return part


def absorb(part: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """The columns with each silent tail of a terminal row added to it, and [N] which rows are left.

    A tail is the silent rows i of the same user with t_i = t_{i-1} + Delta_{i-1}, from the terminal row on.
    """
    user, at, terminal = part["user"], part["decided_at"], part["terminal"].astype(np.int64)
    end = at + np.rint(part["elapsed_days"] * MICROSECONDS_PER_DAY).astype(np.int64)
    follows = np.zeros(len(user), dtype=np.bool_)
    follows[1:] = part["silent"][1:] & (user[1:] == user[:-1]) & (at[1:] == end[:-1])
    # Of each unbroken run of rows: whether one before this one was terminal.
    before = np.cumsum(terminal) - terminal
    head = np.maximum.accumulate(np.where(follows, 0, np.arange(len(user))))
    kept = ~(follows & (before > before[head]))
    start = np.flatnonzero(kept)
    left = {name: column if name == "user_id" else column[kept] for name, column in part.items()}
    for name in ("elapsed_days", "reward"):
        left[name] = np.add.reduceat(part[name], start, axis=0)
    return left, kept


def _matrix(rows: pa.Table, names: Sequence[str], dtype: np.dtype[Any]) -> NDArray[Any]:
    """[N, len(names)]; null becomes NaN."""
    return np.stack([rows[name].to_numpy().astype(dtype) for name in names], axis=1)


def _legal(rows: pa.Table, contract: Contract, path: str) -> NDArray[np.bool_]:
    legal = rows["legal"].combine_chunks()
    actions = len(contract.actions)
    length = pc.list_value_length(legal).fill_null(0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(length != actions)
    if len(wrong):
        raise InputError(
            f"{path}: legal has {length[wrong[0]]} entries at decision {rows['decision_id'][int(wrong[0])]}, but "
            f"{actions} actions are configured; run the ETL again with --rebuild."
        )
    flat: NDArray[np.bool_] = legal.flatten().fill_null(False).to_numpy(zero_copy_only=False)
    return flat.astype(np.bool_).reshape(-1, actions)


def _code(rows: pa.Table, name: str, known: Sequence[str], path: str) -> NDArray[np.int64]:
    """[N] place of each value in `known`."""
    code: NDArray[np.int64] = (
        pc.index_in(rows[name], value_set=pa.array(known)).fill_null(-1).to_numpy().astype(np.int64)
    )
    wrong = np.flatnonzero(code < 0)
    if len(wrong):
        raise InputError(
            f"{path}: {name} is {rows[name][int(wrong[0])].as_py()!r} at decision "
            f"{rows['decision_id'][int(wrong[0])]} and in {len(wrong)} usable rows; known: {', '.join(known)}. "
            "Run the ETL again with --rebuild."
        )
    return code


def _check(rows: pa.Table, part: dict[str, NDArray[Any]], contract: Contract, path: str) -> None:
    """Raise InputError for the first decision whose row no learner or estimator could use."""
    last = np.diff(part["user"], append=-1) != 0
    problems = [
        (~part["legal"].any(axis=1), "no action is legal; let `hold` be legal everywhere"),
        (last & ~(part["terminal"] | part["truncated"]), "a user's last row is neither terminal nor truncated"),
        (~(part["elapsed_days"] >= 0), "elapsed_days is null or negative"),
    ]
    problems += [
        (~np.isfinite(part["reward"][:, k]), f"{REWARD_PREFIX}{name} is null or not finite")
        for k, name in enumerate(contract.rewards)
    ]
    for wrong, what in problems:
        found = np.flatnonzero(wrong)
        if len(found):
            raise InputError(
                f"{path}: {what}: {len(found)} usable rows, first decision {rows['decision_id'][int(found[0])]}; "
                "correct the log or the configuration and run the ETL again."
            )


def fingerprint_of(contract: Contract, columns: dict[str, Any]) -> str:
    """Hash of what was read: the same rows give the same name, whatever files they lay in."""
    digest = hashlib.sha256(json.dumps([contract.actions, contract.features, contract.rewards]).encode())
    for name in sorted(columns.keys() - {"clicked"}):
        array = columns[name]
        content = "\0".join(array).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
        digest.update(f"{name}:{array.shape}".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
