"""The first reason in a fixed order why a raw row is not kept; rules on the row alone, but for duplicates."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.contract import HOLD, Contract
from pipelines.etl.features import Ints, StateFeatures
from pipelines.etl.hashing import Hashes, xxhash64
from policies.constraints import Constraints

EXACT_DUPLICATE = "exact_duplicate"
CONFLICTING_DUPLICATE = "conflicting_duplicate"

LONGEST_ID = 1024
"""Bytes of a user id; what is longer is no id, and would be carried through every table."""

REMEDIES = {
    "missing_user_id": "log whose row it is, or map data.*.columns.user_id",
    "oversized_user_id": f"log an id of at most {LONGEST_ID} bytes; something else stands in the column",
    "missing_decision_id": "give every decision an id of its own",
    "missing_event_id": "give every event an id of its own",
    "missing_decided_at": "log when the choice was made, as a UTC timestamp",
    "missing_occurred_at": "log when the event occurred, as a UTC timestamp",
    "missing_valid_from": "log from when the row of the user holds, as a UTC timestamp",
    "missing_logged_at": "log when the row became known, as a UTC timestamp",
    "logged_before_it_happened": "correct the clocks: logged_at must not lie before the row's own time",
    "clock_ahead": "correct the clock that wrote logged_at, or set etl.as_of later",
    "too_late": "deliver rows sooner, or raise etl.max_lateness_days",
    CONFLICTING_DUPLICATE: "write each id once: a row of this user logged before has the id and other contents",
    "unknown_action": "add the action to `actions`, or map it to one of them",
    "unknown_legal_action": "name in legal_actions only what stands in `actions`",
    "illegal_action": "log legal_actions as the policy saw them: the action taken must be among them",
    "propensity_out_of_range": "log the probability of the action taken, in (0, 1], or null where unknown",
    "forced_propensity": "log propensity 1 where one action is legal, or log the other legal actions",
    "missing_feature": "log the context column wherever there was a choice, or remove it from [features]",
    "missing_reward": "log the outcome column, or remove it from `rewards`",
    "unknown_kind": "map the event to a known kind in data.events.columns.kind, or leave it out",
}
"""What to do about each reason; `missing_feature` and `missing_reward` are followed by `:NAME` in the rows."""


@dataclass(frozen=True)
class Plan:
    """What the kernels need to know; sent to the workers. Times and spans are int64 us."""

    contract: Contract
    outcomes: tuple[str, ...]
    """Those reward components that are columns of the decision row."""
    features: StateFeatures
    constraints: Constraints
    has_events: bool
    buckets: int
    split: tuple[float, float, float]
    """Shares of users in train, validation and test."""
    as_of: int
    watermark: int
    log_start: int
    """The earliest decision or event of the log."""
    lookback: int
    warmup: int
    max_lateness: int
    max_gap: int
    click_window: int
    session_gap: int

    @property
    def silent_rows(self) -> bool:
        """Whether rows are added where nobody decided: only events say that time passed, only `hold` fits them."""
        return self.has_events and self.contract.actions[0] == HOLD


class Marks:
    """The reason of each of N rows; the first that is added wins."""

    def __init__(self, rows: int) -> None:
        self.code = np.zeros(rows, np.int16)
        self.names = [""]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[N] rows that no rule has caught so far."""
        return np.asarray(self.code == 0)

    def add(self, name: str, rows: NDArray[np.bool_]) -> None:
        """Mark those of `rows` [N] that are still kept."""
        self.names.append(name)
        self.code[rows & self.kept] = len(self.names) - 1

    def caught(self, name: str) -> NDArray[np.bool_]:
        """[N] rows marked with the reason."""
        return np.asarray(self.code == self.names.index(name)) if name in self.names else np.zeros(len(self.code), bool)

    def reasons(self) -> pa.Array:
        """[N] reason, null where kept."""
        return pa.array(self.names, pa.string()).take(pa.array(self.code, mask=self.kept))


def is_null(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """[N] whether the column is null."""
    return np.asarray(table[name].is_null().to_numpy(), dtype=bool)


def ints(table: pa.Table, name: str) -> Ints:
    """[N] int64 column, 0 where null."""
    return np.asarray(pc.fill_null(table[name], 0).to_numpy(), dtype=np.int64)


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """[N] float64 column, NaN where null."""
    return np.asarray(pc.fill_null(table[name], float("nan")).to_numpy(), dtype=np.float64)


def texts(table: pa.Table, name: str) -> NDArray[Any]:
    """[N] text column as objects, None where null."""
    return np.asarray(table[name].to_numpy(), dtype=object)


def codes(table: pa.Table, name: str) -> Ints:
    """[N] int64 code of each text, equal for equal texts, -1 where null; the order of codes means nothing."""
    found = pc.index_in(table[name], value_set=pc.unique(table[name]).drop_null())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)


def positions(column: Any, names: tuple[str, ...]) -> Ints:
    """[N] index of each text among `names`, -1 where it is null or none of them."""
    found = pc.index_in(column, value_set=pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def mark_times(marks: Marks, table: pa.Table, plan: Plan, row_id: str, time: str) -> None:
    """Rules on ids and times: missing_*, oversized_user_id, logged_before_it_happened, clock_ahead, too_late."""
    at, logged = ints(table, "at"), ints(table, "logged")
    mark_user(marks, table)
    for name, column in ((row_id, "row_id"), (time, "at"), ("logged_at", "logged")):
        marks.add(f"missing_{name}", is_null(table, column))
    marks.add("logged_before_it_happened", logged < at)
    marks.add("clock_ahead", logged > plan.as_of)
    # Not the difference of the two: a time that is far enough back has none in int64.
    marks.add("too_late", at < logged - plan.max_lateness)


def mark_user(marks: Marks, table: pa.Table) -> None:
    """missing_user_id, oversized_user_id."""
    marks.add("missing_user_id", is_null(table, "user_id"))
    length = pc.fill_null(pc.binary_length(table["user_id"]), 0).to_numpy()
    marks.add("oversized_user_id", length > LONGEST_ID)


def mark_duplicates(marks: Marks, table: pa.Table, user: Ints, plan: Plan) -> None:
    """Of rows still kept that share a user and an id the earliest logged (then the smallest content hash) stays.

    A later row with the content of the one that stays is an exact duplicate, any other a conflicting one. Rows are
    compared where they were logged at most `max_lateness` apart: a copy that comes later than that is too late by
    itself, and a run over some days need not read all days before them.
    """
    rows = repeated(table, user, marks.kept)
    if not len(rows):
        return
    found = table.take(pa.array(rows))
    key, logged, content = user[rows] * (1 + len(rows)) + codes(found, "row_id"), ints(found, "logged"), contents(found)
    order = np.lexsort((content, logged, key))
    rows, key, logged, content = rows[order], key[order], logged[order], content[order]
    moments, rank = np.unique(logged, return_inverse=True)
    _, group = np.unique(key, return_inverse=True)
    place = group * (len(moments) + 1)
    back = np.searchsorted(moments, logged - plan.max_lateness, "left")
    first = np.searchsorted(place + rank, place + back, "left")
    later = first < np.arange(len(rows))
    same = content == content[first]
    for name, those in ((EXACT_DUPLICATE, later & same), (CONFLICTING_DUPLICATE, later & ~same)):
        caught = np.zeros(table.num_rows, bool)
        caught[rows[those]] = True
        marks.add(name, caught)


def repeated(table: pa.Table, user: Ints, among: NDArray[np.bool_]) -> Ints:
    """Places of the rows of `among` [N] whose user and id may stand more than once there: all that do, hardly more."""
    rows = np.flatnonzero(among)
    seed = user[rows].astype(np.uint64)
    key = xxhash64(table["row_id"] if len(rows) == table.num_rows else table["row_id"].take(pa.array(rows)), seed)
    ordered = np.sort(key)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.empty(0, np.int64)
    place = np.minimum(np.searchsorted(twice, key), len(twice) - 1)
    return np.asarray(rows[twice[place] == key], dtype=np.int64)


def contents(table: pa.Table) -> Ints:
    """[N] content hash of each row: of all that was read but for when it was logged; nulls count."""
    total: Hashes = np.zeros(table.num_rows, np.uint64)
    for name in sorted(set(table.column_names) - {"logged", "day"}):
        column = table[name]
        if pa.types.is_list(column.type):
            column = pc.binary_join(column, "\0")
        # Numbers by their shortest text: hashed by value, never by how a reader happened to store them.
        missing = np.asarray(column.is_null().to_numpy(), dtype=np.uint64)
        total = xxhash64(pc.cast(column, pa.string()), total + missing + np.uint64(1))
    return total.view(np.int64)
