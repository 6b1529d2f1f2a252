"""Tensors and facts in one file that is whole or not there: safetensors, nothing pickled."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.errors import InputError, TransientError

FACTS = "facts"


def content(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint, as `parsed` takes them."""
    return save({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, {FACTS: json.dumps(facts)})


def parsed(whole: bytes, place: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of the bytes of a checkpoint that lie at `place`.

    Raises InputError where they are no whole checkpoint.
    """
    try:
        tensors = load(whole)
        # The format's header: its length in eight bytes, then JSON.
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        facts: dict[str, Any] = json.loads(header["__metadata__"][FACTS])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{place}: no whole checkpoint ({error}); remove it, and training starts anew.") from None
    return tensors, facts


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the file at `path`; a crash at any moment leaves the old one or the new one, whole.

    Raises TransientError where the disk is full: the file that was there stays.
    """
    whole = content(tensors, facts)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _settle(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TransientError(
            f"{path}: no space for a checkpoint of {len(whole):,} bytes ({shutil.disk_usage(path.parent).free:,} "
            "free); make room and run the same command: it goes on from the checkpoint before."
        ) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `write` left at `path`.

    Raises InputError where the file is no whole checkpoint.
    """
    return parsed(path.read_bytes(), str(path))


def _settle(folder: Path) -> None:
    """Make the names in a folder outlast a power cut: a renamed file's own sync does not."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
