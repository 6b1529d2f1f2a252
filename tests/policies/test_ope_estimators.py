from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.base import Floats
from policies.ope.dr import dr
from policies.ope.fqe import fqe
from policies.ope.ips import ips
from policies.ope.mis import mis
from policies.ope.on_policy import on_policy
from policies.ope.pdis import pdis
from policies.ope.sample import Sample, days_left, take, trajectory_rows
from policies.ope.summaries import Normalised, Summary
from policies.ope.target import Target
from policies.ope.wdr import wdr
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

    def test_pdis(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        expected = (1.5 * 1 + 1.5 * 2 + 0.5 * 3 + 0.5 * 4 + 1.5 * 5) * 7 / 5
        assert value(pdis(sample, target.ratio), sample) == pytest.approx(expected, abs=1e-12)

    def test_wdr(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        # d_k = r_k + V(s_{k+1}) - Q(a_k):   a: 1 + 1.75 - 2, 2 - 2     b: 3 + 1.75 - 1, 4 + 1.75 - 1, 5 - 2
        step_0 = 2 * (1.5 * 0.75 + 0.5 * 3.75) / 2
        step_1 = 2 * (1.5 * 0.0 + 0.5 * 4.75) / 2
        step_2 = 1 * 3.0
        expected = (1.75 + 1.75 + step_0 + step_1 + step_2) * 7 / 5
        found = value(wdr(sample, target.ratio, target.probability, Q), sample)
        assert found == pytest.approx(expected, abs=1e-12)

    def test_mis(self, two_users: Transitions) -> None:
        sample, target = everything(two_users, "week"), Target.of(Fixed(PI), two_users)
        # z: a 0, 1; b 0, 1, 0. rho: a 1.5, 1; b 0.5, 1, 3. Both reach z = 1 at step 1: w_1(1) = (1.5 + 0.5) / 2 = 1;
        # b alone reaches step 2: w_2(0) = w_1(1) * 1 / 1 = 1.
        step_0 = 2 * (1.5 * 1 + 0.5 * 3) / (1.5 + 0.5)
        step_1 = 2 * (1 * 2 + 1 * 4) / (1 + 1)
        step_2 = 1 * 5
        found = value(mis(sample, target.ratio, np.array([0, 1, 0, 1, 0])), sample)
        assert found == pytest.approx((step_0 + step_1 + step_2) * 7 / 5, abs=1e-12)

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
        # WDR: the same means of V, and the corrections normalised among the two forced rows and the three others
        forced, choice = 2 * (0 + 3) / 2, 3 * (1.5 * 0 + 0.5 * 2 + 1.5 * 3) / 3.5
        weighted = ((1 + 1.75 + 1.75 + 1 + 1.75) + forced + choice) / 5
        found = value(wdr(sample, target.ratio, target.probability, Q), sample)
        assert found == pytest.approx(weighted, abs=1e-12)
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
    total = {name: np.zeros(2) for name in ("ips", "pdis", "dr", "fqe")}
    above, below, number, left = np.zeros((5, 2)), np.zeros(5), np.zeros(5), np.zeros((5, 2))
    for rows in rows_of:
        w = 1.0
        for k, i in enumerate(rows):
            a = table.action[i]
            rho = pi[i, a] / table.propensity[i]
            before = w if per == "week" else 1.0
            w = before * rho
            v = sum(pi[i, b] * q[i, b] for b in range(3))
            total["ips"] += rho * table.reward[i]
            total["pdis"] += w * table.reward[i]
            total["dr"] += before * v + w * (table.reward[i] - q[i, a])
            total["fqe"] += v if per == "decision" or k == 0 else 0
            g = k if per == "week" else int(table.legal[i].sum() > 1)
            above[g] += w * table.reward[i]
            below[g] += w
            number[g] += 1
            after = np.zeros(2)
            if per == "week" and k + 1 < len(rows):
                after = sum(pi[rows[k + 1], b] * q[rows[k + 1], b] for b in range(3))
            left[g] += w * (table.reward[i] + after - q[i, a])
    exposure = table.elapsed_days.sum() / 7 if per == "week" else len(table.action)
    weighted = sum(number[g] * above[g] / below[g] for g in steps if number[g])
    corrected = total["fqe"] + sum(number[g] * left[g] / below[g] for g in steps if number[g])
    found = {
        "ips": ips(sample, target.ratio),
        "pdis": pdis(sample, target.ratio),
        "dr": dr(sample, target.ratio, pi, q),
        "wdr": wdr(sample, target.ratio, pi, q),
        "fqe": fqe(sample, pi, q),
        "wpdis": wpdis(sample, target.ratio),
    }
    for name, expected in {**total, "wpdis": weighted, "wdr": corrected}.items():
        np.testing.assert_allclose(value(found[name], sample), expected / exposure, rtol=1e-10, err_msg=name)


def naive_mis(table: Transitions, ratio: Floats, place: Any, count: Any) -> Floats:
    """Users one by one, user u counted count[u] times; per step the weights of a dictionary of bins."""
    rows_of = [np.flatnonzero(table.user == u) for u in range(len(table.user_id))]
    w, total = dict.fromkeys(range(int(place.max()) + 1), 1.0), np.zeros(table.reward.shape[1])
    for k in range(max(map(len, rows_of))):
        here = [(count[u], rows[k], rows[k + 1] if k + 1 < len(rows) else None)
                for u, rows in enumerate(rows_of) if k < len(rows)]  # fmt: skip
        above = sum(c * w[place[i]] * ratio[i] * table.reward[i] for c, i, _ in here)
        below = sum(c * w[place[i]] * ratio[i] for c, i, _ in here)
        total += sum(c for c, *_ in here) * above / below
        arrive: dict[int, float] = {}
        people: dict[int, float] = {}
        for c, i, j in here:
            if j is not None:
                arrive[place[j]] = arrive.get(place[j], 0.0) + c * w[place[i]] * ratio[i]
                people[place[j]] = people.get(place[j], 0.0) + c
        w = {z: arrive[z] / people[z] for z in arrive if people[z]}
    return total


def test_marginalised_weights_agree_with_a_loop_in_every_resample(table_of: Build) -> None:
    table = random_table(table_of, 6)
    sample, target = everything(table, "week"), Target.of(Fixed([0.2, 0.3, 0.5]), table)
    place = np.random.default_rng(7).integers(0, 3, len(table.user))
    counts = np.vstack([np.ones(30), np.random.default_rng(8).integers(1, 4, (4, 30))])
    found = mis(sample, target.ratio, place).over(counts).total()
    expected = [naive_mis(table, target.ratio, place, count) for count in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_marginalised_by_nothing_is_one_step_and_by_the_user_is_wpdis(table_of: Build) -> None:
    table = random_table(table_of, 9)
    sample, target = everything(table, "week"), Target.of(Fixed([0.2, 0.3, 0.5]), table)
    by_user = value(mis(sample, target.ratio, sample.user), sample)
    np.testing.assert_allclose(by_user, value(wpdis(sample, target.ratio), sample), rtol=1e-10)
    by_nothing = value(mis(sample, target.ratio, np.zeros(len(sample.user), dtype=np.int64)), sample)
    # Every weight before a step is the same there and falls out: rho alone, normalised in each step.
    steps = [sample.group == k for k in range(5)]
    alone = sum(rows.sum() * (target.ratio[rows] @ sample.reward[rows]) / target.ratio[rows].sum() for rows in steps)
    np.testing.assert_allclose(by_nothing, alone / sample.exposure.sum(), rtol=1e-10)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_two_halves_of_a_log_add_up_to_the_whole(table_of: Build, per: str) -> None:
    """Users 0..9 have one step, the others up to five: the first half lacks groups that the second has."""
    table = random_table(table_of, 10)
    keep = (table.user >= 10) | (np.diff(table.user, prepend=-1) != 0)
    table = table.where(keep)
    sample, target = everything(table, per), Target.of(Fixed([0.2, 0.3, 0.5]), table)
    q = np.random.default_rng(3).normal(size=(len(table.user), 3, 2))
    place = np.random.default_rng(4).integers(0, 2, len(table.user))
    counts = np.random.default_rng(5).integers(1, 4, (3, 30)).astype(float)

    def made(rows: Any) -> dict[str, Any]:
        part = take(table, rows, per)
        ratio, pi = target.ratio[part.rows], target.probability[part.rows]
        found = {
            "on_policy": on_policy(part),
            "ips": ips(part, ratio),
            "pdis": pdis(part, ratio),
            "wpdis": wpdis(part, ratio),
            "dr": dr(part, ratio, pi, q[part.rows]),
            "wdr": wdr(part, ratio, pi, q[part.rows]),
            "fqe": fqe(part, pi, q[part.rows]),
        }
        return found | ({"mis": mis(part, ratio, place[part.rows])} if per == "week" else {})

    first, second = made(table.user < 10), made(table.user >= 10)
    for name, whole in made(np.ones(len(table.user), dtype=np.bool_)).items():
        for one, other in ((first, second), (second, first)):
            left, right = (counts[:, :10], counts[:, 10:]) if one is first else (counts[:, 10:], counts[:, :10])
            merged = one[name].over(left) + other[name].over(right)
            np.testing.assert_allclose(merged.total(), whole.over(counts).total(), rtol=1e-12, err_msg=name)
    assert sample.users == 30


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
        pdis(sample, target.ratio),
        *([mis(sample, target.ratio, sample.group % 2)] if per == "week" else []),
    )
    for summary in summaries:
        np.testing.assert_allclose(value(summary, sample), logged, rtol=0, atol=1e-12)
    for summary in (
        dr(sample, target.ratio, target.probability, wild),
        wdr(sample, target.ratio, target.probability, wild),
    ):
        np.testing.assert_allclose(value(summary, sample), logged, rtol=0, atol=1e-9)


def test_a_mixture_is_linear_in_its_ratio_and_probability(table_of: Build) -> None:
    table = random_table(table_of, 4)
    target = Target.of(Fixed([0.2, 0.3, 0.5]), table)
    mixed = target.mixture(table, 0.3)
    np.testing.assert_allclose(mixed.ratio, 0.7 + 0.3 * target.ratio)
    np.testing.assert_allclose(mixed.probability, 0.7 * np.eye(3)[table.action] + 0.3 * target.probability)
    np.testing.assert_allclose(target.mixture(table, 1.0).ratio, target.ratio)


@pytest.mark.parametrize("per", ["week", "decision"])
def test_normalised_forms_return_a_constant_reward_exactly_on_ragged_trajectories(table_of: Build, per: str) -> None:
    table = random_table(table_of, 5)
    assert len(set(np.bincount(table.user))) > 1
    table.reward[:] = [2.5, -1.0]
    sample, target = everything(table, per), Target.of(Fixed([0.1, 0.1, 0.8]), table)
    exposure = table.elapsed_days.sum() / 7 if per == "week" else len(table.action)
    expected = len(table.action) * np.array([2.5, -1.0]) / exposure
    np.testing.assert_allclose(value(wpdis(sample, target.ratio), sample), expected, rtol=1e-12)
    if per == "week":
        place = np.random.default_rng(0).integers(0, 4, len(table.user))
        np.testing.assert_allclose(value(mis(sample, target.ratio, place), sample), expected, rtol=1e-12)
    # What a user still earns is the number of rows left, which an exact Q knows.
    last = np.append(np.flatnonzero(np.diff(table.user)), len(table.user) - 1)
    left = last[table.user] - np.arange(len(table.user)) + 1 if per == "week" else np.ones(len(table.user))
    exact = np.repeat((left[:, None] * [2.5, -1.0])[:, None], 3, axis=1)
    found = value(wdr(sample, target.ratio, target.probability, exact), sample)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(value(ips(sample, target.ratio), sample)[0] - expected[0]) > 1e-3


def test_self_normalised_values_stay_in_the_range_of_the_rewards(table_of: Build) -> None:
    """One decision a user: whatever the weights, a normalised mean lies among the rewards; IPS does not."""
    rng = np.random.default_rng(0)
    left_range = 0
    for _ in range(50):
        p = rng.uniform(0.02, 0.2, 20)
        table = table_of([f"u{i}" for i in range(20)], [1] * 20, p, rng.random(20))
        sample, target = everything(table, "decision"), Target.of(Fixed([0.3, 0.7]), table)
        low, high = table.reward.min(), table.reward.max()
        assert low <= value(wpdis(sample, target.ratio), sample)[0] <= high
        left_range += value(ips(sample, target.ratio), sample)[0] > high
    assert left_range == 50


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


def test_what_nobody_follows_goes_on_with_the_mean_before_for_one_row_in_a_hundred_and_no_further() -> None:
    """Two groups: sums of w r of 6 and 0, of w of 3 and 0, so that the mean of the first is 2."""
    weighted, weight = np.array([[[6.0], [0.0]]]), np.array([[3.0, 0.0]])
    few, many = np.array([[99.0, 1.0]]), np.array([[98.0, 2.0]])
    np.testing.assert_allclose(Normalised(weighted, weight, few).terms(), [[[99 * 2.0], [1 * 2.0]]])
    assert np.isnan(Normalised(weighted, weight, many).terms()).all()
    # A model that is only corrected stands as it is.
    np.testing.assert_allclose(Normalised(weighted, weight, few, corrects=True).terms(), [[[99 * 2.0], [0.0]]])
    assert np.isnan(Normalised(weighted, weight, many, corrects=True).terms()).all()


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
