"""Policies x estimators x reward components, one table."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.answers import Answer, Answers, tallied
from policies.base import Booleans, Floats, Policy
from policies.baselines import LoggingPolicy
from policies.evidence import confounding, disagreement, relative_difference
from policies.named import Recorded
from policies.ope.bernstein import Capped, check_most, most_per_user
from policies.ope.diagnostics import FEW_CLUSTERS, Weights
from policies.ope.fqe import FitQ, fit_all
from policies.ope.intervals import one_sided
from policies.ope.on_policy import on_policy
from policies.ope.sample import check_chance, check_propensities, check_rewards
from policies.ope.target import Target
from policies.rowset import CTR, EvaluateConfig, Levels, Metrics
from policies.rules import GateConfig
from policies.tally import Key, LogTally, Part, Plan
from policies.values import fits_of

LOGGING = LoggingPolicy().name
UNWEIGHTED, ONE_STEP = ("fqe",), ("ips", "mis")
"""Estimators that no weights enter, and those whose weights are of one decision each."""


def evaluate(
    table: Transitions,
    policies: Sequence[Policy | LoggingPolicy],
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    progress: bool = True,
    tried: int = 1,
    alone: str | None = None,
    along: Mapping[str, float] | None = None,
    fit: FitQ | None = None,
    returns: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Each of `policies` and the logging policy by every estimator and component, as plain numbers ready for JSON.

    Per week V = 7 E_u[sum_k r_k] / E_u[sum_k Delta_k], the policy acting from a user's first row to the last and
    the log's decision times held fixed; per decision V = mean reward of a row, the policy at that row only. Raw
    units per user-week or decision; CTR clicks per send. Policies that learned nothing are evaluated on all rows,
    with value functions fitted on the other of two folds of users; learned ones on the test split, with value
    functions fitted on train and validation. Warm-up rows take part: they train no policy, but they happened.
    `tried` is how many candidates this test split has judged, this one included; they share the gate's confidence.
    `alone` names the policy that the mixtures at the gate's shares mix with the logging policy: by default the
    candidate, else what the candidate is without the part of the logging policy that it is deployed with. `along`
    names those of `policies` that are the candidate at other prices lambda of its range, which stand in `ranges` beside
    their lambda instead of among the policies. `returns` names weighted sums of components (weight per raw unit): what
    the judged policies gain in each over logging, by the gate's estimator, stands in `returns`. `fit` solves for the
    value functions; by default `models.fqe.fit_fqe`.

    Where one user holds half of a policy's weight or more, `withheld` has the reason and estimates by weights are null.
    `clusters` says what the intervals resample: users, or rows where none has two; `warnings` what to know first.

    Raises InputError for propensities that are unknown, out of range or all 1, rewards that are no number or more than
    a decision may bring, a policy that names itself twice or gives no probabilities, a split without users, too few
    resamples for the gate's level.
    """
    policies = list(policies)
    check_propensities(table)
    check_rewards(table)
    check_most(table, config.most_per_decision)
    plan = plan_of(table, policies, config, gate, seed, tried, alone, tuple(along or ()))
    targets = {policy.name: Target.of(policy, table) for policy in asked_about(policies)}
    q = _value_functions(table, targets, plan, fit or default_fit(config.fqe_steps, seed, progress))
    whole = Part.of(table, plan, targets, lambda key: q[plan.same(key)])
    return evaluation(plan, policies, tried, *tallied(plan, [whole]), whole, along, returns)


def asked_about(policies: Sequence[Policy | LoggingPolicy]) -> list[Policy]:
    """Those but the logging policy, whose own rows value it."""
    return [policy for policy in policies if not isinstance(policy, LoggingPolicy)]


def plan_of(
    table: Transitions,
    policies: Sequence[Policy | LoggingPolicy],
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    tried: int = 1,
    alone: str | None = None,
    along: Sequence[str] = (),
    step: int | None = None,
) -> Plan:
    """What `evaluate` asks, cut where `table` says. Raises InputError as it and `Plan.of` do."""
    asked = asked_about(policies)
    names = [LOGGING, *(policy.name for policy in asked)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"policies: {repeated} named more than once; name each once.")
    levels = Levels((1 - config.confidence) / 2, one_sided(gate.confidence, tried, config.resamples))
    return Plan.of(table, asked, config, gate, seed, levels, alone, along, step)


def default_fit(steps: int, seed: int, progress: bool) -> FitQ:
    """`models.fqe.fit_fqe`, undiscounted, with `steps` updates."""
    # Executors read this file too, and have no torch.
    from models.fqe import fit_fqe

    def fit(
        table: Transitions, rows: Booleans, ahead: NDArray[np.float32], extra: NDArray[np.float32] | None
    ) -> NDArray[np.float64]:
        return fit_fqe(table, rows, ahead, steps, None, extra, seed, progress=progress)()

    return fit


def _value_functions(table: Transitions, targets: Mapping[str, Target], plan: Plan, fit: FitQ) -> dict[Key, Floats]:
    """Q [N, A, K] of every policy and mixture."""
    fits = fits_of(table, targets, plan)
    return dict(zip(fits, fit_all(table, list(fits.values()), plan.config.per == "week", fit), strict=True))


def evaluation(
    plan: Plan,
    policies: Sequence[Policy | LoggingPolicy],
    tried: int,
    log: LogTally,
    answers: Answers,
    sample: Part,
    along: Mapping[str, float] | None = None,
    returns: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What `evaluate` returns, from the answers to every question of the plan.

    `sample` is where the plan's cuts and the value functions come from, and where confounding is looked at, which needs
    the rows in order: where it is not the whole log, `warnings` has how much of it.

    Raises InputError where nothing was left to chance.
    """
    check_chance(log.choices, log.chances)
    study = Study(plan, log, answers, sample, returns or {})
    logged, units = study.logged("all"), {**plan.contract.units, CTR: "clicks per send"}
    described = _describe_policies(study)
    return {
        "per": plan.config.per,
        "unit": f"per {'user-week' if plan.config.per == 'week' else 'decision'}",
        "components": list(logged),
        "units": {name: units.get(name, "") for name in logged},
        "confidence": plan.config.confidence,
        "gate_confidence": 1 - plan.levels.gate,
        "tried": tried,
        "resamples": plan.config.resamples,
        "propensities": {"decisions": log.decisions, "estimated": log.estimated},
        "policies": described,
        "clusters": "users" if log.users < log.decisions else "rows",
        "warnings": _warnings(study, policies, described),
        "row_sets": {
            rows: {"users": each.users, "decisions": each.decisions, "left_out": each.left_out}
            for (rows, key), each in answers.items()
            if key is None
        },
        "logging_by_rows": {
            rows: {metric: plan.levels.interval(values) for metric, values in each.logged.items()}
            for (rows, key), each in answers.items()
            if key is None
        },
        "contrasts": _contrasts(study),
        "mixtures": {
            plan.gate.candidate: {str(share): _described(study, "test", share, judged=True) for share in plan.shares}
        },
        "ranges": {
            plan.gate.candidate: {
                name: {"lambda": price, **_described(study, "test", name, judged=True)}
                for name, price in (along or {}).items()
            }
        },
        "weights": {
            name: study.answer(plan.row_set_of(name), name).facts["weights"].histogram()
            for name in plan.names
            if name not in plan.along
        },
        "calibration": log.calibration.plain(plan.contract.actions),
    }


@dataclass(frozen=True)
class Study:
    """Everything one evaluation compares."""

    plan: Plan
    log: LogTally
    answers: Answers
    sample: Part
    returns: Mapping[str, Mapping[str, float]]
    """Weighted sums of components, by name."""

    def answer(self, rows: str, key: Key | None) -> Answer:
        return self.answers[rows, None if key is None else self.plan.same(key)]

    def logged(self, rows: str) -> Metrics:
        return self.answers[rows, None].logged


def _describe_policies(study: Study) -> dict[str, Any]:
    """Every policy; `trusted` where the log follows it far enough for its intervals to mean what they say."""
    plan, everybody = study.plan, study.answer("all", None)
    logged = {metric: plan.levels.interval(values) for metric, values in everybody.logged.items()}
    found: dict[str, Any] = {
        LOGGING: {
            "rows": "all",
            "users": everybody.users,
            "decisions": everybody.decisions,
            "learned": False,
            "estimates": {"on_policy": logged},
            "diagnostics": {**everybody.facts["weights"].diagnostics(), "support": 1.0},
            "withheld": {},
            "trusted": True,
            "truth": None,
        }
    }
    for name in (name for name in plan.names if name not in plan.along):
        rows = plan.row_set_of(name)
        answer = study.answer(rows, name)
        found[name] = {
            "rows": rows,
            "users": answer.users,
            "decisions": answer.decisions,
            "learned": name in plan.learned,
            **_described(study, rows, name, judged=name == plan.gate.candidate),
            "truth": None,
        }
    return found


def _described(study: Study, rows: str, key: Key, judged: bool) -> dict[str, Any]:
    """Estimates, how far the log follows the policy and, where it is to be judged, what else the gate asks."""
    plan, answer = study.plan, study.answer(rows, key)
    gate, facts = plan.gate, answer.facts
    withheld = _withheld(answer)
    estimates = plan.levels.against_logging(answer.estimates, answer.logged)
    diagnosed: dict[str, Any] = {**facts["weights"].diagnostics(), "support": facts["support"].share()}
    found: dict[str, Any] = {
        "estimates": {name: _nulls(each) if name in withheld else each for name, each in estimates.items()},
        "withheld": withheld,
        "floors": _floors(facts["capped"], plan),
        "diagnostics": diagnosed,
        "trusted": bool(diagnosed["ess"] >= gate.min_ess),
    }
    if not judged:
        return found
    diagnosed["ess_if_explored"] = facts["explored"].ess()
    shown = {name: metrics for name, metrics in answer.estimates.items() if name not in withheld}
    if study.returns and gate.estimator in answer.estimates:
        weighed = {
            name: plan.levels.difference(
                _weighted(answer.estimates[gate.estimator], weights), _weighted(answer.logged, weights)
            )
            for name, weights in study.returns.items()
        }
        found["returns"] = _nulls(weighed) if gate.estimator in withheld else weighed
    if gate.estimator in shown:
        found["disagreement"] = disagreement(shown, answer.logged, gate.estimator, plan.config.per)
        found["segments"] = {
            label: {
                "users": each.users,
                "metrics": relative_difference(each.estimates[gate.estimator], each.logged),
            }
            for label, each in answer.segments.items()
        }
    if study.log.estimated and key == gate.candidate:
        found["confounding"] = _confounding(study, rows, key)
    return found


def _weighted(metrics: Metrics, weights: Mapping[str, float]) -> Floats:
    """[R + 1] sum of weight x component: estimates are linear in the reward, so that it is the estimate of the sum."""
    found: Floats = np.sum([weight * metrics[name] for name, weight in weights.items()], axis=0)
    return found


def _floors(capped: Capped, plan: Plan) -> dict[str, float]:
    """Of the components that are bounded, what V(pi) exceeds but for the gate's chance, at any sample size."""
    components = plan.contract.rewards
    most = most_per_user(capped.rows, capped.days, components, plan.config.most_per_decision)
    found = capped.floor(most, plan.levels.gate)
    return {name: float(low) for name, low in zip(components, found, strict=True) if np.isfinite(low)}


def _confounding(study: Study, rows: str, key: Key) -> dict[str, Any]:
    """The bounds of hidden confounding, from the rows that are held."""
    held, plan = study.sample, study.plan
    row_set = held.sets[rows]
    target = plan.target(held.targets, key, held.table)
    logged = row_set.metrics(on_policy(row_set.sample))
    return confounding(row_set, held.table.estimated, target, logged)


def _withheld(answer: Answer) -> dict[str, str]:
    """Of its estimators, those that must not be shown, and why: too few users carry the weights."""
    weights: Weights = answer.facts["weights"]
    reasons = {each: weights.too_few_carry(answer.users, each) for each in (False, True)}
    found = {name: reasons[name in ONE_STEP] for name in answer.estimates if name not in UNWEIGHTED}
    return {name: reason for name, reason in found.items() if reason is not None}


def _nulls(found: Any) -> Any:
    """The same with null for every figure."""
    return {key: _nulls(value) for key, value in found.items()} if isinstance(found, dict) else None


def _warnings(
    study: Study, policies: Sequence[Policy | LoggingPolicy], described: dict[str, dict[str, Any]]
) -> list[str]:
    """What a reader must know before any figure; tells in `described` how a table of another log came about."""
    found = []
    few = {each.users for each in study.answers.values() if each.users < FEW_CLUSTERS}
    if few:
        found.append(
            f"Intervals resample {' and '.join(map(str, sorted(few)))} users: with fewer than "
            f"{FEW_CLUSTERS} they are likely too narrow, and no level is promised."
        )
    held = len(study.sample.table.user_id)
    if held < study.log.users:
        found.append(
            f"Value functions, fitted baselines, the cuts of bins and segments and the bounds of confounding come from "
            f"{held:,} of {study.log.users:,} users (evaluate.fit_rows); every estimate, interval and diagnostic is of "
            "all."
        )
    for policy in policies:
        if isinstance(policy, Recorded):
            described[policy.name]["recorded"] = dict(policy.told)
            found += policy.warnings()
    for name, each in described.items():
        for reason in dict.fromkeys(each["withheld"].values()):
            names = ", ".join(estimator for estimator, why in each["withheld"].items() if why == reason)
            found.append(f"{name}: {reason}, so there is no estimate of it by weights ({names}).")
    return found


def _contrasts(study: Study) -> list[dict[str, Any]]:
    """Each pair of policies that learned nothing, later against earlier, over all rows and over those with a choice."""
    plan, found = study.plan, []
    for rows in (rows for rows in ("all", "choice") if (rows, None) in study.answers and len(plan.plain) > 1):
        answers = {name: study.answer(rows, name) for name in plan.plain}
        withheld = {name: _withheld(answer) for name, answer in answers.items()}
        for against, policy in itertools.combinations(plan.plain, 2):
            pair = {
                estimator: {
                    metric: plan.levels.interval(answers[policy].estimates[estimator][metric] - base)
                    for metric, base in metrics.items()
                }
                for estimator, metrics in answers[against].estimates.items()
            }
            kept_back = withheld[policy].keys() | withheld[against].keys()
            shown = {name: _nulls(each) if name in kept_back else each for name, each in pair.items()}
            found.append({"policy": policy, "against": against, "rows": rows, "estimates": shown})
    return found
