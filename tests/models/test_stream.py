"""A log that does not fit: what the buffer holds, that it is the log, and that memory does not grow with it."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from models.batch import AHEAD, Held, rows_of
from models.contract import Contract
from models.errors import InputError
from models.scaling import Units
from models.stream import Pool, Survey, reach_of, sampled, survey
from models.table import Shards, Transitions, read
from models.train import prepare, train
from models.training import TrainConfig
from models.watch import reach_within

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
    for streamed, held in zip(reach_of(members, shards, found), reach_within(members, feed), strict=True):
        assert (streamed.low, streamed.high) == pytest.approx((held.low, held.high), rel=1e-5)
        assert torch.allclose(streamed.level, held.level, rtol=1e-5)


def test_what_is_drawn_is_the_log(log) -> None:
    """Every row that may be drawn has its own state, action, reward and next state, wherever it lies in the ring."""
    shards, whole = Shards.of(*log), read(*log)
    place_of = {int(each): place for place, each in enumerate(whole.state[:, 1])}
    target, after = rows_of(whole, "train").target, whole.next_row
    with pool_of(shards, 500) as pool:
        drawn: Counter[int] = Counter()
        for step in range(0, 40 * pool.every, pool.every):
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
        assert sum(slot.rows for slot in pool.held) <= 500


def test_every_bucket_passes_through_once_a_pass(log) -> None:
    with pool_of(Shards.of(*log), 500) as pool:
        first = len(pool.held)
        for step in range(0, 10 * BUCKETS * pool.every, pool.every):
            pool.advance(step)
        buckets = [pool._visited(visit) for visit in range(pool.visits)]
        assert pool.visits == first + 10 * BUCKETS - 1
        assert all(set(buckets[at : at + BUCKETS]) == set(pool.found.rows) for at in range(0, 9 * BUCKETS, BUCKETS))
        assert pool.every % AHEAD == 0
        # As many draws between two turns as a bucket has rows, to the nearest whole block of updates, one at least.
        assert pool.every == AHEAD * max(1, round(sum(pool.found.target.values()) / BUCKETS / 4 / AHEAD))


def test_what_the_buffer_holds_is_a_function_of_the_update(log) -> None:
    shards = Shards.of(*log)
    with pool_of(shards, 500) as steady, pool_of(shards, 500) as resumed:
        for step in range(0, 30 * steady.every, steady.every):
            steady.advance(step)
        resumed.advance(29 * resumed.every)
        assert steady.held == resumed.held
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


MEASURE = """
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
    for step in range(0, 2 * len(shards.buckets) * pool.every, pool.every):
        pool.advance(step)
        pool.data.at(pool.places[:1024].unsqueeze(0), torch.tensor([0.9]))
# The peak of this process alone: ru_maxrss begins with that of whoever started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_is_that_of_the_buffer_however_long_the_log(tmp_path: Path, table_of) -> None:
    """Peak of the process over twenty times the buffer's rows against over twice as many as it holds."""
    rng = np.random.default_rng(0)
    peaks = []
    for rows in (100_000, 1_000_000):
        users = np.repeat(np.arange(rows // 10), 10)
        table = table_of(
            users.tolist(), state=rng.normal(size=(rows, 30)), reward=rng.normal(size=rows),
            action=rng.integers(2, size=rows),
        )  # fmt: skip
        buckets = rows // 12_500
        write(tmp_path / str(rows), table, rng.integers(buckets, size=rows // 10))
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / str(rows))], capture_output=True, text=True, check=True
        )
        peaks.append(1024 * int(done.stdout))
    # Held whole, the 900,000 further rows would be 120 MB more; what grows are the names of eighty files.
    assert peaks[1] - peaks[0] < 120_000_000 / 4
    assert peaks[1] < 1.1 * peaks[0]
