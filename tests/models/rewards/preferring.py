"""User-weeks of given totals, and raters whose utility is known."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.rewards.answers import SIDES, Answers, Pair, Ranking
from models.rewards.bradley_terry import Model
from models.rewards.choices import choices_of
from models.rewards.preferences import PreferenceConfig, model_of
from models.rewards.weeks import Weeks

NOBODY = np.zeros((0, 2), dtype=np.int64)
UNITS = np.array([1.0, 20.0, 0.1])
TRUTH = np.array([1.2, -0.03, 6.0])
"""Weights per raw unit of `world`: 1.2, -0.6 and 0.6 per standard deviation."""
NAMES = ("a", "b", "c")


def weeks_from(totals: ArrayLike) -> Weeks:
    """Weeks w0, w1, ... of these totals [W, K]."""
    found = np.asarray(totals, dtype=np.float64)
    size = len(found)
    whole = np.zeros(size, dtype=np.int64)
    names = np.array([f"w{place}" for place in range(size)], dtype=object)
    return Weeks(names, np.arange(size), whole, whole, whole, found, np.full(size, 7.0))


def world(size: int = 300, seed: int = 0) -> Weeks:
    """Totals of three components, independent and normal, in units of UNITS."""
    return weeks_from(np.random.default_rng(seed).normal(size=(size, 3)) * UNITS)


def say(
    weeks: Weeks,
    pairs: Iterable[ArrayLike],
    rng: np.random.Generator,
    rater: str = "ann",
    reliability: float = 1.0,
    side: float = 0.0,
    nu: float = 0.0,
    truth: NDArray[np.float64] = TRUTH,
) -> tuple[Pair, ...]:
    """Answers drawn from Davidson's probabilities, one choice at a time."""
    found = []
    for left, right in np.asarray(pairs).tolist():
        eta = reliability * float((weeks.totals[left] - weeks.totals[right]) @ truth) + side
        odds = np.array([np.exp(eta / 2), np.exp(-eta / 2), nu])
        answer = SIDES[rng.choice(3, p=odds / odds.sum())]
        found.append(Pair(str(weeks.id[left]), str(weeks.id[right]), answer, rater))
    return tuple(found)


def rank(weeks: Weeks, sets: Iterable[ArrayLike], rng: np.random.Generator, rater: str = "ann") -> tuple[Ranking, ...]:
    """Plackett-Luce: ordered by utility and a Gumbel error each."""
    found = []
    for places in np.asarray(sets):
        drawn = weeks.totals[places] @ TRUTH + rng.gumbel(size=len(places))
        found.append(Ranking(tuple(str(weeks.id[place]) for place in places[np.argsort(-drawn)]), rater))
    return tuple(found)


def raw_model(weeks: Weeks, answers: Answers, config: PreferenceConfig | None = None) -> Model:
    """The likelihood with features in raw units."""
    columns = np.arange(weeks.totals.shape[1])
    choices = choices_of(weeks, columns, answers)
    return model_of(choices, np.ones(len(columns)), len(answers.raters), config or PreferenceConfig())
