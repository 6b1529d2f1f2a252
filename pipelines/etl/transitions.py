"""Marked raw rows of whole users to transitions: rows, states, legal actions, rewards, ends.

Output columns: docstring of models/contract.py, in the order of schemas.transition_fields.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.contract import HOLD, REWARD_PREFIX, STATE_PREFIX
from pipelines.etl import decisions as log
from pipelines.etl.events import happenings, mark_events, mark_users, people
from pipelines.etl.features import (
    ACCOUNT_CLOSED,
    DAY,
    Floats,
    Happenings,
    Ints,
    People,
    Probes,
    Sends,
    Windows,
    known,
    state_matrix,
)
from pipelines.etl.marks import (
    CONFLICTING_DUPLICATE,
    EXACT_DUPLICATE,
    Plan,
    codes,
    floats,
    ints,
    is_null,
    texts,
)
from pipelines.etl.rewards import Intervals, Notified, clicks_within, interval_rewards
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS, transition_schema
from policies.constraints import legal_actions

Bools = NDArray[np.bool_]


def mark(table: pa.Table, plan: Plan) -> pa.Table:
    """The raw rows of whole users with one more column, `reason`: null where kept."""
    dataset = ints(table, "dataset")
    reason = np.full(table.num_rows, None, dtype=object)
    for code, rule in ((DECISIONS, log.mark_decisions), (EVENTS, mark_events), (USERS, lambda t, _: mark_users(t))):
        rows = np.flatnonzero(dataset == code)
        reason[rows] = rule(table.take(pa.array(rows)), plan).reasons()
    return table.append_column("reason", pa.array(reason, pa.string()))


@dataclass(frozen=True)
class Log:
    """The marked rows of whole users, apart by dataset; user and decision codes are shared."""

    decisions: pa.Table
    """Decisions that become rows: kept or unusable, before the watermark, by user, time, decision_id."""
    user: Ints
    """[D] users of these decisions."""
    usable: Bools
    """[D] kept."""
    sends: Sends
    notified: Notified
    """Every send that reached the phone, for the state and for click windows."""
    decision: Ints
    """[D] codes of the decisions that become rows."""
    events: Happenings
    people: People


def transitions(table: pa.Table, plan: Plan) -> pa.Table:
    """Marked rows of whole users -> their transitions, by user, time, decision_id."""
    log_rows = split_log(table, plan)
    rows = _rows(log_rows, plan)
    actions = len(plan.contract.actions)
    legal = log.logged_legal(log_rows.decisions, plan)[0][rows.source]
    legal[rows.silent] = np.arange(actions) == 0
    action = np.where(rows.silent, 0, log.actions(log_rows.decisions, plan)[rows.source])
    context = _context(log_rows, rows, plan)
    facts = known(
        Probes(rows.user, rows.at, context),
        log_rows.sends,
        log_rows.events,
        log_rows.people,
        plan.lookback,
        plan.features.click_prior,
        plan.session_gap,
    )
    columns = _identity(log_rows, rows, plan)
    columns |= _actions(log_rows, rows, plan, action, legal)
    now_legal = legal_actions(facts, legal, plan.contract.actions, plan.constraints)[0]
    every = pa.FixedSizeListArray.from_arrays(pa.array(now_legal.ravel()), actions)
    columns["legal"] = every.cast(pa.list_(pa.bool_()))
    state = state_matrix(facts, context, plan.features)
    for index, name in enumerate(plan.contract.features):
        columns[STATE_PREFIX + name] = _nullable(state[:, index], ~np.isnan(state[:, index]), pa.float32())
    columns |= _outcomes(log_rows, rows, plan, action)
    schema = transition_schema(plan.contract)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def split_log(table: pa.Table, plan: Plan) -> Log:
    """Users by code (in the order of their ids), and which decisions become rows, sends and click windows."""
    dataset, missing = ints(table, "dataset"), is_null(table, "user_id")
    reason = texts(table, "reason")
    at, logged = ints(table, "at"), ints(table, "logged")
    timed = ~is_null(table, "at") & (is_null(table, "logged") | (logged >= at))
    kept = is_null(table, "reason")
    decided = (dataset == DECISIONS) & ~missing & timed & (reason != EXACT_DUPLICATE)
    user = user_codes(table)

    rows = np.flatnonzero(decided & (at < plan.watermark))
    ids = pc.rank(
        pc.fill_null(table["row_id"], "").combine_chunks(), sort_keys="ascending", tiebreaker="dense"
    ).to_numpy()
    # Of rows that claim one id at one time the unusable come first, so that the kept one keeps its interval.
    order = np.lexsort((ints(table, "hash")[rows], logged[rows], kept[rows], ids[rows], at[rows], user[rows]))
    rows = rows[order]

    # A send with a bad propensity did reach the phone; a second account of one send did not.
    sent = decided & ~is_null(table, "logged") & (reason != CONFLICTING_DUPLICATE) & (logged <= plan.as_of)
    action = log.actions(table, plan)
    sent &= (action >= 0) & np.array([*plan.contract.is_send])[action]
    sends = np.flatnonzero(sent)
    happened = np.flatnonzero((dataset == EVENTS) & kept)
    registered = np.flatnonzero((dataset == USERS) & kept)
    decision, about = _decision_codes(table)
    return Log(
        decisions=table.take(pa.array(rows)),
        user=user[rows],
        usable=kept[rows],
        sends=Sends(user[sends], at[sends], logged[sends]),
        notified=Notified(user[sends], decision[sends], at[sends]),
        decision=decision[rows],
        events=happenings(table.take(pa.array(happened)), user[happened], about[happened]),
        people=people(table.take(pa.array(registered)), user[registered], plan),
    )


def user_codes(table: pa.Table) -> Ints:
    """[N] rank of the user's id among the users of the table, so that codes sort as ids do; -1 where null."""
    ids = pc.unique(table["user_id"]).drop_null()
    ids = ids.take(pc.sort_indices(ids))
    return np.asarray(pc.fill_null(pc.index_in(table["user_id"], value_set=ids), -1).to_numpy(), dtype=np.int64)


def _decision_codes(table: pa.Table) -> tuple[Ints, Ints]:
    """[N] codes of a row's own id, and [N] of the decision it is about (-1 where null), in one numbering."""
    both = pa.chunked_array([*table["row_id"].chunks, *table["decision_id"].chunks], pa.string())
    code = codes(pa.table({"id": both}), "id")
    return code[: table.num_rows], code[table.num_rows :]


@dataclass(frozen=True)
class Rows:
    """The R rows of the output: decisions, and the silent rows that follow them."""

    source: Ints
    """[R] the decision that the row is, or that the silent row follows."""
    user: Ints
    at: Ints
    end: Ints
    """[R] e_k: the user's next row, or the watermark."""
    silent: Bools
    usable: Bools
    cut: Bools
    """[R] the watermark or an unusable row ended the interval."""


def _rows(found: Log, plan: Plan) -> Rows:
    """Where events exist, a silent row every `max_gap` after a decision until the next one, the watermark, or the
    closing of the account: whoever has no account is no longer silent.
    """
    user, at = found.user, ints(found.decisions, "at")
    end = _next(user, at, plan.watermark)[0]
    extra = np.zeros(len(user), np.int64)
    if plan.has_events and plan.contract.actions[0] == HOLD:
        extra = np.maximum((np.minimum(end, _closing(found, user, at)) - at - 1) // plan.max_gap, 0)
    source = np.repeat(np.arange(len(user)), extra + 1)
    nth = np.arange(len(source)) - np.repeat(np.cumsum(extra + 1) - extra - 1, extra + 1)
    silent = nth > 0
    user, at = user[source], at[source] + nth * plan.max_gap
    end, last = _next(user, at, plan.watermark)
    usable = found.usable[source] | silent
    return Rows(source, user, at, end, silent, usable, cut=last | ~np.append(usable[1:], True))


def _next(user: Ints, at: Ints, watermark: int) -> tuple[Ints, Bools]:
    """[R] time of the user's next row or the watermark, and [R] whether there is none."""
    last = np.append(user[1:] != user[:-1], True)[: len(user)]
    return np.where(last, watermark, np.append(at[1:], watermark)[: len(user)]), last


def _closing(found: Log, user: Ints, at: Ints) -> Ints:
    """[D] when the user's account was first closed after each moment; far away where it was not."""
    closed = found.events.where(found.events.kind == ACCOUNT_CLOSED)
    far = np.iinfo(np.int64).max
    # The first after a moment is the last before it with time turned round.
    row = Windows(user, -at).latest(closed.user, -closed.at + 1, -closed.at)
    return np.where(row < 0, far, closed.at[row] if len(closed.at) else far)


def _context(found: Log, rows: Rows, plan: Plan) -> dict[str, NDArray[Any]]:
    """[R] context columns; a silent row has no candidate."""
    context = {name: column[rows.source] for name, column in log.context(found.decisions, plan).items()}
    for column in context.values():
        column[rows.silent] = None if column.dtype == object else np.nan
    return context


def _identity(found: Log, rows: Rows, plan: Plan) -> dict[str, pa.Array]:
    table = found.decisions
    ids, users = texts(table, "row_id")[rows.source], texts(table, "user_id")[rows.source]
    for row in np.flatnonzero(rows.silent):
        ids[row] = f"silent:{users[row]}:{rows.at[row]}"
    policy, reason = texts(table, "policy_id")[rows.source], texts(table, "reason")[rows.source]
    policy[rows.silent] = None
    reason[rows.silent] = None
    return {
        "user_id": pa.array(users, pa.string()),
        "decision_id": pa.array(ids, pa.string()),
        "decided_at": pa.array(rows.at, pa.timestamp("us", "UTC")),
        "ds": pa.array(rows.at.astype("datetime64[us]").astype("datetime64[D]").astype(str), pa.string()),
        "bucket": pa.array(ints(table, "bucket")[rows.source], pa.int32()),
        "split": pa.array(texts(table, "split")[rows.source], pa.string()),
        "policy_id": pa.array(policy, pa.string()),
        "reason": pa.array(reason, pa.string()),
        "silent": pa.array(rows.silent),
        "usable": pa.array(rows.usable),
        "warm_up": pa.array(rows.at < plan.log_start + plan.warmup),
    }


def _actions(found: Log, rows: Rows, plan: Plan, action: Ints, legal: Bools) -> dict[str, pa.Array]:
    """Action, propensity and its source; the only legal action is certain, an unknown propensity stays null."""
    propensity = floats(found.decisions, "propensity")[rows.source]
    logged = ~np.isnan(propensity) & ~rows.silent
    certain = ~logged & (legal.sum(axis=1) == 1)
    propensity[certain] = 1.0
    source = np.full(len(logged), None, dtype=object)
    source[logged & rows.usable], source[certain & rows.usable] = "logged", "certain"
    names = np.array([*plan.contract.actions, None], dtype=object)
    return {
        "action": pa.array(names[action], pa.string()),
        "propensity": _nullable(propensity, rows.usable & (logged | certain), pa.float64()),
        "propensity_source": pa.array(source, pa.string()),
    }


def _outcomes(found: Log, rows: Rows, plan: Plan, action: Ints) -> dict[str, pa.Array]:
    """Rewards, elapsed time, how the interval ended, and whether this notification was clicked."""
    intervals = Intervals(rows.user, rows.at, rows.end)
    is_send = np.array(plan.contract.is_send)[action] & rows.usable
    clicks, clicked = clicks_within(found.events, found.notified, plan.click_window)
    built_in = interval_rewards(intervals, is_send, found.events, clicks, plan.session_gap)
    outcome = log.outcomes(found.decisions, plan)
    columns = {}
    for name in plan.contract.rewards:
        given = name in plan.outcomes
        value: Floats = np.where(rows.silent, 0.0, outcome[name][rows.source]) if given else built_in[name]
        columns[REWARD_PREFIX + name] = _nullable(value, rows.usable, pa.float64())
    closed = found.events.where(found.events.kind == ACCOUNT_CLOSED)
    terminal = (intervals.count(closed.user, closed.at) > 0) & rows.usable
    columns["terminal"] = pa.array(terminal)
    columns["truncated"] = pa.array(rows.cut & rows.usable & ~terminal)
    columns["elapsed_days"] = pa.array((rows.end - rows.at) / DAY)
    columns["clicks_attributed"] = _attributed(found, rows, plan, is_send & ~rows.silent, clicked)
    return columns


def _attributed(found: Log, rows: Rows, plan: Plan, is_send: Bools, clicked: Ints) -> pa.Array:
    """[R] 1 if this notification was clicked within its window, 0 if not; null on a hold and while the window is open.

    `clicked` are indices into found.notified, one per click within its window.
    """
    wide = int(found.decision.max(initial=0)) + 1
    owners = found.notified.user[clicked] * wide + found.notified.decision[clicked]
    was = np.isin(rows.user * wide + found.decision[rows.source], owners)
    settled = is_send & plan.has_events & (rows.at + plan.click_window <= plan.watermark)
    return _nullable(was.astype(np.int32), settled, pa.int32())


def _nullable(values: NDArray[Any], valid: Bools, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind, mask=~valid)
