"""Thresholds from a reference period: what a day may look like before it is a warning, and before it stops the run.

Of a metric's values x over the whole days of the reference (at least 7), with m their median:

    s = max(1.4826 median|x - m|, (q90 - q10) / 2.563, floor)
    warning outside m ± 3 s, critical outside m ± 6 s        (quality.warning, quality.critical)

Both estimates are the standard deviation of a normal sample, and of 11 days or more one strange day moves neither. The
second sees what the first does not: weekends that differ from the other five days. The floor keeps a quiet reference
from firing on nothing; noise is sd / sqrt(median rows a day), that of a day's mean or share if its rows were
independent.

| metric | outside which side | floor of s |
|--------|--------------------|------------|
| rows (not of users) | both | 8% of m, sqrt(m) |
| send_rate, share:* (of kinds, silent, terminal) | both | 8% of m, noise, five rows |
| mean:reward_*, mean:elapsed_days | both | 8% of m, noise |
| null_share:* (of transitions: of features), other shares of bad rows | above | 0.005, 5% of m, noise, one row |
| propensity_least (of decisions) | both, on log10 | 0.1 (at m / 2 a warning, at m / 4 critical) |
| propensity_largest, inverse_sum (of decisions) | both | 0.05 |
| drift:state_*, drift:attribute:* | above, m = 0 | 0.1, one over sqrt(median rows a day) |

drift:NAME of a day is |mean - mean_ref| / sd_ref with mean_ref and sd_ref over all rows of the reference (sd_ref 1
where the feature was constant); x is the same without the bars.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.contract import REWARD_PREFIX, STATE_PREFIX
from models.errors import InputError
from pipelines.etl.quality.profiles import ATTRIBUTE, DATASETS, Clock, by_day, days_of, pooled, within

LEAST_DAYS = 7
"""A week: with fewer days nothing is known of weekends."""
DRIFT = "drift:"
NAME = "thresholds.json"
_RELATIVE, _SHARE, _LOG, _ABSOLUTE, _DRIFT = 0.08, (0.005, 0.05), 0.1, 0.05, 0.1
_SHARES = ("null_share:", "bad_share:", "reason_share:", "share_quarantined")
_FEATURES = (f"mean:{STATE_PREFIX}", f"mean:{ATTRIBUTE}")
_METRICS = {
    "decisions": ("rows", *_SHARES, "send_rate", "propensity_", "inverse_sum"),
    "events": ("rows", *_SHARES, "share:"),
    "users": _SHARES,
    "transitions": (
        *("rows", "share:", f"mean:{REWARD_PREFIX}", "mean:elapsed_days"),
        *(f"null_share:{STATE_PREFIX}", "null_share:propensity"),
    ),
}
"""What the metrics with bounds begin with; features are held to their drift."""
_UNJUDGED = ("share:usable", "share:warm_up", "share:truncated", "share:no_action")
"""Shares that say where in the log a day lies, or that another metric speaks for."""

Bounds = tuple[float | None, float | None]


class Threshold(BaseModel):
    """The bounds of one metric, in its own unit; None leaves a side open."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    centre: float
    """m"""
    spread: float = Field(ge=0)
    """s; of propensity_least in powers of ten"""
    days: int = Field(ge=1)
    """Whole days of the reference."""
    warning: Bounds
    critical: Bounds
    mean: float | None = None
    """mean_ref of a drift."""
    sd: float | None = Field(None, gt=0)
    """sd_ref of a drift."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        for level, (low, high) in (("warning", self.warning), ("critical", self.critical)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"{level} is [{low}, {high}]; the lower bound comes first")
        return self


class Thresholds(BaseModel):
    """What `tactful quality` writes, and every run reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: tuple[date, date]
    """First and last day."""
    levels: tuple[float, float]
    """How many s from m a warning and a critical bound lie."""
    datasets: dict[str, dict[str, Threshold]]
    """dataset -> metric -> bounds."""
    left_out: dict[str, list[str]]
    """dataset -> metrics with fewer than 7 whole days in the reference."""

    @model_validator(mode="after")
    def known(self) -> Self:
        for name, metrics in self.datasets.items():
            if name not in DATASETS:
                raise ValueError(f"{name} is no dataset (known: {', '.join(DATASETS)})")
            for metric, found in metrics.items():
                if metric.startswith(DRIFT) and (found.mean is None or found.sd is None):
                    raise ValueError(f"{metric} of {name}: mean or sd is missing")
        return self


def make_thresholds(
    partials: pa.Table, clock: Clock, reference: tuple[date, date], levels: tuple[float, float]
) -> Thresholds:
    """Bounds for every metric of every dataset, from its whole days in the reference (both ends included).

    Raises InputError where decisions or transitions have fewer than 7 such days.
    """
    found: dict[str, dict[str, Threshold]] = {}
    left_out: dict[str, list[str]] = {}
    first, last = (str(end) for end in reference)
    for dataset in DATASETS:
        days = days_of(partials, dataset)
        chosen = [day for day in days if first <= day <= last]
        found[dataset], left_out[dataset] = {}, []
        laid_out: dict[tuple[str, ...], tuple[Any, Any]] = {}
        for metric in _metrics(by_day(partials, dataset, chosen), dataset):
            whole = tuple(_whole(clock, dataset, metric, chosen))
            if len(whole) < LEAST_DAYS:
                left_out[dataset].append(metric)
                continue
            if whole not in laid_out:
                part = within(partials, whole)
                laid_out[whole] = by_day(part, dataset, list(whole)), pooled(part, dataset, "reference")
            found[dataset][metric] = _threshold(metric, *laid_out[whole], levels)
        if dataset in ("decisions", "transitions") and not found[dataset]:
            raise InputError(_too_short(dataset, reference, days, clock))
    return Thresholds(reference=reference, levels=levels, datasets=found, left_out=left_out)


def _whole(clock: Clock, dataset: str, metric: str, days: list[str]) -> list[str]:
    return [day for day, is_whole in zip(days, clock.whole(dataset, metric, days), strict=True) if is_whole]


def _too_short(dataset: str, reference: tuple[date, date], days: list[str], clock: Clock) -> str:
    whole = _whole(clock, dataset, DRIFT, days)
    there = f"whole days in the log: {len(whole)}" + (f", {whole[0]} to {whole[-1]}" if whole else "")
    return (
        f"quality.reference is {reference[0]} to {reference[1]}: fewer than {LEAST_DAYS} whole days of {dataset} lie "
        f"in it (after the warm-up, before the watermark; {there}); name a period that holds {LEAST_DAYS} of them."
    )


def _metrics(frame: Any, dataset: str) -> Iterator[str]:
    """The metrics of a profile that get bounds, drifts by their names."""
    for column in frame.columns:
        if column.startswith(_FEATURES):
            yield DRIFT + column.removeprefix("mean:")
        elif column.startswith(_METRICS[dataset]) and column not in _UNJUDGED:
            yield column


def _threshold(metric: str, frame: Any, pool: Any, levels: tuple[float, float]) -> Threshold:
    """The bounds of a metric from its reference: a row per day, and all days as one."""
    rows = max(float(frame["rows"].median()), 1.0)
    if metric.startswith(DRIFT):
        return _drift(metric, frame, pool, levels, rows)
    in_powers = metric == "propensity_least"
    values = frame[metric].dropna().to_numpy(float)
    values = np.log10(values) if in_powers else values
    centre = float(np.median(values)) if len(values) else 0.0
    spread = max(_spread(values), _floor(metric, centre, rows, pool))
    warning, critical = (np.array([centre - level * spread, centre + level * spread]) for level in levels)
    if in_powers:
        centre, warning, critical = 10**centre, 10**warning, 10**critical
    return Threshold(
        centre=centre,
        spread=spread,
        days=len(frame),
        warning=_possible(metric, *warning.tolist()),
        critical=_possible(metric, *critical.tolist()),
    )


def _floor(metric: str, centre: float, rows: float, pool: Any) -> float:
    """The least s of a metric, as the table at the top says."""
    if metric == "rows":
        return float(max(_RELATIVE * centre, centre**0.5))
    if metric == "propensity_least":
        return _LOG
    if metric in ("propensity_largest", "inverse_sum"):
        return _ABSOLUTE
    if metric.startswith("mean:"):
        sd = float(np.nan_to_num(pool["sd:" + metric.removeprefix("mean:")].iloc[0]))
        return float(max(_RELATIVE * abs(centre), sd / rows**0.5))
    noise = (centre * (1 - centre) / rows) ** 0.5
    if metric.startswith(_SHARES):
        return float(max(_SHARE[0], _SHARE[1] * centre, noise, 1 / rows))
    return float(max(_RELATIVE * centre, noise, 5 / rows))


def _drift(metric: str, frame: Any, pool: Any, levels: tuple[float, float], rows: float) -> Threshold:
    name = metric.removeprefix(DRIFT)
    mean, sd = float(pool[f"mean:{name}"].iloc[0]), float(pool[f"sd:{name}"].iloc[0])
    mean = 0.0 if np.isnan(mean) else mean
    # What is left of a constant's variance after rounding is no scale.
    sd = sd if sd > 1e-6 * max(1.0, abs(mean)) else 1.0
    signed = (frame[f"mean:{name}"].dropna().to_numpy(float) - mean) / sd
    spread = max(_spread(signed), _DRIFT, rows**-0.5)
    warning, critical = ((None, level * spread) for level in levels)
    return Threshold(centre=0.0, spread=spread, days=len(frame), warning=warning, critical=critical, mean=mean, sd=sd)


def _spread(values: NDArray[np.float64]) -> float:
    """max(1.4826 MAD, (q90 - q10) / 2.563); 0 of no values."""
    if not len(values):
        return 0.0
    low, high = np.quantile(values, [0.1, 0.9])
    return float(max(1.4826 * np.median(np.abs(values - np.median(values))), (high - low) / 2.563))


def _possible(metric: str, low: float, high: float) -> Bounds:
    """The bounds of a metric, without those that it cannot or may pass."""
    negative, share = metric.startswith("mean:"), metric.startswith((*_SHARES, "send_rate", "share:", "propensity_"))
    above_only = metric.startswith(_SHARES)
    return (
        None if above_only or (low <= 0 and not negative) else low,
        None if share and high >= 1 else high,
    )


def judged(partials: pa.Table, dataset: str, clock: Clock, thresholds: Mapping[str, Threshold], skip: set[str]) -> Any:
    """[D] pandas.DataFrame: day, and each metric with bounds; NaN where its day is not whole, or is to be skipped.

    A bound cannot be broken by a value that is not there: unfinished and warm-up days cannot fire. A reason that
    caught nothing has share 0; any other metric that was not measured has no column.
    """
    days = days_of(partials, dataset)
    frame = by_day(partials, dataset, days)
    out = frame[["day"]].copy()
    for metric, bounds in thresholds.items():
        column = f"mean:{metric.removeprefix(DRIFT)}" if metric.startswith(DRIFT) else metric
        if column in frame:
            values = frame[column].to_numpy(float)
        elif metric.startswith("reason_share:"):
            values = np.zeros(len(days))
        else:
            continue
        if bounds.mean is not None and bounds.sd is not None:
            values = np.abs(values - bounds.mean) / bounds.sd
        shown = clock.whole(dataset, metric, days) & np.array([day not in skip for day in days], bool)
        out[metric] = np.where(shown, values, np.nan)
    return out


def save(thresholds: Thresholds, folder: Path) -> Path:
    """Write `folder`/thresholds.json, whole or not at all; returns its path."""
    path = folder / NAME
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(thresholds.model_dump(mode="json"), indent=1))
    unfinished.replace(path)
    return path


def load(folder: Path) -> Thresholds | None:
    """The thresholds of `folder`, None where none were made; InputError naming each key that is wrong."""
    path = folder / NAME
    if not path.exists():
        return None
    remedy = "mend it, or make it anew with `tactful quality`"
    try:
        return Thresholds.model_validate_json(path.read_text())
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in problem['loc']) or 'the file'}: found {problem['input']!r:.80}: "
            f"{problem['msg']}; {remedy}."
            for problem in error.errors()
        ]
        raise InputError("\n".join(lines)) from None
    except InputError as error:
        raise InputError(f"{path}: {error}; {remedy}.") from None
