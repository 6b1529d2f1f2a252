"""The learner on a CUDA device: what it computes, and that what is recorded is what would be done singly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.recorded
from benchmarks.train_equal import case, networks_of
from models.batch import AHEAD, Held
from models.blocks import Block, blocks_of
from models.distributed import Group
from models.errors import InputError
from models.fqe import fit_fqe
from models.learn import Keep, learn
from models.learners import ddqn_cql
from models.members import Learner
from models.reach import reach_within
from models.recorded import PRECISIONS, WARM_UP, Precision, products
from models.run import Run, prepare
from models.table import Transitions
from models.train import train
from models.training import TrainConfig
from models.watch import Seen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

STEPS = AHEAD + 3 * WARM_UP
"""Into a second block of drawn minibatches."""
CLOSE = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
"""Of loss, TD error and gap, relative; 24, 11 and 8 bits of a factor's fraction."""
ALIKE = {"float32": 1 - 1e-9, "tf32": 0.999, "bf16": 0.99}
"""Cosine of a gradient and the exact one."""
CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=0.8,
    learners={
        "ddqn": 0.0,
        "cql": Learner(alpha=2.0, learning_rate=3e-3, gamma_per_day=0.9, target_rate=0.2),
        "push_down": Learner(alpha=0.5, penalty="push_down", weights={"r0": -0.2, "r1": 1.0}),
        "iql": Learner(kind="iql", expectile=0.8),
        "awr": Learner(kind="iql", policy="awr", learning_rate=5e-4),
    },
    seeds=2,
    steps=STEPS,
    batch_size=32,
    hidden=(16, 16),
    checks=3,
    behaviour_steps=20,
    value_steps=40,
    device="cuda",
)


@pytest.fixture(scope="module")
def run(world) -> Run:
    return prepare(world.log(users=200), CONFIG, 0, progress=False)


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]


def in_blocks(run: Run) -> list[Block]:
    feed = Held.of(run.data, run.training.target)
    members = run.members()
    return blocks_of(
        members, run.config, feed, torch.stack([each.level for each in reach_within(members, feed, run.table)])
    )


def updated(run: Run) -> list[dict[str, torch.Tensor]]:
    """Every parameter, moment and term of each block after STEPS updates."""
    found = []
    for block in in_blocks(run):
        for step in range(STEPS):
            terms, _ = block.update(step, Group())
        found.append({**block.parts(), "loss": terms.loss, "q": terms.q})
    return [{name: part.detach().cpu().clone() for name, part in each.items()} for each in found]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_and_gradients_are_those_of_the_cpu_in_double_precision(precision: Precision) -> None:
    given = case(torch.float64, features=32, hidden=256, rows=1024)
    wanted = differentiated(given)
    device = {name: each.cuda().float() if each.is_floating_point() else each.cuda() for name, each in given.items()}
    with products(precision):
        found = differentiated(device)
    for name, part in found.items():
        exact = wanted[name]
        if name in ("loss", "td", "gap"):
            assert float(((part - exact) / exact).abs().max()) < CLOSE[precision], name
        cosine = float((part * exact).sum() / (part.norm() * exact.norm()))
        assert cosine > ALIKE[precision], f"{name}: {cosine}"
        if precision == "float32":
            assert float((part - exact).abs().max() / exact.abs().max()) < CLOSE[precision], name


def differentiated(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    networks, batch, settings = networks_of(given)
    terms = ddqn_cql(networks, batch, settings)
    parameters = dict(networks.online.named_parameters())
    gradients = torch.autograd.grad(terms.loss.sum(), list(parameters.values()))
    named = {"loss": terms.loss, "td": terms.td, "gap": terms.gap, **dict(zip(parameters, gradients, strict=True))}
    return {name: part.detach().cpu().double() for name, part in named.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_recorded_update_is_the_single_one(run: Run, monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    run = replace(run, config=replace(CONFIG, precision=precision))
    recorded = updated(run)
    monkeypatch.setattr(models.recorded, "WARM_UP", 10**9)
    single = updated(run)
    assert len(recorded) == len(single) == 3
    for one, other in zip(recorded, single, strict=True):
        assert one.keys() == other.keys()
        for name, part in one.items():
            assert torch.equal(part, other[name]), name


def test_the_comparison_tells_one_update_from_another(run: Run) -> None:
    """Else a graph that reads its rows, its rate or its count once and for all would pass."""
    first, second = updated(run)[0], updated(replace(run, config=replace(CONFIG, learning_rate=1.1e-3)))[0]
    assert not torch.equal(first["online.weights.0"], second["online.weights.0"])
    block = in_blocks(run)[0]
    before = [part.detach().clone() for part in block.parts().values()]
    for step in range(WARM_UP + 3):
        block.update(step, Group())
        now = [part.detach().clone() for part in block.parts().values()]
        assert not any(torch.equal(part, other) for part, other in zip(now, before, strict=True)), step
        before = now


def test_fused_operations_compute_the_same(run: Run) -> None:
    pytest.importorskip("triton")
    plain, fused = updated(run), updated(replace(run, config=replace(CONFIG, compile=True)))
    for one, other in zip(plain, fused, strict=True):
        for name, part in one.items():
            # Sums in another order, and Adam divides by roots of small ones.
            assert torch.allclose(part, other[name], rtol=1e-3, atol=1e-3), name


def test_each_member_learns_together_what_it_learns_alone(run: Run) -> None:
    together = [
        {name: part[index] for name, part in block.items()}
        for block, whole in zip(updated(run), in_blocks(run), strict=True)
        for index in range(len(whole.members))
    ]
    for member, found in zip(run.members(), together, strict=True):
        feed = Held.of(run.data, run.training.target)
        (block,) = blocks_of(
            [member], run.config, feed, torch.stack([reach_within([member], feed, run.table)[0].level])
        )
        for step in range(STEPS):
            block.update(step, Group())
        for name, part in block.parts().items():
            assert torch.allclose(part[0].detach().cpu(), found[name], rtol=1e-4, atol=1e-4), f"{member.label} {name}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_optimal_values_are_recovered(world, precision: Precision) -> None:
    config = replace(
        CONFIG,
        learners={"ddqn": 0.0},
        seeds=1,
        steps=1500,
        batch_size=256,
        hidden=(32,),
        learning_rate=3e-3,
        target_rate=0.05,
        behaviour_steps=400,
        value_steps=800,
        precision=precision,
    )
    found = train(world.log(users=500), config, 0, greedy, progress=False)
    # The tolerances of the same test on a CPU, whatever the precision.
    network = found["ddqn"].q_network
    state = torch.tensor([[0.0], [1.0]])
    assert np.abs(network.raw(network(state))[0].numpy() - world.optimal())[world.legal].max() < 0.15
    values = found["ddqn"].values
    assert np.abs(values.raw(values(state))[0].numpy() - world.optimal())[world.legal].max() < 0.2


def test_a_policy_is_valued_as_on_a_cpu(world) -> None:
    """Other minibatches, the same values: each within its noise of the truth."""
    table: Transitions = world.log(users=500)
    policy = np.full((1, len(table.user), 3), 1 / 3, dtype=np.float32) * table.legal
    policy = policy / policy.sum(axis=-1, keepdims=True)
    policy = np.where((table.next_row >= 0)[None, :, None], np.roll(policy, -1, axis=1), 0.0)
    rows = np.ones((1, len(table.user)), dtype=np.bool_)
    cpu, cuda = (
        fit_fqe(table, rows, policy.astype(np.float32), 2000, 0.8, None, 0, (32,), device=torch.device(name))()
        for name in ("cpu", "cuda")
    )
    seen = table.legal & ~np.isnan(cuda[0]).any(axis=-1)
    assert np.abs(cpu - cuda)[0][seen].max() < 0.25


def test_a_killed_run_goes_on(run: Run, tmp_path: Path) -> None:
    def learned(steps: int | None = None, keep: Keep | None = None) -> list[Seen]:
        members, feed = run.members(), Held.of(run.data, run.training.target)
        stop = stopping(steps) if steps else None
        return learn(members, CONFIG, feed, reach_within(members, feed, run.table), keep=keep, on_point=stop)

    whole = learned()
    keep = Keep(tmp_path / "checkpoint.safetensors", {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        learned(60, keep)
    gone_on = learned(keep=keep)
    for one, other in zip(whole, gone_on, strict=True):
        assert one.kept is not None
        assert other.kept is not None
        for part, same in zip(one.kept.network.parameters(), other.kept.network.parameters(), strict=True):
            assert torch.allclose(part, same, rtol=1e-4, atol=1e-4)


def stopping(after: int) -> Callable[[str, int, dict[str, float]], None]:
    def stop(_: str, step: int, __: dict[str, float]) -> None:
        if step >= after:
            raise KeyboardInterrupt

    return stop


def test_a_device_that_is_too_small_says_what_to_lower(world) -> None:
    config: dict[str, Any] = {"batch_size": 2**17, "hidden": (4096, 4096)}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**32 / total))
    try:
        with pytest.raises(InputError, match=r"training 10 members: .*out of memory.*lower train.batch_size \(13"):
            train(world.log(users=100), replace(CONFIG, **config, behaviour_steps=1), 0, greedy, progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("made", ["tensor", None])
def test_work_is_recorded_once_whatever_it_returns(made: str | None) -> None:
    device, calls = torch.device("cuda"), 0
    total = torch.zeros(4, dtype=torch.int64, device=device)

    def work(rows: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        total.add_(rows)
        return total if made else None

    recorded: models.recorded.Recorded[torch.Tensor | None] = models.recorded.Recorded(device)
    for number in range(10):
        recorded(work, torch.arange(4, device=device) + number)
    # Three calls as they are and one that is recorded; 0 + 1 + ... + 9 = 45, and ten times the place.
    assert calls == WARM_UP + 1
    assert total.tolist() == [45, 55, 65, 75]
