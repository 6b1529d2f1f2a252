"""Logs and policies that no number could be had of: a refusal that says why."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.baselines import Always, Never
from policies.evaluate import evaluate
from policies.named import Fixed
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig

Build = Callable[..., Transitions]
PEOPLE, ROWS = 40, 10


@pytest.fixture(scope="module")
def log(table_of: Build) -> Transitions:
    """40 people of 10 decisions, sent by 0.5."""
    rng = np.random.default_rng(3)
    sent = rng.random(PEOPLE * ROWS) < 0.5
    users = np.repeat([f"p{i}" for i in range(PEOPLE)], ROWS).tolist()
    return table_of(users, sent, np.full(len(sent), 0.5), np.stack([sent, rng.normal(size=len(sent))], 1),
                    rewards=("sends", "steps"))  # fmt: skip


def judged(log: Transitions, policy: Any, per: Any = "decision") -> dict[str, Any]:
    def fit(table: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
        return np.zeros((len(rows), *table.legal.shape, table.reward.shape[1]))

    config = EvaluateConfig(per=per, resamples=100, most_per_decision={"steps": 10.0})
    return evaluate(log, [policy], config, GateConfig(min_ess=2), 0, False, fit=fit)


class Illegal:
    """Sends, legal or not."""

    name, learned = "pushy", False

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        return np.tile([0.0, 1.0], (len(legal), 1))


def no_send(log: Transitions) -> Transitions:
    legal = log.legal.copy()
    legal[5, 1] = False
    return replace(log, legal=legal, action=np.where(np.arange(len(log.action)) == 5, 0, log.action))


def with_reward(log: Transitions, value: float) -> Transitions:
    reward = log.reward.copy()
    reward[7, 1] = reward[31, 1] = value
    return replace(log, reward=reward)


@pytest.mark.parametrize(
    ("change", "policy", "message"),
    [
        (lambda t: replace(t, propensity=np.where(t.user == 4, 0.0, 0.5)), Always(),
         r"10 of 400 usable decisions lie outside \(0, 1\], first that of user p4"),
        (lambda t: replace(t, propensity=np.ones(400)), Always(), "all 400 decisions .* never explored"),
        (no_send, Illegal(), r"pushy: 1 of 400 rows are not probabilities over the legal actions, first row 5"),
        (no_send, Fixed("send only", np.array([0.0, 1.0])), "send only: gives no weight to any action that is legal"),
        (lambda t: with_reward(t, np.nan), Always(), "steps is nan at the decision of user p0 .* 2 of 400 decisions"),
        (lambda t: with_reward(t, np.inf), Always(), "steps is inf at the decision of user p0 .* 2 of 400 decisions"),
        (lambda t: with_reward(t, 25.5), Always(),
         r"steps is 25.5 at the decision of user p0 at 1970-01-08.*, and 2 of 400 decisions have more .*"
         r"evaluate.most_per_decision.steps = 10\); correct the log, or state 25.5 or more"),
        (lambda t: replace(t, reward=3 * t.reward), Always(), r"sends is 3 at .* \(1, by definition\)"),
    ],
    ids=["zero propensity", "deterministic log", "illegal target", "illegal alone", "NaN reward", "infinite reward",
         "more than stated", "more than a send"],
)  # fmt: skip
@pytest.mark.parametrize("per", ["decision", "week"])
def test_what_gives_no_number_is_refused(log: Transitions, change: Any, policy: Any, message: str, per: Any) -> None:
    with pytest.raises(InputError, match=message):
        judged(change(log), policy, per)


def figures(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [figure for each in found.values() for figure in figures(each)]
    return [found]


def heavy(log: Transitions, weight: float) -> Transitions:
    """The first person was hardly ever sent to, and always was: each of their rows weighs `weight`."""
    first = log.user == 0
    return replace(
        log,
        action=np.where(first, 1, log.action),
        propensity=np.where(first, 1 / weight, log.propensity),
    )


def test_one_user_with_half_of_the_weight_leaves_no_estimate_by_weights(log: Transitions) -> None:
    others = 2 * int((log.action[log.user > 0] == 1).sum())
    # Ten rows of weight w against all others': half where 10 w = others.
    over, under = (judged(heavy(log, factor * others / ROWS), Always()) for factor in (1.01, 0.99))
    always = over["policies"]["always"]
    assert always["withheld"].keys() == {"ips", "wpdis", "dr", "wdr", "magic"}
    assert all(reason == "one of 40 users holds 50% of the weight" for reason in always["withheld"].values())
    for estimator in ("ips", "wpdis", "dr"):
        assert set(figures(always["estimates"][estimator])) == {None}
    assert None not in figures(always["estimates"]["fqe"]["steps"]["estimate"])
    (warning,) = over["warnings"]
    assert warning == (
        "always: one of 40 users holds 50% of the weight, so there is no estimate of it by weights (ips, wpdis, dr, "
        "wdr, magic)."
    )
    assert under["policies"]["always"]["withheld"] == {}
    assert under["policies"]["always"]["estimates"]["ips"]["steps"]["estimate"] is not None
    assert under["warnings"] == []


def test_of_a_pair_with_a_withheld_policy_nothing_is_told_by_weights(log: Transitions) -> None:
    def fit(table: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
        return np.zeros((len(rows), *table.legal.shape, 2))

    config = EvaluateConfig(per="decision", resamples=100)
    found = evaluate(heavy(log, 1000.0), [Never(), Always()], config, GateConfig(), 0, False, fit=fit)
    assert found["policies"]["never"]["withheld"] == {}
    for contrast in found["contrasts"]:
        for estimator in ("ips", "wpdis", "dr"):
            assert set(figures(contrast["estimates"][estimator])) == {None}


def test_a_policy_that_nobody_follows_is_not_worth_zero(log: Transitions) -> None:
    """No logged action is the policy's: importance sampling would say 0, exactly."""
    never_sent = replace(log, action=np.zeros(400, np.int64), reward=np.ones((400, 2)))
    always = judged(never_sent, Always())["policies"]["always"]
    assert always["withheld"]["ips"] == "no user of the log acts as the policy would"
    assert set(figures(always["estimates"]["ips"])) == {None}


def test_per_week_the_trajectory_is_a_users_weight_and_one_step_has_its_own(log: Transitions) -> None:
    """2^10 for whoever was sent to ten times: few or none of 40; one decision at a time nobody stands out."""
    always = judged(log, Always(), "week")["policies"]["always"]
    ten = [(log.action[log.user == each] == 1).all() for each in range(PEOPLE)]
    assert sum(ten) == 0
    assert always["withheld"].keys() == {"pdis", "wpdis", "dr", "wdr", "magic"}


@pytest.mark.parametrize(("people", "told"), [(29, True), (30, False)])
def test_few_clusters_are_told(log: Transitions, people: int, told: bool) -> None:
    found = judged(log.where(log.user < people), Always())
    assert any("Intervals resample 29 users: with fewer than 30" in each for each in found["warnings"]) is told


def test_clusters_are_rows_where_no_user_has_two(log: Transitions, table_of: Build) -> None:
    assert judged(log, Always())["clusters"] == "users"
    one = table_of([f"u{i}" for i in range(200)], np.arange(200) % 2, np.full(200, 0.5), np.ones(200))
    assert judged(one, Always())["clusters"] == "rows"
