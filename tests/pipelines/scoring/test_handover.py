"""What a sender without Delta is given: the rows that hold now, or nothing."""

import csv
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.errors import InputError
from pipelines import erase
from pipelines.cli import app
from pipelines.config import Config
from pipelines.etl.features import DAY, HOUR
from pipelines.scoring import freeze, handover, night
from tests.pipelines.hostile import START, tree
from tests.pipelines.scoring.candidates import candidate
from tests.pipelines.scoring.nights import EPOCH, configured, etl, lake, played, rows_of, score, write_candidates
from tests.pipelines.test_etl_crash import toml

AT = START + 49 * DAY + 12 * HOUR
NIGHT = "2024-04-26"
NOW = EPOCH + timedelta(microseconds=AT)
PEOPLE = [f"u{number}" for number in range(40)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored night: forty at noon, ten of them two hours later again."""
    folder = tmp_path_factory.mktemp("scored")
    lake(folder)
    rows = [candidate(user, f"c-{user}", AT) for user in PEOPLE]
    write_candidates(folder, rows + [candidate(user, f"d-{user}", AT + 2 * HOUR) for user in PEOPLE[::4]])
    config = configured(folder, run=str(folder / "run"))
    etl(config)
    score(config)
    return folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    """A copy of it, to harm."""
    shutil.copytree(scored, tmp_path / "copy")
    return tmp_path / "copy"


def given(file: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(file).to_pylist(), key=lambda row: row["candidate_id"])


def frozen_night(config: Config) -> None:
    with played(None) as session:
        night.run_frozen(session, config)


def manifest(config: Config) -> Path:
    return config.run_dir / "scores" / "manifests" / f"{NIGHT}.json"


def test_it_is_the_night_as_the_table_has_it(folder: Path, tmp_path: Path) -> None:
    config, file = configured(folder), tmp_path / "new" / "tonight.parquet"
    found = handover.hand_over(config, file, now=NOW)
    rows = rows_of(config)
    assert given(file) == [rows[name] for name in sorted(rows)]
    told = json.loads(manifest(config).read_text())
    assert found.by_action == told["by_action"]
    assert sum(count for action, count in found.by_action.items() if action != "hold") == told["sends"] > 0
    assert (found.night, found.left_out) == (NIGHT, 0)
    assert [path.name for path in file.parent.iterdir()] == ["tonight.parquet"]


def test_after_somebody_was_erased_the_night_waits_for_another_score(folder: Path, tmp_path: Path) -> None:
    """The manifest is of the rows before: whether the others still hold, only a run that knows of the request says."""
    config, file = configured(folder), tmp_path / "tonight.parquet"
    erase.forget(config, ["u4"])
    left = rows_of(config)
    assert "c-u4" not in left
    assert manifest(config).exists()
    with pytest.raises(InputError, match=r"not of the rows .*users were erased since.*`tactful score` again") as told:
        handover.hand_over(config, file, now=NOW)
    assert told.value.exit_code == 2
    assert not file.exists()
    # The candidates still have them; nobody decides about them.
    assert score(config)["forgotten"] == 2
    handover.hand_over(config, file, now=NOW)
    assert [row["candidate_id"] for row in given(file)] == sorted(left)


def test_csv_says_what_parquet_says(folder: Path, tmp_path: Path) -> None:
    config = configured(folder)
    for name in ("a.parquet", "a.csv"):
        handover.hand_over(config, tmp_path / name, NIGHT, now=NOW)
    with open(tmp_path / "a.csv", newline="") as stream:
        texts = sorted(csv.DictReader(stream), key=lambda row: row["candidate_id"])
    assert texts[0].keys() == given(tmp_path / "a.parquet")[0].keys()
    for text, row in zip(texts, given(tmp_path / "a.parquet"), strict=True):
        for name, value in row.items():
            if value is None:
                assert text[name] == ""
            elif isinstance(value, datetime):
                assert datetime.fromisoformat(text[name]) == value
            elif isinstance(value, list):
                assert json.loads(text[name]) == value
            else:
                assert type(value)(text[name]) == value


def test_frozen_then_scored_nothing_is_sent(folder: Path, tmp_path: Path) -> None:
    config = configured(folder)
    freeze.freeze(config, "an alarm")
    with pytest.raises(InputError, match=r"FROZEN since .* scored before; run `tactful score` again"):
        handover.hand_over(config, tmp_path / "a.parquet", now=NOW)
    frozen_night(config)
    found = handover.hand_over(config, tmp_path / "a.parquet", now=NOW)
    assert found.by_action == {"hold": 50}
    assert {row["action"] for row in given(tmp_path / "a.parquet")} == {"hold"}
    # What must never be done: the rows from before the freeze still lie there.
    files = (config.run_dir / "scores").rglob("*.parquet")
    assert sum(action != "hold" for file in files for action in pq.ParquetFile(file).read()["action"].to_pylist()) > 0


def test_what_is_past_its_time_is_left_out(folder: Path, tmp_path: Path) -> None:
    """A row holds for 24 hours: an hour later than that those of noon are void, those of two o'clock are not."""
    config, file = configured(folder), tmp_path / "a.parquet"
    found = handover.hand_over(config, file, now=NOW + timedelta(hours=25))
    assert (sum(found.by_action.values()), found.left_out) == (10, 40)
    assert [row["candidate_id"] for row in given(file)] == sorted(f"d-{user}" for user in PEOPLE[::4])
    with pytest.raises(InputError, match="all 50 rows are past their valid_until"):
        handover.hand_over(config, tmp_path / "b.parquet", now=NOW + timedelta(hours=26))
    assert not list(tmp_path.glob("*b.parquet*"))
    found = handover.hand_over(config, file, now=NOW + timedelta(hours=26), expired=True)
    assert (sum(found.by_action.values()), found.left_out) == (50, 0)


def without_manifest(config: Config) -> None:
    manifest(config).unlink()


def of_other_rows(config: Config) -> None:
    """A run that died between commit and manifest: the manifest is of the rows before."""
    before = manifest(config).read_text()
    freeze.freeze(config, "an alarm")
    frozen_night(config)
    freeze.unfreeze(config)
    manifest(config).write_text(before)


@pytest.mark.parametrize(
    ("harm", "asked", "message"),
    [
        (without_manifest, {}, "did not end; run `tactful score` again"),
        (of_other_rows, {}, "not of the rows that stand in the table"),
        (
            lambda _: None,
            {"night": "2024-04-25"},
            r"--night 2024-04-25: it was not scored \(newest nights: 2024-04-26\)",
        ),
        (lambda _: None, {"name": "a.txt"}, "a .txt; name a .parquet or a .csv"),
        (lambda config: shutil.rmtree(config.run_dir / "scores"), {}, "nothing was scored yet"),
    ],
)
def test_what_must_not_be_acted_on_is_refused(
    folder: Path, tmp_path: Path, harm: Any, asked: dict[str, str], message: str
) -> None:
    config = configured(folder)
    harm(config)
    file = tmp_path / asked.get("name", "a.parquet")
    file.write_text("yesterday's")
    with pytest.raises(InputError, match=message):
        handover.hand_over(config, file, asked.get("night"), now=NOW)
    # A sender that reads the file all the same finds what was there, not half of something.
    assert file.read_text() == "yesterday's"


def test_the_command(folder: Path, tmp_path: Path) -> None:
    made = tree(folder, "run")
    path = tmp_path / "my.toml"
    path.write_text("\n".join(toml(made)))
    out = str(tmp_path / "a.csv")
    refused = CliRunner().invoke(app, ["handover", str(path), "--out", out])
    assert "past their valid_until" in str(refused.exception)
    assert datetime.now(UTC) > NOW + timedelta(hours=26)
    done = CliRunner().invoke(app, ["handover", str(path), "--out", out, "--night", NIGHT, "--expired"])
    assert done.exit_code == 0, done.exception
    assert "night 2024-04-26: 50 rows (" in done.stdout
