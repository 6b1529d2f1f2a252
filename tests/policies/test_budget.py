import dataclasses
import functools
import operator

import numpy as np
import pytest

from models.errors import InputError
from policies import budget
from policies.budget import Solved, Volume, fixed_volume, solve, unpacked, volume_of
from policies.q_policy import deployed_probabilities

ALONE = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
MIXED = {"rollout_share": 0.6, "exploration": 0.1, "lambda": 0.0}
SENDS = (False, True, True)


def world(rows: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, logits and legal [N, 3]: some rows without a legal hold, some with hold alone."""
    rng = np.random.default_rng(seed)
    q, logits = rng.normal(size=(2, rows, 3))
    legal = rng.random((rows, 3)) < 0.7
    legal[~legal.any(axis=1), 0] = True
    return (np.round(q, 1) if ties else q), logits, legal


def brute(q: np.ndarray, logits: np.ndarray, legal: np.ndarray, decision: dict, price: float, theta: float) -> float:
    """Expected sends, row by row."""
    total = 0.0
    k, e = decision["rollout_share"], decision["exploration"]
    for i in range(len(q)):
        options = [a for a in range(3) if legal[i, a]]
        weights = {a: float(np.exp(logits[i, a])) for a in options}
        total += (1 - k) * sum(weights[a] for a in options if SENDS[a]) / sum(weights.values())
        total += k * e * sum(SENDS[a] for a in options) / len(options)
        if 0 not in options:
            greedy = 1.0
        elif options == [0]:
            greedy = 0.0
        else:
            gap = max(q[i, a] for a in options if SENDS[a]) - q[i, 0]
            greedy = 1.0 if gap > price else theta if gap == price else 0.0
        total += k * (1 - e) * greedy
    return total


def found_by(q: np.ndarray, logits: np.ndarray, legal: np.ndarray, decision: dict, solved: Solved) -> float:
    """Expected sends of what is deployed at the solution."""
    priced = {**decision, "lambda": solved.lambda_}
    return float(deployed_probabilities(q, logits, legal, priced, SENDS, solved.theta)[:, 1:].sum())


def test_golden_expectation_price_and_tie() -> None:
    # hold, send; gaps 3, 1, 1 and two rows with one legal action: hold, and send.
    q = np.array([[0.0, 3.0], [1.0, 2.0], [0.0, 1.0], [5.0, 9.0], [5.0, 9.0]])
    legal = np.array([[1, 1], [1, 1], [1, 1], [1, 0], [0, 1]], bool)
    logits = np.log(np.array([[0.5, 0.5], [0.75, 0.25], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]))
    volume = volume_of(q, logits, legal, {"rollout_share": 0.5, "exploration": 0.2, "lambda": 0.0}, (False, True))
    # Constant: (1 - k) mu: 0.5 (0.5 + 0.25 + 0.1 + 0 + 1) = 0.925; k e |sends| / |legal|: 0.1 (1/2 + 1/2 + 1/2 + 0 + 1)
    # = 0.25; the row with nothing but a send: 0.5 * 0.8 = 0.4. Together 1.575; each gap adds 0.4.
    assert volume.constant == pytest.approx(1.575, abs=1e-8)
    assert (volume.rows, volume.movable, volume.weight) == (5, 3, pytest.approx(0.4))
    for price, above in ((0.5, 3), (1.0, 1), (2.0, 1), (3.0, 0)):
        assert volume.bounds(price) == pytest.approx((1.575 + 0.4 * above,) * 2)
    # 2.275 = 1.575 + 0.4 (1 + 2 theta): the row of gap 3, and each of the two of gap 1 with theta = 0.375.
    solved = solve(volume, 2.275)
    assert (solved.lambda_, solved.theta, solved.met) == (1.0, pytest.approx(0.375), True)
    assert solved.expected == pytest.approx(2.275)
    # Any price between 1 and 3 sends at 3 alone; midway is as far as can be from both.
    assert solve(volume, 1.975).lambda_ == pytest.approx(2.0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("decision", [ALONE, MIXED])
def test_a_loop_over_rows_counts_the_same_at_every_price(decision: dict, ties: bool) -> None:
    q, logits, legal = world(300, 1, ties)
    volume = volume_of(q, logits, legal, decision, SENDS)
    for price in (-9.0, -0.7, 0.0, 0.3, 1.1, 9.0):
        counted = brute(q, logits, legal, decision, price, 0.0)
        assert volume.bounds(price) == pytest.approx((counted, counted), abs=1e-6)
        deployed = deployed_probabilities(q, logits, legal, {**decision, "lambda": price}, SENDS, 0.25)
        assert deployed[:, 1:].sum() == pytest.approx(brute(q, logits, legal, decision, price, 0.25), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_the_target_is_met_exactly_by_what_is_deployed(ties: bool) -> None:
    q, logits, legal = world(500, 2, ties)
    volume = volume_of(q, logits, legal, MIXED, SENDS)
    most, least = volume.bounds(-99.0)[0], volume.bounds(99.0)[0]
    for target in np.linspace(least, most, 23):
        solved = solve(volume, float(target))
        assert solved.met
        assert solved.expected == pytest.approx(target, abs=1e-6)
        assert found_by(q, logits, legal, MIXED, solved) == pytest.approx(target, abs=1e-5)


def test_expected_sends_never_rise_with_the_price() -> None:
    volume = volume_of(*world(2_000, 3), MIXED, SENDS)
    found = [volume.bounds(price)[0] for price in np.linspace(-4, 4, 101)]
    assert (np.diff(found) <= 0).all()
    assert found[0] > found[-1]


def same(a: Volume, b: Volume) -> None:
    for each in dataclasses.fields(Volume):
        np.testing.assert_array_equal(getattr(a, each.name), getattr(b, each.name), err_msg=each.name)


@pytest.mark.parametrize("bins", [7, 64, 2**16])
def test_parts_add_up_to_the_whole_in_any_order(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BINS", bins)
    rows = world(1_000, 4)
    whole = volume_of(*rows, MIXED, SENDS)
    cuts = [slice(0, 100), slice(100, 600), slice(600, 601), slice(601, 1_000)]
    parts = [volume_of(*(each[cut] for each in rows), MIXED, SENDS) for cut in cuts]
    assert len(whole.low) <= bins
    assert whole.rows == 1_000
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        same(functools.reduce(operator.add, [parts[each] for each in order]), whole)
    same((parts[0] + parts[1]) + (parts[2] + parts[3]), whole)
    same(unpacked(whole.packed()), whole)


def test_coarse_bins_are_looked_at_again_until_the_target_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BINS", 3)
    rows = world(5_000, 5)
    volume = volume_of(*rows, ALONE, SENDS)
    least, most = volume.bounds(1e9)[0], volume.bounds(-1e9)[0]
    looks = []
    for target in np.linspace(least, most, 7):
        solved = solve(volume, float(target))
        passes = 1
        while solved.window is not None:
            assert not solved.met
            assert "window" in solved.reason
            narrowed = volume_of(*rows, ALONE, SENDS, solved.window)
            assert (narrowed.rows, narrowed.movable) == (volume.rows, volume.movable)
            solved = solve(narrowed, float(target))
            passes += 1
        looks.append(passes)
        assert solved.met
        assert found_by(*rows, ALONE, solved) == pytest.approx(target, abs=max(0.005 * target, 1.0))
        assert found_by(*rows, ALONE, solved) == pytest.approx(solved.expected, abs=1e-5)
    assert max(looks) > 2


def test_a_million_rows_are_met_in_one_pass_in_bounded_memory() -> None:
    rng = np.random.default_rng(6)
    gap = rng.normal(size=1_000_000)
    gap[:300_000] = 0.25  # A third of all rows share one gap.
    q = np.stack([np.zeros_like(gap), gap], axis=1)
    legal = np.ones_like(q, bool)
    volume = volume_of(q, np.zeros_like(q), legal, ALONE, (False, True))
    assert len(volume.low) <= 2**16
    for target in (1_000.0, 200_000.0, 400_000.0, 600_000.0):
        solved = solve(volume, target)
        if solved.window is not None:
            solved = solve(volume_of(q, np.zeros_like(q), legal, ALONE, (False, True), solved.window), target)
        sent = (gap > solved.lambda_).sum() + solved.theta * (gap == solved.lambda_).sum()
        assert solved.met
        assert sent == pytest.approx(target, rel=0.005)
        assert sent == pytest.approx(solved.expected, abs=1e-3)


def test_rows_that_a_rule_decides_are_constants() -> None:
    rows = world(200, 7)
    volume = volume_of(*rows, ALONE, SENDS)
    both = volume + fixed_volume(np.array([1.0, 0.0, 0.25]), ALONE)
    assert (both.rows, both.movable) == (203, volume.movable)
    assert both.constant == pytest.approx(volume.constant + 1.25, abs=1e-8)
    assert solve(both, 80.25).lambda_ == solve(volume, 79.0).lambda_


def test_the_range_is_not_left_and_says_what_it_can_reach() -> None:
    q = np.array([[0.0, gap] for gap in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
    volume = volume_of(q, np.zeros_like(q), np.ones_like(q, bool), ALONE, (False, True))
    # E: 4 at price 2, 2 at price 4, so that targets from 1 to 5 are within one send of the range.
    assert solve(volume, 3.0, 2.0, 4.0).lambda_ == pytest.approx(3.5)
    over = solve(volume, 6.0, 2.0, 4.0)
    assert (over.lambda_, over.theta, over.expected, over.met) == (2.0, 0.0, 4.0, False)
    assert "the most that the policy sends in expectation at the range's lowest price 2 is 4.0" in over.reason
    under = solve(volume, 0.5, 2.0, 4.0)
    assert (under.lambda_, under.expected, under.met) == (4.0, 2.0, False)
    assert "the least that the policy sends in expectation at the range's highest price 4 is 2.0" in under.reason
    assert solve(volume, 5.0, 2.0, 4.0).met  # One send is near enough.
    # At the lowest price a tie is not split: that would send what no price of the range does.
    assert solve(volume, 4.6, 2.0, 2.0).theta == 0.0


def test_ties_that_may_not_be_split_take_the_nearest_step() -> None:
    q = np.array([[0.0, gap] for gap in [1.0] * 40 + [2.0] * 2])
    volume = volume_of(q, np.zeros_like(q), np.ones_like(q, bool), ALONE, (False, True))
    few = solve(volume, 20.0, split_ties=False)
    assert (few.lambda_, few.theta, few.expected, few.met) == (pytest.approx(1.5), 0.0, 2.0, False)
    assert "more rows have the same gap" in few.reason
    many = solve(volume, 41.5, split_ties=False)
    assert many.lambda_ < 1.0
    assert many.expected == 42.0
    assert many.met


@pytest.mark.parametrize(
    ("decision", "legal", "is_send"),
    [
        (ALONE, [[1, 1]] * 5, (True, True)),
        (ALONE, [[1, 0]] * 5, (False, True)),
        (ALONE, [[0, 1]] * 5, (False, True)),
        ({**ALONE, "rollout_share": 0.0}, [[1, 1]] * 5, (False, True)),
        ({**ALONE, "exploration": 1.0}, [[1, 1]] * 5, (False, True)),
    ],
)
def test_where_no_price_matters_it_says_so(decision: dict, legal: list, is_send: tuple) -> None:
    mask = np.array(legal, bool)
    volume = volume_of(np.tile([0.0, 1.0], (5, 1)), np.zeros((5, 2)), mask, decision, is_send)
    assert volume.movable == 0
    solved = solve(volume, 100.0, 0.5, 2.0)
    assert (solved.lambda_, solved.met) == (0.5, False)
    assert "no row's decision depends on it" in solved.reason
    assert solve(volume, volume.constant).met


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.array([[np.nan, 1.0]])}, "1 values of legal actions are not finite"),
        ({"q": np.array([[0.0, np.inf]])}, "1 values of legal actions are not finite"),
        ({"legal": np.zeros((1, 2), bool)}, "1 rows have no legal action"),
        ({"decision": {"rollout_share": 1.0}}, "decision.exploration: missing"),
        ({"decision": {**ALONE, "exploration": 2.0}}, "decision.exploration is 2.0"),
        ({"window": (1.0, 0.0)}, "window is"),
    ],
)
def test_bad_rows_are_named(change: dict, message: str) -> None:
    good = {
        "q": np.zeros((1, 2)),
        "behaviour_logits": np.zeros((1, 2)),
        "legal": np.ones((1, 2), bool),
        "decision": ALONE,
        "is_send": (False, True),
    }
    with pytest.raises(InputError, match=message):
        volume_of(**{**good, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0,), "target is -1.0"),
        ((np.nan,), "target is nan"),
        ((np.inf,), "target is inf"),
        ((1.0, 2.0, 1.0), "lower end comes first"),
        ((1.0, np.nan, 1.0), "lower end comes first"),
    ],
)
def test_bad_targets_are_named(arguments: tuple, message: str) -> None:
    volume = volume_of(*world(10, 8), ALONE, SENDS)
    with pytest.raises(InputError, match=message):
        solve(volume, *arguments)


@pytest.mark.parametrize("sends", [[0.5, 1.5], [-0.1, 0.0], [np.nan, 0.0]])
def test_bad_fixed_sends_are_named(sends: list) -> None:
    with pytest.raises(InputError, match="1 are no probability"):
        fixed_volume(np.array(sends), ALONE)


def test_parts_of_other_decisions_do_not_add_up() -> None:
    rows = world(10, 9)
    with pytest.raises(InputError, match=r"volume: weight is 1\.0 in one part"):
        volume_of(*rows, ALONE, SENDS) + volume_of(*rows, MIXED, SENDS)
    with pytest.raises(InputError, match="volume: window_low is"):
        volume_of(*rows, ALONE, SENDS) + volume_of(*rows, ALONE, SENDS, (0.0, 1.0))
