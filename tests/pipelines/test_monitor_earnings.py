"""What scored decisions earned, from transitions: by hand, against plain Python, and what it is held against."""

import json
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from pipelines.config import Config, validate
from pipelines.etl.features import DAY, HOUR
from pipelines.monitor.earnings import Earned, compared, earned, prediction
from pipelines.monitor.nights import Model
from policies.earned import Moments

COLUMNS = "user_id string, decision_id string, at long, elapsed_days double, silent boolean, "
REWARDS = "reward_sends double, reward_clicks double, `reward_steps` double"
Row = dict[str, Any]


def config_of(folder: Path, **changes: Any) -> Config:
    tree = {
        "name": "earned",
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks", "column:steps"],
        "data": {"decisions": {"path": "d"}, "events": {"path": "e"}},
        "features": {"state": ["sends_7d"]},
        **changes,
    }
    return validate(tree, "earned.toml")


def a_log(seed: int) -> tuple[list[Row], set[tuple[str, str]]]:
    """Transitions of 60 users over ten days, some of them silent; which of them a scored row had led to."""
    rng, rows, ours = random.Random(seed), [], set()
    for user in range(60):
        for step in range(10):
            sent = rng.random() < 0.4
            row = {
                "user_id": f"u{user}",
                "decision_id": f"d{user}-{step}",
                "at": step * DAY + rng.randrange(HOUR),
                "elapsed_days": rng.choice((0.9, 1.0, 1.1)),
                "silent": rng.random() < 0.15,
                "reward_sends": float(sent),
                "reward_clicks": float(sent and rng.random() < 0.3),
                "reward_steps": rng.gauss(50, 10),
            }
            rows.append(row)
            if step >= 4 and user % 4 and not row["silent"] and rng.random() < 0.8:
                ours.add((row["user_id"], row["decision_id"]))
    return rows, ours


def naive(rows: list[Row], ours: set[tuple[str, str]], per_week: bool) -> dict[str, Any]:
    first: dict[str, int] = {}
    for row in rows:
        if (row["user_id"], row["decision_id"]) in ours:
            first[row["user_id"]] = min(first.get(row["user_id"], row["at"]), row["at"])
    kept = [
        row
        for row in rows
        if (row["user_id"], row["decision_id"]) in ours
        or (per_week and row["silent"] and row["user_id"] in first and row["at"] >= first[row["user_id"]])
    ]
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5))
    for row in kept:
        mine = (row["user_id"], row["decision_id"]) in ours
        rewards = [row["reward_sends"], row["reward_clicks"], row["reward_steps"]]
        totals[row["user_id"]] += np.array([*rewards, row["elapsed_days"] / 7, mine])
    table = np.array(list(totals.values()))
    end = max(row["at"] + row["elapsed_days"] * DAY for row in kept)
    return {
        "table": table,
        "decisions": sum((row["user_id"], row["decision_id"]) in ours for row in kept),
        "silent": sum(row["silent"] for row in kept),
        "open": sum((row["user_id"], row["decision_id"]) in ours and row["at"] + DAY > end for row in kept),
        "days": (end - min(first.values())) / DAY,
    }


@pytest.mark.parametrize("per", ["week", "decision"])
def test_sums_over_users_are_those_of_the_definitions(spark: SparkSession, tmp_path: Path, per: str) -> None:
    rows, ours = a_log(1)
    transitions = spark.createDataFrame([tuple(row.values()) for row in rows], COLUMNS + REWARDS)
    answers = spark.createDataFrame(sorted(ours), "user_id string, answer_id string")
    found = earned(transitions, answers, config_of(tmp_path, evaluate={"per": per}))
    wanted = naive(rows, ours, per == "week")
    assert found is not None
    assert (found.decisions, found.silent, found.open_clicks) == (wanted["decisions"], wanted["silent"], wanted["open"])
    assert found.days == pytest.approx(wanted["days"], abs=1e-9)
    assert found.users == len(wanted["table"])
    divisor = wanted["table"][:, 3 if per == "week" else 4]
    pairs = {name: (wanted["table"][:, place], divisor) for place, name in enumerate(("sends", "clicks", "steps"))}
    pairs["ctr"] = pairs["clicks"][0], pairs["sends"][0]
    assert set(found.moments) == set(pairs)
    for name, (y, d) in pairs.items():
        residual = y - y.sum() / d.sum() * d
        assert found.moments[name].value == pytest.approx(y.sum() / d.sum())
        error = np.sqrt(len(y) / (len(y) - 1) * (residual**2).sum()) / d.sum()
        assert found.moments[name].standard_error == pytest.approx(error, rel=1e-6)


def test_where_nothing_was_scored_nothing_was_earned(spark: SparkSession, tmp_path: Path) -> None:
    rows, _ = a_log(2)
    transitions = spark.createDataFrame([tuple(row.values()) for row in rows], COLUMNS + REWARDS)
    answers = spark.createDataFrame([], "user_id string, answer_id string")
    assert earned(transitions, answers, config_of(tmp_path)) is None


def figures(estimate: float | None) -> dict[str, float | None]:
    return {"estimate": estimate, "low": estimate and estimate - 0.1, "high": estimate and estimate + 0.1}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {
        "per": "week",
        "confidence": 0.95,
        "policies": {
            "logging": {"estimates": {"on_policy": {"clicks": figures(1.0)}}, "withheld": {}},
            "ddqn_cql": {"estimates": {"dr": {"clicks": figures(2.0)}}, "withheld": {}},
        },
        **changes,
    }


def model(learner: str = "ddqn_cql", fingerprint: str = "f", kept: dict[str, Any] | None = None) -> Model:
    told: Any = SimpleNamespace(lineage={"learner": learner}, fingerprint=fingerprint)
    return Model(told, kept)


@pytest.mark.parametrize(
    ("given", "left", "wanted"),
    [
        (None, evaluation(), "no alias of the registry"),
        (model(), None, "there is no evaluation of the version"),
        (model(), evaluation(), 2.0),
        (model(fingerprint="other"), evaluation(), "there is no evaluation of the version"),
        (model("behaviour", "other"), evaluation(), 1.0),
        (model(fingerprint="other", kept=evaluation()), None, 2.0),
        (model(), evaluation(per="decision"), "the evaluation is per decision"),
        (
            model(),
            evaluation(policies={"ddqn_cql": {"estimates": {"dr": {}}, "withheld": {"dr": "one user holds all"}}}),
            "evaluation withheld it: one user holds all",
        ),
    ],
)
def test_the_prediction_is_of_the_version_that_scored(
    given: Model | None, left: dict[str, Any] | None, wanted: float | str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, train={"weights": {"clicks": 1.0}})
    if left is not None:
        (config.run_dir / "steps").mkdir(parents=True)
        told = {"evaluation": left, "judged": {"ddqn_cql": "f"}}
        (config.run_dir / "steps" / "evaluate.json").write_text(json.dumps(told))
    found = prediction(config, given)
    if isinstance(wanted, str):
        assert wanted in found["left_out"]
        assert found["estimates"] == {}
    else:
        assert found["left_out"] is None
        assert found["estimates"]["clicks"]["estimate"] == wanted


@pytest.mark.parametrize(
    ("days", "users", "words"),
    [(3.5, 500, "3.5 days are known"), (30, 12, "12 users are fewer than 30"), (8, 500, None)],
)
def test_a_window_that_is_too_short_is_shown_and_not_judged(
    tmp_path: Path, days: float, users: int, words: str | None
) -> None:
    moments = {"clicks": Moments(users, 2.0 * users, 1.0 * users, 5.0 * users, 2.0 * users, 1.0 * users)}
    found = compared(
        Earned(moments, users, users, 0, 7, days),
        {"policy": "p", "estimates": {"clicks": figures(2.0)}, "confidence": 0.95, "left_out": None},
        config_of(tmp_path),
        30,
    )
    assert found["judged"] is (words is None)
    assert (words or "") in (found["too_short"] or "")
    assert found["metrics"]["clicks"]["realised"]["estimate"] == 2.0
    assert found["open_clicks"] == 7
