"""Tonight's candidates through Spark into the scores table, one commit a night."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from models import artifact
from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.features import HOUR
from pipelines.etl.flow import arrival_days, check_zones, explained, over_partition, plan_of
from pipelines.etl.raw import read_all, read_candidates, tagged
from pipelines.etl.schemas import CANDIDATES
from pipelines.scoring import Night, score, scores_layout

DRAWS = 1 << 53
"""A draw is a multiple of 2^-53: as fine as a double in [0, 1) can be."""


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
    found = read_candidates(spark, config)
    night = _night(found, config)
    _check_one_each(found, config)
    frames = read_all(spark, config)
    check_zones(frames)
    plan = plan_of(config, arrival_days(frames, config))
    union = tagged({**frames, CANDIDATES: found}, config).withColumn("draw", _draw(config, night))
    job = Night(
        plan=plan,
        files={path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()},
        fingerprint=champion.fingerprint,
        version=version,
        night=night,
        valid_us=round(config.score.valid_hours * HOUR),
    )
    partitions = min(config.etl.buckets, config.spark.shuffle_partitions)
    scored = union.repartition(partitions, "bucket").mapInArrow(
        over_partition(score, job), from_arrow_schema(layout.schema)
    )
    scored = scored.persist()
    try:
        counts = _counts(scored)
        staged = store.stage(scored, table, layout)
    finally:
        scored.unpersist()
    facts = {"policy_version": version}
    committed = store.commit(table, staged, layout, facts, counts["candidates"], base, [("night", "=", night)])
    return {
        "night": night,
        "model_version": version,
        "policy": champion.lineage.get("learner"),
        "version": committed,
        **counts,
    }


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


def _draw(config: Config, night: str) -> Column:
    """A uniform draw in [0, 1) per candidate: a hash of run and candidate, so that a rerun decides the same."""
    return F.pmod(F.xxhash64(F.lit(config.name), F.lit(config.seed), F.lit(night), "row_id"), F.lit(DRAWS)) / F.lit(
        float(DRAWS)
    )


def _counts(written: DataFrame) -> dict[str, Any]:
    groups = (
        written.groupBy("action", "rule").agg(F.count("*").alias("rows"), F.sum("propensity").alias("sum")).collect()
    )
    until = written.agg(F.max("valid_until").alias("until")).first()
    by_action: dict[str, int] = {}
    by_rule: dict[str, int] = {}
    for group in sorted(groups, key=lambda row: (row["action"], row["rule"] or "")):
        by_action[group["action"]] = by_action.get(group["action"], 0) + group["rows"]
        rule = group["rule"] or "policy"
        by_rule[rule] = by_rule.get(rule, 0) + group["rows"]
    return {
        "candidates": sum(by_action.values()),
        "by_action": by_action,
        "by_rule": by_rule,
        "valid_until": until["until"].isoformat() if until and until["until"] else None,
    }
