"""`tactful explain` on a small road: what it says is what the artifact and the table say, and every way to go wrong."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import artifact, table
from models.errors import InputError
from pipelines import explaining, jobs
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.jobs import steps
from policies.explain import number
from policies.q_policy import QPolicy
from tests.pipelines.test_road import sections, small


@dataclass(frozen=True)
class Explained:
    config: Config
    file: Path
    user: str
    """Has several usable decisions with a choice."""


def tree_of(folder: Path) -> dict[str, Any]:
    tree = small(folder)
    tree["simulate"] |= {"users": 150}
    tree["features"]["state"] = ["notifications_on", *tree["features"]["state"]]
    tree["quality"] = {"docs": False}
    tree["train"] |= {"seeds": 1, "steps": 40, "behaviour_steps": 40, "value_steps": 40}
    return tree


@pytest.fixture(scope="module")
def road(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    """Transitions, policies, and the cloned logging policy as champion; beside real users three made-up ones."""
    folder = tmp_path_factory.mktemp("explained")
    tree = tree_of(folder)
    config = validate(tree, "small.toml")
    for step in (jobs.simulate, jobs.etl, jobs.train):
        step(config)
    registry = steps.registry_of(config)
    registry.set_alias("champion", registry.register(config.run_dir / "policies" / "behaviour", {}))
    file = folder / "small.toml"
    plain = json.loads(config.model_dump_json(exclude_none=True))
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items() if not isinstance(value, dict)]
    file.write_text("\n".join([*lines, *sections(plain)]))
    rows = newest_first(config)
    user = next(user for user in sorted({row["user_id"] for row in rows}) if len(chosen(rows, user)) > 3)
    model = chosen(rows, user)
    add(
        config,
        [
            {**model[0], "user_id": "broken", "decision_id": "b1", "usable": False, "reason": "unknown_action"},
            {**model[0], "user_id": "quiet", "silent": True, "legal": [True, False]},
            *({**row, "user_id": "[off]", "legal": [True, False], "state_notifications_on": 0.0} for row in model[:2]),
            {**model[0], "user_id": user, "decision_id": "zz forced", "legal": [True, False]},
            {**model[0], "user_id": user, "decision_id": "spoilt", "usable": False, "reason": "missing_reward:x"},
        ],
    )
    return Explained(config, file, user)


def newest_first(config: Config) -> list[dict[str, Any]]:
    rows = DeltaTable(config.transitions_path).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: (row["decided_at"], row["decision_id"]), reverse=True)


def chosen(rows: list[dict[str, Any]], user: str) -> list[dict[str, Any]]:
    """The user's usable decisions with a choice."""
    return [
        row for row in rows if row["user_id"] == user and row["usable"] and not row["silent"] and sum(row["legal"]) > 1
    ]


def add(config: Config, rows: list[dict[str, Any]]) -> None:
    delta = DeltaTable(config.transitions_path)
    schema = delta.to_pyarrow_dataset().schema
    # Where the ETL would put them.
    from pipelines.etl.hashing import bucket_of, xxhash64

    users = pa.array([row["user_id"] for row in rows])
    buckets = bucket_of(xxhash64(users), config.etl.buckets).tolist()
    placed = [{**row, "bucket": bucket} for row, bucket in zip(rows, buckets, strict=True)]
    write_deltalake(delta, pa.Table.from_pylist(placed, schema), mode="append")


def typed(road: Explained, *words: str) -> Any:
    done = CliRunner().invoke(app, ["explain", str(road.file), *words])
    if done.exception:
        raise done.exception
    return done


def test_json_says_what_the_artifact_and_the_table_say(road: Explained) -> None:
    found = json.loads(typed(road, road.user, "--policy", "ddqn_cql", "--last", "3", "--json").stdout)
    loaded = artifact.load(road.config.run_dir / "policies" / "ddqn_cql")
    wanted = chosen(newest_first(road.config), road.user)[:3]
    assert [each["decision_id"] for each in found["decisions"]] == [row["decision_id"] for row in wanted]
    assert (found["policy"], found["champion"], found["fingerprint"]) == ("ddqn_cql", None, loaded.fingerprint)
    features, rewards = loaded.contract.features, loaded.contract.rewards
    for each, row in zip(found["decisions"], wanted, strict=True):
        state = np.array([[row[f"state_{name}"] for name in features]], dtype=np.float32)
        values = loaded.predict(state)[2][0]
        told = np.array([[each["values"][action][name] for name in rewards] for action in ("hold", "send")])
        np.testing.assert_array_equal(told, values)
        acted = QPolicy(loaded).action_probabilities(state, np.array([row["legal"]]))[0]
        assert list(each["probabilities"].values()) == acted.tolist()
        assert each["logged_action"] == row["action"]
        compared = each["compared"]
        assert (compared["of"], compared["against"]) == ("send", "hold")
        difference = values[1] - values[0]
        weights = np.array([loaded.weights[name] for name in rewards])
        np.testing.assert_allclose(list(compared["difference"].values()), difference)
        np.testing.assert_allclose(list(compared["weighted"].values()), difference * weights)
        assert compared["total"] == pytest.approx(float(difference @ weights))
        better = "send" if compared["total"] > 0 else "hold"
        assert each["agrees"] == (better == each["preferred"])
        assert sum(feature["share"] for feature in each["features"]) + each["unattributed"] == pytest.approx(1)
        assert each["unattributed"] < 0.05
        assert {column for feature in each["features"] for column in feature["columns"]} <= set(features)


def test_the_reader_of_one_user_meets_the_reader_of_all(road: Explained) -> None:
    """The rows that training reads, by another way."""
    log = table.read(road.config.transitions_path, road.config.contract)
    rows, version = explaining._rows_of(road.config, road.user)
    mine = log.where(log.user_id[log.user] == road.user)
    usable = [row for row in rows if row["usable"]][::-1]
    assert version == log.version
    state = [[row[f"state_{name}"] for name in road.config.contract.features] for row in usable]
    np.testing.assert_array_equal(np.array(state, dtype=np.float32), mine.state)
    np.testing.assert_array_equal([row["legal"] for row in usable], mine.legal)


def test_the_terminal_says_the_same_in_words(road: Explained) -> None:
    arguments = (road.user, "--policy", "ddqn")
    (each,) = json.loads(typed(road, *arguments, "--json").stdout)["decisions"]
    output = typed(road, *arguments).output
    text = " ".join(output.split())
    for sentence in each["words"]:
        assert " ".join(sentence.split()) in text
    # The last row of the table is the sum of the column above it.
    last = next(line for line in output.splitlines() if "in all" in line and "│" in line)
    assert last.split("│")[-2].strip() == number(each["compared"]["total"], sign=True)
    assert f"{number(each['compared']['total'], sign=True)} in all." in text
    for action, values in each["values"].items():
        assert action in output
        for value in values.values():
            assert number(value) in output
    assert f"{road.user}, decision {each['decision_id']}" in text


def test_the_champion_is_explained_by_default(road: Explained) -> None:
    found = json.loads(typed(road, road.user, "--json").stdout)
    assert (found["policy"], found["champion"]) == ("behaviour", "1")
    assert "policy behaviour, version 1, the champion, fingerprint" in typed(road, road.user).output
    (each,) = found["decisions"]
    assert each["probabilities"] == each["logging_policy"]
    assert "It imitates the logging policy." in each["words"]


def test_a_decision_can_be_named(road: Explained) -> None:
    row = chosen(newest_first(road.config), road.user)[2]
    found = jobs.explain(road.config, road.user, decision=row["decision_id"], policy="ddqn")
    assert [each["decision_id"] for each in found["decisions"]] == [row["decision_id"]]


def test_without_a_choice_the_rule_is_told(road: Explained) -> None:
    found = jobs.explain(road.config, "[off]", policy="ddqn", last=5)
    assert len(found["decisions"]) == 2
    for each in found["decisions"]:
        assert each["legal"] == ["hold"]
        assert each["rule"] == "consent"
        assert each["compared"] is None
        assert each["words"] == ["Only hold is legal here: notifications are off. There is nothing to choose."]
        assert each["values"]["send"]["clicks"] is not None
    output = typed(road, "[off]", "--policy", "ddqn").output
    # A user id is no markup.
    assert "[off], decision" in output
    assert "send (not legal)" in output


@pytest.mark.parametrize(
    ("limits", "known", "rule"),
    [
        ({}, {"notifications_on": 0.0}, "consent"),
        ({}, {"notifications_on": 1.0}, ""),
        ({"consent": False}, {"notifications_on": 0.0}, ""),
        ({}, {}, ""),
        # 22:00 and 21:59 of (22, 8), as float32 holds them.
        ({"quiet_hours": [22, 8]}, {"hour": 22.0}, "quiet_hours"),
        ({"quiet_hours": [22, 8]}, {"hour": 21.98}, ""),
        ({"quiet_hours": [22, 8]}, {}, ""),
        ({"max_sends_24h": 2}, {"sends_24h": 2.0}, "max_sends_24h"),
        ({"max_sends_24h": 2}, {"sends_24h": None}, ""),
        ({"max_sends_7d": 3}, {"sends_7d": 2.0}, ""),
        ({"min_gap_hours": 5}, {"hours_since_send": 4.5}, "min_gap"),
        ({"min_gap_hours": 5}, {}, ""),
    ],
)
def test_the_rule_is_told_as_far_as_the_state_shows_it(
    limits: dict[str, Any], known: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    config = validate(small(tmp_path, constraints=limits), "small.toml")
    if "hour" in known:
        turn = 2 * np.pi * known.pop("hour") / 24
        known |= {"hour_sin": float(np.float32(np.sin(turn))), "hour_cos": float(np.float32(np.cos(turn)))}
    assert explaining._rule(known, config) == rule


@pytest.mark.parametrize(
    ("user", "asked", "message"),
    [
        ("nobody", {}, r"user 'nobody': no row in version \d+ of .*transitions, whose ids look like '.+'; give an id"),
        ("broken", {}, r"user 'broken': 1 rows, none a usable decision \(unknown_action: 1\); look at quarantine/"),
        ("quiet", {}, r"user 'quiet': 1 rows, none a usable decision \(silent: 1\)"),
        (
            None,
            {"decision": "d?"},
            r"--decision d\?: not among the \d+ rows of user .*newest usable decisions: .+, .+, ",
        ),
        (None, {"decision": "spoilt"}, r"--decision spoilt: not usable \(missing_reward:x\).*usable ones of user"),
        (None, {"last": 0}, r"--last 0: at least one decision"),
        (None, {"policy": "dqn"}, r"--policy dqn: no such policy \(found: behaviour, ddqn, ddqn_cql\); name one"),
        (None, {"policy": "../policies/ddqn"}, r"no such policy"),
    ],
)
def test_what_cannot_be_explained_says_why(
    road: Explained, user: str | None, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        jobs.explain(road.config, user or road.user, **{"policy": "ddqn", **asked})
    assert error.value.exit_code == 2


@pytest.fixture
def changed(road: Explained, tmp_path: Path) -> dict[str, Any]:
    """The configuration's tree, over a copy of what the run left."""
    copied = tmp_path / "run"
    shutil.copytree(road.config.run_dir, copied)
    tree = tree_of(road.file.parent)
    return {**tree, "run_dir": str(copied)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"state": ["badge"]}}, "the policy was made for features .*, the transitions have badge; train"),
        ({"actions": ["hold", "push"]}, "the policy was made for actions hold, send, the transitions have hold, push"),
        (
            {"etl": {"buckets": 2, "lookback_days": 14}},
            r"another ETL configuration \(etl\.lookback_days was 28\.0, is 14\.0; etl\.warmup_days was 2\.0, is 7\.0\)",
        ),
    ],
)
def test_a_policy_of_other_states_is_not_explained_by_these(
    changed: dict[str, Any], road: Explained, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        jobs.explain(validate({**changed, **change}, "small.toml"), road.user, policy="ddqn")


def test_a_run_without_transitions_or_champion_says_what_to_run_first(changed: dict[str, Any], road: Explained) -> None:
    config = validate(changed, "small.toml")
    shutil.rmtree(config.transitions_path)
    with pytest.raises(InputError, match=r"no transitions table; run the ETL first \(`tactful etl CONFIG`\)"):
        jobs.explain(config, road.user, policy="ddqn")
    (config.run_dir / "mlflow.db").unlink()
    with pytest.raises(
        InputError, match=r"mlflow\.db: no registry lies there; correct run_dir, or register a policy first"
    ):
        jobs.explain(config, road.user)
    shutil.rmtree(config.run_dir / "policies")
    with pytest.raises(
        InputError, match=r"--policy ddqn: no such policy \(found: none\); .* run `tactful train` first"
    ):
        jobs.explain(config, road.user, policy="ddqn")


def test_a_table_of_another_configuration_asks_for_a_rebuild(changed: dict[str, Any], road: Explained) -> None:
    tree = {**changed, "etl": {"warmup_days": 2, "buckets": 4}}
    config = validate(tree, "small.toml")
    loaded = artifact.load(config.run_dir / "policies" / "ddqn")
    loaded.lineage["etl_hash"] = config.etl_hash()
    with pytest.raises(InputError, match=r"rows were made with other settings: .*--rebuild"):
        explaining.explain_user(config, loaded, road.user)
