"""Weights, wrong answers and position bias of a judge: golden numbers, a naive second way, and a known truth."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from models.errors import InputError
from models.rewards.judge import fit as fitting
from models.rewards.judge.fit import NOTHING, SAYS_A, SAYS_B, SAYS_TIE, fit_judged

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]
TRUE = np.array([-0.2, 1.0, 0.5])
SCALE = np.array([2.0, 0.5, 3.0])
"""Standard deviations of the differences."""


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def answered(
    pairs: int, seed: int, wrong: float = 0.2, bias: float = 0.5, threshold: float = 0.0, shared: bool = False
) -> tuple[Floats, Codes, Codes]:
    """Differences and what a judge says with the left week first, and with the right one first.

    `shared`: the judge has one opinion of a pair; else a fresh one at each question.
    """
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(pairs, 3)) * SCALE
    noise = rng.logistic(size=(2, pairs))
    noise[1] = -noise[0] if shared else noise[1]
    said = []
    for order, sign in enumerate((1, -1)):
        eta = sign * (d @ TRUE) + bias + noise[order]
        codes = np.where(eta > threshold, SAYS_A, np.where(eta < -threshold, SAYS_B, SAYS_TIE))
        turned = (rng.random(pairs) < wrong) & (codes != SAYS_TIE)
        said.append(np.where(turned, 1 - codes, codes).astype(np.int8))
    return d, said[0], said[1]


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_probabilities_are_those_of_the_formula() -> None:
    """One answer each, w = 1, b = 0.5, e = 0.1, t = 0.3, shown difference 2: eta = 2.5."""
    theta = np.array([1.0, 0.5, 0.1, 0.3])
    up, down = sigma(2.5 - 0.3), sigma(-2.5 - 0.3)
    wanted = {SAYS_A: 0.9 * up + 0.1 * down, SAYS_B: 0.1 * up + 0.9 * down, SAYS_TIE: 1 - up - down}
    assert sum(wanted.values()) == pytest.approx(1)
    for code, p in wanted.items():
        loss, _ = fitting._loss(theta, np.array([[2.0]]), np.array([code], np.int8), np.ones(1))
        assert math.exp(-loss) == pytest.approx(p, rel=1e-12)
    # Without ties P(says A) = e + (1 - 2e) sigma(w.d + b) = 0.1 + 0.8 sigma(2.5).
    loss, _ = fitting._loss(np.array([1.0, 0.5, 0.1, 0.0]), np.array([[2.0]]), np.zeros(1, np.int8), np.ones(1))
    assert math.exp(-loss) == pytest.approx(0.1 + 0.8 * sigma(2.5), rel=1e-12)


def test_the_gradient_is_that_of_differences() -> None:
    rng = np.random.default_rng(0)
    d, said, weight = rng.normal(size=(60, 2)), rng.integers(0, 3, 60).astype(np.int8), rng.uniform(size=60)
    theta = np.array([0.7, -0.4, 0.3, 0.15, 0.4])
    _, gradient = fitting._loss(theta, d, said, weight)
    for place in range(5):
        step = np.zeros(5)
        step[place] = 1e-6
        up, down = (fitting._loss(theta + sign * step, d, said, weight)[0] for sign in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_one_binary_component_is_fitted_by_hand() -> None:
    """Uncorrected, 100 pairs that all differ by 1: 160 of 200 answers name the better week, and the prior adds half an
    answer to either side, so w = log(160.5 / 40.5)."""
    d = np.ones((100, 1))
    first = np.array([SAYS_A] * 75 + [SAYS_B] * 25, np.int8)
    second = np.array([SAYS_B] * 85 + [SAYS_A] * 15, np.int8)
    found = fit_judged(d, first, second, corrected=False, resamples=2)
    assert found.weights[0] == pytest.approx(math.log(160.5 / 40.5), abs=1e-4)
    assert (found.bias, found.wrong, found.threshold) == (0, 0, 0)
    share = 160.5 / 201
    assert found.log_likelihood == pytest.approx(160 * math.log(share) + 40 * math.log(1 - share), abs=1e-4)


def test_the_bias_is_fitted_by_hand() -> None:
    """With e at 0, two unknowns and two counts: sigma(b + w) = 0.75 and sigma(b - w) = 0.15."""
    d = np.ones((100, 1))
    first = np.array([SAYS_A] * 75 + [SAYS_B] * 25, np.int8)
    second = np.array([SAYS_A] * 15 + [SAYS_B] * 85, np.int8)
    at_first, at_second = math.log(3), math.log(0.15 / 0.85)

    def loss(theta: Floats) -> float:
        return fitting._loss(
            np.array([theta[0], theta[1], 0, 0]), np.vstack([d, -d]), np.r_[first, second], np.ones(200)
        )[0]

    naive = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    np.testing.assert_allclose(naive, [(at_first - at_second) / 2, (at_first + at_second) / 2], atol=1e-5)


def test_a_second_way_finds_the_same() -> None:
    """Plain probabilities and a search that knows no gradient."""
    d, first, second = answered(400, seed=3, threshold=0.4)

    def loss(theta: Floats) -> float:
        total, (b, e, t) = 0.0, theta[3:]
        if not 0 <= e <= 0.45 or t < 0:
            return 1e9
        for sign, said in ((1, first), (-1, second)):
            up, down = (1 / (1 + np.exp(-(s * (sign * d @ theta[:3] + b) - t))) for s in (1, -1))
            table = np.stack([(1 - e) * up + e * down, e * up + (1 - e) * down, 1 - up - down])
            total -= np.log(table[said, np.arange(len(said))]).sum()
        u = theta[:3] * np.sqrt((d**2).mean(axis=0))
        return total + 0.5 * float((np.log1p(np.exp(u)) + np.log1p(np.exp(-u))).sum())

    start = np.r_[TRUE, 0.5, 0.2, 0.4]
    naive = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 20_000, "xatol": 1e-7, "fatol": 1e-9})
    found = fit_judged(d, first, second, resamples=2)
    assert loss(np.r_[found.weights, found.bias, found.wrong, found.threshold]) <= naive.fun + 1e-3
    np.testing.assert_allclose([*found.weights, found.bias, found.wrong, found.threshold], naive.x, atol=0.01)


@pytest.mark.parametrize("shared", [False, True], ids=["fresh", "one opinion"])
@pytest.mark.parametrize("bias", [0.0, 0.7, -0.7])
def test_the_truth_is_recovered_whether_or_not_the_two_answers_share_their_noise(bias: float, shared: bool) -> None:
    d, first, second = answered(20_000, 1, bias=bias, shared=shared)
    found = fit_judged(d, first, second, resamples=2)
    np.testing.assert_allclose(found.weights * SCALE, TRUE * SCALE, rtol=0.12, atol=0.03)
    assert found.wrong == pytest.approx(0.2, abs=0.02)
    assert found.bias == pytest.approx(bias, abs=0.1)
    plain = fit_judged(d, first, second, corrected=False, resamples=2)
    # What is not corrected shrinks: towards e and 1 - e the answers no longer follow the weeks.
    assert np.linalg.norm(plain.weights * SCALE) < 0.6 * np.linalg.norm(TRUE * SCALE)


def test_wrong_answers_that_both_orders_share_are_counted_all_the_same() -> None:
    """The judge misreads a fifth of the pairs and stands by it: no conflict says so, only where P levels off."""
    # Both answers of a pair are one: standard errors are those of half as many. Over seeds, 0.0065 of e.
    rng = np.random.default_rng(8)
    d, first, second = answered(60_000, 8, wrong=0.0, shared=True)
    turned = rng.random(60_000) < 0.2
    first, second = (np.where(turned, 1 - said, said).astype(np.int8) for said in (first, second))
    found = fit_judged(d, first, second, resamples=2)
    assert found.wrong == pytest.approx(0.2, abs=0.02)
    np.testing.assert_allclose(found.weights * SCALE, TRUE * SCALE, rtol=0.12, atol=0.03)


def test_another_kind_of_bias_leaves_the_direction_alone() -> None:
    """In 15% of the answers the judge names the first whatever is shown: no b of the formula does that."""
    for seed in range(5):
        d, first, second = answered(1000, 50 + seed, bias=0.0)
        blind = np.random.default_rng(seed).random((2, 1000)) < 0.15
        first, second = (np.where(b, SAYS_A, s).astype(np.int8) for b, s in zip(blind, (first, second), strict=True))
        found = fit_judged(d, first, second, resamples=2)
        assert cosine(found.weights * SCALE, TRUE * SCALE) > 0.95
        assert found.bias > 0.2


def test_ties_are_a_threshold() -> None:
    d, first, second = answered(20_000, 2, threshold=0.6)
    found = fit_judged(d, first, second, resamples=2)
    assert found.threshold == pytest.approx(0.6, abs=0.08)
    assert found.wrong == pytest.approx(0.2, abs=0.02)
    np.testing.assert_allclose(found.weights, TRUE, rtol=0.12)


def test_at_a_thousand_pairs_the_weights_point_where_the_truth_does() -> None:
    """20% wrong answers, a bias, and 5% of the answers lost, over ten judges."""
    found = []
    for seed in range(10):
        d, first, second = answered(1000, seed, shared=seed % 2 == 0)
        lost = np.random.default_rng(seed).random((2, 1000)) < 0.05
        first, second = (np.where(gone, NOTHING, said) for gone, said in zip(lost, (first, second), strict=True))
        fitted = fit_judged(d, first.astype(np.int8), second.astype(np.int8), resamples=2)
        found.append(cosine(fitted.weights * SCALE, TRUE * SCALE))
    assert min(found) > 0.95


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = np.zeros(3)
    for seed in range(20):
        d, first, second = answered(400, 100 + seed, shared=seed % 2 == 0)
        found = fit_judged(d, first, second, resamples=60, seed=seed)
        pairs = [(0.2, found.wrong_interval), (0.5, found.bias_interval), (TRUE[1], found.intervals[1])]
        covered += [low <= truth <= high for truth, (low, high) in pairs]
        assert found.intervals[:, 0].tolist() <= found.weights.tolist() <= found.intervals[:, 1].tolist()
    # 95% of 20 is 19; fewer than 17 would come by chance once in 60 times, and these seeds are what they are.
    assert covered.min() >= 17


def test_a_component_in_another_unit_has_its_weight_in_that_unit() -> None:
    d, first, second = answered(500, 4)
    found = fit_judged(d, first, second, resamples=5)
    other = fit_judged(d * [1, 1000, 1], first, second, resamples=5)
    np.testing.assert_allclose(other.weights * [1, 1000, 1], found.weights, rtol=1e-3)
    np.testing.assert_allclose(other.intervals[1] * 1000, found.intervals[1], rtol=1e-3)
    assert found.covariance.shape == (3, 3)


def test_which_week_is_called_left_makes_no_difference() -> None:
    d, first, second = answered(500, 5)
    found, turned = fit_judged(d, first, second, resamples=2), fit_judged(-d, second, first, resamples=2)
    np.testing.assert_allclose(turned.weights, found.weights, rtol=1e-3)
    assert turned.bias == pytest.approx(found.bias, abs=1e-3)


def test_a_component_of_which_all_answers_say_the_same_has_a_finite_weight() -> None:
    """It differs in 5 of 400 pairs, and its better week is named ten times of ten: likeliest at no bound."""
    d, first, second = answered(400, 9, wrong=0.0, bias=0.0)
    d[:, 2] = np.where(np.arange(400) < 5, 1.0, 0.0)
    first[:5], second[:5] = SAYS_A, SAYS_B
    found = fit_judged(d, first, second, corrected=False, resamples=20)
    assert 1 < found.weights[2] < 12
    assert np.isfinite(found.intervals).all()
    # By itself, ten answers and the prior's two halves: log(10.5 / 0.5).
    alone = fit_judged(d[:5, 2:], first[:5], second[:5].copy(), corrected=False, resamples=2)
    assert alone.weights[0] == pytest.approx(math.log(10.5 / 0.5), abs=1e-3)


def test_the_prior_counts_as_one_answer_however_many_there_are() -> None:
    rng = np.random.default_rng(1)
    d, said, weight = rng.normal(size=(30, 2)), rng.integers(0, 2, 30).astype(np.int8), np.full(30, 3.0)
    theta, typical = np.array([0.4, -2.0, 0.1, 0.1, 0.0]), np.array([1.0, 2.0])
    plain, slope = fitting._loss(theta, d, said, weight)
    loss, gradient = fitting._penalised(theta, d, said, weight, typical)
    wanted = -sum(math.log(sigma(u)) + math.log(sigma(-u)) for u in (0.4, -4.0)) / 2
    assert (loss - plain) * 90 == pytest.approx(wanted)
    np.testing.assert_allclose((gradient - slope)[:2] * 90, [sigma(0.4) - 0.5, 2 * (sigma(-4.0) - 0.5)])


def test_answers_that_never_came_are_left_out() -> None:
    d, first, second = answered(300, 6)
    lost = np.full(100, NOTHING, np.int8)
    more = np.concatenate([d, np.full((100, 3), 7.0)])
    found = fit_judged(more, np.r_[first, lost], np.r_[second, lost], resamples=2)
    np.testing.assert_allclose(found.weights, fit_judged(d, first, second, resamples=2).weights, rtol=1e-4)
    assert (found.pairs, found.answers) == (300, 600)


def changed(what: str) -> tuple[Any, Any, Any]:
    d, first, second = answered(40, 7)
    if what == "few":
        return d[:3], first[:3], second[:3]
    if what == "nothing":
        return d, np.full(40, NOTHING, np.int8), np.full(40, NOTHING, np.int8)
    if what == "constant":
        return d * [1, 0, 1], first, second
    if what == "sum":
        return np.column_stack([d[:, :2], d[:, 0] + d[:, 1]]), first, second
    if what == "one answer":
        return d, np.zeros(40, np.int8), np.zeros(40, np.int8)
    if what == "ties":
        return d, np.full(40, SAYS_TIE, np.int8), np.full(40, SAYS_TIE, np.int8)
    if what == "nan":
        return np.where(np.arange(40)[:, None] == 3, np.nan, d), first, second
    raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("few", "3 pairs were answered, of 3 weights; ask for many more"),
        ("nothing", "0 pairs were answered"),
        ("constant", "component 1 differs in no pair"),
        ("sum", "one component is a sum of others"),
        ("one answer", "every one is A, whatever was shown"),
        ("ties", "every one is tie"),
        ("nan", "a total of a user-week is not finite"),
    ],
)
def test_answers_that_tell_no_weights(what: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit_judged(*changed(what), resamples=2)
