"""Whether two transitions tables hold the same rows, column by column."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

ORDER = ("user_id", "decided_at", "decision_id", "usable", "elapsed_days", "action", "propensity")
"""Rows are matched in this order; what is equal in all of it is the same row."""
NOT_COMPARED = ("bucket", "split")
"""Hashes that only one of the two has."""
TOLERANCE = 1e-6
"""Relative, and near zero absolute."""


def differences(
    one: Callable[[str], pa.Table], other: Callable[[str], pa.Table], days: Sequence[str], limit: int = 10
) -> list[str]:
    """The first `limit` differences between the rows of two tables, day (`ds`) by day; none where they are equal.

    `one` and `other` read the rows of a day. Numbers may differ by 1e-6 of their size.
    """
    found: list[str] = []
    for day in days:
        if len(found) < limit:
            found += _of_day(day, one(day), other(day), limit - len(found))
    return found


def _of_day(day: str, one: pa.Table, other: pa.Table, limit: int) -> list[str]:
    names = [name for name in one.column_names if name not in NOT_COMPARED]
    missing = set(names) ^ {name for name in other.column_names if name not in NOT_COMPARED}
    if missing:
        return [f"{day}: {', '.join(sorted(missing))}: in one of the tables only"]
    if one.num_rows != other.num_rows:
        return [f"{day}: {one.num_rows} rows against {other.num_rows}{_alone(one, other)}"]
    one, other = (table.select(names).sort_by([(name, "ascending") for name in ORDER]) for table in (one, other))
    found = []
    for name in names:
        for row in np.flatnonzero(~_same(one[name], other[name]))[:limit]:
            which = f"{one['user_id'][row]}, {one['decision_id'][row]} at {one['decided_at'][row]}"
            found.append(f"{day}: {which}: {name} is {one[name][row]} against {other[name][row]}")
    return found[:limit]


def _alone(one: pa.Table, other: pa.Table) -> str:
    """A row that only one of two tables has, as text."""
    keys = [{*zip(*(table[name].to_pylist() for name in ORDER[:4]), strict=True)} for table in (one, other)]
    lonely = sorted(keys[0] ^ keys[1], key=str)
    return f"; the first that is in one alone: {lonely[0]}" if lonely else ""


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    """[N] whether both are null, or neither is and they are equal."""
    nulls = [np.asarray(column.is_null().to_numpy(), dtype=bool) for column in (one, other)]
    if pa.types.is_floating(one.type):
        a, b = (np.asarray(pc.fill_null(column, 0).to_numpy(), dtype=np.float64) for column in (one, other))
        equal = np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    elif pa.types.is_list(one.type):
        equal = np.array([a == b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)], dtype=bool)
    else:
        equal = np.asarray(pc.fill_null(pc.equal(one, other.cast(one.type)), True).to_numpy(), dtype=bool)
    return np.asarray((nulls[0] == nulls[1]) & (nulls[0] | equal))
