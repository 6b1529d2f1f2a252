"""Tonight's candidates through Spark into the scores table, one commit a night.

    raw rows -- blocks -- shuffle by bucket --> judge, draw, write ------------------------------> one commit, manifest
    under a quota:                          --> judge, lay aside --> one price --> draw, write --> one commit, manifest

No row comes to the driver. What is read of the log is in `lookback.py`, the Spark jobs are in `passes.py`.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from models import artifact
from models.errors import InputError, TransientError
from pipelines.config import Config
from pipelines.erase import forgotten
from pipelines.etl import store
from pipelines.etl.features import HOUR
from pipelines.etl.flow import explained
from pipelines.etl.plans import as_of, make_plan, text_of
from pipelines.etl.schemas import CANDIDATES
from pipelines.etl.settings import changes
from pipelines.etl.sources import Source, open_sources
from pipelines.etl.staging import new_run
from pipelines.scoring import freeze, manifest
from pipelines.scoring.lookback import Lookback, look_back
from pipelines.scoring.passes import Passes
from pipelines.scoring.rounds import Rules
from pipelines.scoring.tasks import FROZEN, Night, scores_layout
from pipelines.sections import FALLBACK_LOGGING

logger = logging.getLogger("tactful.score")
SOMEBODY = ("frozen while it was scored", "unfrozen while it was scored")


@dataclass(frozen=True)
class Champion:
    """The artifact that decides, and how the registry gave it."""

    folder: Path
    version: str
    stale: bool = False
    """From the cache, since the registry did not answer."""
    checked_at: str | None = None
    """When the registry last said that it is the champion."""


def run_scoring(
    spark: SparkSession,
    config: Config,
    folder: Path,
    version: str,
    stale: bool = False,
    checked_at: str | None = None,
) -> dict[str, Any]:
    """Decide for every candidate with the artifact in `folder`, commit the night and write its manifest; returns it.

    Raises InputError where there are no candidates, an id stands twice, the log is empty, the quota cannot be met, or
    the artifact was made for other features or actions than the configuration's; TransientError where another writer
    committed first, or scoring was frozen meanwhile.
    """
    champion = artifact.load(folder)
    _check_contract(champion, config)
    with explained():
        return _run(spark, config, champion, Champion(folder, version, stale, checked_at))


def run_frozen(spark: SparkSession, config: Config) -> dict[str, Any]:
    """Hold every candidate, commit the night and write its manifest; returns it. Neither log nor champion is read.

    Raises InputError where there are no candidates, or an id stands twice; TransientError as `run_scoring`.
    """
    with explained():
        return _run(spark, config, None, None)


def _run(
    spark: SparkSession, config: Config, champion: artifact.Artifact | None, given: Champion | None
) -> dict[str, Any]:
    stopped = freeze.frozen(config) if champion is None else None
    layout, table = scores_layout(config.contract), config.run_dir / "scores"
    base = store.opened(table)
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie.")
    asked = open_sources(spark, config, range(CANDIDATES, CANDIDATES + 1), None)[0]
    night, first = _night(_rows_of(spark, asked), config)
    look = look_back(config, first) if champion else Lookback(None, None, {})
    sources = [*(open_sources(spark, config, range(CANDIDATES), look.days) if champion else ()), asked]
    for notice in (notice for source in sources for notice in source.notices):
        logger.warning(notice)
    read = range(CANDIDATES + 1) if champion else range(CANDIDATES, CANDIDATES + 1)
    inputs = manifest.fingerprints(config, read, look.days)
    job = _job(config, champion, given, night, look, sources)
    try:
        passes = Passes(spark, config, sources, look, job)
        if champion is None:
            staged, counts, quota, price = *passes.hold(), None, None
        elif (target := _target(config)) is None:
            staged, counts, quota, price = *passes.score(), None, job.default
        else:
            quota = passes.quota(champion, *target)
            staged, counts, price = *passes.finish(quota.price), quota.price
        if (freeze.frozen(config) is None) != (champion is not None):
            raise TransientError(f"{config.run_dir}: {SOMEBODY[champion is None]}; score again.")
        logger.info("scores: about to commit %d rows", counts["candidates"])
        facts = {"policy_version": job.version or FROZEN}
        committed = store.commit(table, staged, layout, facts, base, {"night": [night]})
        logger.info("scores: version %d committed", committed)
    except BaseException:
        store.discard(table, job.run)
        raise
    passes.tidy()
    found = {
        "night": night,
        "model_version": job.version,
        "policy": champion.lineage.get("learner") if champion else FROZEN,
        "version": committed,
        **counts,
        "fingerprint": champion.fingerprint if champion else None,
        "model_stale": given.stale if given else None,
        "checked_at": given.checked_at if given else None,
        "frozen": stopped,
        "lambda": price.lambda_ if price else None,
        "theta": price.theta if price else None,
        "budget": quota.as_dict() if quota else None,
        "as_of": text_of(job.plan.as_of),
        "read_from": None if look.days is None else text_of(look.days[0] * 24 * HOUR)[:10],
        "newest": passes.newest,
        "inputs": inputs,
        "input_versions": look.versions,
        "seed": config.seed,
        "config_hash": config.digest(),
        "scores_fingerprint": store.fingerprint(DeltaTable(table), {"night": night}),
    }
    manifest.write(table, night, found)
    logger.info("scores: manifest written")
    return found


def _job(
    config: Config,
    champion: artifact.Artifact | None,
    given: Champion | None,
    night: str,
    look: Lookback,
    sources: list[Source],
) -> Night:
    score, names, now = config.score, list(config.actions), as_of(config)
    fallback = None
    if score.fallback != FALLBACK_LOGGING:
        # Of actions without `hold` the first stands in for it.
        fallback = names.index(score.fallback) if score.fallback in names else 0
    files = given.folder.iterdir() if given else ()
    return Night(
        # Nothing is cut into rows here: what is known at a candidate needs neither watermark nor warm-up.
        plan=replace(make_plan(config, now + 1, 0), contract=config.contract),
        files={path.name: path.read_bytes() for path in sorted(files) if path.is_file()},
        fingerprint=champion.fingerprint if champion else "",
        version=given.version if given else None,
        night=night,
        valid_us=round(score.valid_hours * HOUR),
        rules=Rules(_seed(config, night), fallback, score.new_users == "model"),
        resume=look.resume,
        forgotten=forgotten(config),
        schemas={source.code: source.schema for source in sources},
        root=(config.run_dir / "scores").resolve(),
        run=new_run(),
    )


def _target(config: Config) -> tuple[float, bool] | None:
    """(amount, whether it is a share of the candidates) of tonight's quota; None where there is none."""
    score = config.score
    if score.sends_at_most is not None:
        return score.sends_at_most, False
    return None if score.share_at_most is None else (score.share_at_most, True)


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
    theirs = champion.lineage.get("etl_hash")
    if theirs != config.etl_hash():
        raise InputError(
            f"the champion learned from states of another ETL configuration ({changes(config, theirs)}); train and "
            "promote a policy with this configuration, or score with the champion's."
        )


def _night(candidates: DataFrame, config: Config) -> tuple[str, int]:
    """The earliest decide_at: its UTC date, and in us.

    Raises InputError where there is no candidate, or an id stands twice.
    """
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
    first = int(seen["first"])
    return str((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=first)).date()), first
