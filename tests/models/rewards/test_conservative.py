"""Rounds of policy and classifier: who trains on what, and that a policy that games a classifier is caught."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models.rewards.conservative import Visited, rounds_of
from models.rewards.goal import Classifier
from models.rewards.success import GoalConfig, sets_of
from models.table import Transitions

Log = Callable[..., Transitions]
CONFIG = GoalConfig(
    success=("f0 >= 1",), rounds=3, steps=300, hidden=(8,), batch_size=64, learning_rate=1e-2, gradient_penalty=0.0
)


@pytest.fixture
def log(table_of: Log) -> Transitions:
    """300 users of two days: a success has f0 = 1, of a mean of f1 of 3, a failure f0 = 0 and 0."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=600)
    state = np.column_stack([kind, 3 * kind + rng.normal(size=600)])
    split = np.repeat(rng.integers(2, size=300), 2)
    return table_of(np.repeat(np.arange(300), 2).tolist(), state=state, reward=np.zeros(600), split=split)


def test_in_turn(log: Transitions) -> None:
    """One classifier more than policies; each policy is made of the classifier before it, and its states are added."""
    asked: list[Classifier] = []

    def train(classifier: Classifier) -> int:
        asked.append(classifier)
        return len(asked)

    def visited(policy: int) -> Visited:
        return Visited(np.full((7, 2), policy, np.float32), np.full((5, 2), policy, np.float32))

    found = rounds_of(log, sets_of(log, CONFIG), CONFIG, 0, train, visited)
    assert [each.facts["round"] for each in found] == [0, 1, 2, 3]
    assert [each.classifier for each in found[:3]] == asked
    assert [each.facts["held_out"]["visited"] for each in found] == [0, 5, 10, 15]
    assert found[0].facts["mean_p"]["visited"] is None


def test_naive_is_no_round(log: Transitions) -> None:
    def never(_: object) -> Visited:
        raise AssertionError("nobody is asked")

    (found,) = rounds_of(log, sets_of(log, CONFIG), replace(CONFIG, rounds=0), 0, never, never)
    assert found.facts["accuracy"] > 0.9


def test_a_policy_that_games_the_classifier_gains_nothing_in_the_end(log: Transitions) -> None:
    """The classifier sees f1 alone, which a policy moves freely: it goes where p is largest, among 0, 3, 6 and 9.

    Naively p is above 0.9 at 9, where no success ever was, and stays there; what is visited becomes a failure, until
    the best that is left pays no more than about 2 / 3, which is what is paid for going where successes are.
    """
    config = replace(CONFIG, features=("f1",), rounds=6)
    offers = np.column_stack([np.zeros(4), [0.0, 3.0, 6.0, 9.0]]).astype(np.float32)
    paid: list[float] = []

    def train(classifier: Classifier) -> np.ndarray:
        p = classifier.probability(offers[:, 1:])
        paid.append(float(p.max()))
        return offers[[int(p.argmax())]]

    def visited(chosen: np.ndarray) -> Visited:
        rng = np.random.default_rng(len(paid))
        noise = rng.normal(size=(200, 2)).astype(np.float32)
        return Visited(chosen + noise, chosen + noise[::2])

    found = rounds_of(log, sets_of(log, config), config, 0, train, visited)
    far = [float(each.classifier.probability(offers[3:, 1:])[0]) for each in found]
    assert far[0] > 0.9
    # No longer more like a success than not.
    assert far[-1] < 0.5
    assert paid[0] > 0.9
    assert paid[-1] < 0.8
