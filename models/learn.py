"""The loop in which a population learns, and going on after a kill."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import checkpoint
from models.batch import Feed, Held
from models.blocks import Block, abreast, blocks_of
from models.distributed import Group
from models.errors import InputError
from models.members import Member
from models.optimise import counted
from models.reach import Reach
from models.training import TrainConfig
from models.watch import Judge, Kept, Point, Seen, Watch

LOG = logging.getLogger("tactful")
CURVE_POINTS = 50


@dataclass(frozen=True)
class Keep:
    """Which run this is, and where it goes on from if it is killed."""

    path: Path | None
    """None where nothing is kept."""
    identity: dict[str, Any]
    """What must be equal for a checkpoint, or another process, to be of this run: data, contract, settings, members."""


def learn(
    members: Sequence[Member],
    config: TrainConfig,
    feed: Feed,
    reach: Sequence[Reach],
    held_out: Held | None = None,
    judge: Judge | None = None,
    group: Group | None = None,
    keep: Keep | None = None,
    on_point: Callable[[str, int, Point], None] | None = None,
    progress: bool = False,
) -> list[Seen]:
    """Train the members on what the feed gives; what was seen of each, in their order.

    `reach` of each member, `held_out` the rows of the validation curves, `judge` what checks evaluate by. With the path
    of `keep` the state is written at every check, and a run of the same identity goes on from there, to the same bits
    on a CPU. Of several processes the first one writes and reads it, and tells the others: they need not share a disk.

    Raises TransientError where a checkpoint finds the disk full, InputError where processes are not of one run.
    """
    group = group or Group()
    group.check(config.batch_size)
    blocks = blocks_of(members, config, feed, torch.stack([each.level for each in reach]))
    places = np.cumsum([0, *(len(block.members) for block in blocks)]).tolist()
    watch = Watch(reach, held_out, judge, config.patience)
    checks, measured = marks(config.steps, config.checks), marks(config.steps, CURVE_POINTS)
    start = _resumed(keep, blocks, watch, group) if keep else 0
    ends = [end for end in sorted({*checks, *measured, *feed.turns(config.steps)}) if end > start]

    def go_on(block: Block, place: int, first: int, last: int) -> None:
        # A block's weights and moments stay in the cache from one update to the next.
        for step in range(first, last):
            terms, batch = block.update(step, group)
        if last in measured or last in checks:
            watch.look(last, block, place, terms, batch, group)
        if last in checks:
            watch.check(last, block, place)

    with abreast(blocks, config.threads, group) as each:
        for number in counted(len(ends), "learning", progress):
            first, last = [start, *ends][number : number + 2]
            feed.advance(first)
            list(each(go_on, blocks, places, repeat(first), repeat(last)))
            if on_point:
                _tell(members, watch, last, on_point)
            if keep and keep.path and last in checks and group.rank == 0:
                _save(keep.path, keep.identity, blocks, watch, last)
            # Machines may round what they judge by differently, and none may wait for one that went.
            if group.first(b"more" if watch.running else b"done") == b"done":
                break
    return watch.seen


def marks(steps: int, points: int) -> set[int]:
    """The updates, counted from 1, at which something happens `points` times, evenly; the last among them."""
    return {-(-steps * (point + 1) // points) for point in range(points)}


def _tell(members: Sequence[Member], watch: Watch, step: int, on_point: Callable[[str, int, Point], None]) -> None:
    for member, seen in zip(members, watch.seen, strict=True):
        if seen.curve and seen.curve[-1]["step"] == step:
            on_point(member.label, step, {key: value for key, value in seen.curve[-1].items() if key != "step"})


def _save(path: Path, identity: dict[str, Any], blocks: Sequence[Block], watch: Watch, step: int) -> None:
    # By member: which of them are updated together depends on threads and device, which another process may change.
    tensors = {
        f"member{m}.now.{name}": part[index]
        for m, (block, index) in enumerate(_owners(blocks))
        for name, part in block.parts().items()
    }
    facts: list[dict[str, Any]] = []
    for m, seen in enumerate(watch.seen):
        facts.append({"curve": seen.curve, "stopped": seen.stopped, "done": seen.done, "misses": seen.misses})
        if seen.best is not None:
            tensors[f"member{m}.best"] = torch.from_numpy(seen.best)
        if seen.kept is not None:
            facts[-1]["kept"] = {"step": seen.kept.step, "gain": seen.kept.gain, "error": seen.kept.standard_error}
            tensors[f"member{m}.weights"] = torch.from_numpy(seen.kept.weights)
            tensors |= {f"member{m}.kept.{name}": part for name, part in seen.kept.network.named_parameters()}
    checkpoint.write(path, tensors, {"identity": identity, "step": step, "members": facts})


def _owners(blocks: Sequence[Block]) -> list[tuple[Block, int]]:
    """The block of each member, and its place there."""
    return [(block, index) for block in blocks for index in range(len(block.members))]


def _left(keep: Keep) -> bytes:
    """The checkpoint that an earlier run of this identity left, or one of no update."""
    if keep.path and keep.path.exists():
        content = keep.path.read_bytes()
        _, facts = checkpoint.parsed(content, str(keep.path))
        if not (differs := _differs(keep.identity, facts["identity"])):
            return content
        LOG.warning("%s: of a run with another %s; training starts anew", keep.path, differs)
    return checkpoint.content({}, {"identity": keep.identity, "step": 0})


def _differs(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """In what two identities differ; empty where they are equal."""
    return "" if mine == other else ", ".join(key for key in mine if other.get(key) != mine[key]) or "make"


def _resumed(keep: Keep, blocks: Sequence[Block], watch: Watch, group: Group) -> int:
    """The update that the first process's checkpoint was written after, its state restored; 0 where it has none.

    Raises InputError where this process is of another run than the first.
    """
    tensors, facts = checkpoint.parsed(group.first(_left(keep) if group.rank == 0 else b""), str(keep.path))
    if differs := _differs(keep.identity, facts["identity"]):
        raise InputError(
            f"process {group.rank} has another {differs} than the first one; give every process the same "
            "configuration and the same transitions."
        )
    if not facts["step"]:
        return 0
    owners = _owners(blocks)
    with torch.no_grad():
        for m, (block, index) in enumerate(owners):
            for name, part in block.parts().items():
                part[index].copy_(tensors[f"member{m}.now.{name}"])
    for m, (seen, told, (block, index)) in enumerate(zip(watch.seen, facts["members"], owners, strict=True)):
        seen.curve, seen.stopped, seen.done, seen.misses = (told[key] for key in ("curve", "stopped", "done", "misses"))
        if (best := tensors.get(f"member{m}.best")) is not None:
            seen.best = best.numpy()
        if kept := told.get("kept"):
            network, _ = block.acting(index)
            for name, part in network.named_parameters():
                part.copy_(tensors[f"member{m}.kept.{name}"])
            weights = tensors[f"member{m}.weights"].numpy()
            seen.kept = Kept(network, weights, kept["step"], kept["gain"], kept["error"])
    LOG.info("%s: goes on after update %d", keep.path, facts["step"])
    return int(facts["step"])
