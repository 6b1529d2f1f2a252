"""The kernels against a second implementation: plain Python, one user at a time, from the definitions."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from pipelines.etl.features import DAY, HOUR, KINDS
from pipelines.etl.flow import run_etl
from pipelines.etl.history import mark
from pipelines.etl.marks import Plan
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.transitions import transitions
from tests.pipelines.hostile import (
    ACTIONS,
    NAMES,
    PLAN,
    REWARDS,
    SCHEMAS,
    START,
    ZONES,
    Row,
    a_log,
    configured,
    finish,
    tables_of,
    write_lake,
)
from tests.pipelines.naive import naive_covered, naive_reasons, naive_sessions, naive_transitions


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
    assert check_metrics(kernel(LOG), LOG, PLAN) > 15


def check_metrics(table: pa.Table, log: list[Row], plan: Plan) -> int:
    """Over users whose every row is usable: rewards over rows = raw counts over the time covered; how many users."""
    found, reasons = table.to_pandas(), naive_reasons(log, plan)
    clean = found.groupby("user_id")["usable"].all()
    found = found[found["user_id"].isin(clean[clean].index)]
    since = found.groupby("user_id")["decided_at"].min().map(lambda t: t.value // 1000)
    covered = sum(plan.watermark - start for start in since) / DAY
    assert found["elapsed_days"].sum() == pytest.approx(covered, abs=1e-9)
    kept: dict[str, dict[int, list[Row]]] = {user: {DECISIONS: [], EVENTS: [], USERS: []} for user in since.index}
    for row, why in zip(log, reasons, strict=True):
        if why is None and row["user_id"] in kept:
            kept[row["user_id"]][row["dataset"]].append(row)
    sends, clicks, visits, active = 0, 0, 0, 0.0
    for user, start in since.items():
        events = kept[user][EVENTS]
        sent = [(r["row_id"], r["at"]) for r in kept[user][DECISIONS] if r["label"] != "hold"]
        sends += sum(at < plan.watermark for _, at in sent)
        clicks += sum(
            start < e["at"] <= plan.watermark
            and any(name == e["decision_id"] and 0 <= e["at"] - at <= plan.click_window for name, at in sent)
            for e in events
            if e["label"] == "click"
        )
        starts = [v["at"] for v in naive_sessions(events, plan.session_gap)]
        visits += sum(start < v <= plan.watermark for v in starts)
        active += naive_covered(starts, start, plan.watermark)
    assert min(sends, clicks, visits) > 0
    assert (found["reward_sends"].sum(), found["reward_clicks"].sum()) == (sends, clicks)
    assert found["reward_visits"].sum() == visits
    # The WAU rate: the share of user-days covered at which the user had visited in the week before.
    rate = found["reward_weekly_active_days"].sum() / found["elapsed_days"].sum()
    assert rate == pytest.approx(active / covered, abs=1e-9)
    return len(since)


SPANS = [0, 1, HOUR // 2, HOUR, DAY, 7 * DAY, 20 * DAY]
VALUES: dict[str, list[Any]] = {
    "label": [*ACTIONS, "shout", *KINDS, None],
    "legal": [None, ["hold", "push"], ["hold"], []],
    "propensity": [None, 0.5, 1.0, 2.0],
    "context:relevance": [None, 0.2],
    "category:topic": [None, "sport"],
    "outcome:steps": [None, 1.0],
    "decision_id": [None, "d0", "d1", "d2"],
    "row_id": [None, "d0", "d1", "e0", "new"],
    "time_zone": ZONES,
    "attribute:tenure": [None, 9.0],
    "attribute_category:plan": [None, "free"],
}
"""What an edit may write into a row; a column that the row's dataset does not have is not read."""


def future(row: Row, cut: int) -> bool:
    return row["at"] is not None and (row["at"] >= cut or (row["logged"] or 0) > cut)


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[Row], list[Row], int]:
    """A log, a moment, and the log after some rows at or after it, or logged after it, were changed, added, deleted."""
    users = 2
    # What a row says is told apart by policy_id, so that copies of one id do not hide each other.
    log = [{**row, "policy_id": str(row["hash"])} for row in a_log(draw(st.integers(0, 10**6)), users)]
    times = sorted({row["at"] for row in log if row["at"] is not None and START < row["at"] < PLAN.watermark})
    cut = draw(st.sampled_from(times or [START + DAY])) + draw(st.sampled_from([0, 0, 1, -1]))
    after = list(log)
    for number, edit in enumerate(draw(st.lists(st.sampled_from(["change", "add", "delete"]), min_size=1, max_size=8))):
        # A copy of any row may be added; only the future may be changed or deleted.
        those = [place for place, row in enumerate(after) if edit == "add" or future(row, cut)]
        if not those:
            continue
        place = draw(st.sampled_from(those))
        if edit == "delete":
            del after[place]
            continue
        row = dict(after[place])
        for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3)):
            row[name] = draw(st.sampled_from(VALUES[name]))
            row["policy_id"] = f"edit {number}"
        happened = row["at"] if row["at"] is not None else cut
        if draw(st.booleans()) or row["dataset"] == USERS:
            row["at"] = max(happened, cut) + draw(st.sampled_from(SPANS))
            row["logged"] = row["at"] + draw(st.sampled_from(SPANS))
        else:
            row["at"], row["logged"] = happened, max(happened, cut) + 1 + draw(st.sampled_from(SPANS))
        assert future(row, cut)
        after[place : place + (edit == "change")] = [row]
    good = {"label": "hold", "legal": None, "propensity": 0.5, "context:relevance": 0.5, "category:topic": "news"}
    probe = {"dataset": DECISIONS, "row_id": "probe", "at": cut, "logged": cut, "outcome:steps": 0.0, **good}
    probes = [{**probe, "user_id": f"u{number}", "policy_id": "probe"} for number in range(users)]
    return finish([*log, *probes]), finish([*after, *probes]), cut


@settings(max_examples=150, deadline=None)
@given(made=edited())
def test_nothing_at_or_after_a_moment_changes_a_state_at_or_before_it(made: tuple[list[Row], list[Row], int]) -> None:
    before, after, cut = made

    def states(log: list[Row]) -> dict[Any, Row]:
        found = kernel(log)
        keep = [name for name in found.schema.names if name.startswith("state_") or name == "legal"]
        keys = found.select(["user_id", "decision_id", "policy_id"]).to_pylist()
        at = found["decided_at"].cast(pa.int64()).to_pylist()
        rows = zip(keys, at, found.select(keep).to_pylist(), strict=True)
        return {(*key.values(), moment): row for key, moment, row in rows}

    one, two = states(before), states(after)
    past = [row for row in before if row["dataset"] == DECISIONS and (not future(row, cut) or row["row_id"] == "probe")]
    # One logged before it happened is no row: what has its key is a copy, and may be one that is logged later.
    good = [row for row in past if row["logged"] is not None and row["at"] is not None and row["logged"] >= row["at"]]
    shared = {(row["user_id"], row["row_id"], row["policy_id"], row["at"]) for row in good} & one.keys()
    assert len(shared) >= 2
    for key in shared:
        assert two[key] == one[key], key


def test_spark_makes_the_same_rows_whatever_the_files_and_partitions(spark: SparkSession, tmp_path: Path) -> None:
    rows = a_log(3, 500)
    write_lake(rows, tmp_path / "one", files=1)
    config = configured(tmp_path / "one")
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
    assert check_metrics(found, log, plan) > 30

    rng = random.Random(9)
    rng.shuffle(rows)
    write_lake(rows, tmp_path / "two", files=3)
    again = run_etl(spark, configured(tmp_path / "two"))
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
