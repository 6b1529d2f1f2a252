"""The ETL's process dies, or another is faster: the table is the one that an undisturbed run makes.

A process stops itself, its whole group, at a line of its log, so that it is exactly there when it is killed or resumed:
a signal sent by a reader of the log would come some milliseconds later, which is longer than a commit takes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from models.errors import TransientError
from pipelines.etl import store
from tests.pipelines.hostile import a_log, tree, write_days

PAUSING = Path(__file__).with_name("pausing_cli.py")
TABLES = ["transitions", "consent", "quarantine/decisions", "quarantine/events", "quarantine/users"]
PATIENCE = 600
"""Seconds that a run may take."""


def toml(tree: dict[str, Any], *keys: str) -> Iterator[str]:
    """Lines of a table of texts, numbers, flags and lists of them, and of the tables in it."""
    if keys:
        yield f"[{'.'.join(json.dumps(key) for key in keys)}]"
    yield from (f"{json.dumps(key)} = {json.dumps(value)}" for key, value in tree.items() if type(value) is not dict)
    for key, value in tree.items():
        if type(value) is dict:
            yield from toml(value, *keys, key)


def configured(lake: Path, run_dir: Path) -> Path:
    made = tree(lake, str(run_dir))
    made["etl"]["buckets"] = 8
    made["spark"] = {
        "master": "local[1]",
        "shuffle_partitions": 1,
        "conf": {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1", "spark.sql.codegen.wholeStage": "false"},
    }
    path = run_dir.with_suffix(".toml")
    path.write_text("\n".join(toml(made)))
    return path


def run(config: Path) -> None:
    """A whole run by the console script."""
    command = [str(Path(sys.executable).with_name("tactful")), "etl", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]


@contextmanager
def paused(config: Path, marker: str, nth: int = 1, command: str = "etl") -> Iterator[subprocess.Popen[bytes]]:
    """A run that stands still at the marker; killed with its whole group in the end."""
    log = config.with_suffix(".log")
    with log.open("wb") as stream:
        line = [sys.executable, str(PAUSING), marker, str(nth), command, str(config)]
        process = subprocess.Popen(line, stdout=stream, stderr=stream, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            found, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                break
            if found or time.monotonic() > end:
                pytest.fail(f"the run never came to {marker!r} ({nth}):\n{log.read_text()[-4000:]}")
            time.sleep(0.02)
        yield process
    finally:
        # The group may outlive its leader: the JVM is in it too.
        with_group(process.pid, signal.SIGKILL)
        process.wait(10)


def with_group(group: int, what: signal.Signals) -> None:
    try:
        os.killpg(group, what)
    except ProcessLookupError:
        return


def content(run_dir: Path) -> dict[str, tuple[str, int]]:
    """Fingerprint and rows of every table, read from its files."""
    found = {}
    for name in TABLES:
        table = DeltaTable(run_dir / name)
        found[name] = (store.fingerprint(table), table.to_pyarrow_table().num_rows)
    return found


def check_once(run_dir: Path) -> None:
    rows = DeltaTable(run_dir / "transitions").to_pyarrow_table(
        columns=["user_id", "decided_at", "decision_id", "usable"]
    )
    usable = rows.filter(rows["usable"])
    assert usable.num_rows > 100
    counted = usable.group_by(["user_id", "decided_at", "decision_id"]).aggregate([([], "count_all")])
    assert pc.max(counted["count_all"]).as_py() == 1


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    write_days(a_log(21, 40), folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run_dir of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(configured(lake, run_dir))
    check_once(run_dir)
    return run_dir


@pytest.mark.parametrize(
    ("marker", "nth", "versions"),
    [("buckets written", 1, 0), ("buckets written", 2, 0), ("about to commit", 1, 0), ("committed", 1, 1)],
    ids=["first bucket written", "half of the buckets written", "about to commit", "committed"],
)
def test_a_run_after_a_killed_one_makes_the_same_table(
    lake: Path, undisturbed: Path, tmp_path: Path, marker: str, nth: int, versions: int
) -> None:
    """Eight short tasks are looked at ten times a second: "first" and "half" are whatever was seen first after them."""
    run_dir = tmp_path / "run"
    config = configured(lake, run_dir)
    with paused(config, marker, nth) as process:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert any((run_dir / "transitions").rglob("*.parquet"))
    table = store.opened(run_dir / "transitions")
    assert (0 if table is None else table.version() + 1) == versions
    run(config)
    assert DeltaTable(run_dir / "transitions").version() == versions
    assert content(run_dir) == content(undisturbed)
    check_once(run_dir)


def test_a_writer_that_another_overtook_leaves_its_table_unharmed(
    lake: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    config = configured(lake, run_dir)
    with paused(config, "about to commit") as process:
        run(config)
        table = DeltaTable(run_dir / "transitions")
        assert table.version() == 1
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(PATIENCE) == TransientError.exit_code == 75
    said = config.with_suffix(".log").read_text()
    assert "TransientError" in said
    assert f"{run_dir / 'transitions'}: another writer committed first" in said
    assert DeltaTable(run_dir / "transitions").version() == 1
    assert content(run_dir) == content(undisturbed)
    # Its own files went with it: what is left are the two versions'.
    named = {
        path.split("/")[0]
        for version in (0, 1)
        for path, _ in store.files(DeltaTable(run_dir / "transitions", version))
    }
    assert {path.name for path in (run_dir / "transitions").iterdir()} == {"_delta_log", *named}
