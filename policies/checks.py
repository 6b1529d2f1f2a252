"""What the gate checks, one function to a condition; each reason says what was found and what would lift it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from policies.rules import GateConfig, GuardedMetric

MOST_TIMES = 100.0
"""Times as many users beyond which asking for more is no advice."""
NOISE = 3.0
"""Standard errors within which a distance is taken for noise."""


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


def signed(metric: GuardedMetric, difference: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """(estimate, low, high) of the relative difference, more being better."""
    estimate, low, high = (difference[key] for key in ("relative", "relative_gate_low", "relative_gate_high"))
    if metric.direction == "up":
        return estimate, low, high
    turned = [None if value is None else -value for value in (estimate, high, low)]
    return turned[0], turned[1], turned[2]


def within_margin(
    name: str, metric: GuardedMetric, difference: Mapping[str, Any], users: int, withheld: str | None = None
) -> Check:
    estimate, low, high = signed(metric, difference)
    needed = f"at most {_percent(metric.margin)} worse than the logging policy; {metric.direction} is better"
    bounds = {"relative": difference["relative"], "worst": low, "best": high, "margin": metric.margin}
    about = f"{name}: estimated {_change(estimate)} than the logging policy"
    if high is not None and high < -metric.margin:
        reason = (
            f"{about}, at best {_change(high)}: beyond the margin of {_percent(metric.margin)}. Only another policy, a "
            "smaller rollout share or a wider margin would change this."
        )
        return Check(name, False, bounds, needed, reason)
    if estimate is not None and low is not None and low >= -metric.margin:
        reason = f"{about}, at worst {_change(low)}: within the margin of {_percent(metric.margin)}."
        return Check(name, True, bounds, needed, reason)
    if low is None or estimate is None:
        why = withheld or "the logging policy's value is 0, or too few users follow the policy to the end"
        reason = (
            f"{about}, with no bound on how much worse: {why}, so the margin of {_percent(metric.margin)} cannot be "
            "checked. A smaller rollout share or more exploration in the log would lift it."
        )
        return Check(name, None, bounds, needed, reason)
    reason = (
        f"{about}, at worst {_change(low)}: the margin of {_percent(metric.margin)} is not excluded. "
        f"{_more_users(estimate, low, -metric.margin, users)}"
    )
    return Check(name, None, bounds, needed, reason)


def improves(metrics: Mapping[str, GuardedMetric], differences: Mapping[str, Mapping[str, Any]], users: int) -> Check:
    (name,) = (name for name, metric in metrics.items() if metric.improve)
    estimate, low, _ = signed(metrics[name], differences[name])
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
    half = estimate - low
    if estimate + half < bound:
        return "The estimate itself lies there, so that more data alone is unlikely to help: another policy would."
    if estimate <= bound:
        return f"The estimate itself lies there, but within its own noise: only more than {users:,} users can tell."
    factor = (half / (estimate - bound)) ** 2
    if factor > MOST_TIMES:
        return (
            f"Even {MOST_TIMES:g} times the {users:,} users would not tell them apart, if the estimate holds: another "
            "policy would."
        )
    return (
        f"About {math.ceil(users * factor / 100) * 100:,} users instead of {users:,} would do, if the estimate holds."
    )


def enough_weight(found: Mapping[str, float], config: GateConfig, users: int) -> Check:
    ess = found["ess"]
    reason = f"effective sample size: {ess:.0f} of {users:,} users, {config.min_ess:g} needed"
    if ess >= config.min_ess:
        return Check("ess", True, ess, f"at least {config.min_ess:g} users", reason + ".")
    if ess > 0.9 * users:
        return Check(
            "ess", None, ess, f"at least {config.min_ess:g} users", reason + ". Only more users would lift it."
        )
    reason += f" (the largest is {_percent(found['largest_weight'])} of all). {_more_overlap(found, config, users)}"
    return Check("ess", None, ess, f"at least {config.min_ess:g} users", reason)


def enough_support(found: Mapping[str, float], config: GateConfig, per: str) -> Check:
    unit = "user-weeks" if per == "week" else "decisions"
    needed = f"at least {_percent(config.min_support)} of {unit}"
    share = _percent(found["support"])
    reason = f"support: in {share} of {unit} the log could have shown what the policy does, {needed} needed."
    if found["support"] >= config.min_support:
        return Check("support", True, found["support"], needed, reason)
    return Check("support", None, found["support"], needed, reason + " More exploration in the log would lift it.")


def calibrated(found: Mapping[str, float], calibration: Mapping[str, Any], config: GateConfig) -> Check:
    """No mean weight, the candidate's or an action's, differs from 1 by more than the limit and more than noise."""
    means = {"the candidate's weights": (found["mean_weight"], found["mean_weight_se"])}
    for name, each in calibration["actions"].items():
        means[f"the weights of {name!r}"] = (each["mean_weight"], each["se"])
    limit = config.max_calibration_error
    off = {
        name: (mean, error)
        for name, (mean, error) in means.items()
        if not (math.isfinite(error) and abs(mean - 1) <= max(limit, NOISE * error))
    }
    figures = {name: mean for name, (mean, _) in means.items()}
    needed = f"mean weights within {limit:g} of 1, or of noise"
    if not off:
        return Check("calibration", True, figures, needed, f"calibration: all {needed}.")
    text = ", ".join(f"{name} have mean {mean:.3f} (standard error {error:.3f})" for name, (mean, error) in off.items())
    if set(off) == {"the candidate's weights"} and calibration["actions"] and found["ess"] < config.min_ess:
        reason = (
            f"calibration: {text} where 1 is expected within {limit:g}, but the weights of every action are right, so "
            "that the logged propensities look right too: too few users follow the policy for this to be judged. A "
            'smaller rollout share, or evaluate.per = "decision" where that is the question, would lift it.'
        )
        return Check("calibration", None, figures, needed, reason)
    reason = (
        f"calibration: {text} where 1 is expected within {limit:g}. Either the recorded propensities are not those of "
        "the draws, or the log never takes an action that is legal: correct how they are logged, or the legal actions."
    )
    return Check("calibration", None, figures, needed, reason)


def _more_overlap(found: Mapping[str, Any], config: GateConfig, users: int) -> str:
    """What would lift an effective sample size: fewer choices of its own, more users, more exploration."""
    ways = ["A smaller rollout share would lift it"]
    if found["ess"] >= 1:
        needed = math.ceil(users * config.min_ess / found["ess"] / 100) * 100
        if needed <= MOST_TIMES * users:
            ways.append(f"so would about {needed:,} users instead of {users:,}")
    explored = {float(share): ess for share, ess in found.get("ess_if_explored", {}).items()}
    enough = [share for share in sorted(explored) if explored[share] >= config.min_ess]
    if enough:
        ways.append(
            f"or a log that draws {_percent(enough[0], 0)} of its decisions uniformly, with which it would be about "
            f"{explored[enough[0]]:.0f}"
        )
    return ", ".join(ways) + "."


def logged_propensities(found: Mapping[str, int], gamma: Mapping[str, Any] | None) -> Check:
    """None was estimated; where some were, `gamma` tells the hidden confounding that would turn what they say."""
    estimated = found["estimated"]
    if estimated == 0:
        return Check("propensities", True, 0, "none estimated", "propensities: all logged.")
    turned = "" if gamma is None else f" {gamma['words']}"
    reason = (
        f"propensities: {estimated:,} of {found['decisions']:,} are estimated, where 0 may be: something unseen may "
        f"have driven the choice.{turned} Logged propensities or an experiment would lift it."
    )
    return Check("propensities", None, estimated, "none estimated", reason)


def estimators_agree(policy: Mapping[str, Any], config: GateConfig) -> Check:
    """No other consistent estimator differs from the gate's, in a guarded metric, by more than its margin and noise."""
    compared = {
        (name, metric): (figure["relative"], figure["se"])
        for name, metrics in policy.get("disagreement", {}).items()
        for metric, figure in metrics.items()
        if metric in config.metrics
    }
    needed = f"others within the margin of {config.estimator}, or within noise"
    others: Mapping[str, Any] = policy.get("disagreement", {})
    silent = [
        f"{name} has no {metric}"
        for name, metrics in others.items()
        for metric in config.metrics
        if metric not in metrics
    ]
    if not others or silent:
        what = ", ".join(silent) if silent else f"nothing stands beside {config.estimator}"
        reason = (
            f"estimators: {what}, so that nothing can contradict it: the log does not follow the policy far enough, or "
            "the logging policy has none of it. A smaller rollout share or more users would lift it."
        )
        return Check("estimators", None, None, needed, reason)
    error = (1 - config.confidence) / len(compared)
    noise = NormalDist().inv_cdf(1 - error / 2)
    found = max(abs(relative) for relative, _ in compared.values())
    off = {
        place: relative
        for place, (relative, se) in compared.items()
        if not abs(relative) <= max(config.metrics[place[1]].margin, noise * se)
    }
    if not off:
        return Check(
            "estimators", True, found, needed, f"estimators: {needed}; the furthest lies {_percent(found)} off."
        )
    text = "; ".join(
        f"{name} puts {metric} {_percent(abs(relative))} {'above' if relative > 0 else 'below'} {config.estimator}"
        for (name, metric), relative in off.items()
    )
    reason = (
        f"estimators: {text}, more than the margin and more than noise. They agree in the long run where propensities "
        "are right: more users or a smaller rollout share would bring them together, if propensities are."
    )
    return Check("estimators", None, found, needed, reason)


def no_segment_harmed(policy: Mapping[str, Any], config: GateConfig) -> Check:
    """No part of the users is shown to lose more than a margin, at a confidence divided among parts and metrics."""
    parts: Mapping[str, Any] = policy.get("segments", {})
    if config.segments and not any(each["metrics"] for each in parts.values()):
        reason = (
            f"segments: nothing is known by {', '.join(config.segments)}: all users are alike in it, or too few of "
            "them follow the policy. Name features by which users differ, or log more users."
        )
        return Check("segments", None, None, "no segment shown to lose more than a margin", reason)
    asked = [(part, metric) for part in parts for metric in config.metrics if metric in parts[part]["metrics"]]
    z = NormalDist().inv_cdf(1 - (1 - config.confidence) / max(len(asked), 1))
    needed = "no segment shown to lose more than a margin"
    harmed = []
    for part, metric in asked:
        figure, rule = parts[part]["metrics"][metric], config.metrics[metric]
        better = figure["relative"] if rule.direction == "up" else -figure["relative"]
        if not better + z * figure["se"] >= -rule.margin:
            harmed.append(
                f"{metric} of the {parts[part]['users']:,} users with {part} is {_change(better)}, at best "
                f"{_change(better + z * figure['se'])}"
            )
    if not harmed:
        dark = len(parts) * len(config.metrics) - len(asked)
        count = f"{len(parts)} segments" if parts else "none asked for (gate.segments)"
        count += f", of which the log cannot say {dark} figures" if dark else ""
        return Check("segments", True, 0, needed, f"segments: {needed}; {count}.")
    reason = (
        f"segments: {'; '.join(harmed)}. A rollout that leaves these users to the logging policy, or a policy trained "
        "with more weight on what they lose, would lift it."
    )
    return Check("segments", None, len(harmed), needed, reason)


def unknown_seeds() -> Check:
    """Of a learned policy of whose seeds nothing was told."""
    reason = "seeds: nothing is said of other seeds of this learner; evaluate it as `tactful evaluate` does."
    return Check("seeds", None, None, "two seeds or more that agree", reason)


def seeds_agree(found: Mapping[str, Any], config: GateConfig) -> Check:
    """Seeds of one learner choose alike, none diverged, and none is clearly worse than the logging policy.

    `found`: agreement (share of validation choices, null with one seed), gains [{gain, standard_error}] of every seed
    on the validation split, stopped (why seeds diverged).
    """
    agreement = found["agreement"]
    needed = f"two seeds or more, agreeing at {_percent(config.min_agreement, 0)} of choices, none worse than the log"
    if agreement is None and not found["stopped"]:
        reason = "seeds: one seed cannot say whether another would act alike; train with train.seeds = 2 or more."
        return Check("seeds", None, None, needed, reason)
    wrong = []
    if found["stopped"]:
        wrong.append(f"{len(found['stopped'])} of them diverged")
    if agreement is not None and agreement < config.min_agreement:
        wrong.append(f"others choose as this one at {_percent(agreement, 1)} of validation choices")
    worse = [
        each
        for each in found["gains"]
        if each["gain"] is not None and each["gain"] + NOISE * each["standard_error"] < 0
    ]
    if worse:
        wrong.append(f"{len(worse)} of {len(found['gains'])} are worse than the logging policy on validation users")
    if not wrong:
        reason = f"seeds: the others choose as this one at {_percent(agreement or 0.0, 1)} of validation choices."
        return Check("seeds", True, agreement, needed, reason)
    reason = (
        f"seeds: {', and '.join(wrong)}: what is learned depends on luck. More data, more updates, a lower learning "
        "rate or a larger alpha would lift it."
    )
    return Check("seeds", None, agreement, needed, reason)


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}%"


def _change(value: float | None) -> str:
    """A signed share, more being better, in words."""
    if value is None:
        return "an unknown amount better or worse"
    return f"{_percent(abs(value))} {'better' if value >= 0 else 'worse'}"
