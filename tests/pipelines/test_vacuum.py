"""Kept versions stay readable, all else goes, a running job's files stay, and no writer loses by it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from models import artifact
from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.etl import staging, store
from pipelines.etl.schemas import Layout
from pipelines.jobs import data
from pipelines.vacuum import in_words, vacuum

ROWS = pa.schema([("user_id", pa.string()), ("n", pa.int64()), ("ds", pa.string())])
LAYOUT = Layout(ROWS, ("ds",))
DAYS = ("2026-01-01", "odd day%2F=é")
HOUR = 3600.0


def make(folder: Path, **retention: Any) -> Config:
    tree = {
        "name": "vacuum",
        "run_dir": str(folder / "run"),
        "rewards": ["column:steps"],
        "data": {"decisions": {"path": str(folder / "run" / "lake")}},
        "features": {"context": ["relevance"]},
        "train": {"weights": {"steps": 1.0}, "learners": {"ddqn": 0.0}},
        "gate": {"candidate": "ddqn", "metrics": {}},
        "retention": retention,
    }
    return validate(tree, "vacuum.toml")


def stage(config: Config, name: str, version: int, day: str, run: str) -> staging.Staged:
    rows = pa.table({"user_id": ["a", "b"], "n": [version, version], "ds": [day, day]}, schema=ROWS)
    return staging.write(rows, config.run_dir / name, run, LAYOUT, {"ds": day})


def commit(config: Config, name: str, version: int, replace: str | None = None) -> int:
    """A new version of both days, or of one of them."""
    table, run = config.run_dir / name, staging.new_run()
    staged = [stage(config, name, version, day, run) for day in (DAYS if replace is None else (replace,))]
    parts = None if replace is None else {"ds": [replace]}
    return store.commit(table, staged, LAYOUT, {"etl_hash": "h"}, store.opened(table), parts)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two tables of five versions; versions 1 to 4 of `transitions` share the file of the first day."""
    config = make(tmp_path, versions=2)
    for version in range(5):
        commit(config, "transitions", version, replace=DAYS[1] if version > 1 else None)
        commit(config, "quarantine/events", version)
    return config


def readable(config: Config, name: str) -> dict[int, list[int]]:
    """Version -> its values of n, of every version that can be read."""
    found = {}
    for version in range(DeltaTable(config.run_dir / name).version() + 1):
        try:
            rows = DeltaTable(config.run_dir / name, version=version).to_pyarrow_table()
        except FileNotFoundError:
            continue
        found[version] = sorted(set(rows["n"].to_pylist()))
    return found


def on_disk(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def age(path: Path, hours: float) -> None:
    os.utime(path, (time.time() - hours * HOUR,) * 2)


def test_the_newest_and_the_pinned_stay_and_the_rest_goes(config: Config) -> None:
    before = on_disk(config.run_dir)
    found = vacuum(config, [{"data_version": 1, "estimates_version": None}])
    assert readable(config, "transitions") == {1: [1], 3: [1, 3], 4: [1, 4]}
    assert readable(config, "quarantine/events") == {3: [3], 4: [4]}
    # Transitions: both files of version 0 and the one that version 2 added; quarantine: two each of versions 0 to 2.
    gone = {path: size for path, size in before.items() if path not in on_disk(config.run_dir)}
    assert {name: (each.files, each.versions) for name, each in found.items()} == {
        "transitions": (3, (1, 3, 4)),
        "quarantine/events": (6, (3, 4)),
    }
    assert len(gone) == 9
    assert sum(each.bytes for each in found.values()) == sum(gone.values())
    assert not any(path.is_dir() and not any(path.iterdir()) for path in config.run_dir.rglob("*"))
    assert "transitions: 3 files" in in_words(found, dry_run=False)
    assert "versions kept: 1, 3-4" in in_words(found, dry_run=False)
    assert all(each.files == 0 for each in vacuum(config, [{"data_version": 1}]).values())


def test_a_dry_run_says_the_same_and_removes_nothing(config: Config) -> None:
    before = on_disk(config.run_dir)
    would = vacuum(config, [], dry_run=True)
    assert on_disk(config.run_dir) == before
    assert "would be removed" in in_words(would, dry_run=True)
    assert vacuum(config, []) == would


def test_only_old_files_that_no_commit_names_go(config: Config) -> None:
    table = config.transitions_path
    old = table / stage(config, "transitions", 7, DAYS[1], "crashed").path
    fresh = table / stage(config, "transitions", 8, DAYS[1], "running").path
    torn = old.parent / f".{old.name}.half"
    torn.write_bytes(b"PAR1")
    age(old, 25)
    age(torn, 25)
    age(fresh, 23)
    old_empty, fresh_empty = table / "crashed-early" / "ds=x", table / "just-begun" / "ds=x"
    for folder in (old_empty, fresh_empty):
        folder.mkdir(parents=True)
    age(old_empty, 25)
    vacuum(config, [])
    assert fresh.exists()
    assert fresh_empty.exists()
    assert not old.parent.parent.exists()
    assert not old_empty.parent.exists()
    assert readable(config, "transitions") == {3: [1, 3], 4: [1, 4]}
    vacuum(config.model_copy(update={"retention": config.retention.model_copy(update={"orphan_hours": 22})}), [])
    assert not fresh.parent.parent.exists()


def test_old_files_of_kept_versions_stay(config: Config) -> None:
    for path in config.transitions_path.rglob("*.parquet"):
        age(path, 24 * 365)
    vacuum(config, [])
    assert readable(config, "transitions") == {3: [1, 3], 4: [1, 4]}


def test_a_writer_on_the_way_does_not_lose(config: Config) -> None:
    table = config.transitions_path
    base = store.opened(table)
    staged = stage(config, "transitions", 5, DAYS[1], staging.new_run())
    vacuum(config, [])
    assert store.commit(table, [staged], LAYOUT, {}, base, {"ds": [DAYS[1]]}) == 5
    assert readable(config, "transitions")[5] == [1, 5]


def test_what_is_committed_meanwhile_stays(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run commits after the newest version was read, and before anything is removed."""
    real, done = store.files, []

    def slow(table: DeltaTable) -> Any:
        if "transitions" in table.table_uri and not done:
            done.append(commit(config, "transitions", 5, replace=DAYS[1]))
        return real(table)

    monkeypatch.setattr(store, "files", slow)
    vacuum(config, [])
    assert readable(config, "transitions")[5] == [1, 5]


def test_a_pin_that_the_log_does_not_know_is_passed_over(config: Config) -> None:
    assert vacuum(config, [{"data_version": 99}])["transitions"].versions == (3, 4)


def test_a_raw_dataset_in_the_run_folder_is_not_a_table_of_ours(config: Config) -> None:
    for version in range(5):
        commit(config, "lake", version)
    before = on_disk(config.run_dir / "lake")
    assert set(vacuum(config, [])) == {"transitions", "quarantine/events"}
    assert on_disk(config.run_dir / "lake") == before


class Versions:
    """A registry whose champion was learned from version 0, and which has no challenger."""

    database = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def alias(self, alias: str) -> str | None:
        return "1" if alias == "champion" else None

    def load(self, alias: str) -> tuple[Path, str]:
        return self.folder, "1"


def test_models_pin_what_they_were_learned_from(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest training names version 1, the champion version 0; a registry that is not there is not made."""
    (config.run_dir / "steps").mkdir()
    (config.run_dir / "steps" / "train.json").write_text(json.dumps({"lineage": {"data_version": 1}}))
    assert jobs.vacuum(config, dry_run=True)["transitions"].versions == (1, 3, 4)
    assert not (config.run_dir / "mlflow.db").exists()
    (config.run_dir / "mlflow.db").touch()
    monkeypatch.setattr(data, "registry_of", lambda _: Versions(config.run_dir))

    class Champion:
        lineage = {"data_version": 0}  # noqa: RUF012

    monkeypatch.setattr(artifact, "load", lambda _: Champion)
    assert jobs.vacuum(config)["transitions"].versions == (0, 1, 3, 4)
    assert readable(config, "transitions").keys() == {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("retention", "message"),
    [({"versions": 0}, "retention.versions: found 0"), ({"orphan_hours": -1}, "retention.orphan_hours: found -1")],
)
def test_retention_that_keeps_nothing_is_refused(tmp_path: Path, retention: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, **retention)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run: no table there; check run_dir"):
        vacuum(make(tmp_path), [])
