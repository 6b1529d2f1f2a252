"""One night from the lake to the scores, in this process: what is read, who decides, what is told, what goes wrong."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from models.errors import InputError, TransientError
from pipelines import erase, vacuum
from pipelines.cli import app
from pipelines.config import Config
from pipelines.etl import staging
from pipelines.etl.features import DAY, HOUR
from pipelines.etl.schemas import DECISIONS, EVENTS
from pipelines.scoring import freeze, night
from tests.pipelines.hostile import START, Row, a_log, tree, write_days
from tests.pipelines.scoring.candidates import candidate
from tests.pipelines.scoring.nights import champion_for, configured, etl, lake, played, rows_of, score, write_candidates
from tests.pipelines.test_etl_crash import toml

AT = START + 49 * DAY + 12 * HOUR
NIGHT = "2024-04-26"
PEOPLE = [f"u{number}" for number in range(40)]


def tonight(at: int = AT) -> list[Row]:
    """A candidate of everybody, of some two."""
    rows = [candidate(user, f"c-{user}", at + place * 1000) for place, user in enumerate(PEOPLE)]
    return rows + [candidate(user, f"d-{user}", at + 2 * HOUR) for user in PEOPLE[::4]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake and what the ETL leaves of it in `run`."""
    folder = tmp_path_factory.mktemp("made")
    lake(folder)
    write_candidates(folder, tonight())
    etl(configured(folder))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to harm."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def manifest_of(config: Config, night: str = NIGHT) -> dict[str, Any]:
    return dict(json.loads((config.run_dir / "scores" / "manifests" / f"{night}.json").read_text()))


# What is read


def old_partitions(folder: Path, before: str) -> list[Path]:
    return [
        path
        for name in ("decisions", "events")
        for path in sorted((folder / name).rglob("*.parquet"))
        if f"ds={before}" > path.parent.name and "HIVE" not in path.parent.name
    ]


def test_partitions_that_no_state_looks_back_on_are_not_opened(folder: Path) -> None:
    config = configured(folder)
    shutil.copytree(folder / "run", folder / "whole")
    whole = configured(folder, "whole")
    with patch.object(night, "look_back", lambda *_: night.Lookback(None, None, {})):
        assert score(whole)["read_from"] is None
    # Thirty-five days and the gap of a session before the first candidate.
    old = old_partitions(folder, "2024-03-22")
    assert len(old) > 10
    for path in old:
        path.write_bytes(b"no longer Parquet")
    found = score(config)
    assert found["read_from"] == "2024-03-22"
    assert found["input_versions"] == {"consent": 0}
    assert rows_of(config) == rows_of(whole)
    assert any(row["rule"] == "consent" for row in rows_of(config).values())
    # A day that does matter is opened.
    old_partitions(folder, "2024-04-10")[-1].write_bytes(b"no longer Parquet")
    with pytest.raises(InputError, match="no readable Parquet"):
        score(config)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no tables", "has left no changes of consent yet"),
        ("another configuration", "are another configuration's"),
        ("long ago", "has not run for so long"),
    ],
)
def test_the_whole_log_is_read_where_older_consent_is_not_known(
    folder: Path, caplog: pytest.LogCaptureFixture, what: str, words: str
) -> None:
    later = {"as_of": "2025-01-01"} if what == "long ago" else {}
    if what == "long ago":
        # Half a year later, and nobody ran the ETL again.
        write_candidates(folder, tonight(AT + 180 * DAY))
    config, other = configured(folder, etl=later), configured(folder, "other", etl=later)
    if what == "another configuration":
        etl(configured(folder, "other", constraints={"max_sends_24h": 9}))
    with patch.object(night, "look_back", lambda *_: night.Lookback(None, None, {})):
        score(config)
    rows = rows_of(config)
    found = score(config if what == "long ago" else other)
    assert found["read_from"] is None
    assert words in caplog.text
    assert rows_of(config if what == "long ago" else other) == rows


def test_an_empty_window_stops(folder: Path) -> None:
    """The ETL ran, but what it read is gone: nobody may be judged as if they were new."""
    for path in (folder / "decisions").rglob("*.parquet"):
        if path.parent.name > "ds=2024-03-15":
            path.unlink()
    with pytest.raises(InputError, match=r"data\.decisions: no rows"):
        score(configured(folder))


def test_a_partition_that_arrives_after_the_run_changes_nothing_for_the_same_as_of(folder: Path) -> None:
    config = configured(folder, etl={"as_of": "2024-04-26T12:00:00"})
    first = score(config)
    rows = rows_of(config)
    late = [
        {**row, "user_id": user, "row_id": f"late-{user}-{number}", "logged": AT + 90 * HOUR, "at": AT - DAY}
        for number, row in enumerate(a_log(1, 1))
        for user in PEOPLE
        if row["dataset"] in (DECISIONS, EVENTS)
    ]
    write_days(late, folder / "new")
    for name in ("decisions", "events"):
        for day in (folder / "new" / name).iterdir():
            (folder / name / day.name).mkdir(exist_ok=True)
            shutil.move(day / "0.parquet", folder / name / day.name / "late.parquet")
    again = score(config)
    assert rows_of(config) == rows
    assert again["scores_fingerprint"] == first["scores_fingerprint"]
    # That something else was there is told all the same.
    assert again["inputs"]["decisions"] != first["inputs"]["decisions"]
    assert again["inputs"]["candidates"] == first["inputs"]["candidates"]


# Who decides


@pytest.mark.parametrize("fallback", ["hold", "push", "logging"])
def test_whom_the_model_cannot_judge_gets_the_fallback_and_is_counted(folder: Path, fallback: str) -> None:
    blank: Row = {"context:relevance": None}
    rows = [
        candidate("u1", "usual", AT),
        candidate("stranger", "new", AT),
        candidate("u2", "blank", AT, **blank),
        candidate("u3", "blank-no-push", AT, legal=["hold", "badge"], **blank),
        candidate("u4", "blank-one", AT, legal=["hold"], **blank),
        candidate(None, "nobody", AT),
        candidate("u5", "never", None),
        candidate("u6", "shout", AT, legal=["hold", "shout"]),
        candidate("u7", "none", AT, legal=[]),
        candidate("quiet", "quiet", START + 50 * DAY, **blank),
    ]
    write_candidates(folder, rows)
    config = configured(folder, score={"fallback": fallback, "new_users": "fallback"})
    found, scored = score(config), rows_of(configured(folder))
    reasons = {name: row["rule"] for name, row in scored.items()}
    assert reasons == {
        "usual": reasons["usual"],
        "new": "new_user",
        "blank": "missing_feature:relevance",
        "blank-no-push": "missing_feature:relevance",
        "blank-one": "only_legal_action",
        "nobody": "missing_user_id",
        "never": "missing_decide_at",
        "shout": "unknown_legal_action",
        "none": "no_legal_action",
        "quiet": "missing_feature:relevance",
    }
    assert found["fallback"] == {
        "new_user": 1, "missing_feature:relevance": 3, "missing_user_id": 1, "missing_decide_at": 1,
        "unknown_legal_action": 1, "no_legal_action": 1,
    }  # fmt: skip
    hold, push = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    for name in ("nobody", "never", "shout", "none", "quiet"):
        # Nothing is known of them, or a limit binds: the fallback must not send.
        assert scored[name]["probabilities"] == hold, name
    if fallback == "logging":
        # Of a stranger at noon: exp of 0, of no visits, and of the cosine of half a turn.
        weight = np.exp([0.0, 0.0, -1.0])
        np.testing.assert_allclose(scored["new"]["probabilities"], weight / weight.sum(), rtol=1e-6)
        assert scored["new"]["legal"] == [True, True, True]
        assert scored["blank-no-push"]["probabilities"][2] == 0
        assert scored["blank-no-push"]["probabilities"][1] > 0.2
    else:
        assert scored["new"]["probabilities"] == (push if fallback == "push" else hold)
        assert scored["blank-no-push"]["probabilities"] == hold
    for name in found["fallback"]:
        assert all(row["value_push_clicks"] is None for row in scored.values() if row["rule"] == name)
    for row in scored.values():
        assert row["propensity"] == row["probabilities"][("hold", "badge", "push").index(row["action"])] > 0


def test_a_new_user_is_one_of_whom_nothing_is_known_within_the_lookback(folder: Path) -> None:
    """Who switched notifications off long ago is known to have, and held for that."""
    config = configured(folder, etl={"as_of": "2025-01-01"}, score={"new_users": "fallback"})
    write_candidates(folder, tonight(START + 120 * DAY))
    shutil.rmtree(folder / "run" / "consent")
    found = score(config)
    assert {"new_user", "consent"} <= set(found["by_rule"]) <= {"new_user", "consent", "quiet_hours"}
    assert found["fallback"] == {"new_user": found["by_rule"]["new_user"]}
    write_candidates(folder, tonight())
    found = score(configured(folder, score={"new_users": "fallback"}))
    assert found["fallback"].get("new_user", 0) < 10
    found = score(configured(folder, score={"new_users": "model"}))
    assert found["fallback"] == {}


def test_users_who_were_erased_are_not_scored(folder: Path) -> None:
    config = configured(folder)
    erase.forget(config, ["u1", "u4"])
    found = score(config)
    assert found["forgotten"] == 3
    assert not {row["user_id"] for row in rows_of(config).values()} & {"u1", "u4"}
    assert found["candidates"] == len(tonight()) - 3


# What is told


def test_the_manifest_tells_of_the_night(folder: Path) -> None:
    config = configured(folder, score={"share_at_most": 0.3, "new_users": "fallback"})
    champion = champion_for(config, lambda_low=-3.0, lambda_high=3.0)
    found = score(config, champion, stale=True, checked_at="2024-04-25T22:00:00+00:00")
    told, rows = manifest_of(config), rows_of(config)
    assert told == json.loads(json.dumps(found))
    assert told["candidates"] == len(rows) == sum(told["by_action"].values()) == sum(told["by_rule"].values())
    assert told["users"] == len({row["user_id"] for row in rows.values()}) < len(rows)
    for action, count in told["by_action"].items():
        assert count == sum(row["action"] == action for row in rows.values())
    for rule, count in told["by_rule"].items():
        assert count == sum((row["rule"] or "policy") == rule for row in rows.values())
    assert told["sends"] == sum(row["action"] != "hold" for row in rows.values())
    assert told["expected_sends"] == pytest.approx(sum(sum(row["probabilities"][1:]) for row in rows.values()))
    assert (told["model_version"], told["fingerprint"], told["policy"]) == ("3", "formula", "formula")
    assert (told["model_stale"], told["checked_at"]) == (True, "2024-04-25T22:00:00+00:00")
    assert told["version"] == DeltaTable(config.run_dir / "scores").version()
    assert told["config_hash"] == config.digest()
    assert told["seed"] == 0
    assert told["inputs"].keys() == {"decisions", "events", "users", "candidates"}
    assert told["newest"]["decisions"] < told["as_of"]
    assert told["frozen"] is None
    # No user stands in it.
    text = json.dumps(told)
    assert not any(f'"{user}"' in text for user in PEOPLE)


def test_a_manifest_that_a_kill_left_out_is_written_by_the_rerun(folder: Path) -> None:
    config = configured(folder)

    def killed(*_: Any) -> Path:
        raise KeyboardInterrupt

    with patch("pipelines.scoring.manifest.write", killed), pytest.raises(KeyboardInterrupt):
        score(config)
    rows = rows_of(config)
    assert not (config.run_dir / "scores" / "manifests").exists()
    score(config)
    assert rows_of(config) == rows
    assert manifest_of(config)["version"] == 1


def test_expired_candidates_are_counted(folder: Path) -> None:
    """A decision of a moment that has passed by more than valid_hours helps nobody; a backfill asks for it."""
    config = configured(folder, etl={"as_of": "2024-04-28T00:00:00"})
    found = score(config)
    assert found["void"] == found["candidates"]
    assert score(configured(folder, etl={"as_of": "2024-04-26T12:00:00"}))["void"] == 0


def test_a_candidate_before_the_logs_end_sees_only_what_was_known_then(folder: Path) -> None:
    early = [candidate(user, f"c-{user}", START + 20 * DAY) for user in PEOPLE]
    write_candidates(folder, early)
    found = score(configured(folder))
    assert found["night"] == "2024-03-28"
    rows = rows_of(configured(folder))
    # As if the log had ended there.
    write_days(
        [row for row in a_log(11, 40) if (row["logged"] or row["at"] or 0) <= START + 20 * DAY], folder / "short"
    )
    for name in ("decisions", "events", "users"):
        shutil.rmtree(folder / name)
        shutil.move(folder / "short" / name, folder / name)
    score(configured(folder))
    again = rows_of(configured(folder))
    assert {name: row["probabilities"] for name, row in again.items()} == {
        name: row["probabilities"] for name, row in rows.items()
    }


# The brake


def frozen_night(config: Config) -> dict[str, Any]:
    with played(None) as session:
        return night.run_frozen(session, config)


def test_a_frozen_folder_holds_everybody_without_log_or_model(folder: Path) -> None:
    config = configured(folder)
    freeze.freeze(config, "the clicks look wrong")
    for name in ("decisions", "events", "users", "policy"):
        shutil.rmtree(folder / name)
    found = frozen_night(config)
    rows = rows_of(config)
    assert len(rows) == len(tonight()) == found["candidates"]
    assert found["by_rule"] == {"frozen": len(rows)}
    assert found["by_action"] == {"hold": len(rows)}
    assert found["expected_sends"] == found["sends"] == 0
    for row in rows.values():
        assert (row["action"], row["propensity"], row["probabilities"]) == ("hold", 1.0, [1.0, 0.0, 0.0])
        assert (row["policy"], row["policy_version"], row["value_push_clicks"]) == ("frozen", None, None)
    told = manifest_of(config)
    assert told["frozen"]["reason"] == "the clicks look wrong"
    assert told["model_version"] is None


def test_freezing_twice_keeps_the_first_word_and_unfreezing_lifts_it(folder: Path) -> None:
    config = configured(folder)
    assert freeze.frozen(config) is None
    assert freeze.unfreeze(config) is None
    first = freeze.freeze(config, "one")
    assert freeze.freeze(config, "two") == first == freeze.frozen(config)
    assert set(first) == {"since", "by", "reason"}
    assert freeze.unfreeze(config) == first
    assert freeze.frozen(config) is None
    # Half a file is a brake too.
    (config.run_dir / "frozen.json").write_text("{")
    assert freeze.frozen(config) == {"since": "unknown", "by": "unknown", "reason": "unknown"}


def test_the_commands_of_the_brake(folder: Path) -> None:
    config, path = configured(folder), folder / "night.toml"
    made = tree(folder, "run")
    path.write_text("\n".join(toml(made)))
    done = CliRunner().invoke(app, ["freeze", str(path), "--reason", "the clicks look wrong"])
    assert (done.exit_code, "FROZEN since" in done.output) == (0, True), done.output
    assert (freeze.frozen(config) or {})["reason"] == "the clicks look wrong"
    done = CliRunner().invoke(app, ["unfreeze", str(path)])
    assert (done.exit_code, "lifted" in done.output) == (0, True), done.output
    assert freeze.frozen(config) is None
    assert "nothing was frozen" in CliRunner().invoke(app, ["unfreeze", str(path)]).output


def test_a_freeze_reaches_a_run_on_its_way(folder: Path) -> None:
    config = configured(folder)
    write = staging.write

    def while_it_writes(*given: Any) -> staging.Staged:
        freeze.freeze(config, "now")
        return write(*given)

    with patch.object(staging, "write", while_it_writes), pytest.raises(TransientError, match="frozen while"):
        score(config)
    assert not (config.run_dir / "scores" / "_delta_log").exists()
    frozen_night(config)
    assert {row["rule"] for row in rows_of(config).values()} == {"frozen"}


def test_without_hold_nothing_can_be_frozen(folder: Path) -> None:
    config = configured(folder, actions=["badge", "push"])
    with pytest.raises(InputError, match="no `hold`"):
        freeze.freeze(config, "")


# What goes wrong


@pytest.fixture(params=[{}, {"share_at_most": 0.4}], ids=["without a quota", "with a quota"])
def limits(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def fails_at(function: Any, nth: int, error: Exception) -> Any:
    left = [nth]

    def failing(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise error
        return function(*given, **named)

    return failing


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_commits_nothing_and_says_so(folder: Path, limits: dict[str, Any], nth: int) -> None:
    config = configured(folder, score=limits)
    champion = champion_for(config, lambda_low=-3.0, lambda_high=3.0)
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        patch.object(staging, "write", fails_at(staging.write, nth, full)),
        pytest.raises(TransientError, match=r"No space left on device.*free space") as caught,
    ):
        score(config, champion)
    assert caught.value.exit_code == 75
    assert not (config.run_dir / "scores" / "_delta_log").exists()
    assert [path for path in (config.run_dir / "scores").rglob("*") if path.is_file()] == []
    assert score(config, champion)["candidates"] == len(tonight())


def test_of_two_scorings_at_once_one_wins(folder: Path, limits: dict[str, Any]) -> None:
    config = configured(folder, score=limits)
    champion = champion_for(config, lambda_low=-3.0, lambda_high=3.0)
    inside = night.make_plan

    def another_first(*given: Any) -> Any:
        with patch.object(night, "make_plan", inside):
            score(config, champion)
        return inside(*given)

    with (
        patch.object(night, "make_plan", another_first),
        pytest.raises(TransientError, match="another writer") as caught,
    ):
        score(config, champion)
    assert caught.value.exit_code == 75
    rows = rows_of(config)
    assert DeltaTable(config.run_dir / "scores").version() == 0
    score(config, champion)
    assert rows_of(config) == rows


def test_vacuum_removes_what_a_killed_run_left_and_keeps_the_manifests(folder: Path) -> None:
    config = configured(folder, score={"share_at_most": 0.4}, retention={"orphan_hours": 0, "versions": 1})
    champion = champion_for(config, lambda_low=-3.0, lambda_high=3.0)
    with (
        patch.object(night.store, "commit", fails_at(night.store.commit, 1, KeyboardInterrupt())),
        patch.object(night.store, "discard", lambda *_: None),
        pytest.raises(KeyboardInterrupt),
    ):
        score(config, champion)
    scores = config.run_dir / "scores"
    left = [path for path in scores.rglob("*") if path.is_file()]
    assert any(path.parent.name == "judged" for path in left)
    score(config, champion)
    rows, told = rows_of(config), manifest_of(config)
    assert vacuum.vacuum(config, [])["scores"].files == len(left)
    assert not any(path.exists() for path in left)
    assert rows_of(config) == rows
    assert manifest_of(config) == told


def test_a_columns_type_that_changed_long_ago_is_no_matter(folder: Path) -> None:
    """Only the files that are read must agree."""
    old = old_partitions(folder, "2024-03-12")[0]
    table = pq.read_table(old)
    pq.write_table(table.set_column(0, table.column_names[0], pa.array(range(table.num_rows))), old)
    assert score(configured(folder))["candidates"] == len(tonight())
