"""How often a judge says what people say, measured on pairs that people answered, before its other answers count."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models.rewards.answers import SIDES, Pair, Side

Z95 = 1.959963984540054
TURNED: dict[Side, Side] = {"left": "right", "right": "left", "tie": "tie"}


@dataclass(frozen=True)
class Agreement:
    """Judge against people, a pair of user-weeks being one observation whoever and however many answered it."""

    pairs: int
    """That both answered."""
    unanswered: int
    """That people answered and the judge did not."""
    same: float | None
    """Share of `pairs` with the same answer, ties being answers."""
    kappa: float | None
    """Cohen's (1960), of left, right and tie; None where chance alone would make them agree."""
    decided: int
    """Of `pairs`, those that neither called a tie."""
    agreed: int
    """Of `decided`, those on which both prefer the same week."""
    interval: tuple[float, float]
    """Of agreed / decided: Wilson's (1927) at 95%; (0, 1) where nothing is decided."""

    @property
    def rate(self) -> float | None:
        return self.agreed / self.decided if self.decided else None

    def enough(self, least: float) -> bool:
        """Whether the judge is trusted: the lower end of the interval is not below `least`."""
        return self.decided > 0 and self.interval[0] >= least


def agreement(judge: Sequence[Pair], people: Sequence[Pair]) -> Agreement:
    """Between the answers of one judge and those of people, who are one by majority; a draw among them is a tie."""
    said = {frozenset((each.left, each.right)): _towards(each) for each in judge}
    human = majority(people)
    both = [(said[pair], human[pair]) for pair in human if pair in said]
    decided = [(ours, theirs) for ours, theirs in both if "tie" not in (ours, theirs)]
    agreed = sum(ours == theirs for ours, theirs in decided)
    return Agreement(
        pairs=len(both),
        unanswered=len(human) - len(both),
        same=sum(ours == theirs for ours, theirs in both) / len(both) if both else None,
        kappa=kappa(both),
        decided=len(decided),
        agreed=agreed,
        interval=wilson(agreed, len(decided)),
    )


def majority(people: Sequence[Pair]) -> dict[frozenset[str], Side]:
    """What most said of each pair, with the first week by name on the left."""
    votes: dict[frozenset[str], Counter[Side]] = {}
    for each in people:
        votes.setdefault(frozenset((each.left, each.right)), Counter())[_towards(each)] += 1
    return {pair: _most(counted) for pair, counted in votes.items()}


def _most(counted: Counter[Side]) -> Side:
    ranked = counted.most_common()
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else "tie"


def _towards(each: Pair) -> Side:
    return each.answer if each.left < each.right else TURNED[each.answer]


def kappa(both: Sequence[tuple[Side, Side]]) -> float | None:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e): p_o the share of equal answers, p_e what two independent raters reach.

    None without answers, and where both always give the same one.
    """
    if not both:
        return None
    n = len(both)
    ours, theirs = Counter(each for each, _ in both), Counter(each for _, each in both)
    observed = sum(a == b for a, b in both) / n
    chance = sum(ours[side] * theirs[side] for side in SIDES) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)."""
    if n == 0:
        return 0.0, 1.0
    p, share = successes / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + share / (4 * n))
    middle, by = p + share / 2, 1 + share
    return max((middle - half) / by, 0.0), min((middle + half) / by, 1.0)
