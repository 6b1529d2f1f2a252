"""Earned against predicted: a ratio and its error by hand, against other code, and how often its interval holds."""

import math

import numpy as np
import pytest

from policies.abtest.effects import ratio
from policies.earned import Moments, against


def moments_of(y: np.ndarray, d: np.ndarray) -> Moments:
    return Moments(
        len(y), float(y.sum()), float(d.sum()), float((y * y).sum()), float((y * d).sum()), float((d * d).sum())
    )


def test_by_hand() -> None:
    # Users with y 2, 0, 4 in d 1, 1, 2 weeks: R = 6/4; residuals y - R d = 0.5, -1.5, 1, squares 0.25 + 2.25 + 1.
    found = moments_of(np.array([2.0, 0, 4]), np.array([1.0, 1, 2]))
    assert found.value == 1.5
    assert found.standard_error == pytest.approx(math.sqrt(1.5 * 3.5) / 4)


def test_as_the_experiment_reads_it() -> None:
    rng = np.random.default_rng(0)
    y, d = rng.poisson(3, 500).astype(float), rng.uniform(0.1, 4, 500)
    value, influence = ratio(y, d)
    found = moments_of(y, d)
    assert found.value == pytest.approx(value)
    assert found.standard_error == pytest.approx(math.sqrt(influence.var(ddof=1) / 500), rel=1e-9)


@pytest.mark.parametrize(("y", "d"), [([], []), ([1.0], [2.0]), ([0.0, 0.0], [0.0, 0.0])])
def test_of_nobody_of_one_and_of_no_time_nothing_is_said(y: list[float], d: list[float]) -> None:
    found = against(moments_of(np.array(y), np.array(d)), {"estimate": 1, "low": 0, "high": 2}, 0.95, 0.001)
    assert found == {"realised": None, "predicted": None, "difference": None}


def test_the_difference_has_an_interval_of_its_own() -> None:
    """Two intervals may overlap and the difference exclude 0: errors 3 and 4 give 5, not 7."""
    # R = 10 with error 3; predicted 20.5 with error 4, so that they reach 15.9 and 12.7.
    found = Moments(2, 20.0, 2.0, 200.0 + 18.0, 20.0, 2.0)
    assert (found.value, found.standard_error) == pytest.approx((10.0, 3.0))
    predicted = {"estimate": 20.5, "low": 20.5 - 1.959964 * 4, "high": 20.5 + 1.959964 * 4}
    compared = against(found, predicted, 0.95, 0.001)
    assert compared["realised"]["high"] > predicted["low"]
    gap = compared["difference"]
    assert gap["estimate"] == pytest.approx(-10.5)
    assert gap["high"] == pytest.approx(-10.5 + 1.959964 * 5, rel=1e-6)
    assert gap["high"] < 0
    assert gap["alarm_high"] == pytest.approx(-10.5 + 3.290527 * 5, rel=1e-6)


@pytest.mark.parametrize("predicted", [None, {"estimate": None, "low": None, "high": None}])
def test_without_a_prediction_what_was_earned_stands_alone(predicted: dict[str, None] | None) -> None:
    found = against(moments_of(np.array([1.0, 2.0]), np.ones(2)), predicted, 0.95, 0.001)
    assert found["realised"] is not None
    assert found["difference"] is None


def test_the_interval_of_the_difference_holds_the_truth_as_often_as_it_says() -> None:
    """Users of unlike length, 400 of them, predicted by an estimate with a normal error; 1000 times."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(1000):
        d = rng.uniform(0.2, 4, 400)
        y = rng.poisson(2 * d * rng.gamma(4, 0.25, 400)).astype(float)
        guess = 2 + 0.1 * rng.normal()
        predicted = {"estimate": guess, "low": guess - 0.1 * 1.959964, "high": guess + 0.1 * 1.959964}
        gap = against(moments_of(y, d), predicted, 0.95, 0.001)["difference"]
        inside += gap["low"] <= 0 <= gap["high"]
    # 950 expected, standard deviation 6.9.
    assert 925 <= inside <= 975
