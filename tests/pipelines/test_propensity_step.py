"""A simulated log that lost its propensities: estimated, evaluated with, refused promotion for, and never stale."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import propensities, table
from models.errors import InputError, TransientError
from pipelines import erase, estimation, jobs
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.estimation import transitions_to_evaluate
from pipelines.evaluating_spark import Log
from policies.gate import judge


def lost(folder: Path, run: str = "run") -> dict[str, Any]:
    """Rules of promotion that a policy sending little meets at once, were it not for the propensities."""
    return {
        "name": "lost",
        "seed": 5,
        "run_dir": str(folder / run),
        "rewards": ["sends", "clicks", "visits"],
        "simulate": {"users": 500, "days": 14, "truth_users": 100, "epsilon": 0.6},
        "data": {
            "decisions": {
                "path": str(folder / "lake" / "decisions"),
                "columns": {"propensity": "cast(null as double)"},
            },
            "events": {"path": str(folder / "lake" / "events")},
            "users": {"path": str(folder / "lake" / "users")},
        },
        "features": {
            "state": ["notifications_on", "sends_7d", "visits_7d", "hours_since_visit", "candidate_missing"],
            "context": ["relevance"],
        },
        "etl": {"warmup_days": 2, "buckets": 2},
        "propensity": {"trees": 150},
        "train": {
            "weights": {"sends": -1.0, "clicks": 0.01},
            "learners": {"ddqn": 0.0},
            "seeds": 2,
            "steps": 400,
            "batch_size": 64,
            "hidden": [16],
            "behaviour_steps": 80,
            "value_steps": 80,
        },
        "policy": {"rollout_share": 0.25},
        "evaluate": {"resamples": 100, "fqe_steps": 300},
        "gate": {
            "candidate": "ddqn",
            "shares": [0.1, 0.3],
            "min_ess": 2,
            "min_support": 0,
            "max_calibration_error": 1,
            "min_agreement": 0,
            "metrics": {"sends": {"direction": "down", "margin": 0.5, "improve": True}},
        },
        "spark": {"master": "local[2]", "shuffle_partitions": 2},
    }


@pytest.fixture(scope="module")
def whole(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """`tactful run`: configuration and summary."""
    config = validate(lost(tmp_path_factory.mktemp("lost")), "lost.toml")
    return config, jobs.run(config)


@pytest.fixture
def copied(whole: tuple[Config, dict[str, Any]], tmp_path: Path) -> Config:
    """The same run in a folder that a test may change."""
    config, _ = whole
    shutil.copytree(config.run_dir, tmp_path / "run")
    tree = lost(config.run_dir.parent)
    return validate({**tree, "run_dir": str(tmp_path / "run")}, "lost.toml")


def left_by(config: Config, step: str) -> dict[str, Any]:
    return dict(json.loads((config.run_dir / "steps" / f"{step}.json").read_text()))


def typed(command: str, config: Config, tmp_path: Path) -> Any:
    """What the command leaves when a user types it."""
    tree = json.loads(config.model_dump_json(exclude_none=True))

    def sections(node: dict[str, Any], name: str) -> str:
        own = "".join(f"{k} = {json.dumps(v)}\n" for k, v in node.items() if not isinstance(v, dict))
        inner = "".join(sections(v, f"{name}.{k}".lstrip(".")) for k, v in node.items() if isinstance(v, dict))
        return (f"[{name}]\n" if name else "") + own + inner

    path = tmp_path / "lost.toml"
    path.write_text(sections(tree, ""))
    return CliRunner().invoke(app, [command, str(path)])


def test_estimated_propensities_never_promote(whole) -> None:
    config, found = whole
    evaluation = found["evaluation"]
    assert evaluation["propensities"]["estimated"] > 3000
    verdict = found["verdict"]
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert verdict["largest_share"] is None
    (reason,) = (each for each in verdict["reasons"] if each.startswith("propensities"))
    assert "are estimated, where 0 may be" in reason
    assert "Logged propensities or an experiment would lift it" in reason
    assert {check["name"] for check in verdict["checks"] if not check["passed"]} == {"propensities"}
    # Had they been logged, the same figures would promote.
    logged = {**evaluation, "propensities": {**evaluation["propensities"], "estimated": 0}}
    assert judge(logged, config.gate, verdict["tried"])["verdict"] == "PROMOTE"


def test_promote_ends_inconclusive_and_moves_no_champion(copied, tmp_path) -> None:
    done = typed("promote", copied, tmp_path)
    assert done.exit_code == 5, done.output
    registered = left_by(copied, "promote")["registry"]
    assert registered["champion"] != registered["candidate"]


def test_the_world_s_own_propensities_are_recovered(whole) -> None:
    """It sends at 0.7 above a threshold of relevance and at 0.3 below, where sending is legal."""
    config, _ = whole
    rows = DeltaTable(config.propensities_path).to_pyarrow_table().to_pandas()
    raw = ds.dataset(config.run_dir.parent / "lake" / "decisions", partitioning="hive").to_table().to_pandas()
    both = rows.merge(raw, on=["user_id", "decision_id"], suffixes=("", "_true"))
    assert len(both) == len(rows) == rows["decision_id"].nunique()
    assert set(both["propensity_true"].round(9)) == {0.3, 0.7}
    off = (both["propensity"] - both["propensity_true"]).abs()
    # The base rate alone would be off by 0.2.
    assert off.mean() < 0.05
    assert abs((1 / both["propensity"]).mean() - (1 / both["propensity_true"]).mean()) < 0.1
    calibration = left_by(config, "propensity")["calibration"]
    for key in ("cross_fitted", "held_out"):
        assert calibration[key]["ece"] < 0.06
        assert calibration[key]["log_loss"] < calibration[key]["base_log_loss"] - 0.03


def test_a_log_read_by_spark_has_the_same_estimates(spark: SparkSession, whole) -> None:
    config, _ = whole
    lineage = left_by(config, "train")["lineage"]
    log, here = Log.of(spark, config, lineage), transitions_to_evaluate(config, lineage)
    there = log.sample()
    assert log.estimates_version == here.estimates_version
    for name in ("user_id", "user", "propensity", "estimated", "decided_at", "state", "reward", "terminal", "split"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))


def test_estimates_of_another_version_are_refused_by_spark(spark: SparkSession, copied) -> None:
    estimates = DeltaTable(copied.propensities_path)
    facts = {"transitions_version": "77", "transitions_fingerprint": "x"}
    write_deltalake(
        estimates, estimates.to_pyarrow_table(), mode="overwrite", commit_properties=CommitProperties(facts)
    )
    with pytest.raises(InputError, match="estimated for version 77 of the transitions, not for version 0"):
        Log.of(spark, copied, None)


def test_the_table_holds_what_was_unknown_and_how_it_was_made(whole) -> None:
    config, found = whole
    report = left_by(config, "propensity")
    log = table.read(config.transitions_path, config.contract)
    unknown = np.isnan(log.propensity)
    rows = DeltaTable(config.propensities_path).to_pyarrow_table()
    assert rows.schema.names == ["user_id", "decision_id", "decided_at", "propensity", "fold"]
    assert rows.num_rows == report["estimated"] == unknown.sum()
    assert sorted(rows["decided_at"].cast(pa.int64()).to_pylist()) == sorted(log.decided_at[unknown].tolist())
    assert set(rows["fold"].to_pylist()) == {-1, 0, 1, 2, 3, 4}
    _, facts, version = propensities.read(config.propensities_path)
    assert (facts["transitions_fingerprint"], facts["transitions_version"]) == (log.fingerprint, str(log.version))
    assert json.loads(facts["model"]) == report["model"]
    assert json.loads(facts["model"])["seed"] == config.seed
    assert json.loads(facts["calibration"]) == report["calibration"]
    assert found["lineage"]["estimates_version"] == left_by(config, "evaluate")["estimates_version"] == version == 0
    assert found["lineage"]["fingerprint"] != log.fingerprint
    assert "propensity" in found["seconds"]


def test_evaluation_keeps_to_the_estimates_that_training_read(copied, tmp_path) -> None:
    done = typed("propensity", copied, tmp_path)
    assert done.exit_code == 0, done.output
    assert left_by(copied, "propensity")["version"] == 1
    pinned = estimation.transitions_to_evaluate(copied, left_by(copied, "train")["lineage"])
    assert pinned.estimates_version == 0
    newest = estimation.transitions_to_train(copied)
    # Nothing changed in between, so neither did an estimate.
    assert (newest.estimates_version, newest.fingerprint) == (1, pinned.fingerprint)


def test_stale_estimates_stop_training_until_they_are_made_again(copied) -> None:
    who = table.read(copied.transitions_path, copied.contract).user_id[0]
    DeltaTable(copied.transitions_path).delete(f"user_id = '{who}'")
    with pytest.raises(InputError, match="run `tactful propensity CONFIG` again") as error:
        jobs.train(copied)
    assert error.value.exit_code == 2
    jobs.propensity(copied)
    assert estimation.transitions_to_train(copied).estimates_version == 1


def test_evaluation_without_estimates_says_how_to_get_them(copied) -> None:
    lineage = {**left_by(copied, "train")["lineage"], "estimates_version": None}
    assert estimation.transitions_to_evaluate(copied, lineage).estimates_version == 0
    shutil.rmtree(copied.propensities_path)
    assert np.isnan(estimation.transitions_to_train(copied).propensity).any()
    with pytest.raises(InputError, match=r"decisions have no propensity; estimate them \(`tactful propensity CONFIG`"):
        estimation.transitions_to_evaluate(copied, lineage)


def test_a_log_with_propensities_has_nothing_to_estimate(whole, tmp_path) -> None:
    config, _ = whole
    rows = DeltaTable(config.transitions_path).to_pyarrow_table()
    known = rows.set_column(rows.schema.get_field_index("propensity"), "propensity", rows["propensity"].fill_null(0.5))
    write_deltalake(tmp_path / "run" / "transitions", known, partition_by=["ds", "bucket"])
    logged = validate({**lost(tmp_path), "run_dir": str(tmp_path / "run")}, "lost.toml")
    with pytest.raises(InputError, match="have one, nothing is to be estimated"):
        jobs.propensity(logged)
    assert not propensities.exists(logged.propensities_path)
    assert not (logged.run_dir / "steps" / "propensity.json").exists()


@pytest.mark.parametrize("first", [True, False], ids=["first estimates", "later estimates"])
def test_a_run_that_began_before_users_were_forgotten_does_not_bring_them_back(copied, monkeypatch, first) -> None:
    if first:
        shutil.rmtree(copied.propensities_path)
    who, really = table.read(copied.transitions_path, copied.contract).user_id[0], estimation.estimate

    def meanwhile(*words: Any) -> Any:
        erase.forget(copied, [who])
        return really(*words)

    monkeypatch.setattr(estimation, "estimate", meanwhile)
    with pytest.raises(TransientError, match="run it again"):
        jobs.propensity(copied)
    monkeypatch.setattr(estimation, "estimate", really)
    jobs.propensity(copied)
    assert who not in DeltaTable(copied.propensities_path).to_pyarrow_table()["user_id"].to_pylist()


def test_of_two_writers_one_is_told_to_come_again(copied, monkeypatch) -> None:
    def beaten(*_: Any, **__: Any) -> None:
        raise CommitFailedError("version 1 is there")

    monkeypatch.setattr(propensities, "write_deltalake", beaten)
    with pytest.raises(TransientError, match="another writer committed first") as error:
        jobs.propensity(copied)
    assert error.value.exit_code == 75
    assert DeltaTable(copied.propensities_path).version() == 0
