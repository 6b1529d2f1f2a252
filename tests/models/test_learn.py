"""The loop: what is watched of each member, what stops one and not the others, and going on after a kill."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import blocks, checkpoint
from models import learn as loop
from models.batch import Held
from models.errors import InputError
from models.learn import Keep, learn, marks
from models.members import Learner
from models.reach import Extent, Reach, reach_within
from models.run import Run, member_of, prepare
from models.table import Transitions
from models.train import train
from models.training import TrainConfig
from models.watch import Seen

CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=0.8,
    learners={"ddqn": 0.0, "cql": 1.0, "iql": Learner(kind="iql", policy="awr")},
    seeds=2,
    steps=60,
    batch_size=32,
    hidden=(8,),
    checks=6,
    behaviour_steps=20,
    value_steps=20,
)


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]


def split_log(world: Any, users: int = 120) -> Transitions:
    """Two of three users teach, the third validates."""
    table = world.log(users=users)
    return replace(table, split=(table.user % 3 == 0).astype(np.int8))


def learned(run: Run, config: TrainConfig = CONFIG, **words: Any) -> list[Seen]:
    members = run.members()
    feed = Held.of(run.data, run.training.target)
    reach = reach_within(members, feed, run.table)
    return learn(members, config, feed, reach, run.held_out(run.validation.target), **words)


class Scripted:
    """An evaluation on the validation split that says what a script says, check by check."""

    def __init__(self, table: Transitions, script: list[list[float]]) -> None:
        self.rows = table.split == 1
        self.script = iter(script)

    def __call__(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        gains = np.array(next(self.script))
        return np.stack([gains, np.zeros_like(gains)], axis=1)


def test_marks_are_even_and_end_with_the_last() -> None:
    assert sorted(marks(10, 3)) == [4, 7, 10]
    assert sorted(marks(2, 50)) == [1, 2]
    assert sorted(marks(3000, 10)) == list(range(300, 3001, 300))


# What is kept.


def kept(world: Any, script: list[list[float]], patience: int = 0) -> tuple[Any, list[dict[str, float]]]:
    table = split_log(world)
    config = replace(CONFIG, learners={"ddqn": 0.0}, seeds=1, patience=patience)
    found = train(table, config, 0, greedy, False, assess_of=lambda _: Scripted(table, script))["ddqn"]
    return found.kept, found.curves


def test_the_newest_check_that_is_not_clearly_worse_than_the_best_is_kept(world) -> None:
    # Users gain 1 +- 1 each at every check. The third is better by 1 for all; the fourth worse than that by 0.1 +-
    # 1.0 over four users, an error of 0.58: not clearly; the fifth and sixth by 1 +- 0.
    first = [0.0, 2.0, 0.0, 2.0]
    best = [1.0, 3.0, 1.0, 3.0]
    fourth = [1.9, 2.1, 1.9, 1.7]
    found, curve = kept(world, [first, first, best, fourth, first, first])
    assert found == {
        "step": 40.0,
        "gain": pytest.approx(1.9),
        "standard_error": pytest.approx(np.std(fourth, ddof=1) / 2),
    }
    told = {point["step"]: point["validation_gain"] for point in curve if "validation_gain" in point}
    assert told == pytest.approx({10: 1, 20: 1, 30: 2, 40: 1.9, 50: 1, 60: 1})


def test_patience_ends_a_member_that_only_gets_worse(world) -> None:
    down = [[5.0 - check] * 4 for check in range(6)]
    found, curve = kept(world, down, patience=2)
    assert found is not None
    assert found["step"] == 10.0
    # Checks at 20 and 30 are worse than the first; nothing is done after that.
    assert curve[-1]["step"] == 30


def test_without_enough_validation_users_the_last_update_is_kept(world, caplog) -> None:
    table = world.log(users=60)
    table = replace(table, split=(table.user < 5).astype(np.int8))
    config = replace(CONFIG, learners={"ddqn": 0.0}, seeds=1)
    with caplog.at_level(logging.WARNING, logger="tactful"):
        found = train(table, config, 0, greedy, False, assess_of=lambda _: Scripted(table, []))["ddqn"]
    assert found.kept == {"step": 60.0, "gain": None, "standard_error": None}
    assert "fewer than 20 users" in caplog.text


def test_the_seed_that_does_best_on_the_validation_split_is_exported(world) -> None:
    table = split_log(world)
    config = replace(CONFIG, learners={"ddqn": 0.0}, seeds=2, checks=1, steps=5)
    script = [[1.0, 1.0], [3.0, 1.0]]
    found = train(table, config, 0, greedy, False, assess_of=lambda _: Scripted(table, script))["ddqn"]
    assert found.kept is not None
    assert found.kept["gain"] == 2.0
    other = train(table, config, 0, greedy, False, assess_of=lambda _: Scripted(table, script[::-1]))["ddqn"]
    state = torch.tensor([[0.0], [1.0]])
    assert not torch.equal(found.q_network(state), other.q_network(state))


def test_pessimism_deploys_the_ensemble(world) -> None:
    table = split_log(world)
    careful = Learner(alpha=0.5, pessimism=1.5)
    found = train(table, replace(CONFIG, learners={"careful": careful}, seeds=3), 0, greedy, False)["careful"]
    assert found.q_network.members == 3
    assert found.pessimism == 1.5
    assert found.kept is None


# Divergence.


def test_a_member_that_diverges_stops_and_the_others_go_on(world, caplog) -> None:
    table = split_log(world)
    learners = {"wild": Learner(kind="ddqn", learning_rate=1e4), "calm": Learner(kind="ddqn")}
    config = replace(CONFIG, learners=learners, seeds=1)
    with caplog.at_level(logging.WARNING, logger="tactful"):
        found = train(table, config, 0, greedy, progress=False)
    alone = train(table, replace(config, learners={"calm": learners["calm"]}), 0, greedy, progress=False)
    state = torch.tensor([[0.0], [1.0]])
    assert found.keys() == {"calm", "behaviour"}
    assert torch.allclose(found["calm"].q_network(state), alone["calm"].q_network(state), atol=1e-5)
    assert "wild #0 diverged: at update" in caplog.text
    assert "lower its learning rate (10000)" in caplog.text


def test_where_all_diverge_training_says_so(world) -> None:
    with pytest.raises(
        InputError, match=r"training ddqn #0 diverged: at update \d+ .*; lower its learning rate \(1e\+30\)"
    ):
        train(
            split_log(world),
            replace(CONFIG, learners={"ddqn": Learner(kind="ddqn", learning_rate=1e30)}),
            0,
            greedy,
            False,
        )


def test_reach_by_hand(table_of) -> None:
    # Rewards 0, 0, 4, 0 of one day each, the last row's account closed: w~.r is r / sd(r), sd = sqrt(3).
    rewards, closed = [0, 0, 4, 0], [False] * 3 + [True]
    table = table_of([0] * 4, state=[0, 1, 2, 3], reward=rewards, action=np.array([0, 1, 0, 1]), terminal=closed)
    run = prepare(table, replace(CONFIG, weights={"r0": 1.0}, gamma_per_day=0.5), 0, progress=False)
    learners = [Learner(kind="ddqn"), Learner(alpha=3.0), Learner(alpha=3.0, penalty="push_down")]
    members = [member_of("m", 0, each, run.config, run.units, 0, 0) for each in learners]
    plain, credited, pushed = reach_within(members, Held.of(run.data, run.training.target), table)
    best = 4 / 3**0.5
    # The largest discount is 0.5: two decisions at most.
    assert (plain.low, plain.high) == (pytest.approx(2 * (0 - 1)), pytest.approx(2 * (best + 1)))
    # w~ = w sigma / sd(w.r) = 1 for one component: the penalty moves q by 3 / 2 a decision.
    assert (credited.low, credited.high) == (pytest.approx(-2), pytest.approx(2 * (best + 1 + 1.5)))
    assert (pushed.low, pushed.high) == (pytest.approx(2 * (-1 - 1.5)), pytest.approx(2 * (best + 1)))
    assert plain.td == pytest.approx((2 * 2 * (best + 1)) ** 2)
    # E[discount] = (3 x 0.5 + 0) / 4 = 0.375: a mean reward goes on for 1.6 decisions.
    assert plain.level.tolist() == pytest.approx([1.6 * 1.0 / 3**0.5])


def test_extents_of_parts_add(world) -> None:
    run = prepare(world.log(users=50), CONFIG, 0, progress=False)
    member, data = run.members()[0], run.data
    parts = data.reward, data.elapsed, data.stops
    whole = Extent.of(member, *parts, 3)
    one, other = (
        Extent.of(member, *(each[rows] for each in parts), coinciding)
        for rows, coinciding in ((slice(30), 1), (slice(30, None), 3))
    )
    summed = one + other
    assert Reach.of(member, summed).high == Reach.of(member, whole).high
    assert torch.allclose(Reach.of(member, summed).level, Reach.of(member, whole).level)
    for name in ("rows", "least", "most", "loss", "coinciding"):
        assert getattr(summed, name) == getattr(whole, name), name
    assert torch.equal(summed.largest, whole.largest)


def test_rare_rewards_short_horizons_and_long_lived_bests_do_not_diverge(table_of) -> None:
    """What a limit by the log's own mean would take for divergence."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 4)
    closes = rng.integers(2, size=1200)
    # Action 1 closes the account half of the time; action 0 pays for ever.
    ends = (closes == 1) & (rng.random(1200) < 0.5) & (np.arange(1200) % 4 == 3)
    reward = 10 + (rng.random(1200) < 0.01) * 50.0
    table = table_of(users.tolist(), state=rng.normal(size=1200), reward=reward, action=closes, terminal=ends)
    learners = {"short": Learner(kind="ddqn", gamma_per_day=0.3), "long": Learner(kind="ddqn", gamma_per_day=0.9),
                "push": Learner(alpha=8.0, penalty="push_down")}  # fmt: skip
    config = replace(CONFIG, weights={"r0": 1.0}, learners=learners, seeds=1, steps=600, learning_rate=5e-3)
    assert [each.stopped for each in learned(prepare(table, config, 0, progress=False), config)] == [None] * 3


@pytest.mark.parametrize("learner", [Learner(kind="ddqn"), Learner(alpha=4.0)])
def test_what_converges_stays_within_reach(world, learner) -> None:
    config = replace(CONFIG, learners={"m": learner}, seeds=1, steps=600, learning_rate=1e-2)
    (seen,) = learned(prepare(split_log(world, 300), config, 0, progress=False), config)
    assert seen.stopped is None
    assert seen.curve[-1]["step"] == 600


def test_curves_tell_of_every_member(world) -> None:
    found = learned(prepare(split_log(world), CONFIG, 0, progress=False))
    names = {"td_loss", "cql_gap", "mean_q", "q_low", "q_high", "agreement"}
    wanted = {"step", *names, *(f"validation_{name}" for name in names - {"td_loss", "cql_gap"}), "validation_td"}
    assert [set(each.curve[-1]) for each in found] == [wanted] * 6
    for each in found:
        last = each.curve[-1]
        assert last["q_low"] <= last["mean_q"] <= last["q_high"]
        assert 0 <= last["agreement"] <= 1


# Going on after a kill.


class Killed(Exception):
    pass


def state_of(found: list[Seen]) -> list[Any]:
    return [
        (each.curve, each.stopped, each.done, each.misses, each.kept and each.kept.step,
         [part.tolist() for part in each.kept.network.parameters()] if each.kept else None)
        for each in found
    ]  # fmt: skip


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_killed_run_goes_on_to_the_same_bits(world, tmp_path: Path, monkeypatch: Any, after: int) -> None:
    table = split_log(world)
    keep = Keep(tmp_path / "learn.safetensors", {"data": "x"})

    def once(**words: Any) -> list[Seen]:
        return learned(prepare(table, CONFIG, 0, progress=False), **words)

    whole = once()
    really, count = loop._save, 0

    def save(*words: Any) -> None:
        nonlocal count
        really(*words)
        count += 1
        if count == after:
            raise Killed

    monkeypatch.setattr(loop, "_save", save)
    with pytest.raises(Killed):
        once(keep=keep)
    monkeypatch.setattr(loop, "_save", really)
    told: list[int] = []
    resumed = once(keep=keep, on_point=lambda name, step, point: told.append(step))
    assert state_of(resumed) == state_of(whole)
    assert not told or min(told) > 10 * after


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_a_killed_run_goes_on_with_another_number_of_threads(
    world, tmp_path: Path, monkeypatch: Any, before: int, after: int
) -> None:
    """Which members are updated together depends on it; room here for one or two in each block."""
    monkeypatch.setattr(blocks, "LAYER_BYTES", 2 * 4 * 8 * 32)
    table = split_log(world)
    run = prepare(table, CONFIG, 0, progress=False)
    whole, keep = learned(run), Keep(tmp_path / "learn.safetensors", {"data": "x"})
    really = loop._save

    def save(*words: Any) -> None:
        really(*words)
        raise Killed

    monkeypatch.setattr(loop, "_save", save)
    with pytest.raises(Killed):
        learned(run, replace(CONFIG, threads=before), keep=keep)
    monkeypatch.setattr(loop, "_save", really)
    resumed = learned(run, replace(CONFIG, threads=after), keep=keep)
    # Given back by the one that had several.
    assert torch.get_num_threads() == max(before, after)
    for found, wanted in zip(resumed, whole, strict=True):
        assert found.kept is not None
        assert wanted.kept is not None
        for part, other in zip(found.kept.network.parameters(), wanted.kept.network.parameters(), strict=True):
            assert torch.allclose(part, other, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_run_is_left_aside_with_a_word(world, tmp_path: Path, caplog) -> None:
    run, path = prepare(split_log(world), CONFIG, 0, progress=False), tmp_path / "learn.safetensors"
    learned(run, keep=Keep(path, {"data": "x", "seed": 1}))
    with caplog.at_level(logging.WARNING, logger="tactful"):
        found = learned(run, keep=Keep(path, {"data": "y", "seed": 1}))
    assert "of a run with another data; training starts anew" in caplog.text
    assert found[0].curve[0]["step"] < 10


def test_train_leaves_a_checkpoint_that_the_same_run_alone_takes_up(world, tmp_path: Path, caplog) -> None:
    table, path = split_log(world), tmp_path / "learn.safetensors"
    first = train(table, CONFIG, 0, greedy, False, checkpoint=path)
    with caplog.at_level(logging.INFO, logger="tactful"):
        again = train(table, CONFIG, 0, greedy, False, checkpoint=path)
        assert "goes on after update 60" in caplog.text
        train(table, replace(CONFIG, batch_size=16), 0, greedy, False, checkpoint=path)
        assert "another settings; training starts anew" in caplog.text
    state = torch.tensor([[0.0], [1.0]])
    for name in CONFIG.learners:
        assert torch.equal(first[name].q_network(state), again[name].q_network(state))


@pytest.mark.parametrize(
    ("now", "goes_on"),
    [(Learner(), True), (Learner(alpha=2.0), False), (Learner(penalty="push_down"), False)],
)
def test_a_checkpoint_is_of_the_alpha_in_force_however_it_was_given(world, tmp_path, caplog, now, goes_on) -> None:
    table, path = split_log(world), tmp_path / "learn.safetensors"
    config = replace(CONFIG, learners={"cql": Learner(alpha=1.0)}, seeds=1)
    train(table, config, 0, greedy, False, checkpoint=path)
    with caplog.at_level(logging.INFO, logger="tactful"):
        train(table, replace(config, learners={"cql": now}), 0, greedy, False, checkpoint=path)
    assert ("goes on after update 60" in caplog.text) is goes_on
    assert ("another settings; training starts anew" in caplog.text) is not goes_on


def test_a_checkpoint_of_a_version_that_knew_no_unset_alpha_is_taken_up(world, tmp_path: Path, caplog) -> None:
    """There alpha was 1 by default, whatever the kind; a kind without the penalty has no other."""
    table, path = split_log(world), tmp_path / "learn.safetensors"
    config = replace(CONFIG, learners={"ddqn": Learner(kind="ddqn"), "iql": Learner(kind="iql")}, seeds=1)
    train(table, config, 0, greedy, False, checkpoint=path)
    tensors, facts = checkpoint.read(path)
    for each in facts["identity"]["settings"]["learners"].values():
        each["alpha"] = 1.0
    checkpoint.write(path, tensors, facts)
    with caplog.at_level(logging.INFO, logger="tactful"):
        train(table, config, 0, greedy, False, checkpoint=path)
    assert "goes on after update 60" in caplog.text


@pytest.mark.parametrize("users", [4, 3])
def test_a_run_does_not_go_on_under_another_evaluation(world, tmp_path, monkeypatch, caplog, users) -> None:
    """Gains of one evaluation say nothing under another: 100 + 1.5 of the first, 1 + (users - 1) / 2 of the second."""
    table, path = split_log(world), tmp_path / "learn.safetensors"
    config = replace(CONFIG, learners={"ddqn": 0.0}, seeds=1)

    def once(gain: float, judged_by: str, users: int = 4) -> Any:
        judge = Scripted(table, [[gain + user for user in range(users)]] * 6)
        return train(table, config, 0, greedy, False, assess_of=lambda _: judge, checkpoint=path, judged_by=judged_by)

    really, count = loop._save, 0

    def save(*words: Any) -> None:
        nonlocal count
        really(*words)
        count += 1
        if count == 3:
            raise Killed

    monkeypatch.setattr(loop, "_save", save)
    with pytest.raises(Killed):
        once(100.0, "week")
    monkeypatch.setattr(loop, "_save", really)
    with caplog.at_level(logging.WARNING, logger="tactful"):
        found = once(1.0, "decision", users)["ddqn"]
    assert "of a run with another evaluation; training starts anew" in caplog.text
    assert found.kept is not None
    assert found.kept["gain"] == 1 + (users - 1) / 2


# Memory.


@pytest.mark.parametrize(("half", "wanted"), [(False, 4 * 1 + 3 + 1 + 4 * 2 + 4 + 1 + 1), (True, 2 * 1 + 19 - 1)])
def test_bytes_of_a_resident_transition(world, half, wanted) -> None:
    run = prepare(world.log(users=50), replace(CONFIG, half_precision=half), 0, progress=False)
    # 4 S (or 2 S) state, A legal, 1 action, 4 K rewards, 4 elapsed, 1 stops, 1 follows.
    assert run.data.bytes_per_transition == wanted == (22 if not half else 20)


def test_half_precision_learns_the_same_to_three_digits(world) -> None:
    table, state = split_log(world), torch.tensor([[0.0], [1.0]])

    def both(half: bool) -> torch.Tensor:
        config = replace(CONFIG, learners={"ddqn": 0.0}, half_precision=half)
        return train(table, config, 0, greedy, False)["ddqn"].q_network(state)

    assert torch.allclose(both(True), both(False), atol=2e-2)
    assert not torch.equal(both(True), both(False))


def test_an_infinite_feature_is_named(world) -> None:
    table = split_log(world)
    table.state[7, 0] = np.inf
    with pytest.raises(InputError, match=r"features: 'f0' is infinite in 1 of \d+ training rows; correct the log"):
        prepare(replace(table, split=np.zeros_like(table.split)), CONFIG, 0)


def test_an_infinite_feature_where_nothing_trains_is_named_too(world) -> None:
    """Else validation TD is infinite, and the learning rate is blamed."""
    table = split_log(world)
    table.state[np.flatnonzero(table.split == 1)[3], 0] = -np.inf
    with pytest.raises(InputError, match=r"features: 'f0' is infinite in 1 rows of other splits; correct the log"):
        prepare(table, CONFIG, 0)


@pytest.mark.parametrize(
    ("half", "value", "message"),
    [
        # f0 is 0 or 1 in the training rows, their deviation 0.5; the largest number of 16 bits is 65,504.
        (True, 5e4, r"'f0' is 50000 in a row, .* beyond the 65504 that train.half_precision = true can keep"),
        (True, -1e30, r"'f0' is -1e\+30 in a row, .*to null there, or set train.half_precision = false"),
        (False, 3e38, r"'f0' is 3e\+38 in a row, .* beyond the 3.40282e\+38 that can be kept; .*to null there\.$"),
    ],
)
@pytest.mark.parametrize("split", [1, 2])
def test_an_extreme_feature_is_named_where_it_would_be_infinite(world, half, value, message, split) -> None:
    table = split_log(world)
    users = np.unique(table.user[table.split == 1])
    table = replace(table, split=np.where(np.isin(table.user, users[::2]), split, table.split).astype(np.int8))
    table.state[np.flatnonzero(table.split == split)[3], 0] = value
    with pytest.raises(InputError, match=f"features: {message}"):
        train(table, replace(CONFIG, half_precision=half), 0, greedy, progress=False)


def test_half_precision_holds_what_it_can(world) -> None:
    """In units of its own spread: 1e6 times the feature is no more, and 30,000 is 60,000 deviations."""
    table = split_log(world)
    row = np.flatnonzero(table.split == 1)[3]
    table.state[row, 0] = 3e4
    run = prepare(replace(table, state=1e6 * table.state), replace(CONFIG, half_precision=True), 0, progress=False)
    assert float(run.data.state[row, 0]) == pytest.approx(3e4 / 0.5, rel=0.05)
    assert run.data.state.dtype == torch.float16
    assert torch.isfinite(run.data.state).all()


def test_an_action_that_was_never_taken_is_named_and_one_that_was_never_legal_is_not(world) -> None:
    table = world.log(users=60)
    never = table.where(table.action != 1)
    with pytest.raises(InputError, match=r"actions: 'send' is legal in .* and taken in none of \d+.*remove it from"):
        prepare(never, CONFIG, 0)
    legal = never.legal.copy()
    legal[:, 1] = False
    run = prepare(replace(never, legal=legal | (np.arange(3) == 0) | (np.arange(3) == 2)), CONFIG, 0, progress=False)
    assert len(run.data.state) == len(never.user)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checks": 0}, "train.checks is 0"),
        ({"patience": -1}, "train.patience is -1"),
        ({"learners": {"m": Learner(alpha=-2.0)}}, "train.learners.m is -2.0; alpha must be 0 or more"),
        ({"learners": {"m": Learner(expectile=1.0)}}, r"train.learners.m.expectile is 1.0; it must lie in \[0.5, 1\)"),
        ({"learners": {"m": Learner(temperature=0.0)}}, "train.learners.m.temperature is 0.0"),
        ({"learners": {"m": Learner(pessimism=-1.0)}}, "train.learners.m.pessimism is -1.0"),
        ({"learners": {"m": Learner(pessimism=1.0)}, "seeds": 1}, "over an ensemble of train.seeds = 1; two or more"),
        ({"learners": {"m": Learner(policy="awr")}}, "train.learners.m.policy is 'awr', which only iql"),
        ({"learners": {"m": Learner(gamma_per_day=1.5)}}, r"train.learners.m.gamma_per_day is 1.5; .* \(0, 1\]"),
        ({"learners": {"m": Learner(learning_rate=0.0)}}, "train.learners.m.learning_rate is 0.0"),
        ({"learners": {"m": Learner(kind="dqn")}}, "train.learners.m.kind is 'dqn'; it must be one of ddqn"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)
