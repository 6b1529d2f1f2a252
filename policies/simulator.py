"""The notification world with known truth: logs written by a policy, and the true value of any policy.

A policy sees what the log knew at the review, never the hidden state. U users, N decisions, n reviews in a step, and
A = 2 actions, hold and send.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.errors import InputError
from policies.behaviour import DAY, HOUR, KINDS, SEGMENTS, WEEK, ZONES, Behaviour, SimulatorConfig
from policies.ledger import REWARDS
from policies.rows import Rows
from policies.world import Reviews, World

__all__ = [
    "COMPONENTS",
    "Decide",
    "Log",
    "SimulatorConfig",
    "View",
    "always",
    "calibration",
    "compared",
    "never",
    "simulate",
    "threshold",
    "true_values",
    "user_totals",
]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

COMPONENTS = (*REWARDS, "ctr")
"""What has a true value; `ctr` is the ratio clicks / sends, the others are per user-week. `sends` and `clicks` are the
policy's own; `delivered` is all that reaches the user, the system's notifications too."""


@dataclass(frozen=True)
class View:
    """What a policy is shown at the reviews of one step: n users, ascending."""

    user: Integers
    """[n]"""
    at: Integers
    """[n] decision time, us"""
    legal: NDArray[np.bool_]
    """[n, 2] hold, send"""
    relevance: Floats
    """[n] NaN where no item waits"""
    near_real_time: Floats
    """[n] 1 where the system sent a near-real-time notification in the 24 hours before, else 0; NaN where no item"""
    hidden: World
    """The world itself, for oracles that bound what can be reached; a policy must not read it."""
    _decisions: Rows
    _events: Rows
    _users: Columns

    @functools.cached_property
    def _limit(self) -> Integers:
        limit = np.full(len(self._users["user"]), np.iinfo(np.int64).min)
        limit[self.user] = self.at
        return limit

    def decisions(self) -> Columns:
        """Earlier decisions of the reviewed users (user, at, day, action, ...): those with at < the user's review."""
        rows = self._decisions
        return rows.where(rows["at"] < self._limit[rows["user"]])

    def events(self) -> Columns:
        """Their events (user, at, logged, kind, day): those with at < the review and logged <= the review."""
        rows = self._events
        limit = self._limit[rows["user"]]
        return rows.where((rows["at"] < limit) & (rows["logged"] <= limit))

    def users(self) -> Columns:
        """Their rows of the users table: user, valid_from, time_zone, tenure_days."""
        return {name: column[self.user] for name, column in self._users.items()}


Decide = Callable[[View], Floats]
"""The reviews of a step -> probabilities [n, 2] of hold and send: rows sum to 1, illegal actions have 0."""


@dataclass(frozen=True)
class Log:
    """What was logged between `start` and `end` (us): columns by name, rows sorted by user and time."""

    decisions: Columns
    """[N] user, at, day, action (0 hold, 1 send), propensity, send_legal, relevance, near_real_time; logged at once.
    A decision is named by its user and day."""
    events: Columns
    """user, at, logged, kind (index into KINDS), day of the decision it is about or -1"""
    users: Columns
    """[U] user, valid_from, time_zone, tenure_days"""
    candidates: Columns
    """Reviews of the day after the end: user, at, send_legal, relevance, near_real_time"""
    segment: Integers
    """[U] index into SEGMENTS: hidden, for checks of the world itself; no lake carries it"""
    start: int
    end: int
    """The watermark, the time of the last scheduled review: what happened before it is in the log, nothing later is."""


def threshold(cut: float, epsilon: float = 0.0) -> Decide:
    """Send when relevance is above `cut`, but with probability epsilon draw uniformly over the legal actions."""

    def decide(view: View) -> Floats:
        choice = view.legal[:, 1]
        send = np.where(view.relevance > cut, 1 - epsilon / 2, epsilon / 2) * choice
        return np.column_stack([1 - send, send])

    return decide


def never(view: View) -> Floats:
    """Hold every time: probabilities [n, 2]."""
    return np.column_stack([np.ones(len(view.user)), np.zeros(len(view.user))])


def always(view: View) -> Floats:
    """Send whenever it is legal: probabilities [n, 2]."""
    return np.column_stack([~view.legal[:, 1], view.legal[:, 1]]).astype(np.float64)


def simulate(
    config: SimulatorConfig,
    seed: int,
    decide: Decide | None = None,
    users: int | None = None,
    behaviour: Behaviour | None = None,
) -> Log:
    """The log that `decide` (by default the logging policy of the config) writes in the world of `seed`.

    Raises InputError where `decide` returns anything but probabilities over the legal actions.
    """
    decide = decide or threshold(config.threshold, config.epsilon)
    world = World(config, seed, users, behaviour)
    people = _users(world)
    for step in range(world.steps):
        reviews = world.begin(step)
        view = View(
            reviews.user,
            reviews.at,
            reviews.legal,
            reviews.relevance,
            reviews.near_real_time,
            world,
            world.decisions,
            world.events,
            people,
        )
        probabilities = _checked(decide(view), reviews)
        # One uniform per review, whoever decides: two policies that agree on a probability agree on the action.
        action = (world.noise("action", step)[reviews.user] >= probabilities[:, 0]).astype(np.int64)
        world.act(action, probabilities[np.arange(len(action)), action])
    return _log(world)


def _checked(probabilities: Floats, reviews: Reviews) -> Floats:
    found = np.asarray(probabilities, np.float64)
    if found.shape != reviews.legal.shape:
        raise InputError(f"a policy returned probabilities of shape {found.shape}; {reviews.legal.shape} is needed.")
    wrong = ~((found >= 0).all(1) & (np.abs(found.sum(1) - 1) < 1e-6)) | (found * ~reviews.legal).any(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"a policy returned {found[row].tolist()} for a review with legal actions {reviews.legal[row].tolist()}; "
            "probabilities must be 0 on illegal actions and sum to 1."
        )
    # Rounding of a float32 network must not leave 1e-8 on an action that is the only legal one.
    normal: Floats = found / found.sum(1, keepdims=True)
    return normal


def _users(world: World) -> Columns:
    return {
        "user": np.arange(world.size),
        "valid_from": world.start - (world.tenure_days * DAY).astype(np.int64),
        "time_zone": np.array(ZONES, object)[world.zone],
        "tenure_days": world.tenure_days,
    }


def _log(world: World) -> Log:
    decisions, events = world.decisions, world.events
    reviews = world.candidates()
    return Log(
        decisions.where(np.lexsort((decisions["at"], decisions["user"]))),
        events.where(np.lexsort((events["kind"], events["at"], events["user"]))),
        _users(world),
        {
            "user": reviews.user,
            "at": reviews.at,
            "send_legal": reviews.legal[:, 1],
            "relevance": reviews.relevance,
            "near_real_time": reviews.near_real_time,
        },
        world.segment,
        world.start,
        world.end,
    )


def user_totals(log: Log) -> dict[str, Floats]:
    """Per user [U] the sums of the reward components over (first decision, end], and the `days` covered.

    clicks occur within 24 h of a send that was decided; delivered and visits count what the system sent and what that
    brought too; weekly_active_days is the measure of the times at which the user had visited in the 7 days before; a
    closed account stays covered to the end. Days of 86,400 s.
    """
    users = len(log.users["user"])
    decisions, events = log.decisions, log.events
    first = np.full(users, log.end)
    np.minimum.at(first, decisions["user"], decisions["at"])

    def count(user: Integers) -> Floats:
        return np.bincount(user, minlength=users).astype(np.float64)

    covered = (events["at"] > first[events["user"]]) & (events["at"] <= log.end)
    kind = {name: events["kind"] == code for code, name in enumerate(KINDS)}
    sent_at = np.zeros((users, int(decisions["day"].max(initial=0)) + 1), np.int64)
    sent_at[decisions["user"], decisions["day"]] = decisions["at"]
    clicked = np.flatnonzero(kind["click"] & covered & (events["day"] >= 0))
    clicked_user = events["user"][clicked]
    in_window = events["at"][clicked] - sent_at[clicked_user, events["day"][clicked]] <= 24 * HOUR
    visit_user, visit_at = events["user"][kind["session_start"]], events["at"][kind["session_start"]]
    return {
        "days": (log.end - first) / DAY,
        "sends": count(decisions["user"][(decisions["action"] == 1) & (decisions["at"] < log.end)]),
        "clicks": count(clicked_user[in_window]),
        "visits": count(events["user"][kind["session_start"] & covered]),
        "weekly_active_days": _active_days(visit_user, visit_at, first, log.end),
        "disables": count(events["user"][kind["disable"] & covered]),
        "delivered": count(events["user"][kind["delivered"] & covered]),
    }


def _active_days(user: Integers, at: Integers, first: Integers, end: int) -> Floats:
    """[U] days within (first, end] covered by the union of (visit, visit + 7 d]; visits sorted by user and time."""
    # Each visit answers for the time until the next one: the union is then a sum of disjoint pieces.
    last = np.append(user[1:] != user[:-1], True)[: len(user)]
    following = np.where(last, end, np.append(at[1:], end)[: len(at)])
    low = np.maximum(at, first[user])
    high = np.minimum(at + WEEK, np.minimum(following, end))
    return np.bincount(user, weights=np.maximum(high - low, 0), minlength=len(first)) / DAY


def true_values(
    config: SimulatorConfig, seed: int, deciders: Mapping[str, Decide], progress: bool = False
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The true value of `logging` and of each decider, by simulation of `truth_users` users with common random numbers.

    V = 7 sum_u r_u / sum_u days_u per component, ctr = sum clicks / sum sends; errors over users by the delta method;
    the difference is from the logging policy on the same luck. Per name and component: value, standard_error,
    difference, difference_standard_error; None where a ratio has no denominator. Raises InputError as `simulate`.
    """
    runs: dict[str, Decide | None] = {"logging": None, **{k: v for k, v in deciders.items() if k != "logging"}}
    totals = {
        name: user_totals(simulate(config, seed, decide, config.truth_users))
        for name, decide in track(runs.items(), "true values", disable=not progress)
    }
    return {
        name: {component: compared(totals[name], totals["logging"], component) for component in COMPONENTS}
        for name in totals
    }


def _ratio(totals: Mapping[str, Floats], component: str) -> tuple[float, Floats]:
    """A component's value and each user's influence on it (mean 0): the delta method for a ratio of two totals."""
    top, bottom, scale = (
        (totals["clicks"], totals["sends"], 1) if component == "ctr" else (totals[component], totals["days"], 7)
    )
    if bottom.sum() == 0:
        return np.nan, np.full(len(top), np.nan)
    value = top.sum() / bottom.sum()
    return float(scale * value), scale * (top - value * bottom) / bottom.mean()


def compared(mine: Mapping[str, Floats], logging: Mapping[str, Floats], component: str) -> dict[str, float | None]:
    """A component's value, its error, the difference from the logging policy on the same luck and that one's error.

    `mine` and `logging` are `user_totals`, or any other sums of the same users; None where a ratio has no denominator.
    """
    value, influence = _ratio(mine, component)
    base, base_influence = _ratio(logging, component)
    found = {
        "value": value,
        "standard_error": _standard_error(influence),
        "difference": value - base,
        "difference_standard_error": _standard_error(influence - base_influence),
    }
    return {key: None if np.isnan(number) else float(number) for key, number in found.items()}


def _standard_error(influence: Floats) -> float:
    return float(influence.std() / np.sqrt(len(influence)))


def calibration(config: SimulatorConfig, seed: int) -> dict[str, float]:
    """What the logging policy's world looks like: shares and rates as docs/simulator.md states them.

    weekly_active_share = weekly active days / days, over the days after the first week, when a whole week can be looked
    back upon; disabled_share: users who switched notifications off at least once; closed_share: accounts closed.
    """
    log = simulate(config, seed)
    totals, events = user_totals(log), log.events
    users, kind = len(log.users["user"]), {name: events["kind"] == code for code, name in enumerate(KINDS)}
    visits = kind["session_start"]
    late = np.full(users, log.start + WEEK)
    active = _active_days(events["user"][visits], events["at"][visits], late, log.end) / (
        (log.end - log.start) / DAY - 7
    )
    by_segment = {
        f"weekly_active_share_{name}": active[log.segment == code].mean() for code, name in enumerate(SEGMENTS)
    }
    weeks = totals["days"].sum() / 7
    found = {
        "weekly_active_share": active.mean(),
        **by_segment,
        "sends_per_user_week": totals["sends"].sum() / weeks,
        "delivered_per_user_week": totals["delivered"].sum() / weeks,
        "visits_per_user_week": totals["visits"].sum() / weeks,
        "click_through_rate": totals["clicks"].sum() / totals["sends"].sum(),
        "send_share_of_choices": log.decisions["action"].sum() / log.decisions["send_legal"].sum(),
        "choice_share_of_reviews": log.decisions["send_legal"].mean(),
        "disabled_share": len(np.unique(events["user"][kind["disable"]])) / users,
        "closed_share": kind["account_closed"].sum() / users,
    }
    return {name: float(number) for name, number in found.items()}
