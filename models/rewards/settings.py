"""Settings of learned rewards, apart from what needs torch: every command reads the configuration."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from models.errors import InputError


@dataclass(frozen=True)
class NetworkConfig:
    """[learned.network] of a configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    members: int = 10
    """P, each with a bootstrap of the answers and first parameters of its own."""
    hidden: tuple[int, ...] = (32,)
    """Units per hidden layer; at least two for each reward component and two more, see `models.rewards.network`."""
    state_scale: float = 20.0
    """State features enter in units of so many standard deviations, the other inputs in units of one: at first what
    happened speaks, and the state only as far as answers ask for it. With 200 answers 20 tells held-out ones better
    than 5 does, and 5 better than 1 (docs/rewards.md)."""
    steps: int = 400
    """Updates at most, each over all answers."""
    learning_rate: float = 0.01
    """Of Adam."""
    weight_decay: float = 0.1
    """Decoupled (Loshchilov and Hutter 2019): an update shrinks parameters by the share learning_rate times it."""
    held_out: float = 0.2
    """Share of the answers that no member learns from: they stop the learning, and say how well it does."""
    patience: int = 10
    """Checks on the held-out answers, one every ten updates, without a better one before the learning stops."""
    raters: dict[str, float] = field(default_factory=dict)
    """Weight of each rater's answers; 1 where none is given."""

    def __post_init__(self) -> None:
        for name in ("members", "steps", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"learned.network.{name} is {getattr(self, name)}; it must be 1 or more.")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(
                f"learned.network.hidden is {list(self.hidden)}; give one or more layers of 1 or more units."
            )
        if not self.state_scale > 0:
            raise InputError(f"learned.network.state_scale is {self.state_scale}; it must be above 0.")
        if not self.learning_rate > 0:
            raise InputError(f"learned.network.learning_rate is {self.learning_rate}; it must be above 0.")
        if not self.weight_decay >= 0:
            raise InputError(f"learned.network.weight_decay is {self.weight_decay}; it must be 0 or more.")
        if not 0 < self.held_out < 1:
            raise InputError(f"learned.network.held_out is {self.held_out}; it must lie between 0 and 1.")
        for rater, weight in self.raters.items():
            if not weight >= 0:
                raise InputError(f"learned.network.raters.{rater} is {weight}; it must be 0 or more.")


@dataclass(frozen=True)
class LoopConfig:
    """[learned.loop] of a configuration: how preferences, policies and new questions follow one another."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    form: Literal["weights", "network"] = "weights"
    """What the answers teach: weights over the reward components, or a network."""
    rater: dict[str, float] = field(default_factory=dict)
    """In a simulated world: the hidden utility per reward component and raw unit, by which a simulated rater answers
    with P(A > B) = sigma(u(A) - u(B)). Nobody else reads it. Absent, a person answers."""
    candidates: int = 2000
    """Random pairs among which the ensemble's disagreement chooses the next to ask."""
    exploration: float = 0.1
    """Probability spread uniformly over the legal actions while a policy gathers the next simulated log."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"learned.loop.candidates is {self.candidates}; it must be 1 or more.")
        if not 0 < self.exploration <= 1:
            raise InputError(f"learned.loop.exploration is {self.exploration}; it must lie in (0, 1].")
