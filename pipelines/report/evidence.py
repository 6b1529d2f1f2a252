"""How much the log can say: overlap of each policy with it, importance weights, and the truth of its propensities."""

from collections.abc import Mapping
from typing import Any

from pipelines.report import svg as pictures
from pipelines.report.policies import share_texts
from pipelines.report.reading import Reading
from pipelines.report.svg import Column
from pipelines.report.text import (
    MISSING,
    Range,
    estimator_name,
    fixed,
    known,
    like,
    percent,
    places,
    plain,
    policy_name,
    rows_name,
    short,
    whole,
)

View = dict[str, Any]


def overlap(reading: Reading) -> View:
    """How much of the log speaks about each policy: effective sample size, weights and their histogram, support."""
    rows = []
    for key, found in (reading.evaluation.get("policies") or {}).items():
        seen = found.get("diagnostics") or {}
        users, ess = known(found.get("users")), known(seen.get("ess"))
        share = ess / users if users and ess is not None and ess <= users else None
        mean, error = _with_error(known(seen.get("mean_weight")), known(seen.get("mean_weight_se")))
        rows.append(
            {
                "policy": policy_name(key),
                "candidate": key == reading.candidate,
                "rows": rows_name(str(found.get("rows") or "all")),
                "users": plain(users),
                "decisions": plain(found.get("decisions")),
                "ess": plain(whole(ess)),
                "ess_share": share,
                "ess_percent": percent(share),
                "largest": percent(seen.get("largest_weight"), 2),
                "mean": mean,
                "error": error,
                "support": percent(seen.get("support"), 1),
            }
        )
    weights = reading.evaluation.get("weights") or {}
    return {
        "rows": rows,
        "weights": [view for key, found in weights.items() if (view := _histogram(key, found))],
    }


def segments(reading: Reading) -> View | None:
    """The candidate's difference from the logging policy in every part of the users that the gate looks at."""
    found = _judged(reading).get("segments") or {}
    guarded = [metric for metric in reading.metrics if metric.margin is not None]
    if not found or not guarded:
        return None
    rows = []
    for name, part in found.items():
        cells = []
        for metric in guarded:
            figure = part["metrics"].get(metric.key)
            relative = _interval(figure) if figure else None
            cells.append(
                {
                    "metric": metric.name,
                    "text": share_texts(relative) if relative else None,
                    "tone": metric.tone(relative) if relative else "unclear",
                }
            )
        rows.append({"name": name, "users": plain(part["users"]), "cells": cells})
    return {"metrics": [metric.name for metric in guarded], "rows": rows}


def agreement(reading: Reading) -> View | None:
    """How far the other consistent estimators lie from the quoted one, in every metric that the gate guards."""
    found = {name: each for name, each in (_judged(reading).get("disagreement") or {}).items() if each}
    guarded = [metric for metric in reading.metrics if metric.margin is not None]
    if not found or not guarded:
        return None
    rows = [
        {
            "estimator": estimator_name(name),
            "cells": [
                {
                    "metric": metric.name,
                    "text": share_texts(_interval(figures[metric.key])) if metric.key in figures else None,
                }
                for metric in guarded
            ],
        }
        for name, figures in found.items()
    ]
    return {"quoted": estimator_name(reading.estimator), "metrics": [metric.name for metric in guarded], "rows": rows}


def floors(reading: Reading) -> list[View]:
    """What the candidate's value exceeds at any sample size, for the bounded components of which more is better."""
    found = _judged(reading).get("floors") or {}
    return [
        {"name": metric.name, "unit": metric.unit, "low": short(found[metric.key] * metric.scale)}
        for metric in reading.metrics
        if metric.key in found and metric.better > 0
    ]


def _judged(reading: Reading) -> Mapping[str, Any]:
    policies = reading.evaluation.get("policies") or {}
    return policies.get(reading.candidate) or {}


def _interval(figure: Mapping[str, Any]) -> Range:
    """A relative difference and its 95% interval by the standard error."""
    value, half = float(figure["relative"]), 1.96 * float(figure["se"])
    return Range(value, value - half, value + half)


def _histogram(key: str, found: Mapping[str, Any]) -> View | None:
    """Bars of equal width whatever the bins'; the bin that holds 1 stands out."""
    edges, counts = list(found.get("edges") or []), [known(n) or 0.0 for n in found.get("counts") or []]
    if len(edges) != len(counts) + 1 or not any(counts):
        return None
    whole = sum(counts)
    bars = [
        Column(
            n,
            f"weight {short(low)} to {short(high)}: {plain(n)} ({percent(n / whole, 1)})",
            "accent" if low <= 1 < high else "neutral",
        )
        for low, high, n in zip(edges, edges[1:], counts, strict=False)
    ]
    most = max(counts)
    title = f"Importance weights of {policy_name(key)}: {plain(whole)} in {len(counts)} bins"
    return {
        "policy": policy_name(key),
        "picture": pictures.columns(bars, title, edges=[short(edge) for edge in edges]),
        "most": f"{plain(most)} ({percent(most / whole)})",
    }


def propensities(reading: Reading) -> View | None:
    """Stated propensities against how often the action was taken, and the mean weight of each action."""
    found = reading.evaluation.get("calibration") or {}
    bins = [
        (predicted, observed, known(b.get("n")) or 0.0)
        for b in found.get("bins") or []
        if (predicted := known(b.get("predicted"))) is not None and (observed := known(b.get("observed"))) is not None
    ]
    inverse = known(found.get("inverse_sum"))
    actions = [
        {
            "action": action,
            "mean": " ± ".join(_with_error(known(each.get("mean_weight")), known(each.get("se")))),
            "n": plain(each.get("decisions")),
        }
        for action, each in (found.get("actions") or {}).items()
    ]
    if not bins and not actions and inverse is None:
        return None
    rows = [
        {"predicted": percent(p, 1), "observed": percent(o, 1), "gap": _points(o - p), "n": plain(n)}
        for p, o, n in bins
    ]
    return {
        "picture": pictures.calibration(bins, "Stated propensity against observed frequency") if bins else None,
        "rows": rows,
        "actions": actions,
        "inverse": None if inverse is None else fixed(inverse, 3),
    }


def _with_error(value: float | None, error: float | None) -> tuple[str, str]:
    """A figure and its standard error with the digits the error deserves."""
    digits = None if error is None or error <= 0 else places(-error, error)
    if value is None:
        return MISSING, MISSING
    return like(value, digits), MISSING if digits is None or error is None else fixed(error, digits)


def _points(share: float) -> str:
    return fixed(100 * share, 1, sign=True) + " pp"
