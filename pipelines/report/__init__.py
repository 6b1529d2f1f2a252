"""The rollout report: one self-contained HTML file, the verdict first.

It loads nothing from anywhere: styles and pictures are inline, there is no script, and a policy in the page forbids it.
Every figure is read from the run's summary; what a run did not produce is said to be missing, never left out silently.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.report import evidence, policies
from pipelines.report import svg as pictures
from pipelines.report.policies import View
from pipelines.report.reading import Reading
from pipelines.report.svg import Column, Part
from pipelines.report.sweep import trade_off
from pipelines.report.text import (
    MISSING,
    duration,
    estimator_name,
    known,
    metric_name,
    moment,
    percent,
    plain,
    policy_name,
    rows_name,
    short,
    tidy,
    words,
)
from pipelines.report.verdict import verdict_view
from pipelines.summary import notes

CURVES = {
    "td_loss": "Temporal-difference loss",
    "cql_gap": "Conservative gap",
    "validation_td": "Validation loss",
    "mean_q": "Mean value (weighted Q)",
}
LINEAGE = {
    "data_version": "Transitions table version",
    "fingerprint": "Data fingerprint",
    "window": "Training window",
    "commit": "Code commit",
    "config_hash": "Configuration hash",
    "etl_hash": "ETL configuration hash",
    "seed": "Seed",
    "mlflow_run": "MLflow run",
    "model_version": "Registered model version",
}
RULES = {"": "the policy itself", "policy": "the policy itself"}
STEPS = {
    "simulate": "Simulate",
    "etl": "ETL",
    "train": "Train",
    "evaluate": "Evaluate",
    "promote": "Promote",
    "score": "Score",
    "report": "Report",
}


def render(summary: Mapping[str, Any]) -> str:
    """The report as one HTML page.

    `summary` is what a run found: name, created_at, verdict (of `judge`), evaluation (of `evaluate`), rows, quality,
    training, sweep, scoring, lineage and seconds; any may be absent. With `only_evaluated` nothing was learned: the
    sections on a verdict, a candidate, learning and scoring are not there.
    Raises InputError where the verdict is none of PROMOTE, REFUSE and INCONCLUSIVE.
    """
    evaluation, verdict = summary.get("evaluation") or {}, summary.get("verdict") or {}
    training = summary.get("training") or {}
    reading = Reading(evaluation, verdict, training.get("weights") or {})
    confidence = known(evaluation.get("confidence"))
    page: View = {
        "name": str(summary.get("name") or "Unnamed run"),
        "created_at": moment(summary.get("created_at")),
        "verdict": verdict_view(verdict) if verdict else None,
        "per": evaluation.get("per"),
        "unit": evaluation.get("unit") or "",
        "interval": f"{percent(confidence)} interval" if confidence else "interval",
        "estimator": estimator_name(reading.estimator),
        "candidate": policy_name(reading.candidate) if reading.candidate else None,
        "tiles": policies.headline(reading),
        "metrics": policies.metrics_table(reading),
        "others": policies.other_estimators(reading),
        "forest": policies.forest(reading),
        "scatters": policies.scatters(reading),
        "sweep": trade_off(summary.get("sweep")),
        "contrasts": policies.contrasts(reading),
        "mixtures": policies.mixtures(reading),
        "overlap": evidence.overlap(reading),
        "segments": evidence.segments(reading),
        "agreement": evidence.agreement(reading),
        "floors": evidence.floors(reading),
        "row_sets": _row_sets(evaluation),
        "calibration": evidence.propensities(reading),
        "training": _training(training),
        "flows": _flows(summary.get("rows") or {}),
        "quality": [suite_view(suite) for suite in summary.get("quality") or []],
        "scoring": _scoring(summary.get("scoring")),
        "lineage": _lineage(summary.get("lineage") or {}),
        "packages": sorted(((summary.get("lineage") or {}).get("packages") or {}).items()),
        "seconds": _seconds(summary.get("seconds") or {}),
        "judged": not summary.get("only_evaluated"),
        "notes": notes(evaluation),
        "unit_of_inference": "rows" if evaluation.get("clusters") == "rows" else "users",
    }
    page["untrusted"] = any(not entry.trusted for entry in reading.policies)
    page["has_truth"] = any(row["true"] for group in page["metrics"] for row in group["rows"])
    return environment().get_template("report.html.j2").render(**page)


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write `render(summary)` to `path`, whole or not at all."""
    page = render(summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)


def environment(*folders: Path) -> Environment:
    """Templates of this folder and of `folders`; what is put into them is escaped."""
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _row_sets(evaluation: Mapping[str, Any]) -> list[View]:
    return [
        {"name": rows_name(name), **{key: plain(found.get(key)) for key in ("users", "decisions", "left_out")}}
        for name, found in (evaluation.get("row_sets") or {}).items()
    ]


# Learning


def _training(training: Mapping[str, Any]) -> View:
    """Small multiples: one row per learner, one curve per quantity."""
    learners = []
    for name, steps in (training.get("curves") or {}).items():
        quantities = list(dict.fromkeys(key for step in steps for key in step if key != "step"))
        panels = [panel for key in quantities if (panel := _curve(name, key, steps))]
        if panels:
            learners.append({"name": policy_name(name), "panels": panels})
    return {
        "learners": learners,
        "members": None if training.get("members") is None else plain(training["members"]),
        "agreement": [(policy_name(name), percent(share, 1)) for name, share in _agreement(training.get("agreement"))],
        "weights": [(metric_name(name), _weight(weight)) for name, weight in (training.get("weights") or {}).items()],
    }


def _weight(weight: object) -> str:
    number = known(weight)
    return MISSING if number is None else short(number, sign=True)


def _agreement(found: object) -> list[tuple[str, object]]:
    """One figure, or one per learner."""
    if isinstance(found, Mapping):
        return [(str(name), share) for name, share in found.items()]
    return [] if known(found) is None else [("", found)]


def _curve(learner: str, key: str, steps: Sequence[Mapping[str, Any]]) -> View | None:
    points = [
        (x, y)
        for step in steps
        if (x := known(step.get("step"))) is not None and (y := known(step.get(key))) is not None
    ]
    if len(points) < 2:
        return None
    ys = [y for _, y in points]
    name = CURVES.get(key) or words(key)
    description = f"from {plain(ys[0])} at step {plain(points[0][0])} to {plain(ys[-1])} at step {plain(points[-1][0])}"
    return {
        "name": name,
        "picture": pictures.curve(points, f"{name} of {learner}", description),
        "first": plain(ys[0]),
        "last": plain(ys[-1]),
        "low": plain(min(ys)),
        "high": plain(max(ys)),
        "start": plain(points[0][0]),
        "end": plain(points[-1][0]),
    }


# Data


def _flows(rows: Mapping[str, Any]) -> list[View]:
    """The conservation laws, each as one bar: what was read is kept, a duplicate or in quarantine, to the row."""
    views = []
    for name in ("decisions", "events"):
        if found := rows.get(name):
            parts = [
                Part("kept", found.get("kept") or 0, "good"),
                Part("exact duplicates", found.get("exact_duplicates") or 0, "neutral"),
                Part("quarantined", found.get("quarantined") or 0, "bad"),
            ]
            views.append(flow_view(f"{words(name)} read", found.get("read"), parts, found))
    decisions = rows.get("decisions") or {}
    if decisions.get("mature") is not None:
        parts = [
            Part("mature", decisions["mature"], "good"),
            Part("immature, waiting", decisions.get("immature") or 0, "neutral"),
        ]
        views.append(flow_view("Decisions kept", decisions.get("kept"), parts, {}))
    transitions = rows.get("transitions") or {}
    if transitions.get("usable") is not None:
        parts = [
            Part("usable", transitions["usable"], "good"),
            Part("unusable", transitions.get("unusable") or 0, "bad"),
        ]
        view = flow_view("Transitions", transitions["usable"] + (transitions.get("unusable") or 0), parts, {})
        marks = [
            (words(key), plain(transitions[key]))
            for key in ("silent", "warm_up", "truncated", "terminal")
            if transitions.get(key) is not None
        ]
        views.append({**view, "marks": marks})
    return views


def flow_view(name: str, whole: object, parts: Sequence[Part], found: Mapping[str, Any]) -> View:
    """A whole and its parts as one bar, and whether they add up."""
    total = known(whole)
    missing = None if total is None else total - sum(part.count for part in parts)
    share = [
        percent(part.count / total, 2 if 0 < part.count / total < 0.01 else 1) if total else MISSING for part in parts
    ]
    days = found.get("by_day") or {}
    reads = [known(day.get("read")) or 0.0 for day in days.values()]
    return {
        "name": name,
        "whole": plain(total),
        "parts": [
            {"label": p.label, "tone": p.tone, "count": plain(p.count), "share": s}
            for p, s in zip(parts, share, strict=True)
        ],
        "picture": pictures.stacked(parts, f"{name}: {plain(total)}"),
        "balanced": missing == 0,
        "missing": plain(missing),
        "reasons": [{"reason": reason, "count": plain(n)} for reason, n in _descending(found.get("by_reason")) if n],
        "days": _days(name, days, reads) if len(days) > 1 else None,
        "marks": [],
    }


def _days(name: str, days: Mapping[str, Any], reads: Sequence[float]) -> View:
    names = list(days)
    bars = [Column(n, f"{day}: {plain(n)} read") for day, n in zip(names, reads, strict=True)]
    return {
        "picture": pictures.columns(bars, f"{name} per arrival day", height=44),
        "first": names[0],
        "last": names[-1],
        "least": plain(min(reads)),
        "most": plain(max(reads)),
    }


def _descending(counts: object) -> list[tuple[str, Any]]:
    return sorted(counts.items(), key=lambda pair: -(known(pair[1]) or 0)) if isinstance(counts, Mapping) else []


def suite_view(suite: Mapping[str, Any]) -> View:
    """The results of a suite of expectations, failed ones first."""
    results = [
        {
            "expectation": words(str(found.get("expectation") or "").removeprefix("expect_")),
            "column": found.get("column") or "",
            "severity": found.get("severity") or "",
            "success": bool(found.get("success")),
            "observed": tidy(found.get("observed")),
            "expected": tidy(found["expected"]) if found.get("expected") is not None else "",
            "remedy": "" if found.get("success") else tidy(found.get("remedy") or ""),
        }
        for found in suite.get("expectations") or suite.get("results") or []
    ]
    results.sort(key=lambda found: bool(found["success"]))
    passed = sum(bool(found["success"]) for found in results)
    # A suite succeeds when nothing critical failed; warnings still show.
    tone = "bad" if not suite.get("success") else "good" if passed == len(results) else "open"
    return {
        "name": words(str(suite.get("suite") or "")),
        "tone": tone,
        "passed": passed,
        "results": results,
        "expected": any(found["expected"] for found in results),
    }


# Scoring and lineage


def _scoring(scoring: Mapping[str, Any] | None) -> View | None:
    if not scoring:
        return None
    rules = {RULES.get(name, words(name)): n for name, n in (scoring.get("by_rule") or {}).items()}
    return {
        "candidates": plain(scoring.get("candidates")),
        "actions": _bars(scoring.get("by_action"), scoring.get("candidates")),
        "rules": _bars(rules, scoring.get("candidates")),
        "facts": [
            (words(key), moment(scoring[key]))
            for key in ("model_version", "valid_until")
            if scoring.get(key) is not None
        ],
    }


def _bars(counts: Mapping[str, Any] | None, whole: object) -> list[View]:
    total = known(whole) or 0.0
    views = []
    for name, count in _descending(counts):
        number = known(count) or 0.0
        share = number / total if total else 0.0
        bar = pictures.stacked(
            [Part(name, number, "accent"), Part("others", max(total - number, 0), "track")],
            f"{name}: {plain(number)}",
            10,
        )
        views.append({"name": words(name), "count": plain(number), "share": percent(share, 1), "bar": bar})
    return views


def _lineage(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = [(label, _fact(lineage[key])) for key, label in LINEAGE.items() if lineage.get(key) is not None]
    rest = [
        (words(key), _fact(value))
        for key, value in lineage.items()
        if key not in LINEAGE and key != "packages" and value is not None
    ]
    return named + rest


def _fact(value: object) -> str:
    """Ids and versions as they are; a window as `from to to`."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " to ".join(str(part) for part in value)
    return str(value)


def _seconds(seconds: Mapping[str, Any]) -> list[View]:
    longest = max((known(s) or 0.0 for s in seconds.values()), default=0.0)
    views = []
    order = {step: place for place, step in enumerate(STEPS)}
    for step, spent in sorted(seconds.items(), key=lambda pair: order.get(pair[0], len(order))):
        number = known(spent) or 0.0
        name = STEPS.get(step) or words(step)
        parts = [Part(name, number, "neutral"), Part("rest", longest - number, "track")]
        views.append(
            {
                "name": name,
                "text": duration(spent),
                "bar": pictures.stacked(parts, f"{name}: {duration(spent)}", 10),
            }
        )
    return views
