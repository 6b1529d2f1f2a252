"""Tonight's candidates through Spark into the scores table, one commit a night."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from models import artifact
from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.arrivals import check_arrivals, read_arrivals
from pipelines.etl.buckets import RESULT
from pipelines.etl.features import HOUR
from pipelines.etl.flow import explained, shuffled
from pipelines.etl.plans import as_of, make_plan, max_lateness, watermark
from pipelines.etl.schemas import CANDIDATES, DECISIONS, EVENTS
from pipelines.etl.sources import Source, open_sources
from pipelines.etl.staging import Staged, new_run
from pipelines.scoring import Night, run_nights, scores_layout


def run_scoring(spark: SparkSession, config: Config, folder: Path, version: str) -> dict[str, Any]:
    """Decide for every candidate with the artifact in `folder` and commit the night; returns the counts.

    Raises InputError where there are no candidates, an id stands twice, or the artifact was made for other features or
    actions than the configuration's; TransientError where another writer committed first.
    """
    champion = artifact.load(folder)
    _check_contract(champion, config)
    with explained():
        return _run(spark, config, champion, folder, version)


def _run(
    spark: SparkSession, config: Config, champion: artifact.Artifact, folder: Path, version: str
) -> dict[str, Any]:
    layout, table = scores_layout(config.contract), config.run_dir / "scores"
    base = store.opened(table)
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie.")
    sources = open_sources(spark, config, range(CANDIDATES + 1), None)
    found = _rows_of(spark, sources[-1])
    night = _night(found, config)
    _check_one_each(found, config)
    arrivals = read_arrivals(spark, sources[:-1], as_of(config), max_lateness(config), None)
    check_arrivals(arrivals)
    good = {
        code: [day for day in arrivals[code] if day.logged is not None]
        for code in (DECISIONS, EVENTS)
        if code in arrivals
    }
    known = min(max(day.logged or 0 for day in days) for days in good.values())
    job = Night(
        plan=make_plan(config, watermark(config, known), min(day.first or 0 for days in good.values() for day in days)),
        files={path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()},
        fingerprint=champion.fingerprint,
        version=version,
        night=night,
        valid_us=round(config.score.valid_hours * HOUR),
        seed=_seed(config, night),
        schemas={source.code: source.schema for source in sources},
        root=table.resolve(),
        run=new_run(),
    )
    try:
        scored = shuffled(spark, sources, config.etl.buckets, None).mapInArrow(
            run_nights(job), from_arrow_schema(RESULT)
        )
        results = scored.toArrow().to_pylist()
        staged = [Staged(**json.loads(row["payload"])) for row in results if row["kind"] == "scores"]
        counts = _counts([json.loads(row["payload"]) for row in results if row["kind"] == "counts"])
        committed = store.commit(table, staged, layout, {"policy_version": version}, base, {"night": [night]})
    except BaseException:
        store.discard(table, job.run)
        raise
    return {
        "night": night,
        "model_version": version,
        "policy": champion.lineage.get("learner"),
        "version": committed,
        **counts,
    }


def _rows_of(spark: SparkSession, source: Source) -> DataFrame:
    """The raw table of a source as a DataFrame."""

    def as_they_are(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return batches

    return source.over(spark, as_they_are, source.schema)


def _seed(config: Config, night: str) -> int:
    """Of tonight's draws: other runs and other nights draw anew, a rerun does not."""
    text = "\0".join((config.name, str(config.seed), night))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _check_contract(champion: artifact.Artifact, config: Config) -> None:
    """Raise InputError where the champion knows other names, or its states were computed by another configuration."""
    for what in ("actions", "features", "rewards"):
        theirs, ours = getattr(champion.contract, what), getattr(config.contract, what)
        if theirs != ours:
            raise InputError(
                f"the champion was made for {what} {', '.join(theirs)}, the configuration has {', '.join(ours)}; "
                "train and promote a policy with this configuration, or score with the champion's."
            )
    theirs, ours = champion.lineage.get("etl_hash"), config.etl_hash()
    if theirs != ours:
        raise InputError(
            f"the champion learned from states of another ETL configuration (etl hash {theirs}, now {ours}); train and "
            "promote a policy with this configuration, or score with the champion's."
        )


def _check_one_each(candidates: DataFrame, config: Config) -> None:
    """Raise InputError where a limit on sends holds and a user has several candidates: each would be judged alone."""
    limits = config.constraints
    if limits.max_sends_24h is None and limits.max_sends_7d is None and limits.min_gap_hours is None:
        return
    several = candidates.where("user_id is not null").groupBy("user_id").count().where("count > 1").first()
    if several is not None:
        raise InputError(
            f"data.candidates: user {several['user_id']} has {several['count']} candidates tonight, and [constraints] "
            "limits sends: each would be judged as if the others were not sent; give one candidate per user, or score "
            "them in turn."
        )


def _night(candidates: DataFrame, config: Config) -> str:
    """UTC date of the earliest decide_at. Raises InputError where there is no candidate, or an id stands twice."""
    place = config.data.candidates.path if config.data.candidates else "data.candidates"
    seen = candidates.agg(
        F.count("*").alias("rows"),
        F.count_distinct("row_id").alias("ids"),
        F.min("at").alias("first"),
    ).first()
    if seen is None or not seen["rows"] or seen["first"] is None:
        raise InputError(f"{place}: no candidate with a decide_at; check its path and data.candidates.columns.")
    if seen["ids"] != seen["rows"]:
        twice = candidates.groupBy("row_id").count().where("count > 1 or row_id is null").first()
        raise InputError(
            f"{place}: candidate_id {twice['row_id'] if twice else None!r} is null or stands more than once "
            f"({seen['rows']} rows, {seen['ids']} ids); give every candidate an id of its own."
        )
    return str((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(seen["first"]))).date())


def _counts(groups: list[list[list[Any]]]) -> dict[str, Any]:
    """Candidates in all, by action and by the rule that decided, from what the buckets counted."""
    by_action: dict[str, int] = {}
    by_rule: dict[str, int] = {}
    until = None
    for action, rule, rows, last in sorted((each for bucket in groups for each in bucket), key=str):
        by_action[action] = by_action.get(action, 0) + rows
        by_rule[rule or "policy"] = by_rule.get(rule or "policy", 0) + rows
        until = last if until is None else max(until, last or until)
    ends = None if until is None else (datetime(1970, 1, 1) + timedelta(microseconds=until)).isoformat()
    return {"candidates": sum(by_action.values()), "by_action": by_action, "by_rule": by_rule, "valid_until": ends}
