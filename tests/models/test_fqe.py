"""Fitted Q evaluation recovers values that are known in closed form."""

import numpy as np
import pytest

from models.errors import InputError
from models.fqe import fit_fqe

POLICY = np.array([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])  # [s, a]


def ahead(table, policy: np.ndarray) -> np.ndarray:
    """[N, A] what `policy` [s, a] does at the row after each; 0 where nothing follows."""
    after = table.next_row
    found = np.zeros(table.legal.shape, dtype=np.float32)
    found[after >= 0] = policy[table.state[after[after >= 0], 0].astype(int)]
    return found


def errors(table, q: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[N, A, K] |found - wanted| at legal actions; `wanted` [s, a, k]."""
    return np.abs(q - wanted[table.state[:, 0].astype(int)])[table.legal]


def test_discounted_value_of_a_stochastic_policy(world) -> None:
    table = world.log()
    # Two policies in one population: the second always changes state.
    policies = [POLICY, np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])]
    q = fit_fqe(
        table,
        np.ones((2, len(table.user)), dtype=bool),
        np.stack([ahead(table, policy) for policy in policies]),
        steps=900,
        gamma_per_day=world.gamma,
        extra_state=None,
        seed=0,
        hidden=(32,),
        batch_size=256,
        learning_rate=5e-3,
    )()
    for found, policy in zip(q, policies, strict=True):
        value = np.zeros((2, 2))
        for _ in range(500):
            value = np.einsum("sa,sak->sk", policy, world.backup(value, world.gamma))
        # Had truncated rows (one in four) been taken for ends, values of 4 to 10 would be short by a quarter.
        assert errors(table, found, world.backup(value, world.gamma)).max() < 0.12


def test_undiscounted_value_with_time_left(world) -> None:
    length = 5
    table = world.log(length=length, users=600)
    step = np.arange(len(table.user)) - np.searchsorted(table.user, table.user)
    left = (length - step)[:, None].astype(np.float32)
    q = fit_fqe(
        table,
        np.ones((1, len(table.user)), dtype=bool),
        ahead(table, POLICY)[None],
        steps=1500,
        gamma_per_day=None,
        extra_state=left,
        seed=0,
        hidden=(32, 32),
        batch_size=256,
        learning_rate=5e-3,
    )()[0]
    # The log ends after `length` rows: with one left the value is r, then r + sum_a pi Q of one fewer.
    value = np.zeros((2, 2))
    for remaining in range(1, length + 1):
        wanted = world.backup(value, gamma=1.0)
        value = np.einsum("sa,sak->sk", POLICY, wanted)
        there = table.where(left[:, 0] == remaining)
        assert errors(there, q[left[:, 0] == remaining], wanted).mean() < 0.15


def test_without_a_next_row_it_is_the_regression_of_the_reward(world) -> None:
    table = world.log(users=200)
    nothing = np.zeros((1, *table.legal.shape), dtype=np.float32)
    rows = np.ones((1, len(table.user)), dtype=bool)
    q = fit_fqe(table, rows, nothing, 400, None, None, seed=0, hidden=(32,), learning_rate=5e-3)()[0]
    assert errors(table, q, world.reward).max() < 0.05


def test_a_member_learns_from_its_own_rows_alone(table_of) -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(100), 4).tolist()
    second = np.array(users) >= 50
    table = table_of(users, state=rng.normal(size=400), reward=np.where(second, 5.0, 1.0))
    rows = np.stack([~second, second])
    nothing = np.zeros((2, 400, 2), dtype=np.float32)
    q = fit_fqe(table, rows, nothing, 300, None, None, seed=0, hidden=(16,))()
    assert q[0, :, 0].mean() == pytest.approx(1.0, abs=0.1)
    assert q[1, :, 0].mean() == pytest.approx(5.0, abs=0.1)


def test_same_seed_same_numbers_and_equal_members_are_equal(world) -> None:
    table = world.log(users=50)
    rows = np.ones((2, len(table.user)), dtype=bool)
    next_probabilities = np.stack([ahead(table, POLICY)] * 2)
    first, again = (
        fit_fqe(table, rows, next_probabilities, 40, world.gamma, None, seed=3, hidden=(16,))() for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert np.allclose(first[0], first[1], atol=1e-5)


def test_a_member_without_rows_is_refused(world) -> None:
    table = world.log(users=5)
    rows = np.zeros((1, len(table.user)), dtype=bool)
    with pytest.raises(InputError, match="policy 0 has no row to learn from"):
        fit_fqe(table, rows, np.zeros((1, *table.legal.shape), dtype=np.float32), 5, 0.9, None, seed=0)
