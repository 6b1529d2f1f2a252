import numpy as np
import pytest

from models.errors import InputError
from policies.base import checked_probabilities
from policies.baselines import Always, Never

LEGAL = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
STATE = np.zeros((4, 1), dtype=np.float32)


def test_never_takes_the_first_legal_action() -> None:
    found = Never().action_probabilities(STATE, LEGAL)
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_always_takes_the_last_legal_action() -> None:
    found = Always().action_probabilities(STATE, LEGAL)
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])


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
