"""Scored rows matched to logged decisions, on Spark: what became of each of both, and nothing lost.

A logged decision answers a scored row where its `monitor.match` is the row's candidate_id and the user is the same,
unless it lies in the time of another night's row of which both are true. Of several answers one within the row's time
comes first, then one after it; then the first logged; then, of equal times, the first decided.

| fate of a scored row | is |
|----------------------|----|
| unidentified | it has no user or no decide_at |
| matched      | answered within [decide_at, valid_until] |
| late, early  | answered after valid_until, before decide_at |
| other_user   | its id was logged for other users alone |
| open         | not logged, and the log does not reach its valid_until yet |
| never_logged | not logged |

| fate of a logged row | is |
|----------------------|----|
| unidentified   | it has no user or no id |
| answers        | the first that answers a row of the night |
| duplicate      | answers the same row again, with the decision_id, time, action and propensity of the first |
| decided_again  | answers the same row again, and is another decision |
| other_user     | it has the id of a row of the night, which is another user's |
| other_night    | it has an id of another night |
| never_scored   | it has an id that no night scored |

The last three are counted from the night's first decide_at to its last valid_until.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable
from pyspark.sql import DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.blocks import Batches
from pipelines.etl.features import DAY, HOUR
from pipelines.etl.plans import as_of, max_lateness
from pipelines.etl.schemas import DECISIONS, TEXT, Wanted, wanted
from pipelines.etl.sources import Source, open_dataset, quoted

SCORED_FATES = ("unidentified", "matched", "late", "early", "other_user", "open", "never_logged")
LOGGED_FATES = ("unidentified", "answers", "duplicate", "decided_again", "other_user", "other_night", "never_scored")
MATCH = "match"
SAME = 1e-6
"""Propensities that differ by less are one number, written as a float32 perhaps."""
BINS = 10
"""Of probability, for calibration."""


@dataclass(frozen=True)
class Span:
    """Times of a night, us."""

    first: int
    """Earliest decide_at."""
    last: int
    """Latest valid_until."""


def scored_rows(spark: SparkSession, table: DeltaTable, nights: Sequence[str]) -> DataFrame:
    """The rows of some nights of the scores table, times in us as `begins` and `ends`.

    Raises InputError where one of the nights was not scored.
    """
    paths: dict[str, list[str]] = {}
    for path, partition in store.files(table):
        paths.setdefault(partition["night"], []).append(str(store.place(table, path)))
    absent = [night for night in nights if night not in paths]
    if absent:
        raise InputError(
            f"scores: the night of {absent[0]} was not scored (found {', '.join(sorted(paths)) or 'none'}); name one "
            "that was, or run `tactful score` first."
        )
    parts = [spark.read.parquet(*paths[night]).withColumn("night", F.lit(night)) for night in nights]
    found = parts[0]
    for part in parts[1:]:
        found = found.unionByName(part, allowMissingColumns=True)
    times = {"begins": F.unix_micros("decide_at"), "ends": F.unix_micros("valid_until")}
    return found.withColumns(times).select(
        "night", "candidate_id", "user_id", "begins", "ends", "action", "propensity", "probabilities", "rule"
    )


def span_of(scores: DataFrame) -> Span:
    """Raises InputError where no row has a decide_at."""
    found = scores.agg(F.min("begins").alias("first"), F.max("ends").alias("last")).first()
    if found is None or found["first"] is None or found["last"] is None:
        raise InputError("scores: no row of the night has a decide_at; check data.candidates.columns and score again.")
    return Span(int(found["first"]), int(found["last"]))


def logged_rows(spark: SparkSession, config: Config, span: Span) -> DataFrame:
    """The log's decisions that a night of `span` can have led to, those before and after its time included.

    Columns match, row_id, user_id, at, logged (us), label, propensity. Raises InputError as `open_dataset` does, and
    where `monitor.match` is no column of the log.
    """
    dataset, name = config.data.decisions, config.monitor.match
    known = {column.name: column for column in wanted(DECISIONS, config)}
    columns = [known[each] for each in ("decision_id", "user_id", "decided_at", "action", "propensity", "logged_at")]
    if name != "decision_id":
        columns.append(Wanted(name, TEXT, alias=MATCH))
    mapped = {key: value for key, value in dataset.columns.items() if key in {column.name for column in columns}}
    early, late = round(config.score.valid_hours * HOUR), max_lateness(config)
    days = ((span.first - early) // DAY, (span.last + 2 * late) // DAY)
    try:
        source = open_dataset(
            spark, DECISIONS, "data.decisions", dataset.model_copy(update={"columns": mapped}), columns, days
        )
    except InputError as error:
        if f"no column {name!r}" in str(error):
            raise InputError(
                f"monitor.match: {error} It names the column that holds the candidate_id a decision answers."
            ) from None
        raise
    found = _frame(spark, source, [column.column for column in columns])
    if name == "decision_id":
        found = found.withColumn(MATCH, F.col("row_id"))
    inside = F.col("at").between(span.first - early, span.last + late)
    told = found.withColumn("logged", F.coalesce("logged", "at"))
    return told.where(inside & (F.col("logged") <= as_of(config)))


def _frame(spark: SparkSession, source: Source, names: list[str]) -> DataFrame:
    """Some columns of a raw table; what Spark reads need not pass through Python for that."""
    if source.frame is not None:
        return source.frame.select(*map(quoted, names))

    def as_they_are(batches: Batches) -> Batches:
        return batches

    return source.over(spark, as_they_are, pa.schema([source.schema.field(name) for name in names]), names)


def log_end(log: DataFrame) -> int | None:
    """Latest `logged` of the rows, us; None where there are none."""
    found = log.agg(F.max("logged").alias("end")).first()
    return None if found is None or found["end"] is None else int(found["end"])


def answers(scores: DataFrame, log: DataFrame, others: DataFrame) -> DataFrame:
    """The log with the row of `scores` that each decision answers, if any, as my_night, my_id, my_user.

    An id may come back on another night: what lies outside the row's own time and inside that of a row of `others` with
    the same id and user is `elsewhere`, and answers nothing here. Beside them stand `place`, 0 within the row's time, 1
    after it, 2 before, null where nothing is answered.
    """
    theirs = _known(others).select(
        F.col("candidate_id").alias("their_id"),
        F.col("user_id").alias("their_user"),
        F.col("begins").alias("from"),
        F.col("ends").alias("until"),
    )
    inside = (F.col(MATCH) == F.col("their_id")) & (F.col("user_id") == F.col("their_user"))
    inside &= F.col("at").between(F.col("from"), F.col("until"))
    there, rest = log.join(theirs, inside, "left_semi"), log.join(theirs, inside, "left_anti")
    told = there.withColumn("elsewhere", F.lit(True)).unionByName(rest.withColumn("elsewhere", F.lit(False)))
    mine = _known(scores).select(
        F.col("night").alias("my_night"),
        F.col("candidate_id").alias("my_id"),
        F.col("user_id").alias("my_user"),
        F.col("begins").alias("from"),
        F.col("ends").alias("until"),
    )
    here = (F.col(MATCH) == F.col("my_id")) & (F.col("user_id") == F.col("my_user"))
    place = (
        F.when(F.col("at").between(F.col("from"), F.col("until")), 0)
        .when(F.col("elsewhere"), None)
        .when(F.col("at") > F.col("until"), 1)
        .when(F.col("my_id").isNotNull(), 2)
    )
    return told.join(mine, here, "left").withColumn("place", place).drop("from", "until")


def _known(scores: DataFrame) -> DataFrame:
    return scores.where("user_id is not null and candidate_id is not null and begins is not null")


def ranked(answered: DataFrame) -> DataFrame:
    """Those of `answers` that answer a row, with `rank` among its answers, and `repeats`: all it says is what the first
    says."""
    alike = Window.partitionBy("my_night", "my_id", "my_user").orderBy(
        "place", *(F.col(name).asc_nulls_last() for name in ("logged", "at", "row_id", "label"))
    )
    told = ("row_id", "at", "label", "propensity")
    same = [F.col(name).eqNullSafe(F.first(name).over(alike)) for name in told]
    paired = answered.where("place is not null")
    return paired.withColumns({"rank": F.row_number().over(alike), "repeats": same[0] & same[1] & same[2] & same[3]})


def scored_fates(scores: DataFrame, log: DataFrame, firsts: DataFrame, end: int | None) -> DataFrame:
    """Each scored row with its `fate` and, where it was answered, the answer.

    `firsts` as by `ranked`, `end` of the log in us. Beside the columns of `scores`: answer_id (decision_id), answer
    (its action), and `propensity_is` same, missing or differs, null but for matched rows with the scored action.
    """
    first = firsts.where("rank = 1").select(
        "my_night",
        "my_id",
        "my_user",
        "place",
        F.col("row_id").alias("answer_id"),
        F.col("label").alias("answer"),
        F.col("propensity").alias("answer_propensity"),
    )
    seen = log.groupBy(F.col(MATCH).alias("seen")).agg(F.min("user_id").alias("low"), F.max("user_id").alias("high"))
    mine = (F.col("night") == F.col("my_night")) & (F.col("candidate_id") == F.col("my_id"))
    mine &= F.col("user_id") == F.col("my_user")
    joined = scores.join(first, mine, "left").join(seen, F.col("candidate_id") == F.col("seen"), "left")
    fate = (
        F.when(F.col("user_id").isNull() | F.col("candidate_id").isNull() | F.col("begins").isNull(), "unidentified")
        .when(F.col("place") == 0, "matched")
        .when(F.col("place") == 1, "late")
        .when(F.col("place") == 2, "early")
        .when((F.col("low") != F.col("user_id")) | (F.col("high") != F.col("user_id")), "other_user")
        .when(F.lit(end is None) | (F.col("ends") > F.lit(end)), "open")
        .otherwise("never_logged")
    )
    agrees = (F.col("fate") == "matched") & (F.col("answer") == F.col("action"))
    told = (
        F.when(F.col("answer_propensity").isNull() | F.isnan("answer_propensity"), "missing")
        .when(F.abs(F.col("answer_propensity") - F.col("propensity")) > SAME, "differs")
        .otherwise("same")
    )
    dropped = ("seen", "low", "high", "place", "my_night", "my_id", "my_user")
    return joined.withColumn("fate", fate).withColumn("propensity_is", F.when(agrees, told)).drop(*dropped)


def logged_fates(answered: DataFrame, firsts: DataFrame, scores: DataFrame, others: DataFrame, span: Span) -> DataFrame:
    """The `fate` of each logged row that has to do with the night of `scores`, which `span` is of.

    `answered` as by `answers`, `firsts` as by `ranked`, `others` the nights around.
    """
    answering = F.when(F.col("rank") == 1, "answers").when(F.col("repeats"), "duplicate").otherwise("decided_again")
    tonight = _known(scores).select(F.col("candidate_id").alias("tonight")).distinct()
    another = others.select(F.col("candidate_id").alias("another")).distinct()
    rest = (
        answered.where(F.col("place").isNull() & F.col("at").between(span.first, span.last))
        .join(tonight, F.col(MATCH) == F.col("tonight"), "left")
        .join(another, F.col(MATCH) == F.col("another"), "left")
    )
    other = (
        F.when(F.col("user_id").isNull() | F.col(MATCH).isNull(), "unidentified")
        .when(F.col("elsewhere"), "other_night")
        .when(F.col("tonight").isNotNull(), "other_user")
        .when(F.col("another").isNotNull(), "other_night")
        .otherwise("never_scored")
    )
    return firsts.select(answering.alias("fate")).unionByName(rest.select(other.alias("fate")))


def counted(fates: DataFrame) -> list[Row]:
    """Rows of `scored_fates` by fate, scored action, answer, rule and propensity_is."""
    return list(fates.groupBy("fate", "action", "answer", "rule", "propensity_is").count().collect())


def drawn(fates: DataFrame, actions: Sequence[str]) -> list[Row]:
    """Sums over the draws of `scored_fates`: by fate, `place` of an action and bin of its probability p, 0 < p < 1.

    Columns n, scored and answered (how often that action was scored, and taken), expected and variance (sums of p and
    p (1 - p)).
    """
    places = fates.select("fate", "action", "answer", F.posexplode("probabilities").alias("place", "p")).where(
        "p > 0 and p < 1"
    )
    # As everywhere: 1 - 0.8 and 0.2 are one probability, and differ in the last digit.
    bin_of = F.least(F.floor(F.col("p") * BINS + 1e-9), F.lit(BINS - 1)).cast("int")
    named = F.element_at(F.array(*map(F.lit, actions)), F.col("place") + 1)
    sums = places.groupBy("fate", "place", bin_of.alias("bin")).agg(
        F.count("*").alias("n"),
        F.sum((F.col("action") == named).cast("long")).alias("scored"),
        F.sum(F.coalesce(F.col("answer") == named, F.lit(False)).cast("long")).alias("answered"),
        F.sum("p").alias("expected"),
        F.sum(F.col("p") * (1 - F.col("p"))).alias("variance"),
    )
    return list(sums.collect())
