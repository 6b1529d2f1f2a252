"""What lies on the desk of a night comes back as it was, bit for bit."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.contract import Contract
from pipelines.scoring.desk import as_table, from_table, joined, lay, taken
from pipelines.scoring.rounds import Judged

CONTRACT = Contract(("hold", "send", "call"), ("f",), ("sends", "clicks"), {"sends": "1", "clicks": "1"})


def judged(rows: int, chunks: int = 1) -> Judged:
    rng, shape = np.random.default_rng(rows), (rows, 3)
    fixed = np.full(shape, np.nan)
    fixed[::3] = [1.0, 0.0, 0.0]
    part = pa.table(
        {
            "row_id": pa.array([f"c{row}" for row in range(rows)], pa.string()),
            "user_id": pa.array([None if row % 4 == 0 else f"u{row}" for row in range(rows)], pa.string()),
            "at": pa.array([None if row % 5 == 0 else row for row in range(rows)], pa.int64()),
        }
    )
    asked = part if chunks == 1 else pa.concat_tables([part.slice(0, 2), part.slice(2)])
    reason = np.array([None if row % 2 else "quiet_hours" for row in range(rows)], dtype=object)
    q, logits, values = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal((*shape, 2))
    values[1::2] = np.nan
    return Judged(asked, reason, rng.random(shape) < 0.5, q, logits, values, fixed, np.zeros((rows, 1), np.float32))


@pytest.mark.parametrize(("rows", "chunks"), [(0, 1), (1, 1), (11, 1), (11, 2)])
def test_what_was_laid_aside_comes_back(tmp_path: Path, rows: int, chunks: int) -> None:
    given = judged(rows, chunks)
    lay(as_table(given), tmp_path / "judged" / "7.arrow")
    assert [path.name for path in (tmp_path / "judged").iterdir()] == ["7.arrow"]
    found = from_table(taken(tmp_path / "judged" / "7.arrow"), CONTRACT)
    assert found.asked.equals(given.asked)
    assert found.reason.tolist() == given.reason.tolist()
    assert found.state.shape == (rows, 0)
    for name in ("legal", "q", "logits", "values", "fixed"):
        expected = getattr(given, name)
        assert getattr(found, name).dtype == expected.dtype
        np.testing.assert_array_equal(getattr(found, name), expected)


def test_parts_are_joined_in_order(tmp_path: Path) -> None:
    given = [judged(3), judged(0), judged(5)]
    for place, part in enumerate(given):
        lay(as_table(part), tmp_path / f"{place}.arrow")
    found = joined([from_table(taken(tmp_path / f"{place}.arrow"), CONTRACT) for place in range(3)])
    assert found.asked["row_id"].to_pylist() == [f"c{row}" for part in (3, 0, 5) for row in range(part)]
    for each in fields(Judged):
        if each.name not in ("asked", "state"):
            apart = np.concatenate([getattr(part, each.name) for part in given])
            np.testing.assert_array_equal(getattr(found, each.name), apart)


def test_a_write_that_fails_leaves_no_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(as_table(judged(3)), tmp_path / "0.arrow")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipelines.scoring.desk.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        lay(as_table(judged(5)), tmp_path / "1.arrow")
    assert not (tmp_path / "1.arrow").exists()
    assert from_table(taken(tmp_path / "0.arrow"), CONTRACT).q.shape == (3, 3)
