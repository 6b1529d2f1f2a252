import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.baselines import Always, LoggingPolicy, Never
from policies.evaluate import evaluate
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig

Build = Callable[..., Transitions]
QUICK = EvaluateConfig(resamples=200)
GATE = GateConfig(candidate="tabular", shares=(0.2, 1.0))


class Tabular:
    """Sends with a probability that depends on the state's first feature, 0 or 1."""

    def __init__(self, send: Any, name: str = "tabular", learned: bool = True) -> None:
        self.send, self.name, self.learned = np.asarray(send), name, learned

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        send = self.send[state[:, 0].astype(int)] * legal[:, 1]
        return np.stack([1 - send, send], axis=1)


class ExactFit:
    """Fitted Q by cell means over (state, days left, action): an exact learner, with a record of what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, table: Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
        self.calls.append((rows, ahead, extra))
        cell = table.state[:, 0].astype(int)
        left = np.zeros(len(cell), int) if extra is None else np.rint(extra[:, 0]).astype(int)
        q = np.zeros((len(rows), *table.legal.shape, table.reward.shape[1]))
        for m, use in enumerate(rows):
            for days in sorted(set(left)):
                here = left == days
                onward = np.flatnonzero(here & (table.next_row >= 0))
                target = table.reward.copy()
                target[onward] += np.einsum("na,nak->nk", ahead[m][onward], q[m][table.next_row[onward]])
                for c in set(cell[here]):
                    for a in range(table.legal.shape[1]):
                        seen = here & use & (cell == c) & (table.action == a)
                        if seen.any():
                            q[m, here & (cell == c), a] = target[seen].mean(0)
        return q


REWARD = np.array([[[0.0, 0.0], [1.0, 0.3]], [[0.0, 1.0], [1.0, -0.5]]])
"""[state, action, component]: sends, clicks."""
MU_SEND = np.array([0.4, 0.6])
NEXT_IS_1 = np.array([[0.2, 0.8], [0.3, 0.6]])
HORIZON = 3


def markov_log(table_of: Build, users: int, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    s = rng.integers(0, 2, users)
    states, actions, rewards = [], [], []
    for _ in range(HORIZON):
        a = (rng.random(users) < MU_SEND[s]).astype(int)
        states.append(s)
        actions.append(a)
        rewards.append(REWARD[s, a] + [0.0, 1.0] * rng.normal(size=(users, 1)) * 0.3)
        s = (rng.random(users) < NEXT_IS_1[s, a]).astype(int)
    state, action = (np.stack(each, 1).ravel() for each in (states, actions))
    reward = np.stack(rewards, 1).reshape(-1, 2)
    propensity = np.where(action == 1, MU_SEND[state], 1 - MU_SEND[state])
    split = np.repeat(rng.choice(3, users, p=[0.5, 0.1, 0.4]), HORIZON)
    names = np.repeat([f"u{i}" for i in range(users)], HORIZON).tolist()
    return table_of(names, action, propensity, reward, rewards=("sends", "clicks"), state=state, split=split)


def truth(send: Any) -> Any:
    """[component] per user-week, by backward induction."""
    policy, ahead = np.stack([1 - np.asarray(send), np.asarray(send)], 1), np.zeros((2, 2))
    for _ in range(HORIZON):
        q = REWARD + (1 - NEXT_IS_1)[..., None] * ahead[0] + NEXT_IS_1[..., None] * ahead[1]
        ahead = (policy[..., None] * q).sum(1)
    return ahead.mean(0) * 7 / HORIZON


@pytest.fixture(scope="module")
def log(table_of: Build) -> Transitions:
    return markov_log(table_of, 3000)


@pytest.fixture(scope="module")
def found(log: Transitions) -> dict[str, Any]:
    policies = [Never(), Always(), LoggingPolicy(), Tabular([0.7, 0.3])]
    return evaluate(log, policies, QUICK, GATE, seed=5, progress=False, fit=ExactFit())


def test_the_result_is_plain_json_with_every_policy_estimator_and_metric(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["components"] == ["sends", "clicks", "ctr"]
    assert set(found["policies"]) == {"logging", "never", "always", "tabular"}
    assert {name: each["rows"] for name, each in found["policies"].items()} == {
        "logging": "all", "never": "all", "always": "all", "tabular": "test"
    }  # fmt: skip
    for name in ("never", "always", "tabular"):
        assert set(found["policies"][name]["estimates"]) == {
            "ips", "pdis", "wpdis", "dr", "wdr", "magic", "fqe"
        }  # fmt: skip
        for metrics in found["policies"][name]["estimates"].values():
            assert set(metrics) == {"sends", "clicks", "ctr"}
    assert set(found["mixtures"]["tabular"]) == {"0.2", "1.0"}
    assert found["row_sets"]["all"] == {"users": 3000, "decisions": 9000, "left_out": 0}


def test_known_truth_lies_near_every_estimate_of_a_trajectory(found: dict[str, Any]) -> None:
    for name, send in (("always", [1, 1]), ("never", [0, 0]), ("tabular", [0.7, 0.3]), ("logging", MU_SEND)):
        expected = dict(zip(("sends", "clicks"), truth(send), strict=True))
        for estimator in ("on_policy",) if name == "logging" else ("wpdis", "dr", "fqe"):
            for component, value in expected.items():
                each = found["policies"][name]["estimates"][estimator][component]
                # the interval of fqe leaves the error of its fit out
                tolerance = 0.1 if estimator == "fqe" else max(each["high"] - each["low"], 0.02)
                assert abs(each["estimate"] - value) <= tolerance, (name, estimator, component)


def test_logging_is_the_mean_of_its_rows_and_ctr_the_ratio_of_totals(log: Transitions, found: dict[str, Any]) -> None:
    test = log.split == 2
    for name, rows in (("all", np.ones(9000, bool)), ("test", test)):
        total, weeks = log.reward[rows].sum(0), log.elapsed_days[rows].sum() / 7
        logged = found["logging_by_rows"][name]
        assert logged["sends"]["estimate"] == pytest.approx(total[0] / weeks, abs=1e-9)
        assert logged["clicks"]["estimate"] == pytest.approx(total[1] / weeks, abs=1e-9)
        assert logged["ctr"]["estimate"] == pytest.approx(total[1] / total[0], abs=1e-9)
    always = found["policies"]["never"]["estimates"]["wpdis"]
    assert always["ctr"] == {**always["ctr"], "estimate": None, "low": None, "high": None}  # nothing sent: no ratio


def test_differences_are_from_the_logging_policy_on_the_same_rows(found: dict[str, Any]) -> None:
    for metric in ("sends", "clicks"):
        each = found["policies"]["tabular"]["estimates"]["dr"][metric]
        logged = found["logging_by_rows"]["test"][metric]["estimate"]
        difference = each["difference"]
        assert difference["estimate"] == pytest.approx(each["estimate"] - logged, abs=1e-12)
        assert difference["relative"] == pytest.approx(difference["estimate"] / abs(logged), abs=1e-12)
        # two-sided 95% lies outside one-sided 95%
        assert difference["low"] <= difference["gate_low"] <= difference["estimate"] <= difference["gate_high"]
        assert difference["gate_high"] <= difference["high"]


def test_a_mixture_lies_between_and_is_surer_than_its_parts(found: dict[str, Any]) -> None:
    small = found["mixtures"]["tabular"]["0.2"]
    whole = found["mixtures"]["tabular"]["1.0"]
    assert whole["estimates"] == found["policies"]["tabular"]["estimates"]
    one, all_of_it = (each["estimates"]["dr"]["clicks"]["difference"] for each in (small, whole))
    assert one["high"] - one["low"] < 0.5 * (all_of_it["high"] - all_of_it["low"])
    assert small["diagnostics"]["ess"] > whole["diagnostics"]["ess"]


def test_contrasts_pair_policies_that_learned_nothing(found: dict[str, Any]) -> None:
    (contrast,) = found["contrasts"]
    assert (contrast["policy"], contrast["against"], contrast["rows"]) == ("always", "never", "all")
    values = [found["policies"][name]["estimates"]["dr"]["sends"]["estimate"] for name in ("always", "never")]
    assert contrast["estimates"]["dr"]["sends"]["estimate"] == pytest.approx(values[0] - values[1])


def test_value_functions_are_one_population_and_never_see_the_users_they_judge(log: Transitions) -> None:
    fit = ExactFit()
    evaluate(log, [Never(), Tabular([0.7, 0.3])], QUICK, GATE, seed=0, progress=False, fit=fit)
    ((rows, ahead, extra),) = fit.calls
    assert len(rows) == 2 + 1 + 1  # two folds of never, the learned policy, its one true mixture
    test = log.split == 2
    assert (rows[0] ^ rows[1]).all()
    for fold in rows[:2]:
        assert not set(log.user[fold]) & set(log.user[~fold])
    np.testing.assert_array_equal(rows[2], ~test)
    np.testing.assert_array_equal(rows[3], ~test)
    ends = log.truncated
    np.testing.assert_allclose(ahead[:, ~ends].sum(2), 1.0, atol=1e-6)
    assert (ahead[:, ends] == 0).all()
    first = np.flatnonzero(~ends)[0]
    send = [0.7, 0.3][int(log.state[first + 1, 0])]
    np.testing.assert_allclose(ahead[2, first], [1 - send, send], atol=1e-6)
    np.testing.assert_allclose(extra[:HORIZON, 0], [3, 2, 1])


def test_one_seed_gives_one_answer(log: Transitions) -> None:
    small = log.where(log.user < 200)
    one, again, other = (evaluate(small, [Always()], QUICK, GATE, seed, False, fit=ExactFit()) for seed in (1, 1, 2))
    assert one == again
    assert one["policies"]["always"]["estimates"]["dr"] != other["policies"]["always"]["estimates"]["dr"]


def test_candidates_tried_widen_the_gate_alone(log: Transitions) -> None:
    small = log.where(log.user < 400)
    one, five = (
        evaluate(small, [Tabular([0.7, 0.3])], QUICK, GATE, 1, False, tried=tried, fit=ExactFit()) for tried in (1, 5)
    )
    first, second = (each["policies"]["tabular"]["estimates"]["dr"]["clicks"]["difference"] for each in (one, five))
    assert (first["low"], first["high"]) == (second["low"], second["high"])
    assert second["gate_low"] < first["gate_low"]
    assert second["relative_gate_high"] > first["relative_gate_high"]
    assert five["gate_confidence"] == pytest.approx(0.99)


def trial(table_of: Build, seed: int, people: int = 40, rows: int = 150, effect: float = 0.1) -> Transitions:
    """A micro-randomised trial: people with levels of their own, one decision in five unavailable, send by 0.6."""
    rng = np.random.default_rng(seed)
    n = people * rows
    level = np.repeat(rng.normal(5, 0.5, people), rows)
    free = rng.random(n) < 0.8
    sent = free & (rng.random(n) < 0.6)
    mood = rng.integers(0, 2, n)
    steps = level + 0.5 * mood + effect * sent + rng.normal(size=n) * 0.5
    propensity = np.where(free, np.where(sent, 0.6, 0.4), 1.0)
    return table_of(
        np.repeat([f"p{i}" for i in range(people)], rows).tolist(),
        sent,
        propensity,
        np.stack([sent, steps], 1),
        rewards=("sends", "log_steps"),
        state=mood,
        legal=np.stack([np.ones(n, bool), free], 1),
    )


def test_a_trial_gives_its_effect_per_decision(table_of: Build) -> None:
    """Always less never over available decisions, over 30 trials: unbiased, and held by about 95% of the intervals."""
    config, effects, held = EvaluateConfig(per="decision", resamples=200), [], 0
    for seed in range(30):
        table = trial(table_of, seed)
        found = evaluate(table, [Never(), Always()], config, GATE, seed, False, fit=ExactFit())
        assert found["policies"]["logging"]["estimates"]["on_policy"]["log_steps"]["estimate"] == pytest.approx(
            table.reward[:, 1].mean(), abs=1e-9
        )
        (contrast,) = (each for each in found["contrasts"] if each["rows"] == "choice")
        each = contrast["estimates"]["wpdis"]["log_steps"]
        effects.append(each["estimate"])
        held += each["low"] <= 0.1 <= each["high"]
        assert contrast["estimates"]["dr"]["log_steps"]["estimate"] == pytest.approx(each["estimate"], abs=0.05)
        assert contrast["estimates"]["wpdis"]["sends"]["estimate"] == pytest.approx(1.0)
    assert abs(np.mean(effects) - 0.1) < 3.5 * np.std(effects, ddof=1) / np.sqrt(30)
    assert held >= 25


def test_per_decision_has_the_choice_rows_and_no_next_state(table_of: Build) -> None:
    table, fit = trial(table_of, 0), ExactFit()
    found = evaluate(table, [Never(), Always()], EvaluateConfig(per="decision", resamples=100), GATE, 0, False, fit=fit)
    assert found["unit"] == "per decision"
    assert found["row_sets"]["choice"]["decisions"] == int(table.legal.all(1).sum())
    ((_, ahead, extra),) = fit.calls
    assert extra is None
    assert (ahead == 0).all()
    assert found["policies"]["always"]["diagnostics"]["support"] == 1.0


def test_a_logged_action_that_constraints_forbid_counts_against_support(log: Transitions) -> None:
    small = log.where(log.user < 300)
    legal = small.legal.copy()
    legal[::HORIZON, 1] = False  # the first row of each user
    forbidden = (small.action[::HORIZON] == 1).mean()
    found = evaluate(replace(small, legal=legal), [Always()], QUICK, GATE, 0, False, fit=ExactFit())
    assert found["policies"]["always"]["diagnostics"]["support"] == pytest.approx(1 - forbidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, propensity=np.where(t.user == 4, np.nan, t.propensity)), "3 of .* have none"),
        (lambda t: replace(t, propensity=np.ones(len(t.action))), "never explored"),
        (lambda t: replace(t, split=np.zeros(len(t.action), np.int8)), "no user lies in the test split"),
        (lambda t: replace(t, split=np.full(len(t.action), 2, np.int8)), "no rows to fit a value function on"),
    ],
)
def test_logs_that_cannot_be_evaluated_are_refused(log: Transitions, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(change(log), [Tabular([0.7, 0.3])], QUICK, GATE, 0, False, fit=ExactFit())


def test_a_name_taken_twice_is_refused(log: Transitions) -> None:
    with pytest.raises(InputError, match=r"\['never'\] named more than once"):
        evaluate(log, [Never(), Never()], QUICK, GATE, 0, False, fit=ExactFit())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per": "month"}, "evaluate.per is 'month'"),
        ({"resamples": 10}, "evaluate.resamples is 10"),
        ({"confidence": 1.0}, "evaluate.confidence is 1.0"),
        ({"fqe_steps": 0}, "evaluate.fqe_steps is 0"),
    ],
)
def test_configuration_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluateConfig(**values)


def test_the_networks_that_evaluation_fits_by_default_find_the_truth_too(table_of: Build) -> None:
    table = markov_log(table_of, 1500, seed=1)
    config = EvaluateConfig(resamples=100, fqe_steps=300)
    found = evaluate(table, [Never(), Always(), Tabular([0.7, 0.3])], config, GateConfig(shares=(1.0,)), 0, False)
    for name, send in (("always", [1, 1]), ("never", [0, 0]), ("tabular", [0.7, 0.3])):
        for component, value in zip(("sends", "clicks"), truth(send), strict=True):
            each = found["policies"][name]["estimates"]
            assert each["fqe"][component]["estimate"] == pytest.approx(value, abs=0.25)
            assert each["dr"][component]["low"] - 0.05 <= value <= each["dr"][component]["high"] + 0.05
