"""What raters said of user-weeks, beside the rows of those weeks, as tensors; and the loss of a reward under it.

- Two weeks compared (Christiano et al. 2017, "Deep reinforcement learning from human preferences", equation 1, there a
  softmax over two): P(A > B) = sigma(R(A) - R(B)), loss -mu log P(A > B) - (1 - mu) log P(B > A), mu = 1, 0, or 1/2 for
  a tie. So a tie pulls the two returns together; no parameter of ties (Davidson 1970) is learned.
- k weeks ranked (Plackett-Luce; the k-wise form of Ouyang et al. 2022 takes all pairs of a ranking as one batch
  element): loss -sum_i [R(o_i) - log sum_{j >= i} exp R(o_j)], the log probability of each choice among those left.

Each answer counts as its rater's weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.network import Population
from models.rewards.answers import Answers
from models.rewards.weeks import Weeks
from models.table import Transitions

TARGET = {"left": 1.0, "right": 0.0, "tie": 0.5}
NOWHERE = -1e30
"""Return of a week that is not there: it enters no sum of exponentials, and its gradient is 0."""
Compared = tuple[Transitions, Weeks]
"""A log and the user-weeks of it that raters saw."""


@dataclass(frozen=True)
class Questions:
    """M answers over W weeks of R rows: every answer as a ranking, a comparison being one of two weeks."""

    x: Tensor
    """[R, D] standardised inputs of the rows, week after week."""
    week: Tensor
    """[R] place of each row's week among the W."""
    order: Tensor
    """[M, k] places of weeks, the best (or left) first; -1 beyond the end of a shorter ranking."""
    target: Tensor
    """[M] share of the answer that the order gets, the reverse order getting the rest: 1, or mu of a comparison."""
    weight: Tensor
    """[M] of the rater."""

    def returns(self, network: Population) -> Tensor:
        """[P, W] sums over the weeks."""
        row = network.heads(self.x.unsqueeze(0))[..., 0, 0]
        weeks = int(self.week.max()) + 1
        return torch.zeros(len(row), weeks).index_add_(1, self.week, row)

    def losses(self, returns: Tensor) -> Tensor:
        """[P, M] loss of each answer, by the formulas above."""
        there = self.order >= 0
        ranked = returns[:, self.order.clamp(min=0)].masked_fill(~there, NOWHERE)
        two = there.sum(dim=1) == 2
        gap = torch.where(two, ranked[..., 0] - ranked[..., 1], torch.zeros(()))
        pair = -self.target * logsigmoid(gap) - (1 - self.target) * logsigmoid(-gap)
        # log sum exp over those left, from the last place back; the last choice is certain.
        left = ranked.flip(-1).logcumsumexp(-1).flip(-1)
        steps = torch.where(there, left - ranked, torch.zeros(()))
        return torch.where(two, pair, steps.sum(dim=-1))

    def only(self, answers: NDArray[np.int64]) -> "Questions":
        """Some of the answers, over the same weeks."""
        kept = torch.from_numpy(answers)
        return Questions(self.x, self.week, self.order[kept], self.target[kept], self.weight[kept])


def inputs_of(table: Transitions, rewards: Sequence[str], features: Sequence[str] | None = None) -> NDArray[np.float32]:
    """[N, D] (state, one-hot action, reward components, Delta) in raw units; NaN where a feature is unknown."""
    contract = table.contract
    column = [contract.rewards.index(name) for name in rewards]
    place = [contract.features.index(name) for name in (features or contract.features)]
    taken = np.eye(len(contract.actions), dtype=np.float32)[table.action]
    outcome = np.column_stack([table.reward[:, column], table.elapsed_days]).astype(np.float32)
    return np.concatenate([table.state[:, place], taken, outcome], axis=1)


def questions_of(
    logs: Sequence[Compared],
    inputs: Sequence[NDArray[np.float32]],
    answers: Answers,
    raters: Mapping[str, float],
    moments: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Questions:
    """The weeks that are spoken of, their rows, and what was said. Raises InputError naming a week of no log."""
    place: dict[str, int] = {}
    asked: list[tuple[str, ...]] = [(each.left, each.right) for each in answers.pairs]
    asked += [each.order for each in answers.rankings]
    for named in asked:
        for name in named:
            place.setdefault(name, len(place))
    where = {name: (log, w) for log, (_, weeks) in enumerate(logs) for w, name in enumerate(weeks.id) if name in place}
    if len(where) < len(place):
        # `places` has the words for a week that is not there.
        logs[-1][1].places([name for name in place if name not in where])
    parts, owner = [], []
    for name, number in place.items():
        log, w = where[name]
        weeks = logs[log][1]
        rows = inputs[log][weeks.first[w] : weeks.end[w]]
        parts.append(rows)
        owner.append(np.full(len(rows), number))
    x = np.nan_to_num((np.concatenate(parts) - moments[0]) / moments[1])
    longest = max(len(named) for named in asked)
    order = np.full((len(asked), longest), -1)
    for number, named in enumerate(asked):
        order[number, : len(named)] = [place[name] for name in named]
    target = [TARGET[each.answer] for each in answers.pairs] + [1.0] * len(answers.rankings)
    said_by = [each.rater for each in answers.pairs] + [each.rater for each in answers.rankings]
    weight = [raters.get(rater, 1.0) for rater in said_by]
    return Questions(
        torch.from_numpy(x),
        torch.from_numpy(np.concatenate(owner)),
        torch.from_numpy(order),
        torch.tensor(target),
        torch.tensor(weight),
    )
