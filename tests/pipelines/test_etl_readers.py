"""Arrow inside the tasks and Spark's own sources read one and the same table, whatever types it was written with."""

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl.features import DAY
from pipelines.etl.flow import run_etl
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, USERS
from pipelines.etl.sources import open_sources
from tests.pipelines.hostile import START, a_log, raw_tables, tree, write_days, write_lake

UTC = pa.timestamp("us", "UTC")
CHANGE_NOTHING = {
    "decisions": {"where": "true", "columns": {"action": "concat(action, '')"}},
    "events": {"columns": {"kind": "concat(kind, '')"}},
    "users": {"where": "true"},
}
"""Spark reads what is not a plain column, and this is as near to one as it gets."""
LOG = a_log(11, 40)
RAW = raw_tables(LOG)


def configured(folder: Path, run: str = "run", mapped: bool = False, **data: Any) -> Config:
    """Read from the folder, plainly or through Spark; `data` changes what is said of a dataset."""
    made = tree(folder, run)
    for name, dataset in made["data"].items():
        dataset |= CHANGE_NOTHING[name] if mapped else {}
        dataset |= data.get(name, {})
    return validate(made, "test")


def read(spark: SparkSession, config: Config, code: int = DECISIONS, days: tuple[int, int] | None = None) -> pa.Table:
    """The raw table of one dataset, in an order of its own."""
    (source,) = open_sources(spark, config, range(code, code + 1), days)

    def as_they_are(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return batches

    table = source.over(spark, as_they_are, source.schema).toArrow().cast(source.schema)
    return table.take(pa.array(np.argsort([repr(row) for row in table.to_pylist()])))


def is_plain(spark: SparkSession, config: Config, code: int = DECISIONS) -> bool:
    (source,) = open_sources(spark, config, range(code, code + 1), None)
    return source.frame is None


def same(one: pa.Table, two: pa.Table) -> None:
    """Equal to the last bit, NaN included."""
    assert one.schema == two.schema
    for row, other in zip(one.to_pylist(), two.to_pylist(), strict=True):
        assert repr(row) == repr(other)


def write(table: pa.Table, folder: Path, name: str = "decisions", part: str = "0", **how: Any) -> None:
    (folder / name).mkdir(exist_ok=True)
    pq.write_table(table, folder / name / f"{part}.parquet", row_group_size=100, **how)


def cast(**kinds: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    """Some columns in other types; what does not fit is cut."""

    def change(table: pa.Table) -> pa.Table:
        for name, kind in kinds.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast(kind, safe=False))
        return table

    return change


def with_values(**columns: pa.Array) -> Callable[[pa.Table], pa.Table]:
    """Some columns with other values, from the first row on."""

    def change(table: pa.Table) -> pa.Table:
        for name, values in columns.items():
            rest = table[name].slice(len(values)).cast(values.type, safe=False)
            column = pa.chunked_array([values, *rest.chunks])
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    return change


def empty_ids(table: pa.Table) -> pa.Table:
    for name in ("decision_id", "user_id", "policy_id", "topic"):
        table = table.set_column(table.schema.get_field_index(name), name, pc.fill_null(table[name], ""))
    return table


def moments(*texts: str) -> pa.Array:
    return pa.array(np.array(texts, "datetime64[us]"), UTC)


VARIANTS = {
    "as they are": lambda table: table,
    "milliseconds": cast(decided_at=pa.timestamp("ms", "UTC"), logged_at=pa.timestamp("ms")),
    "seconds": cast(decided_at=pa.timestamp("s", "UTC"), logged_at=pa.timestamp("s")),
    "nobody said which zone": cast(decided_at=pa.timestamp("us"), logged_at=pa.timestamp("ms")),
    "another zone": cast(decided_at=pa.timestamp("us", "Asia/Tokyo"), logged_at=pa.timestamp("ms", "-08:00")),
    "float32": cast(propensity=pa.float32(), relevance=pa.float32(), steps=pa.float32()),
    "integers": cast(propensity=pa.int8(), relevance=pa.uint32(), steps=pa.int64()),
    "large integers": with_values(steps=pa.array([2**53 + 1, -(2**62) - 3, 7], pa.int64())),
    "large texts": cast(
        decision_id=pa.large_string(), user_id=pa.large_string(), action=pa.large_string(), topic=pa.large_string()
    ),
    "empty ids": empty_ids,
    "not finite": with_values(propensity=pa.array([math.nan, math.inf, -0.0, 5e-324, None])),
    "the first and the last year": with_values(
        decided_at=moments("0001-01-01", "9999-12-31T23:59:59.999999", "1582-10-10", "1969-12-31T23:59:59.999999"),
        logged_at=moments("1900-01-01T00:00:00.000001"),
    ),
    "every letter": with_values(user_id=pa.array(["漢\u0000é", "😀\u200d", " a ", "NULL", '"', "a\nb"])),
    "lists": with_values(legal_actions=pa.array([[None, "hold"], [], None, [""]], pa.list_(pa.string()))),
    "without what is optional": lambda table: table.drop_columns(
        ["propensity", "policy_id", "legal_actions", "logged_at"]
    ),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_both_readers_read_one_table(
    spark: SparkSession, tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    raw = change(RAW["decisions"])
    write(raw, tmp_path)
    config, mapped = configured(tmp_path), configured(tmp_path, mapped=True)
    assert is_plain(spark, config)
    assert not is_plain(spark, mapped)
    plain = read(spark, config)
    same(plain, read(spark, mapped))
    # And it says what was written.
    assert plain.num_rows == raw.num_rows
    assert set(plain["user_id"].to_pylist()) == {each or None for each in raw["user_id"].to_pylist()}
    at = raw["decided_at"].cast(pa.timestamp("us", raw.schema.field("decided_at").type.tz)).cast(pa.int64())
    assert sorted(map(repr, plain["at"].to_pylist())) == sorted(map(repr, at.to_pylist()))


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda table: table, {"use_deprecated_int96_timestamps": True}),
        (cast(topic=pa.dictionary(pa.int32(), pa.string()), user_id=pa.dictionary(pa.int8(), pa.string())), {}),
        (cast(legal_actions=pa.large_list(pa.string())), {}),
        (lambda table: table, {"compression": "snappy", "data_page_version": "2.0", "use_dictionary": False}),
    ],
    ids=["INT96", "dictionaries", "large lists", "other pages"],
)
def test_what_other_writers_write_is_read_to_the_same_table(
    spark: SparkSession, tmp_path: Path, change: Callable[[pa.Table], pa.Table], how: dict[str, Any]
) -> None:
    (tmp_path / "usual").mkdir()
    write(RAW["decisions"], tmp_path / "usual")
    write(change(RAW["decisions"]), tmp_path, **how)
    same(read(spark, configured(tmp_path)), read(spark, configured(tmp_path / "usual")))


@pytest.mark.parametrize("code", [EVENTS, USERS])
def test_both_readers_read_the_other_datasets_alike(spark: SparkSession, tmp_path: Path, code: int) -> None:
    write(RAW[NAMES[code]], tmp_path, NAMES[code])
    config, mapped = configured(tmp_path), configured(tmp_path, mapped=True)
    assert is_plain(spark, config, code)
    assert not is_plain(spark, mapped, code)
    same(read(spark, config, code), read(spark, mapped, code))


def test_a_column_of_another_name_is_still_read_plainly(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    write(RAW["decisions"], tmp_path / "usual")
    write(RAW["decisions"].rename_columns({"user_id": "who", "decided_at": "when"}), tmp_path)
    config = configured(tmp_path, decisions={"columns": {"user_id": "who", "decided_at": "when"}})
    assert is_plain(spark, config)
    same(read(spark, config), read(spark, configured(tmp_path / "usual")))


def as_lines(table: pa.Table) -> str:
    """An object a line, lists as lists, times as ISO text, what is null left out."""
    rows = ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())
    return "".join(json.dumps(row, default=lambda moment: moment.isoformat()) + "\n" for row in rows)


@pytest.mark.parametrize("place", ["decisions.jsonl", "decisions.ndjson.gz", "lines/part.json"])
def test_an_object_a_line_is_read_to_the_same_table(spark: SparkSession, tmp_path: Path, place: str) -> None:
    """And what stands in an object within it."""
    (tmp_path / "usual").mkdir()
    write(RAW["decisions"], tmp_path / "usual")
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    within = pa.StructArray.from_arrays([RAW["decisions"]["relevance"].combine_chunks()], ["relevance"])
    lines = as_lines(RAW["decisions"].drop_columns(["relevance"]).append_column("context", within))
    path.write_bytes(gzip.compress(lines.encode()) if place.endswith(".gz") else lines.encode())
    said: dict[str, Any] = {"path": str(path), "columns": {"relevance": "context.relevance"}}
    if "/" in place:
        said |= {"path": str(path.parent), "format": "json"}
    same(read(spark, configured(tmp_path, decisions=said)), read(spark, configured(tmp_path / "usual")))


def by_lines(folder: Path, *days: str) -> Path:
    """A folder of decisions as JSON, one day a text, in folders by day of arrival from 2026-01-01 on."""
    for number, lines in enumerate(days):
        day = folder / "lines" / f"ds=2026-01-0{number + 1}"
        day.mkdir(parents=True)
        (day / "part.json").write_text(lines)
    return folder / "lines"


def a_line(user: str, day: int, **more: str) -> str:
    """A decision as JSON of which each value stands as it is given."""
    known = {
        "decision_id": '"d"', "user_id": user, "decided_at": f'"2026-01-0{day} 10:00:00"', "action": '"send"',
        "relevance": "0.5", "topic": '"news"', "steps": "1",
    }  # fmt: skip
    return "{" + ", ".join(f'"{name}": {value}' for name, value in {**known, **more}.items()) + "}\n"


@pytest.mark.parametrize(
    "values",
    [
        ["12345678", "9007199254740993", "9007199254740992", "12345678.0", "1.2345678E7", "1.50", "-0"],
        ["1234567890123456.789", "123456789012345678901234567890"],
        ["true", "false"],
        ["7", "true", '"007"', "7.0"],
    ],
    ids=["numbers", "decimals", "booleans", "all kinds"],
)
def test_of_json_every_value_is_the_text_that_stands_there(
    spark: SparkSession, tmp_path: Path, values: list[str]
) -> None:
    """Whatever stands in other rows, in objects and lists too."""
    lines = [
        a_line(value, 1, topic=f'{{"of": {value}}}', legal_actions=f'[{value}, "hold"]', propensity="0.50")
        for value in values
    ]
    path = by_lines(tmp_path, "".join(lines), a_line("null", 2, topic="null"))
    said = {"path": str(path), "format": "json", "columns": {"topic": "topic.of"}}
    found = read(spark, configured(tmp_path, decisions=said)).to_pylist()
    wanted = sorted(value.strip('"') for value in values)
    assert sorted(row["user_id"] for row in found if row["user_id"] is not None) == wanted
    assert sorted(row["category:topic"] for row in found if row["user_id"] is not None) == wanted
    assert all(row["legal"] == [row["user_id"], "hold"] for row in found if row["user_id"] is not None)
    assert {row["propensity"] for row in found} == {0.5, None}
    assert {row["outcome:steps"] for row in found} == {1.0}
    assert {row["found"] for row in found} == {None}


def test_of_json_a_number_that_is_none_is_told(spark: SparkSession, tmp_path: Path) -> None:
    path = by_lines(tmp_path, a_line('"u"', 1, relevance='"much"', decided_at="1772388300", propensity='"30 %"'))
    (row,) = read(spark, configured(tmp_path, decisions={"path": str(path), "format": "json"})).to_pylist()
    assert (row["at"], row["context:relevance"]) == (None, None)
    assert math.isnan(row["propensity"])
    assert row["found"] == "decided_at=1772388300; propensity=30 %; relevance=much"


NEW_YEAR = 20454
"""2026-01-01, in days since the epoch."""


def of_day(spark: SparkSession, folder: Path, number: int, **said: Any) -> list[dict[str, Any]]:
    """The rows of one day of `by_lines`."""
    told = {"path": str(folder / "lines"), "format": "json", **said}
    day = NEW_YEAR + number - 1
    return read(spark, configured(folder, decisions=told), days=(day, day)).to_pylist()


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_days_asked_for_are_opened_alone(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    """A file of another day that nobody can read is nothing to them; and names are names, never patterns."""
    path, garbled = by_lines(tmp_path, "", a_line('"u"', 2)), b"\x1f\x8b\x08 no gzip at all"
    if kind == "csv":
        header, row = zip(*json.loads(a_line('"u"', 2)).items(), strict=True)
        (path / "ds=2026-01-02" / "part.json").write_text(",".join(header) + "\n" + ",".join(map(str, row)) + "\n")
    (path / "ds=2026-01-01" / "part.json").rename(path / "ds=2026-01-01" / "part.json.gz")
    (path / "ds=2026-01-01" / "part.json.gz").write_bytes(garbled)
    (path / "ds=2026-01-02" / "part.json").rename(path / "ds=2026-01-02" / "part [1]*.json")
    (row,) = of_day(spark, tmp_path, 2, format=kind)
    assert (row["user_id"], row["day"]) == ("u", NEW_YEAR + 1)
    assert of_day(spark, tmp_path, 9, format=kind) == []
    path.rename(tmp_path / "{lines}[1]")
    (row,) = of_day(spark, tmp_path, 2, format=kind, path=str(tmp_path / "{lines}[1]"))
    assert (row["user_id"], row["day"]) == ("u", NEW_YEAR + 1)


def test_a_day_may_lack_what_an_expression_names(spark: SparkSession, tmp_path: Path) -> None:
    """JSON leaves out what is null: other days tell that there is such a column, and garbled ones tell nothing."""
    more = {"topic": '{"of": "news"}', "legal_actions": '["hold"]', "arm": '"a"'}
    path = by_lines(tmp_path, a_line('"u"', 1, **more), a_line('"v"', 2, topic="null", legal_actions="null"), "")
    (path / "ds=2026-01-03" / "part.json").rename(path / "ds=2026-01-03" / "part.json.gz")
    (path / "ds=2026-01-03" / "part.json.gz").write_bytes(b"\x1f\x8b\x08 no gzip at all")
    columns = {"topic": "topic.of", "policy_id": "upper(arm)"}
    (row,) = of_day(spark, tmp_path, 2, columns=columns, where="arm is null")
    assert row["user_id"] == "v"
    assert (row["category:topic"], row["legal"], row["policy_id"]) == (None, None, None)
    with pytest.raises(InputError, match=r"'nowhere' is no expression"):
        of_day(spark, tmp_path, 2, columns={**columns, "policy_id": "nowhere"})


def test_a_line_that_is_no_object_is_kept_by_its_form(spark: SparkSession, tmp_path: Path) -> None:
    """Whatever the condition asks for: nobody can say whether it meets it. `forget` could not find who stands there."""
    broken = ['{"user_id": "änn1@example.org", "decided_at": ', '{"user_id": u}', "7", '"text"']
    forms = ['line={"aaaa_aa": "aaa9@aaaaaaa.aaa", "aaaaaaa_aa": ', 'line={"aaaa_aa": a}', "line=9", 'line="aaaa"']
    by_lines(tmp_path, a_line('"u"', 1) + "\n".join(broken) + "\n" + a_line('"v"', 1), a_line('"w"', 2))
    for said in ({}, {"where": "user_id = 'u'"}):
        rows = of_day(spark, tmp_path, 1, **said)
        assert sorted(row["found"] for row in rows if row["found"]) == sorted(forms)
        assert {row["user_id"] for row in rows if row["found"]} == {None}
        assert sorted(row["user_id"] for row in rows if not row["found"]) == (["u"] if said else ["u", "v"])
    # A day of nothing else still has the columns of the others.
    (tmp_path / "lines" / "ds=2026-01-02" / "part.json").write_text(broken[0] + "\n")
    (row,) = of_day(spark, tmp_path, 2)
    assert row["found"] == forms[0]
    with pytest.raises(InputError) as caught:
        of_day(spark, tmp_path, 1, columns={"action": "nowhere"})
    assert "its columns: action, decided_at, decision_id, relevance, steps, topic, user_id, ds)" in str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_may_have_another_separator(spark: SparkSession, tmp_path: Path, separator: str) -> None:
    (tmp_path / "usual").mkdir()
    write(RAW["events"], tmp_path / "usual", "events")
    (tmp_path / "events.csv").write_text(as_csv(RAW["events"], separator))
    said = {"path": str(tmp_path / "events.csv"), "separator": separator}
    same(read(spark, configured(tmp_path, events=said), EVENTS), read(spark, configured(tmp_path / "usual"), EVENTS))


def lacking(table: pa.Table, part: int, folder: Path) -> list[str]:
    """Three files, one of which has no propensities; what must be read of them, as texts in order."""
    wanted: list[Any] = []
    for n in range(3):
        rows = table.slice(n * 20, 20)
        write(rows.drop_columns(["propensity", "policy_id"]) if n == part else rows, folder, part=str(n))
        wanted += [None] * 20 if n == part else rows["propensity"].to_pylist()
    return sorted(map(repr, wanted))


def read_of(spark: SparkSession, config: Config, name: str) -> list[str]:
    return sorted(map(repr, read(spark, config)[name].to_pylist()))


@pytest.mark.parametrize(("part", "mapped"), [(0, False), (2, False), (2, True)])
def test_a_file_without_an_optional_column_has_nulls_there(
    spark: SparkSession, tmp_path: Path, part: int, mapped: bool
) -> None:
    """And the others keep what they say."""
    wanted = lacking(RAW["decisions"], part, tmp_path)
    assert read_of(spark, configured(tmp_path, mapped=mapped), "propensity") == wanted


def test_a_column_that_the_first_file_lacks_is_read_from_the_others(spark: SparkSession, tmp_path: Path) -> None:
    wanted = lacking(RAW["decisions"], 0, tmp_path)
    assert read_of(spark, configured(tmp_path, mapped=True), "propensity") == wanted


@pytest.mark.parametrize("part", [0, 2])
def test_a_column_in_which_a_file_has_only_nulls_may_have_no_type_there(
    spark: SparkSession, tmp_path: Path, part: int
) -> None:
    """As writers leave it that tell the type from the values."""
    aliases = {
        "propensity": "propensity",
        "topic": "category:topic",
        "legal_actions": "legal",
        "policy_id": "policy_id",
    }
    without_types(spark, tmp_path, part, aliases)


@pytest.mark.parametrize("part", [0, 2])
def test_a_time_of_which_a_file_has_only_nulls_may_have_no_type_there(
    spark: SparkSession, tmp_path: Path, part: int
) -> None:
    without_types(spark, tmp_path, part, {"decided_at": "at", "logged_at": "logged"})


def without_types(spark: SparkSession, folder: Path, part: int, aliases: dict[str, str]) -> None:
    """Of three files one has nulls alone in some columns, without a type: what the others say is read."""
    raw = RAW["decisions"]
    for n in range(3):
        rows = raw.slice(n * 20, 20)
        for name in aliases if n == part else ():
            rows = rows.set_column(raw.schema.get_field_index(name), name, pa.nulls(20))
        write(rows, folder, part=str(n))
    config = configured(folder)
    assert is_plain(spark, config)
    found, others = read(spark, config), raw.take([n for n in range(60) if n // 20 != part])
    for name, alias in aliases.items():
        assert found[alias].null_count == others[name].null_count + 20, name


def written_by_days(folder: Path) -> tuple[int, int]:
    """The log in folders by day, and some rows in a folder of none; a span of days in the midst of it."""
    write_days(LOG, folder)
    nowhere = folder / "decisions" / "ds=__HIVE_DEFAULT_PARTITION__"
    nowhere.mkdir(exist_ok=True)
    pq.write_table(RAW["decisions"].slice(0, 5), nowhere / "more.parquet")
    return START // DAY + 10, START // DAY + 20


@pytest.mark.parametrize("mapped", [False, True])
def test_a_reader_is_asked_for_some_days_alone(spark: SparkSession, tmp_path: Path, mapped: bool) -> None:
    span = written_by_days(tmp_path)
    found = read(spark, configured(tmp_path, mapped=mapped), days=span)
    known = found.filter(pc.is_valid(found["day"]))
    whole = read(spark, configured(tmp_path, mapped=not mapped))
    inside = pc.and_(pc.greater_equal(whole["day"], span[0]), pc.less_equal(whole["day"], span[1]))
    same(known, whole.filter(inside))
    assert 20 < known.num_rows < whole.num_rows


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "through_spark"])
def test_rows_in_a_folder_of_no_day_may_have_arrived_on_any(spark: SparkSession, tmp_path: Path, mapped: bool) -> None:
    span = written_by_days(tmp_path)
    assert read(spark, configured(tmp_path, mapped=mapped), days=span)["day"].null_count >= 5


# Whole runs


def quarantined(config: Config) -> list[str]:
    rows = (
        DeltaTable(path).to_pyarrow_table().to_pylist() for path in sorted((config.run_dir / "quarantine").iterdir())
    )
    return sorted(repr(row) for table in rows for row in table)


@pytest.fixture(scope="module")
def plain(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any]:
    """A hostile log read by Arrow: its configuration and the report."""
    folder = tmp_path_factory.mktemp("plain")
    write_lake(LOG, folder, files=2)
    config = configured(folder)
    return config, run_etl(spark, config)


def test_an_expression_that_changes_nothing_changes_nothing(spark: SparkSession, plain: tuple[Config, Any]) -> None:
    config, report = plain
    mapped = configured(config.run_dir.parent, "mapped", mapped=True)
    found = run_etl(spark, mapped)
    assert found["fingerprint"] == report["fingerprint"]
    assert found["rows"] == report["rows"]
    assert quarantined(mapped) == quarantined(config)
    assert found["rows"]["transitions"]["rows"] > 200


def test_csv_and_parquet_of_the_same_rows_give_the_same_table(
    spark: SparkSession, plain: tuple[Config, Any], tmp_path: Path
) -> None:
    config, report = plain
    lists = "if(legal_actions = '[]', array(), split(legal_actions, ','))"
    data: dict[str, Any] = {"decisions": {"columns": {"legal_actions": lists}}}
    for name, table in RAW.items():
        (tmp_path / f"{name}.csv").write_text(as_csv(table))
        data.setdefault(name, {})["path"] = str(tmp_path / f"{name}.csv")
    texts = configured(tmp_path, **data)
    found = run_etl(spark, texts)
    assert found["fingerprint"] == report["fingerprint"]
    assert found["rows"] == report["rows"]
    assert quarantined(texts) == quarantined(config)


def as_csv(table: pa.Table, separator: str = ",") -> str:
    """Times to the microsecond, lists joined by commas, everything quoted that must be, nulls left out."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(table.column_names)
    for row in table.to_pylist():
        writer.writerow([as_text(value) for value in row.values()])
    return text.getvalue()


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value) or "[]"
    return "" if value is None else value if isinstance(value, str) else str(value)
