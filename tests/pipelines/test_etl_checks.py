"""A wrong path or column is told before a Spark session starts, and nothing right is refused."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.etl import checks
from pipelines.etl.checks import check_inputs
from pipelines.etl.files import read_footer
from pipelines.etl.schemas import DECISIONS
from pipelines.jobs import acting, data, judging
from pipelines.scoring import freeze

HEADER = "decision_id,user_id,decided_at,action,relevance"
ROW = "d,u,2026-01-01 10:00:00,send,0.5"


def configured(folder: Path, **changed: Any) -> Config:
    """A log of decisions and candidates, both of which lie there as CSV; `changed` are keys of data.decisions."""
    (folder / "decisions.csv").write_text(f"{HEADER}\n{ROW}\n")
    (folder / "candidates.csv").write_text("candidate_id,user_id,decide_at,relevance\nc,u,2026-01-02 10:00:00,0.5\n")
    tree = {
        "name": "checked",
        "run_dir": str(folder / "run"),
        "rewards": ["sends"],
        "data": {
            "decisions": {"path": str(folder / "decisions.csv"), **changed.pop("decisions", {})},
            "candidates": {"path": str(folder / "candidates.csv")},
        },
        "features": {"context": ["relevance"]},
        **changed,
    }
    return validate(tree, "checked.toml")


@pytest.fixture
def no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("a session was started")

    for module in (jobs, acting, data, judging):
        monkeypatch.setattr(module, "session", started)


LEARNS = {
    "train": {"weights": {"sends": -1.0}},
    "gate": {"metrics": {"sends": {"direction": "down", "margin": 0.1, "improve": True}}},
}
NOWHERE = {"decisions": {"path": "/nowhere/decisions.csv"}}
OTHER = {"kind": "logged", "by": ["relevance"], "path": "/nowhere/other.csv"}


@pytest.mark.parametrize(
    ("command", "changed", "words"),
    [
        (jobs.etl, NOWHERE, ["data.decisions.path: /nowhere/decisions.csv does not exist"]),
        (jobs.run, NOWHERE, ["data.decisions.path: /nowhere/decisions.csv does not exist"]),
        (jobs.score, NOWHERE, ["data.decisions.path: /nowhere/decisions.csv does not exist"]),
        (jobs.run, {"evaluate": {"policies": {"bts": OTHER}}}, ["evaluate.policies.bts.path: /nowhere/other.csv"]),
        (jobs.evaluate, {"evaluate": {"policies": {"bts": OTHER}}}, ["evaluate.policies.bts.path: /nowhere/other.csv"]),
        (
            jobs.etl,
            {"decisions": {"columns": {"action": "aktion"}}},
            ["data.decisions.columns.action: 'aktion' is no column", "did you mean 'action'", "decided_at"],
        ),
        (jobs.etl, {"decisions": {"columns": {"propensitty": "0.5"}}}, ["'propensitty' is not read"]),
        (jobs.etl, {"features": {"context": ["relevanse"]}}, ["no column 'relevanse'", "did you mean 'relevance'"]),
    ],
)
def test_a_wrong_place_or_name_is_told_without_spark(
    no_spark: None, tmp_path: Path, command: Callable[[Config], Any], changed: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        command(configured(tmp_path, **changed))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("command", [jobs.run, jobs.score])
def test_candidates_that_are_not_there_are_told_before_anything_is_learned(
    no_spark: None, tmp_path: Path, command: Callable[[Config], Any]
) -> None:
    config = configured(tmp_path, **LEARNS)
    (tmp_path / "candidates.csv").unlink()
    with pytest.raises(InputError, match=r"data\.candidates\.path: .*candidates\.csv does not exist"):
        command(config)


def test_a_frozen_night_asks_for_candidates_alone(no_spark: None, tmp_path: Path) -> None:
    """The brake must work while the log is away."""
    config = configured(tmp_path, **NOWHERE)
    freeze.freeze(config, "a test")
    with pytest.raises(AssertionError, match="a session was started"):
        jobs.score(config)
    (tmp_path / "candidates.csv").unlink()
    with pytest.raises(InputError, match=r"data\.candidates\.path"):
        jobs.score(config)


@pytest.mark.parametrize(
    "mapping",
    [
        {"action": "ACTION"},
        {"action": "if(relevance > 0, 'send', 'hold')"},
        {"propensity": "null", "policy_id": "current_user"},
        {"decided_at": "`decided_at`"},
    ],
)
def test_what_spark_would_read_is_not_refused(mapping: dict[str, str], tmp_path: Path) -> None:
    check_inputs(configured(tmp_path, decisions={"columns": mapping}), range(4))


@pytest.mark.parametrize("separator", ["\\", '"', "\r", "\n", "||", ""])
def test_a_separator_that_spark_cannot_use_is_refused(tmp_path: Path, separator: str) -> None:
    with pytest.raises(InputError) as caught:
        configured(tmp_path, decisions={"separator": separator})
    assert "data.decisions.separator" in str(caught.value)
    assert "one character, and no quote, backslash or end of a line" in str(caught.value)


def test_headers_are_read_as_spark_reads_them(tmp_path: Path) -> None:
    """A byte order mark and blank lines before the header, compressed, and quoted names."""
    quoted = ",".join(f'"{name}"' for name in HEADER.split(","))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(f"\ufeff\n{quoted}\n{ROW}\n".encode()))
    check_inputs(configured(tmp_path, decisions={"path": str(tmp_path / "log.csv.gz")}), range(1))


def test_a_column_may_be_in_some_files_only_or_in_the_names_of_folders(tmp_path: Path) -> None:
    names = HEADER.split(",")
    lake = tmp_path / "lake"
    for day, columns in (("2026-01-01", names[:3]), ("2026-01-02", [*names[:3], "relevance"])):
        (lake / f"ds={day}" / "action=send").mkdir(parents=True)
        rows = pa.table({name: pa.array(["x"]) for name in columns})
        pq.write_table(rows, lake / f"ds={day}" / "action=send" / "part.parquet")
    check_inputs(configured(tmp_path, decisions={"path": str(lake)}), range(1))
    with pytest.raises(InputError, match="no column 'wealth'"):
        check_inputs(configured(tmp_path, decisions={"path": str(lake)}, features={"context": ["wealth"]}), range(1))


def test_files_that_only_spark_can_open_are_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "log.csv.bz2").write_bytes(b"BZh9")
    check_inputs(configured(tmp_path, decisions={"path": str(tmp_path / "log.csv.bz2"), "format": "csv"}), range(1))


def parquet(folder: Path, columns: str) -> Path:
    """One file of one row with these columns, separated by commas."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(["x"]) for name in columns.split(",")}), folder / "p.parquet")
    return folder / "p.parquet"


def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Learns the folder of each file whose footer is read."""
    read: list[str] = []

    def footer(key: str, name: str) -> pq.ParquetFile:
        read.append(Path(name).parent.name)
        return read_footer(key, name)

    monkeypatch.setattr(checks, "read_footer", footer)
    return read


@pytest.mark.parametrize("broken", ["2026-01-01", "2026-01-03"])
def test_a_broken_file_of_a_day_is_left_to_the_runs_that_read_it(tmp_path: Path, broken: str) -> None:
    lake = tmp_path / "lake"
    parquet(lake / "ds=2026-01-02", HEADER)
    (lake / f"ds={broken}").mkdir()
    (lake / f"ds={broken}" / "p.parquet").touch()
    check_inputs(configured(tmp_path, decisions={"path": str(lake)}), range(1))
    # It may have the column.
    check_inputs(configured(tmp_path, decisions={"path": str(lake)}, features={"context": ["wealth"]}), range(1))


@pytest.mark.parametrize("name", ["p.parquet", "log.csv"])
def test_a_broken_file_that_every_run_reads_is_told(tmp_path: Path, name: str) -> None:
    lake = tmp_path / "lake"
    parquet(lake / "ds=2026-01-02", HEADER)
    (lake / name).touch()
    for path in (lake, lake / name):
        config = configured(
            tmp_path, decisions={"path": str(path), "format": "parquet"}, features={"context": ["wealth"]}
        )
        with pytest.raises(InputError, match=rf"data\.decisions: .*{name} is no readable Parquet file"):
            check_inputs(config, range(1))


def test_a_column_that_came_lately_is_found_in_the_newest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, names = tmp_path / "lake", HEADER.removesuffix(",relevance")
    for day, columns in (("ds=2026-01-01", names), ("ds=2026-01-02", names), ("ds=2026-01-03", HEADER)):
        parquet(lake / day, columns)
    read = read_names(monkeypatch)
    check_inputs(configured(tmp_path, decisions={"path": str(lake)}), range(1))
    assert read == ["ds=2026-01-03"]


def test_only_so_many_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = tmp_path / "lake"
    for day in ("ds=2026-01-02", "ds=2026-01-03", "ds=2026-01-04"):
        parquet(lake / day, HEADER)
    read = read_names(monkeypatch)
    monkeypatch.setattr(checks, "LOOKED_AT", 3)
    config = configured(tmp_path, decisions={"path": str(lake)}, features={"context": ["wealth"]})
    with pytest.raises(InputError, match="no column 'wealth'"):
        check_inputs(config, range(1))
    assert len(read) == 3
    parquet(lake / "ds=2026-01-01", f"{HEADER},wealth")
    read.clear()
    check_inputs(config, range(1))
    assert read == ["ds=2026-01-04", "ds=2026-01-03", "ds=2026-01-02"]


def test_a_row_that_stands_where_the_header_should_is_not_shown(tmp_path: Path) -> None:
    """All columns are mapped, so that the first of them is missed, and a row's address is no suggestion."""
    own = {"decision_id": "nr", "user_id": "who", "decided_at": "moment", "action": "what", "relevance": "score"}
    config = configured(tmp_path, decisions={"columns": own})
    (tmp_path / "decisions.csv").write_text("7,who@example.org,2026-01-01 10:00:00,send,0.5\n" * 2)
    with pytest.raises(InputError, match="does not look like a header") as caught:
        check_inputs(config, [DECISIONS])
    assert "example.org" not in str(caught.value)
