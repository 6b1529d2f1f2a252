"""The experiment: published boundaries, false alarms and power over a thousand experiments, CUPED, ratios, verdicts."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from models.errors import InputError
from policies.abtest.config import AbtestConfig, ExperimentMetric
from policies.abtest.effects import NO_BEFORE, Measure, effect, ratio
from policies.abtest.plan import days_to_enrol, drift_needed, plan, spread
from policies.abtest.predicted import against_prediction
from policies.abtest.read import Clock, holm, read, sample_ratio, segment_groups, segments
from policies.abtest.sequential import (
    AlwaysValid,
    Looks,
    boundaries,
    crossing,
    drift_for,
    mixture,
    spent,
)
from policies.abtest.users import DAY, Users, cut, join

EXPERIMENTS = 1000
MOST = 64
"""Of a thousand experiments with a 5% chance of a false alarm each, 50 and twice their noise of 6.9."""
FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
UP = ExperimentMetric("up", effect=0.1)


def settings(**changes: Any) -> AbtestConfig:
    plain: dict[str, Any] = {
        "control": "old",
        "treatments": ("new",),
        "metrics": {"visits": UP},
        "method": "looks",
        "looks": (7.0,),
    }
    return AbtestConfig(**{**plain, **changes})


# Looking more than once


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        # Lan-DeMets spending, five equal looks, two-sided 0.05: Jennison & Turnbull 2000; R package ldbounds.
        ("obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_boundaries_are_those_published(kind: str, published: list[float]) -> None:
    bounds = boundaries(FIFTHS, list(spent(kind, 0.05, FIFTHS)))
    assert bounds == pytest.approx(published, abs=6e-4)
    above, below = crossing(bounds, FIFTHS)
    assert (above + below).sum() == pytest.approx(0.05, abs=1e-9)
    assert above == pytest.approx(below)


def test_spending_by_hand() -> None:
    # Per side a = 0.025: 2 (1 - Phi(2.2414 / sqrt 0.5)) = 0.001525 and 0.025 ln(1 + 1.71828 / 2) = 0.0155029.
    assert spent("obrien_fleming", 0.05, [0.5]) == pytest.approx([2 * 2 * norm.sf(norm.isf(0.0125) / np.sqrt(0.5))])
    assert spent("pocock", 0.05, [0.5]) == pytest.approx([2 * 0.0155029], abs=1e-6)
    for kind in ("obrien_fleming", "pocock"):
        assert spent(kind, 0.05, [1.0, 1.3]) == pytest.approx([0.05, 0.05])


def test_crossing_equals_simulated_paths() -> None:
    """A second implementation: 200,000 random walks; the error of a share of 0.5 is 0.0011."""
    information, drift = np.array([0.1, 0.35, 0.5, 1.0]), 2.0
    bounds = boundaries(information, spent("pocock", 0.1, information))
    steps = np.diff(information, prepend=0)
    noise = np.random.default_rng(0).normal(size=(200_000, 4)) * np.sqrt(steps) + drift * steps
    z = np.cumsum(noise, axis=1) / np.sqrt(information)
    first = np.argmax(np.abs(z) > bounds, axis=1)
    out = (np.abs(z) > bounds).any(axis=1)
    above, below = crossing(bounds, information, drift)
    for look in range(4):
        here = out & (first == look)
        assert above[look] == pytest.approx((here & (z[:, look] > 0)).mean(), abs=0.005)
        assert below[look] == pytest.approx((here & (z[:, look] < 0)).mean(), abs=0.005)


def test_looks_close_together_are_integrated_as_exactly() -> None:
    days = np.arange(1, 61) / 60
    bounds = boundaries(days, spent("pocock", 0.05, days))
    assert sum(crossing(bounds, days)).sum() == pytest.approx(0.05, abs=1e-8)


def test_one_look_is_the_fixed_horizon() -> None:
    # 1.9600 + 0.8416, up to the chance of finding the opposite.
    assert drift_for([1.959964], [1.0], 0.8) == pytest.approx(2.80158, abs=1e-4)
    monitor = Looks((1.0,), (37.0,), "obrien_fleming")
    assert monitor.bound(0.05) == pytest.approx(1.959964)
    assert monitor.p_value(-1.959964) == pytest.approx(0.05)


@pytest.mark.parametrize("kind", ["obrien_fleming", "pocock"])
def test_a_repeated_p_value_is_the_alpha_whose_bound_is_reached(kind: str) -> None:
    monitor = Looks((0.25, 0.5), (2.0, 5.0), kind)
    for alpha in (0.2, 0.05, 0.001):
        assert monitor.p_value(monitor.bound(alpha)) == pytest.approx(alpha, rel=2e-3)
    assert monitor.p_value(0.0) == 1.0
    # Earlier looks and their information are what the bound depends on, not their unit or what is to come.
    assert monitor.bounds(0.05) == pytest.approx(Looks((0.25, 0.5), (20.0, 50.0), kind).bounds(0.05))
    assert Looks((0.25, 0.5, 0.7), (2.0, 5.0, 6.0), kind).bounds(0.05)[:2] == pytest.approx(monitor.bounds(0.05))


def test_information_that_shrinks_is_held() -> None:
    assert Looks((0.2, 0.5), (3.0, 2.5), "pocock").bound(0.05) == pytest.approx(
        Looks((0.2, 0.5), (3.0, 3.0), "pocock").bound(0.05)
    )


def test_the_always_valid_bound_is_that_of_the_paper() -> None:
    """sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(sqrt(n rho^2 + 1) / alpha)) sigma, over sigma / sqrt n."""
    n, planned, alpha = 300, 1000, 0.05
    rho2 = mixture(alpha) / planned
    width = np.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * np.log(np.sqrt(n * rho2 + 1) / alpha))
    assert AlwaysValid(n / planned, alpha).bound(alpha) == pytest.approx(width * np.sqrt(n))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_rho_makes_the_bound_at_the_planned_users_the_lowest(alpha: float) -> None:
    best = AlwaysValid(1.0, alpha).bound(alpha)
    # Another fraction with the same alpha is another rho^2.
    assert all(AlwaysValid(each, alpha).bound(alpha) > best for each in (0.7, 0.9, 0.99, 1.01, 1.1, 1.5))


def test_the_always_valid_p_value_is_the_alpha_whose_bound_is_reached() -> None:
    monitor = AlwaysValid(0.4, 0.05)
    for alpha in (0.5, 0.05, 1e-6):
        assert monitor.p_value(-monitor.bound(alpha)) == pytest.approx(alpha)
    assert monitor.p_value(0.0) == 1.0


# Effects


def draw(seed: Any, users: int, looks: int = 1, rate: float = 2.0) -> Measure:
    """Visits of users who differ from each other for good (cumulative [users, looks]), over unequal times."""
    rng = np.random.default_rng(seed)
    own = rng.gamma(2.0, rate / 2.0, users)
    weeks = rng.uniform(0.5, 1.0, users)
    now = np.cumsum(rng.poisson(own[:, None] * weeks[:, None] / looks, (users, looks)), axis=1)
    covered = weeks[:, None] * np.arange(1, looks + 1) / looks
    before = rng.poisson(2 * own)
    return Measure(now.astype(float), covered, before.astype(float), np.full(users, 2.0))


def at(measure: Measure, look: int) -> Measure:
    return Measure(measure.top[:, look], measure.bottom[:, look], measure.top_before, measure.bottom_before)


def test_ratio_and_its_influence_by_hand() -> None:
    # R = 6 / 4; influences (1 - 1.5, 5 - 4.5) / 2, whose mean is 0.
    value, influence = ratio(np.array([1.0, 5.0]), np.array([1.0, 3.0]))
    assert value == 1.5
    assert influence == pytest.approx([-0.25, 0.25])
    assert np.isnan(ratio(np.ones(2), np.zeros(2))[0])


def test_the_delta_method_equals_its_textbook_form_and_the_bootstrap() -> None:
    """Var(R) = (Var y - 2 R Cov(y, d) + R^2 Var d) / (n mean(d)^2); 4,000 resamples know it to 2.2%."""
    arms = [at(draw(seed, 500, rate=1 + seed), 0) for seed in (1, 2)]
    found = effect(*arms, cuped=False)
    textbook, replicates = 0.0, []
    for seed, arm in enumerate(arms):
        y, d, n = arm.top, arm.bottom, len(arm.top)
        r = y.sum() / d.sum()
        c = np.cov(y, d)
        textbook += (c[0, 0] - 2 * r * c[0, 1] + r**2 * c[1, 1]) / (n * d.mean() ** 2)
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 4000)
        replicates.append((counts @ y) / (counts @ d))
    assert found.variance == pytest.approx(textbook)
    difference = replicates[1] - replicates[0]
    assert found.variance == pytest.approx(difference.var(), rel=0.08)
    relative = difference / replicates[0]
    assert found.relative == pytest.approx(found.difference / found.control)
    assert found.relative_variance == pytest.approx(relative.var(), rel=0.08)


def test_the_relative_variance_of_a_control_below_zero_and_above_is_the_same() -> None:
    low, high = at(draw(1, 300), 0), at(draw(2, 300), 0)
    turned = [dataclasses.replace(each, top=-each.top, top_before=-each.top_before) for each in (low, high)]
    found, mirrored = effect(low, high), effect(*turned)
    assert mirrored.relative == pytest.approx(-found.relative)
    assert mirrored.relative_variance == pytest.approx(found.relative_variance)


def gaussian(seed: Any, users: int, rho: float, shift: float = 0.0) -> Measure:
    """Normal outcomes of mean 5 whose correlation with the time before is rho."""
    rng = np.random.default_rng(seed)
    before, rest = rng.normal(size=(2, users))
    now = 5 + shift + rho * before + np.sqrt(1 - rho**2) * rest
    return Measure(now, np.ones(users), 3 + before, np.ones(users))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_cuped_takes_away_rho_squared_and_stays_unbiased(rho: float) -> None:
    """Over 1,000 experiments: the mean within 4 of its errors, the variance that is stated the one that is there."""
    users, shift = 200, 0.3
    pairs = [(gaussian([1, n], users, rho), gaussian([2, n], users, rho, shift)) for n in range(EXPERIMENTS)]
    found = [effect(*pair) for pair in pairs]
    difference = np.array([each.difference for each in found])
    assert abs(difference.mean() - shift) < 4 * difference.std() / np.sqrt(EXPERIMENTS)
    # Var = 2 (1 - rho^2) / 200; a variance over 1,000 is known to 4.5%.
    assert difference.var() == pytest.approx(2 * (1 - rho**2) / users, rel=0.13)
    assert np.mean([each.variance for each in found]) == pytest.approx(2 * (1 - rho**2) / users, rel=0.02)
    assert np.mean([each.explained for each in found]) == pytest.approx(rho**2, abs=0.01)
    plain = np.array([effect(*pair, cuped=False).difference for pair in pairs])
    assert plain.var() == pytest.approx(2 / users, rel=0.13)


def test_cuped_equals_a_regression_on_the_time_before() -> None:
    low, high = gaussian(1, 400, 0.7), gaussian(2, 400, 0.7, 0.2)
    x = [low.top_before - low.top_before.mean(), high.top_before - high.top_before.mean()]
    theta = (x[0] @ low.top + x[1] @ high.top) / (x[0] @ x[0] + x[1] @ x[1])
    by_hand = (high.top - theta * high.top_before).mean() - (low.top - theta * low.top_before).mean()
    assert effect(low, high).difference == pytest.approx(by_hand)


def test_without_a_time_before_there_is_no_cuped_and_a_word_says_so() -> None:
    arms = [dataclasses.replace(gaussian(n, 50, 0.5), bottom_before=np.zeros(50)) for n in (1, 2)]
    found = effect(*arms)
    assert (found.without_cuped, found.explained) == (NO_BEFORE, 0.0)
    assert found.difference == effect(*arms, cuped=False).difference
    assert effect(gaussian(1, 50, 0.5), gaussian(2, 50, 0.5)).without_cuped is None


# A thousand experiments


def people(seed: Any, users: int, effect_of: float = 0.0, components: tuple[str, ...] = ("visits",)) -> Users:
    """Users of one experiment, dealt to two arms by a coin; `effect_of` is added to the treatment's mean."""
    measures = [at(draw([place, *np.atleast_1d(seed)], users), 0) for place in range(len(components))]
    arm = np.random.default_rng([9, *np.atleast_1d(seed)]).integers(0, 2, users)
    weeks = measures[0].bottom
    now = np.stack([each.top for each in measures], axis=1) + (effect_of * arm * weeks)[:, None]
    return users_of(arm, now, weeks, np.stack([each.top_before for each in measures], axis=1), components)


def users_of(arm: Any, now: Any, weeks: Any, before: Any, components: tuple[str, ...], state: Any = None) -> Users:
    number = len(arm)
    return Users(
        components=components,
        features=("size", "zone=a", "zone=b"),
        arm=np.asarray(arm, np.int64),
        enrolled=np.zeros(number, np.int64),
        until=np.full((number, 1), 7 * DAY),
        total=np.asarray(now, np.float64)[:, None, :],
        weeks=np.asarray(weeks, np.float64)[:, None],
        before=np.asarray(before, np.float64),
        weeks_before=np.full(number, 2.0),
        state=np.zeros((number, 3), np.float32) if state is None else np.asarray(state, np.float32),
    )


def sizes(users: Users, arms: int = 2) -> list[int]:
    return np.bincount(users.arm, minlength=arms).tolist()


def test_a_fixed_horizon_gives_few_false_alarms_over_three_goals() -> None:
    components = ("visits", "clicks", "sends")
    config = settings(metrics=dict.fromkeys(components, UP))
    verdicts = []
    for number in range(EXPERIMENTS):
        users = people(number, 500, components=components)
        verdicts.append(read(Clock(users, (1.0,)), sizes(users), config)["comparisons"]["new"]["verdict"])
    alarms = sum(verdict in ("BETTER", "HARM") for verdict in verdicts)
    assert 20 <= alarms <= MOST
    # A mismatch is called at p < 0.001.
    assert verdicts.count("INVALID") <= 5


def alarmed_daily(seed: int, users: int, days: int, shift: float, bounds: Any) -> bool:
    """Whether an experiment read each day, users counting in the order they enrolled, shows an improvement or harm."""
    measure = at(draw([3, seed], users), 0)
    arm = np.random.default_rng([4, seed]).integers(0, 2, users)
    measure = dataclasses.replace(measure, top=measure.top + shift * arm * measure.bottom)
    for day, bound in enumerate(bounds, start=1):
        first = np.arange(users) < users * day // days
        found = effect(measure.of(first & (arm == 0)), measure.of(first & (arm == 1)))
        if abs(found.z) > bound and (shift == 0 or found.z > 0):
            return True
    return False


def test_daily_looks_give_few_false_alarms_where_the_interval_is_always_valid() -> None:
    days = 14
    bounds = [AlwaysValid(day / days, 0.05).bound(0.05) for day in range(1, days + 1)]
    assert sum(alarmed_daily(n, 1400, days, 0.0, bounds) for n in range(EXPERIMENTS)) <= MOST
    # The same looks with 1.96 each would not do.
    assert sum(alarmed_daily(n, 1400, days, 0.0, [1.96] * days) for n in range(300)) > 0.15 * 300


def spent_alarms(kind: str, looks: int, users: int, shift: float) -> int:
    """Experiments whose z leaves the bounds at some look; all users enrol at once and stay as they are."""
    alarms = 0
    fraction = tuple(np.arange(1, looks + 1) / looks)
    for number in range(EXPERIMENTS):
        measure = draw([5, number], users, looks)
        arm = np.random.default_rng([6, number]).integers(0, 2, users)
        found = []
        for look in range(looks):
            each = at(measure, look)
            each = dataclasses.replace(each, top=each.top + shift * arm * each.bottom)
            found.append(effect(each.of(arm == 0), each.of(arm == 1)))
        bounds = Looks(fraction, tuple(1 / each.variance for each in found), kind).bounds(0.05)
        z = np.array([each.z for each in found])
        alarms += bool(((z if shift else np.abs(z)) > bounds).any())
    return alarms


@pytest.mark.parametrize("kind", ["obrien_fleming", "pocock"])
def test_looks_that_spend_alpha_give_few_false_alarms(kind: str) -> None:
    """Users who differ for good make the looks alike: the information of each is read off its variance."""
    assert 20 <= spent_alarms(kind, 7, 400, 0.0) <= MOST


def planned(config: AbtestConfig, looks: int) -> tuple[int, float]:
    """Users that a plan from a large log asks for, and the change it is to find."""
    measure = draw(77, 40_000, looks)
    log = Users(
        components=("visits",),
        features=(),
        arm=np.zeros(40_000, np.int64),
        enrolled=np.zeros(40_000, np.int64),
        until=np.zeros((40_000, looks), np.int64),
        total=measure.top[:, :, None],
        weeks=measure.bottom,
        before=measure.top_before[:, None],
        weeks_before=measure.bottom_before,
        state=np.zeros((40_000, 0), np.float32),
    )
    found = plan(log, np.array([40_000]), config)
    return found["users"], found["metrics"]["visits"]["value"] * 0.2


def test_power_is_as_planned_at_one_look() -> None:
    config = settings(metrics={"visits": ExperimentMetric("up", effect=0.2)})
    users, change = planned(config, 1)
    shown = 0
    for number in range(EXPERIMENTS):
        each = people([number, 1], users, change)
        comparison = read(Clock(each, (1.0,)), sizes(each), config)["comparisons"]["new"]
        shown += comparison["verdict"] == "BETTER"
    assert shown / EXPERIMENTS == pytest.approx(0.8, abs=0.05)


def test_power_is_as_planned_with_spent_alpha() -> None:
    config = settings(metrics={"visits": ExperimentMetric("up", effect=0.2)}, looks=(2.0, 4.0, 6.0, 8.0, 10.0))
    users, change = planned(config, 5)
    shown = spent_alarms("obrien_fleming", 5, users, change)
    assert shown / EXPERIMENTS == pytest.approx(0.8, abs=0.05)


def test_power_is_as_planned_where_the_interval_is_always_valid() -> None:
    config = settings(metrics={"visits": ExperimentMetric("up", effect=0.2)}, method="always_valid")
    users, change = planned(config, 1)
    bounds = [AlwaysValid(day / 20, 0.05).bound(0.05) for day in range(1, 21)]
    shown = sum(alarmed_daily(number, users, 20, change, bounds) for number in range(EXPERIMENTS))
    assert shown / EXPERIMENTS == pytest.approx(0.8, abs=0.05)


# The plan


def test_a_plan_by_hand() -> None:
    """n = (1.96 + 0.8416)^2 sigma^2 (1 / 0.5 + 1 / 0.5) / (0.1 * 2)^2, sigma^2 = 4 / 3 of (1, 3, 1, 3)."""
    log = users_of([0] * 4, [[1.0], [3.0], [1.0], [3.0]], np.ones(4), np.ones((4, 1)), ("visits",))
    found = plan(log, np.array([4]), settings(pre_days=0.0))
    assert found["metrics"]["visits"]["users"] == int(np.ceil((1.959964 + 0.841621) ** 2 * 4 / 3 * 4 / 0.04))
    assert found["metrics"]["visits"]["detectable"] == pytest.approx(2.801585 * np.sqrt(4 / 3 * 4 / 4) / 2, rel=1e-4)
    assert found["metrics"]["visits"]["inflation"] == pytest.approx(1, abs=1e-4)
    assert found["without_cuped"] == "pre_days is 0"
    # A tenth in the treatment: 1 / 0.9 + 1 / 0.1 for 1 / 0.5 + 1 / 0.5.
    small = plan(log, np.array([4]), settings(allocation=(0.9, 0.1), pre_days=0.0))
    assert small["users"] / found["users"] == pytest.approx((1 / 0.9 + 1 / 0.1) / 4, rel=1e-2)


def test_more_goals_looks_and_freedom_to_look_cost_users() -> None:
    one = drift_needed(settings(), 0.05, (1.0,))
    pocock = drift_needed(settings(looks=(1.0, 2.0, 3.0, 4.0, 5.0), spending="pocock"), 0.05, ())
    obrien = drift_needed(settings(looks=(1.0, 2.0, 3.0, 4.0, 5.0)), 0.05, ())
    free = drift_needed(settings(method="always_valid"), 0.05, ())
    assert one < obrien < pocock < free
    # Jennison & Turnbull 2000, five looks, power 0.8: O'Brien-Fleming 1.028, Pocock 1.229 times the users of one look;
    # the spending forms lie beside them.
    assert (obrien / one) ** 2 == pytest.approx(1.028, abs=0.01)
    assert (pocock / one) ** 2 == pytest.approx(1.229, abs=0.03)
    two = settings(metrics={"visits": UP, "clicks": UP})
    users = people(1, 2000, components=("visits", "clicks"))
    assert plan(users, np.array([9]), two)["metrics"]["visits"]["users"] > spread_users(users)


def spread_users(users: Users) -> int:
    return int(plan(users, np.array([9]), settings())["metrics"]["visits"]["users"])


def test_the_plan_counts_on_cuped_as_the_log_has_it() -> None:
    users = people(3, 4000)
    measure = users.measure("visits", 0)
    now, past = ratio(measure.top, measure.bottom)[1], ratio(measure.top_before, measure.bottom_before)[1]
    found = spread(users, "visits")
    assert found.explained == pytest.approx(np.corrcoef(now, past)[0, 1] ** 2)
    assert found.left == pytest.approx(now.var(ddof=1) * (1 - found.explained))
    assert 0.2 < found.explained < 0.8


def test_days_follow_the_arrivals_of_the_log() -> None:
    arrivals = np.array([100, 20, 10, 10, 10, 10, 10, 10, 10])
    assert days_to_enrol(100, arrivals, None) == 1
    assert days_to_enrol(130, arrivals, None) == 3
    # 190 came in nine days, ten more a day from then on.
    assert days_to_enrol(205, arrivals, None) == 11
    assert days_to_enrol(205, arrivals, 50.0) == 5
    assert days_to_enrol(205, np.array([190, 0, 0, 0, 0, 0, 0, 0]), None) is None
    found = plan(people(1, 300), np.array([100]), settings(method="always_valid", users_per_day=100.0))
    assert found["days"] == int(np.ceil(found["users"] / 100)) + 7


# The reading


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


def test_sample_ratio_by_hand() -> None:
    # 20^2 / 500 twice; and with three arms 0 + 10^2 / 50 + 10^2 / 50 = 4, whose p with 2 degrees of freedom is exp(-2).
    assert sample_ratio([520, 480], [0.5, 0.5])["chi2"] == pytest.approx(1.6)
    assert sample_ratio([520, 480], [0.5, 0.5])["p"] == pytest.approx(0.205903, abs=1e-6)
    three = sample_ratio([100, 60, 40], [0.5, 0.25, 0.25])
    assert (three["chi2"], three["p"], three["ok"]) == (pytest.approx(4), pytest.approx(np.exp(-2)), True)


def test_a_sample_ratio_mismatch_shows_no_effect() -> None:
    users = people(1, 1000, 2.0)
    found = read(Clock(users, (1.0,)), [560, 440], settings(segments=("size",)))
    assert found["sample_ratio"]["p"] < 0.001
    comparison = found["comparisons"]["new"]
    assert comparison["verdict"] == "INVALID"
    assert comparison["metrics"] == {}
    assert found["segments"] == []
    assert "old 560, new 440" in comparison["reasons"][0]


GUARD = {"visits": UP, "clicks": ExperimentMetric("down", margin=0.1)}


@pytest.mark.parametrize(
    ("visits", "clicks", "users", "verdict", "said"),
    [
        (0.5, 0.0, 4000, "BETTER", "visits: .* shown to be better"),
        (-0.5, 0.0, 4000, "HARM", "shown to be worse. Stop the treatment"),
        (0.5, 0.8, 4000, "HARM", "clicks: .* broken. Stop the treatment"),
        (0.0, 0.0, 4000, "UNDECIDED", "visits: .* not shown, and an effect of 10.00% is excluded"),
        (0.15, 0.0, 1600, "UNDECIDED", "visits: .* not shown. About .* users instead of 1,600"),
        (2.0, 0.1, 400, "UNDECIDED", "clicks: .* not excluded. About .* users instead of 400"),
        (0.5, 0.0, 150, "UNDECIDED", "too early, .* Read again later"),
    ],
)
def test_verdicts(visits: float, clicks: float, users: int, verdict: str, said: str) -> None:
    """Visits and clicks are about 2 a week, so that 0.2 of clicks is the margin."""
    arm = np.arange(users) % 2
    each = people(11, users, components=("visits", "clicks"))
    now = each.total[:, 0] + np.outer(arm, [visits, clicks]) * each.weeks
    clock = Clock(users_of(arm, now, each.weeks[:, 0], each.before, each.components), (1.0,))
    found = read(clock, sizes(clock.users), settings(metrics=GUARD))["comparisons"]["new"]
    assert found["verdict"] == verdict
    assert any(re.search(said, reason) for reason in found["reasons"]), found["reasons"]


def test_an_interval_is_wider_by_the_bound_and_at_the_level_of_all_goals() -> None:
    users = people(5, 1000, components=("visits", "clicks"))
    config = settings(metrics={"visits": UP, "clicks": UP}, method="always_valid", users=2000)
    row = read(Clock(users, (1.0,)), sizes(users), config)["comparisons"]["new"]["metrics"]["visits"]
    plain = effect(users.measure("visits", 0).of(users.arm == 0), users.measure("visits", 0).of(users.arm == 1))
    # 1,000 of 2,000 planned users, alpha shared by two goals.
    half = AlwaysValid(0.5, 0.025).bound(0.025) * np.sqrt(plain.variance)
    assert row["difference"]["high"] - row["difference"]["estimate"] == pytest.approx(half)
    assert row["alpha"] == 0.025


def test_two_treatments_share_alpha_and_the_planned_users() -> None:
    users = people(6, 1500)
    arm = np.arange(1500) % 3
    users = dataclasses.replace(users, arm=arm)
    config = settings(treatments=("new", "newer"), method="always_valid", users=3000)
    found = read(Clock(users, (1.0,)), sizes(users, 3), config)["comparisons"]
    assert set(found) == {"new", "newer"}
    bound = AlwaysValid(1000 / 2000, 0.025).bound(0.025)
    assert found["newer"]["metrics"]["visits"]["bound"] == pytest.approx(bound)
    ps = [found[arm]["metrics"]["visits"]["p"] for arm in ("new", "newer")]
    assert [found[arm]["metrics"]["visits"]["p_holm"] for arm in ("new", "newer")] == pytest.approx(list(holm(ps)))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_metric_without_variance_decides_nothing(value: float) -> None:
    users = people(1, 600, components=("visits", "clicks"))
    users = dataclasses.replace(users, total=users.total.copy())
    users.total[:, 0, 1] = value * users.weeks[:, 0]
    found = read(Clock(users, (1.0,)), sizes(users), settings(metrics=GUARD))["comparisons"]["new"]
    row = found["metrics"]["clicks"]
    assert (row["difference"], row["p"], row["state"]) == (None, None, "undecided")
    assert "cannot be read" in row["reason"]


def test_a_few_rare_events_decide_nothing() -> None:
    users = people(1, 600, components=("visits", "clicks"))
    users = dataclasses.replace(users, total=users.total.copy())
    users.total[:, 0, 1] = np.arange(600) < 19
    row = read(Clock(users, (1.0,)), sizes(users), settings(metrics=GUARD))["comparisons"]["new"]["metrics"]["clicks"]
    assert row["difference"] is None
    assert "fewer than 20 users" in row["reason"]


# Segments, to explore


def test_segments_are_cut_by_what_was_known_at_the_enrolment() -> None:
    state = np.zeros((8, 3))
    state[:, 0] = [1, 2, 3, 4, 5, 6, np.nan, np.nan]
    state[:3, 1] = 1
    state[3:5, 2] = 1
    users = users_of([0] * 8, np.ones((8, 1)), np.ones(8), np.ones((8, 1)), ("visits",), state)
    by_size = segment_groups(users, "size", 3)
    assert [label for label, _ in by_size] == ["size <= 2", "2 < size <= 4", "size > 4", "size is unknown"]
    assert [int(rows.sum()) for _, rows in by_size] == [2, 2, 2, 2]
    by_zone = segment_groups(users, "zone", 3)
    assert {label: int(rows.sum()) for label, rows in by_zone} == {"zone=a": 3, "zone=b": 2, "zone is another": 3}
    with pytest.raises(InputError, match="'sise' is neither a state feature nor a category; found size"):
        segment_groups(users, "sise", 3)


def test_an_effect_in_one_segment_is_found_there_and_shared_among_all() -> None:
    users = people(2, 2400)
    state = np.zeros((2400, 3))
    state[:, 0] = np.arange(2400) % 2
    now = users.total[:, 0] + (1.0 * users.arm * state[:, 0] * users.weeks[:, 0])[:, None]
    users = users_of(users.arm, now, users.weeks[:, 0], users.before, ("visits",), state)
    low, high = segments(Clock(users, (1.0,)), settings(segments=("size",)))
    assert (low["group"], high["group"]) == ("size <= 0", "size > 0")
    assert high["p_holm"] < 0.001 < 0.05 < low["p_holm"]
    assert high["alpha"] == 0.025
    assert high["difference"]["low"] < 1.0 < high["difference"]["high"]


# What evaluation had predicted


def evaluated(**difference: float | None) -> dict[str, Any]:
    """As much of an evaluation as is compared: 95% intervals of a difference in visits."""
    figures = {"visits": {"difference": difference}}
    return {"per": "week", "confidence": 0.95, "policies": {"new": {"trusted": True, "estimates": {"dr": figures}}}}


def test_a_prediction_is_compared_by_the_difference_of_two_differences() -> None:
    """z = (0.5 - 0.1) / sqrt(0.3^2 + 0.4^2) = 0.8, the predicted error 0.4 from an interval of 2 x 1.96 x 0.4."""
    figures = {"difference": {"estimate": 0.5, "low": 0.0, "high": 1.0, "standard_error": 0.3}}
    reading = {"comparisons": {"new": {"metrics": {"visits": figures, "ctr": figures}}}}
    half = 1.959964 * 0.4
    found = against_prediction(reading, evaluated(estimate=0.1, low=0.1 - half, high=0.1 + half), "dr", settings())
    (row,) = found["rows"]
    assert row["z"] == pytest.approx(0.8)
    assert row["agrees"] is True
    far = against_prediction(reading, evaluated(estimate=-2.0, low=-2 - half, high=-2 + half), "dr", settings())
    assert far["rows"][0]["z"] == pytest.approx(5.0)
    assert far["rows"][0]["agrees"] is False


def test_what_cannot_be_compared_is_said() -> None:
    reading = {"comparisons": {"new": {"metrics": {"visits": {"difference": None}}}}}
    told = evaluated(estimate=0.1, low=0.0, high=0.2)
    assert against_prediction(reading, told, "dr", settings())["rows"] == []
    assert "wpdis: new" in against_prediction(reading, told, "wpdis", settings())["left_out"]
    assert "per decision" in against_prediction(reading, {**told, "per": "decision"}, "dr", settings())["left_out"]
    with pytest.raises(InputError, match="'gone' was not evaluated; found new"):
        against_prediction(reading, told, "dr", settings(predicted={"new": "gone"}))


# From transitions to users


def test_what_a_user_earned_by_hand(table_of: Any) -> None:
    """Enrolled on day 2, read on day 5: intervals (0, 2], (2, 4], (4, 8], the last of which counts by a quarter."""
    table = table_of(
        ["a"] * 3 + ["b"] * 2 + ["c"],
        [0, 1, 1, 0, 1, 0],
        [0.5] * 6,
        [8.0, 1.0, 4.0, 5.0, 7.0, 3.0],
        rewards=("visits",),
        state=[1, 2, 3, 4, 5, 6],
        elapsed_days=[2, 2, 4, 3, 1, 9],
        decided_at=np.array([0, 2, 4, 0, 3, 0]) * DAY,
        terminal=[False, False, False, False, True, False],
    )
    day = np.array([2, 3, 0]) * DAY
    found = cut(table, np.array([0, 1, -1]), day, np.full((3, 2), 5 * DAY) - np.array([0, DAY]), pre_days=1.0)
    assert found.arm.tolist() == [0, 1]
    # a: 1 + 4 / 4 until day 5, 1 until day 4; b's account closes in its last interval: 7, and four days are covered.
    assert found.total[:, :, 0].tolist() == [[2.0, 1.0], [7.0, 7.0]]
    assert found.weeks * 7 == pytest.approx(np.array([[3.0, 2.0], [1.0, 1.0]]))
    # One day before: half of (0, 2] and of its 8; a third of (0, 3] and of its 5.
    assert found.before[:, 0] == pytest.approx([4.0, 5 / 3])
    assert found.weeks_before * 7 == pytest.approx([1.0, 1.0])
    assert found.state[:, 0].tolist() == [2.0, 5.0]
    assert len(join([found, found])) == 4


def test_ctr_is_a_ratio_of_two_totals() -> None:
    now = np.array([[2.0, 4.0], [0.0, 6.0], [1.0, 0.0]])
    users = users_of([0, 0, 0], now, np.ones(3), now / 2, ("clicks", "sends"))
    measure = users.measure("ctr", 0)
    assert ratio(measure.top, measure.bottom)[0] == pytest.approx(0.3)
    assert ratio(measure.top_before, measure.bottom_before)[0] == pytest.approx(0.3)


# Bad input


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"treatments": ()}, "none beside the control 'old'; an experiment has two arms or more"),
        ({"treatments": ("old",)}, "old is named as an arm more than once"),
        ({"allocation": (0.5, 0.4)}, r"abtest.allocation is \[0.5, 0.4\]; shares above 0 that sum to 1"),
        ({"allocation": (1.0, 0.0)}, "shares above 0 that sum to 1"),
        ({"allocation": (1.0,)}, "abtest.allocation has 1 shares for 2 arms"),
        ({"predicted": {"gnu": "dr"}}, r"abtest.predicted: gnu is not an arm \(treatments: new\)"),
        ({"metrics": {"visits": ExperimentMetric("up", margin=0.1)}}, "abtest.metrics: no goal"),
        ({"metrics": {}}, "abtest.metrics: no goal"),
        ({"looks": ()}, r"abtest.looks is \[\]"),
        ({"looks": (7.0, 7.0)}, "each later than the one before"),
        ({"method": "daily"}, "abtest.method is 'daily'"),
        ({"spending": "linear"}, "abtest.spending is 'linear'"),
        ({"window_days": 3.0}, "abtest.window_days is 3.0; give 7 or more"),
        ({"alpha": 0.0}, "abtest.alpha is 0.0"),
        ({"power": 1.0}, "abtest.power is 1.0"),
        ({"power": float("nan")}, "abtest.power is nan"),
        ({"pre_days": -1.0}, "abtest.pre_days is -1.0"),
        ({"users": 1}, "abtest.users is 1; it must be 2 or more"),
        ({"users_per_day": 0.0}, "abtest.users_per_day is 0.0"),
        ({"max_crossed": 1.0}, "abtest.max_crossed is 1.0"),
    ],
)
def test_an_experiment_that_cannot_be_is_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings(**changes)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"direction": "up", "effect": 0.0}, "effect is 0.0; no number of users finds an effect of 0"),
        ({"direction": "up", "effect": float("nan")}, "effect is nan"),
        ({"direction": "up"}, "give one of the two"),
        ({"direction": "up", "effect": 0.1, "margin": 0.1}, "give one of the two"),
        ({"direction": "up", "margin": 0.0}, r"margin is 0.0; it must lie in \(0, 1\)"),
        ({"direction": "left", "effect": 0.1}, "direction is 'left'"),
    ],
)
def test_a_metric_that_cannot_be_is_told(metric: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ExperimentMetric(**metric)


def test_rewards_that_are_no_numbers_are_refused() -> None:
    users = people(1, 300)
    users.total[7, 0, 0] = np.nan
    with pytest.raises(InputError, match="visits is not a number for 1 of 300 users"):
        read(Clock(users, (1.0,)), sizes(users), settings())
    with pytest.raises(InputError, match="'ctr' needs the reward component 'clicks'; found visits"):
        users.measure("ctr", 0)


@pytest.mark.parametrize(("value", "said"), [(0.0, "visits is 0 in the log"), (2.0, "is the same for every user")])
def test_a_plan_for_a_metric_without_variance_is_refused(value: float, said: str) -> None:
    users = people(1, 300)
    users.total[:, 0, 0] = value * users.weeks[:, 0]
    with pytest.raises(InputError, match=said):
        plan(users, np.array([300]), settings())


def test_an_always_valid_reading_needs_the_planned_users() -> None:
    users = people(1, 300)
    with pytest.raises(InputError, match=r"abtest.users: missing; .* run `tactful abtest plan`"):
        read(Clock(users, (1.0,)), sizes(users), settings(method="always_valid"))
