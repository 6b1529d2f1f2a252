from types import SimpleNamespace

import numpy as np
import pytest

from models.contract import Contract
from models.errors import InputError
from policies.q_policy import QPolicy, deployed_probabilities

ALL = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}


def test_golden_mixture_of_behaviour_greedy_and_exploration() -> None:
    q = np.array([[1.0, 2.0]])
    logits = np.log([[0.8, 0.2]])
    decision = {"rollout_share": 0.25, "exploration": 0.1, "lambda": 0.0}
    found = deployed_probabilities(q, logits, np.ones((1, 2), bool), decision)
    # pi = 0.9 * (0, 1) + 0.1 * (1/2, 1/2) = (0.05, 0.95); 0.75 * (0.8, 0.2) + 0.25 * pi = (0.6125, 0.3875)
    np.testing.assert_allclose(found, [[0.6125, 0.3875]], atol=1e-12)


def test_illegal_actions_get_nothing_from_any_part() -> None:
    q = np.array([[0.0, 9.0, 1.0]])
    logits = np.log([[0.5, 0.3, 0.2]])
    legal = np.array([[True, False, True]])
    found = deployed_probabilities(q, logits, legal, {"rollout_share": 0.5, "exploration": 0.2, "lambda": 0.0})
    # mu over legal = (5/7, 0, 2/7); pi = 0.8 * (0, 0, 1) + 0.2 * (1/2, 0, 1/2) = (0.1, 0, 0.9)
    np.testing.assert_allclose(found, [[0.5 * 5 / 7 + 0.05, 0.0, 0.5 * 2 / 7 + 0.45]], atol=1e-12)


def test_ties_go_to_the_first_legal_action() -> None:
    found = deployed_probabilities(np.ones((2, 3)), np.zeros((2, 3)), np.array([[1, 1, 1], [0, 1, 1]], bool), ALL)
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])


def test_lambda_is_a_price_on_sends_alone() -> None:
    q = np.array([[1.0, 1.4, 1.6]])
    legal = np.ones((1, 3), bool)
    sends = (False, True, True)
    for price, chosen in ((0.0, 2), (0.5, 2), (0.59, 2), (0.61, 0)):
        found = deployed_probabilities(q, np.zeros((1, 3)), legal, {**ALL, "lambda": price}, sends)
        assert found.argmax() == chosen


def test_no_rollout_is_the_cloned_logging_policy_and_huge_logits_stay_finite() -> None:
    logits = np.array([[1000.0, 999.0]])
    found = deployed_probabilities(np.zeros((1, 2)), logits, np.ones((1, 2), bool), {**ALL, "rollout_share": 0.0})
    np.testing.assert_allclose(found, [[np.e / (1 + np.e), 1 / (1 + np.e)]], atol=1e-12)


def test_random_rows_are_probabilities_and_agree_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    q, logits = rng.normal(size=(2, 50, 4))
    legal = rng.random((50, 4)) < 0.6
    legal[:, 0] = True
    decision = {"rollout_share": 0.7, "exploration": 0.3, "lambda": 0.4}
    sends = (False, True, True, True)
    found = deployed_probabilities(q, logits, legal, decision, sends)
    for i in range(50):
        options = [a for a in range(4) if legal[i, a]]
        best = max(options, key=lambda a: q[i, a] - (0.4 if a else 0.0))
        whole = sum(np.exp(logits[i, a]) for a in options)
        for a in range(4):
            naive = 0.0
            if a in options:
                naive = 0.3 * np.exp(logits[i, a]) / whole + 0.7 * (0.7 * (a == best) + 0.3 / len(options))
            assert found[i, a] == pytest.approx(naive, abs=1e-12)
    np.testing.assert_allclose(found.sum(1), 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": {"rollout_share": 1.0, "exploration": 0.0}}, "decision.lambda: missing"),
        ({"decision": {**ALL, "rollout_share": 1.5}}, "decision.rollout_share is 1.5"),
        ({"decision": {**ALL, "exploration": -0.1}}, "decision.exploration is -0.1"),
        ({"decision": {**ALL, "lambda": 0.2}}, "needs `is_send`"),
        ({"legal": np.array([[False, False]])}, "1 rows have no legal action"),
        ({"q": np.array([[np.nan, 1.0]])}, "1 values of legal actions are not finite"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    good = {
        "q": np.zeros((1, 2)),
        "behaviour_logits": np.zeros((1, 2)),
        "legal": np.ones((1, 2), bool),
        "decision": ALL,
    }
    with pytest.raises(InputError, match=message):
        deployed_probabilities(**{**good, **change})


def test_q_policy_reads_its_artifact() -> None:
    artifact = SimpleNamespace(
        contract=Contract(("hold", "send"), ("x",), ("value",)),
        decision={**ALL, "lambda": 0.5},
        lineage={"learner": "ddqn"},
        predict=lambda state: (np.hstack([state * 0, state]), np.zeros((len(state), 2)), np.zeros((len(state), 2, 1))),
    )
    policy = QPolicy(artifact)
    assert (policy.name, QPolicy(artifact, "other").name, policy.learned) == ("ddqn", "other", True)
    found = policy.action_probabilities(np.array([[0.4], [0.6]], dtype=np.float32), np.ones((2, 2), bool))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
