"""What is told of a night beside its rows: scores/manifests/NIGHT.json, written once its rows are committed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.etl import files
from pipelines.etl.schemas import NAMES, Days, days_of
from pipelines.sections import Dataset
from pipelines.vacuum import MANIFESTS

TAIL = 1 << 16
"""Bytes at the end of a file that its fingerprint reads: of Parquet, the footer with its sums."""


def write(table: Path, night: str, manifest: dict[str, Any]) -> Path:
    """Write the manifest of a night whole or not at all."""
    path = table / MANIFESTS / f"{night}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)
    return path


def in_words(found: dict[str, Any], table: Path) -> str:
    """The manifest of a night for a terminal: how many were scored, what was decided and by what, and where it lies."""
    actions = ", ".join(f"{rows:,} {action}" for action, rows in _most(found["by_action"]))
    rules = ", ".join(f"{rule} {rows:,}" for rule, rows in _most(found["by_rule"]))
    who = "FROZEN" if found["model_version"] is None else f"by {found['policy']}, version {found['model_version']}"
    lines = [
        f"night {found['night']}: {found['candidates']:,} candidates of {found['users']:,} users scored, {who}",
        f"sends {found['sends']:,} ({found['expected_sends']:,.1f} expected): {actions}",
        f"decided by: {rules}",
    ]
    if found["void"]:
        lines.append(f"VOID: {found['void']:,} candidates had expired before they were scored (score.valid_hours)")
    if found["forgotten"]:
        lines.append(f"left out: {found['forgotten']:,} candidates of users who were erased")
    place = table.resolve()
    manifest = place / MANIFESTS / f"{found['night']}.json"
    return "\n".join([*lines, f"written: {place} (Delta table, version {found['version']}), {manifest}"])


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def fingerprints(config: Config, codes: range, days: Days | None) -> dict[str, str]:
    """By dataset, a hash of the files that a night reads: their places, sizes and last 64 KiB."""
    found = {}
    for code in codes:
        dataset: Dataset | None = getattr(config.data, NAMES[code])
        if dataset is not None:
            found[NAMES[code]] = _fingerprint(f"data.{NAMES[code]}", dataset.path.resolve(), days_of(code, days))
    return found


def _fingerprint(key: str, path: Path, days: Days | None) -> str:
    digest = hashlib.sha256()
    for name, day in files.placed(key, path):
        if days is not None and day is not None and not days[0] <= day <= days[1]:
            continue
        with open(name, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(size - TAIL, 0))
            content = hashlib.sha256(stream.read()).hexdigest()
        digest.update(json.dumps([os.path.relpath(name, path), size, content]).encode())
    return digest.hexdigest()[:16]
