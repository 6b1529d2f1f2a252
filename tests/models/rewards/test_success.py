"""Which states are successes: by rule, by the best users, and what cannot be one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.rewards.success import GoalConfig, joined, seeded, sets_of
from models.table import Transitions

Log = Callable[..., Transitions]
RULE = ("f0 >= 3", "f1 = 1")


@pytest.fixture
def log(table_of: Log) -> Transitions:
    """Three users of three days: who earns 1, 2 and 3 a day of r0."""
    state = [[3, 1], [4, 0], [2, 1], [5, 1], [np.nan, 1], [3, np.nan], [0, 0], [3, 1], [9, 1]]
    return table_of([0, 0, 0, 1, 1, 1, 2, 2, 2], state=state, reward=[1, 1, 1, 2, 2, 2, 3, 3, 3])


def test_every_condition_holds_and_nothing_unknown_is_a_success(log: Transitions) -> None:
    found = sets_of(log, GoalConfig(success=RULE))
    assert np.flatnonzero(found.success).tolist() == [0, 3, 7, 8]
    assert (found.failure == ~found.success).all()
    assert not found.best.any()


@pytest.mark.parametrize(
    ("text", "rows"),
    [("f0 > 3", [1, 3, 8]), ("f0 < 3", [2, 6]), ("f0 <= 3", [0, 2, 5, 6, 7]), ("f0 = 9", [8]), ("f0 >= 1e1", [])],
)
def test_each_sign(log: Transitions, text: str, rows: list[int]) -> None:
    config = GoalConfig(success=(text,))
    if not rows:
        with pytest.raises(InputError, match="none of 9 states is a success"):
            sets_of(log, config)
    else:
        assert np.flatnonzero(sets_of(log, config).success).tolist() == rows


def test_a_feature_may_have_a_sign_in_its_name() -> None:
    assert GoalConfig(success=("time_zone=Asia/Tokyo = 1",)).conditions == [("time_zone=Asia/Tokyo", "=", 1.0)]


def test_warm_up_is_neither(table_of: Log) -> None:
    log = table_of([0, 0, 0], state=[[1], [1], [0]], reward=[0, 0, 0], warm_up=np.array([True, False, False]))
    found = sets_of(log, GoalConfig(success=("f0 = 1",)))
    assert found.success.tolist() == [False, True, False]
    assert found.failure.tolist() == [False, False, True]


def test_the_last_states_of_the_best_users(log: Transitions) -> None:
    """By r0 a day user 2 is the best third; the rows of the last two of their days are successes, the first neither."""
    config = GoalConfig(success_from="best_users", best_by={"r0": 1.0}, best_share=0.34, best_days=2.0)
    found = sets_of(log, config)
    assert found.best.tolist() == [False, False, True]
    assert np.flatnonzero(found.success).tolist() == [7, 8]
    assert np.flatnonzero(found.failure).tolist() == [0, 1, 2, 3, 4, 5]


def test_best_users_are_of_their_split_have_time_and_an_open_account(table_of: Log) -> None:
    users = [0, 0, 1, 1, 2, 2, 3, 3, 4]
    log = table_of(
        users,
        state=np.arange(9),
        reward=[1, 1, 2, 2, 5, 5, 1, 1, 9],
        split=np.array([0, 0, 0, 0, 0, 0, 1, 1, 1]),
        terminal=np.array([False] * 5 + [True] + [False] * 3),
    )
    config = GoalConfig(success_from="best_users", best_by={"r0": 1.0}, best_share=0.5, best_days=2.0)
    # Of the training users 2 earns most but closed the account; user 4 has one day; of one user's half none are best.
    assert sets_of(log, config).best.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "success is empty; say what success is by conditions"),
        ({"success": ("f0 >= 3",), "success_from": "best_users"}, "and success_from = 'best_users' are both given"),
        ({"success": ("mood >= 3",)}, r"success: 'mood' is no state feature of the log \(it has f0, f1\)"),
        ({"success": ("f0 >= 3",), "features": ("mood",)}, "features: 'mood' is no state feature"),
        ({"success_from": "best_users"}, "best_by weighs nothing"),
        ({"success_from": "best_users", "best_by": {"mood": 1.0}}, "best_by: 'mood' is no reward component"),
        ({"success": ("f0 >= 99",)}, r"success \(f0 >= 99\): none of 9 states is a success"),
        ({"success": ("f0 <= 99", "f0 >= -9")}, None),
        ({"success_from": "best_users", "best_by": {"r0": 1.0}, "best_days": 30.0}, "none of 9 states is a success"),
    ],
)
def test_what_says_no_success_or_no_failure(log: Transitions, changes: dict[str, Any], message: str | None) -> None:
    config = GoalConfig(**changes)
    if message is None:
        every = sets_of(log, config)
        assert every.failure.sum() == 1  # what is unknown is no success
        message = "all of 8 states are successes, and a classifier without failures calls everything one"
        log = log.where(~np.isnan(log.state[:, 0]))
    with pytest.raises(InputError, match=message):
        sets_of(log, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success": ("f0",)}, "'f0' is no condition; write FEATURE, one of >=, <=, =, >, <, and a number"),
        ({"success": ("f0 >= many",)}, "'f0 >= many' is no condition"),
        ({"success": ("f0>=3",)}, "'f0>=3' is no condition.*with spaces between"),
        ({"success_from": "luck"}, "success_from is 'luck'; it must be rule or best_users"),
        ({"best_share": 0.0}, r"best_share is 0.0; it must lie in \(0, 1\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must lie in \[0, 1\)"),
        ({"rounds": -1}, "rounds is -1; it must be 0 or more"),
        ({"batch_size": 2}, "batch_size is 2; it must be 4 or more"),
        ({"hidden": ()}, "hidden is"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"mixup": float("nan")}, "mixup is nan; it must be 0 or more"),
        ({"gradient_penalty": -1.0}, "gradient_penalty is -1.0; it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GoalConfig(**changes)


def test_seeds_are_copies_of_whole_trajectories(log: Transitions) -> None:
    found = seeded(log, np.array([False, False, True]), 2)
    assert found.user.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert found.user_id.tolist() == ["u0#0", "u1#0", "u2#0", "u2#1", "u2#2"]
    assert found.reward[9:, 0].tolist() == [3.0] * 6
    # Nobody's last row leads into a copy's first.
    assert found.next_row.tolist() == [1, 2, -1, 4, 5, -1, 7, 8, -1, 10, 11, -1, 13, 14, -1]
    assert seeded(log, np.zeros(3, dtype=bool), 2) is log
    assert len(joined([log, log]).user) == 18
