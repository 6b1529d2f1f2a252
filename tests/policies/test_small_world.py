"""Finite decision processes and the small notification world, solved exactly; what its optimum earns in the world."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.errors import InputError
from policies.behaviour import Behaviour, SimulatorConfig
from policies.ledger import REWARDS
from policies.queues import relevance_at_most, relevance_of
from policies.simulator import threshold, true_values
from policies.small_world import EDGES, FATIGUE, SHAPE, Moves, SmallWorld, oracle
from policies.tabular import Mdp, solve, totals

HORIZON = 7


def two_states() -> Mdp:
    """Rested (0) and tired (1). Sending earns 3 when rested and 1 when tired, and leaves one tired; holding earns 0 and
    rests for certain when rested, with probability 1/2 when tired."""
    hold = csr_array([[1.0, 0.0], [0.5, 0.5]])
    send = csr_array([[0.0, 1.0], [0.0, 1.0]])
    reward = np.array([[[0.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])  # [S, A, (clicks, sends)]
    return Mdp([hold, send], reward, np.ones((2, 2), bool))


def test_two_states_by_hand():
    """Weights (1, 0), three decisions left.

    V3 = (0, 0). V2: rested max(0, 3) = 3, tired max(0, 1) = 1.
    V1: rested max(0 + 3, 3 + 1) = 4, tired max((3 + 1) / 2, 1 + 1) = 2 (a tie: hold, the first).
    V0: rested max(0 + 4, 3 + 2) = 5, tired max((4 + 2) / 2, 1 + 2) = 3 (a tie again).
    """
    best, value = solve(two_states(), np.array([1.0, 0.0]), 3)
    np.testing.assert_allclose(value, [5.0, 3.0], atol=1e-12)
    np.testing.assert_array_equal(best, [[1, 0], [1, 0], [1, 1]])
    # A price of 0.5 a send breaks the ties for hold: V2 = (2.5, 0.5), V1 = (3, 1.5), V0 = (4, 2.25).
    _, priced = solve(two_states(), np.array([1.0, -0.5]), 3)
    np.testing.assert_allclose(priced, [4.0, 2.25], atol=1e-12)
    # Sending always, from rested: 3 + 1 + 1 clicks with 3 sends; holding always earns nothing.
    np.testing.assert_allclose(totals(two_states(), np.array([1, 1]), 3)[0], [5.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(totals(two_states(), np.array([0, 0]), 3), 0)


def test_the_optimum_is_the_best_of_all_plans():
    """Every deterministic plan of a random process with 3 states, 2 actions and 2 decisions, one by one."""
    rng = np.random.default_rng(4)
    rows = rng.dirichlet(np.ones(3), (2, 3))
    legal = np.array([[True, True], [True, False], [True, True]])
    mdp = Mdp([csr_array(each) for each in rows], rng.normal(size=(3, 2, 2)), legal)
    weights = np.array([0.7, -0.4])
    best, value = solve(mdp, weights, 2)
    plans = (np.array(plan).reshape(2, 3) for plan in itertools.product((0, 1), repeat=6))
    found = [totals(mdp, plan, 2) @ weights for plan in plans if legal[np.arange(3), plan].all()]
    assert len(found) == 16
    np.testing.assert_allclose(value, np.max(found, axis=0), atol=1e-12)
    np.testing.assert_allclose(totals(mdp, best, 2) @ weights, value, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mdp([csr_array(np.full((2, 2), 0.4))], np.zeros((2, 1, 1)), np.ones((2, 1), bool)), "action 0: rows"),
        (lambda: Mdp([csr_array(np.eye(2))], np.zeros((2, 1, 1)), np.array([[True], [False]])), "state 1 has no legal"),
        (
            lambda: totals(
                Mdp([csr_array(np.eye(2))] * 2, np.zeros((2, 2, 1)), np.array([[True, True], [True, False]])),
                np.array([1, 1]), 3,
            ),
            "actions: 1 is illegal in state 1",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.fixture(scope="module", params=[0, 1, 2])
def small(request) -> SmallWorld:
    return SmallWorld(Behaviour(), request.param, Behaviour().visits_per_day[request.param])


@pytest.mark.parametrize(
    "weights",
    [
        {"visits": 1.0},
        {"weekly_active_days": 1.0},
        {"clicks": 1.0, "weekly_active_days": 0.5, "sends": -0.1, "disables": -2.0},
    ],
)
def test_the_optimum_earns_at_least_what_every_threshold_earns(small, weights):
    """From every state, and more than the best of them from most."""
    mdp = small.mdp()
    w = np.array([weights.get(name, 0.0) for name in REWARDS])
    best, value = solve(mdp, w, HORIZON)
    np.testing.assert_allclose(totals(mdp, best, HORIZON) @ w, value, rtol=1e-10)
    thresholds = [totals(mdp, small.threshold(cell), HORIZON) @ w for cell in range(1, len(EDGES) + 1)]
    assert all((value >= each - 1e-10).all() for each in thresholds)
    assert (value > np.max(thresholds, axis=0) + 1e-6).mean() > 0.5


def test_a_day_of_the_small_world_against_one_simulated_by_its_rules(small):
    """A plain simulation of one day of one user, event by event, 40,000 times: means within four standard errors."""
    b, rng, n = Behaviour(), np.random.default_rng(9), 40_000
    segment, mdp = small.segment, small.mdp()
    on, badge, days, point, item = 1, 1, 6, 3, 5
    state = np.ravel_multi_index((on, badge, days, point, item), SHAPE)
    fatigue = np.full(n, FATIGUE[point])
    awake, unseen, recent = np.ones(n, bool), np.full(n, badge), np.full(n, days)
    got = {name: np.zeros(n) for name in REWARDS}

    def notify(who: np.ndarray, relevance: np.ndarray, share: float, extra: float, decided: bool) -> None:
        odds = b.click_odds[segment] + b.click_relevance * relevance + extra - b.click_fatigue * fatigue
        click = who & (rng.random(n) < 1 / (1 + np.exp(-odds)))
        annoyance = share * (1 - relevance) ** 2
        off = who & ~click & (rng.random(n) < b.disable * annoyance * np.exp(b.disable_fatigue * fatigue))
        fatigue[who] += b.fatigue_gain * annoyance[who]
        unseen[who] = np.minimum(unseen[who] + 1, 3)
        unseen[click], recent[click], awake[off] = 0, 0, False
        for name, value in (("visits", click), ("disables", off), ("delivered", who)):
            got[name] += value
        if decided:
            got["sends"] += who
            got["clicks"] += click

    notify(np.ones(n, bool), np.full(n, small.middle[item]), 1.0, 0.0, decided=True)
    pushed = awake & (rng.random(n) < 1 - np.exp(-b.near_real_time_per_day[segment]))
    cell = np.searchsorted(relevance_at_most(EDGES), rng.random(n), "right")
    notify(pushed, small.middle[cell], b.system_annoyance, b.click_near_real_time, decided=False)
    mean = fatigue * b.fatigue_days * (1 - np.exp(-1 / b.fatigue_days))
    visited = small.visits_per_day * b.habit_gain * b.habit_days
    pull = b.habit_pull * visited / (1 + visited)
    rate = small.visits_per_day * np.exp(pull - b.fatigue_visits[segment] * mean) * (1 + b.badge_pull * unseen)
    visits = rng.random((6, n)) < 1 - np.exp(-rate / 6)
    got["visits"] += visits.sum(0)
    # The moment of the first visit, and of the day before it what the old week still covers.
    first = np.where(visits.any(0), rng.random(n), 1.0)
    left = np.clip(6.5 - recent, 0, 1)
    got["weekly_active_days"] += np.minimum(first, left) + np.where(visits.any(0), 1 - first, 0.0)
    expected = mdp.reward[state, 1]
    for column, name in enumerate(REWARDS):
        error = got[name].std() / np.sqrt(n)
        # Points of fatigue and the mean annoyance of a push stand for a spread of either: 1% of slack.
        assert abs(got[name].mean() - expected[column]) < 4 * error + 0.01 * expected[column] + 1e-12, name


def test_phases_conserve_probability_and_change_what_they_should(small):
    mdp = small.mdp()
    states = np.arange(len(small.on))
    for rows in mdp.transition:
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-12)
    # While off nothing is delivered; on again by hazard alone.
    off = small.on == 0
    assert (mdp.reward[off][:, :, REWARDS.index("delivered")] == 0).all()
    back = mdp.transition[0] @ (small.on == 1).astype(float)
    np.testing.assert_allclose(back[off], 1 - np.exp(-Behaviour().enable_per_day), rtol=1e-12)
    # A send takes the item: at the next review there is one only if it arrived.
    arrived = 1 - np.exp(-Behaviour().arrivals_per_day[small.segment])
    there = mdp.transition[1] @ (small.item > 0).astype(float)
    np.testing.assert_allclose(there[small.sendable], arrived, rtol=1e-9)
    kept = mdp.transition[0] @ (small.item > 0).astype(float)
    np.testing.assert_allclose(kept[small.sendable], 1 - 0.5 * (1 - arrived), rtol=1e-9)
    nothing = Moves(csr_array(np.eye(len(states))), np.zeros((len(states), len(REWARDS))))
    np.testing.assert_array_equal(nothing.then(nothing).reward, 0)


def test_relevance_is_distributed_as_in_the_world():
    u = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(relevance_at_most(relevance_of(u)), u, atol=1e-12)


def test_the_oracle_beats_the_logging_policy_in_the_world_by_what_companies_report():
    """Visits: above the logging policy by at least four standard errors, and no miracle; nor below a good threshold."""
    config = SimulatorConfig(truth_users=4000)
    weights = np.array([float(name == "visits") for name in REWARDS])
    found = true_values(
        config, 11, {"oracle": oracle(Behaviour(), weights, config.days), "above 0.45": threshold(0.45)}
    )
    gain = {name: row["visits"]["difference"] / row["visits"]["value"] for name, row in found.items()}
    error = found["oracle"]["visits"]["difference_standard_error"]
    assert found["oracle"]["visits"]["difference"] > 4 * error
    assert 0.002 < gain["oracle"] < 0.03
    assert found["oracle"]["visits"]["value"] > found["above 0.45"]["visits"]["value"] - 2 * error
    assert -0.35 < found["oracle"]["sends"]["difference"] / found["logging"]["sends"]["value"] < -0.02
