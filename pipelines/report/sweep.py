"""What other weights would cost and bring: the members of a sweep against the logging policy, and the front."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.report import svg as pictures
from pipelines.report.policies import share_texts
from pipelines.report.reading import UNTRUSTED
from pipelines.report.svg import Point
from pipelines.report.text import Range, estimator_name, known, metric_name, percent, plain, policy_name, short, whole
from policies.pareto import non_dominated

View = dict[str, Any]

SIZES = (3.5, 8.5)
"""Radius of a dot at the least and at the largest of the third objective."""


def trade_off(found: Mapping[str, Any] | None) -> View | None:
    """The pictures and the table of a sweep as `policies.sweep.compare` left it; None where there was none."""
    if not found:
        return None
    objectives: dict[str, str] = dict(found["objectives"])
    across = next((name for name, way in objectives.items() if way == "down"), next(iter(objectives)))
    upward = [name for name in objectives if name != across]
    members = sorted(found["members"].items(), key=lambda pair: _value(pair[1], found, across) or 0.0)
    confidence = known(found.get("confidence"))
    units = found.get("units") or {}
    return {
        "members": plain(len(members)),
        "learner": policy_name(str(found["learner"])),
        "users": plain(found["users"]),
        "unit": found["unit"],
        "estimator": estimator_name(str(found["estimator"])),
        "interval": f"{percent(confidence)} interval" if confidence else "interval",
        "swept": [metric_name(name) for name in found["swept"]],
        "pictures": [view for up in upward if (view := _picture(found, members, across, up))],
        "columns": [
            {"name": metric_name(name), "unit": f"{units.get(name, '')} {found['unit']}".strip(), "way": way}
            for name, way in objectives.items()
        ],
        "alphas": bool(found.get("alphas")),
        "rows": [_row(found, name, member) for name, member in members],
        "untrusted": not all(member["trusted"] for _, member in members),
        "diverged": list(found.get("diverged") or []),
        "joined": metric_name(across).lower(),
    }


def _figures(member: Mapping[str, Any], found: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    return dict(member["estimates"][found["estimator"]][metric])


def _value(member: Mapping[str, Any], found: Mapping[str, Any], metric: str) -> float | None:
    return known(_figures(member, found, metric).get("estimate"))


def _relative(member: Mapping[str, Any], found: Mapping[str, Any], metric: str) -> Range:
    return Range.of(_figures(member, found, metric).get("relative"), 100)


def _row(found: Mapping[str, Any], name: str, member: Mapping[str, Any]) -> View:
    cells = []
    for metric in found["objectives"]:
        relative = _relative(member, found, metric)
        text = share_texts(relative.scaled(0.01)) if relative.value is not None else None
        cells.append(
            {"name": metric_name(metric), "value": Range.of(_figures(member, found, metric)).texts(), "relative": text}
        )
    return {
        "name": name + ("" if member["trusted"] else UNTRUSTED),
        "weights": [(metric_name(name), short(member["weights"][name], sign=True)) for name in found["swept"]],
        "alpha": short(member["alpha"]),
        "cells": cells,
        "front": member["front"],
        "probability": percent(member["front_probability"]),
        "ess": plain(whole(member["diagnostics"]["ess"])),
    }


def _weights(found: Mapping[str, Any], member: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {short(member['weights'][name], sign=True)}" for name in found["swept"])


def _picture(
    found: Mapping[str, Any], members: Sequence[tuple[str, Mapping[str, Any]]], across: str, up: str
) -> View | None:
    """Change from the logging policy in `across` (x) and `up` (y); a third objective is the size of the dots."""
    placed = [
        (name, member, x, y)
        for name, member in members
        if member["trusted"]
        and (x := _relative(member, found, across)).value is not None
        and (y := _relative(member, found, up)).value is not None
    ]
    if not placed:
        return None
    others = [name for name in found["objectives"] if name not in (across, up)]
    sizes = (
        _sizes([_relative(member, found, others[0]).value for _, member, _, _ in placed]) if len(others) == 1 else {}
    )
    points = [
        Point(
            label=name if member["front"] else "",
            x=x,
            y=y,
            tone="accent" if member["front"] else "neutral",
            tip=_tip(found, name, member),
            size=sizes.get(place, 5.0),
            thin=True,
        )
        for place, (name, member, x, y) in enumerate(placed)
    ]
    signs = [1 if found["objectives"][name] == "up" else -1 for name in (across, up)]
    at = np.array([(x.value, y.value) for _, _, x, y in placed], dtype=np.float64)
    joined = at[non_dominated(at * signs)]
    line = [(float(x), float(y)) for x, y in joined[np.lexsort((joined[:, 1], joined[:, 0]))]]
    title = f"{metric_name(up)} against {metric_name(across).lower()}"
    picture = pictures.scatter(
        # Those on the front lie above the others.
        sorted(points, key=lambda point: point.tone == "accent"),
        f"{metric_name(across)}, change from logging policy",
        f"{metric_name(up)}, change",
        (_ticker, _ticker),
        title,
        line,
    )
    return {"title": title, "picture": picture, "sized": metric_name(others[0]).lower() if sizes else None}


def _ticker(value: float) -> str:
    return short(value, sign=True) + "%"


def _sizes(values: Sequence[float | None]) -> dict[int, float]:
    """Radius of the dots whose value is known, by place; none where all are equal."""
    there = {place: value for place, value in enumerate(values) if value is not None}
    low, high = min(there.values(), default=0.0), max(there.values(), default=0.0)
    if low == high:
        return {}
    return {place: SIZES[0] + (SIZES[1] - SIZES[0]) * (value - low) / (high - low) for place, value in there.items()}


def _tip(found: Mapping[str, Any], name: str, member: Mapping[str, Any]) -> str:
    changes = [
        f"{metric_name(metric)} {' '.join(part for part in relative.texts('%', sign=True, most=1) if part)}"
        for metric in found["objectives"]
        if (relative := _relative(member, found, metric)).value is not None
    ]
    return f"{name} ({_weights(found, member)}): {', '.join(changes)}"
