"""`tactful train` as it is run: killed and run again, in several processes, and on a log that does not fit."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from models import artifact, table
from models.distributed import Group
from models.errors import InputError, TactfulError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.jobs.steps import registry_of
from tests.pipelines.test_propensity_step import lost

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path, run: str, **train: Any) -> dict[str, Any]:
    found = lost(folder, run)
    found["data"]["decisions"].pop("columns")
    found["name"] = "step"
    found["etl"]["buckets"] = 6
    found["train"] |= {"learners": {"ddqn": 0.0, "cql": {"alpha": 1.0}, "iql": {"kind": "iql", "policy": "awr"}}}
    found["train"] |= {"seeds": 2, "hidden": [16], "steps": 200, "behaviour_steps": 50, "value_steps": 50, **train}
    return found


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a lake, and the transitions made from it in `run/`."""
    folder = tmp_path_factory.mktemp("step")
    config = validate(tree(folder, "run"), "step.toml")
    jobs.simulate(config)
    jobs.etl(config)
    return folder


def prepared(made: Path, tmp_path: Path, **train: Any) -> tuple[Config, Path]:
    """The transitions copied into a folder that a test may change; the configuration, and its file."""
    tmp_path.mkdir(exist_ok=True)
    shutil.copytree(made / "run", tmp_path / "run")
    found = tree(made, "run", **train)
    found["run_dir"] = str(tmp_path / "run")
    lines: list[str] = []

    def section(node: dict[str, Any], name: str) -> None:
        lines.extend([f"[{name}]"] if name else [])
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in node.items() if not isinstance(value, dict))
        for key, value in node.items():
            if isinstance(value, dict):
                section(value, f"{name}.{key}".lstrip("."))

    section(found, "")
    (tmp_path / "step.toml").write_text("\n".join(lines))
    return validate(found, "step.toml"), tmp_path / "step.toml"


def command(file: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "train", str(file), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def graphs(config: Config) -> dict[str, bytes]:
    found = {path.parent.name: path.read_bytes() for path in config.run_dir.glob("policies/*/policy.onnx")}
    assert found.keys() == {"ddqn", "cql", "iql", "behaviour"}
    return found


def test_killed_and_run_again_it_exports_the_same_bytes(made: Path, tmp_path: Path) -> None:
    whole, file = prepared(made, tmp_path / "whole", steps=2000)
    subprocess.run(command(file), check=True, cwd=ROOT, env=environment(), capture_output=True)
    killed, file = prepared(made, tmp_path / "killed", steps=2000)
    checkpoint = killed.run_dir / "checkpoints" / "learn.safetensors"
    process = subprocess.Popen(command(file), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed.run_dir / "policies").exists()
    again = subprocess.run(command(file), check=True, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "goes on after update" in again.stderr
    assert graphs(killed) == graphs(whole)
    assert not checkpoint.exists()


def test_processes_that_spark_starts_learn_what_one_learns(made: Path, tmp_path: Path) -> None:
    one, _ = prepared(made, tmp_path / "one")
    jobs.train(one)
    two, file = prepared(made, tmp_path / "two")
    done = subprocess.run(
        command(file, "--spark-processes", "2"), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    state = table.read(one.transitions_path, one.contract).state[:200]
    for name in graphs(one):
        q, _, values = artifact.load(one.run_dir / "policies" / name).predict(state)
        same, _, same_values = artifact.load(two.run_dir / "policies" / name).predict(state)
        # Sums in another order, carried along by 200 updates.
        assert np.abs(q - same).max() < 0.02 * np.abs(q).max(), name
        assert np.abs(values - same_values).max() < 0.1 * np.abs(values).max(), name


def test_a_process_that_fails_fails_the_command(made: Path, tmp_path: Path) -> None:
    _, file = prepared(made, tmp_path, batch_size=33)
    done = subprocess.run(
        command(file, "--spark-processes", "2"), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    # torchrun hides the exit code 2 of its processes.
    assert done.returncode == 1
    assert "which 2 processes cannot share equally" in done.stdout + done.stderr


def test_a_log_larger_than_memory_may_be_goes_the_whole_road(made: Path, tmp_path: Path) -> None:
    plain = validate(tree(made, "run"), "step.toml")
    rows = len(table.read(plain.transitions_path, plain.contract).user)
    config, _ = prepared(made, tmp_path, stream_rows=rows // 2)
    found = jobs.train(config)
    assert set(found["agreement"]) == {"ddqn", "cql", "iql"}
    jobs.evaluate(config)
    assert jobs.promote(config)["verdict"] in {"PROMOTE", "REFUSE", "INCONCLUSIVE"}


def test_mlflow_is_told_the_alpha_that_each_learner_is_penalised_by(made: Path, tmp_path: Path) -> None:
    """Of a table that leaves it to its default too: 1 of ddqn_cql, 0 of a kind without the penalty."""
    tables = {"cql": {"kind": "ddqn_cql"}, "half": {"alpha": 0.5}, "iql": {"kind": "iql"}}
    short = {"steps": 20, "behaviour_steps": 5, "value_steps": 5, "seeds": 1}
    config, _ = prepared(made, tmp_path, learners={"ddqn": 0.0, **tables}, **short)
    found = jobs.train(config)
    run = registry_of(config).client.get_run(found["mlflow_run"])
    told = ast.literal_eval(run.data.params["train"])
    alphas = {"cql": 1.0, "half": 0.5, "iql": 0.0}
    assert {name: told["learners"][name]["alpha"] for name in tables} == alphas
    assert told["learners"]["ddqn"] == 0.0
    assert told["steps"] == 20
    assert {name: found["learners"][name]["alpha"] for name in tables} == alphas


class Asked(Exception):
    """Training was asked for."""


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"mlflow": {"experiment": "another"}}, True),
        ({"policy": {"exploration": 0.3}}, False),
        ({"policy": {"volume": 0.5}}, False),
        ({"evaluate": {"per": "decision"}}, False),
    ],
)
def test_a_checkpoint_belongs_to_how_policies_act_and_are_judged(
    made: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], same: bool
) -> None:
    """Which settings those are the job tells the trainer; a checkpoint that knows others is not taken up."""

    def told(tree_of: dict[str, Any]) -> str:
        given: dict[str, Any] = {}

        def asked(*_: Any, **named: Any) -> None:
            given.update(named)
            raise Asked

        monkeypatch.setattr("pipelines.jobs.learning.fit_policies", asked)
        with pytest.raises(Asked):
            jobs.train(validate(tree_of, "step.toml"))
        return str(given["judged_by"])

    plain = tree(made, "run")
    assert (told(plain) == told({**plain, **changed})) is same


@pytest.mark.parametrize("written", [True, False])
def test_what_one_process_wrote_before_another_failed_is_no_success(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: SparkSession, written: bool
) -> None:
    config, file = prepared(made, tmp_path)
    result = jobs.steps.step_path(config, "train")
    result.parent.mkdir(exist_ok=True)
    result.write_text("{}")

    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, *_: Any) -> None:
            # Spark raises, or its wrapper hides the exit code and the first process has written nothing.
            if written:
                result.write_text("{}")
                raise RuntimeError("Command failed with return code 1")

    monkeypatch.setattr("pyspark.ml.torch.distributor.TorchDistributor", Failing)
    with pytest.raises(TactfulError, match="training in 2 processes failed"):
        jobs.train_by_spark(config, file, [], 2)


def test_nothing_is_exported_where_another_process_is_gone(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deserted(Group):
        def meet(self) -> None:
            raise RuntimeError("connection closed by peer")

    config, _ = prepared(made, tmp_path, learners={"ddqn": 0.0}, steps=20)
    monkeypatch.setattr("models.distributed.group", lambda _: nullcontext(Deserted()))
    with pytest.raises(RuntimeError, match="closed by peer"):
        jobs.train(config)
    assert not jobs.steps.step_path(config, "train").exists()
    assert not (config.run_dir / "policies").exists()


def test_a_sweep_in_several_processes_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_of = tree(made, "run") | {"sweep": {"grid": {"clicks": [1.0, 2.0]}}}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"sweep: started as 2 processes .* run it as one process"):
        jobs.sweep(validate(tree_of, "step.toml"))
