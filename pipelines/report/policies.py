"""What the report says of an evaluation: tables and pictures, always against the logging policy on the same rows."""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.report import svg as pictures
from pipelines.report.reading import RATIOS, Entry, Metric, Reading
from pipelines.report.svg import Point, Scale
from pipelines.report.text import (
    MISSING,
    Range,
    estimator_name,
    known,
    like,
    percent,
    places,
    plain,
    policy_name,
    rows_name,
    short,
    whole,
    words,
)

View = dict[str, Any]

VERTICAL = ("weekly_active_days", "clicks")
CLIPPING = 3.0
"""A forest plot shows at most this many times the reach of the learned policies; what goes beyond ends in an arrow."""


def share_texts(found: Range) -> tuple[str, str]:
    """A relative difference in signed per cent."""
    return found.scaled(100).texts("%", sign=True, most=1)


def headline(reading: Reading) -> list[View]:
    """The candidate's difference from the logging policy, one tile per metric, all on one scale."""
    entry = next((entry for entry in reading.policies if entry.candidate), None)
    if entry is None:
        return []
    shown = [(metric, reading.quoted(entry, metric)) for metric in reading.metrics]
    relatives = [reading.relative(figures, entry.rows, metric) for metric, figures in shown]
    scale = Scale(*pictures.domain([x for r in relatives if r for x in (r.low, r.high, r.value) if x is not None]))
    tiles = []
    for (metric, figures), relative in zip(shown, relatives, strict=True):
        difference = Range.of(figures.get("difference"), metric.scale)
        value = Range.of(figures, metric.scale)
        base = reading.base(entry.rows, metric)
        big, spread = share_texts(relative) if relative else difference.texts(metric.points, sign=True)
        tone, bar, bound = entry.tone(metric, difference), None, None
        if relative:
            bound = None if metric.margin is None or not metric.better else -metric.better * metric.margin
            bar = pictures.interval_bar(relative, scale, f"{metric.name}: {big} ({spread})", tone, bound)
        decimals = places(value.low, value.high)
        from_text = MISSING if base is None else like(base * metric.scale, decimals) + metric.suffix
        tiles.append(
            {
                "name": metric.name,
                "unit": metric.unit,
                "big": big,
                "spread": spread,
                "tone": tone,
                "said": entry.said(metric, difference),
                "bar": bar,
                "bound": bound is not None,
                "value": value.texts(metric.suffix)[0],
                "from": from_text,
            }
        )
    return tiles


def metrics_table(reading: Reading) -> list[View]:
    """Per metric, every policy: estimate, true value, difference from the logging policy, absolute and relative."""
    return [
        {
            "name": metric.name,
            "unit": metric.unit,
            "rows": [_table_row(reading, entry, metric) for entry in (*reading.logging, *reading.policies)],
        }
        for metric in reading.metrics
    ]


def _table_row(reading: Reading, entry: Entry, metric: Metric) -> View:
    figures = reading.quoted(entry, metric)
    value = Range.of(figures, metric.scale)
    difference = Range.of(figures.get("difference"), metric.scale)
    relative = reading.relative(figures, entry.rows, metric)
    true = entry.true(metric)
    return {
        "policy": entry.name,
        "rows": rows_name(entry.rows),
        "candidate": entry.candidate,
        "logging": entry.logging,
        "value": value.texts(metric.suffix),
        "true": None if true is None else like(true, places(value.low, value.high)) + metric.suffix,
        "inside": None if true is None else value.contains(true),
        "difference": None if entry.logging else difference.texts(metric.points, sign=True),
        "relative": None if entry.logging or relative is None else share_texts(relative),
        "tone": "unclear" if entry.logging else entry.tone(metric, difference),
    }


def other_estimators(reading: Reading) -> View:
    """The same table by every estimator, quoted one first, so that agreement can be seen."""
    entries = reading.policies
    names = list(dict.fromkeys(name for entry in entries for name in entry.estimates))
    names.sort(key=lambda name: name != reading.estimator)
    groups = []
    for metric in reading.metrics:
        rows = []
        for entry in entries:
            true = entry.true(metric)
            cells = []
            for name in names:
                figures = (entry.estimates.get(name) or {}).get(metric.key) or {}
                relative = reading.relative(figures, entry.rows, metric)
                value = Range.of(figures, metric.scale)
                cells.append(
                    {
                        "estimator": words(estimator_name(name)),
                        "value": value.texts(metric.suffix),
                        "relative": share_texts(relative) if relative else None,
                        "inside": None if true is None else value.contains(true),
                    }
                )
            rows.append(
                {
                    "policy": entry.name,
                    "candidate": entry.candidate,
                    "cells": cells,
                    "true": None if true is None else plain(true) + metric.suffix,
                }
            )
        groups.append({"name": metric.name, "unit": metric.unit, "rows": rows})
    return {
        "estimators": [words(estimator_name(name)) for name in names],
        "groups": groups,
        "truth": any(entry.true(metric) is not None for entry in entries for metric in reading.metrics),
    }


def forest(reading: Reading) -> list[View]:
    """One panel per metric: each policy's difference from the logging policy, relative where that has a meaning."""
    panels = []
    for metric in reading.metrics:
        figures = [reading.quoted(entry, metric) for entry in reading.policies]
        relatives = [
            reading.relative(f, entry.rows, metric) for f, entry in zip(figures, reading.policies, strict=True)
        ]
        differences = [Range.of(f.get("difference"), metric.scale) for f in figures]
        share = any(relatives)
        drawn = [r.scaled(100) if r else Range(None) for r in relatives] if share else differences
        if not any(d.value is not None for d in drawn):
            continue
        unit = "%" if share else metric.points
        scale = Scale(*_forest_domain(drawn, reading.policies))
        bound = None
        if share and metric.margin is not None and metric.better:
            bound = -metric.better * metric.margin * 100
        rows = []
        for entry, found, difference in zip(reading.policies, drawn, differences, strict=True):
            big, spread = found.texts(unit, sign=True, most=1 if share else 5)
            tone = entry.tone(metric, difference)
            title = f"{metric.name}, {entry.name}: {big}" + (f" ({spread})" if spread else "")
            rows.append(
                {
                    "policy": entry.name,
                    "candidate": entry.candidate,
                    "big": big,
                    "spread": spread,
                    "tone": tone,
                    "bar": pictures.interval_bar(found, scale, title, tone, bound),
                }
            )
        label = _ticker(unit)
        panels.append(
            {
                "name": metric.name,
                "unit": "difference from the logging policy, " + ("relative" if share else metric.unit),
                "rows": rows,
                "axis": pictures.axis(scale, label, f"{metric.name}: scale of the differences"),
                "bound": None if bound is None else f"{label(bound)} margin",
                "better": {1: "right is better", -1: "left is better", 0: ""}[metric.better],
            }
        )
    return panels


def _forest_domain(drawn: Sequence[Range], entries: Sequence[Entry]) -> pictures.Pair:
    """Holds every learned policy that can be trusted; the others stretch it at most CLIPPING times."""

    def ends(which: Callable[[Entry], bool]) -> list[float]:
        chosen = (r for r, entry in zip(drawn, entries, strict=True) if which(entry))
        return [x for r in chosen for x in (r.low, r.value, r.high) if x is not None]

    every, learned = ends(lambda _: True), ends(lambda entry: entry.learned and entry.trusted)
    low, high = pictures.domain(every)
    reach = CLIPPING * max((abs(x) for x in learned), default=0.0)
    return (max(low, -reach), min(high, reach)) if reach else (low, high)


def _ticker(unit: str) -> Callable[[float], str]:
    return lambda value: short(value, sign=True) + unit


def scatters(reading: Reading) -> list[View]:
    """Volume against activity: each policy's difference from the logging policy in sends (x) and another metric (y)."""
    by_key = {metric.key: metric for metric in reading.metrics}
    across = by_key.get("sends")
    if across is None:
        return []
    first = [by_key[key] for key in VERTICAL if key in by_key]
    vertical = first or [metric for metric in reading.metrics if metric.key not in ("sends", *RATIOS)][:2]
    return [view for metric in vertical if (view := _scatter(reading, across, metric))]


def _scatter(reading: Reading, across: Metric, up: Metric) -> View | None:
    points = []
    # What the log hardly follows has no place that could be trusted, and its cross would hide the others'.
    for entry in (entry for entry in reading.policies if entry.trusted):
        places_ = [_placed(reading, entry, metric) for metric in (across, up)]
        if any(found is None or found.value is None for found, _ in places_):
            continue
        (x, true_x), (y, true_y) = places_
        assert x is not None
        assert y is not None
        texts = [" ".join(part for part in (found.texts("%", sign=True, most=1)) if part) for found in (x, y)]
        tip = f"{entry.name}: {across.name} {texts[0]}, {up.name} {texts[1]}"
        truth = None if true_x is None or true_y is None else (true_x, true_y)
        points.append(Point(entry.name, x, y, "accent" if entry.candidate else "neutral", tip, truth))
    if not points:
        return None
    title = f"{up.name} against {across.name.lower()}"
    ticker = _ticker("%")
    picture = pictures.scatter(
        points, f"{across.name}, change from logging policy", f"{up.name}, change", (ticker, ticker), title
    )
    return {"title": title, "picture": picture, "truth": any(point.truth for point in points)}


def _placed(reading: Reading, entry: Entry, metric: Metric) -> tuple[Range | None, float | None]:
    """(relative difference in per cent with its interval, true relative difference in per cent)."""
    relative = reading.relative(reading.quoted(entry, metric), entry.rows, metric)
    true, theirs = reading.true_difference(entry, metric), reading.logging[0].true(metric) if reading.logging else None
    return relative.scaled(100) if relative else None, None if true is None or not theirs else 100 * true / theirs


def contrasts(reading: Reading) -> list[View]:
    """Policies against each other on the same rows: per pair a table of metrics by estimators."""
    views = []
    for found in reading.evaluation.get("contrasts") or []:
        estimates = found.get("estimates") or {}
        names = sorted(estimates, key=lambda name: name != reading.estimator)
        trusted = all(e.trusted for e in reading.policies if e.key in (found.get("policy"), found.get("against")))
        rows = []
        for metric in reading.metrics:
            differences = [Range.of((estimates[name] or {}).get(metric.key), metric.scale) for name in names]
            if any(difference.value is not None for difference in differences):
                cells = [
                    {
                        "estimator": words(estimator_name(name)),
                        "texts": difference.texts(metric.points, sign=True),
                        "tone": metric.tone(difference) if trusted else "unclear",
                    }
                    for name, difference in zip(names, differences, strict=True)
                ]
                rows.append({"metric": metric.name, "unit": metric.unit, "cells": cells})
        views.append(
            {
                "policy": policy_name(str(found.get("policy"))),
                "against": policy_name(str(found.get("against"))),
                "rows_name": rows_name(str(found.get("rows"))),
                "estimators": [words(estimator_name(name)) for name in names],
                "rows": rows,
            }
        )
    return views


def mixtures(reading: Reading) -> View | None:
    """Rollout shares the gate looked at, in ascending order, and where it stopped."""
    found = (reading.evaluation.get("mixtures") or {}).get(reading.candidate) or {}
    if not found:
        return None
    largest = known(reading.verdict.get("largest_share")) or 0.0
    rows: list[View] = []
    stopped = False
    for share, mixture in sorted(((float(key), value) for key, value in found.items()), key=lambda pair: pair[0]):
        status = "certified" if share <= largest + 1e-12 else "not examined" if stopped else "not certified"
        stopped = stopped or status == "not certified"
        estimates = mixture.get("estimates") or {}
        trusted = bool(mixture.get("trusted", True))
        entry = Entry(reading.candidate, _candidate_rows(reading), True, True, estimates, {}, trusted)
        cells = []
        for metric in reading.metrics:
            figures = reading.quoted(entry, metric)
            relative = reading.relative(figures, entry.rows, metric)
            difference = Range.of(figures.get("difference"), metric.scale)
            texts = share_texts(relative) if relative else difference.texts(metric.points, sign=True)
            cells.append({"metric": metric.name, "texts": texts, "tone": entry.tone(metric, difference)})
        tone = {"certified": "good", "not certified": "bad", "not examined": "unclear"}[status]
        ess = (mixture.get("diagnostics") or {}).get("ess")
        rows.append(
            {
                "share": share,
                "text": percent(share),
                "status": status,
                "tone": tone,
                "ess": plain(whole(ess)),
                "cells": cells,
            }
        )
    title = f"Certified up to {percent(largest)} of traffic" if largest else "No share of traffic certified"
    return {
        "strip": pictures.strip([(row["share"], row["tone"]) for row in rows], largest, title),
        "rows": rows,
        "metrics": [metric.name for metric in reading.metrics],
    }


def _candidate_rows(reading: Reading) -> str:
    return next((entry.rows for entry in reading.policies if entry.candidate), "test")
