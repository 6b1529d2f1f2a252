"""Members of a population that are updated together, and as many such blocks at a time as there are threads."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Batch, Draws, Feed, Resident
from models.distributed import Group
from models.learners import Networks, Terms, ddqn_cql, iql
from models.members import Member, Settings
from models.network import Population, initial
from models.optimise import Descent, follow
from models.recorded import Recorded, products
from models.training import TrainConfig

LAYER_BYTES = 2**23
"""Of a layer's activations, at most, that a CPU thread computes together: the more, the fewer operations it launches,
for which threads wait on Python and on one another."""
FREED_BYTES = 31 * 2**20
"""glibc learns from blocks of up to 32 MiB."""


def terms_of(
    loss: Callable[[Networks, Batch, Settings], Terms], networks: Networks, data: Resident, settings: Settings,
    rows: Tensor,
) -> tuple[Terms, Batch]:  # fmt: skip
    """The terms of a loss on the transitions at `rows`, and those transitions: what a compiler is given."""
    batch = data.at(rows, settings.gamma).expand(networks.online.members)
    return loss(networks, batch, settings), batch


class Block:
    """Members of one kind, their networks, and their descent."""

    def __init__(self, members: Sequence[Member], networks: Networks, draws: Draws, config: TrainConfig) -> None:
        """`draws`: a stream of minibatches for each member, or one that all share."""
        device = networks.online.mean.device
        self.members = members
        self.networks = networks
        self.draws = draws
        self.settings = Settings.of(members, device)
        self.descent = Descent(networks.trained, [each.learning_rate for each in members], config.steps)
        self.loss = iql if networks.value is not None else ddqn_cql
        rates = {each.target_rate for each in members}
        self.target_rate: Tensor | float = rates.pop() if len(rates) == 1 else self.settings.target_rate
        self.terms = torch.compile(terms_of) if config.compile and device.type == "cuda" else terms_of
        self.recorded: Recorded[tuple[Terms, Batch]] = Recorded(device, config.precision)

    def update(self, step: int, group: Group) -> tuple[Terms, Batch]:
        """Update number `step` of every member, and what it was made from: to be read before the next one."""
        rows = group.share(self.draws.at(step))
        self.descent.begin(step)
        if group.size == 1:
            return self.recorded(self.single, rows)
        with products(self.recorded.precision) if rows.is_cuda else nullcontext():
            return self.single(rows, group)

    def single(self, rows: Tensor, group: Group | None = None) -> tuple[Terms, Batch]:
        """The update that was begun, from the transitions at `rows`, operation by operation."""
        terms, batch = self.terms(self.loss, self.networks, self.draws.feeds[0].data, self.settings, rows)
        self.descent.step(terms.loss, group)
        follow(self.networks.target, self.networks.online, self.target_rate)
        return terms.detached(), batch

    def acting(self, index: int) -> tuple[Population, NDArray[np.float64]]:
        """The network that acts for one member, a copy on the CPU, and the [K] weights of its heads."""
        member = self.members[index]
        if member.actor and self.networks.actor is not None:
            return self.networks.actor.member(index), np.ones(1)
        return self.networks.online.member(index), member.scales.inner

    def parts(self) -> dict[str, Tensor]:
        """Everything that an update changes, by name; each leads with P."""
        named = {f"{name}.{key}": part for name, network in vars(self.networks).items() if network is not None
                 for key, part in network.named_parameters()}  # fmt: skip
        for name, moments in (("first", self.descent.first), ("second", self.descent.second)):
            named |= {f"{name}.{place}": part for place, part in enumerate(moments)}
        return named


def blocks_of(
    members: Sequence[Member],
    config: TrainConfig,
    feed: Feed,
    level: Tensor,
) -> list[Block]:
    """The members in their order, neighbours of one kind together; on a CPU as many as LAYER_BYTES hold, and few enough
    for every thread to have a block.

    `level` [P, K] is what each member's heads start at, in units of sigma.
    """
    device, actions, widest = feed.data.state.device, int(feed.data.legal.shape[1]), max(config.hidden)
    room = max(1, LAYER_BYTES // (4 * widest * config.batch_size))
    most = len(members) if device.type == "cuda" else min(room, -(-len(members) // config.threads))
    found, start = [], 0
    for stop in range(1, len(members) + 1):
        first = members[start]
        if stop < len(members) and stop - start < most:
            following = members[stop]
            if (following.learner.kind == "iql", following.actor) == (first.learner.kind == "iql", first.actor):
                continue
        those = members[start:stop]
        numbers = [each.draws for each in those]
        streams = numbers[:1] if len(set(numbers)) == 1 else numbers
        draws = Draws([feed] * len(streams), streams, config.batch_size)
        networks = _networks(those, config.hidden, level[start:stop], actions, device)
        found.append(Block(those, networks, draws, config))
        start = stop
    return found


def _networks(
    members: Sequence[Member], hidden: Sequence[int], level: Tensor, actions: int, device: torch.device
) -> Networks:
    scales = members[0].scales
    mean, std, sigma = (torch.from_numpy(each).float() for each in (scales.mean, scales.std, scales.sigma))
    nothing, one = torch.zeros(1), torch.ones(1)
    seeds = [each.seed for each in members]
    online = initial(seeds, hidden, mean, std, torch.zeros_like(sigma), sigma, actions, level).to(device)
    target = copy.deepcopy(online).requires_grad_(False)
    if members[0].learner.kind != "iql":
        return Networks(online, target)
    value = initial([seed + 1 for seed in seeds], hidden, mean, std, torch.zeros_like(sigma), sigma, 1, level)
    actor = initial([seed + 2 for seed in seeds], hidden, mean, std, nothing, one, actions)
    return Networks(online, target, value.to(device), actor.to(device) if members[0].actor else None)


@contextmanager
def abreast(blocks: Sequence[Block], threads: int, group: Group) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` for work on `blocks`: on a CPU as many at a time as there are threads, each on one of its own.

    Split between threads, every operation would wait for the slower one. Processes that share minibatches take one
    block after another, for all must exchange gradients in one order.
    """
    on_cpu = blocks[0].networks.online.mean.device.type == "cpu"
    workers = min(threads, len(blocks)) if on_cpu and group.size == 1 else 1
    if on_cpu:
        # glibc returns what is freed to the system, to be cleared and mapped anew in the next update, where it is more
        # than twice the largest block that was freed before: so it is shown one.
        torch.empty(FREED_BYTES, dtype=torch.uint8)
    if workers == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads // workers)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
