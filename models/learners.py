"""What each learner does with a minibatch, written as its difference from the one before.

An update is a loss per member; members never meet, so the sum over the population trains each as if it were alone.
docs/learners.md gives the objectives, their sources, and where these differ from them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.batch import Batch
from models.losses import (
    advantage_weighted,
    cql_penalty,
    double_q_target,
    expected_target,
    expectile_loss,
    heads_at,
    scalarise,
    td_loss,
)
from models.members import Settings
from models.network import Population

LARGEST_WEIGHT = 100.0
"""Of a row in advantage-weighted regression, as in the code of Kostrikov, Nair and Levine."""


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

    def detached(self) -> "Terms":
        """The same numbers, without what made them."""
        return Terms(self.loss.detach(), self.td.detach(), self.gap.detach(), self.q.detach())


@dataclass(frozen=True)
class Networks:
    """The networks of P members of one kind."""

    online: Population
    """[P, B, S] -> [P, B, A, K], units of sigma."""
    target: Population
    """A slow copy of it, that no gradient reaches."""
    value: Population | None = None
    """IQL: V, as heads of a single action, [P, B, 1, K]."""
    actor: Population | None = None
    """IQL: policy logits, K = 1."""

    @property
    def trained(self) -> list[Population]:
        """Those that gradients move."""
        return [each for each in (self.online, self.value, self.actor) if each is not None]


def ddqn(networks: Networks, batch: Batch, settings: Settings) -> Terms:
    """Double DQN: the TD error against `double_q_target`; the penalty is measured, and weighs nothing."""
    online, target = networks.online, networks.target
    heads_t = online.heads(batch.state)
    with torch.no_grad():
        q_online_tp1 = scalarise(online.heads(batch.next_state), settings.weights)
        heads_target_tp1 = target.heads(batch.next_state)
    target_t = double_q_target(batch.reward, batch.discount, q_online_tp1, heads_target_tp1, batch.next_legal)
    td = td_loss(heads_t, batch.action, target_t)
    q_t = scalarise(heads_t, settings.weights)
    return Terms(loss=td, td=td, gap=cql_penalty(q_t, batch.action, batch.legal, settings.credit), q=q_t)


def ddqn_cql(networks: Networks, batch: Batch, settings: Settings) -> Terms:
    """Double DQN plus alpha times the CQL penalty, alpha a number per member: with alpha 0 it *is* Double DQN."""
    terms = ddqn(networks, batch, settings)
    return replace(terms, loss=terms.td + settings.alpha * terms.gap)


def iql(networks: Networks, batch: Batch, settings: Settings) -> Terms:
    """Implicit Q-learning: the target takes V(s') for Double DQN's maximum, so no action outside the log is queried.

    V is the lambda-expectile of the target network's Q at logged actions (`expectile_loss`), one vector per state; the
    actor, where there is one, imitates logged actions by the exponential of their advantage.
    """
    assert networks.value is not None
    heads_t = networks.online.heads(batch.state)
    v_t = networks.value.heads(batch.state).squeeze(-2)
    with torch.no_grad():
        q_slow_t = heads_at(networks.target.heads(batch.state), batch.action)
        v_tp1 = networks.value.heads(batch.next_state).squeeze(-2)
        target_t = batch.reward + batch.discount.unsqueeze(-1) * v_tp1
    td = td_loss(heads_t, batch.action, target_t)
    may = batch.legal.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    loss = td + expectile_loss(q_slow_t, v_t, settings.weights, settings.expectile, may)
    if networks.actor is not None:
        advantage = ((q_slow_t - v_t.detach()) * settings.weights.unsqueeze(1)).sum(dim=-1)
        logits = networks.actor.heads(batch.state).squeeze(-1)
        scaled = settings.temperature.unsqueeze(-1) * advantage
        loss = loss + advantage_weighted(logits, batch.action, batch.legal, scaled, LARGEST_WEIGHT)
    q_t = scalarise(heads_t, settings.weights)
    return Terms(loss=loss, td=td, gap=cql_penalty(q_t.detach(), batch.action, batch.legal), q=q_t)


def fitted_q(online: Population, target: Population, batch: Batch, policy_tp1: Tensor) -> Tensor:
    """[P] fitted Q evaluation: TD whose target takes what the policy does next, `policy_tp1` [P, B, A], not a maximum.

    `batch.reward` is raw; the error is taken in the network's own unit, so that no component outweighs the others.
    """
    with torch.no_grad():
        heads_tp1 = target.raw(target.heads(batch.next_state))
    raw_target = expected_target(batch.reward, batch.discount, heads_tp1, policy_tp1)
    return td_loss(online.heads(batch.state), batch.action, (raw_target - online.shift) / online.scale)


def behaviour_cloning(network: Population, batch: Batch) -> Tensor:
    """[P] negative log-likelihood of the logged actions under the softmax over legal logits (K = 1 head).

    It is the CQL penalty of the logits, alone: no TD error, nothing to bootstrap.
    """
    logits = network.heads(batch.state).squeeze(-1)
    return cql_penalty(logits, batch.action, batch.legal)
