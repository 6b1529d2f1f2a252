"""Gradient descent of a population, and the progress bar beside it."""

from collections.abc import Iterator

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from models.network import Population

FINAL_RATE = 0.1
"""The learning rate falls linearly to this share of itself, so that the last iterates agree."""


def counted(steps: int, title: str, progress: bool) -> Iterator[int]:
    """0 .. steps - 1, behind a progress bar where `progress` is wanted and somebody looks at a terminal."""
    console = Console(stderr=True)
    if progress and console.is_terminal:
        yield from track(range(steps), description=title, console=console)
    else:
        yield from range(steps)


class Descent:
    """Adam on the sum of the members' losses: its moments are per parameter, so members stay apart."""

    def __init__(self, network: Population, learning_rate: float, steps: int) -> None:
        self.optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimiser, 1.0, FINAL_RATE, total_iters=steps)

    def step(self, loss: Tensor) -> None:
        """One update from `loss` [P]."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()


@torch.no_grad()
def follow(target: Population, online: Population, rate: float) -> None:
    """Polyak: target <- (1 - rate) target + rate online, in place."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate)
