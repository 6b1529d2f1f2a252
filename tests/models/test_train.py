"""A world whose optimal values are known, and what training must and must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.batch import rows_of
from models.errors import InputError
from models.members import Learner
from models.train import train
from models.training import TrainConfig

WEIGHTS = {"r0": 1.0, "r1": 0.5}
SHORT = TrainConfig(
    weights=WEIGHTS,
    gamma_per_day=0.8,
    learners={"ddqn": 0.0},
    steps=120,
    batch_size=64,
    hidden=(16,),
    behaviour_steps=20,
    value_steps=20,
)


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """[N, A] one-hot of the best legal action."""
    best = np.where(legal, q, -np.inf).argmax(axis=1)
    return np.eye(q.shape[1])[best]


def states() -> torch.Tensor:
    return torch.tensor([[0.0], [1.0]])


@pytest.fixture(scope="module")
def recovered(world):
    """The world learned long enough to know it."""
    torch.set_num_threads(1)
    table = world.log(users=500)
    config = replace(
        SHORT,
        steps=1500,
        batch_size=256,
        hidden=(32,),
        learning_rate=3e-3,
        target_rate=0.05,
        behaviour_steps=400,
        value_steps=800,
    )
    return world, table, train(table, config, 0, greedy, progress=False)


def test_optimal_values_are_recovered(recovered) -> None:
    world, _, found = recovered
    network = found["ddqn"].q_network
    q = network.raw(network(states()))[0].numpy()
    # Truncated rows (a quarter) taken for ends, gamma without its exponent, the illegal action of state 1 or a
    # bootstrap past the closed account would each move these values by 0.3 or more.
    assert np.abs(q - world.optimal())[world.legal].max() < 0.15


def test_the_exported_value_is_that_of_the_greedy_policy(recovered) -> None:
    world, _, found = recovered
    values = found["ddqn"].values
    assert np.abs(values.raw(values(states()))[0].numpy() - world.optimal())[world.legal].max() < 0.15


def test_the_logging_policy_is_cloned_and_valued(recovered) -> None:
    world, _, found = recovered
    uniform = world.legal / world.legal.sum(axis=1, keepdims=True)
    logits = np.where(world.legal, found["behaviour"].behaviour(states())[0, :, :, 0].numpy(), -np.inf)
    cloned = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(cloned - uniform).max() < 0.06
    value = np.zeros((2, 2))
    for _ in range(500):
        value = np.einsum("sa,sak->sk", uniform, world.backup(value, world.gamma))
    own = found["behaviour"].values
    assert np.abs(own.raw(own(states()))[0].numpy() - world.backup(value, world.gamma))[world.legal].max() < 0.3


def test_q_is_the_weighted_sum_in_standard_deviations(recovered) -> None:
    world, table, found = recovered
    learned = found["ddqn"]
    q = (learned.q_network(states())[0].numpy() * learned.q_weights).sum(axis=-1)
    spread = (table.reward @ world.weights).std()
    assert q[world.legal] == pytest.approx((world.optimal() @ world.weights / spread)[world.legal], abs=0.15)


def test_alpha_zero_is_double_dqn_whoever_trains_beside_it(world) -> None:
    table = world.log(users=100)
    alone = train(table, SHORT, 7, greedy, progress=False)["ddqn"].q_network(states())
    mixed = train(table, replace(SHORT, learners={"cql": 2.0, "ddqn": 0.0}), 7, greedy, progress=False)
    assert torch.allclose(mixed["ddqn"].q_network(states()), alone, atol=1e-4)
    assert not torch.allclose(mixed["cql"].q_network(states()), alone, atol=1e-2)


def test_cql_widens_the_preference_for_logged_actions(table_of) -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 3).tolist()
    action = (rng.random(600) < 0.1).astype(int)  # the log holds nine times out of ten; rewards say nothing
    table = table_of(users, state=rng.normal(size=600), reward=rng.normal(size=600), action=action)
    config = replace(
        SHORT, weights={"r0": 1.0}, learners={"ddqn": 0.0, "cql": 5.0}, steps=300, batch_size=256, learning_rate=5e-3
    )
    gap = {}
    for name, learned in train(table, config, 0, greedy, progress=False).items():
        q = (learned.q_network(torch.from_numpy(table.state))[0].numpy() * learned.q_weights).sum(axis=-1)
        gap[name] = (np.log(np.exp(q).sum(axis=1)) - q[np.arange(600), action]).mean()
    # The penalty's minimum is the entropy of the log, -0.1 ln 0.1 - 0.9 ln 0.9 = 0.325; without it about ln 2.
    assert 0.28 < gap["cql"] < 0.4 < 0.55 < gap["ddqn"]


def test_same_seed_same_result_and_another_seed_another(world) -> None:
    table = world.log(users=60)
    runs = [train(table, SHORT, seed, greedy, progress=False)["ddqn"] for seed in (1, 1, 2)]
    q = [each.q_network(states()) for each in runs]
    assert torch.equal(q[0], q[1])
    assert runs[0].curves == runs[1].curves
    assert not torch.allclose(q[0], q[2], atol=1e-3)


def test_only_training_rows_past_the_warm_up_teach(world) -> None:
    table = world.log(users=90)
    table = replace(table, split=(table.user % 3).astype(np.int8), warm_up=(table.user % 6) == 0)
    unseen = (table.split != 0) | table.warm_up
    changed = replace(table, reward=np.where(unseen[:, None], 1e3, table.reward))
    first, second = (train(each, SHORT, 0, greedy, progress=False)["ddqn"] for each in (table, changed))
    assert torch.equal(first.q_network(states()), second.q_network(states()))
    assert first.curves[-1]["td_loss"] == second.curves[-1]["td_loss"]
    assert first.curves[-1]["validation_td"] != second.curves[-1]["validation_td"]


def test_rows_with_a_target_are_the_terminal_and_the_followed(table_of) -> None:
    table = table_of(
        [0, 0, 0, 1, 1],
        state=np.arange(5),
        reward=np.arange(5),
        terminal=[False, False, False, False, True],
        truncated=[False, True, True, False, False],
        action=[0, 1, 1, 0, 0],
        legal=[[True, True], [True, False], [True, True], [True, False], [True, True]],
    )
    rows = rows_of(table, "train")
    assert rows.target.tolist() == [True, False, False, True, True]
    # A choice needs two legal actions and a logged one among them.
    assert rows.choice.tolist() == [True, False, True, False, True]


def test_unknown_states_train_and_predict(world) -> None:
    table = world.log(users=60)
    state = np.where(np.random.default_rng(0).random(table.state.shape) < 0.3, np.nan, table.state).astype(np.float32)
    found = train(replace(table, state=state), SHORT, 0, greedy, progress=False)["ddqn"]
    known_mean = torch.tensor([[float(np.nanmean(state))]])
    unknown = found.q_network(torch.tensor([[float("nan")]]))
    assert torch.isfinite(unknown).all()
    assert torch.allclose(unknown, found.q_network(known_mean), atol=1e-5)


def test_agreement_of_seeds_and_metrics_are_told(world) -> None:
    table = world.log(users=60)
    table = replace(table, split=(table.user % 2).astype(np.int8))
    told: list[tuple[int, dict[str, float]]] = []
    found = train(table, replace(SHORT, seeds=3), 0, greedy, False, lambda step, now: told.append((step, now)))
    assert found["ddqn"].agreement is not None
    assert 0.3 < found["ddqn"].agreement <= 1.0
    assert found["behaviour"].agreement is None
    last = {key: value for step, now in told for key, value in now.items() if step in (20, 120)}
    # Of every seed; the curve is that of the one that is exported.
    assert found["ddqn"].curves[-1]["td_loss"] in [last[f"ddqn #{seed}/td_loss"] for seed in range(3)]
    assert {"ddqn #0/cql_gap", "ddqn #2/mean_q", "ddqn #1/validation_td", "behaviour/nll"} <= last.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": np.ones(8, dtype=np.int8)}, "of 0 training rows none can be used.*train split"),
        ({"truncated": np.ones(8, dtype=bool)}, "of 8 training rows none can be used.*followed by another"),
        ({"legal": np.tile([True, False], (8, 1))}, "of 8 training rows none can be used.*two or more legal"),
    ],
)
def test_logs_that_cannot_be_learned_from(table_of, change, message) -> None:
    table = table_of([0] * 8, state=np.arange(8), reward=np.arange(8))
    with pytest.raises(InputError, match=message):
        train(replace(table, **change), replace(SHORT, weights={"r0": 1.0}), 0, greedy, progress=False)


def test_divergence_stops_the_run(world) -> None:
    with pytest.raises(InputError, match=r"training .* diverged.*lower train.learning_rate"):
        train(world.log(users=20), replace(SHORT, learning_rate=1e30), 0, greedy, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma_per_day": 1.1}, "train.gamma_per_day is 1.1"),
        ({"learners": {}}, "train.learners is empty"),
        ({"learners": {"cql": -1.0}}, "train.learners.cql is -1.0"),
        ({"learners": {"behaviour": 0.0}}, "cloned logging policy's name"),
        ({"weights": {"r0": 0.0}}, "train.weights are all zero"),
        ({"steps": 0}, "train.steps is 0"),
        ({"hidden": ()}, r"train.hidden is \[\]"),
        ({"learning_rate": 0.0}, "train.learning_rate is 0.0"),
        ({"target_rate": 1.5}, "train.target_rate is 1.5"),
        ({"device": "tpu"}, "train.device is 'tpu'"),
        ({"learning_rate": float("nan")}, "train.learning_rate is nan; it must be above 0, and finite"),
        ({"weights": {"r0": float("nan")}}, "train.weights.r0 is nan; it must be a finite number"),
        ({"learners": {"cql": float("inf")}}, "train.learners.cql is inf; alpha must be 0 or more, and finite"),
        *(
            ({"learners": {"a": Learner(kind=kind, alpha=alpha)}}, rf"a\.alpha is {alpha}, .* {kind!r} has not")
            for kind in ("ddqn", "iql")
            for alpha in (0.0, 1.0, 3.0)
        ),
        ({"learners": {"a": Learner(pessimism=float("inf"))}, "seeds": 2}, "train.learners.a.pessimism is inf"),
        ({"learners": {"a": Learner(penalty="both")}}, "train.learners.a.penalty is 'both'; .*logsumexp, push_down"),
        ({"learners": {"a": Learner(policy="softmax")}}, "train.learners.a.policy is 'softmax'; .*argmax, awr"),
        ({"learners": {"a": Learner(weights={"r0": float("inf")})}}, "train.learners.a.weights.r0 is inf"),
        (
            {"learners": {"a": Learner(learning_rate=-1.0)}},
            "train.learners.a.learning_rate is -1.0; it must be above 0",
        ),
        (
            {"learners": {"a": Learner(target_rate=2.0)}},
            r"train.learners.a.target_rate is 2.0; it must lie in \(0, 1\]",
        ),
    ],
)
def test_configurations_out_of_range(change, message) -> None:
    with pytest.raises(InputError, match=message):
        replace(SHORT, **change)


@pytest.mark.parametrize(
    ("given", "alpha"),
    [
        (Learner(), 1.0),
        (Learner(alpha=0.0), 0.0),
        (2.5, 2.5),
        (0.0, 0.0),
        (Learner(kind="ddqn"), 0.0),
        (Learner(kind="iql"), 0.0),
    ],
)
def test_the_penalty_of_every_way_to_name_a_learner(given, alpha) -> None:
    config = replace(SHORT, learners={"a": given})
    assert config.named["a"].penalised == alpha


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"clix": 1.0}, r"train.learners.mine.weights: 'clix' is not a reward component \(known: "),
        ({"r0": 0.0}, "train.learners.mine.weights are all zero"),
    ],
)
def test_a_fault_in_a_learners_own_weights_is_said_of_them(world, weights, message) -> None:
    config = replace(SHORT, learners={"mine": Learner(weights=weights)})
    with pytest.raises(InputError, match=message):
        train(world.log(users=20), config, 0, greedy, progress=False)
