"""Policies that a configuration names: by hand, and against the log that a policy with known probabilities wrote."""

from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from policies.base import checked_probabilities
from policies.baselines import Always, Never
from policies.named import NamedPolicy, Recorded, plain, recorded

ACTIONS = ("hold", "badge", "push")
STATE = np.zeros((3, 1), np.float32)
LEGAL = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0]], bool)


def test_fixed_probabilities_are_shared_by_the_legal_actions() -> None:
    policy = plain("mine", NamedPolicy("fixed", {"hold": 1.0, "badge": 3.0, "push": 4.0}), ACTIONS)
    # 8 in all; without the badge 1 : 4; alone, hold has it all
    expected = [[1 / 8, 3 / 8, 4 / 8], [1 / 5, 0, 4 / 5], [1, 0, 0]]
    np.testing.assert_allclose(checked_probabilities(policy, STATE, LEGAL), expected, atol=1e-12)
    assert (policy.name, policy.learned) == ("mine", False)


def test_uniform_never_and_always() -> None:
    uniform = plain("uniform", NamedPolicy("uniform"), ACTIONS).action_probabilities(STATE, LEGAL)
    np.testing.assert_allclose(uniform, [[1 / 3] * 3, [1 / 2, 0, 1 / 2], [1, 0, 0]], atol=1e-12)
    assert plain("quiet", NamedPolicy("never"), ACTIONS) == Never("quiet")
    assert plain("loud", NamedPolicy("always"), ACTIONS) == Always("loud")


def test_weight_on_illegal_actions_alone_is_refused() -> None:
    with pytest.raises(InputError, match="push only: gives no weight to any action that is legal at row 2 "):
        plain("push only", NamedPolicy("fixed", {"push": 1.0}), ACTIONS).action_probabilities(STATE, LEGAL)


def table(groups: list[tuple[float, list[int], int, int, float, float, float]], actions: int = 3) -> Recorded:
    """From (feature, legal, action, number, mean, low, high) of each group."""
    columns: Any = list(zip(*groups, strict=True))
    keys = np.column_stack([columns[0], np.array(columns[1])]).astype(np.float32)
    stated = np.array(columns[4:], dtype=float).T
    return recorded("other", np.array([0]), keys, np.array(columns[2]), np.array(columns[3]), stated, actions)


EVERY = [1, 1, 1]


def test_propensities_that_agree_are_the_policy_itself() -> None:
    found = table([(0, EVERY, a, n, p, p, p) for a, n, p in ((0, 3, 0.5), (1, 9, 0.2), (2, 1, 0.3))])
    np.testing.assert_allclose(found.action_probabilities(STATE, np.ones((3, 3), bool)), [[0.5, 0.2, 0.3]] * 3)
    assert found.told == {
        "cells": 1, "exact_cells": 1, "decisions": 13, "spread": 0.0, "unseen": 0, "smallest_cell": 13
    }  # fmt: skip
    assert found.warnings() == []


def test_propensities_that_vary_leave_how_often_each_action_was_chosen() -> None:
    found = table([(0, EVERY, 0, 6, 0.7, 0.5, 0.9), (0, EVERY, 2, 2, 0.3, 0.3, 0.3)])
    np.testing.assert_allclose(found.probability, [[6 / 8, 0, 2 / 8]])
    assert (found.told["exact_cells"], found.told["unseen"]) == (0, 1)
    assert found.told["spread"] == pytest.approx(0.4)
    (warning,) = found.warnings()
    for words in ("other: in 1 of 1 cells", "differ by up to 0.4", "1 legal actions were never chosen"):
        assert words in warning


def test_an_action_never_shown_keeps_the_rest_from_being_the_policy() -> None:
    """0.5 and 0.3 leave 0.2 to an action that the log does not show: nobody may give it away."""
    found = table([(0, EVERY, 0, 3, 0.5, 0.5, 0.5), (0, EVERY, 1, 1, 0.3, 0.3, 0.3)])
    np.testing.assert_allclose(found.probability, [[3 / 4, 1 / 4, 0]])
    assert found.told["exact_cells"] == 0


def test_a_cell_is_its_context_and_its_legal_actions() -> None:
    found = table(
        [
            (0, EVERY, 0, 2, 0.5, 0.5, 0.5), (0, EVERY, 2, 2, 0.5, 0.5, 0.5),
            (0, [1, 0, 1], 0, 1, 0.9, 0.9, 0.9), (0, [1, 0, 1], 2, 1, 0.1, 0.1, 0.1),
            (7, EVERY, 1, 5, 1.0, 1.0, 1.0),
        ]
    )  # fmt: skip
    state = np.array([[0], [0], [7], [9]], np.float32)
    legal = np.array([EVERY, [1, 0, 1], EVERY, [0, 0, 1]], bool)
    # The last decision is in no cell, but leaves no choice.
    expected = [[0.5, 0, 0.5], [0.9, 0, 0.1], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(found.action_probabilities(state, legal), expected)
    with pytest.raises(InputError, match=r"no decision like 1 of 4 here, first row 3 \(context \[9.0\], 3 legal"):
        found.action_probabilities(state, np.ones((4, 3), bool) & (legal | (state == 9)))


def test_zero_and_minus_zero_are_one_cell() -> None:
    """As cosines and centred columns have them."""
    found = table([(-0.0, EVERY, 0, 1, 0.5, 0.5, 0.5), (0.0, EVERY, 2, 3, 0.5, 0.5, 0.5)])
    assert found.told["cells"] == 1
    for zero in (0.0, -0.0):
        state = np.array([[zero]], np.float32)
        np.testing.assert_allclose(found.action_probabilities(state, np.ones((1, 3), bool)), [[0.5, 0, 0.5]])


def test_the_average_of_a_policy_that_changes_is_found_and_its_mean_propensity_is_not_it() -> None:
    """A policy that drifts over 200,000 decisions: shares recover its average, the mean of what is logged does not."""
    rng = np.random.default_rng(0)
    send = rng.uniform(0.1, 0.9, 200_000) ** 2
    action = (rng.random(len(send)) < send).astype(int)
    p = np.where(action == 1, send, 1 - send)
    groups = [
        (0.0, [1, 1], a, int((action == a).sum()), p[action == a].mean(), p[action == a].min(), p[action == a].max())
        for a in (0, 1)
    ]
    found = table(groups, actions=2)
    # 4 standard errors of a share: 0.0045
    np.testing.assert_allclose(found.probability[0], [1 - send.mean(), send.mean()], atol=0.0045)
    assert groups[1][4] > send.mean() + 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "logged"}, "needs `path`"),
        ({"kind": "uniform", "by": ("position",)}, "'uniform' reads no log; remove by"),
        ({"kind": "fixed"}, "`fixed` alone needs them"),
        ({"kind": "never", "probabilities": {"hold": 1.0}}, "`fixed` alone needs them"),
        ({"kind": "fixed", "probabilities": {"hold": -1.0}}, "0 or more to each"),
        ({"kind": "fixed", "probabilities": {"hold": 0.0}}, "not 0 to all"),
        ({"kind": "fixed", "probabilities": {"hold": float("nan")}}, "0 or more to each"),
    ],
)
def test_a_policy_that_cannot_be_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NamedPolicy(**values)
