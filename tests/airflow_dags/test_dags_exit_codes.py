"""What a DAG does with each exit code of `tactful`: a stand-in plays them, a real Airflow runs the DAGs."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

STAND_IN = """#!/bin/sh
# Notes how it was called, then plays the next exit code listed for its step; 0 where none is left.
here="$(dirname "$0")"
echo "$@" >> "$here/calls"
pwd >> "$here/folders"
code=$(head -n 1 "$here/$1" 2>/dev/null)
[ -f "$here/$1" ] && sed -i 1d "$here/$1"
[ "$code" = killed ] && kill -9 $$
[ "$code" = slow ] && { sleep 300 & echo $! > "$here/child"; wait; }
exit "${code:-0}"
"""


@dataclass(frozen=True)
class Case:
    """Exit codes to play, by step, and what must become of the run."""

    dag: str
    codes: dict[str, list]
    calls: str
    """Steps in the order in which the command was started."""
    states: str
    """State of each task of the DAG, in its order."""
    run: str
    more: dict = field(default_factory=dict)


ORDER = {
    "transitions_daily": "lake_ready etl announce",
    "policy_weekly": "train evaluate promote report",
    "scoring_nightly": "score monitor",
}
WEEK = ORDER["policy_weekly"]
DAY, NIGHT = "ready etl", "score monitor"
CASES = {
    "all well, daily": Case("transitions_daily", {}, DAY, "success success success", "success"),
    "all well, weekly": Case("policy_weekly", {}, WEEK, "success success success success", "success"),
    "all well, nightly": Case("scoring_nightly", {}, NIGHT, "success success", "success"),
    "unexpected, then well": Case(
        "transitions_daily", {"etl": [1, 1]}, "ready etl etl etl", "success success success", "success"
    ),
    "transient, then well": Case(
        "scoring_nightly", {"score": [75] * 3}, "score score score score monitor", "success success", "success"
    ),
    "transient once too often": Case(
        "transitions_daily", {"etl": [75] * 9}, "ready etl etl etl etl", "success failed upstream_failed", "failed"
    ),
    "killed, then well": Case(
        "transitions_daily", {"etl": ["killed"]}, "ready etl etl", "success success success", "success"
    ),
    "input": Case("transitions_daily", {"etl": [2]}, DAY, "success failed upstream_failed", "failed"),
    "quality": Case("transitions_daily", {"etl": [3]}, DAY, "success failed upstream_failed", "failed"),
    "a code it does not know": Case("transitions_daily", {"etl": [9]}, DAY, "success failed upstream_failed", "failed"),
    "not there yet, more often than is tried": Case(
        "transitions_daily", {"ready": [75] * 6}, f"{'ready ' * 6}{DAY}", "success success success", "success"
    ),
    "it never comes": Case(
        "transitions_daily",
        {"ready": [75] * 9},
        "ready",
        "failed upstream_failed upstream_failed",
        "failed",
        {"patience": 0},
    ),
    "a configuration that no day can change": Case(
        "transitions_daily", {"ready": [2]}, "ready", "failed upstream_failed upstream_failed", "failed"
    ),
    "looking breaks, then well": Case(
        "transitions_daily", {"ready": [1, "killed"]}, f"ready ready {DAY}", "success success success", "success"
    ),
    "what was decided does not fit": Case("scoring_nightly", {"monitor": [3]}, NIGHT, "success failed", "failed"),
    "nobody to decide": Case("scoring_nightly", {"score": [2]}, "score", "failed upstream_failed", "failed"),
    "4 is no verdict elsewhere": Case(
        "policy_weekly", {"train": [4]}, "train", "failed upstream_failed upstream_failed upstream_failed", "failed"
    ),
    "5 is no verdict elsewhere": Case(
        "policy_weekly", {"evaluate": [5]}, "train evaluate", "success failed upstream_failed upstream_failed", "failed"
    ),
    "refused": Case("policy_weekly", {"promote": [4]}, WEEK, "success success skipped success", "success"),
    "inconclusive": Case("policy_weekly", {"promote": [5]}, WEEK, "success success skipped success", "success"),
    "the gate broke": Case(
        "policy_weekly", {"promote": [2]}, "train evaluate promote", "success success failed upstream_failed", "failed"
    ),
    "out of time": Case(
        "transitions_daily", {"etl": ["slow"]}, "ready etl etl", "success success success", "success", {"timeout": 5}
    ),
    "no such command": Case(
        "transitions_daily",
        {},
        "",
        "failed upstream_failed upstream_failed",
        "failed",
        {"env": {"TACTFUL": "no-such-command"}},
    ),
    "no such folder": Case(
        "transitions_daily",
        {},
        "",
        "failed upstream_failed upstream_failed",
        "failed",
        {"env": {"TACTFUL_HOME": "no/such/folder"}},
    ),
    "a day with its own": Case(
        "transitions_daily",
        {},
        DAY,
        "success success success",
        "success",
        {
            "env": {"TACTFUL_HOME": "/"},
            "conf": {"config": "other.toml", "day": "2026-01-20", "marker": "_SUCCESS"},
        },
    ),
    "a night with its own": Case(
        "scoring_nightly",
        {},
        NIGHT,
        "success success",
        "success",
        {"conf": {"config": "other.toml", "as_of": "2026-01-20T04:00:00"}},
    ),
    "an alarm that does not work": Case(
        "transitions_daily",
        {"etl": [2]},
        DAY,
        "success failed upstream_failed",
        "failed",
        {"env": {"TACTFUL_ALERT": "no-such-alarm --token sesame"}},
    ),
}


@dataclass(frozen=True)
class Played:
    state: str
    tasks: dict[str, list]
    folder: Path
    log: str

    def lines(self, name: str) -> list[str]:
        return found.read_text().splitlines() if (found := self.folder / name).exists() else []

    @property
    def calls(self) -> list[str]:
        return self.lines("calls")


@pytest.fixture(scope="module")
def played(airflow, tmp_path_factory) -> dict[str, Played]:
    """Every case, one after the other in one Airflow."""
    folders = {name: tmp_path_factory.mktemp("stand_in") for name in CASES}
    scenarios = []
    for name, case in CASES.items():
        stand_in = folders[name] / "tactful"
        stand_in.write_text(STAND_IN)
        for step, codes in case.codes.items():
            (folders[name] / step).write_text("".join(f"{code}\n" for code in codes))
        alarm = f"tee -a '{folders[name] / 'alarms'}'"
        env = {"TACTFUL": f"sh '{stand_in}'", "TACTFUL_ALERT": alarm} | case.more.get("env", {})
        scenarios.append({**case.more, "dag": case.dag, "env": env})
    answers, log = airflow.drive(*scenarios)
    return {
        name: Played(answer["state"], answer["tasks"], folders[name], log)
        for name, answer in zip(CASES, answers, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_exit_code(played, name):
    case, found = CASES[name], played[name]
    assert [call.split()[0] for call in found.calls] == case.calls.split()
    assert [found.tasks[step][0] for step in ORDER[case.dag].split()] == case.states.split()
    assert found.state == case.run


@pytest.mark.parametrize("name", set(CASES) - {"an alarm that does not work"})
def test_an_alarm_for_every_task_that_failed_and_for_no_other(played, name):
    case, found = CASES[name], played[name]
    states = zip(ORDER[case.dag].split(), case.states.split(), strict=True)
    alarms = [json.loads(line) for line in found.lines("alarms")]
    assert [alarm["task"] for alarm in alarms] == [step for step, state in states if state == "failed"]
    for alarm in alarms:
        assert (alarm["alert"], alarm["dag"]) == ("task failed", case.dag)
        assert alarm["run"].startswith("manual__")
        assert json.dumps(alarm) in found.log


def test_an_alarm_says_why(played):
    (alarm,) = map(json.loads, played["quality"].lines("alarms"))
    assert "`tactful etl` ended with exit code 3 (the data broke a critical expectation)" in alarm["reason"]
    (alarm,) = map(json.loads, played["transient once too often"].lines("alarms"))
    assert alarm["tries"] == 4
    (alarm,) = map(json.loads, played["it never comes"].lines("alarms"))
    assert alarm["reason"].startswith("AirflowSensorTimeout: ")


def test_the_alarm_command_stays_out_of_the_log(played):
    log = played["an alarm that does not work"].log
    assert "the command in TACTFUL_ALERT did not run (FileNotFoundError)" in log
    assert "sesame" not in log
    assert "the command in TACTFUL_ALERT ended with 0" in log


def test_a_command_out_of_time_is_ended_with_all_it_started(played):
    child = int((played["out of time"].folder / "child").read_text())
    state = Path(f"/proc/{child}/status")
    assert not state.exists() or "zombie" in state.read_text()


def test_a_day_is_waited_for_and_taken_in_up_to_the_end_of_the_interval(played):
    ready, etl = (call.split(" ") for call in played["all well, daily"].calls)
    yesterday = [str(datetime.now(UTC).date() - timedelta(days=ago)) for ago in (1, 2)]
    assert ready[:3] == ["ready", "tactful.toml", "--to"]
    assert ready[3] in yesterday
    assert ready[4:] == ["--marker", ""]
    assert etl == ["etl", "tactful.toml", "--to", ready[3]]
    assert played["all well, weekly"].calls == [f"{step} tactful.toml" for step in WEEK.split()]


def test_a_night_believes_the_log_up_to_the_time_of_its_run(played):
    score, monitor = played["all well, nightly"].calls
    assert score.startswith('score tactful.toml --set etl.as_of="20')
    assert monitor == "monitor tactful.toml"


def test_a_run_may_name_its_configuration_its_day_and_its_folder(played):
    found = played["a day with its own"]
    assert found.calls == ["ready other.toml --to 2026-01-20 --marker _SUCCESS", "etl other.toml --to 2026-01-20"]
    assert found.lines("folders") == [str(Path("/").resolve())] * 2
    assert played["a night with its own"].calls == [
        'score other.toml --set etl.as_of="2026-01-20T04:00:00"',
        "monitor other.toml",
    ]


def test_a_command_that_cannot_be_started_says_what_to_set(played):
    log = played["no such command"].log
    assert "no-such-command ready tactful.toml" in log
    assert "No such file or directory" in log
    assert "with TACTFUL and the folder with TACTFUL_HOME" in log
