"""Greedy over a learned Q-function, with a floor of exploration, mixed with the logging policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.contract import Contract
from models.errors import InputError
from policies.base import Booleans, Floats

KEYS = ("rollout_share", "exploration", "lambda")
"""What a decision must say."""


class QArtifact(Protocol):
    """What a deployed artifact offers; `models.artifact.load` returns one."""

    @property
    def contract(self) -> Contract: ...
    @property
    def decision(self) -> Mapping[str, float]: ...
    @property
    def lineage(self) -> Mapping[str, Any]: ...
    def predict(self, state: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...


def softmax_over_legal(logits: NDArray[Any], legal: Booleans) -> Floats:
    """[N, A] exp(l_a) / sum over legal a' of exp(l_a'), 0 where illegal; `logits` and `legal` [N, A].

    Raises InputError where a row has no legal action.
    """
    empty = ~legal.any(axis=1)
    if empty.any():
        raise InputError(
            f"legal: {int(empty.sum())} rows have no legal action, first row {int(empty.argmax())}; one is needed."
        )
    masked = np.where(legal, np.asarray(logits, dtype=np.float64), -np.inf)
    weight: Floats = np.exp(masked - masked.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def checked_decision(decision: Mapping[str, float]) -> tuple[float, float, float]:
    """(rollout_share, exploration, lambda). Raises InputError for an absent key and a share outside [0, 1]."""
    for key in KEYS:
        if key not in decision:
            raise InputError(f"decision.{key}: missing; found {sorted(decision)}; export the artifact again.")
    share, exploration, price = (float(decision[key]) for key in KEYS)
    for key, value in (("rollout_share", share), ("exploration", exploration)):
        if not 0 <= value <= 1:
            raise InputError(f"decision.{key} is {value}; it must lie in [0, 1].")
    return share, exploration, price


def send_gaps(q: NDArray[Any], legal: Booleans, is_send: Sequence[bool] | Booleans) -> tuple[Floats, Booleans]:
    """[N] how much more the best legal send is worth than the best other legal action, and [N] where both are there.

    gap = max over legal sends of q - max over legal others of q; NaN where one of them is absent. `q`, `legal` [N, A],
    `is_send` [A]. Raises InputError where q is not finite at a legal action.
    """
    score, sends = np.asarray(q, dtype=np.float64), np.asarray(is_send, dtype=bool)
    finite = np.isfinite(score) | ~legal
    if not finite.all():
        raise InputError(f"q: {int((~finite).sum())} values of legal actions are not finite; train again.")
    send, other = (np.where(legal & of, score, -np.inf).max(axis=1) for of in (sends, ~sends))
    choice: Booleans = np.isfinite(send) & np.isfinite(other)
    gap: Floats = np.full(len(score), np.nan)
    gap[choice] = send[choice] - other[choice]
    return gap, choice


def deployed_probabilities(
    q: NDArray[Any],
    behaviour_logits: NDArray[Any],
    legal: Booleans,
    decision: Mapping[str, float],
    is_send: Sequence[bool] | None = None,
    theta: float = 0.0,
) -> Floats:
    """[N, A] what a learned policy does with each action, as deployed.

    (1 - k) mu + k [(1 - e) greedy + e / |legal|], with mu the softmax of `behaviour_logits` over the legal actions,
    greedy the legal action of the largest q - lambda is_send (ties: the first), k, e and lambda from `decision`
    (`rollout_share`, `exploration`, `lambda`). Where the best send and the best other action tie, the greedy part is
    the send with probability `theta`. `q`, `behaviour_logits` [N, A] (q unitless: w~.Q), `legal` [N, A], `is_send` [A].

    Raises InputError for an absent key, a share or theta outside [0, 1], a q that is not finite, a row without a legal
    action, and a `lambda` or `theta` without `is_send`.
    """
    share, exploration, price = checked_decision(decision)
    if not 0 <= theta <= 1:
        raise InputError(f"theta is {theta}; it must lie in [0, 1].")
    if is_send is None and (price != 0 or theta != 0):
        raise InputError(f"decision.lambda is {price}: a price per send needs `is_send`, which actions send.")
    mu = softmax_over_legal(behaviour_logits, legal)
    sends = np.zeros(legal.shape[1], bool) if is_send is None else np.asarray(is_send, dtype=bool)
    gap, choice = send_gaps(q, legal, sends)
    # The gap against the price, as the budget counts it: q - lambda could round to the other side of a tie.
    greedy = np.where(choice, (gap > price) + theta * (gap == price), ~legal[:, ~sends].any(axis=1))
    pi = exploration * legal / legal.sum(axis=1, keepdims=True)
    score = np.asarray(q, dtype=np.float64)
    for of, chance in ((sends, greedy), (~sends, 1 - greedy)):
        some = chance > 0
        best = np.where(legal & of, score, -np.inf)[some].argmax(axis=1)
        pi[np.flatnonzero(some), best] += (1 - exploration) * chance[some]
    mixed: Floats = (1 - share) * mu + share * pi
    return mixed


@dataclass(frozen=True)
class QPolicy:
    """A learned policy as its artifact deploys it, or at another rollout share."""

    artifact: QArtifact
    called: str = ""
    """Name in tables; by default the learner in the artifact's lineage."""
    learned: bool = True
    share: float | None = None
    """Rollout share to act with instead of the artifact's: 1 is the learned policy alone."""
    price: float | None = None
    """Lambda to act with instead of the artifact's: an end of its range, or what meets tonight's quota."""
    theta: float = 0.0
    """Probability of a send where it and the best other action tie at that price."""

    @property
    def name(self) -> str:
        return self.called or str(self.artifact.lineage["learner"])

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] probabilities for `state` [N, S] in raw units, NaN where unknown; see `deployed_probabilities`."""
        q, behaviour, _ = self.artifact.predict(state)
        decision = dict(self.artifact.decision)
        if self.share is not None:
            decision["rollout_share"] = self.share
        if self.price is not None:
            decision["lambda"] = self.price
        return deployed_probabilities(q, behaviour, legal, decision, self.artifact.contract.is_send, self.theta)
