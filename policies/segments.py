"""Parts of the users by what was known of them before the policy acted: their state at their first row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers


@dataclass(frozen=True)
class Cuts:
    """Where users are parted, so that every part of a log parts them alike."""

    levels: dict[str, tuple[float, ...]]
    """Features of two values or fewer."""
    middle: dict[str, float]
    """The others: up to here, and above."""

    @classmethod
    def of(cls, table: Transitions, rows: Booleans, features: Sequence[str]) -> "Cuts":
        """A feature of two values has a segment for each, one of more values two halves at the median over users.

        `rows` [N]: a user's state is that of the first among them. Raises InputError for a feature that the state does
        not have.
        """
        levels, middle = {}, {}
        first = _first(table, rows)
        for name in features:
            if name not in table.contract.features:
                raise InputError(
                    f"gate.segments: {name!r} is not a state feature (known: {', '.join(table.contract.features)})."
                )
            value = _value(table, first, name)
            known = value[np.isfinite(value)]
            values = np.unique(known)
            if len(values) <= 2:
                levels[name] = tuple(float(each) for each in values)
            else:
                half = float(np.median(known))
                # A median that is also the largest value would leave nobody above it.
                middle[name] = half if half < values[-1] else float(values[-2])
        return cls(levels, middle)

    def parts(self, table: Transitions, rows: Booleans) -> dict[str, Booleans]:
        """[N] for each segment which of `rows` [N] are its users'. Users for whom a feature is not known are a segment
        of their own, and so are those whose value no level was made for."""
        first = _first(table, rows)
        found: dict[str, Booleans] = {}
        for name in (*self.levels, *self.middle):
            for label, users in self._labelled(name, _value(table, first, name)).items():
                member = np.zeros(len(table.user_id), dtype=np.bool_)
                member[table.user[first[users]]] = True
                found[label] = rows & member[table.user]
        return found

    def _labelled(self, name: str, value: Floats) -> dict[str, Booleans]:
        """[U] for each part of the users by their `value` [U]."""
        known = np.isfinite(value)
        unknown = {f"{name} unknown": ~known}
        if name in self.middle:
            cut = self.middle[name]
            return {f"{name} up to {cut:.4g}": value <= cut, f"{name} above {cut:.4g}": value > cut, **unknown}
        parts = {f"{name} = {level:.4g}": value == level for level in self.levels[name]}
        return {**parts, f"{name} other": known & ~np.isin(value, self.levels[name]), **unknown}


def segments(table: Transitions, rows: Booleans, features: Sequence[str]) -> dict[str, Booleans]:
    """[N] for each segment which of `rows` [N] are its users'; one that is everybody, or nobody, is left out.

    Raises InputError as `Cuts.of` does.
    """
    users = len(_first(table, rows))
    found = Cuts.of(table, rows, features).parts(table, rows)
    return {label: part for label, part in found.items() if 0 < len(_first(table, part)) < users}


def _first(table: Transitions, rows: Booleans) -> Integers:
    """Places of the first of `rows` [N] of each user that has any."""
    place = np.flatnonzero(rows)
    found: Integers = place[np.flatnonzero(np.diff(table.user[place], prepend=-1))].astype(np.int64)
    return found


def _value(table: Transitions, first: Integers, name: str) -> Floats:
    value: Floats = table.state[first, table.contract.features.index(name)].astype(np.float64)
    return value
