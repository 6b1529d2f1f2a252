"""The raw datasets as Tactful reads them: through Spark, or plain Parquet inside the tasks, to one and the same rows.

Each raw column is a Spark SQL expression of the configuration, or the log's column of that name; it is cast, and what
cannot be cast becomes null and is told in `found`. Local Parquet whose columns need neither expression nor cast is
read by Arrow in the tasks themselves: the rows then never leave the JVM one by one, since they never enter it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import ArrayType, DateType, NumericType, StructType, TimestampNTZType, TimestampType

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import files
from pipelines.etl.blocks import Batches
from pipelines.etl.files import Piece
from pipelines.etl.schemas import NAMES, NUMBER, TEXT, TEXTS, TIME, Days, Wanted, days_of, raw_schema, wanted
from pipelines.sections import Dataset, suggest

DAY_FOLDER = "ds"
"""Partition column of the arrival day, where a dataset is laid out by it."""
LINE = "_line_that_is_no_object"
"""Column of JSON that holds a line which cannot be read; null in the others."""
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
"""Texts in an expression, which name no column."""
WORD = re.compile(r"[^\W\d]")
HEADLESS = (
    "its first line does not look like a header: none of the names that are read, or that the configuration gives, "
    "stands there; write one above it, or correct data.*.columns"
)
GLOB = re.compile(r"([\\*?\[\]{}])")
"""What Spark takes in a path for a pattern."""


@dataclass(frozen=True)
class Source:
    """One raw dataset, from wherever it comes."""

    code: int
    columns: list[Wanted]
    frame: DataFrame | None
    """The raw table through Spark, or"""
    pieces: tuple[Piece, ...]
    """parts of plain Parquet files for the tasks to read."""
    notices: tuple[str, ...]
    """What a person should know of its files."""

    @property
    def schema(self) -> pa.Schema:
        return raw_schema(self.columns)

    def over(
        self, spark: SparkSession, kernel: Callable[[Batches], Batches], out: pa.Schema, names: list[str] | None = None
    ) -> DataFrame:
        """`kernel` over the batches of the raw table, or of some of its columns; the rows it makes."""
        schema = self.schema if names is None else pa.schema([self.schema.field(name) for name in names])
        if self.frame is not None:
            names = schema.names

            def named(batches: Batches) -> Batches:
                return kernel(batch.rename_columns(names) for batch in batches)

            # PySpark looks columns up once more, and would take a dot or a backtick in a name for its own.
            picked = (F.col(quoted(name)).alias(f"c{place}") for place, name in enumerate(names))
            return self.frame.select(*picked).mapInArrow(named, from_arrow_schema(out))
        tasks = files.packed(self.pieces, spark.sparkContext.defaultParallelism)
        columns = {column.column: column for column in self.columns}

        def read(batches: Batches) -> Batches:
            for batch in batches:
                for task in batch.column("id").to_pylist():
                    yield from kernel(files.batches(tasks[task], columns, schema))

        return spark.range(0, len(tasks), 1, max(len(tasks), 1)).mapInArrow(read, from_arrow_schema(out))


def quoted(name: str) -> str:
    """A column's name for Spark, whatever characters it has: never an expression."""
    return "`" + name.replace("`", "``") + "`"


def open_sources(spark: SparkSession, config: Config, codes: Iterator[int] | range, days: Days | None) -> list[Source]:
    """The configured datasets among `codes`, but for files that cannot hold rows which arrived on `days`.

    Raises InputError naming the dataset, file or column, what was found and the remedy.
    """
    found = []
    for code in codes:
        dataset: Dataset | None = getattr(config.data, NAMES[code])
        if dataset is not None:
            columns = wanted(code, config)
            found.append(open_dataset(spark, code, f"data.{NAMES[code]}", dataset, columns, days_of(code, days)))
    return found


def open_dataset(
    spark: SparkSession, code: int, key: str, dataset: Dataset, columns: list[Wanted], days: Days | None = None
) -> Source:
    """The given columns of one dataset; `key` is where the configuration names it.

    Raises InputError as `open_sources` does.
    """
    check_dataset(key, dataset, columns)
    notices: tuple[str, ...] = ()
    schema = None
    if format_of(dataset) == "parquet":
        lake = files.survey(key, dataset.path, _mentioned(dataset, columns), days)
        notices = lake.notices
        plain = _plain(dataset, columns, lake)
        if plain is not None:
            return Source(code, plain, None, lake.pieces(days), notices)
        schema = _schema(lake)
    return Source(code, columns, _through_spark(spark, key, dataset, columns, days, schema), (), notices)


def check_dataset(key: str, dataset: Dataset, columns: list[Wanted]) -> None:
    """Raise InputError where a mapped name is none that is read, or nothing lies at the path."""
    for name in dataset.columns:
        if name not in {column.name for column in columns}:
            known = [column.name for column in columns]
            raise InputError(f"{key}.columns: {name!r} is not read from this dataset{suggest(name, known)}.")
    if not dataset.path.exists():
        raise InputError(f"{key}.path: {dataset.path} does not exist; correct the path or produce the dataset first.")


def absent(key: str, dataset: Dataset, columns: list[Wanted], name: str, there: Iterable[str]) -> InputError:
    """The error of one of the `columns` that is needed and not among those that are there."""
    named = list(there)
    other = next((each for each in ";\t|," if each != dataset.separator and each in named[0]), None) if named else None
    remedy = None
    if format_of(dataset) == "csv" and len(named) == 1 and other is not None:
        remedy = f"set {key}.separator = {json.dumps(other)}"
    if not has_header(dataset, columns, named):
        first = f"its columns may be separated otherwise ({remedy}), or " if remedy else ""
        return InputError(f"{key}: no column {name!r} in {dataset.path}; {first}{HEADLESS}.")
    if remedy:
        return InputError(f"{key}: {dataset.path} has one column, {named[0]!r}; {remedy}.")
    return InputError(f"{key}: no column {name!r} in {dataset.path}; map it in {key}.columns{suggest(name, named)}.")


def has_header(dataset: Dataset, columns: list[Wanted], names: Iterable[str]) -> bool:
    """Whether what Spark takes for the names of the columns may be shown: of CSV it is the first line, which is a row
    where there is no header. In one stands a name of `columns`, or one that a mapping or the condition names."""
    if format_of(dataset) != "csv":
        return True
    said = [QUOTED.sub("", text) for text in (*dataset.columns.values(), dataset.where or "")]
    found = {part.strip().lower() for name in names for part in re.split(r"[,;\t|]", name)}
    found -= {DAY_FOLDER}
    words, ours = {name for name in found if WORD.match(name)}, {column.name.lower() for column in columns}
    return not found or any(name in ours or any(files.mentions(text.lower(), name) for text in said) for name in words)


def format_of(dataset: Dataset) -> str:
    """parquet, csv or json: as configured, else by the suffix."""
    return dataset.format or files.format_of(dataset.path.name) or "parquet"


def _mentioned(dataset: Dataset, columns: list[Wanted]) -> Callable[[str], bool]:
    """Whether a column of the files is read: by its own name or in an expression."""
    expressions = [dataset.columns.get(column.name, column.name) for column in columns]
    expressions += [column.default for column in columns] + [dataset.where or ""]
    return lambda name: any(files.mentions(expression, name) for expression in expressions)


def _plain(dataset: Dataset, columns: list[Wanted], lake: files.Lake) -> list[Wanted] | None:
    """The columns with the names they have in the files, where each can be read as it is; None where one cannot."""
    if dataset.where is not None:
        return None
    found = []
    for column in columns:
        name = dataset.columns.get(column.name, column.name)
        if name not in lake.types and column.name not in dataset.columns and not column.required:
            name = dataset.columns.get(column.default, column.default)
            if name not in lake.types:
                found.append(replace(column, source=""))
                continue
        if name not in lake.types or not files.is_plain(lake.types[name], column.kind):
            return None
        found.append(replace(column, source=name))
    return found


def _through_spark(
    spark: SparkSession,
    key: str,
    dataset: Dataset,
    columns: list[Wanted],
    days: Days | None,
    schema: StructType | None,
) -> DataFrame:
    try:
        return _picked(key, dataset, columns, days, _load(spark, key, dataset, schema, days))
    except InputError:
        if days is None or format_of(dataset) != "json":
            raise
    # What JSON leaves out where it is null, an expression may name though no row of these days has it.
    known = _load(spark, key, dataset, None, None, ignoreCorruptFiles=True).schema
    return _picked(key, dataset, columns, days, _load(spark, key, dataset, known, days))


def _picked(key: str, dataset: Dataset, columns: list[Wanted], days: Days | None, loaded: DataFrame) -> DataFrame:
    """The raw table of a dataset as Spark has loaded it."""
    raw = _where(loaded, key, dataset, columns)
    by_day = DAY_FOLDER in raw.columns and f"/{DAY_FOLDER}=" in next(iter(raw.inputFiles()), "")
    day = F.unix_date(F.col(DAY_FOLDER).try_cast("date")) if by_day else F.lit(None).cast("int")
    if days is not None and by_day:
        raw = raw.where(day.isNull() | day.between(*days))
    picked, losses = [], [F.concat(F.lit("line="), _form(F.col(LINE)))] if LINE in raw.columns else []
    for column in columns:
        source, there = _source(key, dataset, columns, column, raw), True
        if source is None:
            there = False
            stands_in = next((other for other in columns if other.name == column.default), None)
            source = _source(key, dataset, columns, stands_in, raw) if stands_in else None
        if source is None:
            source = F.lit(None).cast(column.kind)
        value = _cast(source, column)
        if there and column.kind in (NUMBER, TIME) and not _is_typed(raw.select(source.alias("value")), column):
            unread = source.isNotNull() & value.isNull()
            losses.append(F.when(unread, F.concat(F.lit(f"{column.name}="), source.cast(TEXT))))
            if column.name == "propensity":
                # What cannot be read is not unknown: NaN lies outside (0, 1] and is quarantined for it.
                value = F.when(unread, F.lit(float("nan"))).otherwise(value)
        elif there and column.kind == TIME and (read := _read_by(dataset, column, raw)):
            # An expression that gives no time does not say what it was given.
            losses.append(F.when(value.isNull(), F.nullif(F.concat_ws(", ", *read), F.lit(""))))
        picked.append(value.alias(column.column))
    found = F.nullif(F.concat_ws("; ", *losses), F.lit("")) if losses else F.lit(None).cast(TEXT)
    try:
        return raw.select(*picked, found.alias("found"), day.alias("day"))
    except AnalysisException as error:
        raise InputError(f"{key}.columns: {_first_line(error)}") from None


def _schema(lake: files.Lake) -> StructType | None:
    """The columns that are read, of all files; left to itself Spark takes those of whichever file it opens first."""
    if not lake.types:
        return None
    return from_arrow_schema(pa.schema([(name, _spark_kind(kind)) for name, kind in lake.types.items()]))


def _form(line: Column) -> Column:
    """What a line looks like, with 9 for a digit and a for all else but ASCII punctuation and spaces: it may name users
    whom nobody could find there to forget them, and the log still has it."""
    return F.regexp_replace(F.regexp_replace(line, "[0-9]", "9"), "[A-Za-z]|[^ -~]", "a")


def _spark_kind(kind: pa.DataType) -> pa.DataType:
    """The Arrow type of what Spark reads from Parquet of a type that it does not have."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64()}.get(kind.bit_width, pa.decimal128(20, 0))
    # Nanoseconds have come this far only as INT96, which Spark knows.
    return pa.timestamp("us", "UTC") if pa.types.is_timestamp(kind) and kind.unit == "ns" else kind


def _load(
    spark: SparkSession, key: str, dataset: Dataset, schema: StructType | None, days: Days | None, **how: Any
) -> DataFrame:
    """The files of a dataset but for folders of other days; without a schema they alone say which columns there are."""
    paths = _folders(key, dataset, days)
    reader = spark.read if schema is None else spark.read.schema(schema)
    if paths:
        reader = reader.option("basePath", str(dataset.path.resolve()))
    else:
        # Spark's own working directory is that in which its JVM was started.
        paths = [str(dataset.path.resolve())]
    try:
        if format_of(dataset) == "csv":
            return reader.csv(paths, header=True, enforceSchema=False, escape='"', sep=dataset.separator)
        if format_of(dataset) == "json":
            # Types that are told from the rows change with them, and an id's text with its type.
            how |= {"primitivesAsString": True, "mode": "PERMISSIVE", "columnNameOfCorruptRecord": LINE}
            reader = reader.options(**how)
            known = reader.json(paths).schema if schema is None else schema
            # Spark keeps a line that is no object in a column that the schema names, and only there.
            return reader.schema(known if LINE in known.names else known.add(LINE, TEXT)).json(paths)
        return reader.parquet(*paths)
    except AnalysisException as error:
        raise InputError(f"{key}.path: {dataset.path} cannot be read: {_first_line(error)}") from None


def _folders(key: str, dataset: Dataset, days: Days | None) -> list[str]:
    """The folders of `days`, and what lies in none of any day; of other days the newest where there is nothing else,
    for its columns. Empty where that is the whole dataset."""
    if days is None or format_of(dataset) == "parquet":
        return []
    found = files.placed(key, dataset.path.resolve())
    inside = files.within(found, days)
    if len(inside) == len(found):
        return []
    parts = (files.day_folder(name, dataset.path.resolve()) if day is not None else name for name, day in inside)
    return [GLOB.sub(r"\\\1", part) for part in dict.fromkeys(parts)]


def _where(raw: DataFrame, key: str, dataset: Dataset, columns: list[Wanted]) -> DataFrame:
    """The rows that the dataset's condition asks for."""
    if dataset.where is None:
        return raw
    try:
        condition = F.expr(dataset.where)
        return raw.where(condition | F.col(LINE).isNotNull() if LINE in raw.columns else condition)
    except (AnalysisException, ParseException) as error:
        if not has_header(dataset, columns, _names(raw)):
            raise InputError(
                f"{key}.where: {dataset.where!r} is no condition over {dataset.path}; {HEADLESS}."
            ) from None
        raise InputError(
            f"{key}.where: {dataset.where!r} is no condition over {dataset.path}: {_first_line(error)} "
            f"(its columns: {', '.join(_names(raw))})."
        ) from None


def _names(raw: DataFrame) -> list[str]:
    """The columns that the files themselves have."""
    return [name for name in raw.columns if name != LINE]


def _source(key: str, dataset: Dataset, columns: list[Wanted], column: Wanted, raw: DataFrame) -> Column | None:
    """The column's expression, checked against the dataset; None where an optional column is absent."""
    expression = dataset.columns.get(column.name)
    if expression is None:
        if column.name not in raw.columns:
            if column.required:
                raise absent(key, dataset, columns, column.name, _names(raw))
            return None
        expression = quoted(column.name)
    try:
        source = F.expr(expression)
        kind = raw.select(source.alias("value")).schema["value"].dataType
    except (AnalysisException, ParseException) as error:
        if not has_header(dataset, columns, _names(raw)):
            raise InputError(
                f"{key}.columns.{column.name}: {expression!r} is no expression over {dataset.path}; {HEADLESS}."
            ) from None
        raise InputError(
            f"{key}.columns.{column.name}: {expression!r} is no expression over {dataset.path}: {_first_line(error)} "
            f"(its columns: {', '.join(_names(raw))})."
        ) from None
    if column.kind == TEXTS and not isinstance(kind, ArrayType):
        raise InputError(
            f"{key}.columns.{column.name}: {expression!r} is {kind.simpleString()}, a list of texts is needed; write "
            f"split({expression}, ',') or array(...)."
        )
    return source


def _read_by(dataset: Dataset, column: Wanted, raw: DataFrame) -> list[Column]:
    """`name=value` of each of the log's columns that the expression of a mapped column names; null where it is."""
    expression = dataset.columns.get(column.name, "")
    names = [name for name in raw.columns if name != expression and files.mentions(expression, name)]
    return [F.concat(F.lit(f"{name}="), F.col(quoted(name)).cast(TEXT)) for name in names]


def _cast(source: Column, column: Wanted) -> Column:
    if column.kind == TIME:
        return F.unix_micros(source.try_cast(TIME))
    if column.kind == NUMBER:
        return source.try_cast(NUMBER)
    text = source.cast(column.kind)
    return F.nullif(text, F.lit("")) if column.name.endswith("_id") else text


def _is_typed(picked: DataFrame, column: Wanted) -> bool:
    """Whether every value of its type can be cast: then nothing is lost, and nothing need be told."""
    kind = picked.schema["value"].dataType
    return isinstance(kind, NumericType if column.kind == NUMBER else TimestampType | TimestampNTZType | DateType)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
