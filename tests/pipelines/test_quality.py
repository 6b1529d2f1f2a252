"""What stops a run, what only warns, and what a usual day is."""

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from models.contract import Contract
from models.errors import InputError, QualityError
from pipelines.config import Config, validate
from pipelines.etl import quality
from pipelines.etl.profile import choices, measure, merge
from pipelines.etl.quality import Clock, profiles, suites, thresholds
from pipelines.sections import Quality

CONTRACT = Contract(("hold", "send"), ("badge",), ("clicks",))
DAY = 86_400_000_000
FIRST = date(2026, 1, 1)
FIRST_DAY = (FIRST - date(1970, 1, 1)).days
CLOCK = Clock(log_start=FIRST_DAY * DAY, watermark=(FIRST_DAY + 40) * DAY - 1, warmup=0, max_lateness=0, max_gap=0)
"""A log of 2026-01-01 to 2026-02-09."""


def text(n: int) -> str:
    """The n-th day of the log, from 0."""
    return str(FIRST + timedelta(days=n))


def decisions(day: int, rows: int = 1000, **changed: Any) -> pa.Table:
    """The partial of a day of decisions, sent half of the time with propensity 0.5."""
    flag, no = np.arange(rows) % 2 == 0, np.zeros(rows, bool)
    columns: dict[str, Any] = {f"null:{name}": no for name in ("user_id", "decision_id", "decided_at", "propensity")}
    columns |= {"bad:action": no, "bad:propensity": no, "sends": flag}
    columns |= choices(np.full(rows, 0.5), np.full(rows, 2), np.ones(rows, bool))
    reason = changed.pop("reason", pa.nulls(rows, pa.string()))
    return measure("decisions", np.full(rows, FIRST_DAY + day), {**columns, **changed}, reason)


def events(day: int, rows: int = 500) -> pa.Table:
    no = np.zeros(rows, bool)
    columns = {f"null:{name}": no for name in ("user_id", "event_id", "occurred_at")}
    kinds = {"bad:kind": no, "kind:click": np.arange(rows) % 10 == 0}
    return measure("events", np.full(rows, FIRST_DAY + day), {**columns, **kinds}, pa.nulls(rows, pa.string()))


def transitions(day: int, badge: Any = (0.0, 2.0), rows: int = 1000, **changed: Any) -> pa.Table:
    """The partial of a day of transitions; the badge takes the given values in turn."""
    no, some = np.zeros(rows, bool), np.ones(rows, bool)
    columns: dict[str, Any] = {f"null:{name}": no for name in ("user_id", "decided_at", "split", "legal")}
    columns |= {"null:elapsed_days": no, "elapsed_days": np.ones(rows), "usable": some, "no_action": no}
    columns |= {"silent": no, "propensity": np.full(rows, 0.5), "state_badge": np.resize(badge, rows)}
    columns |= {"reward_clicks": np.arange(rows) % 20 == 0}
    return measure("transitions", np.full(rows, FIRST_DAY + day), {**columns, **changed})


def log(days: range = range(14)) -> list[pa.Table]:
    return [part(day) for day in days for part in (decisions, events, transitions)]


def reference(days: int = 14, **changed: Any) -> Quality:
    return Quality(reference=(FIRST, FIRST + timedelta(days=days - 1)), docs=False, **changed)


def bounds_of(parts: list[pa.Table], dataset: str, days: int = 14) -> dict[str, thresholds.Threshold]:
    made = thresholds.make_thresholds(merge(parts), CLOCK, (FIRST, FIRST + timedelta(days=days - 1)), (3.0, 6.0))
    return made.datasets[dataset]


def prepared(folder: Path, parts: list[pa.Table] | None = None) -> Path:
    """A folder with thresholds from the first two weeks."""
    profiles.store(merge(parts or log()), CLOCK, folder, replace=True)
    quality.make_thresholds(reference(), folder)
    return folder


def checked(folder: Path, *parts: pa.Table, **changed: Any) -> dict[str, Any]:
    """What the run of these partials says, by (dataset of the suite, column, severity); only what failed."""
    there = [name for name in profiles.DATASETS if any(part["dataset"][0].as_py() == name for part in parts)]
    clock, config = changed.pop("clock", CLOCK), changed.pop("config", reference())
    found = quality.check_profiles(merge(parts), clock, CONTRACT, config, folder, there)
    return {
        (suite["suite"], one["column"], one["severity"]): one
        for suite in found["suites"]
        for one in suite["expectations"]
        if not one["success"]
    }


# Profiles


def test_a_profile_says_shares_rates_and_means() -> None:
    """Of 10 rows 2 are too late and 1 a duplicate; of the 7 kept 3 are sent, 4 have a choice that is known."""
    reason = pa.array([None] * 7 + ["too_late"] * 2 + ["exact_duplicate"])
    kept = np.arange(10) < 7
    # Of the kept a third of nine halves: 1 / 0.5 + 1 / 0.5 + 1 / 0.25 + 1 / 0.8 = 9.25 against 8 options.
    columns = {
        "null:user_id": np.arange(10) == 9,
        "bad:propensity": np.array([0, 0, 0, 1, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan]),
        "sends": np.where(kept, np.arange(10) < 3, np.nan),
        **choices(np.array([0.5, 0.5, 0.25, 0.8, *[np.nan] * 6]), np.full(10, 2), kept),
    }
    partial = measure("decisions", np.full(10, FIRST_DAY), columns, reason)
    found = profiles.by_day(partial, "decisions", [text(0), text(1)]).set_index("day")
    expected = {
        "rows": 10,
        "kept": 7,
        "exact_duplicates": 1,
        "quarantined": 2,
        "share_quarantined": 0.2,
        "reason_share:too_late": 0.2,
        "null_share:user_id": 0.1,
        "bad_share:propensity": 0.25,
        "send_rate": 3 / 7,
        "propensity_least": 0.25,
        "propensity_largest": 0.8,
        "inverse_sum": 8 / 9.25,
    }
    assert found.loc[text(0)].to_dict() == pytest.approx(expected)
    # Nothing arrived on the second day.
    assert found.loc[text(1), "rows"] == 0
    assert found.loc[text(1), "share_quarantined"] == 0
    assert np.isnan(found.loc[text(1), "send_rate"])


def test_a_profile_of_transitions_equals_what_pandas_finds() -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"day": rng.integers(FIRST_DAY, FIRST_DAY + 5, 4000), "usable": rng.random(4000) < 0.9})
    for name in ("state_badge", "reward_clicks", "elapsed_days", "terminal"):
        frame[name] = rng.random(4000) < 0.1 if name == "terminal" else rng.gamma(2, 3, 4000)
        frame.loc[~frame.usable, name] = np.nan
    frame.loc[rng.random(4000) < 0.2, "state_badge"] = np.nan
    numbers = {name: frame[name].to_numpy(bool if name == "usable" else float) for name in frame.columns[1:]}
    partial = merge(
        [
            measure("transitions", frame.day[rows].to_numpy(), {n: c[rows] for n, c in numbers.items()})
            for rows in np.array_split(rng.permutation(4000), 3)
        ]
    )
    found = profiles.by_day(partial, "transitions", profiles.days_of(partial, "transitions"))
    usable = frame[frame.usable].groupby("day")
    for column, naive in {
        "rows": frame.groupby("day").size(),
        "share:usable": frame.groupby("day").usable.mean(),
        "share:terminal": usable.terminal.agg(lambda x: x.astype(float).mean()),
        "mean:state_badge": usable.state_badge.mean(),
        "sd:state_badge": usable.state_badge.std(ddof=0),
        "null_share:state_badge": usable.state_badge.agg(lambda x: x.isna().mean()),
        "mean:reward_clicks": usable.reward_clicks.mean(),
        "elapsed_days_least": usable.elapsed_days.min(),
        "elapsed_days_largest": usable.elapsed_days.max(),
    }.items():
        np.testing.assert_allclose(found[column], naive.to_numpy(float), rtol=1e-9, err_msg=column)
    pool = profiles.pooled(partial, "transitions", "all")
    assert pool["sd:state_badge"].item() == pytest.approx(frame.state_badge[frame.usable].std(ddof=0))
    assert pool["day"].item() == "all"


def test_profiles_stored_day_by_day_equal_those_stored_at_once(tmp_path: Path) -> None:
    profiles.store(merge(log(range(5))), CLOCK, tmp_path / "once", replace=True)
    # In another order, a day twice: what is stored last is what the day is.
    first_try = [decisions(2, rows=7), transitions(2, rows=7), events(2)]
    for parts in (first_try, log(range(3, 5)), log(range(2, 3)), log(range(2))):
        profiles.store(merge(parts), CLOCK, tmp_path / "daily", replace=False)
    once, clock = profiles.load(tmp_path / "once")
    assert profiles.load(tmp_path / "daily")[0].equals(once)
    assert clock == CLOCK
    # A table made anew, of a log without events: what lay there before is gone.
    profiles.store(merge([decisions(0), transitions(0)]), CLOCK, tmp_path / "once", replace=True)
    assert profiles.load(tmp_path / "once")[0]["day"].unique().to_pylist() == [text(0)]
    assert sorted(path.name for path in (tmp_path / "once" / "profiles").iterdir()) == [
        "decisions.parquet",
        "transitions.parquet",
    ]


# Thresholds


def test_bounds_of_volume_by_hand() -> None:
    """Weekdays 1000, weekends 600: m = 1000, MAD 0. Of 14 days q90 = 1000 and q10, at place 1.3 of the ordered four
    600s, is 600: 400 / 2.563 = 156.07 is more than the floor 80. Warning 1000 ± 468.2, critical 1000 ± 936.4.
    """
    weekly = [decisions(n, 600 if n % 7 > 4 else 1000) for n in range(14)]
    found = bounds_of([*weekly, *log()[2::3]], "decisions")["rows"]
    assert (found.centre, found.days) == (1000, 14)
    assert found.spread == pytest.approx(156.07, abs=0.01)
    assert found.warning == pytest.approx((531.8, 1468.2), abs=0.05)
    assert found.critical == pytest.approx((63.6, 1936.4), abs=0.05)


def test_the_spread_is_that_of_the_median_where_that_is_more() -> None:
    """m = 1200; |x - m| is 100 eight times of eleven, so s = 148.26; q10 = 1100 and q90 = 1300 would give 78."""
    rows = [1000, *[1100] * 4, 1200, *[1300] * 4, 1400]
    parts = [decisions(n, count) for n, count in enumerate(rows)] + [transitions(n) for n in range(11)]
    assert bounds_of(parts, "decisions", 11)["rows"].spread == pytest.approx(148.26)
    # A strange day among eleven moves neither.
    parts[0] = decisions(0, 20_000)
    assert bounds_of(parts, "decisions", 11)["rows"].spread == pytest.approx(148.26)


def test_floors_of_a_reference_without_spread() -> None:
    """1000 rows a day, all alike: shares max(0.005, 1 row), rates 8%, propensities in powers of ten."""
    found = bounds_of(log(), "decisions")
    assert found["null_share:user_id"].critical == pytest.approx((None, 0.03))
    assert found["send_rate"].warning == pytest.approx((0.5 - 0.12, 0.5 + 0.12))
    assert found["rows"].critical == pytest.approx((520, 1480))
    # 0.5 / 10^0.3 = 0.2506, 0.5 / 10^0.6 = 0.1256; above, nothing can be more than 1.
    assert found["propensity_least"].warning == pytest.approx((0.2506, 0.9976), abs=1e-4)
    assert found["propensity_least"].critical == pytest.approx((0.1256, None), abs=1e-4)
    assert found["inverse_sum"].warning == pytest.approx((0.85, 1.15))
    few = bounds_of([*[decisions(n, 50) for n in range(14)], *log()[2::3]], "decisions")
    # One row of 50 is 0.02, and the square root of 50 is 7.07.
    assert few["null_share:user_id"].spread == pytest.approx(0.02)
    assert few["rows"].spread == pytest.approx(50**0.5)
    # Clicks are 5% of transitions: noise sqrt(0.05 * 0.95 / 1000) = 0.00689 is more than 8% of 0.05.
    rate = bounds_of(log(), "transitions")["mean:reward_clicks"]
    assert rate.spread == pytest.approx(0.00689, abs=1e-5)
    # What is fixed at 0 has no bounds, and the share of usable rows speaks of where a day lies.
    assert {"null_share:user_id", "share:usable"}.isdisjoint(bounds_of(log(), "transitions"))


@pytest.mark.parametrize("shift", [-0.5, 0.45, 2.0])
def test_drift_is_the_shift_in_standard_deviations(shift: float) -> None:
    """The badge is drawn with mean 5 and standard deviation 3, and on one day shifted by a known number of them."""
    rng = np.random.default_rng(4)
    parts = [part for n in range(14) for part in (decisions(n), transitions(n, rng.normal(5, 3, 1000)))]
    found = bounds_of(parts, "transitions")
    drift = found["drift:state_badge"]
    assert (drift.mean, drift.sd) == pytest.approx((5, 3), abs=0.1)
    assert drift.spread == pytest.approx(0.1)
    day = transitions(20, rng.normal(5 + 3 * shift, 3, 1000))
    frame = thresholds.judged(day, "transitions", CLOCK, found, set())
    # The mean of 1000 values is known to 3 / sqrt(1000) = 0.095, a thirtieth of a standard deviation.
    assert frame["drift:state_badge"].item() == pytest.approx(abs(shift), abs=0.12)


def test_a_feature_that_was_constant_is_judged_in_its_own_unit() -> None:
    parts = [part for n in range(14) for part in (decisions(n), transitions(n, (3.7,)))]
    drift = bounds_of(parts, "transitions")["drift:state_badge"]
    assert (drift.mean, drift.sd, drift.spread) == pytest.approx((3.7, 1.0, 0.1))


SPANS = Clock(FIRST_DAY * DAY + 5, (FIRST_DAY + 30) * DAY - 100, 7 * DAY, 3 * DAY, 5 * DAY)
"""Days 0 to 29; warm-up 7 days, lateness 3, gap 5."""


@pytest.mark.parametrize(
    ("dataset", "metric", "first", "last"),
    [
        ("decisions", "rows", 0, 29),
        ("events", "share:click", 0, 29),
        # Warm-up is over with day 7; states of the last day are what they will be.
        ("transitions", "drift:state_badge", 7, 29),
        ("transitions", "null_share:state_badge", 7, 29),
        # Rows of day 27 may come until the end of day 30.
        ("transitions", "rows", 7, 26),
        ("transitions", "share:silent", 7, 26),
        # An interval begun on day 22 may last until the end of day 27, and its clicks come until the end of day 30.
        ("transitions", "mean:reward_clicks", 7, 21),
        ("transitions", "mean:elapsed_days", 7, 21),
        ("transitions", "share:terminal", 7, 21),
    ],
)
def test_days_that_may_still_change_are_not_judged(dataset: str, metric: str, first: int, last: int) -> None:
    days = [text(n) for n in range(-1, 33)] + ["unknown"]
    whole = SPANS.whole(dataset, metric, days)
    assert [day for day, is_whole in zip(days, whole, strict=True) if is_whole] == [
        text(n) for n in range(first, last + 1)
    ]


def test_a_day_is_whole_from_its_last_hour() -> None:
    hour = DAY // 24
    for watermark, whole in ((FIRST_DAY * DAY + 23 * hour - 1, False), (FIRST_DAY * DAY + 23 * hour, True)):
        assert replace(CLOCK, watermark=watermark).whole("events", "rows", [text(0)]) == [whole]
    for start, whole in ((hour, True), (hour + 1, False)):
        assert replace(CLOCK, log_start=FIRST_DAY * DAY + start).whole("events", "rows", [text(0)]) == [whole]


# Runs


def test_a_usual_day_passes_and_a_doubled_one_stops(tmp_path: Path) -> None:
    """Critical above 1000 + 6 * 80 = 1480 rows, a warning above 1240."""
    prepared(tmp_path)
    assert checked(tmp_path, decisions(20), events(20), transitions(20)) == {}

    more = checked(tmp_path, decisions(20), decisions(21, 1300), events(20))
    assert list(more) == [("decisions_days", "rows", "warning")]
    warned = more["decisions_days", "rows", "warning"]
    assert (warned["observed"], warned["expected"], warned["days"]) == (
        f"1,300 on {text(21)}",
        "760 to 1,240",
        [text(21)],
    )

    with pytest.raises(QualityError) as caught:
        checked(tmp_path, decisions(20), decisions(22, 2000), events(20))
    assert caught.value.exit_code == 3
    (line,) = str(caught.value).splitlines()
    for word in (
        "decisions_days: rows is",
        f"2,000 on {text(22)}",
        "expected 520 to 1,480",
        "expect_column_values_to_be_between",
        "in the reference it was 1000",
        "quality.accept",
        "tactful quality",
    ):
        assert word in line
    # What was refused is written down all the same, and can become a reference.
    assert json.loads((tmp_path / "decisions_days.json").read_text())["success"] is False
    assert text(22) in profiles.days_of(profiles.load(tmp_path)[0], "decisions")

    accepted = reference(accept=[FIRST + timedelta(days=22)])
    assert checked(tmp_path, decisions(20), decisions(22, 2000), events(20), config=accepted) == {}


def test_each_kind_of_change_is_seen(tmp_path: Path) -> None:
    prepared(tmp_path)
    rows = np.arange(1000)
    for changed, metric in (
        ({"null:user_id": rows < 20}, "null_share:user_id"),
        ({"sends": rows < 650}, "send_rate"),
        ({"reason": pa.array(["too_late"] * 20 + [None] * 980)}, "share_quarantined"),
        (choices(np.where(rows < 1, 0.2, 0.5), np.full(1000, 2), rows >= 0), "propensity_least"),
    ):
        assert list(checked(tmp_path, decisions(20, **changed))) == [("decisions_days", metric, "warning")]
    # The badge was 0 or 2, so 0.4 more is 0.4 standard deviations; half of it null is above 6 * 0.005.
    assert list(checked(tmp_path, transitions(20, (0.4, 2.4)))) == [
        ("transitions_days", "drift:state_badge", "warning")
    ]
    with pytest.raises(QualityError, match=r"null_share:state_badge is 0\.5 on 2026-01-21, expected at most 0\.03"):
        checked(tmp_path, transitions(20, (0.0, np.nan, 2.0, np.nan)))


def test_unfinished_and_warm_up_days_cannot_fire(tmp_path: Path) -> None:
    prepared(tmp_path)
    clock = replace(CLOCK, watermark=(FIRST_DAY + 20) * DAY + DAY // 2, warmup=16 * DAY, max_lateness=2 * DAY)
    # Day 20 ended at noon; of day 19 rows may be missing; day 15 is warm-up: each differs, none is judged for it.
    strange = (decisions(20, 300), transitions(20, (9.0,), 300), transitions(19, rows=300), transitions(15, (9.0,)))
    assert checked(tmp_path, *strange, clock=clock) == {}
    # The same days once they are whole.
    with pytest.raises(QualityError) as caught:
        checked(tmp_path, *strange)
    assert {line.split(" is ")[0] for line in str(caught.value).splitlines()} == {
        "decisions_days: rows",
        "transitions_days: rows",
        "transitions_days: drift:state_badge",
    }


def test_a_metric_that_is_no_longer_measured_is_a_warning(tmp_path: Path) -> None:
    parts = [transitions(n, state_gone=np.ones(1000)) for n in range(14)]
    prepared(tmp_path, [*[decisions(n) for n in range(14)], *parts])
    found = checked(tmp_path, transitions(20))
    assert list(found) == [
        ("transitions_days", "null_share:state_gone", "warning"),
        ("transitions_days", "drift:state_gone", "warning"),
    ]
    assert "tactful quality" in found["transitions_days", "drift:state_gone", "warning"]["remedy"]


def test_without_thresholds_the_fixed_demands_hold(tmp_path: Path) -> None:
    config = Quality()
    parts = [decisions(3), events(3), transitions(3)]
    found = quality.check_profiles(
        merge(parts), CLOCK, CONTRACT, config, tmp_path, ["decisions", "events", "transitions"]
    )
    assert [(suite["suite"], suite["success"]) for suite in found["suites"]] == [
        ("decisions", True),
        ("events", True),
        ("transitions", True),
    ]
    assert set(found["seconds"]) == {"import", "suites", "docs"}
    for suite in found["suites"]:
        assert json.loads((tmp_path / f"{suite['suite']}.json").read_text()) == suite
        assert set(suite["expectations"][0]) == {
            *("expectation", "column", "severity", "success", "observed", "expected", "days", "remedy")
        }
    # Data Docs: an index, and a page for each suite that shows the demand and its remedy.
    assert "decisions" in (tmp_path / "docs" / "index.html").read_text()
    pages = {path.stem: path.read_text() for path in (tmp_path / "docs" / "validations").rglob("*.html")}
    assert set(pages) == {f"profiles-{name}" for name in ("decisions", "events", "transitions")}
    assert "null_share:user_id" in pages["profiles-decisions"]
    assert "map data.decisions.columns.user_id" in pages["profiles-decisions"]
    assert not (tmp_path / "docs.part").exists()


SIXTY = np.arange(1000) < 60
"""6% of 1000 rows, one percent more than may lack what every row must have."""


@pytest.mark.parametrize(
    ("part", "metric", "words"),
    [
        (decisions(0, **{"null:user_id": SIXTY}), "null_share:user_id", ["0.06", "map data.decisions.columns.user_id"]),
        (decisions(0, **{"null:decided_at": SIXTY}), "null_share:decided_at", ["data.decisions.columns.decided_at"]),
        (decisions(0, **{"bad:action": SIXTY}), "bad_share:action", ["name every action of the log in `actions`"]),
        (decisions(0, **{"bad:propensity": SIXTY}), "bad_share:propensity", ["in (0, 1], or null where unknown"]),
        (decisions(0, **{"null:propensity": ~SIXTY}), "null_share:propensity", None),
        (transitions(0, **{"null:split": SIXTY}), "null_share:split", ["report this: the ETL must set it"]),
        (transitions(0, no_action=SIXTY), "share:no_action", ["a usable row has no action"]),
        (transitions(0, elapsed_days=np.full(1000, -0.5)), "elapsed_days_least", ["-0.5", "time ran backwards"]),
        (transitions(0, propensity=np.zeros(1000)), "propensity_least", ["expected above 0", "passed quarantine"]),
        (transitions(0, propensity=np.full(1000, 1.5)), "propensity_largest", ["1.5", "passed quarantine"]),
        (transitions(0, propensity=np.where(SIXTY, np.nan, 0.5)), "null_share:propensity", None),
    ],
)
def test_what_breaks_a_fixed_demand(part: pa.Table, metric: str, words: list[str] | None) -> None:
    """The demands alone; that Great Expectations holds them is seen below."""
    dataset = part["dataset"][0].as_py()
    pool = profiles.pooled(part, dataset, "all")
    broken = [demand for demand in suites.fixed(dataset, pool, CONTRACT) if demand.metric and demand.broken(pool)]
    assert [demand.metric for demand in broken] == [metric]
    assert broken[0].severity == ("warning" if words is None else "critical")
    said = f"{broken[0].broken(pool)} expected {broken[0].expected} {broken[0].remedy}"
    assert all(word in said for word in words or ())


def test_every_broken_demand_is_named_in_a_line_of_its_own(tmp_path: Path) -> None:
    bad = decisions(0, **{"null:user_id": SIXTY, "bad:action": SIXTY, "null:propensity": ~SIXTY})
    nothing = measure("transitions", np.empty(0, np.int64), {})
    with pytest.raises(QualityError) as caught:
        quality.check_profiles(
            merge([bad, nothing]), CLOCK, CONTRACT, reference(), tmp_path, ["decisions", "transitions"]
        )
    lines = str(caught.value).splitlines()
    assert [line.split(" is ")[0] for line in lines] == [
        "decisions: null_share:user_id",
        "decisions: bad_share:action",
        "transitions: rows",
    ]
    assert "0.06 on 2026-01-01, expected at most 0.05" in lines[0]
    assert "no decision lies before the watermark" in lines[2]
    warned = json.loads((tmp_path / "decisions.json").read_text())["expectations"]
    assert [one["column"] for one in warned if not one["success"] and one["severity"] == "warning"] == [
        "null_share:propensity"
    ]
    # A feature of the contract that nobody measured, and a name that Great Expectations does not find.
    without = measure("transitions", np.full(3, FIRST_DAY), {"usable": np.ones(3, bool)})
    with pytest.raises(QualityError, match=r"columns is not measured: mean:reward_clicks, mean:state_badge"):
        checked(tmp_path, without)


def test_a_share_of_quarantined_rows_names_what_was_found_what_is_known_and_what_to_do(tmp_path: Path) -> None:
    """Counts of two buckets add: 4 + 5 rows of 3 + 4 users said SEND, one user alone said what might be an address."""
    many = {"read": 100, "by_reason": {"too_late": 15, "unknown_action": 10}}
    found = [
        ("unknown_action", "SEND", 4, 3),
        ("unknown_action", "SEND", 5, 4),
        ("unknown_action", "ann@example.org", 1, 1),
    ]
    few = {"read": 100, "by_reason": {"too_late": 20}}
    quality.check_quarantined("decisions", few, 0.2, [], CONTRACT, tmp_path)
    with pytest.raises(QualityError) as caught:
        quality.check_quarantined("decisions", many, 0.2, found, CONTRACT, tmp_path / "quarantine" / "decisions")
    assert caught.value.exit_code == 3
    first, late, unknown, where = str(caught.value).splitlines()
    assert "25 of 100 rows (25.0%)" in first
    assert "etl.max_quarantined = 20.0%" in first
    assert late == "- too_late, 15 rows: deliver rows sooner, or raise etl.max_lateness_days."
    assert unknown == (
        "- unknown_action, 10 rows: found 'SEND' (9) and others; known: hold, send; add the action to `actions`, or "
        "map it to one of them."
    )
    assert f"the Delta table {tmp_path / 'quarantine' / 'decisions'}, with its reason and remedy" in where
    assert "ann@example.org" not in str(caught.value)


# Propensities


def logged(*rows: tuple[float | None, int], parts: int = 2) -> pa.Table:
    """Kept decisions by (propensity, number of legal actions), measured in parts and merged."""
    p = np.array([np.nan if one is None else one for one, _ in rows])
    columns = choices(p, np.array([options for _, options in rows]), np.ones(len(rows), bool))
    pieces = np.array_split(np.arange(len(rows)), parts)
    day = FIRST_DAY + np.arange(len(rows)) % 3
    return merge(measure("decisions", day[piece], {n: c[piece] for n, c in columns.items()}) for piece in pieces)


def test_propensities_that_are_right_sum_to_one() -> None:
    """Sends at 0.6, holds at 0.4: mean 1 / p = 0.6 / 0.6 + 0.4 / 0.4 = 2 = |legal|, so the sum is 1."""
    rows = [*[(0.6, 2)] * 60, *[(0.4, 2)] * 40, *[(1.0, 1)] * 50, *[(None, 2)] * 7]
    found = quality.propensity_sums(logged(*rows))
    assert found == {"rows": 100, "inverse_sum": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        # Both actions at 0.9: mean 1 / p = 1.111, 2 / 1.111 = 1.8. The variance of 1 / p is 1/0.9 + 1/0.1 - 4 = 7.11:
        # the ratio 0.556 lies 0.444 from 1, its standard error is sqrt(7.11 / 400) / 2 = 0.067.
        ([(0.9, 2)] * 400, ["sum to about 1.80, not 1", "400 rows", "legal_actions"]),
        # Both at 0.2: 2 / 5 = 0.4.
        ([(0.2, 2)] * 100, ["sum to about 0.40"]),
        ([(1.0, 2)] * 100 + [(1.0, 1)] * 10, ["all 100 choices", "propensity 1", "never explored"]),
    ],
)
def test_propensities_that_cannot_be_stop_the_run(rows: list[Any], words: list[str]) -> None:
    with pytest.raises(QualityError) as caught:
        quality.propensity_sums(logged(*rows))
    for word in words:
        assert word in str(caught.value)


def test_few_rows_are_not_held_against_a_log() -> None:
    """Three rows at 0.5, 0.5 and 0.05: 2 / 8 = 0.25, but one rare action among three rows shows nothing."""
    found = quality.propensity_sums(logged((0.5, 2), (0.5, 2), (0.05, 2)))
    assert found["inverse_sum"] == pytest.approx(0.25)
    assert quality.propensity_sums(logged((1.0, 1), parts=1)) == {"rows": 0}
    assert quality.propensity_sums(merge([])) == {"rows": 0}


# The command


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("levels", "three", ["levels", "found 'three'"]),
        ("datasets/decisions/rows/warning", [9, 2], ["datasets.decisions.rows", "warning is [9.0, 2.0]"]),
        ("datasets/decisions/rows/critical", ["a", 2], ["datasets.decisions.rows.critical.0", "found 'a'"]),
        ("datasets/decisions/rows/spread", -1, ["datasets.decisions.rows.spread", "found -1"]),
        ("datasets/decisions/rows/centre", None, ["datasets.decisions.rows.centre", "found None"]),
        ("datasets/orders", {}, ["datasets", "orders is no dataset", "known: decisions"]),
        ("datasets/transitions/drift:state_badge/sd", None, ["drift:state_badge of transitions", "mean or sd"]),
        ("datasets/transitions/drift:state_badge/sd", 0, ["drift:state_badge.sd", "greater than 0"]),
        ("colour", 1, ["colour", "Extra inputs"]),
    ],
)
def test_a_mistake_in_the_thresholds_is_named(tmp_path: Path, path: str, value: Any, words: list[str]) -> None:
    made = thresholds.make_thresholds(merge(log()), CLOCK, (FIRST, FIRST + timedelta(days=13)), (3.0, 6.0))
    tree = made.model_dump(mode="json")
    *parents, leaf = path.split("/")
    node = tree
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    (tmp_path / thresholds.NAME).write_text(json.dumps(tree))
    with pytest.raises(InputError) as caught:
        thresholds.load(tmp_path)
    assert caught.value.exit_code == 2
    for word in ("thresholds.json", "make it anew with `tactful quality`", *words):
        assert word in str(caught.value)


def test_thresholds_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert thresholds.load(tmp_path) is None
    profiles.store(merge(log()), CLOCK, tmp_path, replace=True)
    made = quality.make_thresholds(reference(), tmp_path)
    assert thresholds.load(tmp_path) == made
    (tmp_path / thresholds.NAME).write_text("{")
    with pytest.raises(InputError, match=r"thresholds.json: the file: .*Invalid JSON.*tactful quality"):
        thresholds.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "clock", "words"),
    [
        (Quality(), CLOCK, ["quality.reference: missing", "first and the last day"]),
        (reference(6), CLOCK, ["fewer than 7 whole days of decisions", "whole days in the log: 14", "2026-01-14"]),
        (
            reference(14),
            replace(CLOCK, warmup=9 * DAY),
            ["2026-01-01 to 2026-01-14", "fewer than 7 whole days of transitions", "in the log: 5, 2026-01-10"],
        ),
    ],
)
def test_a_reference_that_is_too_short_is_named(
    tmp_path: Path, config: Quality, clock: Clock, words: list[str]
) -> None:
    profiles.store(merge(log()), clock, tmp_path, replace=True)
    with pytest.raises(InputError) as caught:
        quality.make_thresholds(config, tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / thresholds.NAME).exists()


def test_without_profiles_the_command_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"decisions.parquet: not there; run `tactful etl` first"):
        quality.make_thresholds(reference(), tmp_path)


def configured(folder: Path, **section: Any) -> Config:
    tree = {
        "name": "small",
        "run_dir": str(folder),
        "rewards": ["sends"],
        "data": {"decisions": {"path": "decisions.csv"}},
        "features": {"context": ["relevance"]},
        "train": {"weights": {"sends": 1.0}},
        "quality": section,
    }
    return validate(tree, "test")


def test_the_command_leaves_thresholds_and_says_what_it_left_out(tmp_path: Path) -> None:
    from pipelines import jobs

    # Rewards of the last 9 days are not settled: 5 whole days are too few.
    profiles.store(
        merge(log()), replace(CLOCK, watermark=(FIRST_DAY + 14) * DAY, max_gap=9 * DAY), tmp_path / "quality", True
    )
    found = jobs.quality(configured(tmp_path, reference=["2026-01-01", "2026-01-14"]))
    assert found["reference"] == ["2026-01-01", "2026-01-14"]
    assert found["left_out"]["transitions"] == ["mean:elapsed_days", "mean:reward_clicks"]
    assert found["metrics"]["decisions"] == len(thresholds.load(tmp_path / "quality").datasets["decisions"])
    assert json.loads((tmp_path / "steps" / "quality.json").read_text()) == found


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"reference": ["2026-01-14", "2026-01-01"]}, ["quality.reference", "name the first day first"]),
        ({"reference": ["2026-01-14"]}, ["quality.reference"]),
        ({"reference": ["2026-01-14", "soon"]}, ["quality.reference.1", "found 'soon'"]),
        ({"warning": 5, "critical": 4}, ["quality.critical is 4, below quality.warning 5"]),
        ({"warning": 0}, ["quality.warning", "greater than 0"]),
        ({"acept": []}, ["quality.acept", "did you mean 'accept'"]),
    ],
)
def test_a_mistake_in_the_configuration_is_named(tmp_path: Path, section: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        configured(tmp_path, **section)
    for word in words:
        assert word in str(caught.value)
