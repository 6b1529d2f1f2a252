"""What discounted rewards can reach, against sums over the log's own days repeated for ever."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.batch import Held
from models.members import Learner
from models.reach import Reach, most_coinciding, reach_within
from models.run import member_of, prepare
from models.table import Transitions
from models.training import TrainConfig
from tests.models.conftest import DAY

CONFIG = TrainConfig(weights={"r0": 1.0}, gamma_per_day=0.97, learners={"m": Learner(kind="ddqn")})
MINUTE, SECOND = 1 / 1440, 1 / 86_400


def log_of(table_of: Any, days: list[list[float]], level: float, seed: int = 0) -> Transitions:
    """A user for each of `days`, the times within a day (in days) at which he is asked, on three days, and once more on
    the fourth; every reward is about `level`, give or take 1."""
    rng = np.random.default_rng(seed)
    users, times = [], []
    for user, day in enumerate(days):
        own = [at + number for number in range(3) for at in day] + [3 + day[0]]
        users += [user] * len(own)
        times += own
    n, last = len(users), np.diff(users, append=-1) != 0
    elapsed = np.where(last, 1.0, np.diff(times, append=0.0))
    return table_of(
        users,
        state=rng.normal(size=n),
        reward=level + rng.choice([-1.0, 1.0], size=n),
        action=np.arange(n) % 2,
        decided_at=np.rint(np.array(times) * DAY).astype(np.int64),
        elapsed_days=elapsed,
    )


def reach_of(table: Transitions, gamma: float) -> Reach:
    run = prepare(table, replace(CONFIG, gamma_per_day=gamma), 0, progress=False)
    member = member_of("m", 0, Learner(kind="ddqn"), run.config, run.units, 0, 0)
    return reach_within([member], Held.of(run.data, run.training.target), table)[0]


def for_ever(table: Transitions, gamma: float, sd: float) -> list[float]:
    """Of each user, sum_k gamma^(t_k - t_0) w.r_k / sd of his three days repeated until nothing is left of them: as
    plainly as it can be written, day by day."""
    found = []
    for user in range(len(table.user_id)):
        own = np.flatnonzero(table.user == user)[:-1]
        at = (table.decided_at[own] - table.decided_at[own[0]]) / DAY
        total, shift = 0.0, 0
        while gamma**shift > 1e-6:
            for t, r in zip(at, table.reward[own, 0], strict=True):
                total += gamma ** (t + shift) * r / sd
            shift += 3
        found.append(total)
    return found


DAYS = {
    "once a day": [[0.0], [0.5]],
    "every other minute for an hour": [[0.0], [2 * MINUTE * k for k in range(30)]],
    "two at once": [[0.0, 0.0, 0.4], [0.2]],
    "a second apart": [[0.0, SECOND, 2 * SECOND], [0.9]],
}


@pytest.mark.parametrize("gamma", [0.5, 0.97, 0.999, 0.9999])
@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("days", list(DAYS))
def test_what_rewards_do_reach_is_within_reach(table_of, days: str, level: float, gamma: float) -> None:
    if gamma == 0.9999 and days == "every other minute for an hour":
        pytest.skip("a sum of four million terms")
    table = log_of(table_of, DAYS[days], level)
    sd = float(table.reward.std())
    reach = reach_of(table, gamma)
    values = for_ever(table, gamma, sd)
    assert reach.low <= min(values) <= max(values) <= reach.high
    # Where intervals are equal, by no more than the deviation that a fit may be off.
    if days == "once a day":
        horizon = 1 / (1 - gamma)
        assert reach.high == pytest.approx(horizon * (max((level + 1) / sd, 0) + 1), rel=1e-5)
        assert reach.low == pytest.approx(horizon * (min((level - 1) / sd, 0) - 1), rel=1e-5)


def test_the_horizon_is_that_of_the_shortest_interval(table_of) -> None:
    def horizon(days: list[list[float]], gamma: float) -> float:
        table = log_of(table_of, days, 0.0)
        # Rewards are 1 or -1 with sd s: high = H (1 / s + 1).
        sd = float(table.reward.std())
        return reach_of(table, gamma).high / (1 / sd + 1)

    # A decision a minute without a pause: sum_k gamma^(k / 1440), 47,277.6.
    steady = sum(0.97 ** (k * MINUTE) for k in range(2_000_000))
    assert horizon([[MINUTE * k for k in range(1440)]], 0.97) == pytest.approx(steady, rel=1e-4)
    # Three at once and a day's pause: each three times, sum_j 3 gamma^j.
    assert horizon([[0.0, 0.0, 0.0]], 0.97) == pytest.approx(3 / 0.03)
    assert horizon([[0.0, 0.5]], 0.64) == pytest.approx(1 / (1 - 0.8))
    # At a gamma of 1 nothing bounds what goes on.
    assert horizon([[0.0]], 1.0) == np.inf


def test_a_policy_may_string_the_short_intervals_together(table_of) -> None:
    """Who is sent to is asked again after an hour, who is not after a day. A reward is 1 a send, and one decision in
    five was a send: no day of the log holds what sending always earns, 1 / (1 - gamma^(1/24)) sends."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 6)
    action = (rng.random(len(users)) < 0.2).astype(int)
    elapsed = np.where(action == 1, 1 / 24, 1.0)
    at = np.concatenate([np.concatenate([[0.0], own[:-1].cumsum()]) for own in elapsed.reshape(60, 6)])
    table = table_of(
        users.tolist(),
        state=rng.normal(size=len(users)),
        reward=action,
        action=action,
        decided_at=np.rint(at * DAY).astype(np.int64),
        elapsed_days=elapsed,
    )
    always = 1 / (1 - 0.5 ** (1 / 24)) / float(table.reward.std())
    assert reach_of(table, 0.5).high >= always


def test_the_most_at_one_moment_by_counting(table_of) -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        users = np.unique(np.sort(rng.integers(4, size=int(rng.integers(2, 40)))), return_inverse=True)[1]
        at = np.concatenate([np.sort(rng.integers(8, size=n)) for n in np.bincount(users)]) * (DAY // 24)
        table = table_of(users.tolist(), state=users, reward=users, decided_at=at)
        rows = rng.random(len(users)) < (0.7 if seed % 2 else 1.0)
        rows[0] = True
        wanted = max(
            sum(rows[j] and users[j] == users[i] and at[j] == at[i] for j in range(i, len(users)))
            for i in np.flatnonzero(rows)
        )
        assert most_coinciding(table, rows) == wanted
