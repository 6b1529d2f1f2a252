"""Transitions that do not fit: one bucket of whole users after another passes through a buffer on the device.

The buffer has K places of equal size, each for a bucket. At every turn the next bucket, read ahead by a thread, takes
the place of the oldest, so that each stays for K turns; minibatches are drawn from all that the buffer holds. A turn
lasts as long as W / K of W rows take to draw, the W that may be drawn during it: a row is then drawn 1 / K times a turn
and once a stay on average, whatever the sizes of its bucket and of those beside it. Buckets come in a new order in
every pass over the log.

Exact is that all W rows of a turn are equally likely, and that all stays are K turns but those of the first K - 1
buckets, which are there from the beginning. Approximate is how long turns last: they begin at whole blocks of `AHEAD`
updates, half a block off at most, an error that is not carried on and differs from pass to pass. Where a bucket has
fewer rows than a block draws, turns last one block on average, and a row is drawn more than once a stay, as often as
every other.

Memory is that of the buffer and of two buckets, however many there are. Which rows the buffer holds is a function of
the update's number alone.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from models.batch import AHEAD, Resident, rows_of
from models.errors import InputError
from models.members import Member
from models.reach import Extent, Reach, most_coinciding
from models.scaling import Moments, Units, check_kept, extremes
from models.table import Shards, Transitions


@dataclass(frozen=True)
class Survey:
    """What one pass over all buckets says before anything is learned."""

    units: Units
    rows: dict[int, int]
    """Rows of each bucket that has any training row with a target."""
    target: dict[int, int]
    """How many of them those are."""
    fingerprint: str = ""
    """Of the rows of all buckets."""


def survey(shards: Shards, half: bool = False) -> Survey:
    """The units of the training rows and the size of every bucket.

    Raises InputError where no row can be learned from, as `Moments.units` does and, with `half` for half precision, as
    `check_kept` does: later a run would be cut short by the bucket that is at fault.
    """
    unknown = np.full(len(shards.contract.features), np.nan, dtype=np.float32)
    least, most = unknown, unknown
    moments, rows, target, digest = Moments(shards.contract), {}, {}, hashlib.sha256()
    for bucket in shards.buckets:
        table = shards.read(bucket)
        digest.update(table.fingerprint.encode())
        training = rows_of(table, "train")
        moments.add(table, training.all)
        low, high = extremes(table)
        least, most = np.fmin(least, low), np.fmax(most, high)
        if training.target.any():
            rows[bucket], target[bucket] = len(table.user), int(training.target.sum())
    if not rows:
        raise InputError(
            f"{shards.path}: no training row is followed by another of its user; a longer log, or more users in the "
            "train split (etl.split), are needed."
        )
    units = moments.units()
    check_kept(shards.contract, units, least, most, half)
    return Survey(units, rows, target, digest.hexdigest()[:16])


def reach_of(members: Sequence[Member], shards: Shards, found: Survey) -> list[Reach]:
    """What discounted rewards can reach, of each member, by a pass over all buckets; see `Reach`."""
    extents: list[Extent] = []
    for bucket in found.rows:
        table = shards.read(bucket)
        training = rows_of(table, "train")
        rows, coinciding = training.target, most_coinciding(table, training.all)
        reward = torch.from_numpy(table.reward[rows] / found.units.sigma).float()
        elapsed, stops = torch.from_numpy(table.elapsed_days[rows]).float(), torch.from_numpy(table.terminal[rows])
        here = [Extent.of(each, reward, elapsed, stops, coinciding) for each in members]
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


class Pool:
    """A `Feed` whose buffer holds at most `capacity` rows at a time; a context that ends its reading thread."""

    def __init__(
        self, shards: Shards, found: Survey, capacity: int, batch_size: int, seed: int, device: torch.device,
        half: bool = False,
    ) -> None:  # fmt: skip
        """Raises InputError where the largest bucket is more than half of `capacity`."""
        largest = max(found.rows, key=lambda bucket: found.rows[bucket])
        most, total = found.rows[largest], sum(found.rows.values())
        if 2 * most > capacity:
            raise InputError(
                f"train.stream_rows is {capacity:,}, but bucket {largest} alone has {most:,} rows: a "
                "buffer holds two buckets or more; raise it, or make the table with more etl.buckets."
            )
        self.shards, self.found, self.seed, self.device, self.half = shards, found, seed, device, half
        self.whole = total <= capacity
        self.slots = len(found.rows) if self.whole else capacity // most
        self.capacity = total if self.whole else self.slots * most
        self.orders: list[list[int]] = []
        first = [found.rows[self._visited(visit)] for visit in range(self.slots)]
        self.starts = [0, *accumulate(first)][:-1] if self.whole else list(range(0, self.capacity, most))
        mean = sum(found.target.values()) / len(found.target)
        # Rows of a turn to an update of it: K minibatches, or as many rows as let an average turn last for a block.
        self.pace = self.slots * min(batch_size, mean / AHEAD)
        self.begins, self.passed = [0], 0
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
        """The updates at which buckets are replaced; none where the buffer holds everything."""
        if self.whole:
            return ()
        self._turn(steps)
        return sorted({begin for begin in self.begins if 0 < begin < steps})

    def advance(self, step: int) -> None:
        """Load what update `step` draws from and is not there yet, and begin to read what comes next."""
        turn = 0 if self.whole else self._turn(step)
        held = self._held(turn)
        for slot in held:
            if slot.visit not in self.eligible:
                self._load(slot)
        self.eligible = {slot.visit: self.eligible[slot.visit] for slot in held}
        self.places = torch.cat([slot.start + self.eligible[slot.visit] for slot in held]).to(self.device)
        following = turn + self.slots
        if not self.whole and (self.ahead is None or self.ahead[0] != following):
            self.ahead = (following, self.reader.submit(self._read, self._visited(following)))

    def _turn(self, step: int) -> int:
        """The turn that update `step` is in; the last of those that begin there."""
        while self.begins[-1] <= step:
            self.passed += sum(self.found.target[slot.bucket] for slot in self._held(len(self.begins) - 1))
            self.begins.append(AHEAD * round(self.passed / self.pace / AHEAD))
        return bisect_right(self.begins, step) - 1

    def _held(self, turn: int) -> list[Slot]:
        """What the buffer holds during a turn: K buckets in the order of their visits."""
        found = []
        for visit in range(turn, turn + self.slots):
            bucket = self._visited(visit)
            found.append(Slot(visit, bucket, self.starts[visit % self.slots], self.found.rows[bucket]))
        return found

    def _visited(self, visit: int) -> int:
        """The bucket of a visit: all of them in every pass, in an order of its own.

        Only those of one part of a pass, at most n - K + 1 of n, change places: so none is in the buffer twice.
        """
        buckets = list(self.found.rows)
        number, place = divmod(visit, len(buckets))
        while len(self.orders) <= number:
            rng = np.random.default_rng([self.seed, len(self.orders)])
            former = self.orders[-1] if self.orders else rng.permutation(buckets).tolist()
            parts = np.array_split(former, -(-len(buckets) // (len(buckets) - self.slots + 1)))
            self.orders.append(np.concatenate([rng.permutation(part) for part in parts]).tolist())
        return self.orders[number][place]

    def _read(self, bucket: int) -> tuple[Resident, Tensor]:
        """The bucket as tensors on the CPU, and its rows that may be drawn."""
        table = self.shards.read(bucket)
        data = Resident.of(table, self.found.units, torch.device("cpu"), self.half)
        return data, torch.from_numpy(np.flatnonzero(rows_of(table, "train").target))

    def _load(self, slot: Slot) -> None:
        if self.ahead is None or self.ahead[0] != slot.visit:
            # By the reader too: one bucket is read at a time.
            self.ahead = (slot.visit, self.reader.submit(self._read, slot.bucket))
        (data, eligible), self.ahead = self.ahead[1].result(), None
        for field in fields(data):
            place = getattr(self.data, field.name)[slot.start : slot.start + slot.rows]
            place.copy_(getattr(data, field.name), non_blocking=True)
        self.eligible[slot.visit] = eligible


def sampled(shards: Shards, rows: int, seed: int) -> Transitions:
    """Whole buckets in random order, until there are so many rows: what needs them all at once learns from these."""
    order: list[int] = np.random.default_rng(seed).permutation(shards.buckets).tolist()
    found, _ = shards.together(order, rows)
    return found
