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


SLICE = 4096
"""Numbers that a multiprocessor of a CUDA device updates in one go, at least."""
SLICES = 32
"""About as many tensors as PyTorch's kernels for lists take at once; more would be launched one after another."""


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
        self.runs: list[Neighbours] = []
        start = 0
        for rate, those in groupby(rates):
            stop = start + len(list(those))
            parts = [_of(slice(start, stop), each) for each in (self.parameters, self.first, self.second)]
            self.runs.append(Neighbours(slice(start, stop), rate, *parts))
            start = stop

    def begin(self, update: int) -> None:
        """Make ready for update number `update` (0 at first): all of a step that is no function of tensors alone."""
        left = 1 - (1 - FINAL_RATE) * min(update / self.steps, 1.0)
        for run in self.runs:
            # Counted by the caller: the moments' bias is a function of the update's number.
            run.counts.fill_(update)
            run.now = run.rate * left
            run.rate_there.fill_(run.now)

    def step(self, loss: Tensor, group: Group | None = None) -> None:
        """The update that was begun, from `loss` [P], each process's gradient counting alike."""
        gradients = list(torch.autograd.grad(loss.sum(), self.parameters))
        if group is not None:
            group.average(gradients)
        self._apply(gradients)

    @torch.no_grad()
    def _apply(self, gradients: Sequence[Tensor]) -> None:
        for run in self.runs:
            adam(
                run.parameters,
                _of(run.those, gradients),
                run.first,
                run.second,
                [],
                list(run.counts),
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                # A number would stay in a recorded graph as it was.
                lr=run.rate_there if run.rate_there.is_cuda else run.now,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


class Neighbours:
    """Members of one learning rate: nearly always all."""

    def __init__(
        self, those: slice, rate: float, parameters: list[Tensor], first: list[Tensor], second: list[Tensor]
    ) -> None:
        self.those, self.rate, self.now = those, rate, rate
        self.parameters, self.first, self.second = parameters, first, second
        self.counts = torch.zeros(len(parameters), device=parameters[0].device)
        self.rate_there = torch.zeros((), device=parameters[0].device)


def _of(those: slice, parts: Sequence[Tensor]) -> list[Tensor]:
    """Views of some members of each part [P, ...]; on a CUDA device flat slices of them.

    PyTorch's kernels for lists of tensors give one multiprocessor 65,536 numbers, and with a network of so many most of
    the device would wait for it.
    """
    found = [each.detach()[those] for each in parts]
    if not found[0].is_cuda:
        return found
    size = max(SLICE, -(-sum(each.numel() for each in found) // SLICES))
    return [piece for each in found for piece in torch.split(each.reshape(-1), size)]


@torch.no_grad()
def follow(target: Population, online: Population, rate: Tensor | float) -> None:
    """Polyak: target <- (1 - rate) target + rate online, in place; `rate` [P], or one for all members."""
    if isinstance(rate, float):
        everyone = slice(None)
        torch._foreach_lerp_(_of(everyone, list(target.parameters())), _of(everyone, list(online.parameters())), rate)
        return
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate[:, None, None])
