"""Reading an experiment: is it one, what changed, is that enough; a verdict with reasons."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc

from models.errors import InputError
from policies.abtest.config import AbtestConfig, ExperimentMetric
from policies.abtest.effects import Effect, effect
from policies.abtest.sequential import AlwaysValid, Looks, Monitor
from policies.abtest.users import Users
from policies.abtest.words import goal_reason, guardrail_reason
from policies.base import Floats

MISMATCH = 0.001
"""p below which the arms' sizes are taken for a fault. Source: Fabijan et al. 2019."""


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> dict[str, Any]:
    """Chi-square of users per arm against their shares: sum (n - N p)^2 / (N p), arms - 1 degrees of freedom."""
    found, total = np.asarray(counts, np.float64), sum(counts)
    expected = total * np.asarray(shares, np.float64)
    statistic = float(((found - expected) ** 2 / expected).sum())
    p = float(chdtrc(len(found) - 1, statistic))
    return {
        "counts": [int(n) for n in counts],
        "expected": expected.tolist(),
        "chi2": statistic,
        "p": p,
        "ok": p >= MISMATCH,
    }


def holm(p: Sequence[float]) -> Floats:
    """[m] p-values adjusted for all of them: max over the smaller ones of (m - rank + 1) p, at most 1.

    Source: Holm 1979.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted: Floats = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


@dataclass(frozen=True)
class Clock:
    """Which cut-offs of the users are over, and how far that is on the way to the planned end."""

    users: Users
    """Those that count."""
    fraction: tuple[float, ...]
    """looks: [L] of the planned length at each look that is over."""

    def effects(self, treatment: int, metric: str, cuped: bool) -> list[Effect]:
        """[L] of treatment against control at each cut-off."""
        arm = self.users.arm
        found = []
        for number in range(self.users.until.shape[1]):
            measure = self.users.measure(metric, number)
            found.append(effect(measure.of(arm == 0), measure.of(arm == treatment), cuped))
        return found

    def monitor(self, effects: Sequence[Effect], treatment: int, config: AbtestConfig, part: float = 1.0) -> Monitor:
        """What z must exceed; `part` of the planned users are expected, in a segment.

        A look at which there was nothing to read yet was none: what it would have spent, the next one spends.
        """
        if config.method == "looks":
            looks = [each for each in zip(self.fraction, effects, strict=True) if each[1].readable(config.min_events)]
            fraction, read_at = zip(*looks, strict=True)
            return Looks(fraction, tuple(1 / each.variance for each in read_at), config.spending)
        counted = int(np.isin(self.users.arm, (0, treatment)).sum())
        planned = (config.users or 0) * (config.shares[0] + config.shares[treatment]) * part
        return AlwaysValid(counted / planned, config.alpha / config.tests)


def read(clock: Clock, enrolled: Sequence[int], config: AbtestConfig) -> dict[str, Any]:
    """Sample ratio, every comparison and its verdict, segments; plain for JSON.

    `enrolled` users of each arm are all that take part, those whose time is not over among them. Verdicts: INVALID
    where the arms' sizes do not fit their shares, and then nothing is compared; HARM where a guardrail is broken or a
    goal is shown to be worse; BETTER where a goal is shown to be better and every guardrail holds; else UNDECIDED.
    Goals are shown by Holm's p-values over goals and treatments, their intervals are at alpha / tests; guardrails have
    to hold all, each at alpha.

    Raises InputError where always-valid reading lacks the planned users, and as `Users.measure`.
    """
    if config.method == "always_valid" and config.users is None:
        raise InputError(
            "abtest.users: missing; an always-valid reading is tuned to the planned number of users before it begins: "
            "run `tactful abtest plan` and copy what it says."
        )
    ratio = sample_ratio(enrolled, config.shares)
    found: dict[str, Any] = {"method": config.method, "arms": list(config.arms), "sample_ratio": ratio}
    counted = [int((clock.users.arm == arm).sum()) for arm in range(len(config.arms))]
    found["counted"] = counted
    if not ratio["ok"]:
        sizes = ", ".join(f"{arm} {n:,}" for arm, n in zip(config.arms, enrolled, strict=True))
        reason = (
            f"sample ratio: {sizes} where shares of {', '.join(f'{p:g}' for p in config.shares)} were planned "
            f"(p = {ratio['p']:.1e}). Users are missing from an arm for a reason, and the arms are no longer alike: no "
            "effect is shown. Look for who was assigned and not logged, then start anew."
        )
        verdict = {"verdict": "INVALID", "reasons": [reason], "metrics": {}}
        return {**found, "comparisons": dict.fromkeys(config.treatments, verdict), "segments": []}
    comparisons = _comparisons(clock, counted, config)
    return {
        **found,
        "comparisons": {arm: _judged(metrics) for arm, metrics in comparisons.items()},
        "segments": segments(clock, config),
    }


def _comparisons(clock: Clock, counted: Sequence[int], config: AbtestConfig) -> dict[str, dict[str, Any]]:
    """Treatment -> metric -> figures and their state."""
    found: dict[str, dict[str, Any]] = {}
    tests: list[dict[str, Any]] = []
    for treatment, arm in enumerate(config.treatments, start=1):
        found[arm] = {}
        ready = min(counted[0], counted[treatment]) >= config.min_users
        for name, metric in config.metrics.items():
            effects = clock.effects(treatment, name, config.pre_days > 0) if ready else []
            alpha = config.alpha / config.tests if name in config.goals else config.alpha
            figures = _figures(clock, effects, treatment, config, alpha)
            figures |= {
                "role": "goal" if name in config.goals else "guardrail",
                "direction": metric.direction,
                "users": [counted[0], counted[treatment]],
            }
            found[arm][name] = figures
            tests += [figures] if name in config.goals else []
    adjusted = holm([1.0 if each["p"] is None else each["p"] for each in tests])
    for figures, p in zip(tests, adjusted, strict=True):
        figures["p_holm"] = float(p)
    for metrics in found.values():
        for name, figures in metrics.items():
            figures |= _state(name, config.metrics[name], figures, config)
    return found


def _figures(
    clock: Clock, effects: Sequence[Effect], treatment: int, config: AbtestConfig, alpha: float, part: float = 1.0
) -> dict[str, Any]:
    """Levels, difference and relative difference with intervals at two-sided `alpha`, and p; null where unknown."""
    nothing = dict.fromkeys(("control", "treatment", "difference", "relative", "z", "p", "explained", "without_cuped"))
    if not effects:
        return {**nothing, "alpha": alpha}
    last = effects[-1]
    levels = {"control": _number(last.control), "treatment": _number(last.treatment)}
    if not last.readable(config.min_events):
        return {**nothing, **levels, "alpha": alpha}
    monitor = clock.monitor(effects, treatment, config, part)
    bound = monitor.bound(alpha)
    found: dict[str, Any] = {
        **levels,
        "alpha": alpha,
        "difference": _interval(last.difference, last.variance, bound),
        "relative": _interval(last.relative, last.relative_variance, bound),
        "z": last.z,
        "bound": bound,
        "p": monitor.p_value(last.z),
        "explained": last.explained,
        "without_cuped": last.without_cuped,
    }
    if isinstance(monitor, Looks):
        found["looks"] = [
            {"day": config.looks[-1] * fraction, "bound": float(limit)}
            for fraction, limit in zip(monitor.fraction, monitor.bounds(alpha), strict=True)
        ]
    return found


def _interval(estimate: float, variance: float, bound: float) -> dict[str, float | None]:
    """`standard_error` is of the estimate alone; the interval allows for every look."""
    error = float(np.sqrt(variance))
    ends = {"low": estimate - bound * error, "high": estimate + bound * error}
    return {key: _number(value) for key, value in {"estimate": estimate, **ends, "standard_error": error}.items()}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def signed(figures: Mapping[str, Any], direction: str) -> tuple[float, float, float] | None:
    """(estimate, low, high) of the relative difference, more being better; None where it is unknown."""
    relative = figures["relative"]
    if relative is None or relative["low"] is None:
        return None
    estimate, low, high = relative["estimate"], relative["low"], relative["high"]
    return (estimate, low, high) if direction == "up" else (-estimate, -high, -low)


def _state(name: str, metric: ExperimentMetric, figures: Mapping[str, Any], config: AbtestConfig) -> dict[str, Any]:
    """`state` and `reason`: better, worse or undecided of a goal; holds, broken or undecided of a guardrail."""
    turned = signed(figures, metric.direction)
    if metric.margin is None:
        # Without a relative effect (a control of 0) the sign still says which is more.
        shown = figures["p_holm"] <= config.alpha and figures["z"] is not None
        better = shown and (figures["z"] > 0) == (metric.direction == "up")
        state = ("better" if better else "worse") if shown else "undecided"
        return {"state": state, "reason": goal_reason(name, state, turned, figures, config)}
    state = "undecided"
    if turned is not None and turned[1] >= -metric.margin:
        state = "holds"
    elif turned is not None and turned[2] < -metric.margin:
        state = "broken"
    return {"state": state, "reason": guardrail_reason(name, state, turned, figures, metric.margin, config)}


def _judged(metrics: dict[str, Any]) -> dict[str, Any]:
    states = {name: figures["state"] for name, figures in metrics.items()}
    harmful = [name for name, state in states.items() if state in ("worse", "broken")]
    better = [name for name, state in states.items() if state == "better"]
    loose = [name for name, state in states.items() if state == "undecided" and metrics[name]["role"] == "guardrail"]
    if harmful:
        verdict, decided = "HARM", harmful
    elif better and not loose:
        verdict, decided = "BETTER", list(metrics)
    else:
        verdict, decided = "UNDECIDED", [*loose, *(name for name in metrics if name not in loose)]
    return {"verdict": verdict, "reasons": [metrics[name]["reason"] for name in decided], "metrics": metrics}


def segments(clock: Clock, config: AbtestConfig) -> list[dict[str, Any]]:
    """Effects within groups of users, to explore: Holm's p over all of them, intervals at alpha / their number.

    Groups are known at the enrolment. One with fewer than `min_users` in an arm is named, and has no figures.

    Raises InputError where a segment is neither a state feature nor a category.
    """
    rows: list[dict[str, Any]] = []
    made: list[tuple[Clock, list[Effect], int, float]] = []
    for name in config.segments:
        groups = segment_groups(clock.users, name, config.segment_groups)
        for label, members in groups:
            part = Clock(clock.users.where(members), clock.fraction)
            for treatment, arm in enumerate(config.treatments, start=1):
                counts = [int((part.users.arm == each).sum()) for each in (0, treatment)]
                ready = min(counts) >= config.min_users
                for metric in config.metrics:
                    effects = part.effects(treatment, metric, config.pre_days > 0) if ready else []
                    rows.append({"segment": name, "group": label, "arm": arm, "metric": metric, "users": counts})
                    made.append((part, effects, treatment, 1 / len(groups)))
    # Every row is a look, those without figures too: whether they have some is not known beforehand.
    found = [
        {**row, **_figures(part, effects, treatment, config, config.alpha / len(rows), share)}
        for row, (part, effects, treatment, share) in zip(rows, made, strict=True)
    ]
    for row, p in zip(found, holm([1.0 if row["p"] is None else row["p"] for row in found]), strict=True):
        row["p_holm"] = float(p)
    return found


def segment_groups(users: Users, name: str, groups: int) -> list[tuple[str, Any]]:
    """(label, rows [U]) of a category's values, or of a feature's quantile groups; unknown values are a group too."""
    categories = [feature for feature in users.features if feature.startswith(f"{name}=")]
    if categories:
        columns = users.state[:, [users.features.index(feature) for feature in categories]]
        parts = [(feature, column == 1) for feature, column in zip(categories, columns.T, strict=True)]
        rest = ~np.any([rows for _, rows in parts], axis=0)
        return [(label, rows) for label, rows in [*parts, (f"{name} is another", rest)] if rows.any()]
    if name not in users.features:
        raise InputError(
            f"abtest.segments: {name!r} is neither a state feature nor a category; found {', '.join(users.features)}."
        )
    values = users.state[:, users.features.index(name)].astype(np.float64)
    known = np.isfinite(values)
    parts = []
    if known.any():
        # Where many share a value, groups merge.
        inner = np.unique(np.quantile(values[known], np.arange(1, groups) / groups, method="lower"))
        edges = [-np.inf, *(edge for edge in inner if edge < values[known].max()), np.inf]
        for low, high in itertools.pairwise(edges):
            label = name if np.isinf([low, high]).all() else f"{name} <= {high:g}"
            if np.isfinite(low):
                label = f"{name} > {low:g}" if np.isinf(high) else f"{low:g} < {name} <= {high:g}"
            parts.append((label, known & (values > low) & (values <= high)))
    return [*parts, *([(f"{name} is unknown", ~known)] if (~known).any() else [])]
