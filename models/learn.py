"""A population while it learns: blocks of members, what is watched of each, and the loop."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import checkpoint
from models.batch import Batch, Draws, Feed, Held, stacked
from models.distributed import Group
from models.learners import Networks, Terms, ddqn_cql, iql
from models.losses import discount_of, horizon_of
from models.members import Member, Settings
from models.network import Population, initial, predicted
from models.optimise import Descent, counted, follow
from models.training import TrainConfig

Act = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
"""(q [N, A], behaviour logits [N, A], legal [N, A]) -> probabilities [N, A]: how a learned policy is deployed."""
LOG = logging.getLogger("tactful")
Point = dict[str, float]
CURVE_POINTS = 50
CACHE_BYTES = 2**21
"""Of activations, about, that a core keeps near: members beyond that are updated after one another on a CPU."""
FREED_BYTES = 31 * 2**20
"""glibc learns from blocks of up to 32 MiB."""


class Assess(Protocol):
    """What a policy earns on the validation split, estimated from the log."""

    @property
    def rows(self) -> NDArray[np.bool_]:
        """[N] rows of the table that it needs the policy's probabilities at."""

    def __call__(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """[U, K] what each user contributes, raw units; the estimate is their mean. `probabilities` [n, A]."""


@dataclass(frozen=True)
class Judge:
    """The validation split as checks see it; n rows of U users."""

    assess: Assess
    act: Act
    state: Tensor
    """[n, S] normalised."""
    logits: NDArray[np.float64]
    """[n, A] of the behaviour network."""
    legal: NDArray[np.bool_]
    """[n, A]."""

    def gains(self, network: Population, weights: NDArray[np.float64], member: Member) -> NDArray[np.float64]:
        """[U] contribution of each user to the gain of one acting network, in the unit of the weighted reward."""
        q = predicted(network, self.state)[0] @ weights
        found = self.assess(self.act(q, self.logits, self.legal))
        gains: NDArray[np.float64] = found @ member.scales.weights
        return gains


# Members that are updated together.


class Block:
    """Members of one kind, their networks, and their descent."""

    def __init__(self, members: Sequence[Member], networks: Networks, draws: Sequence[Draws], steps: int) -> None:
        """`draws`: one stream of minibatches for each member, or one that all share."""
        self.members = members
        self.networks = networks
        self.draws = draws
        self.settings = Settings.of(members, networks.online.mean.device)
        self.descent = Descent(networks.trained, [each.learning_rate for each in members], steps)
        self.loss = iql if networks.value is not None else ddqn_cql

    def update(self, step: int, group: Group) -> tuple[Terms, Batch]:
        """Update number `step` of every member, and what it was made from."""
        rows = group.share(stacked(self.draws, step))
        batch = self.draws[0].feed.data.at(rows, self.settings.gamma).expand(len(self.members))
        terms = self.loss(self.networks, batch, self.settings)
        self.descent.step(step, terms.loss, group)
        follow(self.networks.target, self.networks.online, self.settings.target_rate)
        return terms, batch

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
    """The members in their order, neighbours of one kind together; on a CPU as many as the caches of a core hold, and
    few enough for every thread to have a block.

    `level` [P, K] is what each member's heads start at, in units of sigma.
    """
    device, actions, widest = feed.data.state.device, int(feed.data.legal.shape[1]), max(config.hidden)
    room = max(1, CACHE_BYTES // (4 * widest * config.batch_size))
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
        draws = [Draws(feed, number, config.batch_size) for number in streams]
        found.append(Block(those, _networks(those, config.hidden, level[start:stop], actions, device), draws,
                           config.steps))  # fmt: skip
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


# What is watched of each member.


@dataclass(frozen=True)
class Kept:
    """What a member would act by."""

    network: Population
    """P = 1, on the CPU."""
    weights: NDArray[np.float64]
    """[K] of its heads: q = weights . heads."""
    step: int
    gain: float | None
    """On the validation split, per user-week or decision, in the unit of the weighted reward; None without one."""
    standard_error: float | None


@dataclass
class Seen:
    """One member as it was seen so far."""

    curve: list[Point] = field(default_factory=list)
    stopped: str | None = None
    """Why, where it diverged."""
    done: bool = False
    """Nothing more is kept of it: it diverged, or ran out of patience."""
    kept: Kept | None = None
    best: NDArray[np.float64] | None = None
    """[U] contributions at its best check."""
    misses: int = 0


@dataclass(frozen=True)
class Extent:
    """What rows say of rewards and discounts to one member; those of several parts of a log add."""

    rows: int
    reward: Tensor
    """[K] sum, in units of sigma."""
    largest: Tensor
    """[K] of |r_k|, in units of sigma."""
    least: float
    """Of w~.r."""
    most: float
    """Of w~.r."""
    discount: float
    """Sum of gamma^Delta (1 - terminal)."""
    longest: float
    """The largest gamma^Delta (1 - terminal)."""

    @classmethod
    def of(cls, member: Member, reward: Tensor, elapsed: Tensor, stops: Tensor) -> "Extent":
        """Of n rows: `reward` [n, K] in units of sigma, `elapsed` [n] days, `stops` [n]."""
        weighted = reward @ torch.from_numpy(member.scales.inner).to(reward)
        discount = discount_of(member.gamma_per_day, elapsed, stops)
        return cls(
            rows=len(reward),
            reward=reward.sum(dim=0),
            largest=reward.abs().amax(dim=0),
            least=float(weighted.min()),
            most=float(weighted.max()),
            discount=float(discount.sum()),
            longest=float(discount.max()),
        )

    def __add__(self, other: "Extent") -> "Extent":
        return Extent(
            rows=self.rows + other.rows,
            reward=self.reward + other.reward,
            largest=torch.maximum(self.largest, other.largest),
            least=min(self.least, other.least),
            most=max(self.most, other.most),
            discount=self.discount + other.discount,
            longest=max(self.longest, other.longest),
        )


@dataclass(frozen=True)
class Reach:
    """What discounted rewards can reach, whatever the policy; a member that passes it diverges."""

    low: float
    """Of w~.Q."""
    high: float
    """Of w~.Q."""
    td: float
    """Of the squared TD error, summed over heads."""
    level: Tensor
    """[K] E[r] / (1 - E[discount]), what mean rewards for ever are worth, in units of sigma: where every head starts,
    so that the target network has no distance to travel that is common to every action."""

    @classmethod
    def of(cls, member: Member, extent: Extent) -> "Reach":
        """Bounds from H = 1 / (1 - max discount), the most decisions that any policy's rewards can go on for.

        high = H (max(w~.r, 0) + 1), low = H (min(w~.r, 0) - 1): the standard deviation beyond is what a fit may be off.
        The penalty lifts q over its target by (alpha / 2) |w~|^2 (1 - pi / mu) a decision, pi the softmax of q, so by
        (alpha / 2) |w~|^2 at most; without credit it lowers q by (alpha / 2) |w~|^2 pi / mu, and as some action has
        pi <= mu, the best one by no more than that. td = sum_k (2 H (max |r_k| + 1))^2, a head at one end of its reach
        and its target at the other.
        """
        horizon = horizon_of(extent.longest)
        lift = member.learner.penalised * float(np.square(member.scales.inner).sum()) / 2
        up, down = (lift, 0.0) if member.learner.penalty == "logsumexp" else (0.0, lift)
        return cls(
            low=horizon * (min(extent.least, 0.0) - 1 - down),
            high=horizon * (max(extent.most, 0.0) + 1 + up),
            td=float((2 * horizon * (extent.largest + 1)).square().sum()),
            level=extent.reward / extent.rows * horizon_of(extent.discount / extent.rows),
        )


def reach_within(members: Sequence[Member], feed: Held) -> list[Reach]:
    """The reach of each member on the rows of `feed`."""
    data, rows = feed.data, feed.places
    parts = data.reward[rows], data.elapsed[rows], data.stops[rows]
    return [Reach.of(each, Extent.of(each, *parts)) for each in members]


class Watch:
    """Curves, divergence, and the check that each member is kept at."""

    def __init__(self, reach: Sequence[Reach], held_out: Held | None, judge: Judge | None, patience: int) -> None:
        """`reach` of each of P members; `held_out` measures, `judge` evaluates."""
        self.seen = [Seen() for _ in reach]
        self.reach, self.held_out, self.judge, self.patience = reach, held_out, judge, patience

    @property
    def running(self) -> bool:
        return not all(each.done for each in self.seen)

    @torch.no_grad()
    def look(self, step: int, block: Block, first: int, terms: Terms, batch: Batch, group: Group) -> None:
        """A point of each curve after update `step` (counted from 1) of a block whose members begin at `first`."""
        now = {"td_loss": terms.td.detach(), "cql_gap": terms.gap.detach(), **_told(terms.q.detach(), batch)}
        if self.held_out is not None:
            rows = self.held_out.places.unsqueeze(0)
            unseen = self.held_out.data.at(rows, block.settings.gamma).expand(len(block.members))
            held = block.loss(block.networks, unseen, block.settings)
            now |= {f"validation_{key}": each for key, each in {"td": held.td, **_told(held.q, unseen)}.items()}
        values = torch.stack(list(now.values()), dim=-1)
        group.average([values])
        for index, row in enumerate(values.tolist()):
            point = dict(zip(now, row, strict=True))
            self._record(step, first + index, block.members[index], point)

    def _record(self, step: int, place: int, member: Member, point: Point) -> None:
        seen, reach = self.seen[place], self.reach[place]
        if seen.done:
            return
        wrong = [f"{key} is {value}" for key, value in point.items() if not np.isfinite(value)]
        for key in ("q_low", "q_high"):
            if not reach.low <= point[key] <= reach.high:
                wrong.append(
                    f"the value of the best action reaches {point[key]:.3g} standard deviations of the weighted "
                    f"reward, where the log's rewards, discounted, reach {reach.low:.3g} to {reach.high:.3g}"
                )
        if point["td_loss"] > reach.td:
            wrong.append(f"the TD error is {point['td_loss']:.3g}, where values within reach are off by {reach.td:.3g}")
        if wrong:
            seen.done = True
            seen.stopped = (
                f"{member.label} diverged: at update {step} {wrong[0]}; lower its learning rate "
                f"({member.learning_rate:g}), or look for extreme rewards"
            )
        else:
            seen.curve.append({"step": float(step), **point})

    def check(self, step: int, block: Block, first: int) -> None:
        """Evaluate each member's policy on the validation split, and keep it unless it is clearly worse than its best.

        Clearly: by more than one standard error of their paired difference over users. So the newest of those that
        cannot be told from the best is kept, and luck picks less.
        """
        for index, member in enumerate(block.members):
            seen = self.seen[first + index]
            if seen.done:
                continue
            network, weights = block.acting(index)
            if self.judge is None:
                seen.kept = Kept(network, weights, step, None, None)
                continue
            gains = self.judge.gains(network, weights, member)
            error = float(gains.std(ddof=1) / len(gains) ** 0.5)
            if seen.curve:
                seen.curve[-1] |= {"validation_gain": float(gains.mean())}
            if seen.best is not None and _clearly_less(gains, seen.best):
                seen.misses += 1
                seen.done = 0 < self.patience <= seen.misses
                continue
            seen.misses = 0
            seen.kept = Kept(network, weights, step, float(gains.mean()), error)
            if seen.best is None or gains.mean() > seen.best.mean():
                seen.best = gains


def _clearly_less(gains: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Whether `gains` [U] are below `best` [U] by more than one standard error of their mean paired difference."""
    behind = best - gains
    return bool(behind.mean() > behind.std(ddof=1) / len(behind) ** 0.5)


def _told(q: Tensor, batch: Batch) -> dict[str, Tensor]:
    """[P] each, of q [P, B, A]: mean, least and largest value of the best legal action, and how often it was logged."""
    best, action = q.masked_fill(~batch.legal, -torch.inf).max(dim=-1)
    choice = batch.legal.sum(dim=-1) > 1
    same = ((action == batch.action) & choice).sum(dim=-1) / choice.sum(dim=-1).clamp(min=1)
    return {"mean_q": best.mean(dim=-1), "q_low": best.amin(dim=-1), "q_high": best.amax(dim=-1), "agreement": same}


# The loop.


@dataclass(frozen=True)
class Keep:
    """Where a run that is killed goes on from."""

    path: Path
    identity: dict[str, Any]
    """What must be equal for a checkpoint to be this run's: data, contract, settings, members."""


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

    `reach` of each member, `held_out` the rows of the validation curves, `judge` what checks evaluate by. With `keep`
    the state is written at every check, and a run of the same identity goes on from there, to the same bits on a CPU.

    Raises TransientError where a checkpoint finds the disk full.
    """
    group = group or Group()
    group.check(config.batch_size)
    blocks = blocks_of(members, config, feed, torch.stack([each.level for each in reach]))
    places = np.cumsum([0, *(len(block.members) for block in blocks)]).tolist()
    watch = Watch(reach, held_out, judge, config.patience)
    checks, measured = marks(config.steps, config.checks), marks(config.steps, CURVE_POINTS)
    start = _resumed(keep, blocks, watch) if keep else 0
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
            if keep and last in checks and group.rank == 0:
                _save(keep, blocks, watch, last)
            if not watch.running:
                break
    return watch.seen


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


def marks(steps: int, points: int) -> set[int]:
    """The updates, counted from 1, at which something happens `points` times, evenly; the last among them."""
    return {-(-steps * (point + 1) // points) for point in range(points)}


def _tell(members: Sequence[Member], watch: Watch, step: int, on_point: Callable[[str, int, Point], None]) -> None:
    for member, seen in zip(members, watch.seen, strict=True):
        if seen.curve and seen.curve[-1]["step"] == step:
            on_point(member.label, step, {key: value for key, value in seen.curve[-1].items() if key != "step"})


def _save(keep: Keep, blocks: Sequence[Block], watch: Watch, step: int) -> None:
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
    checkpoint.write(keep.path, tensors, {"identity": keep.identity, "step": step, "members": facts})


def _owners(blocks: Sequence[Block]) -> list[tuple[Block, int]]:
    """The block of each member, and its place there."""
    return [(block, index) for block in blocks for index in range(len(block.members))]


def _resumed(keep: Keep, blocks: Sequence[Block], watch: Watch) -> int:
    """The update that the checkpoint was written after, its state restored; 0 where there is none of this run."""
    if not keep.path.exists():
        return 0
    tensors, facts = checkpoint.read(keep.path)
    if facts["identity"] != keep.identity:
        differs = [key for key, value in keep.identity.items() if facts["identity"].get(key) != value]
        LOG.warning("%s: of a run with another %s; training starts anew", keep.path, ", ".join(differs) or "make")
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
