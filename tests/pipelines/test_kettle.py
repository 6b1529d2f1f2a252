"""The example of docs/your-log.md runs as the page says, and what comes out is what the world behind it was."""

import contextlib
import io
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import artifact, table
from models.errors import InputError
from pipelines.cli import app
from pipelines.config import Config, load, validate
from pipelines.etl.marks import REMEDIES
from pipelines.inprocess import transitions_of
from pipelines.simulate import log_state
from policies.constraints import legal_actions
from policies.q_policy import QPolicy
from policies.simulator import Log
from tests.pipelines import kettle
from tests.your_log import PAGE, block, names_in, rows_of

QUICK = [
    "train.steps=80", "train.batch_size=64", "train.hidden=[16]", "train.behaviour_steps=200", "train.value_steps=60",
    "evaluate.resamples=100", "evaluate.fqe_steps=60", "quality.docs=false", 'spark.master="local[2]"',
    "spark.shuffle_partitions=2",
]  # fmt: skip
"""How long it learns, and how surely it judges, is not what the page is about."""

Kettle = tuple[Config, Log, dict[str, Result]]


def commands() -> list[str]:
    return [line for line in block("sh", "The commands,").splitlines() if line.startswith("tactful ")]


@pytest.fixture(scope="module")
def ran(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Kettle:
    """The page's files, made longer by the same world, its TOML as it stands, and its commands one after the other."""
    folder, log = tmp_path_factory.mktemp("shop"), kettle.world()
    (folder / "kettle.toml").write_text(block("toml", "`kettle.toml`:"))
    results = {}
    with contextlib.chdir(folder):
        exec(block("bash", "## A log in its own words").split('"')[1], {})
        for line in commands():
            _, *words = shlex.split(line)
            quick = [word for pair in QUICK for word in ("--set", pair)]
            results[words[0]] = CliRunner().invoke(app, [*words, *quick])
        config = load(Path("kettle.toml"))
    places = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for dataset in places["data"].values():
        dataset["path"] = str(folder / dataset["path"])
    return validate({**places, "run_dir": str(folder / "runs/kettle")}, "kettle.toml"), log, results


@pytest.mark.parametrize("name", ["nudges.csv", "activity.jsonl", "customers.csv", "tonight.csv"])
def test_the_files_begin_as_the_page_shows(ran: Kettle, name: str) -> None:
    config, *_ = ran
    shown = block("json" if name.endswith("jsonl") else "csv", f"`kettle/{name}`")
    whole = (config.run_dir.parents[1] / "kettle" / name).read_text()
    assert shown.count("\n") >= 3
    assert whole.startswith(shown)


def test_every_command_ends_as_the_page_says(ran: Kettle) -> None:
    _, _, results = ran
    told = {cells[0].strip("`"): int(cells[2][0]) for cells in rows_of("A log in its own words", "command")}
    assert {name: found.exit_code for name, found in results.items()} == told


def test_the_terminal_says_what_the_page_says(ran: Kettle) -> None:
    config, _, results = ran
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
    config, log, _ = ran
    files = sorted((config.run_dir.parents[1] / "kettle").iterdir())
    activity, _, nudges, _ = (len(file.read_text().splitlines()) for file in files)
    rows = json.loads((config.run_dir / "steps" / "etl.json").read_text())["rows"]
    kept = len(log.decisions["user"])
    of = rows["decisions"]
    # The header is no row.
    assert nudges - 1 == kept + 1 + len(kettle.BAD)
    assert (of["read"], of["kept"], of["exact_duplicates"], of["quarantined"]) == (nudges - 1, kept, 1, 4)
    assert rows["events"]["read"] == rows["events"]["kept"] == activity - 1 == len(log.events["user"])


def test_its_words_make_the_transitions_that_the_world_itself_makes(ran: Kettle) -> None:
    """Berlin's clock over the change of 29 March, commas, German words and milliseconds: equal in every column."""
    config, log, _ = ran
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
    config, log, _ = ran
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
    config, _, results = ran
    file = config.run_dir.parents[1] / "tonight.csv"
    assert len(pd.read_csv(file)) == 398
    assert "398 rows (" in results["handover"].stdout
    with contextlib.chdir(file.parent):
        over = CliRunner().invoke(app, ["handover", "kettle.toml", "--out", "again.csv"])
    assert isinstance(over.exception, InputError)
    assert over.exception.exit_code == 2
    assert "past their valid_until" in str(over.exception)
    assert not file.with_name("again.csv").exists()


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
