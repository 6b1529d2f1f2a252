"""Airflow's scheduler, DAG processor, triggerer and API server as processes of their own, and its REST API."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 900
"""Seconds to wait for anything; other work may keep the machine busy."""


@dataclass(frozen=True)
class Api:
    """The REST API of a running Airflow."""

    port: int
    logs: Path

    def __call__(self, path: str, method: str = "GET", body: Any = None, token: str | None = None) -> Any:
        """The answer to one request."""
        headers = {"Content-Type": "application/json"}
        if not path.startswith(("/auth", "/api/v2/monitor")):
            headers["Authorization"] = f"Bearer {token or self('/auth/token')['access_token']}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def runs(self, dag: str) -> list[dict]:
        """Runs of a DAG, oldest first."""
        return self(f"/api/v2/dags/{dag}/dagRuns?order_by=id&limit=100")["dag_runs"]

    def states(self, run: dict) -> dict[str, str]:
        """State of each task of a run."""
        name = urllib.request.quote(run["dag_run_id"], safe="")
        found = self(f"/api/v2/dags/{run['dag_id']}/dagRuns/{name}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def trigger(self, dag: str, **conf: Any) -> dict:
        return self(f"/api/v2/dags/{dag}/dagRuns", "POST", {"logical_date": None, "conf": conf})

    def until(self, what: str, found: Callable[[], Any]) -> Any:
        """What `found` returns as soon as it is true; after PATIENCE the test fails with the ends of the logs."""
        over = time.monotonic() + PATIENCE
        while time.monotonic() < over:
            try:
                if answer := found():
                    return answer
            except OSError:  # not up yet, or the database was locked
                pass
            time.sleep(1)
        said = "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.logs.glob("*.log")))
        raise AssertionError(f"after {PATIENCE} s still not so: {what}\n{said}")


@dataclass(frozen=True)
class Parts:
    """Airflow with SQLite and the LocalExecutor, part by part."""

    program: Path
    home: Path
    env: dict[str, str]
    """Also for the commands that speak to it."""
    api: Api
    stack: ExitStack

    def command(self, *words: str) -> None:
        """Run `airflow WORDS` to its end."""
        done = subprocess.run(
            [self.program, *words], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *names: str) -> None:
        """Start some of api-server, scheduler, dag-processor and triggerer, and wait until they are well."""
        for name in names:
            log = self.stack.enter_context((self.api.logs / f"{name}.log").open("w"))
            # A session of its own, so that what it starts can be ended with it.
            process = subprocess.Popen(
                [self.program, name],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=self.env,
                start_new_session=True,
            )
            self.stack.callback(end, process)
        wanted = {name.replace("-", "_") for name in names} - {"api_server"}
        self.api.until(f"{', '.join(names)} up", lambda: wanted <= well(self.api("/api/v2/monitor/health")))


@contextmanager
def parts(program: Path, env: dict[str, str], home: Path) -> Iterator[Parts]:
    """An Airflow none of whose parts runs yet; all that were started are ended with it."""
    port, *for_logs = free_ports(3)
    env = env | {
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(for_logs[0]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(for_logs[1]),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    }
    (home / "parts").mkdir()
    with ExitStack() as stack:
        yield Parts(program, home, env, Api(port, home / "parts"), stack)


def free_ports(count: int) -> list[int]:
    """Ports of this machine on which nobody listens."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def well(health: dict[str, dict]) -> set[str]:
    """Names of the parts that say they are healthy."""
    return {name for name, told in health.items() if told["status"] == "healthy"}


def end(process: subprocess.Popen) -> None:
    """End a part and all that it started."""
    for signalled, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, signalled)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
