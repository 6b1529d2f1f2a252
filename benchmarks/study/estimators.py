"""What every estimator says of the members on the log's own test split, and what the gate would have promoted there."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.study.members import load
from benchmarks.study.source import Source, log_of
from benchmarks.study.truth import UTILITY, Candidate, Truth
from benchmarks.study.verdicts import Court, held_out
from models.contract import SPLITS
from models.table import Transitions
from policies.base import Floats
from policies.ope.linear import fit_linear
from policies.ope.on_policy import on_policy
from policies.ope.target import Target
from policies.rowset import Metrics, RowSet

FEW = 100
"""Resamples behind a point estimate."""
Estimates = dict[str, dict[str, float]]
"""Estimator -> component, and `utility` -> the estimated difference from the logging policy."""


def study_members(source: Source, place: Path, names: Sequence[str], tried: int) -> dict[str, Any]:
    """By member: `estimates`, and `alone` and `among`, the gate's verdict on it as the only try and as one of `tried`.

    On the test split of the log that the members learned from; value functions from the other users.
    """
    table = log_of(source, source.config.seed)
    test = table.split == SPLITS.index("test")
    court = _court(source, tried)
    shares = sorted(set(court.gate.shares) | {1.0})
    points = Points.of(table, test, source)
    found: dict[str, Any] = {}
    for name in names:
        alone = Target.of(load(place)[name], table)
        targets = [alone if share == 1 else alone.mixture(table, share) for share in shares]
        q = held_out(table, test, targets, fit_linear)
        replicates = court.replicates(targets, q)
        found[name] = {
            "estimates": points.differences(alone, q[-1]),
            "diagnostics": court.rows.diagnostics(alone),
            **{
                key: _judged(court.trying(number), shares, targets, q, replicates)
                for key, number in (("alone", 1), ("among", tried))
            },
        }
    return found


@functools.lru_cache(maxsize=1)
def _court(source: Source, tried: int) -> Court:
    config = source.config
    table = log_of(source, config.seed)
    needed = math.ceil(tried / (1 - config.gate.confidence) + 1e-9)
    settings = replace(config.evaluate, resamples=max(config.evaluate.resamples, needed))
    return Court.of(table, table.split == SPLITS.index("test"), settings, config.gate, config.seed)


def _judged(
    court: Court, shares: Sequence[float], targets: Sequence[Target], q: Sequence[Floats], found: Sequence[Metrics]
) -> dict[str, Any]:
    described = dict(zip(shares, court.described(targets, q, found), strict=True))
    mixtures = {share: described[share] for share in court.gate.shares}
    verdict = court.verdict(described[1.0], mixtures)
    return {"verdict": verdict["verdict"], "largest_share": verdict["largest_share"]}


class Points:
    """Point estimates of differences from the logging policy, on some rows of a log."""

    def __init__(self, rows: RowSet, weights: Mapping[str, float]) -> None:
        self.rows, self.weights = rows, weights
        self.logged = self._values(rows.metrics(on_policy(rows.sample)))

    @classmethod
    def of(cls, table: Transitions, rows: Any, source: Source) -> "Points":
        # The fewest: the log itself is what counts, and MAGIC's weights are all that the resamples make.
        settings = replace(source.config.evaluate, resamples=FEW)
        return cls(RowSet.of(table, rows, settings, source.config.seed), source.config.learning.weights)

    def differences(self, target: Target, q: Any) -> Estimates:
        """V(pi) - V(mu) of every estimator, NaN where the log cannot say."""
        found = {}
        for estimator, metrics in self.rows.estimates(target, q).items():
            values = self._values(metrics)
            found[estimator] = {name: values[name] - self.logged[name] for name in values}
        return found

    def _values(self, metrics: Metrics) -> dict[str, float]:
        values = {name: float(each[0]) for name, each in metrics.items()}
        return {**values, UTILITY: sum(weight * values[name] for name, weight in self.weights.items())}


def errors(estimates: Estimates, truth: Truth) -> Iterator[tuple[str, str, float, float]]:
    """(estimator, component, estimated, true difference), both as shares of the logging policy's |true value|."""
    for estimator, values in estimates.items():
        for name, value in values.items():
            true, own = truth[name]["difference"], truth[name]["value"]
            if true is None or own is None or own == true:
                continue
            base = abs(own - true)
            yield estimator, name, value / base, true / base


def summary(pairs: Sequence[tuple[Estimates, Truth]]) -> dict[str, Any]:
    """Per estimator and component the `bias` and `standard_deviation` of its error over policies, and Spearman's
    `rank_correlation` with the truth; `known` is how many policies it gave a number for.

    Errors are of V(pi) - V(mu), as shares of the logging policy's true value.
    """
    gathered: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for estimates, truth in pairs:
        for estimator, name, estimated, true in errors(estimates, truth):
            gathered.setdefault(estimator, {}).setdefault(name, []).append((estimated, true))
    return {estimator: _measured(by_name) for estimator, by_name in gathered.items()}


def _measured(by_name: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {
        key: {} for key in ("bias", "standard_deviation", "rank_correlation", "known")
    }
    for name, values in by_name.items():
        both = np.array([each for each in values if np.isfinite(each[0])]).reshape(-1, 2)
        error = both[:, 0] - both[:, 1]
        found["known"][name] = len(both)
        found["bias"][name] = float(error.mean()) if len(both) else None
        found["standard_deviation"][name] = float(error.std(ddof=1)) if len(both) > 1 else None
        varies = len(both) > 2 and np.ptp(both, axis=0).min() > 0
        found["rank_correlation"][name] = float(stats.spearmanr(*both.T).statistic) if varies else None
    return found


def by_share(
    asked: Sequence[Candidate], truth: Mapping[str, Truth], logs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """By rollout share, estimator and component: what each candidate's error is over independent logs.

    `bias`: mean over candidates of the mean error over logs, and its `bias_error`, a standard error over logs;
    `standard_deviation`: root mean square over candidates of the standard deviation over logs. Errors as in `summary`.
    """
    found: dict[str, Any] = {}
    for share in sorted({each.share for each in asked}):
        names = [each.name for each in asked if each.share == share]
        gathered: dict[str, dict[str, list[list[float]]]] = {}
        for log in logs:
            here: dict[tuple[str, str], list[float]] = {}
            for name in names:
                for estimator, component, estimated, true in errors(log[name]["estimates"], truth[name]):
                    here.setdefault((estimator, component), []).append(estimated - true)
            for (estimator, component), values in here.items():
                gathered.setdefault(estimator, {}).setdefault(component, []).append(values)
        found[f"{share:g}"] = {
            estimator: {component: _over_logs(np.array(values)) for component, values in by_name.items()}
            for estimator, by_name in gathered.items()
        }
    return found


def _over_logs(error: NDArray[np.float64]) -> dict[str, float | None]:
    """Of `error` [L logs, n candidates], NaN where a log cannot say; `known` is the share of those that can."""
    known = np.isfinite(error)
    seen = error[:, known.sum(axis=0) >= 2]
    seen = seen[np.isfinite(seen).any(axis=1)]
    if len(seen) < 2:
        return {"bias": None, "bias_error": None, "standard_deviation": None, "known": float(known.mean())}
    seen = np.where(np.isfinite(seen), seen, np.nan)
    each = np.nanmean(seen, axis=1)
    return {
        "bias": float(np.nanmean(seen)),
        "bias_error": float(each.std(ddof=1) / len(each) ** 0.5),
        "standard_deviation": float(np.sqrt(np.nanvar(seen, axis=0, ddof=1).mean())),
        "known": float(known.mean()),
    }
