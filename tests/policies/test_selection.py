"""The slope of the value in the rollout share: exact on a world that can be counted out, and what it is used for."""

from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.selection import Slope

STEPS = 3
MU = np.array([[0.7, 0.3], [0.4, 0.6]])  # [s, a]
PI = np.array([[0.1, 0.9], [0.8, 0.2]])
REWARD = np.array([[[0.0, 1.0], [1.0, 0.0]], [[2.0, 0.5], [0.5, 3.0]]])  # [s, a, k]
AFTER = np.array([[0, 1], [0, 1]])  # [s, a]: action 1 leads to state 1
ELAPSED = 2.0


def value(policy: np.ndarray) -> np.ndarray:
    """[k] sum of rewards over STEPS decisions from state 0 on, by backward induction."""
    ahead = np.zeros((2, 2))
    for _ in range(STEPS):
        q = REWARD + ahead[AFTER]
        ahead = (policy[..., None] * q).sum(axis=1)
    return ahead[0]


def log(users: int, seed: int, build: Any) -> Transitions:
    """Users from state 0 on; every third validates, the others teach."""
    rng = np.random.default_rng(seed)
    state, action = np.zeros((users, STEPS), dtype=int), np.zeros((users, STEPS), dtype=int)
    for step in range(STEPS):
        action[:, step] = rng.random(users) < MU[state[:, step], 1]
        if step + 1 < STEPS:
            state[:, step + 1] = AFTER[state[:, step], action[:, step]]
    at, did, who = state.ravel(), action.ravel(), np.repeat(np.arange(users), STEPS)
    return build(
        [f"u{each}" for each in who], did, MU[at, did], REWARD[at, did], rewards=("clicks", "visits"), state=at,
        elapsed_days=np.full(len(who), ELAPSED), split=who % 3 == 0,
    )  # fmt: skip


def probabilities(table: Transitions, policy: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return policy[table.state[rows, 0].astype(int)]


def derivative() -> np.ndarray:
    """[k] of 7 V((1 - x) mu + x pi) / days at x = 0, by central differences of the exact value."""
    step = 1e-5
    ahead, behind = (value((1 - x) * MU + x * PI) for x in (step, -step))
    return 7 * (ahead - behind) / (2 * step) / (STEPS * ELAPSED)


def test_its_mean_is_the_derivative_of_the_value(table_of) -> None:
    slopes = []
    for seed in range(30):
        table = log(600, seed, table_of)
        slope = Slope.of(table, np.full((len(table.user), 2), np.nan), "week")
        slopes.append(slope(probabilities(table, PI, slope.rows)).mean(axis=0))
    off = np.mean(slopes, axis=0) - derivative()
    error = np.std(slopes, axis=0, ddof=1) / len(slopes) ** 0.5
    assert (np.abs(off) < 3.5 * error).all()
    # Neither is nothing: the derivative lies far from 0.
    assert (np.abs(derivative()) > 10 * error).all()


def test_the_logging_policy_itself_gains_nothing_whatever_happened(table_of) -> None:
    table = log(90, 0, table_of)
    slope = Slope.of(table, np.full((len(table.user), 2), np.nan), "week")
    same = probabilities(table, MU, slope.rows)
    assert slope(same) == pytest.approx(np.zeros((30, 2)), abs=1e-12)


def test_a_baseline_takes_noise_away(table_of) -> None:
    """Rewards that the state tells and no action moves: of the slope's spread little is left."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 4)
    state = rng.normal(size=(1200, 1))
    reward = 5 * state + rng.normal(size=(1200, 1)) * 0.1
    names, action = [f"u{each}" for each in users], rng.integers(2, size=1200)
    table = table_of(names, action, np.full(1200, 0.5), reward, state=state, split=users % 2)
    slope = Slope.of(table, np.full((1200, 2), np.nan), "decision")
    policy = np.tile([0.1, 0.9], (int(slope.rows.sum()), 1))
    ratio = policy[np.arange(len(policy)), slope.sample.action] / 0.5
    plain = slope.sample.per_user((ratio - 1)[:, None] * slope.sample.reward)
    assert slope(policy).std() * slope.sample.exposure.mean() < 0.1 * plain.std()


def test_per_decision_it_is_the_difference_of_values_by_hand(table_of) -> None:
    # User c teaches: its rewards are all 2, so the baseline is 2 everywhere.
    rewards, split = [1.0, 4.0, 2.0, 2.0, 2.0], [1, 1, 1, 0, 0]
    both = table_of("aabcc", [0, 1, 1, 0, 1], [0.5, 0.25, 0.25, 0.5, 0.5], rewards, split=split)
    slope = Slope.of(both, np.full((5, 2), np.nan), "decision")
    found = slope(np.tile([0.25, 0.75], (3, 1)))
    # rho: 0.25 / 0.5 = 0.5; 0.75 / 0.25 = 3; 3. User a: (0.5 - 1)(1 - 2) + (3 - 1)(4 - 2) = 4.5; user b: 0.
    # Over decisions per user, 3 / 2.
    assert found[:, 0] == pytest.approx([4.5 / 1.5, 0.0])
    assert found.mean() == pytest.approx((4.5 + 0.0) / 3)


def test_the_clone_stands_in_where_a_propensity_is_unknown(table_of) -> None:
    table = log(90, 0, table_of)
    known = Slope.of(table, np.full((len(table.user), 2), np.nan), "week")
    unknown = log(90, 0, table_of)
    unknown.propensity[:] = np.nan
    cloned = MU[unknown.state[:, 0].astype(int)]
    found = Slope.of(unknown, cloned, "week")
    policy = probabilities(table, PI, known.rows)
    assert found(policy) == pytest.approx(known(policy))
