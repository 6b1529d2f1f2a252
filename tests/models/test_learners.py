"""Each learner reads the batch as it says: which actions, which network, which discount."""

import math

import pytest
import torch

from models.batch import Batch
from models.learners import Networks, behaviour_cloning, ddqn, ddqn_cql, fitted_q, iql
from models.members import Settings
from models.network import Population


def settings(alpha: float = 0.0, credit: float = 1.0, expectile: float = 0.7, temperature: float = 1.0) -> Settings:
    one = {"alpha": alpha, "credit": credit, "gamma": 0.5, "expectile": expectile, "temperature": temperature}
    numbers = {name: torch.tensor([value]) for name, value in one.items()}
    return Settings(weights=torch.tensor([[1.0, 10.0]]), target_rate=torch.tensor([0.1]), **numbers)


def constant(heads: list[list[float]]) -> Population:
    """A network of one member that answers `heads` [A, K] to every state, in units of shift 0 and scale 1."""
    values = torch.tensor(heads)
    components = values.shape[1]
    return Population(
        [torch.zeros(1, 1, values.numel())],
        [values.reshape(1, 1, -1)],
        torch.zeros(1),
        torch.ones(1),
        torch.zeros(components),
        torch.ones(components),
        len(heads),
    )


ONLINE = constant([[0.0, 0.0], [0.0, 0.3], [9.0, 9.0]])  # q = 0, 3, 99
TARGET = constant([[20.0, 0.0], [4.0, 1.0], [50.0, 50.0]])  # q = 20, 14, 550: it would choose otherwise
BOTH = Networks(ONLINE, TARGET)


def batch(legal: list[bool], next_legal: list[bool], action: int = 0, discount: float = 0.5) -> Batch:
    return Batch(
        state=torch.zeros(1, 1, 1),
        legal=torch.tensor([[legal]]),
        action=torch.tensor([[action]]),
        reward=torch.tensor([[[1.0, 0.0]]]),
        discount=torch.tensor([[discount]]),
        next_state=torch.zeros(1, 1, 1),
        next_legal=torch.tensor([[next_legal]]),
    )


def test_double_dqn_bootstraps_from_the_next_rows_legal_actions() -> None:
    td = ddqn(BOTH, batch([True] * 3, [True, True, False]), settings()).td
    # Online prefers action 1 of the two legal; y = (1 + 0.5 * 4, 0 + 0.5 * 1) against heads (0, 0): 9 + 0.25.
    assert td.item() == pytest.approx(9.25)


def test_double_dqn_of_a_row_that_nothing_follows() -> None:
    assert ddqn(BOTH, batch([True] * 3, [True] * 3, discount=0.0), settings()).td.item() == 1.0


def test_the_penalty_reads_this_rows_legal_actions_and_alpha_scales_it() -> None:
    found = ddqn_cql(BOTH, batch([True, True, False], [True, False, False]), settings(alpha=2.0))
    # log(e^0 + e^3) - 0; the illegal 99 is not in it.
    assert found.gap.item() == pytest.approx(3.0485873)
    # y = (1 + 0.5 * 20, 0) against (0, 0): 121; and twice the gap.
    assert found.loss.item() == pytest.approx(121.0 + 2 * 3.0485873)


def test_alpha_zero_is_double_dqn() -> None:
    rows = batch([True, True, False], [True, True, False])
    plain, none = ddqn(BOTH, rows, settings()), ddqn_cql(BOTH, rows, settings())
    assert torch.equal(plain.loss, none.loss)


def test_fitted_q_takes_the_policys_expectation_in_raw_units() -> None:
    online, target = constant([[0.0, 0.0], [0.0, 0.0]]), constant([[2.0, 0.0], [4.0, 1.0]])
    for network in (online, target):
        network.shift, network.scale = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5])
    rows = batch([True, True], [True, True])
    found = fitted_q(online, target, rows, torch.tensor([[[0.25, 0.75]]]))
    # raw Q' = (1 + 2 * 2, 0), (1 + 2 * 4, 0.5): expectation (8, 0.375); y = (1 + 4, 0.1875);
    # in the network's unit ((5 - 1) / 2, 0.1875 / 0.5) = (2, 0.375) against (0, 0).
    assert found.item() == pytest.approx(4 + 0.375**2)


def test_cloning_is_the_likelihood_over_legal_actions() -> None:
    network = constant([[0.0], [1.0], [9.0]])
    found = behaviour_cloning(network, batch([True, True, False], [True] * 3, action=1))
    # -log(e / (1 + e))
    assert found.item() == pytest.approx(0.3132617)


def test_the_push_down_form_gives_no_credit() -> None:
    found = ddqn_cql(BOTH, batch([True, True, False], [True, False, False], action=1), settings(alpha=2.0, credit=0.0))
    # log(e^0 + e^3) alone, where the other form would take the logged q = 3 from it.
    assert found.gap.item() == pytest.approx(3.0485873)


def test_implicit_q_learning_by_hand() -> None:
    value, actor = constant([[10.0, 0.1]]), constant([[0.0], [1.0], [9.0]])
    networks = Networks(ONLINE, TARGET, value, actor)
    found = iql(networks, batch([True, True, False], [True] * 3, action=1), settings(expectile=0.7, temperature=0.5))
    # Q: y = (1 + 0.5 * 10, 0.5 * 0.1) against the online heads (0, 0.3): 36 + 0.0625.
    assert found.td.item() == pytest.approx(36.0625)
    # V: Q- - V = (4 - 10, 1 - 0.1) = (-6, 0.9); weighted -6 + 9 = 3 > 0, so both heads count 0.7: 0.7 (36 + 0.81);
    # though the first head alone lies below its value.
    # pi: -e^(0.5 * 3) log(e / (1 + e)), the illegal 9 left out.
    assert found.loss.item() == pytest.approx(36.0625 + 0.7 * 36.81 + math.exp(1.5) * 0.3132617, rel=1e-6)


def test_what_may_not_be_done_teaches_no_value_and_no_policy() -> None:
    networks = Networks(ONLINE, TARGET, constant([[10.0, 0.1]]), constant([[0.0], [1.0], [9.0]]))
    found = iql(networks, batch([True, True, False], [True] * 3, action=2), settings())
    # The TD error of what was logged, (6 - 9)^2 + (0.05 - 9)^2, and nothing else.
    assert found.loss.item() == found.td.item() == pytest.approx(9 + 8.95**2)
