"""Parts of the users by what was known of them before the policy acted: their state at their first row."""

from collections.abc import Sequence

import numpy as np

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans


def segments(table: Transitions, rows: Booleans, features: Sequence[str]) -> dict[str, Booleans]:
    """[N] for each segment which of `rows` [N] are its users'; by the state at a user's first row among them.

    A feature of two values has a segment for each, one of more values two halves at the median over users, and users
    for whom it is not known are a segment of their own. A segment that is everybody, or nobody, is left out.

    Raises InputError for a feature that the state does not have.
    """
    place = np.flatnonzero(rows)
    first = place[np.flatnonzero(np.diff(table.user[place], prepend=-1))]
    found: dict[str, Booleans] = {}
    for name in features:
        if name not in table.contract.features:
            raise InputError(
                f"gate.segments: {name!r} is not a state feature (known: {', '.join(table.contract.features)})."
            )
        value = table.state[first, table.contract.features.index(name)].astype(np.float64)
        for label, users in _parts(name, value).items():
            member = np.zeros(len(table.user_id), dtype=np.bool_)
            member[table.user[first[users]]] = True
            if 0 < users.sum() < len(first):
                found[label] = rows & member[table.user]
    return found


def _parts(name: str, value: np.ndarray) -> dict[str, Booleans]:
    """[U] for each part of the users by their `value` [U]."""
    known = np.isfinite(value)
    parts = {f"{name} unknown": ~known}
    levels = np.unique(value[known])
    if len(levels) <= 2:
        return {**{f"{name} = {level:.4g}": value == level for level in levels}, **parts}
    middle = float(np.median(value[known]))
    # A median that is also the largest value would leave nobody above it.
    cut = middle if middle < levels[-1] else float(levels[-2])
    return {f"{name} up to {cut:.4g}": value <= cut, f"{name} above {cut:.4g}": value > cut, **parts}
