"""The world as a gymnasium.vector.VectorEnv: spaces, reproducibility, rewards that add up to the truth, bad input."""

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from models.errors import InputError
from policies.behaviour import HOUR, KINDS, STEP, STEPS_PER_DAY, Behaviour, SimulatorConfig
from policies.environment import FEATURES, NotificationEnv
from policies.ledger import REWARDS
from policies.simulator import View, simulate, threshold, user_totals

CONFIG = SimulatorConfig(users=300, days=9)
WEIGHTS = {"clicks": 1.0, "visits": 0.5, "weekly_active_days": 0.3, "disables": -2.0, "sends": -0.1}
LEAVING = Behaviour(close_per_day=0.02, disable=0.05)
COLUMN = {name: index for index, name in enumerate(FEATURES)}


def played(env: NotificationEnv, seed: int, cut: float = 0.4) -> list[tuple[Any, ...]]:
    """Every step of an episode in which items above `cut` are sent."""
    observation, info = env.reset(seed=seed)
    steps: list[tuple[Any, ...]] = [(observation, None, None, None, info)]
    while len(steps) == 1 or not (steps[-1][2] | steps[-1][3]).all():
        action = (steps[-1][0][:, COLUMN["relevance"]] > np.float32(cut)).astype(np.int64)
        steps.append(env.step(action))
    return steps


@pytest.fixture(scope="module")
def episode() -> list[tuple[Any, ...]]:
    return played(NotificationEnv(CONFIG, WEIGHTS, behaviour=LEAVING), 5)


@pytest.fixture(scope="module")
def log():
    return simulate(CONFIG, 5, threshold(np.float32(0.4)), behaviour=LEAVING)


def test_rewards_of_an_episode_are_the_totals_of_the_log(episode, log):
    """Same seed, same actions: user by user and component by component, also for accounts that close."""
    components = sum(info["components"] for *_, info in episode)
    totals = user_totals(log)
    for column, name in enumerate(REWARDS):
        np.testing.assert_allclose(components[:, column], totals[name], atol=1e-9, err_msg=name)
        assert totals[name].sum() > 10
    weighted = sum(weight * totals[name] for name, weight in WEIGHTS.items())
    np.testing.assert_allclose(sum(reward for _, reward, *_ in episode[1:]), weighted, atol=1e-9)


def test_terminated_is_a_closed_account_and_truncated_the_end_of_the_log(episode, log):
    closed = log.events["kind"] == KINDS.index("account_closed")
    at = dict(zip(log.events["user"][closed], log.events["at"][closed], strict=True))
    assert len(at) > 10
    assert len(episode) == 1 + CONFIG.days * STEPS_PER_DAY
    for step, (_, reward, terminated, truncated, info) in enumerate(episode[1:]):
        until = log.start + (step + 1) * STEP
        np.testing.assert_array_equal(terminated, [at.get(user, until) < until for user in range(CONFIG.users)])
        assert not (terminated & truncated).any()
        assert truncated.any() == (step == len(episode) - 2)
        gone = [user for user, moment in at.items() if moment < until - STEP]
        assert (reward[gone] == 0).all()
        assert not info["legal"][gone, 1].any()


def test_observations_lie_in_their_space_and_say_what_the_review_shows(episode, log):
    env = NotificationEnv(CONFIG, WEIGHTS)
    assert env.observation_space.shape == (CONFIG.users, len(FEATURES))
    asked = {(u, t): r for u, t, r in zip(*(log.decisions[n] for n in ("user", "at", "relevance")), strict=True)}
    reviews = 0
    for step, (observation, *_, info) in enumerate(episode):
        assert env.observation_space.contains(observation)
        shown = {u: r for (u, t), r in asked.items() if (t - log.start) // STEP == step}
        np.testing.assert_array_equal(np.flatnonzero(observation[:, COLUMN["review"]]), sorted(shown))
        for user, relevance in shown.items():
            assert observation[user, COLUMN["candidate"]] == (not np.isnan(relevance))
            assert observation[user, COLUMN["relevance"]] == np.float32(np.nan_to_num(relevance))
        on = observation[:, COLUMN["notifications_on"]] * observation[:, COLUMN["candidate"]]
        np.testing.assert_array_equal(info["legal"][:, 1], on == 1)
        reviews += len(shown)
    assert reviews == len(log.decisions["at"]) > 2000


def test_observations_hold_what_was_logged_before_the_step(episode, log):
    """Every feature of the past against a plain count over the log, each row from the step it became known before."""
    d, events = log.decisions, log.events
    rows = {"sends": (d["user"], d["at"], d["at"], d["action"] == 1)}
    for name, kind in (("clicks", "click"), ("visits", "session_start")):
        rows[name] = (events["user"], events["at"], events["logged"], events["kind"] == KINDS.index(kind))
    review_at = {(u, (t - log.start) // STEP): t for u, t in zip(d["user"], d["at"], strict=True)}
    for step in (7, 20, 33, 53):
        begin = log.start + step * STEP
        for user in range(0, CONFIG.users, 5):
            known = {
                name: [(at, (logged - log.start) // STEP) for at, logged in
                       zip(at[mine & (who == user)], logged[mine & (who == user)], strict=True) if logged < begin]
                for name, (who, at, logged, mine) in rows.items()
            }  # fmt: skip
            found = dict(zip(FEATURES, episode[step][0][user], strict=True))
            for name, steps in (("24h", 6), ("7d", 42)):
                for what in ("sends", "visits", *(["clicks"] if steps == 42 else [])):
                    count = sum(step - steps <= logged < step for _, logged in known[what])
                    assert found[f"{what}_{name}"] == count, (what, name)
            now = review_at.get((user, step), begin)
            last = {what: max((at for at, _ in known[what]), default=None) for what in ("sends", "visits")}
            for name, what in (("hours_since_send", "sends"), ("hours_since_visit", "visits")):
                hours = 672.0 if last[what] is None else (now - last[what]) / HOUR
                assert found[name] == np.float32(hours)
            seen = last["visits"] if last["visits"] is not None else 0
            assert found["badge"] == sum(at > seen for at, _ in known["sends"])
            # Monday 2026-01-05: the middle of the step by the user's clock.
            offset = {"America/Los_Angeles": -8, "America/New_York": -5, "Europe/Berlin": 1, "Asia/Kolkata": 5.5,
                      "Asia/Tokyo": 9}[log.users["time_zone"][user]]  # fmt: skip
            hours = 4 * step + 2 + offset
            assert found["hour_sin"] == pytest.approx(np.sin(2 * np.pi * (hours % 24) / 24), abs=1e-6)
            assert found["weekday_cos"] == pytest.approx(np.cos(2 * np.pi * (hours // 24 % 7) / 7), abs=1e-6)


def test_same_seed_same_episode_another_seed_another(episode):
    env = NotificationEnv(CONFIG, WEIGHTS, behaviour=LEAVING)
    again = played(env, 5)
    for one, other in zip(episode, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        if one[1] is not None:
            np.testing.assert_array_equal(one[1], other[1])
    first, _ = env.reset(seed=6)
    assert not np.array_equal(first, again[0][0])
    # Without a seed: the next draw of the generator, so that episodes differ and repeat after a seed.
    followers = []
    for _ in range(2):
        env.reset(seed=6)
        followers.append([env.reset()[0], env.reset()[0]])
    np.testing.assert_array_equal(followers[0], followers[1])
    assert not np.array_equal(followers[0][0], followers[0][1])


def test_illegal_sends_are_held_and_named(log):
    always = NotificationEnv(CONFIG, WEIGHTS, behaviour=LEAVING)
    _, info = always.reset(seed=5)
    total, legal = 0.0, info["legal"]
    for _ in range(CONFIG.days * STEPS_PER_DAY):
        *_, info = always.step(np.ones(CONFIG.users, np.int64))
        np.testing.assert_array_equal(info["illegal"], ~legal[:, 1])
        legal, total = info["legal"], total + info["components"][:, 0].sum()

    def send(view: View) -> np.ndarray:
        return np.column_stack([~view.legal[:, 1], view.legal[:, 1]]).astype(float)

    assert total == user_totals(simulate(CONFIG, 5, send, behaviour=LEAVING))["sends"].sum() > 500


class One(gymnasium.Env):
    """One user of the vector environment as a plain environment, for gymnasium's own checks."""

    def __init__(self) -> None:
        self.many = NotificationEnv(dataclasses.replace(CONFIG, users=1, days=2), WEIGHTS)
        self.observation_space = self.many.single_observation_space
        self.action_space = self.many.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        observation, info = self.many.reset(seed=seed, options=options)
        return observation[0], {name: value[0] for name, value in info.items()}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.many.step(np.array([action]))
        one = {name: value[0] for name, value in info.items()}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), one


def test_gymnasium_checks_one_user():
    check_env(One(), skip_render_check=True)


def test_gymnasium_makes_it_and_its_wrappers_read_it():
    """make_vec demands an autoreset mode in the metadata; RecordEpisodeStatistics sums what the steps return."""
    gymnasium.register(id="Notifications-test-v0", vector_entry_point=NotificationEnv)
    try:
        env = gymnasium.make_vec("Notifications-test-v0", 40, "vector_entry_point", config=CONFIG, weights=WEIGHTS)
    finally:
        gymnasium.registry.pop("Notifications-test-v0")
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.num_envs == 40
    recorded = RecordEpisodeStatistics(env)
    recorded.reset(seed=2)
    total = np.zeros(40)
    for _ in range(CONFIG.days * STEPS_PER_DAY):
        observation, reward, terminated, truncated, info = recorded.step(env.action_space.sample() * 0)
        total += reward
    assert (terminated | truncated).all()
    assert observation.dtype == np.float32
    np.testing.assert_allclose(info["episode"]["r"][truncated], total[truncated], rtol=1e-4, atol=1e-4)
    env.close()


def test_observations_are_not_written_to_later():
    env = NotificationEnv(CONFIG, WEIGHTS)
    first, info = env.reset(seed=1)
    kept, legal = first.copy(), info["legal"].copy()
    for _ in range(8):
        env.step(np.ones(CONFIG.users, np.int64))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(info["legal"], legal)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda env: env.step(np.zeros(300, int)), "step was called before reset"),
        (lambda env: (env.reset(seed=1), env.step(np.zeros(7, int))), r"actions of shape \(7,\); 300 of 0"),
        (lambda env: (env.reset(seed=1), env.step(np.full(300, 2))), "0 .hold. or 1 .send. are needed"),
        (lambda env: env.reset(seed=1, options={"reset_mask": np.arange(300) < 9}), "reset all of them together"),
        (
            lambda env: NotificationEnv(CONFIG, {"joy": 1.0}),
            "weights: 'joy' is not a reward of the world",
        ),
        (lambda env: NotificationEnv(CONFIG, {"clicks": np.nan}), "weights: 'clicks' is nan; give a finite number"),
    ],
)
def test_bad_input(act, message):
    with pytest.raises(InputError, match=message):
        act(NotificationEnv(CONFIG, WEIGHTS))


def test_a_step_after_the_end_is_refused():
    env = NotificationEnv(dataclasses.replace(CONFIG, users=5, days=1), WEIGHTS)
    played(env, 1)
    with pytest.raises(InputError, match="after the end of the log; reset first"):
        env.step(np.zeros(5, np.int64))
    assert env.reset(seed=1)[0].shape == (5, len(FEATURES))
