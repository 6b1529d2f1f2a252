"""Tensors and facts in one file that is whole or not there: safetensors, nothing pickled."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.errors import InputError, TransientError

FACTS = "facts"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the file at `path`; a crash at any moment leaves the old one or the new one, whole.

    Raises TransientError where the disk is full: the file that was there stays.
    """
    content = save({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, _metadata(facts))
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _settle(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TransientError(
            f"{path}: no space for a checkpoint of {len(content):,} bytes ({shutil.disk_usage(path.parent).free:,} "
            "free); make room and run the same command: it goes on from the checkpoint before."
        ) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `write` left at `path`.

    Raises InputError where the file is no whole checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})[FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no whole checkpoint ({error}); remove it, and training starts anew.") from None


def _settle(folder: Path) -> None:
    """Make the names in a folder outlast a power cut: a renamed file's own sync does not."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    return {FACTS: json.dumps(facts)}
