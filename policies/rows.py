"""Columns that grow, and when their rows become known."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.behaviour import DAY, HOUR, MINUTE


class Rows:
    """Append-only columns of equal length, grown by doubling."""

    def __init__(self, **types: type) -> None:
        self.length = 0
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(1024, dtype) for name, dtype in types.items()}

    def append(self, **values: NDArray[Any]) -> None:
        """Add rows; every column is given."""
        end = self.length + len(next(iter(values.values())))
        for name, column in self._columns.items():
            if end > len(column):
                self._columns[name] = column = np.concatenate([column, np.empty(end, column.dtype)])
            column[self.length : end] = values[name]
        self.length = end

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column [rows so far]; a view, not a copy."""
        return self._columns[name][: self.length]

    def where(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Copies of every column at the given rows (mask or indices)."""
        return {name: column[: self.length][rows] for name, column in self._columns.items()}

    def take(self) -> dict[str, NDArray[Any]]:
        """Copies of every column, leaving none: for a reader that keeps what it needs itself."""
        found = self.where(np.arange(self.length))
        self.length = 0
        return found


def arrival_delay(u: NDArray[np.float64], left: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] microseconds until an event is known: 85% within a minute, 13% within an hour, 2% within two days.

    `u` [n] is uniform. Never more than half the time `left` [n] to the end: the lake is taken when everything before
    its end has arrived, so that the log counts what truth counts.
    """
    ends, spans = np.array([0.0, 0.85, 0.98, 1.0]), np.array([MINUTE, HOUR, 2 * DAY])
    part = np.searchsorted(ends[1:3], u, side="right")
    share = (u - ends[part]) / (ends[part + 1] - ends[part])
    delay: NDArray[np.int64] = np.minimum((share * spans[part]).astype(np.int64), np.maximum(left, 0) // 2)
    return delay
