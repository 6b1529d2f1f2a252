"""Sums over draws with known probabilities: by hand, against the exact distribution, and how often they alarm."""

import math

import numpy as np
import pytest

from policies.draws import Draws


def draws_of(p: np.ndarray, x: np.ndarray) -> Draws:
    return Draws(len(p), int(x.sum()), float(p.sum()), float((p * (1 - p)).sum()))


def exact(p: np.ndarray) -> np.ndarray:
    """[n + 1] P(sum x = k), one draw after another."""
    found = np.ones(1)
    for each in p:
        found = np.convolve(found, [1 - each, each])
    return found


def test_by_hand() -> None:
    # 100 draws at 0.5, 60 taken: expected 50, variance 25, z = 10 / 5.
    found = Draws(100, 60, 50.0, 25.0)
    assert found.z == 2.0
    assert found.p_value == pytest.approx(0.0455, abs=1e-4)
    # 25 h(u) = log 2000 at u = 0.8592: 1.8592 log 1.8592 - 0.8592 = 0.29392 = log(2000) / 25 - 0.0101.
    slack = found.slack(0.001)
    u = slack / 25
    assert 25 * ((1 + u) * math.log1p(u) - u) == pytest.approx(math.log(2000), rel=1e-9)


def test_many_draws_have_the_slack_of_a_normal_tail() -> None:
    variance = 1e9
    assert Draws(1, 0, 0.0, variance).slack(0.001) == pytest.approx(math.sqrt(2 * variance * math.log(2000)), rel=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("low", [0.001, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("n", [1, 20, 400])
def test_no_more_than_alpha_lies_beyond_the_slack(alpha: float, low: float, n: int) -> None:
    """By the exact distribution, whatever the probabilities."""
    p = np.random.default_rng(n).uniform(low / 2, low, n)
    chance, slack = exact(p), Draws(n, 0, float(p.sum()), float((p * (1 - p)).sum())).slack(alpha)
    beyond = np.abs(np.arange(n + 1) - p.sum()) >= slack
    assert chance[beyond].sum() <= alpha


def test_sums_of_parts_are_the_sum() -> None:
    rng = np.random.default_rng(3)
    p = rng.random(50)
    x = rng.random(50) < p
    whole, parts = draws_of(p, x), draws_of(p[:20], x[:20]) + draws_of(p[20:], x[20:])
    assert parts.n == whole.n
    assert parts.taken == whole.taken
    assert parts.expected == pytest.approx(whole.expected)
    assert parts.variance == pytest.approx(whole.variance)


def test_what_is_certain_has_no_z_and_no_slack() -> None:
    certain = Draws(10, 10, 10.0, 0.0)
    assert certain.z is None
    assert certain.p_value is None
    assert certain.slack(0.001) == 0.0
    low, high = certain.bounds(0.001, 0.0)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)


def test_the_margin_forgives_what_is_significant_and_small() -> None:
    """A million draws at 0.2: 1.5% more is seven and a half standard deviations, and less than the margin of 2%."""
    found = Draws(1_000_000, 203_000, 200_000.0, 160_000.0)
    low, high = found.bounds(1e-6, 0.02)
    assert (low, high) == pytest.approx((0.196, 0.204), abs=1e-6)
    assert low <= 0.203 <= high
    low, high = found.bounds(1e-6, 0.0)
    assert high < 0.203


def test_a_thousand_nights_on_which_draws_follow_their_probabilities() -> None:
    """At 0.05 no more than 5% of them alarm; in truth far fewer, since the bound holds for any probabilities."""
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(1000):
        p = rng.beta(0.5, 2, int(rng.integers(5, 500)))
        found = draws_of(p, rng.random(len(p)) < p)
        low, high = found.bounds(0.05, 0.0)
        alarms += not low <= found.taken / found.n <= high
    assert alarms <= 50


@pytest.mark.parametrize(("off", "caught"), [(1.3, True), (0.7, True), (1.0, False)])
def test_a_planted_miscalibration_is_found(off: float, caught: bool) -> None:
    rng = np.random.default_rng(11)
    p = rng.uniform(0.05, 0.4, 20_000)
    found = draws_of(p, rng.random(len(p)) < off * p)
    low, high = found.bounds(1e-6, 0.02)
    assert (not low <= found.taken / found.n <= high) is caught
