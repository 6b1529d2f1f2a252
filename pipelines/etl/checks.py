"""What can be told of the raw datasets without Spark, so that a wrong path or name is told before a session starts."""

import csv
import gzip
import re
from collections.abc import Iterable

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.files import format_of as suffix_of
from pipelines.etl.files import placed, read_footer
from pipelines.etl.schemas import NAMES, Wanted, wanted
from pipelines.etl.sources import HEADLESS, absent, check_dataset, format_of, has_header
from pipelines.sections import Dataset, suggest

IDENTIFIER = re.compile(r"[^\W\d]\w*")
WORDS = ("null", "true", "false", "user", "session_user", "localtimestamp")
"""SQL's own words that look like a column; those that begin with `current_` are others."""
LOOKED_AT = 32
"""Files of a dataset whose footers or headers are read, newest first: every start waits for them."""
PARTITION = re.compile(r"(?:^|/)([^/=]+)=[^/]*(?=/)")


def check_inputs(config: Config, codes: Iterable[int]) -> None:
    """Raise InputError where one of the configured datasets among `codes` does not lie where it should, or a column
    that is needed, or that a mapping names and nothing else, is in none of its files.

    What is not certain is left to Spark: whatever lies in a file that cannot be read and that a run over other days
    does not read, and what is in none of the newest `LOOKED_AT` files of more.
    """
    for code in codes:
        dataset: Dataset | None = getattr(config.data, NAMES[code])
        if dataset is not None:
            check_columns(f"data.{NAMES[code]}", dataset, wanted(code, config))


def check_columns(key: str, dataset: Dataset, columns: list[Wanted]) -> None:
    """The same of one dataset; `key` is where the configuration names it. Other expressions are Spark's to judge."""
    check_dataset(key, dataset, columns)
    named = {column.name: dataset.columns[column.name] for column in columns if column.name in dataset.columns}
    plain = {name: source for name, source in named.items() if _is_column(source)}
    needed = {column.name for column in columns if column.required} - named.keys()
    there: dict[str, None] = {}
    lower: set[str] = set()
    listed = placed(key, dataset.path.resolve())
    for file, day in listed[: -LOOKED_AT - 1 : -1]:
        try:
            found = _header(key, file, dataset)
        except InputError:
            # A file of no day is read whatever the days of a run.
            if day is None:
                raise
            return
        if found is None:
            return
        there |= dict.fromkeys([*found, *PARTITION.findall(file)])
        # In an expression Spark takes names whatever their case.
        lower = {name.lower() for name in there}
        if needed <= there.keys() and all(source.lower() in lower for source in plain.values()):
            return
    if not there or len(listed) > LOOKED_AT:
        return
    for name in sorted(needed - there.keys()):
        raise absent(key, dataset, columns, name, there)
    for name, source in plain.items():
        if source.lower() not in lower:
            known = f"{suggest(source, there)}; name one, or a Spark SQL expression over them"
            raise InputError(
                f"{key}.columns.{name}: {source!r} is no column of {dataset.path}"
                f"{known if has_header(dataset, columns, there) else f'; {HEADLESS}'}."
            )


def _is_column(expression: str) -> bool:
    """Whether a mapping is a name alone, which can only be a column's."""
    word = expression.lower()
    return IDENTIFIER.fullmatch(expression) is not None and word not in WORDS and not word.startswith("current_")


def _header(key: str, file: str, dataset: Dataset) -> list[str] | None:
    """The names of the columns of one file; None where only Spark can tell. Raises InputError as `read_footer` does."""
    if format_of(dataset) == "parquet":
        return list(read_footer(key, file).schema_arrow.names)
    if suffix_of(file) != "csv":
        return None
    opener = gzip.open if file.endswith(".gz") else open
    try:
        # As Spark reads it: a mark of the encoding is no letter, and blank lines come before no header.
        with opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            first = next((row for row in csv.reader(lines, delimiter=dataset.separator) if "".join(row).strip()), [])
    except (OSError, EOFError, csv.Error):
        return None
    return [name or f"_c{place}" for place, name in enumerate(first)]
