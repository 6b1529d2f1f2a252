"""One row per bad input: what is wrong, and the reason or the error that names it, what was found and the remedy."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.contract import Contract
from models.errors import InputError, TactfulError, TransientError
from pipelines.config import Config, validate
from pipelines.etl import store
from pipelines.etl.features import DAY, HOUR, StateFeatures
from pipelines.etl.flow import run_etl
from pipelines.etl.marks import REMEDIES, Plan
from pipelines.etl.schemas import DECISIONS, EVENTS, Layout, transitions_layout
from pipelines.etl.transitions import mark
from policies.constraints import Constraints

NOW = 1_700_000_000_000_000
PLAN = Plan(
    contract=Contract(("hold", "send"), ("relevance", "topic=news"), ("steps",)),
    outcomes=("steps",),
    features=StateFeatures([], ["relevance"], {"topic": ["news"]}, [], {}, (1.0, 10.0)),
    constraints=Constraints(),
    has_events=True,
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
        ("dataset", pa.int8()), ("user_id", pa.string()), ("row_id", pa.string()), ("at", pa.int64()),
        ("logged", pa.int64()), ("hash", pa.int64()), ("label", pa.string()), ("propensity", pa.float64()),
        ("legal", pa.list_(pa.string())), ("context:relevance", pa.float64()), ("category:topic", pa.string()),
        ("outcome:steps", pa.float64()),
    ]
)  # fmt: skip
DECISION = {
    "dataset": DECISIONS, "user_id": "u", "row_id": "d", "at": NOW, "logged": NOW, "hash": 1, "label": "send",
    "propensity": 0.5, "legal": None, "context:relevance": 0.3, "category:topic": "news", "outcome:steps": 2.0,
}  # fmt: skip
EVENT = {**DECISION, "dataset": EVENTS, "label": "click"}
FORCED = {"legal": ["hold"], "label": "hold", "propensity": 1.0}


def reasons(*rows: dict[str, Any]) -> list[str | None]:
    found: list[str | None] = mark(pa.Table.from_pylist(list(rows), SCHEMA), PLAN)["reason"].to_pylist()
    return found


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"user_id": None, "at": None}, "missing_user_id"),
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
def test_a_bad_decision_is_quarantined_for_its_first_reason(changed: dict[str, Any], reason: str | None) -> None:
    assert reasons({**DECISION, **changed}) == [reason]
    assert reason is None or reason.split(":")[0] in REMEDIES


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"row_id": None}, "missing_event_id"),
        ({"at": None}, "missing_occurred_at"),
        ({"logged": NOW + 8 * DAY}, "too_late"),
        ({"label": "wave"}, "unknown_kind"),
    ],
)
def test_a_bad_event_is_quarantined_for_its_first_reason(changed: dict[str, Any], reason: str | None) -> None:
    assert reasons({**EVENT, **changed}) == [reason]


def test_of_rows_with_one_id_the_first_logged_is_kept() -> None:
    later = {"logged": NOW + 5}
    found = reasons({**DECISION, **later}, DECISION, {**DECISION, **later, "hash": 9}, {**DECISION, "user_id": "v"})
    assert found == ["exact_duplicate", None, "conflicting_duplicate", None]
    # Logged at one time: the smallest content hash. A row out of order is no candidate.
    assert reasons({**DECISION, "hash": 5}, DECISION) == ["conflicting_duplicate", None]
    assert reasons({**DECISION, "logged": NOW - 1}, DECISION) == ["logged_before_it_happened", None]
    # An event may have a decision's id.
    assert reasons(DECISION, EVENT) == [None, None]


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
        ({"decided_at": ["soon"] * 3}, {}, ["none of its 3 rows", "time"]),
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
    spark: SparkSession, tmp_path: Path, columns: dict[str, Any], changed: dict[str, Any], words: list[str]
) -> None:
    write_csv(tmp_path, **columns)
    with pytest.raises(InputError) as caught:
        run_etl(spark, configured(tmp_path, **changed))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run" / "transitions").exists()


def test_an_unknown_time_zone_stops_the_run(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(tmp_path)
    users = pa.table({"user_id": ["u"], "valid_from": ["2020-01-01"], "time_zone": ["Mars/Base"]})
    pq.write_table(users, tmp_path / "users.parquet")
    with pytest.raises(InputError, match="'Mars/Base' does not exist; give IANA names"):
        run_etl(spark, configured(tmp_path, data__users={"path": str(tmp_path / "users.parquet")}))


def staged_rows(folder: Path, layout: Layout) -> Path:
    """One staged file with one row, as Spark leaves it."""
    row = {"user_id": "u", "decision_id": "d", "ds": "2024-01-01", "bucket": 0}
    table = pa.Table.from_pylist([row], layout.schema).drop_columns(["ds", "bucket"])
    staged = folder / f"run{len(list(folder.glob('run*')))}"
    (staged / "ds=2024-01-01" / "bucket=0").mkdir(parents=True)
    pq.write_table(table, staged / "ds=2024-01-01" / "bucket=0" / "part.parquet")
    return staged


def test_another_configuration_demands_a_rebuild(tmp_path: Path) -> None:
    contract = PLAN.contract
    layout = transitions_layout(contract)
    assert store.commit(tmp_path, staged_rows(tmp_path, layout), layout, {"etl_hash": "old"}, 1, None) == 0
    store.check_hash(tmp_path, "old", rebuild=False)
    store.check_hash(tmp_path, "new", rebuild=True)
    with pytest.raises(InputError, match=r"etl hash old, now new[^$]*--rebuild"):
        store.check_hash(tmp_path, "new", rebuild=False)
    wider = transitions_layout(Contract(contract.actions, (*contract.features, "badge"), contract.rewards))
    base = store.opened(tmp_path)
    assert store.commit(tmp_path, staged_rows(tmp_path, wider), wider, {"etl_hash": "new"}, 1, base) == 1
    store.check_hash(tmp_path, "new", rebuild=False)
    table = DeltaTable(tmp_path)
    assert len(table.file_uris()) == 1
    assert "state_badge" in table.to_pyarrow_table().column_names
    # A version that is pinned stays what it was.
    assert "state_badge" not in DeltaTable(tmp_path, version=0).to_pyarrow_table().column_names


def test_files_that_do_not_hold_what_was_made_are_not_committed(tmp_path: Path) -> None:
    layout = transitions_layout(PLAN.contract)
    with pytest.raises(TactfulError, match="1 rows in its files, 2 were made"):
        store.commit(tmp_path, staged_rows(tmp_path, layout), layout, {}, 2, None)
    assert not DeltaTable.is_deltatable(str(tmp_path))


def test_the_loser_of_two_writers_may_try_again(tmp_path: Path) -> None:
    """Both read the table before either committed, the first table of all included."""
    layout, facts = transitions_layout(PLAN.contract), {"etl_hash": "h"}
    for version in (0, 1):
        base = store.opened(tmp_path)
        assert store.commit(tmp_path, staged_rows(tmp_path, layout), layout, facts, 1, base) == version
        staged = staged_rows(tmp_path, layout)
        with pytest.raises(TransientError, match="another writer committed first") as caught:
            store.commit(tmp_path, staged, layout, facts, 1, base)
        assert caught.value.exit_code == 75
        assert not staged.exists()
        assert DeltaTable(tmp_path).version() == version


def test_a_partition_is_not_replaced_by_rows_of_other_columns(tmp_path: Path) -> None:
    """The other partitions would be lost with the old columns."""
    layout = transitions_layout(PLAN.contract)
    store.commit(tmp_path, staged_rows(tmp_path, layout), layout, {}, 1, None)
    contract = PLAN.contract
    wider = transitions_layout(Contract(contract.actions, (*contract.features, "badge"), contract.rewards))
    staged = staged_rows(tmp_path, wider)
    with pytest.raises(InputError, match="what it holds must not be lost"):
        store.commit(tmp_path, staged, wider, {}, 1, store.opened(tmp_path), [("ds", "=", "2024-01-01")])
    assert not staged.exists()
    assert DeltaTable(tmp_path).version() == 0
