"""Several processes that train one population: each takes its share of every minibatch, gradients are averaged.

By torch.distributed as `torchrun` or Spark's TorchDistributor starts it. One sum over all gradients an update: a
population is a few megabytes, so that there is nothing for DistributedDataParallel's buckets to overlap with, and what
it wraps would no longer be the function that one process calls.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
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

    def gathered(self, part: Tensor) -> Tensor:
        """[size, ...] what each process has for `part` [...], by rank."""
        if self.size == 1:
            return part.unsqueeze(0)
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.stack(parts)

    def first(self, told: bytes) -> bytes:
        """What the first process has for `told`, at least a byte, whatever this one has."""
        if self.size == 1:
            return told
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        length = torch.tensor([len(told)], device=device)
        dist.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.rank == 0:
            content.copy_(torch.frombuffer(bytearray(told), dtype=torch.uint8))
        dist.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()

    def meet(self) -> None:
        """Wait until every process is here; where one has failed, so does this."""
        if self.size > 1:
            dist.barrier()


def size_of(environment: Mapping[str, str]) -> int:
    """The number of processes that the launcher's environment names (WORLD_SIZE); 1 without a launcher."""
    return int(environment.get("WORLD_SIZE", "1"))


def device_of(name: str, environment: Mapping[str, str]) -> torch.device:
    """The device that `train.device` means here: of several processes each takes the CUDA device of its LOCAL_RANK.

    Raises InputError for cuda where there is none, for several processes whose launcher does not number those of a
    machine, and where a machine has fewer devices than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is cuda, but torch sees no such device here; use auto or cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if size_of(environment) == 1:
        return torch.device("cuda")
    missing = [key for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if key not in environment]
    if missing:
        raise InputError(
            f"{missing[0]}: not in the environment, so this process cannot tell which CUDA device is its own; start "
            "the processes by torchrun, or set train.device = 'cpu'."
        )
    processes, devices = int(environment["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > devices:
        raise InputError(
            f"{processes} processes of this machine need a CUDA device each, and torch sees {devices} here; start "
            f"{devices} (torchrun --nproc-per-node, or --spark-processes), or set train.device = 'cpu'."
        )
    return torch.device("cuda", int(environment["LOCAL_RANK"]))


@contextmanager
def group(device: str) -> Iterator[Group]:
    """The group that the launcher's environment names (RANK, WORLD_SIZE, ...), or one process alone.

    `device` is `train.device`: on CUDA devices gradients are exchanged by NCCL, else by gloo. Raises InputError as
    `device_of` does.
    """
    size, own = size_of(os.environ), device_of(device, os.environ)
    if size == 1:
        yield Group()
        return
    if own.type == "cuda":
        # What names no device, and a graph that is recorded, goes to the current one.
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def check_alone(command: str) -> None:
    """Raise InputError where a launcher started several processes of a command that none of them would share."""
    size = size_of(os.environ)
    if size > 1:
        raise InputError(
            f"{command}: started as {size} processes (WORLD_SIZE), each of which would do all of it and write to the "
            f"same folder; run it as one process, `tactful {command} CONFIG` without torchrun."
        )
