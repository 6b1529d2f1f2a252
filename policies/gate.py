"""Promote, refuse or inconclusive, with reasons."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.errors import InputError

ESTIMATORS = ("wpdis", "dr", "ips")
"""Estimators whose interval may carry a verdict: not FQE's, which leaves out the error of its fit."""
CTR = "ctr"
NOISE = 3.0
"""Standard errors within which a mean weight's distance from 1 is taken for noise."""


@dataclass(frozen=True)
class GuardedMetric:
    """One metric the gate guards."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    direction: Literal["up", "down"]
    """Which way is better."""
    margin: float
    """Non-inferiority margin as a share of the logging policy's value: 0.02 tolerates a loss of 2%."""
    improve: bool = False
    """Whether an improvement in this metric, shown with confidence, is what earns a promotion: one metric is so marked,
    since several would each be another chance to be right by luck."""

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise InputError(f"gate.metrics: direction is {self.direction!r}; it must be 'up' or 'down'.")
        if not 0 <= self.margin < 1:
            raise InputError(
                f"gate.metrics: margin is {self.margin}; it must lie in [0, 1) (0.02 tolerates a loss of 2%)."
            )


@dataclass(frozen=True)
class GateConfig:
    """The rules of promotion."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    candidate: str = "ddqn_cql"
    """Which learned policy asks to be promoted."""
    estimator: str = "dr"
    """Whose interval carries the verdict."""
    metrics: dict[str, GuardedMetric] = field(default_factory=dict)
    confidence: float = 0.95
    """One-sided, divided among the candidates tried on this test split."""
    min_ess: float = 200.0
    """Least effective sample size, in users."""
    min_support: float = 0.95
    """Least share of user-weeks (or decisions) in which the log could have shown what the policy does."""
    max_calibration_error: float = 0.05
    """Largest |mean importance weight - 1| that is more than noise."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    """Rollout shares kappa of the mixtures (1 - kappa) mu + kappa pi for which the gate says what it can certify."""

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise InputError(f"gate.estimator is {self.estimator!r}; it must be one of {', '.join(ESTIMATORS)}.")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"gate.confidence is {self.confidence}; it must lie in [0.5, 1).")
        if not 0 <= self.min_support <= 1:
            raise InputError(f"gate.min_support is {self.min_support}; it is a share, in [0, 1].")
        for name in ("min_ess", "max_calibration_error"):
            if not getattr(self, name) >= 0:
                raise InputError(f"gate.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not all(0 < share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise InputError(f"gate.shares is {self.shares}; give different shares in (0, 1].")
        improve = [name for name, metric in self.metrics.items() if metric.improve]
        if self.metrics and len(improve) != 1:
            raise InputError(
                f"gate.metrics: {', '.join(improve) or 'none'} has improve = true; mark exactly one, beforehand: "
                "without one nothing could earn a promotion, and several would each be a chance to be right by luck."
            )
        if improve == [CTR]:
            raise InputError(
                "gate.metrics: ctr alone would carry the verdict; a ratio rises when fewer are asked, so mark a total "
                "(clicks, visits, weekly_active_days) with improve = true instead."
            )


@dataclass(frozen=True)
class Check:
    """One condition: `passed` is None where the log cannot say."""

    name: str
    passed: bool | None
    found: Any
    needed: str
    reason: str

    def plain(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "found": self.found,
            "needed": self.needed,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Judgement:
    """The checks of one policy: harm and safety per metric, improvement, and whether the evidence can carry them."""

    metrics: tuple[Check, ...]
    improvement: Check
    evidence: tuple[Check, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return (*self.metrics, self.improvement, *self.evidence)

    @property
    def verdict(self) -> Literal["PROMOTE", "REFUSE", "INCONCLUSIVE"]:
        # Evidence too weak to promote on is too weak to accuse on.
        evident = all(check.passed for check in self.evidence)
        if evident and any(check.passed is False for check in self.metrics):
            return "REFUSE"
        return "PROMOTE" if all(check.passed for check in self.checks) else "INCONCLUSIVE"


def judge(evaluation: dict[str, Any], config: GateConfig, tried: int) -> dict[str, Any]:
    """The verdict on `config.candidate` from the JSON of `policies.evaluate.evaluate`, with every check and its reason.

    With d = (V(pi) - V(mu)) / |V(mu)| signed so that more is better, and its one-sided bounds at confidence 1 - (1
    - confidence) / tried: REFUSE if the upper bound of any guarded metric lies below -margin and the evidence
    holds. PROMOTE if every lower bound is at least -margin, one marked `improve` lies above 0, and effective sample
    size, support and calibration hold on logged (not estimated) propensities. Else INCONCLUSIVE. `largest_share` is
    the largest kappa whose mixture (1 - kappa) mu + kappa pi passes the same conditions, tried upwards and stopping
    at the first that does not: a fixed sequence, so the claim as a whole keeps the confidence.

    Raises InputError where nothing is guarded, the candidate or a metric was not evaluated, a candidate that learned
    was not evaluated on the test split, or the bounds were computed for another number of candidates.
    """
    _check_inputs(evaluation, config, tried)
    policy = evaluation["policies"][config.candidate]
    judgement = _judge_one(policy, evaluation, config, policy["users"])
    share = _largest_share(evaluation, config, policy["users"])
    return {
        "verdict": judgement.verdict,
        "candidate": config.candidate,
        "reasons": _reasons(judgement, share, config),
        "checks": [check.plain() for check in judgement.checks],
        "largest_share": share,
        "confidence": 1 - (1 - config.confidence) / tried,
        "tried": tried,
    }


def _check_inputs(evaluation: dict[str, Any], config: GateConfig, tried: int) -> None:
    if not config.metrics:
        raise InputError("gate.metrics is empty; name the metrics to guard, each with direction and margin.")
    if config.candidate not in evaluation["policies"]:
        raise InputError(
            f"gate.candidate: {config.candidate!r} was not evaluated; found {', '.join(evaluation['policies'])}."
        )
    policy = evaluation["policies"][config.candidate]
    if config.estimator not in policy["estimates"]:
        raise InputError(
            f"gate.estimator: {config.candidate} has no {config.estimator!r}; found {', '.join(policy['estimates'])}."
        )
    if config.estimator == "ips" and evaluation["per"] == "week":
        raise InputError(
            "gate.estimator is 'ips', which per week leaves out what earlier actions would change; use dr or wpdis."
        )
    for name in config.metrics:
        if name not in evaluation["components"]:
            raise InputError(f"gate.metrics: {name!r} was not evaluated; found {', '.join(evaluation['components'])}.")
    if policy["learned"] and policy["rows"] != "test":
        raise InputError(
            f"{config.candidate} learned from the log but was evaluated on {policy['rows']!r} rows; use the test split."
        )
    needed = 1 - (1 - config.confidence) / tried
    if evaluation["tried"] != tried or abs(evaluation["gate_confidence"] - needed) > 1e-9:
        raise InputError(
            f"evaluation: its bounds are for {evaluation['tried']} candidates at confidence "
            f"{evaluation['gate_confidence']:.4g}, "
            f"the gate needs {tried} at {needed:.4g}; evaluate again with the same gate and number of candidates tried."
        )


def _judge_one(policy: Mapping[str, Any], evaluation: Mapping[str, Any], config: GateConfig, users: int) -> Judgement:
    differences = {name: policy["estimates"][config.estimator][name]["difference"] for name in config.metrics}
    return Judgement(
        metrics=tuple(
            _within_margin(name, metric, differences[name], users) for name, metric in config.metrics.items()
        ),
        improvement=_improves(config.metrics, differences, users),
        evidence=(
            _enough_weight(policy["diagnostics"], config, users),
            _enough_support(policy["diagnostics"], config, evaluation["per"]),
            _calibrated(policy["diagnostics"], evaluation["calibration"], config),
            _logged_propensities(evaluation["propensities"]),
        ),
    )


def _signed(metric: GuardedMetric, difference: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """(estimate, low, high) of the relative difference, more being better."""
    estimate, low, high = (difference[key] for key in ("relative", "relative_gate_low", "relative_gate_high"))
    if metric.direction == "up":
        return estimate, low, high
    turned = [None if value is None else -value for value in (estimate, high, low)]
    return turned[0], turned[1], turned[2]


def _within_margin(name: str, metric: GuardedMetric, difference: Mapping[str, Any], users: int) -> Check:
    estimate, low, high = _signed(metric, difference)
    needed = f"at most {_percent(metric.margin)} worse than the logging policy; {metric.direction} is better"
    bounds = {"relative": difference["relative"], "worst": low, "best": high, "margin": metric.margin}
    about = f"{name}: estimated {_change(estimate)} than the logging policy"
    if high is not None and high < -metric.margin:
        reason = (
            f"{about}, at best {_change(high)}: beyond the margin of {_percent(metric.margin)}. Only another policy, a "
            "smaller rollout share or a wider margin would change this."
        )
        return Check(name, False, bounds, needed, reason)
    if low is not None and low >= -metric.margin:
        reason = f"{about}, at worst {_change(low)}: within the margin of {_percent(metric.margin)}."
        return Check(name, True, bounds, needed, reason)
    if low is None or estimate is None:
        reason = (
            f"{about}, with no bound on how much worse: the logging policy's value is 0, or too few users follow the "
            f"policy to the end, so the margin of {_percent(metric.margin)} cannot be checked. A smaller rollout share "
            "or more exploration in the log would lift it."
        )
        return Check(name, None, bounds, needed, reason)
    reason = (
        f"{about}, at worst {_change(low)}: the margin of {_percent(metric.margin)} is not excluded. "
        f"{_more_users(estimate, low, -metric.margin, users)}"
    )
    return Check(name, None, bounds, needed, reason)


def _improves(metrics: Mapping[str, GuardedMetric], differences: Mapping[str, Mapping[str, Any]], users: int) -> Check:
    (name,) = (name for name, metric in metrics.items() if metric.improve)
    estimate, low, _ = _signed(metrics[name], differences[name])
    found = {name: {"relative": differences[name]["relative"], "worst": low}}
    needed = f"better than the logging policy in {name}"
    if low is not None and low > 0:
        reason = f"improvement: {name} at least {_change(low)}, where more than 0% is needed."
        return Check("improvement", True, found, needed, reason)
    if low is None or estimate is None:
        text = f"{name} is estimated {_change(estimate)} with no bound below."
    else:
        more = _more_users(estimate, low, 0.0, users)
        text = f"{name} is estimated {_change(estimate)}, at worst {_change(low)}. {more}"
    return Check("improvement", None, found, needed, f"improvement: none is shown. {text}")


def _more_users(estimate: float, low: float, bound: float, users: int) -> str:
    """What would lift an undecided bound, from half-widths that shrink with the root of the number of users."""
    if estimate <= bound:
        return "The estimate itself lies there, so that more data alone is unlikely to help: another policy would."
    factor = ((estimate - low) / (estimate - bound)) ** 2
    return (
        f"About {math.ceil(users * factor / 100) * 100:,} users instead of {users:,} would do, if the estimate holds."
    )


def _enough_weight(found: Mapping[str, float], config: GateConfig, users: int) -> Check:
    ess = found["ess"]
    reason = f"effective sample size: {ess:.0f} of {users:,} users, {config.min_ess:g} needed"
    if ess >= config.min_ess:
        return Check("ess", True, ess, f"at least {config.min_ess:g} users", reason + ".")
    if ess > 0.9 * users:
        return Check(
            "ess", None, ess, f"at least {config.min_ess:g} users", reason + ". Only more users would lift it."
        )
    reason += (
        f" (the largest is {_percent(found['largest_weight'])} of all). A smaller rollout share, a longer log or "
        "more exploration in it would lift it."
    )
    return Check("ess", None, ess, f"at least {config.min_ess:g} users", reason)


def _enough_support(found: Mapping[str, float], config: GateConfig, per: str) -> Check:
    unit = "user-weeks" if per == "week" else "decisions"
    needed = f"at least {_percent(config.min_support)} of {unit}"
    share = _percent(found["support"])
    reason = f"support: in {share} of {unit} the log could have shown what the policy does, {needed} needed."
    if found["support"] >= config.min_support:
        return Check("support", True, found["support"], needed, reason)
    return Check("support", None, found["support"], needed, reason + " More exploration in the log would lift it.")


def _calibrated(found: Mapping[str, float], calibration: Mapping[str, Any], config: GateConfig) -> Check:
    """No mean weight, the candidate's or an action's, differs from 1 by more than the limit and more than noise."""
    means = {"the candidate's weights": (found["mean_weight"], found["mean_weight_se"])}
    for name, each in calibration["actions"].items():
        means[f"the weights of {name!r}"] = (each["mean_weight"], each["se"])
    limit = config.max_calibration_error
    off = {name: pair for name, pair in means.items() if abs(pair[0] - 1) > max(limit, NOISE * pair[1])}
    figures = {name: mean for name, (mean, _) in means.items()}
    needed = f"mean weights within {limit:g} of 1, or of noise"
    if not off:
        return Check("calibration", True, figures, needed, f"calibration: all {needed}.")
    text = ", ".join(f"{name} have mean {mean:.3f} (standard error {error:.3f})" for name, (mean, error) in off.items())
    reason = (
        f"calibration: {text} where 1 is expected within {limit:g}. Either the recorded propensities are not those of "
        "the draws, or the log never takes an action that is legal: correct how they are logged, or the legal actions."
    )
    return Check("calibration", None, figures, needed, reason)


def _logged_propensities(found: Mapping[str, int]) -> Check:
    estimated = found["estimated"]
    if estimated == 0:
        return Check("propensities", True, 0, "none estimated", "propensities: all logged.")
    reason = (
        f"propensities: {estimated:,} of {found['decisions']:,} are estimated, where 0 may be: something unseen may "
        "have driven the choice. Logged propensities or an experiment would lift it."
    )
    return Check("propensities", None, estimated, "none estimated", reason)


def _largest_share(evaluation: Mapping[str, Any], config: GateConfig, users: int) -> float | None:
    mixtures = evaluation["mixtures"].get(config.candidate, {})
    largest = None
    for share in sorted(config.shares):
        mixture = mixtures.get(str(float(share)))
        if mixture is None or _judge_one(mixture, evaluation, config, users).verdict != "PROMOTE":
            break
        largest = share
    return largest


def _reasons(judgement: Judgement, share: float | None, config: GateConfig) -> list[str]:
    """What decided; for a promotion every check, for the others also what could be rolled out instead."""
    if judgement.verdict == "PROMOTE":
        return [check.reason for check in judgement.checks]
    refused = judgement.verdict == "REFUSE"
    decided = judgement.metrics if refused else judgement.checks
    reasons = [check.reason for check in decided if (check.passed is False if refused else not check.passed)]
    if share is not None:
        return [*reasons, f"A first rollout of {config.candidate} at share {share:g} passes every check."]
    tried = ", ".join(f"{each:g}" for each in sorted(config.shares))
    return [*reasons, f"No rollout share of {config.candidate} among {tried} passes every check from the smallest up."]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _change(value: float | None) -> str:
    """A signed share, more being better, in words."""
    if value is None:
        return "an unknown amount better or worse"
    return f"{_percent(abs(value))} {'better' if value >= 0 else 'worse'}"
