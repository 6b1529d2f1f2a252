"""The whole road on a small simulated log, by the commands a user types: what it leaves, twice the same, exit codes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import artifact, table
from models.errors import InputError, QualityError
from pipelines import jobs
from pipelines.cli import EXIT_CODE, app
from pipelines.config import Config, validate
from pipelines.report.text import policy_name
from pipelines.scoring.night import run_scoring
from policies.baselines import NAMES
from policies.q_policy import QPolicy

LEARNERS = {"ddqn": 0.0, "ddqn_cql": 1.0}
DATASETS = ("decisions", "events", "users", "candidates")
Road = tuple[Config, list[dict[str, Any]]]


def small(folder: Path, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks", "visits", "weekly_active_days", "disables"],
        "simulate": {"users": 400, "days": 12, "truth_users": 300, "epsilon": 0.6},
        "data": {name: {"path": str(folder / "lake" / name)} for name in DATASETS},
        "features": {
            "state": ["sends_7d", "visits_7d", "hours_since_visit", "badge", "hour_sin", "hour_cos"],
            "context": ["relevance"],
            "attributes": ["tenure_days"],
        },
        "etl": {"warmup_days": 2, "buckets": 2},
        "train": {
            "weights": {"clicks": 1.0, "weekly_active_days": 0.2, "sends": -0.05},
            "learners": LEARNERS,
            "seeds": 2,
            "steps": 80,
            "batch_size": 64,
            "hidden": [16],
            "behaviour_steps": 80,
            "value_steps": 80,
        },
        "policy": {"rollout_share": 0.3},
        "evaluate": {"resamples": 100, "fqe_steps": 60},
        "gate": {
            "shares": [0.1, 0.3],
            "min_ess": 20,
            "metrics": {
                "weekly_active_days": {"direction": "up", "margin": 0.02},
                "sends": {"direction": "down", "margin": 0.0, "improve": True},
            },
        },
        "spark": {"master": "local[2]", "shuffle_partitions": 2},
    }
    return {**tree, **changes}


@pytest.fixture(scope="module")
def road(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """The configuration and the summaries of two runs of it in one folder."""
    config = validate(small(tmp_path_factory.mktemp("road")), "small.toml")
    return config, [jobs.run(config), jobs.run(config)]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            yield from leaves(value, f"{path}/{place}")
    else:
        yield path, tree


def test_the_summary_has_what_a_user_reads(road: Road) -> None:
    config, (found, _) = road
    assert json.loads((config.run_dir / "summary.json").read_text()).keys() == found.keys()
    assert {"verdict", "policies", "rows", "seconds"} <= found.keys()
    assert set(found["seconds"]) == {"simulate", "etl", "train", "evaluate", "promote", "score"}
    fitted = (*NAMES, *LEARNERS)
    names = {"logging", "never", "always", *fitted, *(f"{name} alone" for name in fitted)}
    assert set(found["policies"]) == names
    for name, metrics in found["policies"].items():
        assert set(metrics) == {*config.contract.rewards, "ctr"}
        for figures in metrics.values():
            assert {"estimate", "low", "high", "truth"} <= figures.keys()
            assert figures["rows"] == ("test" if name.split()[0] in fitted else "all")
            assert figures["truth"] is not None
    page = (config.run_dir / "report.html").read_text()
    assert "<h1" in page
    assert all(policy_name(name) in page for name in NAMES)


def test_rows_are_conserved_from_the_lake_to_the_transitions(road: Road) -> None:
    config, (found, _) = road
    rows = found["rows"]
    for name in ("decisions", "events"):
        of = rows[name]
        raw = ds.dataset(config.run_dir.parent / "lake" / name, partitioning="hive").count_rows()
        assert of["read"] == raw == of["kept"] + of["exact_duplicates"] + of["quarantined"]
        assert of["kept"] == of["mature"] + of["immature"]
    made = rows["transitions"]
    assert made["usable"] == rows["decisions"]["mature"] + made["silent"]
    table = DeltaTable(config.transitions_path).to_pyarrow_dataset()
    assert table.count_rows() == made["usable"] + made["unusable"]


def test_the_logging_policy_is_its_log(road: Road) -> None:
    config, (found, _) = road
    table = DeltaTable(config.transitions_path).to_pyarrow_table(columns=["reward_clicks", "elapsed_days", "usable"])
    rows = table.filter(table["usable"]).to_pydict()
    per_week = 7 * sum(rows["reward_clicks"]) / sum(rows["elapsed_days"])
    logging = found["policies"]["logging"]["clicks"]
    # All rows lie on a trajectory unless something unusable broke it, which a simulated log does not have.
    assert found["rows"]["transitions"]["unusable"] == 0
    assert logging["estimate"] == pytest.approx(per_week, abs=1e-9)
    assert found["evaluation"]["policies"]["logging"]["diagnostics"]["mean_weight"] == 1.0


def test_two_runs_with_one_seed_agree(road: Road) -> None:
    """To 1e-6 in every figure but times, ids, and versions that count up."""
    _, runs = road
    first, second = (dict(leaves(run)) for run in runs)
    counted = ("/seconds", "/created_at", "/lineage/data_version", "/lineage/mlflow_run", "/lineage/model_version")
    tonight = ("model_version", "version", "as_of", "checked_at", "fingerprint", "input_versions", "scores_fingerprint")
    moved = (*counted, "/lineage/champion", *(f"/scoring/{name}" for name in tonight))
    assert first.keys() == second.keys()
    compared = 0
    for path, value in first.items():
        if path.startswith(moved):
            continue
        compared += 1
        if isinstance(value, float):
            assert second[path] == pytest.approx(value, abs=1e-6), path
        else:
            assert second[path] == value, path
    assert compared > 500


def test_repeating_a_run_is_not_another_try(road: Road) -> None:
    _, runs = road
    assert [run["verdict"]["tried"] for run in runs] == [len(LEARNERS)] * 2


def test_every_candidate_is_scored_once(road: Road) -> None:
    config, (first, second) = road
    scores = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pandas()
    candidates = ds.dataset(config.run_dir.parent / "lake" / "candidates").to_table().to_pandas()
    assert sorted(scores["candidate_id"]) == sorted(candidates["candidate_id"])
    assert len(scores) == second["scoring"]["candidates"] == sum(first["scoring"]["by_action"].values())
    merged = scores.merge(candidates, on="candidate_id", suffixes=("", "_raw"))
    assert (merged["user_id"] == merged["user_id_raw"]).all()
    one = merged["legal_actions"].map(len) == 1
    assert (merged.loc[one, "action"] == "hold").all()
    assert (merged.loc[one, "propensity"] == 1).all()
    assert merged.loc[one, "rule"].notna().all()
    assert merged.loc[~one, "rule"].isin([None, "consent"]).all()
    assert (merged["propensity"] > 0).all()
    hours = (merged["valid_until"] - merged["decide_at"]).dt.total_seconds() / 3600
    assert (hours == config.score.valid_hours).all()
    assert set(merged["policy_version"]) == {second["lineage"]["champion"]}
    assert merged.loc[~one, "value_send_clicks"].notna().all()


def test_a_logged_decision_scored_as_a_candidate_meets_its_logged_state(
    road: Road, spark: SparkSession, tmp_path: Path
) -> None:
    """The same state gives the same probabilities, values and legal actions, whichever way it was computed.

    One decision of each user, since of several the later ones would know what was drawn tonight for the earlier.
    """
    config, _ = road
    tree = small(config.run_dir.parent)
    tree["run_dir"] = str(tmp_path)
    decisions = ds.dataset(tree["data"]["decisions"]["path"], partitioning="hive").to_table().drop_columns(["ds"])
    any_order = np.random.default_rng(0).permutation(decisions.num_rows)
    one = dict(zip(decisions["user_id"].take(any_order).to_pylist(), any_order, strict=True))
    pq.write_table(decisions.take(sorted(one.values())), tmp_path / "one.parquet")
    tree["data"]["candidates"] = {
        "path": str(tmp_path / "one.parquet"),
        "columns": {"candidate_id": "decision_id", "decide_at": "decided_at"},
    }
    folder = config.run_dir / "policies" / "ddqn_cql"
    found = run_scoring(spark, validate(tree, "small.toml"), folder, "7")
    log = table.read(config.transitions_path, config.contract)
    columns = ["user_id", "decided_at", "decision_id", "usable", "silent"]
    ids = DeltaTable(config.transitions_path).to_pyarrow_table(columns=columns).to_pandas()
    ids = ids[ids["usable"] & ~ids["silent"]]
    at = ids["decided_at"].astype("datetime64[us, UTC]").astype("int64")
    named = dict(zip(zip(ids["user_id"], at, strict=True), ids["decision_id"], strict=True))
    assert len(named) == len(ids)
    # The reader takes silent rows after a closing into the row that closed: they are no decisions either.
    rows = np.flatnonzero(~log.silent)
    found_ids = [named[log.user_id[log.user[row]], log.decided_at[row]] for row in rows]
    policy = QPolicy(artifact.load(folder))
    wanted = dict(zip(found_ids, policy.action_probabilities(log.state, log.legal)[rows], strict=True))
    legal = dict(zip(found_ids, log.legal[rows], strict=True))
    scores = DeltaTable(tmp_path / "scores").to_pyarrow_table().to_pylist()
    assert found["candidates"] == len(scores)
    met = [row for row in scores if row["candidate_id"] in wanted]
    # Decisions at the watermark are no transitions yet.
    assert 350 < len(met) <= len(scores) == len(one)
    assert all(row["legal"] == legal[row["candidate_id"]].tolist() for row in met)
    off = max(np.abs(wanted[row["candidate_id"]] - row["probabilities"]).max() for row in met)
    assert off == 0.0
    sent = np.mean([row["action"] == "send" for row in met])
    expected = np.array([wanted[row["candidate_id"]][1] for row in met])
    # A sum of independent draws lies within four of its standard deviations.
    assert abs(sent - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).sum()) / len(met)


def test_only_what_was_judged_is_promoted(road: Road, tmp_path: Path) -> None:
    """A policy trained since, or rules written since, ask for another evaluation; exit code 2, and no alias moves."""
    config, _ = road
    copied = tmp_path / "run"
    shutil.copytree(config.run_dir, copied)
    tree = small(config.run_dir.parent, run_dir=str(copied))
    looser = {**tree["gate"], "min_ess": 1}
    with pytest.raises(InputError, match=r"the rules in \[gate\] are not those.*evaluate` again"):
        jobs.promote(validate({**tree, "gate": looser}, "small.toml"))
    shutil.copy(copied / "policies" / "ddqn" / "policy.onnx", copied / "policies" / "ddqn_cql" / "policy.onnx")
    shutil.copy(copied / "policies" / "ddqn" / "contract.json", copied / "policies" / "ddqn_cql" / "contract.json")
    with pytest.raises(InputError, match="the policies are not those that were evaluated"):
        jobs.promote(validate(tree, "small.toml"))


def test_promote_ends_with_the_code_of_its_verdict(road: Road, tmp_path: Path) -> None:
    config, (found, _) = road
    tree = json.loads(config.model_dump_json(exclude_none=True))
    lines = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    path = tmp_path / "small.toml"
    path.write_text("\n".join([*lines, *sections(tree)]))
    done = CliRunner().invoke(app, ["promote", str(path)])
    assert done.exit_code == EXIT_CODE[found["verdict"]["verdict"]], done.output


def sections(tree: dict[str, Any], name: str = "") -> Iterator[str]:
    """The tables of a tree as TOML."""
    for key, value in tree.items():
        if isinstance(value, dict):
            path = f"{name}.{key}".lstrip(".")
            yield f"[{path}]"
            yield from (f"{k} = {json.dumps(v)}" for k, v in value.items() if not isinstance(v, dict))
            yield from sections(value, path)


@pytest.mark.parametrize("step", ["train", "evaluate", "promote", "score", "report"])
def test_a_step_out_of_order_says_what_to_run_first(step: str, spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run|no transitions|first"):
        getattr(jobs, step)(validate(small(tmp_path), "small.toml"))


def test_simulate_wants_a_world_and_score_wants_candidates(tmp_path: Path) -> None:
    tree = small(tmp_path)
    del tree["simulate"]
    with pytest.raises(InputError, match=r"no \[simulate\]; add it"):
        jobs.simulate(validate(tree, "small.toml"))
    del tree["data"]["candidates"]
    with pytest.raises(InputError, match=r"data\.candidates: missing"):
        jobs.score(validate(tree, "small.toml"))


def test_a_log_that_never_explored_stops_at_the_etl(spark: SparkSession, tmp_path: Path) -> None:
    config = validate(small(tmp_path, simulate={"users": 100, "days": 8, "epsilon": 0.0}), "small.toml")
    jobs.simulate(config)
    with pytest.raises(QualityError, match="explor") as error:
        jobs.etl(config)
    assert error.value.exit_code == 3
    assert not DeltaTable.is_deltatable(str(config.transitions_path))


def test_a_constant_feature_is_named_with_the_remedy(spark: SparkSession, tmp_path: Path) -> None:
    tree = small(tmp_path, simulate={"users": 150, "days": 8, "epsilon": 0.6})
    tree["features"] = {"state": ["sends_24h", "badge"], "context": ["relevance"]}
    tree["data"]["decisions"]["columns"] = {"relevance": "0.5"}
    config = validate(tree, "small.toml")
    jobs.simulate(config)
    jobs.etl(config)
    with pytest.raises(InputError, match=r"'relevance' is always 0\.5 in \d+ training rows.*remove it") as error:
        jobs.train(config)
    assert error.value.exit_code == 2
