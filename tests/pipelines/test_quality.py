"""What stops a run, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from models.contract import Contract
from models.errors import QualityError
from pipelines.etl import quality

CONTRACT = Contract(("hold", "send"), ("badge",), ("sends",))
RAW = "user_id string, row_id string, at bigint, label string, propensity double, legal array<string>"


def raw(spark: SparkSession, *rows: tuple[Any, ...]) -> DataFrame:
    return spark.createDataFrame(list(rows), RAW).coalesce(1)


def logged(spark: SparkSession, *pairs: tuple[float | None, list[str] | None]) -> DataFrame:
    """Decisions by (propensity, legal actions)."""
    return raw(spark, *(("u", str(n), n, "send", p, legal) for n, (p, legal) in enumerate(pairs)))


def test_a_share_of_quarantined_rows_names_reasons_and_counts() -> None:
    quality.check_quarantined("decisions", {"read": 100, "by_reason": {"too_late": 20}}, 0.2)
    with pytest.raises(QualityError) as caught:
        quality.check_quarantined("decisions", {"read": 100, "by_reason": {"too_late": 15, "unknown_action": 6}}, 0.2)
    assert caught.value.exit_code == 3
    for word in ("21 of 100", "21.0%", "too_late 15, unknown_action 6", "etl.max_quarantined = 20.0%"):
        assert word in str(caught.value)


def test_propensities_that_are_right_sum_to_one(spark: SparkSession) -> None:
    """Sends at 0.6, holds at 0.4: mean 1 / p = 0.6 / 0.6 + 0.4 / 0.4 = 2 = |legal|, so the sum is 1."""
    rows = [(0.6, None)] * 60 + [(0.4, ["hold", "send"])] * 40 + [(1.0, ["hold"])] * 50 + [(None, None)] * 7
    found = quality.check_propensities(logged(spark, *rows), CONTRACT)
    assert found["rows"] == 100
    assert found["inverse_sum"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        # Both actions at 0.9: mean 1 / p = 1.111, 2 / 1.111 = 1.8.
        ([(0.9, None)] * 100, ["sum to about 1.80, not 1", "100 rows", "legal_actions"]),
        # Both at 0.2: 2 / 5 = 0.4.
        ([(0.2, None)] * 100, ["sum to about 0.40"]),
        ([(1.0, None)] * 100 + [(1.0, ["hold"])] * 10, ["all 100 choices", "propensity 1", "never explored"]),
    ],
)
def test_propensities_that_cannot_be_stop_the_run(spark: SparkSession, rows: list[Any], words: list[str]) -> None:
    with pytest.raises(QualityError) as caught:
        quality.check_propensities(logged(spark, *rows), CONTRACT)
    for word in words:
        assert word in str(caught.value)


def test_few_rows_are_not_held_against_a_log(spark: SparkSession) -> None:
    """Three rows at 0.5, 0.5 and 0.05: 2 / 8 = 0.25, but one rare action among three rows shows nothing."""
    rows = [(0.5, None), (0.5, None), (0.05, None)]
    assert quality.check_propensities(logged(spark, *rows), CONTRACT)["inverse_sum"] == pytest.approx(0.25)
    assert quality.check_propensities(logged(spark, (1.0, ["hold"])), CONTRACT) == {"rows": 0}


def test_expectations_name_column_observed_and_remedy(spark: SparkSession, tmp_path: Path) -> None:
    good = [("u", str(n), n, "send", 0.5, None) for n in range(20)]
    report = quality.check(raw(spark, *good), "decisions", quality.decisions_suite(CONTRACT), tmp_path)
    assert report["success"]
    assert json.loads((tmp_path / "decisions.json").read_text())["success"]

    bad = [*good, *[(None, "x", 1, "shout", 1.5, None)] * 5]
    with pytest.raises(QualityError) as caught:
        quality.check(raw(spark, *bad), "decisions", quality.decisions_suite(CONTRACT), tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split("'")[1] for line in lines] == ["user_id", "label", "propensity"]
    assert all("5 of 25 rows (20.0%)" in line for line in lines)
    assert "shout" in lines[1]
    assert "name every action of the log in `actions`" in lines[1]
    assert not json.loads((tmp_path / "decisions.json").read_text())["success"]


def test_a_warning_does_not_stop_the_run(spark: SparkSession, tmp_path: Path) -> None:
    unknown = raw(spark, *[("u", str(n), n, "send", None, None) for n in range(5)])
    report = quality.check(unknown, "decisions", quality.decisions_suite(CONTRACT), tmp_path)
    failed = [e for e in report["expectations"] if not e["success"]]
    assert [(e["column"], e["severity"]) for e in failed] == [("propensity", "warning")]
