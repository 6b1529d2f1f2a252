"""What a run must hold to go on: expectations on profiles at each boundary, quarantined shares, propensities.

A profile (etl/profile.py) is measured in the pass that makes the transitions, so that no suite reads the data again.
Each boundary has a suite of fixed demands (suites.py) and, once `tactful quality` has made thresholds from a reference
period (thresholds.py), a suite of bounds per day. run_dir/quality holds:

| file                        | is |
|-----------------------------|----|
| profiles/DATASET.parquet    | the partials of every day seen so far |
| thresholds.json             | bounds from the reference |
| DATASET.json, DATASET_days.json | results of the fixed suite, and of the bounds per day |
| docs/                       | Data Docs of the last run |
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.contract import Contract
from models.errors import InputError, QualityError
from pipelines.etl.offenders import Offence, in_words
from pipelines.etl.quality import profiles, thresholds
from pipelines.etl.quality.expect import Validator
from pipelines.etl.quality.profiles import Clock
from pipelines.etl.quality.suites import CRITICAL, WARNING, Demand, fixed
from pipelines.sections import Quality

__all__ = ["Clock", "check_profiles", "check_quarantined", "make_thresholds", "propensity_sums"]

Report = dict[str, Any]

INVERSE_SUM = (0.8, 1.25)
STANDARD_ERRORS = 4.0
"""An inverse sum outside the range counts only this many standard errors of the mean away from 1."""


def check_profiles(
    partials: pa.Table,
    clock: Clock,
    contract: Contract,
    config: Quality,
    folder: Path,
    datasets: Sequence[str],
    replace: bool = False,
) -> Report:
    """Hold the profiles of a run to the fixed demands and, where there are thresholds, to the bounds of each day.

    partials: of this run, whole days of each dataset (see profile.merge). folder: run_dir/quality. datasets: those
    that must be there. Stores the profiles (in place of all others if `replace`) before it judges, so that a reference
    can be renewed from days that were refused. Returns {suites: as Validator.run, seconds: {import, suites, docs}}.
    Raises QualityError with a line per critical expectation that failed: metric, day, found, bound, remedy; InputError
    where thresholds.json is malformed.
    """
    bounds = thresholds.load(folder)
    profiles.store(partials, clock, folder, replace)
    started = time.perf_counter()
    validator = Validator()
    ready = time.perf_counter()
    suites = []
    for dataset in datasets:
        pool = profiles.pooled(partials, dataset, _span(profiles.days_of(partials, dataset)))
        suites.append(validator.run(dataset, pool, fixed(dataset, pool, contract), folder / f"{dataset}.json"))
        if bounds is not None and bounds.datasets.get(dataset):
            of = bounds.datasets[dataset]
            skip = {str(day) for day in config.accept}
            frame = thresholds.judged(partials, dataset, clock, of, skip)
            name = f"{dataset}_days"
            suites.append(validator.run(name, frame, _demands(of, frame), folder / f"{name}.json"))
    ran = time.perf_counter()
    if config.docs:
        validator.build_docs(folder / "docs")
    seconds = {"import": ready - started, "suites": ran - ready, "docs": time.perf_counter() - ran}
    failed = [_line(suite["suite"], one) for suite in suites for one in suite["expectations"] if _stops(one)]
    if failed:
        raise QualityError("\n".join(failed))
    return {"suites": suites, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def _span(days: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "no day"


def _demands(bounds: Mapping[str, thresholds.Threshold], frame: Any) -> list[Demand]:
    """A warning and a critical demand for each metric with bounds; a warning for one that is no longer measured."""
    found = []
    for metric, one in bounds.items():
        if metric not in frame:
            found.append(Demand(metric, WARNING, "it is no longer measured; make thresholds with `tactful quality`"))
            continue
        remedy = (
            f"in the reference {_usual(metric, one)}; find out what changed, or name the day in quality.accept, or "
            "renew the reference with `tactful quality`"
        )
        for level, (low, high) in ((WARNING, one.warning), (CRITICAL, one.critical)):
            if low is not None or high is not None:
                found.append(Demand(metric, level, remedy, low, high))
    return found


def _usual(metric: str, one: thresholds.Threshold) -> str:
    if one.mean is not None:
        return f"the mean was {one.mean:.4g}, standard deviation {one.sd:.4g}"
    return f"it was {one.centre:.4g}"


def _stops(outcome: Mapping[str, Any]) -> bool:
    return not outcome["success"] and outcome["severity"] == CRITICAL


def _line(suite: str, outcome: Mapping[str, Any]) -> str:
    metric = outcome["column"] or "columns"
    return (
        f"{suite}: {metric} is {outcome['observed']}, expected {outcome['expected']} ({outcome['expectation']}); "
        f"{outcome['remedy']}."
    )


def make_thresholds(config: Quality, folder: Path) -> thresholds.Thresholds:
    """Write `folder`/thresholds.json from the stored profiles of the reference period, and return it.

    Raises InputError without a reference, without profiles, and where the reference holds too few whole days.
    """
    if config.reference is None:
        raise InputError(
            'quality.reference: missing; name the first and the last day of a usual period, as ["2026-01-08", '
            '"2026-01-21"].'
        )
    partials, clock = profiles.load(folder)
    made = thresholds.make_thresholds(partials, clock, config.reference, (config.warning, config.critical))
    thresholds.save(made, folder)
    return made


def check_quarantined(
    name: str, counts: Mapping[str, Any], most: float, found: Sequence[Offence], contract: Contract, table: Path
) -> None:
    """Raise QualityError where a larger share than `most` of a dataset is quarantined.

    It names each reason with its rows, what of `found` many users hold (of what is no label the form), what is known,
    the remedy, and the `table`.
    """
    read, by_reason = counts["read"], counts["by_reason"]
    caught = sum(by_reason.values())
    if caught > most * read:
        raise QualityError(
            f"{name}: {caught:,} of {read:,} rows ({caught / read:.1%}) are quarantined, more than "
            f"etl.max_quarantined = {most:.1%}; the transitions stay as they were.\n"
            f"{in_words(by_reason, found, contract, table)} Mend the log or its mapping, or raise etl.max_quarantined."
        )


def propensity_sums(partials: pa.Table) -> dict[str, float]:
    """The propensities over kept rows with a choice (more than one action legal by the log) and a known propensity.

    c = sum |legal| / sum 1/p is what the propensities of a row's legal actions sum to on average, since
    E[1 / mu(a)] = |legal|. partials: with the names of profile.choices. Returns rows, and c (`inverse_sum`, 1 if the
    propensities are right). Raises QualityError for a deterministic log, and for c outside [0.8, 1.25] by more than 4
    standard errors.
    """
    sums = profiles.sums(partials, "decisions", ("propensity", "inverse_propensity", "options", "inverse_variance"))
    n = sums["propensity"]["count"]
    if not n:
        return {"rows": 0}
    if sums["propensity"]["least"] >= 1:
        raise QualityError(
            f"decisions: all {n} choices were logged with propensity 1: the logging policy never explored, "
            "so no other policy can be judged from this log; let it explore (2% at random is enough), or log its true "
            "propensities."
        )
    inverse, options = sums["inverse_propensity"]["total"], sums["options"]["total"]
    ratio = inverse / options
    variance = (sums["inverse_propensity"]["squares"] - inverse**2 / n) / max(n - 1, 1)
    # Few rows may all show the common action: the spread of the sample says nothing then, that of the policy does.
    variance = max(variance, sums["inverse_variance"]["total"] / n)
    error = variance**0.5 / (options / n) / n**0.5
    total = 1 / ratio
    if not INVERSE_SUM[0] <= total <= INVERSE_SUM[1] and abs(ratio - 1) > STANDARD_ERRORS * error:
        raise QualityError(
            f"decisions: the propensities over the legal actions sum to about {total:.2f}, not 1 "
            f"({n} rows with a choice); log the probability of the action taken, and in legal_actions "
            "only what the policy could take."
        )
    return {"rows": int(n), "inverse_sum": float(total)}
