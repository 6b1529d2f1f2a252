"""Spark and DuckDB make the same table of one small log with everything in it that hurts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from benchmarks.etl import compare, compare_counts, config_of
from benchmarks.etl_duckdb import run_duckdb
from benchmarks.etl_equal import differences
from benchmarks.etl_log import LogConfig, write_log
from pipelines.etl.flow import run_etl

HOSTILE = LogConfig(
    decisions=3000, per_user=12, slow=0.15, too_late=0.03, repeated=0.03, conflicting=0.03, broken=0.06, closed=0.2
)


def test_two_engines_make_one_table(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(HOSTILE, tmp_path / "lake")
    assert log["events"] > 4 * 3000
    # Edges that the defaults would not touch: states that look back over few days, silence after two, and decisions
    # and events at the watermark and after it.
    edges = {"lookback_days": 5, "max_gap_days": 2, "click_window_hours": 12, "session_gap_minutes": 20}
    moments = {"watermark": "2024-04-11T12:00:00", "max_quarantined": 0.9, "warmup_days": 3}
    config = config_of(tmp_path / "lake", tmp_path / "spark", HOSTILE, 4, 2, "1g", **edges, **moments)
    report, rival = run_etl(spark, config), run_duckdb(config, tmp_path / "duckdb")
    assert compare(config, tmp_path / "duckdb") == []
    assert compare_counts(report, rival) == []

    # The log was hostile enough to tell the two apart.
    made = DeltaTable(config.transitions_path).to_pyarrow_table()
    for flag in ("terminal", "truncated", "silent", "warm_up", "usable"):
        assert 20 < made.filter(made[flag]).num_rows < made.num_rows - 20, flag
    for name in made.column_names:
        if name.startswith(("state_", "reward_")) or name in ("clicks_attributed", "action"):
            assert len(pc.unique(made[name].drop_null())) > 1, name
    assert pc.sum(made["reward_clicks"]).as_py() > 50
    reasons = {*rival["rows"]["decisions"]["by_reason"], *rival["rows"]["events"]["by_reason"]}
    assert reasons == {
        "missing_user_id", "missing_event_id", "logged_before_it_happened", "clock_ahead", "too_late",
        "conflicting_duplicate", "unknown_action", "unknown_kind", "propensity_out_of_range",
        "missing_feature:relevance",
    }  # fmt: skip


def a_day(**columns: list[object]) -> pa.Table:
    rows = {
        "user_id": ["a", "a"], "decided_at": [1, 2], "decision_id": ["x", "y"], "usable": [True, True],
        "elapsed_days": [1.0, 2.0], "action": ["hold", "send"], "propensity": [0.5, None], "legal": [[True], [True]],
    }  # fmt: skip
    return pa.table(rows | columns)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (a_day(), []),
        (a_day(propensity=[0.5 * (1 + 1e-7), None]), []),
        (a_day(bucket=[1, 2]), []),
        (a_day().take([1, 0]), []),
        (a_day(propensity=[0.51, None]), ["d: a, x at 1: propensity is 0.5 against 0.51"]),
        (a_day(propensity=[0.5, 0.5]), ["d: a, y at 2: propensity is None against 0.5"]),
        (a_day(legal=[[True], [False]]), ["d: a, y at 2: legal is [True] against [False]"]),
        (a_day(extra=[1, 2]), ["d: extra: in one of the tables only"]),
        (a_day().slice(1), ["d: 2 rows against 1; the first that is in one alone: ('a', 1, 'x', True)"]),
    ],
)
def test_a_difference_is_told_with_its_row_and_column(other: pa.Table, said: list[str]) -> None:
    assert differences(lambda _: a_day(), lambda _: other, ["d"]) == said


def test_the_log_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> list[bytes]:
        write_log(LogConfig(decisions=1000, seed=seed), tmp_path / name)
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.parquet"))]

    assert written("one", 0) == written("two", 0)
    assert written("one", 1) != written("two", 0)
