"""Weights of reward components learned from preferences: which of two user-weeks, or of several, went better.

A rater's utility of a user-week is w.phi, phi its totals of the components; P(A > B) = sigma(w.(phi_A - phi_B)), so
that weights are known relative to the rater's noise alone, and what two components are worth of each other without it.
The likelihood is in bradley_terry.py, intervals in intervals.py, what raters are like in raters.py, and which pair to
ask next in active.py.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.rewards.active import choose, random_pairs
from models.rewards.answers import SIDES, Answers
from models.rewards.bradley_terry import Model, maximise
from models.rewards.choices import TIE, Choices, Compared, choices_of, compared
from models.rewards.intervals import Ratio, profile, ratio
from models.rewards.raters import Rater, Split, Together, nothing_left, raters_of, splits, together
from models.rewards.weeks import Weeks

__all__ = ["Fitted", "PreferenceConfig", "Ratio", "choose", "fit", "random_pairs"]

SMALLEST = 1e-9
"""Singular value, of differences in standard deviations, below which they do not tell a direction."""


@dataclass(frozen=True)
class PreferenceConfig:
    """[learned.preference] of a configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    components: tuple[str, ...] = ()
    """Reward components that get a weight; all where none is named."""
    unit: str = ""
    """Component that trade-offs are told in; the one whose weight is most certain where none is named."""
    confidence: float = 0.95
    """Of intervals."""
    folds: int = 5
    """Parts that the pairs of user-weeks are cut into: each is held out once, and predicted from the others."""
    side_sd: float = 1.0
    """Standard deviation over raters of the log odds of `left` between equals: what a side bias is shrunk by."""
    reliability_sd: float = 0.5
    """Standard deviation over raters of their log reliability: what a rater of few answers is shrunk by."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"learned.preference.confidence is {self.confidence}; it must lie between 0 and 1.")
        if self.folds < 2:
            raise InputError(f"learned.preference.folds is {self.folds}; two parts or more are needed.")
        for name in ("side_sd", "reliability_sd"):
            if not getattr(self, name) > 0:
                raise InputError(f"learned.preference.{name} is {getattr(self, name)}; it must be above 0.")
        if self.components and self.unit and self.unit not in self.components:
            raise InputError(
                f"learned.preference.unit is {self.unit!r}, none of learned.preference.components; choose one of them."
            )


@dataclass(frozen=True)
class Fitted:
    """What was learned: K components, R raters; weights per raw unit on the scale of the typical rater's noise."""

    components: tuple[str, ...]
    """[K]"""
    columns: NDArray[np.int64]
    """[K] their places in the totals of a user-week."""
    scale: NDArray[np.float64]
    """[K] root mean square of the differences compared: the unit in which the weights were fitted."""
    weights: NDArray[np.float64]
    """[K]"""
    intervals: NDArray[np.float64]
    """[K, 2] by the profile likelihood; NaN where they were not asked for."""
    covariance: NDArray[np.float64]
    """[K, K] of the weights: inverse curvature at the maximum, all else fitted along."""
    tie: float
    """nu of Davidson: a tie's odds against either answer between equals are nu to 1; 0 where nobody tied."""
    raters: tuple[Rater, ...]
    splits: tuple[Split, ...]
    """Pairs of user-weeks on which raters said opposite things."""
    together: tuple[Together, ...]
    """Raters two by two."""
    unit: str
    """Component that ratios are told in."""
    ratios: dict[str, Ratio]
    """What one raw unit of each other component is worth, in raw units of `unit`."""
    log_likelihood: float
    model: Model
    theta: NDArray[np.float64]
    """[P] the maximum, in the model's own units."""

    def utility(self, weeks: Weeks) -> NDArray[np.float64]:
        """[W] w.phi of every week."""
        found: NDArray[np.float64] = weeks.totals[:, self.columns] @ self.weights
        return found


def fit(
    weeks: Weeks,
    rewards: tuple[str, ...],
    answers: Answers,
    config: PreferenceConfig | None = None,
    intervals: bool = True,
) -> Fitted:
    """Weights of the components among `rewards`, the columns of weeks.totals, from what raters said of `weeks`.

    `intervals=False` leaves out intervals and ratios, which take most of the time. Raises InputError where a component
    is unknown, answers name unknown weeks, are too few, all on one side, all ties, or cancel one another, and where
    they cannot tell a component's weight.
    """
    config = config or PreferenceConfig()
    components = config.components or rewards
    columns = _columns(components, rewards)
    if config.unit and config.unit not in components:
        raise InputError(
            f"learned.preference.unit is {config.unit!r}; the components are {', '.join(components)}: name one."
        )
    pairs = compared(weeks, answers)
    choices = choices_of(weeks, columns, answers)
    check(pairs, answers, choices, components)
    scale = scale_of(choices)
    model = model_of(choices, scale, len(answers.raters), config)
    _check_identified(choices.differences / scale, components)
    theta = maximise(model, np.zeros(model.size), model.free)
    return _fitted(weeks, answers, pairs, config, components, columns, scale, model, theta, intervals)


def _columns(components: tuple[str, ...], rewards: tuple[str, ...]) -> NDArray[np.int64]:
    unknown = [name for name in components if name not in rewards]
    if unknown:
        raise InputError(
            f"learned.preference.components: {unknown[0]!r} is no reward component; there are {', '.join(rewards)}."
        )
    return np.array([rewards.index(name) for name in components], dtype=np.int64)


def check(pairs: Compared, answers: Answers, choices: Choices, components: tuple[str, ...]) -> None:
    """Raise InputError where the answers can tell nothing of the weights, whatever the model."""
    groups = len(np.unique(choices.group))
    told = len(np.unique(pairs.key, axis=0)) + sum(len(each.order) - 1 for each in answers.rankings)
    if told < len(components):
        raise InputError(
            f"preferences: {told} different comparisons of user-weeks ({groups} apart from one another) for "
            f"{len(components)} weights; answer more pairs, or name fewer in learned.preference.components."
        )
    if not answers.rankings:
        _check_pairs(pairs)
    gaps = choices.differences
    same = [name for name, column in zip(components, gaps.T, strict=True) if not column.any()]
    if len(same) == len(components):
        raise InputError(
            "preferences: no two user-weeks that were compared differ in any component; compare other user-weeks."
        )
    if same:
        raise InputError(
            f"preferences: {', '.join(same)} never differ between user-weeks that were compared, so that nothing is "
            "told of their weight; compare weeks in which they do (`tactful rewards ask` chooses such pairs), or leave "
            "them out of learned.preference.components."
        )


def _check_pairs(pairs: Compared) -> None:
    decided = pairs.answer[pairs.answer != TIE]
    if not len(decided):
        raise InputError(
            f"preferences: every one of {len(pairs.answer)} answers is a tie; compare user-weeks that differ more."
        )
    if len(decided) > 1 and (decided == decided[0]).all():
        raise InputError(
            f"preferences: every one of {len(decided)} decided answers is {SIDES[decided[0]]!r}: the side chosen, or "
            "the weeks, cannot be told apart. Swap sides at random when asking, and write down the side each was on."
        )
    if nothing_left(pairs):
        raise InputError(
            f"preferences: contradictory answers: each of {len(np.unique(pairs.key, axis=0))} pairs of user-weeks was "
            "decided as often one way as the other, and nothing is left; ask other pairs, or other raters."
        )


def _check_identified(gaps: NDArray[np.float64], components: tuple[str, ...]) -> None:
    """Raise InputError where components move together in all that was compared: `gaps` [D, K] in their scale."""
    values, directions = np.linalg.svd(gaps, full_matrices=True)[1:]
    values = np.append(values, np.zeros(len(components) - len(values)))
    lost = directions[values <= SMALLEST * values.max()]
    if len(lost):
        tied = [name for name, column in zip(components, lost.T, strict=True) if np.abs(column).max() > SMALLEST**0.5]
        raise InputError(
            f"preferences: {', '.join(tied)} move together in all user-weeks that were compared, so that their weights "
            "cannot be told apart; compare more pairs, or leave one out of learned.preference.components."
        )


def scale_of(choices: Choices) -> NDArray[np.float64]:
    """[K] root of the mean squared difference of what was compared; 1 where a component never differs."""
    found = np.sqrt((choices.differences**2).mean(axis=0))
    return np.where(found > 0, found, 1.0)


def model_of(choices: Choices, scale: NDArray[np.float64], raters: int, config: PreferenceConfig) -> Model:
    """The likelihood of `choices`, their features in units of `scale` [K]."""
    scaled = replace(choices, features=choices.features / scale)
    values, directions = np.linalg.svd(scaled.differences, full_matrices=True)[1:]
    rows = directions[: len(values)][values > SMALLEST * max(float(values.max(initial=0.0)), 1e-300)]
    ties = bool((choices.tie[np.arange(len(choices.chosen)), choices.chosen] > 0).any())
    size = choices.features.shape[2]
    identified = np.zeros((size + 1, len(rows) + ties))
    identified[:size, : len(rows)] = rows.T
    identified[size, len(rows) :] = 1.0
    return Model(scaled, raters, config.side_sd, config.reliability_sd, identified)


def _fitted(
    weeks: Weeks,
    answers: Answers,
    pairs: Compared,
    config: PreferenceConfig,
    components: tuple[str, ...],
    columns: NDArray[np.int64],
    scale: NDArray[np.float64],
    model: Model,
    theta: NDArray[np.float64],
    intervals: bool,
) -> Fitted:
    size, names = len(components), answers.raters
    cover = model.covariance(theta)
    weights = theta[:size] / scale
    ends = np.full((size, 2), np.nan)
    unit = config.unit or components[int(np.argmax(np.abs(theta[:size]) / np.sqrt(np.diag(cover)[:size])))]
    ratios = {}
    sides: list[tuple[float, float] | None] = [None] * len(names)
    if intervals:
        ends = np.array([profile(model, theta, place, config.confidence) for place in range(size)]) / scale[:, None]
        under = components.index(unit)
        for over, name in enumerate(components):
            if over != under:
                found = ratio(model, theta, over, under, config.confidence)
                ratios[name] = found.times(float(scale[under] / scale[over]))
        for rater in np.unique(pairs.rater):
            sides[rater] = profile(model, theta, model.sides.start + int(rater), config.confidence)
    utility = weeks.totals[:, columns] @ weights
    ranked = np.bincount([names.index(each.rater) for each in answers.rankings], minlength=len(names))
    raters = raters_of(pairs, utility, names, ranked, np.exp(theta[model.reliabilities]), theta[model.sides], sides)
    return Fitted(
        components=components,
        columns=columns,
        scale=scale,
        weights=weights,
        intervals=ends,
        covariance=cover[:size, :size] / np.outer(scale, scale),
        tie=math.exp(theta[size]) if model.ties else 0.0,
        raters=raters,
        splits=splits(pairs, utility, weeks.id),
        together=together(pairs, names),
        unit=unit,
        ratios=ratios,
        log_likelihood=model.log_likelihood(theta),
        model=model,
        theta=theta,
    )
