"""A checkpoint is whole or not there, and says what it is."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from models import checkpoint
from models.errors import InputError, TransientError

TENSORS = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.tensor([1.5], dtype=torch.float64)}
FACTS = {"step": 7, "identity": {"data": "x", "weights": [0.1, -2.0]}, "none": None}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "deep" / "one.safetensors", TENSORS, FACTS)
    tensors, facts = checkpoint.read(tmp_path / "deep" / "one.safetensors")
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], each) and tensors[name].dtype == each.dtype for name, each in TENSORS.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one.safetensors"]


def test_a_slice_of_something_larger_is_written_alone(tmp_path: Path) -> None:
    large = torch.arange(10_000.0).view(100, 100)
    checkpoint.write(tmp_path / "one", {"a": large[:, 3]}, {})
    assert (tmp_path / "one").stat().st_size < 1000
    assert torch.equal(checkpoint.read(tmp_path / "one")[0]["a"], large[:, 3])


def test_the_new_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: Any) -> None:
    really, synced = os.fsync, []

    def sync(number: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(number).st_mode), (tmp_path / "one").exists()))
        really(number)

    monkeypatch.setattr(os, "fsync", sync)
    checkpoint.write(tmp_path / "one", TENSORS, FACTS)
    # The file before it has its name, the folder after.
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: Any, code: int) -> None:
    path = tmp_path / "one.safetensors"
    checkpoint.write(path, TENSORS, FACTS)

    def full(_: int) -> None:
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientError, match=r"one\.safetensors: no space for a checkpoint of \d+ bytes .*make room"):
        checkpoint.write(path, TENSORS, {"step": 8})
    assert checkpoint.read(path)[1] == FACTS
    assert [each.name for each in tmp_path.iterdir()] == ["one.safetensors"]


def test_another_trouble_with_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.write(tmp_path / "one", TENSORS, FACTS)


@pytest.mark.parametrize("length", [0, 4, 40, -1])
def test_a_file_cut_short_says_what_to_do(tmp_path: Path, length: int) -> None:
    path = tmp_path / "one"
    checkpoint.write(path, TENSORS, FACTS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"one: no whole checkpoint .*; remove it, and training starts anew"):
        checkpoint.read(path)
