"""The law that nothing is lost, on counts that keep it and on counts that break it."""

import numpy as np
import pyarrow as pa
import pytest

from models.errors import TactfulError
from pipelines.etl.arrivals import Arrived
from pipelines.etl.counts import conserve, count, in_words
from pipelines.etl.profile import measure
from pipelines.etl.schemas import DECISIONS


def partials(dataset: str, day: int, reason: list[str | None] | None = None, **columns: list[int]) -> pa.Table:
    """What a bucket measured of rows of one day."""
    rows = len(next(iter(columns.values())))
    flags = {name: np.array(values, bool) for name, values in columns.items()}
    return measure(dataset, np.full(rows, day), flags, None if reason is None else pa.array(reason, pa.string()))


def arrived(day: int, rows: int) -> Arrived:
    return Arrived(day, rows, good=rows, logged=0, first=0, misplaced=0)


def test_every_row_read_is_kept_a_copy_quarantined_or_forgotten() -> None:
    """Day 0: 5 rows read = 1 kept + 1 copy + 2 quarantined + 1 forgotten; day 1: 1 = 1 kept that is not mature yet."""
    reason = [None, "exact_duplicate", "too_late", "too_late"]
    made = pa.concat_tables(
        [
            partials("decisions", 0, mature=[1, 0, 0, 0], reason=reason),
            partials("decisions", 1, mature=[0], reason=[None]),
            partials("transitions", 0, usable=[1, 1, 0], silent=[1, 0, 0]),
        ]
    )
    found = count(made, {DECISIONS: [arrived(0, 5), arrived(1, 1)]}, {"decisions": {"1970-01-01": 1}})
    counts = found["decisions"]
    assert (counts["read"], counts["kept"], counts["exact_duplicates"], counts["quarantined"]) == (6, 2, 1, 2)
    assert (counts["forgotten"], counts["mature"], counts["immature"]) == (1, 1, 1)
    assert counts["by_reason"] == {"too_late": 2}
    assert [counts["by_day"][day]["read"] for day in ("1970-01-01", "1970-01-02")] == [5, 1]
    conserve(found, (1, 1))
    assert in_words(found).splitlines() == [
        "decisions: 6 read, 2 kept, 1 exact duplicates, 2 quarantined (too_late 2), 1 forgotten",
        "transitions: 3 rows, 1 of them unusable; 1 silent, 0 warm-up, 0 truncated, 0 terminal",
    ]
    for rows in (4, 6):
        with pytest.raises(TactfulError, match=f"decisions, arrival day 1970-01-01: {rows} rows read, but kept 1"):
            count(made, {DECISIONS: [arrived(0, rows), arrived(1, 1)]}, {"decisions": {"1970-01-01": 1}})
    # A day that nobody counted before: rows came in while the log was read.
    with pytest.raises(TactfulError, match="arrival day 1970-01-02: 0 rows read, but kept 1"):
        count(made, {DECISIONS: [arrived(0, 5)]}, {"decisions": {"1970-01-01": 1}})
    with pytest.raises(TactfulError, match=r"usable = decisions \+ silent is broken: 2 against 3"):
        conserve(found, (2, 1))
    with pytest.raises(TactfulError, match=r"unusable = quarantined decisions .* is broken: 1 against 0"):
        conserve(found, (1, 0))
