"""A registered version as files: packed as an MLflow model, listed by checksum, and copied only where nothing differs.

    MLmodel, conda.yaml, python_env.yaml, requirements.txt,
    input_example.json, serving_input_example.json      written by MLflow
    model.onnx                                          tactful/policy.onnx, byte for byte: what MLflow serves
    tactful/policy.onnx, tactful/contract.json          the artifact (models.artifact)
    judged/evaluation.json, judged/verdict.json         where it was judged: estimates, verdict, and what it is on

The SHA-256 of every file is a tag of the version, so it lies in the registry's database and not beside the files.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path, PurePosixPath
from shutil import copy
from typing import Any

from models.artifact import CONTRACT, GRAPH
from models.errors import InputError

FILES = "tactful"
"""Folder of a version that holds policy.onnx and contract.json."""
JUDGED = "judged"
"""Folder of a version that holds evaluation.json and verdict.json."""
SERVED = "model.onnx"
NOTE = "registered_model_meta"
"""What MLflow leaves in a version that it loaded in place, on a shared disk; never read nor copied here."""
KINDS = {".onnx", ".json", ".yaml", ".txt"}
"""Endings of the files that a version holds, besides MLmodel: none that anything unpickles."""
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x93NUMPY")
"""First bytes of pickles, of the archives that torch puts them in, and of arrays, which may hold them."""


def pack(folder: Path, target: Path, contract: Mapping[str, Any], judged: Mapping[str, Any]) -> Path:
    """The artifact in `folder` as an MLflow model in `target`, with `judged` (file name -> JSON) beside it.

    `contract`: the parsed contract.json. The input example has two rows: the mean of each feature, and zeros.
    """
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    actions, features, rewards = (len(contract[name]) for name in ("actions", "features", "rewards"))
    outputs = {"q": (-1, actions), "behaviour": (-1, actions), "values": (-1, actions, rewards)}
    example = np.stack([contract["scales"]["mean"], np.zeros(features)]).astype(np.float32)
    mlflow.onnx.save_model(
        onnx.load(str(folder / GRAPH)),
        str(target),
        # Pinned by hand: MLflow would otherwise load the model in a fresh process to find out.
        pip_requirements=[f"{name}=={installed(name)}" for name in ("mlflow", "onnx", "onnxruntime", "numpy")],
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, features), "state")]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), shape, name) for name, shape in outputs.items()]),
        ),
        input_example={"state": example},
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        save_as_external_data=False,
    )
    # What is served is what was judged, byte for byte.
    copy(folder / GRAPH, target / SERVED)
    (target / FILES).mkdir()
    for name in (GRAPH, CONTRACT):
        copy(folder / name, target / FILES / name)
    if judged:
        (target / JUDGED).mkdir()
    for name, value in judged.items():
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        (target / JUDGED / name).write_text(text + "\n")
    return target


def checksums(folder: Path) -> dict[str, str]:
    """Path within `folder`, with slashes, -> SHA-256 of every file in it.

    Raises InputError naming the first that is a link or no file, of a kind that a version does not hold, or a pickle.
    """
    return {path: hashlib.sha256(content).hexdigest() for path, content in _contents(folder, folder).items()}


def copy_checked(folder: Path, files: Mapping[str, str], into: Path, whence: str) -> None:
    """Write into `into` the files of `folder`, each read once, where they are exactly `files` (path -> SHA-256).

    Raises InputError, beginning with `whence`, where one is not listed, missing, changed or as in `checksums`, and
    where `files` names a path outside the folder.
    """
    for path in files:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or str(parts) != path:
            raise InputError(f"{whence}: its list of files names {path!r}, which is outside of its folder; {REMEDY}")
    found = _contents(folder, whence)
    for path in sorted({*files, *found}):
        if path not in files:
            raise InputError(f"{whence}: {path} is not among the files that were registered; {REMEDY}")
        if path not in found:
            raise InputError(f"{whence}: {path} is missing; {REMEDY}")
        sha256 = hashlib.sha256(found[path]).hexdigest()
        if sha256 != files[path]:
            raise InputError(
                f"{whence}: {path} has SHA-256 {sha256[:12]}..., registered was {files[path][:12]}...; {REMEDY}"
            )
    for path, content in found.items():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_bytes(content)


REMEDY = "what would act is not what was judged; roll back, or register the policy again."


def _contents(folder: Path, whence: object) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for here, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(here, name)
            mode, inside = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISLNK(mode) or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither file nor folder"
                raise InputError(f"{whence}: {inside} is {kind}, and a version holds plain files only; {REMEDY}")
        for name in names:
            path = Path(here, name)
            inside, content = path.relative_to(folder).as_posix(), _read(path)
            if inside == NOTE:
                continue
            if name != "MLmodel" and path.suffix not in KINDS:
                raise InputError(
                    f"{whence}: {inside} is of a kind that no version holds (it may be a pickle); {REMEDY}"
                )
            if content.startswith(PICKLES):
                raise InputError(f"{whence}: {inside} begins as a pickle does, and loading one runs it; {REMEDY}")
            found[inside] = content
    return found


def _read(path: Path) -> bytes:
    """The content of a file, not of what a link put in its place meanwhile leads to."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        return stream.read()
