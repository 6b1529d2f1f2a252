"""The notification world: hidden state of every user, moved four hours at a time; arrays over users, no loop over them.

U users, n users reviewed in a step. Times are int64 microseconds since the epoch, UTC. What happens to user u in step s
for purpose x is decided by one uniform number keyed by (seed, s, x, u): it does not depend on actions, so two policies
on one seed live through the same luck (common random numbers), and the first users of a larger world are those of a
smaller one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from models.errors import InputError
from policies.behaviour import (
    DAY,
    HOUR,
    KINDS,
    MINUTE,
    NEVER,
    SECOND,
    STEP,
    STEPS_PER_DAY,
    ZONES,
    Behaviour,
    SimulatorConfig,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_PURPOSES = (
    *("segment", "zone", "base_visits", "tenure", "fatigue", "review_step", "review_minute", "policy", "arrivals"),
    *(f"{what}_{item}" for item in (0, 1) for what in ("relevance", "relevance_noise", "lifetime", "near_real_time")),
    *("close", "close_at", "enable", "enable_at", "visit", "visit_at", "visit_late", "settle_late", "delivered_at"),
    *("delivered_late", "click", "click_at", "disable", "disable_at", "dismiss", "dismiss_at", "dismiss_late"),
)
_KEY = {purpose: index for index, purpose in enumerate(_PURPOSES)}


class Rows:
    """Append-only columns of equal length, grown by doubling."""

    def __init__(self, **types: type) -> None:
        self.length = 0
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(1024, dtype) for name, dtype in types.items()}

    def append(self, **values: NDArray[Any]) -> None:
        """Add rows; every column is given."""
        end = self.length + len(next(iter(values.values())))
        for name, column in self._columns.items():
            if end > len(column):
                self._columns[name] = column = np.concatenate([column, np.empty(end, column.dtype)])
            column[self.length : end] = values[name]
        self.length = end

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column [rows so far]; a view, not a copy."""
        return self._columns[name][: self.length]

    def where(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Copies of every column at the given rows (mask or indices)."""
        return {name: column[: self.length][rows] for name, column in self._columns.items()}


@dataclass(frozen=True)
class Reviews:
    """The users whose review falls into a step, ascending: what is decided, and what may be done."""

    user: Integers
    """[n]"""
    at: Integers
    """[n] decision time"""
    day: int
    legal: Booleans
    """[n, 2] hold, send; hold alone where notifications are off or nothing waits"""
    relevance: Floats
    """[n] observed relevance of the best live item, NaN where none"""
    near_real_time: Floats
    """[n] 0 or 1, NaN where there is no item"""
    slot: Integers
    """[n] where the item lies in the user's queue"""


class World:
    """Hidden state of U users: `begin(step)` moves them to the reviews of a step, `act(action, propensity)` answers."""

    def __init__(
        self, config: SimulatorConfig, seed: int, users: int | None = None, behaviour: Behaviour | None = None
    ) -> None:
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be 0 or more.")
        self.config, self.seed = config, seed
        self.behaviour = behaviour or Behaviour()
        self.size = config.users if users is None else users
        self.start = config.start_us
        self.steps = config.days * STEPS_PER_DAY
        self.reset()

    def reset(self) -> None:
        """Back to the start: same users, same luck, nothing logged; queues hold what arrived in the 60 hours before."""
        b, size = self.behaviour, self.size
        self.segment: Integers = np.searchsorted(np.cumsum(b.shares)[:2], self.noise("segment"), side="right")
        self.zone: Integers = (self.noise("zone") * len(ZONES)).astype(np.int64)
        spread = np.exp(b.visits_spread * ndtri(self.noise("base_visits")))
        self.visits_per_day: Floats = np.asarray(b.visits_per_day)[self.segment] * spread
        tenure = -np.log1p(-self.noise("tenure")) * np.asarray(b.tenure_days)[self.segment]
        self.tenure_days: Floats = np.floor(tenure) + 1
        # Fatigue and habit start near what the logging policy and the user's own visits would have left behind.
        self.fatigue: Floats = 2 * self.noise("fatigue")
        visits = self.visits_per_day * b.habit_gain * b.habit_days
        self.habit: Floats = visits / (1 + visits)
        self.badge: Integers = np.zeros(size, np.int64)
        self.on: Booleans = np.ones(size, np.bool_)
        self.closed_at: Integers = np.full(size, NEVER)
        # A click on day d's send comes within 24 h, before the review of day d + 2: two slots never collide.
        self._click_at: Integers = np.full((size, 2), NEVER)
        self._click_day: Integers = np.zeros((size, 2), np.int64)
        self._last_visit: Integers = np.zeros(size, np.int64)
        self._expiry: Integers = np.zeros((size, 8), np.int64)
        self._relevance, self._seen, self._near = (np.zeros((size, 8)) for _ in range(3))
        self.decisions = Rows(
            user=np.int64,
            at=np.int64,
            day=np.int64,
            action=np.int64,
            propensity=np.float64,
            send_legal=np.bool_,
            relevance=np.float64,
            near_real_time=np.float64,
        )
        self.events = Rows(user=np.int64, at=np.int64, logged=np.int64, kind=np.int64, day=np.int64)
        self._clock = _local_clock(self.start, -15, self.steps + STEPS_PER_DAY)
        self.review_at: Integers = self._schedule()
        # The watermark that the lake's own rows imply, but for seconds: no decision is known later.
        self.end = int(self.review_at[:-1].max())
        for step in range(-15, 0):
            self._arrive(step)
        self._reviews: Reviews | None = None

    def noise(self, purpose: str, step: int = -16) -> Floats:
        """[U] uniform numbers in (0, 1) for one purpose in one step: the same whatever was done before."""
        key = np.array([self.seed, (step + 16) * 64 + _KEY[purpose]], np.uint64)
        draws: Floats = np.random.Generator(np.random.Philox(key=key)).random(self.size)
        return np.maximum(draws, 1e-12)

    def begin(self, step: int) -> Reviews:
        """Everything of a step that the step's decisions cannot change, then the reviews that fall into it.

        The visits of the step may come after the review; who reads the log so far must compare times.
        """
        close = self._close(step)
        self._arrive(step)
        enabled_at = self._enable(step)
        self._last_visit[:] = 0
        self._settle(step, "visit_late")
        self._visit(step, ~close)
        day = step // STEPS_PER_DAY
        at = self.review_at[day]
        start = self.start + step * STEP
        user = np.flatnonzero((at >= start) & (at < start + STEP) & (at < self.closed_at))
        self._reviews = self._review(user, at[user], day, self.on[user] | (enabled_at[user] < at[user]))
        self.on |= enabled_at < NEVER
        self._step = step
        return self._reviews

    def act(self, action: Integers, propensity: Floats) -> None:
        """Carry out and log the reviews' actions [n] (0 hold, 1 send) with their propensities [n], and end the step.

        Raises InputError where no step has begun.
        """
        reviews = self._reviews
        if reviews is None:
            raise InputError("act was called before begin; a step begins first.")
        self.decisions.append(
            user=reviews.user,
            at=reviews.at,
            day=np.full(len(reviews.user), reviews.day),
            action=action,
            propensity=propensity,
            send_legal=reviews.legal[:, 1],
            relevance=reviews.relevance,
            near_real_time=reviews.near_real_time,
        )
        sent = action == 1
        user, at, slot = reviews.user[sent], reviews.at[sent], reviews.slot[sent]
        self._send(user, at, slot, reviews.day)
        self._settle(self._step, "settle_late")
        b = self.behaviour
        visited = self._last_visit > 0
        self.badge[visited] = 0
        unseen = self._last_visit[user] < at
        self.badge[user[unseen]] += 1
        self.habit *= np.exp(-STEP / (b.habit_days * DAY))
        self.habit += visited * b.habit_gain * (1 - self.habit)
        self.fatigue *= np.exp(-STEP / (b.fatigue_days * DAY))
        self._reviews = None

    def candidates(self) -> Reviews:
        """The reviews of the day after the last one, for every open account, from the queues as they are at the end."""
        at = self.review_at[self.config.days]
        user = np.flatnonzero(self.closed_at == NEVER)
        return self._review(user, at[user], self.config.days, self.on[user])

    def _review(self, user: Integers, at: Integers, day: int, on: Booleans) -> Reviews:
        live = self._expiry[user] > at[:, None]
        score = np.where(live, self._seen[user], -1.0)
        slot = score.argmax(1)
        waits = live.any(1)
        legal = np.column_stack([np.ones(len(user), np.bool_), waits & on])
        rows = np.arange(len(user))
        relevance = np.where(waits, score[rows, slot], np.nan)
        near = np.where(waits, self._near[user, slot], np.nan)
        return Reviews(user, at, day, legal, relevance, near, slot)

    def _schedule(self) -> Integers:
        """[days + 1, U] review times: one a UTC day, in a step whose middle lies in the user's waking hours.

        In the first 3.5 hours of the step, so that what answers a send within 30 minutes falls into the same step.
        """
        rows = []
        for day in range(self.config.days + 1):
            first = day * STEPS_PER_DAY
            hours = np.array([self._clock[step][0] for step in range(first, first + STEPS_PER_DAY)])  # [6, zones]
            waking = ((hours >= 8) & (hours < 22)).T
            order = np.argsort(~waking, axis=1, kind="stable")
            pick = (self.noise("review_step", first) * waking.sum(1)[self.zone]).astype(np.int64)
            step = first + order[self.zone, pick]
            minute = (self.noise("review_minute", first) * 3.5 * HOUR).astype(np.int64)
            rows.append(self.start + step * STEP + minute)
        return np.stack(rows)

    def _arrive(self, step: int) -> None:
        b, start = self.behaviour, self.start + step * STEP
        hour, _ = self._clock[step]
        rate = np.asarray(b.arrivals_per_day)[self.segment] / STEPS_PER_DAY * _by_hour(hour)[self.zone]
        draw = self.noise("arrivals", step)
        for item, least in enumerate((np.exp(-rate), np.exp(-rate) * (1 + rate))):
            user = np.flatnonzero(draw > least)
            noise = {
                what: self.noise(f"{what}_{item}", step)[user]
                for what in ("relevance", "relevance_noise", "lifetime", "near_real_time")
            }
            # Kumaraswamy(2, 3): like Beta(2, 2.4), with an inverse in closed form.
            relevance = np.sqrt(1 - (1 - noise["relevance"]) ** (1 / 3))
            near = noise["near_real_time"] < b.near_real_time
            low, high = np.where(near, np.array(b.near_real_time_hours)[:, None], np.array(b.lifetime_hours)[:, None])
            slot = self._expiry[user].argmin(1)
            self._expiry[user, slot] = start + ((low + (high - low) * noise["lifetime"]) * HOUR).astype(np.int64)
            self._relevance[user, slot] = relevance
            self._seen[user, slot] = np.clip(relevance + b.relevance_noise * ndtri(noise["relevance_noise"]), 0, 1)
            self._near[user, slot] = near

    def _close(self, step: int) -> Booleans:
        """[U] accounts that were already closed; those that close in this step are logged with their time."""
        closed = self.closed_at < NEVER
        chance = self.behaviour.close_per_day / STEPS_PER_DAY * (1 + self._tired())
        user = np.flatnonzero((self.noise("close", step) < chance) & ~closed)
        at = self.start + step * STEP + (self.noise("close_at", step)[user] * STEP).astype(np.int64)
        self.closed_at[user] = at
        self._log("account_closed", user, at)
        return closed

    def _enable(self, step: int) -> Integers:
        """[U] when notifications are switched on again in this step, NEVER where they are not."""
        user = np.flatnonzero((self.noise("enable", step) < self.behaviour.enable_per_day / STEPS_PER_DAY) & ~self.on)
        at = self.start + step * STEP + (self.noise("enable_at", step)[user] * STEP).astype(np.int64)
        enabled_at = np.full(self.size, NEVER)
        enabled_at[user] = at
        self._emit("enable", user, at)
        return enabled_at

    def _visit(self, step: int, open_: Booleans) -> None:
        b = self.behaviour
        hour, weekend = self._clock[step]
        rate = self.visits_per_day / STEPS_PER_DAY * (_by_hour(hour) * np.where(weekend, 1.1, 0.96))[self.zone]
        rate *= np.exp(b.habit_pull * self.habit - np.asarray(b.fatigue_visits)[self.segment] * self._tired())
        rate *= 1 + b.badge_pull * np.minimum(self.badge, 3)
        user = np.flatnonzero((self.noise("visit", step) < -np.expm1(-rate)) & open_)
        at = self.start + step * STEP + (self.noise("visit_at", step)[user] * STEP).astype(np.int64)
        self._emit("session_start", user, at, late=self.noise("visit_late", step))
        self._last_visit[user] = np.maximum(self._last_visit[user], at)

    def _send(self, user: Integers, at: Integers, slot: Integers, day: int) -> None:
        b, step = self.behaviour, self._step
        relevance, tired = self._relevance[user, slot], self._tired()[user]
        self._expiry[user, slot] = 0
        days = np.full(len(user), day)
        delivered = at + SECOND + (self.noise("delivered_at", step)[user] * 3 * SECOND).astype(np.int64)
        self._emit("delivered", user, delivered, days, self.noise("delivered_late", step))

        odds = np.asarray(b.click_odds)[self.segment[user]] + b.click_relevance * relevance
        odds += b.click_near_real_time * self._near[user, slot] - b.click_fatigue * tired
        clicks = self.noise("click", step)[user] < expit(odds)
        minutes = b.click_minutes * np.exp(1.5 * ndtri(self.noise("click_at", step)[user]))
        click_at = at + (np.clip(minutes, 0.1, 23.9 * 60) * MINUTE).astype(np.int64)
        self._click_at[user[clicks], day % 2] = click_at[clicks]
        self._click_day[user[clicks], day % 2] = day

        chance = np.minimum(b.disable * (1 - relevance) ** 2 * np.exp(b.disable_fatigue * tired), 0.5)
        off = ~clicks & (self.noise("disable", step)[user] < chance)
        off_at = at + ((0.2 + 29 * self.noise("disable_at", step)[user]) * MINUTE).astype(np.int64)
        self._emit("disable", user[off], off_at[off], days[off])
        self.on[user[off]] = False

        dismiss = ~clicks & ~off & (self.noise("dismiss", step)[user] < b.dismiss)
        dismiss_at = at + ((0.1 + 29 * self.noise("dismiss_at", step)[user]) * MINUTE).astype(np.int64)
        late = self.noise("dismiss_late", step)
        self._emit("dismiss", user[dismiss], dismiss_at[dismiss], days[dismiss], late)
        self.fatigue[user] += b.fatigue_gain * (1 - relevance) ** 2

    def _settle(self, step: int, late: str) -> None:
        """Clicks that are due before the end of the step, each with the session it opens a second later."""
        for turn in (0, 1):
            user = np.flatnonzero(self._click_at[:, turn] < self.start + (step + 1) * STEP)
            at, days = self._click_at[user, turn], self._click_day[user, turn]
            self._click_at[user, turn] = NEVER
            delay = self.noise(late, step)
            self._emit("click", user, at, days, delay)
            self._emit("session_start", user, at + SECOND, late=delay)
            self._last_visit[user] = np.maximum(self._last_visit[user], at + SECOND)

    def _tired(self) -> Floats:
        return self.fatigue * self.config.fatigue_effect

    def _emit(
        self, kind: str, user: Integers, at: Integers, days: Integers | None = None, late: Floats | None = None
    ) -> None:
        """Log events of open accounts; without `late` they are known at once, as settings are."""
        rows = (at < self.closed_at[user]) & (at < self.end)
        delay = np.zeros(len(user), np.int64) if late is None else _delay(late[user], self.end - at)
        self._log(kind, user[rows], at[rows], None if days is None else days[rows], delay[rows])

    def _log(
        self, kind: str, user: Integers, at: Integers, days: Integers | None = None, delay: Integers | int = 0
    ) -> None:
        self.events.append(
            user=user,
            at=at,
            logged=at + delay,
            kind=np.full(len(user), KINDS.index(kind)),
            day=np.full(len(user), -1) if days is None else days,
        )


def _delay(u: Floats, left: Integers) -> Integers:
    """Microseconds until an event is known: 85% within a minute, 13% within an hour, 2% within two days.

    Never more than half the time `left` to the end: the lake is taken when everything before its end has arrived, so
    that the log counts what truth counts.
    """
    ends, spans = np.array([0.0, 0.85, 0.98, 1.0]), np.array([MINUTE, HOUR, 2 * DAY])
    part = np.searchsorted(ends[1:3], u, side="right")
    share = (u - ends[part]) / (ends[part + 1] - ends[part])
    delay: Integers = np.minimum((share * spans[part]).astype(np.int64), np.maximum(left, 0) // 2)
    return delay


def _by_hour(hour: Floats) -> Floats:
    """Activity by local hour, mean 1 over a day: 1.8 at 19:00, 0.2 at 7:00."""
    return 1 + 0.8 * np.cos(2 * np.pi * (hour - 19) / 24)


def _local_clock(start: int, first: int, last: int) -> Mapping[int, tuple[Floats, Booleans]]:
    """Step -> (local hour [zones], weekend [zones]) at the middle of the step; daylight saving included."""
    zones = [ZoneInfo(name) for name in ZONES]
    origin = datetime.fromtimestamp(start // SECOND, UTC)
    clock = {}
    for step in range(first, last):
        moments = [(origin + timedelta(hours=4 * step + 2)).astimezone(zone) for zone in zones]
        hours = np.array([moment.hour + moment.minute / 60 for moment in moments])
        clock[step] = (hours, np.array([moment.weekday() >= 5 for moment in moments]))
    return clock
