"""Transitions that do not fit: one bucket of whole users after another passes through a buffer on the device.

The buffer is a ring of rows. Every so many updates (as many as draw a bucket's number of rows) the next bucket, read
ahead by a thread, takes the place of the oldest; minibatches are drawn from all that the buffer holds. So in one pass
over the log each row is drawn once on average, beside rows of other users, and memory is that of the buffer and of two
buckets, however many there are. Which rows the buffer holds is a function of the update's number alone.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.batch import AHEAD, Resident, rows_of
from models.errors import InputError
from models.members import Member
from models.scaling import Moments, Units
from models.table import Shards, Transitions
from models.watch import Extent, Reach


@dataclass(frozen=True)
class Survey:
    """What one pass over all buckets says before anything is learned."""

    units: Units
    rows: dict[int, int]
    """Rows of each bucket that has any training row with a target."""
    target: dict[int, int]
    """How many of them those are."""


def survey(shards: Shards) -> Survey:
    """The units of the training rows and the size of every bucket.

    Raises InputError where no row can be learned from, and as `Moments.units` does.
    """
    moments, rows, target = Moments(shards.contract), {}, {}
    for bucket in shards.buckets:
        table = shards.read(bucket)
        training = rows_of(table, "train")
        moments.add(table, training.all)
        if training.target.any():
            rows[bucket], target[bucket] = len(table.user), int(training.target.sum())
    if not rows:
        raise InputError(
            f"{shards.path}: no training row is followed by another of its user; a longer log, or more users in the "
            "train split (etl.split), are needed."
        )
    return Survey(moments.units(), rows, target)


def reach_of(members: Sequence[Member], shards: Shards, found: Survey) -> list[Reach]:
    """What discounted rewards can reach, of each member, by a pass over all buckets; see `Reach`."""
    extents: list[Extent] = []
    for bucket in found.rows:
        table = shards.read(bucket)
        rows = rows_of(table, "train").target
        reward = torch.from_numpy(table.reward[rows] / found.units.sigma).float()
        elapsed, stops = torch.from_numpy(table.elapsed_days[rows]).float(), torch.from_numpy(table.terminal[rows])
        here = [Extent.of(each, reward, elapsed, stops) for each in members]
        extents = [one + other for one, other in zip(extents, here, strict=True)] if extents else here
    return [Reach.of(member, extent) for member, extent in zip(members, extents, strict=True)]


@dataclass(frozen=True)
class Slot:
    """A bucket in the buffer."""

    visit: int
    """Counted over all buckets."""
    bucket: int
    start: int
    rows: int

    def meets(self, other: "Slot") -> bool:
        """Whether the two would lie on each other."""
        return self.start < other.start + other.rows and other.start < self.start + self.rows


class Pool:
    """A `Feed` whose buffer holds `capacity` rows at a time; a context that ends its reading thread."""

    def __init__(
        self, shards: Shards, found: Survey, capacity: int, batch_size: int, seed: int, device: torch.device,
        half: bool = False,
    ) -> None:  # fmt: skip
        """Raises InputError where the largest bucket is more than half of `capacity`."""
        largest = max(found.rows, key=lambda bucket: found.rows[bucket])
        if 2 * found.rows[largest] > capacity:
            raise InputError(
                f"train.stream_rows is {capacity:,}, but bucket {largest} alone has {found.rows[largest]:,} rows: a "
                "buffer holds two buckets or more; raise it, or make the table with more etl.buckets."
            )
        self.shards, self.found, self.seed, self.device, self.half = shards, found, seed, device, half
        mean = sum(found.target.values()) / len(found.target)
        self.every = AHEAD * max(1, round(mean / batch_size / AHEAD))
        self.capacity = min(capacity, sum(found.rows.values()))
        self.order: list[int] = np.random.default_rng(seed).permutation(list(found.rows)).tolist()
        self.turn = self.visits = 0
        self.held: list[Slot] = []
        while self.visits < len(found.rows) and not any(each.meets(self._next()) for each in self.held):
            self._put(self._next())
        self.eligible: dict[int, Tensor] = {}
        self.reader = ThreadPoolExecutor(1)
        self.ahead: tuple[int, Future[tuple[Resident, Tensor]]] | None = None
        contract = shards.contract
        s, a, k = len(contract.features), len(contract.actions), len(contract.rewards)
        state = torch.float16 if half else torch.float32

        def room(*width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(self.capacity, *width, dtype=dtype, device=device)

        self.data = Resident(
            state=room(s, dtype=state),
            legal=room(a, dtype=torch.bool),
            action=room(dtype=torch.uint8),
            reward=room(k, dtype=torch.float32),
            elapsed=room(dtype=torch.float32),
            stops=room(dtype=torch.bool),
            follows=room(dtype=torch.bool),
        )
        self.places = torch.empty(0, dtype=torch.int64)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def turns(self, steps: int) -> Sequence[int]:
        """Every so many updates, unless the buffer holds everything."""
        whole = self.capacity == sum(self.found.rows.values())
        return () if whole else range(self.every, steps, self.every)

    def advance(self, step: int) -> None:
        """Load what update `step` draws from and is not there yet, and begin to read what comes next."""
        while self.turn < step // self.every and self.turns(step + 1):
            self._put(self._next())
            self.turn += 1
        for slot in self.held:
            if slot.visit not in self.eligible:
                self._load(slot)
        self.eligible = {slot.visit: self.eligible[slot.visit] for slot in self.held}
        self.places = torch.cat([slot.start + self.eligible[slot.visit] for slot in self.held]).to(self.device)
        bucket = self._next().bucket
        if self.turns(step + self.every + 1) and (self.ahead is None or self.ahead[0] != bucket):
            self.ahead = (bucket, self.reader.submit(self._read, bucket))

    def _next(self) -> Slot:
        """The bucket whose turn it is, behind the newest; from the start of the buffer where it does not fit there."""
        bucket = self._visited(self.visits)
        rows, end = self.found.rows[bucket], self.held[-1].start + self.held[-1].rows if self.held else 0
        return Slot(self.visits, bucket, end if end + rows <= self.capacity else 0, rows)

    def _put(self, slot: Slot) -> None:
        self.held = [*(each for each in self.held if not each.meets(slot)), slot]
        self.visits += 1

    def _visited(self, visit: int) -> int:
        """The bucket of a visit: in one random order, pass after pass, so that none is in the buffer twice."""
        return self.order[visit % len(self.order)]

    def _read(self, bucket: int) -> tuple[Resident, Tensor]:
        """The bucket as tensors on the CPU, and its rows that may be drawn."""
        table = self.shards.read(bucket)
        data = Resident.of(table, self.found.units, torch.device("cpu"), self.half)
        return data, torch.from_numpy(np.flatnonzero(rows_of(table, "train").target))

    def _load(self, slot: Slot) -> None:
        if self.ahead is not None and self.ahead[0] == slot.bucket:
            (data, eligible), self.ahead = self.ahead[1].result(), None
        else:
            data, eligible = self._read(slot.bucket)
        for field in fields(data):
            place = getattr(self.data, field.name)[slot.start : slot.start + slot.rows]
            place.copy_(getattr(data, field.name), non_blocking=True)
        self.eligible[slot.visit] = eligible


def sampled(shards: Shards, rows: int, seed: int) -> Transitions:
    """Whole buckets in random order, until there are so many rows: what needs them all at once learns from these."""
    order: list[int] = np.random.default_rng(seed).permutation(shards.buckets).tolist()
    found, _ = shards.together(order, rows)
    return found
