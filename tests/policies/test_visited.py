"""Where a policy would go on a log: weights against the truth of a small chain, and a naive second implementation."""

import numpy as np
import pytest

from models.columns import MICROSECONDS_PER_DAY
from models.contract import Contract
from models.errors import InputError
from models.table import Transitions
from policies.named import Fixed
from policies.visited import visited_rows, visits_weight

CUTS = {"f0": 2}


def chain(users: int, length: int, seed: int = 0, sends: float = 0.5) -> Transitions:
    """f0 is 1 after a send with chance 0.8, after a hold with 0.2, whatever it was; the log sends one time in two."""
    rng = np.random.default_rng(seed)
    n = users * length
    action = (rng.random(n) < sends).astype(np.int64)
    f0 = np.zeros(n)
    f0[1:] = rng.random(n - 1) < np.where(action[:-1] == 1, 0.8, 0.2)
    first = np.arange(n) % length == 0
    f0[first] = rng.random(users) < 0.5
    last = np.roll(first, -1)
    state = np.column_stack([f0, rng.normal(size=n)])
    flags = {name: np.zeros(n, dtype=bool) for name in ("estimated", "terminal", "silent", "warm_up")}
    return Transitions(
        contract=Contract(("hold", "send"), ("f0", "f1"), ("clicks",)),
        user=np.repeat(np.arange(users), length),
        user_id=np.array([f"u{u}" for u in range(users)], dtype=object),
        decided_at=np.tile(np.arange(length), users) * MICROSECONDS_PER_DAY,
        state=state.astype(np.float32),
        legal=np.ones((n, 2), dtype=bool),
        action=action,
        propensity=np.full(n, 0.5),
        reward=np.zeros((n, 1)),
        elapsed_days=np.ones(n),
        truncated=last,
        split=np.repeat((np.arange(users) % 2).astype(np.int8), length),
        version=0,
        fingerprint="test",
        **flags,
    )


def sender(share: float) -> Fixed:
    return Fixed("sender", np.array([1 - share, share]))


def test_the_policy_of_the_log_visits_what_the_log_has() -> None:
    assert visits_weight(chain(50, 6), sender(0.5), CUTS) == pytest.approx(np.ones(300))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_each_state_is_the_truth(share: float) -> None:
    """P(f0 = 1) at any later step is 0.8 share + 0.2 (1 - share)."""
    log = chain(4000, 5)
    weight = visits_weight(log, sender(share), CUTS)
    later = np.arange(len(weight)) % 5 > 0
    found = (weight * log.state[:, 0])[later].sum() / weight[later].sum()
    assert found == pytest.approx(0.8 * share + 0.2 * (1 - share), abs=0.02)
    # A step weighs as many users as are there.
    assert np.add.reduceat(weight.reshape(-1, 5).T.ravel(), np.arange(0, 20_000, 4000)) == pytest.approx([4000] * 5)


def test_against_plain_python() -> None:
    log, policy = chain(40, 4, seed=3), sender(0.8)
    weight = [0.0] * 160
    bins = log.state[:, 0].astype(int)
    ratio = np.where(log.action == 1, 0.8 / 0.5, 0.2 / 0.5)
    for user in range(40):
        weight[4 * user] = 1.0
    for step in range(1, 4):
        here = [4 * user + step for user in range(40)]
        for z in (0, 1):
            those = [row for row in here if bins[row] == z]
            for row in those:
                weight[row] = sum(weight[r - 1] * ratio[r - 1] for r in those) / len(those)
        mean = sum(weight[row] for row in here) / 40
        for row in here:
            weight[row] /= mean
    assert visits_weight(log, policy, CUTS) == pytest.approx(weight)


def test_rows_after_a_gap_begin_anew() -> None:
    log = chain(10, 6)
    log.truncated[2::6] = True
    weight = visits_weight(log, sender(1.0), CUTS).reshape(-1, 6)
    assert weight[:, 3] == pytest.approx(np.ones(10))


def test_rows_are_drawn_by_weight_within_the_split_and_past_the_warm_up() -> None:
    log = chain(10, 4)
    log.warm_up[:4] = True
    weight = np.ones(40)
    weight[log.state[:, 0] == 0] = 0.0
    found = visited_rows(log, weight, "train", 500, 0)
    assert len(found) == 500
    assert set(log.split[found]) == {0}
    assert set(log.state[found, 0]) == {1.0}
    assert found.min() >= 4
    assert np.array_equal(found, visited_rows(log, weight, "train", 500, 0))
    with pytest.raises(InputError, match="no state of the train users is one that the policy visits"):
        visited_rows(log, np.zeros(40), "train", 5, 0)


def test_features_to_bin_by_are_asked_for() -> None:
    with pytest.raises(InputError, match=r"evaluate\.marginal: missing, and no feature has a default"):
        visits_weight(chain(5, 3), sender(0.5))
