"""A small lake that can be scored night by night, and whose log can follow the scores, or fail to.

States are context alone, drawn anew each day, so that nothing drifts unless a test makes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.jobs.steps import registry_of
from pipelines.scoring import night

USERS = 240
LOGGED_DAYS = 10
ACTIONS = ("hold", "send")
Rows = pd.DataFrame


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A log with an id column for candidates that is null where nothing was scored."""
    return {
        "name": "lake",
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks"],
        "data": {name: {"path": str(folder / f"{name}.csv")} for name in ("decisions", "events", "candidates")},
        "features": {"context": ["relevance", "wealth"]},
        "etl": {"warmup_days": 0, "buckets": 2, "split": [0.6, 0.1, 0.3]},
        "train": {
            "weights": {"clicks": 1.0, "sends": -0.05},
            "learners": {"ddqn_cql": 1.0},
            "steps": 60,
            "batch_size": 64,
            "hidden": [8],
            "behaviour_steps": 60,
            "value_steps": 60,
        },
        "policy": {"exploration": 0.4},
        "evaluate": {"per": "decision", "resamples": 100, "fqe_steps": 40, "baselines": []},
        "gate": {
            "min_ess": 20,
            "metrics": {"clicks": {"direction": "up", "margin": 0.05, "improve": True}},
        },
        "quality": {"docs": False},
        "monitor": {"match": "candidate"},
        "spark": {"master": "local[2]", "shuffle_partitions": 2},
        **changes,
    }


def day_of(number: int) -> str:
    """2026-01-01 is day 1."""
    return str(np.datetime64("2025-12-31") + number)


def context(rng: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, Any]:
    return {"relevance": rng.random(n).round(4), "wealth": (rng.normal(size=n) + shift).round(4)}


def first_log(folder: Path, rng: np.random.Generator) -> None:
    """USERS users, one decision a day for LOGGED_DAYS days, half of them sends, as CSV."""
    n = USERS * LOGGED_DAYS
    user, day = np.repeat(np.arange(USERS), LOGGED_DAYS), np.tile(np.arange(1, LOGGED_DAYS + 1), USERS)
    rows = pd.DataFrame(
        {
            "decision_id": [f"d{u}-{d}" for u, d in zip(user, day, strict=True)],
            "user_id": [f"user-{u:04d}" for u in user],
            "decided_at": [f"{day_of(d)} 12:{u % 60:02d}:00" for u, d in zip(user, day, strict=True)],
            "action": np.array(ACTIONS)[rng.integers(2, size=n)],
            "propensity": 0.5,
            "candidate": "",
            **context(rng, n),
        }
    )
    rows.to_csv(folder / "decisions.csv", index=False)
    clicks(rows, rng).to_csv(folder / "events.csv", index=False)


def clicks(rows: Rows, rng: np.random.Generator, rate: float = 0.3) -> Rows:
    """A click an hour after so many of the sends."""
    mine = rows[(rows["action"] == "send") & (rng.random(len(rows)) < rate)]
    at = pd.to_datetime(mine["decided_at"]) + pd.Timedelta(hours=1)
    return pd.DataFrame(
        {
            "event_id": "e-" + mine["decision_id"],
            "user_id": mine["user_id"],
            "occurred_at": at.dt.strftime("%Y-%m-%d %H:%M:%S"),
            "kind": "click",
            "decision_id": mine["decision_id"],
        }
    )


def build(folder: Path, **changes: Any) -> Config:
    """A lake whose policy is trained, evaluated, registered and champion."""
    first_log(folder, np.random.default_rng(0))
    config = validate(tree(folder, **changes), "lake.toml")
    jobs.etl(config)
    jobs.train(config)
    jobs.evaluate(config)
    versions = registry_of(config)
    versions.set_alias("champion", versions.register(config.run_dir / "policies" / "ddqn_cql", {}))
    return config


def score(spark: SparkSession, config: Config, day: int, shift: float = 0.0) -> Rows:
    """Score a candidate of every user on that day; the night's rows with their context."""
    folder = config.run_dir.parent
    rng = np.random.default_rng(1000 + day)
    asked = pd.DataFrame(
        {
            "candidate_id": [f"c{day}-{u}" for u in range(USERS)],
            "user_id": [f"user-{u:04d}" for u in range(USERS)],
            "decide_at": [f"{day_of(day)} 12:{u % 60:02d}:00" for u in range(USERS)],
            **context(rng, USERS, shift),
        }
    )
    asked.to_csv(folder / "candidates.csv", index=False)
    place, version = registry_of(config).load("champion")
    night.run_scoring(spark, config, place, version)
    scores = DeltaTable(config.run_dir / "scores").to_pyarrow_table().to_pandas()
    mine = scores[scores["night"] == day_of(day)]
    return mine.merge(asked[["candidate_id", "relevance", "wealth"]], on="candidate_id").reset_index(drop=True)


def follow(config: Config, scored: Rows, day: int, change: Callable[[Rows], Rows] = lambda rows: rows) -> Rows:
    """Append to the log what a sender that does what was scored would log, after `change`; returns what it logged."""
    folder, rng = config.run_dir.parent, np.random.default_rng(2000 + day)
    rows = pd.DataFrame(
        {
            "decision_id": [f"n{day}-{each}" for each in range(len(scored))],
            "user_id": scored["user_id"],
            "decided_at": (scored["decide_at"] + pd.Timedelta(minutes=5)).dt.strftime("%Y-%m-%d %H:%M:%S"),
            "action": scored["action"],
            "propensity": scored["propensity"],
            "candidate": scored["candidate_id"],
            "relevance": scored["relevance"],
            "wealth": scored["wealth"],
        }
    )
    rows = change(rows)
    rows.to_csv(folder / "decisions.csv", mode="a", header=False, index=False)
    clicks(rows, rng).to_csv(folder / "events.csv", mode="a", header=False, index=False)
    return rows


def later(config: Config, day: int) -> None:
    """A decision of a user whom nobody scores, which takes the log to the end of that day."""
    line = f"later-{day},nobody,{day_of(day)} 23:59:00,hold,0.5,,0.5,0.0\n"
    with (config.run_dir.parent / "decisions.csv").open("a") as file:
        file.write(line)
    with (config.run_dir.parent / "events.csv").open("a") as file:
        file.write(f"later-e{day},nobody,{day_of(day)} 23:59:00,session_start,\n")
