"""What a dataset looks like per day, as sums that add: measured by the kernels in their one pass, merged on the driver.

A partial (`PARTIAL`) is one row per dataset, day and measured name:

| column         | type   | meaning |
|----------------|--------|---------|
| dataset        | string | decisions, events, users, transitions |
| day            | string | UTC day: `ds` of transitions, of arrival for raw data (`unknown` where nothing says it) |
| name           | string | what was measured, below |
| count          | int64  | values that are there (n) |
| total, squares | double | sum of x and of x² over them |
| least, largest | double | their range, null where n = 0 |

Names. A value that is not there (null, or a row that the name does not speak of) is NaN; a flag is 0 or 1.

| dataset     | name                | over | value |
|-------------|---------------------|------|-------|
| all         | rows                | all rows | 1 (`measure` adds it) |
| raw         | kept, exact_duplicate, reason:REASON | all rows | flag (`measure` adds them from the reasons) |
| raw         | null:COLUMN         | all rows | flag: it is null |
| decisions   | null:propensity     | all rows | flag |
| decisions   | bad:action          | all rows | flag: none of the configured actions |
| decisions   | bad:propensity      | rows with a propensity | flag: outside (0, 1] |
| decisions   | sends               | kept rows | flag: the action is not hold |
| decisions   | propensity, inverse_propensity, options, inverse_variance | kept rows with a known choice | `choices` |
| events      | bad:kind            | all rows | flag: no known kind |
| events      | kind:KIND           | all rows | flag: kept, and of the kind |
| users       | attribute:NAME      | kept rows | number |
| transitions | null:COLUMN         | all rows | flag, of user_id, decided_at, split, legal, elapsed_days |
| transitions | elapsed_days        | all rows | days |
| transitions | usable              | all rows | flag |
| transitions | silent, warm_up, truncated, terminal, no_action | usable rows | flag; no_action: it has none |
| transitions | propensity          | usable rows | probability |
| transitions | state_NAME, reward_NAME | usable rows | number |

NumPy and Arrow only: workers import this file.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.etl.marks import EXACT_DUPLICATE

PARTIAL = pa.schema(
    [
        ("dataset", pa.string()),
        ("day", pa.string()),
        ("name", pa.string()),
        ("count", pa.int64()),
        ("total", pa.float64()),
        ("squares", pa.float64()),
        ("least", pa.float64()),
        ("largest", pa.float64()),
    ]
)
KEYS = ("dataset", "day", "name")
UNKNOWN = "unknown"
"""The arrival day of rows that do not say when they were logged."""

Column = NDArray[Any]


def measure(
    dataset: str, day: Any, columns: Mapping[str, Column], reason: pa.Array | pa.ChunkedArray | None = None
) -> pa.Table:
    """The partial of N rows: per day and column the count, sum, sum of squares and range of its finite values.

    day: [N] days since 1970 (integers) or an Arrow array of texts. columns: name -> [N] booleans or numbers. reason:
    [N] Arrow texts, null where the row is kept; adds `kept`, `exact_duplicate` and `reason:REASON`. Rows are in
    the order of KEYS.
    """
    days, code = _coded(day)
    rows = np.bincount(code, minlength=len(days))
    flags = {} if reason is None else _reasons(reason)
    parts = {"rows": _flag(rows, rows)}
    # One sort by day serves every column, and two buffers every sum: fresh memory costs more than the arithmetic.
    order = np.argsort(code, kind="stable")
    starts = np.cumsum(rows) - rows
    buffers = np.empty(len(code)), np.empty(len(code))
    for name, column in {**flags, **columns}.items():
        if column.dtype == np.bool_:
            parts[name] = _flag(rows, np.bincount(code[column], minlength=len(days)))
        else:
            parts[name] = _number(column, order, starts, rows, *buffers)
    tables = [_table(dataset, days, name, sums) for name, sums in parts.items()]
    return pa.concat_tables(tables).combine_chunks().sort_by([(key, "ascending") for key in KEYS])


def choices(propensity: Column, options: Column, kept: Column) -> dict[str, Column]:
    """The columns propensity, inverse_propensity, options and inverse_variance, [N], NaN where no choice is known.

    inverse_variance: what the variance of 1/mu(a) is at least, 1/p + (m - 1)^2 / (1 - p) - m^2 with m options: its
    value where the other actions share the rest equally. It does not vanish where all rows show one action.

    propensity: [N], NaN where unknown. options: [N] number of actions legal by the log. kept: [N] booleans.
    """
    known = kept & (options > 1) & (propensity > 0)
    p, m = np.where(known, propensity, np.nan), np.where(known, options, np.nan)
    with np.errstate(divide="ignore"):
        others = np.where(p < 1, (m - 1) ** 2 / (1 - p), 0.0)
    variance = np.where(known, np.maximum(1 / p + others - m**2, 0.0), np.nan)
    return {"propensity": p, "inverse_propensity": 1 / p, "options": m, "inverse_variance": variance}


def merge(partials: Iterable[pa.Table]) -> pa.Table:
    """Partials of disjoint rows as one, in the order of KEYS.

    Sorted before they are added, on one thread: whichever comes first, the floating-point sums are the same.
    """
    whole = pa.concat_tables([PARTIAL.empty_table(), *partials])
    ordered = whole.sort_by([(name, "ascending") for name in PARTIAL.names])
    sums = [(name, "sum") for name in ("count", "total", "squares")]
    grouped = ordered.group_by(list(KEYS), use_threads=False).aggregate([*sums, ("least", "min"), ("largest", "max")])
    columns = [grouped[name] for name in (*KEYS, "count_sum", "total_sum", "squares_sum", "least_min", "largest_max")]
    return pa.table(columns, schema=PARTIAL).sort_by([(key, "ascending") for key in KEYS])


def _coded(day: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The days that occur, in order, and [N] the index of each row's."""
    if isinstance(day, pa.Array | pa.ChunkedArray):
        texts = pc.fill_null(day, UNKNOWN)
        found = pc.unique(texts)
        found = found.take(pc.sort_indices(found))
        return found.to_pylist(), np.asarray(pc.index_in(texts, value_set=found).to_numpy(), np.int64)
    there, code = np.unique(day, return_inverse=True)
    return there.astype("datetime64[D]").astype(str).tolist(), np.asarray(code, np.int64)


def _reasons(reason: Any) -> dict[str, Column]:
    """Flags [N] of what became of each row."""
    found = pc.unique(reason).drop_null()
    code = pc.fill_null(pc.index_in(reason, value_set=found), -1).to_numpy()
    flags = {"kept": code == -1, "exact_duplicate": np.zeros(len(code), bool)}
    for index, name in enumerate(found.to_pylist()):
        flags["exact_duplicate" if name == EXACT_DUPLICATE else f"reason:{name}"] = code == index
    return flags


def _flag(rows: Column, hits: Column) -> tuple[Column, ...]:
    """count, total, squares, least, largest [days] of a flag that is 1 on `hits` of `rows`."""
    total = hits.astype(np.float64)
    return rows, total, total, (hits == rows).astype(np.float64), (hits > 0).astype(np.float64)


def _number(
    column: Column, order: Column, starts: Column, rows: Column, values: Column, scratch: Column
) -> tuple[Column, ...]:
    """count, total, squares, least, largest [days] of the finite values; the buffers [N] are overwritten."""
    if not len(order):
        return rows, *[np.empty(0)] * 4
    np.copyto(scratch, column)
    np.take(scratch, order, out=values, mode="clip")
    absent = ~np.isfinite(values)
    values[absent] = np.nan
    least, largest = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    values[absent] = 0
    count = rows - np.add.reduceat(absent, starts, dtype=np.int64)
    np.multiply(values, values, out=scratch)
    return count, np.add.reduceat(values, starts), np.add.reduceat(scratch, starts), least, largest


def _table(dataset: str, days: list[str], name: str, sums: tuple[Column, ...]) -> pa.Table:
    count, total, squares, *ends = sums
    least, largest = (pa.array(end, pa.float64(), mask=count == 0) for end in ends)
    return pa.table([[dataset] * len(days), days, [name] * len(days), count, total, squares, least, largest], PARTIAL)
