"""Each kind of bad input through `train` itself: what is said, or what is done about it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import InputError, TransientError
from models.members import Learner
from models.stream import sampled
from models.table import Shards, Transitions, read
from models.train import train
from models.training import TrainConfig
from tests.models.distributed_driver import Kept, greedy
from tests.models.test_stream import write

CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=0.8,
    learners={"ddqn": 0.0, "iql": Learner(kind="iql", policy="awr")},
    steps=20,
    batch_size=16,
    hidden=(8,),
    checks=2,
    behaviour_steps=5,
    value_steps=5,
    device="cpu",
)


def log_of(world: Any) -> Transitions:
    """Every third user validates, every fifth other one is for the test; a second feature, noise."""
    table = world.log(users=90)
    noise = np.random.default_rng(1).normal(0, 0.5, size=(len(table.user), 1)).astype(np.float32)
    split = np.where(table.user % 3 == 0, 1, np.where(table.user % 5 == 0, 2, 0)).astype(np.int8)
    contract = replace(table.contract, features=("f0", "noise"))
    return replace(table, contract=contract, state=np.hstack([table.state, noise]), split=split)


def noise(value: float, split: int | None = None) -> Callable[[Transitions], Transitions]:
    """The second feature with `value` in one row of a split, or everywhere."""

    def changed(table: Transitions) -> Transitions:
        state = table.state.copy()
        state[slice(None) if split is None else np.flatnonzero(table.split == split)[3], 1] = value
        return replace(table, state=state)

    return changed


def never(component: int) -> Callable[[Transitions], Transitions]:
    """Nothing is ever paid of one component."""
    return lambda table: replace(table, reward=np.where(np.arange(2) == component, 0.0, table.reward))


def without(action: int) -> Callable[[Transitions], Transitions]:
    """The log of those who never took an action; where they did, it ends."""

    def changed(table: Transitions) -> Transitions:
        left = table.where(table.action != action)
        return replace(left, truncated=~left.terminal & (np.diff(left.user, append=-1) != 0))

    return changed


BAD: dict[str, tuple[Callable[[Transitions], Transitions], str]] = {
    "unknown everywhere": (noise(np.nan), r"features: 'noise' is always unknown in \d+ training rows.*remove it from"),
    "infinite": (noise(np.inf, 0), r"features: 'noise' is infinite in 1 of \d+ training rows; correct the log"),
    "-infinite": (noise(-np.inf, 0), r"features: 'noise' is infinite in 1 of \d+ training rows; correct the log"),
    "infinite, validation": (noise(np.inf, 1), r"features: 'noise' is infinite in 1 rows of other splits; correct"),
    "infinite, test": (noise(np.inf, 2), r"features: 'noise' is infinite in 1 rows of other splits; correct"),
    "extreme, test": (noise(3e38, 2), r"features: 'noise' is 3e\+38 in a row.*beyond the 3.4.* that can be kept"),
    "constant": (noise(4.0), r"features: 'noise' is always 4 in \d+ training rows.*remove it from"),
    "first component 0": (never(0), r"train.weights.r0 is 1.0, but reward r0 is 0 in all \d+.*set its weight to 0"),
    "second component 0": (never(1), r"train.weights.r1 is 0.5, but reward r1 is 0 in all \d+.*set its weight to 0"),
    **{
        f"without {name}": (
            without(a),
            f"actions: '{name}' is legal in the training rows and taken in none of .*remove it from `actions`",
        )
        for a, name in enumerate(("hold", "send", "push"))
    },
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", list(BAD))
def test_a_log_that_cannot_be_learned_from_is_refused(world, tmp_path: Path, name: str, streamed: bool) -> None:
    change, message = BAD[name]
    table = change(log_of(world))
    if not streamed:
        with pytest.raises(InputError, match=message):
            train(table, CONFIG, 0, greedy, progress=False)
        return
    write(tmp_path / "log", table, np.arange(90) % 6)
    shards = Shards.of(tmp_path / "log", table.contract)
    config = replace(CONFIG, stream_rows=len(table.user))
    with pytest.raises(InputError, match=message):
        train(sampled(shards, config.stream_rows, 0), config, 0, greedy, progress=False, shards=shards)


@pytest.mark.parametrize(("half", "value"), [(True, -1e6), (False, 3e38)])
def test_an_extreme_feature_that_streams_is_named_before_anything_is_learned(
    world, tmp_path: Path, half: bool, value: float
) -> None:
    """In a bucket that is not read all at once, of a user who trains nothing."""
    table = log_of(world)
    config = replace(CONFIG, stream_rows=len(table.user) // 2, half_precision=half)
    write(tmp_path / "clean", table, np.arange(90) % 6)
    held = set(sampled(Shards.of(tmp_path / "clean", table.contract), config.stream_rows, 0).user_id)
    elsewhere = [user for user in range(90) if table.user_id[user] not in held]
    row = np.flatnonzero(np.isin(table.user, elsewhere) & (table.split == 2))[0]
    table.state[row, 1] = value
    write(tmp_path / "log", table, np.arange(90) % 6)
    shards = Shards.of(tmp_path / "log", table.contract)
    told: list[int] = []
    with pytest.raises(InputError, match=rf"features: 'noise' is {value:g} in a row".replace("+", r"\+")):
        train(sampled(shards, config.stream_rows, 0), config, 0, greedy, False, lambda *at: told.append(at[0]),
              shards=shards)  # fmt: skip
    assert told == []


def test_features_unknown_now_and_then_are_learned_from(world) -> None:
    table = log_of(world)
    unknown = np.random.default_rng(0).random(table.state.shape) < 0.3
    found = train(replace(table, state=np.where(unknown, np.float32(np.nan), table.state)), CONFIG, 0, greedy, False)
    for each in found.values():
        assert torch.isfinite(each.q_network(torch.tensor([[float("nan"), float("nan")]]))).all()


@pytest.mark.parametrize(("share", "streamed"), [(0, False), (0.5, False), (0.99, False), (0, True), (0.1, True)])
def test_a_shard_cut_short_is_named(world, tmp_path: Path, share: float, streamed: bool) -> None:
    table = log_of(world)
    write(tmp_path / "log", table, np.arange(90) % 6)
    shards = Shards.of(tmp_path / "log", table.contract)
    (cut,) = (tmp_path / "log" / "bucket=4").glob("*.parquet")
    message = r"log: bucket 4 of version 0 cannot be read \(.*\); restore its files, or make the table anew"

    def shorten() -> None:
        whole = cut.read_bytes()
        cut.write_bytes(whole[: int(share * len(whole))])

    if not streamed:
        shorten()
        with pytest.raises(InputError, match=message):
            train(read(tmp_path / "log", table.contract), CONFIG, 0, greedy, progress=False)
        return
    config = replace(CONFIG, stream_rows=len(table.user) // 2)
    sample = sampled(shards, config.stream_rows, 0)
    shorten()
    with pytest.raises(InputError, match=message):
        train(sample, config, 0, greedy, progress=False, shards=shards)


def test_a_disk_full_at_a_checkpoint_says_how_much_was_wanted(world, tmp_path: Path) -> None:
    """By the device that is always full; then with room again."""
    table, path = log_of(world), tmp_path / "learn.safetensors"

    def once() -> dict[str, Any]:
        return train(table, CONFIG, 0, greedy, False, assess_of=lambda _: Kept(table), checkpoint=path)

    path.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(TransientError, match=r"learn.safetensors: no space for a checkpoint of [\d,]+ bytes"):
        once()
    assert list(tmp_path.iterdir()) == []
    once()
    assert path.exists()


def test_a_checkpoint_of_another_contract_is_left_aside_with_a_word(world, tmp_path: Path, caplog: Any) -> None:
    table, path = log_of(world), tmp_path / "learn.safetensors"
    train(table, CONFIG, 0, greedy, False, checkpoint=path)
    renamed = replace(table, contract=replace(table.contract, features=("f0", "other")))
    with caplog.at_level(logging.WARNING, logger="tactful"):
        found = train(renamed, CONFIG, 0, greedy, False, checkpoint=path)
    assert "of a run with another contract; training starts anew" in caplog.text
    assert found["ddqn"].contract.features == ("f0", "other")


def test_a_checkpoint_cut_short_says_what_to_do(world, tmp_path: Path) -> None:
    table, path = log_of(world), tmp_path / "learn.safetensors"
    train(table, CONFIG, 0, greedy, False, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"learn.safetensors: no whole checkpoint .*; remove it, and training starts"):
        train(table, CONFIG, 0, greedy, False, checkpoint=path)


LOWER = r"training 2 members: CUDA .* Tried to allocate 9.00 GiB; lower train.batch_size \(16\), train.hidden"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "run.Resident.of",
            r"no room for \d+ transitions \(CUDA .* allocate 9.00 GiB\); set train.half_precision",
        ),
        *(
            (where, LOWER)
            for where in (
                "train.clone_behaviour",
                "train.learn",
                "selection.together",
                "selection.lower_bound",
                "train.fit_fqe",
            )
        ),
    ],
)
def test_a_device_that_is_too_small_says_what_was_asked_for(world, monkeypatch: Any, where: str, message: str) -> None:
    def small(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has a total capacity of")

    monkeypatch.setattr(f"models.{where}", small)
    with pytest.raises(InputError, match=message):
        train(log_of(world), CONFIG, 0, greedy, progress=False)


def test_a_device_that_is_too_small_for_the_buffer_says_so(world, tmp_path: Path, monkeypatch: Any) -> None:
    def small(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    table = log_of(world)
    write(tmp_path / "log", table, np.arange(90) % 6)
    shards = Shards.of(tmp_path / "log", table.contract)
    config = replace(CONFIG, stream_rows=len(table.user) // 2)
    monkeypatch.setattr("models.train.Pool", small)
    with pytest.raises(InputError, match=rf"Tried to allocate 9.00 GiB; .*train.stream_rows \({config.stream_rows}\)"):
        train(sampled(shards, config.stream_rows, 0), config, 0, greedy, progress=False, shards=shards)
