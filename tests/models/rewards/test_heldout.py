"""Held-out comparisons: predicted by what has not seen them, against a loop, and what their figures mean."""

import math

import numpy as np
import pytest

from models.rewards.answers import Answers
from models.rewards.heldout import Decided, HeldOut, hold_out
from models.rewards.preferences import PreferenceConfig, fit, random_pairs
from tests.models.rewards.preferring import NAMES, NOBODY, TRUTH, rank, say, world


def held(predicted: list[float], won: list[bool], group: list[int], base: list[float] | None = None) -> HeldOut:
    n = len(won)
    places = np.arange(n)
    decided = Decided(places, places + n, np.array(won), np.zeros(n, int), np.ones(n, bool), np.array(group))
    return HeldOut(decided, np.array(predicted), np.array(base or [0.5] * n), 2)


def test_figures_by_hand() -> None:
    found = held([0.9, 0.8, 0.3, 0.5], [True, False, False, True], [0, 1, 2, 3], [0.6, 0.6, 0.6, 0.6])
    assert found.accuracy() == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found.accuracy_by_side() == pytest.approx(2 / 4)
    assert found.log_loss() == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.5)) / 4)
    # Bins of a fifth: [0.3] and [0.5] alone, 0.8 and 0.9 together: mean 0.85 of which a half was left.
    assert found.calibration(5) == [(0.3, 0.0, 1), (0.5, 1.0, 1), (pytest.approx(0.85), 0.5, 2)]
    assert found.calibration_error(5) == pytest.approx((0.3 + 0.5 + 2 * 0.35) / 4)


def test_intervals_take_groups_for_one() -> None:
    """100 answers about 10 pairs of weeks say no more than 10 that agree within their group."""
    rng = np.random.default_rng(0)
    right = rng.random(10) < 0.7
    apart = held([0.9] * 100, np.repeat(right, 10).tolist(), list(range(100)))
    linked = held([0.9] * 100, np.repeat(right, 10).tolist(), np.repeat(np.arange(10), 10).tolist())
    narrow, wide = (np.diff(each.intervals(0.95, 0)["accuracy"])[0] for each in (apart, linked))
    assert wide == pytest.approx(10**0.5 * narrow, rel=0.2)
    assert linked.intervals(0.95, 0) == linked.intervals(0.95, 0)


def test_predictions_are_those_of_fits_without_the_fold() -> None:
    weeks, rng = world(), np.random.default_rng(1)
    pairs = random_pairs(weeks, NOBODY, 120, rng)
    answers = Answers(say(weeks, pairs, rng, side=0.5, nu=0.3) + say(weeks, pairs[:40], rng, "bob", nu=0.3))
    settings = PreferenceConfig(folds=3)
    found = hold_out(weeks, NAMES, answers, settings, seed=5)
    assert found is not None
    kept = [each for each in answers.pairs if each.answer != "tie"]
    assert len(found.predicted) == len(kept)
    keys = [frozenset((each.left, each.right)) for each in answers.pairs]
    group = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    # Folds, read off the predictions: answers about the same weeks share one.
    fold = np.random.default_rng(5).permutation(len(group)) % 3
    for part in range(3):
        seen = tuple(each for each, key in zip(answers.pairs, keys, strict=True) if fold[group[key]] != part)
        learned = fit(weeks, NAMES, Answers(seen), settings, intervals=False)
        utility, rater = learned.utility(weeks), {each.name: each for each in learned.raters}
        place = {name: number for number, name in enumerate(weeks.id)}
        for row, each in enumerate(kept):
            if fold[group[frozenset((each.left, each.right))]] == part:
                who = rater[each.rater]
                eta = who.reliability * (utility[place[each.left]] - utility[place[each.right]]) + who.side
                assert found.predicted[row] == pytest.approx(1 / (1 + math.exp(-eta)), rel=1e-5)


def test_a_good_rater_is_predicted_nearly_as_well_as_by_the_truth() -> None:
    weeks, rng = world(), np.random.default_rng(2)
    pairs = random_pairs(weeks, NOBODY, 600, rng)
    answers = Answers(say(weeks, pairs, rng))
    found = hold_out(weeks, NAMES, answers, PreferenceConfig(), seed=0)
    assert found is not None
    gap = (weeks.totals[pairs[:, 0]] - weeks.totals[pairs[:, 1]]) @ TRUTH
    won = np.array([each.answer == "left" for each in answers.pairs])
    best = float(((gap > 0) == won).mean())
    assert best - 0.03 < found.accuracy() <= best + 0.03
    low, high = found.intervals(0.95, 0)["accuracy"]
    assert low < found.accuracy() < high
    assert found.intervals(0.95, 0)["gain"][0] > 0.1
    assert found.calibration_error() < 0.08
    assert found.log_loss() < 0.6 < found.log_loss_by_side()


def test_a_side_bias_alone_is_no_gain_over_the_side() -> None:
    weeks, rng = world(), np.random.default_rng(3)
    answers = Answers(say(weeks, random_pairs(weeks, NOBODY, 300, rng), rng, reliability=0.0, side=1.5))
    found = hold_out(weeks, NAMES, answers, PreferenceConfig(), seed=0)
    assert found is not None
    assert found.accuracy_by_side() > 0.75
    assert found.intervals(0.95, 0)["gain"][0] <= 0


def test_rankings_are_held_out_whole() -> None:
    weeks, rng = world(), np.random.default_rng(4)
    sets = rng.permutation(300)[:240].reshape(60, 4)
    answers = Answers((), rank(weeks, sets, rng))
    found = hold_out(weeks, NAMES, answers, PreferenceConfig(), seed=0)
    assert found is not None
    assert len(found.predicted) == 60 * 6
    assert len(set(found.decided.group.tolist())) == 60
    assert found.accuracy() > 0.7
    # Told in the order of their places, not the better first: else all would be `left`.
    assert 0.35 < found.decided.won.mean() < 0.65
    assert found.accuracy_by_side() == 0.5


def test_linked_answers_cannot_be_held_out() -> None:
    weeks, rng = world(), np.random.default_rng(5)
    everything = rank(weeks, [np.arange(6)] * 5, rng)
    assert hold_out(weeks, NAMES, Answers((), everything), PreferenceConfig(), seed=0) is None
