"""The second implementation of the transitions: plain Python, one user at a time, from the definitions."""

import math
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from pipelines.etl.features import DAY, HOUR, KINDS
from pipelines.etl.marks import Plan
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from policies.constraints import Constraints
from tests.pipelines.hostile import ACTIONS, NAMES, REWARDS, Row


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
    seen = [r for r in mine if r["dataset"] != USERS and r["at"] < t and r["logged"] <= t]
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
    people = [r for r in mine if r["dataset"] == USERS and r["reason"] is None]
    people = [r for r in people if r["at"] < t and (r["logged"] is None or r["logged"] <= t)]
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
    visible = [r for r in mine if r["at"] is not None and (r["logged"] is not None or r["dataset"] == USERS)]
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
