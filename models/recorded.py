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
    """`work(rows)`; on a CUDA device its kernels are recorded once and then launched together, call after call.

    An update of a small network is a hundred kernels of microseconds each, which take longer to launch one by one than
    to run. `work` changes its tensors in place, and what differs between calls it reads from tensors: from `rows`, of
    which it is given a copy that stays where it is, and from those that its caller fills before. What it returns is
    overwritten by the next call.
    """

    def __init__(self, work: Callable[[Tensor], Made], device: torch.device, precision: Precision = "float32") -> None:
        self.work, self.device, self.precision = work, device, precision
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rows = torch.empty(0)
        self.made: Made | None = None

    def __call__(self, rows: Tensor) -> Made:
        if self.device.type != "cuda":
            return self.work(rows)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._aside(rows)
        if self.graph is None or self.made is None:
            return self._record(rows)
        self.rows.copy_(rows)
        self.graph.replay()
        return self.made

    def _aside(self, rows: Tensor) -> Made:
        # On a stream of its own, as for what is recorded: autograd remembers where a parameter was first used.
        here, aside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside), products(self.precision):
            made = self.work(rows)
        here.wait_stream(aside)
        return made

    def _record(self, rows: Tensor) -> Made:
        self.rows, self.graph = rows.clone(), torch.cuda.CUDAGraph()
        with _no_garbage(), torch.cuda.graph(self.graph), products(self.precision):
            self.made = self.work(self.rows)
        # Recorded is not yet done.
        self.graph.replay()
        return self.made


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing is collected meanwhile: an older graph that ends while one is recorded would end that one too."""
    gc.collect()
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
