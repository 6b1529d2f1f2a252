"""One commit, whole or not at all: what it replaces, who loses a race, and that no file is left behind or lost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.contract import Contract
from models.errors import InputError, TactfulError, TransientError
from pipelines.config import Config, validate
from pipelines.etl import flow, staging, store
from pipelines.etl.flow import run_etl
from pipelines.etl.schemas import Layout, transitions_layout

CONTRACT = Contract(("hold", "send"), ("relevance", "topic=news"), ("steps",))
WIDER = replace(CONTRACT, features=(*CONTRACT.features, "badge"))


def configured(folder: Path) -> Config:
    """A log of three decisions, the last of which is the watermark, and its configuration."""
    at = [f"2024-01-0{day}T10:00:00" for day in (1, 2, 3)]
    decisions = {
        "decision_id": ["a", "b", "c"],
        "user_id": ["u", "v", "w"],
        "decided_at": pa.array(np.array(at, "datetime64[us]"), pa.timestamp("us", "UTC")),
        "action": ["send", "hold", "send"],
        "relevance": [0.1, 0.2, 0.3],
    }
    pq.write_table(pa.table(decisions), folder / "decisions.parquet")
    tree = {
        "name": "small",
        "run_dir": str(folder / "run"),
        "rewards": ["sends"],
        "data": {"decisions": {"path": str(folder / "decisions.parquet")}},
        "features": {"state": ["send_never"], "context": ["relevance"]},
        "etl": {"buckets": 1},
        "quality": {"docs": False},
        "train": {"weights": {"sends": 1.0}},
    }
    return validate(tree, "test")


def left(table: Path) -> list[Path]:
    """Every Parquet file under a table, committed or not."""
    return sorted(table.rglob("*.parquet*"))


def test_a_file_that_got_lost_stops_the_run_before_its_commit(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, collect = configured(tmp_path), flow._collect

    def lossy(*given: Any) -> Any:
        made = collect(*given)
        # One day of the two before the watermark, which is the time of the third row.
        assert [each.rows for each in made.staged["transitions"]] == [1, 1]
        made.staged["transitions"].pop()
        return made

    monkeypatch.setattr(flow, "_collect", lossy)
    with pytest.raises(TactfulError, match="transitions: 1 rows in its files, 2 were made"):
        run_etl(spark, config)
    assert not DeltaTable.is_deltatable(str(config.transitions_path))
    assert left(config.transitions_path) == []


def test_the_slower_of_two_runs_may_try_again(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run commits while this one is at work: what it wrote stays, and nothing of this one does."""
    config, collect = configured(tmp_path), flow._collect
    layout, facts = transitions_layout(config.contract), {store.ETL_HASH: config.etl_hash()}
    theirs = staged_rows(config.transitions_path, layout)

    def slow(*given: Any) -> Any:
        made = collect(*given)
        assert len(left(config.transitions_path)) == 3
        store.commit(config.transitions_path, [theirs], layout, facts, None)
        return made

    monkeypatch.setattr(flow, "_collect", slow)
    with pytest.raises(TransientError, match="another writer committed first") as caught:
        run_etl(spark, config)
    monkeypatch.undo()
    assert caught.value.exit_code == 75
    assert left(config.transitions_path) == [config.transitions_path / theirs.path]
    assert DeltaTable(config.transitions_path).version() == 0
    assert run_etl(spark, config)["version"] == 1
    assert DeltaTable(config.transitions_path).to_pyarrow_table()["decision_id"].to_pylist() == ["a", "b"]
    # What a version of before needs is still there.
    assert DeltaTable(config.transitions_path, version=0).to_pyarrow_table().num_rows == 1


def staged_rows(table: Path, layout: Layout, day: str = "2024-01-01") -> staging.Staged:
    """One staged file with one row of a day, as a task leaves it."""
    rows = pa.Table.from_pylist([{"user_id": "u", "decision_id": "d", "ds": day, "bucket": 0}], layout.schema)
    return staging.write(rows, table, staging.new_run(), layout, {"ds": day, "bucket": "0"})


def test_another_configuration_replaces_the_whole_table(tmp_path: Path) -> None:
    layout, wider = transitions_layout(CONTRACT), transitions_layout(WIDER)
    assert store.commit(tmp_path, [staged_rows(tmp_path, layout)], layout, {"etl_hash": "old"}, None) == 0
    base = store.opened(tmp_path)
    assert store.commit(tmp_path, [staged_rows(tmp_path, wider)], wider, {"etl_hash": "new"}, base) == 1
    assert store.fact(DeltaTable(tmp_path), store.ETL_HASH) == "new"
    table = DeltaTable(tmp_path)
    assert len(table.file_uris()) == 1
    assert "state_badge" in table.to_pyarrow_table().column_names
    # A version that is pinned stays what it was.
    assert "state_badge" not in DeltaTable(tmp_path, version=0).to_pyarrow_table().column_names


def test_the_loser_of_two_writers_may_try_again(tmp_path: Path) -> None:
    """Both read the table before either committed, the first table of all included."""
    layout, facts = transitions_layout(CONTRACT), {"etl_hash": "h"}
    for version in (0, 1):
        base = store.opened(tmp_path)
        assert store.commit(tmp_path, [staged_rows(tmp_path, layout)], layout, facts, base) == version
        files = DeltaTable(tmp_path).file_uris()
        staged = staged_rows(tmp_path, layout)
        with pytest.raises(TransientError, match="another writer committed first") as caught:
            store.commit(tmp_path, [staged], layout, facts, base)
        assert caught.value.exit_code == 75
        assert DeltaTable(tmp_path).version() == version
        assert DeltaTable(tmp_path).file_uris() == files
        store.discard(tmp_path, staged.path.split("/")[0])
        assert not (tmp_path / staged.path).exists()
        assert all(Path(file).exists() for file in files)


@pytest.mark.parametrize("committed", [0, 1], ids=["the_first_table", "a_later_version"])
def test_a_race_within_the_commit_itself_has_a_loser_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: int
) -> None:
    """The other commits after this one saw that nobody had, the first table of all included."""
    layout = transitions_layout(CONTRACT)
    for _ in range(committed):
        store.commit(tmp_path, [staged_rows(tmp_path, layout)], layout, {}, store.opened(tmp_path))
    base, theirs, ours = store.opened(tmp_path), staged_rows(tmp_path, layout), staged_rows(tmp_path, layout)
    store.commit(tmp_path, [theirs], layout, {}, base)
    monkeypatch.setattr(store, "opened", lambda _: base)
    with pytest.raises(TransientError, match="another writer committed first"):
        store.commit(tmp_path, [ours], layout, {}, base)
    assert [path for path, _ in store.files(DeltaTable(tmp_path))] == [theirs.path]


def test_a_commit_replaces_the_partitions_it_names_and_no_others(tmp_path: Path) -> None:
    layout = transitions_layout(CONTRACT)

    def days() -> list[str]:
        return sorted(DeltaTable(tmp_path).to_pyarrow_table()["ds"].to_pylist())

    first = [staged_rows(tmp_path, layout, f"2024-01-0{day}") for day in (1, 2, 3)]
    store.commit(tmp_path, first, layout, {}, None)
    again = [staged_rows(tmp_path, layout, f"2024-01-0{day}") for day in (3, 4)]
    store.commit(tmp_path, again, layout, {}, store.opened(tmp_path), {"ds": ["2024-01-02", "2024-01-03"]})
    # The second is replaced by nothing, the third by itself.
    assert days() == ["2024-01-01", "2024-01-03", "2024-01-04"]
    assert not {first[1].path, first[2].path} & {path for path, _ in store.files(DeltaTable(tmp_path))}
    store.commit(
        tmp_path, [staged_rows(tmp_path, layout, "2024-01-05")], layout, {}, store.opened(tmp_path), {"ds": []}
    )
    assert days() == ["2024-01-01", "2024-01-03", "2024-01-04", "2024-01-05"]


def test_a_partition_is_not_replaced_by_rows_of_other_columns(tmp_path: Path) -> None:
    """The other partitions would be lost with the old columns."""
    layout, wider = transitions_layout(CONTRACT), transitions_layout(WIDER)
    store.commit(tmp_path, [staged_rows(tmp_path, layout)], layout, {}, None)
    staged, base = staged_rows(tmp_path, wider), store.opened(tmp_path)
    with pytest.raises(InputError, match="what it holds must not be lost"):
        store.commit(tmp_path, [staged], wider, {}, base, {"ds": ["2024-01-01"]})
    assert DeltaTable(tmp_path).version() == 0


def test_one_task_that_runs_twice_leaves_one_file(tmp_path: Path) -> None:
    """A file is named by its content, and the fingerprint told from the names, whatever run wrote them."""
    layout, row = (
        transitions_layout(CONTRACT),
        {"user_id": "u", "decision_id": "d", "ds": "2024-01-01", "bucket": 0},
    )
    rows = pa.Table.from_pylist([row], layout.schema)
    where = {"ds": "2024-01-01", "bucket": "0"}
    staged = [staging.write(rows, tmp_path, run, layout, where) for run in ("one", "one", "two")]
    assert staged[0] == staged[1]
    assert len(left(tmp_path)) == 2
    prints = []
    for each in staged[1:]:
        store.commit(tmp_path, [each], layout, {}, store.opened(tmp_path))
        prints.append(store.fingerprint(DeltaTable(tmp_path)))
    assert prints[0] == prints[1]
    other = pa.Table.from_pylist([{**row, "user_id": "v"}], layout.schema)
    store.commit(tmp_path, [staging.write(other, tmp_path, "two", layout, where)], layout, {}, store.opened(tmp_path))
    assert store.fingerprint(DeltaTable(tmp_path)) != prints[0]
