"""Users are gone from every byte under run_dir, everybody else is as before, and nobody comes back."""

import fcntl
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import propensities
from models.errors import InputError, TransientError
from pipelines import erase
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.etl import staging, store
from pipelines.etl.flow import run_etl
from pipelines.etl.schemas import Layout
from pipelines.scoring.desk import lay
from pipelines.simulate import run_simulate

GONE = ['o\'brien -- "quoted"', "übermut-77", "plainly-me"]
OTHERS = ["aa-first", "o''brien", "zz-last", "plainly"]
ROWS = pa.schema([("user_id", pa.string()), ("n", pa.int64()), ("legal", pa.list_(pa.bool_())), ("ds", pa.string())])
LAYOUT = Layout(ROWS, ("ds",))
DAYS = ("2026-01-01", "2026-01-02", "odd day%2F=é")


def tree(folder: Path) -> dict[str, Any]:
    return {
        "name": "erase",
        "seed": 3,
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks", "visits", "weekly_active_days", "disables"],
        "simulate": {"users": 60, "days": 10},
        "data": {name: {"path": str(folder / "run" / "lake" / name)} for name in ("decisions", "events", "users")},
        "features": {"state": ["sends_7d", "visits_7d"], "context": ["relevance"]},
        "etl": {"warmup_days": 1, "buckets": 2, "as_of": "2026-03-01"},
        "quality": {"docs": False},
        "train": {"weights": {"clicks": 1.0}, "learners": {"ddqn": 0.0}},
        "gate": {"candidate": "ddqn", "metrics": {}},
        "spark": {"master": "local[2]", "shuffle_partitions": 2},
    }


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return validate(tree(tmp_path), "erase.toml")


def rows(users: Collection[str], day: str, start: int = 0) -> pa.Table:
    """Three rows a user, in the order of users."""
    ids = [user for user in sorted(users) for _ in range(3)]
    columns = [ids, range(start, start + len(ids)), [[True, False]] * len(ids), [day] * len(ids)]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)], schema=ROWS)


def write(config: Config, name: str, users: dict[str, Collection[str]], add: bool = False, **facts: str) -> int:
    """Make the users of each day the newest version of a table, or what it has and these days."""
    table, run = config.run_dir / name, staging.new_run()
    staged = [staging.write(rows(ids, day), table, run, LAYOUT, {"ds": day}) for day, ids in users.items()]
    return store.commit(table, staged, LAYOUT, facts, store.opened(table), {"ds": users} if add else None)


def fill(config: Config) -> None:
    """Three versions of transitions, the users to go in the second and third alone; and the other tables."""
    everybody = [*GONE, *OTHERS]
    write(config, "transitions", {DAYS[0]: OTHERS}, etl_hash="h", watermark="1")
    write(config, "transitions", {DAYS[0]: everybody, DAYS[1]: GONE}, etl_hash="h", watermark="2")
    write(config, "transitions", {DAYS[0]: OTHERS, DAYS[1]: GONE[:1], DAYS[2]: everybody}, etl_hash="h", watermark="3")
    write(config, "quarantine/events", {DAYS[0]: everybody})
    write(config, "scores", {DAYS[0]: everybody})
    write(config, "scores", {DAYS[0]: OTHERS})
    keys = pa.table({"user_id": sorted(everybody), "decision_id": [f"d{n}" for n in range(len(everybody))]})
    columns = {
        "decided_at": np.arange(len(everybody)), "propensity": np.full(len(everybody), 0.5),
        "fold": np.zeros(len(everybody)),
    }  # fmt: skip
    facts = {propensities.MADE_FOR: "f", propensities.MADE_FROM: "2"}
    propensities.write(config.run_dir / "propensities", keys, columns, facts, base=None)


def everything(folder: Path) -> str:
    """Every byte under a folder as text, and what Parquet holds as columns, statistics and metadata."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found += [str(path), path.read_bytes().decode(errors="replace")]
            if path.suffix == ".parquet":
                with pq.ParquetFile(path) as file:
                    found += [json.dumps(file.read().to_pylist(), default=str, ensure_ascii=False)]
                    found += [str(file.metadata.row_group(n).to_dict()) for n in range(file.num_row_groups)]
    return "\n".join(found)


def spelt(user: str) -> set[str]:
    """How an id may be written: as it is, as JSON in JSON, in SQL."""
    ascii_, plain = json.dumps(user)[1:-1], json.dumps(user, ensure_ascii=False)[1:-1]
    nested = {json.dumps(text)[1:-1] for text in (ascii_, plain)}
    return {user, ascii_, plain, *nested, user.replace("'", "''")}


def held(folder: Path, users: Collection[str] = GONE) -> list[str]:
    text = everything(folder)
    return [user for user in users if any(written in text for written in spelt(user))]


def frame(config: Config, name: str, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of the current version but those of some users, in an order of their own."""
    found = DeltaTable(config.run_dir / name).to_pyarrow_table().to_pylist()
    return sorted((row for row in found if row["user_id"] not in without), key=lambda row: json.dumps(row, default=str))


TABLES = ("transitions", "quarantine/events", "scores", "propensities")


def test_no_byte_of_the_users_is_left_and_everybody_else_is_as_before(config: Config) -> None:
    fill(config)
    assert held(config.run_dir) == GONE
    before = {name: frame(config, name, without=GONE) for name in TABLES}
    found = erase.forget(config, GONE)
    assert held(config.run_dir) == []
    assert {name: frame(config, name) for name in TABLES} == before
    # Rows of the current versions: (1 + 3) users x 3; 3 x 3; none of the newest scores; one estimate each.
    assert {name: each.rows for name, each in found.tables.items()} == dict(
        zip(TABLES, (12, 9, 0, 3), strict=True)
    )  # fmt: skip
    assert (found.users, found.again, found.unknown, found.unfinished) == (3, 0, [], 0)


def test_a_partition_stays_one_sorted_file_and_what_was_said_of_the_table_stays_said(config: Config) -> None:
    fill(config)
    erase.forget(config, GONE)
    delta = DeltaTable(config.transitions_path)
    assert store.fact(delta, "watermark") == "3"
    assert sorted(values["ds"] for _, values in store.files(delta)) == [DAYS[0], DAYS[2]]
    for path, _ in store.files(delta):
        users = pq.ParquetFile(store.place(delta, path)).read()["user_id"].to_pylist()
        assert users == [user for user in sorted(OTHERS) for _ in range(3)]
    assert propensities.read(config.run_dir / "propensities")[1][propensities.MADE_FOR] == "f"


def test_versions_that_held_them_cannot_be_read_and_others_can(config: Config) -> None:
    fill(config)
    erase.forget(config, GONE)
    table = config.transitions_path
    assert DeltaTable(table, version=0).to_pyarrow_table().num_rows == 3 * len(OTHERS)
    for version in (1, 2):
        with pytest.raises(FileNotFoundError):
            DeltaTable(table, version=version).to_pyarrow_table()


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_request_again_changes_nothing(config: Config) -> None:
    fill(config)
    erase.forget(config, GONE)
    before = state(config.run_dir)
    found = erase.forget(config, GONE)
    assert state(config.run_dir) == before
    assert (found.again, found.unknown) == (3, [])
    assert all((each.rows, each.files) == (0, 0) for each in found.tables.values())


def test_digests_are_recorded_and_ids_are_not(config: Config) -> None:
    fill(config)
    assert erase.forgotten(config) == frozenset()
    found = erase.forget(config, [*GONE, "nobody-here"])
    assert found.unknown == ["nobody-here"]
    assert erase.forgotten(config) == {hashlib.sha256(user.encode()).digest() for user in [*GONE, "nobody-here"]}
    told = erase.in_words(found, config)
    assert "of 4 users 3 found and erased, 0 already earlier\nNOT FOUND, in no table: nobody-here" in told
    assert "the raw log is yours to erase" in erase.in_words(found, config)
    assert held(config.run_dir, ["nobody-here"]) == []


@pytest.mark.parametrize("step", ["before the first table", "between commit and removal", "between two tables"])
def test_a_crash_anywhere_is_finished_by_the_same_request(
    config: Config, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fill(config)
    before = {name: frame(config, name, without=GONE) for name in TABLES}
    real, calls = erase._erase, iter(range(100))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    def first_only(*values: Any, **named: Any) -> erase.Erased:
        return real(*values, **named) if next(calls) == 0 else crash()  # type: ignore[return-value]

    broken = {
        "before the first table": ("_erase", lambda *_, **__: crash()),
        "between commit and removal": ("remove", crash),
        "between two tables": ("_erase", first_only),
    }
    with monkeypatch.context() as patch:
        patch.setattr(erase, *broken[step])
        with pytest.raises(KeyboardInterrupt):
            erase.forget(config, GONE)
    # No run brings them back meanwhile, and a request for others says that these wait.
    assert len(erase.forgotten(config)) == 3
    assert erase.forget(config, ["someone-else"]).unfinished == 3
    assert erase.forget(config, GONE).unfinished == 0
    assert held(config.run_dir) == []
    assert {name: frame(config, name) for name in TABLES} == before


def test_a_run_on_the_way_loses_even_where_the_table_has_no_row_of_theirs(config: Config) -> None:
    write(config, "scores", {DAYS[0]: OTHERS})
    base = store.opened(config.run_dir / "scores")
    run = staging.new_run()
    staged = staging.write(rows(GONE, DAYS[0]), config.run_dir / "scores", run, LAYOUT, {"ds": DAYS[0]})
    erase.forget(config, GONE)
    with pytest.raises(TransientError):
        store.commit(config.run_dir / "scores", [staged], LAYOUT, {}, base)
    assert held(config.run_dir) == []


def test_who_commits_first_wins_and_forget_leaves_nothing_staged(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(config)
    real, name = erase._without, "quarantine/events"

    def slow(path: Path, users: pa.Array) -> Any:
        if name in str(path):
            write(config, name, {DAYS[1]: GONE}, add=True)
        return real(path, users)

    with monkeypatch.context() as patch:
        patch.setattr(erase, "_without", slow)
        with pytest.raises(TransientError, match="another writer committed first"):
            erase.forget(config, GONE)
    folders = {path.name for path in (config.run_dir / name).iterdir() if path.name != "_delta_log"}
    named = {
        path.split("/")[0]
        for version in (0, 1)
        for path, _ in store.files(DeltaTable(config.run_dir / name, version=version))
    }
    assert folders == named
    erase.forget(config, GONE)
    assert held(config.run_dir) == []


def test_what_crashed_runs_left_of_them_goes_and_a_running_job_keeps_the_rest(config: Config) -> None:
    write(config, "scores", {DAYS[0]: OTHERS})
    table = config.run_dir / "scores"
    theirs = table / staging.write(rows(GONE, DAYS[0]), table, "crashed", LAYOUT, {"ds": DAYS[0]}).path
    fresh = table / staging.write(rows(OTHERS, DAYS[1]), table, "running", LAYOUT, {"ds": DAYS[1]}).path
    torn = theirs.with_name(".half")
    torn.write_bytes(theirs.read_bytes()[:-20])
    desk = table / "running" / "judged"
    for name, ids in (("0.arrow", OTHERS), ("1.arrow", GONE)):
        lay(rows(ids, DAYS[1]), desk / name)
    (desk / "2.arrow").write_bytes((desk / "0.arrow").read_bytes()[:-20])
    found = erase.forget(config, GONE)
    assert fresh.exists()
    assert not theirs.exists()
    assert not torn.exists()
    assert not (table / "crashed").exists()
    assert [path.name for path in desk.iterdir()] == ["0.arrow"]
    assert (found.tables["scores"].rows, found.tables["scores"].files) == (0, 4)
    assert found.unknown == []


def test_a_hundred_thousand_ids_at_once(config: Config) -> None:
    fill(config)
    found = erase.forget(config, [f"user-{n}" for n in range(100_000)] + GONE)
    assert len(found.unknown) == 100_000
    assert held(config.run_dir) == []
    assert "user-9 and 99990 more" in erase.in_words(found, config)


def test_one_request_at_a_time(config: Config) -> None:
    fill(config)
    handle = os.open(config.run_dir, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with pytest.raises(TransientError, match="another `tactful forget` is at work"):
        erase.forget(config, GONE)
    os.close(handle)
    assert erase.forgotten(config) == frozenset()
    erase.forget(config, GONE)


def write_bytes(config: Config, text: bytes) -> Path:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "ids.txt").write_bytes(text)
    return config.run_dir / "ids.txt"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda config: [], "no user id; name some, or a file"),
        (lambda config: ["a", ""], "an empty user id"),
        (lambda config: ["\udcff"], "no UTF-8 text"),
        (lambda config: erase.ids_in(config.run_dir / "absent.txt"), "absent.txt: no such file; name one with"),
        (lambda config: erase.ids_in(config.run_dir), "cannot be read"),
        (lambda config: erase.ids_in(write_bytes(config, b"\xff\xfe")), "ids.txt: cannot be read"),
        (lambda config: erase.ids_in(write_bytes(config, b"\n\n")), "no user id; name some, or a file"),
    ],
)
def test_a_request_that_cannot_be_meant(config: Config, asked: Any, message: str) -> None:
    fill(config)
    before = {name: frame(config, name) for name in TABLES}
    with pytest.raises(InputError, match=message):
        erase.forget(config, asked(config))
    assert {name: frame(config, name) for name in TABLES} == before
    assert erase.forgotten(config) == frozenset()


def test_a_folder_without_tables_is_refused(config: Config) -> None:
    with pytest.raises(InputError, match=r"run: no table there; check run_dir"):
        erase.forget(config, GONE)


def test_what_cannot_be_read_is_not_passed_over(config: Config) -> None:
    fill(config)
    delta = DeltaTable(config.transitions_path)
    store.place(delta, store.files(delta)[0][0]).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"current version cannot be read.*--rebuild"):
        erase.forget(config, GONE)
    (config.run_dir / "forgotten.json").write_text("{")
    with pytest.raises(InputError, match=r"forgotten\.json: not valid JSON"):
        erase.forgotten(config)


def test_ids_in_a_file_are_taken_as_they_stand(config: Config) -> None:
    assert erase.ids_in(write_bytes(config, "a\r\n b \n\nü\u2028x\n".encode())) == ["a", " b ", "ü\u2028x"]


def test_the_command(config: Config, tmp_path: Path) -> None:
    fill(config)
    path = tmp_path / "erase.toml"
    plain = {key: value for key, value in tree(tmp_path).items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    lines += [f"[data.{name}]\npath = {json.dumps(each['path'])}" for name, each in tree(tmp_path)["data"].items()]
    lines += ["[features]\nstate = ['badge']", "[train.weights]\nclicks = 1.0", "[train.learners]\nddqn = 0.0"]
    lines += ["[gate]\ncandidate = 'ddqn'"]
    path.write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["forget", str(path), GONE[0], "--file", str(write_bytes(config, b"plainly-me\n"))])
    (config.run_dir / "ids.txt").unlink()
    assert done.exit_code == 0, done.exception
    assert held(config.run_dir) == [GONE[1]]
    assert isinstance(CliRunner().invoke(app, ["forget", str(path)]).exception, InputError)


def test_forgetting_is_as_if_they_had_never_been_there(config: Config, spark: SparkSession) -> None:
    """The erased table equals, file by file, one made anew from the raw log, which still holds them."""
    run_simulate(config)
    made = run_etl(spark, config)
    users = {row["user_id"] for row in frame(config, "transitions")}
    gone = sorted(users)[:5]
    before = frame(config, "transitions", without=gone)
    assert len(before) < made["rows"]["transitions"]["rows"]
    erase.forget(config, gone)
    assert frame(config, "transitions") == before
    own = [path for path in config.run_dir.iterdir() if path.name != "lake"]
    assert [user for path in own for user in held(path, gone)] == []
    fingerprint = store.fingerprint(DeltaTable(config.transitions_path))
    again = run_etl(spark, config)
    assert frame(config, "transitions") == before
    assert again["fingerprint"] == fingerprint != made["fingerprint"]
    assert again["rows"]["transitions"]["rows"] == len(before)
    assert [user for path in own for user in held(path, gone)] == []


def test_nobody_comes_back_by_another_day_of_json(config: Config, spark: SparkSession, tmp_path: Path) -> None:
    """One float among the ids of a new day, as pandas writes them beside a missing one, changes no other id."""

    def line(user: str, day: int, name: str) -> str:
        at = f"2026-01-0{day} 10:00:00"
        more = f'"decided_at": "{at}", "action": "send", "relevance": 0.5'
        return f'{{"decision_id": "{name}", "user_id": {user}, {more}}}\n'

    def arrive(day: int, *users: str) -> None:
        (tmp_path / "lines" / f"ds=2026-01-0{day}").mkdir(parents=True)
        text = "".join(line(user, day, f"{day}-{number}") for number, user in enumerate(users))
        (tmp_path / "lines" / f"ds=2026-01-0{day}" / "part.json").write_text(text)

    made = tree(tmp_path) | {"data": {"decisions": {"path": str(tmp_path / "lines"), "format": "json"}}}
    made |= {"rewards": ["sends"], "features": {"state": ["sends_7d"], "context": ["relevance"]}}
    made["train"] = {"weights": {"sends": 1.0}}
    made["etl"] |= {"watermark": "2026-01-05", "warmup_days": 0}
    config = validate(made, "erase.toml")
    arrive(1, "12345678", "9007199254740993", "9007199254740992")
    run_etl(spark, config)
    assert erase.forget(config, ["12345678"]).unknown == []
    arrive(2, "12345678", "9007199254740993", "77.0")
    report = run_etl(spark, config)
    users = [row["user_id"] for row in frame(config, "transitions")]
    assert sorted(users) == ["77.0", "9007199254740992", "9007199254740993", "9007199254740993"]
    assert report["rows"]["decisions"]["forgotten"] == 2
