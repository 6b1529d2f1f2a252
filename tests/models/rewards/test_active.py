"""Which pair to ask next: by the formula, without repetition, and better than by chance."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from models.errors import InputError
from models.rewards.active import Known, choose, known, random_pairs
from models.rewards.answers import Answers
from models.rewards.preferences import fit
from models.rewards.store import Stored
from tests.models.rewards.preferring import NAMES, NOBODY, TRUTH, UNITS, say, weeks_from, world


def keys(pairs: np.ndarray) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in pairs.tolist()]


def certain(weights: list[float], cover: np.ndarray) -> Known:
    size = len(weights)
    return Known(NAMES[:size], np.arange(size), np.ones(size), np.array(weights), cover)


def test_the_first_pair_is_that_of_largest_gain() -> None:
    """Ten weeks have 45 pairs, all candidates; w ~ N(0, V): g = h d'Vd with h the mean of sigma' over the ensemble."""
    weeks = weeks_from(np.random.default_rng(0).normal(size=(10, 2)))
    cover = np.array([[0.04, 0.0], [0.0, 0.5]])
    found = choose(certain([1.0, 0.5], cover), weeks, NOBODY, 1, seed=3)
    drawn = np.random.default_rng(9).multivariate_normal([1.0, 0.5], cover, size=40_000)
    gains = {}
    for one in range(10):
        for other in range(one + 1, 10):
            d = weeks.totals[one] - weeks.totals[other]
            p = expit(drawn @ d)
            gains[one, other] = float((p * (1 - p)).mean() * d @ cover @ d)
    best = max(gains.values())
    # The ensemble of 200 may prefer a pair that is as good within its error of sampling.
    assert gains[keys(found)[0]] > 0.9 * best
    assert sorted(gains.values())[-8] < 0.9 * best


def test_a_batch_takes_in_what_its_earlier_pairs_will_tell() -> None:
    """Two directions: the first of far larger differences. Without that, all of a batch would ask about it."""
    rng = np.random.default_rng(1)
    totals = np.zeros((200, 2))
    totals[:100, 0], totals[100:, 1] = rng.normal(size=100), 0.5 * rng.normal(size=100)
    found = choose(certain([0.0, 0.0], np.eye(2)), weeks_from(totals), NOBODY, 12, seed=0)
    gaps = np.abs(totals[found[:, 0]] - totals[found[:, 1]])
    assert (gaps[:, 1] > gaps[:, 0]).sum() >= 3
    assert (gaps[:, 0] > gaps[:, 1]).sum() >= 3


def test_near_duplicates_are_not_asked_together() -> None:
    """Each week is there twenty times: no pair of a batch is of the same two kinds in the same difference again while
    others tell more, and no week is asked about twice."""
    kinds = np.random.default_rng(2).normal(size=(15, 3))
    weeks = weeks_from(np.repeat(kinds, 20, axis=0))
    found = choose(certain([0.5, 0.5, 0.5], np.eye(3)), weeks, NOBODY, 10, seed=0)
    assert len(set(found.ravel().tolist())) == 20
    asked = {(min(a, b), max(a, b)) for a, b in (found // 20).tolist()}
    assert len(asked) >= 8


def test_the_choice_is_that_of_its_seed() -> None:
    weeks, rng = world(), np.random.default_rng(3)
    first = random_pairs(weeks, NOBODY, 60, rng)
    fitted = fit(weeks, NAMES, Answers(say(weeks, first, rng)), intervals=False)
    chosen = choose(fitted, weeks, first, 8, seed=1)
    assert choose(fitted, weeks, first, 8, seed=1).tolist() == chosen.tolist()
    assert choose(fitted, weeks, first, 8, seed=2).tolist() != chosen.tolist()
    assert chosen.shape == (8, 2)
    assert not set(keys(chosen)) & set(keys(first))
    assert len(set(keys(chosen))) == 8


def test_units_of_components_do_not_matter() -> None:
    weeks, rng = world(), np.random.default_rng(4)
    first = random_pairs(weeks, NOBODY, 60, rng)
    answers = Answers(say(weeks, first, rng))
    other = replace(weeks, totals=weeks.totals / UNITS)
    here, there = (fit(each, NAMES, answers, intervals=False) for each in (weeks, other))
    assert choose(here, weeks, first, 5, 0).tolist() == choose(there, other, first, 5, 0).tolist()
    assert choose(None, weeks, first, 5, 0).tolist() == choose(None, other, first, 5, 0).tolist()


def test_sides_are_by_chance() -> None:
    weeks = world()
    found = np.concatenate([choose(None, weeks, NOBODY, 10, seed) for seed in range(20)])
    assert 0.4 < (found[:, 0] < found[:, 1]).mean() < 0.6
    better = (weeks.totals[found[:, 0]] @ TRUTH > weeks.totals[found[:, 1]] @ TRUTH).mean()
    assert 0.4 < better < 0.6


def test_all_pairs_of_a_small_log_can_be_asked_and_no_more() -> None:
    weeks = weeks_from(np.random.default_rng(5).normal(size=(5, 2)))
    found = choose(None, weeks, NOBODY, 10, seed=0)
    assert sorted(keys(found)) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    left = choose(None, weeks, found[:7], 3, seed=1)
    assert sorted(keys(left)) == sorted(keys(found[7:]))


def test_random_pairs_are_uniform_over_those_not_asked() -> None:
    weeks = weeks_from(np.zeros((60, 1)))
    asked = np.array([[1, 0], [2, 0]])
    counts = np.zeros((60, 60))
    for seed in range(300):
        for pair in keys(random_pairs(weeks, asked, 20, np.random.default_rng(seed))):
            counts[pair] += 1
    assert counts[0, 1] == counts[0, 2] == counts.diagonal().sum() == 0
    # 6,000 over 1,768 pairs: 3.39 each, Poisson.
    others = counts[np.triu_indices(60, 1)]
    others = np.delete(others, [0, 1])
    assert others.mean() == pytest.approx(6000 / 1768)
    assert others.var() / others.mean() == pytest.approx(1.0, abs=0.15)


def test_active_choice_learns_more_from_as_many_answers() -> None:
    """Squared error of the weights in standard deviations after 60 answers, six batches of ten, over 12 raters."""
    weeks, errors = world(400, seed=1), {True: [], False: []}
    for seed in range(12):
        for active in (True, False):
            rng = np.random.default_rng([seed, active])
            asked = random_pairs(weeks, NOBODY, 10, np.random.default_rng([seed, 7]))
            answers = Answers(say(weeks, asked, rng))
            for _ in range(5):
                if active:
                    fitted = fit(weeks, NAMES, answers, intervals=False)
                    batch = choose(fitted, weeks, asked, 10, int(rng.integers(1000)), candidates=500)
                else:
                    batch = random_pairs(weeks, asked, 10, rng)
                asked, answers = np.concatenate([asked, batch]), answers + Answers(say(weeks, batch, rng))
            found = fit(weeks, NAMES, answers, intervals=False).weights * UNITS
            truth = TRUTH * UNITS
            angle = math.acos(min(found @ truth / np.linalg.norm(found) / np.linalg.norm(truth), 1.0))
            errors[active].append(angle)
    gain = np.array(errors[False]) - np.array(errors[True])
    assert gain.mean() > 2 * gain.std(ddof=1) / len(gain) ** 0.5


def test_a_stored_version_chooses_as_the_fit_it_was_made_of() -> None:
    weeks, rng = world(), np.random.default_rng(6)
    first = random_pairs(weeks, NOBODY, 60, rng)
    fitted = fit(weeks, NAMES, Answers(say(weeks, first, rng)), intervals=False)
    facts = {
        "rewards": list(NAMES),
        "weights": dict(zip(NAMES, fitted.weights.tolist(), strict=True)),
        "scale": dict(zip(NAMES, fitted.scale.tolist(), strict=True)),
        "covariance": fitted.covariance.tolist(),
    }
    stored = Stored("people", 1, "weights", facts)
    read = known(stored, ("b", "c", "z", "a"))
    assert read.columns.tolist() == [3, 0, 1]
    moved = replace(weeks, totals=np.column_stack([weeks.totals[:, [1, 2]], np.zeros(300), weeks.totals[:, 0]]))
    assert choose(read, moved, first, 5, 0).tolist() == choose(fitted, weeks, first, 5, 0).tolist()
    with pytest.raises(InputError, match=r"people version 1 weighs 'a', which is none of the rewards b, c"):
        known(stored, ("b", "c"))
    with pytest.raises(InputError, match="is of kind goal; weights are needed"):
        known(replace(stored, kind="goal"), NAMES)


@pytest.mark.parametrize(
    ("totals", "n", "message"),
    [
        (np.random.default_rng(0).normal(size=(4, 1)), 7, r"4 user-weeks have 6 pairs, 0 of them asked; 7 new ones"),
        (np.ones((10, 2)), 3, r"none of 45 pairs of user-weeks differs in any reward component"),
    ],
)
def test_what_cannot_be_chosen(totals: np.ndarray, n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(None, weeks_from(totals), NOBODY, n, 0)
