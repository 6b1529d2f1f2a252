"""Scoring dies, or another is faster: the night is that of an undisturbed run, no row lost, doubled or mixed.

Once at each line of the log in the command itself, stopped there as `test_etl_crash.py` explains, and four times in a
row at each station of a night in processes without Spark.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.errors import TransientError
from pipelines import jobs
from pipelines.config import Config, load
from pipelines.etl import store
from pipelines.jobs.steps import registry_of
from pipelines.vacuum import vacuum
from tests.pipelines.scoring.killed_nights import KILLS, STATIONS
from tests.pipelines.scoring.nights import configured as without_spark
from tests.pipelines.scoring.nights import etl, lake, rows_of, write_candidates
from tests.pipelines.scoring.test_scoring import ROWS, config_of, make_log
from tests.pipelines.scoring.test_scoring_night import NIGHT, tonight
from tests.pipelines.test_etl_crash import PATIENCE, paused, toml

HEADER = "candidate_id,user_id,decide_at,legal_actions,relevance"


# Four deaths at each station


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    lake(folder)
    write_candidates(folder, tonight())
    etl(without_spark(folder, "made", etl={"buckets": 4}))
    command = [sys.executable, "-m", "tests.pipelines.scoring.killed_nights", str(folder)]
    here = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, cwd=here)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("station", STATIONS)
def test_after_four_deaths_the_night_is_the_undisturbed_one(killed: tuple[Path, dict[str, Any]], station: str) -> None:
    folder, ends = killed
    assert ends["undisturbed"] == {"run": "station0", "killed": [], "then": 0}
    assert ends[station]["killed"] == [signal.SIGKILL] * KILLS
    assert ends[station]["then"] == 0
    wanted, config = (without_spark(folder, ends[name]["run"]) for name in ("undisturbed", station))
    assert len(rows_of(wanted)) == len(tonight())
    assert rows_of(config) == rows_of(wanted)
    scores = config.run_dir / "scores"
    committed = KILLS + 1 if station in ("committed", "manifest written") else 1
    assert DeltaTable(scores).version() == committed - 1
    told, usual = (
        json.loads((each.run_dir / "scores" / "manifests" / f"{NIGHT}.json").read_text()) for each in (config, wanted)
    )
    assert told["version"] == committed - 1
    assert {**told, "version": 0, "config_hash": ""} == {**usual, "config_hash": ""}
    # What the dead left is no version's, and goes.
    vacuum(without_spark(folder, ends[station]["run"], retention={"orphan_hours": 0, "versions": 1}), [])
    named = {path for path, _ in store.files(DeltaTable(scores))}
    left = (path.relative_to(scores) for path in scores.rglob("*") if path.is_file())
    there = {str(path) for path in left if path.parts[0] not in ("_delta_log", "manifests")}
    assert there == named


# The command itself, on Spark


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, its transitions, and a champion in a registry."""
    folder = tmp_path_factory.mktemp("command")
    make_log(folder)
    config = config_of(folder, etl=ETL)
    jobs.etl(config)
    jobs.train(config)
    registry = registry_of(config)
    registry.begin(registry.register(folder / "run" / "policies" / "ddqn_cql", {}))
    rows = [f"c{n},u{n % 60:02d},2026-01-09 {n % 24:02d}:00:00,hold send,0.{n % 10}" for n in range(200)]
    (folder / "candidates.csv").write_text("\n".join([HEADER, *ROWS, *rows]))
    return folder


ETL = {"warmup_days": 0, "buckets": 8, "split": [0.7, 0.1, 0.2], "as_of": "2026-01-09T00:00:00"}


def written(made: Path, run_dir: Path) -> tuple[Path, Config]:
    """A configuration of its own run folder, which has the ETL's tables and the registry of `made`."""
    for name in ("transitions", "consent"):
        shutil.copytree(made / "run" / name, run_dir / name)
    tree = json.loads(config_of(made, etl=ETL).model_dump_json(exclude_none=True, exclude_defaults=True))
    tree |= {"run_dir": str(run_dir), "mlflow": {"tracking_uri": f"sqlite:///{made / 'run' / 'mlflow.db'}"}}
    tree["score"] = {"sends_at_most": 10_000, "valid_hours": 48}
    path = run_dir.with_suffix(".toml")
    path.write_text("\n".join(toml(tree)))
    return path, load(path)


def scored(config: Config) -> list[dict[str, Any]]:
    found = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: str(row["candidate_id"]))


@pytest.fixture(scope="module")
def undisturbed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    _, config = written(made, tmp_path_factory.mktemp("undisturbed") / "run")
    jobs.score(config)
    rows = scored(config)
    assert len(rows) == 200 + len(ROWS)
    return rows


@pytest.mark.parametrize(
    ("marker", "versions"),
    [
        ("candidates: first task wrote", 0),
        ("scores: first task wrote", 0),
        ("scores: half of the tasks wrote", 0),
        ("about to commit", 0),
        ("committed", 1),
        ("manifest written", 1),
    ],
)
def test_a_score_after_a_killed_one_is_the_same(
    spark: SparkSession, made: Path, undisturbed: list[dict[str, Any]], tmp_path: Path, marker: str, versions: int
) -> None:
    path, config = written(made, tmp_path / "run")
    with paused(path, marker, command="score") as process:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    scores = config.run_dir / "scores"
    assert [path for path in scores.rglob("*") if path.suffix in (".arrow", ".parquet")]
    table = store.opened(scores)
    assert (0 if table is None else table.version() + 1) == versions
    assert (scores / "manifests").exists() == (marker == "manifest written")
    jobs.score(config)
    assert scored(config) == undisturbed
    assert DeltaTable(scores).version() == versions
    assert (scores / "manifests" / "2026-01-09.json").exists()


def test_a_score_that_another_overtook_ends_with_75(
    spark: SparkSession, made: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    path, config = written(made, tmp_path / "run")
    with paused(path, "about to commit", command="score") as process:
        jobs.score(config)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(PATIENCE) == TransientError.exit_code == 75
    assert "another writer committed first" in path.with_suffix(".log").read_text()
    assert scored(config) == undisturbed
    assert DeltaTable(config.run_dir / "scores").version() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here: a full disk is tested without one in test_scoring_night.py")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(
    spark: SparkSession, made: Path, undisturbed: list[dict[str, Any]], tmp_path: Path, small_disk: Path
) -> None:
    _, config = written(made, tmp_path / "run")
    (small_disk / "scores").mkdir()
    (config.run_dir / "scores").symlink_to(small_disk / "scores")
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (1 << 20))
    with pytest.raises(TransientError, match="No space left on device"):
        jobs.score(config)
    assert store.opened(config.run_dir / "scores") is None
    filler.unlink()
    jobs.score(config)
    assert scored(config) == undisturbed
