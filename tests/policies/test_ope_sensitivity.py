import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import linprog

from models.table import Transitions
from policies.base import Booleans, Floats
from policies.ope import sensitivity
from policies.ope.sample import Sample, take
from policies.ope.sensitivity import GAMMAS
from policies.ope.wpdis import wpdis

Build = Callable[..., Transitions]


def sample_of(table: Transitions, per: str) -> Sample:
    return take(table, np.ones(len(table.action), dtype=np.bool_), per)  # type: ignore[arg-type]


def bounds(sample: Sample, ratio: Floats, estimated: Booleans, gamma: float) -> tuple[Floats, Floats]:
    low, high = sensitivity.bounds(sample, ratio, estimated, [gamma])
    return low[0], high[0]


def test_golden_bounds_of_two_decisions(table_of: Build) -> None:
    # p = 1/2, pi = 1: rho = 2. gamma = 3: 1/p* in [1 + 1/3, 1 + 3], so w in [4/3, 4]; rewards 0 and 1.
    table = table_of("ab", [1, 1], [0.5, 0.5], [0.0, 1.0])
    low, high = bounds(sample_of(table, "decision"), np.array([2.0, 2.0]), np.ones(2, dtype=np.bool_), 3.0)
    assert high[0] == pytest.approx(4 / (4 + 4 / 3))
    assert low[0] == pytest.approx((4 / 3) / (4 / 3 + 4))


@pytest.mark.parametrize("per", ["week", "decision"])
def test_gamma_of_one_is_wpdis_and_bounds_widen_with_it(table_of: Build, per: str) -> None:
    table, ratio = random_log(table_of, 0)
    sample = sample_of(table, per)
    value = wpdis(sample, ratio).over(np.ones((1, sample.users))).total()[0] / sample.exposure.sum()
    every = np.ones(len(ratio), dtype=np.bool_)
    found = list(zip(*sensitivity.bounds(sample, ratio, every, GAMMAS), strict=True))
    np.testing.assert_allclose(found[0], [value, value], rtol=1e-12)
    for (low, high), (lower, higher) in itertools.pairwise(found):
        assert (lower < low).all()
        assert (higher > high).all()


@pytest.mark.parametrize("steps", [2, 60])
def test_every_threshold_is_tried_step_by_step(table_of: Build, steps: int) -> None:
    """Against the rule written out: the j largest rewards of a step have their most, or their least. Weights of 60
    steps differ by more than sixteen digits."""
    table, ratio = random_log(table_of, 3, steps)
    ratio[1 : 5 * steps : steps] = 0.0
    estimated = np.random.default_rng(0).random(len(ratio)) < 0.8
    sample, gamma = sample_of(table, "week"), 2.0

    def weights(factor: float) -> Floats:
        odds = (1 / table.propensity - 1) * np.where(estimated, factor, 1.0)
        return np.array([np.prod((ratio * table.propensity * (1 + odds))[row - row % steps : row + 1])
                         for row in range(len(ratio))])  # fmt: skip

    least, most = weights(1 / gamma), weights(gamma)
    expected = np.zeros((2, 2))
    for step in range(steps):
        rows = np.arange(step, len(ratio), steps)
        for component in (0, 1):
            fallen = rows[np.argsort(-table.reward[rows, component])]
            means = [[], []]
            for j in range(len(rows) + 1):
                for side, (first, others) in enumerate(((least, most), (most, least))):
                    w = np.append(first[fallen[:j]], others[fallen[j:]])
                    if w.any():
                        means[side].append(w @ table.reward[fallen, component] / w.sum())
            before = expected[:, component]
            expected[:, component] = before + len(rows) * np.array([min(means[0]), max(means[1])])
    found = np.stack(bounds(sample, ratio, estimated, gamma))
    np.testing.assert_allclose(found, expected / sample.exposure.sum(), rtol=1e-9)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_a_step_that_nobody_follows_has_the_mean_before_it_as_in_wpdis(table_of: Build, per: str) -> None:
    """One row in 131 lies in a step that has no weight: WPDIS carries the step before forward, and so do the bounds."""
    names = [*np.repeat([f"u{i}" for i in range(64)], 2).tolist(), "z", "z", "z"]
    action = np.random.default_rng(1).integers(0, 2, len(names))
    action[:2], action[-3:] = 1, (1, 1, 0)
    reward = np.random.default_rng(0).normal(size=len(names))
    table = table_of(names, action, np.full(len(names), 0.5), reward)
    ratio, every = np.where(action == 1, 2.0, 0.0), np.ones(len(names), dtype=np.bool_)
    sample = sample_of(table, per)
    value = wpdis(sample, ratio).over(np.ones((1, sample.users))).total()[0] / sample.exposure.sum()
    (low, high), (lower, higher) = (bounds(sample, ratio, every, gamma) for gamma in (1.0, 2.0))
    assert np.isfinite(value).all()
    np.testing.assert_allclose([low, high], [value, value], rtol=1e-12)
    assert lower < low
    assert higher > high


def test_nothing_moves_where_every_propensity_was_logged(table_of: Build) -> None:
    table, ratio = random_log(table_of, 1)
    sample, none = sample_of(table, "week"), np.zeros(len(ratio), dtype=np.bool_)
    np.testing.assert_allclose(bounds(sample, ratio, none, 5.0)[0], bounds(sample, ratio, none, 1.0)[1], rtol=1e-12)


def test_the_threshold_rule_is_the_linear_programs_optimum(table_of: Build) -> None:
    """max sum w r / sum w by Charnes and Cooper: x = t w, sum x = 1, least t <= x <= most t."""
    table, ratio = random_log(table_of, 2, steps=1)
    sample, gamma = sample_of(table, "decision"), 1.7
    odds = 1 / table.propensity - 1
    least, most = (ratio * table.propensity * (1 + odds * f) for f in (1 / gamma, gamma))
    n, reward = len(ratio), table.reward[:, 0]
    eye = np.eye(n)
    found = linprog(
        np.append(-reward, 0.0),
        A_ub=np.block([[eye, -most[:, None]], [-eye, least[:, None]]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
    )
    high = bounds(sample, ratio, np.ones(n, dtype=np.bool_), gamma)[1][0]
    assert high == pytest.approx(-found.fun, rel=1e-7)


def test_a_hidden_cause_of_known_strength_stays_within_its_bounds(table_of: Build) -> None:
    """u doubles both the odds of a send and what it earns; who sees only the mean propensity is wrong, but not beyond
    gamma = 2."""
    rng = np.random.default_rng(0)
    users = 20_000
    hidden = rng.random(users) < 0.5
    true_p = np.where(hidden, 2 / 3, 1 / 2)
    action = (rng.random(users) < true_p).astype(int)
    reward = action * (1.0 + hidden) + rng.normal(size=users) * 0.1
    mean_p = true_p.mean()
    table = table_of([f"u{i}" for i in range(users)], action, np.where(action == 1, mean_p, 1 - mean_p), reward)
    ratio = np.where(action == 1, 1 / mean_p, 0.0)
    sample, every = sample_of(table, "decision"), np.ones(users, dtype=np.bool_)
    truth = 1.5
    naive = bounds(sample, ratio, every, 1.0)[0][0]
    low, high = bounds(sample, ratio, every, 2.0)
    assert abs(naive - truth) > 0.05
    assert low[0] < truth < high[0]


def random_log(table_of: Build, seed: int, steps: int = 3) -> tuple[Transitions, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [f"u{i}" for i in range(20) for _ in range(steps)]
    send = rng.uniform(0.2, 0.8, len(names))
    action = (rng.random(len(names)) < send).astype(int)
    propensity = np.where(action == 1, send, 1 - send)
    table = table_of(names, action, propensity, rng.normal(size=(len(names), 2)), rewards=("x", "y"))
    return table, np.where(action == 1, 0.6, 0.4) / propensity
