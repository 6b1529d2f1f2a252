"""Golden values with the arithmetic beside them, and the same losses in plain loops."""

import math

import numpy as np
import pytest
import torch

from models.losses import cql_penalty, discount_of, double_q_target, expected_target, scalarise, td_loss


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_discount_is_gamma_to_the_elapsed_days_and_nothing_past_the_end() -> None:
    found = discount_of(0.9, tensor([1.0, 2.0, 0.5, 2.0]), torch.tensor([False, False, False, True]))
    # 0.9^1, 0.9^2, sqrt(0.9); the account closed.
    assert found.tolist() == pytest.approx([0.9, 0.81, 0.9**0.5, 0.0])


def test_double_q_target_chooses_online_and_values_by_the_target_network() -> None:
    found = double_q_target(
        reward_t=tensor([[[1.0, 10.0]]]),
        discount_t=tensor([[0.81]]),
        q_online_tp1=tensor([[[2.0, 3.0]]]),  # online prefers action 1
        heads_target_tp1=tensor([[[[7.0, 70.0], [5.0, 50.0]]]]),  # though the target network prefers action 0
        legal_tp1=torch.tensor([[[True, True]]]),
    )
    # 1 + 0.81 * 5 and 10 + 0.81 * 50, the heads of action 1.
    assert found.tolist() == [[[pytest.approx(5.05), pytest.approx(50.5)]]]


def test_double_q_target_never_takes_an_illegal_action() -> None:
    found = double_q_target(
        reward_t=tensor([[[0.0]]]),
        discount_t=tensor([[1.0]]),
        q_online_tp1=tensor([[[-5.0, 99.0, -4.0]]]),  # the best is illegal, the best legal one is action 2
        heads_target_tp1=tensor([[[[1.0], [100.0], [3.0]]]]),
        legal_tp1=torch.tensor([[[True, False, True]]]),
    )
    assert found.item() == 3.0


def test_double_q_target_of_a_terminal_row_is_its_reward() -> None:
    discount = discount_of(0.97, tensor([[3.0]]), torch.tensor([[True]]))
    found = double_q_target(
        tensor([[[2.0]]]), discount, tensor([[[1.0, 0.0]]]), tensor([[[[8.0], [8.0]]]]), torch.ones(1, 1, 2).bool()
    )
    assert found.item() == 2.0


def test_targets_stop_the_gradient() -> None:
    heads = torch.ones(1, 1, 2, 1, requires_grad=True)
    q = torch.ones(1, 1, 2, requires_grad=True)
    legal = torch.ones(1, 1, 2).bool()
    assert not double_q_target(torch.ones(1, 1, 1), torch.ones(1, 1), q, heads, legal).requires_grad
    assert not expected_target(torch.ones(1, 1, 1), torch.ones(1, 1), heads, torch.ones(1, 1, 2) / 2).requires_grad


def test_expected_target_weighs_actions_by_the_policy() -> None:
    found = expected_target(
        reward_t=tensor([[[1.0, 0.0]]]),
        discount_t=tensor([[0.5]]),
        heads_target_tp1=tensor([[[[4.0, 40.0], [8.0, 80.0]]]]),
        policy_tp1=tensor([[[0.25, 0.75]]]),
    )
    # 1 + 0.5 (0.25 * 4 + 0.75 * 8) = 1 + 0.5 * 7; 0.5 * 70.
    assert found.tolist() == [[[4.5, 35.0]]]


def test_td_loss_sums_over_heads_and_means_over_the_batch() -> None:
    heads = tensor([[[[1.0, 2.0], [9.0, 9.0]], [[9.0, 9.0], [4.0, 0.0]]]])  # [1, 2, 2, 2]
    found = td_loss(heads, torch.tensor([[0, 1]]), tensor([[[0.0, 0.0], [1.0, 0.0]]]))
    # row 0: (1 - 0)^2 + (2 - 0)^2 = 5; row 1: (4 - 1)^2 + 0 = 9; mean 7.
    assert found.tolist() == [7.0]


def test_cql_penalty_compares_the_logged_action_with_the_legal_ones_only() -> None:
    q = tensor([[[0.0, math.log(3.0), 50.0], [1.0, 1.0, 1.0]]])
    legal = torch.tensor([[[True, True, False], [True, False, False]]])
    found = cql_penalty(q, torch.tensor([[0, 0]]), legal)
    # row 0: log(e^0 + 3) - 0 = log 4, the 50 is illegal; row 1: log(e^1) - 1 = 0; mean log(4) / 2.
    assert found.tolist() == [pytest.approx(math.log(4.0) / 2)]


def test_cql_penalty_does_not_pull_up_an_action_that_is_illegal() -> None:
    q = torch.zeros(1, 1, 2, requires_grad=True)
    loss = cql_penalty(q, torch.tensor([[1]]), torch.tensor([[[True, False]]]))
    loss.sum().backward()
    assert loss.item() == 0.0
    assert q.grad is not None
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_members_do_not_meet() -> None:
    q = torch.arange(30.0).reshape(3, 5, 2).requires_grad_()
    legal, action = torch.ones(3, 5, 2).bool(), torch.zeros(3, 5, dtype=torch.long)
    cql_penalty(q, action, legal)[1].backward()
    assert q.grad is not None
    assert q.grad[1].abs().sum() > 0
    assert q.grad[[0, 2]].abs().sum() == 0


def test_losses_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    members, rows, actions, heads = 2, 7, 3, 4
    legal = rng.random((members, rows, actions)) < 0.6
    legal[..., 0] = True
    action = rng.integers(actions, size=(members, rows))
    reward = rng.normal(size=(members, rows, heads))
    discount = rng.random((members, rows))
    online, target, now = rng.normal(size=(3, members, rows, actions, heads))
    weights = rng.normal(size=(members, heads))
    td, cql = np.zeros(members), np.zeros(members)
    for p in range(members):
        for b in range(rows):
            best, chosen = -np.inf, -1
            for a in range(actions):
                q = sum(weights[p, k] * online[p, b, a, k] for k in range(heads))
                if legal[p, b, a] and q > best:
                    best, chosen = q, a
            for k in range(heads):
                y = reward[p, b, k] + discount[p, b] * target[p, b, chosen, k]
                td[p] += (now[p, b, action[p, b], k] - y) ** 2 / rows
            if legal[p, b, action[p, b]]:
                q_now = [sum(weights[p, k] * now[p, b, a, k] for k in range(heads)) for a in range(actions)]
                total = sum(math.exp(q_now[a]) for a in range(actions) if legal[p, b, a])
                cql[p] += (math.log(total) - q_now[action[p, b]]) / rows
    to = torch.from_numpy
    y = double_q_target(to(reward), to(discount), scalarise(to(online), to(weights)), to(target), to(legal))
    assert td_loss(to(now), to(action), y).tolist() == pytest.approx(td.tolist())
    assert cql_penalty(scalarise(to(now), to(weights)), to(action), to(legal)).tolist() == pytest.approx(cql.tolist())
