"""docs/rewards.md, its figures renewed from a run of the study, its picture of what learned rewards bring, and
findings for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.rewards import goal, weights
from benchmarks.study.page import Rows, markdown, put
from benchmarks.study.pictures import STYLE

PICTURES = {
    "truth": "\n\n![True gain by the reward that was trained on](rewards_truth.svg)",
    "goal": "\n\n![Learned return and hidden utility by round](rewards_goal.svg)",
}
COLOURS = {"truth": "#444444", "weights": "#2f6f9f", "network": "#c4513d"}


def blocks(details: Mapping[str, Any]) -> dict[str, str]:
    """What stands between each pair of marks of the page: those of the parts that were run."""
    tables = {"weights": _weights, "truth": _truth, "goal": _goal, "judge": _judge}
    parts = details["parts"]
    found = {f"study {name}": markdown(tables[name](part)) + PICTURES.get(name, "") for name, part in parts.items()}
    if "weights" in parts:
        found["study active"] = markdown(_active(parts["weights"]))
    return {
        "study settings": markdown(_settings(details)),
        **found,
        "study findings": "\n".join(f"- {each}" for each in findings(details)),
    }


def fill(page: Path, details: Mapping[str, Any]) -> None:
    """Raises InputError where the page is not there or lacks the marks."""
    put(page, blocks(details))


def findings(details: Mapping[str, Any]) -> list[str]:
    """What came out against what was wanted, a sentence each."""
    parts, found = details["parts"], []
    if "weights" in parts:
        shares = parts["weights"]["weights_coverage"]
        off = [name for name, share in shares.items() if not 0.93 <= share <= 0.97]
        widths = parts["weights"]["weights_width"]
        saved = parts["weights"]["active_to_random_pairs"]["cosine"]
        least, never = weights.no_worse(parts["weights"])
        found.append(
            f"95% intervals of the weights hold the truth in {_percent(min(shares.values()))} to "
            f"{_percent(max(shares.values()))} of repetitions (93% to 97% wanted: "
            f"{'missed by ' + ', '.join(off) if off else 'met'}), with a median width at most "
            f"{max(widths.values()):.2f} times that of Fisher's information (1.25 wanted: "
            f"{_met(max(widths.values()) <= 1.25)})."
        )
        found.append(
            f"Active choice needs {saved['estimate']:.2f} of the pairs that random choice needs for the same cosine "
            f"({saved['low']:.2f} to {saved['high']:.2f}). Of both raters, by both measures and after any number of "
            f"pairs it is at worst {least:+.3f} ahead (never worse than random wanted: {_met(never)})."
        )
    if "truth" in parts:
        for form, each in parts["truth"]["gain_of_truth"].items():
            found.append(
                f"A policy trained on the learned {form} has {_share(each)} of the gain of one trained on the truth "
                f"(80% wanted: {_met(each['met'])} by the estimate; its gain less 80% of the truth's is "
                f"{_interval(each['margin'])})."
            )
    if "goal" in parts:
        naive, conservative = parts["goal"]["naive_hacked"], parts["goal"]["conservative_hacked"]
        better = parts["goal"]["better"]
        held = better["low"] is not None and better["low"] > 0
        found.append(
            f"The naive goal classifier is hacked on {_hacked(naive)}, the conservative one on {_hacked(conservative)} "
            f"(the first and not the second wanted). In hidden utility the conservative one is ahead by "
            f"{_interval(better)}: that it helps is {'shown' if held else 'not shown'}."
        )
    if "judge" in parts:
        cosine = parts["judge"]["judge_cosine"]
        found.append(
            f"The judge's weights, corrected for flips and position, have cosine {cosine:.3f} with the truth (0.95 "
            f"wanted: {_met(cosine >= 0.95)})."
        )
    return found


def _settings(details: Mapping[str, Any]) -> Rows:
    minutes = {name: f"{seconds / 60:.1f} min" for name, seconds in details["seconds_by_part"].items()}
    total = sum(details["seconds_by_part"].values()) / 60
    small = [("sizes", "toy ones: the figures say nothing")] if details["settings"]["small"] else []
    return [
        ("what", "size"),
        ("processes of one thread", f"{details['workers']}"),
        ("time", f"{total:.1f} min ({', '.join(f'{name} {time}' for name, time in minutes.items())})"),
        *small,
    ]


def _weights(part: Mapping[str, Any]) -> Rows:
    rows: Rows = [("component", "hidden weight", "mean of the learned", "coverage", "width against Fisher's")]
    for name, share in part["weights_coverage"].items():
        hidden, mean = (f"{part[key][name]:+.3g}" for key in ("weights_truth", "weights_mean"))
        rows.append((name, hidden, mean, _percent(share), f"{part['weights_width'][name]:.2f}"))
    return rows


def _active(part: Mapping[str, Any]) -> Rows:
    rows: Rows = [("rater", "by the cosine to the truth", "by the share of other pairs in the right order")]
    for rater, key in (("as the model", ""), ("noisier on unlike weeks", "_unlike")):
        told = part[f"active_to_random_pairs{key}"]
        shares = (told[measure] for measure in ("cosine", "accuracy"))
        rows.append((rater, *(f"{each['estimate']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in shares)))
    return rows


def _truth(part: Mapping[str, Any]) -> Rows:
    rows: Rows = [("reward", "gain in hidden utility", "share of the truth's gain", "sends", "clicks")]
    for name, each in part["gains"].items():
        share = _share(part["gain_of_truth"][name]) if name in part["gain_of_truth"] else "100%"
        change = part["components"][name]
        rows.append((name, _interval(each), share, f"{change['sends']:+.2f}", f"{change['clicks']:+.3f}"))
    return rows


def _goal(part: Mapping[str, Any]) -> Rows:
    rows: Rows = [("classifier", "hacked", "learned return, last policy", "hidden utility, last policy")]
    for arm in goal.ARMS:
        last = part["rounds"][arm][-1]
        rows.append((arm, _hacked(part[f"{arm}_hacked"]), _interval(last[goal.LEARNED]), _interval(last[goal.UTILITY])))
    return rows


def _judge(part: Mapping[str, Any]) -> Rows:
    told = part["judge"]
    rows: Rows = [("what", "mean over seeds, 95% interval", "least")]
    rows += [(f"cosine, {way}", _interval(each), f"{each['least']:.3f}") for way, each in told["cosine"].items()]
    for name in ("wrong", "bias"):
        each = told[name]
        rows.append((f"{name} (truth {each['truth']:g})", _interval(each), f"{each['least']:.3f}"))
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _met(held: bool) -> str:
    return "met" if held else "missed"


def _hacked(told: Mapping[str, Any]) -> str:
    return f"{_percent(told['share'])} of {told['seeds']} seeds ({_percent(told['low'])} to {_percent(told['high'])})"


def _share(told: Mapping[str, Any]) -> str:
    if told["ratio"] is None:
        return "an unknown share"
    if told["low"] is None:
        return f"{_percent(told['ratio'])} (no interval)"
    return f"{_percent(told['ratio'])} ({_percent(told['low'])} to {_percent(told['high'])})"


def _interval(told: Mapping[str, Any]) -> str:
    if told["mean"] is None:
        return "unknown"
    if told["low"] is None:
        return f"{told['mean']:+.3f}"
    return f"{told['mean']:+.3f} ({told['low']:+.3f} to {told['high']:+.3f})"


def draw(details: Mapping[str, Any], folder: Path) -> None:
    """Write rewards_truth.svg and rewards_goal.svg, of the parts that were run."""
    folder.mkdir(parents=True, exist_ok=True)
    if "truth" in details["parts"]:
        with mpl.rc_context({**STYLE, "svg.hashsalt": "rewards_truth"}):
            figure = _gains(details["parts"]["truth"])
            figure.savefig(folder / "rewards_truth.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
    if "goal" in details["parts"]:
        goal.draw(details["parts"]["goal"], folder)


def _gains(part: Mapping[str, Any]) -> Figure:
    """Every seed's gain by reward, a line a seed; the mean in bold."""
    figure, place = plt.subplots(figsize=(4.6, 3.2))
    names = list(part["by_seed"])
    values = np.array([part["by_seed"][name] for name in names])
    place.plot(names, values, color="#999999", lw=0.8, alpha=0.6)
    for column, name in enumerate(names):
        place.scatter([column] * values.shape[1], values[column], s=14, color=COLOURS[name], zorder=3)
    place.plot(names, values.mean(axis=1), color="black", lw=2, marker="o", label="mean")
    place.axhline(0, color="black", lw=0.8)
    place.set_ylabel("gain in hidden utility a user-week")
    place.set_xlabel("reward that the policy was trained on")
    place.legend(loc="best")
    return figure
