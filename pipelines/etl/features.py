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
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.errors import InputError

HOUR = 3_600_000_000
DAY = 24 * HOUR
SESSION_GAP = HOUR // 2
QUARTER = HOUR // 4
QUARTERS = DAY // QUARTER
DENSE = 4096
"""Quarters of an hour that are looked up without asking which of them occur."""

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

    def ordered(self) -> "Sends":
        """By user and time."""
        if _is_ordered(self.user, self.at):
            return self
        order = np.lexsort((self.at, self.user))
        return Sends(self.user[order], self.at[order], self.logged[order])


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

    def of(self, *kinds: int) -> "Happenings":
        """Those of some kinds."""
        return self.where(np.flatnonzero(np.isin(self.kind, kinds)))

    def ordered(self) -> "Happenings":
        """By user and time."""
        return self if _is_ordered(self.user, self.at) else self.where(np.lexsort((self.at, self.user)))


def _is_ordered(user: Ints, at: Ints) -> bool:
    after, before = slice(1, None), slice(None, -1)
    return bool(np.all((user[after] > user[before]) | ((user[after] == user[before]) & (at[after] >= at[before]))))


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


@dataclass(frozen=True)
class Keys:
    """A user and a moment as one int64, in the order of (user, time): user * width + the time since `first`.

    Moments outside [first, last] are moved to just outside it, so that they neither reach into another user nor
    change how they compare with the moments inside.
    """

    first: int
    last: int

    @property
    def width(self) -> int:
        return self.last - self.first + 3

    @classmethod
    def over(cls, users: int, *times: Ints) -> "Keys":
        """Keys for `users` codes and the given moments.

        Raises OverflowError where they do not fit 63 bits: some 290,000 users over a year, 5,800 over fifty.
        """
        full = [each for each in times if len(each)]
        keys = cls(min((int(t.min()) for t in full), default=0), max((int(t.max()) for t in full), default=0))
        if users * keys.width >= 1 << 63:
            raise OverflowError(f"{users} users over {keys.width / DAY:.0f} days do not fit one key")
        return keys

    def __call__(self, user: Ints, at: Ints) -> Ints:
        """[N] keys."""
        return user * self.width + (np.clip(at, self.first - 1, self.last + 1) - (self.first - 1))


class Seeing:
    """N probes and their keys."""

    def __init__(self, keys: Keys, probes: Probes) -> None:
        self.keys, self.user, self.key = keys, probes.user, keys(probes.user, probes.at)


class Seen:
    """What N probes had seen of M rows, which are given by user and time: a row is seen from `visible` [M] on."""

    def __init__(self, probe: Seeing, user: Ints, visible: Ints) -> None:
        self.probe, self.user = probe, user
        self.start = probe.keys(user, visible)
        in_order = bool(np.all(self.start[1:] >= self.start[:-1]))
        self.order = None if in_order else np.argsort(self.start)
        begun = self.start if self.order is None else self.start[self.order]
        # Rows of earlier users count too, and so do their ends below: they cancel.
        self.begun = np.searchsorted(begun, probe.key, "right")

    def count(self, last: Ints) -> Ints:
        """[N] rows with visible <= t <= `last` [M]."""
        return self.until(self.probe.keys(self.user, last))

    def until(self, end: Ints) -> Ints:
        """[N] rows begun at the probe whose key `end` [M] is not behind it."""
        # What came to be known only after it had gone begins and ends at once.
        ended = np.sort(np.maximum(end, self.start - 1))
        return self.begun - np.searchsorted(ended, self.probe.key, "left")

    def latest(self) -> Ints:
        """[N] the last given of the rows of its user that the probe had seen, -1 without one."""
        if not len(self.user):
            return np.full(len(self.probe.key), -1, np.int64)
        row = np.arange(len(self.user)) if self.order is None else np.maximum.accumulate(self.order)
        last = row[np.maximum(self.begun - 1, 0)]
        return np.where((self.begun > 0) & (self.user[last] == self.probe.user), last, -1)


def ties(user: Ints, at: Ints) -> Ints:
    """Places of the rows, given by user and time, that share both with a neighbour."""
    same = (user[1:] == user[:-1]) & (at[1:] == at[:-1])
    return np.flatnonzero(np.append(same, False)[: len(at)] | np.append(False, same)[: len(at)])


def visits(events: Happenings, session_gap: int = SESSION_GAP) -> Happenings:
    """Session starts: every `session_start`; and a `page_view` that no page view or session start of that user,
    logged no later than it, precedes by at most `session_gap` us. Midnight is no boundary.

    Whether a page view starts a session is settled the moment it is logged, so the past never changes.
    """
    shown = events.of(SESSION_START, PAGE_VIEW).ordered()
    # At one instant: first logged first, and a session start before the page views that it explains.
    tied = ties(shown.user, shown.at)
    if len(tied):
        order = np.arange(len(shown.at))
        mine = shown.where(tied)
        order[tied] = tied[np.lexsort((mine.kind, mine.logged, mine.at, mine.user))]
        shown = shown.where(order)
    starts = shown.kind == SESSION_START
    if len(starts) < 2:
        return shown
    apart = np.where(shown.user[1:] == shown.user[:-1], np.minimum(np.diff(shown.at), session_gap + 1), session_gap + 1)
    near = np.append(False, apart <= session_gap)
    explained = near & np.append(False, shown.logged[:-1] <= shown.logged[1:])
    starts |= ~near
    # Only where the row just before was logged later does anything further back matter.
    undecided = np.flatnonzero(~starts & ~explained)
    if len(undecided):
        # Time with every longer pause cut short: nothing before a pause is within the gap, and no user in another's.
        clock = np.append(0, np.cumsum(apart))
        first = np.searchsorted(clock, clock[undecided] - session_gap)
        starts[undecided] = _least(shown.logged, first, undecided) > shown.logged[undecided]
    return shown.where(np.flatnonzero(starts))


def _least(values: Ints, first: Ints, last: Ints) -> Ints:
    """[Q] the least of values[first:last], every range of one row or more; by minima over powers of two, O(M log M)."""
    found = np.empty(len(first), np.int64)
    level = np.frexp((last - first).astype(np.float64))[1] - 1
    table = values
    for power in range(int(level.max()) + 1):
        rows = np.flatnonzero(level == power)
        found[rows] = np.minimum(table[first[rows]], table[last[rows] - (1 << power)])
        table = np.minimum(table[: -(1 << power)], table[1 << power :]) if len(table) > 1 << power else table
    return found


def local_clock(at: Ints, time_zone: NDArray[Any]) -> tuple[Floats, Ints]:
    """[N] hour of the day in [0, 24) and [N] day of the week (Monday 0) in each row's zone (IANA name; None is UTC).

    Raises InputError naming a zone that does not exist. Offsets are looked up once per quarter of an hour: no zone
    has changed its clock at any other minute since 1972.
    """
    zones = pc.fill_null(pa.array(time_zone, pa.string()), "UTC").dictionary_encode()
    zone = zones.indices.to_numpy(zero_copy_only=False)
    local = at.copy()
    for index, name in enumerate(zones.dictionary.to_pylist()):
        rows = np.flatnonzero(zone == index)
        quarter = at[rows] // QUARTER
        first, last = int(quarter.min()) // QUARTERS, int(quarter.max()) // QUARTERS
        if (last - first) * QUARTERS > 4 * len(rows) + DENSE:
            there, which = np.unique(quarter, return_inverse=True)
            local[rows] += np.array([_offset(name, int(each)) for each in there])[which]
        else:
            # Every quarter of all days between: cheaper than sorting which of them occur, where they lie dense.
            local[rows] += _offsets(name, first, last)[quarter - first * QUARTERS]
    # 1970-01-01 was a Thursday.
    return (local % DAY) / HOUR, (local // DAY + 3) % 7


@lru_cache(maxsize=1024)
def _offsets(name: str, first: int, last: int) -> Ints:
    """us to add to UTC in each quarter of an hour of the days first .. last, counted since the epoch."""
    quarters = range(first * QUARTERS, (last + 1) * QUARTERS)
    return np.array([_offset(name, quarter) for quarter in quarters], dtype=np.int64)


def _offset(name: str, quarter: int) -> int:
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"users.time_zone: {name!r} is no time zone; give an IANA name such as Europe/Berlin, or null for UTC."
        ) from None
    moved = datetime.fromtimestamp(quarter * 900, UTC).astimezone(zone).utcoffset()
    return 0 if moved is None else round(moved.total_seconds()) * 1_000_000


def known(
    probes: Probes,
    sends: Sends,
    events: Happenings,
    visited: Happenings,
    people: People,
    lookback_us: int,
    click_prior: tuple[float, float],
) -> dict[str, NDArray[Any]]:
    """Every built-in feature, `local_hour` and `attribute:NAME`, each [N] in the order of the probes; see above.

    `visited` are the `visits` of the events, by user and time.

    Raises InputError for an unknown time zone, OverflowError where users and times do not fit one key (see Keys).
    """
    sends, events = sends.ordered(), events.ordered()
    rows: dict[str, Any] = {"sends": sends, "clicks": events.of(CLICK), "visits": visited}
    codes = (probes.user, sends.user, events.user, people.user)
    users = 1 + max((int(each.max()) for each in codes if len(each)), default=0)
    # What lies further back than the lookback matters to consent and attributes alone, and they need no distance.
    probe = Seeing(Keys.over(users, probes.at, probes.at - lookback_us), probes)
    seen = {name: Seen(probe, each.user, _visible(each)) for name, each in rows.items()}
    out: dict[str, NDArray[Any]] = {"notifications_on": _consent(probe, events)}
    for hours, label in ((24, "24h"), (168, "7d")):
        width = min(hours * HOUR, lookback_us)
        out |= {f"{name}_{label}": seen[name].count(rows[name].at + width).astype(np.float64) for name in rows}
    for name, which in (("send", "sends"), ("visit", "visits")):
        last = seen[which].latest()
        then = _take(rows[which].at, last)
        never = (last < 0) | (then < probes.at - lookback_us)
        out[f"hours_since_{name}"] = np.where(never, lookback_us, probes.at - then) / HOUR
        out[f"{name}_never"] = never.astype(np.float64)
    out["badge"] = _badge(seen["sends"], sends, rows["visits"], lookback_us).astype(np.float64)
    clicked, sent = (seen[name].count(rows[name].at + lookback_us) for name in ("clicks", "sends"))
    out["click_rate_28d"] = (clicked + click_prior[0]) / (sent + click_prior[1])
    person = _person(probe, people)
    out["local_hour"], weekday = local_clock(probes.at, _as_of(people.time_zone, person))
    for name, turn in (("hour", out["local_hour"] / 24), ("weekday", weekday / 7)):
        out[f"{name}_sin"], out[f"{name}_cos"] = np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)
    out["candidate_missing"] = _any_missing(probes)
    out.update({f"attribute:{name}": _as_of(column, person) for name, column in people.attributes.items()})
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


def _badge(sent: Seen, sends: Sends, visits: Happenings, lookback: int) -> Ints:
    """A send stays unseen until a visit at or after it is known: the earliest such moment, by a minimum from behind."""
    keys = sent.probe.keys
    end = keys(sends.user, sends.at + lookback)
    if len(visits.user):
        after = np.searchsorted(keys(visits.user, visits.at), keys(sends.user, sends.at), "left")
        # From behind, a user's own keys are smaller than those of all users after it, so theirs never shine through.
        known = np.minimum.accumulate(keys(visits.user, _visible(visits))[::-1])[::-1]
        inside = np.minimum(after, len(known) - 1)
        has = (after < len(known)) & (visits.user[inside] == sends.user)
        end = np.where(has, np.minimum(end, known[inside] - 1), end)
    return sent.until(end)


def _consent(probe: Seeing, events: Happenings) -> Floats:
    """Of changes at one instant, switching off wins."""
    changes = events.of(DISABLE, ENABLE)
    changes = changes.where(np.lexsort((changes.kind == DISABLE, changes.at, changes.user)))
    row = Seen(probe, changes.user, _visible(changes)).latest()
    return np.where(row < 0, 1.0, 1.0 - _take(changes.kind == DISABLE, row))


def _person(probe: Seeing, people: People) -> Ints:
    """[N] the row of `users` that held at each probe, -1 without one."""
    order = np.lexsort((people.valid_from, people.user))
    row = Seen(probe, people.user[order], people.visible[order]).latest()
    return np.where(row < 0, -1, _take(order, row))


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
        return np.asarray(pa.array(column, pa.string()).is_null().to_numpy(zero_copy_only=False), dtype=bool)
    return np.asarray(~(np.abs(column.astype(np.float64)) <= _LARGEST), dtype=bool)


def _is(column: NDArray[Any], value: str) -> Floats:
    return np.where(is_missing(column), np.nan, np.equal(column, value).astype(np.float64))
