"""What a night must hold, as demands on one row of measures; Great Expectations judges them.

A measure is in its own unit (a share, a rate, an index, a difference), and noise is part of its bounds, not of it. What
cannot be judged yet is no measure at all: a night whose log is still open is not accused of what it does not say.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import numpy as np

from models.contract import HOLD
from pipelines.config import Config
from pipelines.etl.quality.suites import CRITICAL, WARNING, Demand
from pipelines.sections import Levels
from policies.draws import Draws

SUITE = "monitor"
FALLBACKS = ("missing_", "unknown_legal_action", "no_legal_action", "new_user")
"""How the rules begin by which the model could not judge a row."""
FROZEN = "frozen"
LEAST_NIGHTS = 7
"""Earlier nights without which nothing is known of usual rates: a week."""
FLOOR = 0.08
"""Least spread of a usual rate, as a share of it, as for the quality of days."""

Bound = tuple[float | None, float | None]
Measured = tuple[str, float, list[Demand]]


def demands(report: Mapping[str, Any], config: Config) -> tuple[dict[str, float], list[Demand]]:
    """Measure -> value, and what is demanded of them, of a night as `pipelines.monitor` describes it."""
    found = [
        *_rows(report, config),
        *_matched(report, config),
        *_draws(report, config),
        *_history(report, config),
        *_drift(report, config),
        *_earned(report),
    ]
    return {name: value for name, value, _ in found}, [demand for *_, each in found for demand in each]


def _between(name: str, value: float, remedy: str, warning: Bound | None, critical: Bound | None = None) -> Measured:
    pairs = ((WARNING, warning), (CRITICAL, critical))
    return name, value, [Demand(name, level, remedy, *bound) for level, bound in pairs if bound is not None]


def _at_most(name: str, value: float, remedy: str, levels: Levels) -> Measured:
    # A critical share of 1 or more is none.
    critical = (None, levels[1]) if levels[1] < 1 else None
    return _between(name, value, remedy, (None, levels[0]), critical)


def _share(name: str, part: int, whole: int, remedy: str, levels: Levels) -> Iterator[Measured]:
    if whole:
        yield _at_most(name, part / whole, remedy, levels)


def _rows(report: Mapping[str, Any], config: Config) -> Iterator[Measured]:
    scored, told = report["rows"]["scored"], report["manifest"].get("candidates")
    yield _between("scored_rows", scored, "the night holds no row: score it again", None, (1, None))
    if told is not None:
        remedy = "the scores table does not hold what its manifest says: score the night again"
        yield _between("scored_rows_missing", told - scored, remedy, None, (0, 0))
    by_rule = report["rows"]["by_rule"]
    frozen = by_rule.get(FROZEN, 0)
    yield _at_most(
        "frozen_share", frozen / scored, "everything is held since `tactful freeze`; `tactful unfreeze` ends it", (0, 1)
    )
    fallback = sum(n for rule, n in by_rule.items() if rule.startswith(FALLBACKS))
    yield from _share(
        "fallback_share",
        fallback,
        scored,
        "the model could not judge so many rows; the rules of the night say why: deliver the features of candidates",
        config.monitor.fallback,
    )
    window = report["model"].get("window")
    if window:
        age = (date.fromisoformat(report["night"]) - date.fromisoformat(window[1][:10])).days
        remedy = (
            "the newest decision that the model learned from is older than monitor.stale_days: train, or find why not"
        )
        yield _between("model_age_days", age, remedy, (None, config.monitor.stale_days))
    if report["manifest"].get("budget_met") is False:
        why = report["manifest"].get("budget_reason") or "no reason is given"
        yield _between("quota_missed", 1, f"the night's quota is not met: {why}", (None, 0))
    if report["manifest"].get("model_stale"):
        yield _between(
            "registry_unreachable", 1, "a cached champion scored: the registry did not answer; see the log", (None, 0)
        )


def _matched(report: Mapping[str, Any], config: Config) -> Iterator[Measured]:
    fates, logged, agree = report["rows"]["fates"], report["rows"]["logged_fates"], report["agreement"]
    levels = config.monitor
    matched = fates["matched"]
    answered = matched + fates["late"] + fates["early"]
    closed = answered + fates["other_user"] + fates["never_logged"]
    yield from _share(
        "unlogged_share",
        closed - matched,
        closed,
        "decisions were lost, late or logged under other ids: compare the sender's log; monitor.match names the column "
        "that holds the candidate_id",
        levels.unlogged,
    )
    yield from _share(
        "otherwise_share",
        agree["otherwise"],
        matched,
        "the sender did another thing than was scored: find what overrides it",
        levels.otherwise,
    )
    yield from _share(
        "decided_again_share",
        logged["decided_again"],
        answered,
        "one scored row led to several decisions: users may have been sent the same twice; make the sender idempotent",
        levels.repeated,
    )
    yield from _share(
        "propensity_share",
        agree["propensity_missing"] + agree["propensity_differs"],
        matched - agree["otherwise"],
        "log the scored propensity as it is: evaluation rests on it",
        levels.propensity,
    )
    yield from _share(
        "never_scored_share",
        logged["never_scored"],
        sum(n for fate, n in logged.items() if fate != "duplicate"),
        "something else decides for these users; leave its rows out of data.decisions, or raise monitor.unscored",
        levels.unscored,
    )


def judged_draws(report: Mapping[str, Any], actions: list[str]) -> Iterator[tuple[str, str, Draws]]:
    """(family, action, sums) of every test of a rate: `scored` how the draws fell, `answered` what was done."""
    for family in ("scored", "answered"):
        for action in actions[1:]:
            whole = report["draws"][family][action]["whole"]
            if whole["n"]:
                yield family, action, Draws(**whole)


def _draws(report: Mapping[str, Any], config: Config) -> Iterator[Measured]:
    remedies = {
        "scored": "the draws do not follow their probabilities: report this, and hold the night (`tactful freeze`)",
        "answered": "what was done does not follow the scored probabilities: sends are lost or added on the way",
    }
    tests = list(judged_draws(report, config.actions))
    for family, action, draws in tests:
        many = sum(each == family for each, *_ in tests)
        bounds = [
            draws.bounds(alpha / many, config.monitor.rate_margin)
            for alpha in (config.monitor.false_alarm, config.monitor.critical_alarm)
        ]
        yield _between(f"rate_{family}:{action}", draws.taken / draws.n, remedies[family], bounds[0], bounds[1])


def _history(report: Mapping[str, Any], config: Config) -> Iterator[Measured]:
    """Expected rates against those of earlier nights: median and robust spread, at the levels of [quality].

    A frozen night holds everything on purpose.
    """
    if report["rows"]["by_rule"].get(FROZEN):
        return
    for action, found in report["action_rate"].items():
        usual = found["history"]
        if action == HOLD or len(usual) < LEAST_NIGHTS or found["expected"] is None:
            continue
        centre = float(np.median(usual))
        spread = max(1.4826 * float(np.median(np.abs(np.array(usual) - centre))), FLOOR * centre, 1e-6)
        remedy = (
            f"the usual rate is {centre:.4g} over {len(usual)} nights; find what changed: candidates, budget, model"
        )
        warning, critical = (
            (centre - level * spread, centre + level * spread)
            for level in (config.quality.warning, config.quality.critical)
        )
        yield _between(f"rate_usual:{action}", found["expected"], remedy, warning, critical)


def _drift(report: Mapping[str, Any], config: Config) -> Iterator[Measured]:
    why = report["drift"]["left_out"].get("values")
    if why is not None and not report["rows"]["by_rule"].get(FROZEN):
        yield _between("drift_unknown", 1, why, (None, 0))
    for kind, levels, remedy in (
        (
            "values",
            config.monitor.psi_values,
            "what the model expects of these candidates is not what it was in training",
        ),
        ("features", config.monitor.psi, "these users and candidates are not those of training"),
    ):
        for name, found in (report["drift"][kind] or {}).items():
            if not found["judged"]:
                continue
            most = [max(level, noise) for level, noise in zip(levels, found["noise"], strict=True)]
            critical = None if found["moved_by_sends"] else (None, most[1])
            told = f"{remedy}; find what changed in the source, then train on newer days"
            yield _between(f"psi:{name}", found["psi"], told, (None, most[0]), critical)


def _earned(report: Mapping[str, Any]) -> Iterator[Measured]:
    """Realised minus predicted: 0 must lie within the interval at the level of alarms. Never critical: of a prediction
    that was wrong the gate and the experiment judge, by day."""
    if not report["earned"]["judged"]:
        return
    for name, found in report["earned"]["metrics"].items():
        gap = found["difference"]
        if gap is not None:
            half = (gap["alarm_high"] - gap["alarm_low"]) / 2
            remedy = (
                "the evaluation before rollout and what was earned do not agree: read the experiment before widening"
            )
            yield _between(f"earned_minus_predicted:{name}", gap["estimate"], remedy, (-half, half))
