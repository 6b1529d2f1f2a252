"""A registered version where others run it: `mlflow models serve` and `mlflow.pyfunc.spark_udf`."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from models.artifact import export, load
from models.registry import Registry
from tests.models.registry.mlflow_servers import model_server

RESULT = "q array<float>, behaviour array<float>, values array<array<float>>"
OUTPUTS = ("q", "behaviour", "values")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, untrained) -> Path:
    acts = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
    return export(untrained(), tmp_path_factory.mktemp("policies") / "ddqn", acts, {"fingerprint": "data7"})


@pytest.fixture(scope="module")
def registry(tmp_path_factory, folder) -> Registry:
    made = Registry(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}", "tactful")
    made.begin(made.register(folder, {}))
    return made


def states(rows: int) -> np.ndarray:
    """With unknown features in every third row."""
    state = np.random.default_rng(0).normal(size=(rows, 3), scale=4).astype(np.float32)
    state[::3, 1] = np.nan
    return state


def post(address: str, body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.loads(response.read()))


def test_served_by_mlflow(registry, folder, tmp_path) -> None:
    state = states(20)
    # JSON has no NaN: what is unknown is null.
    rows = [[None if np.isnan(each) else float(each) for each in row] for row in state]
    with model_server(tmp_path, registry.tracking_uri, "models:/tactful@champion") as address:
        found = post(address, {"inputs": {"state": rows}})["predictions"]
        example = json.loads((registry.load("champion")[0].parent / "serving_input_example.json").read_text())
        by_example = post(address, example)["predictions"]
    for name, wanted in zip(OUTPUTS, load(folder).predict(state), strict=True):
        assert np.abs(np.array(found[name]) - wanted).max() < 1e-5
    assert np.array(by_example["values"]).shape == (2, 2, 2)


def test_as_a_user_defined_function_of_spark(registry, folder, spark: SparkSession) -> None:
    """One column of arrays; the three outputs are the fields of a struct. A null in the array is unknown, as NaN is."""
    import mlflow

    mlflow.set_tracking_uri(registry.tracking_uri)
    state = states(50)
    rows = [(n, [None if n % 2 and np.isnan(each) else float(each) for each in row]) for n, row in enumerate(state)]
    frame = spark.createDataFrame(rows, "n int, state array<float>").repartition(2)
    scored = mlflow.pyfunc.spark_udf(spark, "models:/tactful@champion", result_type=RESULT, env_manager="local")
    found = frame.select("n", scored("state").alias("out")).select("n", "out.*").orderBy("n").collect()
    assert [row["n"] for row in found] == list(range(50))
    for name, wanted in zip(OUTPUTS, load(folder).predict(state), strict=True):
        assert np.abs(np.array([row[name] for row in found]) - wanted).max() < 1e-5
