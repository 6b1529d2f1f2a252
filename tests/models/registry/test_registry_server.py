"""A registry on an MLflow server with PostgreSQL, which serves the artifacts too: register, promote, check, lose it."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.artifact import export, load
from models.errors import InputError, TransientError
from models.registry import PATIENCE, Registry
from models.registry.champion import find_champion
from tests.models.registry.mlflow_servers import mlflow_server, postgres
from tests.models.registry.registries import aliases, variant

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, untrained) -> Path:
    acts = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
    return export(untrained(), tmp_path_factory.mktemp("policies") / "ddqn", acts, {"fingerprint": "data7"})


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as address:
        yield address


def test_a_version_goes_there_and_comes_back_checked(database, folder, tmp_path, monkeypatch) -> None:
    for name, value in zip(PATIENCE, ("5", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    cache, files = tmp_path / "cache", tmp_path / "artifacts"
    with ExitStack() as running:
        address = running.enter_context(mlflow_server(tmp_path, database))
        registry = Registry(address, "tactful")
        registry.begin(registry.register(folder, {"verdict": "FIRST CHAMPION"}))
        other = variant(folder, tmp_path / "other", decision={"exploration": 0.1})
        registry.promote(registry.register(other, {"verdict": "PROMOTE"}), challenger=True)
        assert aliases(registry) == {"champion": "2", "previous": "1", "challenger": "2"}
        found = find_champion(registry, cache, NOW)
        assert (found.version, found.stale, found.fingerprint) == ("2", False, load(other).fingerprint)

        # What the store holds is changed behind the server's back.
        first, second = sorted(files.glob("**/tactful/policy.onnx"), key=lambda path: path.stat().st_mtime)
        kept = second.read_bytes()
        second.write_bytes(kept[:-1] + b"!")
        with pytest.raises(InputError, match=r"version 2 of 'tactful': tactful/policy\.onnx has SHA-256"):
            find_champion(registry, cache, NOW)
        second.write_bytes(kept)
        (second.parent / "more.json").write_text("{}")
        with pytest.raises(InputError, match=r"tactful/more\.json is not among the files"):
            find_champion(registry, cache, NOW)
        (second.parent / "more.json").unlink()
        (second.parent / "contract.json").rename(tmp_path / "contract.json")
        with pytest.raises(InputError, match=r"tactful/contract\.json is missing"):
            find_champion(registry, cache, NOW)
        (tmp_path / "contract.json").rename(second.parent / "contract.json")

        # The version to go back to is checked before anybody is sent there.
        graph = first.read_bytes()
        first.write_bytes(b"")
        with pytest.raises(InputError, match=r"version 1 of 'tactful': tactful/policy\.onnx has SHA-256"):
            registry.rollback()
        assert aliases(registry)["champion"] == "2"
        first.write_bytes(graph)
        registry.rollback("a drill")
        assert aliases(registry) == {"champion": "1", "previous": "2", "challenger": "2"}

        # The store loses a version; then the way to it fails.
        first.parents[1].rename(tmp_path / "away")
        with pytest.raises(InputError, match=r"version 1 of 'tactful': its files are gone.*roll back"):
            find_champion(registry, cache, NOW)
        (tmp_path / "away").rename(first.parents[1])
        assert find_champion(registry, cache, NOW).version == "1"

        def fails(**_: object) -> None:
            from mlflow.exceptions import MlflowException

            raise MlflowException("The following failures occurred while downloading one or more artifacts: 502")

        with monkeypatch.context() as patched:
            patched.setattr("mlflow.artifacts.download_artifacts", fails)
            assert find_champion(registry, cache, NOW + timedelta(hours=1)).stale
    # The server is gone.
    found = find_champion(registry, cache, NOW + timedelta(hours=2))
    assert (found.version, found.stale, found.checked_at) == ("1", True, NOW)
    with pytest.raises(TransientError, match="does not answer"):
        registry.promote("2")
    with pytest.raises(TransientError, match=r"not within the 24 hours"):
        find_champion(registry, cache, NOW + timedelta(hours=24))
