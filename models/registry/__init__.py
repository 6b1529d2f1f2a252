"""MLflow: log a training run, register a policy as a version, say which is champion, load one, promote, roll back.

A version is an MLflow model (`mlflow.pyfunc.load_model("models:/NAME@champion")` works) with Tactful's own files beside
it, see `packing.py`. Which version is champion says the journal, see `promotions.py`; the aliases follow it.
"""

import atexit
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from models.artifact import CONTRACT, load
from models.errors import InputError, TransientError
from models.registry import versions
from models.registry.outages import explained, shown, within
from models.registry.packing import checksums, pack
from models.registry.promotions import ALIASES, Entry, Journal, State, make_model
from models.registry.versions import CHECKSUMS, GONE, Version

SQLITE = "sqlite:///"
BATCH = 1000
"""Metrics per call, MLflow's limit."""
PARAMS = 100
"""Parameters per call, MLflow's limit."""
NAME = re.compile(r"\w[\w .-]*")
PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows one run under another."""
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""MLflow's own are 120 s, 7 and 2: a server that hangs would hold a night for a quarter of an hour."""
DEADLINE = 180.0
"""Seconds within which a version must be found, checked and copied."""


class Registry:
    """One registered model and one experiment of one MLflow server or database."""

    def __init__(self, tracking_uri: str, model: str, experiment: str = "tactful") -> None:
        """`tracking_uri` as MLflow's: sqlite:///path (artifacts then lie beside the file) or a server's address.

        Raises InputError where the name of the model holds what means something in MLflow's searches and addresses.
        """
        if not NAME.fullmatch(model):
            raise InputError(f"mlflow.model: {model!r}; use letters, digits, blanks and any of . _ - only.")
        self.tracking_uri = tracking_uri
        self.model = model
        self.experiment = experiment

    @property
    def database(self) -> Path | None:
        """The SQLite file that it is; None where a server keeps it."""
        return _database(self.tracking_uri) if self.tracking_uri.startswith(SQLITE) else None

    @cached_property
    def client(self) -> Any:
        """The MLflow client; imported on first use, since it takes seconds."""
        for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **PATIENCE}.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with explained(self.tracking_uri), self._first():
            client = MlflowClient(self.tracking_uri, self.tracking_uri)
            if self.tracking_uri.startswith(SQLITE):
                # Opens the registry's side of the file too, while nobody else does.
                client.search_registered_models(max_results=1)
        return client

    @contextmanager
    def _first(self) -> Iterator[None]:
        """One process at a time makes the tables of a new SQLite file; MLflow's own lock lies in the temporary folder,
        which two users, or two services, may not share."""
        if not self.tracking_uri.startswith(SQLITE):
            yield
            return
        database = _database(self.tracking_uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(database.name + ".lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.client, self.model)

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
        with explained(self.tracking_uri):
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

    def register(
        self,
        folder: Path,
        tags: Mapping[str, str],
        run_id: str | None = None,
        judged: Mapping[str, Any] | None = None,
    ) -> str:
        """Register the artifact in `folder` as a new version and return its number; within `run_id`, or a run of its
        own.

        `judged`: what lies beside it, EVALUATION and VERDICT -> JSON. Tags that are added: the artifact's fingerprint,
        the data's, the window and the commit of its lineage, and the checksums.

        Raises InputError where the artifact is not whole (`artifact.load`), TransientError as `log_run`.
        """
        artifact = load(folder)
        learner = str(artifact.lineage["learner"])
        contract = json.loads((Path(folder) / CONTRACT).read_text())
        with explained(self.tracking_uri), tempfile.TemporaryDirectory() as temporary:
            run = run_id or self._start(f"register {learner}")
            path = f"models/{learner}"
            packed = pack(Path(folder), Path(temporary) / "model", contract, judged or {})
            sums = checksums(packed)
            self.client.log_artifacts(run, str(packed), path)
            if run_id is None:
                self.client.set_terminated(run)
            make_model(self.client, self.model)
            source = f"{self.client.get_run(run).info.artifact_uri}/{path}"
            known = {
                "fingerprint": artifact.fingerprint,
                "data_fingerprint": artifact.lineage.get("fingerprint"),
                "data_version": artifact.lineage.get("data_version"),
                "data_window": " to ".join(artifact.lineage.get("window") or []),
                "commit": artifact.lineage.get("commit"),
            }
            described = {name: str(value) for name, value in known.items() if value not in {None, ""}}
            described |= {**tags, CHECKSUMS: json.dumps(sums, sort_keys=True)}
            made = self.client.create_model_version(self.model, source, run, tags=described)
        return str(made.version)

    def state(self) -> State:
        """Who is champion, previous and challenger; aliases that say otherwise are mended."""
        with explained(self.tracking_uri):
            return self.journal.state()

    def challenge(self, version: str) -> State:
        """Call `version` challenger: the newest that was judged."""
        return self._append(Entry("challenge", version))

    def begin(self, version: str) -> State:
        """Make `version` champion where there is none yet."""
        return self._append(Entry("first", version))

    def promote(self, version: str, reason: str = "", challenger: bool = False) -> State:
        """Make `version` champion, and the champion before it previous; `reason` is kept, with who and when."""
        return self._append(Entry("promote", version, reason=reason, challenger=challenger))

    def rollback(self, reason: str = "") -> State:
        """Swap champion and previous.

        Raises InputError where there is no previous one, or its files are not those that were registered;
        TransientError where somebody else changed the champion first.
        """
        before = self.state()
        if before.champion is None or before.previous is None:
            raise InputError(
                f"{shown(self.tracking_uri)}: model {self.model!r} has no champion before this one "
                f"(champion: {before.champion or 'none'}); there is nothing to roll back to."
            )
        with tempfile.TemporaryDirectory() as temporary:
            self.fetch(before.previous, Path(temporary))
        entry = Entry("rollback", before.champion, reason=reason)
        after = self._append(entry)
        if entry.id in after.void:
            raise TransientError(
                f"{shown(self.tracking_uri)}: version {before.champion} is champion no more, somebody else was faster; "
                f"it is version {after.champion} now, and nothing was rolled back."
            )
        return after

    def _append(self, entry: Entry) -> State:
        with explained(self.tracking_uri):
            tags = versions.find(self.client, self.tracking_uri, self.model, entry.version).tags
            return self.journal.append(replace(entry, fingerprint=tags.get("fingerprint", "")))

    def set_alias(self, alias: str, version: str) -> None:
        """Call `version` by `alias` from now on; champion, challenger and previous are the journal's to give."""
        with explained(self.tracking_uri):
            self.client.set_registered_model_alias(self.model, alias, version)

    def alias(self, alias: str) -> str | None:
        """The version called `alias`; None where none is, or no version was ever registered."""
        if alias in ALIASES:
            return self.state().aliases().get(alias)
        from mlflow.exceptions import MlflowException

        with explained(self.tracking_uri):
            try:
                return str(self.client.get_model_version_by_alias(self.model, alias).version)
            except MlflowException as error:
                # An absent alias is an invalid parameter to MLflow, an absent model does not exist.
                if error.error_code in {*GONE, "INVALID_PARAMETER_VALUE"}:
                    return None
                raise

    def named(self, alias: str) -> str:
        """The version called `alias`; InputError where none is."""
        version = self.alias(alias)
        if version is None:
            raise InputError(
                f"{shown(self.tracking_uri)}: no version of model {self.model!r} is called {alias!r}; "
                "run `tactful promote CONFIG` first."
            )
        return version

    def load(self, alias: str) -> tuple[Path, str]:
        """(folder of policy.onnx and contract.json, version) of the version called `alias`; the folder is a checked
        copy that goes with the process.

        Raises InputError where no version is, its files are gone, or are not those that were registered.
        """
        version = self.named(alias)
        folder = Path(tempfile.mkdtemp(prefix="tactful-version-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return self.fetch(version, folder).artifact, version

    def fetch(self, version: str, into: Path) -> Version:
        """Copy a version's files into the empty folder `into`, each checked against what was registered.

        Raises InputError where there is no such version, its files are gone, or are not those that were registered (see
        `packing.copy_checked`); TransientError where MLflow does not answer.
        """

        def fetched() -> Version:
            with explained(self.tracking_uri):
                return versions.fetch(self.client, self.tracking_uri, self.model, version, into)

        return within(DEADLINE, self.tracking_uri, fetched)

    def _start(self, name: str) -> str:
        """A new run of the experiment, which is made if absent."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            experiment = found.experiment_id
        else:
            # MLflow would put artifacts under the working directory of whoever came first.
            local = self.tracking_uri.startswith(SQLITE)
            where = (_database(self.tracking_uri).parent / "artifacts").as_uri() if local else None
            experiment = self._made(where)
        return str(self.client.create_run(experiment, run_name=name).info.run_id)

    def _made(self, where: str | None) -> str:
        """The id of the experiment, made here or by somebody faster."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=where))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(self.experiment).experiment_id)


def _database(tracking_uri: str) -> Path:
    return Path(tracking_uri.removeprefix(SQLITE).partition("?")[0]).absolute()
