"""The members of a sweep on the validation split: what each would send and bring, and which of them nobody beats.

The test split stays unseen: it is for the gate, which judges the one that is chosen here. The best of many looks better
than it is, the more so the more there are, and the intervals here are those of each member alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from models.contract import SPLITS
from models.errors import InputError
from models.table import Transitions
from policies.base import Floats, Policy
from policies.evaluate import default_fit
from policies.ope.fqe import Fit, FitQ, fit_all
from policies.ope.on_policy import on_policy
from policies.ope.sample import check_propensities
from policies.ope.target import Target
from policies.pareto import best_within, front
from policies.rowset import CTR, EvaluateConfig, Levels, Metrics, RowSet, quotient

WEIGHTED = "weighted"
"""The metric that is the weighted sum of the components."""
SENDS = "sends"
BESIDE = "wpdis"
"""Told beside the estimator that is quoted."""
ROWS = "validation"


def compare(
    table: Transitions,
    policies: Sequence[Policy],
    config: EvaluateConfig,
    objectives: Mapping[str, Literal["up", "down"]],
    weights: Mapping[str, float],
    estimator: str,
    min_ess: float,
    seed: int,
    progress: bool = True,
    fit: FitQ | None = None,
) -> dict[str, Any]:
    """Each of `policies`, paired with the logging policy, on the validation users; plain numbers ready for JSON.

    Values as by `evaluate`, by `estimator` and by weighted per-decision importance sampling: raw units per
    user-week or decision, the difference from the logging policy, and that as a share of the logging policy's absolute
    value, each {estimate, low, high}. Value functions are fitted on the training users, all as one population.
    `weighted` is sum_c w_c V_c with `weights`. The front is that of `estimator` over `objectives`, among the policies
    that the log follows (`trusted`: an effective sample size of `min_ess` users); all see the same resamples.

    Raises InputError as `evaluate` does, for an objective that is not a metric, and where no user lies in the
    validation split.
    """
    seen = table.where(table.split != SPLITS.index("test"))
    validation = seen.split == SPLITS.index(ROWS)
    if not validation.any():
        raise InputError("sweep: no user lies in the validation split; raise its share in etl.split.")
    check_propensities(seen)
    rows = RowSet.of(seen, validation, config, seed)
    targets = [Target.of(policy, seen) for policy in policies]
    fits = [[Fit(target.probability, ~validation, validation)] for target in targets]
    q = fit_all(seen, fits, config.per == "week", fit or default_fit(config.fqe_steps, seed, progress))
    logged = _weighed(rows.metrics(on_policy(rows.sample)), weights)
    unknown = [name for name in objectives if name not in logged]
    if unknown:
        raise InputError(f"sweep.objectives: {unknown[0]!r} is not a metric (known: {', '.join(logged)}).")
    tail = (1 - config.confidence) / 2
    levels = Levels(tail, tail)
    members, placed = {}, []
    for policy, target, own in zip(policies, targets, q, strict=True):
        estimates = {
            name: _weighed(metrics, weights)
            for name, metrics in rows.estimates(target, own, only=(estimator, BESIDE)).items()
        }
        diagnosed = rows.diagnostics(target)
        trusted = bool(diagnosed["ess"] >= min_ess)
        members[policy.name] = {
            "estimates": {
                by: {name: _figures(values, logged[name], levels) for name, values in metrics.items()}
                for by, metrics in estimates.items()
            },
            "diagnostics": diagnosed,
            "trusted": trusted,
        }
        signed = [estimates[estimator][name] * (1 if way == "up" else -1) for name, way in objectives.items()]
        placed.append(np.stack(signed, axis=-1) if trusted else np.full((len(rows.counts), len(signed)), np.nan))
    on_front, share = front(np.stack(placed, axis=1))
    for member, there, how_often in zip(members.values(), on_front, share, strict=True):
        member |= {"front": bool(there), "front_probability": float(how_often)}
    units = {**table.contract.units, CTR: "clicks per send"}
    return {
        "rows": ROWS,
        "users": rows.sample.users,
        "decisions": rows.sample.decisions,
        "per": config.per,
        "unit": f"per {'user-week' if config.per == 'week' else 'decision'}",
        "components": list(logged),
        "units": {name: units.get(name, "") for name in logged},
        "confidence": config.confidence,
        "resamples": config.resamples,
        "estimator": estimator,
        "min_ess": min_ess,
        "objectives": dict(objectives),
        "weights": dict(weights),
        "logging": {name: levels.interval(values) for name, values in logged.items()},
        "members": members,
    }


def _weighed(metrics: Metrics, weights: Mapping[str, float]) -> Metrics:
    return {**metrics, WEIGHTED: np.sum([weight * metrics[name] for name, weight in weights.items()], axis=0)}


def _figures(values: Floats, logged: Floats, levels: Levels) -> dict[str, Any]:
    """{estimate, low, high} of a metric's replicates [R + 1], and the same of its paired difference from the log's."""
    difference = values - logged
    return {
        **levels.interval(values),
        "difference": levels.interval(difference),
        "relative": levels.interval(quotient(difference, np.abs(logged))),
    }


def pick(
    found: Mapping[str, Any],
    most: float,
    relative: bool = False,
    maximise: str = WEIGHTED,
    bound: Literal["high", "estimate"] = "high",
) -> str:
    """The member that meets a volume budget: of those that send at most `most`, that of the largest `maximise`.

    `found` as by `compare`. `most` is sends per user-week (or decision) or, where `relative`, a share of what the
    logging policy sends. By default the upper end of a member's interval must be within it. Only members that the log
    follows are considered.

    Raises InputError for a budget below 0, a metric that was not evaluated, where no member is followed by the log, and
    where none is within the budget: then it says which sends least.
    """
    for name in (SENDS, maximise):
        if name not in found["components"]:
            raise InputError(f"{name!r} was not evaluated by the sweep (known: {', '.join(found['components'])}).")
    if not most >= 0:
        raise InputError(f"a budget of {most} sends: it must be 0 or more.")
    followed: dict[str, Any] = {
        name: member["estimates"][found["estimator"]] for name, member in found["members"].items() if member["trusted"]
    }
    if not followed:
        largest = max(member["diagnostics"]["ess"] for member in found["members"].values())
        raise InputError(
            f"the log follows none of the {len(found['members'])} members: the largest effective sample size is "
            f"{largest:.0f}, sweep.min_ess is {found['min_ess']:.0f}; lower policy.rollout_share, or give the "
            "validation split more users (etl.split)."
        )
    names = list(followed)
    value = np.array([_known(followed[name][maximise]["estimate"]) for name in names])
    cost = np.array([_sent(followed[name], relative, bound) for name in names])
    place = best_within(value, cost, most)
    if place is not None:
        return names[place]
    least = names[int(np.argmin(np.where(np.isnan(cost), np.inf, cost)))]
    unit = "of what the logging policy sends" if relative else found["unit"]
    fewer = _distrusted(found, most, relative, bound)
    if fewer:
        raise InputError(
            f"no member that the log follows sends at most {most:g} {unit}: of those, {least} sends least, "
            f"{_sent(followed[least], relative, bound):.3g}. {len(fewer)} within the budget cannot be picked, as the "
            f"log follows them too little (†, below sweep.min_ess = {found['min_ess']:g}): {', '.join(fewer)}; lower "
            "policy.rollout_share, or give the validation split more users (etl.split)."
        )
    estimate, high = (_sent(followed[least], relative, each) for each in ("estimate", "high"))
    raise InputError(
        f"no member sends at most {most:g} {unit}: {least} sends least, {estimate:.3g} (at most {high:.3g} with "
        f"{(1 + found['confidence']) / 2:.1%} confidence); raise the budget, give sends a higher price in [sweep], "
        "or raise policy.rollout_share, the part of the decisions that is a member's own."
    )


def _distrusted(found: Mapping[str, Any], most: float, relative: bool, bound: str) -> list[str]:
    """Members within the budget that the log does not follow, each with what it sends."""
    sent = {
        name: _sent(member["estimates"][found["estimator"]], relative, bound)
        for name, member in found["members"].items()
        if not member["trusted"]
    }
    return [f"{name} {value:.3g}" for name, value in sent.items() if value <= most]


def _sent(figures: Mapping[str, Any], relative: bool, bound: str) -> float:
    return 1 + _known(figures[SENDS]["relative"][bound]) if relative else _known(figures[SENDS][bound])


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
