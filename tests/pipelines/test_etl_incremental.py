"""Day by day, in chunks of days, and with days that come late: always the table that one run over all days makes."""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl.features import DAY
from pipelines.etl.flow import run_etl
from pipelines.etl.schemas import DECISIONS, EVENTS, USERS
from pipelines.etl.window import day_number
from tests.pipelines.hostile import EPOCH, START, Row, a_log, configured, tree, write_days
from tests.pipelines.inprocess import in_process, unjudged

TABLES = ("transitions", "consent", "quarantine/decisions", "quarantine/events", "quarantine/users")
FIRST = START // DAY
"""Arrival day 0 of the logs below, in days since the epoch."""
Days = tuple[int, int]


def contents(config: Config, name: str) -> list[str]:
    """Every row of a table of a run, as text, in an order of its own."""
    table = DeltaTable(config.run_dir / name).to_pyarrow_table()
    return sorted(map(repr, table.select(sorted(table.column_names)).to_pylist()))


def check_same(found: Config, wanted: Config, names: Iterable[str] = TABLES) -> None:
    for name in names:
        one, two = Counter(contents(found, name)), Counter(contents(wanted, name))
        assert one == two, (name, "not wanted", [*(one - two)][:3], "missing", [*(two - one)][:3])


def paths(config: Config) -> dict[str, str]:
    """Path -> ds of every file of the transitions."""
    adds = DeltaTable(config.transitions_path).get_add_actions(flatten=True)
    return dict(zip(*(adds.column(name).to_pylist() for name in ("path", "partition.ds")), strict=True))


def text(day: int) -> str:
    return f"{EPOCH + timedelta(days=day):%Y-%m-%d}"


def chunks(first: int, last: int, cuts: Iterable[int]) -> list[Days]:
    """The days first..last, cut after each of `cuts`."""
    ends = sorted({cut for cut in cuts if first <= cut < last} | {last})
    return list(zip([first, *(end + 1 for end in ends[:-1])], ends, strict=True))


def test_through_spark_in_any_order_of_arrival(spark: SparkSession, tmp_path: Path) -> None:
    """A moving watermark, every table, two readers of the lake: by arrival day, and all at once without days."""
    days = [day_number(day, "") for day in write_days(a_log(7, 25), tmp_path)]
    moving = {"watermark": None, "max_quarantined": 1.0}
    whole, inc = (configured(tmp_path, run, **moving) for run in ("whole", "inc"))
    with unjudged():
        wanted = run_etl(spark, whole)
        # The first run needs good rows of both datasets; days 25..27 come after day 38, when nobody hoped for them.
        plan = chunks(days[0], days[-1], [FIRST + day for day in (10, 22, 23, 24, 27, 37, 38, 48)])
        late = plan.pop(plan.index((FIRST + 25, FIRST + 27)))
        plan.insert(plan.index((FIRST + 38, FIRST + 38)) + 1, late)
        reports = []
        for chunk in plan:
            before = paths(inc) if reports else {}
            reports.append(run_etl(spark, inc, days=chunk))
            # What lies before the window stays as it is, file by file.
            since = reports[-1]["rewritten_from"] or ""
            kept = {path for path, ds in before.items() if ds < since}
            assert kept <= paths(inc).keys()
            assert {path for path, ds in paths(inc).items() if ds < since} == kept
    assert all(report["rewritten_from"] for report in reports[1:])
    assert len({report["watermark"] for report in reports}) > 5
    assert wanted["rows"]["transitions"]["rows"] > 300
    check_same(inc, whole)
    for key in ("fingerprint", "watermark", "log_start"):
        assert reports[-1][key] == wanted[key], key


# Without shrinking: an example is a dozen runs.
@settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data(), seed=st.integers(0, 10**6), moving=st.booleans())
def test_in_any_order_of_arrival(data: st.DataObject, seed: int, moving: bool) -> None:
    with tempfile.TemporaryDirectory() as name, in_process() as session:
        folder = Path(name)
        days = [day_number(day, "") for day in write_days(a_log(seed, 6), folder)]
        etl = {"max_quarantined": 1.0, **({"watermark": None} if moving else {})}
        whole, inc, again = (configured(folder, run, **etl) for run in ("whole", "inc", "again"))
        cuts = data.draw(st.lists(st.integers(FIRST + 14, FIRST + 60), min_size=2, max_size=6, unique=True))
        plan = chunks(days[0], days[-1], [FIRST + 12, *cuts])
        # The first chunk stays in front: a table begins with good rows of both datasets.
        order = [plan[0], *data.draw(st.permutations(plan[1:]))]
        wanted = run_etl(session, whole)
        for chunk in order:
            report = run_etl(session, inc, days=chunk)
        check_same(inc, whole)
        assert (report["fingerprint"], report["watermark"]) == (wanted["fingerprint"], wanted["watermark"])
        named = run_etl(session, again, days=(days[0], days[-1]))
        assert named["fingerprint"] == wanted["fingerprint"]
        check_same(again, whole)


# Small logs in which one thing happens.


def at(day: float) -> int:
    """A moment of the log, us; day 0.5 is noon of the first day."""
    return START + round(day * DAY)


def decided(user: str, day: float, label: str = "push", logged: float | None = None, **more: Any) -> Row:
    return {
        "dataset": DECISIONS, "user_id": user, "row_id": f"{user}@{day}", "at": at(day), "label": label,
        "logged": at(day if logged is None else logged), "legal": None, "propensity": 1 / 3, "policy_id": None,
        "context:relevance": 0.5, "category:topic": "news", "outcome:steps": 1.0, **more,
    }  # fmt: skip


def happened(user: str, day: float, kind: str, logged: float | None = None, **more: Any) -> Row:
    return {
        "dataset": EVENTS, "user_id": user, "row_id": f"{kind} {user}@{day}", "at": at(day), "label": kind,
        "logged": at(day if logged is None else logged), "decision_id": None, **more,
    }  # fmt: skip


def person(user: str, day: float, tenure: float, logged: float | None = None) -> Row:
    return {
        "dataset": USERS, "user_id": user, "at": at(day), "logged": at(day if logged is None else logged),
        "time_zone": "America/New_York", "attribute:tenure": tenure, "attribute_category:plan": "free",
    }  # fmt: skip


def pulse(days: int) -> list[Row]:
    """A user who is always there, so that the watermark moves and no day is missing."""
    decisions = [decided("pulse", day + 0.9, "hold") for day in range(days)]
    events = [happened("pulse", day + 0.95, "session_start") for day in range(days)]
    return [*decisions, *events, person("pulse", 0.0, 1.0)]


def play(folder: Path, rows: list[Row], plan: list[Days], changed: Callable[[Row], Any] = lambda _: None) -> list[Row]:
    """The transitions of "u", made chunk by chunk (of days from 0), after they were found equal to all at once."""
    write_days(rows, folder)
    configs = []
    for run in ("whole", "inc"):
        made = tree(folder, run)
        del made["etl"]["watermark"]
        made["etl"] |= {"as_of": "2025-01-01", "buckets": 1}
        changed(made)
        configs.append(validate(made, "test"))
    whole, inc = configs
    with in_process() as session:
        wanted = run_etl(session, whole)
        for first, last in plan:
            report = run_etl(session, inc, days=(FIRST + first, FIRST + last))
    check_same(inc, whole, [name for name in TABLES if (whole.run_dir / name).exists()])
    for key in ("fingerprint", "watermark"):
        assert report[key] == wanted[key], key
    found = [row for row in DeltaTable(inc.transitions_path).to_pyarrow_table().to_pylist() if row["user_id"] == "u"]
    return sorted(found, key=lambda row: row["decided_at"])


def each(first: int, last: int) -> list[Days]:
    """Day by day."""
    return [(day, day) for day in range(first, last + 1)]


def column(rows: list[Row], name: str, *only: float) -> list[Any]:
    """The column's values, of all rows or of those at the given days."""
    moments = {EPOCH + timedelta(microseconds=at(day)) for day in only}
    return [row[name] for row in rows if not only or row["decided_at"] in moments]


def test_a_late_decision_is_a_row_of_its_day_and_no_secret_of_others(tmp_path: Path) -> None:
    rows = [decided("u", 8.5), decided("u", 5.5, logged=11.5), decided("u", 12.5)]
    found = play(tmp_path, pulse(14) + rows, [(0, 7), *each(8, 13)])
    assert column(found, "elapsed_days") == [3.0, 4.0, 1.4]
    # Nobody knew on day 8 what was sent on day 5; on day 12 everybody did.
    assert column(found, "state_sends_7d") == [0.0, 0.0, 2.0]


def test_a_disable_that_comes_late(tmp_path: Path) -> None:
    rows = [decided("u", day + 0.5, "hold") for day in (9, 12, 16)] + [happened("u", 10.5, "disable", logged=15.5)]
    found = play(tmp_path, pulse(18) + rows, [(0, 11), *each(12, 17)])
    assert column(found, "state_notifications_on") == [1.0, 1.0, 0.0]
    assert column(found, "reward_disables") == [1.0, 0.0, 0.0]
    assert column(found, "legal", 16.5) == [[True, False, False]]


def test_consent_is_remembered_beyond_every_window(tmp_path: Path) -> None:
    rows = [decided("u", 0.5), happened("u", 1.5, "disable"), decided("u", 70.5, "hold")]
    found = play(tmp_path, pulse(72) + rows, [(0, 2), (3, 60), (61, 65), (66, 69), (70, 70), (71, 71)])
    assert column(found, "state_notifications_on", 0.5, 70.5) == [1.0, 0.0]


def test_a_row_of_users_holds_beyond_every_window(tmp_path: Path) -> None:
    rows = [person("u", 0.1, 5.0), decided("u", 0.5), decided("u", 70.5)]
    found = play(tmp_path, pulse(72) + rows, [(0, 2), (3, 60), (61, 65), (66, 69), (70, 70), (71, 71)])
    assert column(found, "state_tenure", 0.5, 70.5) == [5.0, 5.0]


def test_a_row_of_users_that_comes_late_for_long_ago(tmp_path: Path) -> None:
    rows = [decided("u", day + 0.5) for day in (3, 20, 31)]
    rows += [person("u", 0.5, 4.0), person("u", 2.5, 5.0, logged=30.5)]
    found = play(tmp_path, pulse(33) + rows, [(0, 22), (23, 28), *each(29, 32)])
    assert column(found, "state_tenure", 3.5, 20.5, 31.5) == [4.0, 4.0, 5.0]


def test_an_account_closed_and_silent_for_weeks(tmp_path: Path) -> None:
    rows = [decided("u", 3.5), happened("u", 5.5, "account_closed")]
    found = play(tmp_path, pulse(32) + rows, [(0, 4), *each(5, 8), (9, 25), *each(26, 31)])
    assert column(found, "silent") == [False, True, True, True, True]
    assert column(found, "terminal") == [True, False, False, False, False]
    assert column(found, "truncated") == [False, False, False, False, True]
    # From noon of day 3 to the watermark, the last good row.
    assert sum(column(found, "elapsed_days")) == pytest.approx(31.9 - 3.5)


def test_a_user_back_after_forty_days(tmp_path: Path) -> None:
    rows = [decided("u", 2.5), decided("u", 42.75), happened("u", 43.5, "click", decision_id="u@42.75")]
    found = play(tmp_path, pulse(46) + rows, [(0, 20), (21, 41), *each(42, 45)])
    assert column(found, "silent") == [False, True, True, True, True, True, False]
    assert column(found, "elapsed_days") == [7.0] * 5 + [5.25, 3.15]
    assert column(found, "clicks_attributed", 42.75) == [1]


def test_a_late_decision_moves_the_silent_rows_after_it(tmp_path: Path) -> None:
    rows = [decided("u", 2.5), decided("u", 20.75, logged=26.5), decided("u", 40.5)]
    found = play(tmp_path, pulse(43) + rows, [(0, 24), *each(25, 28), (29, 42)])
    ends = [2.5, 9.5, 16.5, 20.75, 27.75, 34.75, 40.5]
    assert column(found, "decided_at") == [EPOCH + timedelta(microseconds=at(day)) for day in ends]


@pytest.mark.parametrize(
    "plan", [[(0, 8), *each(9, 20)], [(0, 9), (13, 20), (10, 12)], [(0, 6), (15, 20), (7, 10), (11, 14)]]
)
def test_days_that_come_late(tmp_path: Path, plan: list[Days]) -> None:
    rows = [decided("u", 3.5), decided("u", 11.5), happened("u", 11.6, "disable"), happened("u", 14.5, "enable")]
    rows += [decided("u", 12.5, "hold"), decided("u", 18.5), person("u", 10.5, 9.0)]
    found = play(tmp_path, pulse(21) + rows, plan)
    assert column(found, "state_notifications_on", 3.5, 11.5, 12.5, 18.5) == [1.0, 1.0, 0.0, 1.0]
    assert column(found, "state_tenure", 3.5, 11.5, 18.5) == [None, 9.0, 9.0]


def test_a_click_that_comes_late_and_copies_that_come_later(tmp_path: Path) -> None:
    click = happened("u", 6.4, "click", logged=9.5, decision_id="u@5.9")
    rows = [decided("u", 5.9), decided("u", 8.5), click, {**click, "logged": at(12.5)}]
    # The same id again: as it was, and otherwise.
    rows += [decided("u", 5.9, logged=10.5), decided("u", 5.9, "hold", logged=11.5)]
    found = play(tmp_path, pulse(15) + rows, [(0, 5), *each(6, 14)])
    assert column(found, "clicks_attributed") == [None, 1, 0]
    assert column(found, "reason") == ["conflicting_duplicate", None, None]
    assert column(found, "reward_clicks") == [None, 1.0, 0.0]


@pytest.mark.parametrize("without", ["events", "hold", "users"])
def test_logs_that_lack_something(tmp_path: Path, without: str) -> None:
    """Without events or `hold` there are no silent rows: every run makes every row anew."""

    def changed(made: Row) -> None:
        if without == "hold":
            made["actions"] = ["badge", "push"]
            return
        del made["data"][without]
        if without == "events":
            made["rewards"] = ["sends", "column:steps"]
            made["features"]["state"] = ["sends_7d", "send_never"]
        else:
            made["features"] |= {"attributes": [], "attribute_categories": {}}

    rng = random.Random(without)
    rows = [decided("u", rng.uniform(0, 30), rng.choice(["badge", "push"])) for _ in range(12)]
    rows += [happened("u", rng.uniform(0, 30), "session_start") for _ in range(9)] + [person("u", 0.5, 1.0)]
    steady = [{**row, "label": "badge"} if row["dataset"] == DECISIONS else row for row in pulse(31)]
    found = play(tmp_path, steady + rows, [(0, 12), *each(13, 15), (20, 30), (16, 19)], changed)
    assert sum(not silent for silent in column(found, "silent")) == 12
    assert any(column(found, "silent")) == (without == "users")


# What a run over days leaves alone, and what it refuses.


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    rows = [decided("u", day + 0.3) for day in range(0, 40, 2)] + [happened("u", 20.5, "disable")]
    write_days(pulse(40) + rows + [decided("u", 30.5, "shout")], tmp_path)
    return tmp_path


def test_a_run_writes_no_partition_that_cannot_have_changed(lake: Path) -> None:
    config = configured(lake, watermark=None)
    with in_process() as session:
        run_etl(session, config, days=(FIRST, FIRST + 37))
        before = paths(config)
        report = run_etl(session, config, days=(FIRST + 38, FIRST + 38))
    # D1 - max_lateness - max_gap: 38 - 7 - 7.
    assert report["rewritten_from"] == text(FIRST + 24)
    kept = {path for path, ds in before.items() if ds < text(FIRST + 24)}
    assert len(kept) == 24 + 12
    assert {path for path in paths(config) if path in before} == kept


def test_a_day_run_again_changes_nothing(lake: Path) -> None:
    config, once = configured(lake, "run", watermark=None), configured(lake, "once", watermark=None)
    with in_process() as session:
        run_etl(session, once, days=(FIRST, FIRST + 39))
        run_etl(session, config, days=(FIRST, FIRST + 30))
        first = run_etl(session, config, days=(FIRST + 31, FIRST + 39))
        for days in ((FIRST + 31, FIRST + 39), (FIRST + 30, FIRST + 30), (FIRST + 5, FIRST + 5)):
            again = run_etl(session, config, days=days)
            assert again["fingerprint"] == first["fingerprint"]
            assert again["version"] > first["version"]
    check_same(config, once)


@pytest.mark.parametrize(
    ("first", "then", "missing"),
    [
        ((0, 5), (7, 9), "2024-03-14 never went into the table, which knows 2024-03-08 to 2024-03-13"),
        ((8, 9), (0, 5), "2024-03-14, 2024-03-15 never went into the table"),
    ],
)
def test_days_left_out_are_refused_unless_they_are_listed(lake: Path, first: Days, then: Days, missing: str) -> None:
    config = configured(lake, watermark=None, known_gaps=[])
    one, two = ((FIRST + start, FIRST + end) for start, end in (first, then))
    with in_process() as session:
        run_etl(session, config, days=one)
        with pytest.raises(InputError, match=missing) as refused:
            run_etl(session, config, days=two)
        assert "etl.known_gaps" in str(refused.value)
        # Known gaps are no part of what a transition is: the table stays good.
        listed = configured(lake, watermark=None, known_gaps=[text(FIRST + day) for day in (6, 7)])
        assert run_etl(session, listed, days=two)["version"] == 1


def test_a_day_without_rows_is_refused(lake: Path) -> None:
    with in_process() as session, pytest.raises(InputError, match=r"data\.decisions: no row arrived on 2024-04-17"):
        run_etl(session, configured(lake, watermark=None, known_gaps=[]), days=(FIRST, FIRST + 40))


def test_another_configuration_demands_a_rebuild(lake: Path) -> None:
    days = (FIRST, FIRST + 39)
    with in_process() as session:
        run_etl(session, configured(lake, watermark=None), days=days)
        other = configured(lake, watermark=None, max_gap_days=3)
        for some in (None, days, (FIRST + 39, FIRST + 39)):
            with pytest.raises(InputError, match="--rebuild"):
                run_etl(session, other, days=some)
        rebuilt = run_etl(session, other, rebuild=True, days=days)
        assert rebuilt["rewritten_from"] is None
        fresh = configured(lake, "fresh", watermark=None, max_gap_days=3)
        assert run_etl(session, fresh)["fingerprint"] == rebuilt["fingerprint"]
    check_same(other, fresh)


@pytest.mark.parametrize("day", ["all of it held", "events alone"])
def test_a_small_day_is_no_reason_to_stop(tmp_path: Path, day: str) -> None:
    """What all days at once may hold, one may: nothing but holds at 0.8, or no decision where the gap is known."""
    rows = pulse(20) + [decided("u", n + 0.3, ["hold", "badge", "push"][n % 3]) for n in range(20)]
    last = [row for row in rows if row["dataset"] == DECISIONS and row["at"] >= at(19)]
    rows = [row for row in rows if row not in last]
    if day == "all of it held":
        rows += [{**row, "label": "hold"} for row in last]
    for row in rows:
        if row["dataset"] == DECISIONS:
            row["propensity"] = 0.8 if row["label"] == "hold" else 0.1
    write_days(rows, tmp_path)
    with in_process(judged=True) as session:
        wanted = run_etl(session, configured(tmp_path, "whole", watermark=None))
        inc = configured(tmp_path, "inc", watermark=None)
        run_etl(session, inc, days=(FIRST, FIRST + 18))
        assert run_etl(session, inc, days=(FIRST + 19, FIRST + 19))["fingerprint"] == wanted["fingerprint"]
