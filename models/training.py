"""What is learned, from what, for how long."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from models.errors import InputError
from models.members import Learner, check_weights
from models.recorded import PRECISIONS, Precision

BEHAVIOUR = "behaviour"
"""The logging policy, cloned; the first champion."""


@dataclass(frozen=True)
class TrainConfig:
    """[train] of a configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weights: dict[str, float] = field(default_factory=dict)
    """Weight per reward component and raw unit (a click is worth 1, a send costs 0.05); an absent one weighs 0."""
    weights_from: str | None = None
    """Instead of weights: a learned reward of kind weights, by name; its version is as learned.versions says."""
    gamma_per_day: float = 0.97
    """Discount per day; the learner uses gamma ** elapsed_days."""
    learners: dict[str, float | Learner] = field(default_factory=lambda: {"ddqn": 0.0, "ddqn_cql": 1.0})
    """Name of each learned policy, and how it is learned; a number is the alpha of its CQL penalty (0: Double DQN)."""
    seeds: int = 1
    """Members per learner, each with minibatches of its own: the best on the validation split is exported, and how
    often the others choose alike says how stable the choice is."""
    steps: int = 3000
    """Updates."""
    batch_size: int = 512
    """Transitions per update and member."""
    hidden: tuple[int, ...] = (64, 64)
    """Units per hidden layer."""
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    """Polyak rate of the target network per update."""
    checks: int = 10
    """How often, evenly, each member's policy is evaluated on the validation split; see policies/selection.py."""
    patience: int = 5
    """A member stops after so many checks that are worse than its best by more than one standard error; 0: never."""
    behaviour_steps: int = 1500
    """Updates of the behaviour network (the logging policy, cloned)."""
    value_steps: int = 2000
    """Updates of the unpenalised fitted Q evaluation that travels with each policy."""
    stream_rows: int = 0
    """Transitions in memory at a time; the others pass through, a bucket after another. 0 keeps all. The clone, the
    values and the checks then learn from as many users as so many rows hold."""
    half_precision: bool = False
    """Keep states in memory as 16-bit numbers: about half the bytes, three significant digits."""
    threads: int = 1
    """Torch threads on CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"
    """Of the population's matrix products on CUDA: `float32`, `tf32` or `bf16`; docs/learners.md says what each
    costs and gains."""
    compile: bool = False
    """On CUDA: fuse each update's small operations by torch.compile; worth its minute where updates are many."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma_per_day <= 1:
            raise InputError(f"train.gamma_per_day is {self.gamma_per_day}; it must lie in (0, 1].")
        for name in ("seeds", "steps", "batch_size", "checks", "behaviour_steps", "value_steps", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.stream_rows < 0:
            raise InputError(f"train.stream_rows is {self.stream_rows}; it must be 0 (all in memory) or more.")
        if self.patience < 0:
            raise InputError(f"train.patience is {self.patience}; it must be 0 (never stop early) or more.")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"train.hidden is {list(self.hidden)}; give one or more layers of 1 or more units.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"train.learning_rate is {self.learning_rate}; it must be above 0, and finite.")
        if not 0 < self.target_rate <= 1:
            raise InputError(f"train.target_rate is {self.target_rate}; it must lie in (0, 1].")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"train.device is {self.device!r}; it must be auto, cpu or cuda.")
        if self.precision not in PRECISIONS:
            raise InputError(f"train.precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}.")
        if BEHAVIOUR in self.learners:
            raise InputError(f"train.learners: {BEHAVIOUR!r} is the cloned logging policy's name; choose another.")
        if not self.learners:
            raise InputError("train.learners is empty; name at least one, for example ddqn_cql = 1.0.")
        for name, learner in self.named.items():
            learner.check(name)
            if learner.pessimism and self.seeds < 2:
                raise InputError(
                    f"train.learners.{name}.pessimism is {learner.pessimism}, over an ensemble of train.seeds = "
                    f"{self.seeds}; two or more are needed."
                )
            # The same limits for what a learner has of its own.
            own = {key: getattr(learner, key) for key in ("gamma_per_day", "learning_rate", "target_rate")}
            for key, value in own.items():
                above = "be above 0, and finite" if key == "learning_rate" else "lie in (0, 1]"
                if value is not None and not (0 < value < math.inf and (value <= 1 or key == "learning_rate")):
                    raise InputError(f"train.learners.{name}.{key} is {value}; it must {above}.")
        check_weights("train.weights", self.weights)
        if self.weights_from is not None and self.weights:
            raise InputError(
                f"train.weights and train.weights_from = {self.weights_from!r} are both given; give one of them."
            )
        if self.weights_from is None and not any(self.weights.values()):
            raise InputError("train.weights are all zero; give at least one reward component a weight.")

    @property
    def named(self) -> dict[str, Learner]:
        """The learners, a number spelt out."""
        return {name: Learner.of(given) for name, given in self.learners.items()}
