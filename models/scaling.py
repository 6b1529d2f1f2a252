"""Units inside the networks: normalised features, heads in standard deviations, weights that carry over."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contract import Contract
from models.errors import InputError
from models.table import Transitions


@dataclass(frozen=True)
class Scales:
    """The units of one learner: S features, K reward components, and what they weigh."""

    mean: NDArray[np.float32]
    """[S] feature means, unknowns left out."""
    std: NDArray[np.float32]
    """[S] feature standard deviations."""
    sigma: NDArray[np.float64]
    """[K] sigma_c, raw units per unit of head c."""
    reward_sd: float
    """sd(w.r), in the unit of the weighted sum."""
    weights: NDArray[np.float64]
    """[K] w per raw unit."""

    @property
    def inner(self) -> NDArray[np.float64]:
        """[K] w~_c = w_c sigma_c / sd(w.r): q = w~.Q is in standard deviations of the weighted reward."""
        return self.weights * self.sigma / self.reward_sd


@dataclass(frozen=True)
class Units:
    """What the training rows say about units, whatever the components weigh."""

    contract: Contract
    rows: int
    """Rows measured."""
    mean: NDArray[np.float32]
    """[S]."""
    std: NDArray[np.float32]
    """[S]."""
    reward: NDArray[np.float64]
    """[K] mean of each component, raw."""
    covariance: NDArray[np.float64]
    """[K, K] of the components, raw; rows of a constant component are exactly 0."""

    @classmethod
    def of(cls, table: Transitions, rows: NDArray[np.bool_]) -> "Units":
        """The units of the rows marked in `rows` [N].

        Raises InputError as `Moments.units` does.
        """
        moments = Moments(table.contract)
        moments.add(table, rows)
        return moments.units()

    @property
    def sigma(self) -> NDArray[np.float64]:
        """[K] sigma_c = sd(r_c), or 1 where component c is constant."""
        spread: NDArray[np.float64] = np.sqrt(np.diag(self.covariance))
        return np.where(spread == 0, 1.0, spread)

    def weighed(self, weights: Mapping[str, float], key: str = "train.weights") -> Scales:
        """The scales of a learner with `weights` per raw unit; absent components weigh 0. sd(w.r)^2 = w' C w.

        `key` is where the configuration has them. Raises InputError naming a weight of an unknown component, a
        component that is constant though it has a weight, weights that are all zero, and a reward that never varies.
        """
        names = self.contract.rewards
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise InputError(f"{key}: {unknown[0]!r} is not a reward component (known: {', '.join(names)}).")
        w = np.array([weights.get(name, 0.0) for name in names])
        if not w.any():
            raise InputError(f"{key} are all zero; give at least one reward component a weight.")
        for name, variance, weight, value in zip(names, np.diag(self.covariance), w, self.reward, strict=True):
            if variance == 0 and weight != 0:
                raise InputError(
                    f"{key}.{name} is {weight}, but reward {name} is {value:g} in all {self.rows} training "
                    "rows: nothing can be learned about it; set its weight to 0 or use a longer log."
                )
        variance = float(w @ self.covariance @ w)
        if variance <= 1e-14 * float(np.square(w * self.sigma).sum()):
            raise InputError(
                f"{key}: the weighted reward is {float(w @ self.reward):g} in all {self.rows} training rows; "
                "its components cancel, choose other weights."
            )
        return Scales(self.mean, self.std, self.sigma, variance**0.5, w)


class Moments:
    """Sums over rows that add, part by part, to what `Units` are made of: no two passes, no cancellation."""

    def __init__(self, contract: Contract) -> None:
        features, rewards = len(contract.features), len(contract.rewards)
        self.contract = contract
        self.rows = 0
        self.known = np.zeros(features)
        self.infinite, self.elsewhere = np.zeros(features, dtype=np.int64), np.zeros(features, dtype=np.int64)
        self.mean, self.square = np.zeros(features), np.zeros(features)
        self.least, self.most = np.full(features, np.inf), np.full(features, -np.inf)
        self.reward, self.product = np.zeros(rewards), np.zeros((rewards, rewards))
        self.reward_least, self.reward_most = np.full(rewards, np.inf), np.full(rewards, -np.inf)

    def add(self, table: Transitions, rows: NDArray[np.bool_]) -> None:
        """The rows of `table` marked in `rows` [N]. Source: Chan, Golub and LeVeque 1983, eq. 2.1."""
        others = ~rows
        for s in range(len(self.mean)):
            # One feature at a time: a table that fills the memory has no second copy.
            state = table.state[rows, s].astype(np.float64)
            known = state[~np.isnan(state)]
            self.infinite[s] += int(np.isinf(known).sum())
            # What is judged on them would be as infinite, and the learning rate be blamed.
            self.elsewhere[s] += int(np.isinf(table.state[others, s]).sum())
            if not len(known) or self.infinite[s]:
                continue
            n, off = len(known), known.mean() - self.mean[s]
            total = self.known[s] + n
            self.square[s] += np.square(known - known.mean()).sum() + off**2 * self.known[s] * n / total
            self.mean[s] += off * n / total
            self.known[s] = total
            self.least[s], self.most[s] = min(self.least[s], known.min()), max(self.most[s], known.max())
        reward = table.reward[rows]
        if not len(reward):
            return
        n, centre = len(reward), reward.mean(axis=0)
        off, around = centre - self.reward, reward - centre
        self.product += around.T @ around + np.outer(off, off) * self.rows * n / (self.rows + n)
        self.reward += off * n / (self.rows + n)
        self.rows += n
        self.reward_least = np.minimum(self.reward_least, reward.min(axis=0))
        self.reward_most = np.maximum(self.reward_most, reward.max(axis=0))

    def units(self) -> Units:
        """Means, standard deviations (over known values) and the covariance of the rewards.

        Raises InputError naming a feature that is constant, always unknown, or infinite somewhere.
        """
        for name, infinite, elsewhere, known, least, most in zip(
            self.contract.features, self.infinite, self.elsewhere, self.known, self.least, self.most, strict=True
        ):
            if infinite or elsewhere:
                where = f"{infinite} of {self.rows} training rows" if infinite else f"{elsewhere} rows of other splits"
                raise InputError(
                    f"features: {name!r} is infinite in {where}; correct the log (a division by zero?), or map the "
                    "column to null there: unknown is learned from."
                )
            if least >= most:
                found = f"always {least:g}" if known else "always unknown"
                raise InputError(
                    f"features: {name!r} is {found} in {self.rows} training rows, so it tells nothing; remove it from "
                    "[features] or use a log in which it varies."
                )
        varies = self.reward_least < self.reward_most
        covariance = np.where(np.outer(varies, varies), self.product, 0.0) / max(self.rows, 1)
        return Units(
            self.contract,
            self.rows,
            self.mean.astype(np.float32),
            np.sqrt(self.square / np.maximum(self.known, 1)).astype(np.float32),
            # Exactly the value, where there is one.
            np.where(varies, self.reward, self.reward_least),
            covariance,
        )


def extremes(table: Transitions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[S] the least and [S] the largest known value of each feature, whatever the split; NaN where there is none."""
    least: NDArray[np.float32] = np.fmin.reduce(table.state, axis=0, initial=np.float32(np.nan))
    most: NDArray[np.float32] = np.fmax.reduce(table.state, axis=0, initial=np.float32(np.nan))
    return least, most


def check_kept(
    contract: Contract, units: Units | Scales, least: NDArray[np.float32], most: NDArray[np.float32], half: bool
) -> None:
    """Raise InputError where a feature between `least` and `most` [S] is infinite as the device keeps it, normalised.

    One such row of any split makes whatever is computed of it infinite, and the learning rate would be blamed.
    """
    kind = np.float16 if half else np.float32
    for s, name in enumerate(contract.features):
        for value in (least[s], most[s]):
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                kept = ((value - units.mean[s]) / units.std[s]).astype(kind)
            if not np.isinf(kept):
                continue
            keeps = "train.half_precision = true can keep" if half else "can be kept"
            raise InputError(
                f"features: {name!r} is {value:g} in a row, against a mean of {units.mean[s]:g} and a standard "
                f"deviation of {units.std[s]:g} in the training rows: normalised it is beyond the "
                f"{np.finfo(kind).max:g} that {keeps}; correct the log, or map the column to null there"
                f"{', or set train.half_precision = false' if half else ''}."
            )
