"""Sums over each user's rows of each group, where most users have few of the groups."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from policies.base import Floats, Integers

MOST_PER_ROW = 4
"""Cells of users by groups, for each row, beyond which only those that hold a row are kept."""


@dataclass(frozen=True)
class Grouped:
    """[U, G, ...] sums of which only the cells that hold a row are kept."""

    cells: Any
    """[U, G x ...] as a sparse matrix by rows."""
    shape: tuple[int, ...]
    """(U, G, ...)."""

    def toarray(self) -> Floats:
        """[U, G, ...]."""
        found: Floats = self.cells.toarray().reshape(self.shape)
        return found


PerUser = Floats | Grouped
"""[U, G, ...], in full or by the cells that hold a row."""


def grouped(user: Integers, group: Integers, values: Floats) -> PerUser:
    """[U, G, ...] sums of `values` [n, ...] over each user's rows of each group.

    In full where that is not much more than the rows: else one long trajectory among many short ones would take users
    times its length.
    """
    users, groups = int(user.max()) + 1, int(group.max()) + 1
    columns = values.reshape(len(values), -1)
    shape = (users, groups, *values.shape[1:])
    if users * groups <= MOST_PER_ROW * len(user):
        cell, cells = user * groups + group, users * groups
        full: Floats = np.stack([np.bincount(cell, column, cells) for column in columns.T], axis=-1)
        return full.reshape(shape)
    width = columns.shape[1]
    at = (group[:, None] * width + np.arange(width)).ravel()
    matrix = sparse.csr_array((columns.ravel(), (np.repeat(user, width), at)), shape=(users, groups * width))
    return Grouped(matrix, shape)


def over(counts: Floats, values: PerUser) -> Floats:
    """[R, G, ...] sums over users of `values`, user u counted `counts` [R, U] times."""
    if isinstance(values, Grouped):
        found: Floats = counts @ values.cells
    else:
        found = counts @ values.reshape(values.shape[0], -1)
    return found.reshape(len(counts), *values.shape[1:])
