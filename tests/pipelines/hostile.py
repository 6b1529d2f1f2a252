"""A generated log that does everything that hurts, as rows, as Arrow tables of the kernels and as a raw lake.

Ties in time, gaps of weeks, late and too late rows, clocks ahead, ids that repeat with equal and other contents,
missing values everywhere, users who switch notifications off and on again, close their account, live where clocks
change within the log, or have one row.
"""

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.contract import Contract
from pipelines.config import Config, validate
from pipelines.etl.features import DAY, HOUR, KINDS, StateFeatures
from pipelines.etl.hashing import bucket_of, xxhash64
from pipelines.etl.marks import Plan, contents
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.transitions import split_of
from policies.constraints import Constraints

START = 1_709_856_000_000_000  # 2024-03-08, so that clocks change in both halves of the world within the log
ACTIONS = ("hold", "badge", "push")
STATE = [
    "notifications_on", "sends_24h", "sends_7d", "clicks_24h", "clicks_7d", "visits_24h", "visits_7d",
    "hours_since_send", "send_never", "hours_since_visit", "visit_never", "badge", "click_rate_28d",
    "hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "candidate_missing",
]  # fmt: skip
TOPICS = ["news", "sport"]
FEATURES = StateFeatures(STATE, ["relevance"], {"topic": TOPICS}, ["tenure"], {"plan": ["free"]}, (1.0, 10.0))
REWARDS = ("sends", "clicks", "visits", "weekly_active_days", "disables", "steps")
NAMES = (*STATE, "relevance", "topic=news", "topic=sport", "tenure", "plan=free")
ZONES = [None, "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
PLAN = Plan(
    contract=Contract(ACTIONS, NAMES, REWARDS),
    outcomes=("steps",),
    features=FEATURES,
    constraints=Constraints(quiet_hours=(22, 7), max_sends_24h=3, min_gap_hours=1),
    has_events=True,
    buckets=4,
    split=(0.6, 0.1, 0.3),
    as_of=START + 60 * DAY,
    watermark=START + 50 * DAY,
    log_start=START,
    lookback=28 * DAY,
    warmup=7 * DAY,
    max_lateness=7 * DAY,
    max_gap=7 * DAY,
    click_window=DAY,
    session_gap=HOUR // 2,
)
TIMED = [("user_id", pa.string()), ("at", pa.int64()), ("logged", pa.int64()), ("found", pa.string())]
SCHEMAS = {
    DECISIONS: pa.schema(
        [
            *TIMED, ("row_id", pa.string()), ("label", pa.string()), ("propensity", pa.float64()),
            ("legal", pa.list_(pa.string())), ("policy_id", pa.string()), ("context:relevance", pa.float64()),
            ("category:topic", pa.string()), ("outcome:steps", pa.float64()),
        ]
    ),
    EVENTS: pa.schema(
        [
            *TIMED, ("row_id", pa.string()), ("label", pa.string()), ("decision_id", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    USERS: pa.schema(
        [
            *TIMED, ("time_zone", pa.string()), ("attribute:tenure", pa.float64()),
            ("attribute_category:plan", pa.string()),
        ]
    ),
}  # fmt: skip

DATASETS = {DECISIONS: "decisions", EVENTS: "events", USERS: "users"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


# The generator: users who do everything that hurts.


def moment(rng: random.Random, last: int = 56) -> int:
    """Often on the hour, so that rows tie, touch the edges of windows and of each other."""
    hours = rng.randrange(last * 24)
    return START + hours * HOUR + (0 if rng.random() < 0.5 else rng.randrange(HOUR))


def late(rng: random.Random, at: int) -> int:
    return at + rng.choice([0, 0, 0, 1, HOUR, 5 * HOUR, 2 * DAY, 7 * DAY, 8 * DAY, 30 * DAY, -HOUR])


def a_decision(rng: random.Random, user: str, number: int, at: int) -> Row:
    legal = rng.choice([None, None, ["hold", "push"], ["hold", "badge", "push"], ["hold"], ["push"]])
    if rng.random() < 0.03:
        legal = rng.choice([[], ["nap", "hold"]])
    options = ACTIONS if legal is None else legal
    action = rng.choice(options) if options and rng.random() < 0.97 else rng.choice([*ACTIONS, "shout", None])
    propensity: float | None = 1 / max(len(options), 1)
    if rng.random() < 0.05:
        propensity = rng.choice([0.5, 0.9, None, 1.0, 0.0, -1.0, 1.5, math.nan])
    if legal is not None and len(legal) == 1 and rng.random() < 0.95:
        propensity = rng.choice([*[1.0, None] * 8, 0.5])
    return {
        "dataset": DECISIONS,
        "user_id": user,
        "row_id": f"d{number}" if rng.random() < 0.97 else None,
        "at": at if rng.random() < 0.98 else None,
        "logged": late(rng, at) if rng.random() < 0.98 else None,
        "label": action,
        "legal": legal,
        "propensity": propensity,
        "policy_id": rng.choice([None, "a", "b"]),
        "context:relevance": rng.choice([0.1, 0.7, 1e39, None]) if rng.random() < 0.1 else rng.random(),
        "category:topic": rng.choice([None, "news", "sport", "other"]) if rng.random() < 0.2 else "news",
        "outcome:steps": rng.choice([None, 1.0, 2.5]) if rng.random() < 0.05 else 3.0,
    }


def an_event(rng: random.Random, user: str, number: int, at: int, decisions: int) -> Row:
    weights = [1, 6, 1, 2, 2, 4, 8, 0.5]
    kind = rng.choices(KINDS, weights)[0] if rng.random() < 0.97 else rng.choice(["wave", None])
    return {
        "dataset": EVENTS,
        "user_id": user,
        "row_id": f"e{number}" if rng.random() < 0.98 else None,
        "at": at if rng.random() < 0.98 else None,
        "logged": late(rng, at) if rng.random() < 0.98 else None,
        "label": kind,
        "decision_id": f"d{rng.randrange(decisions + 1)}" if rng.random() < 0.8 else None,
    }


def a_user(rng: random.Random, user: str) -> list[Row]:
    rows: list[Row] = []
    count = rng.choice([1, 3, 10, 25])
    times = [moment(rng) for _ in range(count)]
    for number in range(count):
        at = rng.choice(times) if rng.random() < 0.15 else times[number]
        rows.append(a_decision(rng, user, number, at))
        if rng.random() < 0.6 and rows[-1]["at"]:
            event = an_event(rng, user, 1000 + number, at + rng.choice([0, HOUR, DAY, DAY + 1, -HOUR]), count)
            rows.append({**event, "label": "click", "decision_id": f"d{number}"})
    burst = moment(rng)
    for number in range(rng.choice([0, 5, 40])):
        close = burst + rng.choice([0, 0, 10, 29, 30, 31, 45]) * HOUR // 60
        rows.append(an_event(rng, user, number, close if rng.random() < 0.4 else moment(rng), count))
    for row in list(rows):
        if rng.random() < 0.1:
            again = {**row, "logged": late(rng, row["at"] or START)}
            other = "hold" if row["dataset"] == DECISIONS else "click"
            rows.append(again if rng.random() < 0.5 else {**again, "label": other})
    for _ in range(rng.choice([0, 1, 3])):
        rows.append(
            {
                "dataset": USERS,
                "user_id": user,
                "at": moment(rng) - 20 * DAY if rng.random() < 0.98 else None,
                "time_zone": rng.choice(ZONES),
                "attribute:tenure": rng.choice([None, 5.0, 7.0]),
                "attribute_category:plan": rng.choice([None, "free", "paid"]),
            }
        )
        rows[-1]["logged"] = late(rng, rows[-1]["at"] or START) if rng.random() < 0.7 else None
    return rows


def a_log(seed: int, users: int) -> list[Row]:
    rng = random.Random(seed)
    rows = [row for number in range(users) for row in a_user(rng, f"u{number}")]
    rows += [{**row, "user_id": None} for row in rng.sample(rows, min(5, len(rows)))]
    rng.shuffle(rows)
    return finish(rows)


def finish(rows: list[Row], plan: Plan = PLAN) -> list[Row]:
    """The rows with what the definitions take as given: content hashes, and bucket and split of the user id."""
    hashes = {code: iter(contents(tables_of(rows)[code]).tolist()) for code in SCHEMAS}
    users = pa.array([row["user_id"] for row in rows], pa.string())
    bucket, split = bucket_of(xxhash64(users), plan.buckets), split_of(users, plan.split)
    given = zip(rows, bucket.tolist(), split.to_pylist(), strict=True)
    return [{**row, "hash": next(hashes[row["dataset"]]), "bucket": b, "split": s} for row, b, s in given]


def tables_of(rows: list[Row]) -> dict[int, pa.Table]:
    return {
        code: pa.Table.from_pylist([row for row in rows if row["dataset"] == code], schema)
        for code, schema in SCHEMAS.items()
    }


# The same log as files.

RAW = {
    DECISIONS: {"row_id": "decision_id", "user_id": "user_id", "at": "decided_at", "logged": "logged_at",
                "label": "action", "legal": "legal_actions", "propensity": "propensity", "policy_id": "policy_id",
                "context:relevance": "relevance", "category:topic": "topic", "outcome:steps": "steps"},
    EVENTS: {"row_id": "event_id", "user_id": "user_id", "at": "occurred_at", "logged": "logged_at", "label": "kind",
             "decision_id": "decision_id"},
    USERS: {"user_id": "user_id", "at": "valid_from", "logged": "logged_at", "time_zone": "time_zone",
            "attribute:tenure": "tenure", "attribute_category:plan": "plan"},
}  # fmt: skip


def raw_tables(rows: list[Row]) -> dict[str, pa.Table]:
    """The raw datasets, by name, with the columns that a company would have."""
    found = {}
    for code, columns in RAW.items():
        mine = [row for row in rows if row["dataset"] == code]
        kinds = {
            alias: pa.timestamp("us", "UTC") if alias in ("at", "logged") else SCHEMAS[code].field(alias).type
            for alias in columns
        }
        found[DATASETS[code]] = pa.table(
            {raw: pa.array([row.get(alias) for row in mine], kinds[alias]) for alias, raw in columns.items()}
        )
    return found


def write_lake(rows: list[Row], folder: Path, files: int) -> None:
    """Raw Parquet in so many files, whatever the day."""
    for name, table in raw_tables(rows).items():
        (folder / name).mkdir(parents=True)
        for part in range(files):
            picked = table.take(list(range(part, table.num_rows, files)))
            pq.write_table(picked, folder / name / f"{part}.parquet")


def arrived(row: Row) -> str:
    """Folder of the row's arrival day: of `logged`, else of its own time."""
    moment = row["at"] if row["logged"] is None else row["logged"]
    return (
        "ds=__HIVE_DEFAULT_PARTITION__" if moment is None else f"ds={EPOCH + timedelta(microseconds=moment):%Y-%m-%d}"
    )


def write_days(rows: list[Row], folder: Path) -> list[str]:
    """Raw Parquet, a folder for each arrival day; returns the days, in order."""
    by_day: dict[str, list[Row]] = {}
    for row in rows:
        by_day.setdefault(arrived(row), []).append(row)
    for day, mine in by_day.items():
        for name, table in raw_tables(mine).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            if table.num_rows:
                (folder / name / day).mkdir()
                pq.write_table(table, folder / name / day / "0.parquet")
    return sorted(day.removeprefix("ds=") for day in by_day if "HIVE" not in day)


def tree(folder: Path, run: str) -> dict[str, Any]:
    """A configuration that reads a lake under the folder as `PLAN` says, and lets every gap and every reason pass."""
    first = EPOCH + timedelta(microseconds=START)
    return {
        "name": "hostile",
        "run_dir": str(folder / run),
        "actions": list(ACTIONS),
        "rewards": [*REWARDS[:-1], "column:steps"],
        "data": {name: {"path": str(folder / name)} for name in DATASETS.values()},
        "features": {
            "state": STATE,
            "context": ["relevance"],
            "context_categories": {"topic": TOPICS},
            "attributes": ["tenure"],
            "attribute_categories": {"plan": ["free"]},
        },
        "constraints": {"quiet_hours": [22, 7], "max_sends_24h": 3, "min_gap_hours": 1},
        "etl": {
            "as_of": f"{first + timedelta(days=60):%Y-%m-%dT%H:%M:%S}",
            "watermark": f"{first + timedelta(days=50):%Y-%m-%dT%H:%M:%S}",
            "known_gaps": [f"{first + timedelta(days=day):%Y-%m-%d}" for day in range(-60, 120)],
            "max_quarantined": 0.9,
            "buckets": 2,
        },
        "quality": {"docs": False},
        "train": {"weights": {"sends": -1.0}},
    }


def configured(folder: Path, run: str = "run", **etl: Any) -> Config:
    """`tree` with other settings of the ETL; None leaves one to its default."""
    made = tree(folder, run)
    made["etl"] = {name: value for name, value in {**made["etl"], **etl}.items() if value is not None}
    return validate(made, "test")
