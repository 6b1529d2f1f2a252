"""Several processes that train one population: each takes its share of every minibatch, gradients are averaged.

By torch.distributed as `torchrun` or Spark's TorchDistributor starts it. One sum over all gradients an update: a
population is a few megabytes, so that there is nothing for DistributedDataParallel's buckets to overlap with, and what
it wraps would no longer be the function that one process calls.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import InputError


@dataclass(frozen=True)
class Group:
    """The processes of one training; alone by default."""

    rank: int = 0
    size: int = 1

    def check(self, batch_size: int) -> None:
        """Raise InputError where minibatches cannot be shared equally."""
        if batch_size % self.size:
            raise InputError(
                f"train.batch_size is {batch_size}, which {self.size} processes cannot share "
                "equally; choose a multiple of their number."
            )

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of `rows` [P, B]: [P, B / size]."""
        return rows[:, self.rank :: self.size]

    def average(self, parts: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place; all in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([each.reshape(-1) for each in parts])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for each in parts:
            each.copy_(flat[start : start + each.numel()].view_as(each))
            start += each.numel()


@contextmanager
def group() -> Iterator[Group]:
    """The group that the launcher's environment names (RANK, WORLD_SIZE, ...), or one process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    # NCCL where every process has a device of its own, else gloo over the loopback or the network.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
