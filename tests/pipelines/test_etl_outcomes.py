"""A log of outcomes alone, as trials export them: one CSV, no events, no users; every figure worked out by hand."""

from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl.flow import run_etl

CSV = """who,nth,when,sent,p,ok,before,place,after
ann,0,2024-01-01 10:00:00,1,0.6,1,4.0,home,2.0
ann,1,2024-01-01 16:00:00,0,0.4,1,6.0,work,1.0
ann,2,2024-01-02 10:00:00,0,1,0,,,0.5
ann,3,2024-01-03 10:00:00,1,oops,1,3.0,home,4.0
ann,4,2024-01-04 10:00:00,0,0.4,1,3.0,home,4.0
bob,0,2024-01-02 22:00:00,1,0.6,1,2.0,home,7.0
bob,1,not a time,0,0.4,1,2.0,home,7.0
bob,2,2024-01-05 22:00:00,0,0.4,1,2.0,home,7.0
"""


def configured(folder: Path) -> Config:
    return validate(
        {
            "name": "trial",
            "run_dir": str(folder / "run"),
            "rewards": ["sends", "column:after"],
            "data": {
                "decisions": {
                    "path": str(folder / "log.csv"),
                    "columns": {
                        "decision_id": "concat_ws('/', who, nth)",
                        "user_id": "who",
                        "decided_at": "when",
                        "action": "if(sent = '1', 'send', 'hold')",
                        "propensity": "p",
                        "legal_actions": "if(ok = '1', array('hold', 'send'), array('hold'))",
                    },
                }
            },
            "features": {
                "state": ["sends_24h", "hours_since_send", "send_never", "candidate_missing"],
                "context": ["before"],
                "context_categories": {"place": ["home"]},
            },
            "etl": {"watermark": "2024-01-05 22:00:00", "warmup_days": 1, "max_quarantined": 0.5, "buckets": 1},
            "train": {"weights": {"after": 1.0}},
        },
        "test",
    )


def write_log(folder: Path) -> None:
    """Enough good rows that one unreadable time and one unreadable propensity are not half of the log."""
    more = "".join(f"c{n},0,2024-01-02 12:00:00,1,0.5,1,1.0,home,1.0\n" for n in range(30))
    (folder / "log.csv").write_text(CSV + more)


def test_a_log_of_outcomes(spark: SparkSession, tmp_path: Path) -> None:
    config = configured(tmp_path)
    write_log(tmp_path)
    report = run_etl(spark, config)
    counts = report["rows"]["decisions"]
    assert (counts["read"], counts["kept"], counts["mature"], counts["immature"]) == (38, 36, 35, 1)
    # Bob's second row has no time; Ann's third propensity cannot be read.
    assert counts["by_reason"] == {"missing_decided_at": 1, "propensity_out_of_range": 1}
    made = report["rows"]["transitions"]
    assert (made["usable"], made["unusable"], made["silent"], made["terminal"]) == (35, 1, 0, 0)

    rows = DeltaTable(config.transitions_path).to_pyarrow_table().to_pylist()
    rows.sort(key=lambda row: (row["user_id"], row["decided_at"]))
    found = {row["decision_id"]: row for row in rows}
    assert list(found)[:6] == ["ann/0", "ann/1", "ann/2", "ann/3", "ann/4", "bob/0"]
    names = ("elapsed_days", "truncated", "usable", "warm_up", "reward_sends", "reward_after", "propensity")
    assert {key: tuple(found[key][name] for name in names) for key in list(found)[:6]} == {
        # 10:00 to 16:00 is a quarter of a day; the log starts here, and its first day is warm-up.
        "ann/0": (0.25, False, True, True, 1.0, 2.0, 0.6),
        # 16:00 to 10:00 is 18 h.
        "ann/1": (0.75, False, True, True, 0.0, 1.0, 0.4),
        # The next row is unusable: no target beyond it. Exactly a day after the start warm-up is over.
        "ann/2": (1.0, True, True, False, 0.0, 0.5, 1.0),
        "ann/3": (1.0, False, False, False, None, None, None),
        # Until the watermark: a day and 12 hours.
        "ann/4": (1.5, True, True, False, 0.0, 4.0, 0.4),
        "bob/0": (3.0, True, True, False, 1.0, 7.0, 0.6),
    }
    state = ("sends_24h", "hours_since_send", "send_never", "candidate_missing", "before", "place=home")
    assert {key: tuple(found[key][f"state_{name}"] for name in state) for key in list(found)[:6]} == {
        # Never: the lookback of 28 days is 672 h.
        "ann/0": (0.0, 672.0, 1.0, 0.0, 4.0, 1.0),
        "ann/1": (1.0, 6.0, 0.0, 0.0, 6.0, 0.0),
        # A send exactly 24 h before is in [t - 24 h, t).
        "ann/2": (1.0, 24.0, 0.0, 1.0, None, None),
        "ann/3": (0.0, 48.0, 0.0, 0.0, 3.0, 1.0),
        # The send whose propensity could not be read did reach the phone.
        "ann/4": (1.0, 24.0, 0.0, 0.0, 3.0, 1.0),
        "bob/0": (0.0, 672.0, 1.0, 0.0, 2.0, 1.0),
    }
    assert found["ann/2"]["legal"] == [True, False]
    assert found["ann/3"]["reason"] == "propensity_out_of_range"
    assert all(row["clicks_attributed"] is None for row in found.values())
    unknown = report["rows"]["decisions"]["by_day"]["unknown"]
    assert (unknown["read"], unknown["kept"], unknown["by_reason"]) == (1, 0, {"missing_decided_at": 1})

    quarantine = DeltaTable(tmp_path / "run" / "quarantine" / "decisions").to_pyarrow_table()
    caught = {row["row_id"]: row for row in quarantine.to_pylist()}
    assert caught["bob/1"]["found"] == "decided_at=not a time"
    assert caught["ann/3"]["found"] == "propensity=oops"
    assert "(0, 1]" in caught["ann/3"]["remedy"]

    other = config.model_copy(update={"rewards": ["column:after"]})
    with pytest.raises(InputError, match="--rebuild"):
        run_etl(spark, other)
