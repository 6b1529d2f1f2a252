"""A log that does not fit: what the buffer holds, that it is the log, and that memory does not grow with it."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from models.batch import AHEAD, Draws, Held, rows_of
from models.contract import Contract
from models.errors import InputError
from models.reach import reach_within
from models.run import prepare
from models.scaling import Units
from models.stream import Pool, Survey, reach_of, sampled, survey
from models.table import Shards, Transitions, read
from models.train import train
from models.training import TrainConfig

CPU = torch.device("cpu")
BUCKETS = 12
CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5}, gamma_per_day=0.8, learners={"ddqn": 0.0, "cql": 1.0}, steps=600,
    batch_size=64, hidden=(32,), learning_rate=3e-3, target_rate=0.05, behaviour_steps=20, value_steps=20,
)  # fmt: skip


def write(path: Path, table: Transitions, bucket: np.ndarray) -> None:
    """A table of transitions with what the ETL would say of every row."""
    n, contract = len(table.user), table.contract
    columns: dict[str, Any] = {
        "user_id": table.user_id[table.user],
        "decision_id": [f"d{place}" for place in range(n)],
        "decided_at": pa.array(table.decided_at, pa.timestamp("us", "UTC")),
        "split": np.array(["train", "validation", "test"])[table.split],
        "action": np.array(contract.actions)[table.action],
        "legal": pa.array(table.legal.tolist()),
        "propensity": table.propensity,
        "propensity_source": ["logged"] * n,
        "elapsed_days": table.elapsed_days,
        "usable": np.ones(n, dtype=bool),
        **{name: getattr(table, name) for name in ("terminal", "truncated", "silent", "warm_up")},
        **{f"state_{name}": table.state[:, s] for s, name in enumerate(contract.features)},
        **{f"reward_{name}": table.reward[:, k] for k, name in enumerate(contract.rewards)},
        "bucket": bucket[table.user].astype(np.int32),
    }
    write_deltalake(str(path), pa.table(columns), partition_by=["bucket"])


@pytest.fixture(scope="module")
def log(world, tmp_path_factory) -> tuple[Path, Contract]:
    """Users of the known world in buckets of unequal size; the state's second feature is the row's own number."""
    table = world.log(users=400)
    numbered = np.column_stack([table.state, np.arange(len(table.user))]).astype(np.float32)
    contract = replace(table.contract, features=("f0", "number"))
    split = np.where(table.user % 5 == 0, 1, 0).astype(np.int8)
    path = tmp_path_factory.mktemp("stream") / "transitions"
    bucket = np.random.default_rng(1).choice(BUCKETS, 400, p=np.arange(1, BUCKETS + 1) / 78)
    write(path, replace(table, state=numbered, contract=contract, split=split), bucket)
    return path, contract


def pool_of(shards: Shards, capacity: int, seed: int = 0) -> Pool:
    return Pool(shards, survey(shards), capacity, 4, seed, CPU)


def number(states: torch.Tensor, found: Survey) -> np.ndarray:
    return np.rint(states[..., 1].double().numpy() * found.units.std[1] + found.units.mean[1]).astype(int)


def test_the_survey_says_what_one_look_at_everything_says(log) -> None:
    shards = Shards.of(*log)
    found, whole = survey(shards), read(*log)
    rows = rows_of(whole, "train")
    once = Units.of(whole, rows.all)
    for name in ("mean", "std", "reward", "covariance", "sigma"):
        assert getattr(found.units, name) == pytest.approx(getattr(once, name), rel=1e-6), name
    assert (sum(found.rows.values()), sum(found.target.values())) == (len(whole.user), rows.target.sum())
    run = prepare(whole, CONFIG, 0, progress=False)
    members, feed = run.members(), Held.of(run.data, run.training.target)
    for streamed, held in zip(reach_of(members, shards, found), reach_within(members, feed, whole), strict=True):
        assert (streamed.low, streamed.high) == pytest.approx((held.low, held.high), rel=1e-5)
        assert torch.allclose(streamed.level, held.level, rtol=1e-5)


def test_what_is_drawn_is_the_log(log) -> None:
    """Every row that may be drawn has its own state, action, reward and next state, wherever it lies in the ring."""
    shards, whole = Shards.of(*log), read(*log)
    place_of = {int(each): place for place, each in enumerate(whole.state[:, 1])}
    target, after = rows_of(whole, "train").target, whole.next_row
    with pool_of(shards, 500) as pool:
        drawn: Counter[int] = Counter()
        for step in (0, *pool.turns(60 * AHEAD)):
            pool.advance(step)
            batch = pool.data.at(pool.places.unsqueeze(0), torch.tensor([0.8]))
            places = np.array([place_of[each] for each in number(batch.state, pool.found)[0].tolist()])
            drawn.update(places.tolist())
            assert len(set(places.tolist())) == len(places)
            assert target[places].all()
            assert (batch.action[0].numpy() == whole.action[places]).all()
            assert batch.reward[0].numpy() == pytest.approx(whole.reward[places] / pool.found.units.sigma, rel=1e-5)
            follows = after[places] >= 0
            following = number(batch.next_state, pool.found)[0]
            assert (following[follows] == whole.state[after[places[follows]], 1]).all()
            wanted = np.where(whole.terminal[places], 0.0, 0.8 ** whole.elapsed_days[places])
            assert batch.discount[0].numpy() == pytest.approx(wanted, rel=1e-5)
        assert set(drawn) == set(np.flatnonzero(target))
        assert len(pool.data.state) <= 500


class Remembered(Shards):
    """Shards that are read from the disk once, so that many passes take no time."""

    tables: ClassVar[dict[tuple[str, int], Transitions]] = {}

    def read(self, bucket: int) -> Transitions:
        if (self.path, bucket) not in self.tables:
            self.tables[self.path, bucket] = super().read(bucket)
        return self.tables[self.path, bucket]


@pytest.fixture(scope="module")
def logs(world, log, tmp_path_factory) -> dict[str, Remembered]:
    """Buckets of unequal size, as in `log`, and 24 of equally many users; both numbered."""
    table = world.log(users=1200)
    numbered = np.column_stack([table.state, np.arange(len(table.user))]).astype(np.float32)
    contract = replace(table.contract, features=("f0", "number"))
    path = tmp_path_factory.mktemp("even") / "transitions"
    write(path, replace(table, state=numbered, contract=contract), np.arange(1200) % 24)
    return {"uneven": Remembered.of(*log), "even": Remembered.of(path, contract)}


@pytest.mark.parametrize(
    ("name", "ratio", "passes"),
    [("even", 2.5, 48), ("even", 3.0, 48), ("even", 6.2, 48), ("uneven", 2.0, 96), ("uneven", 3.5, 96)],
)
def test_every_row_is_drawn_equally_often(logs: dict[str, Remembered], name: str, ratio: float, passes: int) -> None:
    """By the numbers in what is drawn, by bucket: nothing of the buffer is looked at.

    Minibatches of 4: a bucket has fewer rows than the 256 that a block of 64 updates draws, so a turn takes one block
    on average, a pass over N buckets of n_b rows N blocks, and a row should be drawn d = 256 P / mean(n) times in P
    passes. Relative to that a bucket's mean draws a row are off by

    - chance: Poisson at most, a standard deviation of 1 / sqrt(n_b d);
    - turns that fall on whole blocks: both ends of each of P stays off by an error of sd 1 / sqrt(12) of a block, while
      a block draws a row 256 / W times, W the rows that may be drawn, and a pass 256 / mean(n) times; at worst
      sqrt(2 / 12) mean(n) / (min(W) sqrt(P));
    - the beginning and the end, where up to two stays of P are not whole: 1 / P each.
    """
    shards = logs[name]
    found = survey(shards)
    buckets, rows = len(found.rows), np.array(list(found.target.values()))
    largest = max(found.rows.values())
    steps = passes * buckets * AHEAD
    bucket_of = {
        int(each): bucket for bucket in found.rows for each in np.rint(shards.read(bucket).state[:, 1]).tolist()
    }
    drawn: Counter[int] = Counter()
    fewest = float("inf")
    with Pool(shards, found, int(ratio * largest), 4, 0, CPU) as pool:
        draws = Draws([pool], [0], 4)
        ends = sorted({0, steps, *pool.turns(steps)})
        for first, last in pairwise(ends):
            pool.advance(first)
            fewest = min(fewest, len(pool.places) / rows.mean())
            owner = np.array([bucket_of.get(each, -1) for each in number(pool.data.state, found).tolist()])
            for step in range(first, last):
                drawn.update(owner[draws.at(step)[0].numpy()].tolist())
    assert sum(drawn.values()) == 4 * steps
    a_row = np.array([drawn[bucket] / found.target[bucket] for bucket in found.rows])
    wanted = 4 * AHEAD * passes / rows.mean()
    chance, blocks = 1 / (rows * wanted), 2 / 12 / fewest**2 / passes
    assert (np.abs(a_row / wanted - 1) < 4 * np.sqrt(chance + blocks) + 2 / passes).all(), a_row / wanted


def test_every_bucket_stays_for_as_many_turns_and_a_turn_for_as_many_draws_a_row(log) -> None:
    """With K buckets held, turn j lasts W_j / K rows' worth of draws, W_j the rows that may be drawn during it."""
    shards = Remembered.of(*log)
    found = survey(shards)
    mean, largest = np.mean(list(found.target.values())), max(found.rows.values())
    with Pool(shards, found, 3 * largest + 5, 1, 7, CPU) as pool:
        assert pool.capacity == 3 * largest
        # Minibatches of 1: 64 draws a block, fewer than a bucket has rows on average, so one draw a row and pass.
        assert mean > AHEAD
        stays: Counter[int] = Counter()
        held, exact = [], 0.0
        pool.turns(20 * sum(found.target.values()))
        for turn in range(10 * len(found.rows)):
            slots = pool._held(turn)
            held.append({slot.visit: slot.bucket for slot in slots})
            stays.update(slot.visit for slot in slots)
            assert len({slot.bucket for slot in slots}) == 3
            assert pool.begins[turn] % AHEAD == 0
            assert abs(pool.begins[turn] - exact) <= AHEAD / 2
            exact += sum(found.target[slot.bucket] for slot in slots) / 3
        assert exact == pytest.approx(10 * sum(found.target.values()), rel=0.05)
        # From the third on: the first two are there from the beginning.
        assert {stays[visit] for visit in range(2, 10 * len(found.rows))} == {3}
        order = [held[visit][visit] for visit in range(10 * len(found.rows))]
        passes = [tuple(order[at : at + len(found.rows)]) for at in range(0, len(order), len(found.rows))]
        assert all(set(each) == set(found.rows) for each in passes)
        assert len(set(passes)) == 10


@pytest.mark.parametrize(("buckets", "held"), [(12, 2), (12, 11), (5, 3), (3, 2), (24, 13)])
def test_no_bucket_is_in_the_buffer_twice(buckets: int, held: int, log) -> None:
    sizes = dict.fromkeys(range(buckets), 10)
    shards, units = Shards.of(*log), survey(Shards.of(*log)).units
    for seed in range(5):
        with Pool(shards, Survey(units, sizes, sizes), 10 * held, 1, seed, CPU) as pool:
            for turn in range(6 * buckets):
                assert len({slot.bucket for slot in pool._held(turn)}) == held


def test_what_the_buffer_holds_is_a_function_of_the_update(log) -> None:
    shards = Shards.of(*log)
    with pool_of(shards, 500) as steady, pool_of(shards, 500) as resumed:
        turns = steady.turns(40 * AHEAD)
        for step in (0, *turns):
            steady.advance(step)
        resumed.advance(turns[-1])
        assert steady.eligible.keys() == resumed.eligible.keys()
        assert torch.equal(steady.places, resumed.places)
        assert torch.equal(steady.data.state[steady.places], resumed.data.state[resumed.places])


def test_a_buffer_for_everything_never_turns(log) -> None:
    shards = Shards.of(*log)
    with pool_of(shards, 10**6) as pool:
        assert pool.turns(1000) == ()
        pool.advance(0)
        pool.advance(999)
        assert len(pool.places) == sum(pool.found.target.values())
        assert pool.capacity == sum(pool.found.rows.values())


def test_a_bucket_that_does_not_fit_is_named(log) -> None:
    with pytest.raises(InputError, match=r"train.stream_rows is 100, but bucket \d+ alone has \d+ rows.*etl.buckets"):
        pool_of(Shards.of(*log), 100)


def test_optimal_values_are_recovered_from_a_stream(world, log) -> None:
    shards, contract = Shards.of(*log), log[1]
    table = sampled(shards, 500, 0)
    assert 500 <= len(table.user) < 1000
    config = replace(CONFIG, steps=2500, batch_size=128, stream_rows=500)

    def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
        return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]

    network = train(table, config, 0, greedy, False, shards=shards)["ddqn"].q_network
    assert contract.features == ("f0", "number")
    # The number says nothing: at its mean.
    q = network.raw(network(torch.tensor([[0.0, float("nan")], [1.0, float("nan")]])))[0].numpy()
    assert np.abs(q - world.optimal())[world.legal].max() < 0.3


PASSES = """
import sys
from pathlib import Path
import torch
from models.contract import Contract
from models.stream import Pool, survey
from models.table import Shards
torch.set_num_threads(1)
features = tuple(f"f{s}" for s in range(30))
shards = Shards.of(Path(sys.argv[1]), Contract(("hold", "send"), features, ("r0",)))
with Pool(shards, survey(shards), 50_000, 1024, 0, torch.device("cpu")) as pool:
    for step in (0, *pool.turns(2 * 64 * len(shards.buckets))):
        pool.advance(step)
        pool.data.at(pool.places[:1024].unsqueeze(0), torch.tensor([0.9]))
"""
TRAINING = """
import sys
from pathlib import Path
from models.contract import Contract
from models.stream import sampled
from models.table import Shards
from models.train import train
from models.training import TrainConfig
features = tuple(f"f{s}" for s in range(30))
shards = Shards.of(Path(sys.argv[1]), Contract(("hold", "send"), features, ("r0",)))
config = TrainConfig(
    weights={"r0": 1.0}, learners={"ddqn": 0.0}, steps=1024, batch_size=64, hidden=(8,),
    behaviour_steps=20, value_steps=20, stream_rows=50_000, device="cpu",
)
# Four buckets, of either log.
train(sampled(shards, 45_000, 0), config, 0, lambda q, behaviour, legal: legal / legal.sum(1)[:, None], False,
      shards=shards)
"""
PEAK = """
# The peak of this process alone: ru_maxrss begins with that of whoever started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_is_that_of_the_buffer_however_long_the_log(tmp_path: Path, table_of) -> None:
    """Peak over twenty times the buffer's rows against over twice as many as it holds: of two passes through the
    buffer, and of training from the clone to the values, which surveys every bucket and learns from sixteen turns."""
    rng = np.random.default_rng(0)
    # Allocators keep what was freed, up to 40 MB and by luck: as little of it as they can be told to.
    plain = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    env = {**os.environ, **plain}
    peaks: dict[str, list[int]] = {PASSES: [], TRAINING: []}
    for rows in (100_000, 1_000_000):
        users = np.repeat(np.arange(rows // 10), 10)
        table = table_of(
            users.tolist(), state=rng.normal(size=(rows, 30)), reward=rng.normal(size=rows),
            action=rng.integers(2, size=rows),
        )  # fmt: skip
        buckets = rows // 12_500
        write(tmp_path / str(rows), table, rng.integers(buckets, size=rows // 10))
        for script, found in peaks.items():
            done = subprocess.run(
                [sys.executable, "-c", script + PEAK, str(tmp_path / str(rows))],
                capture_output=True, text=True, check=True, env=env,
            )  # fmt: skip
            found.append(1024 * int(done.stdout))
    # Held whole, the 900,000 further rows would be 120 MB more; what grows are the names of eighty files.
    for small, large in peaks.values():
        assert large - small < 120_000_000 / 4
        assert large < 1.1 * small


def test_the_survey_tells_rows_of_every_bucket_apart(world, tmp_path: Path) -> None:
    """Rewards negated in the buckets that are not sampled: the sample is the same, what passes through is not."""
    table, bucket = world.log(users=400), np.arange(400) % BUCKETS
    write(tmp_path / "one", table, bucket)
    one = Shards.of(tmp_path / "one", table.contract)
    unseen = np.random.default_rng(0).permutation(one.buckets)[6:]
    reward = table.reward * np.where(np.isin(bucket[table.user], unseen), -1.0, 1.0)[:, None]
    write(tmp_path / "two", replace(table, reward=reward), bucket)
    two = Shards.of(tmp_path / "two", table.contract)
    assert sampled(one, 200, 0).fingerprint == sampled(two, 200, 0).fingerprint
    assert survey(one).fingerprint == survey(one).fingerprint != survey(two).fingerprint
