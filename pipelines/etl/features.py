"""What was known strictly before a moment: one state for the ETL (probes are decisions) and for scoring (candidates).

Every input is a set of NumPy columns: `user` is a code shared by all of them, times are int64 microseconds since the
epoch in UTC. A row that happened at `at` and became known at `logged` is visible to a probe at time t iff at < t and
logged <= t; a window of width w is [t - w, t). Rows may be given in any order.

| key of `known`                      | unit    | meaning at the probe's time t |
|-------------------------------------|---------|-------------------------------|
| notifications_on                    | 0 or 1  | the last visible `disable` or `enable`, however old; 1 without one |
| sends_, clicks_, visits_ 24h and 7d | count   | visible rows in the window, never further back than the lookback |
| hours_since_send, hours_since_visit | hours   | since the last visible one; the lookback where none was within it |
| send_never, visit_never             | 0 or 1  | none within the lookback |
| badge                               | count   | visible sends later than the last visible visit, within the lookback |
| click_rate_28d                      | share   | (clicks + prior clicks) / (sends + prior sends) over the lookback |
| hour_*, weekday_*                   | [-1, 1] | sine and cosine of hour and day of the week, user's time zone |
| local_hour                          | [0, 24) | hour of the user's own time zone, with its minutes |
| candidate_missing                   | 0 or 1  | some context column of the probe is null |
| attribute:NAME                      | given   | column of `users` as of t |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

HOUR = 3_600_000_000
DAY = 24 * HOUR
SESSION_GAP = HOUR // 2
QUARTER = HOUR // 4

KINDS = ("delivered", "click", "dismiss", "disable", "enable", "session_start", "page_view", "account_closed")
DELIVERED, CLICK, DISMISS, DISABLE, ENABLE, SESSION_START, PAGE_VIEW, ACCOUNT_CLOSED = range(len(KINDS))

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

# float32 holds the state; what it cannot hold is missing, not infinite.
_LARGEST = float(np.finfo(np.float32).max)


class FeatureNames(Protocol):
    """The part of the configuration that says which features the state has."""

    @property
    def state(self) -> list[str]: ...
    @property
    def context(self) -> list[str]: ...
    @property
    def context_categories(self) -> dict[str, list[str]]: ...
    @property
    def attributes(self) -> list[str]: ...
    @property
    def attribute_categories(self) -> dict[str, list[str]]: ...


@dataclass(frozen=True)
class StateFeatures:
    """The configuration's [features] as plain values, so that a worker needs nothing but NumPy to read them."""

    state: list[str]
    context: list[str]
    context_categories: dict[str, list[str]]
    attributes: list[str]
    attribute_categories: dict[str, list[str]]
    click_prior: tuple[float, float]


@dataclass(frozen=True)
class Probes:
    """N moments at which the state is asked for."""

    user: Ints
    """[N] user codes, 0 or more."""
    at: Ints
    """[N] us."""
    context: dict[str, NDArray[Any]]
    """Column -> [N] float64 (NaN missing) or object (None missing)."""


@dataclass(frozen=True)
class Sends:
    """M notifications that reached the phone."""

    user: Ints
    at: Ints
    logged: Ints


@dataclass(frozen=True)
class Happenings:
    """E events."""

    user: Ints
    at: Ints
    logged: Ints
    kind: NDArray[np.int8]
    """[E] index into KINDS."""
    decision: Ints
    """[E] code of the decision the event is about, -1 where there is none; the state does not read it."""

    def where(self, rows: NDArray[Any]) -> "Happenings":
        """Those events alone."""
        return Happenings(self.user[rows], self.at[rows], self.logged[rows], self.kind[rows], self.decision[rows])


@dataclass(frozen=True)
class People:
    """Rows of `users`; of rows of one user valid from one instant, the last given counts."""

    user: Ints
    valid_from: Ints
    time_zone: NDArray[Any]
    """[H] IANA name; None is UTC."""
    attributes: dict[str, NDArray[Any]]
    """Column -> [H] float64 (NaN missing) or object (None missing)."""
    logged: Ints | None = None
    """[H] when the row became known; by default from the start."""

    @property
    def visible(self) -> Ints:
        """[H] the first moment that may know of the row."""
        return self.valid_from + 1 if self.logged is None else np.maximum(self.valid_from + 1, self.logged)


class Windows:
    """Counts and last rows as of every probe, by sorting what starts and ends to be visible among the probes' times.

    Times are replaced by their rank among the probes' times, so that (user, time) fits one int64 whatever the span.
    """

    def __init__(self, user: Ints, at: Ints) -> None:
        self.user = user
        self.times, rank = np.unique(at, return_inverse=True)
        self.width = len(self.times) + 1
        self.key = user * self.width + rank

    def count(self, user: Ints, first: Ints, last: Ints) -> Ints:
        """[N] how many rows of the probe's user have first <= t <= last; O((M + N) log M)."""
        shown = first <= last
        user, first, last = user[shown], first[shown], last[shown]
        start = np.sort(user * self.width + np.searchsorted(self.times, first, "left"))
        end = np.sort(user * self.width + np.searchsorted(self.times, last, "right"))
        # Rows of earlier users have both started and ended, so they cancel.
        return np.searchsorted(start, self.key, "right") - np.searchsorted(end, self.key, "right")

    def latest(self, user: Ints, visible: Ints, *order: NDArray[Any]) -> Ints:
        """[N] the row, visible from `visible` on, that is greatest in (order[0], order[1], ...); -1 without one."""
        if not len(user):
            return np.full(len(self.user), -1, np.int64)
        row_at = np.lexsort(tuple(reversed(order)))
        position = np.empty(len(user), np.int64)
        position[row_at] = np.arange(len(user))
        key = user * self.width + np.searchsorted(self.times, visible, "left")
        walk = np.argsort(key, kind="stable")
        best = np.maximum.accumulate(user[walk] * len(user) + position[walk])
        upto = np.searchsorted(key[walk], self.key, "right") - 1
        row = row_at[best[upto] % len(user)]
        return np.where((upto >= 0) & (user[walk][upto] == self.user), row, -1)


def visits(events: Happenings, session_gap: int = SESSION_GAP) -> Happenings:
    """Session starts: every `session_start`; and a `page_view` that no page view or session start of that user,
    logged no later than it, precedes by at most `session_gap` us. Midnight is no boundary.

    Whether a page view starts a session is settled the moment it is logged, so the past never changes.
    """
    rows = np.flatnonzero((events.kind == SESSION_START) | (events.kind == PAGE_VIEW))
    # At one instant: first logged first, and a session start before the page views that it explains.
    order = np.lexsort((events.kind[rows], events.logged[rows], events.at[rows], events.user[rows]))
    shown = events.where(rows[order])
    starts = shown.kind == SESSION_START
    undecided = np.flatnonzero(~starts)
    back = 1
    while len(undecided):
        before = undecided - back
        near = before >= 0
        near &= shown.user[before] == shown.user[undecided]
        near &= shown.at[before] >= shown.at[undecided] - session_gap
        starts[undecided[~near]] = True
        undecided = undecided[near & (shown.logged[before] > shown.logged[undecided])]
        back += 1
    return shown.where(starts)


def local_clock(at: Ints, time_zone: NDArray[Any]) -> tuple[Floats, Ints]:
    """[N] hour of the day in [0, 24) and [N] day of the week (Monday 0) in each row's zone (IANA name; None is UTC).

    Raises InputError naming a zone that does not exist. Offsets are looked up once per quarter of an hour: no zone
    has changed its clock at any other minute since 1972.
    """
    names = np.array(["UTC" if zone is None else str(zone) for zone in time_zone], dtype=object)
    zones, zone = np.unique(names.astype(str), return_inverse=True)
    local = at.copy()
    for index, name in enumerate(zones):
        rows = np.flatnonzero(zone == index)
        quarter, which = np.unique(at[rows] // QUARTER, return_inverse=True)
        local[rows] += _offsets(str(name), quarter)[which]
    # 1970-01-01 was a Thursday.
    return (local % DAY) / HOUR, (local // DAY + 3) % 7


def _offsets(name: str, quarter: Ints) -> Ints:
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"users.time_zone: {name!r} is no time zone; give an IANA name such as Europe/Berlin, or null for UTC."
        ) from None
    moments = (datetime.fromtimestamp(int(q) * 900, UTC).astimezone(zone).utcoffset() for q in quarter)
    return np.array([0 if m is None else round(m.total_seconds()) * 1_000_000 for m in moments], dtype=np.int64)


def known(
    probes: Probes,
    sends: Sends,
    events: Happenings,
    people: People,
    lookback_us: int,
    click_prior: tuple[float, float],
    session_gap_us: int = SESSION_GAP,
) -> dict[str, NDArray[Any]]:
    """Every built-in feature, `local_hour` and `attribute:NAME`, each [N] in the order of the probes; see above.

    Raises InputError for an unknown time zone.
    """
    windows = Windows(probes.user, probes.at)
    seen = visits(events, session_gap_us)
    clicks = events.where(events.kind == CLICK)
    out: dict[str, NDArray[Any]] = {"notifications_on": _consent(windows, events)}
    for hours, label in ((24, "24h"), (168, "7d")):
        width = min(hours * HOUR, lookback_us)
        for name, rows in (("sends", sends), ("clicks", clicks), ("visits", seen)):
            out[f"{name}_{label}"] = _within(windows, rows, width).astype(np.float64)
    for name, rows in (("send", sends), ("visit", seen)):
        out[f"hours_since_{name}"], out[f"{name}_never"] = _recency(windows, probes.at, rows, lookback_us)
    out["badge"] = _badge(windows, sends, seen, lookback_us).astype(np.float64)
    clicked, sent = (_within(windows, rows, lookback_us) for rows in (clicks, sends))
    out["click_rate_28d"] = (clicked + click_prior[0]) / (sent + click_prior[1])
    row = windows.latest(people.user, people.visible, people.valid_from, np.arange(len(people.user)))
    out["local_hour"], weekday = local_clock(probes.at, _as_of(people.time_zone, row))
    for name, turn in (("hour", out["local_hour"] / 24), ("weekday", weekday / 7)):
        out[f"{name}_sin"], out[f"{name}_cos"] = np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)
    out["candidate_missing"] = _any_missing(probes)
    out.update({f"attribute:{name}": _as_of(column, row) for name, column in people.attributes.items()})
    return out


def state_matrix(known: Columns, context: Columns, features: FeatureNames) -> NDArray[np.float32]:
    """[N, S] the state in the order of `Features.names`, computed in float64 and stored in float32, NaN where missing.

    A text column gives one indicator per configured value, all NaN where the text is missing.
    """
    columns: list[NDArray[Any]] = [known[name] for name in features.state]
    columns += [context[name] for name in features.context]
    columns += [_is(context[name], value) for name, values in features.context_categories.items() for value in values]
    columns += [known[f"attribute:{name}"] for name in features.attributes]
    columns += [
        _is(known[f"attribute:{name}"], value)
        for name, values in features.attribute_categories.items()
        for value in values
    ]
    state = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    state[~(np.abs(state) <= _LARGEST)] = np.nan
    return state.astype(np.float32)


def _visible(rows: Sends | Happenings) -> Ints:
    return np.maximum(rows.at + 1, rows.logged)


def _within(windows: Windows, rows: Sends | Happenings, width: int) -> Ints:
    return windows.count(rows.user, _visible(rows), rows.at + width)


def _recency(windows: Windows, at: Ints, rows: Sends | Happenings, lookback: int) -> tuple[Floats, Floats]:
    """Hours since the last visible row, capped at the lookback, and whether there was none within it."""
    row = windows.latest(rows.user, _visible(rows), rows.at)
    last = _take(rows.at, row)
    never = (row < 0) | (last < at - lookback)
    return np.where(never, lookback, at - last) / HOUR, never.astype(np.float64)


def _badge(windows: Windows, sends: Sends, seen: Happenings, lookback: int) -> Ints:
    """A send stays unseen until a visit at or after it is known: the earliest such moment, by a minimum from behind."""
    order = np.lexsort((seen.at, seen.user))
    user, at, visible = seen.user[order], seen.at[order], _visible(seen)[order]
    times = np.unique(np.concatenate([at, sends.at]))
    width = len(times)
    key = user * width + np.searchsorted(times, at)
    after = np.searchsorted(key, sends.user * width + np.searchsorted(times, sends.at), "left")
    if not len(user):
        return _within(windows, sends, lookback)
    moments, rank = np.unique(visible, return_inverse=True)
    span = len(moments)
    # From behind, a user's own keys are smaller than those of all users after it, so theirs never shine through.
    earliest = np.minimum.accumulate((user * span + rank)[::-1])[::-1]
    inside = np.minimum(after, len(user) - 1)
    has = (after < len(user)) & (user[inside] == sends.user)
    reset = np.where(has, moments[earliest[inside] % span] - 1, np.iinfo(np.int64).max)
    return windows.count(sends.user, _visible(sends), np.minimum(sends.at + lookback, reset))


def _consent(windows: Windows, events: Happenings) -> Floats:
    """Of changes at one instant, switching off wins."""
    changes = events.where((events.kind == DISABLE) | (events.kind == ENABLE))
    off = changes.kind == DISABLE
    row = windows.latest(changes.user, _visible(changes), changes.at, off)
    return np.where(row < 0, 1.0, 1.0 - _take(off, row))


def _take(column: NDArray[Any], row: Ints) -> NDArray[Any]:
    """column[row], anything where row is -1."""
    return column[row] if len(column) else np.zeros(len(row), column.dtype)


def _as_of(column: NDArray[Any], row: Ints) -> NDArray[Any]:
    missing: Any = None if column.dtype == object else np.nan
    return np.where(row < 0, missing, _take(column, row))


def _any_missing(probes: Probes) -> Floats:
    missing = np.zeros(len(probes.at), bool)
    for column in probes.context.values():
        missing |= is_missing(column)
    return missing.astype(np.float64)


def is_missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    """[N] None in text; NaN, infinite or beyond float32 in numbers."""
    if column.dtype == object:
        return np.array([value is None for value in column], dtype=bool)
    return np.asarray(~(np.abs(column.astype(np.float64)) <= _LARGEST), dtype=bool)


def _is(column: NDArray[Any], value: str) -> Floats:
    return np.where(is_missing(column), np.nan, np.array([found == value for found in column], dtype=np.float64))
