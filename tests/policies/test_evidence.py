"""What the gate asks beyond estimates: segments, agreement of estimators, confounding, exploration."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.evidence import confounding, disagreement, relative_difference, spread
from policies.ope.diagnostics import Explored, weight_diagnostics
from policies.ope.mis import bins
from policies.ope.on_policy import on_policy
from policies.ope.sample import take
from policies.ope.target import Target
from policies.rowset import EvaluateConfig, RowSet
from policies.segments import segments

Build = Callable[..., Transitions]
QUICK = EvaluateConfig(resamples=400)


def every(table: Transitions) -> Any:
    return np.ones(len(table.user), dtype=np.bool_)


class TestSegments:
    def test_users_are_parted_by_their_first_row(self, table_of: Build) -> None:
        # a begins at 1 and ends at 9, b begins at 5, c at 3, d unknown: the median of 1, 5, 3 is 3
        state = [1, 9, 5, 3, 3, np.nan]
        table = table_of("aabccd", [0] * 6, [0.5] * 6, [0.0] * 6, state=state)
        found = segments(table, every(table), ["x0"])
        assert {name: np.flatnonzero(rows).tolist() for name, rows in found.items()} == {
            "x0 up to 3": [0, 1, 3, 4], "x0 above 3": [2], "x0 unknown": [5]
        }  # fmt: skip

    def test_two_values_are_two_segments_and_one_is_none(self, table_of: Build) -> None:
        table = table_of("abc", [0] * 3, [0.5] * 3, [0.0] * 3, state=[[0, 7], [1, 7], [1, 7]])
        found = segments(table, every(table), ["x0", "x1"])
        assert {name: rows.tolist() for name, rows in found.items()} == {
            "x0 = 0": [True, False, False], "x0 = 1": [False, True, True]
        }  # fmt: skip

    def test_a_median_that_is_the_largest_value_still_parts(self, table_of: Build) -> None:
        table = table_of("abcde", [0] * 5, [0.5] * 5, [0.0] * 5, state=[1, 2, 3, 3, 3])
        found = segments(table, every(table), ["x0"])
        assert {name: int(rows.sum()) for name, rows in found.items()} == {"x0 up to 2": 2, "x0 above 2": 3}

    def test_only_the_rows_asked_for_take_part(self, table_of: Build) -> None:
        table = table_of("aab", [0] * 3, [0.5] * 3, [0.0] * 3, state=[1, 2, 2])
        found = segments(table, np.array([False, True, True]), ["x0"])
        assert found == {}  # both users begin at 2 there

    def test_an_unknown_feature_is_named(self, table_of: Build) -> None:
        table = table_of("a", [0], [0.5], [0.0])
        with pytest.raises(InputError, match=r"gate.segments: 'age' is not a state feature \(known: x0\)"):
            segments(table, every(table), ["age"])


def harm_to_half(table_of: Build, users: int = 800) -> Transitions:
    """A send earns 1, but from users of x0 = 1 it takes 1; logged by a coin, three decisions a user."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(users) % 2, 3)
    action = (rng.random(3 * users) < 0.5).astype(int)
    reward = 2 + action * (1 - 2 * kind) + rng.normal(size=3 * users) * 0.3
    names = np.repeat([f"u{i}" for i in range(users)], 3).tolist()
    return table_of(names, action, [0.5] * 3 * users, reward, state=kind)


class Always:
    name, learned = "always", False

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        return np.tile([0.0, 1.0], (len(legal), 1))


def test_a_segment_shows_the_harm_that_the_mean_hides(table_of: Build) -> None:
    table = harm_to_half(table_of)
    whole = RowSet.of(table, every(table), QUICK, 0)
    target, q = Target.of(Always(), table), np.zeros((len(table.user), 2, 1))
    parts = segments(table, every(table), ["x0"])
    among = {name: whole.among(table, rows) for name, rows in parts.items()}
    found = {
        name: relative_difference(
            part.estimates(target, q, only=("wpdis",))["wpdis"], part.metrics(on_policy(part.sample))
        )
        for name, part in among.items()
    }
    # the log earns 2 + 0.5 and always 3 of x0 = 0; 2 - 0.5 and 1 of x0 = 1
    for name, expected in (("x0 = 0", 0.5 / 2.5), ("x0 = 1", -0.5 / 1.5)):
        figure = found[name]["value"]
        assert among[name].sample.users == 400
        assert abs(figure["relative"] - expected) < 4 * figure["se"] < 0.2
    together = target_difference(whole, target, q)
    assert abs(together) < 0.05


def target_difference(whole: RowSet, target: Target, q: Any) -> float:
    logged = whole.metrics(on_policy(whole.sample))["value"]
    return float((whole.estimates(target, q, only=("wpdis",))["wpdis"]["value"] / logged - 1)[0])


def test_a_part_of_the_users_has_the_same_resamples_as_the_whole(table_of: Build) -> None:
    table = harm_to_half(table_of, 60)
    whole = RowSet.of(table, every(table), QUICK, 5)
    rows = table.state[:, 0] == 1
    part, alone = whole.among(table, rows), RowSet.of(table, rows, QUICK, 5)
    np.testing.assert_array_equal(part.counts, alone.counts)
    np.testing.assert_array_equal(part.keys, alone.keys)
    np.testing.assert_array_equal(part.sample.rows, alone.sample.rows)


def test_disagreement_is_paired_and_leaves_out_what_is_not_consistent() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=401)
    logged = {"m": np.full(401, 2.0)}
    made = {"dr": {"m": 3 + noise}, "wpdis": {"m": 3.2 + noise}, "fqe": {"m": noise}, "ips": {"m": noise},
            "wdr": {"m": np.full(401, np.nan)}}  # fmt: skip
    found = disagreement(made, logged, "dr", "week")
    assert set(found) == {"wpdis", "wdr"}
    assert found["wdr"] == {}
    # (3.2 - 3) / 2, and no noise is left of what both share
    assert found["wpdis"]["m"]["relative"] == pytest.approx(0.1)
    assert found["wpdis"]["m"]["se"] < 1e-12
    assert set(disagreement(made, logged, "dr", "decision")) == {"wpdis", "wdr", "ips"}


def test_a_spread_that_resamples_cannot_say_is_none() -> None:
    values = np.append(1.0, np.arange(200.0))
    assert spread(values) == (1.0, pytest.approx(np.arange(200.0).std(ddof=1)))
    values[5] = np.nan
    assert spread(values) is not None
    values[5:9] = np.nan
    assert spread(values) is None


def test_confounding_brackets_the_estimate_and_only_estimated_rows_move_it(table_of: Build) -> None:
    table = harm_to_half(table_of, 100)
    whole = RowSet.of(table, every(table), QUICK, 0)
    target, logged = Target.of(Always(), table), whole.metrics(on_policy(whole.sample))
    none = confounding(whole, np.zeros(len(table.user), dtype=np.bool_), target, logged)
    relative = target_difference(whole, target, np.zeros((len(table.user), 2, 1)))
    np.testing.assert_allclose(none["metrics"]["value"]["low"], relative, rtol=1e-9)
    all_ = confounding(whole, every(table), target, logged)
    low, high = (np.array(all_["metrics"]["value"][side]) for side in ("low", "high"))
    assert low[0] == pytest.approx(relative) == pytest.approx(high[0])
    assert (np.diff(low) < 0).all()
    assert (np.diff(high) > 0).all()


def test_exploration_foretells_the_effective_sample_size_it_would_bring(table_of: Build) -> None:
    """Logs at 10% sends say what a log with half of its draws uniform (30% sends) has for a policy of 50%."""

    def log(send: float, seed: int) -> Transitions:
        rng = np.random.default_rng(seed)
        users = 40_000
        action = (rng.random(2 * users) < send).astype(int)
        names = np.repeat([f"u{i}" for i in range(users)], 2).tolist()
        return table_of(names, action, np.where(action == 1, send, 1 - send), np.zeros(2 * users))

    class Half(Always):
        def action_probabilities(self, state: Any, legal: Any) -> Any:
            return np.full((len(legal), 2), 0.5)

    def sample(table: Transitions) -> Any:
        return take(table, every(table), "week")

    then = log(0.1, 0)
    foretold = Explored.of(sample(then), Target.of(Half(), then).ratio).ess()
    later = log(0.3, 1)
    found = weight_diagnostics(sample(later), Target.of(Half(), later).ratio)["ess"]
    # E[rho^2] = 0.25 / 0.3 + 0.25 / 0.7 a decision: 40,000 / 1.1905^2 = 28,224
    assert found == pytest.approx(28_224, rel=0.02)
    assert foretold["0.5"] == pytest.approx(28_224, rel=0.05)
    assert foretold["1"] == pytest.approx(40_000, rel=0.05)


@pytest.mark.parametrize("decisions", [1, 50])
def test_exploration_foretells_what_users_of_many_decisions_would_weigh(table_of: Build, decisions: int) -> None:
    """Per decision a user's weight is a mean, whose spread falls with their decisions; some users have but one."""

    def log(send: float, seed: int, users: int = 3000) -> Transitions:
        rng = np.random.default_rng(seed)
        names = np.repeat([f"u{i}" for i in range(users)], np.where(np.arange(users) % 3, decisions, 1)).tolist()
        action = (rng.random(len(names)) < send).astype(int)
        return table_of(names, action, np.where(action == 1, send, 1 - send), np.zeros(len(names)))

    class Half(Always):
        def action_probabilities(self, state: Any, legal: Any) -> Any:
            return np.full((len(legal), 2), 0.5)

    def sample(table: Transitions) -> Any:
        return take(table, every(table), "decision")

    then, later = log(0.1, 0), log(0.3, 1)
    parts = [then.where(then.user % 2 == each) for each in (0, 1)]
    found = [Explored.of(sample(each), Target.of(Half(), each).ratio) for each in (then, *parts)]
    # E[rho^2] = 0.25 / 0.3 + 0.25 / 0.7 = 1.1905 of one decision, 1 + 0.1905 / m of the mean of m
    expected = 3000 / (1 + 0.1905 * (1 / 3 + 2 / 3 / decisions))
    assert weight_diagnostics(sample(later), Target.of(Half(), later).ratio)["ess"] == pytest.approx(expected, rel=0.01)
    assert found[0].ess()["0.5"] == pytest.approx(expected, rel=0.02)
    assert (found[1] + found[2]).ess() == pytest.approx(found[0].ess())


class TestBins:
    def test_parts_of_equal_size_unknown_apart_and_late_decisions_apart(self, table_of: Build) -> None:
        # gaps before b's decisions: 1, 1, 5 days; the median over both users' gaps is 1
        state = [0, 1, 2, 3, 4, np.nan]
        table = table_of("aabbbb", [0] * 6, [0.5] * 6, [0.0] * 6, state=state, elapsed_days=[1, 1, 1, 1, 5, 1])
        # x0 cut at its lower half's end, 2 or more; NaN is the third part; the last row came late
        np.testing.assert_array_equal(bins(table, {"x0": 2}), [0, 0, 1, 1, 1, 3 + 2])

    def test_few_values_have_a_part_each(self, table_of: Build) -> None:
        table = table_of("aaaa", [0] * 4, [0.5] * 4, [0.0] * 4, state=[0, 0, 0, 1])
        np.testing.assert_array_equal(bins(table, {"x0": 3}), [0, 0, 0, 1])

    @pytest.mark.parametrize(
        ("cuts", "message"),
        [
            ({"age": 2}, r"evaluate.marginal: 'age' is not a state feature \(known: x0\)"),
            ({"x0": 70}, r"makes 70 bins, more than 64; give fewer features or parts, as x0 = 2"),
        ],
    )
    def test_what_cannot_be_is_named(self, table_of: Build, cuts: Any, message: str) -> None:
        table = table_of(["a"] * 99, [0] * 99, [0.5] * 99, [0.0] * 99, state=np.arange(99.0))
        with pytest.raises(InputError, match=message):
            bins(table, cuts)
