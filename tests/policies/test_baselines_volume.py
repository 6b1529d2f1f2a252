"""How much the baselines send: golden rates and cuts, the log's volume met, nothing illegal."""

from dataclasses import replace

import numpy as np
import pytest

from models.errors import InputError
from policies.base import checked_probabilities
from policies.baselines import fit_random
from policies.baselines.volume import UNTRIED, Cut, cut_on_validation, send_rate_of, with_sends

BOTH, HOLD, SEND = (1, 1), (1, 0), (0, 1)
LEGAL = np.array([BOTH, BOTH, BOTH, BOTH, BOTH, BOTH, HOLD, HOLD, SEND, SEND], bool)


def plain(table_of, action, **columns):
    n = len(action)
    return table_of([f"u{i}" for i in range(n)], action, np.full(n, 0.5), np.zeros(n), split=np.zeros(n), **columns)


def test_random_sends_as_often_as_the_log(table_of) -> None:
    # 4 sends where there was a choice, 2 unavoidable ones: (6 - 2) / 6 decisions with a choice.
    found = fit_random(plain(table_of, [1, 1, 0, 1, 1, 0, 0, 0, 1, 1], legal=LEGAL))
    assert found.send == pytest.approx(4 / 6, abs=1e-15)
    probability = found.action_probabilities(np.zeros((10, 1), np.float32), LEGAL)
    np.testing.assert_allclose(probability[:, 1], [4 / 6] * 6 + [0, 0, 1, 1], atol=1e-15)
    assert probability[:, 1].sum() == pytest.approx(6, abs=1e-12)


def test_sends_that_limits_forbid_are_made_up_for_elsewhere(table_of) -> None:
    # The log sent in rows 6 and 7, where hold alone is legal: 5 sends, (5 - 2) / 6.
    table = plain(table_of, [1, 0, 0, 0, 0, 0, 1, 1, 1, 1], legal=LEGAL)
    found = fit_random(table)
    assert found.send == pytest.approx(3 / 6, abs=1e-15)
    assert found.action_probabilities(table.state, table.legal)[:, 1].sum() == pytest.approx(5, abs=1e-12)


def test_random_shares_its_sends_as_the_log_does_among_those_that_are_legal(table_of) -> None:
    # 10 decisions, 3 badges and 1 push: p = 0.4, split 3/4 and 1/4.
    legal = np.ones((10, 4), bool)
    table = plain(table_of, [1, 1, 1, 2, 0, 0, 0, 0, 0, 0], legal=legal, actions=("hold", "badge", "push", "mail"))
    found = fit_random(table)
    np.testing.assert_allclose(found.share, [0, 0.75, 0.25, 0], atol=1e-15)
    legal = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    wanted = [[0.6, 0.3, 0.1, 0], [0.6, 0, 0.4, 0], [0.6, 0, 0, 0.4], [0, 0.75, 0.25, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(found.action_probabilities(np.zeros((5, 1), np.float32), legal), wanted, atol=1e-15)


def test_the_volume_is_that_of_training_rows_outside_the_warm_up(table_of) -> None:
    table = plain(table_of, [1, 1, 0, 0, 0, 0, 0, 0])
    # Rows 0 and 1 do not count, nor does the split of the last two: 0 sends of 4, then 1 of 4.
    early = replace(table, warm_up=np.arange(8) < 2, split=np.array([0, 0, 0, 0, 0, 0, 1, 2], np.int8))
    assert send_rate_of(early, "train", "random", None) == 0.0
    action = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    assert send_rate_of(replace(early, action=action), "train", "random", None) == 0.25
    assert send_rate_of(replace(early, action=action), "validation", "random", None) == 1.0


@pytest.mark.parametrize(
    ("rate", "threshold", "at"),
    [
        (0.0, 0.9, 0.0),
        (0.4, 0.5, 0.5),  # wanted 2 of 5: 0.9, and one of the two at 0.5
        (0.6, 0.2, 0.0),  # 0.9, 0.5, 0.5 and nothing of 0.2
        (0.7, 0.2, 0.5),
        (1.0, 0.1, 1.0),
    ],
)
def test_a_cut_sends_at_the_rate_it_was_made_for(rate: float, threshold: float, at: float) -> None:
    score = np.array([0.5, 0.1, 0.9, 0.2, 0.5])
    found = Cut.of(score, rate)
    assert found.threshold == threshold
    assert found.at == pytest.approx(at, abs=1e-12)
    legal = np.ones((5, 2), bool)
    sent = found.probabilities(np.stack([np.zeros(5), score], axis=1), legal)[:, 1]
    assert sent.sum() == pytest.approx(rate * 5, abs=1e-12)


def test_a_cut_takes_the_highest_legal_send() -> None:
    score = np.array([[9.0, 0.2, 0.7]] * 5)
    legal = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    found = Cut(0.5, 0.0).probabilities(score, legal)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    # Where nothing that was tried is legal, and hold is not: what there is.
    never = np.full((1, 3), UNTRIED)
    np.testing.assert_array_equal(
        Cut(0.5, 0.0).probabilities(never, np.array([[False, True, True]])), [[0.0, 1.0, 0.0]]
    )


def test_every_row_is_a_distribution_over_legal_actions() -> None:
    draw = np.random.default_rng(4)
    legal = draw.random((2000, 4)) < 0.5
    legal[~legal.any(axis=1), 0] = True

    class Given:
        name = "given"
        learned = False

        def action_probabilities(self, state, legal):
            return with_sends(
                draw.random(len(legal)), draw.random(legal.shape) * (draw.random(legal.shape) < 0.5), legal
            )

    checked_probabilities(Given(), np.zeros((2000, 1), np.float32), legal)


@pytest.mark.parametrize(
    ("columns", "rate", "message"),
    [
        ({"actions": ("push", "send")}, None, r"random: the log has no action `hold` \(its first is 'push'\)"),
        ({"legal": [HOLD] * 4}, None, "no decision of the train split leaves a choice"),
        ({"legal": [BOTH, HOLD, HOLD, HOLD]}, None, "sends 2 times in the train split, where sends are legal 1 times"),
        ({"action": [0, 0, 0, 0]}, None, "random: the training split has no send"),
        ({}, 1.5, r"the send rate is 1.5; give a share of the decisions in \[0, 1\]"),
    ],
)
def test_a_volume_that_nobody_could_have_is_refused(table_of, columns, rate, message) -> None:
    columns = {"action": [1, 1, 0, 0], **columns}
    with pytest.raises(InputError, match=message):
        fit_random(plain(table_of, columns.pop("action"), **columns), send_rate=rate)


def test_a_volume_is_not_met_with_actions_hardly_tried(table_of) -> None:
    table = replace(plain(table_of, [1, 1, 1, 0]), split=np.ones(4, np.int8))
    score = np.array([[0.0, 0.3], [0.0, UNTRIED], [0.0, UNTRIED], [0.0, 0.2]])
    assert cut_on_validation(table, lambda _: score, "x", 0.5)[0].threshold == UNTRIED  # at it, none
    with pytest.raises(InputError, match=r"x: to send at 0\.750 of the validation decisions it would need actions"):
        cut_on_validation(table, lambda _: score, "x", None)
