"""Which user-weeks to compare next: where an ensemble of weights disagrees, and an answer would tell.

The expected gain of a pair of difference d, in nats of the weights' volume, is to second order

    g(d) = 1/2 log(1 + h(d) d'Vd),   h(d) = mean over the ensemble of sigma(w.d) (1 - sigma(w.d)).

d'Vd is how far the ensemble disagrees about which of the two is better (Christiano et al. 2017 ask where predictions
vary most); h is the information of one answer, nothing where all are certain (D-optimal design; MacKay 1992).
A batch is chosen one by one, V taking in each before it is answered, V <- V - h Vdd'V / (1 + h d'Vd), so that a
near-duplicate of a chosen pair is worth little: a greedy maximum of a submodular gain, within 1 - 1/e of the best.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.errors import InputError
from models.rewards.store import Stored
from models.rewards.weeks import Weeks

CANDIDATES, ENSEMBLE = 4000, 200


@dataclass(frozen=True)
class Known:
    """What is known of the weights of K components: enough to choose, and what a stored version keeps."""

    components: tuple[str, ...]
    """[K]"""
    columns: NDArray[np.int64]
    """[K] their places in the totals of a user-week."""
    scale: NDArray[np.float64]
    """[K] root mean square of the differences compared: the unit in which the weights were fitted."""
    weights: NDArray[np.float64]
    """[K] per raw unit, on the scale of the typical rater's noise."""
    covariance: NDArray[np.float64]
    """[K, K] of the weights: inverse information at the maximum, all else fitted along."""

    def utility(self, weeks: Weeks) -> NDArray[np.float64]:
        """[W] w.phi of every week."""
        found: NDArray[np.float64] = weeks.totals[:, self.columns] @ self.weights
        return found


def known(stored: Stored, rewards: tuple[str, ...]) -> Known:
    """What a version of kind `weights` knows, for weeks whose totals are of `rewards`.

    Raises InputError where it is of another kind, or of a component that is none of them.
    """
    if stored.kind != "weights":
        raise InputError(f"{stored.name} version {stored.version} is of kind {stored.kind}; weights are needed.")
    components = tuple(stored.facts["rewards"])
    if "scale" not in stored.facts or "covariance" not in stored.facts:
        raise InputError(
            f"{stored.name} version {stored.version} does not say how certain its weights are (scale, covariance); fit "
            "it again."
        )
    absent = [name for name in components if name not in rewards]
    if absent:
        raise InputError(
            f"{stored.name} version {stored.version} weighs {absent[0]!r}, which is none of the rewards "
            f"{', '.join(rewards)}; fit it again with this configuration."
        )
    weights, scale = (np.array([stored.facts[key][name] for name in components]) for key in ("weights", "scale"))
    columns = np.array([rewards.index(name) for name in components], dtype=np.int64)
    return Known(components, columns, scale, weights, np.array(stored.facts["covariance"]))


def choose(
    fitted: Known | None,
    weeks: Weeks,
    asked: NDArray[np.int64],
    n: int,
    seed: int,
    candidates: int = CANDIDATES,
) -> NDArray[np.int64]:
    """[n, 2] places in `weeks` of the pairs to ask next, the most telling first, left and right by chance.

    `fitted` is what is known of the weights so far (what `fit` found, or `known` read), None where nothing is: then
    the weights of all components, in standard deviations, are drawn from a standard normal. `asked` [M, 2] are places
    of pairs that were asked; none is chosen again, and none twice. No user-week is in two pairs of a batch while others
    are left.

    Raises InputError where so many new pairs are not there, or no two weeks differ.
    """
    rng = np.random.default_rng(seed)
    pool = random_pairs(weeks, asked, max(candidates, n), rng, at_least=n)
    totals = weeks.totals if fitted is None else weeks.totals[:, fitted.columns]
    scale = totals.std(axis=0) if fitted is None else fitted.scale
    scale = np.where(scale > 0, scale, 1.0)
    difference = (totals[pool[:, 0]] - totals[pool[:, 1]]) / scale
    if not difference.any():
        raise InputError(
            f"preferences: none of {len(pool)} pairs of user-weeks differs in any reward component; "
            "a longer log or other components are needed."
        )
    size = difference.shape[1]
    mean, cover = (np.zeros(size), np.eye(size)) if fitted is None else (fitted.weights * scale, fitted.covariance)
    if fitted is not None:
        cover = cover * np.outer(scale, scale)
    drawn = rng.multivariate_normal(mean, cover, size=ENSEMBLE, method="eigh")
    chance = expit(difference @ drawn.T)
    information = (chance * (1 - chance)).mean(axis=1)
    order = _greedy(difference, information, np.cov(drawn.T).reshape(size, size), pool, n)
    return pool[order]


def _greedy(
    difference: NDArray[np.float64],
    information: NDArray[np.float64],
    cover: NDArray[np.float64],
    pool: NDArray[np.int64],
    n: int,
) -> list[int]:
    """[n] rows of the pool, each the most telling given those before it."""
    found: list[int] = []
    used = np.zeros(len(pool), dtype=bool)
    taken: set[int] = set()
    for _ in range(n):
        gain = information * np.einsum("ik,kl,il->i", difference, cover, difference)
        fresh = ~used & ~np.isin(pool, list(taken)).any(axis=1)
        allowed = fresh if fresh.any() else ~used
        best = int(np.argmax(np.where(allowed, gain, -np.inf)))
        found.append(best)
        used[best] = True
        taken |= set(pool[best].tolist())
        turned = cover @ difference[best]
        cover = cover - information[best] * np.outer(turned, turned) / (1 + gain[best])
    return found


def random_pairs(
    weeks: Weeks,
    asked: NDArray[np.int64],
    n: int,
    rng: np.random.Generator,
    at_least: int | None = None,
) -> NDArray[np.int64]:
    """Up to n pairs [., 2] of two different weeks, uniformly among those not `asked` [M, 2] on either side.

    Raises InputError where fewer than `at_least` (n by default) are there.
    """
    size = len(weeks.id)
    every = size * (size - 1) // 2
    past = {_code(min(pair), max(pair), size) for pair in asked.reshape(-1, 2).tolist()}
    least = n if at_least is None else at_least
    if every - len(past) < least:
        raise InputError(
            f"preferences: {size} user-weeks have {every} pairs, {len(past)} of them asked; {least} new ones are "
            "wanted. Ask for fewer, or read a longer log."
        )
    if every <= 4 * (n + len(past)):
        first, second = np.triu_indices(size, 1)
        both = zip(first.tolist(), second.tolist(), strict=True)
        left = np.array([(one, other) for one, other in both if _code(one, other, size) not in past])
        pairs = rng.permutation(left)[:n]
    else:
        kept: dict[int, tuple[int, int]] = {}
        while len(kept) < n:
            for first, second in np.sort(rng.integers(size, size=(n, 2)), axis=1).tolist():
                code = _code(first, second, size)
                if first != second and code not in past and len(kept) < n:
                    kept[code] = (first, second)
        pairs = np.array(list(kept.values()))
    swap = rng.random(len(pairs)) < 0.5
    found: NDArray[np.int64] = np.where(swap[:, None], pairs[:, ::-1], pairs).astype(np.int64)
    return found


def _code(first: int, second: int, size: int) -> int:
    return first * size + second
