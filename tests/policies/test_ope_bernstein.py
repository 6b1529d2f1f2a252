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
