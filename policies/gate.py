"""Promote, refuse or inconclusive, with reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.errors import InputError
from policies.checks import (
    Check,
    calibrated,
    enough_support,
    enough_weight,
    estimators_agree,
    improves,
    logged_propensities,
    no_segment_harmed,
    seeds_agree,
    unknown_seeds,
    within_margin,
)
from policies.hacking import warnings, watched
from policies.rules import GateConfig

WORSE = ("PROMOTE", "INCONCLUSIVE", "REFUSE")
"""Verdicts, each worse than the one before."""
NARROW = "Narrow policy.volume_range, then train and judge again."


@dataclass(frozen=True)
class Judgement:
    """The checks of one policy."""

    metrics: tuple[Check, ...]
    """Harm and safety of each guarded metric."""
    improvement: Check
    evidence: tuple[Check, ...]
    """Whether the log can carry a verdict at all."""
    cautions: tuple[Check, ...]
    """What keeps from promoting, and excuses no harm."""

    @property
    def checks(self) -> tuple[Check, ...]:
        return (*self.metrics, self.improvement, *self.evidence, *self.cautions)

    @property
    def verdict(self) -> Literal["PROMOTE", "REFUSE", "INCONCLUSIVE"]:
        # Evidence too weak to promote on is too weak to accuse on.
        evident = all(check.passed for check in self.evidence)
        if evident and any(check.passed is False for check in self.metrics):
            return "REFUSE"
        return "PROMOTE" if all(check.passed for check in self.checks) else "INCONCLUSIVE"


@dataclass(frozen=True)
class Along:
    """The candidate at another price of its range."""

    name: str
    price: float
    judgement: Judgement

    @property
    def called(self) -> str:
        return f"{self.name} (lambda {self.price:.4g})"


def judge(evaluation: dict[str, Any], config: GateConfig, tried: int) -> dict[str, Any]:
    """The verdict on `config.candidate` from the JSON of `policies.evaluate.evaluate`, with every check and its reason.

    With d = (V(pi) - V(mu)) / |V(mu)| signed so that more is better, and its one-sided bounds at confidence 1 - (1
    - confidence) / tried: REFUSE if the upper bound of any guarded metric lies below -margin and the evidence
    holds: effective sample size, support, calibration, agreement of the consistent estimators, and logged (not
    estimated) propensities. PROMOTE if every lower bound is at least -margin, the one marked `improve` lies above 0,
    the evidence holds, no segment is shown to be harmed and, by `evaluation["seeds"]` (None: not asked), other seeds
    choose alike. Else INCONCLUSIVE. `gamma` says, where propensities were estimated, how much hidden confounding would
    turn what the metrics say. `largest_share` is the largest kappa whose mixture (1 - kappa) mu + kappa pi passes the
    same conditions, tried upwards and stopping at the first that does not: a fixed sequence, so the claim as a whole
    keeps the confidence.

    Where the price lambda may be moved, each of `evaluation["ranges"]` is held to the same conditions at the same
    confidence, and the verdict is the worst of them. All must pass for a promotion, so that the chance of promoting
    what harms at some price judged is no larger than at one (an intersection-union test: Berger 1982).

    `warnings` are of learned rewards (`policies.hacking`): they stand in the reasons and change no verdict, as what
    harms is for the guarded metrics to say.

    Raises InputError where nothing is guarded, the candidate or a metric was not evaluated, a candidate that learned
    was not evaluated on the test split, or the bounds were computed for another number of candidates.
    """
    _check_inputs(evaluation, config, tried)
    policy = evaluation["policies"][config.candidate]
    judgement = _judge_one(policy, evaluation, config, policy["users"])
    share = _largest_share(evaluation, config, policy["users"])
    along = [
        Along(name, each["lambda"], _judge_one(each, evaluation, config, policy["users"]))
        for name, each in evaluation.get("ranges", {}).get(config.candidate, {}).items()
    ]
    checks = (*judgement.checks, *([_whole_range(along)] if along else []))
    learned = watched(evaluation, config)
    warned = [each for name, told in learned.items() for each in warnings(name, told, config)]
    return {
        "verdict": max((each.verdict for each in (judgement, *(point.judgement for point in along))), key=WORSE.index),
        "candidate": config.candidate,
        "reasons": [*_reasons(judgement, along, share, config), *(f"Warning: {each.reason}" for each in warned)],
        "checks": [check.plain() for check in checks],
        "learned_rewards": learned,
        "warnings": [each.plain() for each in warned],
        "largest_share": share,
        "gamma": turning_gamma(policy, config),
        "confidence": 1 - (1 - config.confidence) / tried,
        "tried": tried,
    }


def check_guarded(config: GateConfig) -> None:
    """Raise InputError where no metric is guarded: a verdict would guard nothing."""
    if not config.metrics:
        raise InputError("gate.metrics is empty; name the metrics to guard, each with direction and margin.")


def _check_inputs(evaluation: dict[str, Any], config: GateConfig, tried: int) -> None:
    check_guarded(config)
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
    withheld = policy.get("withheld", {}).get(config.estimator)
    return Judgement(
        metrics=tuple(
            within_margin(name, metric, differences[name], users, withheld) for name, metric in config.metrics.items()
        ),
        improvement=improves(config.metrics, differences, users),
        evidence=(
            enough_weight(policy["diagnostics"], config, users),
            enough_support(policy["diagnostics"], config, evaluation["per"]),
            calibrated(policy["diagnostics"], evaluation["calibration"], config),
            estimators_agree(policy, config),
            logged_propensities(evaluation["propensities"], turning_gamma(policy, config)),
        ),
        cautions=(no_segment_harmed(policy, config), *_seeds(evaluation, config)),
    )


def _seeds(evaluation: Mapping[str, Any], config: GateConfig) -> tuple[Check, ...]:
    """What the seeds say; nothing where they are said not to be asked about, as of a policy that nobody trained."""
    if "seeds" not in evaluation:
        return (unknown_seeds(),) if evaluation["policies"][config.candidate]["learned"] else ()
    return () if evaluation["seeds"] is None else (seeds_agree(evaluation["seeds"], config),)


def turning_gamma(policy: Mapping[str, Any], config: GateConfig) -> dict[str, Any] | None:
    """The least Gamma of the marginal sensitivity model at which what the metrics say is said no more.

    None where no propensity was estimated. {gamma, what, words}: gamma is 1 where the metrics alone neither pass nor
    refuse, and null where it is beyond what was looked at, or `unknown` as a guarded metric has no bounds. It is the
    first Gamma looked at that is at or above the turn. Bounds are shifted by as much as Gamma moves the estimate
    (`policies.evidence.confounding`): sampling error and confounding add up.
    """
    told = policy.get("confounding")
    if told is None:
        return None
    unknown = [name for name in config.metrics if name not in told["metrics"]]
    if unknown:
        words = (
            f"How much hidden confounding they bear is not known: the log has no bounds of {', '.join(unknown)}, as "
            "too few users follow the policy to the end or the logging policy's value is 0."
        )
        return {"gamma": None, "what": "unknown", "words": words}
    differences = {name: policy["estimates"][config.estimator][name]["difference"] for name in config.metrics}
    by_gamma = []
    for step in range(len(told["gamma"])):
        moved = {name: _moved(differences[name], told["metrics"][name], step) for name in config.metrics}
        metrics = [within_margin(name, metric, moved[name], 1) for name, metric in config.metrics.items()]
        by_gamma.append(_says(metrics, improves(config.metrics, moved, 1)))
    first, names = by_gamma[0], {"safe": "safe and better", "harm": "harmful"}
    if first == "neither":
        return {"gamma": 1.0, "what": first, "words": "As they stand, the metrics neither pass nor refuse."}
    turned = next((gamma for gamma, says in zip(told["gamma"], by_gamma, strict=True) if says != first), None)
    most = told["gamma"][-1]
    limit = f"{turned:.2f}" if turned else f"more than {most:g}"
    words = (
        f"If these were right the policy would be {names[first]}; a hidden cause that moves the odds of a choice by a "
        f"factor of {limit} (Gamma) could undo that."
    )
    return {"gamma": turned, "what": first, "words": words}


def _says(metrics: Sequence[Check], improvement: Check) -> str:
    if any(check.passed is False for check in metrics):
        return "harm"
    return "safe" if improvement.passed and all(check.passed for check in metrics) else "neither"


def _moved(difference: Mapping[str, Any], told: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A relative difference whose bounds are moved outward as far as Gamma number `step` moves the estimate."""
    low, high = difference["relative_gate_low"], difference["relative_gate_high"]
    return {
        "relative": difference["relative"],
        "relative_gate_low": None if low is None else low + told["low"][step] - told["low"][0],
        "relative_gate_high": None if high is None else high + told["high"][step] - told["high"][0],
    }


def _largest_share(evaluation: Mapping[str, Any], config: GateConfig, users: int) -> float | None:
    mixtures = evaluation["mixtures"].get(config.candidate, {})
    largest = None
    for share in sorted(config.shares):
        mixture = mixtures.get(str(float(share)))
        if mixture is None or _judge_one(mixture, evaluation, config, users).verdict != "PROMOTE":
            break
        largest = share
    return largest


def _whole_range(along: Sequence[Along]) -> Check:
    """Whether the candidate passes at every price judged."""
    found = {each.name: each.judgement.verdict for each in along}
    needed = "every check held at every price judged"
    if set(found.values()) == {"PROMOTE"}:
        prices = sorted(each.price for each in along)
        reason = (
            f"volume range: every check holds too at {len(along)} other prices, lambda from {prices[0]:.4g} to "
            f"{prices[-1]:.4g}; between them nothing was judged."
        )
        return Check("volume_range", True, found, needed, reason)
    off = ", ".join(each.called for each in along if each.judgement.verdict != "PROMOTE")
    passed = False if "REFUSE" in found.values() else None
    return Check("volume_range", passed, found, needed, f"volume range: not every check holds at {off}. {NARROW}")


def _reasons(judgement: Judgement, along: Sequence[Along], share: float | None, config: GateConfig) -> list[str]:
    """What decided; for a promotion every check, for the others also what could be rolled out instead."""
    failing = [each for each in along if each.judgement.verdict != "PROMOTE"]
    if judgement.verdict == "PROMOTE" and not failing:
        return [check.reason for check in judgement.checks] + ([_whole_range(along).reason] if along else [])
    told = _deciding(judgement)
    reasons = list(told.values())
    for each in failing:
        # What fails at several prices is told of the first; the check of the range names them all.
        found = _deciding(each.judgement)
        reasons += [f"At {each.called}: {reason}" for name, reason in found.items() if name not in told]
        told = {**found, **told}
    if judgement.verdict == "PROMOTE":
        reasons.append(f"At its own lambda {config.candidate} passes every check. {NARROW}")
    where = " at its own lambda" if along else ""
    if share is not None:
        return [*reasons, f"A first rollout of {config.candidate} at share {share:g} passes every check{where}."]
    tried = ", ".join(f"{each:g}" for each in sorted(config.shares))
    none = f"No rollout share of {config.candidate} among {tried} passes every check{where} from the smallest up."
    return [*reasons, none]


def _deciding(judgement: Judgement) -> dict[str, str]:
    """The reasons of a verdict other than PROMOTE, by the name of the check."""
    if judgement.verdict == "PROMOTE":
        return {}
    refused = judgement.verdict == "REFUSE"
    decided = judgement.metrics if refused else judgement.checks
    failed = (check for check in decided if (check.passed is False if refused else not check.passed))
    return {check.name: check.reason for check in failed}
