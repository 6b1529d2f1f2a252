"""A small world with known values, as a table of transitions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import Contract
from models.members import Learner
from models.network import initial
from models.scaling import Scales
from models.table import Transitions
from models.train import Learned

DAY = 86_400_000_000


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _table(users: list[int], **columns: Any) -> Transitions:
    """Rows in order; `users` says whose each is, everything not given is plain."""
    n = len(users)
    state = np.asarray(columns.pop("state"), dtype=np.float32).reshape(n, -1)
    reward = np.asarray(columns.pop("reward"), dtype=np.float64).reshape(n, -1)
    legal = np.asarray(columns.pop("legal", np.ones((n, 2), dtype=bool)))
    last = np.diff(users, append=-1) != 0
    terminal = np.asarray(columns.pop("terminal", np.zeros(n, dtype=bool)))
    plain = {
        "contract": Contract(
            ("hold", "send", "push")[: legal.shape[1]],
            tuple(f"f{s}" for s in range(state.shape[1])),
            tuple(f"r{k}" for k in range(reward.shape[1])),
        ),
        "user": np.asarray(users, dtype=np.int64),
        "user_id": np.array([f"u{u}" for u in range(max(users) + 1)], dtype=object),
        "decided_at": np.arange(n, dtype=np.int64) * DAY,
        "state": state,
        "legal": legal,
        "action": np.zeros(n, dtype=np.int64),
        "propensity": np.full(n, 0.5),
        "estimated": np.zeros(n, dtype=bool),
        "reward": reward,
        "elapsed_days": np.ones(n),
        "terminal": terminal,
        "truncated": last & ~terminal,
        "silent": np.zeros(n, dtype=bool),
        "warm_up": np.zeros(n, dtype=bool),
        "split": np.zeros(n, dtype=np.int8),
        "version": 0,
        "fingerprint": "test",
    }
    return Transitions(**{**plain, **columns})


@pytest.fixture
def table_of() -> Callable[..., Transitions]:
    return _table


class World:
    """Two states, three actions. 0 stays and takes a day; 1 changes state and takes two; 2 closes the account and is
    legal in state 0 alone: in state 1 the log shows how well it paid before a configured constraint forbade it."""

    reward = np.array([[[1.0, 0.0], [0.0, 1.0], [2.5, 0.0]], [[0.0, 0.2], [3.0, -1.0], [9.0, 9.0]]])  # [s, a, k]
    elapsed = np.array([1.0, 2.0, 1.0])  # [a]
    legal = np.array([[True, True, True], [True, True, False]])  # [s, a]
    weights = np.array([1.0, 0.5])
    gamma = 0.8

    @staticmethod
    def after(state: int, action: int) -> int:
        return 1 - state if action == 1 else state

    def log(self, users: int = 400, length: int = 4, seed: int = 0) -> Transitions:
        """Uniform legal actions, now and then the forbidden one; `length` rows per user unless the account is closed,
        so many rows are truncated."""
        rng = np.random.default_rng(seed)
        rows: list[tuple[int, int, int, bool]] = []
        for user in range(users):
            state = int(rng.integers(2))
            for _ in range(length):
                forbidden = state == 1 and rng.random() < 0.1
                action = 2 if forbidden else int(rng.choice(np.flatnonzero(self.legal[state])))
                rows.append((user, state, action, action == 2))
                state = self.after(state, action)
                if action == 2:
                    break
        who, state_of, action_of, terminal = (np.array(column) for column in zip(*rows, strict=True))
        return _table(
            who.tolist(),
            state=state_of,
            action=action_of,
            terminal=terminal,
            legal=self.legal[state_of],
            reward=self.reward[state_of, action_of],
            elapsed_days=self.elapsed[action_of],
        )

    def backup(self, value: np.ndarray, gamma: float) -> np.ndarray:
        """[s, a, k] r + gamma^Delta (1 - terminal) V(s'), from `value` [s, k]: plain loops, nothing shared."""
        q = np.zeros((2, 3, 2))
        for s in range(2):
            for a in range(3):
                going = 0.0 if a == 2 else gamma ** self.elapsed[a]
                q[s, a] = self.reward[s, a] + going * value[self.after(s, a)]
        return q

    def optimal(self) -> np.ndarray:
        """[s, a, k] Q of the best policy under the weights, by value iteration."""
        value = np.zeros((2, 2))
        for _ in range(500):
            q = self.backup(value, self.gamma)
            best = np.where(self.legal, q @ self.weights, -np.inf).argmax(axis=1)
            value = q[np.arange(2), best]
        return q


@pytest.fixture(scope="session")
def world() -> World:
    return World()


def _untrained(features: int = 3) -> Learned:
    """Two actions, two components, random networks."""
    names = tuple(f"f{s}" for s in range(features))
    contract = Contract(("hold", "send"), names, ("sends", "clicks"), {"sends": "notifications"})
    mean, std = np.arange(features, dtype=np.float32), np.full(features, 2.0, dtype=np.float32)
    scales = Scales(mean, std, np.array([0.5, 0.1]), 0.7, np.array([-0.05, 1.0]))
    state = torch.from_numpy(mean), torch.from_numpy(std)
    sigma = torch.tensor([0.5, 0.1])
    one = torch.ones(1)
    return Learned(
        name="ddqn_cql",
        learner=Learner(alpha=1.0),
        contract=contract,
        scales=scales,
        q_network=initial([1], (8, 8), *state, torch.zeros(2), sigma, 2).member(0),
        q_weights=scales.inner,
        behaviour=initial([2], (8,), *state, 0 * one, one, 2).member(0),
        values=initial([3], (8,), *state, torch.tensor([5.0, -5.0]), 3 * sigma, 2).member(0),
        curves=[],
        agreement=None,
    )


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Learned]:
    return _untrained
