"""The notification world: hidden state of every user, moved four hours at a time; arrays over users, no loop over them.

U users, n users reviewed in a step. Times are int64 microseconds since the epoch, UTC. What happens to user u in step s
for purpose x is decided by one uniform number keyed by (seed, s, x, u): it does not depend on actions, so two policies
on one seed live through the same luck (common random numbers), and the first users of a larger world are those of a
smaller one.
"""

from dataclasses import dataclass

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
from policies.calendar import demand, local_hours
from policies.queues import Queues, relevance_of
from policies.rows import Rows, arrival_delay

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_ANSWERS = (
    *("delivered_at", "delivered_late", "click", "click_at"),
    *("disable", "disable_at", "dismiss", "dismiss_at", "dismiss_late"),
)
_SENDERS = ("policy", "push", "expired")
"""Who sends: the policy at a review; the system, a near-real-time notification or an item that expired unsent."""
_PURPOSES = (
    *("segment", "zone", "base_visits", "tenure", "fatigue", "review_step", "review_minute", "action", "arrivals"),
    *(f"{what}_{item}" for item in (0, 1) for what in ("relevance", "relevance_noise", "lifetime")),
    *("push", "push_at", "push_relevance", "expired", "expired_at"),
    *("close", "close_at", "enable", "enable_at", "visit", "visit_at", "visit_late", "settle_late"),
    *(f"{sender}_{what}" for sender in _SENDERS for what in _ANSWERS),
)
_KEY = {purpose: index for index, purpose in enumerate(_PURPOSES)}
_BEFORE = 15
"""Steps before the start that fill the queues: the longest life of an item."""
_REVIEWS_UNTIL = int(3.5 * HOUR)
"""Reviews fall into this first part of a step; in the rest the system deals with what has expired."""


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
    """[n] 1 where the system sent a near-real-time notification in the 24 hours before, else 0; NaN where no item"""
    place: Integers
    """[n] where the item lies in the user's queue"""


class World:
    """Hidden state of U users: `begin(step)` moves them to the reviews of a step, `act(action, propensity)` answers."""

    def __init__(
        self, config: SimulatorConfig, seed: int, users: int | None = None, behaviour: Behaviour | None = None
    ) -> None:
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be 0 or more.")
        self.config, self.seed = config, seed
        self.behaviour = b = behaviour or Behaviour()
        self.size = config.users if users is None else users
        self.start = config.start_us
        self.steps = config.days * STEPS_PER_DAY
        span = (self.start, -_BEFORE, self.steps + STEPS_PER_DAY)
        self.clock, self._demand = local_hours(*span), demand(*span, b.demand_persistence, b.demand_spread)
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
        self._on_from: Integers = np.zeros(size, np.int64)
        self._off_from: Integers = np.full(size, NEVER)
        self.closed_at: Integers = np.full(size, NEVER)
        self.visited_at: Integers = np.zeros(size, np.int64)
        self._last_visit: Integers = np.zeros(size, np.int64)
        self._pushed_at: Integers = np.zeros(size, np.int64)
        self._due: Integers = np.empty((3, 0), np.int64)  # clicks to come: user, at, day of the decision
        self._sent: list[tuple[Integers, Integers]] = []
        self._queues = Queues(size)
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
        self._ahead: list[tuple[str, Integers, Integers, Integers, Integers]] = []  # what `_log` takes, of later steps
        self.review_at: Integers = self._schedule()
        # The watermark that the lake's own rows imply, but for seconds: no decision is known later.
        self.end = int(self.review_at[:-1].max())
        for step in range(-_BEFORE, 0):
            self._arrive(step)
        # What would have expired before the start was dealt with then.
        self._queues.expiry[self._queues.expiry <= self.start] = 0
        self._reviews: Reviews | None = None

    def noise(self, purpose: str, step: int = -_BEFORE - 1) -> Floats:
        """[U] uniform numbers in (0, 1) for one purpose in one step: the same whatever was done before."""
        key = np.array([self.seed, (step + _BEFORE + 1) * 64 + _KEY[purpose]], np.uint64)
        draws: Floats = np.random.Generator(np.random.Philox(key=key)).random(self.size)
        return np.maximum(draws, 1e-12)

    def begin(self, step: int) -> Reviews:
        """Everything of a step that the step's decisions cannot change, then the reviews that fall into it.

        The visits of the step may come after the review; who reads the log so far must compare times.
        """
        self._step = step
        day, start = step // STEPS_PER_DAY, self.start + step * STEP
        open_ = self.closed_at == NEVER
        self._close(step, open_)
        self._answer()
        self._arrive(step)
        self._enable(step)
        self._last_visit[:] = 0
        at = self.review_at[day]
        reviewed = (at >= start) & (at < start + STEP)
        user, pushed_at = self._pushes(step)
        early = ~reviewed[user] | (pushed_at < at[user])
        self._push(user[early], pushed_at[early])
        self._later = user[~early], pushed_at[~early]
        self._settle(step, "visit_late")
        self._visit(step, open_)
        user = np.flatnonzero(reviewed & (at < self.closed_at))
        self._reviews = self._review(user, at[user], day)
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
        user = reviews.user[sent]
        self._send("policy", user, reviews.at[sent], self._queues.take(user, reviews.place[sent]), reviews.day)
        self._push(*self._later)
        self._expire(self._step)
        self._settle(self._step, "settle_late")
        b = self.behaviour
        visited = self._last_visit > 0
        self.badge[visited] = 0
        self.visited_at = np.maximum(self.visited_at, self._last_visit)
        for user, at in self._sent:
            self.badge[user[self._last_visit[user] < at]] += 1
        self._sent.clear()
        self.habit *= np.exp(-STEP / (b.habit_days * DAY))
        self.habit += visited * b.habit_gain * (1 - self.habit)
        self.fatigue *= np.exp(-STEP / (b.fatigue_days * DAY))
        self._reviews = None

    def candidates(self) -> Reviews:
        """The reviews of the day after the last one, for every open account, from the queues as they are at the end."""
        at = self.review_at[self.config.days]
        user = np.flatnonzero(self.closed_at == NEVER)
        return self._review(user, at[user], self.config.days)

    def reachable(self, user: Integers, at: Integers) -> Booleans:
        """[n] whether each user's notifications are on at a moment of the step, as far as it has been played."""
        return (self._on_from[user] < at) & (at <= self._off_from[user])

    def _review(self, user: Integers, at: Integers, day: int) -> Reviews:
        place, relevance = self._queues.best(user, at)
        waits = ~np.isnan(relevance)
        legal = np.column_stack([np.ones(len(user), np.bool_), waits & self.reachable(user, at)])
        pushed = (at - self._pushed_at[user] <= DAY).astype(np.float64)
        return Reviews(user, at, day, legal, relevance, np.where(waits, pushed, np.nan), place)

    def _schedule(self) -> Integers:
        """[days + 1, U] review times: one a UTC day, in a step whose middle lies in the user's waking hours.

        In the first 3.5 hours of the step, so that what answers a send within 30 minutes falls into the same step.
        """
        rows = []
        for day in range(self.config.days + 1):
            first = day * STEPS_PER_DAY
            hours = np.array([self.clock[step].hour for step in range(first, first + STEPS_PER_DAY)])  # [6, zones]
            waking = ((hours >= 8) & (hours < 22)).T
            order = np.argsort(~waking, axis=1, kind="stable")
            pick = (self.noise("review_step", first) * waking.sum(1)[self.zone]).astype(np.int64)
            step = first + order[self.zone, pick]
            minute = (self.noise("review_minute", first) * _REVIEWS_UNTIL).astype(np.int64)
            rows.append(self.start + step * STEP + minute)
        return np.stack(rows)

    def _arrivals(self, step: int, per_day: tuple[float, float, float]) -> Floats:
        """[U] expected arrivals of a step: the segment's rate by hour, weekday and demand."""
        clock = self.clock[step]
        by_zone = clock.activity * clock.by_weekday(*self.behaviour.arrivals_by_weekday) * self._demand[step]
        return np.asarray(per_day)[self.segment] / STEPS_PER_DAY * by_zone[self.zone]

    def _arrive(self, step: int) -> None:
        b, start = self.behaviour, self.start + step * STEP
        rate = self._arrivals(step, b.arrivals_per_day)
        draw = self.noise("arrivals", step)
        low, high = b.lifetime_hours
        for item, least in enumerate((np.exp(-rate), np.exp(-rate) * (1 + rate))):
            user = np.flatnonzero(draw > least)
            relevance = relevance_of(self.noise(f"relevance_{item}", step)[user])
            error = b.relevance_noise * ndtri(self.noise(f"relevance_noise_{item}", step)[user])
            hours = low + (high - low) * self.noise(f"lifetime_{item}", step)[user]
            self._queues.add(user, start + (hours * HOUR).astype(np.int64), relevance, np.clip(relevance + error, 0, 1))

    def _pushes(self, step: int) -> tuple[Integers, Integers]:
        """Users with a near-real-time notification in the step, at most one each, and its time."""
        rate = self._arrivals(step, self.behaviour.near_real_time_per_day)
        user = np.flatnonzero(self.noise("push", step) < -np.expm1(-rate))
        return user, self.start + step * STEP + (self.noise("push_at", step)[user] * STEP).astype(np.int64)

    def _push(self, user: Integers, at: Integers) -> None:
        """The system sends what cannot wait, whatever the policy does."""
        there = self.reachable(user, at) & (at < self.closed_at[user])
        user, at = user[there], at[there]
        self._pushed_at[user] = at
        self._send("push", user, at, relevance_of(self.noise("push_relevance", self._step)[user]))

    def _expire(self, step: int) -> None:
        """Of what has expired unsent the system sends a share and drops the rest, in the last half hour of a step.

        At most one item, and no other notification of the system in the step: what is left waits for the next one.
        """
        start = self.start + step * STEP
        user, place = self._queues.expired(start + STEP)
        free = self._pushed_at[user] < start
        user, place = user[free], place[free]
        relevance = self._queues.take(user, place)
        at = np.full(len(user), start + _REVIEWS_UNTIL)
        at += (self.noise("expired_at", step)[user] * (STEP - _REVIEWS_UNTIL)).astype(np.int64)
        sent = self.noise("expired", step)[user] < self.behaviour.expired_sent
        sent &= self.reachable(user, at) & (at < self.closed_at[user])
        self._send("expired", user[sent], at[sent], relevance[sent])

    def _close(self, step: int, open_: Booleans) -> None:
        """Accounts that close in this step are logged with their time."""
        chance = self.behaviour.close_per_day / STEPS_PER_DAY * (1 + self._tired())
        user = np.flatnonzero((self.noise("close", step) < chance) & open_)
        at = self.start + step * STEP + (self.noise("close_at", step)[user] * STEP).astype(np.int64)
        self.closed_at[user] = at
        self._log("account_closed", user, at, np.full(len(user), -1), np.zeros(len(user), np.int64))

    def _enable(self, step: int) -> None:
        """Some who switched off before the step switch on again in it."""
        start = self.start + step * STEP
        chance = self.behaviour.enable_per_day / STEPS_PER_DAY
        user = np.flatnonzero((self.noise("enable", step) < chance) & (self._off_from < start))
        at = start + (self.noise("enable_at", step)[user] * STEP).astype(np.int64)
        self._on_from[user], self._off_from[user] = at, NEVER
        self._emit("enable", user, at)

    def _visit(self, step: int, open_: Booleans) -> None:
        b, clock = self.behaviour, self.clock[step]
        rate = self.visits_per_day / STEPS_PER_DAY
        rate *= (clock.activity * clock.by_weekday(*b.visits_by_weekday))[self.zone]
        rate *= np.exp(b.habit_pull * self.habit - np.asarray(b.fatigue_visits)[self.segment] * self._tired())
        rate *= 1 + b.badge_pull * np.minimum(self.badge, 3)
        user = np.flatnonzero((self.noise("visit", step) < -np.expm1(-rate)) & open_)
        at = self.start + step * STEP + (self.noise("visit_at", step)[user] * STEP).astype(np.int64)
        self._emit("session_start", user, at, late=self.noise("visit_late", step)[user])
        self._last_visit[user] = np.maximum(self._last_visit[user], at)

    def _send(self, sender: str, user: Integers, at: Integers, relevance: Floats, day: int = -1) -> None:
        """What follows from one notification to each of n different users; without `day` no decision is behind it."""
        b = self.behaviour
        noise = {what: self.noise(f"{sender}_{what}", self._step)[user] for what in _ANSWERS}
        tired, days = self._tired()[user], np.full(len(user), day)
        delivered = at + SECOND + (noise["delivered_at"] * 3 * SECOND).astype(np.int64)
        self._emit("delivered", user, delivered, days, noise["delivered_late"])

        odds = np.asarray(b.click_odds)[self.segment[user]] + b.click_relevance * relevance - b.click_fatigue * tired
        odds += b.click_near_real_time * (sender == "push")
        clicks = noise["click"] < expit(odds)
        minutes = b.click_minutes * np.exp(1.5 * ndtri(noise["click_at"]))
        click_at = at + (np.clip(minutes, 0.1, 23.9 * 60) * MINUTE).astype(np.int64)
        self._due = np.column_stack([self._due, [user[clicks], click_at[clicks], days[clicks]]])

        annoyance = (1 - relevance) ** 2 * (1.0 if sender == "policy" else b.system_annoyance)
        chance = np.minimum(b.disable * annoyance * np.exp(b.disable_fatigue * tired), 0.5)
        # Who is about to switch off because of an earlier notification does so once.
        off = ~clicks & (noise["disable"] < chance) & (self._off_from[user] == NEVER)
        off_at = at + ((0.2 + 29 * noise["disable_at"]) * MINUTE).astype(np.int64)
        self._emit("disable", user[off], off_at[off], days[off])
        self._off_from[user[off]] = off_at[off]

        dismiss = ~clicks & ~off & (noise["dismiss"] < b.dismiss)
        dismiss_at = at + ((0.1 + 29 * noise["dismiss_at"]) * MINUTE).astype(np.int64)
        self._emit("dismiss", user[dismiss], dismiss_at[dismiss], days[dismiss], noise["dismiss_late"][dismiss])
        self.fatigue[user] += b.fatigue_gain * annoyance
        self._sent.append((user, at))

    def _settle(self, step: int, late: str) -> None:
        """Clicks that are due before the end of the step, each with the session it opens a second later."""
        ready = self._due[1] < self.start + (step + 1) * STEP
        user, at, days = self._due[:, ready]
        self._due = self._due[:, ~ready]
        delay = self.noise(late, step)[user]
        self._emit("click", user, at, days, delay)
        self._emit("session_start", user, at + SECOND, late=delay)
        np.maximum.at(self._last_visit, user, at + SECOND)

    def _tired(self) -> Floats:
        return self.fatigue * self.config.fatigue_effect

    def _emit(
        self, kind: str, user: Integers, at: Integers, days: Integers | None = None, late: Floats | None = None
    ) -> None:
        """Log events of open accounts; without `late` they are known at once, as settings are.

        Those of the next step wait for it: whether the account is still open then is not known yet.
        """
        delay = np.zeros(len(user), np.int64) if late is None else arrival_delay(late, self.end - at)
        days = np.full(len(user), -1) if days is None else days
        open_ = (at < self.closed_at[user]) & (at < self.end)
        now = at < self.start + (self._step + 1) * STEP
        for rows, take in ((open_ & now, self._log), (open_ & ~now, self._wait)):
            take(kind, user[rows], at[rows], days[rows], delay[rows])

    def _wait(self, kind: str, user: Integers, at: Integers, days: Integers, delay: Integers) -> None:
        if len(user):
            self._ahead.append((kind, user, at, days, delay))

    def _answer(self) -> None:
        """Log what was to come in this step, of accounts that have not closed before it."""
        for kind, user, at, days, delay in self._ahead:
            rows = at < self.closed_at[user]
            self._log(kind, user[rows], at[rows], days[rows], delay[rows])
        self._ahead.clear()

    def _log(self, kind: str, user: Integers, at: Integers, days: Integers, delay: Integers) -> None:
        kinds = np.full(len(user), KINDS.index(kind))
        self.events.append(user=user, at=at, logged=at + delay, kind=kinds, day=days)
