"""The reward hacking watch: distances by hand, golden verdicts that warn and that do not, and a warning that blocks
nothing."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from models.rewards.support import Support, seen_rows
from models.rewards.weeks import weeks_of
from policies import hacking
from policies.evaluate import evaluate
from policies.gate import judge
from policies.hacking import distance
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig, GuardedMetric

CONFIG = GateConfig(
    candidate="ours",
    metrics={"clicks": GuardedMetric("up", 0.02, improve=True), "sends": GuardedMetric("down", 0.05)},
    min_ess=200,
    shares=(1.0,),
)
NEAR = {"decisions": 1000, "ess": 600.0, "chi2": 0.667, "kl": 0.2, "outside": 0.01, "learned_rows": 4000}


class Fixed:
    """Sends with a probability that is the first feature's, or with `share`."""

    name, learned = "fixed", False

    def __init__(self, share: float) -> None:
        self.share = share

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        sends = np.where(legal[:, 1], self.share, 0.0)
        return np.column_stack([1 - sends, sends])


def difference(estimate: float, low: float, high: float) -> dict[str, float]:
    """Of a metric whose logged value is 1, so that relative and absolute are one."""
    return {"estimate": estimate, "gate_low": low, "gate_high": high,
            "relative": estimate, "relative_gate_low": low, "relative_gate_high": high}  # fmt: skip


def evaluation(
    clicks: tuple[float, float, float] = (0.05, 0.01, 0.09),
    sends: tuple[float, float, float] = (-0.1, -0.12, -0.08),
    liked: tuple[float, float, float] = (0.4, 0.3, 0.5),
    far: dict[str, Any] | None = None,
    returns: dict[str, Any] | None = None,
) -> dict[str, Any]:
    metrics = {"clicks": clicks, "sends": sends, "liked": liked}
    ours = {
        "rows": "test",
        "users": 1000,
        "learned": True,
        "estimates": {"dr": {name: {"difference": difference(*each)} for name, each in metrics.items()}},
        "diagnostics": {
            "ess": 500.0,
            "largest_weight": 0.01,
            "mean_weight": 1.01,
            "mean_weight_se": 0.02,
            "support": 1,
        },
        "disagreement": {"wpdis": {name: {"relative": 0.0, "se": 0.01} for name in ("clicks", "sends")}},
        "segments": {},
        **({"returns": returns} if returns else {}),
    }
    return {
        "per": "week",
        "components": ["clicks", "sends", "liked"],
        "tried": 1,
        "gate_confidence": 0.95,
        "propensities": {"decisions": 3000, "estimated": 0},
        "policies": {"ours": ours},
        "mixtures": {"ours": {"1.0": ours}},
        "calibration": {"actions": {"send": {"mean_weight": 1.0, "se": 0.01, "decisions": 900}}},
        "seeds": None,
        "learned_rewards": {"liked": {"kind": "network", "version": 3, "distance": {**NEAR, **(far or {})}}},
    }


def test_golden_no_warning():
    """All gain: what is told is the two sides and the distance, and nothing is warned of."""
    verdict = judge(evaluation(), CONFIG, 1)
    assert verdict["verdict"] == "PROMOTE"
    assert verdict["warnings"] == []
    assert json.loads(json.dumps(verdict["learned_rewards"])) == {
        "liked": {
            "kind": "network",
            "version": 3,
            "distance": NEAR,
            "learned": {"estimate": 0.4, "low": 0.3, "high": 0.5},
            "hand_written": {
                "clicks": {"estimate": 0.05, "low": 0.01, "high": 0.09},
                # Fewer are better: turned.
                "sends": {"estimate": 0.1, "low": 0.08, "high": 0.12},
            },
        }
    }
    assert not [reason for reason in verdict["reasons"] if reason.startswith("Warning")]


def test_golden_warning_that_still_promotes():
    """The learned reward gains, the hand-written return loses, and every guarded metric holds: seen, not blocked."""
    returns = {"written": difference(-0.2, -0.3, -0.1)}
    verdict = judge(evaluation(returns=returns, far={"outside": 0.25}), CONFIG, 1)
    assert verdict["verdict"] == "PROMOTE"
    assert verdict["largest_share"] == 1.0
    assert json.loads(json.dumps(verdict["warnings"])) == [
        {
            "name": "learned:liked",
            "passed": False,
            "found": {"learned": 0.3, "written": -0.1},
            "needed": "both gain, or neither is shown to lose",
            "reason": "learned:liked: the candidate gains 0.3 or more of this learned reward while the hand-written "
            "return loses 0.1 or more. It may have found where the reward is wrong: ask raters about weeks of its own "
            "(`tactful rewards ask`) before it is rolled out.",
        },
        {
            "name": "learned:liked:distance",
            "passed": False,
            "found": {"outside": 0.25, "overlap": 0.6},
            "needed": "at most 10.0% outside and an overlap of 20.0%",
            "reason": "learned:liked: the candidate is far from what this reward was learned on: 25.0% of its choices "
            "lie outside the range of the 4,000 rows that the reward was learned from (more than 10.0%). Ask raters "
            "about weeks of its own, or let it stay nearer to the log (a smaller policy.rollout_share or a larger "
            "alpha).",
        },
    ]
    assert [reason[:22] for reason in verdict["reasons"][-2:]] == ["Warning: learned:liked"] * 2


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, []),
        ({"clicks": (-0.01, -0.015, -0.005)}, ["learned:liked"]),
        # Not shown to lose; or nothing of the learned reward shown to gain.
        ({"clicks": (-0.01, -0.015, 0.005)}, []),
        ({"clicks": (-0.01, -0.015, -0.005), "liked": (0.4, -0.1, 0.9)}, []),
        ({"sends": (0.03, 0.01, 0.04)}, ["learned:liked"]),
        ({"far": {"ess": 150.0}}, ["learned:liked:distance"]),
        ({"far": {"decisions": 0, "outside": None, "ess": None, "chi2": None, "kl": None}}, []),
        ({"far": {"ess": 0.0, "chi2": None, "kl": None}}, ["learned:liked:distance"]),
        ({"far": {"outside": 0.1, "ess": 200.0}}, []),
    ],
)
def test_what_is_warned_of(changed, names):
    assert [each["name"] for each in judge(evaluation(**changed), CONFIG, 1)["warnings"]] == names


def test_no_verdict_is_moved_by_a_warning():
    """The same evaluation without learned rewards has the same verdict, checks and share."""
    for changed in ({"clicks": (-0.06, -0.09, -0.03)}, {"clicks": (-0.01, -0.015, -0.005)}, {"far": {"outside": 0.9}}):
        warned = judge(evaluation(**changed), CONFIG, 1)
        plain = copy.deepcopy(evaluation(**changed))
        del plain["learned_rewards"]
        silent = judge(plain, CONFIG, 1)
        assert warned["warnings"]
        assert silent["warnings"] == []
        assert {key: warned[key] for key in ("verdict", "checks", "largest_share")} == {
            key: silent[key] for key in ("verdict", "checks", "largest_share")
        }


def test_learned_weights_are_held_against_the_return_by_name():
    """A reward that is weights is no component: its gain is the weighted sum's, from `returns`."""
    found = evaluation(returns={"liked": difference(0.5, 0.4, 0.6), "written": difference(0.2, 0.1, 0.3)})
    sides = judge(found, CONFIG, 1)["learned_rewards"]["liked"]
    assert sides["learned"] == {"estimate": 0.5, "low": 0.4, "high": 0.6}
    assert sides["hand_written"]["written"] == {"estimate": 0.2, "low": 0.1, "high": 0.3}


def test_distance_by_hand(table_of):
    """Four choices at mu = 1/2; pi sends with 3/4. rho = 1.5, 0.5, 0.5, 1.5: mean 1, mean of squares 1.25, so chi2 =
    0.25 and the ESS 3.2; KL = 0.75 log 1.5 + 0.25 log 0.5. Sends beyond x = 2 are new: two of four states."""
    table = table_of(["a", "a", "b", "b"], [1, 0, 0, 1], [0.5] * 4, [0.0] * 4, state=[0.0, 1.0, 5.0, 7.0])
    support = Support(
        ("hold", "send"), ("x0",), np.array([[0.0], [0.0]]), np.array([[9.0], [2.0]]), np.zeros((2, 1), bool), 50
    )
    found = distance(table, Fixed(0.75), np.ones(4, bool), support)
    assert found == {
        "decisions": 4,
        "ess": pytest.approx(3.2),
        "chi2": pytest.approx(0.25),
        "kl": pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        "outside": pytest.approx(2 * 0.75 / 4),
        "learned_rows": 50,
    }


def test_the_logging_policy_is_at_no_distance(table_of):
    table = table_of(["a"] * 3, [1, 0, 1], [0.3, 0.7, 0.3], [0.0] * 3)
    found = distance(table, Fixed(0.3), np.ones(3, bool), None)
    assert (found["chi2"], found["kl"], found["ess"]) == pytest.approx((0.0, 0.0, 3.0))
    assert found["outside"] is None


def test_a_policy_that_takes_nothing_that_was_logged_is_as_far_as_can_be(table_of):
    table = table_of(["a"] * 2, [0, 0], [0.5] * 2, [0.0] * 2)
    found = distance(table, Fixed(1.0), np.ones(2, bool), None)
    assert (found["decisions"], found["ess"], found["chi2"], found["kl"]) == (2, 0.0, None, None)


def test_rows_without_a_choice_say_nothing(table_of):
    table = table_of(["a"] * 2, [0, 0], [1.0] * 2, [0.0] * 2, legal=[[True, False]] * 2)
    assert distance(table, Fixed(0.5), np.ones(2, bool), None)["ess"] is None


def test_the_support_of_what_raters_saw(table_of):
    """Two weeks a user; raters saw the first alone. An unknown value is known to happen only where it did."""
    n = 14
    state = np.arange(n, dtype=float)
    state[3] = np.nan
    action = np.arange(n) % 2
    table = table_of(["a"] * n, action, [0.5] * n, [0.0] * n, state=state)
    weeks = weeks_of(table)
    rows = seen_rows(table, weeks, [weeks.id[0]])
    assert rows.tolist() == [True] * 7 + [False] * 7
    support = Support.of([(table, rows)])
    # Holds at 0, 2, 4, 6; sends at 1, 5 and unknown.
    assert support.low.tolist() == [[0.0], [1.0]]
    assert support.high.tolist() == [[6.0], [5.0]]
    again = Support.read(json.loads(json.dumps(support.plain())))
    asked = table_of(["a"] * 5, [0] * 5, [0.5] * 5, [0.0] * 5, state=[0.0, 1.0, 6.0, 7.0, np.nan])
    for each in (support, again):
        assert each.outside(asked).tolist() == [
            [False, True],
            [False, False],
            [False, True],
            [True, True],
            [True, False],
        ]
    never = Support.of([(table, rows & (action == 0))])
    assert never.outside(asked)[:, 1].all()
    assert Support.read(json.loads(json.dumps(never.plain()))).outside(asked)[:, 1].all()


def test_a_log_without_a_feature_of_the_support_is_refused(table_of):
    support = Support(("hold",), ("y",), np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1), bool), 1)
    with pytest.raises(InputError, match="had y, which this log has not"):
        support.outside(table_of(["a"], [0], [0.5], [0.0]))


def test_a_weighted_return_is_estimated_as_its_sum(table_of):
    """By hand, a second way: the weighted sum as a component of its own has the same estimate and bounds."""
    rng = np.random.default_rng(0)
    users = np.repeat([f"u{u:03d}" for u in range(60)], 4)
    action = rng.integers(0, 2, 240)
    reward = np.column_stack([rng.random(240), action + rng.random(240), np.zeros(240)])
    reward[:, 2] = 2 * reward[:, 0] - 0.5 * reward[:, 1]
    table = table_of(users, action, [0.5] * 240, reward, rewards=("a", "b", "sum"))
    gate = GateConfig(candidate="fixed", metrics={"a": GuardedMetric("up", 0.1, improve=True)}, estimator="wpdis")
    config = EvaluateConfig(resamples=200, fqe_steps=5)
    found = evaluate(table, [Fixed(0.6)], config, gate, 1, progress=False, returns={"written": {"a": 2.0, "b": -0.5}})[
        "policies"
    ]["fixed"]
    component = found["estimates"]["wpdis"]["sum"]["difference"]
    assert found["returns"]["written"] == pytest.approx(component)
    assert hacking.side_by_side("sum", found, gate, {"sum": {}})["hand_written"]["written"][
        "estimate"
    ] == pytest.approx(component["estimate"])
