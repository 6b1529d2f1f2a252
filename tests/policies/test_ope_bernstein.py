from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.table import Transitions
from policies.base import Floats
from policies.ope.bernstein import Capped, most_per_user
from policies.ope.intervals import user_keys
from policies.ope.sample import take

Build = Callable[..., Transitions]


def everyone(table: Transitions, per: Any = "decision") -> Any:
    return take(table, np.ones(len(table.action), dtype=np.bool_), per)


def floor(sample: Any, ratio: Floats, keys: Any, most: Floats, alpha: float) -> Floats:
    return Capped.of(sample, ratio, keys, np.isfinite(most)).floor(most, alpha)


def keys_of(table: Transitions) -> Any:
    return user_keys(table.user_id)


def test_what_no_user_can_exceed(table_of: Build) -> None:
    table = table_of("aab", [1, 0, 1], [0.5] * 3, np.ones((3, 4)), elapsed_days=[2, 3, 4],
                     rewards=("sends", "visits", "weekly_active_days", "steps"))  # fmt: skip
    # two decisions at most, and five days at most
    found = Capped.of(everyone(table, "week"), np.ones(3), keys_of(table), np.ones(4, dtype=np.bool_))
    most = most_per_user(found.rows, found.days, table.contract.rewards, {"steps": 3.0})
    np.testing.assert_allclose(most, [2.0, np.nan, 5.0, 6.0])


def test_golden_bound(table_of: Build) -> None:
    """All weights 1: whatever cap was chosen is 1, and the bound is the formula on the users that did not choose it."""
    names = [f"u{i}" for i in range(500)]
    reward = np.tile([0.0, 1.0], 250)
    table = table_of(names, [1] * 500, [1.0] * 500, reward, rewards=("sends",))
    keys = keys_of(table)
    found = floor(everyone(table), np.ones(500), keys, np.array([1.0]), 0.05)
    x = reward[keys % np.uint64(5) != 0]
    log = np.log(40.0)
    expected = x.mean() - np.sqrt(2 * x.var(ddof=1) * log / len(x)) - 7 * log / (3 * (len(x) - 1))
    assert found[0] == pytest.approx(expected, abs=1e-12)


def draw(table_of: Build, seed: int, users: int) -> tuple[Transitions, Floats]:
    """Sends of pi (0.9) from a log at 0.3: a weight of 3 on a send and 1 / 7 on a hold, and a rare reward of a send."""
    rng = np.random.default_rng(seed)
    action = (rng.random(users) < 0.3).astype(int)
    reward = action * (rng.random(users) < 0.5)
    propensity = np.where(action == 1, 0.3, 0.7)
    table = table_of([f"u{i}" for i in range(users)], action, propensity, reward.astype(float), rewards=("disables",))
    return table, np.where(action == 1, 0.9, 0.1) / propensity


def test_it_holds_and_comes_nearer_with_data(table_of: Build) -> None:
    """The true value is 0.45: in 100 logs each the floor lies below it, and the gap shrinks."""
    gaps = []
    for users in (200, 2000):
        floors = []
        for seed in range(100):
            table, ratio = draw(table_of, seed, users)
            floors.append(floor(everyone(table), ratio, keys_of(table), np.array([1.0]), 0.05)[0])
        assert np.mean(np.array(floors) > 0.45) <= 0.05
        gaps.append(0.45 - np.mean(floors))
    assert 0 < gaps[1] < 0.5 * gaps[0]


def test_one_enormous_weight_does_not_move_it(table_of: Build) -> None:
    """A user whose weight is 1,000 and who earned: the cap, chosen on others, keeps it from the mean."""
    table, ratio = draw(table_of, 1, 2000)
    keys = keys_of(table)
    wild = ratio.copy()
    loud = int(np.flatnonzero((table.reward[:, 0] == 1) & (keys % np.uint64(5) != 0))[0])
    wild[loud] = 1000.0
    plain, shaken = (floor(everyone(table), each, keys, np.array([1.0]), 0.05)[0] for each in (ratio, wild))
    assert abs(plain - shaken) < 0.01


@pytest.mark.parametrize(("reward", "most"), [(-1.0, 1.0), (1.0, np.nan)])
def test_what_is_negative_or_without_a_limit_has_none(table_of: Build, reward: float, most: float) -> None:
    table = table_of([f"u{i}" for i in range(50)], [1] * 50, [0.5] * 50, np.full(50, reward))
    assert np.isnan(floor(everyone(table), np.ones(50), keys_of(table), np.array([most]), 0.05)).all()


def uneven(table_of: Build, seed: int, users: int) -> Transitions:
    """One send each, of users who stay for a day or, one in fifty, for a hundred; the log is a hundred days long."""
    rng = np.random.default_rng(seed)
    days = np.where(rng.random(users) < 0.02, 100.0, 1.0)
    at = np.where(days == 1, rng.integers(0, 100, users), 0)
    at[:2], days[:2] = (0, 99), 1
    names = [f"u{seed}_{i}" for i in range(users)]
    return table_of(names, [1] * users, [0.5] * users, np.ones(users), rewards=("sends",), elapsed_days=days,
                    decided_at=at * 86_400_000_000)  # fmt: skip


@pytest.mark.parametrize("users", [100, 1000])
def test_it_holds_where_exposures_differ(table_of: Build, users: int) -> None:
    """1 send in 0.98 x 1 + 0.02 x 100 days is 7 / 2.98 a week: few logs show how long the rare ones stay."""
    floors = []
    for seed in range(200):
        table = uneven(table_of, seed, users)
        found = Capped.of(everyone(table, "week"), np.ones(users), keys_of(table), np.ones(1, dtype=np.bool_))
        floors.append(found.floor(most_per_user(found.rows, found.days, ("sends",), {}), 0.05)[0])
    assert np.mean(np.array(floors) > 7 / 2.98) <= 0.05
    assert users == 100 or np.mean(floors) > 0.5


def test_the_floor_is_where_the_bound_is_zero(table_of: Build) -> None:
    """Root by bisection of the formula itself, over the users that bound, at the cap that the others choose so too."""
    rng = np.random.default_rng(4)
    n = 3000
    reward, days = rng.random(n), rng.choice([1.0, 2.0, 7.0], n)
    ratio = rng.choice([0.3, 1.2, 30.0], n, p=[0.5, 0.45, 0.05])
    table = table_of([f"u{i}" for i in range(n)], [1] * n, [0.5] * n, reward, rewards=("disables",), elapsed_days=days)
    keys, sample = keys_of(table), everyone(table, "week")
    found = floor(sample, ratio, keys, np.array([1.0]), 0.05)[0]
    log, bounds = np.log(40.0), keys % np.uint64(5) != 0
    number = bounds.sum()

    def bound(v: float, cap: float, who: Any) -> float:
        y = (np.minimum(ratio, cap) * reward - v * days / 7)[who]
        slack = 7 * (cap + v) * log / (3 * (number - 1))
        return float(y.mean() - np.sqrt(2 * y.var(ddof=1) * log / number) - slack)

    def root(cap: float, who: Any) -> float:
        low, high = 0.0, 100.0
        if bound(0.0, cap, who) <= 0:
            return 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if bound(middle, cap, who) > 0 else (low, middle)
        return low

    caps = np.geomspace(1, 1000, 40)
    best = caps[np.argmax([root(cap, ~bounds) for cap in caps])]
    assert found > 0.1
    assert found == pytest.approx(root(best, bounds), rel=1e-9)


def test_parts_of_the_users_have_one_floor(table_of: Build) -> None:
    table = uneven(table_of, 0, 1000)
    every = np.ones(1, dtype=np.bool_)
    rows = np.arange(1000) % 3 == 0
    parts = [table.where(each) for each in (rows, ~rows)]
    whole, one, other = (
        Capped.of(everyone(each, "week"), np.ones(len(each.user)), keys_of(each), every) for each in (table, *parts)
    )
    assert (one + other).floor(np.ones(1), 0.05)[0] == pytest.approx(whole.floor(np.ones(1), 0.05)[0], rel=1e-12)
    assert one.days == pytest.approx(100)
