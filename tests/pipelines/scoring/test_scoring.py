"""One partition of log and candidates through the scoring kernel: who decides, with what probability, until when."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.scoring import night

DAY = "2026-01-{:02d} 12:00:00"
HEADER = "decision_id,user_id,decided_at,action,propensity,relevance"
ACTIONS = ("hold", "send")


def config_of(folder: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "night",
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks"],
        "data": {name: {"path": str(folder / f"{name}.csv")} for name in ("decisions", "events", "candidates")},
        "features": {"state": ["sends_7d", "hours_since_send"], "context": ["relevance"]},
        "etl": {"warmup_days": 0, "buckets": 1, "split": [0.7, 0.1, 0.2]},
        "train": {
            "weights": {"clicks": 1.0, "sends": -0.05},
            "learners": {"ddqn_cql": 1.0},
            "steps": 40,
            "batch_size": 32,
            "hidden": [8],
            "behaviour_steps": 40,
            "value_steps": 40,
        },
        "policy": {"exploration": 0.1},
        "spark": {"master": "local[1]", "shuffle_partitions": 1},
    }
    tree["data"]["candidates"]["columns"] = {
        "legal_actions": "if(legal_actions = '-', array(), split(legal_actions, ' '))"
    }
    return validate({**tree, **changes}, "night.toml")


def make_log(folder: Path) -> None:
    """A log of 60 users over 8 days, half of their decisions sends."""
    rng = np.random.default_rng(0)
    decisions, events = [HEADER], ["event_id,user_id,occurred_at,kind,decision_id"]
    for user in range(60):
        for day in range(1, 9):
            action, name = int(rng.integers(2)), f"d{user}-{day}"
            decisions.append(f"{name},u{user:02d},{DAY.format(day)},{ACTIONS[action]},0.5,{rng.random():.3f}")
            if action and rng.random() < 0.3:
                events.append(f"e{user}-{day},u{user:02d},2026-01-{day:02d} 13:00:00,click,{name}")
    events.append("off,u00,2026-01-08 20:00:00,disable,")
    (folder / "decisions.csv").write_text("\n".join(decisions))
    (folder / "events.csv").write_text("\n".join(events))


@pytest.fixture(scope="module")
def folder(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, and a policy learned from it."""
    folder = tmp_path_factory.mktemp("night")
    make_log(folder)
    config = config_of(folder)
    jobs.etl(config)
    jobs.train(config)
    return folder


def scored(spark: SparkSession, folder: Path, rows: list[str], **changes: Any) -> dict[str, dict[str, Any]]:
    """The scores of some candidates, by id."""
    from deltalake import DeltaTable

    header = "candidate_id,user_id,decide_at,legal_actions,relevance"
    (folder / "candidates.csv").write_text("\n".join([header, *rows]))
    config = config_of(folder, **changes)
    night.run_scoring(spark, config, folder / "run" / "policies" / "ddqn_cql", "3")
    found = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pylist()
    return {row["candidate_id"]: row for row in found}


ROWS = [
    "judged,u01,2026-01-09 12:00:00,hold send,0.9",
    "new,stranger,2026-01-09 12:00:00,hold send,0.9",
    "off,u00,2026-01-09 12:00:00,hold send,0.9",
    "one,u02,2026-01-09 12:00:00,hold,",
    "blank,u03,2026-01-09 12:00:00,hold send,",
    "nobody,,2026-01-09 12:00:00,hold send,0.5",
    "never,u04,,hold send,0.5",
    "badge,u05,2026-01-09 12:00:00,hold badge,0.5",
    "none,u06,2026-01-09 12:00:00,-,0.5",
]


def test_each_row_says_who_decided(spark: SparkSession, folder: Path) -> None:
    found = scored(spark, folder, ROWS)
    assert {name: row["rule"] for name, row in found.items()} == {
        "judged": None,
        "new": None,
        "off": "consent",
        "one": "only_legal_action",
        "blank": "missing_feature:relevance",
        "nobody": "missing_user_id",
        "never": "missing_decide_at",
        "badge": "unknown_legal_action",
        "none": "no_legal_action",
    }
    for name, row in found.items():
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert row["propensity"] == row["probabilities"][ACTIONS.index(row["action"])]
        if row["rule"] is not None:
            assert (row["action"], row["propensity"], row["legal"]) == ("hold", 1.0, [True, False]), name
    for name in ("judged", "new"):
        # Exploration of 0.1 over two legal actions: 0.95 for the greedy one, 0.05 for the other.
        assert sorted(found[name]["probabilities"]) == pytest.approx([0.05, 0.95])
    # What the model cannot judge has no value; what a rule decided has one, for comparison.
    assert found["blank"]["value_hold_clicks"] is None
    assert found["off"]["value_send_clicks"] is not None


def test_a_rerun_decides_the_same_and_another_seed_does_not(spark: SparkSession, folder: Path) -> None:
    rows = [f"c{n},u{n % 60:02d},2026-01-09 12:00:00,hold send,0.5" for n in range(200)]
    first = scored(spark, folder, rows)
    again = scored(spark, folder, rows[::-1])
    assert first == again
    other = scored(spark, folder, rows, seed=9)
    assert any(other[name]["action"] != row["action"] for name, row in first.items())
    # The same policy, other luck.
    assert all(other[name]["probabilities"] == row["probabilities"] for name, row in first.items())


def test_nights_stand_beside_each_other_and_one_is_replaced_whole(spark: SparkSession, folder: Path) -> None:
    scored(spark, folder, ["a,u01,2026-02-01 12:00:00,hold send,0.9", "b,u02,2026-02-01 12:00:00,hold send,0.9"])
    scored(spark, folder, ["c,u01,2026-02-02 12:00:00,hold send,0.9"])
    found = scored(spark, folder, ["a,u01,2026-02-01 12:00:00,hold send,0.9"])
    nights = Counter(row["night"] for row in found.values() if row["night"] >= "2026-02")
    assert nights == {"2026-02-01": 1, "2026-02-02": 1}
    assert "b" not in found


def test_candidates_without_a_column_that_the_contract_needs_are_refused(spark: SparkSession, folder: Path) -> None:
    (folder / "candidates.csv").write_text("candidate_id,user_id,decide_at,legal_actions\na,u01,2026-01-09,hold send")
    with pytest.raises(InputError, match=r"data\.candidates: no column 'relevance' in .*map it"):
        night.run_scoring(spark, config_of(folder), folder / "run" / "policies" / "ddqn_cql", "3")


def test_a_frozen_score_needs_no_registry(
    spark: SparkSession, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing answers on that port, and nobody asks."""
    (folder / "candidates.csv").write_text("\n".join(["candidate_id,user_id,decide_at,legal_actions,relevance", *ROWS]))
    config = config_of(folder, run_dir=str(folder / "frozen"), mlflow={"tracking_uri": "http://127.0.0.1:9"})
    jobs.freeze(config, "since I say so")
    with caplog.at_level("WARNING", "tactful.score"):
        found = jobs.score(config)
    assert found["by_rule"] == {"frozen": len(ROWS)}
    assert "FROZEN since" in caplog.text
    assert "since I say so" in caplog.text
    jobs.unfreeze(config)
    said = capsys.readouterr().out
    assert "every score holds until `tactful unfreeze`" in said
    assert "lifted" in said
    night, users = found["night"], len({row.split(",")[1] for row in ROWS} - {""})
    assert f"night {night}: {len(ROWS)} candidates of {users} users scored, FROZEN" in said
    assert f"sends 0 (0.0 expected): {len(ROWS)} hold\ndecided by: frozen {len(ROWS)}\n" in said
    scores = (folder / "frozen" / "scores").resolve()
    assert f"written: {scores} (Delta table, version 0), {scores / 'manifests' / night}.json" in said


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([], {}, "no candidate with a decide_at"),
        ([ROWS[0], ROWS[0]], {}, "'judged' is null or stands more than once"),
        (ROWS[:1], {"etl": {"lookback_days": 14, "buckets": 1}}, "states of another ETL configuration"),
        (ROWS, {"features": {"state": ["badge"], "context": ["relevance"]}}, "the champion was made for features"),
        (ROWS, {"data": {"decisions": {"path": "x"}, "events": {"path": "y"}}}, r"data\.candidates: missing"),
    ],
)
def test_a_night_that_cannot_be_scored_says_why(
    spark: SparkSession, folder: Path, rows: list[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        scored(spark, folder, rows, **changes)
