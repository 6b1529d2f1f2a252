"""Evaluation over a Spark DataFrame says what evaluation in one process says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from models import artifact, table
from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.etl.flow import explained
from pipelines.evaluating_spark import Log, _answered, evaluate_by_spark, tallied_by_spark
from pipelines.jobs import judging
from pipelines.tallying import Job, Packed
from policies.answers import tallied
from policies.baselines import Always, Mixture, Never
from policies.evaluate import evaluation, plan_of
from policies.named import Fixed
from policies.ope.sample import take
from policies.ope.target import Target
from policies.q_policy import QPolicy
from policies.values import ValueFunctions, part_of
from tests.nested import assert_equal

DAY = "2026-01-{:02d} 12:00:00"
ACTIONS = ("hold", "send")


def config_of(folder: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "parts",
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks"],
        "data": {name: {"path": str(folder / f"{name}.csv")} for name in ("decisions", "events")},
        "features": {"state": ["sends_7d", "hours_since_send"], "context": ["relevance"]},
        "etl": {"warmup_days": 0, "buckets": 4, "split": [0.4, 0.1, 0.5]},
        "train": {
            "weights": {"clicks": 1.0, "sends": -0.05},
            "learners": {"ddqn_cql": 1.0},
            "steps": 40,
            "batch_size": 32,
            "hidden": [8],
            "behaviour_steps": 40,
            "value_steps": 40,
        },
        "policy": {"exploration": 0.1, "rollout_share": 0.5},
        "evaluate": {"resamples": 120, "fqe_steps": 30, "baselines": ["random"]},
        "gate": {
            "candidate": "ddqn_cql",
            "shares": [0.2, 1.0],
            "segments": ["relevance"],
            "metrics": {"clicks": {"direction": "up", "margin": 0.1, "improve": True}},
        },
        "spark": {"master": "local[2]", "shuffle_partitions": 2},
    }
    return validate({**tree, **changes}, "parts.toml")


@pytest.fixture(scope="module")
def config(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A log of 80 users over 8 days, half of their decisions sends, and a policy learned from it."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    decisions = ["decision_id,user_id,decided_at,action,propensity,relevance"]
    events = ["event_id,user_id,occurred_at,kind,decision_id"]
    for user in range(80):
        for day in range(1, 5 + user % 5):
            action, name = int(rng.integers(2)), f"d{user}-{day}"
            decisions.append(f"{name},u{user:02d},{DAY.format(day)},{ACTIONS[action]},0.5,{rng.random():.3f}")
            if action and rng.random() < 0.4:
                events.append(f"e{user}-{day},u{user:02d},2026-01-{day:02d} 13:00:00,click,{name}")
    (folder / "decisions.csv").write_text("\n".join(decisions))
    (folder / "events.csv").write_text("\n".join(events))
    found = config_of(folder)
    jobs.etl(found)
    jobs.train(found)
    return found


def asked(config: Config, folder: Path) -> list[Any]:
    """Policies of every kind that travels: plain, a table of weights, an artifact, and a mixture with its clone."""
    loaded = artifact.load(folder)
    fixed = Fixed("fixed", np.array([0.6, 0.4]))
    mixed = Mixture(replace(fixed, name="mixed"), QPolicy(loaded, "behaviour", share=0.0), 0.5)
    return [Never(), Always(), fixed, mixed, QPolicy(loaded, "ddqn_cql"), QPolicy(loaded, "alone", share=1.0)]


@pytest.mark.parametrize("per", ["week", "decision"])
def test_over_spark_as_in_one_process(spark: SparkSession, config: Config, per: str) -> None:
    """The same cuts and value functions: every figure of the result, to 1e-9."""
    config = config.model_copy(update={"evaluate": replace(config.evaluate, per=per)})
    log, folder = Log.of(spark, config, None), config.run_dir / "policies" / "ddqn_cql"
    sample, policies = log.sample(), asked(config, folder)
    whole = table.read(config.transitions_path, config.contract)
    # All buckets are in the sample, and so is every row.
    assert sample.fingerprint == whole.fingerprint
    fingerprints = {artifact.load(folder).fingerprint: folder}
    plan = plan_of(sample, policies, config.evaluate, config.gate, config.seed, 2, "alone", step=50)
    targets = {policy.name: Target.of(policy, sample) for policy in policies}

    def network(member: int, state: Any) -> Any:
        at = np.nan_to_num(state.astype(np.float64)) @ np.linspace(0.1, 0.9, state.shape[1])
        return np.sin(at[:, None, None] * np.arange(1, 3) + member + np.arange(2)[:, None])

    values = ValueFunctions.of(sample, targets, plan, log.end, lambda *_: network)
    part = part_of(whole, plan, policies, values, [0])
    expected = evaluation(plan, policies, 2, *tallied(plan, [part]), part)
    found = evaluate_by_spark(log, sample, policies, fingerprints, 2, "alone", lambda *_: network)
    assert found["mixtures"]["ddqn_cql"]["0.2"]["segments"]
    assert_equal(found, expected)


def test_the_command_over_spark_leaves_what_the_command_leaves(
    spark: SparkSession, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Estimates that need no network, counts and diagnostics to 1e-9; and the report and the gate read it."""
    here = json.loads(json.dumps(jobs.evaluate(config)))
    there = json.loads(json.dumps(jobs.evaluate(config, by_spark=True)))
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} <= {"evaluation", "baselines", "seconds"}
    mine, theirs = here["evaluation"], there["evaluation"]
    assert mine.keys() == theirs.keys()
    for name in ("row_sets", "logging_by_rows", "calibration", "propensities", "clusters", "components", "warnings"):
        assert_equal(theirs[name], mine[name])
    for name in ("never", "always", "ddqn_cql", "ddqn_cql" + judging.ALONE):
        for estimator in ("ips", "pdis", "wpdis"):
            assert_equal(
                theirs["policies"][name]["estimates"][estimator], mine["policies"][name]["estimates"][estimator]
            )
        assert_equal(theirs["policies"][name]["diagnostics"], mine["policies"][name]["diagnostics"])
        assert theirs["policies"][name]["estimates"]["fqe"]["clicks"]["estimate"] is not None
    assert jobs.promote(config)["verdict"]


def test_a_range_is_fixed_judged_at_its_prices_and_travels(spark: SparkSession, config: Config, tmp_path: Path) -> None:
    """Train fixes lambda and its range, evaluate judges five prices of it, here as over Spark, promote reads them."""
    shutil.copytree(config.run_dir, tmp_path / "run")
    policy = config.policy.model_copy(update={"volume": 0.9, "volume_range": (0.7, 1.0)})
    ranged = config.model_copy(update={"run_dir": tmp_path / "run", "policy": policy})
    trained = jobs.train(ranged)
    loaded = artifact.load(ranged.run_dir / "policies" / "ddqn_cql")
    low, price, high = (loaded.decision[key] for key in ("lambda_low", "lambda", "lambda_high"))
    facts = trained["volumes"]["ddqn_cql"]
    assert low < price < high == facts["lambda_high"]["lambda"]
    # The exported policy, on the validation rows it was priced on, has the volume to half a row's step.
    whole = table.read(config.transitions_path, config.contract)
    rows = take(whole, whole.split == 1, "week").rows
    logged = whole.action[rows].sum()
    assert facts["logging_sends"] == logged
    for at, volume in ((low, 1.0), (price, 0.9), (high, 0.7)):
        expected = QPolicy(loaded, price=at).action_probabilities(whole.state[rows], whole.legal[rows])[:, 1].sum()
        assert abs(expected - volume * logged) <= 0.5

    points = judging.along_range(loaded, "ddqn_cql")
    assert [each.name for each in points] == [f"ddqn_cql@{each}" for each in ("low", "0.25", "0.5", "0.75", "high")]
    assert [each.price for each in points] == pytest.approx(np.linspace(low, high, 5))
    folders = {loaded.fingerprint: ranged.run_dir / "policies" / "ddqn_cql"}
    for each in points:
        assert Packed.of(each, folders).unpacked().price == each.price  # type: ignore[attr-defined]

    here = json.loads(json.dumps(jobs.evaluate(ranged)))["evaluation"]
    there = json.loads(json.dumps(jobs.evaluate(ranged, by_spark=True)))["evaluation"]
    for found in (here, there):
        assert not any("@" in name for name in (*found["policies"], *found["weights"]))
    mine, theirs = here["ranges"]["ddqn_cql"], there["ranges"]["ddqn_cql"]
    assert list(mine) == list(theirs) == [each.name for each in points]
    for name, each in mine.items():
        assert each["lambda"] == theirs[name]["lambda"]
        assert_equal(theirs[name]["estimates"]["wpdis"], each["estimates"]["wpdis"])
        assert_equal(theirs[name]["diagnostics"], each["diagnostics"])
    # A higher price sends less along the log's states.
    sends = [each["estimates"]["dr"]["sends"]["estimate"] for each in mine.values()]
    assert sends[0] > sends[-1]
    verdict = jobs.promote(ranged)
    assert verdict["checks"][-1]["name"] == "volume_range"
    assert len(verdict["checks"][-1]["found"]) == 5
    jobs.report(ranged)
    assert "olume range" in (ranged.run_dir / "report.html").read_text()


def test_a_volume_out_of_reach_stops_training_with_what_is_in_reach(
    spark: SparkSession, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(config.run_dir, tmp_path / "run")
    policy = config.policy.model_copy(update={"volume": 5.0})
    with pytest.raises(InputError, match=r"policy.volume: ddqn_cql cannot be brought to 5 times .* give 0\.\d+ to 1"):
        jobs.train(config.model_copy(update={"run_dir": tmp_path / "run", "policy": policy}))


def test_a_sample_is_whole_buckets_and_is_told(spark: SparkSession, config: Config) -> None:
    small = config.model_copy(update={"evaluate": replace(config.evaluate, fit_rows=1)})
    log = Log.of(spark, small, None)
    sample, whole = log.sample(), table.read(config.transitions_path, config.contract)
    assert len(sample.user) in log.counts.values()
    assert sum(log.counts.values()) == len(whole.user)
    assert log.tested == judging._tested(whole) == table.span(*np.sort(whole.decided_at[whole.split == 2])[[0, -1]])
    found = evaluate_by_spark(log, sample, [Never(), Always()], {})
    assert any(f"{len(sample.user_id)} of {len(whole.user_id)} users" in each for each in found["warnings"])
    assert found["policies"]["always"]["users"] == len(whole.user_id)


def job_of(log: Log, config: Config, buckets: int | None = None) -> Job:
    sample = log.sample()
    plan = plan_of(sample, [Never()], config.evaluate, config.gate, config.seed)
    targets = {"never": Target.of(Never(), sample)}

    def network(member: int, state: Any) -> Any:
        return np.zeros((len(state), 2, 2))

    values = ValueFunctions.of(sample, targets, plan, log.end, lambda *_: network)
    return Job(plan, [Packed.of(Never(), {})], values, buckets or config.etl.buckets, "transitions", log.version)


def test_rows_that_are_parted_by_anything_but_the_bucket_are_refused(spark: SparkSession, config: Config) -> None:
    log = Log.of(spark, config, None)
    # Half of the users of each bucket: whole trajectories, so that nothing else would notice.
    halves = log.rows.repartitionByRange(2, F.expr("cast(substr(user_id, 2) as int)"))
    with pytest.raises(InputError, match="lies in two parts, so that a user would count as two"), explained():
        _answered(halves, job_of(log, config))


def test_a_user_outside_the_bucket_of_its_name_is_refused(spark: SparkSession, config: Config) -> None:
    log = Log.of(spark, config, None)
    moved = log.rows.withColumn("bucket", F.expr("if(user_id = 'u07', (bucket + 1) % 4, bucket)"))
    with pytest.raises(InputError, match=r"user u07 lies in bucket \d, of 4 its own is \d"), explained():
        tallied_by_spark(moved, job_of(log, config))


def test_executors_need_no_torch() -> None:
    code = "import sys, pipelines.tallying; print(sorted({'torch', 'mlflow', 'pyspark', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
