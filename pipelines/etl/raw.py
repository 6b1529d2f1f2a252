"""The raw datasets as Tactful reads them, and the one tagged row that goes through the shuffle.

Each raw column is a Spark SQL expression of the configuration, or the log's column of that name; it is cast, and what
cannot be cast becomes null and is told in `found`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from models.errors import InputError
from pipelines.config import Config, Dataset, suggest
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, USERS, outcome_names

SHARES = 1_000_000

TEXT, NUMBER, TIME, TEXTS = "string", "double", "timestamp", "array<string>"


@dataclass(frozen=True)
class Wanted:
    """A column that Tactful reads from a raw dataset."""

    name: str
    """As the configuration calls it."""
    kind: str
    """TEXT, NUMBER, TIME (read as int64 us) or TEXTS."""
    required: bool = True
    """Whether its absence is an error; otherwise it is null throughout."""
    alias: str = ""
    """The tagged row's name for it; by default its own."""
    default: str = ""
    """The column that stands in for it where it is absent."""


def wanted_decisions(config: Config) -> list[Wanted]:
    """Columns of `decisions`."""
    return [
        Wanted("decision_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("decided_at", TIME, alias="at"),
        Wanted("action", TEXT, alias="label"),
        Wanted("propensity", NUMBER, required=False),
        Wanted("legal_actions", TEXTS, required=False, alias="legal"),
        Wanted("policy_id", TEXT, required=False),
        Wanted("logged_at", TIME, required=False, alias="logged", default="decided_at"),
        *wanted_context(config),
        *(Wanted(name, NUMBER, alias=f"outcome:{name}") for name in outcome_names(config.rewards)),
    ]


def wanted_context(config: Config) -> list[Wanted]:
    """Context columns, the same in `decisions` and `candidates`."""
    numbers = [Wanted(name, NUMBER, alias=f"context:{name}") for name in config.features.context]
    return numbers + [Wanted(name, TEXT, alias=f"category:{name}") for name in config.features.context_categories]


def wanted_candidates(config: Config) -> list[Wanted]:
    """Columns of `candidates`."""
    return [
        Wanted("candidate_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("decide_at", TIME, alias="at"),
        Wanted("legal_actions", TEXTS, required=False, alias="legal"),
        *wanted_context(config),
    ]


def wanted_events(config: Config) -> list[Wanted]:
    """Columns of `events`."""
    return [
        Wanted("event_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("occurred_at", TIME, alias="at"),
        Wanted("kind", TEXT, alias="label"),
        Wanted("decision_id", TEXT, required=False),
        Wanted("value", NUMBER, required=False),
        Wanted("logged_at", TIME, required=False, alias="logged", default="occurred_at"),
    ]


def wanted_users(config: Config) -> list[Wanted]:
    """Columns of `users`."""
    features = config.features
    numbers = [Wanted(name, NUMBER, alias=f"attribute:{name}") for name in features.attributes]
    texts = [Wanted(name, TEXT, alias=f"attribute_category:{name}") for name in features.attribute_categories]
    return [
        Wanted("user_id", TEXT),
        Wanted("valid_from", TIME, alias="at"),
        Wanted("logged_at", TIME, required=False, alias="logged", default="valid_from"),
        Wanted("time_zone", TEXT, required=False),
        *numbers,
        *texts,
    ]


def read(spark: SparkSession, key: str, dataset: Dataset, wanted: list[Wanted]) -> DataFrame:
    """The wanted columns of one raw dataset under their aliases, cast, and `found` (text that could not be cast).

    Raises InputError naming `key` (data.decisions, say), the column, the columns that exist and the remedy.
    """
    raw = _where(_load(spark, key, dataset), key, dataset)
    for name in dataset.columns:
        if name not in {column.name for column in wanted}:
            known = [column.name for column in wanted]
            raise InputError(f"{key}.columns: {name!r} is not read from this dataset{suggest(name, known)}.")
    columns, losses = [], []
    for column in wanted:
        source, there = _source(key, dataset, column, raw), True
        if source is None:
            there = False
            stands_in = next((other for other in wanted if other.name == column.default), None)
            source = _source(key, dataset, stands_in, raw) if stands_in else None
        if source is None:
            source = F.lit(None).cast(column.kind)
        value = _cast(source, column)
        unread = source.isNotNull() & value.isNull()
        if there and column.kind in (NUMBER, TIME):
            losses.append(F.when(unread, F.concat(F.lit(f"{column.name}="), source.cast(TEXT))))
        if column.name == "propensity":
            # What cannot be read is not unknown: NaN lies outside (0, 1] and is quarantined for it.
            value = F.when(unread, F.lit(float("nan"))).otherwise(value)
        columns.append(value.alias(column.alias or column.name))
    found = F.concat_ws("; ", *losses) if losses else F.lit("")
    try:
        return raw.select(*columns, F.nullif(found, F.lit("")).alias("found"))
    except AnalysisException as error:
        raise InputError(f"{key}.columns: {_first_line(error)}") from None


def _load(spark: SparkSession, key: str, dataset: Dataset) -> DataFrame:
    if not dataset.path.exists():
        raise InputError(f"{key}.path: {dataset.path} does not exist; correct the path or produce the dataset first.")
    try:
        if (dataset.format or _format(dataset.path)) == "csv":
            return spark.read.csv(str(dataset.path), header=True, enforceSchema=False, escape='"')
        return spark.read.parquet(str(dataset.path))
    except AnalysisException as error:
        raise InputError(f"{key}.path: {dataset.path} cannot be read: {_first_line(error)}") from None


def _where(raw: DataFrame, key: str, dataset: Dataset) -> DataFrame:
    """The rows that the dataset's condition asks for."""
    if dataset.where is None:
        return raw
    try:
        return raw.where(dataset.where)
    except (AnalysisException, ParseException) as error:
        raise InputError(
            f"{key}.where: {dataset.where!r} is no condition over {dataset.path}: {_first_line(error)} "
            f"(its columns: {', '.join(raw.columns)})."
        ) from None


def _format(path: Path) -> str:
    return "csv" if path.name.endswith((".csv", ".csv.gz")) else "parquet"


def _source(key: str, dataset: Dataset, column: Wanted, raw: DataFrame) -> Column | None:
    """The column's expression, checked against the dataset; None where an optional column is absent."""
    expression = dataset.columns.get(column.name)
    if expression is None:
        if column.name in raw.columns:
            return F.col(f"`{column.name}`")
        if column.required:
            raise InputError(
                f"{key}: no column {column.name!r} in {dataset.path}; map it in {key}.columns"
                f"{suggest(column.name, raw.columns)}."
            )
        return None
    try:
        source = F.expr(expression)
        kind = raw.select(source.alias("value")).schema["value"].dataType
    except (AnalysisException, ParseException) as error:
        raise InputError(
            f"{key}.columns.{column.name}: {expression!r} is no expression over {dataset.path}: {_first_line(error)} "
            f"(its columns: {', '.join(raw.columns)})."
        ) from None
    if column.kind == TEXTS and not isinstance(kind, ArrayType):
        raise InputError(
            f"{key}.columns.{column.name}: {expression!r} is {kind.simpleString()}, a list of texts is needed; write "
            f"split({expression}, ',') or array(...)."
        )
    return source


def _cast(source: Column, column: Wanted) -> Column:
    if column.kind == TIME:
        return F.unix_micros(source.try_cast(TIME))
    if column.kind == NUMBER:
        return source.try_cast(NUMBER)
    text = source.cast(column.kind)
    return F.nullif(text, F.lit("")) if column.name.endswith("_id") else text


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def read_all(spark: SparkSession, config: Config) -> dict[int, DataFrame]:
    """The raw datasets of a configuration with `ds` (arrival day) and `hash`, by DECISIONS, EVENTS, USERS.

    The content hash is over what Tactful reads but for `logged_at`. Raises InputError, see `read`.
    """
    data = config.data
    plans = (
        (DECISIONS, data.decisions, wanted_decisions(config)),
        (EVENTS, data.events, wanted_events(config)),
        (USERS, data.users, wanted_users(config)),
    )
    return {
        code: with_arrival(read(spark, f"data.{NAMES[code]}", dataset, wanted))
        for code, dataset, wanted in plans
        if dataset is not None
    }


def read_candidates(spark: SparkSession, config: Config) -> DataFrame:
    """The candidates of the night, as rows beside the log's. Raises InputError, see `read`."""
    if config.data.candidates is None:
        raise InputError("data.candidates: missing; say where tonight's candidates lie.")
    frame = read(spark, "data.candidates", config.data.candidates, wanted_candidates(config))
    return with_arrival(frame.withColumn("logged", F.col("at")))


def with_arrival(frame: DataFrame) -> DataFrame:
    """The frame with `hash` of its content and `ds`, the UTC date of `logged` ("unknown" where null)."""
    day = F.date_format(F.timestamp_micros("logged"), "yyyy-MM-dd")
    content = [name for name in frame.columns if name != "logged"]
    return frame.withColumn("hash", row_hash(content)).withColumn("ds", F.coalesce(day, F.lit("unknown")))


def row_hash(names: Iterable[str]) -> Column:
    """Stable 64-bit hash of the columns; nulls count, so that a value may not move to its neighbour unseen."""
    quoted = [F.col(f"`{name}`") for name in names]
    return F.xxhash64(*quoted, *(column.isNull() for column in quoted))


def tagged(frames: dict[int, DataFrame], config: Config) -> DataFrame:
    """All raw rows as one dataset with `dataset`, `bucket` and `split`; columns a dataset lacks are null."""
    parts = [frame.withColumn("dataset", F.lit(code).cast("byte")) for code, frame in frames.items()]
    union = reduce(lambda a, b: a.unionByName(b, allowMissingColumns=True), parts)
    for wanted in (wanted_decisions(config), wanted_events(config), wanted_users(config)):
        for column in wanted:
            name = column.alias or column.name
            if name not in union.columns:
                kind = "bigint" if column.kind == TIME else column.kind
                union = union.withColumn(name, F.lit(None).cast(kind))
    draw = F.pmod(F.xxhash64("user_id", F.lit("split")), F.lit(SHARES)) / SHARES
    train, validation, _ = config.etl.split
    split = F.when(draw < train, "train").when(draw < train + validation, "validation").otherwise("test")
    bucket = F.pmod(F.xxhash64("user_id"), F.lit(config.etl.buckets)).cast("int")
    return union.withColumn("bucket", bucket).withColumn("split", split)


def marked_schema(union: DataFrame) -> StructType:
    """The tagged row and, null where the row is kept, the reason."""
    return StructType(list(union.schema.fields)).add("reason", "string")
