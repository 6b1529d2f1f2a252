"""What a DAG does with each exit code of `tactful`: a stand-in plays them, a real Airflow runs the DAGs."""

from dataclasses import dataclass, field
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


WEEK = "train evaluate promote report"
CASES = {
    "all well, daily": Case("transitions_daily", {}, "etl score", "success success", "success"),
    "all well, weekly": Case("policy_weekly", {}, WEEK, "success success success success", "success"),
    "unexpected, then well": Case(
        "transitions_daily", {"etl": [1, 1]}, "etl etl etl score", "success success", "success"
    ),
    "transient, then well": Case(
        "transitions_daily", {"score": [75, 75, 75]}, "etl score score score score", "success success", "success"
    ),
    "transient once too often": Case(
        "transitions_daily", {"etl": [75] * 9}, "etl etl etl etl", "failed upstream_failed", "failed"
    ),
    "killed, then well": Case("transitions_daily", {"etl": ["killed"]}, "etl etl score", "success success", "success"),
    "input": Case("transitions_daily", {"etl": [2]}, "etl", "failed upstream_failed", "failed"),
    "quality": Case("transitions_daily", {"etl": [3]}, "etl", "failed upstream_failed", "failed"),
    "a code it does not know": Case("transitions_daily", {"etl": [9]}, "etl", "failed upstream_failed", "failed"),
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
        "transitions_daily", {"etl": ["slow"]}, "etl etl score", "success success", "success", {"timeout": 3}
    ),
    "no such command": Case(
        "transitions_daily",
        {},
        "",
        "failed upstream_failed",
        "failed",
        {"env": {"TACTFUL": "no-such-command"}},
    ),
    "no such folder": Case(
        "transitions_daily",
        {},
        "",
        "failed upstream_failed",
        "failed",
        {"env": {"TACTFUL_HOME": "no/such/folder"}},
    ),
    "a run with its own": Case(
        "transitions_daily",
        {},
        "etl score",
        "success success",
        "success",
        {"env": {"TACTFUL_HOME": "/"}, "conf": {"config": "other.toml", "as_of": "2026-01-20T04:00:00"}},
    ),
}


@dataclass(frozen=True)
class Played:
    state: str
    tasks: dict[str, list]
    folder: Path
    log: str

    @property
    def calls(self) -> list[str]:
        return calls.read_text().splitlines() if (calls := self.folder / "calls").exists() else []


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
        env = {"TACTFUL": f"sh '{stand_in}'"} | case.more.get("env", {})
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
    steps = WEEK.split() if case.dag == "policy_weekly" else ["etl", "score"]
    assert [found.tasks[step][0] for step in steps] == case.states.split()
    assert found.state == case.run


def test_a_command_out_of_time_is_ended_with_all_it_started(played):
    child = int((played["out of time"].folder / "child").read_text())
    state = Path(f"/proc/{child}/status")
    assert not state.exists() or "zombie" in state.read_text()


def test_both_steps_of_a_night_believe_the_log_up_to_one_moment(played):
    etl, score = (call.split() for call in played["all well, daily"].calls)
    assert etl[1:] == score[1:]
    assert etl[1] == "tactful.toml"
    assert etl[2] == "--set"
    assert etl[3].startswith('etl.as_of="20')
    assert played["all well, weekly"].calls == [f"{step} tactful.toml" for step in WEEK.split()]


def test_a_run_may_name_its_configuration_its_moment_and_its_folder(played):
    found = played["a run with its own"]
    set_moment = '--set etl.as_of="2026-01-20T04:00:00"'
    assert found.calls == [f"{step} other.toml {set_moment}" for step in ("etl", "score")]
    assert (found.folder / "folders").read_text().split() == [str(Path("/").resolve())] * 2


def test_a_command_that_cannot_be_started_says_what_to_set(played):
    log = played["no such command"].log
    assert "no-such-command etl tactful.toml" in log
    assert "No such file or directory" in log
    assert "with TACTFUL and the folder with TACTFUL_HOME" in log
