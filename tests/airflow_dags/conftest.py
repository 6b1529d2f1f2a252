"""A real Airflow in its own environment, with a home and a database of its own for the tests."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipelines.etl.store import fingerprint

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "airflow_dags"
ENVIRONMENT = ROOT / ".venv-airflow"
TACTFUL = [sys.executable, "-m", "pipelines.cli"]
"""The command as it is in this working tree."""
_SETTINGS = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", f"PYSPARK_PYTHON={sys.executable}"]
REAL = shlex.join([*_SETTINGS, *TACTFUL])
SUBMITTED = shlex.join(
    [*_SETTINGS, str(Path(sys.executable).with_name("spark-submit")), str(ROOT / "pipelines" / "cli.py")]
)
"""The same by way of Spark's own launcher."""
DAYS = [f"2026-01-{day}" for day in (15, 16, 17, 18)]
"""Arrival days of the lake: with the first, all before it is taken in; the others come one by one."""
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
path = "lake/decisions"
[data.events]
path = "lake/events"
[data.users]
path = "lake/users"
[data.candidates]
path = "lake/candidates"

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

[etl]
buckets = 2
[quality]
docs = false

[spark]
master = "local[1]"
shuffle_partitions = 1
[spark.conf]
"spark.sql.codegen.wholeStage" = "false"
"spark.driver.extraJavaOptions" = "-XX:TieredStopAtLevel=1"
"""


@dataclass(frozen=True)
class Home:
    """A folder with a configuration, a lake, and what runs leave."""

    path: Path

    def tactful(self, *words: str) -> None:
        """Run the command here."""
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*TACTFUL, *words], cwd=self.path, capture_output=True, text=True, timeout=400, env=env)
        assert done.returncode == 0, done.stdout + done.stderr

    def step(self, name: str) -> dict:
        """What a step left."""
        return json.loads((self.path / "run" / "steps" / f"{name}.json").read_text())

    def tables(self) -> dict[str, object]:
        """What the tables of the ETL hold: a fingerprint of each, and the rows by day as the run counted them."""
        names = ("transitions", "consent", "quarantine/decisions", "quarantine/events")
        found = {name: DeltaTable(self.path / "run" / name) for name in names}
        return {name: fingerprint(table) for name, table in found.items()}


@dataclass(frozen=True)
class Airflow:
    """Starts Airflow's commands, and drive.py, outside the project's own environment."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the caller's shell says of Tactful or Airflow is left out; what these tests need is put in."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TACTFUL", "AIRFLOW", "PYTHONPATH"))}
        return inherited | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

    def run(
        self, *words: object, stdin: str = "", timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`airflow WORDS` or `python WORDS`, in Airflow's environment."""
        program, *rest = words
        try:
            return subprocess.run(
                [ENVIRONMENT / "bin" / str(program), *map(str, rest)],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                cwd=self.home,
                env=self.environment | env,
            )
        except subprocess.TimeoutExpired as late:
            # Most often a task that waits to be tried again: what it said is worth more than how long it took.
            said = b"".join(text for text in (late.stdout, late.stderr) if text).decode(errors="replace")
            raise AssertionError(f"{program} {rest} took more than {timeout} s:\n{said[-8000:]}") from None

    def drive(self, *scenarios: dict) -> tuple[list | dict, str]:
        """What became of each scenario (without one, the description of the DAGs: see drive.py), and Airflow's log."""
        # See tactful_alerts.py: a run by `dag.test` ends only without a deadline.
        env = {"TACTFUL_DEADLINES": "off"} if scenarios else {}
        program = Path(__file__).with_name("drive.py")
        done = self.run("python", program, DAGS, stdin=json.dumps(scenarios), timeout=500, **env)
        assert done.returncode == 0, done.stderr[-4000:]
        *said, answer = done.stdout.splitlines()
        return json.loads(answer), "\n".join([done.stderr, *said])

    def dags_test(self, home: Home, dag: str, day: str | None = None, fails: bool = False, tactful: str = REAL) -> str:
        """Run one DAG to its end with the real command, for one day where it is given; its log."""
        env = {"TACTFUL": tactful, "TACTFUL_HOME": str(home.path), "TACTFUL_CONFIG": "small.toml"}
        # The data interval of a run by hand is the one that ended at its date.
        ended = () if day is None else (str(date.fromisoformat(day) + timedelta(days=1)),)
        done = self.run("airflow", "dags", "test", dag, *ended, timeout=900, TACTFUL_DEADLINES="off", **env)
        log = done.stdout + done.stderr
        # Of a failure only what the command said matters, and how its task ended.
        said = "\n".join(x for x in log.splitlines() if "SubprocessHook" in x or "exit code" in x)
        assert (done.returncode != 0) is fails, said
        return log


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Airflow with an empty database."""
    if not (ENVIRONMENT / "bin" / "airflow").exists():
        pytest.skip("Airflow's environment is absent: `make airflow-env` creates it")
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    migrated = airflow.run("airflow", "db", "migrate")
    assert migrated.returncode == 0, migrated.stderr[-4000:]
    return airflow


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A lake of fourteen days and a bit, and a table that ends with the first of DAYS; to be copied, not changed."""
    home = Home(tmp_path_factory.mktemp("begun"))
    (home.path / "small.toml").write_text(CONFIG)
    home.tactful("simulate", "small.toml")
    home.tactful("etl", "small.toml", "--to", DAYS[0])
    return home


@dataclass(frozen=True)
class Daily:
    """What three daily runs left, and their logs."""

    home: Home
    logs: list[str]


@pytest.fixture(scope="session")
def daily(airflow: Airflow, begun: Home, tmp_path_factory: pytest.TempPathFactory) -> Daily:
    """One run of transitions_daily for each of the later DAYS, by `airflow dags test`; to be copied, not changed.

    The second goes through spark-submit: that it makes the same table is seen where the tables are compared.
    """
    home = Home(Path(shutil.copytree(begun.path, tmp_path_factory.mktemp("daily") / "home")))
    ways = zip(DAYS[1:], (REAL, SUBMITTED, REAL), strict=True)
    return Daily(home, [airflow.dags_test(home, "transitions_daily", day, tactful=way) for day, way in ways])
