"""One row per bad input: what is wrong, and the reason or the error that names it, what was found and the remedy."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from models.contract import Contract
from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl import plans
from pipelines.etl.arrivals import Arrived
from pipelines.etl.features import DAY, HOUR, StateFeatures
from pipelines.etl.flow import run_etl
from pipelines.etl.history import mark
from pipelines.etl.marks import LONGEST_ID, REMEDIES, Plan, contents
from pipelines.etl.plans import make_plan
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.sources import open_sources
from pipelines.etl.unusable import check_usable
from pipelines.etl.window import EVER, day_number
from pipelines.session import ACCOUNTS
from policies.constraints import Constraints

NOW = 1_700_000_000_000_000
PLAN = Plan(
    contract=Contract(("hold", "send"), ("relevance", "topic=news"), ("steps",)),
    outcomes=("steps",),
    features=StateFeatures([], ["relevance"], {"topic": ["news"]}, [], {}, (1.0, 10.0)),
    constraints=Constraints(),
    has_events=True,
    buckets=1,
    split=(0.6, 0.1, 0.3),
    as_of=NOW + 10 * DAY,
    watermark=NOW + 9 * DAY,
    log_start=NOW,
    lookback=28 * DAY,
    warmup=0,
    max_lateness=7 * DAY,
    max_gap=7 * DAY,
    click_window=DAY,
    session_gap=HOUR // 2,
)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()), ("row_id", pa.string()), ("at", pa.int64()), ("logged", pa.int64()),
        ("label", pa.string()), ("propensity", pa.float64()), ("legal", pa.list_(pa.string())),
        ("context:relevance", pa.float64()), ("category:topic", pa.string()), ("outcome:steps", pa.float64()),
    ]
)  # fmt: skip
DECISION = {
    "user_id": "u", "row_id": "d", "at": NOW, "logged": NOW, "label": "send", "propensity": 0.5, "legal": None,
    "context:relevance": 0.3, "category:topic": "news", "outcome:steps": 2.0,
}  # fmt: skip
EVENT = {**DECISION, "label": "click"}
FORCED = {"legal": ["hold"], "label": "hold", "propensity": 1.0}
Row = dict[str, Any]


def table_of(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA)


def reasons(*rows: Row, dataset: int = DECISIONS) -> list[str | None]:
    found: list[str | None] = mark({dataset: table_of(*rows)}, PLAN).marks[dataset].reasons().to_pylist()
    return found


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"user_id": None, "at": None}, "missing_user_id"),
        ({"user_id": "x" * (LONGEST_ID + 1), "row_id": None}, "oversized_user_id"),
        ({"user_id": "x" * LONGEST_ID}, None),
        # It is bytes that count: 513 letters of two bytes are 1,026.
        ({"user_id": "é" * (LONGEST_ID // 2 + 1)}, "oversized_user_id"),
        ({"user_id": "é" * (LONGEST_ID // 2)}, None),
        ({"row_id": None}, "missing_decision_id"),
        ({"at": None}, "missing_decided_at"),
        ({"logged": None}, "missing_logged_at"),
        ({"logged": NOW - 1}, "logged_before_it_happened"),
        ({"at": NOW + 10 * DAY, "logged": NOW + 10 * DAY + 1}, "clock_ahead"),
        ({"at": NOW + 10 * DAY, "logged": NOW + 10 * DAY}, None),
        ({"logged": NOW + 7 * DAY}, None),
        ({"logged": NOW + 7 * DAY + 1}, "too_late"),
        ({"label": "shout", "propensity": 7.0}, "unknown_action"),
        ({"label": None}, "unknown_action"),
        ({"legal": ["send", "shout"]}, "unknown_legal_action"),
        ({"legal": ["send", None]}, "unknown_legal_action"),
        ({"legal": ["hold"]}, "illegal_action"),
        ({"legal": []}, "illegal_action"),
        ({"propensity": 0.0}, "propensity_out_of_range"),
        ({"propensity": 1.0001}, "propensity_out_of_range"),
        ({"propensity": -0.5}, "propensity_out_of_range"),
        ({"propensity": float("nan")}, "propensity_out_of_range"),
        ({"propensity": None}, None),
        ({**FORCED, "propensity": 0.6}, "forced_propensity"),
        (FORCED, None),
        ({"context:relevance": None}, "missing_feature:relevance"),
        ({"context:relevance": float("inf")}, "missing_feature:relevance"),
        ({"category:topic": None}, "missing_feature:topic"),
        ({**FORCED, "context:relevance": None, "category:topic": None}, None),
        ({"outcome:steps": None}, "missing_reward:steps"),
    ],
)
def test_a_bad_decision_is_quarantined_for_its_first_reason(changed: Row, reason: str | None) -> None:
    assert reasons({**DECISION, **changed}) == [reason]
    assert reason is None or reason.split(":")[0] in REMEDIES


def test_a_time_so_far_back_that_the_lateness_overflows_is_too_late() -> None:
    """The least int64, which some writers put where there is no time: logged less at is no longer an int64."""
    assert reasons({**DECISION, "at": -(1 << 63)}) == ["too_late"]
    assert reasons({**EVENT, "at": -(1 << 63)}, dataset=EVENTS) == ["too_late"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"user_id": None}, "missing_user_id"),
        ({"user_id": "x" * (1 << 20)}, "oversized_user_id"),
        ({"row_id": None}, "missing_event_id"),
        ({"at": None}, "missing_occurred_at"),
        ({"logged": None}, "missing_logged_at"),
        ({"logged": NOW - 1}, "logged_before_it_happened"),
        ({"at": NOW + 9 * DAY, "logged": NOW + 11 * DAY}, "clock_ahead"),
        ({"logged": NOW + 8 * DAY}, "too_late"),
        ({"label": "wave"}, "unknown_kind"),
        ({"label": None}, "unknown_kind"),
    ],
)
def test_a_bad_event_is_quarantined_for_its_first_reason(changed: Row, reason: str | None) -> None:
    assert reasons({**EVENT, **changed}, dataset=EVENTS) == [reason]
    assert reason is None or reason in REMEDIES


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"user_id": None, "at": None}, "missing_user_id"),
        ({"user_id": "x" * (LONGEST_ID + 1)}, "oversized_user_id"),
        ({"at": None}, "missing_valid_from"),
        # Attributes may be known long before they hold, and long after.
        ({"at": NOW + 100 * DAY}, None),
        ({"logged": NOW + 100 * DAY}, None),
        ({"logged": None}, None),
    ],
)
def test_a_bad_row_of_users_is_quarantined_for_its_first_reason(changed: Row, reason: str | None) -> None:
    assert reasons({**DECISION, **changed}, dataset=USERS) == [reason]
    assert reason is None or reason in REMEDIES


def test_of_rows_with_one_id_the_first_logged_is_kept() -> None:
    later, other = {"logged": NOW + 5}, {"propensity": 0.4}
    found = reasons({**DECISION, **later}, DECISION, {**DECISION, **later, **other}, {**DECISION, "user_id": "v"})
    assert found == ["exact_duplicate", None, "conflicting_duplicate", None]
    # Every column counts, but for when the row was logged.
    for name, value in {
        "at": NOW - 1, "label": "hold", "legal": ["hold", "send"], "context:relevance": 0.31, "category:topic": "sport",
        "outcome:steps": None,
    }.items():  # fmt: skip
        assert reasons(DECISION, {**DECISION, **later, name: value}) == [None, "conflicting_duplicate"], name
    # A row out of order is no candidate.
    assert reasons({**DECISION, "logged": NOW - 1}, DECISION) == ["logged_before_it_happened", None]


def test_of_rows_logged_at_one_time_the_smallest_content_hash_is_kept() -> None:
    rows = [{**DECISION, "propensity": p} for p in (0.1, 0.2, 0.3, 0.4, 0.5)]
    first = int(contents(table_of(*rows)).argmin())
    wanted = [None if index == first else "conflicting_duplicate" for index in range(len(rows))]
    assert reasons(*rows) == wanted
    assert reasons(*rows[::-1]) == wanted[::-1]


def test_copies_are_compared_where_they_were_logged_at_most_the_lateness_apart() -> None:
    """A second copy 7 days after the first is one; one microsecond later it is compared with none.

    Of three, each 5 days after the one before, the third is compared with the second, of which it is a copy.
    """
    second = {**DECISION, "at": NOW + 7 * DAY}
    assert reasons(DECISION, {**second, "logged": NOW + 7 * DAY}) == [None, "conflicting_duplicate"]
    assert reasons(DECISION, {**second, "logged": NOW + 7 * DAY + 1}) == [None, None]
    later = [{**DECISION, "at": NOW + 4 * DAY, "logged": NOW + days * DAY} for days in (5, 10)]
    assert reasons(DECISION, *later) == [None, "conflicting_duplicate", "exact_duplicate"]


def test_an_event_may_have_the_id_of_a_decision() -> None:
    marks = mark({DECISIONS: table_of(DECISION), EVENTS: table_of(EVENT)}, PLAN).marks
    assert [marks[code].reasons().to_pylist() for code in (DECISIONS, EVENTS)] == [[None], [None]]


RAW = {
    "decision_id": ["a", "b", "c"],
    "user_id": ["u", "v", "w"],
    "decided_at": ["2024-01-01 10:00:00", "2024-01-02 10:00:00", "2024-01-03 10:00:00"],
    "action": ["send", "hold", "send"],
    "relevance": ["0.1", "0.2", "0.3"],
    "steps": ["1", "2", "3"],
}


def configured(folder: Path, **changed: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "bad",
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "column:steps"],
        "data": {"decisions": {"path": str(folder / "decisions.csv")}},
        "features": {"state": ["send_never"], "context": ["relevance"]},
        "train": {"weights": {"sends": 1.0}},
    }
    for key, value in changed.items():
        node = tree
        *parents, leaf = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return validate(tree, "test")


def write_csv(folder: Path, **columns: list[str] | None) -> None:
    rows = {name: values for name, values in {**RAW, **columns}.items() if values is not None}
    lines = [",".join(rows), *(",".join(row) for row in zip(*rows.values(), strict=True))]
    (folder / "decisions.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def sparks_words(spark: SparkSession) -> Iterator[list[str]]:
    """What PySpark itself says of an expression that it cannot resolve."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, loggers = Listener(), [PySparkLogger.getLogger(name) for name in ACCOUNTS]
    for logger in loggers:
        logger.addHandler(listener)
    yield said
    for logger in loggers:
        logger.removeHandler(listener)


@pytest.mark.parametrize(
    ("columns", "changed", "words"),
    [
        ({}, {"data__decisions__path": "/nowhere/decisions"}, ["data.decisions.path", "/nowhere", "does not exist"]),
        ({"decided_at": None}, {}, ["data.decisions", "'decided_at'", "map it", "relevance"]),
        ({"relevance": None}, {}, ["data.decisions", "'relevance'", "map it"]),
        ({}, {"rewards": ["sends", "column:stepz"]}, ["'stepz'", "did you mean 'steps'"]),
        ({}, {"data__decisions__columns": {"action": "ackshun"}}, ["columns.action", "ackshun", "relevance, steps"]),
        ({}, {"data__decisions__columns": {"action": "if(("}}, ["columns.action", "if(("]),
        ({}, {"data__decisions__columns": {"propensitty": "0.5"}}, ["'propensitty'", "did you mean 'propensity'"]),
        ({}, {"data__decisions__columns": {"legal_actions": "action"}}, ["legal_actions", "a list of texts", "split("]),
        ({name: [] for name in RAW}, {}, ["data.decisions", "no rows"]),
        (
            {"decided_at": ["soon", "2024-01-02 10:00:00", "soon"], "user_id": ["u", "", "w"]},
            {},
            [
                "none of its 3 rows can be used",
                "missing_decided_at 2, missing_user_id 1",
                "found decided_at=aaaa:",
                "as a UTC timestamp",
                "data.decisions.columns",
            ],
        ),
        (
            {"decided_at": ["1.2.24", "soon", "2.2.24"]},
            {"data__decisions__columns": {"decided_at": "try_to_timestamp(decided_at, 'MM/dd/yyyy')"}},
            ["missing_decided_at 3", "found decided_at=9.9.99:"],
        ),
        (
            {"user_id": [""] * 3, "propensity": ["n/a"] * 3},
            {},
            ["missing_user_id 3; found user_id null: log whose row it is"],
        ),
        (
            {"user_id": ["é" * 600] * 3, "decided_at": ["2999-01-01"] * 3},
            {},
            ["oversized_user_id 3; found user_id of 1,200 bytes: log an id"],
        ),
        (
            {"decided_at": ["2000-01-02"] * 3, "propensity": ["n/a"] * 3},
            {"data__decisions__columns": {"logged_at": "decided_at - interval 1 day"}},
            ["logged_before_it_happened 3; found decided_at 2000-01-02T00:00:00.000000, logged_at 2000-01-01"],
        ),
        (
            {"propensity": ["n/a"] * 3, "received": ["soon"] * 3},
            {"data__decisions__columns": {"logged_at": "try_to_timestamp(received)"}},
            ["missing_logged_at 3; found received=aaaa: log when"],
        ),
        (
            {"t": ["Smith; John=x"] * 3, "my day": ["कि१२"] * 3},
            {"data__decisions__columns": {"decided_at": "try_to_timestamp(concat(t, `my day`), 'yyyy')"}},
            ["missing_decided_at 3; found t=aaaaa"],
        ),
        (
            {"decided_at": None, "t": ["Smith (John=x)"] * 3, "my day": ["कि१२"] * 3},
            {"data__decisions__columns": {"decided_at": "try_to_timestamp(concat(t, `my day`), 'yyyy')"}},
            ["missing_decided_at 3; found t=aaaaa (aaaa=a), my day=aa99: log when"],
        ),
        (
            {"decided_at": ['"Smith, John=x"'] * 3},
            {},
            ["missing_decided_at 3; found decided_at=aaaaa, aaaa=a: log when"],
        ),
        (
            {"decided_at": ["2000-01-02"] * 3},
            {"data__decisions__columns": {"logged_at": "timestamp_seconds(1700000000000)"}},
            ["clock_ahead 3", "found decided_at 2000-01-02T00:00:00.000000, logged_at 55840-11-", "clock"],
        ),
        ({"legal_actions": ["hold|send"] * 3}, {}, ["columns.legal_actions", "is string", "split(`legal_actions`, "]),
        (
            {"decided_at": ["2024-01-01", "2024-01-02", "2024-01-05"]},
            {},
            ["2024-01-03, 2024-01-04", "etl.known_gaps"],
        ),
        ({}, {"etl__as_of": "yesterday"}, ["etl.as_of", "'yesterday'"]),
        ({}, {"etl__watermark": "2024-13-01"}, ["etl.watermark", "2024-13-01"]),
        ({}, {"constraints__min_gap_hours": 1000}, ["min_gap_hours", "lookback"]),
        (
            {},
            {"data__decisions__columns": {"relevance": "cast(action as double)"}},
            ["cannot be read as mapped", "try_cast"],
        ),
    ],
)
def test_unusable_input_stops_the_run(
    spark: SparkSession,
    tmp_path: Path,
    columns: dict[str, Any],
    changed: dict[str, Any],
    words: list[str],
    sparks_words: list[str],
) -> None:
    write_csv(tmp_path, **columns)
    with pytest.raises(InputError) as caught:
        run_etl(spark, configured(tmp_path, **changed))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run" / "transitions").exists()
    # Spark's own account, a page of stack trace as one line of JSON, would bury ours.
    assert sparks_words == []


def test_the_first_run_by_days_says_as_much_of_a_log_that_cannot_be_used(spark: SparkSession, tmp_path: Path) -> None:
    """The scheduled road, `etl --to DAY`; what arrived after that day is none of its rows."""
    write_csv(tmp_path, decided_at=["soon", "2024-01-01 10:00:00", "2024-01-03 10:00:00"], user_id=["u", "", ""])
    with pytest.raises(InputError, match=r"none of its 2 rows can be used: missing_.*data.decisions.columns"):
        run_etl(spark, configured(tmp_path), days=(EVER, day_number("2024-01-02", "day")))


def test_a_run_has_one_now(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows logged between the first look at the clock and the next are ahead of it, for every rule."""
    moments = (datetime(2023, 1, 1, tzinfo=UTC) + timedelta(days=800 * n) for n in range(9))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return next(moments)

    monkeypatch.setattr(plans, "datetime", Clock)
    write_csv(tmp_path)
    with pytest.raises(InputError, match="none of its 3 rows can be used: clock_ahead 3"):
        run_etl(spark, configured(tmp_path))


def test_a_run_believes_in_the_end_what_it_believed_first(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = (datetime(2024, 1, 2, 12, tzinfo=UTC) + timedelta(days=800 * n) for n in range(9))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return next(moments)

    monkeypatch.setattr(plans, "datetime", Clock)
    write_csv(tmp_path)
    report = run_etl(spark, configured(tmp_path, etl__max_quarantined=0.5))
    assert report["as_of"] == "2024-01-02T12:00:00+00:00"
    assert report["rows"]["decisions"]["by_reason"] == {"clock_ahead": 1}


def test_of_rows_without_a_fault_nothing_is_said(spark: SparkSession, tmp_path: Path) -> None:
    """The file may have changed since its rows were counted."""
    write_csv(tmp_path)
    config = configured(tmp_path)
    arrivals = {DECISIONS: [Arrived(None, 3, 0, None, None, 0)]}
    check_usable(spark, config, open_sources(spark, config, range(1), None), arrivals, make_plan(config, 0, 0))


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        ("decisions.csv", "decision_id;user_id\na;u\n", ['data.decisions.separator = ";"', "'decision_id;user_id'"]),
        ("decisions.csv", "decision_id\tuser_id\na\tu\n", ['data.decisions.separator = "\\t"']),
        ("decisions/part.csv", "decision_id,user_id\na,u\n", ['data.decisions.format = "csv"']),
        ("decisions/part.jsonl.gz", "{}\n", ['data.decisions.format = "json"']),
        ("decisions.xlsx", "PK", ["no readable Parquet file", "deliver it again"]),
        ("decisions.jsonl", '{"decision_id": "a"}\n', ["no column 'user_id'", "(known: decision_id)"]),
    ],
)
def test_files_of_another_kind_say_which_key_reads_them(
    spark: SparkSession, tmp_path: Path, place: str, content: str, words: list[str]
) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    where = path.parent if path.parent != tmp_path else path
    with pytest.raises(InputError) as caught:
        run_etl(spark, configured(tmp_path, data__decisions__path=str(where)))
    for word in words:
        assert word in str(caught.value)


ROW = "7,ann@example.org,2024-01-01 10:00:00,send,0.1,3"
MAPPED = {"decision_id": "concat('7', id)", "action": "if(what = 'send', 'send', 'hold')"}


@pytest.mark.parametrize("suffix", ["csv", "txt"])
@pytest.mark.parametrize("said", [{}, {"columns": MAPPED}, {"separator": ";"}, {"where": "what = 'send'"}])
def test_a_first_line_that_is_no_header_is_not_shown(
    spark: SparkSession, tmp_path: Path, suffix: str, said: dict[str, Any]
) -> None:
    """It is a row, and may say who somebody is; as CSV Spark would take it for the names of the columns."""
    path = tmp_path / f"log.{suffix}"
    path.write_text(f"{ROW}\n{ROW}\n")
    dataset = {"path": str(path), "format": "csv", **said}
    with pytest.raises(InputError) as caught:
        run_etl(spark, configured(tmp_path, data__decisions=dataset))
    assert "does not look like a header" in str(caught.value)
    assert "ann@" not in str(caught.value)
    assert "2024" not in str(caught.value)


@pytest.mark.parametrize("header", ["decision_id,person", "who,person", "WHO,person"])
def test_a_header_with_a_name_that_is_read_is_shown(spark: SparkSession, tmp_path: Path, header: str) -> None:
    (tmp_path / "decisions.csv").write_text(f"{header}\na,b\n")
    with pytest.raises(InputError, match=rf"(known|its columns): {header.replace(',', ', ')}"):
        run_etl(spark, configured(tmp_path, data__decisions__columns={"user_id": "upper(who)"}))
