"""What a scheduler waits for, and what a run takes in that is told only where to end."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError, TransientError
from pipelines import jobs
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.flow import run_etl
from pipelines.etl.ready import waited_for
from pipelines.etl.window import EVER, days_until
from tests.pipelines.hostile import configured, write_days
from tests.pipelines.inprocess import in_process
from tests.pipelines.test_etl_incremental import FIRST, check_same, decided, happened, pulse, text


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Twenty arrival days, 0 to 19."""
    rows = [decided("u", day + 0.3) for day in range(0, 20, 2)] + [happened("u", 12.5, "disable")]
    write_days(pulse(20) + rows, tmp_path)
    return tmp_path


def strict(lake: Path, run: str = "run", **etl: Any) -> Config:
    """No gap is known, and the watermark moves."""
    return configured(lake, run, **{"watermark": None, "known_gaps": [], **etl})


def until(config: Config, day: int, **more: Any) -> dict[str, Any]:
    """One run that is told only its last day, as `tactful etl --to`."""
    days = days_until(store.opened(config.transitions_path), FIRST + day)
    return {**run_etl_in_process(config, days, **more), "asked": days}


def run_etl_in_process(config: Config, days: tuple[int, int]) -> dict[str, Any]:
    with in_process() as session:
        return dict(run_etl(session, config, days=days))


def test_the_first_run_takes_in_the_log_from_its_beginning(lake: Path) -> None:
    by_name, to = strict(lake, "named"), strict(lake, "to")
    named = run_etl_in_process(by_name, (FIRST, FIRST + 11))
    found = until(to, 11)
    assert found["asked"] == (EVER, FIRST + 11)
    assert found["days"] == [text(FIRST), text(FIRST + 11)]
    assert found["fingerprint"] == named["fingerprint"]
    check_same(to, by_name)


def test_later_runs_take_in_what_is_new_and_a_day_again_where_nothing_is(lake: Path) -> None:
    whole, to = strict(lake, "whole"), strict(lake, "to")
    wanted = run_etl_in_process(whole, (FIRST, FIRST + 19))
    # Day by day; three days that nobody ran for; the last one again, and an old one.
    found = [until(to, day) for day in (10, 11, 12, 16, 17, 18, 19, 19, 13)]
    assert [report["asked"] for report in found[1:]] == [
        *((FIRST + day, FIRST + day) for day in (11, 12)),
        (FIRST + 13, FIRST + 16),
        *((FIRST + day, FIRST + day) for day in (17, 18, 19, 19, 13)),
    ]
    assert [report["fingerprint"] for report in found[-3:]] == [wanted["fingerprint"]] * 3
    check_same(to, whole)


def test_a_lake_that_begins_later_is_told_as_one_without_rows(lake: Path) -> None:
    with pytest.raises(InputError, match=r"data\.decisions: no rows"):
        until(strict(lake), -3)


def files_of(lake: Path, dataset: str, day: int) -> list[Path]:
    return sorted((lake / dataset / f"ds={text(FIRST + day)}").iterdir())


def test_a_day_is_there_when_every_dataset_has_whole_files_of_it(lake: Path) -> None:
    config = strict(lake)
    assert waited_for(config, (EVER, FIRST + 19)) == waited_for(config, (FIRST, FIRST + 19)) == []
    (file,) = files_of(lake, "events", 19)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    (lacking,) = waited_for(config, (EVER, FIRST + 19))
    assert "data.events" in lacking
    assert "no readable Parquet file" in lacking
    file.rename(file.with_name("_0.parquet"))
    (lacking,) = waited_for(config, (EVER, FIRST + 19))
    assert f"data.events: no file for {text(FIRST + 19)}" in lacking
    assert waited_for(config, (EVER, FIRST + 18)) == []


def test_every_day_that_the_run_would_take_in_is_waited_for(lake: Path) -> None:
    for file in files_of(lake, "decisions", 17):
        file.unlink()
    assert waited_for(strict(lake), (FIRST + 18, FIRST + 19)) == []
    (lacking,) = waited_for(strict(lake), (FIRST + 16, FIRST + 19))
    assert f"data.decisions: no file for {text(FIRST + 17)}" in lacking
    assert waited_for(strict(lake, known_gaps=[text(FIRST + 17)]), (FIRST + 16, FIRST + 19)) == []


def test_a_marker_says_that_a_folder_is_whole(lake: Path) -> None:
    config = strict(lake)
    lacking = waited_for(config, (EVER, FIRST + 19), "_SUCCESS")
    assert [each.split(":")[0] for each in lacking] == ["data.decisions", "data.events"]
    for dataset in ("decisions", "events"):
        (lake / dataset / f"ds={text(FIRST + 19)}" / "_SUCCESS").touch()
    assert waited_for(config, (EVER, FIRST + 19), "_SUCCESS") == []


def test_a_dataset_without_days_is_there_once_it_exists(lake: Path) -> None:
    config = strict(lake)
    (lake / "one").mkdir()
    decisions = config.data.decisions.model_copy(update={"path": lake / "one"})
    flat = config.model_copy(update={"data": config.data.model_copy(update={"decisions": decisions})})
    assert waited_for(flat, (EVER, FIRST + 19)) == [f"data.decisions: {lake / 'one'} holds no file yet."]
    (file,) = files_of(lake, "decisions", 3)
    (lake / "one" / "log.parquet").write_bytes(file.read_bytes())
    assert waited_for(flat, (EVER, FIRST + 19)) == []
    (lacking,) = waited_for(flat, (EVER, FIRST + 20))
    assert lacking.startswith("data.events: ")


def test_the_command_says_not_yet_as_a_transient_error(lake: Path) -> None:
    config = strict(lake)
    jobs.ready(config, text(FIRST + 19))
    until(config, 15)
    with pytest.raises(TransientError, match=f"no file for {text(FIRST + 20)}"):
        jobs.ready(config, text(FIRST + 20))
    for file in files_of(lake, "decisions", 17):
        file.unlink()
    # The table ends with day 15, so that a run up to 19 would take in 16 to 19.
    with pytest.raises(TransientError, match=f"no file for {text(FIRST + 17)}"):
        jobs.ready(config, text(FIRST + 19))
    jobs.ready(config, text(FIRST + 19), first=text(FIRST + 18))


@pytest.mark.parametrize(
    ("days", "message"),
    [
        ({"last": "tomorrow"}, "--to is 'tomorrow'"),
        ({"last": "2026-01-02", "first": "soon"}, "--from is 'soon'"),
        ({"last": "2026-01-02", "first": "2026-01-03"}, "--from 2026-01-03 lies after --to 2026-01-02"),
    ],
)
def test_days_that_are_none(lake: Path, days: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        jobs.ready(strict(lake), **days)
