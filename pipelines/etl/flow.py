"""From the raw log to the transitions table: read, shuffle by user bucket, one kernel, one commit.

    raw rows -- to_blocks --> blocks -- shuffle by bucket --> run_buckets --> files and counts -- driver --> commit

No row comes to the driver. What a run over some arrival days reads and makes anew is in `window.py`.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import reduce

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from models.errors import InputError, TactfulError, TransientError
from pipelines.config import Config
from pipelines.erase import forgotten
from pipelines.etl import quality, store
from pipelines.etl.arrivals import EPOCH, Arrivals, read_arrivals
from pipelines.etl.blocks import SCHEMA, block, to_blocks
from pipelines.etl.buckets import (
    CONSENT,
    EXPECTED,
    FORGOTTEN,
    OFFENDERS,
    PARTIAL,
    QUARANTINE,
    RESULT,
    TRANSITIONS,
    Job,
    run_buckets,
)
from pipelines.etl.counts import Report, conserve, count
from pipelines.etl.features import DAY
from pipelines.etl.offenders import Offence
from pipelines.etl.plans import as_of, make_plan, max_lateness, text_of
from pipelines.etl.profile import merge
from pipelines.etl.progress import watched
from pipelines.etl.schemas import (
    DECISIONS,
    EVENTS,
    NAMES,
    USERS,
    Days,
    Layout,
    consent_layout,
    days_of,
    quarantine_layout,
    transitions_layout,
)
from pipelines.etl.settings import check_settings, keep_settings
from pipelines.etl.sources import Source, open_sources
from pipelines.etl.staging import Staged, new_run
from pipelines.etl.unusable import check_usable
from pipelines.etl.window import FACTS, Window, from_the_first, open_window

logger = logging.getLogger("tactful.etl")

RAW_FAILURES = (
    "CAST_",
    "DIVIDE_BY_ZERO",
    "ARITHMETIC_OVERFLOW",
    "CANNOT_PARSE",
    "INVALID_ARRAY_INDEX",
    "FAILED_READ_FILE",
)
"""Spark's error conditions that come from the rows or the expressions over them."""
FAILURE = re.compile(rf"\[(?:{'|'.join(RAW_FAILURES)})[^\n]*")
FULL = "No space left on device"
OURS = re.compile(r"^models\.errors\.InputError: (.+)$", re.MULTILINE)
"""The last line of a worker's traceback, where one of our own functions refused the input."""


@contextmanager
def explained() -> Iterator[None]:
    """An error about the rows or the expressions over them as an InputError, wherever it arose; a full disk as a
    TransientError; any other as it is."""
    try:
        yield
    except (PySparkException, Py4JJavaError, OSError, DeltaError) as error:
        if FULL in str(error):
            raise TransientError(
                f"{FULL}: nothing was committed unless the log above says so; free space in run_dir and in Spark's "
                "local folders (`tactful vacuum CONFIG` removes what no version needs), then run it again."
            ) from error
        if ours := OURS.search(str(error)):
            raise InputError(ours[1]) from None
        if found := FAILURE.search(str(error)):
            raise InputError(
                f"data: a raw dataset cannot be read as mapped: {found[0]}; mend the rows or the file, or use try_cast "
                "and try_divide in data.*.columns."
            ) from error
        raise


def run_etl(spark: SparkSession, config: Config, rebuild: bool = False, days: Days | None = None) -> Report:
    """Make the transitions of a log, all or those that what arrived on `days` can have changed; returns the report.

    `days` are the first (or EVER) and last arrival day, in days since the epoch. Writes run_dir/transitions,
    run_dir/consent and run_dir/quarantine/{decisions,events,users} (Delta tables), and run_dir/quality.
    Raises InputError (input, configuration, a table of another configuration), QualityError (a critical expectation,
    quarantined shares, propensities), TransientError (another writer was faster), TactfulError where the conservation
    law is broken.
    """
    check_settings(config, rebuild)
    with explained():
        return _run(spark, config, rebuild, days)


def _run(spark: SparkSession, config: Config, rebuild: bool, days: Days | None) -> Report:
    clock, bases, codes = _Clock(), _bases(config), range(USERS + 1)
    with clock("read_days"):
        arrived_in = open_sources(spark, config, codes, days)
        # Read once: where it is the clock, another look would believe rows that this one does not.
        now, base = as_of(config), None if rebuild else bases[TRANSITIONS]
        arrivals = read_arrivals(spark, arrived_in, now, max_lateness(config), days)
        if base is None or days is None:
            check_usable(spark, config, arrived_in, arrivals, replace(make_plan(config, 0, 0), as_of=now), days)
        days = from_the_first(days, arrivals) if days is not None else None
        window = open_window(config, arrivals, days, base, bases[CONSENT], now)
        sources = arrived_in if window.days == days else open_sources(spark, config, codes, window.days)
        accounted = window.accounted
        if accounted != days:
            arrivals = read_arrivals(spark, sources, window.plan.as_of, window.plan.max_lateness, accounted)
    if window.resume is not None and USERS in arrivals:
        # What `users` held before the first day counted when it arrived.
        since = window.resume.first_day
        arrivals[USERS] = [day for day in arrivals[USERS] if day.day is None or day.day >= since]
    notices = [notice for source in sources for notice in source.notices] + _misplaced(arrivals)
    for notice in notices:
        logger.warning(notice)
    job = Job(
        plan=window.plan,
        schemas={source.code: source.schema for source in sources},
        root=config.run_dir.resolve(),
        run=new_run(),
        resume=window.resume,
        forgotten=forgotten(config),
    )
    run = Run(config, window, job, bases, clock)
    try:
        with clock("kernels"):
            made = _collect(spark, sources, job, window)
        return {**_finish(run, arrivals, made), "notices": notices}
    finally:
        # What was committed is named by the Delta log and stays; of a run that failed nothing does.
        for name in set(bases) - clock.committed:
            store.discard(config.run_dir / name, job.run)


def _finish(run: "Run", arrivals: Arrivals, made: "Made") -> Report:
    """Count, judge and commit; the transitions last, since they are what makes a run done."""
    config, window, clock, plan = run.config, run.window, run.clock, run.window.plan
    rows = count(made.partials, arrivals, made.forgotten)
    conserve(rows, made.expected)
    with clock("quarantine"):
        for code in run.job.schemas:
            run.commit(QUARANTINE + NAMES[code], made)
    folder = config.run_dir / "quality"
    with clock("quality"):
        for code in (DECISIONS, EVENTS):
            if code in arrivals:
                name = NAMES[code]
                quality.check_quarantined(
                    name,
                    rows[name],
                    config.etl.max_quarantined,
                    made.offenders.get(name, []),
                    plan.contract,
                    config.run_dir / QUARANTINE / name,
                )
        span = quality.Clock(plan.log_start, plan.watermark, plan.warmup, plan.max_lateness, plan.max_gap)
        # On a known gap there may be no rows of a dataset; that none at all were read was refused before.
        there = [code for code in run.job.schemas if window.resume is None or rows[NAMES[code]]["read"]]
        datasets = [NAMES[code] for code in there] + [TRANSITIONS]
        checked = quality.check_profiles(
            made.partials, span, config.logged_contract, config.quality, folder, datasets, replace=window.resume is None
        )
        propensities = quality.propensity_sums(made.partials)
    with clock("commit"):
        run.commit(CONSENT, made)
        held = sum(each.rows for each in made.staged.get(TRANSITIONS, []))
        if held != rows[TRANSITIONS]["rows"]:
            raise TactfulError(f"{TRANSITIONS}: {held} rows in its files, {rows[TRANSITIONS]['rows']} were made.")
        logger.info("transitions: about to commit %d rows", held)
        keep_settings(config)
        version = run.commit(TRANSITIONS, made, {store.ETL_HASH: config.etl_hash(), FACTS: window.facts.as_text()})
        logger.info("transitions: version %d committed", version)
        fingerprint = store.fingerprint(DeltaTable(config.transitions_path))
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return {
        "rows": rows,
        "watermark": text_of(plan.watermark),
        "as_of": text_of(plan.as_of),
        "log_start": text_of(plan.log_start),
        "days": [str(EPOCH + timedelta(days=day)) for day in (window.facts.first_day, window.facts.last_day)],
        "rewritten_from": None if window.resume is None else text_of(window.resume.since)[:10],
        "version": version,
        "fingerprint": fingerprint,
        "propensities": propensities,
        "quality": checked["suites"],
        "seconds": {**clock.seconds, "quality_suites": checked["seconds"]},
    }


@dataclass(frozen=True)
class Run:
    """One run of the ETL, and the tables as they stood when it began."""

    config: Config
    window: Window
    job: Job
    bases: Mapping[str, DeltaTable | None]
    clock: "_Clock"

    def commit(self, name: str, made: "Made", facts: Mapping[str, str] | None = None) -> int:
        """Swap in what was made of one table: what the window makes anew, and nothing else."""
        base, resume, replace = self.bases[name], self.window.resume, None
        if resume is not None and base is not None and name != CONSENT:
            first = resume.since // DAY if name == TRANSITIONS else resume.first_day
            text = str(EPOCH + timedelta(days=first))
            # "unknown" is later than every date: rows without any time are read anew by every run.
            replace = {"ds": sorted({values["ds"] for _, values in store.files(base) if values["ds"] >= text})}
        staged = made.staged.get(name, [])
        version = store.commit(self.config.run_dir / name, staged, self._layout(name), facts or {}, base, replace)
        self.clock.committed.add(name)
        return version

    def _layout(self, name: str) -> Layout:
        if name == TRANSITIONS:
            return transitions_layout(self.config.logged_contract)
        if name == CONSENT:
            return consent_layout()
        return quarantine_layout(self.job.schemas[NAMES.index(name.removeprefix(QUARANTINE))])


class _Clock:
    """Seconds of each phase, and which tables were committed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.committed: set[str] = set()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = round(time.perf_counter() - started, 3)


def _bases(config: Config) -> dict[str, DeltaTable | None]:
    """Every table as it stands now: who began before another's commit does not undo it."""
    names = [TRANSITIONS, CONSENT, *(QUARANTINE + name for name in NAMES[: USERS + 1])]
    return {name: store.opened(config.run_dir / name) for name in names}


def _misplaced(arrivals: Arrivals) -> list[str]:
    counts = {NAMES[code]: sum(day.misplaced for day in days) for code, days in arrivals.items()}
    return [
        f"data.{name}: {rows} rows lie in the folder of another day than that of their logged_at; they count as "
        "arrived on the day of the folder."
        for name, rows in counts.items()
        if rows
    ]


@dataclass
class Made:
    """What the buckets sent back."""

    staged: dict[str, list[Staged]] = field(default_factory=dict)
    """By table."""
    partials: pa.Table = None
    expected: tuple[int, int] = (0, 0)
    """Usable and unusable decisions that must be rows."""
    forgotten: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows left out, by dataset and arrival day."""
    offenders: dict[str, list[Offence]] = field(default_factory=dict)
    """What quarantined rows hold, by dataset."""


def shuffled(spark: SparkSession, sources: list[Source], buckets: int, days: Days | None) -> DataFrame:
    """The blocks of all raw rows, one partition per user bucket; every bucket has one, if an empty one."""
    parts = [
        source.over(spark, to_blocks(source.code, source.schema, buckets, days_of(source.code, days)), SCHEMA)
        for source in sources
    ]
    # A source holds a DataFrame, which does not travel to the workers.
    schema, code = sources[0].schema, sources[0].code

    def seeds(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for bucket in batch.column("id").to_pylist():
                yield block(schema.empty_table(), code, bucket)

    parts.append(spark.range(0, buckets, 1, 1).mapInArrow(seeds, from_arrow_schema(SCHEMA)))
    return reduce(DataFrame.unionAll, parts).repartitionById(buckets, "bucket")


def _collect(spark: SparkSession, sources: list[Source], job: Job, window: Window) -> Made:
    blocks = shuffled(spark, sources, job.plan.buckets, window.days)
    with watched(spark, "transitions", job.plan.buckets):
        results = blocks.mapInArrow(run_buckets(job), from_arrow_schema(RESULT)).toArrow()
    made, partials, expected = Made(), [], [0, 0]
    for kind, payload in zip(results["kind"].to_pylist(), results["payload"].to_pylist(), strict=True):
        if kind == PARTIAL:
            partials.append(pa.ipc.open_stream(payload).read_all())
        elif kind == EXPECTED:
            expected = [a + b for a, b in zip(expected, json.loads(payload), strict=True)]
        elif kind == OFFENDERS:
            name, found = json.loads(payload)
            made.offenders.setdefault(name, []).extend(found)
        elif kind == FORGOTTEN:
            for name, days in json.loads(payload).items():
                total = made.forgotten.setdefault(name, {})
                for day, rows in days.items():
                    total[day] = total.get(day, 0) + rows
        else:
            made.staged.setdefault(kind, []).append(Staged(**json.loads(payload)))
    made.partials, made.expected = merge(partials), (expected[0], expected[1])
    return made
