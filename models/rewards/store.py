"""A learned reward on disk: numbered versions in a folder of its own, facts as JSON, tensors as safetensors.

ROOT/NAME/v0001/reward.json         kind, contract, what it was learned from, how well it does, hash of the tensors
ROOT/NAME/v0001/reward.safetensors  its parameters, where it is a network
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load, save
from torch import Tensor

from models.errors import InputError, TransientError

Kind = Literal["weights", "network", "goal"]
KINDS: tuple[Kind, ...] = ("weights", "network", "goal")
FACTS, TENSORS = "reward.json", "reward.safetensors"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
VERSION = re.compile(r"v(\d{4,})")


@dataclass(frozen=True)
class Stored:
    """One version of a learned reward."""

    name: str
    version: int
    kind: Kind
    facts: dict[str, Any]
    """What it was learned from and how well it does, by its kind; JSON."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


def add(root: Path, name: str, kind: Kind, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Stored:
    """Write the next version of reward `name`; it is there whole or not at all.

    Raises InputError where the name is no identifier: it becomes a column; TransientError where another command wrote
    that version first.
    """
    check_name(name)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    number = max(versions(root, name), default=0) + 1
    content = save({key: each.detach().cpu().contiguous() for key, each in tensors.items()}) if tensors else b""
    told = {"name": name, "version": number, "kind": kind, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    # A name of its own: of two commands that learn at once neither writes into the other's.
    partial = folder / f".v{number:04d}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        if content:
            (partial / TENSORS).write_bytes(content)
        (partial / FACTS).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        partial.rename(folder / f"v{number:04d}")
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if number not in versions(root, name):
            raise
        raise TransientError(
            f"{folder}: another command wrote version {number} meanwhile; run this one again, and it writes the next."
        ) from None
    # What a killed command left, and whoever comes too late.
    for left in folder.glob(".v*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return Stored(name, number, kind, dict(facts), dict(tensors))


def check_name(name: str) -> None:
    """Raise InputError where `name` cannot be a reward's."""
    if not NAME.fullmatch(name):
        raise InputError(f"learned: {name!r} is no name for a reward; letters, digits and _ alone, a letter first.")


def versions(root: Path, name: str) -> list[int]:
    """Those that are there, ascending."""
    found = (VERSION.fullmatch(path.name) for path in (root / name).glob("v*"))
    return sorted(int(each[1]) for each in found if each)


def read(root: Path, name: str, version: int | None = None) -> Stored:
    """One version of reward `name`, the newest by default.

    Raises InputError where it is not there, is no reward, or its tensors are not those that were written.
    """
    there = versions(root, name)
    if not there:
        raise InputError(f"{root / name}: no learned reward; `tactful rewards --help` says how to learn one.")
    number = there[-1] if version is None else version
    if number not in there:
        raise InputError(f"{root / name}: no version {number}; there are {', '.join(map(str, there))}.")
    folder = root / name / f"v{number:04d}"
    try:
        told: dict[str, Any] = json.loads((folder / FACTS).read_text())
        content = (folder / TENSORS).read_bytes() if (folder / TENSORS).exists() else b""
        kind, digest = told["kind"], told["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no whole learned reward ({error!r}); learn it again.") from None
    if kind not in KINDS:
        raise InputError(f"{folder}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{folder / TENSORS}: its SHA-256 is not the one written with it; learn the reward again.")
    facts = {key: each for key, each in told.items() if key not in {"name", "version", "kind", "sha256"}}
    return Stored(name, number, kind, facts, load(content) if content else {})
