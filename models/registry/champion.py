"""The champion for a night of scoring: from the registry or, while that does not answer, the one checked last.

The cache folder holds one folder per artifact, named by its files' checksums, and `champion.json`: which of them was
champion when the registry was last asked, and when that was. Only what passed the registry's checks is ever put there,
and it is checked again when taken out.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from models.artifact import load
from models.errors import InputError, TransientError
from models.registry import DEADLINE, Registry
from models.registry.outages import shown, within
from models.registry.packing import checksums, copy_checked

NOTE = "champion.json"
KEYS = ("registry", "model", "version", "fingerprint", "files", "checked_at")
TRUSTED = timedelta(hours=24)
"""How long a champion may act that the registry could not be asked about."""
logger = logging.getLogger("tactful.registry")


@dataclass(frozen=True)
class Champion:
    """A policy that may act, and since when that is known."""

    folder: Path
    """Holds policy.onnx and contract.json, and nothing else."""
    version: str
    fingerprint: str
    checked_at: datetime
    """When the registry last said that it is champion, UTC."""
    stale: bool
    """The registry does not answer now, so somebody may have promoted or rolled back since."""


def find_champion(registry: Registry, cache: Path, now: datetime) -> Champion:
    """The registry's champion, copied to `cache`; where the registry does not answer, the one that was copied last.

    Raises TransientError where the registry does not answer and `cache` has no champion of this model checked within
    the 24 hours before `now`; InputError where the registry has none, or its files are not those that were registered:
    a refusal is no outage, and nothing is taken from the cache then.
    """
    try:
        return within(DEADLINE, registry.tracking_uri, lambda: _fetched(registry, cache, now))
    except TransientError as error:
        found = _cached(registry, cache, now, error)
        logger.warning(
            "registry: %s Version %s is used, last checked at %s",
            *(error, found.version, found.checked_at.isoformat(timespec="seconds")),
        )
        return found


def _fetched(registry: Registry, cache: Path, now: datetime) -> Champion:
    with tempfile.TemporaryDirectory() as temporary:
        version = registry.fetch(registry.named("champion"), Path(temporary))
        fingerprint, files = load(version.artifact).fingerprint, checksums(version.artifact)
        folder = cache / _name(files)
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache, prefix="."))
        try:
            copy_checked(version.artifact, files, partial, str(folder))
            _put(partial, folder, files)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    told = {
        "registry": shown(registry.tracking_uri),
        "model": registry.model,
        "version": version.number,
        "fingerprint": fingerprint,
        "files": files,
        "checked_at": now.astimezone(UTC).isoformat(),
    }
    partial_note = cache / f".{NOTE}.{os.getpid()}"
    partial_note.write_text(json.dumps(told, indent=2) + "\n")
    partial_note.replace(cache / NOTE)
    return Champion(folder, version.number, fingerprint, now, stale=False)


def _put(partial: Path, folder: Path, files: dict[str, str]) -> None:
    """Move `partial` to `folder`, unless the same files are there already."""
    if folder.exists() and not _is(folder, files):
        shutil.rmtree(folder)
    try:
        partial.rename(folder)
    except OSError:
        # Somebody else's copy came first; a folder is not renamed onto one that has files.
        if not _is(folder, files):
            raise


def _is(folder: Path, files: dict[str, str]) -> bool:
    try:
        return checksums(folder) == files
    except (InputError, FileNotFoundError):
        return False


def _cached(registry: Registry, cache: Path, now: datetime, error: TransientError) -> Champion:
    told = _note(cache / NOTE)
    if told is None:
        raise TransientError(f"{error} No champion was checked before, so nothing is scored.")
    if (told["registry"], told["model"]) != (shown(registry.tracking_uri), registry.model):
        raise TransientError(
            f"{error} The champion in {cache} is of model {told['model']!r} at {told['registry']}, so nothing is "
            "scored."
        )
    checked = datetime.fromisoformat(told["checked_at"])
    if not timedelta(0) <= now - checked < TRUSTED:
        raise TransientError(
            f"{error} The champion in {cache} was last checked at {told['checked_at']}, which is not within the 24 "
            f"hours before {now.astimezone(UTC).isoformat(timespec='seconds')}, so nothing is scored."
        )
    folder = cache / _name(told["files"])
    if not _is(folder, told["files"]) or load(folder).fingerprint != told["fingerprint"]:
        raise TransientError(f"{error} The champion in {folder} is not what was checked, so nothing is scored.")
    return Champion(folder, told["version"], told["fingerprint"], checked, stale=True)


def _note(path: Path) -> dict[str, Any] | None:
    """What `champion.json` says; None where it is absent or not to be understood."""
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        datetime.fromisoformat(told["checked_at"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return told if all(key in told for key in KEYS) else None


def _name(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
