"""The kernels against a second implementation: plain Python, one user at a time, from the definitions."""

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from models.contract import Contract
from pipelines.config import Config, validate
from pipelines.etl.features import DAY, HOUR, KINDS, StateFeatures
from pipelines.etl.flow import run_etl
from pipelines.etl.hashing import bucket_of, xxhash64
from pipelines.etl.history import mark
from pipelines.etl.marks import Plan, contents
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.transitions import split_of, transitions
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
        rows[-1]["logged"] = rows[-1]["at"]
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


# The second implementation.


def naive_reasons(rows: list[Row], plan: Plan) -> list[str | None]:
    names = {DECISIONS: ("decision_id", "decided_at"), EVENTS: ("event_id", "occurred_at")}
    reasons: list[str | None] = []
    for row in rows:
        if row["dataset"] == USERS:
            bad = "missing_user_id" if row["user_id"] is None else "missing_valid_from" if row["at"] is None else None
            reasons.append(bad)
            continue
        row_id, time = names[row["dataset"]]
        reasons.append(
            "missing_user_id" if row["user_id"] is None
            else f"missing_{row_id}" if row["row_id"] is None
            else f"missing_{time}" if row["at"] is None
            else "missing_logged_at" if row["logged"] is None
            else "logged_before_it_happened" if row["logged"] < row["at"]
            else "clock_ahead" if row["logged"] > plan.as_of
            else "too_late" if row["logged"] - row["at"] > plan.max_lateness
            else None
        )  # fmt: skip
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        if reasons[index] is None and row["dataset"] != USERS:
            groups.setdefault((row["dataset"], row["user_id"], row["row_id"]), []).append(index)
    for members in groups.values():
        members.sort(key=lambda i: (rows[i]["logged"], rows[i]["hash"]))
        for place, index in enumerate(members):
            since = rows[index]["logged"] - plan.max_lateness
            first = next(i for i in members[: place + 1] if rows[i]["logged"] >= since)
            equal = rows[index]["hash"] == rows[first]["hash"]
            if first != index:
                reasons[index] = "exact_duplicate" if equal else "conflicting_duplicate"
    return [reason or naive_content(row, plan) for row, reason in zip(rows, reasons, strict=True)]


def naive_content(row: Row, plan: Plan) -> str | None:
    if row["dataset"] == USERS:
        return None
    if row["dataset"] == EVENTS:
        return None if row["label"] in KINDS else "unknown_kind"
    actions = plan.contract.actions
    legal = list(actions) if row.get("legal") is None else row["legal"]
    p = row.get("propensity")
    if row["label"] not in actions:
        return "unknown_action"
    if any(action not in actions for action in legal):
        return "unknown_legal_action"
    if row["label"] not in legal:
        return "illegal_action"
    if p is not None and not 0 < p <= 1:
        return "propensity_out_of_range"
    choice = len(set(legal)) > 1
    if p is not None and not choice and p != 1:
        return "forced_propensity"
    if choice and (row["context:relevance"] is None or row["context:relevance"] > 3.5e38):
        return "missing_feature:relevance"
    if choice and row["category:topic"] is None:
        return "missing_feature:topic"
    return "missing_reward:steps" if row["outcome:steps"] is None else None


def naive_sessions(events: list[Row], gap: int) -> list[Row]:
    shown = [e for e in events if e["label"] in ("session_start", "page_view")]
    shown.sort(key=lambda e: (e["at"], e["logged"], KINDS.index(e["label"])))
    out = []
    for index, event in enumerate(shown):
        earlier = [q for q in shown[:index] if q["logged"] <= event["logged"] and q["at"] >= event["at"] - gap]
        if event["label"] == "session_start" or not earlier:
            out.append(event)
    return out


def naive_state(row: Row, t: int, mine: list[Row], plan: Plan) -> Row:
    seen = [r for r in mine if r["at"] < t and r["logged"] <= t]
    sends = [r for r in seen if r["dataset"] == DECISIONS and r["sent"]]
    events = [r for r in seen if r["dataset"] == EVENTS and r["reason"] is None]
    visits = naive_sessions(events, plan.session_gap)
    clicks = [e for e in events if e["label"] == "click"]
    out: Row = {}
    for name, rows in (("sends", sends), ("clicks", clicks), ("visits", visits)):
        for label, width in (("24h", DAY), ("7d", 7 * DAY)):
            out[f"{name}_{label}"] = sum(r["at"] >= t - width for r in rows)
    for name, rows in (("send", sends), ("visit", visits)):
        last = max((r["at"] for r in rows if r["at"] >= t - plan.lookback), default=None)
        out[f"hours_since_{name}"] = (plan.lookback if last is None else t - last) / HOUR
        out[f"{name}_never"] = last is None
    recent = [r for r in sends if r["at"] >= t - plan.lookback]
    out["badge"] = sum(r["at"] > max((v["at"] for v in visits), default=0) for r in recent)
    clicked = sum(r["at"] >= t - plan.lookback for r in clicks)
    out["click_rate_28d"] = (clicked + 1) / (len(recent) + 10)
    changes = [e for e in events if e["label"] in ("disable", "enable")]
    last_change = max(changes, key=lambda e: (e["at"], e["label"] == "disable"), default={"label": "enable"})
    out["notifications_on"] = last_change["label"] == "enable"
    people = [r for r in mine if r["dataset"] == USERS and r["reason"] is None and r["at"] < t]
    person = max(people, key=lambda r: (r["at"], r["hash"]), default={})
    clock = datetime.fromtimestamp(t // 1_000_000, UTC).astimezone(ZoneInfo(person.get("time_zone") or "UTC"))
    out["local_hour"] = clock.hour + clock.minute / 60 + clock.second / 3600 + t % 1_000_000 / 3.6e9
    for name, turn in (("hour", out["local_hour"] / 24), ("weekday", clock.weekday() / 7)):
        out[f"{name}_sin"], out[f"{name}_cos"] = math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)
    relevance, topic = row.get("context:relevance"), row.get("category:topic")
    relevance = None if relevance is None or relevance > 3.5e38 else relevance
    out["candidate_missing"] = relevance is None or topic is None
    out["relevance"] = relevance
    for value in ("news", "sport"):
        out[f"topic={value}"] = None if topic is None else topic == value
    out["tenure"] = person.get("attribute:tenure")
    plan_name = person.get("attribute_category:plan")
    out["plan=free"] = None if plan_name is None else plan_name == "free"
    return out


def naive_legal(state: Row, logged: list[str], limits: Constraints) -> list[bool]:
    blocked = not state["notifications_on"]
    blocked |= state["local_hour"] >= 22 or state["local_hour"] < 7
    blocked |= state["sends_24h"] >= 3 or state["hours_since_send"] < 1
    logged = [action for action in logged if action in ACTIONS]
    if blocked and any(action != "hold" for action in logged):
        logged = ["hold"]
    return [action in logged for action in ACTIONS]


def naive_covered(visits: list[int], start: int, end: int) -> float:
    """Days of (start, end] within 7 days after a visit, by merging the stretches."""
    stretches: list[list[int]] = []
    for at in sorted(visits):
        if stretches and at <= stretches[-1][1]:
            stretches[-1][1] = at + 7 * DAY
        else:
            stretches.append([at, at + 7 * DAY])
    return sum(max(min(end, b) - max(start, a), 0) for a, b in stretches) / DAY


def naive_rows(mine: list[Row], plan: Plan) -> list[Row]:
    """The decisions of a user that become rows, with the silent ones between them."""
    timed = [
        r for r in mine
        if r["dataset"] == DECISIONS and r["at"] is not None and r["reason"] != "exact_duplicate"
        and (r["logged"] is None or 0 <= r["logged"] - r["at"] <= plan.max_lateness) and r["at"] < plan.watermark
    ]  # fmt: skip
    timed.sort(key=lambda r: (r["at"], r["row_id"] or "", r["reason"] is None, r["logged"] or 0, r["hash"]))
    out: list[Row] = []
    for index, row in enumerate(timed):
        out.append({**row, "silent": False, "usable": row["reason"] is None})
        limit = timed[index + 1]["at"] if index + 1 < len(timed) else plan.watermark
        at = row["at"] + plan.max_gap
        while at < limit:
            out.append(
                {"user_id": row["user_id"], "row_id": f"silent:{row['user_id']}:{at}", "at": at, "label": "hold",
                 "legal": ["hold"], "silent": True, "usable": True, "reason": None, "outcome:steps": 0.0,
                 "bucket": row["bucket"], "split": row["split"]}
            )  # fmt: skip
            at += plan.max_gap
    return out


def naive_transitions(rows: list[Row], plan: Plan) -> list[Row]:
    reasons = naive_reasons(rows, plan)
    out: list[Row] = []
    for user in sorted({r["user_id"] for r in rows if r["user_id"] is not None}):
        mine = []
        for row, reason in zip(rows, reasons, strict=True):
            if row["user_id"] == user:
                ordered = row["at"] is not None and row["logged"] is not None and row["logged"] >= row["at"]
                sent = ordered and row.get("label") in ACTIONS[1:] and "duplicate" not in (reason or "")
                # What was logged after as_of is not known to this run, or to a rerun of it.
                sent = sent and row["logged"] <= plan.as_of
                kept = row.get("label") if reason is None and row["dataset"] == EVENTS else None
                mine.append({**row, "reason": reason, "sent": sent, "label_kept": kept})
        out += naive_user(mine, plan)
    return out


def naive_user(mine: list[Row], plan: Plan) -> list[Row]:
    rows = naive_rows(mine, plan)
    visible = [r for r in mine if r["at"] is not None and r["logged"] is not None]
    events = [r for r in mine if r["label_kept"] is not None]
    visits = [v["at"] for v in naive_sessions(events, plan.session_gap)]
    opened = [r for r in mine if r["dataset"] == DECISIONS and r["sent"] and r["logged"] - r["at"] <= plan.max_lateness]
    clicks, answered = [], []
    for click in (e for e in events if e["label"] == "click" and e["decision_id"] is not None):
        own = [r for r in opened if r["row_id"] == click["decision_id"] and r["at"] <= click["at"]]
        send = max(own, key=lambda r: r["at"], default=None)
        if send is not None and click["at"] - send["at"] <= plan.click_window:
            clicks.append(click)
            answered.append((send["row_id"], send["at"]))
    out = []
    for index, row in enumerate(rows):
        t = row["at"]
        last = index + 1 == len(rows)
        end = plan.watermark if last else rows[index + 1]["at"]
        usable = row["usable"]
        logged = list(ACTIONS) if row.get("legal") is None else row["legal"]
        state = naive_state(row, t, visible, plan)
        closed = any(e["label"] == "account_closed" and t < e["at"] <= end for e in events)
        p = row.get("propensity")
        certain = p is None and len(set(logged)) == 1
        is_send = usable and row["label"] != "hold"
        inside = [e for e in events if t < e["at"] <= end]
        rewards = {
            "sends": float(is_send),
            "clicks": float(sum(t < e["at"] <= end for e in clicks)),
            "visits": float(sum(t < v <= end for v in visits)),
            "weekly_active_days": naive_covered(visits, t, end),
            "disables": float(any(e["label"] == "disable" for e in inside)),
            "steps": row.get("outcome:steps"),
        }
        open_window = t + plan.click_window > plan.watermark
        out.append(
            {
                "user_id": row["user_id"],
                "decision_id": row["row_id"],
                "decided_at": t,
                "ds": datetime.fromtimestamp(t // 1_000_000, UTC).strftime("%Y-%m-%d"),
                "bucket": row["bucket"],
                "split": row["split"],
                "action": row["label"] if row["label"] in ACTIONS else None,
                "legal": naive_legal(state, logged, plan.constraints),
                "propensity": (1.0 if certain else p) if usable else None,
                "propensity_source": ("certain" if certain else None if p is None else "logged") if usable else None,
                "policy_id": row.get("policy_id"),
                **{f"state_{n}": None if state[n] is None else float(np.float32(state[n])) for n in NAMES},
                **{f"reward_{n}": rewards[n] if usable else None for n in REWARDS},
                "elapsed_days": (end - t) / DAY,
                "terminal": usable and closed,
                "truncated": usable and not closed and (last or not rows[index + 1]["usable"]),
                "silent": row["silent"],
                "warm_up": t < plan.log_start + plan.warmup,
                "usable": usable,
                "clicks_attributed": int((row["row_id"], t) in answered) if is_send and not open_window else None,
                "reason": row["reason"],
            }
        )
    return out


def kernel(rows: list[Row], plan: Plan = PLAN) -> pa.Table:
    return transitions(mark(tables_of(rows), plan), plan)


def compare(found: pa.Table, wanted: list[Row]) -> None:
    assert found.num_rows == len(wanted)
    times = found["decided_at"].cast(pa.int64()).to_pylist()
    for index, (row, want) in enumerate(zip(found.to_pylist(), wanted, strict=True)):
        row["decided_at"] = times[index]
        assert list(row) == list(found.schema.names)
        for name, value in want.items():
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-7), (index, name, row, want)
            else:
                assert row[name] == value, (index, name, row, want)


LOG = a_log(1, 250)


def test_marks_agree_and_every_reason_occurs() -> None:
    wanted = naive_reasons(LOG, PLAN)
    marks = mark(tables_of(LOG), PLAN).marks
    for code in SCHEMAS:
        mine = [why for row, why in zip(LOG, wanted, strict=True) if row["dataset"] == code]
        assert marks[code].reasons().to_pylist() == mine
    assert set(wanted) == {
        None, "missing_user_id", "missing_decision_id", "missing_event_id", "missing_decided_at", "missing_occurred_at",
        "missing_valid_from", "missing_logged_at", "logged_before_it_happened", "clock_ahead", "too_late",
        "exact_duplicate", "conflicting_duplicate", "unknown_action", "unknown_legal_action", "illegal_action",
        "propensity_out_of_range", "forced_propensity", "missing_feature:relevance", "missing_feature:topic",
        "missing_reward:steps", "unknown_kind",
    }  # fmt: skip


def test_every_column_of_every_row_agrees() -> None:
    wanted = naive_transitions(LOG, PLAN)
    compare(kernel(LOG), wanted)
    # The log was hostile enough to tell the two apart.
    for flag in ("terminal", "truncated", "silent", "warm_up", "usable"):
        assert 10 < sum(row[flag] for row in wanted) < len(wanted), flag
    for name in (*(f"state_{n}" for n in NAMES), *(f"reward_{n}" for n in REWARDS), "clicks_attributed"):
        assert len({row[name] for row in wanted}) > 1, name
    assert sum(row["reward_clicks"] or 0 for row in wanted) > 50
    assert len({tuple(row["legal"]) for row in wanted}) > 3


def test_the_order_of_rows_does_not_matter() -> None:
    again = list(LOG)
    random.Random(5).shuffle(again)
    # A row and its exact duplicate may change places; the state and all else may not.
    assert kernel(again).equals(kernel(LOG))


def test_user_by_user_is_the_same_as_all_at_once() -> None:
    users = sorted({row["user_id"] for row in LOG if row["user_id"]})[:40]
    alone = pa.concat_tables([kernel([row for row in LOG if row["user_id"] == user]) for user in users])
    together = kernel([row for row in LOG if row["user_id"] in users])
    assert alone.equals(together)


def test_no_rows_give_no_transitions() -> None:
    assert kernel([]).num_rows == 0
    assert kernel([row for row in LOG if row["dataset"] != DECISIONS]).num_rows == 0


def test_sums_of_rewards_are_the_metrics() -> None:
    """Over users whose every row is usable: rewards over rows = raw counts over the time covered."""
    found = kernel(LOG).to_pandas()
    reasons = naive_reasons(LOG, PLAN)
    clean = found.groupby("user_id")["usable"].all()
    found = found[found["user_id"].isin(clean[clean].index)]
    since = found.groupby("user_id")["decided_at"].min().map(lambda t: t.value // 1000)
    assert len(since) > 15
    covered = sum(PLAN.watermark - start for start in since) / DAY
    assert found["elapsed_days"].sum() == pytest.approx(covered, abs=1e-9)
    visits, active = 0, 0.0
    for user, start in since.items():
        pairs = zip(LOG, reasons, strict=True)
        events = [r for r, why in pairs if why is None and r["dataset"] == EVENTS and r["user_id"] == user]
        starts = [v["at"] for v in naive_sessions(events, PLAN.session_gap)]
        visits += sum(start < v <= PLAN.watermark for v in starts)
        active += naive_covered(starts, start, PLAN.watermark)
    assert found["reward_visits"].sum() == visits
    # The WAU rate: the share of user-days covered at which the user had visited in the week before.
    rate = found["reward_weekly_active_days"].sum() / found["elapsed_days"].sum()
    assert rate == pytest.approx(active / covered, abs=1e-9)
    sends = sum(
        r["label"] != "hold" and r["at"] < PLAN.watermark
        for r, why in zip(LOG, reasons, strict=True)
        if why is None and r["dataset"] == DECISIONS and r["user_id"] in since.index
    )
    assert found["reward_sends"].sum() == sends


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.9))
def test_nothing_at_or_after_a_moment_changes_a_state_before_it(seed: int, share: float) -> None:
    rng = random.Random(seed)
    rows = a_log(seed, 3)
    cut = START + round(share * 50 * DAY)
    if rng.random() < 0.5:
        cut = rng.choice([row["at"] for row in rows if row["at"] is not None and row["at"] < PLAN.watermark])

    def future(row: Row) -> bool:
        return row["at"] is not None and (row["at"] >= cut or (row["logged"] or 0) > cut)

    past = [row for row in rows if not future(row)]
    renamed = [{**row, "row_id": f"x{row.get('row_id')}"} for row in a_log(seed + 1, 3)]
    other = finish([row for row in renamed if future(row)])
    good = {"label": "hold", "legal": None, "propensity": 0.5, "context:relevance": 0.5, "category:topic": "news"}
    probe = {"dataset": DECISIONS, "row_id": "probe", "at": cut, "logged": cut, "outcome:steps": 0.0, **good}
    probes = finish([{**probe, "user_id": f"u{number}"} for number in range(3)])

    def states(log: list[Row]) -> dict[Any, Any]:
        found = kernel(log)
        keep = [name for name in found.schema.names if name.startswith("state_") or name == "legal"]
        keys = zip(found["user_id"].to_pylist(), found["decision_id"].to_pylist(), strict=True)
        at = found["decided_at"].cast(pa.int64()).to_pylist()
        return dict(zip(zip(keys, at, strict=True), found.select(keep).to_pylist(), strict=True))

    one, two = states([*rows, *probes]), states([*past, *other, *probes])
    decided = [row for row in [*past, *probes] if row["dataset"] == DECISIONS]
    # A quarantined row may come in by a later copy of itself in one of the two logs alone.
    shared = {((row["user_id"], row["row_id"]), row["at"]) for row in decided} & one.keys() & two.keys()
    assert len(shared) >= len(probes)
    for key in shared:
        assert one[key] == two[key], key


# The same log through Spark.

RAW = {
    DECISIONS: {"row_id": "decision_id", "user_id": "user_id", "at": "decided_at", "logged": "logged_at",
                "label": "action", "legal": "legal_actions", "propensity": "propensity", "policy_id": "policy_id",
                "context:relevance": "relevance", "category:topic": "topic", "outcome:steps": "steps"},
    EVENTS: {"row_id": "event_id", "user_id": "user_id", "at": "occurred_at", "logged": "logged_at", "label": "kind",
             "decision_id": "decision_id"},
    USERS: {"user_id": "user_id", "at": "valid_from", "time_zone": "time_zone", "attribute:tenure": "tenure",
            "attribute_category:plan": "plan"},
}  # fmt: skip


def write_lake(rows: list[Row], folder: Path, files: int) -> None:
    """Raw Parquet as a company would have it, in so many files."""
    for code, name in ((DECISIONS, "decisions"), (EVENTS, "events"), (USERS, "users")):
        mine = [row for row in rows if row["dataset"] == code]
        columns = {}
        for alias, raw in RAW[code].items():
            kind = pa.timestamp("us", "UTC") if alias in ("at", "logged") else SCHEMAS[code].field(alias).type
            columns[raw] = pa.array([row.get(alias) for row in mine], kind)
        table = pa.table(columns)
        (folder / name).mkdir(parents=True)
        for part in range(files):
            pq.write_table(table.take(list(range(part, len(mine), files))), folder / name / f"{part}.parquet")


def configured(folder: Path, run: str, partitions: int) -> Config:
    first = datetime.fromtimestamp(START / 1e6, UTC)
    gaps = [f"{first + timedelta(days=day):%Y-%m-%d}" for day in range(-2, 75)]
    return validate(
        {
            "name": "hostile",
            "run_dir": str(folder / run),
            "actions": list(ACTIONS),
            "rewards": [*REWARDS[:-1], "column:steps"],
            "data": {name: {"path": str(folder / name)} for name in ("decisions", "events", "users")},
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
                "known_gaps": gaps,
                "max_quarantined": 0.9,
                "buckets": 2,
            },
            "train": {"weights": {"clicks": 1.0}},
            "spark": {"master": "local[2]", "shuffle_partitions": partitions},
        },
        "test",
    )


def test_spark_makes_the_same_rows_whatever_the_files_and_partitions(spark: SparkSession, tmp_path: Path) -> None:
    rows = a_log(3, 40)
    write_lake(rows, tmp_path / "one", files=1)
    config = configured(tmp_path / "one", "run", partitions=1)
    report = run_etl(spark, config)
    table = DeltaTable(config.transitions_path)
    found = table.to_pyarrow_table()
    assert report["version"] == table.version() == 0

    start = min(r["at"] for r in rows if r["dataset"] != USERS and naive_timely(r))
    plan = replace(PLAN, log_start=start, buckets=2)
    log = finish(rows, plan)
    wanted = naive_transitions(log, plan)
    keys = [(name, "ascending") for name in ("user_id", "decided_at", "decision_id", "usable")]
    ordered = found.select([*wanted[0]]).sort_by(keys)
    wanted.sort(key=lambda r: (r["user_id"], r["decided_at"], r["decision_id"] is None, r["decision_id"], r["usable"]))
    compare(ordered, wanted)

    rng = random.Random(9)
    rng.shuffle(rows)
    write_lake(rows, tmp_path / "two", files=3)
    again = run_etl(spark, configured(tmp_path / "two", "run", partitions=2))
    assert again["fingerprint"] == report["fingerprint"]
    assert again["rows"] == report["rows"]

    # One file per day and bucket, none of them seen before the commit.
    assert len(table.file_uris()) == len({(row["ds"], row["bucket"]) for row in wanted})
    check_counts(report, log, plan)
    reasons = naive_reasons(log, plan)
    caught = DeltaTable(config.run_dir / "quarantine" / "decisions").to_pyarrow_table().to_pylist()
    assert len(caught) == report["rows"]["decisions"]["quarantined"] > 0
    assert all(row["remedy"] and row["reason"] in reasons for row in caught)


def naive_timely(row: Row) -> bool:
    at, logged = row["at"], row["logged"]
    if row["user_id"] is None or at is None or logged is None:
        return False
    return at <= logged <= PLAN.as_of and logged - at <= PLAN.max_lateness


def check_counts(report: Row, log: list[Row], plan: Plan) -> None:
    """Every count of the report, counted again."""
    reasons = naive_reasons(log, plan)
    for code, name in ((DECISIONS, "decisions"), (EVENTS, "events")):
        mine = [(row, why) for row, why in zip(log, reasons, strict=True) if row["dataset"] == code]
        counts = report["rows"][name]
        assert counts["read"] == len(mine)
        assert counts["kept"] == sum(why is None for _, why in mine)
        assert counts["exact_duplicates"] == sum(why == "exact_duplicate" for _, why in mine)
        assert counts["mature"] == sum(why is None and row["at"] < plan.watermark for row, why in mine)
        assert counts["kept"] == counts["mature"] + counts["immature"]
        for why, count in counts["by_reason"].items():
            assert count == sum(found == why for _, found in mine), why
        days = counts["by_day"].values()
        assert all(d["read"] == d["kept"] + d["exact_duplicates"] + d["quarantined"] for d in days)
        assert sum(d["read"] for d in days) == counts["read"]
