"""Targets and losses as pure functions; every tensor leads with the population.

P members, B transitions per member, A actions, K reward components (heads). Names carry time: `_t` at the decision,
`_tp1` at the one after it. Rewards and heads are in the same unit, whichever the caller chose.
"""

import math

import torch
from torch import Tensor

LONGEST_HORIZON = 1000.0
"""Decisions: bounds what a start from mean rewards supposes beyond the end of the log."""


def discount_of(gamma_per_day: float | Tensor, elapsed_days: Tensor, terminal: Tensor) -> Tensor:
    """gamma^Delta (1 - terminal), any shape: all that a target needs to know of time and of the end.

    `elapsed_days` Delta_k in days, `terminal` bool, gamma per day: one, or any shape that broadcasts.
    """
    return torch.where(terminal, torch.zeros_like(elapsed_days), gamma_per_day**elapsed_days)


def horizon_of(mean_discount: float) -> float:
    """1 / (1 - E[gamma^Delta (1 - terminal)]): decisions that a mean reward goes on for.

    LONGEST_HORIZON at most.
    """
    return 1.0 / max(1.0 - mean_discount, 1.0 / LONGEST_HORIZON)


def scalarise(heads: Tensor, weights: Tensor) -> Tensor:
    """[P, B, A] q = sum_k w_k Q_k from `heads` [P, B, A, K] and `weights` [P, K]."""
    return (heads * weights[:, None, None, :]).sum(dim=-1)


def double_q_target(
    reward_t: Tensor, discount_t: Tensor, q_online_tp1: Tensor, heads_target_tp1: Tensor, legal_tp1: Tensor
) -> Tensor:
    """[P, B, K] y = r + discount Q'(s', a*), a* = argmax over legal a' of the online q: a vector, without gradient.

    `reward_t` [P, B, K], `discount_t` [P, B] (`discount_of`), `q_online_tp1` [P, B, A] scalarised, `heads_target_tp1`
    [P, B, A, K] of the target network, `legal_tp1` [P, B, A]. Source: van Hasselt, Guez and Silver 2016.
    """
    # Not argmax, which on a CPU takes many times as long where an action's q lie side by side over the batch.
    a_tp1 = q_online_tp1.masked_fill(~legal_tp1, -torch.inf).max(dim=-1).indices
    return (reward_t + discount_t.unsqueeze(-1) * heads_at(heads_target_tp1, a_tp1)).detach()


def expected_target(reward_t: Tensor, discount_t: Tensor, heads_target_tp1: Tensor, policy_tp1: Tensor) -> Tensor:
    """[P, B, K] y = r + discount sum_a pi(a|s') Q'(s', a), without gradient: what fitted Q evaluation regresses on.

    Shapes as `double_q_target`; `policy_tp1` [P, B, A] is pi(a|s'), any stochastic policy. Source: Le, Voloshin and
    Yue 2019.
    """
    value_tp1 = (heads_target_tp1 * policy_tp1.unsqueeze(-1)).sum(dim=-2)
    return (reward_t + discount_t.unsqueeze(-1) * value_tp1).detach()


def td_loss(heads_t: Tensor, a_t: Tensor, target_t: Tensor) -> Tensor:
    """[P] mean over B of sum_k (Q_k(s, a) - y_k)^2 at the logged action.

    `heads_t` [P, B, A, K], `a_t` [P, B], `target_t` [P, B, K]. Squared, not Huber: on a rare standardised event Huber
    returns a small part of the mean.
    """
    return (heads_at(heads_t, a_t) - target_t).square().sum(dim=-1).mean(dim=-1)


def cql_penalty(q_t: Tensor, a_t: Tensor, legal_t: Tensor, credit: Tensor | None = None) -> Tensor:
    """[P] mean over B of logsumexp over legal a of q(s, a) - credit q(s, a_logged).

    `q_t` [P, B, A], `a_t` [P, B], `legal_t` [P, B, A], `credit` [P]: 1 (by default) is the form of Kumar et al. 2020,
    eq. 4, with the entropy regulariser; 0 only pushes down (eq. 1). A row whose logged action is illegal (a configured
    constraint forbids what the log did) counts (1 - credit) times its logsumexp, so 0 where credit is due: its logged
    action is not among those compared, and pulling it up would have no bound. With logits for q and credit 1 this is
    the negative log-likelihood of the log.
    """
    everything = q_t.masked_fill(~legal_t, -torch.inf).logsumexp(dim=-1)
    at = a_t.unsqueeze(-1)
    # An illegal logged action stands for all legal ones: credited in full, nothing is left of its row.
    logged = torch.where(legal_t.gather(-1, at), q_t.gather(-1, at), everything.unsqueeze(-1)).squeeze(-1)
    return (everything - (logged if credit is None else credit.unsqueeze(-1) * logged)).mean(dim=-1)


def expectile_loss(q_t: Tensor, v_t: Tensor, weights: Tensor, expectile: Tensor, counts_t: Tensor) -> Tensor:
    """[P] mean over B of sum_k |lambda - 1{w~.(Q - V) < 0}| (Q_k - V_k)^2: a vector of values, one side for all heads.

    `q_t` [P, B, K] of the target network at the logged action, `v_t` [P, B, K], `weights` [P, K] w~, `expectile` [P]
    lambda in [0.5, 1), `counts_t` [P, B] whether the logged action is one that may be taken. Which side a row lies on
    is a question about the scalarised advantage: were each head to answer for itself, V would be the value of no
    policy. Source: Kostrikov, Nair and Levine 2022, eq. 5, for K = 1.
    """
    off = q_t.detach() - v_t
    below = ((off.detach() * weights.unsqueeze(1)).sum(dim=-1) < 0).to(off.dtype)
    side = (expectile.unsqueeze(-1) - below).abs() * counts_t
    return (side * off.square().sum(dim=-1)).mean(dim=-1)


def advantage_weighted(logits_t: Tensor, a_t: Tensor, legal_t: Tensor, advantage_t: Tensor, most: float) -> Tensor:
    """[P] mean over B of -min(exp(advantage), most) log pi(a_logged | s), pi the softmax of logits over legal actions.

    `logits_t` [P, B, A], `a_t` [P, B], `legal_t` [P, B, A], `advantage_t` [P, B] already times the temperature. A row
    whose logged action is illegal counts 0. Source: Peng et al. 2019; Kostrikov, Nair and Levine 2022, eq. 7.
    """
    log_pi = logits_t.masked_fill(~legal_t, -torch.inf).log_softmax(dim=-1)
    at = a_t.unsqueeze(-1)
    taken = torch.where(legal_t.gather(-1, at), log_pi.gather(-1, at), torch.zeros_like(log_pi[..., :1])).squeeze(-1)
    weight = advantage_t.detach().clamp(max=math.log(most)).exp()
    return -(weight * taken).mean(dim=-1)


def heads_at(heads: Tensor, action: Tensor) -> Tensor:
    """[P, B, K] the heads [P, B, A, K] of one action [P, B] each."""
    index = action[..., None, None].expand(*action.shape, 1, heads.shape[-1])
    return heads.gather(-2, index).squeeze(-2)
