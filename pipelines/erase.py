"""Users who must be forgotten: erased from every version of every table, and kept out of those to come.

Delta's own `delete` is not used: it writes the ids into the table's log, and does not keep one sorted file a partition.

run_dir/forgotten.json holds the SHA-256 digest of each id (`pending` until its request is done, then `erased`) and
since when; the ids themselves are kept nowhere.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from models.errors import InputError, TransientError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.schemas import Layout
from pipelines.etl.staging import Staged, new_run, write
from pipelines.scoring.desk import taken
from pipelines.vacuum import present, remove, tables

USER = "user_id"
PENDING, ERASED = "pending", "erased"
SHOWN = 10
"""Unknown ids that are told by name."""


@dataclass
class Erased:
    """What was erased from one table."""

    rows: int = 0
    """Of its current version."""
    files: int = 0
    """Of this and earlier versions, and of runs that crashed."""
    bytes: int = 0


@dataclass(frozen=True)
class Forgotten:
    """What became of a request to forget."""

    users: int
    """Distinct ids given."""
    again: int
    """Those of them that an earlier request had already erased."""
    unknown: list[str]
    """Those of the others that no file held."""
    unfinished: int
    """Ids of earlier requests that were cut short, and were not given now."""
    tables: dict[str, Erased]


def forgotten(config: Config) -> frozenset[bytes]:
    """SHA-256 digests of the UTF-8 ids of all users whom `forget` was asked to erase; no later run brings them back."""
    record = _record(config)
    return frozenset(bytes.fromhex(digest) for state in (PENDING, ERASED) for digest in record[state])


def ids_in(file: Path) -> list[str]:
    """User ids, one a line; empty lines are skipped. Raises InputError where the file cannot be read."""
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name one with a user id on each line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); name a UTF-8 text with a user id on each line.") from None


def forget(config: Config, ids: Collection[str]) -> Forgotten:
    """Erase users from every file of every table of the run's folder, whichever versions need it.

    First their digests are recorded in run_dir/forgotten.json, so that runs which begin from then on leave them out;
    then each table gets a commit without them, by which every run on the way loses; then every other file that holds
    one of them is removed, and with it the versions that need it. What was cut short is finished by the same request.

    Raises InputError where no id is given, one is empty or no text, or run_dir has no table; TransientError where
    another writer committed first, or another request is at work.
    """
    digests = _digests(ids)
    places = tables(config)
    users = pa.array(sorted(digests), pa.string())
    with _alone(config.run_dir):
        record = _record(config)
        new = {digest for digest in digests.values() if digest not in record[ERASED]}
        record[PENDING] |= dict.fromkeys(new - record[PENDING].keys(), _now())
        _write(config, record)
        seen: set[str] = set()
        removed = {
            name: _erase(table, users, seen, fence=bool(new))
            for name, table in places.items()
            if USER in {column.name for column in DeltaTable(table).schema().fields}
        }
        for digest in new:
            del record[PENDING][digest]
            record[ERASED][digest] = _now()
        _write(config, record)
    unknown = [user for user, digest in digests.items() if digest in new and user not in seen]
    return Forgotten(len(digests), len(digests) - len(new), unknown, len(record[PENDING]), removed)


def in_words(found: Forgotten, config: Config) -> str:
    """What was done, and what is left to do."""
    lines = [
        f"{name}: {each.rows} rows erased; {each.files} files, {each.bytes:,} bytes removed"
        for name, each in found.tables.items()
    ]
    erased = found.users - found.again - len(found.unknown)
    lines.append(f"of {found.users} users {erased} found and erased, {found.again} already earlier")
    if found.unknown:
        more = f" and {len(found.unknown) - SHOWN} more" if len(found.unknown) > SHOWN else ""
        lines.append(
            f"NOT FOUND, in no table: {', '.join(found.unknown[:SHOWN])}{more}; are the ids spelt as in the log? "
            "recorded all the same, so that no later run takes them in"
        )
    if found.unfinished:
        lines.append(f"{found.unfinished} users of an earlier request that was cut short wait: repeat it to finish")
    if any(each.files for each in found.tables.values()):
        lines.append("versions that held them can no longer be read: what was learned from one must be trained anew")
    logs = ", ".join(str(dataset.path) for _, dataset in config.data if dataset is not None)
    lines.append(f"the raw log is yours to erase ({logs}); what it still holds of them, no run reads any more")
    return "\n".join(lines)


def _digests(ids: Collection[str]) -> dict[str, str]:
    """Id -> SHA-256, hex."""
    if not ids:
        raise InputError("forget: no user id; name some, or a file with one on each line (--file).")
    try:
        found = {user: hashlib.sha256(user.encode()).hexdigest() for user in ids}
    except UnicodeEncodeError as error:
        raise InputError(f"forget: user id {error.object!r} is no UTF-8 text; give it as the log has it.") from None
    if "" in found:
        raise InputError("forget: an empty user id, which the log cannot hold; remove it.")
    return found


def _erase(table: Path, users: pa.Array, seen: set[str], fence: bool) -> Erased:
    """Commit the table without the users, then remove every other file that holds them; `seen` learns who was there."""
    run, total = new_run(), Erased()
    delta = DeltaTable(table)
    actions: list[AddAction | RemoveAction] = []
    for quoted, partition in store.files(delta):
        path = unquote(quoted)
        found = _held(table / path, users)
        if found is None:
            raise InputError(
                f"{table / path}: a file of the current version cannot be read, so nobody can be erased from it; "
                "restore it, or make the table anew (`tactful etl CONFIG --rebuild`)."
            )
        if not len(found):
            continue
        seen.update(found.to_pylist())
        size = (table / path).stat().st_size
        actions.append(RemoveAction(path, True, _milliseconds(), size, partition))
        kept, gone = _without(table / path, found)
        total.rows += gone
        if kept.num_rows:
            actions.append(_added(write(kept, table, run, _layout(kept.schema, partition), partition)))
    # Even an empty commit makes a run on the way lose, which may have read these users before they were recorded.
    if actions or fence:
        facts = CommitProperties(custom_metadata={"forgotten_rows": str(total.rows)}, max_commit_retries=0)
        partitions = delta.metadata().partition_columns
        try:
            delta.create_write_transaction(actions, "append", delta.schema(), partitions, commit_properties=facts)
        except CommitFailedError as error:
            store.discard(table, run)
            raise TransientError(f"{table}: another writer committed first ({error}); run it again.") from None
    there, current = present(table), {unquote(path) for path, _ in store.files(DeltaTable(table))}
    holding = []
    for path in there.keys() - current:
        found = _held(table / path, users)
        # What cannot be read, as half a file that a crash left, may hold anybody.
        if found is None or len(found):
            holding.append(path)
            seen.update(found.to_pylist() if found is not None else ())
    remove(table, holding)
    total.files, total.bytes = len(holding), sum(there[path][0] for path in holding)
    return total


def _held(path: Path, users: pa.Array) -> pa.Array | None:
    """Those of the users who have a row in the file; None where it cannot be read."""
    try:
        # What is no Parquet file lies on the desk of a night.
        table = taken(path) if path.suffix == ".arrow" else _users_of(path)
    except FileNotFoundError:
        return users.slice(0, 0)
    except (pa.ArrowException, OSError):
        return None
    if USER not in table.column_names:
        return users.slice(0, 0)
    there = pc.unique(table[USER].cast(pa.string()))
    return there.filter(pc.is_in(there, value_set=users))


def _users_of(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=[name for name in file.schema_arrow.names if name == USER])


def _without(path: Path, users: pa.Array) -> tuple[pa.Table, int]:
    """The file's rows of everybody else, in their order, and how many the others were."""
    with pq.ParquetFile(path) as file:
        rows = file.read()
    kept = rows.filter(pc.invert(pc.is_in(rows[USER], value_set=users.cast(rows.schema.field(USER).type))))
    return kept, rows.num_rows - kept.num_rows


def _layout(schema: pa.Schema, partition: Mapping[str, str]) -> Layout:
    """As the file was written: the same rows must be the same bytes, since their hash is the file's name."""
    fields = [
        # Parquet calls a list's values `element`, Arrow `item`.
        field.with_type(pa.list_(field.type.value_type)) if pa.types.is_list(field.type) else field
        for field in schema
    ]
    return Layout(pa.schema([*fields, *((name, pa.string()) for name in partition)]), tuple(partition))


def _added(staged: Staged) -> AddAction:
    # Without smallest and largest values: they would be user ids, kept in a log that no one may rewrite.
    return AddAction(
        path=staged.path,
        size=staged.size,
        partition_values=dict(staged.partition),
        modification_time=_milliseconds(),
        data_change=True,
        stats=f'{{"numRecords": {staged.rows}}}',
    )


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(config: Config) -> Path:
    return config.run_dir / "forgotten.json"


def _record(config: Config) -> dict[str, dict[str, str]]:
    """State -> digest, hex -> since when."""
    path = _path(config)
    try:
        found: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); restore it: it says who must not come back.") from None
    return {state: found.get(state, {}) for state in (PENDING, ERASED)}


def _write(config: Config, record: dict[str, dict[str, str]]) -> None:
    partial = _path(config).with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True))
    os.replace(partial, _path(config))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One request at a time: two would write one record."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(
                f"{folder}: another `tactful forget` is at work; run it again when it is done."
            ) from None
        yield
    finally:
        # Closing gives the lock back, as does a crash.
        os.close(handle)
