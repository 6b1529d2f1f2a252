"""What the logs of the coverage study found, held against the truth: coverage, bias, misses, the curve of overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage_log import EPSILON, KINDS, LEVEL, METRICS, OTHERS, RESAMPLES, SOUND, Asked, Evaluated, Setting
from benchmarks.coverage_truth import Truth

CELL = (0.92, 0.98)
"""Coverage of one cell: 95% and three standard errors of 500 logs."""
MEAN = (0.935, 0.965)
"""Of the mean over an estimator's cells."""
EVENTS = 100
"""Of each component in each log."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """L logs, T targets, E estimators, M metrics; the first len(bands) targets are the bands of the bar."""

    setting: Setting
    bands: Mapping[str, tuple[float, float]]
    """Name -> least and largest share of effective users."""
    truth: Truth
    every: Asked
    """Of all users, every array with a first axis [L]."""
    few: Asked
    """Of the few."""
    totals: Floats
    """[L, M - 1]."""

    def coverage(self) -> Floats:
        """[T, E, 2, M] share of the logs whose interval holds the truth, of those that say anything."""
        return _coverage(self.every.figures, self.truth.targets[:, None, :, :, 0])

    def on_policy(self) -> Floats:
        """[M] of V(mu)."""
        return _coverage(self.every.logged, self.truth.logging[:, 0])

    def bias(self) -> Floats:
        """[T, E, 2, M] mean estimate less truth, in the estimate's own raw unit."""
        found: Floats = self._estimates().mean(axis=0).filled(np.nan) - self.truth.targets[:, None, :, :, 0]
        return found

    def spread(self) -> Floats:
        """[T, E, 2, M] standard deviation of the estimate over logs."""
        found: Floats = self._estimates().std(axis=0, ddof=1).filled(np.nan)
        return found

    def _estimates(self) -> Any:
        """[L, T, E, 2, M], without those that were not asked or could not say."""
        return np.ma.masked_invalid(self.every.figures[..., 0])

    def summary(self, judged: bool) -> dict[str, Any]:
        """Plain numbers ready for JSON; misses are listed where the bar is `judged`."""
        covered, bias, spread = self.coverage(), self.bias(), self.spread()
        cells = {"on_policy": {f"value {name}": float(x) for name, x in zip(METRICS, self.on_policy(), strict=True)}}
        biased: dict[str, dict[str, dict[str, float | None]]] = {}
        for place, estimator in enumerate(SOUND + OTHERS):
            for number, band in enumerate(self.bands):
                for kind, metric in np.ndindex(len(KINDS), len(METRICS)):
                    at, name = (number, place, kind, metric), f"{band} {KINDS[kind]} {METRICS[metric]}"
                    if estimator in SOUND:
                        cells.setdefault(estimator, {})[name] = float(covered[at])
                    else:
                        biased.setdefault(estimator, {})[name] = {
                            "coverage": _number(covered[at]),
                            "bias": _number(bias[at]),
                            "bias_in_sd": _number(bias[at] / spread[at]) if spread[at] > 0 else None,
                        }
        overlap, of_few = (
            [self._overlap(asked, users, number) for number in range(len(covered))]
            for asked, users in ((self.every, self.setting.users), (self.few, self.setting.few))
        )
        means = {estimator: float(np.mean(list(found.values()))) for estimator, found in cells.items()}
        return {
            "logs": len(self.totals),
            "users": self.setting.users,
            "days": self.setting.days,
            "epsilon": EPSILON,
            "level": LEVEL,
            "resamples": RESAMPLES,
            "coverage": cells,
            "mean_coverage": means,
            "biased": biased,
            "overlap": overlap,
            "overlap_of_few": of_few,
            "floor": _floor(overlap + of_few),
            "fewest_events": {
                name: float(least) for name, least in zip(METRICS, self.totals.min(axis=0), strict=False)
            },
            "truth": self._truth(spread),
            "judged": judged,
            "misses": self._misses(cells, means) if judged else [],
        }

    def _overlap(self, asked: Asked, users: int, number: int) -> dict[str, Any]:
        """Coverage by SOUND of one target, with how many of `users` are effective."""
        share = asked.ess[:, number] / users
        covered = _coverage(asked.figures[:, number], self.truth.targets[number, None, :, :, 0])
        share = share[~np.isnan(share)]
        figures = asked.figures[~np.isnan(asked.ess[:, number]), number]
        unsaid = np.isnan(figures[..., 0]).any(axis=(2, 3)).mean(axis=0)
        return {
            "users": users,
            "kappa": self.setting.kappas[number],
            "band": list(self.bands)[number] if number < len(self.bands) else None,
            "logs": len(share),
            "ess": float(np.nanmean(asked.ess[:, number])),
            "ess_share": float(share.mean()),
            "ess_share_range": [float(share.min()), float(share.max())],
            "unanswered": {estimator: float(unsaid[place]) for place, estimator in enumerate(SOUND)},
            "coverage": {
                estimator: {kind: _by_metric(covered[place, k]) for k, kind in enumerate(KINDS)}
                for place, estimator in enumerate(SOUND)
            },
        }

    def _truth(self, spread: Floats) -> dict[str, Any]:
        """How sharply the truth is known: its standard error as a share of the least of the estimates' own."""
        least = spread[: len(self.bands), : len(SOUND)].min(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = self.truth.targets[: len(self.bands), :, :, 1] / least
            own = self.truth.logging[:, 1] / self.every.logged[..., 0].std(axis=0, ddof=1)
        names = [(number, band, k, kind) for number, band in enumerate(self.bands) for k, kind in enumerate(KINDS)]
        shares = {f"{band} {kind}": error[number, k] for number, band, k, kind in names}
        return {
            "users": list(self.truth.users),
            "logging_users": self.truth.logging_users,
            "logging": _by_metric(self.truth.logging[:, 0]),
            "differences": {
                str(kappa): _by_metric(self.truth.targets[number, 1, :, 0])
                for number, kappa in enumerate(self.setting.kappas)
            },
            "error_share": {name: _by_metric(each) for name, each in {"on_policy": own, **shares}.items()},
        }

    def _misses(self, cells: dict[str, dict[str, float]], means: dict[str, float]) -> list[str]:
        found = [
            f"{estimator}, {name}: {value:.1%} of the logs, outside {CELL[0]:.0%} to {CELL[1]:.0%}"
            for estimator, each in cells.items()
            for name, value in each.items()
            if not CELL[0] <= value <= CELL[1]
        ]
        found += [
            f"{estimator}, mean over cells: {value:.2%}, outside {MEAN[0]:.1%} to {MEAN[1]:.1%}"
            for estimator, value in means.items()
            if not MEAN[0] <= value <= MEAN[1]
        ]
        share = self.every.ess.mean(axis=0) / self.setting.users
        found += [
            f"{band}: {share[number]:.1%} of the users are effective, outside {low:.0%} to {high:.0%}"
            for number, (band, (low, high)) in enumerate(self.bands.items())
            if not low <= share[number] <= high
        ]
        few = np.flatnonzero((self.totals < EVENTS).any(axis=0))
        found += [
            f"{METRICS[metric]}: {self.totals[:, metric].min():.0f} events in a log, fewer than {EVENTS}"
            for metric in few
        ]
        return found

    def save(self, path: Path) -> None:
        """Every figure of every log."""
        np.savez_compressed(
            path,
            figures=self.every.figures.astype(np.float32),
            few_figures=self.few.figures.astype(np.float32),
            logged=self.every.logged,
            ess=self.every.ess,
            few_ess=self.few.ess,
            totals=self.totals,
            truth=self.truth.targets,
            truth_logging=self.truth.logging,
        )


def found_of(
    setting: Setting, bands: Mapping[str, tuple[float, float]], truth: Truth, said: Sequence[Evaluated]
) -> Found:
    """What the logs said, in one piece."""
    every, few = (_stacked([getattr(each, name) for each in said]) for name in ("every", "few"))
    return Found(setting, bands, truth, every, few, np.stack([each.totals for each in said]))


def _stacked(asked: Sequence[Asked]) -> Asked:
    return Asked(*(np.stack([getattr(each, field.name) for each in asked]) for field in fields(Asked)))


def _floor(overlap: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """By estimator the fewest effective users at which, and at all more, the mean coverage over cells is that of the
    bar; None where it is not even at the most."""
    found: dict[str, float | None] = dict.fromkeys(SOUND)
    for estimator in SOUND:
        for each in sorted(overlap, key=lambda each: -float(each["ess"])):
            cells = [x for kind in KINDS for x in each["coverage"][estimator][kind].values() if x is not None]
            if not cells or np.mean(cells) < MEAN[0]:
                break
            found[estimator] = each["ess"]
    return found


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def _by_metric(values: Floats) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(METRICS, values, strict=True)}


def _coverage(figures: Floats, truth: Floats) -> Floats:
    """Of the logs (the first axis) that give an estimate, the share whose interval (low, high) holds the truth; one
    without an end reaches for ever on that side. NaN where no log says anything."""
    low, high = figures[..., 1], figures[..., 2]
    said = ~np.isnan(figures[..., 0])
    held = (np.where(np.isnan(low), -np.inf, low) <= truth) & (truth <= np.where(np.isnan(high), np.inf, high))
    with np.errstate(invalid="ignore"):
        found: Floats = (held & said).sum(axis=0) / said.sum(axis=0)
    return found
