"""Evaluation over a Spark DataFrame of the transitions: sums by bucket of users, merged, and finished here.

    rows -- by bucket --> run_parts --> sums -- by question --> merge_parts --> values --> driver

No worker holds more than the users of its buckets, or the sums of one question for some of the resamples; the driver no
more than a sample, which the cuts and the value functions come from, and the replicates.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from models import propensities
from models.columns import CLICKED, MICROSECONDS_PER_DAY, columns_of
from models.errors import InputError
from models.table import Extension, Transitions, from_rows, span
from pipelines import reading
from pipelines.config import Config
from pipelines.etl import store
from pipelines.tallying import LOG, SUMS, Job, Packed, merge_parts, question, run_parts
from policies.answers import Answer, Answers, Read, read_back
from policies.base import Booleans
from policies.evaluate import asked_about, evaluation, plan_of
from policies.ope.target import Target
from policies.tally import LogTally
from policies.values import FitNetwork, Network, ValueFunctions, part_of

RESAMPLES = 50
"""Resamples whose sums travel together."""
BATCH_BYTES = 64 * 2**20
"""Sums that a worker is handed at a time: one row of them may have tens of megabytes."""
MAX_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"


@dataclass(frozen=True)
class Log:
    """A pinned version of the transitions as a DataFrame of its usable rows, with the estimates that it lacks."""

    rows: DataFrame
    config: Config
    version: int
    estimates_version: int | None
    counts: Mapping[int, int]
    """Bucket -> rows."""
    first: int
    """First decision, us."""
    last: int
    """Last decision, us."""
    end: int
    """End of the last interval, us."""
    tested: list[str] | None
    """First and last decision of the test users, ISO; None where there are none."""
    learned: Extension | None = None
    """Components that are computed of the rows."""

    @classmethod
    def of(cls, spark: SparkSession, config: Config, lineage: Mapping[str, Any] | None) -> "Log":
        """What training read, by its `lineage`, or the newest of both tables.

        Raises InputError where a table, a version or a column is missing, no row is usable, or the estimates were made
        for another version.
        """
        shards = reading.shards(config, lineage)
        columns = [*columns_of(config.logged_contract), "bucket"]
        columns += [CLICKED] if CLICKED in shards.dataset.schema.names else []
        rows = _files(spark, config.transitions_path, shards.version).where("usable").select(*columns)
        rows, estimates = _with_estimates(spark, config, rows, shards.version, lineage)
        at = F.unix_micros("decided_at")
        end = at + F.rint(F.col("elapsed_days") * MICROSECONDS_PER_DAY).cast("long")
        tested = F.when(F.col("split") == "test", at)
        facts = [F.count("*"), F.min(at), F.max(at), F.max(end), F.min(tested), F.max(tested)]
        found = [tuple(row) for row in rows.groupBy("bucket").agg(*facts).collect()]
        if not found:
            raise InputError(
                f"{config.transitions_path}: version {shards.version} has no usable row; look at the ETL's quarantine "
                "counts."
            )
        buckets, counts, first, last, ends, *judged = zip(*found, strict=True)
        counted = dict(zip(buckets, counts, strict=True))
        earliest, latest = ([each for each in column if each is not None] for column in judged)
        window = span(min(earliest), max(latest)) if earliest else None
        return cls(
            rows, config, shards.version, estimates, counted, min(first), max(last), max(ends), window, shards.extension
        )

    def sample(self) -> Transitions:
        """Whole buckets in random order, as many as have at most evaluate.fit_rows rows together, and one at least."""
        order = np.random.default_rng(self.config.seed).permutation(sorted(self.counts))
        totals = np.cumsum([self.counts[int(bucket)] for bucket in order])
        number = max(1, int((totals <= self.config.evaluate.fit_rows).sum()))
        chosen = [int(bucket) for bucket in order[:number]]
        found = self.rows.where(F.col("bucket").isin(chosen)).toArrow()
        rows = from_rows(found, self.config.logged_contract, str(self.config.transitions_path), self.version)
        return rows if self.learned is None else self.learned(rows)

    def lineage(self) -> dict[str, Any]:
        """What a lineage says of the whole log rather than of a sample."""
        table = DeltaTable(str(self.config.transitions_path), version=self.version)
        return {
            "estimates_version": self.estimates_version,
            "fingerprint": store.fingerprint(table),
            "window": span(self.first, self.last),
        }


def evaluate_by_spark(
    log: Log,
    sample: Transitions,
    policies: Sequence[Any],
    folders: Mapping[str, Path],
    tried: int = 1,
    alone: str | None = None,
    fit: FitNetwork | None = None,
    along: Mapping[str, float] | None = None,
    returns: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What `policies.evaluate.evaluate` returns, of all rows of `log`.

    `sample` are the users that the cuts and the value functions come from, `folders` where the artifact of each
    fingerprint lies. Raises InputError as `evaluate` does.
    """
    config, asked = log.config, asked_about(policies)
    plan = plan_of(
        sample, policies, config.evaluate, config.gate, config.seed, tried, alone, tuple(along or ()), RESAMPLES
    )
    targets = {policy.name: Target.of(policy, sample) for policy in asked}
    fitted = ValueFunctions.of(sample, targets, plan, log.end, fit or default_fit(config))
    packed = [Packed.of(policy, dict(folders)) for policy in asked]
    job = Job(plan, packed, fitted, config.etl.buckets, str(config.transitions_path), log.version, log.learned)
    found, answers = tallied_by_spark(log.rows, job)
    held = part_of(sample, plan, asked, fitted, [0])
    return evaluation(plan, policies, tried, found, answers, held, along, returns)


def tallied_by_spark(rows: DataFrame, job: Job) -> tuple[LogTally, Answers]:
    """`policies.answers.tallied` over a DataFrame of usable rows with their `bucket`; as many parts as buckets.

    Raises InputError where a user is not in the bucket of its name, a bucket lies in two parts, and as `tallied` does.
    """
    return _answered(rows.repartition(job.buckets, "bucket"), job)


def _answered(parts: DataFrame, job: Job) -> tuple[LogTally, Answers]:
    schema = from_arrow_schema(SUMS)
    asked = {question(each): each for each in job.plan.asked()}
    with _small_batches(parts.sparkSession):
        sums = parts.mapInArrow(run_parts(job), schema)
        merged = (
            sums.repartition(min(len(asked), job.buckets), "question")
            .sortWithinPartitions("question", "resample", "part")
            .mapInArrow(merge_parts, schema)
        )
        log: LogTally | None = None
        reads: dict[str, dict[int, Read]] = {}
        for row in merged.toLocalIterator():
            found = read_back(bytes(row["payload"]))
            if row["question"] == LOG:
                log = found
            else:
                reads.setdefault(row["question"], {})[row["resample"]] = found
    assert log is not None, "a log without rows was refused before"
    answers = {
        (each.rows, each.key): Answer.of([reads[name][low] for low in sorted(reads[name])], job.plan, each.only)
        for name, each in asked.items()
        if name in reads
    }
    return log, answers


@contextmanager
def _small_batches(spark: SparkSession) -> Iterator[None]:
    """Hand a Python worker few megabytes at a time, and afterwards as before."""
    before = spark.conf.get(MAX_BYTES, None)
    spark.conf.set(MAX_BYTES, str(BATCH_BYTES))
    try:
        yield
    finally:
        if before is None:
            spark.conf.unset(MAX_BYTES)
        else:
            spark.conf.set(MAX_BYTES, before)


def default_fit(config: Config) -> FitNetwork:
    """`models.fqe.fit_fqe` with evaluate.fqe_steps, undiscounted, as arrays."""
    from models.fqe import fit_fqe

    def fit(
        table: Transitions, rows: Booleans, ahead: NDArray[np.float32], extra: NDArray[np.float32] | None
    ) -> Network:
        steps, seed = config.evaluate.fqe_steps, config.seed
        return fit_fqe(table, rows, ahead, steps, None, extra, seed, progress=True).networks()

    return fit


def _files(spark: SparkSession, path: Path, version: int) -> DataFrame:
    """A pinned version as the list of its files."""
    table = DeltaTable(str(path), version=version)
    places = [str(store.place(table, each)) for each, _ in store.files(table)]
    return spark.read.option("basePath", str(path)).parquet(*places)


def _with_estimates(
    spark: SparkSession, config: Config, rows: DataFrame, version: int, lineage: Mapping[str, Any] | None
) -> tuple[DataFrame, int | None]:
    """The rows, those without a propensity with their estimate, and the version of the estimates."""
    path = config.propensities_path
    wanted = lineage["estimates_version"] if lineage else None
    if not propensities.exists(path) or rows.where("propensity is null").isEmpty():
        return rows, None
    facts, made = propensities.facts_of(path, wanted)
    if facts[propensities.MADE_FROM] != str(version):
        raise InputError(
            f"{path}: version {made} was estimated for version {facts[propensities.MADE_FROM]} of the transitions, not "
            f"for version {version} of {config.transitions_path}; run `tactful propensity CONFIG` again."
        )
    estimates = _files(spark, path, made).select(*propensities.KEYS, F.col("propensity").alias("estimate"))
    unknown = F.col("propensity").isNull() & F.col("estimate").isNotNull()
    joined = rows.join(estimates, list(propensities.KEYS), "left")
    source = F.when(unknown, "estimated").otherwise(F.col("propensity_source")).alias("propensity_source")
    changed = {"propensity": F.coalesce("propensity", "estimate").alias("propensity"), "propensity_source": source}
    return joined.select(*(changed.get(name, F.col(name)) for name in rows.columns)), made
