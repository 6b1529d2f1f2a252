from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.q_policy import deployed_probabilities
from policies.selection import Slope
from policies.volume import PRICES, Budget, Deployed

VALIDATION = 1
SHARES = {"rollout_share": 1.0, "exploration": 0.0}


def log(table_of: Callable[..., Transitions], sent: list[int], **columns: Any) -> Transitions:
    """Validation users of one decision each, and a training user, who counts for nothing."""
    users, split = [f"u{i:03d}" for i in range(len(sent))], [VALIDATION] * len(sent)
    return table_of(
        ["a", "a", *users],
        [1, 1, *sent],
        [0.5] * (2 + len(sent)),
        [0.0] * (2 + len(sent)),
        split=[0, 0, *split],
        **columns,
    )


def test_golden_price_of_a_volume_and_its_range(table_of: Callable[..., Transitions]) -> None:
    # Ten decisions of which the log sent five; the policy's gaps are 0.1, 0.2, ... 1.0.
    table = log(table_of, [1] * 5 + [0] * 5)
    q = np.stack([np.zeros(10), np.arange(1, 11) / 10], axis=1)
    budget = Budget.of(table, "decision", SHARES, 0.6, (0.4, 1.0))
    found = budget.deployed(q, np.zeros((10, 2)), np.ones((10, 2), bool))
    # 0.6 of five sends are three: gaps 0.8, 0.9, 1.0, so a price between 0.7 and 0.8; five of them for the largest
    # volume (0.5 to 0.6), two for the smallest (0.8 to 0.9).
    prices = {"lambda": pytest.approx(0.75), "lambda_low": pytest.approx(0.55), "lambda_high": pytest.approx(0.85)}
    assert found.decision == {**SHARES, **prices}
    assert (found.facts["rows"], found.facts["logging_sends"]) == (10, 5)
    assert (found.facts["least"], found.facts["most"]) == (0.0, pytest.approx(2.0))
    assert [found.facts[price]["asked"] for price in PRICES] == [0.6, 1.0, 0.4]
    assert [found.facts[price]["expected"] for price in PRICES] == pytest.approx([0.6, 1.0, 0.4])
    budget.check("ours", found.facts)


def test_what_is_deployed_sends_the_volume_among_mixtures_and_exploration(table_of: Callable[..., Transitions]) -> None:
    rng = np.random.default_rng(0)
    rows = 4_000
    legal = rng.random((rows, 3)) < 0.8
    legal[:, 0] = True
    sent = [int(a) for a in (rng.random(rows) < 0.4) * np.where(legal[:, 1], 1, 2) * legal[:, 1:].any(axis=1)]
    whole = np.vstack([np.ones((2, 3), bool), legal])
    table = log(table_of, sent, actions=("hold", "badge", "push"), legal=whole)
    q, logits = rng.normal(size=(2, rows, 3))
    shares = {"rollout_share": 0.7, "exploration": 0.1}
    budget = Budget.of(table, "decision", shares, 1.1, (0.9, 1.2))
    act = budget.deployed(q, logits, legal)
    logged = np.count_nonzero(sent)
    for name, volume in (("lambda", 1.1), ("lambda_low", 1.2), ("lambda_high", 0.9)):
        decision = {**shares, "lambda": act.decision[name]}
        expected = deployed_probabilities(q, logits, legal, decision, (False, True, True))[:, 1:].sum()
        assert abs(expected - volume * logged) <= 0.5  # Half a step of one row.
    np.testing.assert_array_equal(
        act(q, logits, legal), deployed_probabilities(q, logits, legal, act.decision, (False, True, True))
    )


@pytest.mark.parametrize("per", ["week", "decision"])
def test_it_is_fixed_on_the_rows_that_select_a_policy(table_of: Callable[..., Transitions], per: Any) -> None:
    split, terminal = [0, 0, 0, 1, 1, 1, 2], [False] * 7
    terminal[4] = True  # The trajectory of b ends before its last row.
    table = table_of(list("aaabbbc"), [1, 0, 1, 1, 1, 1, 0], [0.5] * 7, np.arange(7.0), split=split, terminal=terminal)
    budget = Budget.of(table, per, SHARES, 1.0)
    rows = Slope.of(table, np.full((7, 2), 0.5), per).rows
    assert budget.rows == rows.sum() == (2 if per == "week" else 3)
    assert budget.sends == table.action[rows].sum()
    assert budget.bounds == (1.0, 1.0)


def test_what_no_price_can_reach_is_told(table_of: Callable[..., Transitions]) -> None:
    table = log(table_of, [1, 0])
    budget = Budget.of(table, "decision", {"rollout_share": 0.1, "exploration": 0.0}, 3.0, (1.0, 3.0))
    found = budget.deployed(np.array([[0.0, 1.0], [0.0, 2.0]]), np.zeros((2, 2)), np.ones((2, 2), bool))
    # 0.9 of the clone's even chance over two rows, and 0.1 of none or of both: 0.9 to 1.1 of the one logged send.
    assert (found.facts["least"], found.facts["most"]) == (pytest.approx(0.9), pytest.approx(1.1))
    assert found.decision["lambda_low"] == found.decision["lambda"] < 1.0
    with pytest.raises(InputError, match=r"policy.volume: ours cannot be brought to 3 .* give 0.9 to 1.1"):
        budget.check("ours", {**found.facts})


def test_ties_that_the_price_cannot_split_are_told(table_of: Callable[..., Transitions]) -> None:
    table = log(table_of, [1] * 40)
    budget = Budget.of(table, "decision", SHARES, 0.5)
    found = budget.deployed(np.tile([0.0, 1.0], (40, 1)), np.zeros((40, 2)), np.ones((40, 2), bool))
    assert found.facts["lambda"]["expected"] in (0.0, 1.0)
    with pytest.raises(InputError, match="more rows have the same gap"):
        budget.check("ours", found.facts)


def test_a_log_that_sent_nothing_has_no_volume(table_of: Callable[..., Transitions]) -> None:
    with pytest.raises(InputError, match="sent nothing at the 3 decisions of the validation split"):
        Budget.of(log(table_of, [0, 0, 0]), "decision", SHARES, 0.9)


def test_without_a_volume_it_acts_as_the_decision_says() -> None:
    act = Deployed({**SHARES, "lambda": 0.5}, (False, True))
    found = act(np.array([[0.0, 0.4], [0.0, 0.6]]), np.zeros((2, 2)), np.ones((2, 2), bool))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
