"""The page of a monitored night: the alarms first, in the dress of the rollout report, loading nothing."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.report import environment, flow_view, suite_view
from pipelines.report import svg as pictures
from pipelines.report.svg import Column, Part
from pipelines.report.text import MISSING, Range, fixed, known, metric_name, moment, percent, plain, short, words

View = dict[str, Any]

WORDS = {"good": "Fine", "open": "Warning", "bad": "Critical"}
TONES = {
    **dict.fromkeys(("matched", "answers"), "good"),
    **dict.fromkeys(("open", "duplicate", "other_night"), "neutral"),
}
"""Of the fates of rows; every other one is bad."""
SHOWN = 12
"""Columns whose histogram is drawn: those that moved most."""


def render(report: Mapping[str, Any]) -> str:
    """A night, as `monitor_night` and `judge_night` describe it, as one HTML page."""
    expectations = suite_view(report["expectations"])
    severities = {row["severity"] for row in expectations["results"] if not row["success"]}
    tone = "bad" if "critical" in severities else "open" if severities else "good"
    rows = report["rows"]
    page: View = {
        "name": report["name"],
        "night": report["night"],
        "created_at": moment(report["created_at"]),
        "tone": tone,
        "word": WORDS[tone],
        "sentence": _sentence(report),
        "alarms": [row for row in expectations["results"] if not row["success"]],
        "facts": _facts(report),
        "flows": [
            _flow("Scored rows", rows["fates"]),
            *([_flow("Logged decisions of the night", rows["logged_fates"])] if rows["logged"] else []),
        ],
        "lost": [(action, plain(n)) for action, n in rows["never_logged_by_action"].items()],
        "agreement": _agreement(report["agreement"]),
        "rates": [_rate(action, found) for action, found in report["action_rate"].items()],
        "draws": [_draw(family, report["draws"][family]) for family in ("scored", "answered")],
        "drift": [_drift(kind, report["drift"]) for kind in ("values", "features")],
        "reference": _reference(report["drift"]["reference"]),
        "earned": _earned(report["earned"]),
        "rules": [(words(rule), plain(n), percent(n / rows["scored"], 1)) for rule, n in rows["by_rule"].items()],
        "expectations": expectations,
    }
    return environment().get_template("monitor.html.j2").render(**page)


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write `render(report)` to `path`, whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(render(report), encoding="utf-8")
    unfinished.replace(path)


def _sentence(report: Mapping[str, Any]) -> str:
    fates = report["rows"]["fates"]
    scored = f"{plain(report['rows']['scored'])} rows scored by version {report['policy_version']}"
    if not report["rows"]["logged"] or fates["open"] == report["rows"]["scored"]:
        return f"{scored}; the log does not reach this night yet, so that only the scores themselves are judged."
    rest = f"{plain(fates['matched'])} of them led to a logged decision in time"
    return f"{scored}; {rest}{'' if report['settled'] else '. The night is not settled: it will be looked at again'}."


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, manifest = report["model"], report["manifest"]
    found = [
        ("Policy", report["policy"]),
        ("Version", report["policy_version"]),
        ("Learned from", " to ".join(model["window"]) if model.get("window") else MISSING),
        ("Decisions hold", " to ".join(moment(each) for each in report["decides"])),
        ("Users", plain(report["users"])),
        ("The log reaches", moment(report["log_end"]) if report["log_end"] else "not this night"),
        ("Settled", "yes" if report["settled"] else "no"),
    ]
    shown = ("lambda", "theta", "budget_quota", "budget_expected_sends", "fingerprint", "model_stale")
    return found + [(words(key), _text(manifest[key])) for key in shown if key in manifest]


def _text(value: object) -> str:
    number = known(value)
    return str(value) if number is None else plain(number)


def _flow(name: str, fates: Mapping[str, int]) -> View:
    parts = [Part(words(fate).lower(), n, TONES.get(fate, "bad")) for fate, n in fates.items() if n]
    return flow_view(name, sum(fates.values()), parts, {})


def _agreement(found: Mapping[str, Any]) -> View:
    return {
        "otherwise": [(pair["scored"], pair["logged"], plain(pair["rows"])) for pair in found["pairs"]],
        "same": plain(found["propensity_same"]),
        "missing": plain(found["propensity_missing"]),
        "differs": plain(found["propensity_differs"]),
    }


def _rate(action: str, found: Mapping[str, Any]) -> View:
    usual = found["history"]
    return {
        "action": action,
        **{key: percent(found[key], 2) for key in ("expected", "scored", "done")},
        "usual": f"{percent(min(usual), 2)} to {percent(max(usual), 2)} ({len(usual)} nights)" if usual else MISSING,
    }


def _draw(family: str, found: Mapping[str, Any]) -> View:
    """Stated probability against frequency over the bins of all actions but the first, and each action's test."""
    actions = list(found)[1:]
    bins = [each for action in actions for each in found[action]["bins"]]
    discs = [(each["expected"] / each["n"], each["taken"] / each["n"], float(each["n"])) for each in bins]
    title = {"scored": "The draws", "answered": "What was done"}[family]
    return {
        "title": title,
        "picture": pictures.calibration(discs, f"{title}: probability against frequency") if discs else None,
        "tests": [
            {
                "action": action,
                "n": plain(whole["n"]),
                "taken": plain(whole["taken"]),
                "expected": fixed(whole["expected"], 1),
                "z": MISSING if found[action]["z"] is None else fixed(found[action]["z"], 2, sign=True),
                "p": _p(found[action]["p"]),
            }
            for action in actions
            if (whole := found[action]["whole"])["n"]
        ],
    }


def _p(value: float | None) -> str:
    return MISSING if value is None else "< 0.0001" if value < 1e-4 else short(value)


def _drift(kind: str, drift: Mapping[str, Any]) -> View:
    found = drift[kind] or {}
    ordered = sorted(found.items(), key=lambda pair: -pair[1]["psi"])
    return {
        "title": {"values": "Values of tonight’s rows", "features": "State features"}[kind],
        "why": drift["left_out"].get(kind, "").rstrip("."),
        "rows": [
            {
                "name": name,
                "psi": fixed(each["psi"], 3),
                "noise": fixed(each["noise"][0], 3),
                "ks": fixed(each["ks"], 3),
                "judged": each["judged"],
                "picture": _histogram(name, each) if place < SHOWN else None,
            }
            for place, (name, each) in enumerate(ordered)
        ],
    }


def _histogram(name: str, found: Mapping[str, Any]) -> Any:
    """Shares of tonight by the reference's bins, each beside that of training."""
    theirs, mine = max(sum(found["reference"]), 1), max(sum(found["rows"]), 1)
    labels = _labels(found["cuts"])
    bars = []
    for label, before, now in zip(labels, found["reference"], found["rows"], strict=True):
        bars.append(Column(before / theirs, f"{label}: training {percent(before / theirs, 1)}", "neutral"))
        bars.append(Column(now / mine, f"{label}: now {percent(now / mine, 1)}", "accent"))
    return pictures.columns(bars, f"{name}: training beside now", height=44)


def _labels(cuts: list[float]) -> list[str]:
    if not cuts:
        return ["all", "missing"]
    between = [f"{short(low)} to {short(high)}" for low, high in pairwise(cuts)]
    return [f"up to {short(cuts[0])}", *between, f"above {short(cuts[-1])}", "missing"]


def _reference(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    return f"{plain(found['rows'])} training decisions of {plain(found['users'])} users, version {found['version']}"


def _earned(found: Mapping[str, Any]) -> View:
    metrics = found["metrics"]
    rows = []
    for name, each in metrics.items():
        if each["realised"] is None:
            continue
        gap = Range.of(each["difference"])
        ends = [end for end in (gap.value, gap.low, gap.high) if end is not None]
        scale = pictures.Scale(*pictures.domain(ends))
        rows.append(
            {
                "name": metric_name(name),
                "realised": Range.of(each["realised"]).texts(),
                "predicted": Range.of(each["predicted"]).texts() if each["predicted"] else (MISSING, ""),
                "gap": gap.texts(sign=True) if each["difference"] else (MISSING, ""),
                "bar": pictures.interval_bar(gap, scale, f"{metric_name(name)}: realised less predicted", _tone(gap))
                if each["difference"]
                else None,
            }
        )
    return {
        "why": (found["left_out"] or "").rstrip("."),
        "too_short": found.get("too_short"),
        "nights": len(found["nights"]),
        "rows": rows,
        "unit": found.get("unit", ""),
        "interval": f"{percent(found['confidence'])} interval" if found.get("confidence") else "interval",
        "facts": [
            (words(key), plain(found[key])) for key in ("users", "decisions", "silent", "open_clicks") if key in found
        ],
        "days": plain(found.get("days")),
    }


def _tone(gap: Range) -> str:
    return "ink" if gap.excludes_zero else "unclear"
