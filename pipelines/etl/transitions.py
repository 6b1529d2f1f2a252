"""Raw rows of whole users to transitions: reasons, rows, states, legal actions, rewards, ends.

Output columns: docstring of models/contract.py, in the order of schemas.transition_schema.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.contract import REWARD_PREFIX, SPLITS, STATE_PREFIX
from pipelines.etl import decisions as log
from pipelines.etl.features import ACCOUNT_CLOSED, DAY, Floats, Ints, Probes, known, state_matrix
from pipelines.etl.hashing import bucket_of, xxhash64
from pipelines.etl.history import Before, History, Marked, read_history
from pipelines.etl.marks import Plan, floats
from pipelines.etl.rewards import Intervals, clicks_within, interval_rewards
from pipelines.etl.schemas import transition_schema
from policies.constraints import legal_actions

Bools = NDArray[np.bool_]
SHARES = 1_000_000
"""A user's draw for the split is a multiple of one over this."""


@dataclass(frozen=True)
class Rows:
    """The R rows of the output, by user and time: decisions, and the silent rows between and after them."""

    source: Ints
    """[R] place of the decision, -1 on a silent row."""
    user: Ints
    at: Ints
    end: Ints
    """[R] e_k: the user's next row, or the watermark."""
    silent: Bools
    usable: Bools
    cut: Bools
    """[R] the watermark or an unusable row ended the interval."""

    def of(self, first: int, last: int) -> "Rows":
        """Those of the users first .. last - 1, whose codes then begin at 0."""
        at = slice(*np.searchsorted(self.user, [first, last]))
        return Rows(
            self.source[at],
            self.user[at] - first,
            self.at[at],
            self.end[at],
            self.silent[at],
            self.usable[at],
            self.cut[at],
        )


def transitions(marked: Marked, plan: Plan, before: Before | None = None) -> pa.Table:
    """The transitions of whole users by user, time and decision_id: all, or those from `before.since` on."""
    history = read_history(marked, plan, before)
    return pa.concat_tables(_made(history, _rows(history, plan, before), plan))


def _made(history: History, rows: Rows, plan: Plan) -> Iterator[pa.Table]:
    """The columns of the rows; users apart in halves where their times span too much for one key."""
    try:
        yield _columns(history, rows, plan)
    except OverflowError:
        users = len(history.users)
        if users < 2:
            raise
        for first, last in ((0, users // 2), (users // 2, users)):
            yield from _made(history.of(first, last), rows.of(first, last), plan)


def _rows(history: History, plan: Plan, before: Before | None) -> Rows:
    """Where events exist, a silent row every `max_gap` after a row until the next decision or the watermark.

    Of what came before `before.since` each user's last row alone counts: the next silent row is due `max_gap` after it.
    """
    user, at, usable = history.user, history.at, history.usable
    source = np.arange(len(user))
    if before is not None:
        kept = np.flatnonzero(at >= before.since)
        earlier = history.code(before.user_id)
        user, at = np.append(earlier, user[kept]), np.append(before.at, at[kept])
        usable, source = np.append(np.ones(len(earlier), bool), usable[kept]), np.append(earlier * 0 - 1, kept)
        order = np.lexsort((at, user))
        user, at, usable, source = user[order], at[order], usable[order], source[order]
    earlier_row = source < 0
    end = _next(user, at, plan.watermark)[0]
    extra = np.maximum((end - at - 1) // plan.max_gap, 0) if plan.silent_rows else np.zeros(len(user), np.int64)
    origin = np.repeat(np.arange(len(user)), extra + 1)
    nth = np.arange(len(origin)) - np.repeat(np.cumsum(extra + 1) - extra - 1, extra + 1)
    silent = nth > 0
    user, at = user[origin], at[origin] + nth * plan.max_gap
    end, last = _next(user, at, plan.watermark)
    usable = usable[origin] | silent
    cut = last | ~np.append(usable[1:], True)[: len(usable)]
    made = np.flatnonzero(silent | ~earlier_row[origin])
    source = np.where(silent, -1, source[origin])
    return Rows(source[made], user[made], at[made], end[made], silent[made], usable[made], cut[made])


def _next(user: Ints, at: Ints, watermark: int) -> tuple[Ints, Bools]:
    """[R] time of the user's next row or the watermark, and [R] whether there is none."""
    last = np.append(user[1:] != user[:-1], True)[: len(user)]
    return np.where(last, watermark, np.append(at[1:], watermark)[: len(user)]), last


def _columns(history: History, rows: Rows, plan: Plan) -> pa.Table:
    decided = history.decisions.take(pa.array(_raw(history, rows), mask=rows.silent))
    actions = len(plan.contract.actions)
    legal = log.logged_legal(decided, plan)[0]
    legal[rows.silent] = np.arange(actions) == 0
    action = np.where(rows.silent, 0, log.actions(decided, plan))
    context = log.context(decided, plan)
    facts = known(
        Probes(rows.user, rows.at, context),
        history.sends,
        history.events,
        history.visits,
        history.people,
        plan.lookback,
        plan.features.click_prior,
    )
    columns = _identity(history, decided, rows, plan)
    columns |= _actions(decided, rows, plan, action, legal)
    now_legal = legal_actions(facts, legal, plan.contract.actions, plan.constraints)[0]
    every = pa.FixedSizeListArray.from_arrays(pa.array(now_legal.ravel()), actions)
    columns["legal"] = every.cast(pa.list_(pa.bool_()))
    state = state_matrix(facts, context, plan.features)
    for index, name in enumerate(plan.contract.features):
        columns[STATE_PREFIX + name] = _nullable(state[:, index], ~np.isnan(state[:, index]), pa.float32())
    columns |= _outcomes(history, decided, rows, plan, action)
    schema = transition_schema(plan.contract)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def split_of(users: pa.Array, shares: tuple[float, float, float]) -> pa.Array:
    """[U] train, validation or test by a hash of the user id alone."""
    hashes = xxhash64(pa.repeat("split", len(users)), xxhash64(users))
    draw = (hashes.view(np.int64) % SHARES) / SHARES
    place = (draw >= shares[0]).astype(np.int64) + (draw >= shares[0] + shares[1])
    return pa.array(SPLITS).take(pa.array(place))


def _identity(history: History, decided: pa.Table, rows: Rows, plan: Plan) -> dict[str, Any]:
    user = pa.array(rows.user)
    ids = history.users.take(user)
    silent = pc.binary_join_element_wise("silent", ids, pc.cast(pa.array(rows.at), pa.string()), ":")
    day, place = np.unique(rows.at // DAY, return_inverse=True)
    days = pa.array(day.astype("datetime64[D]").astype(str), pa.string())
    reasons = history.reason.take(pa.array(rows.source, mask=rows.silent))
    return {
        "user_id": ids,
        "decision_id": pc.if_else(pa.array(rows.silent), silent, decided["row_id"]),
        "decided_at": pa.array(rows.at, pa.timestamp("us", "UTC")),
        "ds": days.take(pa.array(place)),
        "bucket": pa.array(bucket_of(xxhash64(history.users), plan.buckets)).take(user),
        "split": split_of(history.users, plan.split).take(user),
        "policy_id": decided["policy_id"],
        "reason": reasons,
        "silent": pa.array(rows.silent),
        "usable": pa.array(rows.usable),
        "warm_up": pa.array(rows.at < plan.log_start + plan.warmup),
    }


def _actions(decided: pa.Table, rows: Rows, plan: Plan, action: Ints, legal: Bools) -> dict[str, pa.Array]:
    """Action, propensity and its source; the only legal action is certain, an unknown propensity stays null."""
    propensity = floats(decided, "propensity").copy()
    logged = ~np.isnan(propensity)
    certain = ~logged & (legal.sum(axis=1) == 1)
    propensity[certain] = 1.0
    source = pa.array(["logged", "certain"]).take(
        pa.array(certain.astype(np.int64), mask=~(rows.usable & (logged | certain)))
    )
    return {
        "action": pa.array(plan.contract.actions).take(pa.array(np.maximum(action, 0), mask=action < 0)),
        "propensity": _nullable(propensity, rows.usable & (logged | certain), pa.float64()),
        "propensity_source": source,
    }


def _outcomes(history: History, decided: pa.Table, rows: Rows, plan: Plan, action: Ints) -> dict[str, pa.Array]:
    """Rewards, elapsed time, how the interval ended, and whether this notification was clicked."""
    intervals = Intervals(rows.user, rows.at, rows.end)
    is_send = np.array(plan.contract.is_send)[action] & rows.usable
    clicks, clicked = clicks_within(history.events, history.notified, plan.click_window)
    built_in = interval_rewards(intervals, is_send, history.events, history.visits, clicks)
    outcome = log.outcomes(decided, plan)
    columns = {}
    for name in plan.contract.rewards:
        value: Floats = np.where(rows.silent, 0.0, outcome[name]) if name in plan.outcomes else built_in[name]
        columns[REWARD_PREFIX + name] = _nullable(value, rows.usable, pa.float64())
    closed = history.events.of(ACCOUNT_CLOSED)
    terminal = (intervals.count(closed.user, closed.at) > 0) & rows.usable
    columns["terminal"] = pa.array(terminal)
    columns["truncated"] = pa.array(rows.cut & rows.usable & ~terminal)
    columns["elapsed_days"] = pa.array((rows.end - rows.at) / DAY)
    columns["clicks_attributed"] = _attributed(history, rows, plan, is_send & ~rows.silent, clicked)
    return columns


def _attributed(history: History, rows: Rows, plan: Plan, is_send: Bools, clicked: Ints) -> pa.Array:
    """[R] 1 if this notification was clicked within its window, 0 if not; null on a hold and while the window is open.

    `clicked` are indices into history.notified, one per click within its window.
    """
    was = np.isin(_raw(history, rows), history.notified_raw[clicked])
    settled = is_send & plan.has_events & (rows.at + plan.click_window <= plan.watermark)
    return _nullable(was.astype(np.int32), settled, pa.int32())


def _raw(history: History, rows: Rows) -> Ints:
    """[R] places of the rows among the raw decisions; of a silent row it means nothing."""
    return np.append(history.raw, -1)[rows.source]


def _nullable(values: NDArray[Any], valid: Bools, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind, mask=~valid)
