"""Policies that learned nothing: never, always, the one that wrote the log, and a share of another beside it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from policies.base import Booleans, Floats, Policy


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


@dataclass(frozen=True)
class Mixture:
    """(1 - share) mu + share pi: `policy` at a share of the decisions, as a learned policy is deployed."""

    policy: Policy
    logging: Policy
    """mu, as it was cloned: the log says no more than what mu did."""
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"{self.policy.name}: the rollout share is {self.share}; it must lie in [0, 1].")

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def learned(self) -> bool:
        return self.policy.learned or self.logging.learned

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] of the mixture, for `state` [N, S] and `legal` [N, A]."""
        mine, theirs = (each.action_probabilities(state, legal) for each in (self.policy, self.logging))
        found: Floats = (1 - self.share) * theirs + self.share * mine
        return found
