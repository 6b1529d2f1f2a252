"""The goal classifier: what it pays, what its losses are, and what it says of held-out states."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import InputError
from models.network import Population
from models.rewards import goal, store
from models.rewards.goal import Classifier, Examples, calibrated, fit, loss, report
from models.rewards.success import GoalConfig, Sets
from models.table import Transitions

Log = Callable[..., Transitions]
PLAIN = GoalConfig(label_smoothing=0.0, gradient_penalty=0.0, hidden=(8,), steps=300, batch_size=64, learning_rate=1e-2)


def linear(*weights: float, bias: float = 0.0) -> Population:
    """One member whose logit is w . x + bias, its input as it is."""
    n = len(weights)
    return Population(
        [torch.tensor(weights).reshape(1, n, 1)], [torch.tensor([[[bias]]])], torch.zeros(n), torch.ones(n),
        torch.zeros(1), torch.ones(1), 1,
    )  # fmt: skip


def classifier(*weights: float, slope: float = 1.0, intercept: float = 0.0) -> Classifier:
    names = tuple(f"f{place}" for place in range(len(weights)))
    return Classifier(names, linear(*weights), slope, intercept)


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


def test_the_state_at_the_end_of_the_interval_is_paid_for_its_days(table_of: Log) -> None:
    """Row 0 by the state of row 1; row 1 is truncated, so its own stands in; row 2 is terminal; 3 by 4, 4 stands in."""
    log = table_of(
        [0, 0, 1, 2, 2],
        state=[0.0, 1.0, 2.0, 3.0, np.nan],
        reward=[0] * 5,
        elapsed_days=np.array([2.0, 0.5, 1.0, 3.0, 1.0]),
        terminal=np.array([False, False, True, False, False]),
    )
    stored = classifier(1.0, slope=2.0, intercept=-1.0).stored("great")
    # The NaN is taken as the mean, here 0, in both places where row 4's state counts.
    wanted = [2 * sigmoid(1), 0.5 * sigmoid(1), 0.0, 3 * sigmoid(-1), sigmoid(-1)]
    assert goal.component(stored, log) == pytest.approx(wanted, abs=1e-6)
    assert goal.stand_ins(log) == 2


def test_it_survives_the_store(table_of: Log, tmp_path: Path) -> None:
    log = table_of([0, 0], state=[[1, 5], [2, 6]], reward=[0, 0])
    told = replace(classifier(0.5), features=("f1",)).stored("great", {"base_rate": 0.1})
    kept = store.add(tmp_path, "great", "goal", told.facts, told.tensors)
    again = store.read(tmp_path, "great")
    assert goal.component(again, log).tolist() == goal.component(kept, log).tolist()
    assert goal.component(again, log)[0] == pytest.approx(sigmoid(3.0))
    assert again.facts["base_rate"] == 0.1
    with pytest.raises(InputError, match="kind is 'weights'; 'goal' is needed"):
        goal.classifier_of(store.add(tmp_path, "taste", "weights", {}, {}))


def test_ending_early_never_pays_as_it_would_by_log_p_or_a_logit() -> None:
    """Two states, p = 0.4 and 0.2, one day each step; at each the account may be closed. Values by value iteration."""
    p, horizon = np.array([0.4, 0.2]), 30
    stays = np.array([[0.7, 0.3], [0.4, 0.6]])

    def closes(reward: np.ndarray) -> list[bool]:
        value = np.zeros(2)
        for _ in range(horizon):
            going = stays @ (reward + value)
            value = np.maximum(going, 0.0)
        return (stays @ (reward + value) < 0).tolist()

    assert closes(p) == [False, False]
    assert closes(np.log(p)) == [True, True]
    assert closes(np.log(p / (1 - p))) == [True, True]


def test_cross_entropy_with_smoothed_labels() -> None:
    """Logits 1 and -2 of a success and a failure at e = 0.2: targets 0.9 and 0.1."""
    x, y = torch.tensor([[[1.0], [-2.0]]]), torch.tensor([[1.0, 0.0]])
    softplus = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(1.0)), np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))]
    wanted = (0.9 * softplus[0] + 0.1 * softplus[1] + 0.1 * softplus[2] + 0.9 * softplus[3]) / 2
    found = loss(linear(1.0), x, y, replace(PLAIN, label_smoothing=0.2), np.random.default_rng(0))
    assert found.detach().numpy() == pytest.approx([wanted], abs=1e-6)


def test_mixup_mixes_states_and_labels_alike() -> None:
    """With a bias alone the mix of states is without effect, and that of the labels is of the mean: ln 2 at logit 0."""
    x, y = torch.tensor([[[1.0], [-2.0], [0.5], [4.0]]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    config = replace(PLAIN, mixup=0.7)
    flat = loss(linear(0.0), x, y, config, np.random.default_rng(1))
    assert flat.item() == pytest.approx(np.log(2), abs=1e-6)
    share, other = (rng := np.random.default_rng(1)).beta(0.7, 0.7), rng.permutation(4)
    states, labels = (share * each + (1 - share) * each[other] for each in (x[0, :, 0].numpy(), y[0].numpy()))
    wanted = np.mean(labels * np.logaddexp(0, -states) + (1 - labels) * np.logaddexp(0, states))
    assert 0.01 < share < 0.99
    assert loss(linear(1.0), x, y, config, np.random.default_rng(1)).item() == pytest.approx(wanted, abs=1e-6)


def test_the_gradient_penalty_of_a_line_is_its_slope_squared() -> None:
    x, y = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    bare, held = (
        loss(linear(3.0, -4.0), x, y, replace(PLAIN, gradient_penalty=c), np.random.default_rng(0)).item()
        for c in (0.0, 0.5)
    )
    assert held - bare == pytest.approx(0.5 * 25.0, abs=1e-4)


def examples(seed: int, shift: float, n: int = 400, visited: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    states = [rng.normal(size=(size, 2)).astype(np.float32) for size in (n, 3 * n, visited)]
    states[0][:, 0] += shift
    return Examples(*states)


def test_the_odds_of_two_normal_densities_are_recovered() -> None:
    """N(2, 1) against N(0, 1) in the first of two features: logit = 2 x - 2, whatever the base rate is."""
    found, facts = fit(examples(0, 2.0, 3000), examples(1, 2.0, 3000), ("f0", "f1"), replace(PLAIN, steps=600), 0)
    at = np.array([[x, y] for x in (0.0, 1.0, 2.0) for y in (-1.0, 1.0)], dtype=np.float32)
    wanted = [sigmoid(2 * x - 2) for x, _ in at]
    assert found.probability(at) == pytest.approx(wanted, abs=0.08)
    # The best rule is right where x > 1, with Phi(1) = 0.841 of either class.
    assert facts["accuracy"] == pytest.approx(0.841, abs=0.03)
    assert facts["base_rate"] == 0.25
    assert facts["calibration_error"] < 0.06
    assert sum(each["share"] for each in facts["calibration"]) == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_classifier() -> None:
    config = replace(PLAIN, steps=20, mixup=0.4, gradient_penalty=0.1, members=2)
    one, other = (fit(examples(0, 2.0), examples(1, 2.0), ("f0", "f1"), config, 3)[0] for _ in range(2))
    at = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    assert one.network.members == 2
    assert np.array_equal(one.probability(at), other.probability(at))


@pytest.mark.parametrize("key", ["label_smoothing", "mixup", "gradient_penalty"])
def test_each_regulariser_flattens_the_logit(key: str) -> None:
    """Classes that a threshold tells apart without error; before calibration, which undoes a common factor."""
    apart = examples(0, 8.0)
    strong = {"label_smoothing": 0.2, "mixup": 1.0, "gradient_penalty": 1.0}
    steep, flat = (
        fit(apart, examples(1, 8.0), ("f0", "f1"), config, 0)[0].logits(apart.success).mean()
        for config in (PLAIN, replace(PLAIN, **{key: strong[key]}))
    )
    assert flat < 0.7 * steep


def test_what_policies_visit_is_called_a_success_less_often() -> None:
    """Visited states as the successes are: of p = g / (g + (f + g) / 2), 2 / 3 where no failure is."""
    plain, again = examples(0, 6.0), examples(0, 6.0, visited=1200)
    again.visited[:, 0] += 6.0
    held = examples(1, 6.0, visited=1200)
    held.visited[:, 0] += 6.0
    naive, _ = fit(plain, examples(1, 6.0), ("f0", "f1"), PLAIN, 0)
    cautious, facts = fit(again, held, ("f0", "f1"), PLAIN, 0)
    there = np.array([[6.0, 0.0]], dtype=np.float32)
    assert naive.probability(there) > 0.95
    assert cautious.probability(there) == pytest.approx([2 / 3], abs=0.05)
    assert facts["mean_p"]["visited"] == pytest.approx(2 / 3, abs=0.05)


def test_calibration_undoes_a_scale_and_a_shift_of_the_logit() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(scale=2.0, size=20_000)
    goals = rng.random(20_000) < 1 / (1 + np.exp(-true))
    told = 3 * true + 1
    slope, intercept = calibrated(told[goals], told[~goals], np.empty(0))
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert intercept == pytest.approx(-1 / 3, abs=0.05)


def test_a_classifier_that_is_wrong_of_held_out_states_says_nothing() -> None:
    """A negative slope would turn it round; the least is 0, p = 1/2 everywhere."""
    slope, intercept = calibrated(np.array([-1.0, -2.0, -1.5]), np.array([1.0, 2.0, 1.5]), np.empty(0))
    assert (slope, intercept) == pytest.approx((0.0, 0.0), abs=1e-4)


def test_the_report_weighs_both_classes_alike() -> None:
    """Success logits 1, 1, -1 and a failure at -1: 2/3 of one half and all of the other are right."""
    held = Examples(*(np.array(each, np.float32).reshape(-1, 1) for each in ([1, 1, -1], [-1], [])))
    found = report(classifier(1.0), held)
    assert found["accuracy"] == pytest.approx(0.5 * 2 / 3 + 0.5)
    assert found["base_rate"] == 0.75
    low, high = found["calibration"]
    assert low["observed"] == pytest.approx((1 / 6) / (1 / 6 + 1 / 2))
    assert (low["share"], high["observed"]) == pytest.approx((2 / 3, 1.0))
    assert low["predicted"] == pytest.approx(sigmoid(-1.0), abs=1e-6)


def test_states_are_those_of_the_split(table_of: Log) -> None:
    log = table_of([0, 0, 1, 1], state=[[1, 9], [2, 9], [3, 9], [4, 9]], reward=[0] * 4, split=np.array([0, 0, 1, 1]))
    sets = Sets(np.array([True, False, True, False]), np.array([False, True, False, False]), np.zeros(2, dtype=bool))
    found = Examples.of(log, sets, "train", ("f0",))
    assert (found.success.tolist(), found.failure.tolist(), found.visited.shape) == ([[1]], [[2]], (0, 1))
    with pytest.raises(InputError, match="the validation users have no failures"):
        Examples.of(log, sets, "validation", ("f0",))


def test_an_unknown_or_constant_feature_is_no_reason_to_fail() -> None:
    states = examples(0, 2.0)
    for each in (states.success, states.failure):
        each[:, 1] = 7.0
        each[::5, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = fit(states, examples(1, 2.0), ("f0", "f1"), PLAIN, 0)
    assert np.isfinite(found.probability(states.success)).all()
