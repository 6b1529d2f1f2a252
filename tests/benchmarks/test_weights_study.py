"""The study of learned weights in small: what it counts, against a rater that is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rewards.weights import (
    NOBODY,
    OTHERS,
    SOURCE,
    TRUTH,
    answered,
    coverage_of,
    curve,
    learned,
    measured,
    met,
    part,
    ratio_of,
    repetition,
    saved,
    weeks_from,
)
from models.rewards.preferences import fit, random_pairs

SMALL = SOURCE.but(simulate__users=300)


def test_the_study_writes_what_the_summary_needs(tmp_path: Path) -> None:
    found = part(seed=7, workers=1, out=tmp_path, repetitions=12, seeds=2, users=300, pairs=40)
    written = json.loads((tmp_path / "weights.json").read_text())
    assert {key: written[key] for key in found} == found
    assert set(found["weights_coverage"]) == set(found["weights_width"]) == set(TRUTH)
    assert all(0.5 < each <= 1 for each in found["weights_coverage"].values())
    assert all(0.5 < each < 2 for each in found["weights_width"].values())
    assert found["weights_refused"] < 12
    for each in (*found["active_to_random_pairs"].values(), *found["active_to_random_pairs_unlike"].values()):
        assert each["low"] <= each["estimate"] <= each["high"]
        assert len(each["curves"][0]) == 4


def test_a_repetition_is_the_fit_of_its_own_answers() -> None:
    weeks, rewards, truth = weeks_from(SMALL, 7)
    row = repetition(weeks, rewards, truth, 200, np.random.default_rng(1))
    assert row is not None
    rng = np.random.default_rng(1)
    answers = answered(weeks, random_pairs(weeks, NOBODY, 200, rng), truth, rng)
    found = fit(weeks, rewards, answers)
    for place, name in enumerate(rewards):
        low, high = found.intervals[place]
        assert row[name][0] is bool(low <= TRUTH[name] <= high)
        assert row[name][2] == pytest.approx(found.weights[place])
    # Few pairs in which nobody switched off: refused, and counted.
    rows = (repetition(weeks, rewards, truth, 6, np.random.default_rng(seed)) for seed in range(20))
    assert any(each is None for each in rows)
    assert coverage_of([row, None])["weights_refused"] == 1


def test_the_rater_chooses_as_the_truth_says() -> None:
    """Of 20,000 answers about one pair the share of `left` is sigma(w.d) within four standard errors."""
    weeks, _, truth = weeks_from(SMALL, 7)
    pair = random_pairs(weeks, NOBODY, 1, np.random.default_rng(3))
    said = answered(weeks, np.repeat(pair, 20_000, axis=0), truth, np.random.default_rng(0)).pairs
    p = 1 / (1 + np.exp(-(weeks.totals[pair[0, 0]] - weeks.totals[pair[0, 1]]) @ truth))
    assert np.mean([each.answer == "left" for each in said]) == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)


def test_a_rater_may_be_noisier_about_unlike_weeks() -> None:
    """Of pairs that differ twice as much as the usual one more answers are wrong."""
    weeks, _, truth = weeks_from(SMALL, 7)
    pairs = random_pairs(weeks, NOBODY, 3000, np.random.default_rng(0))
    gap = (weeks.totals[pairs[:, 0]] - weeks.totals[pairs[:, 1]]) / weeks.totals.std(axis=0)
    far = (gap**2).mean(axis=1) > 4
    utility = (weeks.totals[pairs[:, 0]] - weeks.totals[pairs[:, 1]]) @ truth
    right = []
    for unlike in (False, True):
        said = answered(weeks, pairs, truth, np.random.default_rng(1), unlike).pairs
        agrees = np.array([each.answer == "left" for each in said]) == (utility > 0)
        right.append(agrees[far & (utility != 0)].mean())
    assert right[1] < right[0]


def test_measures_of_the_truth_are_one_and_of_its_opposite_none() -> None:
    weeks, _, truth = weeks_from(SMALL, 7)
    others = random_pairs(weeks, NOBODY, OTHERS, np.random.default_rng(0))
    assert measured(weeks, truth, 3 * truth, others) == pytest.approx([1.0, 1.0])
    assert measured(weeks, truth, -truth, others) == pytest.approx([-1.0, 0.0])
    assert measured(weeks, truth, 0 * truth, others)[0] == 0.0


def test_what_fit_learns_is_what_the_curve_is_of() -> None:
    weeks, rewards, truth = weeks_from(SMALL, 7)
    rng = np.random.default_rng(5)
    answers = answered(weeks, random_pairs(weeks, NOBODY, 200, rng), truth, rng)
    assert learned(weeks, answers).weights == pytest.approx(fit(weeks, rewards, answers, intervals=False).weights)
    others = random_pairs(weeks, NOBODY, 500, np.random.default_rng(0))
    for active in (False, True):
        found = curve(weeks, truth, others, 40, active, False, np.random.default_rng(1))
        assert np.shape(found) == (4, 2)
        assert found == curve(weeks, truth, others, 40, active, False, np.random.default_rng(1))


def test_directions_that_no_answer_tells_stay_uncertain() -> None:
    """Two weeks that differ in one component alone: the others have weight 0 and the variance of before."""
    weeks, _, truth = weeks_from(SMALL, 7)
    answers = answered(weeks, np.array([[0, 1]]), truth, np.random.default_rng(0))
    found = learned(weeks, answers)
    cover = found.covariance * np.outer(found.scale, found.scale)
    assert np.linalg.eigvalsh(cover).min() > 0.5
    assert np.isfinite(found.weights).all()


@pytest.mark.parametrize(
    ("random", "active", "ratio"),
    [
        ([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8], 1.0),
        ([0.2, 0.4, 0.6, 0.8], [0.6, 0.8, 0.9, 0.9], 0.5),
        ([0.2, 0.4, 0.6, 0.8], [0.4, 1.0, 1.0, 1.0], 1.6667 / 4),  # 0.8 is two thirds of the way from 0.4 to 1
        ([0.2, 0.4, 0.6, 0.8], [0.1, 0.2, 0.3, 0.4], 2.0),  # random had needed two of four batches for 0.4
    ],
)
def test_the_ratio_of_pairs_by_hand(random: list[float], active: list[float], ratio: float) -> None:
    assert ratio_of(np.array(random), np.array(active)) == pytest.approx(ratio, abs=1e-3)


def test_bars() -> None:
    rng = np.random.default_rng(0)
    better = np.stack([np.linspace(0.2, 0.8, 5), np.linspace(0.5, 0.9, 5)])[None, :, :, None]
    curves = np.concatenate([better, better], axis=3) + 0.01 * rng.normal(size=(10, 2, 5, 2))
    good, bad = saved(curves, 0), saved(curves[:, ::-1], 0)
    found = {"weights_coverage": {"a": 0.95, "b": 0.94}, "weights_width": {"a": 1.1, "b": 1.0},
             "active_to_random_pairs": good, "active_to_random_pairs_unlike": good}  # fmt: skip
    assert met(found)
    # The least lead is the last batch's, of 0.9 over 0.8.
    assert good["cosine"]["least_gain_pairs"] == 50
    assert good["cosine"]["least_gain"] == pytest.approx(0.1, abs=0.02)
    assert not met({**found, "weights_coverage": {"a": 0.98, "b": 0.95}})
    assert not met({**found, "weights_width": {"a": 1.3, "b": 1.0}})
    assert not met({**found, "active_to_random_pairs_unlike": bad})
