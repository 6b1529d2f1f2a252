"""Evaluation over parts of the users is evaluation over all of them, whatever the parts and their order."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.answers import read_back, tallied
from policies.baselines import Always, Never
from policies.evaluate import evaluate, evaluation, plan_of
from policies.ope.merging import to_bytes
from policies.ope.target import Target
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig
from policies.tally import Buckets, LogTally, Part, Plan, tally
from policies.values import ValueFunctions, part_of
from tests.nested import assert_equal

Build = Callable[..., Transitions]
BUCKETS = 5


class Learned:
    """Sends more often the larger the second feature."""

    name, learned = "learned", True

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        send = legal[:, 1] * np.clip(0.3 + 0.2 * np.nan_to_num(state[:, 1]), 0.05, 0.95)
        return np.stack([1 - send, send], axis=1)


def log_of(table_of: Build, users: int = 150) -> Transitions:
    """Trajectories of 1 to 9 decisions of users with a level, forced rows, unknown features, closed accounts and
    estimated propensities; some log what a constraint forbids."""
    rng = np.random.default_rng(3)
    length = rng.integers(1, 10, users)
    user, n = np.repeat(np.arange(users), length), int(length.sum())
    legal = np.stack([np.ones(n, bool), rng.random(n) < 0.85], axis=1)
    mu = rng.choice([0.2, 0.5, 0.7], n)
    action = (rng.random(n) < mu).astype(int) * legal[:, 1]
    propensity = np.where(legal[:, 1], np.where(action == 1, mu, 1 - mu), 1.0)
    legal[rng.random(n) < 0.02, 1] = False
    level, state = rng.normal(2, 1, users)[user], rng.normal(size=(n, 3))
    state[:, 0] = user % 2
    state[rng.random(n) < 0.1, 2] = np.nan
    clicks = action * (rng.random(n) < 0.4)
    reward = np.stack([action, clicks, level + 0.3 * action + rng.normal(size=n)], axis=1)
    last = np.append(np.diff(user) != 0, True)
    return table_of(
        [f"u{each}" for each in user],
        action,
        propensity,
        reward,
        rewards=("sends", "clicks", "minutes"),
        state=state,
        legal=legal,
        elapsed_days=rng.choice([0.5, 1.0, 4.0], n),
        terminal=last & (rng.random(n) < 0.1),
        split=rng.choice(3, users, p=[0.4, 0.1, 0.5])[user],
        estimated=rng.random(n) < 0.2,
    )


def network(member: int, state: Any) -> Any:
    """Nobody's value function, and as good as any for sums."""
    at = np.nan_to_num(state.astype(np.float64)) @ np.linspace(0.1, 0.9, state.shape[1])
    return np.sin(at[:, None, None] * np.arange(1, 4) + member + np.arange(2)[:, None])


POLICIES = [Never(), Always(), Learned()]


def settings(per: Any, **changes: Any) -> tuple[EvaluateConfig, GateConfig]:
    marginal = {"x0": 2, "x1": 3} if per == "week" else None
    gate = {"candidate": "learned", "shares": (0.2, 1.0), "segments": ("x0", "x1", "x2"), "estimator": "dr", **changes}
    most = {"clicks": 1.0}
    return EvaluateConfig(per=per, resamples=100, marginal=marginal, most_per_decision=most), GateConfig(**gate)


def asked(table: Transitions, per: Any, step: int | None = None, **changes: Any) -> tuple[Plan, ValueFunctions]:
    plan = plan_of(table, POLICIES, *settings(per, **changes), seed=1, step=step)
    targets = {policy.name: Target.of(policy, table) for policy in POLICIES}
    return plan, ValueFunctions.of(table, targets, plan, 30 * 86_400_000_000, lambda *_: network)


def parts_of(table: Transitions, plan: Plan, values: ValueFunctions) -> list[Part]:
    """The users in BUCKETS parts, the third of which has one user alone."""
    bucket = np.array([int(name[1:]) % BUCKETS for name in table.user_id])
    bucket[(bucket == 2) & (np.arange(len(bucket)) != 7)] = 4
    every = ((table.where((bucket == each)[table.user]), each) for each in range(BUCKETS))
    return [part_of(part, plan, POLICIES, values, [each]) for part, each in every]


@pytest.mark.parametrize("estimator", ["dr", "wpdis"])
@pytest.mark.parametrize("per", ["week", "decision"])
def test_parts_of_the_users_say_together_what_one_table_says(table_of: Build, per: str, estimator: str) -> None:
    """Every estimate, interval, difference, diagnostic, segment and floor, in any order of the parts."""
    table = log_of(table_of)
    plan, values = asked(table, per, step=60, estimator=estimator)
    whole = part_of(table, plan, POLICIES, values, [0])
    expected = evaluation(plan, POLICIES, 2, *tallied(plan, [whole]), whole)
    estimators = {"ips", "wpdis", "dr", "fqe", "wdr", "magic"} | ({"pdis", "mis"} if per == "week" else set())
    assert set(expected["policies"]["always"]["estimates"]) == estimators
    learned = expected["policies"]["learned"]
    assert len(learned["segments"]) == 7
    assert {"sends", "clicks"} <= set(learned["floors"])
    assert learned["disagreement"]
    assert learned["confounding"]["metrics"]
    assert all("confounding" not in each for each in expected["mixtures"]["learned"].values())
    assert expected["contrasts"][-1]["rows"] == ("all" if per == "week" else "choice")
    parts = parts_of(table, plan, values)
    for order in (parts, parts[::-1], [parts[each] for each in (3, 0, 4, 2, 1)]):
        assert_equal(evaluation(plan, POLICIES, 2, *tallied(plan, order), whole), expected)


def test_evaluate_is_the_same_code_over_one_part(table_of: Build) -> None:
    """With value functions that are given at the rows of the table: the result of `evaluate`, to the last digit."""
    table = log_of(table_of)
    plan, values = asked(table, "week")

    def fit(table: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
        state = np.concatenate([table.state, extra], axis=1)
        return np.stack([network(member, state) for member in range(len(rows))])

    end = int((table.decided_at + np.rint(table.elapsed_days * 86_400_000_000)).max())
    whole = part_of(table, plan, POLICIES, replace(values, log_end=end), [0])
    found = evaluation(plan, POLICIES, 1, *tallied(plan, [whole]), whole)
    assert_equal(found, evaluate(table, POLICIES, *settings("week"), seed=1, progress=False, fit=fit))


def test_sums_come_back_from_bytes(table_of: Build) -> None:
    table = log_of(table_of, 40)
    plan, values = asked(table, "week", step=60)
    part = part_of(table, plan, POLICIES, values, [3, 1])
    for question in plan.asked():
        for _, sums in tally(part, plan, question):
            back = read_back(to_bytes(sums))
            assert back.estimators.keys() == sums.estimators.keys()
            assert back.facts.keys() == sums.facts.keys()
            assert back.segments.keys() == sums.segments.keys()
            np.testing.assert_array_equal(back.exposure, sums.exposure)
            np.testing.assert_array_equal(back.buckets.numbers, [1, 3])
            for name, each in sums.estimators.items():
                np.testing.assert_array_equal(back.estimators[name].total(), each.total())
    with pytest.raises(ValueError, match="allow_pickle"):
        read_back(to_bytes({"policy": np.array([Never()], dtype=object)}))


def test_a_user_in_two_parts_is_noticed(table_of: Build) -> None:
    """The parts say which buckets they hold: rows dealt by anything but the bucket put one in two parts."""
    table = log_of(table_of, 40)
    plan, values = asked(table, "decision")
    odd = np.arange(len(table.user)) % 2 == 1
    halves = [part_of(table.where(rows), plan, POLICIES, values, [0, 6]) for rows in (odd, ~odd)]
    with pytest.raises(InputError, match="bucket 0 lies in two parts, so that a user would count as two"):
        tallied(plan, halves)
    both = Buckets(np.array([4])) + Buckets(np.array([1, 2]))
    np.testing.assert_array_equal(both.numbers, [1, 2, 4])


def test_a_part_without_the_asked_rows_adds_nothing(table_of: Build) -> None:
    """No test user, no decision with a choice, no time: sums of the other parts stand."""
    table = log_of(table_of)
    plan, values = asked(table, "week")
    train = table.where(table.split == 0)
    part = part_of(train, plan, POLICIES, values, [1])
    assert [low for low, _ in tally(part, plan, plan.asked()[1])] == []
    idle = replace(train, elapsed_days=np.zeros(len(train.user)))
    ((_, sums),) = tally(part_of(idle, plan, POLICIES, values, [1]), plan, plan.asked()[0])
    assert (sums.exposure == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, propensity=np.ones(len(t.action))), "never explored"),
        (lambda t: replace(t, elapsed_days=np.zeros(len(t.action))), "cover no time"),
        (lambda t: replace(t, reward=np.full_like(t.reward, np.nan)), "sends is nan"),
        (lambda t: replace(t, reward=t.reward * 2), "sends is 2 at the decision of user .* by definition"),
        (lambda t: replace(t, propensity=np.where(t.user == 4, np.nan, t.propensity)), "have none"),
    ],
)
def test_what_only_all_parts_can_say_is_refused_when_they_are_together(
    table_of: Build, change: Any, message: str
) -> None:
    table = change(log_of(table_of, 60))
    plan, values = asked(log_of(table_of, 60), "week")
    parts = parts_of(table, plan, values)
    with pytest.raises(InputError, match=message):
        evaluation(plan, POLICIES, 1, *tallied(plan, parts), parts[0])


def test_choices_are_counted_before_they_are_judged(table_of: Build) -> None:
    """A part in which nothing was left to chance is no reason to refuse a log."""
    sure = table_of("aab", [1, 0, 1], [1.0, 1.0, 1.0], [0.0] * 3)
    found = LogTally.of(sure, np.array([0]), {})
    assert (found.choices, found.chances, found.users, found.decisions) == (3, 0, 2, 3)


def test_a_segment_that_covers_no_time_is_there_without_a_figure(table_of: Build) -> None:
    """Whoever reads the evaluation learns that nothing is known of these users; the others keep their figures."""
    table = log_of(table_of)
    table = replace(table, elapsed_days=np.where(table.state[:, 0] == 1, 0.0, table.elapsed_days))
    plan, values = asked(table, "week")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluation(plan, POLICIES, 1, *tallied(plan, parts := parts_of(table, plan, values)), parts[0])
    segments = found["policies"]["learned"]["segments"]
    assert segments["x0 = 1"]["metrics"] == {}
    assert segments["x0 = 1"]["users"] > 0
    assert {"sends", "clicks", "minutes"} <= segments["x0 = 0"]["metrics"].keys()
