"""What ragged trajectories are held in does not change what is read of them, and does not grow with the longest."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.ope.grouped import Grouped, grouped, over
from policies.ope.intervals import poisson_counts, user_keys
from policies.ope.sample import take
from policies.ope.summaries import Normalised
from policies.ope.wdr import wdr
from policies.ope.wpdis import wpdis
from policies.rowset import EvaluateConfig, RowSet
from policies.rules import GateConfig
from policies.tally import Plan

Build = Callable[..., Transitions]


def ragged(table_of: Build, users: int, longest: int, components: int = 2) -> Transitions:
    """One user of `longest` decisions, the others of one each."""
    rng = np.random.default_rng(0)
    names = np.repeat([f"u{i}" for i in range(users)], [longest] + [1] * (users - 1)).tolist()
    n = len(names)
    action = rng.integers(0, 2, n)
    reward = rng.normal(size=(n, components))
    return table_of(names, action, np.full(n, 0.5), reward, rewards=tuple("abcdef"[:components]))


def sample_of(table: Transitions, per: Any = "week") -> Any:
    return take(table, np.ones(len(table.action), dtype=np.bool_), per)


def full(found: Any) -> Normalised:
    return Normalised(*(each.toarray() for each in (found.weighted, found.weight, found.observed)), found.corrects)


@pytest.mark.parametrize("estimator", ["wpdis", "wdr"])
def test_cells_that_hold_a_row_say_what_all_cells_say(table_of: Build, estimator: str) -> None:
    table = ragged(table_of, 60, 30)
    sample = sample_of(table)
    ratio = np.random.default_rng(1).uniform(0.5, 1.5, len(table.action))
    if estimator == "wpdis":
        found: Any = wpdis(sample, ratio)
    else:
        q = np.random.default_rng(2).normal(size=(len(ratio), 2, 2))
        found = wdr(sample, ratio, np.full((len(ratio), 2), 0.5), q).correction
    assert isinstance(found.weighted, Grouped)
    counts = poisson_counts(user_keys(table.user_id), 100, 0).astype(np.float64)
    few, every = found.over(counts), full(found).over(counts)
    for name in ("weighted", "weight", "observed"):
        np.testing.assert_allclose(getattr(few, name), getattr(every, name), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(few.terms(), every.terms(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_sums_are_those_of_the_rows_one_by_one(shape: tuple[int, ...]) -> None:
    """Two rows of one user and group, and values 0, in both forms: 3 users of at most 3 groups, then of 40."""
    for group, held in (([0, 1, 1, 0, 2], np.ndarray), ([0, 1, 1, 0, 40], Grouped)):
        user = np.array([0, 0, 0, 1, 2])
        values = np.random.default_rng(0).normal(size=(5, *shape))
        values[3] = 0
        found = grouped(user, np.array(group), values)
        expected = np.zeros((3, max(group) + 1, *shape))
        for who, where, value in zip(user, group, values, strict=True):
            expected[who, where] += value
        assert isinstance(found, held)
        assert found.shape == expected.shape
        np.testing.assert_allclose(over(np.eye(3), found), expected, rtol=1e-15)


def test_weights_are_the_products_of_a_grid(table_of: Build) -> None:
    rng = np.random.default_rng(5)
    length = rng.integers(1, 12, 50)
    names = np.repeat([f"u{i}" for i in range(50)], length).tolist()
    n = len(names)
    sample = sample_of(table_of(names, [1] * n, [0.5] * n, np.zeros(n)))
    ratio = rng.choice([0.0, 0.3, 1.7, 1 / 3], n, p=[0.05, 0.25, 0.3, 0.4])
    grid = np.ones((50, 13))
    grid[sample.user, sample.group + 1] = ratio
    product = np.cumprod(grid, axis=1)
    before, after = sample.weights(ratio)
    np.testing.assert_array_equal(before, product[sample.user, sample.group])
    np.testing.assert_array_equal(after, product[sample.user, sample.group + 1])


def peak_mb(work: Callable[[], Any]) -> float:
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 1e6


def test_memory_grows_with_the_rows_and_not_with_users_times_the_longest(table_of: Build) -> None:
    """5,999 rows of 5,000 users, the longest trajectory 1,000: a full array of users, steps and components has 240
    MB."""
    sample = sample_of(ragged(table_of, 5000, 1000, 6))
    assert peak_mb(lambda: wpdis(sample, np.ones(len(sample.rows)))) < 10


class TestResamplesAtATime:
    """The sums of so many resamples as are held at once are bounded, too: G steps, Z bins, K components."""

    def test_long_trajectories_are_summed_in_fewer_resamples(self, table_of: Build) -> None:
        table = ragged(table_of, 40, 3000)
        config = EvaluateConfig(resamples=200, marginal={})
        plan = Plan.of(table, [], config, GateConfig(), 0, levels=None)  # type: ignore[arg-type]
        binned = Plan.of(table, [], EvaluateConfig(resamples=200, marginal={"x0": 2}), GateConfig(), 0, None)  # type: ignore[arg-type]
        # 32 million numbers at most, of 3,000 x (2 + 2) by step, and of 3,000 x Z x (2 + 2 + Z) by step and bin
        assert plan.step == 32_000_000 // 12_000
        assert binned.bins is not None
        bins = binned.bins.number + 1  # and one of those who left
        assert binned.step == 32_000_000 // (3000 * bins * (4 + bins))

    def test_chunks_do_not_change_an_estimate(self, table_of: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        table = ragged(table_of, 40, 20)
        whole = RowSet.of(table, np.ones(len(table.action), dtype=np.bool_), EvaluateConfig(resamples=100), 0)
        summary = wpdis(whole.sample, np.ones(len(table.action)))
        at_once = whole.metrics(summary)
        monkeypatch.setattr("policies.ope.intervals.SUMS_CELLS", 100)
        for name, values in whole.metrics(summary).items():
            np.testing.assert_allclose(values, at_once[name], rtol=1e-12)
