"""The one kernel of the ETL, a user bucket at a time: mark the raw rows, cut the transitions, write both.

It sends back no row: the files it wrote, for the driver to commit, and what it counted, for the driver to judge.

| kind                    | payload |
|-------------------------|---------|
| transitions, consent,   | a `staging.Staged` as JSON: a file that was written into the table of that name |
| quarantine/DATASET      | the same |
| partial                 | a profile.PARTIAL table as Arrow bytes |
| offenders               | [dataset, offenders.Offence] of quarantined rows, as JSON |
| forgotten               | rows of users to be forgotten, left out, by dataset and arrival day, as JSON |
| expected                | [usable, unusable] decisions that must be rows, counted from the raw rows alone, as JSON |
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.contract import REWARD_PREFIX, STATE_PREFIX
from pipelines.etl import decisions as log
from pipelines.etl import staging
from pipelines.etl.blocks import Batches, from_blocks
from pipelines.etl.features import DAY, DISABLE, ENABLE, KINDS
from pipelines.etl.history import Before, Marked, mark
from pipelines.etl.marks import EXACT_DUPLICATE, REMEDIES, Plan, floats, ints, is_null, positions
from pipelines.etl.offenders import offences
from pipelines.etl.profile import choices, measure
from pipelines.etl.schemas import (
    DECISIONS,
    EVENTS,
    NAMES,
    UNKNOWN_DAY,
    USERS,
    consent_layout,
    quarantine_layout,
    transitions_layout,
)
from pipelines.etl.transitions import transitions

RESULT = pa.schema([("kind", pa.string()), ("payload", pa.large_binary())])
TRANSITIONS, CONSENT, QUARANTINE, PARTIAL, FORGOTTEN = "transitions", "consent", "quarantine/", "partial", "forgotten"
EXPECTED, OFFENDERS = "expected", "offenders"

ROW_ID = {DECISIONS: "decision_id", EVENTS: "event_id", USERS: ""}
TIME_OF = {DECISIONS: "decided_at", EVENTS: "occurred_at", USERS: "valid_from"}
_TIMESTAMP = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Resume:
    """Where a run over some days starts, and the files of the version before it that a bucket needs."""

    since: int
    """us, midnight: rows from here on are made anew."""
    known_since: int
    """us: the raw rows that are read tell all that happened from here on."""
    first_day: int
    """First arrival day that is counted and whose quarantine is written anew."""
    rows: Mapping[int, tuple[str, ...]]
    """Bucket -> files of the transitions that hold each user's last row before `since`."""
    consent: Mapping[int, tuple[str, ...]]
    """Bucket -> files of the changes of consent."""


@dataclass(frozen=True)
class Job:
    """What every task needs to know."""

    plan: Plan
    schemas: Mapping[int, pa.Schema]
    """The raw table of each dataset that there is."""
    root: Path
    """Where the tables lie."""
    run: str
    resume: Resume | None
    forgotten: frozenset[bytes]
    """SHA-256 of the ids of users whose rows must not come back."""


def run_buckets(job: Job) -> Any:
    """Blocks of whole users -> RESULT rows, for `mapInArrow`."""

    def run(batches: Batches) -> Batches:
        for bucket, tables in from_blocks(batches):
            found = list(_bucket(job, bucket, tables))
            kinds, payloads = zip(*found, strict=True) if found else ((), ())
            yield pa.record_batch([pa.array(kinds, pa.string()), pa.array(payloads, pa.large_binary())], schema=RESULT)

    return run


Result = tuple[str, bytes]


def _bucket(job: Job, bucket: int, tables: Mapping[int, pa.Table]) -> Iterator[Result]:
    tables = {code: tables.get(code, schema.empty_table()) for code, schema in job.schemas.items()}
    if job.forgotten:
        tables, dropped = _without(tables, job)
        yield FORGOTTEN, json.dumps(dropped).encode()
    before = before_of(job.resume, bucket)
    marked = mark(tables, job.plan, before)
    for code in marked.marks:
        yield from _quarantine(job, code, marked)
        yield PARTIAL, _bytes(_raw_partial(job, code, marked))
    made = transitions(marked, job.plan, before)
    yield PARTIAL, _bytes(_made_partial(made, job.plan))
    layout = transitions_layout(job.plan.contract)
    for day, rows in _by(made, made["ds"]):
        values = {"ds": day, "bucket": str(bucket)}
        yield TRANSITIONS, _staged(staging.write(rows, job.root / TRANSITIONS, job.run, layout, values))
    yield EXPECTED, json.dumps(_expected(marked, job.plan, before)).encode()
    changes = _consent(marked, before)
    if changes.num_rows:
        staged = staging.write(changes, job.root / CONSENT, job.run, consent_layout(), {"bucket": str(bucket)})
        yield CONSENT, _staged(staged)


def _without(tables: Mapping[int, pa.Table], job: Job) -> tuple[dict[int, pa.Table], dict[str, dict[str, int]]]:
    """The tables without the rows of users to be forgotten, and how many those were by dataset and arrival day."""
    kept, dropped = {}, {}
    for code, table in tables.items():
        users = pc.unique(table["user_id"]).drop_null()
        gone = [user for user in users.to_pylist() if hashlib.sha256(user.encode()).digest() in job.forgotten]
        out = pc.is_in(table["user_id"], value_set=pa.array(gone, pa.string()))
        kept[code] = table.filter(pc.invert(out))
        left = table.filter(out)
        days = _day_texts(left.filter(pa.array(_counted(job, left)))).value_counts()
        dropped[NAMES[code]] = {row["values"]: row["counts"] for row in days.to_pylist()}
    return kept, dropped


def before_of(resume: Resume | None, bucket: int) -> Before | None:
    """What a bucket takes from the runs before, where a run starts in the middle of the log."""
    if resume is None:
        return None
    rows = _read(resume.rows.get(bucket, ()), ["user_id", "decided_at"])
    last = rows.group_by("user_id").aggregate([("decided_at", "max")])
    consent = _read(resume.consent.get(bucket, ()), ["user_id", "at", "logged", "kind"])
    consent = consent.filter(pc.less(consent["at"], resume.known_since))
    at = last["decided_at_max"].cast(pa.int64()).to_numpy()
    return Before(resume.since, last["user_id"].combine_chunks(), at, consent, resume.known_since)


def _read(paths: tuple[str, ...], columns: list[str]) -> pa.Table:
    """The columns of some files of our own, which hold times and texts alone."""
    kinds = {"decided_at": _TIMESTAMP, "at": pa.int64(), "logged": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    tables = [pq.ParquetFile(path).read(columns=columns).cast(schema) for path in paths]
    return pa.concat_tables([schema.empty_table(), *tables])


def _by(table: pa.Table, key: pa.ChunkedArray) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each value of the key, in the order of values; the order of rows stays."""
    coded = key.combine_chunks().dictionary_encode()
    code = np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    ordered = table.take(pa.array(np.argsort(code, kind="stable")))
    count = np.bincount(code, minlength=len(coded.dictionary))
    ends = np.cumsum(count)
    for value, rows, end in sorted(zip(coded.dictionary.to_pylist(), count, ends, strict=True)):
        yield value, ordered.slice(end - rows, rows)


def _expected(marked: Marked, plan: Plan, before: Before | None) -> list[int]:
    """How many decisions must become usable and unusable rows, by the rules alone.

    Usable: kept, and before the watermark. Unusable: quarantined, with a user, and a time in order and not too late.
    """
    table, marks = marked.tables[DECISIONS], marked.marks[DECISIONS]
    at = pc.fill_null(table["at"], plan.watermark).to_numpy()
    lag = pc.fill_null(pc.subtract(table["logged"], table["at"]), 0).to_numpy()
    due = (at < plan.watermark) & (at >= (before.since if before else at.min(initial=0)))
    valid = ~is_null(table, "user_id") & ~marks.caught("oversized_user_id") & (lag >= 0) & (lag <= plan.max_lateness)
    unusable = due & valid & ~marks.kept & ~marks.caught(EXACT_DUPLICATE)
    return [int((due & marks.kept).sum()), int(unusable.sum())]


def _consent(marked: Marked, before: Before | None) -> pa.Table:
    """All changes of consent known so far: those before the raw rows that were read, and those that they tell of."""
    schema = pa.schema([field for field in consent_layout().schema if field.name != "bucket"])
    old = before.consent.cast(schema) if before else schema.empty_table()
    if EVENTS not in marked.tables:
        return old
    table, kept = marked.tables[EVENTS], marked.marks[EVENTS].kept
    kind = positions(table["label"], KINDS)
    rows = kept & ((kind == DISABLE) | (kind == ENABLE))
    if before is not None:
        rows &= ints(table, "at") >= before.known_since
    found = table.take(pa.array(np.flatnonzero(rows)))
    fresh = pa.table([found[name] for name in ("user_id", "at", "logged", "label")], schema=schema)
    return pa.concat_tables([old, fresh]).sort_by([(name, "ascending") for name in schema.names])


def _staged(staged: staging.Staged) -> bytes:
    return json.dumps(asdict(staged)).encode()


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _quarantine(job: Job, code: int, marked: Marked) -> Iterator[Result]:
    """Every quarantined row with its reason and what to do about it, one file per arrival day."""
    table, marks = marked.tables[code], marked.marks[code]
    rows = np.flatnonzero(~marks.kept & ~marks.caught(EXACT_DUPLICATE) & _counted(job, table))
    if not len(rows):
        return
    layout = quarantine_layout(job.schemas[code])
    found, reason = table.take(pa.array(rows)), marks.reasons().take(pa.array(rows))
    yield OFFENDERS, json.dumps([NAMES[code], offences(found, reason, job.plan.contract)]).encode()
    remedy = pa.array([REMEDIES.get(text.split(":")[0]) for text in marks.names[1:]], pa.string())
    columns = {name: found[name] for name in found.column_names if name != "day"}
    for name in ("at", "logged"):
        columns[name] = columns[name].cast(_TIMESTAMP)
    columns |= {"reason": reason, "remedy": remedy.take(pa.array(marks.code[rows] - 1)), "ds": _day_texts(found)}
    # In an order of their own: the same rows are the same file, whatever order they came in.
    whole = pa.table([columns[name] for name in layout.schema.names], schema=layout.schema)
    ordered = whole.sort_by(
        [(name, "ascending") for name in ("user_id", "row_id", "at", "logged", "reason") if name in columns]
    )
    place = QUARANTINE + NAMES[code]
    for day, part in _by(ordered, ordered["ds"]):
        yield place, _staged(staging.write(part, job.root / place, job.run, layout, {"ds": day}))


def _counted(job: Job, table: pa.Table) -> NDArray[np.bool_]:
    """[N] whether the row arrived on a day that this run accounts for."""
    if job.resume is None:
        return np.ones(table.num_rows, bool)
    return np.asarray(ints(table, "day") >= job.resume.first_day) | is_null(table, "day")


def _day_texts(table: pa.Table) -> pa.Array:
    days = pa.array(ints(table, "day").astype("datetime64[D]").astype(str), pa.string())
    return pc.if_else(pa.array(is_null(table, "day")), UNKNOWN_DAY, days)


def _raw_partial(job: Job, code: int, marked: Marked) -> pa.Table:
    """What the quality suites ask of a raw dataset, see profile.py."""
    plan, table, marks = job.plan, marked.tables[code], marked.marks[code]
    kept, reason, counted = marks.kept, marks.reasons(), _counted(job, table)
    if not counted.all():
        rows = pa.array(np.flatnonzero(counted))
        table, kept, reason = table.take(rows), kept[counted], reason.take(rows)
    names = {"user_id": "user_id", "row_id": ROW_ID[code], "at": TIME_OF[code]}
    columns = {f"null:{name}": is_null(table, column) for column, name in names.items() if column in table.column_names}
    if code != USERS:
        columns["mature"] = kept & (ints(table, "at") < plan.watermark)
    if code == DECISIONS:
        columns |= _decision_columns(table, plan, kept)
    elif code == EVENTS:
        kind = positions(table["label"], KINDS)
        columns["bad:kind"] = kind < 0
        columns |= {f"kind:{name}": kept & (kind == index) for index, name in enumerate(KINDS)}
    else:
        for name in plan.features.attributes:
            columns[f"attribute:{name}"] = np.where(kept, floats(table, f"attribute:{name}"), np.nan)
    return measure(NAMES[code], _days(table), columns, reason)


def _decision_columns(table: pa.Table, plan: Plan, kept: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    propensity, unknown = floats(table, "propensity"), is_null(table, "propensity")
    action = log.actions(table, plan)
    sends = np.array(plan.contract.is_send)[action].astype(np.float64)
    options = log.logged_legal(table, plan)[0].sum(axis=1)
    return {
        "null:propensity": unknown,
        "bad:action": action < 0,
        "bad:propensity": np.where(unknown, np.nan, (~((propensity > 0) & (propensity <= 1))).astype(np.float64)),
        "sends": np.where(kept, sends, np.nan),
        **choices(propensity, options, kept),
    }


def _days(table: pa.Table) -> Any:
    """Arrival days as numbers, or as texts where one is unknown."""
    return _day_texts(table) if table["day"].null_count else ints(table, "day")


def _made_partial(made: pa.Table, plan: Plan) -> pa.Table:
    """What the quality suites ask of the transitions, see profile.py."""

    def flag(name: str) -> NDArray[np.bool_]:
        return np.asarray(made[name].to_numpy(), dtype=bool)

    usable = flag("usable")
    columns: dict[str, NDArray[Any]] = {
        f"null:{name}": is_null(made, name) for name in ("user_id", "decided_at", "split", "legal", "elapsed_days")
    }
    columns |= {"elapsed_days": floats(made, "elapsed_days"), "usable": usable}
    flags = {name: flag(name) for name in ("silent", "warm_up", "truncated", "terminal")}
    flags |= {"no_action": is_null(made, "action")}
    columns |= {name: np.where(usable, found, np.nan) for name, found in flags.items()}
    numbers = ["propensity", *(name for name in made.column_names if name.startswith((STATE_PREFIX, REWARD_PREFIX)))]
    for name in numbers:
        values = made[name].to_numpy()
        columns[name] = values if usable.all() else np.where(usable, values, np.nan)
    return measure(TRANSITIONS, made["decided_at"].cast(pa.int64()).to_numpy() // DAY, columns)
