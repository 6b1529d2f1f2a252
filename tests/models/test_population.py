"""Members never meet: together, in blocks or alone, each learns the same."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

import models.blocks
from models.batch import Held
from models.blocks import Block, blocks_of
from models.distributed import Group
from models.learn import learn
from models.members import Learner, Member
from models.network import restored
from models.reach import reach_within
from models.run import Run, prepare
from models.training import TrainConfig
from models.watch import Seen

STEPS = 50
CLOSE = 1e-5
"""Sums of 32-bit numbers in another order, 50 updates on."""
LEARNERS: dict[str, float | Learner] = {
    "plain": 0.0,
    "cql": Learner(alpha=2.0, learning_rate=3e-3, gamma_per_day=0.9),
    "push_down": Learner(alpha=0.5, penalty="push_down", target_rate=0.2),
    "other_weights": Learner(alpha=0.3, weights={"r0": -0.2, "r1": 1.0}),
    "iql": Learner(kind="iql", expectile=0.6),
    "iql_high": Learner(kind="iql", expectile=0.95, learning_rate=5e-4, weights={"r1": 2.0}),
    "awr": Learner(kind="iql", policy="awr", temperature=3.0),
    "awr_slow": Learner(kind="iql", policy="awr", target_rate=0.001, gamma_per_day=0.7),
    "between": Learner(alpha=1.0, learning_rate=1e-2),
}


@pytest.fixture(scope="module")
def run(world) -> Run:
    torch.set_num_threads(1)
    config = TrainConfig(
        weights={"r0": 1.0, "r1": 0.5},
        gamma_per_day=0.8,
        learners=LEARNERS,
        seeds=2,
        steps=STEPS,
        batch_size=32,
        hidden=(16, 16),
        checks=2,
        device="cpu",
    )
    return prepare(world.log(users=100), config, 0, progress=False)


def drawing(run: Run, how: str) -> list[Member]:
    """The run's members: all on one stream of minibatches, those of a seed on one, or each on its own."""
    members = run.members()
    if how == "shared":
        return [replace(each, draws=11) for each in members]
    if how == "own":
        return [replace(each, draws=100 + place) for place, each in enumerate(members)]
    return members


def in_blocks(run: Run, members: Sequence[Member]) -> list[Block]:
    feed = Held.of(run.data, run.training.target)
    return blocks_of(
        members, run.config, feed, torch.stack([each.level for each in reach_within(members, feed, run.table)])
    )


def updated(run: Run, members: Sequence[Member]) -> list[dict[str, torch.Tensor]]:
    """Every parameter and moment of each member after STEPS updates of its block."""
    found: list[dict[str, torch.Tensor]] = []
    for block in in_blocks(run, members):
        for step in range(STEPS):
            block.update(step, Group())
        for index in range(len(block.members)):
            found.append({name: part[index].detach().clone() for name, part in block.parts().items()})
    return found


def learned(run: Run, members: Sequence[Member]) -> list[Seen]:
    feed = Held.of(run.data, run.training.target)
    reach = reach_within(members, feed, run.table)
    return learn(members, run.config, feed, reach, run.held_out(run.training.target))


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], name: str) -> None:
    assert found.keys() == wanted.keys()
    for key, part in found.items():
        assert torch.allclose(part, wanted[key], rtol=CLOSE, atol=CLOSE), f"{name}: {key}"


@pytest.mark.parametrize("how", ["shared", "by seed", "own"])
def test_each_member_learns_together_what_it_learns_alone(run, how) -> None:
    members = drawing(run, how)
    together = updated(run, members)
    for member, found in zip(members, together, strict=True):
        (alone,) = updated(run, [member])
        assert_close(found, alone, member.name)


def test_no_two_members_learn_the_same(run) -> None:
    """Else the tests here would hold of members that all copy the first."""
    members = drawing(run, "shared")
    kinds: dict[tuple[str, ...], list[torch.Tensor]] = {}
    for found in updated(run, members):
        kinds.setdefault(tuple(found), []).append(found["online.biases.2"])
    assert [len(each) for each in kinds.values()] == [10, 4, 4]
    for each in kinds.values():
        for place, first in enumerate(each):
            assert all((first - other).abs().max() > 100 * CLOSE for other in each[:place])


def test_curves_and_what_is_kept_are_those_of_one_alone(run) -> None:
    members = run.members()
    for member, found in list(zip(members, learned(run, members), strict=True))[::2]:
        (alone,) = learned(run, [member])
        assert found.kept is not None
        assert alone.kept is not None
        assert found.kept.step == alone.kept.step == STEPS
        assert_close(dict(found.kept.network.named_parameters()), dict(alone.kept.network.named_parameters()), "kept")
        assert np.array_equal(found.kept.weights, alone.kept.weights)
        assert len(found.curve) == STEPS
        for point, other in zip(found.curve, alone.curve, strict=True):
            assert point == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("room", "blocks"), [(1, 18), (3, 8), (1000, 4)])
def test_blocks_are_the_same_population(run, monkeypatch, room, blocks) -> None:
    members = drawing(run, "by seed")
    monkeypatch.setattr(models.blocks, "LAYER_BYTES", 2**40)
    whole = updated(run, members)
    # Room for so many members: 4 bytes x the widest layer x the minibatch each.
    monkeypatch.setattr(models.blocks, "LAYER_BYTES", room * 4 * 16 * 32)
    found = in_blocks(run, members)
    # Double DQN with and without penalty, iql, awr, and Double DQN again: 8, 4, 4 and 2 members.
    assert len(found) == blocks
    assert [member for block in found for member in block.members] == members
    assert max(len(block.members) for block in found) <= room
    for member, one, other in zip(members, updated(run, members), whole, strict=True):
        assert_close(one, other, member.name)


def test_what_blocks_keep_is_in_the_order_of_the_members(run, monkeypatch) -> None:
    members = run.members()
    whole = updated(run, members)
    monkeypatch.setattr(models.blocks, "LAYER_BYTES", 3 * 4 * 16 * 32)
    for member, seen, wanted in zip(members, learned(run, members), whole, strict=True):
        assert seen.kept is not None
        acts = "actor" if member.actor else "online"
        kept = {f"{acts}.{key}": part[0] for key, part in seen.kept.network.named_parameters()}
        assert_close(kept, {key: wanted[key] for key in kept}, member.name)


@pytest.mark.parametrize("how", ["shared", "own"])
def test_members_learn_the_same_on_several_threads(run, how) -> None:
    members = drawing(run, how)
    one, two = (learned(replace(run, config=replace(run.config, threads=threads)), members) for threads in (1, 3))
    for member, found, wanted in zip(members, two, one, strict=True):
        assert found.kept is not None
        assert wanted.kept is not None
        assert_close(
            dict(found.kept.network.named_parameters()), dict(wanted.kept.network.named_parameters()), member.name
        )
        assert [point["step"] for point in found.curve] == [point["step"] for point in wanted.curve]


def test_the_order_of_members_does_not_matter(run) -> None:
    members = drawing(run, "own")
    order = np.random.default_rng(0).permutation(len(members))
    straight = updated(run, members)
    for place, found in zip(order, updated(run, [members[place] for place in order]), strict=True):
        assert_close(found, straight[place], members[place].name)


def test_a_population_is_restored_from_its_state(run) -> None:
    network = in_blocks(run, run.members())[0].networks.online
    again = restored(dict(network.state_dict()), network.actions)
    state = torch.rand(5, len(network.mean))
    assert torch.equal(again(state), network(state))
    assert again.members == network.members > 1
    assert not any(each.requires_grad for each in again.parameters())
