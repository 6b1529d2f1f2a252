"""Weights of reward components learned from preferences: which of two user-weeks, or of several, went better.

A rater's utility of a user-week is w.phi, phi its totals of the components; P(A > B) = sigma(w.(phi_A - phi_B)), so
that weights are known relative to the rater's noise alone, and what two components are worth of each other without it.
The likelihood is in bradley_terry.py, intervals in intervals.py, what raters are like in raters.py, and which pair to
ask next in active.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.rewards.active import Known, choose, known, random_pairs
from models.rewards.answers import SIDES, Answers
from models.rewards.bradley_terry import Model, maximise
from models.rewards.choices import TIE, Choices, Compared, choices_of, compared
from models.rewards.intervals import Ratio, profile, ratio
from models.rewards.preference_config import PreferenceConfig
from models.rewards.raters import Rater, Split, Together, nothing_left, raters_of, splits, together
from models.rewards.weeks import Weeks

__all__ = ["Fitted", "Known", "PreferenceConfig", "Ratio", "choose", "fit", "known", "random_pairs"]

SMALLEST = 1e-9
"""Singular value, of differences in standard deviations, below which they do not tell a direction."""


@dataclass(frozen=True)
class Fitted(Known):
    """What was learned: K components, R raters; weights per raw unit on the scale of the typical rater's noise."""

    intervals: NDArray[np.float64]
    """[K, 2] of the weights by the profile likelihood; NaN where they were not asked for."""
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


def fit(
    weeks: Weeks,
    rewards: tuple[str, ...],
    answers: Answers,
    config: PreferenceConfig | None = None,
    intervals: bool = True,
    trade_offs: bool = True,
) -> Fitted:
    """Weights of the components among `rewards`, the columns of weeks.totals, from what raters said of `weeks`.

    `intervals=False` leaves out all intervals and ratios, `trade_offs=False` all but the weights': they take most of
    the time. Raises InputError as `columns_of` does, where answers name unknown weeks, are too few, all on one side,
    all ties, or cancel one another, and where they cannot tell a component's weight.
    """
    config = config or PreferenceConfig()
    columns = columns_of(config, rewards)
    components = tuple(rewards[column] for column in columns)
    pairs = compared(weeks, answers)
    choices = choices_of(weeks, columns, answers)
    check(pairs, answers, choices, components)
    scale = scale_of(choices)
    model = model_of(choices, scale, len(answers.raters), config)
    _check_identified(choices.differences / scale, components)
    theta = maximise(model, np.zeros(model.size), model.free)
    size, cover = len(components), model.covariance(theta)
    weights = theta[:size] / scale
    unit = config.unit or components[int(np.argmax(np.abs(theta[:size]) / np.sqrt(np.diag(cover)[:size])))]
    utility = weeks.totals[:, columns] @ weights
    return Fitted(
        components=components,
        columns=columns,
        scale=scale,
        weights=weights,
        covariance=cover[:size, :size] / np.outer(scale, scale),
        intervals=_ends(model, theta, config, range(size), intervals) / scale[:, None],
        tie=math.exp(theta[size]) if model.ties else 0.0,
        raters=_raters(pairs, answers, config, model, theta, utility, intervals and trade_offs),
        splits=splits(pairs, utility, weeks.id),
        together=together(pairs, answers.raters),
        unit=unit,
        ratios=_ratios(model, theta, config, components, scale, unit) if intervals and trade_offs else {},
        log_likelihood=model.log_likelihood(theta),
        model=model,
        theta=theta,
    )


def _ends(
    model: Model, theta: NDArray[np.float64], config: PreferenceConfig, places: Iterable[int], wanted: bool
) -> NDArray[np.float64]:
    """[., 2] ends of the intervals of the parameters at `places`, NaN where they are not wanted."""
    found = [profile(model, theta, place, config.confidence) if wanted else (math.nan, math.nan) for place in places]
    return np.array(found)


def _ratios(
    model: Model,
    theta: NDArray[np.float64],
    config: PreferenceConfig,
    components: tuple[str, ...],
    scale: NDArray[np.float64],
    unit: str,
) -> dict[str, Ratio]:
    under = components.index(unit)
    return {
        name: ratio(model, theta, over, under, config.confidence).times(float(scale[under] / scale[over]))
        for over, name in enumerate(components)
        if over != under
    }


def _raters(
    pairs: Compared,
    answers: Answers,
    config: PreferenceConfig,
    model: Model,
    theta: NDArray[np.float64],
    utility: NDArray[np.float64],
    intervals: bool,
) -> tuple[Rater, ...]:
    names, sides = answers.raters, {}
    for code in np.unique(pairs.rater).tolist() if intervals else []:
        sides[code] = profile(model, theta, model.sides.start + code, config.confidence)
    ranked = np.bincount([names.index(each.rater) for each in answers.rankings], minlength=len(names))
    ends = [sides.get(code) for code in range(len(names))]
    return raters_of(pairs, utility, names, ranked, np.exp(theta[model.reliabilities]), theta[model.sides], ends)


def columns_of(config: PreferenceConfig, rewards: tuple[str, ...]) -> NDArray[np.int64]:
    """[K] places among `rewards` of the components that get a weight. Raises InputError naming one that is unknown."""
    components = config.components or rewards
    unknown = [name for name in components if name not in rewards]
    if unknown:
        raise InputError(
            f"learned.preference.components: {unknown[0]!r} is no reward component; there are {', '.join(rewards)}."
        )
    if config.unit and config.unit not in components:
        raise InputError(
            f"learned.preference.unit is {config.unit!r}; the components are {', '.join(components)}: name one."
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
    _, lost = directions_of(gaps)
    if len(lost):
        tied = [name for name, column in zip(components, lost.T, strict=True) if np.abs(column).max() > SMALLEST**0.5]
        raise InputError(
            f"preferences: {', '.join(tied)} move together in all user-weeks that were compared, so that their weights "
            "cannot be told apart; compare more pairs, or leave one out of learned.preference.components."
        )


def directions_of(gaps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal rows [., K] that span what `gaps` [D, K] tell, and those that span what they do not."""
    values, directions = np.linalg.svd(np.linalg.qr(gaps, mode="r"))[1:]
    values = np.append(values, np.zeros(len(directions) - len(values)))
    clear = values > SMALLEST * max(float(values.max(initial=0.0)), 1e-300)
    return directions[clear], directions[~clear]


def scale_of(choices: Choices) -> NDArray[np.float64]:
    """[K] root of the mean squared difference of what was compared; 1 where a component never differs."""
    found = np.sqrt((choices.differences**2).mean(axis=0))
    return np.where(found > 0, found, 1.0)


def model_of(choices: Choices, scale: NDArray[np.float64], raters: int, config: PreferenceConfig) -> Model:
    """The likelihood of `choices`, their features in units of `scale` [K]."""
    rows = np.arange(len(choices.chosen))
    ties = bool((choices.tie[rows, choices.chosen] > 0).any())
    # Where nobody tied, tau is -infinity.
    there = choices.there if ties else choices.there & (choices.tie == 0)
    scaled = replace(choices, features=choices.features / scale, there=there)
    told, _ = directions_of(scaled.differences)
    size = choices.features.shape[2]
    identified = np.zeros((size + 1, len(told) + ties))
    identified[:size, : len(told)] = told.T
    identified[size, len(told) :] = 1.0
    by_rater = scaled.where(np.argsort(choices.rater, kind="stable"))
    return Model(by_rater, raters, config.side_sd, config.reliability_sd, identified)
