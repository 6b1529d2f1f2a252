import copy
from dataclasses import replace
from typing import Any

import pytest

from models.errors import InputError
from policies.gate import judge
from policies.rules import GateConfig, GuardedMetric

CONFIG = GateConfig(
    candidate="ours",
    metrics={
        "clicks": GuardedMetric("up", 0.02, improve=True),
        "sends": GuardedMetric("down", 0.05),
    },
    min_ess=200,
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
        "disagreement": {"wpdis": {"clicks": {"relative": 0.01, "se": 0.02}, "sends": {"relative": 0.0, "se": 0.01}}},
        "segments": {},
    }


def evaluation(**changes: Any) -> dict[str, Any]:
    ours = policy(**{key: changes.pop(key) for key in ("clicks", "sends") if key in changes})
    ours["diagnostics"].update(changes.pop("diagnostics", {}))
    ours["users"] = changes.pop("users", ours["users"])
    for key in ("disagreement", "segments", "confounding"):
        if key in changes:
            ours[key] = changes.pop(key)
    found = {
        "per": "week",
        "components": ["clicks", "sends", "ctr"],
        "tried": 1,
        "gate_confidence": 0.95,
        "propensities": {"decisions": 3000, "estimated": 0},
        "policies": {"ours": ours},
        "mixtures": {"ours": {"0.1": policy(), "0.5": policy(), "1.0": ours}},
        "calibration": {"actions": {"send": {"mean_weight": 1.0, "se": 0.01, "decisions": 900}}},
        "seeds": None,
    }
    return {**found, **changes}


NONE = {"relative": 0.0, "se": 0.01}
"""No disagreement."""
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
    (
        "the estimate lies below the margin within noise",
        # -3% with a half-width of 2 points reaches -1%, above the margin of -2%
        {"clicks": (-0.03, -0.05, -0.01)},
        "INCONCLUSIVE",
        "within its own noise: only more than 1,000 users can tell",
    ),
    (
        "an estimate of nothing would need users without end",
        # (4% / 0.3%)^2 = 178 times
        {"clicks": (0.003, -0.037, 0.043)},
        "INCONCLUSIVE",
        "Even 100 times the 1,000 users would not tell them apart",
    ),
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
        # The trajectories are off as nobody follows them; the log itself is right.
        "weights off and few follow",
        {"diagnostics": {"mean_weight": 0.046, "mean_weight_se": 0.022, "ess": 4.0}},
        "INCONCLUSIVE",
        "the logged propensities look right too: too few users follow the policy",
    ),
    (
        "weights and propensities off, and few follow",
        {
            "diagnostics": {"mean_weight": 0.046, "mean_weight_se": 0.022, "ess": 4.0},
            "calibration": {"actions": {"send": {"mean_weight": 0.83, "se": 0.01}}},
        },
        "INCONCLUSIVE",
        "Either the recorded propensities are not those of the draws",
    ),
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
    (
        "estimators differ beyond margin and noise",
        # four standard errors, and 8% where 2% is the margin
        {"disagreement": {"wpdis": {"clicks": {"relative": -0.08, "se": 0.02}, "sends": NONE}}},
        "INCONCLUSIVE",
        "wpdis puts clicks 8.00% below dr",
    ),
    (
        "estimators differ within noise",
        # the level 1 - 0.05 / 2 has 2.24 standard errors
        {"disagreement": {"wpdis": {"clicks": {"relative": -0.08, "se": 0.042}, "sends": NONE}}},
        "PROMOTE",
        "estimators",
    ),
    (
        "estimators differ clearly, within the margin",
        {"disagreement": {"wdr": {"sends": {"relative": 0.049, "se": 0.001}, "clicks": NONE}}},
        "PROMOTE",
        "estimators",
    ),
    (
        "harm, but the estimators differ",
        {"sends": (0.2, 0.1, 0.3), "disagreement": {"wdr": {"sends": {"relative": -0.2, "se": 0.01}, "clicks": NONE}}},
        "INCONCLUSIVE",
        "wdr puts sends 20.00% below dr",
    ),
    (
        "a segment is harmed",
        # of one segment and two metrics: level 1 - 0.05 / 2, 1.96 standard errors: -0.1 + 1.96 * 0.03 = -0.0412 < -0.02
        {
            "segments": {
                "new users": {
                    "users": 300,
                    "metrics": {"clicks": {"relative": -0.1, "se": 0.03}, "sends": {"relative": -0.1, "se": 0.01}},
                }
            }
        },
        "INCONCLUSIVE",
        "clicks of the 300 users with new users is 10.00% worse, at best 4.12% worse",
    ),
    (
        "a segment may be harmed",
        {
            "segments": {
                "new users": {
                    "users": 300,
                    "metrics": {"clicks": {"relative": -0.1, "se": 0.05}, "sends": {"relative": -0.1, "se": 0.01}},
                }
            }
        },
        "PROMOTE",
        "1 segments",
    ),
    (
        "a segment does not excuse harm to all",
        {
            "sends": (0.2, 0.1, 0.3),
            "segments": {"new users": {"users": 300, "metrics": {"sends": {"relative": 0.4, "se": 0.05}}}},
        },
        "REFUSE",
        "sends: estimated 20.00% worse",
    ),
    ("nothing beside the gate's estimator", {"disagreement": {}}, "INCONCLUSIVE", "nothing stands beside dr"),
    (
        "an estimator that cannot say",
        {"disagreement": {"wpdis": {}, "wdr": {"clicks": NONE, "sends": NONE}}},
        "INCONCLUSIVE",
        "wpdis has no clicks, wpdis has no sends",
    ),
    ("a weight that is no number", {"diagnostics": {"mean_weight": float("nan")}}, "INCONCLUSIVE", "have mean nan"),
    ("a weight without an error", {"diagnostics": {"mean_weight_se": float("inf")}}, "INCONCLUSIVE", "have mean 1.010"),
    ("an estimate withheld", {"clicks": (None, 0.01, 0.09)}, "INCONCLUSIVE", "no bound on how much worse"),
    ("estimated", {"propensities": {"decisions": 3000, "estimated": 7}}, "INCONCLUSIVE", "7 of 3,000 are estimated"),
]


@pytest.mark.parametrize(("changes", "verdict", "word"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_verdicts(changes: dict[str, Any], verdict: str, word: str) -> None:
    found = judge(evaluation(**copy.deepcopy(changes)), CONFIG, tried=1)
    assert found["verdict"] == verdict
    assert any(word in reason for reason in found["reasons"]), found["reasons"]
    assert {check["name"] for check in found["checks"]} == {
        "clicks", "sends", "improvement", "ess", "support", "calibration", "estimators", "propensities", "segments"
    }  # fmt: skip
    assert all(check["passed"] for check in found["checks"]) == (verdict == "PROMOTE")
    for check in found["checks"]:
        assert set(check) == {"name", "passed", "found", "needed", "reason"}


ALIKE = {"agreement": 0.9, "gains": [{"gain": 0.1, "standard_error": 0.05}] * 2, "stopped": []}
WORSE = [{"gain": 0.1, "standard_error": 0.05}, {"gain": -0.2, "standard_error": 0.05}]
SEEDS = [
    ({}, True, "90.0% of validation choices"),
    ({"agreement": None}, None, "one seed cannot say"),
    ({"agreement": 0.79}, None, "others choose as this one at 79.0%"),
    ({"stopped": ["ddqn #1 diverged"]}, None, "1 of them diverged"),
    # -0.2 + 3 * 0.05 < 0: clearly worse than the log; -0.1 is within noise
    ({"gains": WORSE}, None, "1 of 2 are worse"),
    ({"gains": [{"gain": 0.1, "standard_error": 0.05}, {"gain": -0.1, "standard_error": 0.05}]}, True, "90.0%"),
    ({"gains": [{"gain": None, "standard_error": None}] * 2}, True, "90.0%"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "passed", "word"), SEEDS)
def test_seeds_that_do_not_agree_keep_from_promoting(changes: dict[str, Any], passed: Any, word: str) -> None:
    found = judge(evaluation(seeds={**ALIKE, **changes}), CONFIG, tried=1)
    (check,) = (check for check in found["checks"] if check["name"] == "seeds")
    assert (check["passed"], found["verdict"]) == (passed, "PROMOTE" if passed else "INCONCLUSIVE")
    assert word in check["reason"]


def test_seeds_that_nobody_told_of_keep_a_learned_policy_from_promoting() -> None:
    told = evaluation()
    del told["seeds"]
    found = judge(told, CONFIG, tried=1)
    assert found["verdict"] == "INCONCLUSIVE"
    assert any("nothing is said of other seeds" in reason for reason in found["reasons"])
    told["policies"]["ours"]["learned"] = False
    assert judge(told, CONFIG, tried=1)["verdict"] == "PROMOTE"


@pytest.mark.parametrize("parts", [{}, {"age up to 30": {"users": 12, "metrics": {}}}])
def test_segments_that_were_asked_for_and_are_not_there_are_no_comfort(parts: dict[str, Any]) -> None:
    found = judge(evaluation(segments=parts), replace(CONFIG, segments=("age",)), tried=1)
    assert found["verdict"] == "INCONCLUSIVE"
    assert any("nothing is known by age" in reason for reason in found["reasons"])


def test_the_reason_why_an_estimate_is_withheld_reaches_the_verdict() -> None:
    told = evaluation(clicks=(None, None, None))
    told["policies"]["ours"]["withheld"] = {"dr": "one of 40 users holds 50% of the weight"}
    found = judge(told, CONFIG, tried=1)
    assert any("one of 40 users holds 50% of the weight" in reason for reason in found["reasons"])


def test_thin_overlap_says_how_many_users_and_how_much_exploration_would_do() -> None:
    explored = {"0.1": 120.0, "0.3": 190.0, "0.5": 260.4, "1": 400.0}
    found = judge(evaluation(diagnostics={"ess": 80.0, "ess_if_explored": explored}), CONFIG, tried=1)
    (check,) = (check for check in found["checks"] if check["name"] == "ess")
    # 1,000 users * 200 / 80
    assert "about 2,500 users instead of 1,000" in check["reason"]
    assert "draws 50% of its decisions uniformly, with which it would be about 260" in check["reason"]
    found = judge(evaluation(diagnostics={"ess": 1.0}), CONFIG, tried=1)
    (check,) = (check for check in found["checks"] if check["name"] == "ess")
    assert "users instead of" not in check["reason"]  # 200,000 for 1,000 are no advice


def confounding(low: tuple[float, ...], high: tuple[float, ...], sends: tuple[float, ...]) -> dict[str, Any]:
    """Relative differences at Gamma 1, 1.5 and 2: clicks between `low` and `high`, sends at most `sends`."""
    metrics = {"clicks": {"low": list(low), "high": list(high)}, "sends": {"low": [-0.1] * 3, "high": list(sends)}}
    return {"gamma": [1.0, 1.5, 2.0], "metrics": metrics}


STILL = (-0.1, -0.1, -0.1)
GAMMAS = [
    # clicks at least 1% better; Gamma 1.5 takes 0.5 points, 2 takes 2 points: the improvement is gone at 2
    (confounding((0.05, 0.045, 0.03), (0.05, 0.06, 0.07), STILL), {}, 2.0, "safe", "factor of 2.00"),
    # the margin of sends, 5%, is reached first: -8% + 14 points at 1.5
    (confounding((0.05, 0.045, 0.03), (0.05, 0.06, 0.07), (-0.1, 0.04, 0.1)), {}, 1.5, "safe", "factor of 1.50"),
    (confounding((0.05, 0.05, 0.05), (0.05,) * 3, STILL), {}, None, "safe", "more than 2"),
    # shown to lose at least 3% of clicks (margin 2%): 1.2 points more at Gamma 2 undo it
    (confounding((-0.06, -0.07, -0.08), (-0.06, -0.055, -0.048), STILL), {"clicks": (-0.06, -0.09, -0.03)}, 2.0,
     "harm", "would be harmful"),
    (confounding((0.05, 0.045, 0.03), (0.05, 0.06, 0.07), STILL), {"clicks": (0.01, -0.03, 0.05)}, 1.0, "neither",
     "neither pass nor refuse"),
    # nothing is known of sends, whatever clicks say
    ({**confounding((0.05, 0.045, 0.03), (0.05, 0.06, 0.07), STILL), "metrics": {"clicks": {"low": [0.05] * 3,
     "high": [0.05] * 3}}}, {}, None, "unknown", "bear is not known: the log has no bounds of sends"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "changes", "gamma", "what", "words"), GAMMAS)
def test_the_confounding_that_would_turn_what_the_metrics_say(
    told: Any, changes: Any, gamma: float | None, what: str, words: str
) -> None:
    guessed = {"decisions": 3000, "estimated": 3000}
    found = judge(evaluation(confounding=told, propensities=guessed, **changes), CONFIG, tried=1)
    assert found["verdict"] == "INCONCLUSIVE"
    assert (found["gamma"]["gamma"], found["gamma"]["what"]) == (gamma, what)
    (check,) = (check for check in found["checks"] if check["name"] == "propensities")
    assert words in check["reason"]


def test_without_estimates_there_is_no_gamma() -> None:
    assert judge(evaluation(), CONFIG, tried=1)["gamma"] is None


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


def with_range(low: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What `judge` says where the range's lower end is `low` and its upper end passes."""
    ends = {"ours@low": {"lambda": 0.1, **low}, "ours@high": {"lambda": 0.3, **policy()}}
    return judge(evaluation(ranges={"ours": ends}, **changes), CONFIG, 1)


def test_a_range_that_passes_promotes_and_says_so() -> None:
    found = with_range(policy())
    assert found["verdict"] == "PROMOTE"
    assert "volume range: every check holds too at 2 other prices, lambda from 0.1 to 0.3" in found["reasons"][-1]
    assert found["checks"][-1]["found"] == {"ours@low": "PROMOTE", "ours@high": "PROMOTE"}
    # The confidence is that of one price: all must pass.
    assert found["confidence"] == judge(evaluation(), CONFIG, 1)["confidence"] == 0.95


@pytest.mark.parametrize(
    ("low", "verdict", "word"),
    [
        (policy(sends=(0.2, 0.1, 0.3)), "REFUSE", "At ours@low (lambda 0.1): sends: estimated 20.00% worse"),
        (policy(clicks=(0.01, -0.01, 0.03)), "INCONCLUSIVE", "At ours@low (lambda 0.1): improvement: none is shown"),
        (policy(sends=(0.0, -0.1, 0.1)), "INCONCLUSIVE", "At ours@low (lambda 0.1): sends: estimated"),
    ],
)
def test_one_price_that_fails_fails_the_range(low: dict[str, Any], verdict: str, word: str) -> None:
    found = with_range(low)
    assert found["verdict"] == verdict
    assert any(word in reason for reason in found["reasons"])
    assert not any("ours@high" in reason for reason in found["reasons"])
    assert any(
        "At its own lambda ours passes every check. Narrow policy.volume_range" in each for each in found["reasons"]
    )
    assert found["checks"][-1]["name"] == "volume_range"
    assert found["checks"][-1]["passed"] is (False if verdict == "REFUSE" else None)
    # Mixtures are of the point, and say so.
    assert found["reasons"][-1] == "A first rollout of ours at share 1 passes every check at its own lambda."


def test_where_the_point_fails_narrowing_is_no_remedy() -> None:
    found = with_range(policy(), sends=(0.2, 0.1, 0.3))
    assert found["verdict"] == "REFUSE"
    assert not any("Narrow" in reason for reason in found["reasons"])
    # A refusal at an end is worse than a point that cannot tell.
    assert with_range(policy(sends=(0.2, 0.1, 0.3)), clicks=(0.01, -0.01, 0.03))["verdict"] == "REFUSE"


def test_what_holds_of_every_price_is_told_once() -> None:
    found = with_range(policy(), seeds={"agreement": 0.5, "gains": [], "stopped": []})
    assert found["verdict"] == "INCONCLUSIVE"
    assert sum("seeds:" in reason for reason in found["reasons"]) == 1
