"""An MLflow server on loopback over a PostgreSQL of its own, both started and ended by whoever asks."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 240


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _unprivileged() -> tuple[dict[str, int], int | None]:
    """How to start PostgreSQL, which refuses to run as root; and whose its folder is then."""
    if os.getuid() != 0:
        return {}, None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid}, user.pw_uid
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")


def _program(name: str) -> str:
    """On the PATH, or where Debian puts it."""
    found = shutil.which(name)
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        found = found or shutil.which(name, path=str(folder))
    if found is None:
        pytest.skip(f"no {name}: PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, as SQLAlchemy wants it. Skips where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="no psycopg, by which MLflow speaks to PostgreSQL")
    initdb, server = _program("initdb"), _program("postgres")
    who, owner = _unprivileged()
    # Not within pytest's folder, which lets nobody else in.
    with tempfile.TemporaryDirectory(prefix="tactful-postgres-") as made:
        folder, port = Path(made), free_port()
        if owner is not None:
            os.chown(folder, owner, -1)
        log = folder / "postgres.log"
        with log.open("wb") as stream:
            run: dict[str, Any] = {"cwd": folder, "stdout": stream, "stderr": stream, **who}
            arguments = ["-D", "data", "-U", "tactful", "-A", "trust", "--no-sync"]
            done = subprocess.run([initdb, *arguments], timeout=PATIENCE, **run)
            assert done.returncode == 0, log.read_text()
            settings = ["-cunix_socket_directories=", "-clisten_addresses=127.0.0.1", "-cfsync=off"]
            process = subprocess.Popen([server, "-D", "data", "-p", str(port), *settings], **run)
        try:
            _wait(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process, log)
            yield f"postgresql://tactful@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(60)


def mlflow_server(folder: Path, backend: str) -> AbstractContextManager[str]:
    """The address of a server that keeps versions in `backend` and serves artifacts from `folder` itself."""
    arguments = ["--workers", "1", "--backend-store-uri", backend]
    return _served(folder, ["server", *arguments, "--artifacts-destination", str(folder / "artifacts")])


def model_server(folder: Path, registry: str, model: str) -> AbstractContextManager[str]:
    """The address of a model of the registry, served in this environment."""
    arguments = ["--model-uri", model, "--env-manager", "local", "--workers", "1"]
    return _served(folder, ["models", "serve", *arguments], MLFLOW_TRACKING_URI=registry)


@contextmanager
def _served(folder: Path, command: list[str], **env: str) -> Iterator[str]:
    port, log = free_port(), folder / "server.log"
    whole = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # It starts uvicorn by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **quiet, **env}
    # As others run it: without this repository.
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            whole, stdout=stream, stderr=stream, cwd=folder, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).close(), process, log)
        yield address
    finally:
        # Its workers are in its group, and outlive it; where it did not start, nobody is.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _wait(ask: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            ask()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"it did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
