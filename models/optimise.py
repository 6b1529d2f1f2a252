"""Gradient descent of a population, and the progress bar beside it."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.optim.adam import adam

from models.distributed import Group
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
    """Adam on the sum of the members' losses: its moments are per parameter, so members stay apart.

    Every parameter leads with P; members may learn at rates of their own, neighbours of one rate in one call.
    """

    def __init__(self, networks: Sequence[Population], rates: Sequence[float], steps: int) -> None:
        """`rates` [P] at the first of `steps` updates; they fall linearly to FINAL_RATE of themselves."""
        self.parameters: list[nn.Parameter] = [each for network in networks for each in network.parameters()]
        self.first = [torch.zeros_like(each) for each in self.parameters]
        self.second = [torch.zeros_like(each) for each in self.parameters]
        self.steps = steps
        self.runs: list[tuple[slice, float]] = []
        start = 0
        for rate, those in groupby(rates):
            stop = start + len(list(those))
            self.runs.append((slice(start, stop), rate))
            start = stop
        device = self.parameters[0].device
        self.counts = torch.zeros(len(self.runs), len(self.parameters), device=device)
        self.initial = torch.tensor([rate for _, rate in self.runs], device=device)
        self.rates = self.initial.clone()
        self.left = 1.0

    def begin(self, update: int) -> None:
        """Make ready for update number `update` (0 at first): all of a step that is no function of tensors alone."""
        # Counted by the caller: the moments' bias is a function of the update's number.
        self.counts.fill_(update)
        self.left = 1 - (1 - FINAL_RATE) * min(update / self.steps, 1.0)
        torch.mul(self.initial, self.left, out=self.rates)

    def step(self, loss: Tensor, group: Group | None = None) -> None:
        """The update that was begun, from `loss` [P], each process's gradient counting alike."""
        gradients = list(torch.autograd.grad(loss.sum(), self.parameters))
        if group is not None:
            group.average(gradients)
        self._apply(gradients)

    @torch.no_grad()
    def _apply(self, gradients: Sequence[Tensor]) -> None:
        for place, (those, rate) in enumerate(self.runs):
            adam(
                self._of(those, self.parameters),
                self._of(those, gradients),
                self._of(those, self.first),
                self._of(those, self.second),
                [],
                list(self.counts[place]),
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                # A number would stay in a recorded graph as it was.
                lr=self.rates[place] if self.rates.is_cuda else rate * self.left,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

    def _of(self, those: slice, parts: Sequence[Tensor]) -> list[Tensor]:
        """The members of one rate: nearly always all."""
        return list(parts) if len(self.runs) == 1 else [each[those] for each in parts]


@torch.no_grad()
def follow(target: Population, online: Population, rate: Tensor | float) -> None:
    """Polyak: target <- (1 - rate) target + rate online, in place; `rate` [P], or one for all members."""
    if isinstance(rate, float):
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
        return
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate[:, None, None])
