"""Plain Parquet files of a raw dataset: what their footers say, and how a task reads its share of them with Arrow."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import InputError
from pipelines.etl.schemas import ARROW, NUMBER, TEXT, TEXTS, TIME, Wanted

EPOCH = date(1970, 1, 1)
DAY_FOLDER = re.compile(r"(?:^|/)ds=(\d{4}-\d{2}-\d{2})/")
SUFFIXES = {"csv": (".csv",), "json": (".json", ".jsonl", ".ndjson")}
TASK_BYTES = 1 << 27
"""Compressed bytes of Parquet that one task reads at most, but for single row groups larger than that."""


@dataclass(frozen=True)
class Piece:
    """One row group of one file."""

    path: str
    group: int
    size: int
    """Compressed bytes."""
    day: int | None
    """Arrival day of the folder, days since the epoch."""


@dataclass(frozen=True)
class Lake:
    """The Parquet files of a dataset."""

    types: Mapping[str, pa.DataType]
    """Type of each column that is read."""
    groups: tuple[Piece, ...]
    notices: tuple[str, ...]

    def pieces(self, days: tuple[int, int] | None) -> tuple[Piece, ...]:
        """Those that may hold rows which arrived on `days` (first and last)."""
        if days is None:
            return self.groups
        return tuple(piece for piece in self.groups if piece.day is None or days[0] <= piece.day <= days[1])


def survey(key: str, path: Path, is_read: Callable[[str], bool], days: tuple[int, int] | None = None) -> Lake:
    """Read the footer of every file of the dataset that may hold rows which arrived on `days` (first and last).

    Where no file does, the newest says which columns there are. A column that is not read may come and go: it is told
    in a notice where it is not in every file. Raises InputError for a file that is no Parquet, and for a column that
    is read and whose type is not the same in all files.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    groups: list[Piece] = []
    seen: Counter[str] = Counter()
    # Workers may run in another folder.
    path = path.resolve()
    found = placed(key, path)
    paths = within(found, days)
    for name, day in paths:
        footer = read_footer(key, name)
        old = {column.name for column in map(footer.schema.column, range(len(footer.schema)))
               if column.physical_type == "INT96"}  # fmt: skip
        for field in footer.schema.to_arrow_schema():
            seen[field.name] += 1
            if not is_read(field.name):
                continue
            if pa.types.is_timestamp(field.type) and field.type.unit == "ns" and field.name not in old:
                raise InputError(
                    f"{key}: column {field.name!r} in {name} is in nanoseconds; write timestamps in microseconds."
                )
            known, where = types.setdefault(field.name, (field.type, name))
            if known != field.type and not pa.types.is_null(field.type):
                if pa.types.is_null(known):
                    types[field.name] = field.type, name
                    continue
                raise InputError(
                    f"{key}: column {field.name!r} is {field.type} in {name} but {known} in {where}; write that file "
                    "again with the type of the others, or rewrite the others."
                )
        groups += [
            Piece(name, group, footer.metadata.row_group(group).total_byte_size, day)
            for group in range(footer.metadata.num_row_groups)
        ]
    notices = tuple(
        f"{key}: column {name!r} is in {count} of {len(paths)} files and is "
        + ("null in the others." if is_read(name) else "not read.")
        for name, count in sorted(seen.items())
        if count < len(paths)
    )
    return Lake({name: kind for name, (kind, _) in types.items()}, tuple(groups), notices)


def placed(key: str, path: Path) -> list[tuple[str, int | None]]:
    """Every file of a dataset in order, with the arrival day of its folder, None where it names none.

    Raises InputError for the folder of a day that does not exist.
    """
    root = path if path.is_dir() else path.parent
    return [(name, _day(key, name, os.path.relpath(name, root))) for name in _listed(path)]


def within(found: list[tuple[str, int | None]], days: tuple[int, int] | None) -> list[tuple[str, int | None]]:
    """Those of a dataset's files that may hold rows which arrived on `days` (first and last), else the newest."""
    inside = [(name, day) for name, day in found if days is None or day is None or days[0] <= day <= days[1]]
    return inside or found[-1:]


def day_folder(name: str, root: Path) -> str:
    """The folder of an arrival day that a file under `root` lies in."""
    found = DAY_FOLDER.search(name, len(str(root)))
    assert found is not None, name
    return name[: found.end() - 1]


def partitions(key: str, path: Path) -> dict[int | None, list[str]]:
    """The files of a dataset by the arrival day of their folder, days since the epoch; None where it names none."""
    found: dict[int | None, list[str]] = {}
    for name, day in placed(key, path):
        found.setdefault(day, []).append(name)
    return found


def _listed(path: Path) -> Iterator[str]:
    """Files in order; names that begin with a dot or an underscore are no data, as everywhere in Spark."""
    if path.is_file():
        yield str(path)
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        yield from (os.path.join(folder, name) for name in sorted(names) if name[0] not in "._")


def _day(key: str, name: str, place: str) -> int | None:
    """Arrival day of the folder that a file lies in, days since the epoch; None where the folder names none."""
    found = DAY_FOLDER.search(place)
    try:
        return (date.fromisoformat(found[1]) - EPOCH).days if found else None
    except ValueError:
        raise InputError(f"{key}: {name} lies in the folder of a day that does not exist; rename the folder.") from None


def read_footer(key: str, name: str) -> pq.ParquetFile:
    """What a Parquet file says of itself. Raises InputError where it is none, or not whole."""
    try:
        with pq.ParquetFile(name) as found:
            return found
    except (pa.ArrowException, OSError) as error:
        other = format_of(name)
        remedy = f'say {key}.format = "{other}"' if other else "deliver it again, or remove it"
        raise InputError(
            f"{key}: {name} is no readable Parquet file ({str(error).splitlines()[0]}); {remedy}."
        ) from None


def format_of(name: str) -> str | None:
    """csv or json, by the suffix of a file's name, which may be followed by .gz; None of another."""
    plain = name.removesuffix(".gz")
    return next((kind for kind, suffixes in SUFFIXES.items() if plain.endswith(suffixes)), None)


def mentions(expression: str, column: str) -> bool:
    """Whether the column's name stands in the expression."""
    return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", expression) is not None


def is_plain(kind: pa.DataType, wanted: str) -> bool:
    """Whether Arrow reads the type to the same values that Spark's cast would give, losing nothing."""
    if wanted == TIME:
        return bool(pa.types.is_timestamp(kind) and kind.unit in ("s", "ms", "us"))
    if wanted == NUMBER:
        return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_integer(kind))
    if wanted == TEXTS:
        return bool(pa.types.is_list(kind) and pa.types.is_string(kind.value_type))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def packed(pieces: Iterable[Piece], least: int) -> list[list[Piece]]:
    """Row groups in tasks of at most TASK_BYTES, and no fewer than `least` tasks where there are as many."""
    ordered = list(pieces)
    most = min(TASK_BYTES, sum(piece.size for piece in ordered) // max(2 * least, 1))
    tasks: list[list[Piece]] = []
    room = 0
    for piece in ordered:
        if not tasks or room < piece.size:
            tasks.append([])
            room = max(most, piece.size)
        tasks[-1].append(piece)
        room -= piece.size
    return tasks


def batches(pieces: Iterable[Piece], columns: Mapping[str, Wanted], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups as the raw table has them, see schemas.py; a file without a column has nulls."""
    for piece in pieces:
        sources = {name: column.source for name, column in columns.items() if name in schema.names}
        try:
            found, rows = _group(piece, set(sources.values()))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{piece.path}: row group {piece.group} cannot be read ({str(error).splitlines()[0]}); deliver the "
                "file again, or remove it."
            ) from None
        there, made = set(found.column_names), []
        for field in schema:
            if field.name == "day":
                made.append(pa.repeat(pa.scalar(piece.day, pa.int32()), rows))
            elif field.name == "found" or sources[field.name] not in there:
                made.append(pa.nulls(rows, field.type))
            else:
                made.append(_value(found[sources[field.name]], columns[field.name]))
        yield from pa.table(made, schema=schema).to_batches(max_chunksize=1 << 17)


def _group(piece: Piece, wanted: set[str]) -> tuple[pa.Table, int]:
    """Those of the wanted columns that the file has, of one row group, and its number of rows."""
    with pq.ParquetFile(piece.path) as file:
        names = sorted(wanted & set(file.schema_arrow.names))
        found = file.read_row_group(piece.group, columns=names, use_threads=False)
        return found, file.metadata.row_group(piece.group).num_rows


def _value(column: pa.ChunkedArray, wanted: Wanted) -> Any:
    """As Spark's cast would have it: times in microseconds, an empty id is no id."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), ARROW[wanted.kind])
    if wanted.kind == TIME:
        return column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    found = column.cast(ARROW[wanted.kind], safe=wanted.kind != NUMBER)
    if wanted.kind == TEXT and wanted.name.endswith("_id"):
        empty = pc.equal(found, "")
        if pc.any(empty).as_py():
            return pc.if_else(empty, pa.scalar(None, pa.string()), found)
    return found
