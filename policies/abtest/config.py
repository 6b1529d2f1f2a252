"""What an experiment is: its arms, its metrics, and how often it is looked at."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from models.errors import InputError

CTR = "ctr"
"""clicks / sends, a ratio of two totals."""


@dataclass(frozen=True)
class ExperimentMetric:
    """A metric of the experiment: a goal has an `effect` worth finding, a guardrail a `margin` it must not lose."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    direction: Literal["up", "down"]
    """Which way is better."""
    effect: float | None = None
    """Goal: smallest change worth finding, as a share of the control's value: 0.02 is 2%, in either direction."""
    margin: float | None = None
    """Guardrail: non-inferiority margin as a share of the control's value: 0.02 tolerates a loss of 2%."""

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise InputError(f"abtest.metrics: direction is {self.direction!r}; it must be 'up' or 'down'.")
        if (self.effect is None) == (self.margin is None):
            raise InputError(
                "abtest.metrics: a metric is a goal, with `effect`, or a guardrail, with `margin`; give one of the two."
            )
        if self.effect is not None and not (math.isfinite(self.effect) and self.effect > 0):
            raise InputError(
                f"abtest.metrics: effect is {self.effect}; no number of users finds an effect of 0: give the smallest "
                "share worth finding, above 0 (0.02 is 2%; `direction` says which way is better)."
            )
        if self.margin is not None and not 0 < self.margin < 1:
            raise InputError(
                f"abtest.metrics: margin is {self.margin}; it must lie in (0, 1): that nothing at all is lost cannot "
                "be shown by any number of users."
            )


@dataclass(frozen=True)
class AbtestConfig:
    """The experiment: how it is planned and how it is read."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    control: str
    """The `policy_id` of the control arm."""
    treatments: tuple[str, ...]
    """The `policy_id` of each treatment."""
    metrics: dict[str, ExperimentMetric]
    """By name: reward components, or ctr."""
    allocation: tuple[float, ...] = ()
    """Share of the users in each arm, the control first; by default equal."""
    start: str | None = None
    """UTC time from which decisions belong to the experiment; by default the first decision of an arm. Needed where
    an arm's `policy_id` is older than the experiment."""
    end: str | None = None
    """UTC time at which it ended; nothing later is read. By default the end of the log."""
    method: Literal["always_valid", "looks"] = "always_valid"
    """always_valid: read it as often as you like, each user counted once, by the first `window_days`. looks: read it
    at `looks` only, where all users enrol at once; one look is the ordinary fixed horizon."""
    window_days: float = 7.0
    """always_valid: days after enrolment that count; a user counts once they are over."""
    users: int | None = None
    """always_valid: users planned in all arms together, at which the intervals are narrowest; `abtest plan` says."""
    looks: tuple[float, ...] = (28.0,)
    """looks: days after the start at which the experiment is read, the last one its planned end."""
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    """looks: how alpha is spent; the first spends little early, the second about the same at each look."""
    alpha: float = 0.05
    """Two-sided chance of finding an effect that is not there, over all goals and looks together."""
    power: float = 0.8
    """Chance of finding the planned effect."""
    pre_days: float = 14.0
    """Days before a user's enrolment whose metrics take noise away (CUPED); 0 for none."""
    users_per_day: float | None = None
    """Users that enrol each day, for the plan; by default as they arrived in the log."""
    min_users: int = 100
    """Users an arm must have before its means are taken for normal: no interval is shown below."""
    min_events: int = 20
    """Users of both arms together who must have anything but 0 in a metric, for the same reason."""
    max_crossed: float = 0.01
    """Largest share of users seen in two arms; they are left out, and more of them stop the reading."""
    segments: tuple[str, ...] = ()
    """State features or categories as of the enrolment by which effects are explored."""
    segment_groups: int = 3
    """Quantile groups that a numeric segment is cut into."""
    predicted: dict[str, str] = field(default_factory=dict)
    """Treatment -> policy of steps/evaluate.json whose predicted difference is compared; by default the same name."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The control, then the treatments."""
        return (self.control, *self.treatments)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the users in each of `arms`."""
        return self.allocation or tuple(1 / len(self.arms) for _ in self.arms)

    @property
    def goals(self) -> tuple[str, ...]:
        return tuple(name for name, metric in self.metrics.items() if metric.effect is not None)

    @property
    def tests(self) -> int:
        """Comparisons among which alpha is shared: goals times treatments."""
        return len(self.goals) * len(self.treatments)

    @property
    def horizon_days(self) -> float:
        """Days of a user that count at the planned end."""
        return self.window_days if self.method == "always_valid" else self.looks[-1]

    def __post_init__(self) -> None:
        self._check_arms()
        self._check_looks()
        if not self.goals:
            raise InputError("abtest.metrics: no goal; give at least one metric the `effect` that is worth finding.")
        for name, low, high in (("alpha", 0, 0.5), ("power", 0.5, 1)):
            if not low < getattr(self, name) < high:
                raise InputError(f"abtest.{name} is {getattr(self, name)}; it must lie in ({low}, {high}).")
        if self.power <= self.alpha:
            raise InputError(f"abtest.power is {self.power}; it must be above alpha ({self.alpha}).")
        if not 0 <= self.max_crossed < 1:
            raise InputError(f"abtest.max_crossed is {self.max_crossed}; it is a share, in [0, 1).")
        if not self.pre_days >= 0:
            raise InputError(f"abtest.pre_days is {self.pre_days}; it must be 0 or more.")
        least = {"users": 2, "min_users": 2, "min_events": 1, "segment_groups": 2, "users_per_day": 1e-9}
        for name, bound in least.items():
            found = getattr(self, name)
            if found is not None and not found >= bound:
                raise InputError(f"abtest.{name} is {found}; it must be {bound:g} or more.")

    def _check_arms(self) -> None:
        if not self.treatments:
            raise InputError(
                f"abtest.treatments: none beside the control {self.control!r}; an experiment has two arms or more."
            )
        repeated = sorted({arm for arm in self.arms if self.arms.count(arm) > 1})
        if repeated:
            raise InputError(f"abtest: {', '.join(repeated)} is named as an arm more than once; name each once.")
        if len(self.shares) != len(self.arms):
            raise InputError(
                f"abtest.allocation has {len(self.shares)} shares for {len(self.arms)} arms ({', '.join(self.arms)}); "
                "give one for each, the control first."
            )
        if abs(sum(self.shares) - 1) > 1e-9 or min(self.shares) <= 0:
            raise InputError(
                f"abtest.allocation is {list(self.shares)}; shares above 0 that sum to 1 are needed, the control first."
            )
        unknown = sorted(set(self.predicted) - set(self.treatments))
        if unknown:
            raise InputError(
                f"abtest.predicted: {', '.join(unknown)} is not an arm (treatments: {', '.join(self.treatments)})."
            )

    def _check_looks(self) -> None:
        if self.method not in ("always_valid", "looks"):
            raise InputError(f"abtest.method is {self.method!r}; it must be 'always_valid' or 'looks'.")
        if self.spending not in ("obrien_fleming", "pocock"):
            raise InputError(f"abtest.spending is {self.spending!r}; it must be 'obrien_fleming' or 'pocock'.")
        if not self.window_days >= 7:
            raise InputError(f"abtest.window_days is {self.window_days}; give 7 or more, so that every weekday counts.")
        if not self.looks or any(b <= a for a, b in zip((0.0, *self.looks), self.looks, strict=False)):
            raise InputError(f"abtest.looks is {list(self.looks)}; give days above 0, each later than the one before.")
