"""Accounts that close because of what was sent: whoever left is not to be mistaken for whoever was never there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.ope.sample import Pace, take
from policies.ope.target import Target
from policies.rowset import EvaluateConfig, RowSet

Build = Callable[..., Transitions]
SOUND = ("pdis", "wpdis", "dr", "wdr", "mis")


class Sends:
    name, learned = "sends", False

    def __init__(self, send: float) -> None:
        self.send = send

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        return np.tile([1 - self.send, self.send], (len(legal), 1))


def closing_log(table_of: Build, seed: int, users: int) -> Transitions:
    """Three daily decisions by a coin; a send closes the account with probability 1/2, a day earns 1 while it is open
    at the decision."""
    rng = np.random.default_rng(seed)
    names, action, elapsed, terminal = [], [], [], []
    for user in range(users):
        for day in range(3):
            sent = int(rng.random() < 0.5)
            closes = bool(sent and rng.random() < 0.5)
            names.append(f"u{user:05d}")
            action.append(sent)
            # A terminal row takes in the time to the end of the log.
            elapsed.append(3.0 - day if closes else 1.0)
            terminal.append(closes)
            if closes:
                break
    return table_of(names, action, [0.5] * len(names), np.ones(len(names)), elapsed_days=elapsed, terminal=terminal)


def truth(send: float) -> float:
    """Per user: 1 + (1 - send / 2) + (1 - send / 2)^2."""
    stays = 1 - send / 2
    return 1 + stays + stays**2


@pytest.mark.parametrize("send", [0.0, 0.8, 1.0])
def test_every_sound_estimator_knows_who_left(table_of: Build, send: float) -> None:
    table = closing_log(table_of, 0, 6000)
    config = EvaluateConfig(resamples=200, marginal={})
    rows = RowSet.of(table, np.ones(len(table.user), dtype=np.bool_), config, 0)
    q = np.zeros((len(table.user), 2, 1))
    found = rows.estimates(Target.of(Sends(send), table), q)
    for name in found.keys() & set(SOUND):
        values = found[name]["value"] * 3 / 7
        assert abs(values[0] - truth(send)) < 4 * values[1:].std() + 1e-9, name
        assert values[1:].std() < 0.08, name


def test_marginalised_weights_follow_users_out_of_their_accounts(table_of: Build) -> None:
    table = closing_log(table_of, 1, 6000)
    config = EvaluateConfig(resamples=200, marginal={"x0": 2})
    rows = RowSet.of(table, np.ones(len(table.user), dtype=np.bool_), config, 0)
    values = rows.estimates(Target.of(Sends(0.8), table), np.zeros((len(table.user), 2, 1)))["mis"]["value"] * 3 / 7
    assert abs(values[0] - truth(0.8)) < 4 * values[1:].std()


def test_a_closed_account_is_seen_until_the_log_would_have_ended(table_of: Build) -> None:
    # a: closes in its first day, two days are left of three; b: three days; c: closes in its last day
    table = table_of(
        "abbbcc", [0] * 6, [0.5] * 6, np.ones(6), elapsed_days=[3, 1, 1, 1, 1, 1], terminal=[1, 0, 0, 0, 0, 1]
    )
    pace = Pace.of(table)
    assert (pace.gap_days, pace.steps) == (1.0, 3)
    sample = take(table, np.ones(6, dtype=np.bool_), "week", pace=pace)
    np.testing.assert_array_equal(sample.user, [0, 0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(sample.group, [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(sample.closed, [0, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(sample.reward[:, 0], [1, 0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(sample.exposure * 7, [3, 3, 2])
    assert sample.decisions == 6


def test_nobody_is_seen_longer_than_the_longest_trajectory(table_of: Build) -> None:
    # b decides every hour; a closes with ten days left, which would be 240 of them
    table = table_of(
        "abbb", [0] * 4, [0.5] * 4, np.ones(4), elapsed_days=[10, 1 / 24, 1 / 24, 1], terminal=[1, 0, 0, 0]
    )
    sample = take(table, np.ones(4, dtype=np.bool_), "week", pace=Pace.of(table))
    np.testing.assert_array_equal(sample.group, [0, 1, 2, 0, 1, 2])
