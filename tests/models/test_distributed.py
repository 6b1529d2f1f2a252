"""Two processes that share every minibatch are one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.distributed import Group
from models.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    driver = str(Path(__file__).with_name("distributed_driver.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        done = subprocess.run(
            [*launched, str(size), driver, str(folder)], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "learn.safetensors").exists()
    one, two = (np.load(tmp_path / str(size) / f"{size}.npz") for size in (1, 2))
    assert set(one.files) == set(two.files)
    for name in one.files:
        # The mean of two means of 32 is the mean of 64, up to the rounding that sixty updates carry along.
        assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), name


def test_shares_are_disjoint_and_whole() -> None:
    rows = torch.arange(12).view(2, 6)
    shares = [Group(rank, 3).share(rows) for rank in range(3)]
    assert torch.equal(torch.cat(shares, dim=1).sort(dim=1).values, rows)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InputError, match=r"train.batch_size is 65, which 2 processes cannot share equally"):
        Group(0, 2).check(65)
