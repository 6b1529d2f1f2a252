"""Two processes that share every minibatch are one process."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from models import learn as loop
from models.distributed import Group, check_alone, device_of, group
from models.errors import InputError
from models.train import train
from models.watch import _pooled, _told
from tests.models.distributed_driver import CONFIG, Kept, greedy, scattered

ROOT = Path(__file__).resolve().parents[2]


def started(size: int, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command = [*torchrun, str(Path(__file__).with_name("distributed_driver.py")), str(out), *words]
    return subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)


def launched(size: int, out: Path) -> subprocess.CompletedProcess[str]:
    done = started(size, out)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    out = tmp_path_factory.mktemp("one")
    launched(1, out)
    return np.load(out / "1.npz")


def assert_equal(two: Mapping[str, np.ndarray], one: Mapping[str, np.ndarray]) -> None:
    assert set(one) == set(two)
    assert {"ddqn.curve.q_low", "ddqn.curve.q_high", "ddqn.curve.agreement", "iql.kept.gain"} <= set(one)
    for name in one:
        # The mean of two means of 32 is the mean of 64, up to the rounding that sixty updates carry along.
        assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), name


def test_two_gloo_processes_equal_one(one: Mapping[str, np.ndarray], tmp_path: Path) -> None:
    launched(2, tmp_path)
    assert_equal(np.load(tmp_path / "2.npz"), one)
    assert (tmp_path / "0" / "learn.safetensors").exists()
    assert not (tmp_path / "1").exists()


def test_processes_without_a_shared_disk_go_on_together(
    one: Mapping[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception): ...

    written, write = [], loop._save

    def save(*words: object) -> None:
        write(*words)
        written.append(words[-1])
        if len(written) == 3:
            raise KilledError

    monkeypatch.setattr(loop, "_save", save)
    table, path = scattered(), tmp_path / "0" / "learn.safetensors"
    with pytest.raises(KilledError):
        train(table, CONFIG, 0, greedy, False, None, lambda _: Kept(table), checkpoint=path)
    assert written == [10, 20, 30]
    done = launched(2, tmp_path)
    assert "goes on after update 30" in done.stderr
    assert_equal(np.load(tmp_path / "2.npz"), one)


@pytest.mark.parametrize("differs", ["settings", "data", "seed"])
def test_processes_that_are_not_of_one_run_are_refused_though_nothing_is_kept(tmp_path: Path, differs: str) -> None:
    done = started(2, tmp_path, differs)
    assert done.returncode != 0
    assert re.search(rf"InputError: process 1 has another .*{differs}.* than the first one; give every", done.stderr)


def test_a_figure_of_two_shares_is_that_of_the_whole() -> None:
    # One member, three rows; the second process has one choice, the first none but its own.
    q = torch.tensor([[[1.0, 5.0], [2.0, 0.0], [3.0, -4.0], [-6.0, -7.0]]])
    legal = torch.tensor([[[True, True], [True, False], [True, True], [True, True]]])
    action = torch.tensor([[1, 0, 1, 0]])

    def told(rows: slice) -> dict[str, torch.Tensor]:
        return _told(q[:, rows], SimpleNamespace(legal=legal[:, rows], action=action[:, rows]))  # type: ignore[arg-type]

    shares = [told(slice(rank, None, 2)) for rank in (0, 1)]

    class Both(Group):
        def gathered(self, part: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.stack(list(share.values())).to(part.dtype) for share in shares])

    pooled = _pooled(shares[0], Both(0, 2))
    # Best values 5, 2, 3, -6; of the three choices the first and the last were logged.
    expected = {"mean_q": 1.0, "q_low": -6.0, "q_high": 5.0, "agreement": 2 / 3}
    assert {key: float(each) for key, each in pooled.items()} == pytest.approx(expected)
    alone = _pooled(told(slice(None)), Group())
    assert {key: float(each) for key, each in alone.items()} == pytest.approx(expected)


def test_shares_are_disjoint_and_whole() -> None:
    rows = torch.arange(12).view(2, 6)
    shares = [Group(rank, 3).share(rows) for rank in range(3)]
    assert torch.equal(torch.cat(shares, dim=1).sort(dim=1).values, rows)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InputError, match=r"train.batch_size is 65, which 2 processes cannot share equally"):
        Group(0, 2).check(65)


# Devices.


def launcher(rank: int, size: int) -> dict[str, str]:
    """What torchrun sets on the second of two machines."""
    whole = {"RANK": str(size + rank), "WORLD_SIZE": str(2 * size)}
    return {**whole, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}


def devices(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(
    ("name", "number", "environment", "device"),
    [
        ("auto", 0, launcher(1, 2), "cpu"),
        ("cpu", 2, launcher(1, 2), "cpu"),
        ("auto", 2, launcher(0, 2), "cuda:0"),
        ("auto", 2, launcher(1, 2), "cuda:1"),
        ("cuda", 4, launcher(1, 2), "cuda:1"),
        ("cuda", 1, {}, "cuda"),
        ("auto", 1, {"WORLD_SIZE": "1"}, "cuda"),
    ],
)
def test_each_process_takes_the_device_of_its_place(monkeypatch, name, number, environment, device) -> None:
    devices(monkeypatch, number)
    assert device_of(name, environment) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "number", "environment", "said"),
    [
        ("cuda", 0, {}, "train.device is cuda, but torch sees no such device here; use auto or cpu"),
        ("auto", 2, launcher(0, 3), r"3 processes of this machine need a CUDA device each, and torch sees 2 here"),
        ("auto", 2, {"WORLD_SIZE": "2", "RANK": "1"}, "LOCAL_RANK: not in the environment"),
    ],
)
def test_a_device_that_no_process_can_have_is_refused(monkeypatch, name, number, environment, said) -> None:
    devices(monkeypatch, number)
    with pytest.raises(InputError, match=said):
        device_of(name, environment)


@pytest.mark.parametrize(
    ("name", "number", "backend", "current"),
    [("cpu", 2, "gloo", []), ("auto", 0, "gloo", []), ("auto", 2, "nccl", [torch.device("cuda:1")])],
)
def test_the_configured_device_decides_how_gradients_travel(monkeypatch, name, number, backend, current) -> None:
    devices(monkeypatch, number)
    for key, value in launcher(1, 2).items():
        monkeypatch.setenv(key, value)
    begun: list[str] = []
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", begun.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with group(name) as processes:
        assert processes == Group(3, 4)
    assert (begun, taken) == ([backend], current)


def test_a_command_that_shares_no_work_is_refused(monkeypatch) -> None:
    check_alone("sweep")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"sweep: started as 2 processes .* run it as one process, `tactful sweep"):
        check_alone("sweep")
