"""A version of the registry, brought here with every file checked against what was registered."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.artifact import load
from models.errors import InputError, TransientError
from models.registry.outages import shown
from models.registry.packing import FILES, JUDGED, copy_checked

VERDICT = "verdict.json"
EVALUATION = "evaluation.json"
CHECKSUMS = "sha256"
"""The tag with path -> SHA-256 of every file, as JSON."""
SHOWN = 20
"""Of the versions there are, the newest, where one is not."""
GONE = {"RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND"}


@dataclass(frozen=True)
class Version:
    """A registered version whose files were checked."""

    number: str
    folder: Path
    """A copy of the whole version, see `models.registry.packing`."""
    tags: dict[str, str]

    @property
    def artifact(self) -> Path:
        """The folder of policy.onnx and contract.json."""
        return self.folder / FILES

    def unjudged(self) -> str | None:
        """Why it may not be promoted without an override; None where a PROMOTE verdict was made on it and its data."""
        path = self.folder / JUDGED / VERDICT
        if not path.exists():
            return "it was registered without a verdict"
        told, artifact = json.loads(path.read_text()), load(self.artifact)
        if told["verdict"] != "PROMOTE":
            return f"its verdict is {told['verdict']}"
        for what, judged, own in (
            ("artifact", told["judged"]["fingerprint"], artifact.fingerprint),
            ("data", told["judged"]["data_fingerprint"], artifact.lineage.get("fingerprint")),
        ):
            if judged != own:
                return f"its verdict was made on other {what} (fingerprint {judged}, the version's is {own})"
        return None


def find(client: Any, uri: str, model: str, number: str) -> Any:
    """MLflow's own description of a version; InputError where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model, number)
    except MlflowException as error:
        if error.error_code not in {*GONE, "INVALID_PARAMETER_VALUE"}:
            raise
        newest = client.search_model_versions(
            f"name = '{model}'", max_results=SHOWN + 1, order_by=["version_number DESC"]
        )
        there = ", ".join(str(each.version) for each in newest[:SHOWN]) + (", ..." if len(newest) > SHOWN else "")
        raise InputError(f"{_whence(uri, model, number)} does not exist; there are {there or 'none'}.") from None


def fetch(client: Any, uri: str, model: str, number: str, into: Path) -> Version:
    """As `Registry.fetch`; errors of MLflow are its own."""
    whence, found = _whence(uri, model, number), find(client, uri, model, number)
    if CHECKSUMS not in found.tags:
        raise InputError(
            f"{whence} has no checksums, as an earlier version of Tactful registered it; run `tactful promote CONFIG` "
            "again, which registers the policy with them."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = _downloaded(uri, found.source, Path(temporary), whence)
        copy_checked(folder, json.loads(found.tags[CHECKSUMS]), into, whence)
    return Version(number, into, dict(found.tags))


def _whence(uri: str, model: str, number: str) -> str:
    return f"{shown(uri)}: version {number} of {model!r}"


def _downloaded(uri: str, source: str, temporary: Path, whence: str) -> Path:
    """The files at `source`; in place where they lie on this machine, so that a link is seen as one."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    gone = f"{whence}: its files are gone from {shown(source)}; roll back, or register the policy again."
    if is_local_uri(source):
        folder = Path(local_file_uri_to_path(source))
        if not folder.is_dir():
            raise InputError(gone)
        return folder
    try:
        listed = get_artifact_repository(source, uri).list_artifacts()
    except MlflowException as error:
        if error.error_code in GONE:
            raise InputError(gone) from None
        raise
    if not listed:
        raise InputError(gone)
    try:
        return Path(download_artifacts(artifact_uri=source, dst_path=str(temporary), tracking_uri=uri))
    except MlflowException as error:
        # They are listed, so it is the way here that failed.
        raise TransientError(f"{whence}: its files do not come ({error}); try again later.") from None
