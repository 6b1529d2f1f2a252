"""ETL and scoring on a standalone cluster and on local-cluster: the archive brings the package, and nothing differs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyspark
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.scoring.night import run_scoring
from pipelines.session import archive
from pipelines.simulate import run_simulate

ROOT = Path(__file__).parents[2]
SPARK_HOME = Path(pyspark.__file__).parent
NEEDED = ("numpy", "numpy.libs", "pyarrow")
"""All that an executor's Python must have for the ETL; pyspark itself comes with Spark."""
TO_SCORE = (*NEEDED, "onnxruntime", "flatbuffers", "google", "packaging")
"""And to score."""
QUICK = "-XX:TieredStopAtLevel=1"
"""Small data: compiling costs more than it saves."""


def tree(run_dir: str, lake: str = "lake", master: str = "local", **conf: str) -> dict[str, Any]:
    """Relative paths unless told: a cluster's workers have another working directory than the driver."""
    java = {f"spark.{where}.extraJavaOptions": QUICK for where in ("driver", "executor")}
    sizes = {"spark.executor.memory": "600m", "spark.scheduler.minRegisteredResourcesRatio": "1"}
    return {
        "name": "cluster",
        "seed": 3,
        "run_dir": run_dir,
        "rewards": ["sends", "clicks", "visits", "weekly_active_days", "disables"],
        "simulate": {"users": 150, "days": 10},
        "data": {name: {"path": f"{lake}/{name}"} for name in ("decisions", "events", "users", "candidates")},
        "features": {"state": ["sends_7d", "visits_7d", "hour_sin"], "context": ["relevance"]},
        "etl": {"warmup_days": 1, "buckets": 4, "as_of": "2026-03-01"},
        "quality": {"docs": False},
        "train": {
            "weights": {"clicks": 1.0},
            "learners": {"ddqn": 0.0},
            "steps": 20,
            "hidden": [8],
            "behaviour_steps": 20,
            "value_steps": 20,
        },
        "gate": {"candidate": "ddqn", "metrics": {}},
        "spark": {"master": master, "shuffle_partitions": 2, "conf": {**java, **sizes, **conf}},
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of every run, with a raw log in it."""
    folder = tmp_path_factory.mktemp("cluster")
    run_simulate(validate(tree(str(folder / "local"), str(folder / "lake")), "cluster"))
    return folder


@pytest.fixture(scope="module")
def python(here: Path) -> str:
    """A Python that has only what executors need: without site-packages this project is not installed in it."""
    packages = here / "packages"
    packages.mkdir()
    for name in TO_SCORE:
        found = Path(pa.__file__).parents[1] / name
        if found.exists():
            (packages / name).symlink_to(found)
    script = here / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


@dataclass(frozen=True)
class Local:
    """The run to agree with."""

    config: Config
    etl: dict[str, Any]
    scored: dict[str, Any]

    @property
    def policy(self) -> Path:
        """The artifact that scores everywhere."""
        return self.config.run_dir / "policies" / "ddqn"


@pytest.fixture(scope="module")
def local(spark: SparkSession, here: Path) -> Local:
    config = validate(tree(str(here / "local"), str(here / "lake")), "cluster")
    etl = json.loads(json.dumps(jobs.etl(config), default=str))
    jobs.train(config)
    made = Local(config, etl, {})
    return replace(made, scored=run_scoring(spark, config, made.policy, "1"))


@pytest.fixture(scope="module")
def master(here: Path) -> Iterator[str]:
    """Address of a standalone master with two registered workers of one core, each a process group of its own."""
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java: install Java 17 (openjdk-17-jre-headless) to test a cluster")
    place = here / "elsewhere"
    place.mkdir()
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> Path:
        log = place / f"{len(processes)}.log"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_NO_DAEMONIZE": "1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": QUICK,
        }
        with log.open("wb") as stream:
            processes.append(
                subprocess.Popen(
                    [SPARK_HOME / "bin" / "spark-class", *words],
                    cwd=place,
                    env=environment,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            )
        return log

    def said(log: Path, pattern: str) -> str:
        found = re.search(pattern, log.read_text())
        return found[1] if found else ""

    try:
        # Port 0: the system chooses a free one, and the log says which.
        log = start("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        until(lambda: said(log, r"(spark://127\.0\.0\.1:\d+)") and said(log, r"MasterWebUI.*:(\d+)"), log)
        address, page = said(log, r"(spark://127\.0\.0\.1:\d+)"), said(log, r"MasterWebUI.*:(\d+)")
        for worker in range(2):
            sizes = ("--cores", "1", "--memory", "1g", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
            start(
                "org.apache.spark.deploy.worker.Worker", *sizes, "--work-dir", str(place / f"worker-{worker}"), address
            )
        until(lambda: alive(f"http://127.0.0.1:{page}/json/") == 2, log)
        yield address
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def until(done: Any, log: Path, seconds: float = 240) -> None:
    """Wait; fail with what the log says where it takes longer."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            pytest.fail(f"the cluster did not come up within {seconds:.0f} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def alive(page: str) -> int:
    with urllib.request.urlopen(page, timeout=5) as answer:
        return int(json.loads(answer.read())["aliveworkers"])


def rows(run_dir: Path, table: str, row_id: str) -> pa.Table:
    found = DeltaTable(run_dir / table).to_pyarrow_table()
    return found.select(sorted(found.column_names)).sort_by([("user_id", "ascending"), (row_id, "ascending")])


def drive(here: Path, python: str, config: dict[str, Any], policy: Path) -> dict[str, Any]:
    """What a run in a process of its own reported: Spark allows one session in each."""
    name = config["run_dir"]
    (here / f"{name}.json").write_text(json.dumps(config))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("cluster_driver.py"), f"{name}.json", f"{name}-report.json", policy],
        cwd=here,
        env={**environment, "PYSPARK_PYTHON": python, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads((here / f"{name}-report.json").read_text()))


def check(here: Path, report: dict[str, Any], local: Local, name: str) -> None:
    assert local.etl["rows"]["transitions"]["rows"] > 1000
    assert local.scored["candidates"] > 100
    assert len(local.scored["by_action"]) == 2
    for key in ("rows", "fingerprint", "watermark"):
        assert report[key] == local.etl[key], key
    for key in ("night", "candidates", "by_action", "by_rule", "valid_until"):
        assert report["scored"][key] == local.scored[key], key
    for table, row_id in (("transitions", "decision_id"), ("scores", "candidate_id")):
        assert rows(here / name, table, row_id).equals(rows(local.config.run_dir, table, row_id)), table
    folders, kernels, numpys = zip(*report["workers"], strict=True)
    assert len(set(folders)) == 2
    # The package came from the archive, numpy from the bare Python, and nothing from the checkout.
    assert all("tactful.zip" in kernel for kernel in kernels)
    assert set(numpys) == {str(here / "packages" / "numpy")}


def test_standalone_cluster_agrees_with_local(here: Path, python: str, master: str, local: Local) -> None:
    loopback = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    report = drive(
        here, python, tree("standalone", master=master, **loopback, **{"spark.cores.max": "2"}), local.policy
    )
    check(here, report, local, "standalone")


def test_local_cluster_agrees_with_local(here: Path, python: str, local: Local) -> None:
    report = drive(here, python, tree("local-cluster", master="local-cluster[2,1,1024]"), local.policy)
    # Its workers write beside Spark itself, wherever they are started.
    shutil.rmtree(SPARK_HOME / "work" / report["application"])
    check(here, report, local, "local-cluster")


def test_the_archive_holds_every_python_file_and_nothing_else() -> None:
    with zipfile.ZipFile(archive()) as found:
        held = sorted(found.namelist())
    files = [path for part in ("models", "policies", "pipelines") for path in (ROOT / part).rglob("*.py")]
    assert held == sorted(str(path.relative_to(ROOT)) for path in files)


@pytest.mark.parametrize(
    ("kernels", "packages"),
    [
        ("pipelines.etl.blocks", NEEDED),
        ("pipelines.etl.buckets", NEEDED),
        ("pipelines.etl.files", NEEDED),
        ("pipelines.scoring.tasks", TO_SCORE),
    ],
)
def test_the_archive_needs_few_packages(kernels: str, packages: tuple[str, ...], tmp_path: Path) -> None:
    for name in packages:
        found = Path(pa.__file__).parents[1] / name
        if found.exists():
            (tmp_path / name).symlink_to(found)
    code = f"import {kernels} as kernels; assert 'tactful.zip' in kernels.__file__, kernels.__file__"
    paths = {"PYTHONPATH": os.pathsep.join([str(archive()), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
