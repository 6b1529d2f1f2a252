"""The linear fitted Q: a loop, a golden step, a truth that is linear, and what a member may not see."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.base import Floats
from policies.ope.fqe import Fit, fit_all
from policies.ope.linear import RIDGE, fit_linear
from tests.policies.test_ope_truth import HORIZON, TARGET, Tabular, simulate, solve

Build = Callable[..., Transitions]


def ragged(table_of: Build, seed: int = 0, users: int = 40) -> Transitions:
    """Users of one to four rows, two features (one with gaps), some accounts closed."""
    rng = np.random.default_rng(seed)
    names = [f"u{i}" for i in range(users) for _ in range(1 + i % 4)]
    n = len(names)
    state = rng.normal(size=(n, 2))
    state[rng.random(n) < 0.2, 1] = np.nan
    last = np.append([a != b for a, b in zip(names[1:], names, strict=False)], True)
    return table_of(
        names,
        rng.integers(0, 2, n),
        np.full(n, 0.5),
        rng.normal(size=(n, 2)),
        rewards=("a", "b"),
        state=state,
        terminal=last & (rng.random(n) < 0.3),
    )


def naive(table: Transitions, rows: Any, probability: Floats, extra: Floats) -> Floats:
    """One member, by loops and least squares with the penalty as further rows."""
    x = np.column_stack([table.state.astype(np.float64), extra])
    for column in x.T:
        known = column[rows & np.isfinite(column)]
        column[:] = np.where(np.isfinite(column), (column - known.mean()) / known.std(), 0.0)
    x = np.column_stack([np.ones(len(x)), x])
    step = [list(table.user[:i]).count(user) for i, user in enumerate(table.user)]
    q = np.zeros((len(x), 2, 2))
    for k in reversed(range(max(step) + 1)):
        here = [i for i in range(len(x)) if step[i] == k]
        y = table.reward.copy()
        for i in here:
            if table.next_row[i] >= 0:
                y[i] += probability[i + 1] @ q[i + 1]
        fitted = [i for i in here if rows[i]]
        mean = y[fitted].mean(axis=0)
        for action in (0, 1):
            own = [i for i in fitted if table.action[i] == action]
            above = np.vstack([x[own], np.sqrt(RIDGE) * np.eye(x.shape[1])])
            below = np.vstack([y[own] - mean, np.zeros((x.shape[1], 2))])
            for i in here:
                q[i, action] = mean + x[i] @ np.linalg.lstsq(above, below, rcond=None)[0]
    return q


def test_agrees_with_a_loop(table_of: Build) -> None:
    table = ragged(table_of)
    rng = np.random.default_rng(1)
    n = len(table.user)
    probability = rng.dirichlet([1, 1], n)
    rows = np.stack([table.user % 2 == 0, np.ones(n, dtype=bool)])
    extra = rng.random((n, 1)).astype(np.float32)
    ahead = np.zeros((2, n, 2), dtype=np.float32)
    going = table.next_row >= 0
    ahead[:, going] = probability[table.next_row[going]]
    found = fit_linear(table, rows, ahead, extra)
    # Standardised by the rows of any member, as one population is.
    wanted = naive(table, rows[1], probability.astype(np.float32).astype(np.float64), extra)
    np.testing.assert_allclose(found[1], wanted, atol=1e-9)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_one_step_by_hand(table_of: Build) -> None:
    """Two rows of action 1 with x = -1, 1 and y = 0, 4; none of action 0: mean m = 2.

    X'X + I = diag(3, 3), X'(y - m) = (-2 + 2, 2 + 2) = (0, 4), B = (0, 4/3): Q = 2 -+ 4/3; without rows Q = m.
    """
    table = table_of(["a", "b"], [1, 1], [0.5, 0.5], [0.0, 4.0], state=[-1.0, 1.0])
    q = fit_linear(table, np.ones((1, 2), dtype=bool), np.zeros((1, 2, 2), dtype=np.float32), None)
    np.testing.assert_allclose(q[0, :, :, 0], [[2, 2 - 4 / 3], [2, 2 + 4 / 3]], atol=1e-12)


def test_a_truth_that_is_linear_is_recovered(table_of: Build) -> None:
    """Two states make every Q linear in the state; noise of sd 1 over some 2,000 rows a cell."""
    _, exact = solve(TARGET)
    table = simulate(table_of, 3, 20_000, HORIZON)
    probability = Tabular(TARGET).action_probabilities(table.state, table.legal)
    every = np.ones(len(table.user), dtype=bool)
    (q,) = fit_all(table, [[Fit(probability, every, every)]], True, fit_linear)
    step = np.arange(len(table.user)) % HORIZON
    np.testing.assert_allclose(q[..., 0], exact[step, table.state[:, 0].astype(int)], atol=0.1)


def test_a_constant_reward_is_the_number_of_rows_to_come(table_of: Build) -> None:
    table = simulate(table_of, 4, 50, HORIZON)
    rows = np.ones((1, len(table.user)), dtype=bool)
    ahead = np.zeros((1, len(table.user), 2), dtype=np.float32)
    ahead[0, table.next_row >= 0] = 0.5
    table.reward[:] = 1.0
    q = fit_linear(table, rows, ahead, None)
    np.testing.assert_allclose(q[0, :, :, 0], np.tile([[3.0], [2.0], [1.0]], (50, 2)), atol=1e-9)


@pytest.mark.parametrize("column", ["reward", "state", "action"])
def test_a_member_sees_nothing_of_other_rows_but_their_unit(table_of: Build, column: str) -> None:
    table = ragged(table_of, seed=5)
    own = (table.user % 2 == 0)[None]
    ahead = np.full((1, len(table.user), 2), 0.5, dtype=np.float32)
    before = fit_linear(table, own, ahead, None)
    values = getattr(table, column)
    values[~own[0]] = 1 - values[~own[0]]
    after = fit_linear(table, own, ahead, None)
    np.testing.assert_array_equal(after[0, own[0]], before[0, own[0]])


def test_a_step_that_no_row_of_the_member_reaches_is_worth_nothing(table_of: Build) -> None:
    table = table_of(["a", "a", "b"], [0, 1, 1], [0.5] * 3, [1.0, 5.0, 2.0])
    q = fit_linear(table, np.array([[False, False, True]]), np.zeros((1, 3, 2), dtype=np.float32), None)
    np.testing.assert_array_equal(q[0, 1], 0.0)
    assert (q[0, [0, 2]] == 2.0).all()
