"""Four nights of a small lake, by the command: one goes well, two do not, and one the log has not reached."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from models.errors import InputError, QualityError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.jobs.steps import registry_of
from pipelines.monitor import failures, monitor_night, nights_to_monitor
from pipelines.monitor.nights import Nights
from tests.pipelines import lake

WELL, BADLY, SHIFTED, UNLOGGED = 11, 12, 13, 14
LOST, DOUBLED, FLIPPED, WRONG, LATE, COPIED = 24, 6, 12, 8, 5, 3
Reports = dict[int, dict[str, Any]]


def tampered(rows: pd.DataFrame) -> pd.DataFrame:
    """Sends lost and doubled, actions flipped, propensities wrong, decisions late, lines copied: so many of each."""
    rng = np.random.default_rng(12)
    sends = rng.permutation(np.flatnonzero(rows["action"] == "send"))
    lost, doubled = sends[:LOST], sends[LOST : LOST + DOUBLED]
    rest = rng.permutation(np.setdiff1d(np.arange(len(rows)), [*lost, *doubled]))
    flipped, wrong, late, copied = np.split(rest, np.cumsum([FLIPPED, WRONG, LATE, COPIED]))[:4]
    rows = rows.copy()
    rows.loc[flipped, "action"] = rows.loc[flipped, "action"].map({"hold": "send", "send": "hold"})
    rows.loc[wrong, "propensity"] = 0.123
    rows.loc[late, "decided_at"] = f"{lake.day_of(BADLY + 2)} 20:00:00"
    again = rows.loc[doubled].assign(
        decision_id=lambda found: found["decision_id"] + "-again", decided_at=f"{lake.day_of(BADLY)} 20:00:00"
    )
    return pd.concat([rows.drop(index=lost), again, rows.loc[copied]], ignore_index=True)


@pytest.fixture(scope="module")
def config(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Config:
    made = lake.build(tmp_path_factory.mktemp("monitor"))
    lake.follow(made, lake.score(spark, made, WELL), WELL)
    lake.follow(made, lake.score(spark, made, BADLY), BADLY, tampered)
    lake.follow(made, lake.score(spark, made, SHIFTED, shift=3.0), SHIFTED)
    lake.later(made, UNLOGGED)
    jobs.etl(made)
    lake.score(spark, made, UNLOGGED)
    return made


@pytest.fixture(scope="module")
def ended(config: Config) -> str:
    """What the command says as it ends."""
    with pytest.raises(QualityError) as error:
        jobs.monitor(config)
    assert error.value.exit_code == 3
    return str(error.value)


@pytest.fixture(scope="module")
def reports(config: Config, ended: str) -> Reports:
    folder = config.run_dir / "monitor"
    return {day: json.loads((folder / lake.day_of(day) / "monitor.json").read_text())
            for day in (WELL, BADLY, SHIFTED, UNLOGGED)}  # fmt: skip


def failed(report: dict[str, Any], severity: str) -> set[str]:
    return {line.split()[0] for line in failures(report["expectations"], severity)}


# The lake alone.


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("2026-05-05", None, None), r"2026-05-05 was not scored \(newest nights: 2026-01-11,"),
        (("11.1.2026", None, None), "the first night is '11.1.2026'; give a date"),
        (("2026-01-11", "2026-01-11", None), "--night with --from or --to"),
        ((None, "2026-01-12", "2026-01-11"), "lies after the last"),
        ((None, None, "2026-01-11"), "without --from"),
    ],
)
def test_a_night_that_is_not_there_is_named(config: Config, asked: tuple[str | None, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        jobs.monitor(config, *asked)
    assert error.value.exit_code == 2


# What monitoring it says.


def test_a_night_that_goes_well_raises_no_alarm(reports: Reports) -> None:
    found = reports[WELL]
    assert failed(found, "warning") == failed(found, "critical") == set()
    assert found["settled"]
    assert found["rows"]["fates"]["matched"] == found["rows"]["scored"] == lake.USERS
    assert found["agreement"]["propensity_same"] == lake.USERS
    # Everything was judged.
    judged = {one["column"] for one in found["expectations"]["expectations"]}
    assert {"unlogged_share", "rate_answered:send", "psi:wealth", "psi:value_send_clicks"} <= judged
    assert "earned_minus_predicted:clicks" in judged


def test_each_planted_fault_is_counted_to_the_row_and_named(reports: Reports) -> None:
    found = reports[BADLY]
    fates, logged, agree = found["rows"]["fates"], found["rows"]["logged_fates"], found["agreement"]
    assert fates["never_logged"] == LOST
    assert found["rows"]["never_logged_by_action"] == {"send": LOST}
    assert fates["late"] == LATE
    assert fates["matched"] == lake.USERS - LOST - LATE
    assert logged["decided_again"] == DOUBLED
    assert logged["duplicate"] == COPIED
    assert agree["otherwise"] == FLIPPED
    assert agree["propensity_differs"] == WRONG
    # One decision of a user whom nobody scores lies in the night's time, a day later.
    assert logged["never_scored"] == 0
    alarms = {"otherwise_share", "decided_again_share", "propensity_share"}
    assert alarms <= failed(found, "critical")
    assert "unlogged_share" in failed(found, "warning")
    assert "rate_scored:send" not in failed(found, "warning")


def test_nothing_is_lost_in_the_counts(reports: Reports, config: Config) -> None:
    raw = pd.read_csv(config.data.decisions.path)
    for day in (WELL, BADLY, SHIFTED):
        rows = reports[day]["rows"]
        assert sum(rows["fates"].values()) == rows["scored"] == sum(rows["by_action"].values())
        mine = raw[raw["decision_id"].str.startswith(f"n{day}-")]
        assert sum(rows["logged_fates"][fate] for fate in ("answers", "duplicate", "decided_again")) == len(mine)


def test_a_shift_of_a_feature_is_found_and_no_other(reports: Reports, ended: str) -> None:
    found = reports[SHIFTED]
    assert "psi:wealth" in failed(found, "critical")
    assert "psi:relevance" not in failed(found, "warning")
    assert found["drift"]["features"]["wealth"]["ks"] > 0.7
    assert f"{lake.day_of(SHIFTED)}: psi:wealth" in ended
    # The model saw it on the night itself, before anything was logged.
    assert max(each["psi"] for each in found["drift"]["values"].values()) > 0.25


def test_a_night_that_the_log_has_not_reached_is_not_accused(reports: Reports) -> None:
    found = reports[UNLOGGED]
    assert not found["settled"]
    assert found["rows"]["fates"]["open"] == lake.USERS
    assert failed(found, "critical") == failed(found, "warning") == set()
    assert found["drift"]["values"] is not None
    assert "etl" in found["drift"]["left_out"]["features"]


def test_earnings_are_those_of_the_matched_rows(reports: Reports, config: Config) -> None:
    """Per decision: sends and clicks of the first night, from the log itself."""
    found = reports[WELL]["earned"]
    raw = pd.read_csv(config.data.decisions.path)
    mine = raw[raw["decision_id"].str.startswith(f"n{WELL}-")]
    events = pd.read_csv(config.data.events.path)
    clicks = Counter(events["decision_id"])
    assert found["decisions"] == found["users"] == lake.USERS
    sends = (mine["action"] == "send").mean()
    assert found["metrics"]["sends"]["realised"]["estimate"] == pytest.approx(sends)
    rate = sum(clicks[each] for each in mine["decision_id"]) / len(mine)
    assert found["metrics"]["clicks"]["realised"]["estimate"] == pytest.approx(rate)
    assert found["metrics"]["ctr"]["realised"]["estimate"] == pytest.approx(rate / sends)
    error = np.sqrt(sends * (1 - sends) / (lake.USERS - 1))
    interval = found["metrics"]["sends"]["realised"]
    assert interval["high"] - interval["estimate"] == pytest.approx(1.959964 * error, rel=1e-6)
    assert found["policy"] == "ddqn_cql"
    assert found["metrics"]["clicks"]["difference"]["low"] < 0 < found["metrics"]["clicks"]["difference"]["high"]
    assert reports[SHIFTED]["earned"]["nights"] == [lake.day_of(day) for day in (WELL, BADLY, SHIFTED)]


def test_no_user_is_named_and_nothing_is_loaded(config: Config, reports: Reports) -> None:
    files = [path for path in (config.run_dir / "monitor").rglob("*") if path.is_file()]
    assert len(files) == 3 * len(reports)
    for path in [*files, config.run_dir / "steps" / "monitor.json"]:
        text = path.read_text()
        assert "user-0" not in text
        assert "c11-" not in text
    for day in reports:
        page = (config.run_dir / "monitor" / lake.day_of(day) / "monitor.html").read_text()
        assert "<script" not in page
        assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_settled_nights_are_left_alone(config: Config, reports: Reports) -> None:
    nights = Nights.of(config)
    assert nights_to_monitor(config, nights, None, None, None) == [lake.day_of(UNLOGGED)]
    assert nights_to_monitor(config, nights, lake.day_of(WELL), None, None) == [lake.day_of(WELL)]
    first, last = lake.day_of(BADLY), lake.day_of(SHIFTED)
    assert nights_to_monitor(config, nights, None, first, last) == [first, last]


def test_without_scores_there_is_nothing_to_monitor(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was scored yet; run `tactful score CONFIG`"):
        jobs.monitor(validate(lake.tree(tmp_path), "lake.toml"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"monitor": {"match": "candidat"}}, r"monitor\.match: .*no column 'candidat'.*holds the candidate_id"),
        ({"monitor": {"match": "x`; drop table y --"}}, r"monitor\.match: .*no column"),
        ({"data": {"decisions": {"path": "gone.csv"}}}, r"data\.decisions\.path: gone\.csv does not exist"),
    ],
)
def test_a_log_that_cannot_be_read_as_mapped_says_so(
    spark: SparkSession, config: Config, changes: dict[str, Any], words: str
) -> None:
    tree = lake.tree(config.run_dir.parent)
    for name, change in changes.items():
        tree[name] = {**tree[name], **change}
    other = validate(tree, "lake.toml")
    with pytest.raises(InputError, match=words):
        monitor_night(spark, other, Nights.of(other), lake.day_of(WELL), registry_of(other))


def test_without_transitions_the_rest_is_still_judged(spark: SparkSession, config: Config) -> None:
    moved = config.run_dir / "moved"
    shutil.move(config.transitions_path, moved)
    try:
        found = monitor_night(spark, config, Nights.of(config), lake.day_of(WELL), registry_of(config))
    finally:
        shutil.move(moved, config.transitions_path)
    assert found["rows"]["fates"]["matched"] == lake.USERS
    assert "no transitions table; run the ETL first" in found["drift"]["left_out"]["values"]
    assert "no transition" in found["earned"]["left_out"]
    assert not found["earned"]["judged"]
