"""Several candidates of a user in one night: what is drawn for one is known to the next, and limits hold within it."""

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.etl.features import DAY, HOUR
from pipelines.etl.hashing import xxhash64
from pipelines.etl.marks import Plan
from pipelines.etl.schemas import DECISIONS, USERS
from pipelines.scoring.rounds import Price, drawn
from policies.constraints import Constraints
from tests.pipelines.hostile import ACTIONS, NAMES, PLAN, START, Row, a_log, finish
from tests.pipelines.naive import naive_reasons, naive_state
from tests.pipelines.scoring.candidates import RULES, Formula, candidate, judged

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(text: str) -> int:
    """A time of UTC in us."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


# The second implementation: one user after another, one candidate after another.


def naive_night(log: list[Row], asked: list[Row], plan: Plan, champion: Formula, price: Price) -> dict[str, Row]:
    """By candidate: state, legal, rule, probabilities and action."""
    found: dict[str, Row] = {}
    reasons = naive_reasons(log, plan)
    for user in sorted({row["user_id"] for row in asked}):
        mine = []
        for row, reason in zip(log, reasons, strict=True):
            if (
                row["user_id"] == user
                and row["at"] is not None
                and (row["logged"] is not None or row["dataset"] == USERS)
            ):
                in_order = row["logged"] is not None and row["at"] <= row["logged"] <= plan.as_of
                sent = in_order and row.get("label") in ACTIONS[1:] and "duplicate" not in (reason or "")
                mine.append({**row, "reason": reason, "sent": sent})
        tonight: list[int] = []
        for row in sorted((r for r in asked if r["user_id"] == user), key=lambda r: (r["at"], r["row_id"])):
            t = row["at"]
            state = naive_state(row, t, mine + [a_send(at) for at in tonight], plan)
            # Of two at one instant the later one does not see the first in its state, but it is held to its limits.
            limited = naive_state(row, t, mine + [a_send(at - (at == t)) for at in tonight], plan)
            rule = naive_rule(limited, plan.constraints)
            offered = [action in (row["legal"] or ACTIONS) for action in ACTIONS]
            if rule and any(offered[1:]):
                offered = [True, False, False]
            else:
                rule = None
            vector = np.array([[np.nan if state[name] is None else state[name] for name in NAMES]], np.float32)
            q, logits, _ = (each[0] for each in champion.predict(vector))
            probabilities = naive_probabilities(q, logits, offered, champion.decision, price)
            draw = int(xxhash64(pa.array([row["row_id"]]), RULES.seed)[0] >> np.uint64(11)) / 2**53
            action = next(a for a in range(3) if sum(probabilities[: a + 1]) > draw or a == 2)
            found[row["row_id"]] = {"state": vector[0], "legal": offered, "rule": rule, "probabilities": probabilities,
                                    "action": action}  # fmt: skip
            if action > 0:
                tonight.append(t)
    return found


def a_send(at: int) -> Row:
    return {"dataset": DECISIONS, "at": at, "logged": at, "sent": True, "reason": None}


def naive_rule(state: Row, limits: Constraints) -> str | None:
    if limits.consent and not state["notifications_on"]:
        return "consent"
    if limits.quiet_hours is not None:
        start, end = limits.quiet_hours
        hour = state["local_hour"]
        if (start <= hour < end) if start <= end else (hour >= start or hour < end):
            return "quiet_hours"
    if limits.max_sends_24h is not None and state["sends_24h"] >= limits.max_sends_24h:
        return "max_sends_24h"
    if limits.max_sends_7d is not None and state["sends_7d"] >= limits.max_sends_7d:
        return "max_sends_7d"
    if limits.min_gap_hours is not None and state["hours_since_send"] < limits.min_gap_hours:
        return "min_gap"
    return None


def naive_probabilities(
    q: Any, logits: Any, legal: list[bool], decision: Mapping[str, float], price: Price
) -> list[float]:
    share, exploration = decision["rollout_share"], decision["exploration"]
    weight = [float(np.exp(logits[a])) * legal[a] for a in range(3)]
    greedy = [0.0, 0.0, 0.0]
    best = max((a for a in (1, 2) if legal[a]), key=lambda a: q[a], default=0)
    gap = q[best] - q[0]
    send = 0.0 if best == 0 else 1.0 if not legal[0] or gap > price.lambda_ else price.theta * (gap == price.lambda_)
    greedy[best] += send
    greedy[0] += 1 - send
    return [
        (1 - share) * weight[a] / sum(weight)
        + share * ((1 - exploration) * greedy[a] + exploration * legal[a] / sum(legal))
        for a in range(3)
    ]


LIMITS = [
    Constraints(),
    Constraints(max_sends_24h=1),
    Constraints(quiet_hours=(22, 7), max_sends_24h=2),
    Constraints(quiet_hours=(23, 6.5), min_gap_hours=3),
    Constraints(max_sends_7d=3, min_gap_hours=0.5),
    Constraints(consent=False, quiet_hours=(1, 4), max_sends_24h=2, max_sends_7d=4, min_gap_hours=1),
]
CLOCKS_CHANGE = [us("2024-03-10T06:30"), us("2024-03-31T00:30"), us("2024-04-06T14:30")]
"""Hours before the clocks of New York, Berlin and Lord Howe change."""


def some_candidates(rng: random.Random, users: int, start: int) -> list[Row]:
    rows = []
    for user in range(users):
        times = [start + rng.randrange(30) * HOUR // 2 for _ in range(rng.choice([1, 1, 2, 3, 4]))]
        if rng.random() < 0.3:
            times[-1] = times[0]
        for number, at in enumerate(times):
            legal = rng.choice([None, None, None, ["hold", "push"], ["hold"], ["badge", "push"]])
            rows.append(candidate(f"u{user}", f"{rng.randrange(10**6)}-{user}-{number}", at, legal=legal,
                                  **{"context:relevance": rng.random()}))  # fmt: skip
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_rounds_decide_as_one_user_after_another(seed: int) -> None:
    rng = random.Random(seed)
    plan = replace(PLAN, constraints=LIMITS[seed % len(LIMITS)])
    log = a_log(seed, 25)
    start = rng.choice([*CLOCKS_CHANGE, START + 30 * DAY])
    asked = some_candidates(rng, 25, start)
    price, champion = rng.choice([(Price(0.0), Formula()), (Price(0.5, 0.25), Formula(steps=0.5))])
    found = judged(log, asked, plan, champion, price=price)
    probabilities = found.probabilities(champion, price)
    action = drawn(probabilities, found.asked["row_id"], RULES.seed)
    wanted = naive_night(log, asked, plan, champion, price)
    assert len({row["user_id"] for row in asked}) < len(asked) == len(wanted)
    for place, name in enumerate(found.asked["row_id"].to_pylist()):
        mine = wanted[name]
        np.testing.assert_array_equal(found.state[place], mine["state"], name)
        assert found.legal[place].tolist() == mine["legal"]
        only = sum(row_legal(asked[place])) == 1
        assert found.reason[place] == (mine["rule"] or ("only_legal_action" if only else None))
        np.testing.assert_allclose(probabilities[place], mine["probabilities"], rtol=1e-12)
        assert action[place] == mine["action"]


def row_legal(row: Row) -> list[bool]:
    return [action in (row["legal"] or ACTIONS) for action in ACTIONS]


def test_the_order_of_the_candidates_decides_nothing() -> None:
    log, asked = a_log(5, 20), some_candidates(random.Random(5), 20, START + 20 * DAY)
    plan = replace(PLAN, constraints=Constraints(max_sends_24h=1))
    one, two = judged(log, asked, plan), judged(log, asked[::-1], plan)
    assert one.legal.tolist() == two.legal.tolist()[::-1]
    np.testing.assert_array_equal(one.q, two.q[::-1])


# Limits, seen from outside: what was drawn, on the user's clock.


class Eager(Formula):
    """Sends whenever it may."""

    def predict(self, state: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        _, logits, values = super().predict(state)
        return np.tile([0.0, 1.0, 2.0], (len(state), 1)), logits, values


EAGER = Eager(decision={"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0})


def person(user: str, zone: str | None) -> Row:
    return {"dataset": USERS, "user_id": user, "at": START - DAY, "logged": None, "time_zone": zone,
            "attribute:tenure": 1.0, "attribute_category:plan": "free"}  # fmt: skip


def sent_at(log: list[Row], asked: list[Row], limits: Constraints) -> dict[str, list[int]]:
    """By user, the times of what is drawn, in order."""
    found = judged(finish(log), asked, replace(PLAN, constraints=limits), EAGER)
    action = drawn(found.probabilities(EAGER, Price(0.0)), found.asked["row_id"], RULES.seed)
    sends: dict[str, list[int]] = {}
    for row, taken in zip(asked, action, strict=True):
        if taken > 0:
            sends.setdefault(row["user_id"], []).append(row["at"])
    return {user: sorted(times) for user, times in sends.items()}


NOON = START + 30 * DAY + 12 * HOUR


@pytest.mark.parametrize(
    ("limits", "hours", "sends"),
    [
        # A send of exactly 24 hours ago still counts, since windows are [t - w, t).
        (Constraints(max_sends_24h=1), [0, 1, 24, 24.001], [0, 24.001]),
        (Constraints(max_sends_24h=2), [0, 1, 2, 24.5], [0, 1, 24.5]),
        (Constraints(max_sends_24h=0), [0, 1], []),
        (Constraints(max_sends_7d=2), [0, 30, 60, 168.001], [0, 30, 168.001]),
        (Constraints(min_gap_hours=3), [0, 2.999, 3, 5], [0, 3]),
        (Constraints(max_sends_24h=3, min_gap_hours=1), [0, 0.5, 1, 2], [0, 1, 2]),
        # At one instant the first by id is sent, and the others know of it.
        (Constraints(max_sends_24h=1), [0, 0, 0], [0]),
        (Constraints(min_gap_hours=0.1), [0, 0, 1], [0, 1]),
        (Constraints(), [0, 0, 0, 1], [0, 0, 0, 1]),
    ],
)
def test_caps_and_gaps_hold_within_the_night(limits: Constraints, hours: list[float], sends: list[float]) -> None:
    asked = [candidate("a", f"c{place}", NOON + round(hour * HOUR)) for place, hour in enumerate(hours)]
    others = [candidate("b", "b1", NOON + HOUR)] if limits.max_sends_24h != 0 else []
    found = sent_at([person("a", None)], asked + others, limits)
    assert found.get("a", []) == [NOON + round(hour * HOUR) for hour in sends]
    assert found.get("b", []) == [row["at"] for row in others]


def test_sends_of_the_log_and_of_the_night_count_together() -> None:
    row = {"dataset": DECISIONS, "user_id": "a", "row_id": "d", "at": NOON - 5 * HOUR, "logged": NOON - 5 * HOUR,
           "label": "push", "legal": None, "propensity": 0.5, "policy_id": None, "context:relevance": 0.5,
           "category:topic": "news", "outcome:steps": 1.0}  # fmt: skip
    asked = [candidate("a", f"c{hour}", NOON + hour * HOUR) for hour in range(3)]
    found = sent_at([row], asked, Constraints(max_sends_24h=2))
    assert found == {"a": [NOON]}


@pytest.mark.parametrize(
    ("zone", "clocks"),
    [
        # 22:00 to 7:00 on the user's clock, on the night when Berlin's goes from 2:00 to 3:00.
        ("Europe/Berlin", ["2024-03-30T20:59:59", "2024-03-30T21:00", "2024-03-31T04:59:59", "2024-03-31T05:00"]),
        ("Europe/Berlin", ["2024-03-29T20:59:59", "2024-03-29T21:00", "2024-03-30T05:59:59", "2024-03-30T06:00"]),
        # New York: back from 2:00 to 1:00, so that the night is an hour longer.
        ("America/New_York", ["2024-11-03T01:59", "2024-11-03T02:00", "2024-11-03T11:59", "2024-11-03T12:00"]),
        # Half an hour forward on Lord Howe Island; a zone three quarters of an hour off; none is UTC.
        ("Australia/Lord_Howe", ["2024-10-05T11:29", "2024-10-05T11:30", "2024-10-05T19:59", "2024-10-05T20:00"]),
        ("Asia/Kathmandu", ["2024-03-20T16:14", "2024-03-20T16:15", "2024-03-21T01:14", "2024-03-21T01:15"]),
        (None, ["2024-03-20T21:59", "2024-03-20T22:00", "2024-03-21T06:59", "2024-03-21T07:00"]),
    ],
)
def test_quiet_hours_across_midnight_on_the_users_clock(zone: str | None, clocks: list[str]) -> None:
    """Just before it is quiet, then; at the end, and just after."""
    asked = [candidate("a", f"c{place}", us(clock)) for place, clock in enumerate(clocks)]
    found = sent_at([person("a", zone)], asked, Constraints(quiet_hours=(22, 7)))
    assert found["a"] == [us(clocks[0]), us(clocks[3])]


@pytest.mark.parametrize("seed", range(8))
def test_no_limit_is_broken_by_what_is_drawn(seed: int) -> None:
    """Over a hostile log, on the users' clocks, by arithmetic on the drawn times and the sends of the log."""
    rng = random.Random(seed)
    limits = Constraints(quiet_hours=(22, 7), max_sends_24h=2, max_sends_7d=3, min_gap_hours=2)
    zones = {f"u{user}": rng.choice(["Europe/Berlin", "America/New_York", "Asia/Kathmandu"]) for user in range(40)}
    asked = [row for row in some_candidates(rng, 40, rng.choice(CLOCKS_CHANGE)) if row["legal"] != ["badge", "push"]]
    found = sent_at([person(user, zone) for user, zone in zones.items()], asked, limits)
    assert any(len(times) > 1 for times in found.values())
    for user, times in found.items():
        for place, at in enumerate(times):
            before = [at - earlier for earlier in times[:place]]
            assert sum(span <= DAY for span in before) < 2
            assert sum(span <= 7 * DAY for span in before) < 3
            assert all(span >= 2 * HOUR for span in before)
            clock = datetime.fromtimestamp(at / 1e6, UTC).astimezone(ZoneInfo(zones[user]))
            assert 7 <= clock.hour < 22
