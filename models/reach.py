"""What values can reach: how far discounted rewards of a log go, and so which member diverges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Held, rows_of
from models.losses import discount_of, horizon_of
from models.members import Member
from models.table import Transitions


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
    loss: float
    """The least 1 - gamma^Delta (1 - terminal) where Delta > 0."""
    coinciding: int
    """The most decisions of a user at one moment."""

    @classmethod
    def of(cls, member: Member, reward: Tensor, elapsed: Tensor, stops: Tensor, coinciding: int) -> "Extent":
        """Of n rows: `reward` [n, K] in units of sigma, `elapsed` [n] days, `stops` [n]; `coinciding` of them."""
        weighted = reward @ torch.from_numpy(member.scales.inner).to(reward)
        discount = discount_of(member.gamma_per_day, elapsed, stops)
        # A discount next to 1 has no digits left for what it lacks of 1.
        loss = torch.where(stops | (elapsed <= 0), 1.0, -torch.expm1(elapsed.double() * math.log(member.gamma_per_day)))
        return cls(
            rows=len(reward),
            reward=reward.sum(dim=0),
            largest=reward.abs().amax(dim=0),
            least=float(weighted.min()),
            most=float(weighted.max()),
            discount=float(discount.sum()),
            loss=float(loss.min()),
            coinciding=coinciding,
        )

    def __add__(self, other: "Extent") -> "Extent":
        return Extent(
            rows=self.rows + other.rows,
            reward=self.reward + other.reward,
            largest=torch.maximum(self.largest, other.largest),
            least=min(self.least, other.least),
            most=max(self.most, other.most),
            discount=self.discount + other.discount,
            loss=min(self.loss, other.loss),
            coinciding=max(self.coinciding, other.coinciding),
        )


@dataclass(frozen=True)
class Reach:
    """What discounted rewards can reach, whatever the policy, at the pace of the log: beyond it a member diverges."""

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
        """Bounds from H, the most decisions, discounted, that any policy's rewards can go on for.

        H = n / (1 - max gamma^Delta over Delta > 0), n the most decisions of a user at one moment: where moments are at
        least the log's shortest interval apart, and none has more than n decisions, sum_k gamma^(t_k - t_0) is at most
        that. No slower pace would do: where intervals depend on the action a policy strings the short ones together,
        and so does a target. Where gamma is 1 and accounts stay open H is infinite.

        high = H (max(w~.r, 0) + 1), low = H (min(w~.r, 0) - 1): the standard deviation beyond is what a fit may be off.
        The penalty lifts q over its target by (alpha / 2) |w~|^2 (1 - pi / mu) a decision, pi the softmax of q, so by
        (alpha / 2) |w~|^2 at most; without credit it lowers q by (alpha / 2) |w~|^2 pi / mu, and as some action has
        pi <= mu, the best one by no more than that. td = sum_k (2 H (max |r_k| + 1))^2, a head at one end of its reach
        and its target at the other.
        """
        horizon = extent.coinciding / extent.loss if extent.loss else math.inf
        lift = member.learner.penalised * float(np.square(member.scales.inner).sum()) / 2
        up, down = (lift, 0.0) if member.learner.penalty == "logsumexp" else (0.0, lift)
        return cls(
            low=horizon * (min(extent.least, 0.0) - 1 - down),
            high=horizon * (max(extent.most, 0.0) + 1 + up),
            td=float((2 * horizon * (extent.largest + 1)).square().sum()),
            level=extent.reward / extent.rows * horizon_of(extent.discount / extent.rows),
        )


def most_coinciding(table: Transitions, rows: NDArray[np.bool_]) -> int:
    """The most rows at one moment that a user has among those marked in `rows` [N]; 1 or more."""
    user, at = table.user[rows], table.decided_at[rows]

    def there(n: int) -> bool:
        together = at[n - 1 :] == at[: len(at) - n + 1]
        return bool((together & (user[n - 1 :] == user[: len(user) - n + 1])).any())

    # A moment that has n has fewer, so that n is found by doubling and halving: no pass over the rows for each.
    most = 1
    while 2 * most <= len(user) and there(2 * most):
        most *= 2
    step = most // 2
    while step:
        if most + step <= len(user) and there(most + step):
            most += step
        step //= 2
    return most


def reach_within(members: Sequence[Member], feed: Held, table: Transitions) -> list[Reach]:
    """The reach of each member on the rows of `feed`, which are of `table`."""
    data, rows = feed.data, feed.places
    parts = data.reward[rows], data.elapsed[rows], data.stops[rows]
    coinciding = most_coinciding(table, rows_of(table, "train").all)
    return [Reach.of(each, Extent.of(each, *parts, coinciding)) for each in members]
