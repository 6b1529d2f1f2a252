"""A run that streams and is killed, once or twice, is the run that was not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.learn import marks
from models.stream import Pool, survey
from models.table import Shards
from tests.models.streamed_driver import CONFIG, CONTRACT
from tests.models.test_stream import BUCKETS, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def log(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table, path = world.log(users=400), tmp_path_factory.mktemp("log") / "transitions"
    table = replace(table, split=np.where(table.user % 4 == 0, 1, 0).astype(np.int8))
    write(path, table, np.random.default_rng(1).choice(BUCKETS, 400))
    return path


def run(log: Path, out: Path, *words: int) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    driver = str(Path(__file__).with_name("streamed_driver.py"))
    command = [sys.executable, driver, str(log), str(out), *map(str, words)]
    return subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)


def learned(out: Path) -> dict[str, bytes]:
    with np.load(out / "learned.npz") as found:
        return {name: found[name].tobytes() for name in found.files}


@pytest.fixture(scope="module")
def whole(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    done = run(log, out)
    assert done.returncode == 0, done.stderr
    return learned(out)


@pytest.mark.parametrize("kills", [[300], [150, 400]])
def test_a_streamed_run_that_is_killed_goes_on_to_the_same_bits(
    log: Path, whole: dict[str, bytes], tmp_path: Path, kills: list[int]
) -> None:
    shards = Shards.of(log, CONTRACT)
    with Pool(shards, survey(shards), CONFIG.stream_rows, CONFIG.batch_size, 0, torch.device("cpu")) as pool:
        turns = pool.turns(CONFIG.steps)
    for update in kills:
        done = run(log, tmp_path, update)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "learned.npz").exists()
        kept = checkpoint.read(tmp_path / "learn.safetensors")[1]["step"]
        assert kept == max(check for check in marks(CONFIG.steps, CONFIG.checks) if check < update)
        # Other buckets are there than at the beginning, and others come later.
        assert turns[0] < kept < turns[-1]
    done = run(log, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"goes on after update {kept}" in done.stderr
    assert learned(tmp_path) == whole
