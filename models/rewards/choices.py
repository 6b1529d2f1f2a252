"""Answers as choices among alternatives: what pairs, ties and rankings have in common.

A pair is one choice of two alternatives, or of three where ties are allowed; a ranking of k user-weeks is k - 1
choices, each of the best among those that are left (Plackett and Luce), so that

    P(ranking) = prod_{j=1..k-1} exp(u_j) / sum_{l=j..k} exp(u_l),   u the utilities in the order ranked.

The features of a pair are halves of its difference, +d/2 and -d/2, and 0 for a tie: then two alternatives give
sigma(w.d), and three the ties of Davidson (1970).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from models.rewards.answers import Answers
from models.rewards.weeks import Weeks

LEFT, RIGHT, TIE = 0, 1, 2
CODE = {"left": LEFT, "right": RIGHT, "tie": TIE}
ONE_SIDED = 0.001
"""Chance, were sides tossed by a coin, of answers all on one side, below which a rater is said to press one key."""


def one_sided(left: int, right: int) -> bool:
    """Whether so many decided answers are all on one side, and too many for chance."""
    return min(left, right) == 0 and 2 * 0.5 ** (left + right) < ONE_SIDED


@dataclass(frozen=True)
class Choices:
    """n choices among at most m alternatives, K components, R raters, G groups of answers about the same weeks."""

    features: NDArray[np.float64]
    """[n, m, K] of each alternative; 0 where there is none."""
    there: NDArray[np.bool_]
    """[n, m] which alternatives a choice has."""
    side: NDArray[np.float64]
    """[n, m] +1/2 for the left, -1/2 for the right of a pair, else 0."""
    tie: NDArray[np.float64]
    """[n, m] 1 for the tie of a pair, else 0."""
    chosen: NDArray[np.int64]
    """[n] the alternative that was."""
    rater: NDArray[np.int64]
    """[n] code, 0..R-1."""
    group: NDArray[np.int64]
    """[n] code, 0..G-1: what is held out together, see `groups_of`."""

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Choices":
        """The choices marked in `kept` [n], or at these places."""
        return Choices(**{name: column[kept] for name, column in vars(self).items()})

    @property
    def differences(self) -> NDArray[np.float64]:
        """[D, K] the features of each alternative less those of the choice's first: what the weights are told by."""
        gaps = self.features - self.features[:, :1]
        found: NDArray[np.float64] = gaps[self.there & (np.arange(self.there.shape[1]) > 0)]
        return found


@dataclass(frozen=True)
class Compared:
    """M comparisons of two of W weeks, by place: answers of pairs alone."""

    left: NDArray[np.int64]
    """[M]"""
    right: NDArray[np.int64]
    """[M]"""
    answer: NDArray[np.int64]
    """[M] LEFT, RIGHT or TIE."""
    rater: NDArray[np.int64]
    """[M] code."""

    @property
    def key(self) -> NDArray[np.int64]:
        """[M, 2] the two places, the smaller first: which weeks were compared, whatever the sides."""
        return np.sort(np.column_stack([self.left, self.right]), axis=1)


def compared(weeks: Weeks, answers: Answers) -> Compared:
    """The pairs by place. Raises InputError as `Weeks.places` does."""
    raters = {name: code for code, name in enumerate(answers.raters)}
    return Compared(
        weeks.places([each.left for each in answers.pairs]),
        weeks.places([each.right for each in answers.pairs]),
        np.array([CODE[each.answer] for each in answers.pairs], dtype=np.int64),
        np.array([raters[each.rater] for each in answers.pairs], dtype=np.int64),
    )


def choices_of(weeks: Weeks, columns: NDArray[np.int64], answers: Answers) -> Choices:
    """Every answer about `weeks` as choices, features the totals of components `columns` [K] in raw units.

    Raises InputError as `Weeks.places` does.
    """
    pairs, totals = compared(weeks, answers), weeks.totals[:, columns]
    raters = {name: code for code, name in enumerate(answers.raters)}
    ranked = [weeks.places(list(each.order)) for each in answers.rankings]
    ties = bool((pairs.answer == TIE).any())
    stages = [places[first:] for places in ranked for first in range(len(places) - 1)]
    by = [raters[each.rater] for each in answers.rankings for _ in each.order[1:]]
    few, most = (3 if ties else 2), max([2, *map(len, ranked)])
    n, m, many = len(pairs.left) + len(stages), max(few, most), len(pairs.left)
    features, there = np.zeros((n, m, len(columns))), np.zeros((n, m), dtype=bool)
    side, tie = np.zeros((n, m)), np.zeros((n, m))
    half = (totals[pairs.left] - totals[pairs.right]) / 2
    features[:many, LEFT], features[:many, RIGHT] = half, -half
    side[:many, LEFT], side[:many, RIGHT] = 0.5, -0.5
    there[:many, :few] = True
    if ties:
        tie[:many, TIE] = 1.0
    for row, places in enumerate(stages, start=many):
        features[row, : len(places)] = totals[places] - totals[places].mean(axis=0)
        there[row, : len(places)] = True
    # Of each stage the first that is left was the best.
    chosen = np.concatenate([pairs.answer, np.zeros(len(stages), dtype=np.int64)])
    rater = np.concatenate([pairs.rater, np.array(by, dtype=np.int64)])
    found = groups_of(pairs, ranked)
    group = np.concatenate([found[:many], np.repeat(found[many:], [len(each) - 1 for each in ranked])])
    return Choices(features, there, side, tie, chosen, rater, group)


def groups_of(pairs: Compared, ranked: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """[M + rankings] code of each answer's group: two answers about the same two weeks are in one, and what is linked.

    To hold out answers and keep others about the same weeks would ask what was told already.
    """
    told = [tuple(each) for each in pairs.key.tolist()]
    by = list(range(len(told)))
    for row, places in enumerate(ranked, start=len(told)):
        inside = np.sort(places)
        pick = np.triu_indices(len(inside), 1)
        told += list(zip(inside[pick[0]].tolist(), inside[pick[1]].tolist(), strict=True))
        by += [row] * len(pick[0])
    many = len(pairs.left) + len(ranked)
    code = {pair: many + number for number, pair in enumerate(dict.fromkeys(told))}
    ends = (np.array(by, dtype=np.int64), np.array([code[pair] for pair in told], dtype=np.int64))
    size = many + len(code)
    links = coo_array((np.ones(len(by)), ends), shape=(size, size))
    label = connected_components(links, directed=False)[1][:many]
    found: NDArray[np.int64] = np.unique(label, return_inverse=True)[1].astype(np.int64)
    return found
