"""Logs small enough to check by hand, and larger ones whose truth is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from models.contract import Contract
from models.table import Transitions

DAY_US = 86_400_000_000


def make_table(
    users: Sequence[str],
    action: Sequence[int],
    propensity: Sequence[float],
    reward: Any,
    *,
    rewards: tuple[str, ...] = ("value",),
    actions: tuple[str, ...] = ("hold", "send"),
    state: Any = None,
    legal: Any = None,
    elapsed_days: Any = None,
    terminal: Any = None,
    split: Any = None,
    estimated: Any = None,
    decided_at: Any = None,
) -> Transitions:
    """One row per element, users contiguous, a day apart; a user's last row is truncated unless it is terminal."""
    n = len(users)
    names = list(dict.fromkeys(users))
    code = {name: number for number, name in enumerate(names)}
    user = np.array([code[name] for name in users], dtype=np.int64)
    last = np.append(np.diff(user) != 0, True)
    ended = np.zeros(n, dtype=np.bool_) if terminal is None else np.asarray(terminal, dtype=np.bool_)
    step = np.arange(n) - np.flatnonzero(np.diff(user, prepend=-1))[user]
    columns = np.zeros((n, 1)) if state is None else np.asarray(state, dtype=np.float64).reshape(n, -1)
    elapsed = np.ones(n) if elapsed_days is None else np.asarray(elapsed_days, dtype=np.float64)
    return Transitions(
        contract=Contract(actions, tuple(f"x{i}" for i in range(columns.shape[1])), rewards),
        user=user,
        user_id=np.array(names, dtype=object),
        decided_at=step * DAY_US if decided_at is None else np.asarray(decided_at, dtype=np.int64),
        state=columns.astype(np.float32),
        legal=np.ones((n, len(actions)), dtype=np.bool_) if legal is None else np.asarray(legal, dtype=np.bool_),
        action=np.asarray(action, dtype=np.int64),
        propensity=np.asarray(propensity, dtype=np.float64),
        estimated=np.zeros(n, dtype=np.bool_) if estimated is None else np.asarray(estimated, dtype=np.bool_),
        reward=np.asarray(reward, dtype=np.float64).reshape(n, len(rewards)),
        elapsed_days=elapsed,
        terminal=ended,
        truncated=last & ~ended,
        silent=np.zeros(n, dtype=np.bool_),
        warm_up=np.zeros(n, dtype=np.bool_),
        split=np.full(n, 2, dtype=np.int8) if split is None else np.asarray(split, dtype=np.int8),
        version=0,
        fingerprint="test",
    )


@pytest.fixture(scope="session")
def table_of() -> Callable[..., Transitions]:
    """`make_table`, for tests to build logs with."""
    return make_table
