"""A real scheduler, DAG processor, triggerer and API server: a backfill, runs begun by an asset, a missed deadline."""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.airflow_dags.components import Api, parts
from tests.airflow_dags.conftest import DAYS, ENVIRONMENT, REAL, Airflow, Home

pytestmark = pytest.mark.timeout(3600)
STAND_IN = f"""#!/bin/sh
# Notes how it was called; small.toml is for the real command, what others do is played.
echo "$@" >> "$(dirname "$0")/calls"
case "$1 $2" in
  *" small.toml") exec {REAL} "$@" ;;
  "etl failing.toml") exit 3 ;;
  "train slow.toml") sleep 20 ;;
esac
"""


@dataclass(frozen=True)
class Played:
    """What there was to see when all was over."""

    home: Home
    runs: dict[str, list[dict]]
    """Of each DAG, with the states of their tasks and the runs that changed the assets which began them."""
    failed: str
    slow: str
    """Run ids: of the day whose data did not pass, of the week that took too long."""
    well: set[str]
    """Parts that said they were healthy."""

    def lines(self, name: str) -> list[str]:
        return (self.home.path / name).read_text().splitlines()

    @property
    def alarms(self) -> list[dict]:
        return [json.loads(line) for line in self.lines("alarms")]

    def run(self, dag: str, name: str) -> dict:
        return next(run for run in self.runs[dag] if run["dag_run_id"] == name)


def backfills(runs: list[dict]) -> list[dict]:
    return [run for run in runs if run["run_type"] == "backfill"]


def over(runs: list[dict]) -> bool:
    return all(run["state"] in ("success", "failed") for run in runs)


def began(api: Api, run: dict) -> list[str]:
    """Ids of the runs that changed the assets which began a run."""
    found = api(f"/api/v2/dags/{run['dag_id']}/dagRuns/{quote(run['dag_run_id'], safe='')}/upstreamAssetEvents")
    return [event["source_run_id"] for event in found["asset_events"]]


@pytest.fixture(scope="module")
def played(airflow: Airflow, begun: Home, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """One Airflow from its first part to its last run; `airflow` is asked for because it skips where there is none."""
    home = Home(Path(shutil.copytree(begun.path, tmp_path_factory.mktemp("scheduled") / "home")))
    (home.path / "tactful").write_text(STAND_IN)
    own = Airflow(tmp_path_factory.mktemp("airflow_parts"))
    env = own.environment | {
        "TACTFUL": f"sh '{home.path / 'tactful'}'",
        "TACTFUL_HOME": str(home.path),
        "TACTFUL_CONFIG": "played.toml",
        "TACTFUL_ALERT": f"tee -a '{home.path / 'alarms'}'",
        "TACTFUL_DEADLINE_POLICY_WEEKLY": "0.05",
        "TACTFUL_DEADLINE_TRANSITIONS_DAILY": "0.05",
    }
    with parts(ENVIRONMENT / "bin" / "airflow", env, own.home) as found:
        api = found.api
        # SQLite has one writer at a time, and commands do not wait for it: they come before the parts.
        found.command("db", "migrate")
        found.command("dags", "reserialize")
        found.command("dags", "unpause", "--treat-dag-id-as-regex", "--yes", ".*")
        # As docs/airflow.md has it, over the days that the table lacks.
        words = ["--dag-id", "transitions_daily", "--from-date", DAYS[1], "--to-date", DAYS[-1]]
        conf = json.dumps({"config": "small.toml"})
        found.command("backfill", "create", *words, "--max-active-runs", "1", "--dag-run-conf", conf)
        # Tasks that find no API server fail: it comes first.
        found.start("api-server")
        found.start("dag-processor", "scheduler", "triggerer")
        api.until("a day taken in", lambda: [run for run in api.runs("transitions_daily") if run["state"] == "success"])
        slow = api.until("a week begun", lambda: api.trigger("policy_weekly", config="slow.toml"))["dag_run_id"]
        api.until("three days made by the backfill", lambda: over(backfills(api.runs("transitions_daily"))))
        failing = {"config": "failing.toml", "day": DAYS[-1]}
        failed = api.until("a day begun", lambda: api.trigger("transitions_daily", **failing))["dag_run_id"]

        def all_over() -> dict[str, list[dict]] | None:
            runs = {dag: api.runs(dag) for dag in ("transitions_daily", "policy_weekly", "scoring_nightly")}
            if not all(over(each) for each in runs.values()):
                return None
            sources = {source for run in runs["scoring_nightly"] for source in began(api, run)}
            days = [run for run in runs["transitions_daily"] if run["run_type"] != "backfill"]
            wanted = {run["dag_run_id"] for run in days if run["state"] == "success"}
            return runs if wanted <= sources else None

        runs = api.until("every run over, every day taken in followed by a night", all_over)
        told = api("/api/v2/monitor/health")
        return Played(
            home=home,
            runs={
                dag: [{**run, "tasks": api.states(run), "began": began(api, run)} for run in each]
                for dag, each in runs.items()
            },
            failed=failed,
            slow=slow,
            well={part for part, said in told.items() if said["status"] == "healthy"},
        )


def test_all_parts_ran(played):
    assert {"scheduler", "dag_processor", "triggerer", "metadatabase"} <= played.well


def test_a_backfill_of_three_days_equals_three_daily_runs(played, daily):
    made = backfills(played.runs["transitions_daily"])
    assert [(run["state"], run["logical_date"][:10]) for run in made] == [("success", day) for day in DAYS[1:]]
    calls = [call for call in played.lines("calls") if " small.toml" in call]
    assert [call for call in calls if call.startswith("etl")] == [f"etl small.toml --to {day}" for day in DAYS[1:]]
    assert played.home.tables() == daily.home.tables()


def test_a_night_follows_a_day_that_was_taken_in(played):
    scheduled = [run for run in played.runs["transitions_daily"] if run["run_type"] == "scheduled"]
    assert [run["state"] for run in scheduled] == ["success"]
    (night,) = [run for run in played.runs["scoring_nightly"] if scheduled[0]["dag_run_id"] in run["began"]]
    assert night["run_type"] == "asset_triggered"
    assert night["tasks"] == {"score": "success", "monitor": "success"}


def test_days_made_by_a_backfill_are_no_reason_to_decide_again(played):
    for run in backfills(played.runs["transitions_daily"]):
        assert run["tasks"] == {"lake_ready": "success", "etl": "success", "announce": "skipped"}
    assert len(played.runs["scoring_nightly"]) == 1
    assert sum(call.startswith("score") for call in played.lines("calls")) == 1


def test_data_that_do_not_pass_stop_what_comes_after(played):
    day = played.run("transitions_daily", played.failed)
    assert day["tasks"] == {"lake_ready": "success", "etl": "failed", "announce": "upstream_failed"}
    assert all(played.failed not in night["began"] for night in played.runs["scoring_nightly"])
    assert not any("failing.toml" in call for call in played.lines("calls") if call.startswith(("score", "monitor")))
    (alarm,) = [alarm for alarm in played.alarms if alarm["alert"] == "task failed"]
    assert (alarm["dag"], alarm["task"], alarm["run"]) == ("transitions_daily", "etl", played.failed)
    assert "exit code 3 (the data broke a critical expectation)" in alarm["reason"]


def test_a_missed_deadline_is_told_while_the_run_goes_on(played):
    late = [alarm for alarm in played.alarms if alarm["alert"] == "deadline missed"]
    (alarm,) = [alarm for alarm in late if alarm["run"] == played.slow]
    assert alarm["dag"] == "policy_weekly"
    took = datetime.fromisoformat(alarm["deadline"]) - datetime.fromisoformat(alarm["queued"])
    assert took == timedelta(seconds=3)
    assert played.run("policy_weekly", played.slow)["state"] == "success"


def test_a_backfill_has_no_deadline(played):
    assert not any(alarm["run"].startswith("backfill__") for alarm in played.alarms)
