"""The likelihood: by hand, by differences, and against a second one that loops over answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from models.rewards.answers import Answers, Pair, Ranking
from models.rewards.bradley_terry import Model, maximise
from models.rewards.preferences import PreferenceConfig, random_pairs
from tests.models.rewards.preferring import NOBODY, rank, raw_model, say, weeks_from, world


def theta_of(model: Model, weights: list[float], tau: float = 0.0, side: float = 0.0) -> NDArray[np.float64]:
    found = np.zeros(model.size)
    found[: model.weights], found[model.weights], found[model.sides] = weights, tau, side
    return found


def test_two_pairs_by_hand() -> None:
    """Totals 3, 1 and 2; w = 0.5: eta of (3, 1) is 1, of (2, 1) it is 0.5, and b = 0.25 is added to each."""
    answers = Answers((Pair("w0", "w1", "left", "ann"), Pair("w2", "w1", "right", "ann")))
    model = raw_model(weeks_from([[3.0], [1.0], [2.0]]), answers)
    found = np.exp(model.log_probabilities(theta_of(model, [0.5], side=0.25)))
    assert found[0, 0] == pytest.approx(1 / (1 + math.exp(-1.25)))
    assert found[1, 1] == pytest.approx(1 - 1 / (1 + math.exp(-0.75)))
    # log(0.777300) + log(0.320821) = -0.251929 - 1.136872
    assert model.log_likelihood(theta_of(model, [0.5], side=0.25)) == pytest.approx(-1.388801, abs=1e-6)


def test_ties_of_davidson_by_hand() -> None:
    """eta = 0.5 x (3 - 1) = 1, nu = 0.5: e^0.5 = 1.648721, e^-0.5 = 0.606531, together with nu 2.755252."""
    answers = Answers((Pair("w0", "w1", "left", "ann"), Pair("w0", "w1", "tie", "ann")))
    model = raw_model(weeks_from([[3.0], [1.0]]), answers)
    found = np.exp(model.log_probabilities(theta_of(model, [0.5], tau=math.log(0.5))))[0]
    assert found == pytest.approx([1.648721 / 2.755252, 0.606531 / 2.755252, 0.5 / 2.755252], abs=1e-6)
    # Whatever nu is, the odds of the decided answers stay e^eta: what Rao and Kupper's do not.
    assert found[0] / found[1] == pytest.approx(math.e)


def test_where_nobody_tied_there_is_no_tie() -> None:
    model = raw_model(weeks_from([[3.0], [1.0]]), Answers((Pair("w0", "w1", "left", "ann"),)))
    assert not model.ties
    assert np.exp(model.log_probabilities(theta_of(model, [0.0])))[0].tolist() == [0.5, 0.5]


def test_a_ranking_of_three_by_hand() -> None:
    """Utilities 2, 1, 0 in this order: e^2 / (e^2 + e + 1) x e / (e + 1) = 0.665241 x 0.731059."""
    weeks = weeks_from([[2.0], [1.0], [0.0]])
    model = raw_model(weeks, Answers((), (Ranking(("w0", "w1", "w2"), "ann"),)))
    assert math.exp(model.log_likelihood(theta_of(model, [1.0]))) == pytest.approx(0.665241 * 0.731059, abs=1e-6)
    orders = [("w0", "w1", "w2"), ("w0", "w2", "w1"), ("w1", "w0", "w2"), ("w1", "w2", "w0"), ("w2", "w0", "w1"),
              ("w2", "w1", "w0")]  # fmt: skip
    each = [raw_model(weeks, Answers((), (Ranking(order, "ann"),))) for order in orders]
    assert sum(math.exp(one.log_likelihood(theta_of(one, [1.0]))) for one in each) == pytest.approx(1.0)


@pytest.mark.parametrize("better", [6, 8])
def test_the_jeffreys_prior_adds_a_half_to_each_side(better: int) -> None:
    """8 pairs of difference 1, 4 shown either way: the penalised score k - n p + 1/2 - p = 0 gives
    w = log((k + 1/2) / (n - k + 1/2)), finite where all 8 agree: log(8.5 / 0.5) = 2.833."""
    half = better // 2
    pairs = [Pair("w1", "w0", "left" if i < half else "right", "ann") for i in range(4)]
    pairs += [Pair("w0", "w1", "right" if i < half else "left", "ann") for i in range(4)]
    model = raw_model(weeks_from([[0.0], [1.0]]), Answers(tuple(pairs)))
    found = maximise(model, np.zeros(model.size), model.free)
    assert found[0] == pytest.approx(math.log((better + 0.5) / (8.5 - better)))
    assert found[model.sides] == pytest.approx([0.0], abs=1e-9)


@pytest.fixture(scope="module")
def mixed() -> Model:
    """Two raters, pairs with ties, and rankings of four."""
    weeks, rng = world(60), np.random.default_rng(3)
    pairs = random_pairs(weeks, NOBODY, 40, rng)
    said = say(weeks, pairs, rng, nu=0.5, truth=np.array([1.0, -0.05, 8.0]))
    said += say(weeks, pairs[:20], rng, "bob", reliability=1.8, side=0.9, nu=0.5)
    ranked = rank(weeks, [rng.choice(60, 4, replace=False) for _ in range(6)], rng, "bob")
    model = raw_model(weeks_from(weeks.totals / [1.0, 20.0, 0.1]), Answers(said, ranked))
    assert model.ties
    return model


def test_gradient_and_curvature_are_those_of_differences(mixed: Model) -> None:
    """All second derivatives but the Jeffreys prior's by reliabilities, the last two parameters."""
    theta, step = np.random.default_rng(5).normal(size=mixed.size) * 0.3, 1e-5
    units = np.eye(mixed.size)
    up, down = ([mixed.at(theta + sign * step * unit) for unit in units] for sign in (1, -1))
    here = mixed.at(theta)
    gradient = [(a.value - b.value) / (2 * step) for a, b in zip(up, down, strict=True)]
    assert here.gradient == pytest.approx(np.array(gradient), abs=1e-7)
    curvature = np.array([(b.gradient - a.gradient) / (2 * step) for a, b in zip(up, down, strict=True)])
    linear = mixed.reliabilities.start
    assert here.curvature[:linear, :linear] == pytest.approx(curvature[:linear, :linear], abs=1e-6)


def naive(model: Model, theta: NDArray[np.float64], side_sd: float, reliability_sd: float) -> float:
    """The objective by loops over choices and alternatives."""
    each, k = model.choices, model.weights
    total, information = 0.0, np.zeros((k + 1, k + 1))
    for i in range(len(each.chosen)):
        r, scores, slopes = each.rater[i], [], []
        for a in range(each.there.shape[1]):
            if each.there[i, a]:
                beta = math.exp(theta[k + 1 + model.raters + r])
                utility = sum(theta[c] * each.features[i, a, c] for c in range(k))
                scores.append(beta * utility + theta[k + 1 + r] * each.side[i, a] + theta[k] * each.tie[i, a])
                slopes.append([*(beta * each.features[i, a]), each.tie[i, a]])
        chance = np.exp(scores) / np.exp(scores).sum()
        total += math.log(chance[each.chosen[i]])
        mean = sum(p * np.array(slope) for p, slope in zip(chance, slopes, strict=True))
        for p, slope in zip(chance, slopes, strict=True):
            information += p * np.outer(slope - mean, slope - mean)
    sides, reliabilities = theta[model.sides], theta[model.reliabilities]
    total += 0.5 * math.log(np.linalg.det(information))
    return total - 0.5 * float((sides**2).sum() / side_sd**2 + (reliabilities**2).sum() / reliability_sd**2)


def test_the_maximum_is_that_of_a_second_implementation(mixed: Model) -> None:
    found = maximise(mixed, np.zeros(mixed.size), mixed.free)
    counts = np.bincount(mixed.choices.rater)

    def whole(free: NDArray[np.float64]) -> NDArray[np.float64]:
        """The last reliability follows from the others: sum over choices of log beta is 0."""
        return np.append(free, -free[-1] * counts[0] / counts[1])

    def loss(free: NDArray[np.float64]) -> float:
        return -naive(mixed, whole(free), 1.0, 0.5)

    assert mixed.at(found).value == pytest.approx(-loss(found[:-1]), abs=1e-9)
    other = minimize(loss, np.zeros(mixed.size - 1), method="BFGS", options={"gtol": 1e-6})
    assert found == pytest.approx(whole(other.x), abs=2e-5)
    assert counts @ found[mixed.reliabilities] == pytest.approx(0.0, abs=1e-9)


def test_values_rise_with_every_step_from_a_bad_start(mixed: Model) -> None:
    start = mixed.free @ (mixed.free.T @ np.full(mixed.size, 3.0))
    best = maximise(mixed, np.zeros(mixed.size), mixed.free)
    assert maximise(mixed, start, mixed.free) == pytest.approx(best, abs=1e-5)
    path = [mixed.at(start + t * (best - start)).value for t in (0.0, 0.5, 1.0)]
    assert all(before < after for before, after in pairwise(path))


def test_information_is_the_mean_outer_product_of_scores(mixed: Model) -> None:
    """Over all answers that could have been given, weighted by how probable they are: its definition."""
    theta = np.random.default_rng(1).normal(size=mixed.size) * 0.2
    chance = np.exp(mixed.log_probabilities(theta))
    expected = np.zeros((mixed.size, mixed.size))
    step, units = 1e-6, np.eye(mixed.size)
    with np.errstate(invalid="ignore"):  # where there is no alternative
        gaps = [mixed.log_probabilities(theta + step * u) - mixed.log_probabilities(theta - step * u) for u in units]
    slopes = np.stack(gaps, axis=-1) / (2 * step)
    for p, slope, there in zip(chance, slopes, mixed.choices.there, strict=True):
        expected += sum(p[a] * np.outer(slope[a], slope[a]) for a in np.flatnonzero(there))
    assert mixed.information(theta) == pytest.approx(expected, abs=1e-6)


def test_settings_of_shrinkage_are_used() -> None:
    """A rater who always says left among equals: the log odds b solves n (1 - sigma(b)) = b / sd^2."""
    weeks = weeks_from([[0.0], [1.0]])
    pairs = (Pair("w0", "w1", "left", "ann"), Pair("w1", "w0", "left", "ann")) * 5
    for sd in (0.5, 2.0):
        model = raw_model(weeks, Answers(pairs), PreferenceConfig(side_sd=sd))
        theta = maximise(model, np.zeros(model.size), model.free)
        side = theta[model.sides][0]
        assert theta[0] == pytest.approx(0.0, abs=1e-9)
        # The Jeffreys prior of w, 1/2 log(10 p (1 - p)), has a part in b as well: 1/2 - p.
        p = 1 / (1 + math.exp(-side))
        assert 10 * (1 - p) + 0.5 - p == pytest.approx(side / sd**2)
