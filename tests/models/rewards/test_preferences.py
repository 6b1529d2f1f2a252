"""Weights from answers: the truth is recovered, units and sides do not matter, and what cannot be told is refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from models.errors import InputError
from models.rewards.answers import Answers, Pair, Ranking
from models.rewards.preferences import Fitted, PreferenceConfig, fit, random_pairs
from models.rewards.weeks import Weeks
from tests.models.rewards.preferring import NAMES, NOBODY, TRUTH, UNITS, rank, say, weeks_from, world


def errors(found: Fitted) -> np.ndarray:
    return (found.weights - TRUTH) / np.sqrt(np.diag(found.covariance))


def test_weights_raters_and_ties_are_recovered() -> None:
    """3,000 answers: reliabilities 2, 1 and 0.5 stand 1.5 : 1 : 0.75 once their mean over answers is taken out."""
    weeks, rng = world(), np.random.default_rng(1)
    pairs, said = random_pairs(weeks, NOBODY, 3000, rng), ()
    true = {"ann": (2.0, 0.0), "bob": (1.0, 0.8), "cy": (0.5, -0.6)}
    for part, (name, (beta, side)) in zip(np.split(pairs, 3), true.items(), strict=True):
        said += say(weeks, part, rng, name, reliability=beta, side=side, nu=0.7)
    found = fit(weeks, NAMES, Answers(said))
    assert np.abs(errors(found)).max() < 3.5  # geometric mean of 2, 1, 0.5 is 1: the same scale
    assert found.tie == pytest.approx(0.7, rel=0.15)
    for rater in found.raters:
        beta, side = true[rater.name]
        assert rater.reliability == pytest.approx(beta, rel=0.2)
        assert rater.side_interval is not None
        assert rater.side_interval[0] < side < rater.side_interval[1]
        assert rater.favours == {0.0: None, 0.8: "left", -0.6: "right"}[side]
        assert rater.left + rater.ties + rater.right == rater.pairs == rater.answers == 1000
    truth = {name: TRUTH[place] / TRUTH[NAMES.index(found.unit)] for place, name in enumerate(NAMES)}
    for name, each in found.ratios.items():
        assert each.low is not None
        assert each.high is not None
        assert each.low < truth[name] < each.high
        assert each.value == pytest.approx(truth[name], rel=0.15)


def test_rankings_tell_the_same_weights_as_pairs() -> None:
    weeks, rng = world(), np.random.default_rng(2)
    ranked = rank(weeks, [rng.choice(300, 5, replace=False) for _ in range(400)], rng)
    found = fit(weeks, NAMES, Answers((), ranked))
    assert np.abs(errors(found)).max() < 3.5
    assert found.raters[0].side_interval is None
    assert found.raters[0].favours is None
    both = fit(weeks, NAMES, Answers(say(weeks, random_pairs(weeks, NOBODY, 400, rng), rng), ranked))
    assert np.abs(errors(both)).max() < 3.5
    assert (np.diff(both.intervals) < np.diff(found.intervals)).all()


def test_pairs_of_a_ranking_taken_for_independent_give_intervals_that_are_too_narrow() -> None:
    """Of five ranked ten pairs follow, as Ouyang et al. (2022) train on; they are not ten answers."""
    weeks, rng = world(), np.random.default_rng(3)
    ranked = rank(weeks, [rng.choice(300, 5, replace=False) for _ in range(100)], rng)
    orders = [each.order for each in ranked]
    pairs = [(*two, bool(rng.random() < 0.5)) for each in orders for two in combinations(each, 2)]
    said = tuple(Pair(a, b, "left", "ann") if left else Pair(b, a, "right", "ann") for a, b, left in pairs)
    exact, naive = (fit(weeks, NAMES, each) for each in (Answers((), ranked), Answers(said)))
    assert (np.diff(naive.intervals) < 0.85 * np.diff(exact.intervals)).all()


@pytest.fixture(scope="module")
def asked() -> tuple[Weeks, Answers]:
    weeks, rng = world(), np.random.default_rng(4)
    pairs = random_pairs(weeks, NOBODY, 120, rng)
    ranked = rank(weeks, [rng.choice(300, 4, replace=False) for _ in range(10)], rng, "bob")
    return weeks, Answers(say(weeks, pairs, rng, nu=0.4) + say(weeks, pairs[:60], rng, "bob", side=0.7, nu=0.4), ranked)


def test_swapped_sides_change_the_side_bias_alone(asked: tuple[Weeks, Answers]) -> None:
    weeks, answers = asked
    other = {"left": "right", "right": "left", "tie": "tie"}
    swapped = tuple(Pair(each.right, each.left, other[each.answer], each.rater) for each in answers.pairs)
    here, there = fit(weeks, NAMES, answers), fit(weeks, NAMES, replace(answers, pairs=swapped))
    assert there.weights == pytest.approx(here.weights, rel=1e-6)
    assert there.intervals == pytest.approx(here.intervals, rel=1e-4)
    for one, another in zip(here.raters, there.raters, strict=True):
        assert another.side == pytest.approx(-one.side, abs=1e-6)
        assert another.reliability == pytest.approx(one.reliability, rel=1e-6)
        assert (another.left, another.right) == (one.right, one.left)


def test_a_component_in_other_units_has_its_weight_in_them(asked: tuple[Weeks, Answers]) -> None:
    weeks, answers = asked
    factor = np.array([1000.0, 1.0, 0.01])
    settings = PreferenceConfig(unit="b")
    here = fit(weeks, NAMES, answers, settings)
    there = fit(replace(weeks, totals=weeks.totals * factor), NAMES, answers, settings)
    assert there.weights * factor == pytest.approx(here.weights, rel=1e-6)
    assert there.intervals * factor[:, None] == pytest.approx(here.intervals, rel=1e-5)
    for place, name in ((0, "a"), (2, "c")):
        one, another = here.ratios[name], there.ratios[name]
        assert another.times(float(factor[place])).value == pytest.approx(one.value, rel=1e-6)
        assert another.low == pytest.approx(one.low / factor[place], rel=1e-4)
    assert [each.reliability for each in there.raters] == pytest.approx([each.reliability for each in here.raters])


def test_a_constant_added_to_all_weeks_changes_nothing(asked: tuple[Weeks, Answers]) -> None:
    weeks, answers = asked
    here = fit(weeks, NAMES, answers, intervals=False)
    there = fit(replace(weeks, totals=weeks.totals + 50 * UNITS), NAMES, answers, intervals=False)
    assert there.weights == pytest.approx(here.weights, rel=1e-6)
    assert np.isnan(here.intervals).all()
    assert here.ratios == {}


def test_a_rater_who_answers_twice_under_two_names_is_two_of_the_same_kind() -> None:
    weeks, rng = world(), np.random.default_rng(5)
    said = say(weeks, random_pairs(weeks, NOBODY, 150, rng), rng, side=0.5)
    twice = said + tuple(replace(each, rater="twin") for each in said)
    found = fit(weeks, NAMES, Answers(twice))
    one, twin = found.raters
    assert (one.reliability, twin.reliability) == pytest.approx((1.0, 1.0))
    assert twin.side == pytest.approx(one.side)
    alone = fit(weeks, NAMES, Answers(said))
    assert found.weights == pytest.approx(alone.weights, rel=0.1)
    assert np.diff(found.intervals) == pytest.approx(np.diff(alone.intervals) / 2**0.5, rel=0.1)
    assert found.together[0].agreement == 1.0
    assert found.splits == ()


def test_a_rater_of_three_answers_does_not_run_away() -> None:
    """Three answers against the joint weights: reliability is drawn towards 1, within a factor of e."""
    weeks, rng = world(), np.random.default_rng(6)
    pairs = random_pairs(weeks, NOBODY, 300, rng)
    utility = weeks.totals @ TRUTH
    wrong = tuple(Pair(f"w{a}", f"w{b}", "left" if utility[a] < utility[b] else "right", "cy") for a, b in pairs[:3])
    found = fit(weeks, NAMES, Answers(say(weeks, pairs, rng) + wrong))
    ann, cy = found.raters
    assert cy.agreement == 0.0
    assert np.exp(-1) < cy.reliability < 1
    assert ann.reliability == pytest.approx(1.0, abs=0.02)


def test_a_rater_who_always_says_left_is_told_and_hardly_counts() -> None:
    weeks, rng = world(), np.random.default_rng(7)
    pairs = random_pairs(weeks, NOBODY, 200, rng)
    ann = say(weeks, pairs, rng)
    hand = tuple(Pair(f"w{a}", f"w{b}", "left", "hand") for a, b in pairs[:100])
    alone, found = fit(weeks, NAMES, Answers(ann)), fit(weeks, NAMES, Answers(ann + hand))
    one, key = found.raters
    assert not one.one_sided
    assert key.one_sided
    assert key.favours == "left"
    assert key.side > 3
    assert np.abs(found.weights - alone.weights).max() < 0.5 * np.sqrt(np.diag(alone.covariance)).max()
    assert np.abs(errors(found)).max() < 3


def test_weights_of_some_components_alone() -> None:
    weeks, rng = world(), np.random.default_rng(8)
    answers = Answers(say(weeks, random_pairs(weeks, NOBODY, 100, rng), rng))
    found = fit(weeks, NAMES, answers, PreferenceConfig(components=("c", "a")))
    assert found.components == ("c", "a")
    assert found.columns.tolist() == [2, 0]
    assert found.utility(weeks) == pytest.approx(weeks.totals[:, [2, 0]] @ found.weights)
    assert fit(weeks, NAMES, answers, PreferenceConfig(unit="a")).unit == "a"


# What cannot be told


def flat(weeks: Weeks, column: int) -> Weeks:
    totals = weeks.totals.copy()
    totals[:, column] = 5.0
    return replace(weeks, totals=totals)


def pairs_of(n: int, answer: Callable[[int], str]) -> Answers:
    return Answers(tuple(Pair(f"w{2 * i}", f"w{2 * i + 1}", answer(i), "ann") for i in range(n)))  # type: ignore[arg-type]


def alternate(place: int) -> str:
    return ("left", "right")[place % 2]


def both_ways(n: int) -> Answers:
    there = tuple(Pair(f"w{i}", f"w{i + 1}", "left", "ann") for i in range(n))
    back = tuple(Pair(f"w{i}", f"w{i + 1}", "right", "ann") for i in range(n))
    return Answers(there + back)


@pytest.mark.parametrize(
    ("change", "answers", "settings", "message"),
    [
        (None, both_ways(20), {}, r"contradictory answers: each of 20 pairs.*nothing is left; ask other pairs"),
        (None, pairs_of(20, lambda _: "left"), {}, r"every one of 20 decided answers is 'left'.*Swap sides"),
        (None, pairs_of(20, lambda _: "right"), {}, r"every one of 20 decided answers is 'right'"),
        (None, pairs_of(20, lambda _: "tie"), {}, r"every one of 20 answers is a tie; compare user-weeks that differ"),
        (None, pairs_of(2, alternate), {}, r"2 different comparisons of user-weeks.*for 3 weights; answer more pairs"),
        (
            None,
            Answers(pairs_of(2, alternate).pairs * 30),
            {},
            r"2 different comparisons of user-weeks.*for 3 weights; answer more pairs",
        ),
        (None, Answers((), (Ranking(("w0", "w1", "w2"), "ann"),)), {}, r"2 different comparisons.*for 3 weights"),
        (
            lambda weeks: flat(weeks, 1),
            pairs_of(20, alternate),
            {},
            r"b never differ between user-weeks.*leave them out",
        ),
        (
            lambda weeks: weeks_from(np.ones((300, 3))),
            pairs_of(20, alternate),
            {},
            r"no two user-weeks that were compared differ in any component",
        ),
        (
            lambda weeks: replace(weeks, totals=np.column_stack([weeks.totals[:, :2], weeks.totals @ [2, 0.5, 0]])),
            pairs_of(20, alternate),
            {},
            r"a, b, c move together in all user-weeks.*cannot be told apart",
        ),
        (None, pairs_of(200, alternate), {}, r"'w300' is none of the 300 user-weeks of this log"),
        (
            None,
            pairs_of(20, alternate),
            {"components": ("a", "z")},
            r"components: 'z' is no reward component; there are a",
        ),
        (None, pairs_of(20, alternate), {"unit": "z"}, r"unit is 'z'; the components are a, b, c"),
    ],
)
def test_answers_that_tell_nothing(
    change: Callable[[Weeks], Weeks] | None, answers: Answers, settings: dict[str, object], message: str
) -> None:
    weeks = change(world()) if change else world()
    with pytest.raises(InputError, match=message):
        fit(weeks, NAMES, answers, PreferenceConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, r"learned\.preference\.confidence is 1\.0; it must lie between 0 and 1"),
        ({"folds": 1}, r"learned\.preference\.folds is 1; two parts or more"),
        ({"side_sd": 0.0}, r"learned\.preference\.side_sd is 0\.0; it must be above 0"),
        ({"reliability_sd": float("nan")}, r"learned\.preference\.reliability_sd is nan"),
        ({"components": ("a",), "unit": "b"}, r"learned\.preference\.unit is 'b', none of"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PreferenceConfig(**settings)  # type: ignore[arg-type]


def test_some_contradictions_are_noise_and_counted() -> None:
    weeks, rng = world(), np.random.default_rng(9)
    said = say(weeks, random_pairs(weeks, NOBODY, 100, rng), rng)
    other = {"left": "right", "right": "left"}
    back = tuple(replace(each, answer=other[each.answer]) for each in said[:10])
    found = fit(weeks, NAMES, Answers(said + back))
    assert found.raters[0].contradictions == 10
    alone = fit(weeks, NAMES, Answers(said))
    # A rater who contradicts himself is noisier: all weights are nearer to 0.
    assert (np.abs(found.weights) < np.abs(alone.weights)).all()
