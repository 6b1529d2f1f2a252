"""Where a learned reward was learned: the range of every state feature among the rows that raters saw, by action."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.rewards.weeks import Weeks
from models.table import Transitions


@dataclass(frozen=True)
class Support:
    """A box for each of A actions over S features: it has no holes, so what lies outside is surely new.

    What lies inside may be new too, as a combination.
    """

    actions: tuple[str, ...]
    features: tuple[str, ...]
    low: NDArray[np.float64]
    """[A, S] least value known; NaN where none was."""
    high: NDArray[np.float64]
    """[A, S]."""
    unknown: NDArray[np.bool_]
    """[A, S] whether the feature was unknown in some row."""
    rows: int
    """Behind it."""

    @classmethod
    def of(cls, logs: Sequence[tuple[Transitions, NDArray[np.bool_]]]) -> "Support":
        """Of the rows marked in each log, whose contracts are the first one's."""
        contract = logs[0][0].contract
        state = np.concatenate([table.state[rows] for table, rows in logs]).astype(np.float64)
        action = np.concatenate([table.action[rows] for table, rows in logs])
        shape = len(contract.actions), len(contract.features)
        low, high, unknown = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
        for code in range(len(contract.actions)):
            mine = state[action == code]
            known = ~np.isnan(mine)
            seen = known.any(axis=0)
            low[code, seen] = np.where(known, mine, np.inf).min(axis=0, initial=np.inf)[seen]
            high[code, seen] = np.where(known, mine, -np.inf).max(axis=0, initial=-np.inf)[seen]
            unknown[code] = (~known).any(axis=0)
        return cls(contract.actions, contract.features, low, high, unknown, len(state))

    def plain(self) -> dict[str, Any]:
        """As JSON: null for a value that never was."""
        return {
            "actions": list(self.actions),
            "features": list(self.features),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "unknown": self.unknown.tolist(),
            "rows": self.rows,
        }

    @classmethod
    def read(cls, told: dict[str, Any]) -> "Support":
        """What `plain` left."""
        low, high = (np.array([[np.nan if v is None else v for v in row] for row in told[key]], dtype=np.float64)
                     for key in ("low", "high"))  # fmt: skip
        unknown = np.array(told["unknown"], dtype=np.bool_)
        return cls(tuple(told["actions"]), tuple(told["features"]), low, high, unknown, int(told["rows"]))

    def outside(self, table: Transitions) -> NDArray[np.bool_]:
        """[N, A] whether (state, action) lies outside the box of the action, A the table's actions.

        A known value outside the range, or an unknown one where none was unknown; an action that raters never saw is
        outside everywhere. Raises InputError where the table lacks a feature.
        """
        contract = table.contract
        missing = [name for name in self.features if name not in contract.features]
        if missing:
            raise InputError(
                f"learned: the rows that a reward was learned from had {', '.join(missing)}, which this log has not; "
                "configure them, or learn the reward again."
            )
        state = table.state[:, [contract.features.index(name) for name in self.features]].astype(np.float64)
        found = np.ones((len(state), len(contract.actions)), dtype=np.bool_)
        for place, name in enumerate(contract.actions):
            if name in self.actions:
                code = self.actions.index(name)
                within = (state >= self.low[code]) & (state <= self.high[code])
                found[:, place] = ~np.where(np.isnan(state), self.unknown[code], within).all(axis=1)
        return found


def seen_rows(table: Transitions, weeks: Weeks, ids: Iterable[str]) -> NDArray[np.bool_]:
    """[N] the rows of those of `ids` that are weeks of this log."""
    named = set(ids)
    found = np.zeros(len(table.user) + 1, dtype=np.int64)
    for w in np.flatnonzero([name in named for name in weeks.id]):
        found[weeks.first[w]] += 1
        found[weeks.end[w]] -= 1
    return np.cumsum(found)[:-1] > 0


def _plain(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]
