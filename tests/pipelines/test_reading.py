"""Learned rewards from the configuration to every reader: no ETL makes them, everything after it has them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models import artifact, table
from models.errors import InputError
from models.rewards import store
from models.rewards.goal import Classifier
from models.rewards.learned import component
from pipelines import abtesting, jobs, reading
from pipelines.config import Config, validate
from pipelines.etl.flow import run_etl
from pipelines.inprocess import transitions_of
from pipelines.monitor import earnings, shifts
from pipelines.rewards import watching
from pipelines.rewards.goals import run_goal
from policies.simulator import simulate
from tests.models.rewards.test_goal import linear
from tests.pipelines.inprocess import in_process, simulated_log
from tests.pipelines.test_road import small

REWARDS = ["sends", "learned:taste", "clicks", "visits", "weekly_active_days", "disables"]
TASTE = {"weights": {"clicks": 2.0, "visits": 0.5}}
WAGES = {"weights": {"clicks": 1.0, "sends": -0.05, "taste": 0.1}}


def config_of(folder: Path, **changes: Any) -> Config:
    train = {key: value for key, value in small(folder)["train"].items() if key != "weights"}
    given = {"rewards": REWARDS, "train": {**train, "seeds": 1, "weights_from": "wages"}}
    return validate(small(folder, **{**given, **changes}), "small.toml")


def rewarded(config: Config) -> Config:
    store.add(config.rewards_path, "taste", "weights", TASTE, {})
    store.add(config.rewards_path, "wages", "weights", WAGES, {})
    return config


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A small log, its transitions, and two learned rewards."""
    config = config_of(tmp_path_factory.mktemp("reading"))
    simulated_log(config)
    return rewarded(config)


def test_the_etl_does_not_see_them(logged: Config) -> None:
    plain = config_of(logged.run_dir.parent, rewards=[name for name in REWARDS if ":" not in name])
    assert logged.etl_hash() == plain.etl_hash()
    assert logged.logged_contract == plain.contract == plain.logged_contract
    columns = DeltaTable(logged.transitions_path).to_pyarrow_dataset().schema.names
    assert "reward_taste" not in columns
    assert {"reward_sends", "reward_disables"} <= set(columns)


def test_every_reader_has_the_components_where_they_are_configured(logged: Config) -> None:
    whole, plain = reading.transitions(logged), reading.logged(logged)
    names = ("sends", "taste", "clicks", "visits", "weekly_active_days", "disables")
    assert whole.contract.rewards == logged.contract.rewards == names
    wanted = 2 * plain.reward[:, 1] + 0.5 * plain.reward[:, 2]
    assert np.abs(whole.reward[:, 1] - wanted).max() < 1e-12
    assert np.array_equal(np.delete(whole.reward, 1, axis=1), plain.reward)
    shards = reading.shards(logged)
    assert shards.contract == whole.contract
    parts = [shards.read(bucket) for bucket in shards.buckets]
    assert np.array_equal(np.concatenate([part.reward for part in parts]), whole.reward)
    assert shards.together(shards.buckets)[0].fingerprint == whole.fingerprint != plain.fingerprint
    assert logged.simulate is not None
    here = transitions_of(simulate(logged.simulate, logged.seed), logged)
    assert here.contract == whole.contract
    assert here.fingerprint == whole.fingerprint


def test_the_version_is_pinned_by_the_configuration_and_by_the_lineage(logged: Config, tmp_path: Path) -> None:
    config = logged.model_copy(update={"run_dir": tmp_path})
    rewarded(config)
    store.add(config.rewards_path, "taste", "weights", {"weights": {"clicks": 1.0}}, {})

    def version(config: Config, lineage: dict[str, Any] | None = None) -> int:
        found = reading.learned_rewards(config, lineage)
        assert found is not None
        return found.versions["taste"]

    pinned = config.model_copy(update={"learned": config.learned.model_copy(update={"versions": {"taste": 1}})})
    assert [version(config), version(pinned), version(config, {"learned_versions": {"taste": 1}})] == [2, 1, 1]
    with pytest.raises(
        InputError, match=r"learned\.versions\.taste is 1, but what is judged was learned with version 2"
    ):
        version(pinned, {"learned_versions": {"taste": 2}})
    # What is deployed keeps its version, whatever the next training is pinned to.
    deployed = reading.learned_rewards(pinned, {"learned_versions": {"taste": 2}}, deployed=True)
    assert deployed is not None
    assert deployed.versions["taste"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ["sends", "learned:mood", "clicks"]}, "mood: no learned reward; `tactful rewards --help`"),
        ({"learned": {"versions": {"taste": 7}}}, "taste: no version 7; there are 1"),
        ({"rewards": ["sends", "learned:taste", "clicks"]}, "version 1 was learned with the rewards visits, which"),
    ],
)
def test_what_is_not_there_is_named(logged: Config, changes: dict[str, Any], message: str) -> None:
    tree = {"gate": {"candidate": "ddqn_cql"}, "train": {"weights": {"clicks": 1.0}}, **changes}
    config = config_of(logged.run_dir.parent, **tree)
    with pytest.raises(InputError, match=message):
        reading.transitions(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ["learned:taste"]}, "rewards: learned:taste are learned; name one that the log has too"),
        ({"rewards": ["sends", "taste"]}, "a learned reward learned:taste"),
        ({"rewards": ["sends", "learned:sends"]}, "rewards: sends is named more than once"),
        ({"rewards": ["sends", "learned:../x"]}, "'../x' is no name for a reward; letters, digits and _ alone"),
        ({"rewards": ["sends", "learned:written"]}, "'learned:written' is called as what is evaluated beside it"),
        ({"rewards": ["sends", "learned:ctr"]}, "'learned:ctr' is called as what is evaluated beside it"),
        ({"learned": {"versions": {"tastes": 1}}}, "learned.versions.tastes: no such reward is used; did you mean"),
        ({"learned": {"versions": {"taste": 0}}}, "learned.versions.taste is 0; versions count from 1"),
        (
            {"train": {"weights": {"clicks": 1.0}, "weights_from": "wages"}},
            "train.weights and train.weights_from = 'wages' are both given",
        ),
        ({"train": {}}, "train.weights are all zero"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, **changes)


def test_learned_weights_are_those_of_their_version(logged: Config) -> None:
    settings, used = reading.learning(logged)
    assert settings.weights == WAGES["weights"]
    assert settings.weights_from is None
    assert used == {"wages": 1}
    given = config_of(logged.run_dir.parent, train={"weights": {"taste": 1.0}})
    assert reading.learning(given) == (given.learning, {})
    without = config_of(logged.run_dir.parent, rewards=[name for name in REWARDS if ":" not in name])
    with pytest.raises(InputError, match=r"weights_from: 'wages': version 1 was learned with the rewards taste"):
        reading.learning(without)


def test_a_sweep_over_learned_weights_is_checked_before_they_are_there(tmp_path: Path) -> None:
    config = config_of(tmp_path, sweep={"grid": {"taste": [0.0, 1.0]}})
    assert config.sweep is not None
    with pytest.raises(InputError, match="wages: no learned reward"):
        reading.learning(config)


def test_training_streams_them(logged: Config, tmp_path: Path) -> None:
    """A bucket after another: whatever passes through the buffer has the component too."""
    train = replace(logged.learning, stream_rows=20_000, seeds=1, steps=130, learners={"ddqn_cql": 1.0})
    config = logged.model_copy(update={"train": train, "run_dir": tmp_path})
    shutil.copytree(logged.transitions_path, config.transitions_path)
    rewarded(config)
    jobs.train(config)
    loaded = artifact.load(config.run_dir / "policies" / "ddqn_cql")
    assert loaded.contract.rewards == config.contract.rewards
    assert loaded.lineage["learned_versions"] == {"taste": 1, "wages": 1}


def test_from_training_to_the_report_over_spark(spark: SparkSession, logged: Config) -> None:
    """The component's value is that of its parts, by every estimator and on every road; its version is written down."""
    gate = replace(logged.gate, metrics={**logged.gate.metrics, "taste": logged.gate.metrics["weekly_active_days"]})
    goal = {"success": ["visits_7d >= 2"], "rounds": 0, "steps": 50}
    rewards = [*REWARDS, "learned:great"]
    config = config_of(logged.run_dir.parent, rewards=rewards, learned={"goal": goal}).model_copy(update={"gate": gate})
    great, log = run_goal(config, "great"), reading.logged(config)
    with in_process(judged=True) as session:
        found = run_etl(session, config)
    jobs.steps.write_json(jobs.steps.step_path(config, "etl"), {**found, "seconds": 0.0})
    trained = jobs.train(config)
    versions = {"taste": 1, "great": 1, "wages": 1}
    assert trained["lineage"]["learned_versions"] == versions
    assert trained["weights"] == WAGES["weights"]
    loaded = artifact.load(config.run_dir / "policies" / "ddqn_cql")
    assert loaded.contract.units["taste"] == "log-odds of preference"
    assert loaded.contract.units["great"] == "goal-days"
    assert loaded.lineage["learned_versions"] == versions
    assert loaded.weights["taste"] == 0.1
    reference = shifts.reference_of(config, loaded)
    assert {"value_send_taste", "value_hold_great"} <= reference.bins[shifts.VALUES].keys()
    told = jobs.explain(config, log.user_id[0], policy="ddqn_cql")
    assert told["units"]["great"] == "goal-days"
    # A newer version does not slip in between training and evaluation.
    store.add(config.rewards_path, "taste", "weights", {"weights": {"clicks": -1.0}}, {})
    goal_days = 7 * component(great, log).sum() / log.elapsed_days.sum()
    for by_spark in (True, False):
        estimates = jobs.evaluate(config, by_spark=by_spark)["evaluation"]["policies"]
        assert set(estimates) >= {"logging", "ddqn_cql", "never"}
        logging = estimates["logging"]["estimates"]["on_policy"]
        assert logging["great"]["estimate"] == pytest.approx(goal_days, abs=1e-9)
        checked = 0
        for policy in estimates.values():
            for name in {"on_policy", "pdis", "wpdis"} & set(policy["estimates"]):
                figures = policy["estimates"][name]
                if figures["taste"]["estimate"] is not None:
                    parts = 2 * figures["clicks"]["estimate"] + 0.5 * figures["visits"]["estimate"]
                    assert figures["taste"]["estimate"] == pytest.approx(parts, abs=1e-9)
                    checked += 1
        assert checked > 5
    jobs.promote(config)
    scored = jobs.score(config)
    assert scored["candidates"] > 0
    assert "value_send_taste" in DeltaTable(config.run_dir / "scores").to_pyarrow_dataset().schema.names
    summary = jobs.report(config)
    assert "log-odds of preference" in (config.run_dir / "report.html").read_text()
    assert summary["lineage"]["learned_versions"] == versions
    assert json.dumps(summary["policies"]["ddqn_cql"]["taste"])


def test_what_was_earned_is_read_with_them(spark: SparkSession, logged: Config) -> None:
    first = int(table.read(logged.transitions_path, logged.logged_contract).decided_at.min())
    rows = earnings.transition_rows(spark, logged, first)
    assert rows is not None
    config = config_of(logged.run_dir.parent, rewards=[*REWARDS, "learned:great"])
    log = reading.logged(logged)
    stored = Classifier(("badge",), linear(0.5), 1.0, 0.1).stored("great")
    store.add(config.rewards_path, "great", "goal", stored.facts, stored.tensors)
    learned = reading.learned_rewards(config, {"learned_versions": {"taste": 1}})
    assert learned is not None
    found = earnings.with_learned(rows, config, learned).toPandas()
    assert found["reward_great"].sum() == pytest.approx(component(stored, log).sum(), abs=1e-6)
    assert len(found) == rows.count()
    wanted = 2 * found["reward_clicks"] + 0.5 * found["reward_visits"]
    assert found["reward_taste"].sum() == pytest.approx(wanted.sum(), abs=1e-9)
    alone = earnings.with_learned(rows, logged, None)
    assert alone is rows
    assert component(learned.stored[0], log).sum() == pytest.approx(wanted.sum(), abs=1e-9)


def test_the_watch_is_of_what_the_candidate_is_trained_on(logged: Config) -> None:
    """Weights of its own come before those of [train]."""
    assert watching.objective(logged) == ["wages"]
    assert logged.train is not None
    own = replace(logged.train.named[logged.gate.candidate], weights={"taste": 1.0, "sends": -0.1})
    train = replace(logged.train, learners={**logged.train.learners, logged.gate.candidate: own})
    config = logged.model_copy(update={"train": train})
    assert watching.objective(config) == ["taste"]
    rewards = watching.trained_on(config, None)
    assert list(rewards) == ["taste"]
    assert watching.returns_of(config, rewards) == {"written": {"sends": -0.1}}


def test_an_experiment_is_measured_in_the_versions_of_its_prediction(tmp_path: Path) -> None:
    told = tmp_path / "evaluate.json"
    assert abtesting._learned_with(told) == {}
    told.write_text(json.dumps({"evaluation": {}, "learned_versions": {"taste": 1}}))
    assert abtesting._learned_with(told) == {"learned_versions": {"taste": 1}}
