"""A registry on SQLite: log, register, load, promote, roll back; and which files it refuses to load."""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from models.artifact import export, load
from models.errors import InputError
from models.registry import Registry
from models.registry.packing import checksums, copy_checked
from models.registry.versions import CHECKSUMS, EVALUATION, VERDICT
from tests.models.registry.registries import aliases, variant

ACTS = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
LINEAGE = {"data_version": 7, "fingerprint": "data7", "window": ["2026-01-01", "2026-02-01"], "commit": "abc123"}
FILES = [
    "MLmodel",
    "conda.yaml",
    "input_example.json",
    "judged/evaluation.json",
    "judged/verdict.json",
    "model.onnx",
    "python_env.yaml",
    "requirements.txt",
    "serving_input_example.json",
    "tactful/contract.json",
    "tactful/policy.onnx",
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'made' / 'mlflow.db'}", "tactful")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, untrained) -> dict[str, Path]:
    """Two artifacts that differ in how they act."""
    root = tmp_path_factory.mktemp("policies")
    first = export(untrained(), root / "ddqn", ACTS, LINEAGE)
    return {"ddqn": first, "behaviour": variant(first, root / "behaviour", decision={"rollout_share": 0.0})}


def judged(folder: Path, verdict: str = "PROMOTE", **other: str) -> dict[str, dict]:
    """What lies beside an artifact that was judged."""
    loaded = load(folder)
    on = {"fingerprint": loaded.fingerprint, "data_fingerprint": loaded.lineage["fingerprint"], **other}
    return {VERDICT: {"verdict": verdict, "reasons": [], "judged": on}, EVALUATION: {"policies": {"ddqn": {}}}}


@pytest.fixture(scope="module")
def kept(registry, folders) -> str:
    """A version that was judged."""
    return registry.register(folders["ddqn"], {"verdict": "PROMOTE"}, judged=judged(folders["ddqn"]))


def test_log_register_load_roll_back(folders, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    registry = Registry(f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}", "tactful")
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
    sums = json.loads(version.tags.pop(CHECKSUMS))
    assert sorted(sums) == [name for name in FILES if not name.startswith("judged")]
    assert version.tags == {
        "verdict": "PROMOTE",
        "fingerprint": load(folders["ddqn"]).fingerprint,
        "data_fingerprint": "data7",
        "data_version": "7",
        "data_window": "2026-01-01 to 2026-02-01",
        "commit": "abc123",
    }

    registry.begin(first)
    registry.promote(second, challenger=True)
    assert aliases(registry) == {"champion": second, "challenger": second, "previous": first}
    assert registry.rollback("it sends too much").aliases() == aliases(registry)
    assert aliases(registry) == {"champion": first, "challenger": second, "previous": second}
    assert registry.journal.entries()[-1].reason == "it sends too much"
    folder, number = registry.load("champion")
    assert number == first
    assert sorted(each.name for each in folder.iterdir()) == ["contract.json", "policy.onnx"]
    assert load(folder).fingerprint == load(folders["behaviour"]).fingerprint
    assert registry.rollback().champion == second
    # Another process finds the same; nothing was written where the command was started.
    assert Registry(registry.tracking_uri, "tactful").alias("champion") == second
    assert [each.name for each in tmp_path.iterdir()] == ["elsewhere"]


def test_a_version_is_an_mlflow_model(registry, folders, kept) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry.tracking_uri)
    state = np.array([[0.0, 1.0, 2.0], [1.0, np.nan, 5.0]], dtype=np.float32)
    model = mlflow.pyfunc.load_model(f"models:/tactful/{kept}")
    found = model.predict({"state": state})
    q, behaviour, values = load(folders["ddqn"]).predict(state)
    for name, wanted in (("q", q), ("behaviour", behaviour), ("values", values)):
        assert np.abs(found[name] - wanted).max() < 1e-5
    assert [(each.name, each.shape) for each in model.metadata.signature.inputs.inputs] == [("state", (-1, 3))]
    outputs = [("q", (-1, 2)), ("behaviour", (-1, 2)), ("values", (-1, 2, 2))]
    assert [(each.name, each.shape) for each in model.metadata.signature.outputs.inputs] == outputs
    # The input example is one: the means that unknown features get, and zeros.
    assert model.input_example["state"].tolist() == [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
    assert all(np.isfinite(each).all() for each in model.predict(model.input_example).values())


def test_a_version_needs_neither_torch_nor_this_repository(registry, folders, kept, tmp_path) -> None:
    """In a process where importing either fails, and with it unpickling."""
    state = np.array([[0.0, 1.0, 2.0], [1.0, np.nan, 5.0]], dtype=np.float32)
    np.save(tmp_path / "state.npy", state)
    script = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "models", "policies", "pipelines", "safetensors", "cloudpickle.cloudpickle"}:
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, Refuse())
import json, logging, mlflow, numpy as np, onnxruntime, pickle

def refuse(*_, **__):
    raise AssertionError("something is being unpickled")

pickle.load = pickle.loads = pickle.Unpickler = refuse
uri, version, file = sys.argv[1:]
mlflow.set_tracking_uri(uri)
state = np.load(file)
told = mlflow.pyfunc.load_model(f"models:/tactful/{version}").predict({"state": state})
folder = mlflow.artifacts.download_artifacts(f"models:/tactful/{version}")
names = json.load(open(f"{folder}/tactful/contract.json"))
run = onnxruntime.InferenceSession(f"{folder}/tactful/policy.onnx").run(None, {"state": state})
assert all(np.array_equal(a, told[name]) for name, a in zip(("q", "behaviour", "values"), run))
assert not {"torch", "models", "policies", "pipelines"} & set(sys.modules), "imported all the same"
print(json.dumps({"features": names["features"], **{name: each.tolist() for name, each in told.items()}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, registry.tracking_uri, kept, str(tmp_path / "state.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["features"] == ["f0", "f1", "f2"]
    for name, wanted in zip(("q", "behaviour", "values"), load(folders["ddqn"]).predict(state), strict=True):
        assert np.abs(np.array(found[name]) - wanted).max() < 1e-5


def test_a_version_holds_these_files_and_says_nothing_of_the_machine(registry, folders, kept, tmp_path) -> None:
    version = registry.fetch(kept, tmp_path)
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(found) == FILES
    assert found["model.onnx"].read_bytes() == (folders["ddqn"] / "policy.onnx").read_bytes()
    told = (str(tmp_path.parents[2]), str(Path.home()), str(Path(__file__).parents[3]), str(folders["ddqn"].parent))
    for name, path in found.items():
        content = path.read_bytes()
        assert [word for word in told if word.encode() in content] == [], name
    assert json.loads(found["judged/verdict.json"].read_text())["verdict"] == "PROMOTE"
    assert version.unjudged() is None


@pytest.mark.parametrize(
    ("verdict", "other", "words"),
    [
        ("REFUSE", {}, "its verdict is REFUSE"),
        ("INCONCLUSIVE", {}, "its verdict is INCONCLUSIVE"),
        (
            "PROMOTE",
            {"fingerprint": "f00"},
            r"its verdict was made on other artifact \(fingerprint f00, the version's is",
        ),
        ("PROMOTE", {"data_fingerprint": "data6"}, r"on other data \(fingerprint data6, the version's is data7\)"),
    ],
)
def test_only_a_verdict_on_that_very_version_and_data_promotes(registry, folders, tmp_path, verdict, other, words):
    version = registry.register(folders["ddqn"], {}, judged=judged(folders["ddqn"], verdict, **other))
    assert re.search(words, registry.fetch(version, tmp_path).unjudged() or "")


def test_a_version_without_a_verdict(registry, folders, tmp_path) -> None:
    version = registry.register(folders["ddqn"], {"verdict": "PROMOTE"})  # a tag is no verdict
    assert registry.fetch(version, tmp_path).unjudged() == "it was registered without a verdict"


# Files that are not those that were registered


def files_of(registry: Registry, version: str) -> Path:
    """Where they lie; the experiment's artifacts are beside the database."""
    return Path(registry.client.get_model_version("tactful", version).source.removeprefix("file://"))


def a_torch_archive() -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return made.getvalue()


def relist(folder: Path, sums: dict[str, str], path: str) -> dict[str, str]:
    """The checksums as whoever can write the registry's tags would make them."""
    return {**sums, path: hashlib.sha256((folder / path).read_bytes()).hexdigest()}


def add(name: str, content: bytes) -> Callable[[Path, dict[str, str]], dict[str, str]]:
    def change(folder: Path, sums: dict[str, str]) -> dict[str, str]:
        (folder / name).write_bytes(content)
        return sums

    return change


def added_and_listed(name: str, content: bytes) -> Callable[[Path, dict[str, str]], dict[str, str]]:
    def change(folder: Path, sums: dict[str, str]) -> dict[str, str]:
        (folder / name).write_bytes(content)
        return relist(folder, sums, name)

    return change


def linked(name: str, to: str) -> Callable[[Path, dict[str, str]], dict[str, str]]:
    def change(folder: Path, sums: dict[str, str]) -> dict[str, str]:
        kept = folder.parent / "elsewhere.onnx"
        shutil.copy(folder / name if (folder / name).is_file() else folder / "MLmodel", kept)
        if (folder / name).is_file():
            (folder / name).unlink()
        (folder / name).symlink_to(kept if to == "file" else folder.parent)
        return sums

    return change


def removed(folder: Path, sums: dict[str, str]) -> dict[str, str]:
    (folder / "judged/verdict.json").unlink()
    return sums


def piped(folder: Path, sums: dict[str, str]) -> dict[str, str]:
    os.mkfifo(folder / "more.json")
    return sums


def climbing(path: str) -> Callable[[Path, dict[str, str]], dict[str, str]]:
    return lambda folder, sums: {**sums, path: "0" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add("tactful/more.json", b"{}"), "tactful/more.json is not among the files that were registered"),
        (add("model.onnx", b"another"), r"model.onnx has SHA-256 .*registered was"),
        (add("MLmodel", b"flavors: {}"), r"MLmodel has SHA-256"),
        (removed, "judged/verdict.json is missing"),
        (
            added_and_listed("model.pkl", pickle.dumps({})),
            r"model.pkl is of a kind that no version holds \(it may be a pickle",
        ),
        (
            added_and_listed("conda.yaml", pickle.dumps({})),
            "conda.yaml begins as a pickle does, and loading one runs it",
        ),
        (added_and_listed("model.onnx", a_torch_archive()), "model.onnx begins as a pickle does"),
        (linked("model.onnx", "file"), "model.onnx is a symbolic link, and a version holds plain files only"),
        (linked("more", "folder"), "more is a symbolic link"),
        (piped, "more.json is neither file nor folder"),
        (climbing("../../escape.json"), r"its list of files names '../../escape.json', which is outside of its folder"),
        (climbing("/tmp/escape.json"), r"names '/tmp/escape.json', which is outside"),
        (climbing("tactful/../../escape.json"), "which is outside of its folder"),
        (climbing("tactful\\escape.json"), "which is outside of its folder"),
        (climbing("./MLmodel"), "which is outside of its folder"),
    ],
)
def test_a_version_that_was_tampered_with_is_refused(registry, folders, kept, tmp_path, change, words) -> None:
    source, copied = files_of(registry, kept), tmp_path / "copied"
    shutil.copytree(source, copied)
    sums = json.loads(registry.client.get_model_version("tactful", kept).tags[CHECKSUMS])
    copy_checked(copied, sums, tmp_path / "whole", "version 1")
    assert checksums(tmp_path / "whole") == sums
    sums = change(copied, sums)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(InputError, match=words):
        copy_checked(copied, sums, into, "version 1")
    assert list(into.iterdir()) == []
    assert not (tmp_path / "escape.json").exists()


def test_what_is_loaded_from_the_registry_is_checked(registry, folders, tmp_path) -> None:
    version = registry.register(folders["ddqn"], {})
    registry.set_alias("checked", version)
    graph = files_of(registry, version) / "tactful" / "policy.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(InputError, match=rf"version {version} of 'tactful': tactful/policy.onnx has SHA-256"):
        registry.load("checked")


def test_a_version_whose_files_are_gone(registry, folders) -> None:
    version = registry.register(folders["ddqn"], {})
    registry.set_alias("lost", version)
    folder, _ = registry.load("lost")
    assert load(folder).contract == load(folders["ddqn"]).contract
    shutil.rmtree(files_of(registry, version))
    with pytest.raises(InputError, match=r"its files are gone.*roll back"):
        registry.load("lost")


def test_a_version_of_an_earlier_tactful_has_no_checksums(registry, folders, tmp_path) -> None:
    version = registry.register(folders["ddqn"], {})
    registry.client.delete_model_version_tag("tactful", version, CHECKSUMS)
    with pytest.raises(InputError, match=r"has no checksums, as an earlier version.*tactful promote CONFIG` again"):
        registry.fetch(version, tmp_path)


def test_only_whole_artifacts_are_registered(registry, tmp_path) -> None:
    with pytest.raises(InputError, match=r"policy.onnx: no such file"):
        registry.register(tmp_path, {})


@pytest.mark.parametrize("name", ["", "x' or name like '%", 'x"', "a/b", "a:b", "a\\b", "../x", "x;y", "`x`"])
def test_a_name_that_means_something_to_mlflow_is_refused(name) -> None:
    with pytest.raises(InputError, match=r"mlflow\.model: .*use letters, digits"):
        Registry("sqlite:///x.db", name)


def test_a_password_in_the_address_reaches_no_message(caplog, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry("http://ann:s3cret@127.0.0.1:9/?token=s3cret", "tactful")
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception, match=r"^http://127\.0\.0\.1:9/: does not") as error:
        registry.load("champion")
    assert "s3cret" not in str(error.value)
    assert "s3cret" not in caplog.text
