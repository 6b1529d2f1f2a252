"""The log as tensors that stay where the networks are, and minibatches of it by index."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import SPLITS
from models.losses import discount_of
from models.scaling import Scales
from models.table import Transitions


@dataclass(frozen=True)
class Rows:
    """Which of N rows a stage may learn from, within one split and past the warm-up."""

    all: NDArray[np.bool_]
    """[N]."""
    target: NDArray[np.bool_]
    """[N] what came after was seen: terminal, or followed by the user's next row. Never truncated."""
    choice: NDArray[np.bool_]
    """[N] two or more legal actions, the logged one among them: they say what the logging policy is."""


def rows_of(table: Transitions, split: str) -> Rows:
    """The rows of one split (train, validation or test) for each stage of learning."""
    rows = (table.split == SPLITS.index(split)) & ~table.warm_up
    logged_legal = table.legal[np.arange(len(table.user)), table.action]
    return Rows(
        all=rows,
        target=rows & (table.terminal | (table.next_row >= 0)),
        choice=rows & (table.legal.sum(axis=1) > 1) & logged_legal,
    )


@dataclass(frozen=True)
class Batch:
    """B transitions for each of P members, or P = 1 where they share them."""

    state: Tensor
    """[P, B, S] normalised."""
    legal: Tensor
    """[P, B, A]."""
    action: Tensor
    """[P, B] logged."""
    reward: Tensor
    """[P, B, K] in the unit of the learner."""
    discount: Tensor
    """[P, B] gamma^Delta (1 - terminal)."""
    next_state: Tensor
    """[P, B, S] normalised; any state where the discount is 0."""
    next_legal: Tensor
    """[P, B, A]."""

    def repeat(self, times: int) -> "Batch":
        """P becomes times P: the members again and again, in blocks; a view where P is 1."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: part.expand(times, *part.shape).flatten(0, 1) for name, part in parts.items()})


@dataclass(frozen=True)
class Resident:
    """N transitions on one device; the next state of a row is another row, never a copy."""

    state: Tensor
    """[N, S] normalised."""
    legal: Tensor
    """[N, A]."""
    action: Tensor
    """[N]."""
    reward: Tensor
    """[N, K] in the unit of the learner."""
    discount: Tensor
    """[N]."""
    next_row: Tensor
    """[N] place of the next state; the row itself where there is none."""

    @classmethod
    def of(cls, table: Transitions, scales: Scales, gamma_per_day: float, device: torch.device) -> "Resident":
        """`table` as Double Q-learning sees it: rewards in units of sigma_c, gamma^Delta for discount."""
        elapsed, terminal = torch.from_numpy(table.elapsed_days), torch.from_numpy(table.terminal)
        state = (torch.from_numpy(table.state) - torch.from_numpy(scales.mean)) / torch.from_numpy(scales.std)
        following = np.where(table.next_row >= 0, table.next_row, np.arange(len(table.user)))
        return cls(
            state=torch.nan_to_num(state, nan=0.0).to(device),
            legal=torch.from_numpy(table.legal).to(device),
            action=torch.from_numpy(table.action).to(device),
            reward=torch.from_numpy(table.reward / scales.sigma).float().to(device),
            discount=discount_of(gamma_per_day, elapsed, terminal).float().to(device),
            next_row=torch.from_numpy(following).to(device),
        )

    def at(self, rows: Tensor) -> Batch:
        """The transitions at `rows` [P, B]."""
        after = self.next_row[rows]
        return Batch(
            self.state[rows],
            self.legal[rows],
            self.action[rows],
            self.reward[rows],
            self.discount[rows],
            self.state[after],
            self.legal[after],
        )


class Draws:
    """Row numbers for one member's minibatches, with replacement, from its own generator."""

    def __init__(self, rows: NDArray[np.bool_], seed: int, batch_size: int, device: torch.device) -> None:
        """Draw from the rows marked in `rows` [N]."""
        self.places = torch.from_numpy(np.flatnonzero(rows))
        self.generator = torch.Generator().manual_seed(seed)
        self.batch_size = batch_size
        self.device = device
        self.ahead: list[Tensor] = []

    def next(self) -> Tensor:
        """[B] row numbers."""
        if not self.ahead:
            # Many steps at a time: one call and one copy to the device instead of one per step.
            drawn = torch.randint(len(self.places), (64, self.batch_size), generator=self.generator)
            self.ahead = list(self.places[drawn].to(self.device).unbind())[::-1]
        return self.ahead.pop()
