"""What the coverage study shows a person: tables in the terminal, and docs/coverage.md with its picture.

The page keeps its words; what stands between `<!-- NAME -->` and `<!-- /NAME -->` is made from the summary.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.coverage_log import KINDS, METRICS, SOUND
from models.errors import InputError

PAGE, PICTURE = "coverage.md", "coverage.svg"


def shown(summary: dict[str, Any]) -> Table:
    """Coverage of the sound estimators by band, for the terminal."""
    rows = _by_band(summary)
    table = Table(*rows[0], title=f"coverage of 95% intervals, {summary['logs']} logs: mean (least, most) over metrics")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def write_page(docs: Path, summary: dict[str, Any]) -> None:
    """Make the tables of docs/coverage.md and its picture anew.

    Raises InputError where the page is missing or lacks a place for one of them.
    """
    page = docs / PAGE
    if not page.exists():
        raise InputError(f"{page}: not there; name the folder that holds the page with --docs.")
    text = page.read_text()
    for name, block in _blocks(summary).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise InputError(f"{page}: no place for {name}; put <!-- {name} --> and <!-- /{name} --> where it belongs.")
        text = pattern.sub(partial(_filled, block), text)
    page.write_text(text)
    _draw(docs / PICTURE, summary)


def _filled(block: str, match: re.Match[str]) -> str:
    return f"{match[1]}{block}\n{match[2]}"


def _blocks(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "setting": _setting(summary),
        "bands": _markdown(_by_band(summary)),
        "cells": _markdown(_by_metric(summary)),
        "misses": "\n".join(f"- {miss}" for miss in summary["misses"]) or _no_miss(summary),
        "others": _markdown(_others(summary)),
        "overlap": _markdown(_by_overlap(summary)),
        "floor": ", ".join(
            f"{name} {'nowhere' if least is None else f'{least:,.0f}'}" for name, least in summary["floor"].items()
        ),
    }


def _setting(summary: dict[str, Any]) -> str:
    worst = max(
        share for each in summary["truth"]["error_share"].values() for share in each.values() if share is not None
    )
    events = ", ".join(
        f"{summary['fewest_events'][name]:,.0f} {name}" for name in ("sends", "clicks", "visits", "disables")
    )
    targets = ", ".join(
        f"κ = {each['kappa']} ({each['ess_share']:.0%} effective, {each['ess_share_range'][0]:.0%} to "
        f"{each['ess_share_range'][1]:.0%} over the logs)"
        for each in summary["overlap"]
        if each["band"]
    )
    return (
        f"{summary['logs']} logs of {summary['users']:,} users and {summary['days']} days; in the poorest of them "
        f"{events}. Targets: {targets}. The true differences of these are known from {summary['truth']['users'][0]:,} "
        f"users, the logging policy's own value from {summary['truth']['logging_users']:,}: the truth's standard error "
        f"is at most {worst:.0%} of an estimate's own. {summary['resamples']} resamples. "
        f"{summary['seconds'] / 60:.0f} minutes on {summary['processes']} processes of {summary['threads']} thread "
        f"each ({summary['cpu_seconds'] / 60:.0f} "
        "minutes of processor time)."
    )


def _no_miss(summary: dict[str, Any]) -> str:
    return "None." if summary["judged"] else "Not judged: too few logs."


def _by_band(summary: dict[str, Any]) -> list[list[str]]:
    bands = [each["band"] for each in summary["overlap"] if each["band"]]
    rows = [["estimator", *(f"{band}, {kind}" for band in bands for kind in KINDS), "mean"]]
    own = list(summary["coverage"]["on_policy"].values())
    rows.append(["on_policy (V(μ))", _range(own), *[""] * (2 * len(bands) - 1), _percent(float(np.mean(own)))])
    for estimator in SOUND:
        cells = summary["coverage"][estimator]
        columns = [[cells[f"{band} {kind} {name}"] for name in METRICS] for band in bands for kind in KINDS]
        rows.append([estimator, *map(_range, columns), _percent(summary["mean_coverage"][estimator])])
    return rows


def _by_metric(summary: dict[str, Any]) -> list[list[str]]:
    """Every cell, by band, kind and metric."""
    bands = [each["band"] for each in summary["overlap"] if each["band"]]
    rows = [["cell", *SOUND]]
    for cell in (f"{band} {kind} {name}" for band in bands for kind in KINDS for name in METRICS):
        rows.append([cell, *(_percent(summary["coverage"][estimator][cell]) for estimator in SOUND)])
    return rows


def _others(summary: dict[str, Any]) -> list[list[str]]:
    bands = [each["band"] for each in summary["overlap"] if each["band"]]
    rows = [["estimator", "of", *(f"{band}: coverage, bias / sd" for band in bands)]]
    for estimator, cells in summary["biased"].items():
        for name in METRICS:
            found = [cells[f"{band} difference {name}"] for band in bands]
            shown = [f"{_percent(each['coverage'])}, {_signed(each['bias_in_sd'])}" for each in found]
            rows.append([estimator, name, *shown])
    return rows


def _by_overlap(summary: dict[str, Any]) -> list[list[str]]:
    rows = [["users", "κ", "effective users", "share", *(f"{name}: mean, least" for name in SOUND)]]
    for each in summary["overlap"] + summary["overlap_of_few"]:
        cells = [
            [x for kind in KINDS for x in each["coverage"][name][kind].values() if x is not None] for name in SOUND
        ]
        rows.append(
            [f"{each['users']:,}", str(each["kappa"]), f"{each['ess']:,.0f}", f"{each['ess_share']:.1%}"]
            + [f"{_percent(float(np.mean(found)))}, {_percent(min(found))}" if found else "–" for found in cells]
        )
    return rows


def _draw(path: Path, summary: dict[str, Any]) -> None:
    # Only a run that draws needs it.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "coverage", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.axhspan(92, 98, color="0.93")
        axis.axhline(95, color="0.6", linewidth=0.8)
        for number, name in enumerate(SOUND):
            for curve, style in (("overlap", "o-"), ("overlap_of_few", "^--")):
                drawn = summary[curve]
                cells = [list(each["coverage"][name][kind].values()) for each in drawn]
                mean = 100 * np.array(cells, dtype=np.float64).mean(axis=1)
                label = f"{name}, {drawn[0]['users']:,} users"
                ess = [each["ess"] for each in drawn]
                axis.plot(ess, mean, style, color=f"C{number}", markersize=3, linewidth=1.2, label=label)
        axis.set_xscale("log")
        axis.set_xlabel("effective users")
        axis.set_title("V(π)" if kind == "value" else "V(π) − V(μ)", fontsize=9)
    axes[0].set_ylabel("coverage, % of logs")
    axes[1].legend(fontsize=7, title="mean over the six metrics", title_fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _range(cells: list[float]) -> str:
    return f"{_percent(float(np.mean(cells)))} ({_percent(min(cells))}, {_percent(max(cells))})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
