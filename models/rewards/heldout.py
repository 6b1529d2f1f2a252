"""How well learned weights predict answers that they have not seen: accuracy, log loss and calibration.

Held out are pairs of user-weeks, not answers: what one rater said of two weeks tells what another will. Every group of
answers is held out once, and predicted by weights learned from the other folds. A ranking counts as all its pairs.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.rewards.answers import Answers
from models.rewards.bradley_terry import Model, maximise
from models.rewards.choices import LEFT, TIE, Choices, choices_of, compared
from models.rewards.preference_config import PreferenceConfig
from models.rewards.preferences import columns_of, model_of, scale_of
from models.rewards.weeks import Weeks

RESAMPLES = 2000
BINS = 10


@dataclass(frozen=True)
class Decided:
    """M decided comparisons: pairs as they were shown, and every two of a ranking, in the order of their places."""

    left: NDArray[np.int64]
    """[M] place."""
    right: NDArray[np.int64]
    won: NDArray[np.bool_]
    """[M] whether the left one was chosen."""
    rater: NDArray[np.int64]
    shown: NDArray[np.bool_]
    """[M] whether it was a pair with two sides."""
    group: NDArray[np.int64]
    """[M] code; what is held out together."""


@dataclass(frozen=True)
class HeldOut:
    """M decided comparisons, each predicted by a fit that has seen neither it nor any of its group."""

    decided: Decided
    predicted: NDArray[np.float64]
    """[M] P(left | decided)."""
    by_side: NDArray[np.float64]
    """[M] the same of a model that knows how often each rater chooses each side, and nothing of the weeks."""
    folds: int

    def accuracy(self) -> float:
        """Share in which the more probable one was chosen; one of equal probability counts half."""
        return float(_right(self.predicted, self.decided.won).mean())

    def accuracy_by_side(self) -> float:
        return float(_right(self.by_side, self.decided.won).mean())

    def log_loss(self) -> float:
        """Mean of -log of the probability given to what was chosen; log 2 = 0.693 by chance."""
        return float(-np.log(_of_chosen(self.predicted, self.decided.won)).mean())

    def log_loss_by_side(self) -> float:
        return float(-np.log(_of_chosen(self.by_side, self.decided.won)).mean())

    def intervals(self, confidence: float, seed: int) -> dict[str, tuple[float, float]]:
        """Of the accuracy, and of what it gains over the side alone: percentiles over resampled groups."""
        code = np.unique(self.decided.group, return_inverse=True)[1]
        right, base = (_right(each, self.decided.won) for each in (self.predicted, self.by_side))
        sums = np.stack([np.bincount(code, each) for each in (np.ones(len(code)), right, right - base)])
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=RESAMPLES)
        count, hits, gain = sums @ drawn.T
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        ends = {"accuracy": np.quantile(hits / count, tails), "gain": np.quantile(gain / count, tails)}
        return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

    def calibration(self, bins: int = BINS) -> list[tuple[float, float, int]]:
        """(mean predicted, share of `left`, comparisons) over bins of equal width of the predicted probability."""
        place = np.minimum((self.predicted * bins).astype(np.int64), bins - 1)
        found = []
        for each in np.unique(place):
            rows = place == each
            found.append((float(self.predicted[rows].mean()), float(self.decided.won[rows].mean()), int(rows.sum())))
        return found

    def calibration_error(self, bins: int = BINS) -> float:
        """Mean distance of predicted and observed over the bins, by their comparisons."""
        parts = self.calibration(bins)
        return sum(n * abs(said - seen) for said, seen, n in parts) / sum(n for _, _, n in parts)


def hold_out(
    weeks: Weeks, rewards: tuple[str, ...], answers: Answers, config: PreferenceConfig, seed: int
) -> HeldOut | None:
    """Every decided comparison predicted from the folds it is not in; None where no two groups are apart, so that none
    can be held out."""
    columns = columns_of(config, rewards)
    choices = choices_of(weeks, columns, answers)
    decided, totals = decisions(weeks, answers, choices), weeks.totals[:, columns]
    groups = int(choices.group.max()) + 1
    folds = min(config.folds, groups)
    if folds < 2 or not len(decided.won):
        return None
    fold = np.random.default_rng(seed).permutation(groups) % folds
    predicted, by_side = np.full(len(decided.won), 0.5), np.full(len(decided.won), 0.5)
    for each in range(folds):
        train, test = fold[choices.group] != each, fold[decided.group] == each
        model, theta = _learned(choices.where(train), len(answers.raters), config)
        beta, side = np.exp(theta[model.reliabilities])[decided.rater], theta[model.sides][decided.rater]
        gap = (totals[decided.left] - totals[decided.right]) @ theta[: len(columns)]
        predicted[test] = expit(beta * gap + side * decided.shown)[test]
        kept = decided.shown & ~test
        by_side[test & decided.shown] = _side_of_rater(decided, kept)[decided.rater[test & decided.shown]]
    return HeldOut(decided, predicted, by_side, folds)


def _side_of_rater(decided: Decided, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[R] how often each rater chooses the left one, by the pairs marked in `kept` [M]: shrunk by two answers towards
    the share of all, and that by one towards a half, so that nothing is certain."""
    size = int(decided.rater.max()) + 1
    count = np.bincount(decided.rater[kept], minlength=size)
    left = np.bincount(decided.rater[kept], decided.won[kept], minlength=size)
    share = (left.sum() + 0.5) / (count.sum() + 1)
    found: NDArray[np.float64] = (left + 2 * share) / (count + 2)
    return found


def _learned(choices: Choices, raters: int, config: PreferenceConfig) -> tuple[Model, NDArray[np.float64]]:
    """The model of one fold's training part, and its theta with weights per raw unit."""
    scale = scale_of(choices)
    model = model_of(choices, scale, raters, config)
    theta = maximise(model, np.zeros(model.size), model.free)
    theta[: len(scale)] /= scale
    return model, theta


def decisions(weeks: Weeks, answers: Answers, choices: Choices) -> Decided:
    """What was decided, of pairs and of rankings."""
    pairs = compared(weeks, answers)
    kept = pairs.answer != TIE
    raters = {name: code for code, name in enumerate(answers.raters)}
    columns = [
        [pairs.left[kept], pairs.right[kept], pairs.answer[kept] == LEFT, pairs.rater[kept], np.ones(kept.sum(), bool),
         choices.group[: len(kept)][kept]]
    ]  # fmt: skip
    row = len(kept)
    for each in answers.rankings:
        places = weeks.places(list(each.order))
        better, worse = np.triu_indices(len(places), 1)
        first, second = places[better], places[worse]
        low, high = np.minimum(first, second), np.maximum(first, second)
        same = np.ones(len(low), dtype=np.int64)
        columns.append(
            [low, high, first == low, raters[each.rater] * same, np.zeros(len(low), bool), choices.group[row] * same]
        )
        row += len(places) - 1
    return Decided(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _right(chance: NDArray[np.float64], won: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(chance == 0.5, 0.5, (chance > 0.5) == won)


def _of_chosen(chance: NDArray[np.float64], won: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.maximum(np.where(won, chance, 1 - chance), math.ulp(0.0))
