"""What the learners find in worlds small enough to compute: dynamic programming in plain loops, nothing shared.

`Tabular` is such a world, with a log in which every share is exact; `Chain` is drawn at random, with exact backups and
no networks, for what holds of conservative values in general. Values are in raw units unless a name says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import wrightomega

from models.batch import Batch, Held
from models.blocks import blocks_of
from models.contract import Contract
from models.learn import learn
from models.learners import LARGEST_WEIGHT, Networks, behaviour_cloning, ddqn_cql, iql
from models.losses import cql_penalty, double_q_target, expected_target, scalarise, td_loss
from models.members import Learner, Settings
from models.network import Population, initial
from models.reach import reach_within
from models.run import prepare
from models.table import Transitions
from models.training import TrainConfig
from models.watch import Seen

STATES, ACTIONS, HEADS = 5, 4, 2
HOLD, SEND, PUSH, CLOSE = range(ACTIONS)
WEIGHTS = np.array([1.0, 0.5])
GAMMA = 0.8
Floats = np.ndarray


# A world whose every answer is known.


@dataclass(frozen=True)
class Tabular:
    """Five states, four actions; `close` ends the account, the others lead to one of two states after some days."""

    reward: Floats  # [s, a, k]
    after: Floats  # [s, a, 2] the two states that may follow
    chance: Floats  # [s, a, 2] of each, in quarters
    elapsed: Floats  # [s, a, 2] days, by which of them followed
    legal: Floats  # [s, a]
    rows: Floats  # [s, a] how often the log shows it, in fours; some of what is not legal was done too
    terminal: tuple[int, ...] = (CLOSE,)

    @classmethod
    def drawn(cls, seed: int) -> "Tabular":
        rng = np.random.default_rng(seed)
        shape = (STATES, ACTIONS)
        legal = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
        logged = legal.copy()
        logged[1, CLOSE] = logged[2, PUSH] = True  # done before a constraint forbade it, and well paid
        reward = rng.normal(size=(*shape, HEADS)).round(1)
        reward[1, CLOSE], reward[2, PUSH] = (9.0, 9.0), (6.0, 6.0)
        sure = rng.random(shape) < 0.75
        return cls(
            reward=reward,
            after=rng.integers(STATES, size=(*shape, 2)),
            chance=np.where(sure[..., None], [1.0, 0.0], [0.75, 0.25]),
            elapsed=rng.choice([0.5, 1.0, 2.0, 3.0], size=(*shape, 2)),
            legal=legal,
            rows=4 * rng.integers(1, 5, size=shape) * logged,
        )

    @property
    def mu(self) -> Floats:
        """[s, a] what the log does among what is legal."""
        legal = self.rows * self.legal
        return legal / legal.sum(axis=1, keepdims=True)

    @property
    def covered(self) -> Floats:
        return self.rows > 0

    def log(self) -> Transitions:
        """A user for each time that the log shows (s, a), and a second row, truncated, that is the next state alone.

        So the share of every action and of every next state is exact, and about half of all rows have no target.
        """
        rng = np.random.default_rng(0)
        found: list[tuple[int, int, int, float]] = []  # user, state, action, days
        user = 0
        for s in range(STATES):
            for a in range(ACTIONS):
                for n in range(self.rows[s, a]):
                    way = 0 if n % 4 < 4 * self.chance[s, a, 0] else 1
                    found.append((user, s, a, self.elapsed[s, a, way]))
                    if a != CLOSE:
                        last = int(self.after[s, a, way])
                        going = [b for b in range(CLOSE) if self.legal[last, b]]
                        found.append((user, last, int(rng.choice(going)), 1.0))
                    user += 1
        users, state, action, days = (np.array(column) for column in zip(*found, strict=True))
        n, last = len(users), np.diff(users, append=-1) != 0
        return Transitions(
            contract=Contract(("hold", "send", "push", "close"), tuple(f"s{s}" for s in range(STATES)), ("r0", "r1")),
            user=users,
            user_id=np.array([f"u{u}" for u in range(user)], dtype=object),
            decided_at=np.arange(n),
            state=np.eye(STATES, dtype=np.float32)[state],
            legal=self.legal[state],
            action=action,
            propensity=np.full(n, np.nan),
            estimated=np.zeros(n, dtype=bool),
            reward=self.reward[state, action],
            elapsed_days=days,
            terminal=action == CLOSE,
            truncated=last & (action != CLOSE),
            silent=np.zeros(n, dtype=bool),
            warm_up=np.zeros(n, dtype=bool),
            split=np.zeros(n, dtype=np.int8),
            version=0,
            fingerprint="tabular",
        )

    def units(self) -> tuple[Floats, Floats]:
        """sigma [k], w~ [k] of its log: w~_k = w_k sigma_k / sd(w.r)."""
        reward = self.log().reward
        sigma = reward.std(axis=0)
        return sigma, WEIGHTS * sigma / (reward @ WEIGHTS).std()

    def backup(self, value: Floats, gamma: float) -> Floats:
        """[s, a, k] r + sum over next states of their chance, gamma^Delta (1 - terminal) and `value` [s, k]."""
        q = np.zeros((STATES, ACTIONS, HEADS))
        for s in range(STATES):
            for a in range(ACTIONS):
                q[s, a] = self.reward[s, a]
                for way in range(2):
                    if a not in self.terminal:
                        follows = value[self.after[s, a, way]]
                        q[s, a] += self.chance[s, a, way] * gamma ** self.elapsed[s, a, way] * follows
        return q

    def solved(
        self,
        worth: Callable[[int, Floats], Floats],
        gamma: float = GAMMA,
        biased: Callable[[int, Floats], Floats] | None = None,
        sweeps: int = 200,
    ) -> tuple[Floats, Floats]:
        """Q [s, a, k] and V [s, k] where V(s) = worth(s, Q(s)), Q(s) = biased(s, backup of V); 0.9^200 < 1e-9."""
        value = np.zeros((STATES, HEADS))
        for _ in range(sweeps):
            q = self.backup(value, gamma)
            if biased is not None:
                q = np.stack([biased(s, q[s]) for s in range(STATES)])
            value = np.stack([worth(s, q[s]) for s in range(STATES)])
        return q, value

    # What a state is worth, given its actions' values q [a, k].

    def best(self, s: int, q: Floats) -> Floats:
        """Of the legal actions the one that weighs most."""
        weighed = [q[a] @ WEIGHTS if self.legal[s, a] else -np.inf for a in range(ACTIONS)]
        return q[int(np.argmax(weighed))]

    def best_logged(self, s: int, q: Floats) -> Floats:
        weighed = [q[a] @ WEIGHTS if self.mu[s, a] > 0 else -np.inf for a in range(ACTIONS)]
        return q[int(np.argmax(weighed))]

    def expectile(self, level: float) -> Callable[[int, Floats], Floats]:
        """V with sum_a mu |level - 1{w.(Q - V) < 0}| (Q_k - V_k) = 0 for every k, by repeated weighing."""

        def worth(s: int, q: Floats) -> Floats:
            value = self.mu[s] @ q
            before: list[float] = []
            for _ in range(100):
                side = [level if (q[a] - value) @ WEIGHTS >= 0 else 1 - level for a in range(ACTIONS)]
                if side == before:
                    break
                share, before = self.mu[s] * side, side
                value = share @ q / share.sum()
            return value

        return worth

    def conservative(self, alpha: float, credit: bool = True) -> Callable[[int, Floats], Floats]:
        """Q_k = y_k - alpha/2 w~_k (softmax(q) / mu - 1), in units of sigma: see `lifted`. Without credit, no - 1."""
        sigma, inner = self.units()

        def biased(s: int, q: Floats) -> Floats:
            legal = np.flatnonzero(self.legal[s])
            # A row whose logged action is illegal is pushed down too; only what credits logged actions leaves it out.
            total = self.rows[s, legal].sum() if credit else self.rows[s].sum()
            share = self.rows[s, legal] / total
            heads = q[legal] / sigma
            found = lifted(heads @ inner, share, alpha / 2 * inner @ inner, credit)
            p = np.exp(found - found.max())
            p /= p.sum()
            moved = q.copy()
            moved[legal] = sigma * (heads - alpha / 2 * inner * (p / share - credit)[:, None])
            return moved

        return biased

    def regressed(self, value: tuple[Floats, Floats], temperature: float) -> Floats:
        """[s, a] mu min(exp(T w~.(Q - V) in sigma), 100), normalised: what advantage-weighted regression fits."""
        sigma, inner = self.units()
        q, v = value
        advantage = (q - v[:, None]) / sigma @ inner
        weight = self.mu * np.minimum(np.exp(temperature * advantage), LARGEST_WEIGHT)
        return weight / weight.sum(axis=1, keepdims=True)


def lifted(y: Floats, mu: Floats, c: float, credit: bool = True) -> Floats:
    """[..., a] q with q = y - c (softmax(q) / mu - 1), y where mu is 0 (illegal, not in the softmax).

    With z = c p / mu and L = logsumexp(q), z + log z = y + c - L + log(c / mu): z is Wright's omega of the right side.
    The sum of p = mu z / c falls in L and is convex: Newton's steps from below, where it is 1 or more, never pass the
    L at which it is 1. Without credit, q is c less.
    """
    legal = mu > 0
    share = np.where(legal, mu, 1.0)
    at = np.where(legal, y + c - c / share, -np.inf).max(axis=-1, keepdims=True)
    for _ in range(40):
        z = legal * wrightomega(y + c - at + np.log(c / share))
        step = ((mu * z).sum(axis=-1, keepdims=True) - c) / (mu * z / (1 + z)).sum(axis=-1, keepdims=True)
        at = at + step
        if np.abs(step).max() < 1e-13:
            break
    return np.where(legal, y + c * credit - z, y)


# What the networks make of its log.

SEED = 45
"""A world in which no two actions are nearly alike: see the test of the best action below."""
TOLERANCE = 0.12
"""Raw units, of values up to 9; what remains is the noise of minibatches, about half of it."""
SMALL = 0.02
"""alpha that biases less than the tolerance."""
LEARNERS: dict[str, float | Learner] = {
    "ddqn": 0.0,
    "small": Learner(alpha=SMALL),
    "cql": Learner(alpha=1.0),
    "push_down": Learner(alpha=0.5, penalty="push_down"),
    "undiscounted": Learner(kind="ddqn", gamma_per_day=1.0),
    "mean": Learner(kind="iql", expectile=0.5),
    "middle": Learner(kind="iql", expectile=0.8),
    "highest": Learner(kind="iql", expectile=0.99),
    "warm": Learner(kind="iql", expectile=0.8, temperature=1.0, policy="awr"),
    "hot": Learner(kind="iql", expectile=0.9, temperature=15.0, policy="awr"),
}
CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=GAMMA,
    learners=LEARNERS,
    steps=1500,
    batch_size=512,
    hidden=(64,),
    learning_rate=1e-2,
    target_rate=0.1,
    checks=1,
    device="cpu",
)


def trained(table: Transitions, config: TrainConfig) -> dict[str, Seen]:
    run = prepare(table, config, 0, progress=False)
    members, feed = run.members(), Held.of(run.data, run.training.target)
    seen = learn(members, config, feed, reach_within(members, feed, run.table))
    return {member.name: each for member, each in zip(members, seen, strict=True)}


def values(seen: Seen) -> Floats:
    """[s, a, k] raw, of what a member is kept as."""
    assert seen.stopped is None
    assert seen.kept is not None
    network = seen.kept.network
    return network.raw(network(torch.eye(STATES)))[0].numpy().astype(np.float64)


@pytest.fixture(scope="module")
def world() -> Tabular:
    return Tabular.drawn(SEED)


@pytest.fixture(scope="module")
def found(world) -> dict[str, Seen]:
    torch.set_num_threads(1)
    return trained(world.log(), CONFIG)


def off(q: Floats, wanted: Floats, world: Tabular) -> float:
    """The largest error at what the log covers."""
    return float(np.abs(q - wanted)[world.covered].max())


def greedy(q: Floats, world: Tabular) -> list[int]:
    return np.where(world.legal, q @ WEIGHTS, -np.inf).argmax(axis=1).tolist()


def test_double_dqn_finds_the_best_values(world, found) -> None:
    wanted, _ = world.solved(world.best)
    assert off(values(found["ddqn"]), wanted, world) < TOLERANCE
    assert greedy(values(found["ddqn"]), world) == greedy(wanted, world)


def test_the_best_action_is_better_by_more_than_the_tolerance(world) -> None:
    """Else every greedy policy here would be optimal by luck."""
    wanted, _ = world.solved(world.best)
    ranked = np.sort(np.where(world.legal, wanted @ WEIGHTS, -np.inf), axis=1)
    # Weights sum to 1.5, so heads within the tolerance move a difference of two actions by 3 tolerances at most.
    assert (ranked[:, -1] - ranked[:, -2]).min() > 3 * TOLERANCE


def test_a_small_penalty_finds_the_best_values_too(world, found) -> None:
    """The penalty moves q by c (1 - softmax(q) / mu) a decision, c = alpha |w~|^2 / 2: up by c at most, down by
    c (1 / mu - 1) at most. With alpha = 0.02 and mu of 1/10 that is 0.01 and 0.1 standard deviations at the very most;
    what it comes to in the end is computed."""
    wanted, _ = world.solved(world.best)
    exact, _ = world.solved(world.best, biased=world.conservative(SMALL))
    assert 0.001 < off(exact, wanted, world) < TOLERANCE / 2
    assert off(values(found["small"]), wanted, world) < TOLERANCE
    assert greedy(values(found["small"]), world) == greedy(wanted, world)


@pytest.mark.parametrize(("name", "alpha", "credit"), [("cql", 1.0, True), ("push_down", 0.5, False)])
def test_a_large_penalty_finds_its_own_fixed_point(world, found, name, alpha, credit) -> None:
    exact, _ = world.solved(world.best, biased=world.conservative(alpha, credit))
    assert off(values(found[name]), exact, world) < TOLERANCE
    # Not the best values, and not the fixed point of a penalty twice as heavy: the 1/2 of `conservative` is needed.
    twice, _ = world.solved(world.best, biased=world.conservative(2 * alpha, credit))
    for other in (world.solved(world.best)[0], twice):
        assert off(exact, other, world) > 3 * TOLERANCE


def test_implicit_q_learning_by_halves_values_the_logging_policy(world, found) -> None:
    wanted, _ = world.solved(lambda s, q: world.mu[s] @ q)
    assert off(values(found["mean"]), wanted, world) < TOLERANCE
    assert off(wanted, world.solved(world.best)[0], world) > 5 * TOLERANCE


@pytest.mark.parametrize(("name", "level"), [("middle", 0.8), ("highest", 0.99)])
def test_implicit_q_learning_finds_its_expectile(world, found, name, level) -> None:
    exact, _ = world.solved(world.expectile(level))
    assert off(values(found[name]), exact, world) < TOLERANCE


def test_towards_one_the_expectile_is_the_best_of_the_logged_actions(world, found) -> None:
    wanted, _ = world.solved(world.best_logged)
    errors = [off(world.solved(world.expectile(level))[0], wanted, world) for level in (0.8, 0.9, 0.99, 0.999, 0.9999)]
    assert errors == sorted(errors, reverse=True)
    # (1 - lambda) / lambda is the odds of a worse action: the error falls with it, tenfold each time.
    assert errors[-1] == pytest.approx(errors[-2] / 10, rel=0.1)
    assert errors[-1] < 0.01
    assert off(values(found["highest"]), wanted, world) < errors[2] + TOLERANCE < 4 * TOLERANCE
    assert greedy(values(found["highest"]), world) == greedy(wanted, world)


def test_implicit_q_learning_never_asks_for_what_was_not_logged(world) -> None:
    """A legal action that nobody took in any state: V is the best of the others, whatever a network makes of it."""
    shown = replace(world, rows=np.where(np.arange(ACTIONS) == SEND, 0, world.rows))
    config = replace(CONFIG, learners={"highest": LEARNERS["highest"]})
    exact, _ = shown.solved(shown.expectile(0.99))
    assert off(values(trained(shown.log(), config)["highest"]), exact, shown) < TOLERANCE
    assert off(exact, world.solved(world.best)[0], shown) > 5 * TOLERANCE


@pytest.mark.parametrize(("name", "level", "temperature"), [("warm", 0.8, 1.0), ("hot", 0.9, 15.0)])
def test_the_regressed_policy_is_the_log_by_its_advantages(world, found, name, level, temperature) -> None:
    kept = found[name].kept
    assert kept is not None
    logits = kept.network(torch.eye(STATES))[0, :, :, 0].numpy()
    policy = np.where(world.legal, np.exp(logits), 0.0)
    policy /= policy.sum(axis=1, keepdims=True)
    wanted = world.regressed(world.solved(world.expectile(level)), temperature)
    assert np.abs(policy - wanted).max() < 0.05
    best = np.argmax(np.where(world.mu > 0, world.solved(world.expectile(level))[0] @ WEIGHTS, -np.inf), axis=1)
    on_best = policy[np.arange(STATES), best]
    if name == "hot":
        assert on_best.min() > 0.9
    else:  # Not the log itself, and not its best action.
        assert np.abs(wanted - world.mu).max() > 0.1
        assert on_best.min() < 0.9


# That the tests above see each mistake they are there for.

MISTAKES: dict[str, Callable[[Tabular], Floats]] = {
    "gamma without its exponent": lambda w: replace(w, elapsed=np.ones_like(w.elapsed)).solved(w.best)[0],
    "gamma is 1": lambda w: w.solved(w.best, gamma=1.0)[0],
    "a closed account goes on": lambda w: replace(w, terminal=()).solved(w.best)[0],
    "illegal actions are chosen": lambda w: replace(w, legal=w.covered).solved(replace(w, legal=w.covered).best)[0],
    "the policy of the log is valued": lambda w: w.solved(lambda s, q: w.mu[s] @ q)[0],
    "the components change places": lambda w: w.solved(w.best)[0][..., ::-1],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_seen(world, mistake) -> None:
    wanted, _ = world.solved(world.best)
    assert off(MISTAKES[mistake](world), wanted, world) > 5 * TOLERANCE


def test_truncated_taken_for_terminal_would_be_seen(world) -> None:
    table = world.log()
    ended = replace(table, terminal=table.terminal | table.truncated, truncated=np.zeros_like(table.truncated))
    config = replace(CONFIG, learners={"ddqn": 0.0}, steps=600)
    wanted, _ = world.solved(world.best)
    assert off(values(trained(ended, config)["ddqn"]), wanted, world) > 5 * TOLERANCE


def test_a_lost_exponent_would_be_seen(world) -> None:
    table = world.log()
    config = replace(CONFIG, learners={"ddqn": 0.0}, steps=600)
    wanted, _ = world.solved(world.best)
    seen = trained(replace(table, elapsed_days=np.ones_like(table.elapsed_days)), config)["ddqn"]
    assert off(values(seen), wanted, world) > 5 * TOLERANCE


def test_gamma_of_one_by_mistake_would_be_seen(world, found) -> None:
    wanted, _ = world.solved(world.best)
    seen = found["undiscounted"]
    assert seen.stopped is not None or off(values(seen), wanted, world) > 5 * TOLERANCE


# Units.


def two_units(scale: float = 1.0) -> Transitions:
    """r0 is 0 or 2, r1 0 or 10 with it; `scale` is the size of r1's unit."""
    table = Tabular.drawn(SEED).log()
    n = len(table.user) - len(table.user) % 2
    rows = np.arange(len(table.user)) < n
    high = (np.arange(n) % 2)[:, None]
    one_day = replace(table.where(rows), elapsed_days=np.ones(n), terminal=np.zeros(n, dtype=bool))
    return replace(one_day, reward=high * np.array([2.0, 10.0 * scale]))


def test_heads_are_in_standard_deviations_and_raw_units_by_hand() -> None:
    config = replace(CONFIG, weights={"r0": 3.0, "r1": -0.2}, gamma_per_day=0.5, learners={"ddqn": 0.0})
    run = prepare(two_units(), config, 0, progress=False)
    members, feed = run.members(), Held.of(run.data, run.training.target)
    # Half the rows are (0, 0), half (2, 10): sigma = (1, 5); w.r is 0 or 3 * 2 - 0.2 * 10 = 4, so sd(w.r) = 2, where
    # independent components would give sqrt(9 * 1 + 0.04 * 25) = sqrt(10). w~ = (3 * 1, -0.2 * 5) / 2.
    assert run.units.sigma.tolist() == pytest.approx([1.0, 5.0])
    assert members[0].scales.reward_sd == pytest.approx(2.0)
    assert members[0].scales.inner.tolist() == pytest.approx([1.5, -0.5])
    # Rewards in sigma are (0, 0) or (2, 2), and (1, 1) on average over all rows.
    assert run.data.reward.unique(dim=0).tolist() == [[0.0, 0.0], [2.0, 2.0]]
    # E[gamma^Delta] = 0.5 at each row: their mean for ever is worth 1 / (1 - 0.5) of them.
    mean, level = run.data.reward[feed.places].mean(dim=0), reach_within(members[:1], feed, run.table)[0].level
    assert level.tolist() == pytest.approx((2 * mean).tolist())
    (block,) = blocks_of(members, config, feed, level.unsqueeze(0))
    with torch.no_grad():
        for weight in block.networks.online.weights:
            weight.zero_()
        block.networks.online.biases[-1].copy_(torch.tensor([2.0, -1.0]).repeat(ACTIONS))
    network, weights = block.acting(0)
    heads = network(torch.eye(STATES))
    assert heads[0, 0, 0].tolist() == [2.0, -1.0]
    assert network.raw(heads)[0, 0, 0].tolist() == [2.0, -5.0]
    # q = 1.5 * 2 + 0.5 * 1 = 3.5 standard deviations of w.r, the same as (3 * 2 + 0.2 * 5) / 2 from raw values.
    assert (heads[0, 0, 0].numpy() @ weights) == pytest.approx(3.5)


def test_the_unit_of_a_reward_does_not_matter() -> None:
    """In thousandths, at a thousandth of the weight, the same is learned; only raw values tell."""
    found = []
    for scale in (1.0, 1000.0):
        config = replace(CONFIG, weights={"r0": 3.0, "r1": -0.2 / scale}, learners={"cql": 1.0}, steps=60)
        kept = trained(two_units(scale), config)["cql"].kept
        assert kept is not None
        heads = kept.network(torch.eye(STATES))
        found.append((heads.numpy() @ kept.weights, kept.network.raw(heads).numpy()))
    (q, raw), (q_other, raw_other) = found
    assert np.abs(q - q_other).max() < 1e-4
    assert np.abs(raw * [1.0, 1000.0] - raw_other).max() < 1e-4 * np.abs(raw_other).max()


# What is illegal carries no gradient.


def random_batch(decision: bool, following: bool) -> Batch:
    """[2, 6] rows, three actions; the last is illegal at every decision, at every next state, or at both."""
    torch.manual_seed(0)
    legal, next_legal = torch.ones(2, 2, 6, 3, dtype=torch.bool)
    legal[..., 2], next_legal[..., 2] = not decision, not following
    action = torch.randint(2 if decision else 3, (2, 6))
    state, next_state = torch.randn(2, 2, 6, STATES)
    return Batch(state, legal, action, torch.randn(2, 6, HEADS), torch.rand(2, 6), next_state, next_legal)


def both(seed: int, actions: int, components: int) -> Population:
    zero, one = torch.zeros(STATES), torch.ones(STATES)
    unit = torch.zeros(components), torch.ones(components)
    return initial([seed, seed + 1], (8,), zero, one, *unit, actions)


def losses(kind: str) -> tuple[Callable[[Batch], torch.Tensor], list[Population], Population | None]:
    """The loss [2] of two members on a batch, the networks with a head for each action, and the target network."""
    online, target, value, actor = both(1, 3, HEADS), both(3, 3, HEADS), both(5, 1, HEADS), both(7, 3, 1)
    two = torch.ones(2)
    setting = Settings(
        weights=torch.tensor([[1.0, 0.5], [0.3, -1.0]]), alpha=2 * two, credit=two * (kind != "push_down"),
        gamma=0.9 * two, expectile=0.8 * two, temperature=two, target_rate=0.1 * two,
    )  # fmt: skip
    if kind == "cloning":
        return lambda batch: behaviour_cloning(actor, batch), [actor], None
    if kind == "iql":
        networks = Networks(online, target, value, actor)
        return lambda batch: iql(networks, batch, setting).loss, [online, actor], target
    return lambda batch: ddqn_cql(Networks(online, target), batch, setting).loss, [online], target


@pytest.mark.parametrize("kind", ["ddqn_cql", "push_down", "iql", "cloning"])
def test_an_action_illegal_everywhere_has_no_gradient_and_no_influence(kind) -> None:
    loss, heads, target = losses(kind)
    batch = random_batch(decision=True, following=True)
    parameters = [each for network in heads for each in network.parameters()]
    before = loss(batch)
    plain = torch.autograd.grad(before.sum(), parameters)
    named = dict(zip(parameters, plain, strict=True))
    for network in heads:
        gradient = named[network.biases[-1]].view(2, 3, -1)
        assert torch.equal(gradient[:, 2], torch.zeros_like(gradient[:, 2]))
        assert (gradient[:, :2] != 0).all()
        assert torch.equal(named[network.weights[-1]].view(2, -1, 3, gradient.shape[-1])[:, :, 2].abs().max(),
                           torch.tensor(0.0))  # fmt: skip
    # Worth a million, it would be chosen at once and fill every logsumexp.
    with torch.no_grad():
        for network in [*heads, *([target] if target else [])]:
            network.biases[-1].view(2, 3, -1)[:, 2] = 1e6
    assert torch.equal(loss(batch), before)
    after = torch.autograd.grad(loss(batch).sum(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(plain, after, strict=True))


@pytest.mark.parametrize("kind", ["ddqn_cql", "push_down"])
def test_an_action_illegal_at_the_next_state_is_never_bootstrapped_from(kind) -> None:
    loss, (online,), target = losses(kind)
    assert target is not None
    barred, free = random_batch(decision=False, following=True), random_batch(decision=False, following=False)
    found = []
    for worth in (0.0, 1e3):
        with torch.no_grad():
            online.biases[-1].view(2, 3, -1)[:, 2] = torch.tensor([50.0, -50.0])  # q of 25 and more: it would be chosen
            target.biases[-1].view(2, 3, -1)[:, 2] = worth
        found.append([*torch.autograd.grad(loss(barred).sum(), list(online.parameters())), loss(free).detach()])
    *gradients, chosen = zip(*found, strict=True)
    assert all(torch.equal(one, other) for one, other in gradients)
    assert not torch.allclose(*chosen)


# What a penalised value bounds, with exact backups.


@dataclass(frozen=True)
class Chain:
    """Random rewards, transitions and discounts (some 0: terminal), a log's policy mu and another, pi."""

    reward: Floats  # [s, a]
    step: Floats  # [s, a, s'] discount times chance
    mu: Floats  # [s, a] 0 where illegal, else above 0
    pi: Floats  # [s, a]

    @classmethod
    def drawn(cls, seed: int, states: int, actions: int) -> "Chain":
        rng = np.random.default_rng(seed)
        legal = rng.random((states, actions)) < 0.8
        legal[np.arange(states), rng.integers(actions, size=states)] = True
        discount = rng.uniform(0.2, 0.9, size=(states, actions)) * (rng.random((states, actions)) < 0.9)

        def policy(least: float) -> Floats:
            weight = legal * (rng.gamma(0.5, size=(states, actions)) + least)
            return weight / weight.sum(axis=1, keepdims=True)

        chance = rng.dirichlet(np.full(states, 0.5), size=(states, actions))
        return cls(rng.normal(size=(states, actions)), discount[..., None] * chance, policy(0.02), policy(1e-9))

    def fixed(self, worth: Callable[[Floats], Floats], biased: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        """Q [s, a] = biased(r + step V), V [s] = worth(Q); 0.9^300 < 1e-13."""
        value = np.zeros(len(self.reward))
        for _ in range(300):
            q = biased(self.reward + self.step @ value)
            value = worth(q)
        return q, value

    def evaluated(self, minus: Floats | float = 0.0) -> tuple[Floats, Floats]:
        """Of pi, `minus` [s, a] taken from every backup."""
        return self.fixed(lambda q: (self.pi * q).sum(axis=1), lambda y: y - minus)

    def greedy(self, q: Floats) -> Floats:
        return np.where(self.mu > 0, q, -np.inf).max(axis=1)

    def conservative(self, c: float, credit: bool = True) -> tuple[Floats, Floats]:
        """Q and its greedy value, each backup as `lifted` leaves it."""

        return self.fixed(self.greedy, lambda y: lifted(y, self.mu, c, credit))

    @property
    def ratio(self) -> Floats:
        """[s, a] pi / mu, 0 where illegal."""
        return np.divide(self.pi, self.mu, out=np.zeros_like(self.pi), where=self.mu > 0)


CHAINS = {"seed": st.integers(0, 2**32 - 1), "states": st.integers(1, 5), "actions": st.integers(2, 4)}


def below(low: Floats, high: Floats) -> bool:
    return bool((low <= high + 1e-8 * (1 + np.abs(low) + np.abs(high))).all())


@given(**CHAINS, alpha=st.floats(0.01, 20))
@settings(max_examples=60, deadline=None)
def test_the_value_of_a_policy_is_bounded_where_the_penalty_contrasts_that_policy(seed, states, actions, alpha) -> None:
    """Kumar et al. 2020, theorem 3.2, in the units of `td_loss`, which has no 1/2: the fixed point is
    Q = B Q - alpha/2 (pi / mu - 1).

    Its value sum_a pi Q lies below V^pi in every state, and therefore on average over any states, the log's among
    them: V - V^pi = - (I - step^pi)^-1 alpha/2 sum_a pi (pi / mu - 1), the inverse has no negative entry, and
    sum_a pi (pi / mu - 1) is the chi-squared divergence of pi from mu. Single actions are not bounded: see below.
    """
    chain = Chain.drawn(seed, states, actions)
    _, true = chain.evaluated()
    _, found = chain.evaluated(alpha / 2 * (chain.ratio - 1))
    assert below(found, true)
    divergence = (chain.pi * (chain.ratio - 1)).sum(axis=1)
    assert (divergence >= -1e-12).all()
    assert below(found, true - alpha / 2 * divergence)  # the first decision's share of it
    log = np.random.default_rng(seed).dirichlet(np.ones(states))
    assert below(log @ found, log @ true)


@given(**CHAINS, alpha=st.floats(0.01, 20))
@settings(max_examples=60, deadline=None)
def test_every_action_is_bounded_where_logged_actions_earn_no_credit(seed, states, actions, alpha) -> None:
    """Kumar et al. 2020, theorem 3.1: Q = B Q - alpha/2 pi / mu lies below Q^pi at every state and action."""
    chain = Chain.drawn(seed, states, actions)
    q, _ = chain.evaluated()
    found, _ = chain.evaluated(alpha / 2 * chain.ratio)
    legal = chain.mu > 0
    assert below(found[legal], q[legal])


def test_the_credited_form_bounds_no_single_action_and_is_exact_for_the_logging_policy() -> None:
    chain = Chain.drawn(0, 4, 3)
    q, _ = chain.evaluated()
    found, _ = chain.evaluated(chain.ratio - 1)
    assert (found > q + 0.1)[chain.mu > 0].any()
    own = replace(chain, pi=chain.mu)
    assert np.allclose(own.evaluated(own.ratio - 1)[1], own.evaluated()[1])


@given(**CHAINS, alpha=st.floats(0.01, 20))
@settings(max_examples=40, deadline=None)
def test_what_the_greedy_value_of_the_logsumexp_form_does_lie_between(seed, states, actions, alpha) -> None:
    """The learner's own form: the penalty contrasts softmax(q), the backup takes the maximum. With c = alpha/2,

    V^mu <= max Q: since sum_a mu (softmax / mu - 1) = 0, sum_a mu Q is that of the backup, and the maximum is no less;
    max Q <= V* + c H, H the longest discounted number of decisions: no backup is lifted by more than c. That lift is
    what `models.reach.Reach` allows for. Without credit both are c a decision lower.
    """
    chain, c = Chain.drawn(seed, states, actions), alpha / 2
    _, best = chain.fixed(chain.greedy, lambda y: y)
    _, logged = replace(chain, pi=chain.mu).evaluated()
    _, found = chain.conservative(c)
    counted = replace(chain, reward=np.ones_like(chain.reward))
    _, most = counted.fixed(counted.greedy, lambda y: y)
    assert below(logged, found)
    assert below(found, best + c * most)
    _, pushed = chain.conservative(c, credit=False)
    assert below(pushed, best)
    assert below(replace(chain, pi=chain.mu).evaluated(c)[1], pushed)


ONE_STATE = Chain(np.zeros((1, 2)), np.full((1, 2, 1), 0.9), np.array([[0.9, 0.1]]), np.array([[1.0, 0.0]]))
ABOVE = 1.289
"""softmax(q) = p solves log(p / (1 - p)) = (1 - p) / 0.1 - p / 0.9: p = 0.78399; q of the first action is
0.9 max q + 1 - p / 0.9, so that max q = (1 - 0.8711) / (1 - 0.9) = 1.289."""


def test_the_greedy_value_of_the_logsumexp_form_bounds_nothing() -> None:
    """One state that returns to itself at a discount of 0.9, two actions that pay nothing, logged 9 times in 10 and
    once: V* and V^pi of every policy are 0. With alpha = 2 the penalty holds both q near each other, so that softmax
    takes the usual action less often (0.784) than the log does (0.9); its q is lifted by 1 - 0.784 / 0.9 at every
    backup, and the greedy policy, which is that action, is valued 1.289 above what it is worth.

    Theorem 3.2 asks that penalty and backup contrast the same policy. Here the penalty's is softmax(q) and the
    backup's is greedy; so a penalised Q chooses, and what is read is the unpenalised fitted value of the policy.
    """
    q, value = ONE_STATE.conservative(c=1.0)
    assert value[0] == pytest.approx(ABOVE, abs=1e-3)
    assert q[0].argmax() == 0
    p = 1 / (1 + np.exp(q[0, 1] - q[0, 0]))
    assert p == pytest.approx(0.78399, abs=1e-5)
    # The softmax's own value, by the same penalty, is a bound: p q_0 + (1 - p) q_1 lies below the backup's 0.9 max q.
    assert p * q[0, 0] + (1 - p) * q[0, 1] < 0.9 * value[0]


def test_the_learner_itself_overvalues_there() -> None:
    """The same ten rows through `ddqn_cql`, by gradient descent on a network that is its last bias alone."""
    heads = Population([torch.zeros(1, 1, 2)], [torch.zeros(1, 1, 2)], *(torch.zeros(1), torch.ones(1)) * 2, 2)
    one = torch.ones(1)
    setting = Settings(one.view(1, 1), 2 * one, one, one, one, one, one)
    action = torch.tensor([[0] * 9 + [1]])
    state, legal = torch.zeros(1, 10, 1), torch.ones(1, 10, 2, dtype=torch.bool)
    batch = Batch(state, legal, action, torch.zeros(1, 10, 1), torch.full((1, 10), 0.9), state, legal)
    for _ in range(1000):
        loss = ddqn_cql(Networks(heads, heads), batch, setting).loss
        (gradient,) = torch.autograd.grad(loss.sum(), [heads.biases[-1]])
        with torch.no_grad():
            heads.biases[-1] -= 0.3 * gradient
    assert heads(torch.zeros(1, 1)).max().item() == pytest.approx(ABOVE, abs=0.01)


# That alpha/2 is what the losses make of alpha.


def rows_of_log(world: Tabular) -> tuple[Transitions, np.ndarray, torch.Tensor, torch.Tensor]:
    """The log, its rows with a target, their discounts [1, B], and their share [s, a] of all rows with a target."""
    table = world.log()
    rows = np.flatnonzero(table.terminal | (table.next_row >= 0))
    discount = np.where(table.terminal, 0.0, GAMMA**table.elapsed_days)[rows]
    share = torch.from_numpy(world.rows / world.rows.sum())
    return table, rows, torch.from_numpy(discount)[None], share


def tensors(table: Transitions, rows: np.ndarray, sigma: Floats) -> tuple[torch.Tensor, ...]:
    """State, action, reward in sigma, next state, next legal of `rows`, [1, B, ...]."""
    follows = np.where(table.next_row >= 0, table.next_row, 0)[rows]
    state = table.state.argmax(axis=1)
    parts = state[rows], table.action[rows], table.reward[rows] / sigma, state[follows], table.legal[follows]
    return tuple(torch.from_numpy(np.ascontiguousarray(each))[None] for each in parts)


def test_the_losses_have_the_fixed_point_of_the_backup_for_a_given_policy(world) -> None:
    """d/dQ_k(s, a) of mean (Q - y)^2 + alpha (sum_a pi q - q_logged), q = w~.Q, over rows of which d(s) mu(a|s) are
    (s, a): d mu 2 (Q_k - y_k) + alpha w~_k d (pi - mu) = 0, so Q_k = y_k - alpha/2 w~_k (pi / mu - 1)."""
    alpha = 3.0
    shown = replace(world, rows=world.rows * world.legal)
    sigma, inner = shown.units()
    policy = np.random.default_rng(1).gamma(1.0, size=shown.mu.shape) * shown.legal
    policy /= policy.sum(axis=1, keepdims=True)
    table, rows, discount, share = rows_of_log(shown)
    state, action, reward, following, _ = tensors(table, rows, sigma)
    pi, weights = torch.from_numpy(policy), torch.from_numpy(inner)[None]
    heads = torch.zeros(STATES, ACTIONS, HEADS, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        target = expected_target(reward, discount, heads[following], pi[following])
        q = scalarise(heads[state], weights)
        penalty = ((pi[state] * q).sum(dim=-1) - q.gather(-1, action.unsqueeze(-1)).squeeze(-1)).mean(dim=-1)
        loss = td_loss(heads[state], action, target) + alpha * penalty
        (gradient,) = torch.autograd.grad(loss.sum(), [heads])
        # A parabola in each Q, 2 share wide: one step of Newton's is its minimum.
        with torch.no_grad():
            heads -= torch.where(share > 0, 1 / (2 * share), 0.0)[..., None] * gradient
    found = heads.detach().numpy()[shown.covered]

    def fixed(factor: float) -> Floats:
        ratio = np.divide(policy, shown.mu, out=np.zeros_like(policy), where=shown.mu > 0)

        def biased(s: int, q: Floats) -> Floats:
            return q - sigma * factor * alpha * inner * (ratio[s] - 1)[:, None]

        return (shown.solved(lambda s, q: policy[s] @ q, biased=biased)[0] / sigma)[shown.covered]

    assert np.abs(found - fixed(1 / 2)).max() < 1e-8
    assert np.abs(found - fixed(1)).max() > 1


def test_the_losses_have_the_fixed_point_of_the_backup_for_the_logsumexp(world) -> None:
    alpha = 1.0
    sigma, inner = world.units()
    table, rows, discount, share = rows_of_log(world)
    state, action, reward, following, next_legal = tensors(table, rows, sigma)
    legal, weights = torch.from_numpy(world.legal)[state], torch.from_numpy(inner)[None]
    heads = torch.zeros(STATES, ACTIONS, HEADS, dtype=torch.float64, requires_grad=True)
    width = 2 * share[..., None] + alpha * inner @ inner * share.sum(dim=1)[:, None, None]
    for _ in range(1500):
        q_tp1 = scalarise(heads[following].detach(), weights)
        target = double_q_target(reward, discount, q_tp1, heads[following], next_legal)
        loss = td_loss(heads[state], action, target)
        loss = loss + alpha * cql_penalty(scalarise(heads[state], weights), action, legal)
        (gradient,) = torch.autograd.grad(loss.sum(), [heads])
        with torch.no_grad():
            heads -= gradient / width
    exact, _ = world.solved(world.best, biased=world.conservative(alpha))
    assert np.abs(heads.detach().numpy() - exact / sigma)[world.covered].max() < 1e-6
