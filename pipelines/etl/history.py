"""Raw rows of whole users: who they are, which rows are kept, and what they say in the order of time."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.etl import decisions as log
from pipelines.etl.events import mark_events, mark_users, people
from pipelines.etl.features import CLICK, DISABLE, ENABLE, KINDS, Happenings, Ints, People, Sends, ties, visits
from pipelines.etl.marks import (
    CONFLICTING_DUPLICATE,
    EXACT_DUPLICATE,
    Marks,
    Plan,
    contents,
    ints,
    is_null,
    positions,
)
from pipelines.etl.rewards import Notified
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Before:
    """What a run that starts in the middle of the log takes from the runs before it."""

    since: int
    """us; only rows at or after it are made."""
    user_id: pa.Array
    """[B] users with a row before it."""
    at: Ints
    """[B] us: the last such row of each."""
    consent: pa.Table
    """Changes of consent before `known_since`: user_id, at, logged, kind."""
    known_since: int
    """us; the raw rows that were read tell everything that happened from here on."""


@dataclass(frozen=True)
class Marked:
    """Raw rows of whole users, by dataset, and the reason of each."""

    tables: Mapping[int, pa.Table]
    users: pa.Array
    """[U] ids of all users in order; a user's code is its place."""
    user: Mapping[int, Ints]
    """[N] code of each row's user, -1 where null, by dataset."""
    marks: Mapping[int, Marks]
    """Of decisions, events and users."""


def mark(tables: Mapping[int, pa.Table], plan: Plan, before: Before | None = None) -> Marked:
    """The reason of every raw row. Users are those of the rows, and of the rows before them."""
    users = _users(tables, before)
    user = {code: _codes(table["user_id"], users) for code, table in tables.items()}
    marks = {}
    if DECISIONS in tables:
        marks[DECISIONS] = log.mark_decisions(tables[DECISIONS], user[DECISIONS], plan)
    if EVENTS in tables:
        marks[EVENTS] = mark_events(tables[EVENTS], user[EVENTS], plan)
    if USERS in tables:
        marks[USERS] = mark_users(tables[USERS])
    return Marked(tables, users, user, marks)


def _users(tables: Mapping[int, pa.Table], before: Before | None) -> pa.Array:
    found = [pc.unique(table["user_id"]) for table in tables.values()]
    if before is not None:
        found.append(before.user_id)
    users = pc.unique(pa.chunked_array(found, pa.string())).drop_null()
    return users.take(pc.sort_indices(users))


def _codes(ids: pa.ChunkedArray, known: pa.Array) -> Ints:
    """[N] place of each id among the known ones, -1 where null or not there."""
    found = pc.index_in(ids, value_set=known)
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


@dataclass(frozen=True)
class History:
    """What whole users did and were sent, by user code: everything that rows and their states are made of."""

    users: pa.Array
    """[U] ids."""
    decisions: pa.Table
    """The raw decisions."""
    raw: Ints
    """[D] places among them of those that become rows: kept or unusable, before the watermark, by user, time, id."""
    user: Ints
    """[D]."""
    at: Ints
    """[D] us."""
    usable: Bools
    """[D] kept."""
    reason: pa.Array
    """[D] null where kept."""
    sends: Sends
    """By user and time."""
    notified: Notified
    """The sends that open a click window."""
    notified_raw: Ints
    """Their places among the raw decisions."""
    events: Happenings
    """Kept events by user and time; `decision` in the numbering of `notified`."""
    visits: Happenings
    """Those of them that start a session."""
    people: People

    def code(self, ids: pa.Array) -> Ints:
        """[N] user codes of ids that are all there."""
        return _codes(ids, self.users)

    def of(self, first: int, last: int) -> "History":
        """What the users first .. last - 1 did, whose codes then begin at 0. The decisions stay as they are."""

        def among(user: Ints) -> Ints:
            return np.flatnonzero((user >= first) & (user < last))

        sends, notified, people = self.sends, self.notified, self.people
        sent, opened, held = among(sends.user), among(notified.user), among(people.user)
        events, visited = (each.where(among(each.user)) for each in (self.events, self.visits))
        return replace(
            self,
            users=self.users[first:last],
            sends=Sends(sends.user[sent] - first, sends.at[sent], sends.logged[sent]),
            notified=Notified(notified.user[opened] - first, notified.decision[opened], notified.at[opened]),
            notified_raw=self.notified_raw[opened],
            events=replace(events, user=events.user - first),
            visits=replace(visited, user=visited.user - first),
            people=People(
                people.user[held] - first,
                people.valid_from[held],
                people.time_zone[held],
                {name: column[held] for name, column in people.attributes.items()},
                None if people.logged is None else people.logged[held],
            ),
        )


def read_history(marked: Marked, plan: Plan, before: Before | None = None) -> History:
    """The decisions that become rows, in order, and what happened around them."""
    table, user, marks = marked.tables[DECISIONS], marked.user[DECISIONS], marked.marks[DECISIONS]
    at, logged, unlogged = ints(table, "at"), ints(table, "logged"), is_null(table, "logged")
    in_order = (user >= 0) & ~is_null(table, "at") & ~marks.caught("oversized_user_id") & (unlogged | (logged >= at))
    # What comes too late must not change what was settled long ago: it is quarantined and leaves no row.
    timely = in_order & (unlogged | (at >= logged - plan.max_lateness))
    rows = np.flatnonzero(timely & ~marks.caught(EXACT_DUPLICATE) & (at < plan.watermark))
    rows = rows[_order(table, user, at, logged, marks.kept, rows)]

    # A send with a bad propensity did reach the phone; a second account of one send did not.
    once = ~marks.caught(EXACT_DUPLICATE) & ~marks.caught(CONFLICTING_DUPLICATE)
    action = log.actions(table, plan)
    sent = in_order & ~unlogged & once & (logged <= plan.as_of)
    sent &= (action >= 0) & np.array([*plan.contract.is_send])[action]
    sends, opened = np.flatnonzero(sent), np.flatnonzero(sent & timely & ~is_null(table, "row_id"))
    ids = table["row_id"].take(pa.array(opened))
    known = pc.unique(ids).drop_null()
    events = _events(marked, known, before)
    return History(
        users=marked.users,
        decisions=table,
        raw=rows,
        user=user[rows],
        at=at[rows],
        usable=marks.kept[rows],
        reason=marks.reasons().take(pa.array(rows)),
        sends=Sends(user[sends], at[sends], logged[sends]).ordered(),
        notified=Notified(user[opened], _codes(ids, known), at[opened]),
        notified_raw=opened,
        events=events,
        visits=visits(events, plan.session_gap),
        people=_people(marked, plan),
    )


def _order(table: pa.Table, user: Ints, at: Ints, logged: Ints, kept: Bools, rows: Ints) -> Ints:
    """[D] order of the rows by user, time and id.

    Of rows that claim one id at one time the unusable come first, so that the kept one keeps its interval.
    """
    order = np.lexsort((at[rows], user[rows]))
    sorted_rows = rows[order]
    tied = ties(user[sorted_rows], at[sorted_rows])
    if len(tied):
        # Ids are texts, slow to order: only those of the few rows that share a user and a time are.
        these = sorted_rows[tied]
        found = table.take(pa.array(these))
        ids = pc.rank(pc.fill_null(found["row_id"], "").combine_chunks(), tiebreaker="dense").to_numpy()
        keys = (contents(found), logged[these], kept[these], ids, at[these], user[these])
        order[tied] = order[tied][np.lexsort(keys)]
    return order


def _events(marked: Marked, sent: pa.Array, before: Before | None) -> Happenings:
    """Kept events, and the changes of consent of long ago; `sent` are the ids of the sends that clicks may name."""
    none = np.empty(0, np.int64)
    found = Happenings(none, none, none, none.astype(np.int8), none)
    if EVENTS in marked.tables:
        table, rows = marked.tables[EVENTS], marked.marks[EVENTS].kept
        kind = positions(table["label"], KINDS).astype(np.int8)
        at = ints(table, "at")
        if before is not None:
            rows &= (at >= before.known_since) | ((kind != DISABLE) & (kind != ENABLE))
        about = np.full(table.num_rows, -1, np.int64)
        clicks = np.flatnonzero(kind == CLICK)
        about[clicks] = _codes(table["decision_id"].take(pa.array(clicks)), sent)
        every = Happenings(marked.user[EVENTS], at, ints(table, "logged"), kind, about)
        found = every.where(np.flatnonzero(rows))
    if before is not None and before.consent.num_rows:
        old = before.consent
        kind = positions(old["kind"], KINDS).astype(np.int8)
        user = _codes(old["user_id"], marked.users)
        changes = Happenings(user, ints(old, "at"), ints(old, "logged"), kind, np.full(len(kind), -1))
        changes = changes.where(np.flatnonzero(user >= 0))
        both = (np.append(getattr(found, each.name), getattr(changes, each.name)) for each in fields(found))
        found = Happenings(*both)
    return found.ordered()


def _people(marked: Marked, plan: Plan) -> People:
    if USERS not in marked.tables:
        none, blank = np.empty(0, np.int64), np.empty(0, object)
        features = plan.features
        attributes = {name: np.empty(0) for name in features.attributes}
        return People(none, none, blank, attributes | dict.fromkeys(features.attribute_categories, blank), none)
    rows = np.flatnonzero(marked.marks[USERS].kept)
    return people(marked.tables[USERS].take(pa.array(rows)), marked.user[USERS][rows], plan)
