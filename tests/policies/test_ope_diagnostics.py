from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.ope.diagnostics import Calibration, Support, Weights, supported, weight_diagnostics
from policies.ope.fqe import Fit, fit_all, folds
from policies.ope.sample import Sample, check_propensities, take

Build = Callable[..., Transitions]
DAY_US = 86_400_000_000


def sample_of(table: Transitions, per: str = "week") -> Sample:
    return take(table, np.ones(len(table.action), dtype=bool), per)


def test_golden_weights_per_week(table_of: Build) -> None:
    sample = sample_of(table_of("aabbc", [1] * 5, [0.5] * 5, [0.0] * 5))
    found = weight_diagnostics(sample, np.array([2.0, 0.5, 2.0, 2.0, 1.0]))
    # trajectories weigh 2 * 0.5 = 1, 2 * 2 = 4 and 1: ess = 36 / 18, mean 2, error sqrt(1 + 4 + 1) / 3
    assert found["ess"] == pytest.approx(2.0)
    assert found["largest_weight"] == pytest.approx(4 / 6)
    assert found["mean_weight"] == pytest.approx(2.0)
    assert found["mean_weight_se"] == pytest.approx(np.sqrt(6) / 3)
    counts = Weights.of(sample, np.array([2.0, 0.5, 2.0, 2.0, 1.0])).histogram()
    assert sum(counts["counts"]) == 3
    assert len(counts["edges"]) == len(counts["counts"]) + 1


def test_golden_weights_per_decision(table_of: Build) -> None:
    sample = sample_of(table_of("aabbc", [1] * 5, [0.5] * 5, [0.0] * 5), "decision")
    found = weight_diagnostics(sample, np.array([2.0, 0.0, 2.0, 1.0, 1.0]))
    # users' mean weights 1, 1.5, 1: ess = 3.5^2 / 4.25; mean over rows 6/5; sums less 1.2 n: -0.4, 0.6, -0.2
    assert found["ess"] == pytest.approx(3.5**2 / 4.25)
    assert found["largest_weight"] == pytest.approx(1.5 / 3.5)
    assert found["mean_weight"] == pytest.approx(1.2)
    assert found["mean_weight_se"] == pytest.approx(np.sqrt(0.16 + 0.36 + 0.04) / 5)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_weights_of_one_count_every_user(table_of: Build, per: str) -> None:
    found = weight_diagnostics(sample_of(table_of("aabbc", [1] * 5, [0.5] * 5, [0.0] * 5), per), np.ones(5))
    assert found == pytest.approx({"ess": 3, "largest_weight": 1 / 3, "mean_weight": 1, "mean_weight_se": 0})


def test_no_weight_at_all_is_no_sample(table_of: Build) -> None:
    found = weight_diagnostics(sample_of(table_of("ab", [1, 1], [0.5, 0.5], [0, 0])), np.zeros(2))
    assert (found["ess"], found["mean_weight"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("action", "propensity", "legal", "probability", "shown"),
    [
        (1, 0.5, [1, 1], [0.5, 0.5], True),
        (0, 1.0, [1, 1], [0.0, 1.0], False),  # the log never sends here, the policy does
        (0, 1.0, [1, 1], [1.0, 0.0], True),  # and here both hold
        (0, 0.9999, [1, 1], [0.0, 1.0], False),  # 1 - p below the floor
        (1, 0.0005, [1, 1], [0.0, 1.0], False),  # seen, but too rare to lean on
        (1, 0.5, [1, 0], [1.0, 0.0], False),  # configured constraints forbid what was logged
        (0, 1.0, [1, 0], [1.0, 0.0], True),  # forced
    ],
)
def test_support_of_a_row(
    table_of: Build, action: int, propensity: float, legal: Any, probability: Any, shown: bool
) -> None:
    sample = sample_of(table_of("a", [action], [propensity], [0.0], legal=[legal]))
    assert supported(sample, np.array([probability]))[0] == shown


def test_support_counts_user_weeks(table_of: Build) -> None:
    # a: 9 daily rows, so weeks of 7 and 2 rows; b: one row. The policy always sends; the log never sends on a's day 8.
    propensity = np.array([0.5] * 8 + [1.0] + [0.5])
    table = table_of("a" * 9 + "b", [0] * 10, propensity, [0.0] * 10)
    probability = np.tile([0.0, 1.0], (10, 1))
    assert Support.of(sample_of(table), probability).share() == pytest.approx(2 / 3)
    assert Support.of(sample_of(table, "decision"), probability).share() == pytest.approx(9 / 10)


def logged(table_of: Build, scale: float) -> Transitions:
    rng = np.random.default_rng(0)
    mu = rng.uniform(0.2, 0.8, 20_000)
    sent = rng.random(20_000) < mu
    return table_of([f"u{i // 10}" for i in range(20_000)], sent, np.where(sent, mu, 1 - mu) * scale, np.zeros(20_000))


def test_calibration_of_right_propensities(table_of: Build) -> None:
    found = Calibration.of(logged(table_of, 1.0)).plain(("hold", "send"))
    for name in ("hold", "send"):
        assert abs(found["actions"][name]["mean_weight"] - 1) < 3.5 * found["actions"][name]["se"] < 0.1
    assert found["inverse_sum"] == pytest.approx(1.0, abs=0.02)
    assert sum(each["n"] for each in found["bins"]) == 20_000
    for each in found["bins"]:
        assert abs(each["predicted"] - each["observed"]) < 4 * 0.5 / np.sqrt(each["n"])


def test_calibration_finds_propensities_that_sum_to_more_than_one(table_of: Build) -> None:
    found = Calibration.of(logged(table_of, 1.2)).plain(("hold", "send"))
    assert found["inverse_sum"] == pytest.approx(1.2, abs=0.02)
    assert found["actions"]["send"]["mean_weight"] == pytest.approx(1 / 1.2, abs=0.03)


def test_calibration_leaves_forced_and_certain_rows_out(table_of: Build) -> None:
    table = table_of("abcd", [0, 0, 1, 0], [1.0, 1.0, 0.5, 0.5], [0.0] * 4, legal=[[1, 0], [1, 1], [1, 1], [1, 1]])
    found = Calibration.of(table).plain(("hold", "send"))
    # c and d: 1{send} / p = 2 and 0, 1{hold} / p = 0 and 2; mean |legal| / mean(1/p) = 2 / 2
    assert found["actions"]["send"] == pytest.approx({"mean_weight": 1.0, "se": np.sqrt(2) / 2, "decisions": 2})
    assert found["inverse_sum"] == pytest.approx(1.0)


def test_calibration_counts_one_probability_in_one_bin_whichever_action_showed_it(table_of: Build) -> None:
    # Sent with probability 0.2, and held with 0.8: 1 - 0.8 is 0.19999999999999996.
    found = Calibration.of(table_of("ab", [1, 0], [0.2, 0.8], [0.0] * 2)).plain(("hold", "send"))
    assert found["bins"] == [{"predicted": pytest.approx(0.2), "observed": 0.5, "n": 2}]


@pytest.mark.parametrize(
    ("propensity", "legal", "message"),
    [
        ([0.5, np.nan, np.nan], None, r"2 of 3 usable decisions have none, first that of user a at 1970-01-02.*leave"),
        ([0.5, 0.0, 0.5], None, r"1 of 3 usable decisions lie outside \(0, 1\].*found 0.0"),
        ([0.5, 1.5, 0.5], None, r"found 1.5"),
        ([1.0, 1.0, 1.0], None, r"all 3 decisions with a choice were made with probability 1.*never explored"),
        ([1.0, 1.0, 1.0], [[1, 0]] * 3, r"no decision has more than one legal action"),
    ],
)
def test_logs_that_cannot_be_evaluated_are_refused(table_of: Build, propensity: Any, legal: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_propensities(table_of("aab", [0, 0, 0], propensity, [0.0] * 3, legal=legal))


def test_a_log_that_explores_somewhere_passes(table_of: Build) -> None:
    some, none = ([1.0, 1.0, 0.5], [1.0, 1.0, 1.0])
    check_propensities(table_of("aab", [0, 0, 0], some, [0.0] * 3))
    with pytest.raises(InputError, match="never explored"):
        check_propensities(table_of("aab", [0, 0, 0], none, [0.0] * 3))


def test_an_empty_row_set_is_refused(table_of: Build) -> None:
    table = table_of("ab", [0, 0], [0.5, 0.5], [0, 0])
    with pytest.raises(InputError, match="no rows to evaluate on"):
        take(table, np.zeros(2, dtype=bool), "week")
    still = table_of("ab", [0, 0], [0.5, 0.5], [0, 0], elapsed_days=[0, 0])
    with pytest.raises(InputError, match="cover no time"):
        take(still, np.ones(2, dtype=bool), "week")


def test_folds_depend_on_the_id_alone_and_halve_the_users() -> None:
    names = np.array([f"user-{i}" for i in range(2000)], dtype=object)
    found = folds(names)
    assert abs(found.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(folds(names[::-1]), found[::-1])


def test_a_value_function_without_rows_to_learn_from_is_refused(table_of: Build) -> None:
    table = table_of("ab", [0, 0], [0.5, 0.5], [0, 0])
    nothing, every = np.zeros(2, dtype=bool), np.ones(2, dtype=bool)
    with pytest.raises(InputError, match="no rows to fit a value function on for 2 rows"):
        fit_all(table, [[Fit(np.full((2, 2), 0.5), nothing, every)]], True, lambda *_: np.zeros((1, 2, 2, 1)))


def test_few_long_trajectories_are_not_hidden_by_many_short_ones(table_of: Build) -> None:
    """1,000 users of one row, 100 of twelve, a coin; always send: after twelve sends 100 / 2^12 users are left.

    Whole trajectories count 500 of the short ones; the steps tell that a third of the rows rest on nobody.
    """
    rng = np.random.default_rng(0)
    names = [f"s{i:04d}" for i in range(1000)] + [f"t{i:03d}" for i in range(100) for _ in range(12)]
    action = (rng.random(len(names)) < 0.5).astype(int)
    # Every step of the first long user is followed: none is without any weight.
    action[1000:1012] = 1
    table = table_of(names, action, [0.5] * len(names), np.zeros(len(names)))
    sample = take(table, np.ones(len(names), dtype=np.bool_), "week")
    ratio = np.where(action == 1, 2.0, 0.0)
    weights = Weights.of(sample, ratio)
    _, after = sample.weights(ratio)
    short = int((action[:1000] == 1).sum())
    # the one long user left weighs 2^12, a short one 2
    whole = (2 * short + 4096) ** 2 / (4 * short + 4096**2)
    per_step = []
    for k in range(12):
        w = after[sample.group == k]
        per_step.append((len(w), w.sum() ** 2 / (w**2).sum()))
    rows = sum(n for n, _ in per_step)
    steps = 1100 * rows / sum(n**2 / ess for n, ess in per_step)
    assert weights.steps.ess(1100.0) == pytest.approx(steps)
    assert weights.diagnostics()["ess"] == pytest.approx(min(whole, steps))
    assert steps < 60


def test_the_log_itself_has_all_of_its_users_at_every_step(table_of: Build) -> None:
    names = [f"u{i:03d}" for i in range(50) for _ in range(1 + i % 7)]
    table = table_of(names, [0] * len(names), [0.5] * len(names), np.zeros(len(names)))
    sample = take(table, np.ones(len(names), dtype=np.bool_), "week")
    assert Weights.of(sample, np.ones(len(names))).diagnostics()["ess"] == pytest.approx(50)


def test_a_last_step_of_few_rows_that_nobody_follows_is_left_out(table_of: Build) -> None:
    # 150 users of one row and one of two, whose second is not followed: 1 row in 152
    names = [f"u{i:03d}" for i in range(150)] + ["w", "w"]
    table = table_of(names, [1] * 151 + [0], [0.5] * 152, np.zeros(152))
    sample = take(table, np.ones(152, dtype=np.bool_), "week")
    ratio = np.where(table.action == 1, 2.0, 0.0)
    assert Weights.of(sample, ratio).diagnostics()["ess"] == pytest.approx(150)
    longer = names + ["w"] * 2
    table = table_of(longer, [1] * 151 + [0] * 3, [0.5] * 154, np.zeros(154))
    sample = take(table, np.ones(154, dtype=np.bool_), "week")
    assert Weights.of(sample, np.where(table.action == 1, 2.0, 0.0)).diagnostics()["ess"] == 0.0
