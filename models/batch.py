"""The log as tensors that stay where the networks are, and minibatches of it by index."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import SPLITS
from models.losses import discount_of
from models.scaling import Scales, Units, check_kept, extremes
from models.table import Transitions

AHEAD = 64
"""Minibatches drawn at a time, one call instead of one per update."""


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

    def expand(self, members: int) -> "Batch":
        """P = 1 becomes `members`, by views; `discount`, which may differ where rows are shared, has P already."""
        return Batch(
            **{
                field.name: part.expand(members, *part.shape[1:])
                for field in fields(self)
                for part in (getattr(self, field.name),)
            }
        )


@dataclass(frozen=True)
class Resident:
    """N transitions on one device; the next state of a row is the row after it, never a copy.

    Bytes a transition: 4 S (2 S in half precision) + A + 1 + 4 K + 4 + 1 + 1.
    """

    state: Tensor
    """[N, S] normalised, float32 or float16."""
    legal: Tensor
    """[N, A] bool."""
    action: Tensor
    """[N] uint8."""
    reward: Tensor
    """[N, K] float32, in the unit of the learner."""
    elapsed: Tensor
    """[N] float32, Delta in days."""
    stops: Tensor
    """[N] bool: nothing is bootstrapped."""
    follows: Tensor
    """[N] bool: the next row is the next state; else the row itself stands for one that does not matter."""

    @classmethod
    def of(cls, table: Transitions, units: Units | Scales, device: torch.device, half: bool = False) -> "Resident":
        """`table` as Double Q-learning sees it: rewards in units of sigma_c, nothing bootstrapped where terminal.

        Raises InputError as `check_kept` does.
        """
        state = (torch.from_numpy(table.state) - torch.from_numpy(units.mean)) / torch.from_numpy(units.std)
        check_kept(table.contract, units, *extremes(table), half)
        return cls(
            state=torch.nan_to_num(state, nan=0.0).to(torch.float16 if half else torch.float32).to(device),
            legal=torch.from_numpy(table.legal).to(device),
            action=torch.from_numpy(table.action.astype(np.uint8)).to(device),
            reward=torch.from_numpy(table.reward / units.sigma).float().to(device),
            elapsed=torch.from_numpy(table.elapsed_days).float().to(device),
            stops=torch.from_numpy(table.terminal).to(device),
            follows=torch.from_numpy(table.next_row >= 0).to(device),
        )

    @property
    def bytes_per_transition(self) -> float:
        """Of everything held, divided by N."""
        parts: list[Tensor] = [getattr(self, field.name) for field in fields(self)]
        return sum(part.numel() * part.element_size() for part in parts) / len(self.state)

    def at(self, rows: Tensor, gamma: Tensor) -> Batch:
        """The transitions at `rows` [P, B], or [1, B] where all share them; `gamma` [P] or [1] per day."""
        after = rows + _pick(self.follows, rows)
        return Batch(
            state=_pick(self.state, rows).float(),
            legal=_pick(self.legal, rows),
            action=_pick(self.action, rows).long(),
            reward=_pick(self.reward, rows),
            discount=discount_of(gamma.unsqueeze(-1), _pick(self.elapsed, rows), _pick(self.stops, rows)),
            next_state=_pick(self.state, after).float(),
            next_legal=_pick(self.legal, after),
        )


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    """[*rows, ...] the rows of `values` [N, ...]: whole rows are copied, not element by element."""
    return values.index_select(0, rows.reshape(-1)).view(*rows.shape, *values.shape[1:])


class Feed(Protocol):
    """Transitions in the device's memory, and which of them may be drawn now."""

    @property
    def data(self) -> Resident: ...
    @property
    def places(self) -> Tensor:
        """[n] row numbers."""

    def turns(self, steps: int) -> Sequence[int]:
        """The updates, counted from 1, after which the places change: multiples of AHEAD."""

    def advance(self, step: int) -> None:
        """Make ready for update number `step` and those until the next turn."""


@dataclass(frozen=True)
class Held:
    """A feed that holds everything, always."""

    data: Resident
    places: Tensor
    """[n]."""

    @classmethod
    def of(cls, data: Resident, rows: NDArray[np.bool_]) -> "Held":
        """The rows marked in `rows` [N]."""
        return cls(data, torch.from_numpy(np.flatnonzero(rows)).to(data.state.device))

    def turns(self, steps: int) -> Sequence[int]:
        """Never."""
        return ()

    def advance(self, step: int) -> None:
        """Everything is there."""


class Draws:
    """Row numbers of S streams of minibatches, with replacement: a function of their seeds and of the update alone.

    So a run that is resumed, or whose members are updated in another order, sees the same minibatches.
    """

    def __init__(self, feeds: Sequence[Feed], seeds: Sequence[int], batch_size: int) -> None:
        """Draw each stream from the places of its feed, which may change them between blocks of AHEAD updates."""
        self.feeds, self.seeds, self.batch_size = feeds, seeds, batch_size
        self.block = -1
        self.drawn = torch.empty(0)

    def at(self, step: int) -> Tensor:
        """[S, B] row numbers of one update."""
        block, place = divmod(step, AHEAD)
        if block != self.block:
            streams = [self._ahead(feed, seed, block) for feed, seed in zip(self.feeds, self.seeds, strict=True)]
            self.block, self.drawn = block, torch.stack(streams, dim=1)
        return self.drawn[place]

    def _ahead(self, feed: Feed, seed: int, block: int) -> Tensor:
        """[AHEAD, B] of one stream."""
        places = feed.places
        own = int(np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(places.device).manual_seed(own)
        drawn = torch.randint(len(places), (AHEAD, self.batch_size), generator=generator, device=places.device)
        return places[drawn]
