"""A real Airflow in its own environment, with a home and a database of its own for the tests."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "airflow_dags"
ENVIRONMENT = ROOT / ".venv-airflow"


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

    def run(self, *words: object, stdin: str = "", timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
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


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Airflow with an empty database."""
    if not (ENVIRONMENT / "bin" / "airflow").exists():
        pytest.skip("Airflow's environment is absent: `make airflow-env` creates it")
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    migrated = airflow.run("airflow", "db", "migrate")
    assert migrated.returncode == 0, migrated.stderr[-4000:]
    return airflow
