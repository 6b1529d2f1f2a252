"""Policies that learned nothing: never, always, and the one that wrote the log."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.base import Booleans, Floats


def _one_hot(action: NDArray[np.intp], actions: int) -> Floats:
    chosen: Floats = np.zeros((len(action), actions))
    chosen[np.arange(len(action)), action] = 1.0
    return chosen


@dataclass(frozen=True)
class Never:
    """Takes the first legal action: `hold` where there is one."""

    name: str = "never"
    learned: bool = False

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] all of it on the first legal action of `legal` [N, A]; `state` is not read."""
        return _one_hot(legal.argmax(axis=1), legal.shape[1])


@dataclass(frozen=True)
class Always:
    """Takes the last legal action: the strongest send that is allowed."""

    name: str = "always"
    learned: bool = False

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] all of it on the last legal action of `legal` [N, A]; `state` is not read."""
        return _one_hot(legal.shape[1] - 1 - legal[:, ::-1].argmax(axis=1), legal.shape[1])


@dataclass(frozen=True)
class LoggingPolicy:
    """The policy that wrote the log: known by its propensities and valued by the log itself, never asked for
    probabilities."""

    name: str = "logging"
    learned: bool = False
