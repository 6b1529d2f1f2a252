"""Bad input as files: each stops the run with one line that says what to do, or is set aside with nothing else lost."""

import shutil
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl import files
from pipelines.etl.features import DAY
from pipelines.etl.flow import run_etl
from pipelines.etl.marks import REMEDIES
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.sources import open_sources
from tests.pipelines.hostile import PLAN, START, Row, a_log, arrived, raw_tables, tree, write_days

LOG = a_log(11, 40)
DAYS = [f"{datetime(2024, 3, 8) + timedelta(days=n):%Y-%m-%d}" for n in range(60)]
LOST = DAYS[20]
"""The day whose partitions were never delivered."""
MEGABYTE = "x" * (1 << 20)


def configured(folder: Path, run: str = "run", mapped: bool = False, **etl: Any) -> Config:
    """The hostile log under the folder, with the watermark that the log says, and no gap known but where rows lack."""
    made = tree(folder, run)
    del made["etl"]["watermark"]
    made["etl"] |= etl
    if mapped:
        for name in ("decisions", "events"):
            made["data"][name]["where"] = "true"
    return validate(made, "test")


def parquet(folder: Path, dataset: str, day: str) -> Path:
    return folder / dataset / f"ds={day}" / "0.parquet"


def refused(spark: SparkSession, config: Config) -> str:
    """The one line with which the run stops; nothing was made."""
    with pytest.raises(InputError) as caught:
        run_etl(spark, config)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not DeltaTable.is_deltatable(str(config.transitions_path))
    return str(caught.value)


@pytest.fixture
def lake(clean: tuple[Config, Any], tmp_path: Path) -> Path:
    """A copy of the clean lake, to be spoilt."""
    shutil.copytree(clean[0].run_dir.parent, tmp_path / "lake", ignore=shutil.ignore_patterns("run"))
    return tmp_path / "lake"


@pytest.fixture(scope="module")
def clean(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any]:
    """A log in folders by arrival day, one of which is missing and known to be: configuration and report."""
    folder = tmp_path_factory.mktemp("clean")
    write_days(LOG, folder)
    for dataset in ("decisions", "events"):
        shutil.rmtree(folder / dataset / f"ds={LOST}")
    config = configured(folder)
    return config, run_etl(spark, config)


# Files


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"day,rows\n", None])
def test_a_file_that_is_no_parquet_is_named(
    spark: SparkSession, lake: Path, mapped: bool, content: bytes | None
) -> None:
    """Empty, cut short, or something else altogether."""
    broken = parquet(lake, "events", DAYS[7])
    broken.write_bytes(broken.read_bytes()[:-9] if content is None else content)
    line = refused(spark, configured(lake, mapped=mapped))
    assert line.startswith(f"data.events: {broken} is no readable Parquet file")
    assert line.endswith("deliver it again, or remove it.")


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "through_spark"])
def test_a_file_whose_pages_are_damaged_is_named(spark: SparkSession, lake: Path, mapped: bool) -> None:
    """Its footer is whole, so that only a task finds out."""
    broken = parquet(lake, "decisions", DAYS[7])
    column = pq.ParquetFile(broken).metadata.row_group(0).column(1)
    first = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(broken.read_bytes())
    content[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    broken.write_bytes(content)
    assert str(broken) in refused(spark, configured(lake, mapped=mapped))


def test_a_dataset_without_a_file_is_named(spark: SparkSession, lake: Path) -> None:
    shutil.rmtree(lake / "events")
    (lake / "events").mkdir()
    assert f"data.events.path: {lake / 'events'} cannot be read" in refused(spark, configured(lake))


def test_files_that_are_no_data_are_let_be(spark: SparkSession, lake: Path) -> None:
    for name in ("_SUCCESS", ".0.parquet.crc", "_temporary/0/0.parquet"):
        (lake / "decisions" / name).parent.mkdir(parents=True, exist_ok=True)
        (lake / "decisions" / name).write_text("nothing to read")
    (source,) = open_sources(spark, configured(lake), range(1), None)
    assert sum(pq.ParquetFile(piece.path).metadata.row_group(piece.group).num_rows for piece in source.pieces) > 0
    assert not any("nothing" in piece.path or "_temporary" in piece.path for piece in source.pieces)


@pytest.mark.parametrize("dataset", ["decisions", "events"])
def test_a_missing_day_is_named(spark: SparkSession, lake: Path, dataset: str) -> None:
    """And so is the other dataset's only where it lacks it too."""
    gaps = [day for day in tree(lake, "run")["etl"]["known_gaps"] if day != DAYS[30]]
    shutil.rmtree(lake / dataset / f"ds={DAYS[30]}")
    line = refused(spark, configured(lake, known_gaps=gaps))
    assert line.startswith(f"data.{dataset}: no row arrived on {DAYS[30]}, between ")
    assert "deliver the missing days, or list them in etl.known_gaps" in line


def test_a_missing_day_that_is_known_is_no_error(clean: tuple[Config, Any]) -> None:
    _, report = clean
    log = [row for row in LOG if row["dataset"] in (DECISIONS, EVENTS)]
    lost = sum(arrived(row) == f"ds={LOST}" for row in log)
    assert lost > 5
    assert sum(report["rows"][dataset]["read"] for dataset in ("decisions", "events")) == len(log) - lost
    for dataset in ("decisions", "events"):
        days = set(report["rows"][dataset]["by_day"])
        assert LOST not in days
        assert {DAYS[19], DAYS[21]} <= days


@pytest.mark.parametrize("mapped", [False, True])
def test_a_folder_of_a_day_that_does_not_exist_is_named(spark: SparkSession, lake: Path, mapped: bool) -> None:
    (lake / "decisions" / f"ds={DAYS[5]}").rename(lake / "decisions" / "ds=2024-02-30")
    assert "ds=2024-02-30" in refused(spark, configured(lake, mapped=mapped))


# Schemas


def rewritten(file: Path, **columns: Any) -> None:
    """The file with other columns: a type to cast to, values, or None to leave one out."""
    table = pq.ParquetFile(file).read()
    for name, wanted in columns.items():
        place = table.schema.get_field_index(name)
        if wanted is None:
            table = table.drop_columns([name])
        elif isinstance(wanted, pa.DataType):
            table = table.set_column(place, name, table[name].cast(wanted))
        else:
            values = pa.array([wanted] * table.num_rows)
            table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    pq.write_table(table, file)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("decided_at", pa.string()),
        ("decided_at", pa.timestamp("us")),
        ("user_id", pa.large_string()),
        ("propensity", pa.float32()),
        ("relevance", pa.string()),
        ("steps", pa.decimal128(5, 1)),
        ("topic", pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_a_changed_type_of_a_column_that_is_read_is_refused(
    spark: SparkSession, lake: Path, name: str, kind: pa.DataType, mapped: bool
) -> None:
    first, later = min((lake / "decisions").rglob("*.parquet")), parquet(lake, "decisions", DAYS[9])
    was = pq.ParquetFile(later).schema_arrow.field(name).type
    rewritten(later, **{name: kind})
    line = refused(spark, configured(lake, mapped=mapped))
    assert f"data.decisions: column {name!r} is {kind} in {later} but {was} in {first};" in line
    assert "write that file again with the type of the others" in line


@pytest.mark.parametrize(
    "said",
    [{"columns": {"steps": "coalesce(steps, extra, 0)"}}, {"where": "`extra` is null or extra > 0"}],
)
def test_a_column_is_read_too_where_an_expression_names_it(
    spark: SparkSession, lake: Path, said: dict[str, Any]
) -> None:
    for place, file in enumerate(sorted((lake / "decisions").rglob("*.parquet"))):
        rewritten(file, extra="1" if place == 9 else 1)
    made = tree(lake, "run")
    made["data"]["decisions"] |= said
    assert "column 'extra' is string in" in refused(spark, validate(made, "test"))


@pytest.mark.parametrize(
    ("expression", "name", "found"),
    [
        ("decided_at", "at", False),
        ("decided_at", "decided", False),
        ("cast(at as timestamp)", "at", True),
        ("`user id`", "user id", True),
        ("a.b", "a", True),
        ("if(x>1,2,3)", "x", True),
        ("x1", "x", False),
        ("a+b", "a+b", True),
        ("", "a", False),
    ],
)
def test_a_name_is_mentioned_as_a_whole_word(expression: str, name: str, found: bool) -> None:
    assert files.mentions(expression, name) == found


def test_times_in_nanoseconds_say_what_to_write(spark: SparkSession, lake: Path) -> None:
    for file in (lake / "decisions").rglob("*.parquet"):
        rewritten(file, decided_at=pa.timestamp("ns", "UTC"))
    line = refused(spark, configured(lake))
    assert line.startswith("data.decisions")
    assert "microseconds" in line


@pytest.mark.parametrize("zone", ["Mars/Base", "", "Europe", "../etc/localtime", "Europe/Berlin "])
def test_a_time_zone_that_does_not_exist_is_named(spark: SparkSession, lake: Path, zone: str) -> None:
    rewritten(min((lake / "users").rglob("*.parquet")), time_zone=zone)
    line = refused(spark, configured(lake))
    assert line == (
        f"data.users: time_zone {zone!r} does not exist; give IANA names such as Europe/Berlin, or null for UTC."
    )


# Rows


def a_row(dataset: int, number: int, **changed: Any) -> Row:
    """A row in order, logged when it happened."""
    at = changed.get("at", START + 10 * DAY + number)
    row = {
        "dataset": dataset, "user_id": "u0", "row_id": f"more{number}", "at": at, "logged": at, "legal": None,
        "label": "session_start" if dataset == EVENTS else "hold", "propensity": 1 / 3, "context:relevance": 0.5,
        "category:topic": "news", "outcome:steps": 1.0,
    }  # fmt: skip
    return {**row, **changed}


FAR = 253_402_300_799_999_999
"""The last microsecond of 9999."""
ADDED = [
    *(a_row(code, n, user_id=None) for code in (DECISIONS, EVENTS) for n in range(3)),
    a_row(USERS, 0, user_id=None),
    *(a_row(code, 10, user_id=MEGABYTE) for code in (DECISIONS, EVENTS, USERS)),
    *(a_row(code, 20, at=PLAN.as_of, logged=PLAN.as_of + 1) for code in (DECISIONS, EVENTS)),
    a_row(EVENTS, 30, at=FAR),
]


@pytest.fixture(scope="module")
def soiled(
    spark: SparkSession, clean: tuple[Config, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Any]:
    """The clean lake and, beside its rows, some that nobody can use; rows in wrong folders, and columns that come."""
    folder = tmp_path_factory.mktemp("soiled")
    shutil.copytree(clean[0].run_dir.parent, folder, ignore=shutil.ignore_patterns("run"), dirs_exist_ok=True)
    for row in ADDED:
        for name, table in raw_tables([row]).items():
            if table.num_rows:
                (folder / name / arrived(row)).mkdir(exist_ok=True)
                pq.write_table(table, folder / name / arrived(row) / f"{row['row_id']}{row['user_id'] is None}.parquet")
    parquet(folder, "events", DAYS[12]).rename(folder / "events" / f"ds={DAYS[13]}" / "yesterday.parquet")
    for day in DAYS[30:33]:
        rewritten(parquet(folder, "decisions", day), experiment="b", weather=0.5)
    for place, file in enumerate(sorted((folder / "events").rglob("0.parquet"))):
        rewritten(file, note="text" if place > 20 else 1)
    config = configured(folder)
    return config, run_etl(spark, config)


def reasons(report: Any, dataset: str) -> Counter[str]:
    return Counter(report["rows"][dataset]["by_reason"])


def test_the_rest_of_the_log_is_unharmed(clean: tuple[Config, Any], soiled: tuple[Config, Any]) -> None:
    before, after = clean[1], soiled[1]
    for key in ("fingerprint", "watermark", "log_start", "as_of"):
        assert after[key] == before[key], key
    assert after["rows"]["transitions"] == before["rows"]["transitions"]
    for dataset in ("decisions", "events", "users"):
        for what in ("kept", "exact_duplicates", "mature", "immature"):
            assert after["rows"][dataset][what] == before["rows"][dataset][what], (dataset, what)


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        ("decisions", {"missing_user_id": 3, "oversized_user_id": 1, "clock_ahead": 1}),
        ("events", {"missing_user_id": 3, "oversized_user_id": 1, "clock_ahead": 2}),
        ("users", {"missing_user_id": 1, "oversized_user_id": 1}),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_reason(
    clean: tuple[Config, Any], soiled: tuple[Config, Any], dataset: str, wanted: dict[str, int]
) -> None:
    """Every row read is there again, as it was and with what to do about it."""
    before, after = clean[1], soiled[1]
    assert reasons(after, dataset) - reasons(before, dataset) == wanted
    assert after["rows"][dataset]["read"] == before["rows"][dataset]["read"] + sum(wanted.values())
    for counts in after["rows"][dataset]["by_day"].values():
        assert counts["read"] == counts["kept"] + counts["exact_duplicates"] + counts["quarantined"]
    tables = [DeltaTable(config.run_dir / "quarantine" / dataset).to_pyarrow_table() for config, _ in (clean, soiled)]
    # Rows in the folder of another day are set aside there.
    held, more = (Counter(map(repr, table.drop_columns(["ds"]).to_pylist())) for table in tables)
    assert not held - more
    assert (more - held).total() == sum(wanted.values())
    for row in tables[1].to_pylist():
        assert row["remedy"] == REMEDIES[row["reason"].split(":")[0]]
    long = [row for row in tables[1].to_pylist() if row["reason"] == "oversized_user_id"]
    assert [row["user_id"] for row in long] == [MEGABYTE]


def test_a_clock_ahead_moves_no_watermark(soiled: tuple[Config, Any]) -> None:
    config, report = soiled
    assert report["watermark"] < report["as_of"]
    table = DeltaTable(config.run_dir / "quarantine" / "events").to_pyarrow_table().to_pylist()
    ahead = {
        row["row_id"]: row["ds"] for row in table if row["reason"] == "clock_ahead" and "more" in str(row["row_id"])
    }
    assert ahead == {"more20": f"{datetime(2024, 3, 8) + timedelta(days=60):%Y-%m-%d}", "more30": "9999-12-31"}


def test_rows_in_the_folder_of_another_day_are_told(clean: tuple[Config, Any], soiled: tuple[Config, Any]) -> None:
    """They count as arrived on the day of the folder, and make the same transitions."""
    before, after = (report["rows"]["events"]["by_day"] for _, report in (clean, soiled))
    moved = before[DAYS[12]]["read"]
    assert moved > 2
    assert DAYS[12] not in after
    assert after[DAYS[13]]["read"] == before[DAYS[13]]["read"] + moved
    line = f"data.events: {moved} rows lie in the folder of another day than that of their logged_at; they count as "
    assert [notice for notice in soiled[1]["notices"] if notice.startswith(line)]
    assert not [
        notice for notice in soiled[1]["notices"] if notice.startswith("data.decisions: ") and "lie in" in notice
    ]


def test_a_new_column_is_told_and_not_read(soiled: tuple[Config, Any]) -> None:
    """What changes its type and is not read is nobody's business."""
    config, report = soiled
    count = len(list((config.run_dir.parent / "decisions").rglob("*.parquet")))
    for name in ("experiment", "weather"):
        assert f"data.decisions: column {name!r} is in 3 of {count} files and is not read." in report["notices"]
    assert clean_of_notices(report, "'steps'")


def clean_of_notices(report: Any, word: str) -> bool:
    return not any(word in notice for notice in report["notices"])


def test_through_spark_bad_rows_come_to_the_same(spark: SparkSession, soiled: tuple[Config, Any]) -> None:
    config, report = soiled
    found = run_etl(spark, configured(config.run_dir.parent, "mapped", mapped=True))
    for key in ("fingerprint", "watermark", "log_start", "rows", "notices"):
        assert found[key] == report[key], key


def test_a_clock_ahead_by_more_than_dates_reach_is_quarantined(spark: SparkSession, tmp_path: Path) -> None:
    """Microseconds taken for nanoseconds: the year 55,841."""
    rows = [a_row(code, n, user_id=f"u{n}", at=START + n * DAY // 4) for code in (DECISIONS, EVENTS) for n in range(40)]
    rows.append(a_row(DECISIONS, 99, at=1_700_000_000_000_000_000))
    for name, table in raw_tables(rows).items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    made = tree(tmp_path, "run")
    del made["data"]["users"], made["features"]["attributes"], made["features"]["attribute_categories"]
    for name, dataset in made["data"].items():
        dataset["path"] = str(tmp_path / f"{name}.parquet")
    report = run_etl(spark, validate(made, "test"))
    assert report["rows"]["decisions"]["by_reason"] == {"clock_ahead": 1}
