"""docs/your-log.md is true: its tables are what the code accepts, its errors are the code's, and its example runs."""

import contextlib
import io
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import Result
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import artifact, table
from models.contract import UNITS
from models.errors import InputError
from pipelines.cli import app
from pipelines.config import Config, load, validate
from pipelines.etl.features import DAY, HOUR, KINDS
from pipelines.etl.history import mark
from pipelines.etl.marks import REMEDIES, Plan
from pipelines.etl.plans import make_plan
from pipelines.etl.schemas import (
    COLUMN_REWARD,
    DECISIONS,
    EVENTS,
    NAMES,
    NUMBER,
    TEXT,
    TEXTS,
    TIME,
    raw_schema,
    wanted,
)
from pipelines.etl.transitions import transitions
from pipelines.inprocess import transitions_of
from pipelines.sections import LEARNED_REWARD, STATE_FEATURES, Dataset
from pipelines.simulate import log_state
from policies.constraints import legal_actions
from policies.q_policy import QPolicy
from policies.simulator import Log
from tests.pipelines import kettle

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-log.md").read_text()
WORDS = {TEXT: "text", NUMBER: "number", TIME: "time", TEXTS: "list of texts"}
QUICK = [
    "train.steps=80", "train.batch_size=64", "train.hidden=[16]", "train.behaviour_steps=200", "train.value_steps=60",
    "evaluate.resamples=100", "evaluate.fqe_steps=60", "quality.docs=false", 'spark.master="local[2]"',
    "spark.shuffle_partitions=2",
]  # fmt: skip
"""How long it learns, and how surely it judges, is not what the page is about."""


def section(title: str) -> str:
    """What stands under a heading, up to the next of any depth."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return re.sub(r"```.*?```", "", found[1], flags=re.S)


def rows_of(title: str, first: str) -> list[list[str]]:
    """The cells of the table under a heading whose first column is called so."""
    tables = re.findall(r"(?:^\|.*\|\n)+", section(title), re.M)
    found = [text for text in tables if text.startswith(f"| {first} |")]
    assert len(found) == 1, (title, first)
    lines = found[0].strip().split("\n")[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def block(kind: str, after: str = "") -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE[PAGE.index(after) :], re.S)
    assert found is not None, (kind, after)
    return found[1]


# What the code accepts


def every_column() -> Config:
    """A configuration whose own columns are called as the page calls them."""
    return validate(
        {
            "name": "x",
            "run_dir": "x",
            "rewards": ["sends", f"{COLUMN_REWARD}{COLUMN_REWARD}NAME"],
            "data": {name: {"path": "x"} for name in NAMES},
            "features": {
                "context": ["features.context"],
                "context_categories": {"features.context_categories": ["a"]},
                "attributes": ["features.attributes"],
                "attribute_categories": {"features.attribute_categories": ["a"]},
            },
        },
        "test",
    )


@pytest.mark.parametrize("code", range(len(NAMES)), ids=NAMES)
def test_its_columns_are_those_that_the_code_reads(code: int) -> None:
    """Names in order, types, which are required, and what stands in for one that is absent."""
    told = [
        (cells[0].strip("`"), cells[1], cells[2], re.findall(r"stands in: `(\w+)`", cells[4]))
        for cells in rows_of(NAMES[code], "column")
    ]
    columns = wanted(code, every_column())
    order = [each.name for each in columns]
    assert sorted(told, key=lambda each: order.index(each[0])) == [
        (each.name, WORDS[each.kind], "yes" if each.required else "no", [each.default] if each.default else [])
        for each in columns
    ]
    # A column without which the run stops is lost with nothing; of every other the page says what is.
    assert all((cells[2] == "yes") != bool(cells[4]) for cells in rows_of(NAMES[code], "column"))


def test_its_keys_are_those_of_a_dataset() -> None:
    told = {name for cells in rows_of("Names of your own", "key") for name in names_in(cells[0])}
    assert told == {f"data.decisions.{name}" for name in Dataset.model_fields} | {"actions"}


def test_its_rewards_and_features_are_all_there_are() -> None:
    told = [name for cells in rows_of("Kinds of events", "reward component") for name in names_in(cells[0])]
    assert sorted(told) == sorted([*UNITS, f"{COLUMN_REWARD}NAME", f"{LEARNED_REWARD}NAME"])
    told = [name for cells in rows_of("Kinds of events", "state feature") for name in names_in(cells[0])]
    assert sorted(told) == sorted(STATE_FEATURES)


T0 = 1_773_619_200_000_000


def plan_of_a_user() -> Plan:
    config = validate(
        {
            "name": "x",
            "run_dir": "x",
            "rewards": list(UNITS),
            "data": {"decisions": {"path": "x"}, "events": {"path": "x"}},
            "features": {"state": list(STATE_FEATURES)},
        },
        "test",
    )
    return make_plan(config, T0 + 6 * DAY, T0)


def a_user(plan: Plan, *events: tuple[str, int, str | None]) -> pa.Table:
    """Transitions of one user with three decisions, a send first, and these events: kind, time, decision."""
    sent = [("d0", "send", T0 + HOUR), ("d1", "hold", T0 + 12 * HOUR), ("d2", "send", T0 + 4 * DAY)]
    rows: dict[int, list[dict[str, Any]]] = {
        DECISIONS: [
            {"user_id": "u", "row_id": name, "at": at, "logged": at, "label": action, "propensity": 0.5}
            for name, action, at in sent
        ],
        EVENTS: [
            {"user_id": "u", "row_id": f"e{n}", "at": at, "logged": at, "label": kind, "decision_id": decision}
            for n, (kind, at, decision) in enumerate(events)
        ],
    }
    tables = {code: pa.Table.from_pylist(rows[code], raw_schema(wanted(code, every_column()))) for code in rows}
    return transitions(mark(tables, plan), plan)


def moved_by(kind: str) -> set[str]:
    """Columns of the transitions that one event of the kind changes, whether notifications were on before or off."""
    plan, found = plan_of_a_user(), set()
    for before in ([], [("disable", T0, None)]):
        without, having = (a_user(plan, *before, *more) for more in ([], [(kind, T0 + 2 * HOUR, "d0")]))
        found |= {name for name in without.column_names if without[name].to_pylist() != having[name].to_pylist()}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_moves_what_the_page_says(kind: str) -> None:
    """By the kernels: one event more, and every column that it changes."""
    kinds = {cells[0].strip("`"): cells for cells in rows_of("Kinds of events", "kind")}
    assert tuple(kinds) == KINDS
    moved = moved_by(kind)
    assert {name.removeprefix("reward_") for name in moved if name.startswith("reward_")} == names_in(kinds[kind][2])
    assert {name.removeprefix("state_") for name in moved if name.startswith("state_")} == names_in(kinds[kind][3])
    assert ("terminal" in moved) == ("`terminal`" in kinds[kind][1])


def test_what_a_reward_or_a_feature_needs_is_what_moves_it() -> None:
    """The tables by component and by feature are the table of kinds, read the other way."""
    kinds = {cells[0].strip("`"): cells for cells in rows_of("Kinds of events", "kind")}
    for first, place, prefix in (("reward component", 2, ""), ("state feature", 3, "")):
        needs: set[str] = set()
        for cells in rows_of("Kinds of events", first):
            needs = needs if cells[1] == "the same" else names_in(cells[1]) & set(KINDS)
            for name in names_in(cells[0]) - {f"{COLUMN_REWARD}NAME", f"{LEARNED_REWARD}NAME"}:
                moving = {kind for kind in kinds if f"`{prefix}{name}`" in kinds[kind][place]}
                # Who switches on again can be lost again, though that moves no reward by itself.
                assert needs - ({"enable"} if name == "disables" else set()) == moving, name


EXPRESSIONS = rows_of("Names of your own", "your log has")


@pytest.mark.parametrize("cells", EXPRESSIONS, ids=[cells[0] for cells in EXPRESSIONS])
def test_an_expression_gives_what_the_page_says(spark: SparkSession, cells: list[str]) -> None:
    """And of what it cannot read null, or the text itself for the ETL to refuse: never an error, never a guess."""
    value, write, gives = (re.findall(r"`([^`]+)`", cell)[0].replace("\\|", "|") for cell in cells)
    frame = spark.createDataFrame([(value,), ("?",), (None,)], "x string").selectExpr(f"{write} as y")
    listed = dict(frame.dtypes)["y"] == "array<string>"
    shown = frame.selectExpr("to_json(y) as y" if listed else "cast(y as string) as y")
    first, garbage, nothing = (row["y"] for row in shown.collect())
    assert first == gives
    assert garbage in (None, "?", '["?"]', '["hold"]')
    assert nothing in (None, '["hold"]')


def test_its_errors_are_those_of_the_code() -> None:
    """Each fragment stands in a message, up to where the source breaks its lines; and each reason is one."""
    files = [path for part in ("models", "policies", "pipelines") for path in (ROOT / part).rglob("*.py")]
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in files)
    told = [cells[0].strip("`") for cells in rows_of("First errors", "it says")]
    assert [each for fragment in told for each in fragment.split("…") if each.strip() not in source] == []
    named = {name for cells in rows_of("First errors", "it says") for name in names_in(cells[2])}
    assert {name for name in named if re.match(r"unknown_|missing_", name)} <= set(REMEDIES)


# The example

Kettle = tuple[Config, Log, dict[str, Result], dict[str, int]]


def commands() -> list[str]:
    return [line for line in block("sh", "The commands,").splitlines() if line.startswith("tactful ")]


@pytest.fixture(scope="module")
def ran(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Kettle:
    """The page's files, made longer by the same world, its TOML as it stands, and its commands one after the other."""
    folder, log = tmp_path_factory.mktemp("shop"), kettle.world()
    written = kettle.write(log, folder / "kettle")
    (folder / "kettle.toml").write_text(block("toml", "`kettle.toml`:"))
    results = {}
    with contextlib.chdir(folder):
        for line in commands():
            _, *words = shlex.split(line)
            quick = [word for pair in QUICK for word in ("--set", pair)]
            results[words[0]] = CliRunner().invoke(app, [*words, *quick])
        config = load(Path("kettle.toml"))
    places = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for dataset in places["data"].values():
        dataset["path"] = str(folder / dataset["path"])
    return validate({**places, "run_dir": str(folder / "runs/kettle")}, "kettle.toml"), log, results, written


@pytest.mark.parametrize("name", ["nudges.csv", "activity.jsonl", "customers.csv", "tonight.csv"])
def test_the_files_begin_as_the_page_shows(ran: Kettle, name: str) -> None:
    config, *_ = ran
    shown = block("json" if name.endswith("jsonl") else "csv", f"`kettle/{name}`")
    whole = (config.run_dir.parents[1] / "kettle" / name).read_text()
    assert shown.count("\n") >= 3
    assert whole.startswith(shown)


def test_every_command_ends_as_the_page_says(ran: Kettle) -> None:
    _, _, results, _ = ran
    told = {cells[0].strip("`"): int(cells[2][0]) for cells in rows_of("A log in its own words", "command")}
    assert {name: found.exit_code for name, found in results.items()} == told


def test_the_terminal_says_what_the_page_says(ran: Kettle) -> None:
    config, _, results, _ = ran
    assert block("text", "`etl` ends with") in results["etl"].stdout
    assert "INCONCLUSIVE" in results["promote"].stdout
    judged = re.search(r"(\d+) users judge, (\d+) are needed", PAGE)
    assert judged is not None
    reasons = json.loads((config.run_dir / "steps" / "promote.json").read_text())["verdict"]["reasons"]
    assert [each for each in reasons if f"of {judged[1]} users, {judged[2]} needed" in each]


def test_what_it_leaves_lies_where_the_page_says(ran: Kettle) -> None:
    config, *_ = ran
    for cells in rows_of("A log in its own words", "command"):
        for name in names_in(cells[1]):
            assert (config.run_dir / name).exists(), name


def test_every_row_of_the_log_is_told(ran: Kettle) -> None:
    """6,379 decisions, one of them twice, and four bad ones; and not one of the shop's other business."""
    config, log, _, written = ran
    rows = json.loads((config.run_dir / "steps" / "etl.json").read_text())["rows"]
    kept = len(log.decisions["user"])
    of = rows["decisions"]
    assert written["nudges"] == kept + 1 + len(kettle.BAD)
    assert (of["read"], of["kept"], of["exact_duplicates"], of["quarantined"]) == (written["nudges"], kept, 1, 4)
    assert rows["events"]["read"] == rows["events"]["kept"] == written["activity"] == len(log.events["user"])
    lines = (config.run_dir.parents[1] / "kettle" / "activity.jsonl").read_text().splitlines()
    assert len(lines) == written["activity"] + 1


def test_its_words_make_the_transitions_that_the_world_itself_makes(ran: Kettle) -> None:
    """Berlin's clock over the change of 29 March, commas, German words and milliseconds: equal in every column."""
    config, log, _, _ = ran
    plain = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    plain["data"] = {name: {"path": "unused"} for name in ("decisions", "events", "users")}
    ours = transitions_of(log, validate(plain, "plain"))
    theirs = table.read(config.transitions_path, config.contract)
    for field in fields(ours):
        if isinstance(found := getattr(theirs, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(ours, field.name), found, err_msg=field.name)
    assert len(ours.action) > 6000


def test_the_scores_are_those_of_the_champion_on_what_the_world_knew(ran: Kettle) -> None:
    """Every candidate once; its probabilities are the registered network's on the state by the simulator's own log."""
    config, log, _, _ = ran
    scores = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pandas().set_index("candidate_id").sort_index()
    asked = log.candidates
    known, state = log_state(asked, log.decisions, log.events, log.users, config)
    logged = np.column_stack([np.ones_like(asked["send_legal"]), asked["send_legal"]])
    legal, _ = legal_actions(known, logged, ("hold", "send"), config.constraints)
    champion = QPolicy(artifact.load(config.run_dir / "policies" / "behaviour"))
    wanted_rows = champion.action_probabilities(state, legal)
    order = np.argsort([f"c{user:07d}" for user in asked["user"]])
    assert list(scores.index) == [f"c{user:07d}" for user in asked["user"][order]]
    assert len(scores) == 398
    found = np.stack(scores["probabilities"])
    np.testing.assert_array_equal(np.stack(scores["legal"]), legal[order])
    np.testing.assert_allclose(found, wanted_rows[order], atol=1e-6)
    taken = np.where(scores["action"] == "send", found[:, 1], found[:, 0])
    np.testing.assert_array_equal(scores["propensity"], taken)
    assert set(scores["policy"]) == {"behaviour"}
    berlin = pd.Timestamp("2026-04-01 16:39:01", tz="Europe/Berlin")
    assert scores.loc["c0000000", "decide_at"] == berlin
    # A clone of the log: about as many sends as it made where it could, and none where it could not.
    could = legal[order][:, 1]
    assert not (scores["action"] == "send")[~could].any()
    could_log = log.decisions["send_legal"]
    assert abs(found[could, 1].mean() - log.decisions["action"][could_log].mean()) < 0.1


def test_the_sender_gets_every_row_and_none_by_mistake(ran: Kettle) -> None:
    config, _, results, _ = ran
    file = config.run_dir.parents[1] / "tonight.csv"
    assert len(pd.read_csv(file)) == 398
    assert "398 rows (" in results["handover"].stdout
    file.unlink()
    over = CliRunner().invoke(app, ["handover", str(config.run_dir.parents[1] / "kettle.toml"), "--out", str(file), "--set", f"run_dir={config.run_dir}"])  # noqa: E501  # fmt: skip
    assert isinstance(over.exception, InputError)
    assert over.exception.exit_code == 2
    assert "past their valid_until" in str(over.exception)
    assert not file.exists()


def test_the_lines_that_show_quarantine_show_it(ran: Kettle) -> None:
    """Each bad row with what stood in it, in the log's own words, and its remedy."""
    config, *_ = ran
    said = io.StringIO()
    with contextlib.chdir(config.run_dir.parents[1]), contextlib.redirect_stdout(said):
        exec(block("python", "## Bad rows"), {})
    for words in (
        ["bad-1", "decided=31.02.2026 10:00:00", "missing_decided_at"],
        ["bad-2", "sms", "unknown_action"],
        ["bad-3", "propensity=30 %", "propensity_out_of_range"],
        ["bad-4", "missing_feature:relevance"],
    ):
        line = next(line for line in said.getvalue().splitlines() if words[0] in line)
        assert all(word in line for word in words), line
        assert REMEDIES[words[-1].split(":")[0]] in line
