"""Both DAGs, end to end by `airflow dags test`, with the real command on a small simulated lake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset
import pytest
from deltalake import DeltaTable

TACTFUL = Path(sys.executable).with_name("tactful")
EXIT_CODE = {"PROMOTE": 0, "REFUSE": 4, "INCONCLUSIVE": 5}
CONFIG = """
name = "small"
seed = 3
run_dir = "run"
rewards = ["sends", "clicks", "visits", "weekly_active_days", "disables"]

[simulate]
users = 300
days = 14
truth_users = 200

[data.decisions]
path = "run/lake/decisions"
[data.events]
path = "run/lake/events"
[data.users]
path = "run/lake/users"
[data.candidates]
path = "run/lake/candidates"

[features]
state = ["sends_24h", "visits_7d", "hours_since_visit", "badge", "hour_sin", "hour_cos"]
context = ["relevance"]

[train]
steps = 60
batch_size = 64
hidden = [16]
behaviour_steps = 60
value_steps = 60
[train.weights]
clicks = 1.0
sends = -0.05
[train.learners]
ddqn_cql = 1.0

[evaluate]
resamples = 100
fqe_steps = 60

[gate]
shares = [0.2]
[gate.metrics.weekly_active_days]
direction = "up"
margin = 0.01
[gate.metrics.sends]
direction = "down"
margin = 0.0
improve = true

[spark]
master = "local[1]"
shuffle_partitions = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a configuration, a lake, and its transitions."""
    home = tmp_path_factory.mktemp("home")
    (home / "small.toml").write_text(CONFIG)
    for step in ("simulate", "etl"):
        done = subprocess.run(
            [TACTFUL, step, "small.toml"],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return home


def dags_test(airflow, home: Path, dag: str) -> str:
    """Run one DAG to its end; its log."""
    env = {"TACTFUL": str(TACTFUL), "TACTFUL_HOME": str(home), "TACTFUL_CONFIG": "small.toml", "OMP_NUM_THREADS": "1"}
    done = airflow.run("airflow", "dags", "test", dag, timeout=400, **env)
    log = done.stdout + done.stderr
    # Of a failure only what the command said matters, and how its task ended.
    assert done.returncode == 0, "\n".join(x for x in log.splitlines() if "SubprocessHook" in x or "exit code" in x)
    return log


def step(home: Path, name: str) -> dict:
    return json.loads((home / "run" / "steps" / f"{name}.json").read_text())


@pytest.mark.timeout(1200)
def test_a_week_and_then_a_night(airflow, home):
    """The weekly run leaves a champion, whatever the verdict; the daily one decides with it for every candidate."""
    before = step(home, "etl")
    log = dags_test(airflow, home, "policy_weekly")
    assert log.count("Running command") == 4
    verdict = step(home, "promote")["verdict"]["verdict"]
    assert log.count("Command exited with return code 0") == (4 if verdict == "PROMOTE" else 3)
    assert f"Command exited with return code {EXIT_CODE[verdict]}" in log
    assert json.loads((home / "run" / "summary.json").read_text())["verdict"]["verdict"] == verdict
    assert (home / "run" / "report.html").read_text().rstrip().endswith("</html>")

    log = dags_test(airflow, home, "transitions_daily")
    assert log.count("Command exited with return code 0") == log.count("Running command") == 2
    assert step(home, "etl")["fingerprint"] == before["fingerprint"]
    candidates = pyarrow.dataset.dataset(home / "run" / "lake" / "candidates").count_rows()
    assert candidates > 0
    assert DeltaTable(home / "run" / "scores").to_pyarrow_dataset().count_rows() == candidates
