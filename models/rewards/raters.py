"""What each rater is like: how far they agree with the joint fit and with one another, and which side they favour."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.rewards.choices import LEFT, RIGHT, TIE, Compared, one_sided


@dataclass(frozen=True)
class Rater:
    """One who answered."""

    name: str
    answers: int
    """Pairs and rankings together."""
    pairs: int
    left: int
    """Pairs answered `left`, and so on."""
    right: int
    ties: int
    reliability: float
    """beta_r: how strongly the answers follow the joint utility; the geometric mean over answers is 1."""
    side: float
    """b_r: log odds of `left` where two user-weeks are worth the same."""
    side_interval: tuple[float, float] | None
    """Of b_r; None for a rater of rankings alone."""
    agreement: float | None
    """Share of the decided pairs in which the user-week of higher joint utility was chosen."""
    contradictions: int
    """Pairs of user-weeks that this rater decided both ways."""

    @property
    def one_sided(self) -> bool:
        """Whether one key was pressed, whatever the weeks, see `choices.one_sided`."""
        return one_sided(self.left, self.right)

    @property
    def favours(self) -> str | None:
        """The side that the interval of b_r says is favoured, or None."""
        if self.side_interval is None or self.side_interval[0] <= 0 <= self.side_interval[1]:
            return None
        return "left" if self.side > 0 else "right"


@dataclass(frozen=True)
class Split:
    """Two user-weeks of which raters said opposite things."""

    first: str
    second: str
    for_first: int
    """Raters' answers in its favour."""
    for_second: int
    ties: int
    probability: float
    """That the first is chosen, by the joint fit, where neither side is favoured and no tie allowed."""


def votes(pairs: Compared) -> NDArray[np.int64]:
    """[M] +1 where the week of smaller place was chosen, -1 where the other, 0 for a tie."""
    for_left = np.where(pairs.answer == LEFT, 1, np.where(pairs.answer == RIGHT, -1, 0))
    found: NDArray[np.int64] = np.where(pairs.left < pairs.right, for_left, -for_left)
    return found


def contradictions(pairs: Compared) -> dict[int, int]:
    """How many pairs of weeks each rater decided both ways, by code."""
    said: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for (first, second), rater, vote in zip(
        pairs.key.tolist(), pairs.rater.tolist(), votes(pairs).tolist(), strict=True
    ):
        said[rater, first, second].add(vote)
    found: dict[int, int] = defaultdict(int)
    for (rater, _, _), those in said.items():
        found[rater] += {-1, 1} <= those
    return found


def nothing_left(pairs: Compared) -> bool:
    """Whether every pair of weeks was decided as often the one way as the other: opposite answers cancel all."""
    _, code = np.unique(pairs.key, axis=0, return_inverse=True)
    net = np.bincount(code.ravel(), votes(pairs).astype(np.float64))
    return bool(len(net)) and bool((net == 0).all())


def splits(pairs: Compared, utility: NDArray[np.float64], ids: NDArray[np.object_]) -> tuple[Split, ...]:
    """Pairs of weeks of which two or more raters said opposite things, the most evenly split and most asked first."""
    vote, by = votes(pairs), defaultdict(list)
    for row, (first, second) in enumerate(pairs.key.tolist()):
        by[first, second].append(row)
    found = []
    for (first, second), rows in by.items():
        up, down = ({int(pairs.rater[row]) for row in rows if vote[row] == way} for way in (1, -1))
        if not up or not down or len(up | down) < 2:
            continue
        count = [sum(vote[row] == way for row in rows) for way in (1, -1, 0)]
        chance = 1 / (1 + math.exp(min(float(utility[second] - utility[first]), 700.0)))
        found.append(Split(str(ids[first]), str(ids[second]), int(count[0]), int(count[1]), int(count[2]), chance))
    return tuple(sorted(found, key=lambda each: (-min(each.for_first, each.for_second), each.first, each.second)))


@dataclass(frozen=True)
class Together:
    """Two raters over the pairs of weeks that both decided."""

    first: str
    second: str
    pairs: int
    agreement: float
    kappa: float | None
    """Cohen's (1960): (p_o - p_e) / (1 - p_e), p_e by how often each chose the first week; None where p_e is 1."""


def together(pairs: Compared, names: tuple[str, ...]) -> tuple[Together, ...]:
    """Agreement of every two raters who decided the same weeks; of repeated answers the majority counts."""
    vote = votes(pairs)
    said: dict[int, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for (first, second), rater, each in zip(pairs.key.tolist(), pairs.rater.tolist(), vote.tolist(), strict=True):
        said[rater][first, second] += each
    found = []
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            both = [key for key in said[one] if said[one][key] and said[other].get(key)]
            if not both:
                continue
            a, b = (np.sign([said[rater][key] for key in both]) for rater in (one, other))
            same, up, down = float((a == b).mean()), float((a > 0).mean()), float((b > 0).mean())
            chance = up * down + (1 - up) * (1 - down)
            kappa = None if chance == 1 else (same - chance) / (1 - chance)
            found.append(Together(names[one], names[other], len(both), same, kappa))
    return tuple(found)


def raters_of(
    pairs: Compared,
    utility: NDArray[np.float64],
    names: tuple[str, ...],
    ranked: NDArray[np.int64],
    reliability: NDArray[np.float64],
    side: NDArray[np.float64],
    intervals: list[tuple[float, float] | None],
) -> tuple[Rater, ...]:
    """Each rater by code; `ranked` [R] counts rankings, `utility` [W] is the joint fit's of every week."""
    clash, gap = contradictions(pairs), utility[pairs.left] - utility[pairs.right]
    found = []
    for code, name in enumerate(names):
        mine = pairs.rater == code
        left, right, ties = (int((mine & (pairs.answer == answer)).sum()) for answer in (LEFT, RIGHT, TIE))
        decided = mine & (pairs.answer != TIE) & (gap != 0)
        follows = (gap[decided] > 0) == (pairs.answer[decided] == LEFT)
        found.append(
            Rater(
                name,
                answers=int(mine.sum() + ranked[code]),
                pairs=int(mine.sum()),
                left=left,
                right=right,
                ties=ties,
                reliability=float(reliability[code]),
                side=float(side[code]),
                side_interval=intervals[code],
                agreement=float(follows.mean()) if len(follows) else None,
                contradictions=clash[code],
            )
        )
    return tuple(found)
