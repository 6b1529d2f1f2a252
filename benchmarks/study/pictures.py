"""The pictures of docs/study.md, as SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.study.findings import HEADLINE, word
from benchmarks.study.members import KINDS
from benchmarks.study.truth import UTILITY, relative

COLOURS = {"ddqn": "#c4513d", "ddqn_cql": "#2f6f9f"}
STYLE: Any = {
    "svg.hashsalt": "study",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw(details: Mapping[str, Any], folder: Path) -> None:
    """Write study_truth.svg, study_estimators.svg, study_headline.svg and study_gate.svg."""
    pictures = {"truth": _truth, "estimators": _estimators, "headline": _headline, "gate": _gate}
    for name, make in pictures.items():
        with mpl.rc_context(STYLE):
            figure = make(details)
            # Without a date the same run draws the same bytes.
            figure.savefig(folder / f"study_{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def _truth(details: Mapping[str, Any]) -> Figure:
    """Every member by volume and utility, the logging policy at the crossing."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    for kind in KINDS:
        mine = [each for name, each in details["truth"].items() if name.startswith(f"{kind}/")]
        for place, other in zip(axes, (UTILITY, "weekly_active_days"), strict=True):
            x, y = ([100 * relative(each, name) for each in mine] for name in ("sends", other))
            place.scatter(x, y, s=12, color=COLOURS[kind], alpha=0.7, label=word(kind), linewidths=0)
    for place, other in zip(axes, (UTILITY, "weekly_active_days"), strict=True):
        place.axhline(0, color="black", lw=0.8)
        place.axvline(0, color="black", lw=0.8)
        place.set_xlabel("change in volume, %")
        place.set_ylabel(f"change in {word(other)}, %")
    axes[0].legend(loc="best")
    return figure


def _estimators(details: Mapping[str, Any]) -> Figure:
    """The estimated against the true change in utility, one panel an estimator."""
    names = list(details["estimators"])
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.1 * rows), squeeze=False, sharex=True)
    for place, estimator in zip(axes.flat, names, strict=False):
        for kind in KINDS:
            pairs = np.array(
                [
                    (relative(truth, UTILITY), _said(details, name, estimator))
                    for name, truth in details["truth"].items()
                    if name.startswith(f"{kind}/")
                ],
                dtype=float,
            ).reshape(-1, 2)
            place.scatter(100 * pairs[:, 0], 100 * pairs[:, 1], s=7, color=COLOURS[kind], alpha=0.7, linewidths=0)
        low, high = place.get_xlim()
        place.plot((low, high), (low, high), color="black", lw=0.8)
        place.set_title(estimator, fontsize=9)
    for place in axes.flat[len(names) :]:
        place.axis("off")
    figure.supxlabel("true change in utility, %", fontsize=9)
    figure.supylabel("estimated, %", fontsize=9)
    figure.tight_layout()
    return figure


def _said(details: Mapping[str, Any], name: str, estimator: str) -> float:
    """The estimated difference as a share of the logging policy's true utility."""
    said, found = details["estimates"][name][estimator][UTILITY], details["truth"]["logging"][UTILITY]["value"]
    return float("nan") if said is None else float(said / abs(found))


def _headline(details: Mapping[str, Any]) -> Figure:
    """Each metric of the headline by log size, a line for each exploration and learner."""
    figure, axes = plt.subplots(1, len(HEADLINE), figsize=(2.4 * len(HEADLINE), 2.8))
    found = details["headline"]
    sizes = [int(users) for users in found]
    epsilons = list(next(iter(found.values())))
    for place, metric in zip(axes, HEADLINE, strict=True):
        for style, epsilon in zip(("-", "--", ":", "-."), epsilons, strict=False):
            for shift, kind in zip((0.97, 1.03), KINDS, strict=True):
                each = [found[str(users)][epsilon][kind][metric] for users in sizes]
                mean, low, high = (
                    np.array([np.nan if e[key] is None else 100 * e[key] for e in each])
                    for key in ("mean", "low", "high")
                )
                label = f"{word(kind)}, ε {epsilon}"
                place.errorbar(
                    np.array(sizes) * shift, mean, (mean - low, high - mean), ls=style, lw=1.1, elinewidth=0.6,
                    color=COLOURS[kind], label=label,
                )  # fmt: skip
        place.axhline(0, color="black", lw=0.8)
        place.set_xscale("log")
        place.set_xticks(sizes, [f"{users:,}" for users in sizes])
        place.minorticks_off()
        place.set_title(f"{word(metric)}, %", fontsize=9)
    figure.supxlabel("users in the log", fontsize=9)
    figure.tight_layout()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=8)
    return figure


def _gate(details: Mapping[str, Any]) -> Figure:
    """How often each candidate was promoted, against its true volume, one panel a log size."""
    metrics = details["settings"]["config"]["gate"]["metrics"]
    sizes = list(next(iter(details["promoted"].values())))
    figure, axes = plt.subplots(1, len(sizes), figsize=(2.9 * len(sizes), 2.8), sharey=True, squeeze=False)
    (improve,) = (name for name, metric in metrics.items() if metric["improve"])
    for place, users in zip(axes[0], sizes, strict=True):
        for label, colour, names in _groups(details):
            x = [100 * relative(details["candidates"][name], improve) for name in names]
            y = [100 * details["promoted"][name][users] for name in names]
            place.scatter(x, y, s=14, color=colour, alpha=0.7, label=label, linewidths=0)
        place.set_title(f"{int(users):,} users", fontsize=9)
        # Linear near 0, where the mixtures are; whole members lie far out.
        place.set_xscale("symlog", linthresh=10)
        place.set_xticks((-100, -10, 0, 10), ("−100", "−10", "0", "10"))
        place.set_xlabel(f"true change in {word(improve)}, %")
    axes[0][0].set_ylabel("logs on which it was promoted, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _groups(details: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(label, colour, candidates) of those that harm, that improve, and the others."""
    harmful, improving = (set(details["gate_groups"][key]) for key in ("harmful", "improving"))
    others = [name for name in details["candidates"] if name not in harmful | improving]
    return [
        ("harm", "#c4513d", sorted(harmful)),
        ("neither", "#999999", others),
        ("improve", "#3a8a4d", sorted(improving)),
    ]
