"""From the raw log to the transitions table, in one pass: read, tag, shuffle by user bucket, mark, cut, commit."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pyarrow as pa
from deltalake import DeltaTable
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from models.errors import InputError, TactfulError
from pipelines.config import Config
from pipelines.etl import quality, store
from pipelines.etl.features import DAY, HOUR, StateFeatures
from pipelines.etl.marks import EXACT_DUPLICATE, REMEDIES, Plan
from pipelines.etl.raw import marked_schema, read_all, tagged
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, USERS, outcome_names, transition_schema, transitions_layout
from pipelines.etl.transitions import mark, transitions

Job = TypeVar("Job")
Report = dict[str, Any]

RAW_FAILURES = (
    "CAST_",
    "DIVIDE_BY_ZERO",
    "ARITHMETIC_OVERFLOW",
    "CANNOT_PARSE",
    "INVALID_ARRAY_INDEX",
    "FAILED_READ_FILE",
)
"""Spark's error conditions that come from the rows or the expressions over them."""


@contextmanager
def explained() -> Iterator[None]:
    """Spark's error about the rows or the expressions over them as an InputError; any other as it is."""
    try:
        yield
    except PySparkException as error:
        condition = error.getCondition() or ""
        if condition.startswith(RAW_FAILURES):
            line = str(error).splitlines()[0]
            raise InputError(
                f"data: a raw dataset cannot be read as mapped: {line}; mend the rows, or use try_cast and try_divide "
                "in data.*.columns; timestamps in nanoseconds must be written in microseconds."
            ) from error
        raise


def run_etl(spark: SparkSession, config: Config, rebuild: bool = False) -> Report:
    """Make the transitions table of a configuration; returns what was read, kept, quarantined and made.

    Writes run_dir/transitions (Delta), run_dir/quality, and run_dir/quarantine/{decisions,events,users} (Parquet, for
    the datasets that there are).
    Raises InputError (input, configuration, a table of another configuration), QualityError (a critical expectation,
    quarantined shares, propensities), TransientError (another writer was faster), TactfulError where the conservation
    law is broken.
    """
    store.check_hash(config.transitions_path, config.etl_hash(), rebuild)
    with explained():
        return _run(spark, config)


def _run(spark: SparkSession, config: Config) -> Report:
    base = store.opened(config.transitions_path)
    frames = read_all(spark, config)
    days = arrival_days(frames, config)
    plan = plan_of(config, days)
    for code in (DECISIONS, EVENTS):
        if code in days:
            _check_days(config, NAMES[code], days[code])
    check_zones(frames)
    union = tagged(frames, config)
    partitions = min(config.etl.buckets, config.spark.shuffle_partitions)
    marked = (
        union.repartition(partitions, "bucket").mapInArrow(over_partition(mark, plan), marked_schema(union)).persist()
    )
    try:
        return _transitions(config, plan, marked, days, base)
    finally:
        marked.unpersist()


def _transitions(
    config: Config, plan: Plan, marked: DataFrame, days: dict[int, list[Row]], base: DeltaTable | None
) -> Report:
    contract, folder = config.contract, config.run_dir / "quality"
    rows = _count(marked, plan, days)
    _quarantine(marked, config, list(days))
    raw = {code: marked.where(F.col("dataset") == code) for code in days}
    checks: list[Report] = [quality.check(raw[DECISIONS], "decisions", quality.decisions_suite(contract), folder)]
    if EVENTS in days:
        checks.append(quality.check(raw[EVENTS], "events", quality.events_suite(), folder))
    for code in (DECISIONS, EVENTS):
        if code in days:
            quality.check_quarantined(NAMES[code], rows[NAMES[code]], config.etl.max_quarantined)
    propensities = quality.check_propensities(raw[DECISIONS].where("reason is null"), contract)

    kernel = over_partition(transitions, plan)
    made = marked.mapInArrow(kernel, from_arrow_schema(transition_schema(contract))).persist()
    try:
        checks.append(quality.check(made, "transitions", quality.transitions_suite(contract), folder))
        rows["transitions"] = _count_transitions(made)
        _conserve(rows, marked, plan)
        fingerprint = store.fingerprint(made)
        layout = transitions_layout(contract)
        staged = store.stage(made, config.transitions_path, layout)
    finally:
        made.unpersist()
    facts = {store.ETL_HASH: config.etl_hash(), "fingerprint": fingerprint}
    report: Report = {
        "rows": rows,
        "watermark": _text(plan.watermark),
        "as_of": _text(plan.as_of),
        "log_start": _text(plan.log_start),
        "version": store.commit(config.transitions_path, staged, layout, facts, rows["transitions"]["rows"], base),
        "fingerprint": fingerprint,
        "propensities": propensities,
        "quality": checks,
    }
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return report


def over_partition(
    kernel: Callable[[pa.Table, Job], pa.Table], plan: Job
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The kernel over all batches of a Spark partition at once: it holds whole users."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = list(batches)
        if found:
            yield from kernel(pa.Table.from_batches(found), plan).to_batches(max_chunksize=65536)

    return run


def arrival_days(frames: dict[int, DataFrame], config: Config) -> dict[int, list[Row]]:
    """What arrived per day and dataset, see `_days`."""
    return {code: _days(frame, code, config) for code, frame in frames.items()}


def _days(frame: DataFrame, code: int, config: Config) -> list[Row]:
    """Per arrival day: rows; and of those in order, not late and not ahead: how many, latest logged, earliest time."""
    lag = F.col("logged") - F.col("at")
    limit = round(config.etl.max_lateness_days * DAY)
    good = F.col("user_id").isNotNull() & (lag >= 0) & (F.col("logged") <= _as_of(config))
    if code != USERS:
        good &= lag <= limit
    return list(
        frame.groupBy("ds")
        .agg(
            F.count("*").alias("rows"),
            F.count_if(good).alias("good"),
            F.max(F.when(good, F.col("logged"))).alias("logged"),
            F.min(F.when(good, F.col("at"))).alias("first"),
        )
        .collect()
    )


def plan_of(config: Config, days: dict[int, list[Row]]) -> Plan:
    """The plan with its watermark and the start of the log; raises InputError where nothing can be read from it."""
    data, etl, features = config.data, config.etl, config.features
    for code in (DECISIONS, EVENTS):
        if code in days and not any(day["rows"] for day in days[code]):
            raise InputError(f"data.{NAMES[code]}: no rows; check its path and that the log was delivered.")
    seen = {code: [day for day in days[code] if day["good"]] for code in (DECISIONS, EVENTS) if code in days}
    for code, good in seen.items():
        if not good:
            raise InputError(
                f"data.{NAMES[code]}: none of its {sum(day['rows'] for day in days[code])} rows has a user, a time and "
                "a logged_at in order before etl.as_of; check the mapping of its time columns."
            )
    watermark = min(max(day["logged"] for day in good) for good in seen.values())
    gap = config.constraints.min_gap_hours
    if gap is not None and gap > etl.lookback_days * 24:
        raise InputError(f"constraints.min_gap_hours is {gap}, longer than etl.lookback_days; nothing older is known.")
    return Plan(
        contract=config.contract,
        outcomes=outcome_names(config.rewards),
        features=StateFeatures(
            features.state,
            features.context,
            features.context_categories,
            features.attributes,
            features.attribute_categories,
            features.click_prior,
        ),
        constraints=config.constraints,
        has_events=data.events is not None,
        as_of=_as_of(config),
        watermark=_moment(etl.watermark, "etl.watermark") if etl.watermark else watermark,
        log_start=min(day["first"] for good in seen.values() for day in good),
        lookback=round(etl.lookback_days * DAY),
        warmup=round(etl.warmup_days * DAY),
        max_lateness=round(etl.max_lateness_days * DAY),
        max_gap=round(etl.max_gap_days * DAY),
        click_window=round(etl.click_window_hours * HOUR),
        session_gap=round(etl.session_gap_minutes * HOUR / 60),
    )


def _as_of(config: Config) -> int:
    return _moment(config.etl.as_of, "etl.as_of") if config.etl.as_of else _micros(datetime.now(UTC))


def _moment(text: str, key: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{key} is {text!r}; give a UTC time such as 2026-01-31T00:00:00.") from None
    return _micros(found if found.tzinfo else found.replace(tzinfo=UTC))


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _text(moment: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)).isoformat()


def _check_days(config: Config, name: str, days: list[Row]) -> None:
    """Raise InputError for an arrival day without rows between the first and the last, unless it is known."""
    there = sorted(date.fromisoformat(day["ds"]) for day in days if day["good"])
    known = set(config.etl.known_gaps)
    span = (there[0] + timedelta(days=n) for n in range((there[-1] - there[0]).days))
    missing = [str(day) for day in span if day not in there and day not in known]
    if missing:
        listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise InputError(
            f"data.{name}: no row arrived on {listed}, between {there[0]} and {there[-1]}; deliver the missing "
            "days, or list them in etl.known_gaps if nothing happened then."
        )


def check_zones(frames: dict[int, DataFrame]) -> None:
    """Raise InputError for a time zone that does not exist."""
    if USERS not in frames:
        return
    for row in frames[USERS].select("time_zone").where("time_zone is not null").distinct().collect():
        try:
            ZoneInfo(row["time_zone"])
        except (KeyError, ValueError, OSError):
            raise InputError(
                f"data.users: time_zone {row['time_zone']!r} does not exist; give IANA names such as Europe/Berlin, or "
                "null for UTC."
            ) from None


def _count(marked: DataFrame, plan: Plan, days: dict[int, list[Row]]) -> Report:
    """Per dataset: read, kept, exact duplicates, quarantined by reason, mature and immature, and each per day."""
    mature = F.coalesce(F.col("at") < plan.watermark, F.lit(False))
    groups = marked.groupBy("dataset", "ds", "reason", mature.alias("mature")).count().collect()
    out: Report = {}
    for code, arrived in days.items():
        total = _Tally()
        by_day = {day["ds"]: _Tally(read=day["rows"]) for day in arrived}
        total.read = sum(day["rows"] for day in arrived)
        for group in groups:
            if group["dataset"] == code:
                for tally in (total, by_day.setdefault(group["ds"], _Tally())):
                    tally.add(group["reason"], group["mature"], group["count"])
        for day, tally in sorted(by_day.items()):
            tally.check(NAMES[code], day)
        out[NAMES[code]] = {**total.show(), "by_day": {day: tally.show() for day, tally in sorted(by_day.items())}}
    return out


@dataclass
class _Tally:
    """Counts of one arrival day, or of all: `read` was counted in the raw dataset, the rest after marking."""

    read: int = 0
    kept: int = 0
    exact: int = 0
    mature: int = 0

    def __post_init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def add(self, reason: str | None, mature: bool, count: int) -> None:
        if reason is None:
            self.kept += count
            self.mature += count if mature else 0
        elif reason == EXACT_DUPLICATE:
            self.exact += count
        else:
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    def check(self, dataset: str, day: str) -> None:
        caught = sum(self.reasons.values())
        if self.read != self.kept + self.exact + caught:
            raise TactfulError(
                f"{dataset}, arrival day {day}: {self.read} rows read, but kept {self.kept} + exact duplicates "
                f"{self.exact} + quarantined {caught} = {self.kept + self.exact + caught}; the dataset changed "
                "while it was read, or this is a bug: run again, then report it."
            )

    def show(self) -> Report:
        return {
            "read": self.read,
            "kept": self.kept,
            "exact_duplicates": self.exact,
            "quarantined": sum(self.reasons.values()),
            "mature": self.mature,
            "immature": self.kept - self.mature,
            "by_reason": dict(sorted(self.reasons.items())),
        }


def _count_transitions(written: DataFrame) -> Report:
    usable = F.col("usable")
    flags = ("silent", "warm_up", "truncated", "terminal")
    counts = [F.count_if(usable).alias("usable"), F.count_if(~usable).alias("unusable")]
    row = written.agg(F.count("*").alias("rows"), *counts, *(F.count_if(usable & F.col(f)).alias(f) for f in flags))
    return {name: int(value) for name, value in row.first().asDict().items()}


def _conserve(rows: Report, marked: DataFrame, plan: Plan) -> None:
    """transitions = usable + unusable; usable = mature kept decisions + silent rows; unusable = the quarantined
    decisions with a user and a time in order before the watermark.
    """
    made, decisions = rows["transitions"], rows["decisions"]
    ordered = F.col("logged").isNull() | (F.col("logged") >= F.col("at"))
    bad = (F.col("dataset") == DECISIONS) & F.col("reason").isNotNull() & (F.col("reason") != EXACT_DUPLICATE)
    timed = F.col("user_id").isNotNull() & (F.col("at") < plan.watermark) & ordered
    unusable = marked.where(bad & timed).count()
    for what, left, right in (
        ("transitions = usable + unusable", made["rows"], made["usable"] + made["unusable"]),
        ("usable = mature decisions + silent", made["usable"], decisions["mature"] + made["silent"]),
        ("unusable = quarantined decisions with user and time", made["unusable"], unusable),
    ):
        if left != right:
            raise TactfulError(f"conservation law {what} is broken: {left} against {right}; this is a bug: report it.")


def _quarantine(marked: DataFrame, config: Config, datasets: list[int]) -> None:
    """Every quarantined row with its reason and what to do about it."""
    remedies = F.create_map(*(F.lit(text) for pair in REMEDIES.items() for text in pair))
    caught = marked.where(F.col("reason").isNotNull() & (F.col("reason") != EXACT_DUPLICATE))
    caught = caught.withColumn("remedy", remedies[F.split_part("reason", F.lit(":"), F.lit(1))])
    for code in datasets:
        rows = caught.where(F.col("dataset") == code).coalesce(1)
        rows.write.mode("overwrite").parquet(str(config.run_dir / "quarantine" / NAMES[code]))
