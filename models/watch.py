"""What is watched of each member while it learns: its curve, whether it diverges, and the check it is kept at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Batch, Held
from models.blocks import Block
from models.distributed import Group
from models.learners import Terms
from models.members import Member
from models.network import Population, predicted
from models.reach import Reach

Act = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
"""(q [N, A], behaviour logits [N, A], legal [N, A]) -> probabilities [N, A]: how a learned policy is deployed."""
Deploy = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], Act]
"""How a policy is deployed that has this q, these behaviour logits and this legal [n, A] at the validation rows."""
Point = dict[str, float]


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
    deploy: Deploy
    state: Tensor
    """[n, S] normalised."""
    logits: NDArray[np.float64]
    """[n, A] of the behaviour network."""
    legal: NDArray[np.bool_]
    """[n, A]."""

    def gains(self, network: Population, weights: NDArray[np.float64], member: Member) -> NDArray[np.float64]:
        """[U] contribution of each user to the gain of one acting network, in the unit of the weighted reward."""
        q = predicted(network, self.state)[0] @ weights
        act = self.deploy(q, self.logits, self.legal)
        found = self.assess(act(q, self.logits, self.legal))
        gains: NDArray[np.float64] = found @ member.scales.weights
        return gains


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
        now = _pooled({"td_loss": terms.td, "cql_gap": terms.gap, **_told(terms.q, batch)}, group)
        if self.held_out is not None:
            rows = self.held_out.places.unsqueeze(0)
            unseen = self.held_out.data.at(rows, block.settings.gamma).expand(len(block.members))
            held = block.loss(block.networks, unseen, block.settings)
            # Every process measures all of these rows.
            alone = _pooled({"td": held.td, **_told(held.q, unseen)}, Group())
            now |= {f"validation_{key}": each for key, each in alone.items()}
        values = torch.stack(list(now.values()), dim=-1)
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
    """[P] each, of q [P, B, A]: mean, least and largest value of the best legal action, how often it was logged where
    there was a choice, and how often there was one."""
    best, action = q.masked_fill(~batch.legal, -torch.inf).max(dim=-1)
    choice = batch.legal.sum(dim=-1) > 1
    return {
        "mean_q": best.mean(dim=-1),
        "q_low": best.amin(dim=-1),
        "q_high": best.amax(dim=-1),
        "same": ((action == batch.action) & choice).sum(dim=-1),
        "choices": choice.sum(dim=-1),
    }


def _pooled(found: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """[P] each, of the minibatch that the processes shared equally, from what `found` [P] says of each one's share."""
    shares = group.gathered(torch.stack(list(found.values()))).unbind(dim=1)
    parts = dict(zip(found, shares, strict=True))
    choices, same = (parts.pop(key).sum(dim=0) for key in ("choices", "same"))
    ends = {"q_low": parts.pop("q_low").amin(dim=0), "q_high": parts.pop("q_high").amax(dim=0)}
    means = {key: part.mean(dim=0) for key, part in parts.items()}
    return {**means, **ends, "agreement": same / choices.clamp(min=1)}
