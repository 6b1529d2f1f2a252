from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.base import Floats
from policies.ope.dr import dr
from policies.ope.fqe import fqe
from policies.ope.ips import ips
from policies.ope.on_policy import on_policy
from policies.ope.sample import Sample, days_left, take, trajectory_rows
from policies.ope.summaries import Summary
from policies.ope.target import Target
from policies.ope.wpdis import wpdis

Build = Callable[..., Transitions]
PI = np.array([0.25, 0.75])


class Fixed:
    """The same probabilities in every row, renormalised over the legal actions."""

    name = "fixed"
    learned = False

    def __init__(self, probability: Any) -> None:
        self.probability = np.asarray(probability, dtype=np.float64)

    def action_probabilities(self, state: Any, legal: Any) -> Floats:
        masked = self.probability * legal
        return masked / masked.sum(1, keepdims=True)


def everything(table: Transitions, per: str) -> Sample:
    return take(table, np.ones(len(table.action), dtype=bool), per)


def value(summary: Summary, sample: Sample) -> Floats:
    """[K] the point estimate."""
    return summary.over(np.ones((1, sample.users))).total()[0] / sample.exposure.sum()


@pytest.fixture
def two_users(table_of: Build) -> Transitions:
    # pi = (1/4, 3/4).    a: send, send         b: hold, hold, send
    # rho                    0.75/0.5 = 1.5, 0.75/0.75 = 1     0.25/0.5 = 0.5, 0.25/0.25 = 1, 0.75/0.25 = 3
    # w (cumulative)         1.5, 1.5                          0.5, 0.5, 1.5
    return table_of("aabbb", [1, 1, 0, 0, 1], [0.5, 0.75, 0.5, 0.25, 0.25], [1, 2, 3, 4, 5])


Q = np.tile(np.array([[1.0], [2.0]]), (5, 1, 1))
"""[5, 2, 1]: Q(hold) = 1, Q(send) = 2 everywhere, so V = 0.25 * 1 + 0.75 * 2 = 1.75."""


class TestGoldenPerWeek:
    # 5 rows of a day each: 5/7 user-weeks.
    def test_on_policy(self, two_users: Transitions) -> None:
        sample = everything(two_users, "week")
        assert value(on_policy(sample), sample) == pytest.approx((1 + 2 + 3 + 4 + 5) * 7 / 5, abs=1e-12)

    def test_ips(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        expected = (1.5 * 1 + 1 * 2 + 0.5 * 3 + 1 * 4 + 3 * 5) * 7 / 5
        assert value(ips(sample, target.ratio), sample) == pytest.approx(expected, abs=1e-12)

    def test_wpdis(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        # step 0: 2 users (1.5*1 + 0.5*3) / 2; step 1: 2 users (1.5*2 + 0.5*4) / 2; step 2: 1 user 1.5*5 / 1.5
        expected = (2 * 3 / 2 + 2 * 5 / 2 + 5) * 7 / 5
        assert value(wpdis(sample, target.ratio), sample) == pytest.approx(expected, abs=1e-12)

    def test_dr(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        a = (1.75 + 1.5 * (1 - 2)) + (1.5 * 1.75 + 1.5 * (2 - 2))
        b = (1.75 + 0.5 * (3 - 1)) + (0.5 * 1.75 + 0.5 * (4 - 1)) + (0.5 * 1.75 + 1.5 * (5 - 2))
        found = value(dr(sample, target.ratio, target.probability, Q), sample)
        assert found == pytest.approx((a + b) * 7 / 5, abs=1e-12)

    def test_fqe(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        assert value(fqe(sample, target.probability, Q), sample) == pytest.approx((1.75 + 1.75) * 7 / 5, abs=1e-12)


class TestGoldenPerDecision:
    @pytest.fixture
    def table(self, table_of: Build) -> Transitions:
        # rows 0 and 3 are forced to hold; rho = 1, 1.5, 0.5, 1, 1.5
        legal = [[1, 0], [1, 1], [1, 1], [1, 0], [1, 1]]
        return table_of("aabbb", [0, 1, 0, 0, 1], [1, 0.5, 0.5, 1, 0.5], [1, 2, 3, 4, 5], legal=legal)

    def test_weighted_form_normalises_forced_and_choice_rows_apart(self, table: Transitions) -> None:
        sample, target = everything(table, "decision"), Target.of(Fixed(PI), table)
        forced = (1 + 4) / 2
        choice = (1.5 * 2 + 0.5 * 3 + 1.5 * 5) / (1.5 + 0.5 + 1.5)
        assert value(wpdis(sample, target.ratio), sample) == pytest.approx(2 / 5 * forced + 3 / 5 * choice, abs=1e-12)

    def test_ips_dr_fqe(self, table: Transitions) -> None:
        sample, target = everything(table, "decision"), Target.of(Fixed(PI), table)
        assert value(ips(sample, target.ratio), sample) == pytest.approx((1 + 3 + 1.5 + 4 + 7.5) / 5, abs=1e-12)
        # forced rows: V = Q(hold) = 1, correction r - 1
        expected = (1 + 0) + (1.75 + 1.5 * 0) + (1.75 + 0.5 * 2) + (1 + 3) + (1.75 + 1.5 * 3)
        assert value(dr(sample, target.ratio, target.probability, Q), sample) == pytest.approx(expected / 5, abs=1e-12)
        model = (1 + 1.75 + 1.75 + 1 + 1.75) / 5
        assert value(fqe(sample, target.probability, Q), sample) == pytest.approx(model, abs=1e-12)


def random_table(table_of: Build, seed: int, users: int = 30, components: int = 2) -> Transitions:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, users)
    name = [f"u{i:03d}" for i in range(users) for _ in range(lengths[i])]
    n = len(name)
    legal = rng.random((n, 3)) < 0.8
    legal[:, 0] = True
    mu = rng.dirichlet(np.ones(3), n) * legal
    mu /= mu.sum(1, keepdims=True)
    action = np.array([rng.choice(3, p=row) for row in mu])
    return table_of(
        name,
        action,
        mu[np.arange(n), action],
        rng.normal(size=(n, components)),
        rewards=tuple(f"r{i}" for i in range(components)),
        actions=("hold", "badge", "push"),
        legal=legal,
        elapsed_days=rng.random(n) + 0.1,
    )


@pytest.mark.parametrize("per", ["week", "decision"])
def test_every_estimator_agrees_with_a_loop(table_of: Build, per: str) -> None:
    table = random_table(table_of, 1)
    sample, target = everything(table, per), Target.of(Fixed([0.2, 0.3, 0.5]), table)
    rng = np.random.default_rng(2)
    q = rng.normal(size=(len(table.action), 3, 2))
    rows_of = [np.flatnonzero(table.user == u) for u in range(30)]
    pi, steps = target.probability, range(5) if per == "week" else range(2)
    total = {name: np.zeros(2) for name in ("ips", "dr", "fqe")}
    above, below, number = np.zeros((5, 2)), np.zeros(5), np.zeros(5)
    for rows in rows_of:
        w = 1.0
        for k, i in enumerate(rows):
            a = table.action[i]
            rho = pi[i, a] / table.propensity[i]
            before = w if per == "week" else 1.0
            w = before * rho
            v = sum(pi[i, b] * q[i, b] for b in range(3))
            total["ips"] += rho * table.reward[i]
            total["dr"] += before * v + w * (table.reward[i] - q[i, a])
            total["fqe"] += v if per == "decision" or k == 0 else 0
            g = k if per == "week" else int(table.legal[i].sum() > 1)
            above[g] += w * table.reward[i]
            below[g] += w
            number[g] += 1
    exposure = table.elapsed_days.sum() / 7 if per == "week" else len(table.action)
    weighted = sum(number[g] * above[g] / below[g] for g in steps if number[g])
    found = {
        "ips": ips(sample, target.ratio),
        "dr": dr(sample, target.ratio, pi, q),
        "fqe": fqe(sample, pi, q),
        "wpdis": wpdis(sample, target.ratio),
    }
    for name, expected in {**total, "wpdis": weighted}.items():
        np.testing.assert_allclose(value(found[name], sample), expected / exposure, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_with_pi_equal_to_mu_weights_are_one_and_every_estimator_is_the_logged_mean(table_of: Build, per: str) -> None:
    """IPS and WPDIS by weights of one; DR for any Q at all, mu being given as the action taken."""
    table = random_table(table_of, 3)
    sample = everything(table, per)
    target = Target.of(Fixed([0.2, 0.3, 0.5]), table).mixture(table, 0.0)
    logged = table.reward.sum(0) / (table.elapsed_days.sum() / 7 if per == "week" else len(table.action))
    np.testing.assert_array_equal(target.ratio, 1.0)
    wild = np.random.default_rng(0).normal(size=(len(table.action), 3, 2)) * 100
    summaries = (
        on_policy(sample),
        ips(sample, target.ratio),
        wpdis(sample, target.ratio),
        dr(sample, target.ratio, target.probability, wild),
    )
    for summary in summaries:
        np.testing.assert_allclose(value(summary, sample), logged, rtol=0, atol=1e-9)


def test_a_mixture_is_linear_in_its_ratio_and_probability(table_of: Build) -> None:
    table = random_table(table_of, 4)
    target = Target.of(Fixed([0.2, 0.3, 0.5]), table)
    mixed = target.mixture(table, 0.3)
    np.testing.assert_allclose(mixed.ratio, 0.7 + 0.3 * target.ratio)
    np.testing.assert_allclose(mixed.probability, 0.7 * np.eye(3)[table.action] + 0.3 * target.probability)
    np.testing.assert_allclose(target.mixture(table, 1.0).ratio, target.ratio)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_wpdis_returns_a_constant_reward_exactly_on_ragged_trajectories(table_of: Build, per: str) -> None:
    table = random_table(table_of, 5)
    assert len(set(np.bincount(table.user))) > 1
    table.reward[:] = [2.5, -1.0]
    sample, target = everything(table, per), Target.of(Fixed([0.1, 0.1, 0.8]), table)
    exposure = table.elapsed_days.sum() / 7 if per == "week" else len(table.action)
    expected = len(table.action) * np.array([2.5, -1.0]) / exposure
    np.testing.assert_allclose(value(wpdis(sample, target.ratio), sample), expected, rtol=1e-12)
    assert abs(value(ips(sample, target.ratio), sample)[0] - expected[0]) > 1e-3


def test_wpdis_says_nothing_where_nobody_follows_the_policy_that_far(table_of: Build) -> None:
    table = table_of("aabb", [1, 0, 1, 0], [0.5] * 4, [1, 1, 1, 1])
    sample, target = everything(table, "week"), Target.of(Fixed([0, 1]), table)
    assert np.isnan(value(wpdis(sample, target.ratio), sample)).all()


def test_wpdis_lets_a_rare_last_step_that_nobody_follows_take_the_mean_of_the_one_before(table_of: Build) -> None:
    # 150 users of one row, every second one followed, and one user of two rows whose second is not: 1 row in 152
    names = [f"u{i:03d}" for i in range(150)] + ["w", "w"]
    action = [i % 2 for i in range(150)] + [1, 0]
    reward = np.array([float(i % 2) * 4 for i in range(150)] + [6.0, 9.0])
    table = table_of(names, action, [0.5] * 152, reward)
    sample, target = everything(table, "week"), Target.of(Fixed([0, 1]), table)
    step_0 = (75 * 4 + 6) / 76
    assert value(wpdis(sample, target.ratio), sample) == pytest.approx((151 * step_0 + 1 * step_0) * 7 / 152, abs=1e-9)


def test_an_action_that_constraints_forbid_has_weight_zero(table_of: Build) -> None:
    table = table_of("aa", [1, 0], [0.5, 0.5], [1, 1], legal=[[1, 0], [1, 1]])
    target = Target.of(Fixed([0.5, 0.5]), table)
    np.testing.assert_allclose(target.ratio, [0.0, 1.0])


def test_a_trajectory_ends_at_the_first_terminal_or_truncated_row(table_of: Build) -> None:
    table = table_of("aaaabb", [0] * 6, [0.5] * 6, np.arange(6.0), terminal=[0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(trajectory_rows(table), [1, 1, 0, 0, 1, 1])
    sample = everything(table, "week")
    assert sample.left_out == 2
    np.testing.assert_allclose(sample.exposure, [2 / 7, 2 / 7])
    np.testing.assert_array_equal(sample.group, [0, 1, 0, 1])
    assert everything(table, "decision").left_out == 0


def test_days_left_do_not_foretell_a_closed_account(table_of: Build) -> None:
    # a closes the account in its second day; b is observed for two days, c for three: the log ends after day three.
    ended = [0, 1, 0, 0, 0, 0, 0]
    table = table_of("aabbccc", [0] * 7, [0.5] * 7, [0.0] * 7, terminal=ended)
    np.testing.assert_allclose(days_left(table), [3, 2, 2, 1, 3, 2, 1])


# A Markov decision process small enough to solve: 2 states, 2 actions, 3 steps.
MU = np.array([[0.6, 0.4], [0.3, 0.7]])
TARGET = np.array([[0.2, 0.8], [0.9, 0.1]])
REWARD = np.array([[0.0, 1.0], [2.0, -1.0]])
NEXT_IS_1 = np.array([[0.1, 0.9], [0.9, 0.8]])
HORIZON = 3


def solve(policy: Floats) -> tuple[float, Floats]:
    """Value from s = 0 or 1 with equal chance, and Q [HORIZON, s, a], by backward induction."""
    ahead, found = np.zeros(2), np.zeros((HORIZON, 2, 2))
    for t in reversed(range(HORIZON)):
        found[t] = REWARD + (1 - NEXT_IS_1) * ahead[0] + NEXT_IS_1 * ahead[1]
        ahead = (policy * found[t]).sum(1)
    return float(ahead.mean()), found


class Tabular:
    name = "tabular"
    learned = False

    def action_probabilities(self, state: Any, legal: Any) -> Floats:
        return TARGET[state[:, 0].astype(int)]


def simulate(table_of: Build, seed: int, users: int, horizon: int) -> Transitions:
    rng = np.random.default_rng(seed)
    s = rng.integers(0, 2, users)
    states, actions, rewards = [], [], []
    for _ in range(horizon):
        a = (rng.random(users) < MU[s, 1]).astype(int)
        states.append(s)
        actions.append(a)
        rewards.append(REWARD[s, a] + rng.normal(size=users))
        s = (rng.random(users) < NEXT_IS_1[s, a]).astype(int)
    state, action, reward = (np.stack(each, 1).ravel() for each in (states, actions, rewards))
    names = np.repeat([f"u{i}" for i in range(users)], horizon).tolist()
    return table_of(names, action, MU[state, action], reward, state=state)


def test_known_truth_is_recovered_over_seeds(table_of: Build) -> None:
    truth, exact = solve(TARGET)
    found: dict[str, list[float]] = {name: [] for name in ("wpdis", "dr exact", "dr wrong", "fqe", "ips")}
    for seed in range(40):
        table = simulate(table_of, seed, 400, HORIZON)
        sample, target = everything(table, "week"), Target.of(Tabular(), table)
        q = exact[sample.group, table.state[:, 0].astype(int)][..., None]
        summaries = {
            "wpdis": wpdis(sample, target.ratio),
            "dr exact": dr(sample, target.ratio, target.probability, q),
            "dr wrong": dr(sample, target.ratio, target.probability, 0.5 * q + 1),
            "fqe": fqe(sample, target.probability, q),
            "ips": ips(sample, target.ratio),
        }
        for name, summary in summaries.items():
            found[name].append(value(summary, sample)[0] * HORIZON / 7)
    for name in ("wpdis", "dr exact", "dr wrong", "fqe"):
        error = np.std(found[name], ddof=1) / np.sqrt(40)
        assert abs(np.mean(found[name]) - truth) < 3.5 * error + 1e-3, name
        assert error < 0.05
    assert np.std(found["dr exact"]) < np.std(found["dr wrong"])
    # one-step weights value each decision of pi with mu before it: another quantity, which they recover
    one_step, share = 0.0, np.array([0.5, 0.5])
    for _ in range(HORIZON):
        one_step += float(share @ (TARGET * REWARD).sum(1))
        ahead = float(share @ (MU * NEXT_IS_1).sum(1))
        share = np.array([1 - ahead, ahead])
    assert abs(one_step - truth) > 0.1
    assert abs(np.mean(found["ips"]) - one_step) < 3.5 * np.std(found["ips"], ddof=1) / np.sqrt(40)


def test_ips_recovers_the_truth_of_one_decision(table_of: Build) -> None:
    truth = float((TARGET * REWARD).sum(1).mean())
    for per, scale in (("week", 1 / 7), ("decision", 1.0)):
        found = []
        for seed in range(40):
            table = simulate(table_of, seed, 400, 1)
            sample, target = everything(table, per), Target.of(Tabular(), table)
            found.append(value(ips(sample, target.ratio), sample)[0] * scale)
        assert abs(np.mean(found) - truth) < 3.5 * np.std(found, ddof=1) / np.sqrt(40)
