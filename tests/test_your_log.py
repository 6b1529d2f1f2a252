"""docs/your-log.md is true: its tables are what the code accepts and does, and its errors are those of the code."""

import ast
import re
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from models.contract import UNITS
from pipelines.config import Config, validate
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
from pipelines.sections import LEARNED_REWARD, STATE_FEATURES, Dataset
from tests.your_log import ROOT, names_in, rows_of

WORDS = {TEXT: "text", NUMBER: "number", TIME: "time", TEXTS: "list of texts"}


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
    """Names, types, which are required, and what stands in for one that is absent."""
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
    for first, place in (("reward component", 2), ("state feature", 3)):
        needs: set[str] = set()
        for cells in rows_of("Kinds of events", first):
            needs = needs if cells[1] == "the same" else names_in(cells[1]) & set(KINDS)
            for name in names_in(cells[0]) - {f"{COLUMN_REWARD}NAME", f"{LEARNED_REWARD}NAME"}:
                moving = {kind for kind in kinds if f"`{name}`" in kinds[kind][place]}
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


def errors_of(source: str) -> list[str]:
    """The messages of the errors that Python source makes, with {} for what an f-string fills in: what else it says, in
    a docstring or a log, stops no run. A text that the module names once and for all is one too."""
    found, tree = [], ast.parse(source)
    named = {
        each.targets[0].id: each.value.value
        for each in tree.body
        if isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
    }
    for node in ast.walk(tree):
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or not name.endswith("Error"):
            continue
        parts = [each for argument in node.args for each in ast.walk(argument)]
        inside = {id(each) for part in parts if isinstance(part, ast.JoinedStr) for each in part.values}
        for part in parts:
            if isinstance(part, ast.JoinedStr):
                values = [str(each.value) if isinstance(each, ast.Constant) else "{}" for each in part.values]
                found.append("".join(values))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in inside:
                found.append(part.value)
            elif isinstance(part, ast.Name) and part.id in named:
                found.append(named[part.id])
    return found


def test_messages_are_those_of_errors() -> None:
    lines = [
        '"Module."',
        'why = "logged"  # commented',
        "def f():",
        '    "Of f."',
        '    raise NoError(f"no {A} of " "it") if A else m.OtherError("so " "it is")',
        'A, B, C = 1, "b", "c"',
        'WHY = "as it is"',
        'raise NoError(f"{WHY}, {B}")',
    ]
    assert sorted(errors_of("\n".join(lines))) == ["as it is", "no {} of it", "so it is", "{}, {}"]


def test_its_errors_are_those_of_the_code() -> None:
    """Each fragment stands in a message; and each reason is one."""
    files = [path for part in ("models", "policies", "pipelines") for path in (ROOT / part).rglob("*.py")]
    said = [text for path in files for text in errors_of(path.read_text())]
    told = [cells[0].strip("`") for cells in rows_of("First errors", "it says")]
    assert [each for each in told if not any(re.search(pattern_of(each), text, re.S) for text in said)] == []
    named = {name for cells in rows_of("First errors", "it says") for name in names_in(cells[2])}
    assert {name for name in named if re.match(r"unknown_|missing_", name)} <= set(REMEDIES)


def pattern_of(fragment: str) -> str:
    return ".*".join(re.escape(each.strip()) for each in fragment.split("…"))
