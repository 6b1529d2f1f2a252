"""Intervals against a profile traced on a grid, ratios against Fieller's formula, and what has no bounds."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.stats import chi2

from models.rewards.answers import Answers, Pair
from models.rewards.bradley_terry import Model, maximise
from models.rewards.intervals import constrained, profile, ratio
from models.rewards.preferences import random_pairs
from tests.models.rewards.preferring import NOBODY, raw_model, say, weeks_from, world

LIMIT = float(chi2.ppf(0.95, 1))


def few(pairs: int, seed: int = 2, effect: float = 1.0) -> tuple[Model, NDArray[np.float64]]:
    """Two components in standard deviations, one rater, so many pairs; the model and its maximum."""
    rng = np.random.default_rng(seed)
    weeks = weeks_from(rng.normal(size=(80, 2)))
    asked = random_pairs(weeks, NOBODY, pairs, rng)
    model = raw_model(weeks, Answers(say(weeks, asked, rng, truth=np.array([1.2, effect]))))
    return model, maximise(model, np.zeros(model.size), model.free)


def traced(model: Model, best: NDArray[np.float64], fixed: int, value: float) -> float:
    """D at theta[fixed] = value, the other weight and the side found by a search without derivatives."""
    other = 1 - fixed

    def loss(free: NDArray[np.float64]) -> float:
        theta = np.zeros(model.size)
        theta[fixed], theta[other], theta[model.sides] = value, free[0], free[1]
        return -model.at(theta).value

    start = [best[other], best[model.sides][0]]
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 4000})
    return 2 * (model.at(best).value + float(found.fun))


@pytest.mark.parametrize("place", [0, 1])
def test_ends_are_where_the_traced_profile_crosses_the_limit(place: int) -> None:
    model, best = few(25)
    low, high = profile(model, best, place, 0.95)
    assert low < best[place] < high
    for end in (low, high):
        assert traced(model, best, place, end) == pytest.approx(LIMIT, abs=1e-4)
    # Inside the profile stays below, outside above: the interval is all of it.
    grid = np.linspace(low, high, 9)[1:-1]
    assert all(traced(model, best, place, value) < LIMIT for value in grid)
    assert traced(model, best, place, low - 0.2) > LIMIT < traced(model, best, place, high + 0.2)


def test_few_answers_give_a_skewed_interval_and_many_a_symmetric_one() -> None:
    """At 20 pairs the far end lies further out; by 2000 the interval is estimate -+ 1.96 standard errors."""
    model, best = few(20)
    low, high = profile(model, best, 0, 0.95)
    assert high - best[0] > 1.15 * (best[0] - low)
    model, best = few(2000)
    error = math.sqrt(model.covariance(best)[0, 0])
    assert profile(model, best, 0, 0.95) == pytest.approx((best[0] - 1.96 * error, best[0] + 1.96 * error), rel=0.02)


def test_four_times_the_answers_halve_the_interval() -> None:
    short, long = few(400), few(1600)
    widths = [np.diff(profile(model, best, 0, 0.95))[0] for model, best in (short, long)]
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.15)


def test_consistent_answers_have_a_finite_estimate_and_a_long_interval() -> None:
    """Every pair is decided by the sign of the difference: without a prior w would be infinite."""
    rng = np.random.default_rng(0)
    weeks = weeks_from(rng.normal(size=(40, 1)))
    said = [
        Pair(f"w{a}", f"w{b}", "left" if weeks.totals[a, 0] > weeks.totals[b, 0] else "right", "ann")
        for a, b in random_pairs(weeks, NOBODY, 30, rng)
    ]
    model = raw_model(weeks, Answers(tuple(said)))
    best = maximise(model, np.zeros(model.size), model.free)
    low, high = profile(model, best, 0, 0.95)
    assert 0 < low < best[0] < high < 1000
    assert high - best[0] > 3 * (best[0] - low)


def test_a_constraint_leaves_all_that_is_orthogonal_to_it() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 4)))[0]
    normal = np.array([1.0, -2.0, 0.0, 0.0, 0.0])
    left = constrained(basis, normal)
    assert left.shape == (5, 3)
    assert normal @ left == pytest.approx(np.zeros(3), abs=1e-12)
    assert left.T @ left == pytest.approx(np.eye(3), abs=1e-12)
    assert basis @ (basis.T @ left) == pytest.approx(left, abs=1e-12)


# Ratios


def fieller(over: float, under: float, cover: NDArray[np.float64]) -> tuple[float, float]:
    """Roots c of (over - c under)^2 = z^2 (V_oo - 2 c V_ou + c^2 V_uu), Fieller (1954); V of (over, under)."""
    a = under**2 - LIMIT * cover[1, 1]
    b = over * under - LIMIT * cover[0, 1]
    c = over**2 - LIMIT * cover[0, 0]
    root = math.sqrt(b**2 - a * c)
    return (b - root) / a, (b + root) / a


def test_a_ratio_of_many_answers_is_fiellers() -> None:
    model, best = few(3000)
    found = ratio(model, best, 1, 0, 0.95)
    cover = model.covariance(best)[np.ix_([1, 0], [1, 0])]
    assert found.value == pytest.approx(best[1] / best[0])
    assert (found.low, found.high) == pytest.approx(fieller(best[1], best[0], cover), rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0 / 1.2 < found.high


def test_a_ratio_of_few_answers_is_where_its_profile_crosses_the_limit() -> None:
    model, best = few(60)
    found = ratio(model, best, 1, 0, 0.95)
    assert found.low is not None
    assert found.high is not None

    def at(c: float) -> float:
        """D - limit under w_1 = c w_0."""

        def loss(free: NDArray[np.float64]) -> float:
            theta = np.zeros(model.size)
            theta[0], theta[1], theta[model.sides] = free[0], c * free[0], free[1]
            return -model.at(theta).value

        start = [best[0], best[model.sides][0]]
        options = {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 4000}
        return (
            2 * (model.at(best).value + float(minimize(loss, start, method="Nelder-Mead", options=options).fun)) - LIMIT
        )

    assert found.low == pytest.approx(brentq(at, found.low - 0.1, found.value, xtol=1e-6), abs=1e-4)
    assert found.high == pytest.approx(brentq(at, found.value, found.high + 0.1, xtol=1e-6), abs=1e-4)


@pytest.mark.parametrize("over_is_clear", [True, False])
def test_a_ratio_over_what_may_be_zero_has_no_bounds(over_is_clear: bool) -> None:
    """w_1 = 0 in truth: as a denominator it bounds nothing, whatever stands above it; as a numerator it may."""
    model, best = few(60, effect=0.0)
    low, high = profile(model, best, 1, 0.95)
    assert low < 0 < high
    found = ratio(model, best, 0, 1, 0.95) if over_is_clear else ratio(model, best, 1, 0, 0.95)
    if over_is_clear:
        assert (found.low, found.high) == (None, None)
        assert found.times(3.0) == type(found)(3 * found.value, None, None)
    else:
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0 < found.high


def test_where_nothing_is_known_every_ratio_is_possible() -> None:
    rng = np.random.default_rng(1)
    weeks = world(40)
    said = say(weeks, random_pairs(weeks, NOBODY, 12, rng), rng, truth=np.zeros(3))
    model = raw_model(weeks_from(weeks.totals / [1.0, 20.0, 0.1]), Answers(said))
    best = maximise(model, np.zeros(model.size), model.free)
    assert ratio(model, best, 0, 1, 0.95).low is None
