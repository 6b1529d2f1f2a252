"""MLflow: log a training run, register a policy as a version, call versions by alias, load one, roll back.

A version is an MLflow model (`mlflow.pyfunc.load_model("models:/NAME@champion")` works) with Tactful's own two files in
its folder `tactful/`. Rolling back is `set_alias("champion", an_earlier_version)`.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from shutil import copy
from typing import Any

from models.artifact import CONTRACT, GRAPH, load
from models.errors import InputError, TransientError

SQLITE = "sqlite:///"
FILES = "tactful"
"""Folder of a version that holds policy.onnx and contract.json."""
BATCH = 1000
"""Metrics per call, MLflow's limit."""
GONE = "RESOURCE_DOES_NOT_EXIST"
PARAMS = 100
"""Parameters per call, MLflow's limit."""
PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows one run under another."""


class Registry:
    """One registered model and one experiment of one MLflow server or database."""

    def __init__(self, tracking_uri: str, model: str, experiment: str = "tactful") -> None:
        """`tracking_uri` as MLflow's: sqlite:///path (artifacts then lie beside the file) or a server's address."""
        self.tracking_uri = tracking_uri
        self.model = model
        self.experiment = experiment

    @cached_property
    def client(self) -> Any:
        """The MLflow client; imported on first use, since it takes seconds."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.tracking_uri.startswith(SQLITE):
            _database(self.tracking_uri).parent.mkdir(parents=True, exist_ok=True)
        with _explained(self.tracking_uri):
            return MlflowClient(self.tracking_uri, self.tracking_uri)

    def log_run(
        self,
        name: str,
        params: Mapping[str, Any],
        curves: Mapping[str, Sequence[Mapping[str, float]]],
        folders: Mapping[str, Path],
        tags: Mapping[str, str],
        figures: Mapping[str, float] | None = None,
        parent: str | None = None,
    ) -> str:
        """Record one finished training and return its run id.

        `curves`: learner -> points, each with `step`, logged as metric LEARNER/KEY; `folders`: artifact path -> local
        folder; `tags` as the data's fingerprint and the commit; `figures`: metrics that have no step. With `parent`, a
        run id, it is shown under that run.

        Raises TransientError where the database is locked or the server is not there.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{learner}/{key}", float(value), now, int(point["step"]))
            for learner, points in curves.items()
            for point in points
            for key, value in point.items()
            if key != "step"
        ]
        metrics += [Metric(key, float(value), now, 0) for key, value in (figures or {}).items()]
        tags = {**tags, **({} if parent is None else {PARENT: parent})}
        texts = [Param(key, str(value)[:6000]) for key, value in params.items()]
        with _explained(self.tracking_uri):
            run_id = self._start(name)
            for first in range(0, len(metrics), BATCH):
                self.client.log_batch(run_id, metrics=metrics[first : first + BATCH])
            for first in range(0, len(texts), PARAMS):
                self.client.log_batch(run_id, params=texts[first : first + PARAMS])
            self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
            for path, folder in folders.items():
                self.client.log_artifacts(run_id, str(folder), path)
            self.client.set_terminated(run_id)
        return run_id

    def register(self, folder: Path, tags: Mapping[str, str], run_id: str | None = None) -> str:
        """Register the artifact in `folder` as a new version and return its number; within `run_id`, or a run of its
        own.

        Raises InputError where the artifact is not whole (`artifact.load`), TransientError as `log_run`.
        """
        artifact = load(folder)
        learner = str(artifact.lineage["learner"])
        with _explained(self.tracking_uri), tempfile.TemporaryDirectory() as temporary:
            run = run_id or self._start(f"register {learner}")
            path = f"models/{learner}"
            packed = _pack(Path(folder), Path(temporary) / "model", len(artifact.contract.features))
            self.client.log_artifacts(run, str(packed), path)
            if run_id is None:
                self.client.set_terminated(run)
            if not self.client.search_registered_models(f"name = '{self.model}'"):
                self.client.create_registered_model(self.model)
            source = f"{self.client.get_run(run).info.artifact_uri}/{path}"
            described = {**tags, "fingerprint": artifact.fingerprint}
            made = self.client.create_model_version(self.model, source, run, tags=described)
        return str(made.version)

    def set_alias(self, alias: str, version: str) -> None:
        """Call `version` by `alias` from now on; the version that had the alias loses it."""
        with _explained(self.tracking_uri):
            self.client.set_registered_model_alias(self.model, alias, version)

    def alias(self, alias: str) -> str | None:
        """The version called `alias`; None where none is, or no version was ever registered."""
        from mlflow.exceptions import MlflowException

        with _explained(self.tracking_uri):
            try:
                return str(self.client.get_model_version_by_alias(self.model, alias).version)
            except MlflowException as error:
                # An absent alias is an invalid parameter to MLflow, an absent model does not exist.
                if error.error_code in {GONE, "INVALID_PARAMETER_VALUE"}:
                    return None
                raise

    def load(self, alias: str) -> tuple[Path, str]:
        """(folder of policy.onnx and contract.json, version) of the version called `alias`.

        Raises InputError where no version is, or its files are gone.
        """
        version = self.alias(alias)
        if version is None:
            raise InputError(
                f"{self.tracking_uri}: no version of model {self.model!r} is called {alias!r}; "
                "run `tactful promote CONFIG` first."
            )
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with _explained(self.tracking_uri):
            source = self.client.get_model_version(self.model, version).source
            try:
                folder = download_artifacts(artifact_uri=f"{source}/{FILES}", tracking_uri=self.tracking_uri)
            except (OSError, MlflowException) as error:
                if getattr(error, "error_code", GONE) != GONE:
                    raise
                raise InputError(
                    f"{source}: the files of version {version} of {self.model!r} are gone ({error}); roll back by "
                    "giving the alias to another version, or train again."
                ) from None
        return Path(folder), version

    def _start(self, name: str) -> str:
        """A new run of the experiment, which is made if absent."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            experiment = found.experiment_id
        else:
            # MLflow would put artifacts under the working directory of whoever came first.
            local = self.tracking_uri.startswith(SQLITE)
            where = (_database(self.tracking_uri).parent / "artifacts").as_uri() if local else None
            experiment = self.client.create_experiment(self.experiment, artifact_location=where)
        return str(self.client.create_run(experiment, run_name=name).info.run_id)


def _database(tracking_uri: str) -> Path:
    return Path(tracking_uri.removeprefix(SQLITE)).absolute()


def _pack(folder: Path, target: Path, features: int) -> Path:
    """`folder` as an MLflow model with Tactful's two files inside."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.onnx.save_model(
        onnx.load(str(folder / GRAPH)),
        str(target),
        # Pinned by hand: MLflow would otherwise load the model in a fresh process to find out.
        pip_requirements=[f"{name}=={installed(name)}" for name in ("mlflow", "onnx", "onnxruntime", "numpy")],
        signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, features), "state")])),
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    (target / FILES).mkdir()
    for name in (GRAPH, CONTRACT):
        copy(folder / name, target / FILES / name)
    return target


@contextmanager
def _explained(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's own error for a database or server that does not answer into one worth a retry."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"} or "API request" in str(error):
            raise TransientError(f"{tracking_uri}: does not answer ({error}); try again later.") from None
        raise
