"""Bins, the population stability index and its noise: by hand, invariants, and how often nothing is taken for drift."""

import math

import numpy as np
import pytest

from models.errors import InputError
from policies.drift import Bins, Drift


def drift_of(reference: np.ndarray, now: np.ndarray) -> Drift:
    bins = Bins.of(reference)
    return Drift(bins.counts(reference), bins.counts(now))


def test_the_index_by_hand() -> None:
    # 30 and 10 against 10 and 30, a half added to each: p = 30.5/41, 10.5/41 and q the other way round.
    found = Drift(np.array([30, 10, 0]), np.array([10, 30, 0]))
    p, q = 30.5 / 41, 10.5 / 41
    assert found.psi == pytest.approx(2 * (p - q) * math.log(p / q))
    # The cumulative shares differ most after the first bin: 0.75 - 0.25.
    assert found.ks == 0.5


def test_deciles_hold_a_tenth_each_and_the_missing_are_a_bin_of_their_own() -> None:
    values = np.arange(1, 1001, dtype=float)
    values[::10] = np.nan
    bins = Bins.of(values)
    counts = bins.counts(values)
    assert counts[-1] == 100
    assert counts[:-1].tolist() == [90] * 10


def test_few_values_are_a_bin_each_and_a_new_one_falls_beside_its_neighbour() -> None:
    bins = Bins.of(np.array([0.0, 1.0, 1.0, 5.0]))
    assert bins.cuts.tolist() == [0.5, 3.0]
    assert bins.counts(np.array([0, 1, 1, 4, 9, np.nan])).tolist() == [1, 2, 2, 1]


def test_a_value_that_most_rows_share_is_one_bin() -> None:
    values = np.concatenate([np.zeros(700), np.arange(1, 301)])
    bins = Bins.of(values)
    assert bins.counts(values)[0] == 700
    assert bins.counts(values).sum() == 1000
    assert (bins.counts(values)[:-1] > 0).all()


@pytest.mark.parametrize("constant", [True, False])
def test_the_same_rows_do_not_drift(constant: bool) -> None:
    values = np.full(50, 3.0) if constant else np.random.default_rng(0).normal(size=50)
    found = drift_of(values, values)
    assert found.psi == pytest.approx(0, abs=1e-12)
    assert found.ks == 0


def test_order_does_not_matter_and_the_index_is_symmetric() -> None:
    rng = np.random.default_rng(1)
    found = Drift(rng.integers(0, 30, 6), rng.integers(0, 30, 6))
    again = Drift(found.counts, found.reference)
    assert found.psi == pytest.approx(again.psi)
    assert found.psi > 0


def test_all_of_one_side_missing_is_a_drift_like_any_other() -> None:
    rng = np.random.default_rng(2)
    found = drift_of(rng.normal(size=2000), np.full(500, np.nan))
    assert found.psi > 5
    assert drift_of(np.full(100, np.nan), np.full(50, np.nan)).psi == pytest.approx(0)


def test_without_a_reference_there_is_no_drift_to_speak_of() -> None:
    with pytest.raises(InputError, match="the reference has no rows"):
        Bins.of(np.array([]))


@pytest.mark.parametrize(("m", "n"), [(5000, 500), (300, 5000), (1000, 1000)])
def test_without_drift_the_index_is_on_average_what_theory_says(m: int, n: int) -> None:
    """(B - 1)(1/m + 1/n), with B the bins that hold rows."""
    rng = np.random.default_rng(m)
    found = []
    for _ in range(300):
        found.append(drift_of(rng.normal(size=m), rng.normal(size=n)).psi)
    assert np.mean(found) == pytest.approx(9 * (1 / m + 1 / n), rel=0.15)


def sample(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    values = {
        "normal": lambda: rng.normal(size=n),
        "counts": lambda: rng.poisson(0.4, n).astype(float),
        "category": lambda: (rng.random(n) < 0.03).astype(float),
    }[kind]()
    values[rng.random(n) < 0.02] = np.nan
    return values


@pytest.mark.parametrize("kind", ["normal", "counts", "category"])
@pytest.mark.parametrize("n", [10, 60, 400, 3000])
def test_a_thousand_nights_without_drift(kind: str, n: int) -> None:
    """At the level 0.01 at most 1% of nights alarm, of small ones fewer; 20 of 1000 would be three deviations more."""
    rng, alarms = np.random.default_rng(5), 0
    for _ in range(20):
        reference = sample(rng, kind, 4000)
        bins = Bins.of(reference)
        counts = bins.counts(reference)
        for _ in range(50):
            found = Drift(counts, bins.counts(sample(rng, kind, n)))
            alarms += found.psi > found.noise(0.01, (4000, n))
    assert alarms <= 20


def test_rows_of_the_same_users_count_once() -> None:
    """Ten rows of a user say no more than one: by rows most nights alarm, by users none of them should."""
    rng, by_rows, by_users = np.random.default_rng(6), 0, 0
    reference = rng.normal(size=5000)
    bins = Bins.of(reference)
    counts = bins.counts(reference)
    for _ in range(100):
        found = Drift(counts, bins.counts(np.repeat(rng.normal(size=100), 10)))
        by_rows += found.psi > found.noise(0.01, (5000, 1000))
        by_users += found.psi > found.noise(0.01, (5000, 100))
    assert by_rows > 50
    assert by_users <= 5


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_a_planted_shift_is_found(shift: float) -> None:
    rng = np.random.default_rng(8)
    found = drift_of(rng.normal(size=5000), rng.normal(size=1000) + shift)
    assert found.psi > max(0.1, found.noise(1e-6, (5000, 1000)))
    # The index of a normal moved by d standard deviations is d^2, of which ten bins see most.
    assert 0.75 * shift**2 < found.psi < 1.1 * shift**2
