"""Who is in a sweep: one learner under many reward weights, as the learners of one training.

So a sweep is a training like any other: its members share every minibatch, and each is what `train` would have learned
from its weights alone.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from models.errors import InputError
from models.members import Learner
from models.training import TrainConfig

OBJECTIVES: dict[str, Literal["up", "down"]] = {"clicks": "up", "weekly_active_days": "up", "sends": "down"}
"""What the front is about unless the sweep says; those that are reward components."""


@dataclass(frozen=True)
class Simplex:
    """Every way of sharing out one unit of weight in steps of 1 / divisions."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    components: tuple[str, ...]
    """K' reward components, two or more."""
    divisions: int
    """n: shares are multiples of 1 / n."""
    scale: dict[str, float] = field(default_factory=dict)
    """What a share of 1 weighs per raw unit, sign included: `sends = -0.2`; 1 where absent."""

    def __post_init__(self) -> None:
        key = "sweep.simplex"
        if len(self.components) < 2:
            raise InputError(f"{key}.components is {list(self.components)}; a simplex has two or more.")
        if len(set(self.components)) < len(self.components):
            raise InputError(f"{key}.components is {list(self.components)}; name each once.")
        if self.divisions < 1:
            raise InputError(f"{key}.divisions is {self.divisions}; it must be 1 or more.")
        for name, scale in self.scale.items():
            if name not in self.components:
                raise InputError(f"{key}.scale: {name!r} is not among its components ({', '.join(self.components)}).")
            if not math.isfinite(scale) or scale == 0:
                raise InputError(f"{key}.scale.{name} is {scale}; give a finite weight other than 0.")

    @property
    def size(self) -> int:
        """Points of the lattice, (n + K' - 1 over K' - 1)."""
        return math.comb(self.divisions + len(self.components) - 1, len(self.components) - 1)

    def weights(self) -> Iterator[dict[str, float]]:
        """w_c = scale_c n_c / n for every way that whole n_c of 0 or more sum to n."""
        last = self.divisions + len(self.components) - 1
        for bars in itertools.combinations(range(last), len(self.components) - 1):
            shares = [right - left - 1 for left, right in itertools.pairwise((-1, *bars, last))]
            yield {
                # A share of none weighs 0, not -0.
                name: self.scale.get(name, 1.0) * share / self.divisions + 0.0
                for name, share in zip(self.components, shares, strict=True)
            }


@dataclass(frozen=True)
class SweepConfig:
    """[sweep] of a configuration: a learner and the weights it is learned under. Others are as [train.weights] says."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learner: str | None = None
    """A name of train.learners; by default gate.candidate."""
    grid: dict[str, tuple[float, ...]] | None = None
    """Reward component -> the weights it takes; every combination is a member."""
    simplex: Simplex | None = None
    """Instead of a grid."""
    alpha: tuple[float, ...] = ()
    """CQL penalties that every weighting is learned under; by default the learner's own."""
    seeds: int | None = None
    """As train.seeds, its default: of each member the seed that is best on the validation split is kept."""
    objectives: dict[str, Literal["up", "down"]] = field(default_factory=dict)
    """What the front is about and which way is better; by default clicks and weekly_active_days up, sends down."""
    min_ess: float = 50.0
    """Least effective sample size, in users, of a member that may be on the front or picked; to promote, the gate asks
    for more."""
    most: int = 64
    """Members beyond which the sweep is taken for a mistake."""

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.simplex is None):
            found = "neither" if self.grid is None else "both"
            raise InputError(f"sweep: {found} of grid and simplex is there; give one of them.")
        if self.grid is not None and not self.grid:
            raise InputError("sweep.grid is empty; give a reward component and its weights, as sends = [-0.05, -0.1].")
        for key, values in (
            *((f"grid.{name}", each) for name, each in (self.grid or {}).items()),
            ("alpha", self.alpha),
        ):
            if not all(math.isfinite(value) for value in values):
                raise InputError(f"sweep.{key} is {list(values)}; each must be a finite number.")
            if len(set(values)) < len(values) or (not values and key != "alpha"):
                raise InputError(f"sweep.{key} is {list(values)}; give one value or more, each once.")
        if any(value < 0 for value in self.alpha):
            raise InputError(f"sweep.alpha is {list(self.alpha)}; each must be 0 or more.")
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"sweep.seeds is {self.seeds}; it must be 1 or more.")
        for name, direction in self.objectives.items():
            if direction not in ("up", "down"):
                raise InputError(f"sweep.objectives.{name} is {direction!r}; it must be 'up' or 'down'.")
        if self.objectives and len(self.objectives) < 2:
            raise InputError(f"sweep.objectives is {self.objectives}; a front has two or more.")
        if not self.min_ess >= 0:
            raise InputError(f"sweep.min_ess is {self.min_ess}; it must be 0 or more.")
        if self.size > self.most:
            raise InputError(
                f"sweep: {self.size} members, {self.size // max(len(self.alpha), 1)} weightings times "
                f"{max(len(self.alpha), 1)} alpha, more than sweep.most = {self.most}; give fewer values, or raise it."
            )

    @property
    def size(self) -> int:
        """P, members."""
        lattice = self.simplex.size if self.simplex else math.prod(len(each) for each in (self.grid or {}).values())
        return lattice * max(len(self.alpha), 1)

    @property
    def components(self) -> tuple[str, ...]:
        """What is swept."""
        return self.simplex.components if self.simplex else tuple(self.grid or {})

    def weights(self) -> Iterator[dict[str, float]]:
        """The weights of the swept components, the last of a grid changing fastest."""
        if self.simplex:
            return self.simplex.weights()
        grid = self.grid or {}
        return (dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values()))

    def front(self, rewards: Sequence[str]) -> dict[str, Literal["up", "down"]]:
        """The objectives, those by default where none are given.

        Raises InputError where fewer than two of those by default are among the `rewards`.
        """
        found = self.objectives or {name: way for name, way in OBJECTIVES.items() if name in rewards}
        if len(found) < 2:
            raise InputError(
                f"sweep.objectives: missing, and of {', '.join(OBJECTIVES)} the rewards have "
                f"{', '.join(found) or 'none'}; "
                'give two or more, as { sends = "down", steps = "up" }.'
            )
        return found

    def population(self, train: TrainConfig, candidate: str) -> TrainConfig:
        """[train] with the members for learners: m01, m02, ..., every alpha of a weighting before the next weighting.

        Raises InputError where the learner is not among train.learners, has no penalty though alphas are given, or acts
        by an ensemble and has one seed, and where a member would weigh nothing.
        """
        name = self.learner or candidate
        if name not in train.learners:
            raise InputError(f"sweep.learner: {name!r} is not learned (known: {', '.join(train.learners)}).")
        base, seeds = train.named[name], self.seeds or train.seeds
        if self.alpha and base.kind == "iql":
            raise InputError(f"sweep.alpha: {name!r} is iql, which has no penalty; sweep another learner, or no alpha.")
        if self.alpha:
            # Double DQN is the member of alpha 0.
            base = replace(base, kind="ddqn_cql")
        if base.pessimism and seeds < 2:
            raise InputError(f"sweep.seeds is {seeds}, but {name!r} acts by an ensemble of its seeds; give 2 or more.")
        fixed = train.weights if base.weights is None else base.weights
        learners: dict[str, float | Learner] = {}
        for weights, alpha in itertools.product(self.weights(), self.alpha or (base.alpha,)):
            whole = {**fixed, **weights}
            if not any(whole.values()):
                raise InputError(f"sweep: a member weighs nothing ({whole}); leave that combination out.")
            member = f"m{len(learners) + 1:0{max(len(str(self.size)), 2)}d}"
            learners[member] = replace(base, weights=whole, alpha=alpha)
        return replace(train, learners=learners, seeds=seeds)
