"""Which user-weeks to ask about: pairs at random, and some of them a second time with their sides swapped."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError


@dataclass(frozen=True)
class Question:
    """Two user-weeks to compare, by their places."""

    left: int
    right: int
    repeats: int | None = None
    """Place of the earlier question that this one asks again, sides swapped."""


def at_random(weeks: int, asked: Iterable[tuple[int, int]], n: int, seed: int) -> NDArray[np.int64]:
    """[n, 2] different pairs of `weeks` user-weeks, uniform among those not in `asked`, whatever the sides.

    Raises InputError where fewer than n pairs are left.
    """
    taken = {(min(pair), max(pair)) for pair in asked}
    there = weeks * (weeks - 1) // 2
    left = there - len(taken)
    if left < n:
        said = f", {len(taken)} of which were asked already" if taken else ""
        raise InputError(
            f"pairs: {n} asked for, but {weeks} user-weeks make {there} pairs{said}; ask for at most {left}, or "
            "compare shorter stretches (learned.days) or a longer log."
        )
    rng = np.random.default_rng(seed)
    if n > left // 2:
        # Nearly all of them: to draw until something new comes would take long.
        first, second = np.triu_indices(weeks, 1)
        fresh = [pair for pair in zip(first.tolist(), second.tolist(), strict=True) if pair not in taken]
        drawn = [fresh[place] for place in rng.permutation(len(fresh))[:n]]
    else:
        drawn = []
        while len(drawn) < n:
            pair = tuple(sorted(rng.choice(weeks, 2, replace=False).tolist()))
            if pair not in taken:
                taken.add(pair)
                drawn.append(pair)
    pairs = np.array(drawn, dtype=np.int64).reshape(n, 2)
    return np.where(rng.random((n, 1)) < 0.5, pairs, pairs[:, ::-1])


def repeated(n: int, share: float) -> int:
    """How many of n questions are repeats: the share rounded down, and no more than there are others to repeat."""
    return min(int(n * share + 1e-9), n // 2)


def with_repeats(pairs: NDArray[np.int64], repeats: int, seed: int) -> list[Question]:
    """`pairs` [n, 2] in order, and mixed with the second half of them `repeats` of the first half, sides swapped."""
    half = (len(pairs) + 1) // 2
    rng = np.random.default_rng(seed)
    again = np.sort(rng.choice(half, repeats, replace=False))
    asked: list[Question] = [Question(int(left), int(right)) for left, right in pairs]
    later = [Question(asked[first].right, asked[first].left, int(first)) for first in rng.permutation(again)]
    rest: list[Question] = [*asked[half:], *later]
    order = rng.permutation(len(rest)) if repeats else np.arange(len(rest))
    return [*asked[:half], *(rest[place] for place in order)]
