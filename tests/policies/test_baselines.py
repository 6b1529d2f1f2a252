import numpy as np
import pytest

from models.errors import InputError
from policies.base import checked_probabilities
from policies.baselines import Always, Mixture, Never
from policies.baselines.design import Design, crossed

LEGAL = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
STATE = np.zeros((4, 1), dtype=np.float32)


def test_never_takes_the_first_legal_action() -> None:
    found = Never().action_probabilities(STATE, LEGAL)
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_always_takes_the_last_legal_action() -> None:
    found = Always().action_probabilities(STATE, LEGAL)
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_a_mixture_is_the_share_of_both() -> None:
    found = Mixture(Always(), Never(), 0.2).action_probabilities(STATE, LEGAL)
    np.testing.assert_allclose(found, [[0.8, 0, 0.2], [0.8, 0.2, 0], [0, 0.8, 0.2], [1, 0, 0]], atol=1e-15)
    with pytest.raises(InputError, match=r"always: the rollout share is 1.2; it must lie in \[0, 1\]"):
        Mixture(Always(), Never(), 1.2)


class Fixed:
    name = "fixed"
    learned = False

    def __init__(self, found: np.ndarray) -> None:
        self.found = found

    def action_probabilities(self, state: np.ndarray, legal: np.ndarray) -> np.ndarray:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], "1 of 2 rows are not probabilities.*first row 1"),
        ([[1.2, -0.2], [1, 0]], "first row 0"),
        ([[1, 0], [0.9, 0.1]], "first row 1.*where legal is"),
        ([[np.nan, 1], [1, 0]], "first row 0"),
        ([[1.0], [1.0]], r"shape \(2, 1\)"),
    ],
)
def test_a_policy_is_held_to_its_word(found: list, message: str) -> None:
    legal = np.array([[True, True], [True, False]])
    with pytest.raises(InputError, match=f"fixed: .*{message}"):
        checked_probabilities(Fixed(np.array(found)), STATE[:2], legal)


# The state as a linear model reads it


def test_the_design_standardises_fills_and_drops() -> None:
    state = np.array([[1.0, 5.0, np.nan, 7.0], [3.0, 5.0, 2.0, np.nan]] * 100)
    state[0, 1] = 6.0  # one row in 200: too rare
    found = Design.of(state)
    # Kept: the first feature (mean 2, sd 1), unknown third, unknown fourth; the known values of the last two are one.
    assert found.kept.tolist() == [True, False, False, False, False, False, True, True]
    np.testing.assert_allclose(found(state[1:3]), [[1, -1, 1], [-1, 1, -1]], atol=1e-12)
    np.testing.assert_allclose(found(np.array([[np.nan, 0, 0, 0], [99.0, 0, 0, 0]])), [[0, -1, -1], [3, -1, -1]])


def test_the_state_is_crossed_with_what_was_taken() -> None:
    known, action = np.array([[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]), np.array([0, 1, 2])
    wanted = [[2, 3, 0, 0, 0, 0, 0, 0], [4, 5, 1, 0, 4, 5, 0, 0], [6, 7, 0, 1, 0, 0, 6, 7]]
    np.testing.assert_array_equal(crossed(known, action, np.array([1, 2])), wanted)
