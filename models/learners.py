"""What each learner does with a minibatch, written as its difference from the one before.

An update is a loss per member; members never meet, so the sum over the population trains each as if it were alone.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from models.batch import Batch
from models.losses import cql_penalty, double_q_target, expected_target, scalarise, td_loss
from models.network import Population


@dataclass(frozen=True)
class Terms:
    """The parts of a loss, each kept so that logging it is free."""

    loss: Tensor
    """[P] what is minimised."""
    td: Tensor
    """[P] squared TD error, in units of sigma_c squared, summed over heads."""
    gap: Tensor
    """[P] logsumexp over legal q - logged q."""
    q: Tensor
    """[P, B, A] w~.Q at the decision."""


def ddqn(online: Population, target: Population, batch: Batch, weights: Tensor) -> Terms:
    """Double DQN: the TD error against `double_q_target`; `weights` [P, K] w~, `batch` of P members."""
    heads_t = online.heads(batch.state)
    target_t = double_q_target(
        batch.reward,
        batch.discount,
        scalarise(online.heads(batch.next_state).detach(), weights),
        target.heads(batch.next_state).detach(),
        batch.next_legal,
    )
    td = td_loss(heads_t, batch.action, target_t)
    q_t = scalarise(heads_t, weights)
    return Terms(loss=td, td=td, gap=cql_penalty(q_t, batch.action, batch.legal), q=q_t)


def ddqn_cql(online: Population, target: Population, batch: Batch, weights: Tensor, alpha: Tensor) -> Terms:
    """Double DQN plus alpha times the CQL penalty, alpha [P] a number per member: with alpha 0 it *is* Double DQN."""
    terms = ddqn(online, target, batch, weights)
    return replace(terms, loss=terms.td + alpha * terms.gap)


def fitted_q(online: Population, target: Population, batch: Batch, policy_tp1: Tensor) -> Tensor:
    """[P] fitted Q evaluation: TD whose target takes what the policy does next, `policy_tp1` [P, B, A], not a maximum.

    `batch.reward` is raw; the error is taken in the network's own unit, so that no component outweighs the others.
    """
    raw_target = expected_target(
        batch.reward, batch.discount, target.raw(target.heads(batch.next_state).detach()), policy_tp1
    )
    return td_loss(online.heads(batch.state), batch.action, (raw_target - online.shift) / online.scale)


def behaviour_cloning(network: Population, batch: Batch) -> Tensor:
    """[P] negative log-likelihood of the logged actions under the softmax over legal logits (K = 1 head).

    It is the CQL penalty of the logits, alone: no TD error, nothing to bootstrap.
    """
    logits = network.heads(batch.state).squeeze(-1)
    return cql_penalty(logits, batch.action, batch.legal)
