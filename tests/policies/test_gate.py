import copy
from typing import Any

import pytest

from models.errors import InputError
from policies.gate import GateConfig, GuardedMetric, judge

CONFIG = GateConfig(
    candidate="ours",
    metrics={
        "clicks": GuardedMetric("up", 0.02, improve=True),
        "sends": GuardedMetric("down", 0.05),
    },
    shares=(0.1, 0.5, 1.0),
)


def difference(relative: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"relative": relative, "relative_gate_low": low, "relative_gate_high": high}


def policy(
    clicks: tuple[Any, Any, Any] = (0.05, 0.01, 0.09), sends: tuple[Any, Any, Any] = (-0.1, -0.12, -0.08)
) -> dict:
    metrics = {"clicks": clicks, "sends": sends, "ctr": (0.2, 0.1, 0.3)}
    return {
        "rows": "test",
        "users": 1000,
        "learned": True,
        "estimates": {"dr": {name: {"difference": difference(*each)} for name, each in metrics.items()}},
        "diagnostics": {
            "ess": 500.0,
            "largest_weight": 0.01,
            "mean_weight": 1.01,
            "mean_weight_se": 0.02,
            "support": 0.99,
        },
    }


def evaluation(**changes: Any) -> dict[str, Any]:
    ours = policy(**{key: changes.pop(key) for key in ("clicks", "sends") if key in changes})
    ours["diagnostics"].update(changes.pop("diagnostics", {}))
    ours["users"] = changes.pop("users", ours["users"])
    found = {
        "per": "week",
        "components": ["clicks", "sends", "ctr"],
        "tried": 1,
        "gate_confidence": 0.95,
        "propensities": {"decisions": 3000, "estimated": 0},
        "policies": {"ours": ours},
        "mixtures": {"ours": {"0.1": policy(), "0.5": policy(), "1.0": ours}},
        "calibration": {"actions": {"send": {"mean_weight": 1.0, "se": 0.01, "decisions": 900}}},
    }
    return {**found, **changes}


IPS = {"policies": {"ours": {**policy(), "estimates": {"ips": policy()["estimates"]["dr"]}}}}

# One row per case: what the evaluation says, the verdict, and a word that its reasons must contain.
CASES = [
    ("all hold", {}, "PROMOTE", "clicks at least 1.00% better"),
    ("harm shown, up", {"clicks": (-0.06, -0.09, -0.03)}, "REFUSE", "clicks: estimated 6.00% worse"),
    ("harm shown, down", {"sends": (0.2, 0.1, 0.3)}, "REFUSE", "sends: estimated 20.00% worse"),
    (
        "harm, but the evidence is thin",
        {"sends": (0.2, 0.1, 0.3), "diagnostics": {"ess": 1.0}},
        "INCONCLUSIVE",
        "sends",
    ),
    ("all users, but too few", {"diagnostics": {"ess": 199.0}, "users": 200}, "INCONCLUSIVE", "Only more users"),
    ("harm exactly at the margin is not beyond it", {"clicks": (-0.02, -0.02, -0.02)}, "INCONCLUSIVE", "improvement"),
    ("harm within the margin, nothing better", {"clicks": (-0.01, -0.015, -0.005)}, "INCONCLUSIVE", "improvement"),
    ("too wide for the margin", {"clicks": (0.01, -0.03, 0.05)}, "INCONCLUSIVE", "at worst 3.00% worse"),
    ("too wide for an improvement", {"clicks": (0.01, -0.01, 0.03)}, "INCONCLUSIVE", "4,000 users instead of 1,000"),
    ("no bound", {"clicks": (None, None, None)}, "INCONCLUSIVE", "no bound on how much worse"),
    (
        "low effective sample size",
        {"diagnostics": {"ess": 199.0}},
        "INCONCLUSIVE",
        "effective sample size: 199 of 1,000",
    ),
    ("low support", {"diagnostics": {"support": 0.9}}, "INCONCLUSIVE", "90.00% of user-weeks"),
    ("weights off", {"diagnostics": {"mean_weight": 0.8}}, "INCONCLUSIVE", "have mean 0.800"),
    (
        "weights off within noise",
        {"diagnostics": {"mean_weight": 0.8, "mean_weight_se": 0.1}},
        "PROMOTE",
        "calibration",
    ),
    (
        "propensities off",
        {"calibration": {"actions": {"send": {"mean_weight": 0.83, "se": 0.01}}}},
        "INCONCLUSIVE",
        "the weights of 'send' have mean 0.830",
    ),
    ("estimated", {"propensities": {"decisions": 3000, "estimated": 7}}, "INCONCLUSIVE", "7 of 3,000 are estimated"),
]


@pytest.mark.parametrize(("changes", "verdict", "word"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_verdicts(changes: dict[str, Any], verdict: str, word: str) -> None:
    found = judge(evaluation(**copy.deepcopy(changes)), CONFIG, tried=1)
    assert found["verdict"] == verdict
    assert any(word in reason for reason in found["reasons"]), found["reasons"]
    assert {check["name"] for check in found["checks"]} == {
        "clicks", "sends", "improvement", "ess", "support", "calibration", "propensities"
    }  # fmt: skip
    assert all(check["passed"] for check in found["checks"]) == (verdict == "PROMOTE")
    for check in found["checks"]:
        assert set(check) == {"name", "passed", "found", "needed", "reason"}


def test_the_verdict_says_whom_it_judged_and_how_surely() -> None:
    found = judge(evaluation(), CONFIG, tried=1)
    assert (found["candidate"], found["tried"], found["confidence"]) == ("ours", 1, pytest.approx(0.95))


def test_candidates_tried_divide_the_error_and_need_bounds_made_for_them() -> None:
    assert judge(evaluation(tried=5, gate_confidence=0.99), CONFIG, tried=5)["confidence"] == pytest.approx(0.99)
    with pytest.raises(
        InputError, match=r"for 1 candidates at confidence 0.95, the gate needs 5 at 0.99; evaluate again"
    ):
        judge(evaluation(), CONFIG, tried=5)


WIDE = {"clicks": (0.01, -0.03, 0.05)}


@pytest.mark.parametrize(
    ("failing", "largest"),
    [((), 1.0), (("1.0",), 0.5), (("0.5",), 0.1), (("0.1",), None), (("0.1", "0.5", "1.0"), None)],
)
def test_the_largest_share_stops_at_the_first_that_is_not_certified(
    failing: tuple[str, ...], largest: float | None
) -> None:
    mixtures = {share: policy(**(WIDE if share in failing else {})) for share in ("0.1", "0.5", "1.0")}
    found = judge(evaluation(mixtures={"ours": mixtures}, **WIDE), CONFIG, tried=1)
    assert found["largest_share"] == largest
    text = f"at share {largest:g} passes" if largest else "No rollout share of ours among 0.1, 0.5, 1"
    assert text in found["reasons"][-1]


def test_a_share_is_held_to_the_same_evidence_as_the_whole() -> None:
    mixtures = {share: policy() for share in ("0.1", "0.5", "1.0")}
    mixtures["0.5"]["diagnostics"]["ess"] = 10.0
    assert judge(evaluation(mixtures={"ours": mixtures}), CONFIG, tried=1)["largest_share"] == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuardedMetric("sideways", 0.1), "direction is 'sideways'"),  # type: ignore[arg-type]
        (lambda: GuardedMetric("up", -0.1), "margin is -0.1"),
        (lambda: GateConfig(estimator="magic"), "gate.estimator is 'magic'"),
        (lambda: GateConfig(confidence=95), "gate.confidence is 95"),
        (lambda: GateConfig(min_support=2), "gate.min_support is 2"),
        (lambda: GateConfig(min_ess=-1), "gate.min_ess is -1"),
        (lambda: GateConfig(max_calibration_error=float("nan")), "gate.max_calibration_error is nan"),
        (lambda: GateConfig(shares=(0.0, 1.0)), r"gate.shares is \(0.0, 1.0\)"),
        (lambda: GateConfig(shares=(0.5, 0.5)), "give different shares"),
        (lambda: GateConfig(metrics={"clicks": GuardedMetric("up", 0.1)}), "none has improve = true; mark exactly one"),
        (lambda: GateConfig(metrics={n: GuardedMetric("up", 0.1, improve=True) for n in "ab"}), "a, b has improve"),
        (lambda: GuardedMetric("up", float("inf")), "margin is inf"),
        (lambda: GateConfig(estimator="fqe"), "gate.estimator is 'fqe'"),
        (lambda: GateConfig(metrics={"ctr": GuardedMetric("up", 0.1, improve=True)}), "ctr alone"),
        (
            lambda: GateConfig(
                metrics={"ctr": GuardedMetric("up", 0.1, improve=True), "sends": GuardedMetric("down", 0.1)}
            ),
            "ctr alone",
        ),
    ],
)
def test_configuration_out_of_range_is_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GateConfig(candidate="ours"), {}, "gate.metrics is empty"),
        (GateConfig(candidate="theirs", metrics=CONFIG.metrics), {}, "'theirs' was not evaluated; found ours"),
        (GateConfig(candidate="ours", metrics=CONFIG.metrics, estimator="wpdis"), {}, "has no 'wpdis'; found dr"),
        (GateConfig(candidate="ours", metrics=CONFIG.metrics, estimator="ips"), IPS, "leaves out what earlier actions"),
        (CONFIG, {"components": ["clicks"]}, "'sends' was not evaluated"),
        (CONFIG, {"policies": {"ours": {**policy(), "rows": "all"}}}, "evaluated on 'all' rows; use the test split"),
    ],
)
def test_an_evaluation_that_cannot_be_judged_is_refused(
    config: GateConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        judge(evaluation(**changes), config, tried=1)
