"""Normalisation and networks as one ONNX graph, and a contract.json beside it; nothing pickled, no torch to load it.

`policy.onnx`: input `state` [N, S] float32 in raw units, NaN where unknown; outputs `q` [N, A] (w~.Q, unitless),
`behaviour` [N, A] (logits of the logging policy, before masking) and `values` [N, A, K] (unpenalised fitted Q of the
deployed policy, raw units). The graph carries the names it was made for; `contract.json` says them to people, with the
weights, the scales, the decision (how the q acts) and the lineage (what it was learned from). Both are checked against
each other when loaded.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.contract import Contract
from models.errors import InputError

if TYPE_CHECKING:
    from models.train import Learned

GRAPH = "policy.onnx"
CONTRACT = "contract.json"
NAMES = ("actions", "features", "rewards", "units", "weights", "scales")
"""Parts of contract.json that the graph carries too."""
METADATA = "tactful.contract"
TIME_SUFFIX = "_at"
"""Keys of the lineage that end so are times: no part of the fingerprint."""
ROWS_AT_ONCE = 1024
"""Rows whose activations stay in a core's cache: of 2 x 256 hidden units twice as fast as 65,536 at once."""
DECISION = ("rollout_share", "exploration", "lambda")
RANGE = ("lambda_low", "lambda_high")
"""Between which prices the lambda may be moved, as the gate judged; an artifact without them means lambda alone."""


@dataclass(frozen=True)
class Artifact:
    """A policy as deployed, run by onnxruntime on one CPU thread."""

    contract: Contract
    decision: dict[str, float]
    """rollout_share, exploration, lambda, lambda_low, lambda_high."""
    lineage: dict[str, Any]
    feature_units: dict[str, str]
    """In what each feature is counted; empty where whoever exported it did not say."""
    weights: dict[str, float]
    """Reward weight per component, per raw unit."""
    scales: dict[str, Any]
    """mean, std [S] of the training features, sigma [K], reward_sd; raw units."""
    fingerprint: str
    """Hash of both files but for times."""
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    def predict(
        self, state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(q [N, A], behaviour logits [N, A], values [N, A, K] raw units) at `state` [N, S], NaN where unknown.

        Raises InputError where the state has another number of features.
        """
        features = len(self.contract.features)
        if state.ndim != 2 or state.shape[1] != features:
            raise InputError(
                f"state has shape {list(state.shape)}; the policy was learned from [N, {features}]: "
                f"{', '.join(self.contract.features)}."
            )
        q, behaviour, values = (each.astype(np.float64) for each in asked(self.session, state))
        return q, behaviour, values


def export(
    learned: "Learned",
    folder: Path,
    decision: Mapping[str, float],
    lineage: Mapping[str, Any],
    feature_units: Mapping[str, str] | None = None,
) -> Path:
    """Write policy.onnx and contract.json into `folder` (made if absent) and return it.

    `decision` as `Artifact.decision`, the range optional; to `lineage` (data version, fingerprint, training window,
    commit, ...) the learner's name, alpha and kind are added. `feature_units`: in what each feature is counted, for
    whoever reads it.

    Raises InputError where the decision lacks a key or its range does not hold lambda, and where the units are of other
    features.
    """
    from models.graph import graph_of

    missing = [key for key in DECISION if key not in decision]
    if missing:
        raise InputError(f"decision: {missing[0]} is missing (found: {', '.join(decision) or 'nothing'}).")
    _check_decision(_ranged(decision), "decision")
    contract, scales = learned.contract, learned.scales
    if feature_units is not None and set(feature_units) != set(contract.features):
        other = sorted(set(feature_units) ^ set(contract.features))
        raise InputError(f"feature_units: {other[0]} has a unit or is a feature, but not both; give each feature one.")
    described = {
        "format": 1,
        "actions": list(contract.actions),
        "features": list(contract.features),
        "rewards": list(contract.rewards),
        "units": dict(contract.units),
        "feature_units": dict(feature_units or {}),
        "weights": {name: float(w) for name, w in zip(contract.rewards, scales.weights, strict=True)},
        "scales": {
            "mean": [float(each) for each in scales.mean],
            "std": [float(each) for each in scales.std],
            "sigma": [float(each) for each in scales.sigma],
            "reward_sd": scales.reward_sd,
        },
        "decision": {key: float(value) for key, value in _ranged(decision).items()},
        "lineage": {**lineage, "learner": learned.name, "alpha": learned.alpha, "kind": _kind(learned)},
    }
    graph = graph_of(learned, {METADATA: _canonical({key: described[key] for key in NAMES})})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph)
    described["graph_sha256"] = hashlib.sha256(graph).hexdigest()
    described = json.loads(_canonical(described))
    described["sha256"] = _hash(described)
    (folder / CONTRACT).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    return folder


def _kind(learned: "Learned") -> str:
    """What learned it: ddqn, ddqn_cql, iql or behaviour; `ensemble of N` behind it where N members act together."""
    kind = "behaviour" if learned.learner is None else str(learned.learner.kind)
    return kind if learned.q_network.members == 1 else f"{kind}, ensemble of {learned.q_network.members}"


def only(graph: bytes, outputs: Sequence[str]) -> bytes:
    """The part of a graph that these of its outputs need: onnxruntime computes all of them, whatever is asked."""
    # Executors read this file too, and have no onnx.
    import onnx
    from onnx.utils import Extractor

    whole = onnx.load_from_string(graph)
    part = Extractor(whole).extract_model([each.name for each in whole.graph.input], list(outputs))
    return bytes(part.SerializeToString(deterministic=True))


def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    """A session on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def asked(session: onnxruntime.InferenceSession, state: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Every output of the graph at `state` [N, S], a few rows at a time."""
    state = np.ascontiguousarray(state, dtype=np.float32)
    starts = range(0, max(len(state), 1), ROWS_AT_ONCE)
    parts = [session.run(None, {"state": state[start : start + ROWS_AT_ONCE]}) for start in starts]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def load(folder: Path | str) -> Artifact:
    """The artifact in `folder`, its two files checked against each other.

    Raises InputError naming the file where one is absent or unreadable, where contract.json lacks a key, where its
    hash, names, weights or scales are not the graph's, where a decision is out of range, and where the graph has other
    inputs, outputs or shapes.
    """
    graph_path, contract_path = Path(folder) / GRAPH, Path(folder) / CONTRACT
    for path in (graph_path, contract_path):
        if not path.is_file():
            raise InputError(f"{path}: no such file; an artifact is {GRAPH} and {CONTRACT}; export it again.")
    graph = graph_path.read_bytes()
    described = _described(contract_path)
    if hashlib.sha256(graph).hexdigest() != described["graph_sha256"]:
        raise InputError(f"{graph_path}: not the graph that {CONTRACT} describes; export or download both again.")
    try:
        session = session_of(graph)
    except Exception as error:
        raise InputError(f"{graph_path}: onnxruntime cannot load it ({error}).") from None
    carried = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
    for key in NAMES:
        if described[key] != carried.get(key):
            raise InputError(
                f"{contract_path}: {key} is {_short(described[key])}, but the graph was made for "
                f"{_short(carried.get(key))}; export or download both again."
            )
    contract = Contract(
        tuple(described["actions"]), tuple(described["features"]), tuple(described["rewards"]), described["units"]
    )
    _check_shapes(session, contract, graph_path)
    return Artifact(
        contract=contract,
        decision=_ranged(described["decision"]),
        lineage=described["lineage"],
        feature_units=described.get("feature_units", {}),
        weights=described["weights"],
        scales=described["scales"],
        fingerprint=_fingerprint(described),
        session=session,
    )


def _described(path: Path) -> dict[str, Any]:
    """contract.json, each key present and the decision in range."""
    try:
        described: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}.") from None
    missing = [key for key in (*NAMES, "decision", "lineage", "graph_sha256", "sha256") if key not in described]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing; export or download the artifact again.")
    if described.pop("sha256") != _hash(described):
        raise InputError(
            f"{path}: changed since it was exported, so what would act is not what was judged; export or download the "
            "artifact again."
        )
    _check_decision(_ranged(described["decision"]), f"{path}: decision")
    return described


def _ranged(decision: Mapping[str, float]) -> dict[str, float]:
    """The keys of a decision, a range that is not said being lambda alone."""
    price = decision.get("lambda")
    found: dict[str, Any] = {key: decision.get(key) for key in DECISION}
    return {**found, **{key: decision.get(key, price) for key in RANGE}}


def _check_decision(decision: Mapping[str, Any], where: str) -> None:
    for key, value in decision.items():
        share = key in ("rollout_share", "exploration")
        if not isinstance(value, int | float) or not np.isfinite(value) or (share and not 0 <= value <= 1):
            raise InputError(f"{where}.{key} is {value!r}; a number is needed, a share in [0, 1].")
    if not decision["lambda_low"] <= decision["lambda"] <= decision["lambda_high"]:
        low, price, high = (decision[key] for key in ("lambda_low", "lambda", "lambda_high"))
        raise InputError(f"{where}: lambda is {price:g}, outside of its range [{low:g}, {high:g}]; export it again.")


def _check_shapes(session: onnxruntime.InferenceSession, contract: Contract, path: Path) -> None:
    actions = len(contract.actions)
    wanted = {
        "state": [len(contract.features)],
        "q": [actions],
        "behaviour": [actions],
        "values": [actions, len(contract.rewards)],
    }
    found = {each.name: list(each.shape)[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    if found != wanted:
        raise InputError(f"{path}: the graph has {found} after the rows, the contract needs {wanted}; export it again.")


def _fingerprint(described: Mapping[str, Any]) -> str:
    """sha256 over contract.json, which holds the graph's, without the times in its lineage."""
    lineage = {key: value for key, value in described["lineage"].items() if not key.endswith(TIME_SUFFIX)}
    return _hash({**described, "lineage": lineage})


def _hash(tree: Any) -> str:
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()


def _canonical(tree: Any) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), default=str)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
