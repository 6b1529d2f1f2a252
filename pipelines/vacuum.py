"""Files that no kept version of a table needs, and files that no version ever named.

Delta's own `vacuum` is not used: it commits, so that a run of the ETL on the way would lose.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store

LOG = "_delta_log"
MANIFESTS = "manifests"
"""Folder of a table in which a person is told of its rows; it holds none."""
PINS = {"transitions": "data_version", "propensities": "estimates_version"}
"""Table -> key of a model's lineage that names the version it was learned from."""


@dataclass(frozen=True)
class Removed:
    """What was removed from one table's folder, or would be."""

    files: int
    bytes: int
    versions: tuple[int, ...]
    """Those whose files stay."""


def vacuum(config: Config, lineages: Sequence[Mapping[str, Any]], dry_run: bool = False) -> dict[str, Removed]:
    """Remove the files that no kept version of a table needs; returns what was removed, by table.

    Kept are the newest `retention.versions` of each table, and those that the `lineages` of models name. A file that no
    commit ever named goes once it is `retention.orphan_hours` old: until then it may be a running job's. Nothing is
    committed, so that no writer loses.

    Raises InputError where run_dir has no table.
    """
    return {
        name: _vacuum(table, config, {int(each[PINS[name]]) for each in lineages if _pins(each, name)}, dry_run)
        for name, table in tables(config).items()
    }


def in_words(found: Mapping[str, Removed], dry_run: bool) -> str:
    """A line a table, and their sum."""
    verb = "would be removed" if dry_run else "removed"
    lines = [
        f"{name}: {each.files} files, {each.bytes:,} bytes {verb}; versions kept: {_ranges(each.versions)}"
        for name, each in found.items()
    ]
    files, total = sum(each.files for each in found.values()), sum(each.bytes for each in found.values())
    return "\n".join([*lines, f"in all {files} files, {total:,} bytes {verb}"])


def tables(config: Config) -> dict[str, Path]:
    """The Delta tables of the run's folder by their name in it; raw datasets that lie within it are not ours.

    Raises InputError where there is none.
    """
    raw = {dataset.path.resolve() for _, dataset in config.data if dataset is not None}
    found = {}
    for folder, folders, _ in os.walk(config.run_dir):
        if LOG in folders:
            found[Path(folder).relative_to(config.run_dir).as_posix()] = Path(folder)
            folders.clear()
        folders[:] = sorted(name for name in folders if Path(folder, name).resolve() not in raw)
    if not found:
        raise InputError(f"{config.run_dir}: no table there; check run_dir, or run `tactful etl` first.")
    return found


def present(table: Path) -> dict[str, tuple[int, float]]:
    """Path relative to the table -> (bytes, time of the last change) of every file beside the log and manifests."""
    found = {}
    for folder, folders, names in os.walk(table):
        if Path(folder) == table:
            folders[:] = [name for name in folders if name not in (LOG, MANIFESTS)]
        for name in names:
            path = Path(folder, name)
            # A running job may have just moved it.
            with suppress(FileNotFoundError):
                status = path.stat()
                found[path.relative_to(table).as_posix()] = status.st_size, status.st_mtime
    return found


def remove(table: Path, paths: Iterable[str], oldest: float = 0) -> None:
    """Remove files, and folders that are empty then; one that was empty before only if last changed before `oldest`."""
    emptied = set()
    for path in paths:
        (table / path).unlink(missing_ok=True)
        emptied.add((table / path).parent)
    for folder, _, _ in os.walk(table, topdown=False):
        here = Path(folder)
        if here != table and (here in emptied or here.stat().st_mtime < oldest):
            with suppress(OSError):
                here.rmdir()
                emptied.add(here.parent)


def _vacuum(table: Path, config: Config, pinned: set[int], dry_run: bool) -> Removed:
    oldest = time.time() - config.retention.orphan_hours * 3600
    # In this order: what is committed from here on is not named yet, and young.
    named, there = _named(table), present(table)
    newest = int(DeltaTable(table).version())
    wanted = sorted({*range(max(newest - config.retention.versions + 1, 0), newest + 1), *pinned})
    kept = {version: paths for version in wanted if (paths := _needed(table, version)) is not None}
    needed = {path for paths in kept.values() for path in paths}
    stale = {
        path: size
        for path, (size, changed) in there.items()
        if path not in needed and (path in named or changed < oldest)
    }
    if not dry_run:
        remove(table, stale, oldest)
    return Removed(len(stale), sum(stale.values()), tuple(kept))


def _pins(lineage: Mapping[str, Any], name: str) -> bool:
    return name in PINS and lineage.get(PINS[name]) is not None


def _named(table: Path) -> set[str]:
    """Every file that a commit in the log added."""
    lines = (line for path in sorted((table / LOG).glob("*.json")) for line in path.read_text().splitlines())
    actions = (json.loads(line) for line in lines if line)
    return {unquote(action["add"]["path"]) for action in actions if "add" in action}


def _needed(table: Path, version: int) -> list[str] | None:
    """The files of a version; None where the log does not know it, or no longer."""
    try:
        return [unquote(path) for path, _ in store.files(DeltaTable(table, version=version))]
    except DeltaError:
        return None


def _ranges(versions: Sequence[int]) -> str:
    """`2, 5-7`."""
    starts = [v for v in versions if v - 1 not in versions]
    ends = [v for v in versions if v + 1 not in versions]
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))
