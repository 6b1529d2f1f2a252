"""A registry on SQLite: log, register, alias, load, roll back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.artifact import CONTRACT, _hash, export, load
from models.errors import InputError
from models.registry import Registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'made' / 'mlflow.db'}", "tactful")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, untrained) -> dict[str, Path]:
    """Two artifacts that differ in how they act."""
    root = tmp_path_factory.mktemp("policies")
    acts = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
    first = export(untrained(), root / "ddqn", acts, {"data_version": 0})
    described = json.loads((first / CONTRACT).read_text())
    described.pop("sha256")
    described["decision"]["rollout_share"] = 0.0
    second = Path(shutil.copytree(first, root / "behaviour"))
    (second / CONTRACT).write_text(json.dumps({**described, "sha256": _hash(described)}))
    return {"ddqn": first, "behaviour": second}


def test_log_register_alias_load_roll_back(registry, folders, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry.alias("champion") is None
    with pytest.raises(InputError, match=r"no version of model 'tactful' is called 'champion'.*tactful promote"):
        registry.load("champion")

    curve = [{"step": 1.0, "td_loss": 3.0}, {"step": 2.0, "td_loss": 1.5}]
    run = registry.log_run("train", {"steps": 4}, {"ddqn": curve}, folders, {"fingerprint": "abc", "commit": "none"})
    history = registry.client.get_metric_history(run, "ddqn/td_loss")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 1.5)]
    logged = registry.client.get_run(run)
    assert logged.data.params == {"steps": "4"}
    assert logged.data.tags["fingerprint"] == "abc"
    assert logged.info.status == "FINISHED"
    assert {each.path for each in registry.client.list_artifacts(run)} == {"ddqn", "behaviour"}

    first = registry.register(folders["behaviour"], {"verdict": "FIRST CHAMPION"})
    second = registry.register(folders["ddqn"], {"verdict": "PROMOTE"}, run)
    assert (first, second) == ("1", "2")
    version = registry.client.get_model_version("tactful", second)
    assert version.run_id == run
    assert version.tags == {"verdict": "PROMOTE", "fingerprint": load(folders["ddqn"]).fingerprint}

    registry.set_alias("champion", first)
    registry.set_alias("challenger", second)
    registry.set_alias("champion", second)
    assert (registry.alias("champion"), registry.alias("challenger")) == (second, second)
    registry.set_alias("champion", first)  # rolled back
    folder, number = registry.load("champion")
    assert number == first
    assert sorted(each.name for each in folder.iterdir()) == ["contract.json", "policy.onnx"]
    assert load(folder).fingerprint == load(folders["behaviour"]).fingerprint
    # Another process finds the same; nothing was written where the command was started.
    assert Registry(registry.tracking_uri, "tactful").alias("champion") == first
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_an_mlflow_model(registry, folders) -> None:
    import mlflow

    version = registry.register(folders["ddqn"], {})
    registry.set_alias("checked", version)
    mlflow.set_tracking_uri(registry.tracking_uri)
    state = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0]], dtype=np.float32)
    found = mlflow.pyfunc.load_model("models:/tactful@checked").predict({"state": state})
    q, behaviour, values = load(folders["ddqn"]).predict(state)
    for name, wanted in (("q", q), ("behaviour", behaviour), ("values", values)):
        assert np.allclose(found[name], wanted)


def test_a_version_whose_files_are_gone(registry, folders) -> None:
    version = registry.register(folders["ddqn"], {})
    registry.set_alias("lost", version)
    folder, _ = registry.load("lost")
    assert load(folder).contract == load(folders["ddqn"]).contract
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    with pytest.raises(InputError, match=r"are gone.*roll back"):
        registry.load("lost")


def test_only_whole_artifacts_are_registered(registry, tmp_path) -> None:
    with pytest.raises(InputError, match=r"policy.onnx: no such file"):
        registry.register(tmp_path, {})
