"""The front against a second implementation, members of a sweep by hand, and the member that meets a budget."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.sweep import SweepConfig
from models.table import Transitions
from models.train import train
from models.training import TrainConfig
from policies.pareto import best_within, front, non_dominated
from policies.rowset import EvaluateConfig
from policies.sweep import compare, pick

Build = Callable[..., Transitions]
NAN = float("nan")


# The front


def test_the_front_by_hand() -> None:
    """Clicks up, sends down (so signed): 0 sends least, 2 clicks most, 1 lies between; 3 is 1 with more sends, 4 is 1
    again, 5 the log cannot place."""
    values = np.array([[1.0, -1.0], [2.0, -2.0], [3.0, -4.0], [2.0, -2.5], [2.0, -2.0], [9.0, NAN]])
    assert non_dominated(values).tolist() == [True, True, True, False, True, False]


def naive(values: list[list[float]]) -> list[bool]:
    """Every policy against every other, one objective after the other."""
    found = []
    for mine in values:
        on = not any(np.isnan(each) for each in mine)
        for other in values:
            if any(np.isnan(each) for each in other):
                continue
            worse = [theirs < own for theirs, own in zip(other, mine, strict=True)]
            better = [theirs > own for theirs, own in zip(other, mine, strict=True)]
            on = on and (any(worse) or not any(better))
        found.append(on)
    return found


few = st.one_of(st.integers(-2, 2).map(float), st.just(NAN))


@given(st.integers(1, 3).flatmap(lambda d: st.lists(st.lists(few, min_size=d, max_size=d), min_size=1, max_size=9)))
def test_the_front_is_that_of_the_naive_search(values: list[list[float]]) -> None:
    """Few values, so that there are ties in one objective and in all."""
    found = non_dominated(np.array(values))
    assert found.tolist() == naive(values)
    assert found.any() == (not np.isnan(values).any(axis=1).all())


def test_what_is_beaten_moves_nobody_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3))
    on = non_dominated(values)
    assert 1 < on.sum() < 40
    order = rng.permutation(40)
    assert (non_dominated(values[order]) == on[order]).all()
    beaten = values[rng.integers(40, size=10)] - rng.random((10, 3))
    assert non_dominated(np.concatenate([values, beaten])).tolist() == [*on, *[False] * 10]


def test_a_share_of_resamples_by_hand() -> None:
    """Two policies and one objective against one cost: the second beats the first in the log and in 2 of 4 resamples,
    is beaten by it in one, and in one neither beats the other."""
    first = np.tile([1.0, -1.0], (5, 1))
    second = np.array([[2.0, -1.0], [1.0, -0.5], [3.0, -1.0], [0.0, -1.0], [2.0, -2.0]])
    on, share = front(np.stack([first, second], axis=1))
    assert on.tolist() == [False, True]
    assert share.tolist() == [0.5, 0.75]


@pytest.mark.parametrize(("budget", "chosen"), [(5.0, 3), (3.0, 1), (2.0, 0), (1.99, None), (np.inf, 3)])
def test_the_best_within_a_budget_by_hand(budget: float, chosen: int | None) -> None:
    """Of the two that are worth 7 the cheaper; what has no value or no cost is never chosen."""
    value = np.array([5.0, 7.0, 7.0, 8.0, 99.0, NAN])
    cost = np.array([2.0, 2.5, 3.0, 5.0, NAN, 1.0])
    assert best_within(value, cost, budget) == chosen


# Members of a sweep


@dataclass
class Coin:
    """Sends with one probability, whatever the state."""

    send: float
    name: str
    learned: bool = True

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        return np.tile([1 - self.send, self.send], (len(state), 1))


def no_values(table: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
    """Q = 0, so that the doubly robust estimate is that of the weights alone."""
    return np.zeros((len(rows), *table.legal.shape, table.reward.shape[1]))


ONE = EvaluateConfig(per="decision", resamples=400)
UP_DOWN: dict[str, Any] = {"clicks": "up", "sends": "down"}
WEIGHTS = {"clicks": 2.0, "sends": -1.0}


def coins(table_of: Build, pairs: int = 2) -> Transitions:
    """Eight users in the validation split, one row each, drawn by a fair coin: a send that was clicked, one that was
    not, two holds, and the same again. Of each pair that follows one teaches and one is the gate's."""
    action = np.array([1, 1, 0, 0] * 2 + [1, 0] * pairs)
    clicked = np.array([1.0, 0.0, 0.0, 0.0] * 2 + [1.0, 0.0] * pairs)
    split, users = [1] * 8 + [0, 2] * pairs, 8 + 2 * pairs
    return table_of(
        [f"u{i}" for i in range(users)], action, np.full(users, 0.5), np.stack([action, clicked], 1),
        rewards=("sends", "clicks"), split=split,
    )  # fmt: skip


def test_members_by_hand(table_of: Build) -> None:
    """pi sends with 1/4: rho = 1/2 at a send, 3/2 at a hold. sends: 4 (1/2) / 8 = 1/4; clicks: 2 (1/2) / 8 = 1/8;
    weighted 2 / 8 - 1 / 4 = 0. The log: sends 1/2, clicks 1/4, weighted 0. The ratios sum to 8, so that the weighted
    form is the same, and ess = 8^2 / (4 / 4 + 4 (9 / 4)) = 6.4."""
    found = compare(
        coins(table_of), [Coin(0.25, "m01"), Coin(0.5, "m02")], ONE, UP_DOWN, WEIGHTS, "dr", 0, 0, False, no_values
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["users"], found["decisions"], found["rows"]) == (8, 8, "validation")
    assert found["components"] == ["sends", "clicks", "ctr", "weighted"]
    member, log = found["members"]["m01"], found["logging"]
    for estimator in ("dr", "wpdis"):
        figures = member["estimates"][estimator]
        assert [figures[name]["estimate"] for name in ("sends", "clicks", "weighted")] == [0.25, 0.125, 0.0]
        assert [figures[name]["difference"]["estimate"] for name in ("sends", "clicks", "weighted")] == [
            -0.25,
            -0.125,
            0,
        ]
        assert figures["sends"]["relative"]["estimate"] == -0.5
        assert figures["weighted"]["relative"]["estimate"] is None
        assert figures["ctr"]["estimate"] == 0.5
    assert [log[name]["estimate"] for name in ("sends", "clicks", "weighted")] == [0.5, 0.25, 0.0]
    assert member["diagnostics"]["ess"] == pytest.approx(6.4)
    # m02 is the log itself: it earns what the log earned in every resample, and with no doubt about the difference.
    same = found["members"]["m02"]["estimates"]["dr"]["sends"]
    assert [same["difference"][key] for key in ("estimate", "low", "high")] == [0.0, 0.0, 0.0]
    assert (same["estimate"], same["low"], same["high"]) == tuple(
        log["sends"][key] for key in ("estimate", "low", "high")
    )
    # Half the sends for half the clicks: neither beats the other.
    assert [each["front"] for each in found["members"].values()] == [True, True]


def test_the_weighted_sum_is_that_of_the_components_in_every_estimate(table_of: Build) -> None:
    found = compare(coins(table_of), [Coin(0.3, "m01")], ONE, UP_DOWN, WEIGHTS, "dr", 0, 0, False, no_values)
    for figures in found["members"]["m01"]["estimates"].values():
        wanted = sum(weight * figures[name]["estimate"] for name, weight in WEIGHTS.items())
        assert figures["weighted"]["estimate"] == pytest.approx(wanted, abs=1e-12)


def test_the_test_split_is_not_looked_at(table_of: Build) -> None:
    """Nor is anything fitted on it: rows that would spoil everything change nothing."""
    table = coins(table_of, 6)
    asked: list[tuple[int, int]] = []

    def fit(seen: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
        asked.append((len(seen.user), int(rows.sum())))
        return no_values(seen, rows, ahead, extra)

    members = [Coin(0.25, "m01"), Coin(0.75, "m02")]
    spoilt = replace(
        table,
        reward=np.where((table.split == 2)[:, None], 1e6, table.reward),
        propensity=np.where(table.split == 2, NAN, table.propensity),
    )
    first, second = (compare(each, members, ONE, UP_DOWN, WEIGHTS, "dr", 0, 0, False, fit) for each in (table, spoilt))
    assert first == second
    # Eight validation rows and six that teach, the latter for each of two members.
    assert asked == [(14, 12)] * 2


def test_what_the_log_hardly_follows_is_neither_on_the_front_nor_in_the_way(table_of: Build) -> None:
    found = compare(
        coins(table_of), [Coin(1.0, "m01"), Coin(0.5, "m02")], ONE, UP_DOWN, WEIGHTS, "dr", 5, 0, False, no_values
    )
    assert [each["trusted"] for each in found["members"].values()] == [False, True]
    assert [each["front_probability"] for each in found["members"].values()] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "objectives", "message"),
    [
        ({"split": np.zeros(12, dtype=np.int8)}, UP_DOWN, "no user lies in the validation split; raise its share"),
        ({"propensity": np.full(12, NAN)}, UP_DOWN, "propensity: 10 of 10 usable decisions have none"),
        ({}, {"clicks": "up", "visits": "up"}, r"sweep\.objectives: 'visits' is not a metric \(known: sends, clicks"),
    ],
)
def test_what_cannot_be_compared_is_named(table_of: Build, change: Any, objectives: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(
            replace(coins(table_of), **change),
            [Coin(0.5, "m01")],
            ONE,
            objectives,
            WEIGHTS,
            "dr",
            0,
            0,
            False,
            no_values,
        )


# The member that meets a budget


def swept(**members: Any) -> dict[str, Any]:
    """name = (sends, its upper end, relative sends, its upper end, weighted, clicks)."""

    def member(figures: Any) -> dict[str, Any]:
        sends, most, relative, most_relative, weighted, clicks = figures
        at = {"estimate": relative, "low": None, "high": most_relative}
        metrics = {
            "sends": {"estimate": sends, "high": most, "relative": at},
            "weighted": {"estimate": weighted},
            "clicks": {"estimate": clicks},
        }
        return {"trusted": True, "diagnostics": {"ess": 50.0}, "estimates": {"dr": metrics}}

    return {
        "components": ["sends", "clicks", "weighted"],
        "unit": "per user-week",
        "confidence": 0.95,
        "estimator": "dr",
        "min_ess": 200.0,
        "members": {name: member(figures) for name, figures in members.items()},
    }


THREE = swept(
    a=(2.0, 2.2, -0.4, -0.35, 1.0, 0.9), b=(2.6, 2.9, -0.2, -0.15, 1.4, 0.8), c=(3.2, 3.6, 0.0, 0.05, 1.2, 1.5)
)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"most": 4.0}, "b"),
        ({"most": 4.0, "maximise": "clicks"}, "c"),
        ({"most": 3.0}, "b"),
        ({"most": 3.0, "maximise": "clicks"}, "a"),
        # 2.6 is within 2.7, but the log cannot rule out 2.9.
        ({"most": 2.7}, "a"),
        ({"most": 2.7, "bound": "estimate"}, "b"),
        ({"most": 2.2}, "a"),
        # 80% of what the logging policy sends, 85% at most.
        ({"most": 0.84, "relative": True}, "a"),
        ({"most": 0.85, "relative": True}, "b"),
        ({"most": 0.8, "relative": True, "bound": "estimate"}, "b"),
        ({"most": 1.05, "relative": True, "maximise": "clicks"}, "c"),
    ],
)
def test_the_member_that_meets_a_budget_by_hand(asked: dict[str, Any], name: str) -> None:
    assert pick(THREE, **asked) == name


def test_only_what_the_log_follows_is_picked() -> None:
    found = swept(a=(2.0, 2.2, -0.4, -0.35, 1.0, 0.9), b=(2.0, None, -0.2, None, 1.4, 0.8))
    assert pick(found, 3.0) == "a"
    assert pick(found, 3.0, bound="estimate") == "b"
    found["members"]["b"]["trusted"] = False
    assert pick(found, 3.0, bound="estimate") == "a"
    found["members"]["a"]["trusted"] = False
    with pytest.raises(InputError, match=r"follows none of the 2 members.*size is 50, sweep\.min_ess is 200; lower"):
        pick(found, 3.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"most": 2.1}, r"no member sends at most 2\.1 per user-week: a sends least, 2 \(at most 2\.2 with 97\.5%"),
        ({"most": 0.5, "relative": True}, r"at most 0\.5 of what the logging policy sends: a sends least, 0\.6 "),
        ({"most": 1.9, "bound": "estimate"}, "a sends least, 2 .*raise the budget, give sends a higher price"),
        ({"most": -1.0}, r"a budget of -1\.0 sends: it must be 0 or more"),
        ({"most": NAN}, "a budget of nan sends"),
        (
            {"most": 2.0, "maximise": "visits"},
            r"'visits' was not evaluated by the sweep \(known: sends, clicks, weight",
        ),
    ],
)
def test_a_budget_that_nobody_meets_says_who_comes_nearest(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        pick(THREE, **asked)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"most": 2.5}, ["that the log follows sends at most 2.5 per user-week", "b sends least, 2.9", "a 2.2;"]),
        ({"most": 0.7, "relative": True, "bound": "estimate"}, ["b sends least, 0.8", "a 0.6;"]),
    ],
)
def test_members_within_the_budget_that_the_log_hardly_follows_are_named(
    asked: dict[str, Any], words: list[str]
) -> None:
    """More of a member's own decisions would follow the log less still: no higher share is advised."""
    found = {**THREE, "members": {**THREE["members"], "a": {**THREE["members"]["a"], "trusted": False}}}
    with pytest.raises(InputError) as error:
        pick(found, **asked)
    for word in (*words, "1 within the budget cannot be picked", "†", "lower policy.rollout_share"):
        assert word in str(error.value)
    assert "raise policy.rollout_share" not in str(error.value)


# A world where a higher price must mean fewer sends


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]


def test_what_is_sent_follows_its_price(table_of: Build) -> None:
    """A send is clicked with probability x, uniform on (0, 1), and nothing follows: at a price p per send of a click's
    worth, the best policy sends where x > p, a share 1 - p of the time."""
    rng = np.random.default_rng(3)
    n = 6000
    x, action = rng.random(n), rng.integers(2, size=n)
    clicks = (rng.random(n) < x) * action
    table = table_of(
        [f"u{i}" for i in range(n)], action, np.full(n, 0.5), np.stack([action, clicks], axis=1),
        rewards=("sends", "clicks"), state=x, terminal=np.ones(n, bool), split=np.zeros(n),
    )  # fmt: skip
    prices = (0.1, 0.3, 0.5, 0.7, 0.9)
    base = TrainConfig(
        weights={"clicks": 1.0, "sends": -0.1}, learners={"plain": 0.0}, steps=500, batch_size=256, hidden=(16,),
        learning_rate=5e-3, behaviour_steps=20, value_steps=20,
    )  # fmt: skip
    grid = {"sends": tuple(-price for price in prices)}
    learned = train(table, SweepConfig(grid=grid).population(base, "plain"), 0, greedy, progress=False)
    shares = []
    for name in ("m01", "m02", "m03", "m04", "m05"):
        q = learned[name].q_network(torch.from_numpy(table.state))[0].numpy() @ learned[name].q_weights
        shares.append(float((q.argmax(axis=1) == 1).mean()))
    assert shares == sorted(shares, reverse=True)
    assert shares == pytest.approx([1 - price for price in prices], abs=0.08)
