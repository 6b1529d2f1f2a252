"""A simulated rater: a hidden utility of user-weeks, and noisy answers by it, P(A > B) = sigma(u(A) - u(B))."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.rewards.answers import Pair
from models.rewards.weeks import Weeks

NAME = "simulated"


def utility(weeks: Weeks, rewards: Sequence[str], hidden: Mapping[str, float]) -> NDArray[np.float64]:
    """[W] u = sum over components of hidden weight x total."""
    weights = np.array([hidden.get(name, 0.0) for name in rewards])
    found: NDArray[np.float64] = weeks.totals @ weights
    return found


def answers(
    weeks: Weeks, pairs: NDArray[np.int64], of_week: NDArray[np.float64], rng: np.random.Generator, rater: str = NAME
) -> tuple[Pair, ...]:
    """One answer to each of `pairs` [M, 2]: left with the probability sigma(u_left - u_right)."""
    gap = of_week[pairs[:, 0]] - of_week[pairs[:, 1]]
    left = rng.random(len(pairs)) < 1 / (1 + np.exp(-gap))
    return tuple(
        Pair(str(weeks.id[a]), str(weeks.id[b]), "left" if chosen else "right", rater)
        for (a, b), chosen in zip(pairs, left, strict=True)
    )
