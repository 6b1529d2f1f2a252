"""The nights of the scores table: which there are, by which version they were scored, and what was written beside."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable
from numpy.typing import NDArray

from models import artifact
from models.errors import InputError
from models.registry import Registry
from pipelines.config import Config
from pipelines.etl import store

ALIASES = ("champion", "previous", "challenger")
EVALUATION = Path("judged", "evaluation.json")
"""Where a version's evaluation lies, beside the folder of its artifact."""
NAMELESS = "no alias of the registry names the version that scored any more"
"""Why the model of a night is not at hand."""


@dataclass(frozen=True)
class Nights:
    """One version of the scores table."""

    table: DeltaTable
    paths: dict[str, list[Path]]
    """Night -> its files."""

    @classmethod
    def of(cls, config: Config) -> "Nights":
        """Raises InputError where nothing was scored yet."""
        table = store.opened(config.run_dir / "scores")
        if table is None:
            raise InputError(f"{config.run_dir / 'scores'}: nothing was scored yet; run `tactful score CONFIG` first.")
        paths: dict[str, list[Path]] = {}
        for path, partition in store.files(table):
            paths.setdefault(partition["night"], []).append(store.place(table, path))
        if not paths:
            raise InputError(f"{config.run_dir / 'scores'}: it holds no night; run `tactful score CONFIG` first.")
        return cls(table, dict(sorted(paths.items())))

    def between(self, first: str, last: str) -> list[str]:
        """The nights from `first` to `last`, YYYY-MM-DD, both included.

        Raises InputError where an end is no date, they are in the wrong order, or no night lies between them.
        """
        for key, text in (("first", first), ("last", last)):
            try:
                date.fromisoformat(text)
            except ValueError:
                raise InputError(f"monitor: the {key} night is {text!r}; give a date such as 2026-01-31.") from None
        if first > last:
            raise InputError(f"monitor: the first night, {first}, lies after the last, {last}; name the first first.")
        found = [night for night in self.paths if first <= night <= last]
        if not found:
            known = ", ".join(list(self.paths)[-7:])
            asked = first if first == last else f"{first} to {last}"
            raise InputError(f"monitor: {asked} was not scored (newest nights: {known}); name a night that was.")
        return found

    def around(self, night: str, days: int) -> list[str]:
        """The other nights within so many days of it."""
        there = date.fromisoformat(night)
        return [each for each in self.paths if each != night and abs((date.fromisoformat(each) - there).days) <= days]

    def facts(self, night: str) -> tuple[str, str]:
        """(policy, policy_version) that scored a night, the same in every row; "none" where none did."""
        for path in self.paths[night]:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1, columns=["policy", "policy_version"]):
                    row = batch.to_pylist()[0]
                    return str(row["policy"]), str(row["policy_version"] or "none")
        raise InputError(f"monitor: the night of {night} has no rows; score it again.")

    def window(self, night: str, length: int) -> list[str]:
        """The nights up to `night`, so many days back, that the version of `night` scored too."""
        version = self.facts(night)[1]
        earlier = [each for each in self.around(night, length - 1) if each < night]
        return [*(each for each in earlier if self.facts(each)[1] == version), night]

    def values(self, night: str, names: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Some number columns of a night, [n, len(names)] at a time, NaN where null."""
        for path in self.paths[night]:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1 << 17, columns=list(names)):
                    columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in names]
                    yield np.stack(columns, axis=1).astype(np.float64)


def manifest_of(config: Config, night: str) -> dict[str, Any]:
    """What scoring wrote beside the night, or its step of the newest one, as `_flat`; empty where neither is."""
    for path in (config.run_dir / "scores" / "manifests" / f"{night}.json", config.run_dir / "steps" / "score.json"):
        if path.exists():
            found = dict(json.loads(path.read_text()))
            if found.get("night") == night:
                return _flat(found)
    return {}


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Its figures and words, those of a part as PART_NAME, without lists."""
    parts = {key: part for key, part in manifest.items() if isinstance(part, Mapping)}
    whole = {**manifest, **{f"{key}_{name}": each for key, part in parts.items() for name, each in part.items()}}
    return {key: value for key, value in whole.items() if isinstance(value, (int, float, str, bool))}


@dataclass(frozen=True)
class Model:
    """The version that scored a night."""

    artifact: artifact.Artifact
    evaluation: dict[str, Any] | None
    """What it was promoted on, where the registry keeps that beside it."""


def model_of(versions: Registry, version: str) -> Model | None:
    """A registered version that one of ALIASES names; None where none does."""
    named = next((alias for alias in ALIASES if versions.alias(alias) == version), None)
    if named is None:
        return None
    folder, _ = versions.load(named)
    kept = folder.parent / EVALUATION
    return Model(artifact.load(folder), json.loads(kept.read_text()) if kept.exists() else None)


def earlier_reports(config: Config, nights: Sequence[str]) -> list[dict[str, Any]]:
    """What monitoring left of some nights, those that have it."""
    paths = [config.run_dir / "monitor" / night / "monitor.json" for night in nights]
    return [json.loads(path.read_text()) for path in paths if path.exists()]
