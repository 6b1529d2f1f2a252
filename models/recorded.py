"""Work that is the same time after time: on a CUDA device recorded as one graph, and replayed."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
WARM_UP = 3
"""Calls before one is recorded: libraries choose their kernels and take their memory in the first ones."""


class Recorded(Generic[Made]):
    """`work(rows)`, the same every time; on a CUDA device its kernels are recorded once and then launched together.

    An update of a small network is a hundred kernels of microseconds each, which take longer to launch one by one than
    to run. `work` changes its tensors in place, and what differs between calls it reads from tensors: from `rows`, of
    which it is given a copy that stays where it is, and from those that its caller fills before. What it returns is
    overwritten by the next call.
    """

    def __init__(self, device: torch.device, precision: Precision = "float32") -> None:
        # The work is no part of this: its owner would be one of its own, and a graph that only the collector ends does
        # so while another one is recorded.
        self.device, self.precision = device, precision
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rows = torch.empty(0)
        self.made: tuple[Made, ...] = ()

    def __call__(self, work: Callable[[Tensor], Made], rows: Tensor) -> Made:
        if self.device.type != "cuda":
            return work(rows)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._aside(work, rows)
        if self.graph is None:
            return self._record(work, rows)
        self.rows.copy_(rows)
        self.graph.replay()
        return self.made[0]

    def _aside(self, work: Callable[[Tensor], Made], rows: Tensor) -> Made:
        # On a stream of its own, as for what is recorded: autograd remembers where a parameter was first used.
        here = torch.cuda.current_stream(self.device)
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside), products(self.precision):
            made = work(rows)
        here.wait_stream(aside)
        return made

    def _record(self, work: Callable[[Tensor], Made], rows: Tensor) -> Made:
        self.rows, graph = rows.clone(), torch.cuda.CUDAGraph()
        with _nothing_collected(), torch.cuda.graph(graph), products(self.precision):
            made = work(self.rows)
        self.graph, self.made = graph, (made,)
        # Recorded is not yet done.
        graph.replay()
        return made


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """An older graph that is collected while one is recorded would end that one too (pytorch/pytorch#161037)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """How a CUDA device multiplies matrices of 32-bit numbers: with all 24 bits of their fractions, with 11 (tf32), or
    rounded to 8, activations with them (bf16). Sums are 32-bit numbers always."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        # The cache of rounded weights would outlive the update that changes them.
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
