"""What the tests of the registry share: quick artifacts, versions that are only a number, and commands in processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.artifact import CONTRACT, _hash
from models.registry import Registry

DRIVER = Path(__file__).with_name("promoting_driver.py")


def variant(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of an artifact whose contract.json says something else, as whoever exported it would have written it."""
    shutil.copytree(folder, target)
    described = json.loads((target / CONTRACT).read_text())
    described.pop("sha256")
    for key, value in changes.items():
        described[key] = {**described[key], **value} if isinstance(value, dict) else value
    (target / CONTRACT).write_text(json.dumps({**described, "sha256": _hash(described)}))
    return target


def bare_version(registry: Registry, fingerprint: str) -> str:
    """A version without files, for what concerns numbers and aliases alone; of a fingerprint of its own."""
    from models.registry.promotions import make_model

    client = registry.client
    make_model(client, registry.model)
    run = client.get_run(registry._start("bare"))
    source = f"{run.info.artifact_uri}/model"
    made = client.create_model_version(
        registry.model, source, run.info.run_id, tags={"fingerprint": fingerprint}, await_creation_for=None
    )
    return str(made.version)


def aliases(registry: Registry) -> dict[str, str]:
    """As MLflow itself has them; nothing is mended."""
    found = registry.client.get_registered_model(registry.model).aliases
    return {name: str(version) for name, version in found.items()}


class Command:
    """A driver that waits for what to do."""

    def __init__(self, registry: Registry, *arguments: str, **env: str) -> None:
        command = [sys.executable, str(DRIVER), registry.tracking_uri, registry.model, *arguments]
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **env}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, start_new_session=True, env=environment
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def stopped(self) -> None:
        """Wait until it stands still at its marker."""
        found, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert found == self.process.pid
        assert os.WIFSTOPPED(status), "it ended, and never came to its marker"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)


@contextmanager
def commands(registry: Registry, *environments: dict[str, str]) -> Iterator[list[Command]]:
    """A driver for each environment, ready."""
    made = [Command(registry, **env) for env in environments]
    try:
        for each in made:
            each.ready()
        yield made
    finally:
        for each in made:
            each.end()
