"""What is exported is what was learned, and what is loaded is what was exported."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.artifact import CONTRACT, GRAPH, _hash, export, load
from models.errors import InputError
from models.graph import Deployed

DECISION = {"rollout_share": 0.5, "exploration": 0.02, "lambda": 0.0}
LINEAGE = {"data_version": 3, "fingerprint": "abc", "window": ["2026-01-01", "2026-02-01"], "exported_at": "noon"}

UNITS = {"f0": "hours", "f1": "clicks", "f2": "0 or 1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, untrained) -> Path:
    return export(untrained(), tmp_path_factory.mktemp("artifact"), DECISION, LINEAGE, UNITS)


@pytest.fixture
def altered(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "altered"))


def states(rows: int) -> np.ndarray:
    state = np.random.default_rng(0).normal(size=(rows, 3), scale=4).astype(np.float32)
    state[::3, 1] = np.nan
    return state


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_the_graph_equals_torch_and_the_arithmetic(folder, rows, untrained) -> None:
    state, learned = states(rows), untrained()
    q, behaviour, values = load(folder).predict(state)
    assert (q.shape, behaviour.shape, values.shape) == ((rows, 2), (rows, 2), (rows, 2, 2))
    with torch.no_grad():
        by_torch = Deployed(learned)(torch.from_numpy(state))
    for found, wanted in zip((q, behaviour, values), by_torch, strict=True):
        assert np.abs(found - wanted.numpy()).max() < 1e-5
    # w~ = (-0.05 * 0.5 / 0.7, 1 * 0.1 / 0.7), over the heads; values = shift + scale heads.
    heads = learned.q_network(torch.from_numpy(state))[0].numpy()
    assert np.abs(q - (heads[..., 0] * -0.025 + heads[..., 1] * 0.1) / 0.7).max() < 1e-5
    fitted = learned.values(torch.from_numpy(state))[0].numpy()
    assert np.abs(values - (np.array([5.0, -5.0]) + np.array([1.5, 0.3]) * fitted)).max() < 1e-5


def test_an_unknown_feature_is_its_training_mean(folder) -> None:
    artifact = load(folder)
    unknown = np.array([[0.5, np.nan, np.nan]], dtype=np.float32)
    imputed = np.array([[0.5, 1.0, 2.0]], dtype=np.float32)
    for found, wanted in zip(artifact.predict(unknown), artifact.predict(imputed), strict=True):
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).max() < 1e-6


def test_what_was_written_is_read(folder, untrained) -> None:
    artifact = load(folder)
    assert artifact.contract == untrained().contract
    assert artifact.decision == {**DECISION, "lambda_low": 0.0, "lambda_high": 0.0}
    assert artifact.weights == {"sends": -0.05, "clicks": 1.0}
    assert artifact.feature_units == UNITS
    assert artifact.lineage == {**LINEAGE, "learner": "ddqn_cql", "alpha": 1.0, "kind": "ddqn_cql"}


def test_a_range_is_kept_and_must_hold_lambda(tmp_path, untrained) -> None:
    ranged = {**DECISION, "lambda": 0.3, "lambda_low": -0.1, "lambda_high": 0.5}
    assert load(export(untrained(), tmp_path / "ranged", ranged, LINEAGE)).decision == ranged
    with pytest.raises(InputError, match=r"decision: lambda is 0.3, outside of its range \[0.4, 0.5\]"):
        export(untrained(), tmp_path / "wrong", {**ranged, "lambda_low": 0.4}, LINEAGE)


def test_the_fingerprint_leaves_out_times_and_nothing_else(folder, tmp_path, untrained) -> None:
    first = load(folder).fingerprint
    later = export(untrained(), tmp_path / "later", DECISION, {**LINEAGE, "exported_at": "midnight"}, UNITS)
    assert (later / GRAPH).read_bytes() == (folder / GRAPH).read_bytes()
    assert load(later).fingerprint == first
    other = export(untrained(), tmp_path / "other", {**DECISION, "exploration": 0.03}, LINEAGE, UNITS)
    assert load(other).fingerprint != first


def test_the_graph_says_nothing_of_the_machine_that_made_it(folder) -> None:
    content = (folder / GRAPH).read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b".py" not in content
    assert {node.domain for node in onnx.load(folder / GRAPH).graph.node} == {""}


def rewrite(folder: Path, **changes: object) -> None:
    """Edit contract.json as somebody would who knows to repair its hash."""
    described = json.loads((folder / CONTRACT).read_text())
    described = {**described, **changes}
    described.pop("sha256")
    (folder / CONTRACT).write_text(json.dumps({**described, "sha256": _hash(described)}))


def test_an_edited_contract_is_refused(altered) -> None:
    text = (altered / CONTRACT).read_text()
    (altered / CONTRACT).write_text(text.replace('"rollout_share": 0.5', '"rollout_share": 1.0'))
    with pytest.raises(InputError, match=r"contract.json: changed since it was exported"):
        load(altered)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["f1", "f0", "f2"]}, r'contract.json: features is \["f1", "f0", "f2"\], but the graph was made'),
        ({"actions": ["hold", "push"]}, "contract.json: actions is"),
        ({"rewards": ["clicks", "sends"]}, "contract.json: rewards is"),
        ({"weights": {"sends": 0.0, "clicks": 1.0}}, "contract.json: weights is"),
        ({"decision": {**DECISION, "rollout_share": 2.0}}, "contract.json: decision.rollout_share is 2.0"),
        ({"decision": {"rollout_share": 1.0, "lambda": 0.0}}, "contract.json: decision.exploration is None"),
        ({"decision": {**DECISION, "lambda_low": "0"}}, "contract.json: decision.lambda_low is '0'"),
        ({"decision": {**DECISION, "lambda_high": -0.1}}, r"decision: lambda is 0, outside of its range \[0, -0.1\]"),
        ({"graph_sha256": "0"}, r"policy.onnx: not the graph that contract.json describes"),
    ],
)
def test_a_contract_that_is_not_the_graphs_is_refused(altered, changes, message) -> None:
    rewrite(altered, **changes)
    with pytest.raises(InputError, match=message):
        load(altered)


def test_files_that_are_not_an_artifact(altered) -> None:
    (altered / CONTRACT).write_text("{")
    with pytest.raises(InputError, match=r"contract.json: not valid JSON"):
        load(altered)
    (altered / CONTRACT).write_text("{}")
    with pytest.raises(InputError, match=r"contract.json: actions is missing"):
        load(altered)
    (altered / CONTRACT).unlink()
    with pytest.raises(InputError, match=r"contract.json: no such file"):
        load(altered)


def test_another_graph_is_refused(altered, folder, tmp_path, untrained) -> None:
    wider = export(untrained(features=4), tmp_path / "wider", DECISION, LINEAGE)
    shutil.copy(wider / GRAPH, altered / GRAPH)
    with pytest.raises(InputError, match=r"policy.onnx: not the graph"):
        load(altered)
    rewrite(altered, graph_sha256=sha256((wider / GRAPH).read_bytes()).hexdigest())
    with pytest.raises(InputError, match=r"contract.json: features is"):
        load(altered)
    # Names copied onto a graph of another shape: the shapes give it away.
    model = onnx.load(wider / GRAPH)
    onnx.helper.set_model_props(model, {each.key: each.value for each in onnx.load(folder / GRAPH).metadata_props})
    onnx.save(model, altered / GRAPH)
    rewrite(altered, graph_sha256=sha256((altered / GRAPH).read_bytes()).hexdigest())
    with pytest.raises(InputError, match=r"policy.onnx: the graph has .*export it again"):
        load(altered)
    (altered / GRAPH).write_bytes(b"not a graph")
    rewrite(altered, graph_sha256=sha256(b"not a graph").hexdigest())
    with pytest.raises(InputError, match=r"policy.onnx: onnxruntime cannot load it"):
        load(altered)


def test_bad_calls(folder, tmp_path, untrained) -> None:
    with pytest.raises(InputError, match=r"state has shape \[4, 2\]; the policy was learned from \[N, 3\]: f0, f1, f2"):
        load(folder).predict(np.zeros((4, 2), dtype=np.float32))
    with pytest.raises(InputError, match=r"decision: lambda is missing"):
        export(untrained(), tmp_path, {"rollout_share": 1.0, "exploration": 0.0}, LINEAGE)
    for units, name in (({"f0": "hours", "f1": "clicks"}, "f2"), ({**UNITS, "f3": "hours"}, "f3")):
        with pytest.raises(InputError, match=rf"feature_units: {name} has a unit or is a feature, but not both"):
            export(untrained(), tmp_path, DECISION, LINEAGE, units)
