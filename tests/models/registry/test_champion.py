"""The champion of a night when MLflow answers, and when it is down, hangs, fails or talks nonsense."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.artifact import export, load
from models.errors import InputError, TransientError
from models.registry import PATIENCE, Registry
from models.registry import champion as champions
from models.registry.champion import NOTE, find_champion
from models.registry.outages import within
from tests.models.registry.registries import variant

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
ACTS = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
LINEAGE = {"data_version": 7, "fingerprint": "data7", "window": ["2026-01-01", "2026-02-01"], "commit": "abc123"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, untrained) -> Path:
    return export(untrained(), tmp_path_factory.mktemp("policies") / "ddqn", ACTS, LINEAGE)


@pytest.fixture(scope="module")
def made(tmp_path_factory, folder) -> Path:
    """A registry with a champion."""
    where = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{where / 'mlflow.db'}", "tactful")
    registry.begin(registry.register(folder, {}))
    return where


@pytest.fixture
def registry(made) -> Registry:
    return Registry(f"sqlite:///{made / 'mlflow.db'}", "tactful")


class Away(BaseHTTPRequestHandler):
    """A server that is not well."""

    how = "503"
    release = threading.Event()

    def do_GET(self) -> None:
        if self.how == "hangs":
            self.release.wait(60)
            return
        if self.how == "drips":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not self.release.wait(0.2):
                self.wfile.write(b" ")
            return
        if self.how == "garbage":
            status, body = 200, "<html>welcome</html>"
        elif self.how.startswith("{"):
            status, body = 200, self.how
        elif self.how.isdigit():
            status, body = int(self.how), "<html>no</html>"
        else:
            code, number = self.how.split()
            status, body = int(number), json.dumps({"error_code": code, "message": "it says"})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if self.how == "503":
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Address of a server that behaves as told; requests are tried twice, and for a second each."""
    for name, value in zip(PATIENCE, ("1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    Away.release.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Away)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def behave(how: str) -> str:
        monkeypatch.setattr(Away, "how", how)
        return f"http://127.0.0.1:{1 if how == 'refuses' else server.server_address[1]}"

    yield behave
    Away.release.set()
    server.shutdown()
    server.server_close()


def asked(registry: Registry, cache: Path, uri: str) -> Path:
    """A cache that was filled an hour before NOW, as if by the registry at `uri`."""
    find_champion(registry, cache, NOW - timedelta(hours=1))
    told = json.loads((cache / NOTE).read_text())
    (cache / NOTE).write_text(json.dumps({**told, "registry": uri}))
    return cache


def contents(cache: Path) -> dict[str, bytes]:
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_the_champion_is_copied_with_its_checksums_and_the_time(registry, folder, tmp_path) -> None:
    found = find_champion(registry, tmp_path / "cache", NOW)
    assert (found.version, found.checked_at, found.stale) == ("1", NOW, False)
    assert found.fingerprint == load(found.folder).fingerprint == load(folder).fingerprint
    assert sorted(path.name for path in found.folder.iterdir()) == ["contract.json", "policy.onnx"]
    told = json.loads((tmp_path / "cache" / NOTE).read_text())
    assert (told["version"], told["checked_at"]) == ("1", "2026-03-01T03:00:00+00:00")
    # Nothing half done is left, the next night uses the same folder, and both notes are whole files.
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([NOTE, found.folder.name])
    later = find_champion(registry, tmp_path / "cache", NOW + timedelta(days=1))
    assert (later.folder, later.checked_at) == (found.folder, NOW + timedelta(days=1))


def test_a_damaged_copy_is_made_anew_from_the_registry(registry, tmp_path) -> None:
    found = find_champion(registry, tmp_path, NOW)
    (found.folder / "policy.onnx").write_bytes(b"half")
    (found.folder / "more").write_bytes(b"")
    again = find_champion(registry, tmp_path, NOW)
    assert load(again.folder).fingerprint == again.fingerprint
    assert sorted(path.name for path in again.folder.iterdir()) == ["contract.json", "policy.onnx"]


AWAY = [
    "refuses",
    "hangs",
    "drips",
    "500",
    "502",
    "503",
    "429",
    "garbage",
    "INTERNAL_ERROR 500",
    "TEMPORARILY_UNAVAILABLE 503",
    '{"model_versions": 3}',
]


@pytest.mark.parametrize("how", AWAY)
def test_while_mlflow_is_away_the_champion_checked_last_acts(
    away, registry, tmp_path, how, caplog, monkeypatch
) -> None:
    uri = away(how)
    cache = asked(registry, tmp_path, uri)
    before, started = contents(cache), time.monotonic()
    if how == "drips":
        # Each byte comes in time, the answer never does.
        monkeypatch.setattr(champions, "DEADLINE", 3.0)
    found = find_champion(Registry(uri, "tactful"), cache, NOW)
    assert time.monotonic() - started < 60
    assert (found.version, found.stale, found.checked_at) == ("1", True, NOW - timedelta(hours=1))
    assert load(found.folder).fingerprint == found.fingerprint
    assert contents(cache) == before
    assert "does not answer" in caplog.text
    assert "Version 1 is used, last checked at 2026-03-01T02:00:00+00:00" in caplog.text


@pytest.mark.parametrize("how", ["refuses", "500"])
def test_without_a_champion_checked_before_nothing_is_written(away, tmp_path, how) -> None:
    with pytest.raises(
        TransientError, match=r"does not answer.*No champion was checked before, so nothing is"
    ) as error:
        find_champion(Registry(away(how), "tactful"), tmp_path / "cache", NOW)
    assert error.value.exit_code == 75
    assert not (tmp_path / "cache").exists()


def aged(hours: float) -> Callable[[Path], None]:
    def age(cache: Path) -> None:
        told = json.loads((cache / NOTE).read_text())
        checked = NOW - timedelta(hours=hours)
        (cache / NOTE).write_text(json.dumps({**told, "checked_at": checked.isoformat()}))

    return age


def noted(**changes: str) -> Callable[[Path], None]:
    def change(cache: Path) -> None:
        (cache / NOTE).write_text(json.dumps({**json.loads((cache / NOTE).read_text()), **changes}))

    return change


def damaged(cache: Path) -> None:
    next(cache.glob("*/policy.onnx")).write_bytes(b"half a graph")


def swapped(cache: Path) -> None:
    """Another artifact, whole in itself, where the champion was."""
    folder = next(path.parent for path in cache.glob("*/policy.onnx"))
    other = variant(folder, cache.parent / "other", decision={"exploration": 0.9})
    shutil.copy(other / "contract.json", folder / "contract.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (aged(24), "was last checked at 2026-02-28T03:00:00.*not within the 24 hours before 2026-03-01T03:00:00"),
        (aged(-0.5), r"was last checked at 2026-03-01T03:30:00.*not within the 24 hours before"),  # the clock went back
        (damaged, "is not what was checked"),
        (swapped, "is not what was checked"),
        (noted(fingerprint="f00"), "is not what was checked"),
        (noted(model="other"), "is of model 'other'"),
        (noted(registry="http://elsewhere"), "is of model 'tactful' at http://elsewhere"),
        (lambda cache: (cache / NOTE).write_text("{"), "No champion was checked before"),
        (lambda cache: (cache / NOTE).write_text("[]"), "No champion was checked before"),
        (lambda cache: (cache / NOTE).write_text('{"checked_at": "2026-03-01T00:00:00+00:00"}'), "No champion was che"),
    ],
)
def test_only_a_champion_checked_within_a_day_acts(away, registry, tmp_path, change, words) -> None:
    uri = away("500")
    cache = asked(registry, tmp_path / "cache", uri)
    change(cache)
    with pytest.raises(TransientError, match=rf"(?s)does not answer.*{words}.*nothing is scored"):
        find_champion(Registry(uri, "tactful"), cache, NOW)


def test_a_champion_checked_just_within_a_day_acts(away, registry, tmp_path) -> None:
    uri = away("500")
    cache = asked(registry, tmp_path, uri)
    aged(23.999)(cache)
    assert find_champion(Registry(uri, "tactful"), cache, NOW).stale


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("PERMISSION_DENIED 403", "refuses"),
        ("401", "refuses"),
        ("404", "refuses"),
        ("RESOURCE_DOES_NOT_EXIST 404", "refuses"),
        ("{}", "no version of model 'tactful' is called 'champion'"),
    ],
)
def test_a_refusal_is_no_outage(away, registry, tmp_path, how, words) -> None:
    uri = away(how)
    cache = asked(registry, tmp_path, uri)
    with pytest.raises(InputError, match=words):
        find_champion(Registry(uri, "tactful"), cache, NOW)


def test_a_corrupt_version_is_no_outage(registry, tmp_path) -> None:
    """A whole copy lies in the cache, and is not what the registry now has."""
    find_champion(registry, tmp_path / "cache", NOW - timedelta(hours=1))
    source = Path(registry.client.get_model_version("tactful", "1").source.removeprefix("file://"))
    graph = source / "tactful" / "policy.onnx"
    kept = graph.read_bytes()
    try:
        graph.write_bytes(kept[:-1])
        with pytest.raises(InputError, match=r"tactful/policy\.onnx has SHA-256"):
            find_champion(registry, tmp_path / "cache", NOW)
    finally:
        graph.write_bytes(kept)


def test_a_locked_database_is_an_outage(made, tmp_path, monkeypatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    registry = Registry(f"sqlite:///{made / 'mlflow.db'}", "tactful")
    find_champion(registry, tmp_path, NOW - timedelta(hours=1))

    def locked(*_: object, **__: object) -> None:
        raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(registry.client, "search_model_versions", locked)
    assert find_champion(registry, tmp_path, NOW).stale


def test_a_call_has_its_time_and_its_errors_pass() -> None:
    assert within(5, "x", lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, "x", lambda: {}["absent"])
    with pytest.raises(TransientError, match=r"^http://x: does not answer \(not done within 0.1 s\)"):
        within(0.1, "http://u:p@x", lambda: time.sleep(2))


def test_what_the_user_set_is_left_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    _ = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "tactful").client
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
