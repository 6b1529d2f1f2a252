"""Who is in a population: learners as a configuration names them, and the settings of each member."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError
from models.scaling import Scales

Kind = Literal["ddqn", "ddqn_cql", "iql"]
KINDS = ("ddqn", "ddqn_cql", "iql")
PENALTIES = ("logsumexp", "push_down")
POLICIES = ("argmax", "awr")


def check_weights(key: str, weights: Mapping[str, float]) -> None:
    """Raise InputError for a weight that is no finite number; `key` is where the configuration has them."""
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise InputError(f"{key}.{name} is {weight}; it must be a finite number.")


@dataclass(frozen=True)
class Learner:
    """How one policy is learned; what is None is as [train] says for all."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Kind = "ddqn_cql"
    """`ddqn`, `ddqn_cql` or `iql`, see docs/learners.md."""
    alpha: float | None = None
    """Of the CQL penalty, which only `ddqn_cql` has; there 1 by default."""
    penalty: Literal["logsumexp", "push_down"] = "logsumexp"
    """`push_down` gives no credit to logged actions; for comparison."""
    expectile: float = 0.7
    """lambda of IQL: 0.5 values the logging policy, towards 1 the best of what it did."""
    temperature: float = 1.0
    """IQL by awr: how much more a decision better by one standard deviation of the weighted reward is imitated."""
    policy: Literal["argmax", "awr"] = "argmax"
    """IQL: the best action by Q, or the network fitted by advantage-weighted regression."""
    pessimism: float = 0.0
    """c > 0: all seeds are deployed together and act by mean - c standard deviations of their w~.Q."""
    weights: dict[str, float] | None = None
    learning_rate: float | None = None
    gamma_per_day: float | None = None
    target_rate: float | None = None

    @classmethod
    def of(cls, given: "Learner | float") -> "Learner":
        """A number stands for the alpha of Double DQN + CQL, 0 for Double DQN."""
        if isinstance(given, Learner):
            return given
        return cls(kind="ddqn") if given == 0 else cls(alpha=given)

    @property
    def penalised(self) -> float:
        """alpha, 0 for a learner without the penalty."""
        if self.kind != "ddqn_cql":
            return 0.0
        return 1.0 if self.alpha is None else self.alpha

    def check(self, name: str) -> None:
        """Raise InputError for a value out of range; `name` as in train.learners."""
        key = f"train.learners.{name}"
        if self.kind not in KINDS:
            raise InputError(f"{key}.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.alpha is not None and not 0 <= self.alpha < math.inf:
            raise InputError(f"{key} is {self.alpha}; alpha must be 0 or more, and finite.")
        if self.alpha is not None and self.kind != "ddqn_cql":
            raise InputError(
                f"{key}.alpha is {self.alpha}, of a penalty that kind {self.kind!r} has not; remove it, or use kind = "
                "'ddqn_cql'."
            )
        if self.penalty not in PENALTIES:
            raise InputError(f"{key}.penalty is {self.penalty!r}; it must be one of {', '.join(PENALTIES)}.")
        if self.policy not in POLICIES:
            raise InputError(f"{key}.policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}.")
        if not 0.5 <= self.expectile < 1:
            raise InputError(f"{key}.expectile is {self.expectile}; it must lie in [0.5, 1).")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"{key}.temperature is {self.temperature}; it must be above 0, and finite.")
        if not 0 <= self.pessimism < math.inf:
            raise InputError(f"{key}.pessimism is {self.pessimism}; it must be 0 or more, and finite.")
        check_weights(f"{key}.weights", self.weights or {})
        if self.policy == "awr" and (self.kind != "iql" or self.pessimism):
            raise InputError(f"{key}.policy is 'awr', which only iql without pessimism has; use 'argmax'.")


@dataclass(frozen=True)
class Member:
    """One network of the population: everything that makes it differ from its neighbour."""

    name: str
    """Of its learner."""
    number: int
    """Among those of its learner."""
    learner: Learner
    scales: Scales
    """With its own weights."""
    learning_rate: float
    gamma_per_day: float
    target_rate: float
    seed: int
    """Of its first parameters."""
    draws: int
    """Of its minibatches: members of one number share them."""

    @property
    def label(self) -> str:
        """For people: in curves, logs and errors."""
        return f"{self.name} #{self.number}"

    @property
    def actor(self) -> bool:
        """Whether it has a policy network of its own."""
        return self.learner.policy == "awr"


@dataclass(frozen=True)
class Settings:
    """What P members differ by, as tensors beside their networks."""

    weights: Tensor
    """[P, K] w~."""
    alpha: Tensor
    """[P]."""
    credit: Tensor
    """[P] 1 where the penalty credits the logged action, else 0."""
    gamma: Tensor
    """[P] per day."""
    expectile: Tensor
    """[P]."""
    temperature: Tensor
    """[P]."""
    target_rate: Tensor
    """[P]."""

    @classmethod
    def of(cls, members: Sequence[Member], device: torch.device) -> "Settings":
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        inner = np.stack([each.scales.inner for each in members])
        learners = [each.learner for each in members]
        return cls(
            weights=torch.from_numpy(inner).float().to(device),
            alpha=column([each.penalised for each in learners]),
            credit=column([float(each.penalty == "logsumexp") for each in learners]),
            gamma=column([each.gamma_per_day for each in members]),
            expectile=column([each.expectile for each in learners]),
            temperature=column([each.temperature for each in learners]),
            target_rate=column([each.target_rate for each in members]),
        )
