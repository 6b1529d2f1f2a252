"""A network alone as a policy: what it would do without the logging policy's share and without exploration."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Population, predicted
from policies.q_policy import softmax_over_legal


@dataclass(frozen=True)
class Acting:
    """A network that acts greedily on legal actions, or by its softmax where it is a clone."""

    name: str
    network: Population
    weights: NDArray[np.float64]
    cloned: bool = False
    learned: bool = True

    def action_probabilities(self, state: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
        x = self.network.normalise(torch.from_numpy(state))
        q = predicted(self.network, x)[0] @ self.weights
        if self.cloned:
            return softmax_over_legal(q, legal)
        chosen: NDArray[np.float64] = np.eye(legal.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]
        return chosen
