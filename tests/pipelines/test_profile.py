"""Profiles: what is measured, that it adds, and that workers can measure it."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.etl.profile import KEYS, PARTIAL, choices, measure, merge

DAY_1 = 20_454
"""2026-01-01 in days since 1970."""


def looked_up(partial: pa.Table) -> dict[tuple[str, str], tuple[Any, ...]]:
    """(day, name) -> count, total, squares, least, largest."""
    return {(row["day"], row["name"]): tuple(row.values())[3:] for row in partial.to_pylist()}


def test_a_day_is_measured_by_hand() -> None:
    """1 and 3 on the first day: n 2, sum 4, squares 1 + 9 = 10. Nothing known on the second."""
    day = np.array([DAY_1 + 1, DAY_1, DAY_1, DAY_1])
    columns = {"x": np.array([np.nan, 3.0, np.nan, 1.0], np.float32), "flag": np.array([True, False, True, False])}
    found = measure("transitions", day, columns)
    assert found.schema == PARTIAL
    assert looked_up(found) == {
        ("2026-01-01", "rows"): (3, 3.0, 3.0, 1.0, 1.0),
        ("2026-01-01", "x"): (2, 4.0, 10.0, 1.0, 3.0),
        ("2026-01-01", "flag"): (3, 1.0, 1.0, 0.0, 1.0),
        ("2026-01-02", "rows"): (1, 1.0, 1.0, 1.0, 1.0),
        ("2026-01-02", "x"): (0, 0.0, 0.0, None, None),
        ("2026-01-02", "flag"): (1, 1.0, 1.0, 1.0, 1.0),
    }


def test_reasons_become_flags_and_rows_without_a_day_are_measured_apart() -> None:
    reason = pa.array([None, "too_late", "exact_duplicate", None])
    day = pa.array(["2026-01-02", "2026-01-01", None, "2026-01-02"])
    found = looked_up(measure("events", day, {}, reason))
    assert {key: row[1] for key, row in found.items() if row[1]} == {
        ("2026-01-01", "rows"): 1,
        ("2026-01-01", "reason:too_late"): 1,
        ("2026-01-02", "rows"): 2,
        ("2026-01-02", "kept"): 2,
        ("unknown", "rows"): 1,
        ("unknown", "exact_duplicate"): 1,
    }


def test_infinite_values_are_not_there() -> None:
    found = looked_up(measure("users", np.full(3, DAY_1), {"x": np.array([np.inf, -np.inf, 2.0])}))
    assert found["2026-01-01", "x"] == (1, 2.0, 4.0, 2.0, 2.0)


def some(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    sparse = rng.normal(100, 3, rows)
    sparse[rng.random(rows) < 0.3] = np.nan
    whole = rng.integers(-5, 5, rows)
    return rng.integers(DAY_1, DAY_1 + 9, rows), {"sparse": sparse, "whole": whole, "flag": rng.random(rows) < 0.4}


def test_a_profile_equals_what_pandas_finds() -> None:
    day, columns = some(np.random.default_rng(1), 3000)
    found = measure("transitions", day, columns).to_pandas().set_index(["day", "name"])
    frame = pd.DataFrame({**columns, "day": day.astype("datetime64[D]").astype(str)})
    for name in columns:
        values = frame.assign(x=frame[name].astype(float)).groupby("day").x
        naive = values.agg(count="count", total="sum", squares=lambda x: (x**2).sum(), least="min", largest="max")
        mine = found.xs(name, level="name")[list(naive.columns)]
        pd.testing.assert_frame_equal(mine, naive, check_dtype=False, rtol=1e-12)


def test_the_merge_of_parts_is_the_whole_in_any_order() -> None:
    rng = np.random.default_rng(2)
    day, columns = some(rng, 900)
    owner = rng.integers(0, 4, 900)
    parts = [
        measure("events", day[owner == n], {name: column[owner == n] for name, column in columns.items()})
        for n in range(4)
    ]
    # A worker without rows measures nothing.
    parts.append(measure("events", day[:0], {name: column[:0] for name, column in columns.items()}))
    merged = [merge(order) for order in itertools.permutations(parts)]
    whole = measure("events", day, columns)
    # To the last bit, whatever came first.
    assert all(one.equals(merged[0]) for one in merged)
    pd.testing.assert_frame_equal(merged[0].to_pandas(), whole.to_pandas(), rtol=1e-12)
    assert (
        merged[0]
        .select(["count", "least", "largest", *KEYS])
        .equals(whole.select(["count", "least", "largest", *KEYS]))
    )


def test_datasets_days_and_names_are_kept_apart() -> None:
    one, other = (measure(name, np.array([DAY_1]), {"x": np.array([1.0])}) for name in ("events", "users"))
    assert merge([one, other, one])["total"].to_pylist() == [2.0, 2.0, 1.0, 1.0]
    assert merge([]).schema == PARTIAL
    assert merge([]).num_rows == 0


def test_only_known_choices_count_for_the_propensities() -> None:
    p = np.array([0.5, 0.25, 1.0, np.nan, 0.5, 0.0])
    options = np.array([2, 3, 1, 2, 2, 2])
    kept = np.array([True, True, True, True, False, True])
    found = choices(p, options, kept)
    nothing = [np.nan] * 4
    np.testing.assert_array_equal(found["propensity"], [0.5, 0.25, *nothing])
    np.testing.assert_array_equal(found["inverse_propensity"], [2.0, 4.0, *nothing])
    np.testing.assert_array_equal(found["options"], [2.0, 3.0, *nothing])


@pytest.mark.parametrize("package", ["pandas", "pyspark", "great_expectations", "torch"])
def test_a_worker_that_measures_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, pipelines.etl.profile; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
