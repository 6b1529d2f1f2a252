"""From the raw log to scores by `airflow dags test`, with the real command on a small simulated lake."""

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient

from tests.airflow_dags.conftest import DAYS, Home

EXIT_CODE = {"PROMOTE": 0, "REFUSE": 4, "INCONCLUSIVE": 5}
pytestmark = pytest.mark.timeout(3600)


def aliases(home: Home) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{home.path / 'run' / 'mlflow.db'}")
    return {alias: str(version) for alias, version in client.get_registered_model("tactful").aliases.items()}


def ended(log: str) -> list[int]:
    """Exit codes of the commands, in order."""
    return [int(line.split("return code ")[1].split()[0]) for line in log.splitlines() if "return code" in line]


def test_each_day_is_taken_in_once_it_is_there(daily):
    assert daily.logs[0].count("Running command") == 2
    assert [ended(log) for log in daily.logs] == [[0, 0]] * 3
    for day, log in zip(DAYS[1:], daily.logs, strict=True):
        assert f"ready: what arrived until {day} lies in the lake" in log
    assert daily.home.step("etl")["days"][1] == DAYS[-1]
    # Day by day is all at once.
    assert daily.home.step("etl")["fingerprint"] == daily.home.tables()["transitions"]


def test_a_run_repeated_leaves_the_same_tables(airflow, daily, tmp_path):
    again = Home(Path(shutil.copytree(daily.home.path, tmp_path / "again")))
    log = airflow.dags_test(again, "transitions_daily", DAYS[-2])
    assert ended(log) == [0, 0]
    assert (
        DeltaTable(again.path / "run" / "transitions").version()
        == 1 + DeltaTable(daily.home.path / "run" / "transitions").version()
    )
    assert again.tables() == daily.home.tables()


def test_data_that_do_not_pass_change_nothing(airflow, daily, tmp_path):
    """A day on which half of the decisions name no user: exit code 3, no try more, no commit."""
    bad = Home(Path(shutil.copytree(daily.home.path, tmp_path / "bad")))
    next_day = str(date.fromisoformat(DAYS[-1]) + timedelta(days=1))
    for dataset in ("decisions", "events"):
        new = bad.path / "lake" / dataset / f"ds={next_day}"
        shutil.copytree(new.with_name(f"ds={DAYS[-1]}"), new)
        if dataset == "decisions":
            for file in new.glob("*.parquet"):
                rows = pq.ParquetFile(file).read()
                user = pc.if_else(pa.array([row % 2 == 0 for row in range(len(rows))]), rows["user_id"], None)
                pq.write_table(rows.set_column(rows.column_names.index("user_id"), "user_id", user), file)
    log = airflow.dags_test(bad, "transitions_daily", next_day, fails=True)
    assert ended(log) == [0, 3]
    assert "the data broke a critical expectation" in log
    assert "Not tried again" in log
    # The quarantine is what tells of the rows; all else stays as it was.
    changed = {name for name, told in bad.tables().items() if told != daily.home.tables()[name]}
    assert changed <= {"quarantine/decisions", "quarantine/events"}


def test_weeks_and_then_a_night(airflow, daily, tmp_path):
    """The first week leaves the logging policy as champion, the next ones leave it there unless the gate promotes."""
    home = Home(Path(shutil.copytree(daily.home.path, tmp_path / "week")))
    found = []
    for _ in range(2):
        log = airflow.dags_test(home, "policy_weekly")
        verdict = home.step("promote")["verdict"]["verdict"]
        assert ended(log) == [0, 0, EXIT_CODE[verdict], 0]
        assert json.loads((home.path / "run" / "summary.json").read_text())["verdict"]["verdict"] == verdict
        assert (home.path / "run" / "report.html").read_text().rstrip().endswith("</html>")
        found.append((verdict, aliases(home)))
    (first, before), (second, after) = found
    # Ninety users are too few for the gate: it says no, both times.
    assert EXIT_CODE[first] in (4, 5)
    assert EXIT_CODE[second] in (4, 5)
    assert before["champion"] == after["champion"] == "1"
    assert after["challenger"] != before["challenger"]

    log = airflow.dags_test(home, "scoring_nightly")
    assert ended(log) == [0, 0]
    candidates = pyarrow.dataset.dataset(home.path / "lake" / "candidates").count_rows()
    assert candidates > 0
    assert DeltaTable(home.path / "run" / "scores").to_pyarrow_dataset().count_rows() == candidates
    (page,) = (home.path / "run" / "monitor").glob("*/monitor.html")
    assert json.loads(page.with_suffix(".json").read_text())
