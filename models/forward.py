"""Fitted Q functions where there is no torch: the network's weights as arrays, and its forward pass in NumPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]
ROWS = 2**16
"""Rows that are computed at a time."""


@dataclass(frozen=True)
class Networks:
    """P networks as `models.network.Population` has them."""

    weights: tuple[Single, ...]
    """Layers [P, in, out]; the last has out = A K."""
    biases: tuple[Single, ...]
    """[P, 1, out]."""
    mean: Single
    """[S]."""
    std: Single
    """[S]."""
    shift: Single
    """[K]."""
    scale: Single
    """[K]."""
    actions: int

    def __call__(self, member: int, state: Single) -> NDArray[np.float64]:
        """[N, A, K] of one member in raw units, at raw `state` [N, S], NaN where unknown."""
        parts = [self._part(member, state[low : low + ROWS]) for low in range(0, len(state), ROWS)]
        return np.concatenate(parts) if parts else np.zeros((0, self.actions, len(self.scale)))

    def _part(self, member: int, state: Single) -> NDArray[np.float64]:
        # In double precision: how many rows are computed together must not show.
        h: NDArray[np.float64] = np.where(np.isnan(state), 0.0, (state.astype(np.float64) - self.mean) / self.std)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = np.asarray(h @ weight[member] + bias[member], dtype=np.float64)
            if layer < last:
                np.maximum(h, 0.0, out=h)
        found: NDArray[np.float64] = self.shift + self.scale * h.reshape(len(h), self.actions, -1)
        return found
