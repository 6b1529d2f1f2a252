"""The rules of promotion, as a configuration states them."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from models.errors import InputError

ESTIMATORS = ("wpdis", "pdis", "dr", "wdr", "ips")
"""Estimators whose interval may carry a verdict: those that are right in the long run where propensities are. FQE's
leaves out the error of its fit, MAGIC's the bias that it accepts, marginalised IS's what its bins leave out."""
CTR = "ctr"


@dataclass(frozen=True)
class GuardedMetric:
    """One metric the gate guards."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    direction: Literal["up", "down"]
    """Which way is better."""
    margin: float
    """Non-inferiority margin as a share of the logging policy's value: 0.02 tolerates a loss of 2%."""
    improve: bool = False
    """Whether an improvement in this metric, shown with confidence, is what earns a promotion: one metric is so marked,
    since several would each be another chance to be right by luck."""

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise InputError(f"gate.metrics: direction is {self.direction!r}; it must be 'up' or 'down'.")
        if not 0 <= self.margin < 1:
            raise InputError(
                f"gate.metrics: margin is {self.margin}; it must lie in [0, 1) (0.02 tolerates a loss of 2%)."
            )


@dataclass(frozen=True)
class GateConfig:
    """The rules of promotion."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    candidate: str = "ddqn_cql"
    """Which learned policy asks to be promoted."""
    estimator: str = "dr"
    """Whose interval carries the verdict."""
    metrics: dict[str, GuardedMetric] = field(default_factory=dict)
    confidence: float = 0.95
    """One-sided, divided among the candidates tried on decisions of the same time."""
    min_ess: float = 500.0
    """Least effective sample size, in users: from about so many on 95% intervals hold the truth in 95 of 100 simulated
    logs, with 200 in 93 of them and with 100 in 91 (docs/coverage.md)."""
    min_support: float = 0.95
    """Least share of user-weeks (or decisions) in which the log could have shown what the policy does."""
    max_calibration_error: float = 0.05
    """Largest |mean importance weight - 1| that is more than noise."""
    min_agreement: float = 0.8
    """Least share of validation choices at which the other seeds choose as the one that is judged."""
    segments: tuple[str, ...] = ()
    """State features by which users are parted, as they were at their first row: no part may be shown to be harmed."""
    max_outside: float = 0.1
    """Share of the candidate's choices outside the rows that a learned reward was learned from, above which the gate
    warns; it refuses nothing."""
    min_overlap: float = 0.2
    """Effective sample size of the log's choices to the candidate, as a share of their number, below which the gate
    warns of every learned reward that it was trained on."""
    return_weights: dict[str, float] = field(default_factory=dict)
    """Hand-written weights per raw unit of the return that learned rewards are held against; by default those of
    train.weights whose components are not learned."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    """Rollout shares kappa of the mixtures (1 - kappa) mu + kappa pi for which the gate says what it can certify."""

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise InputError(f"gate.estimator is {self.estimator!r}; it must be one of {', '.join(ESTIMATORS)}.")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"gate.confidence is {self.confidence}; it must lie in [0.5, 1).")
        for name in ("min_support", "min_agreement", "max_outside", "min_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"gate.{name} is {getattr(self, name)}; it is a share, in [0, 1].")
        if len(set(self.segments)) < len(self.segments):
            raise InputError(f"gate.segments is {list(self.segments)}; name each feature once.")
        for name in ("min_ess", "max_calibration_error"):
            if not getattr(self, name) >= 0:
                raise InputError(f"gate.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not all(0 < share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise InputError(f"gate.shares is {self.shares}; give different shares in (0, 1].")
        improve = [name for name, metric in self.metrics.items() if metric.improve]
        if self.metrics and len(improve) != 1:
            raise InputError(
                f"gate.metrics: {', '.join(improve) or 'none'} has improve = true; mark exactly one, beforehand: "
                "without one nothing could earn a promotion, and several would each be a chance to be right by luck."
            )
        if improve == [CTR]:
            raise InputError(
                "gate.metrics: ctr alone would carry the verdict; a ratio rises when fewer are asked, so mark a total "
                "(clicks, visits, weekly_active_days) with improve = true instead."
            )
