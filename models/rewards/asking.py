"""Questions to a person: pairs of user-weeks, some of them a second time with their sides swapped."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Question:
    """Two user-weeks to compare, by their places."""

    left: int
    right: int
    repeats: int | None = None
    """Place of the earlier question that this one asks again, sides swapped."""


def repeated(n: int, share: float) -> int:
    """How many of n questions are repeats: the share rounded down, and at most one for every two others."""
    return min(int(n * share + 1e-9), n // 3)


def with_repeats(pairs: NDArray[np.int64], repeats: int, seed: int) -> list[Question]:
    """`pairs` [n, 2] in order, and mixed with the second half of them `repeats` of the first half, sides swapped."""
    half = (len(pairs) + 1) // 2
    rng = np.random.default_rng(seed)
    asked = [Question(int(left), int(right)) for left, right in pairs]
    again = rng.choice(half, repeats, replace=False).tolist()
    later = [Question(asked[first].right, asked[first].left, first) for first in again]
    rest = [*asked[half:], *later]
    order = rng.permutation(len(rest)) if repeats else range(len(rest))
    return [*asked[:half], *(rest[place] for place in order)]
