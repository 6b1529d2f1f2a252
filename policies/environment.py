"""The notification world as a gymnasium.vector.VectorEnv: one sub-environment per user, one step per four hours.

U users (`num_envs`), F features. All users share one calendar: they start and end together. A step in which a user has
no review, or nothing may be sent, leaves only `hold`; an action that is not legal is taken as `hold` and said so.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from models.errors import InputError
from policies.behaviour import DAY, HOUR, KINDS, STEP, STEPS_PER_DAY, Behaviour, SimulatorConfig
from policies.ledger import REWARDS, Ledger
from policies.world import Reviews, World

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Observations = NDArray[np.float32]

LOOKBACK = 28 * DAY
FEATURES = {
    "review": 1, "candidate": 1, "relevance": 1, "near_real_time": 1, "notifications_on": 1, "badge": 255,
    "sends_24h": 255, "sends_7d": 255, "clicks_7d": 255, "visits_24h": 255, "visits_7d": 255,
    "hours_since_send": 672, "hours_since_visit": 672, "hour_sin": 1, "hour_cos": 1, "weekday_sin": 1, "weekday_cos": 1,
}  # fmt: skip
"""What is observed, and its largest value. The smallest is 0, of sines and cosines -1."""


class NotificationEnv(VectorEnv[Observations, Integers, NDArray[Any]]):
    """`reset(seed=s)` is the world of seed s; `step(actions)` answers the reviews of the step and moves on four hours.

    Observations [U, F] float32 (FEATURES) hold what a policy may know when the step begins: counts of what had become
    known by then, in whole steps, and the user's review in the step, if there is one; nothing hidden. Rewards [U] are
    the weighted sum of info["components"] [U, K] (REWARDS). info["legal"] [U, 2] says what may be done next,
    info["illegal"] [U] where an action was taken as `hold`. U is `num_envs`, by default config.users.

    terminated: the account is closed; its remaining weekly-active time is paid at once. truncated: the log ended.
    Nobody restarts alone, so the autoreset mode is DISABLED: who is terminated stays so, earns nothing, and all are
    reset together.

    Raises InputError for weights that are unknown or not finite, actions of another shape or kind, a step before a
    reset or after the end, and a reset of some users only.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        config: SimulatorConfig,
        weights: Mapping[str, float],
        num_envs: int | None = None,
        *,
        behaviour: Behaviour | None = None,
    ) -> None:
        unknown = sorted(set(weights) - set(REWARDS))
        if unknown:
            raise InputError(f"weights: {unknown[0]!r} is not a reward of the world; it has {', '.join(REWARDS)}.")
        for name, weight in weights.items():
            if not np.isfinite(weight):
                raise InputError(f"weights: {name!r} is {weight}; give a finite number.")
        self.config, self.behaviour = config, behaviour
        self.num_envs = config.users if num_envs is None else num_envs
        self.weights: Floats = np.array([weights.get(name, 0.0) for name in REWARDS])
        high = np.array(list(FEATURES.values()), np.float32)
        low = np.where([name.endswith(("_sin", "_cos")) for name in FEATURES], -1, 0).astype(np.float32)
        self.single_observation_space = Box(low, high, dtype=np.float32)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._world: World | None = None
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Everybody's first observation; without a seed the next one of the generator."""
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise InputError("reset_mask: users share one calendar; reset all of them together, without a mask.")
        super().reset(seed=seed)
        luck = int(self.np_random.integers(2**31)) if seed is None else seed
        self._world = World(self.config, luck, self.num_envs, self.behaviour)
        self._ledger, self._known = Ledger(self._world), Known(self._world)
        self._closed: Booleans = np.zeros(self.num_envs, np.bool_)
        self._step = 0
        return self._observe(self._world, np.zeros((self.num_envs, len(REWARDS))), np.zeros(self.num_envs, np.bool_))

    def step(self, actions: Integers) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Observations, rewards, terminated, truncated, info: each over users."""
        world, step = self._world, self._step
        if world is None or step == world.steps:
            raise InputError("step was called before reset or after the end of the log; reset first.")
        wanted = np.asarray(actions)
        if wanted.shape != (self.num_envs,) or not np.isin(wanted, (0, 1)).all():
            raise InputError(f"actions of shape {wanted.shape}; {self.num_envs} of 0 (hold) or 1 (send) are needed.")
        taken = (wanted == 1) & self._legal[:, 1]
        reviews = self._reviews
        world.act(taken[reviews.user].astype(np.int64), np.full(len(reviews.user), np.nan))
        paid, decisions, events = self._ledger.close(step)
        paid[self._closed] = 0
        closed = world.closed_at < world.start + (step + 1) * STEP
        leaving = closed & ~self._closed
        paid[leaving, REWARDS.index("weekly_active_days")] += self._ledger.remaining(step)[leaving]
        self._closed = closed
        self._known.learn(step, decisions, events)
        self._step = step + 1
        observation, info = self._observe(world, paid, (wanted == 1) & ~taken)
        truncated = np.full(self.num_envs, self._step == world.steps) & ~closed
        return observation, paid @ self.weights, closed.copy(), truncated, info

    def _observe(self, world: World, paid: Floats, illegal: Booleans) -> tuple[Observations, dict[str, Any]]:
        step = self._step
        self._legal: Booleans = np.tile([True, False], (self.num_envs, 1))
        if step < world.steps:
            self._reviews = world.begin(step)
            self._legal[self._reviews.user] = self._reviews.legal
            observation = self._known.observe(step, self._reviews)
        else:
            observation = self._known.observe(step, None)
        return observation, {"legal": self._legal.copy(), "illegal": illegal, "components": paid}


class Known:
    """What the log has told so far, kept up step by step: a row counts from the moment it was logged."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._waiting: dict[str, NDArray[Any]] = {
            name: np.empty(0, np.int64) for name in ("user", "at", "logged", "kind", "day")
        }
        self._counts = {name: Recent(world.size) for name in ("sends", "clicks", "visits")}
        self._sent_at: Integers = np.zeros((world.size, 8), np.int64)
        self._visited_at: Integers = np.zeros(world.size, np.int64)

    def learn(self, step: int, decisions: Mapping[str, NDArray[Any]], events: Mapping[str, NDArray[Any]]) -> None:
        """Take in the rows that `step` added, as far as they are logged before the next step begins."""
        until = self.world.start + (step + 1) * STEP
        rows = {name: np.concatenate([self._waiting[name], column]) for name, column in events.items()}
        later = rows["logged"] >= until
        self._waiting = {name: column[later] for name, column in rows.items()}
        here = {
            kind: ~later & (rows["kind"] == KINDS.index(label))
            for kind, label in (("clicks", "click"), ("visits", "session_start"))
        }
        sent = decisions["action"] == 1
        user = decisions["user"][sent]
        self._sent_at[user, self._sent_at[user].argmin(1)] = decisions["at"][sent]
        np.maximum.at(self._visited_at, rows["user"][here["visits"]], rows["at"][here["visits"]])
        self._counts["sends"].add(user)
        for name, mine in here.items():
            self._counts[name].add(rows["user"][mine])

    def observe(self, step: int, reviews: Reviews | None) -> Observations:
        """[U, F] at the beginning of `step`; recency and consent at the review where there is one."""
        world = self.world
        everybody = np.arange(world.size)
        now = np.full(world.size, world.start + step * STEP)
        given = np.zeros((world.size, 4))
        if reviews is not None:
            waits = ~np.isnan(reviews.relevance)
            now[reviews.user] = reviews.at
            asked = [np.ones(len(waits)), waits, reviews.relevance, reviews.near_real_time]
            given[reviews.user] = np.nan_to_num(np.column_stack(asked))
        clock = world.clock[step]
        hour, weekday = (2 * np.pi * turn[world.zone] for turn in (clock.hour / 24, clock.weekday / 7))
        last = self._sent_at.max(1)
        counts = self._counts
        columns = [
            world.reachable(everybody, now),
            ((self._sent_at > self._visited_at[:, None]) & (self._sent_at >= (now - LOOKBACK)[:, None])).sum(1),
            *(counts["sends"].day, counts["sends"].week, counts["clicks"].week),
            *(counts["visits"].day, counts["visits"].week),
            *(np.minimum(now - at, LOOKBACK) / HOUR for at in (last, self._visited_at)),
            *(np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)),
        ]
        return np.column_stack([given, *columns]).astype(np.float32)


class Recent:
    """Counts per user over the last day and week, in whole steps."""

    def __init__(self, users: int) -> None:
        self._steps = np.zeros((7 * STEPS_PER_DAY, users), np.uint8)
        self._next = 0
        self.day: Integers = np.zeros(users, np.int64)
        self.week: Integers = np.zeros(users, np.int64)

    def add(self, user: Integers) -> None:
        """The next step's, one per entry of `user`."""
        counts = np.bincount(user, minlength=len(self.day))
        length = len(self._steps)
        self.week += counts - self._steps[self._next]
        self.day += counts - self._steps[(self._next - STEPS_PER_DAY) % length]
        self._steps[self._next] = counts
        self._next = (self._next + 1) % length
