"""Units inside the networks: normalised features, heads in standard deviations, weights that carry over."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions


@dataclass(frozen=True)
class Scales:
    """What the training rows say about units: S features, K reward components."""

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


def measure(table: Transitions, rows: NDArray[np.bool_], weights: Mapping[str, float]) -> Scales:
    """The scales of the training rows marked in `rows` [N]; `weights` per raw unit, absent components weigh 0.

    sigma_c = sd(r_c), or 1 where component c is constant and weighs 0.

    Raises InputError naming the feature that is constant, the component that is constant though it has a weight, a
    weight of an unknown component, and a weighted reward that never varies.
    """
    unknown = [name for name in weights if name not in table.contract.rewards]
    if unknown:
        raise InputError(
            f"train.weights: {unknown[0]!r} is not a reward component (known: {', '.join(table.contract.rewards)})."
        )
    mean, std = _features(table, rows)
    w = np.array([weights.get(name, 0.0) for name in table.contract.rewards])
    reward = table.reward[rows]
    constant = np.ptp(reward, axis=0) == 0
    for name, flat, weight, value in zip(table.contract.rewards, constant, w, reward[0], strict=True):
        if flat and weight != 0:
            raise InputError(
                f"train.weights.{name} is {weight}, but reward {name} is {value:g} in all {len(reward)} training rows: "
                f"nothing can be learned about it; set its weight to 0 or use a longer log."
            )
    sigma = np.where(constant, 1.0, reward.std(axis=0))
    weighted = reward @ w
    reward_sd = float(weighted.std())
    if reward_sd <= 1e-12 * max(1.0, float(np.abs(weighted).max())):
        raise InputError(
            f"train.weights: the weighted reward is {weighted[0]:g} in all {len(reward)} training rows; its components "
            "cancel, choose other weights."
        )
    return Scales(mean, std, sigma, reward_sd, w)


def _features(table: Transitions, rows: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation [S] of each feature over its known values."""
    state = table.state[rows].astype(np.float64)
    mean, std = np.empty(state.shape[1]), np.empty(state.shape[1])
    for s, name in enumerate(table.contract.features):
        known = state[~np.isnan(state[:, s]), s]
        if not len(known) or np.ptp(known) == 0:
            found = f"always {known[0]:g}" if len(known) else "always unknown"
            raise InputError(
                f"features: {name!r} is {found} in {len(state)} training rows, so it tells nothing; remove it from "
                "[features] or use a log in which it varies."
            )
        mean[s], std[s] = known.mean(), known.std()
    return mean.astype(np.float32), std.astype(np.float32)
