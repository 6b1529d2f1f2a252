"""Versions of a learned reward: numbered, whole or not there, and never changed unnoticed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.errors import InputError, TransientError
from models.rewards import store

FACTS = {"rewards": ["clicks"], "weights": {"clicks": 1.5}}


def test_versions_are_numbered_and_read_back(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6.0).reshape(2, 3).T}
    first = store.add(tmp_path, "people", "weights", FACTS, {})
    second = store.add(tmp_path, "people", "network", {"sigma": 2.0}, tensors)
    assert (first.version, second.version) == (1, 2)
    assert store.versions(tmp_path, "people") == [1, 2]
    assert store.read(tmp_path, "people", 1) == first
    newest = store.read(tmp_path, "people")
    assert (newest.kind, newest.facts) == ("network", {"sigma": 2.0})
    assert torch.equal(newest.tensors["w"], tensors["w"])
    assert store.versions(tmp_path, "nobody") == []


def test_what_a_killed_writer_left_is_no_version(tmp_path: Path) -> None:
    store.add(tmp_path, "people", "weights", FACTS, {})
    left = tmp_path / "people" / ".v0002.partial"
    left.mkdir()
    (left / "reward.json").write_text("{")
    assert store.versions(tmp_path, "people") == [1]
    assert store.add(tmp_path, "people", "weights", FACTS, {}).version == 2
    assert not left.exists()


def test_nothing_is_written_where_a_fact_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.add(tmp_path, "people", "weights", {"sigma": float("nan")}, {})
    assert store.versions(tmp_path, "people") == []


def change_tensors(folder: Path) -> None:
    path = folder / "reward.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def change_kind(folder: Path) -> None:
    told = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps({**told, "kind": "table"}))


def remove_tensors(folder: Path) -> None:
    (folder / "reward.safetensors").unlink()


def break_facts(folder: Path) -> None:
    (folder / "reward.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_tensors, "its SHA-256 is not the one written with it"),
        (remove_tensors, "its SHA-256 is not the one written with it"),
        (change_kind, "kind is 'table'; it must be one of weights, network, goal"),
        (break_facts, "no whole learned reward"),
    ],
)
def test_a_version_that_is_not_what_was_written(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    store.add(tmp_path, "people", "network", {}, {"w": torch.ones(2)})
    spoil(tmp_path / "people" / "v0001")
    with pytest.raises(InputError, match=message):
        store.read(tmp_path, "people")


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a/b", "../a", "a b"])
def test_a_name_must_be_that_of_a_column(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name for a reward"):
        store.add(tmp_path, name, "weights", FACTS, {})


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no learned reward"):
        store.read(tmp_path, "people")
    store.add(tmp_path, "people", "weights", FACTS, {})
    with pytest.raises(InputError, match="no version 7; there are 1"):
        store.read(tmp_path, "people", 7)


def test_of_two_writers_at_once_one_writes_and_the_other_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, processes = Path.rename, iter(range(100, 200))
    monkeypatch.setattr(store.os, "getpid", lambda: next(processes))

    def late(self: Path, target: Path) -> Path:
        # The other one was quicker.
        monkeypatch.setattr(Path, "rename", really)
        store.add(tmp_path, "people", "weights", {**FACTS, "who": "first"}, {})
        return really(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(TransientError, match="another command wrote version 1 meanwhile; run this one again"):
        store.add(tmp_path, "people", "weights", {**FACTS, "who": "second"}, {})
    assert store.read(tmp_path, "people").facts["who"] == "first"
    assert store.add(tmp_path, "people", "weights", FACTS, {}).version == 2
    assert sorted(path.name for path in (tmp_path / "people").iterdir()) == ["v0001", "v0002"]
