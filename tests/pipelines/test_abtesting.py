"""An experiment in the simulated world, from a lake whose policy_id is the arm to a verdict, and its known truth."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models.errors import InputError
from models.table import Shards
from pipelines import jobs
from pipelines import simulate as lake
from pipelines.abtest_tables import plan_words
from pipelines.abtesting import Span, run_plan, run_read
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.etl.flow import run_etl
from policies.simulator import View, simulate, threshold, user_totals
from tests.pipelines.inprocess import in_process, unjudged
from tests.pipelines.test_simulate import config_of

USERS, DAYS, BEFORE, AFTER = 1000, 28, 13, 14
"""Users, days of the log, days before the experiment, days of it that are read."""
DAY = 86_400_000_000
START = "2026-01-18T00:00:00"
METRICS: dict[str, Any] = {
    "sends": {"direction": "down", "effect": 0.1},
    "clicks": {"direction": "up", "effect": 0.1},
    "ctr": {"direction": "up", "effect": 0.1},
    "visits": {"direction": "up", "margin": 0.2},
    "weekly_active_days": {"direction": "up", "margin": 0.2},
}
COUNTED = ("sends", "clicks", "visits", "weekly_active_days")
PLAIN: dict[str, Any] = {
    "control": "logging",
    "treatments": ["quiet"],
    "start": START,
    "method": "looks",
    "looks": [7, AFTER],
    "pre_days": 10,
    "metrics": METRICS,
}
TREATED = np.random.default_rng(5).random(USERS) < 0.5


def settings(folder: Path, **changes: Any) -> Config:
    experiment = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    return config_of(folder, simulate={"users": USERS, "days": DAYS}, etl={"buckets": 2}, abtest=experiment)


def decide_for(treated: Any, start: int) -> Any:
    """The logging policy, and for the treated from the start on one that sends only what is very relevant."""
    base, quiet = threshold(0.3, 0.3), threshold(0.6, 0.3)

    def decide(view: View) -> Any:
        return np.where((treated[view.user] & (view.at >= start))[:, None], quiet(view), base(view))

    return decide


def start_of(config: Config) -> int:
    assert config.simulate is not None
    return config.simulate.start_us + BEFORE * DAY


def with_arms(tables: dict[str, pa.Table], treated: Any, start: int) -> dict[str, pa.Table]:
    """The lake with the arm as policy_id; before the start everyone is the logging policy's."""
    decisions = tables["decisions"]
    user = pc.cast(pc.utf8_slice_codeunits(decisions["user_id"], 1), pa.int64()).to_numpy()
    later = decisions["decided_at"].cast(pa.int64()).to_numpy() >= start
    arm = pa.array(np.where(treated[user] & later, "quiet", "logging"))
    return {**tables, "decisions": decisions.set_column(decisions.column_names.index("policy_id"), "policy_id", arm)}


def make(config: Config, tables: dict[str, pa.Table]) -> None:
    lake.write(tables, {name: getattr(config.data, name).path for name in tables})
    with in_process() as session:
        run_etl(session, config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The lake of an experiment."""
    config = settings(tmp_path_factory.mktemp("unused"))
    start = start_of(config)
    log = simulate(config.simulate, config.seed, decide_for(TREATED, start))  # type: ignore[arg-type]
    return with_arms(lake.tables(log), TREATED, start)


@pytest.fixture(scope="module")
def made(world: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lake and its transitions."""
    folder = tmp_path_factory.mktemp("experiment")
    make(settings(folder), world)
    return folder


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """The same, without what a step left."""
    yield made
    shutil.rmtree(made / "run" / "steps", ignore_errors=True)


def reading(folder: Path, **changes: Any) -> dict[str, Any]:
    config = settings(folder, **changes)
    return run_read(config, config.run_dir / "steps" / "evaluate.json")


def comparison(folder: Path, **changes: Any) -> dict[str, Any]:
    return reading(folder, **changes)["comparisons"]["quiet"]["metrics"]


def truth(folder: Path, days: int) -> dict[str, float]:
    """What everyone's treatment changes per user-week in so many days from the start, on the luck of this very log.

    Both worlds are the same before the start, so that the difference of totals is all of the experiment's time.
    """
    config = config_of(folder, simulate={"users": USERS, "days": BEFORE + days})
    assert config.simulate is not None
    totals = [
        user_totals(simulate(config.simulate, config.seed, decide_for(np.full(USERS, treated), start_of(config))))
        for treated in (False, True)
    ]
    weeks = USERS * days / 7
    found = {name: float((totals[1][name] - totals[0][name]).sum() / weeks) for name in COUNTED}
    assert found["sends"] < -1
    return found


# Against the truth


def test_the_true_effect_lies_within_the_interval(folder: Path) -> None:
    found, true = comparison(folder), truth(folder, AFTER)
    for name in COUNTED:
        row = found[name]["difference"]
        assert row["low"] < true[name] < row["high"], name
        # Everyone's own truth: no more than the deal of the users is left to chance.
        assert abs(row["estimate"] - true[name]) < 3 * row["standard_error"], name
    assert (found["sends"]["state"], found["visits"]["state"]) == ("better", "holds")
    assert found["visits"]["explained"] > 0.5


def test_an_always_valid_reading_counts_the_first_week_of_those_who_have_had_it(folder: Path) -> None:
    changes = {"method": "always_valid", "users": 1000, "window_days": 7.0}
    found, true = comparison(folder, **changes), truth(folder, 7)
    for name in COUNTED:
        assert found[name]["difference"]["low"] < true[name] < found[name]["difference"]["high"], name
    # After six days nobody has had a week; after 7.5 those have who were decided about on the first half day.
    early = reading(folder, end="2026-01-24T00:00:00", **changes)
    assert early["counted"] == [0, 0]
    assert sum(early["enrolled"]) > 900
    assert early["comparisons"]["quiet"]["verdict"] == "UNDECIDED"
    assert "too early, 0 and 0 users counted" in early["comparisons"]["quiet"]["reasons"][0]
    some = reading(folder, end="2026-01-25T12:00:00", **changes)
    assert 0 < sum(some["counted"]) < sum(some["enrolled"])
    # What a user earned in that week does not change with the days that follow: the same users, the same figures.
    all_in = reading(folder, end="2026-01-29T00:00:00", **changes)
    assert sum(all_in["counted"]) == sum(all_in["enrolled"])
    for name, row in all_in["comparisons"]["quiet"]["metrics"].items():
        assert found[name]["difference"] == row["difference"]


def test_levels_equal_those_counted_in_the_raw_log(folder: Path, world: dict[str, pa.Table]) -> None:
    """A second implementation over the lake: sends and visits from each user's first decision in it to W."""
    config = settings(folder)
    span = Span.of(Shards.of(config.transitions_path, config.contract))
    found = comparison(folder, looks=[(span.end - start_of(config)) / DAY], pre_days=0)
    decisions, events = (world[name].to_pandas() for name in ("decisions", "events"))
    start, end = (pd.Timestamp(each, unit="us", tz="UTC") for each in (start_of(config), span.end))
    decisions = decisions[(decisions.decided_at >= start) & (decisions.decided_at < end)]
    first = decisions.groupby("user_id").decided_at.min()
    visits = events[(events.kind == "session_start") & (events.occurred_at <= end)]
    visits = visits[visits.occurred_at > visits.user_id.map(first)]
    weeks = (end - first).dt.total_seconds() / 604_800
    arm = decisions.groupby("user_id").policy_id.first()
    for name, rows in (("sends", decisions[decisions.action == "send"]), ("visits", visits)):
        totals = rows.groupby("user_id").size().reindex(first.index, fill_value=0)
        by_arm = totals.groupby(arm).sum() / weeks.groupby(arm).sum()
        assert found[name]["control"] == pytest.approx(by_arm["logging"], rel=1e-9), name
        assert found[name]["treatment"] == pytest.approx(by_arm["quiet"], rel=1e-9), name
    assert found["sends"]["without_cuped"] == "pre_days is 0"


def test_a_log_in_csv_under_other_names_reads_the_same(
    spark: SparkSession, world: dict[str, pa.Table], tmp_path: Path
) -> None:
    few = {
        name: table.filter(pc.less(pc.cast(pc.utf8_slice_codeunits(table["user_id"], 1), pa.int64()), 120))
        for name, table in world.items()
        if name != "candidates"
    }
    config = settings(tmp_path, min_users=20)
    make(config, few)
    parquet = reading(tmp_path, min_users=20)
    frame = few["decisions"].to_pandas()
    frame["legal_actions"] = frame.legal_actions.map(" ".join)
    frame["decided_at"] = frame.decided_at.dt.strftime("%Y-%m-%d %H:%M:%S.%f")
    frame["logged_at"] = frame.decided_at
    frame.rename(columns={"policy_id": "variant"}).to_csv(tmp_path / "decisions.csv", index=False)
    columns = {"policy_id": "variant", "legal_actions": "split(legal_actions, ' ')"}
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree["data"]["decisions"] = {"path": str(tmp_path / "decisions.csv"), "columns": columns}
    tree["run_dir"] = str(tmp_path / "csv")
    csv = validate(tree, "csv.toml")
    with unjudged():
        run_etl(spark, csv)
    found = run_read(csv, tmp_path / "none.json")
    assert found["comparisons"] == parquet["comparisons"]
    assert found["enrolled"] == parquet["enrolled"]


# Who takes part


def changed(world: dict[str, pa.Table], users: Any, policy: str | None, day: int) -> dict[str, pa.Table]:
    """The lake in which other decisions of some `users` from `day` of the experiment on are by `policy`."""
    decisions = world["decisions"]
    since = pa.scalar(DAY * (day + BEFORE) + first_day(), pa.timestamp("us", "UTC"))
    mask = pc.and_(
        pc.is_in(decisions["user_id"], value_set=pa.array(users)),
        pc.greater_equal(decisions["decided_at"], since),
    )
    ids = pc.if_else(mask, pa.scalar(policy, pa.string()), decisions["policy_id"])
    return {**world, "decisions": decisions.set_column(decisions.column_names.index("policy_id"), "policy_id", ids)}


def first_day() -> int:
    return int(pd.Timestamp("2026-01-05", tz="UTC").timestamp()) * 1_000_000


def names(places: Any) -> list[str]:
    return [f"u{place:07d}" for place in places]


def test_users_seen_in_two_arms_are_left_out_and_counted(world: dict[str, pa.Table], tmp_path: Path) -> None:
    crossed = names(np.flatnonzero(TREATED)[:6])
    elsewhere = names(np.flatnonzero(~TREATED)[:9])
    tables = changed(changed(world, crossed, "logging", 3), elsewhere, "frozen", 5)
    make(settings(tmp_path), tables)
    found = reading(tmp_path)
    assert found["left_out"] == {"crossed": 6, "late": 0, "unusable": 0}
    # Of another policy than an arm a user hears without leaving the arm.
    assert found["decided_elsewhere"] == 9
    assert sum(found["enrolled"]) + 6 == sum(reading_sizes(world))
    with pytest.raises(InputError, match=r"6 users \(0.6%\) were seen in two arms, at most 0.1% may be"):
        reading(tmp_path, max_crossed=0.001)


def reading_sizes(world: dict[str, pa.Table]) -> list[int]:
    """Users of each arm with a decision in the days that are read."""
    frame = world["decisions"].to_pandas()
    start = pd.Timestamp(START, tz="UTC")
    frame = frame[(frame.decided_at >= start) & (frame.decided_at < start + pd.Timedelta(days=DAYS - BEFORE))]
    return frame.groupby("policy_id").user_id.nunique()[["logging", "quiet"]].tolist()


def test_the_arms_are_those_of_the_raw_log(folder: Path, world: dict[str, pa.Table]) -> None:
    assert sum(reading(folder)["enrolled"]) == pytest.approx(sum(reading_sizes(world)), abs=2)


def test_a_sample_ratio_mismatch_is_invalid(folder: Path) -> None:
    found = reading(folder, allocation=[0.6, 0.4])
    assert found["comparisons"]["quiet"]["verdict"] == "INVALID"
    assert found["comparisons"]["quiet"]["metrics"] == {}


def test_before_the_first_look_nothing_is_read(folder: Path) -> None:
    found = reading(folder, end="2026-01-22T00:00:00", segments=["visits_7d"])
    assert (found["counted"], found["looks_over"]) == ([0, 0], [])
    assert found["comparisons"]["quiet"]["verdict"] == "UNDECIDED"
    # Between looks the reading is that of the last one.
    first = reading(folder, end="2026-01-26T00:00:00")
    assert first["looks_over"] == [7.0]
    assert first["comparisons"] == reading(folder, end="2026-01-29T00:00:00")["comparisons"]


def test_a_log_that_begins_with_the_experiment_has_no_cuped(world: dict[str, pa.Table], tmp_path: Path) -> None:
    late = pa.scalar(first_day() + BEFORE * DAY, pa.timestamp("us", "UTC"))
    tables = {
        "decisions": world["decisions"].filter(pc.greater_equal(world["decisions"]["decided_at"], late)),
        "events": world["events"].filter(pc.greater_equal(world["events"]["occurred_at"], late)),
        "users": world["users"],
    }
    make(settings(tmp_path), tables)
    found = reading(tmp_path, start=None)
    assert found["start"].startswith("2026-01-18")
    for row in found["comparisons"]["quiet"]["metrics"].values():
        assert row["without_cuped"] == "nothing is known of the users from before the experiment"
    told = run_plan(settings(tmp_path, looks=[28], pre_days=14))
    assert 13 < told["planned_on"]["days"] < 15
    assert told["without_cuped"] is not None


def test_segments_are_explored(folder: Path) -> None:
    found = reading(folder, segments=["visits_7d", "time_zone"], segment_groups=2)["segments"]
    assert {row["group"] for row in found} >= {"time_zone=Asia/Tokyo", "time_zone is another"}
    assert len(found) == len({(row["group"], row["metric"]) for row in found})
    for row in found:
        assert row["difference"] is None or row["difference"]["low"] < row["difference"]["high"]
    sends = [row for row in found if row["metric"] == "sends" and row["difference"]]
    assert all(row["p_holm"] < 0.001 for row in sends)


# By the commands


def test_the_commands_leave_their_results(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(toml_of(folder, 'method = "always_valid"\nusers_per_day = 40\n'))
    runner = CliRunner()
    done = runner.invoke(app, ["abtest", "plan", str(file)], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads((folder / "run" / "steps" / "abtest_plan.json").read_text())
    assert told["users"] == max(row["users"] for row in told["metrics"].values())
    assert told["days"] == int(np.ceil(told["users"] / 40)) + 7
    assert all(row["value"] > 0 for row in told["metrics"].values())
    with pytest.raises(InputError, match=r"abtest.users: missing"):
        runner.invoke(app, ["abtest", "read", str(file)], catch_exceptions=False)
    file.write_text(toml_of(folder, f'method = "always_valid"\nusers = {told["users"]}\n'))
    done = runner.invoke(app, ["abtest", "read", str(file)], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((folder / "run" / "steps" / "abtest.json").read_text())
    assert set(found["comparisons"]["quiet"]["metrics"]) == {"sends", "clicks"}
    assert found["comparisons"]["quiet"]["verdict"] in {"BETTER", "HARM", "UNDECIDED"}
    assert found["predicted"] is None


def toml_of(folder: Path, more: str) -> str:
    data = "".join(f'[data.{name}]\npath = "{folder / "lake" / name}"\n' for name in ("decisions", "events", "users"))
    return (
        f'name = "t"\nrun_dir = "{folder / "run"}"\nrewards = ["sends", "clicks", "visits"]\n{data}'
        '[features]\nstate = ["visits_7d"]\n[train.weights]\nclicks = 1.0\n'
        f'[abtest]\ncontrol = "logging"\ntreatments = ["quiet"]\nstart = "{START}"\n{more}'
        '[abtest.metrics.sends]\ndirection = "down"\neffect = 0.1\n'
        '[abtest.metrics.clicks]\ndirection = "up"\nmargin = 0.3\n'
    )


def test_what_evaluation_predicted_stands_beside_what_was_read(folder: Path) -> None:
    config = settings(folder)
    difference = {"estimate": -1.0, "low": -3.0, "high": 1.0}
    policy = {"trusted": False, "estimates": {"dr": {"sends": {"difference": difference}}}}
    evaluation = {"per": "week", "confidence": 0.95, "policies": {"quiet": policy}}
    path = config.run_dir / "steps" / "evaluate.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"evaluation": evaluation}))
    found = jobs.abtest_read(config)
    (row,) = found["predicted"]["rows"]
    assert (row["metric"], row["agrees"], row["trusted"]) == ("sends", True, False)
    assert row["read"]["estimate"] < -1


def test_a_plan_from_the_log_is_what_its_weeks_say(folder: Path) -> None:
    found = run_plan(settings(folder, method="always_valid", users_per_day=50.0))
    assert found["planned_on"] == {**found["planned_on"], "days": 7.0, "pre_days": 10.0, "enrol_days": 7}
    assert 900 < found["exist"] <= USERS
    assert found["metrics"]["visits"]["explained"] > 0.3
    visits = found["metrics"]["visits"]
    assert visits["days"] == int(np.ceil(visits["users"] / 50)) + 7
    # The log's users are those of its first day: the plan never has more.
    assert run_plan(settings(folder, method="always_valid"))["metrics"]["clicks"]["days"] is None


@pytest.mark.parametrize(("decided", "key"), [("clicks", "margin"), ("sends", "effect")])
def test_a_plan_for_a_fixed_cohort_says_what_it_can_show(decided: str, key: str) -> None:
    """Of 16 times as many users as there are the effect is a quarter: 4 * 0.0203 = 0.0812, rounded up."""
    row = {"users": 16_000, "days": None, "detectable": 0.0812}
    found = {
        "users": 16_000,
        "users_by_arm": {"logging": 8_000, "quiet": 8_000},
        "decided_by": decided,
        "metrics": {"sends": {**row, "role": "goal"}, "clicks": {**row, "role": "guardrail"}},
        "days": None,
        "method": "always_valid",
        "exist": 1_000,
        "planned_on": {"days": 7.0},
        "horizon_days": 7.0,
        "without_cuped": None,
    }
    words = "\n".join(plan_words(found))
    assert "its 1,000 users are a fixed cohort" in words
    assert f"can show {decided} with {key} = 0.082: plan that" in words
    assert "abtest.window_days (now 7)" in words
    assert "abtest.users_per_day" in words
    assert "fixed cohort" not in "\n".join(plan_words({**found, "days": 40}))


# Bad input


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"treatments": ["quite"]}, "no decision by arm 'quite' in the transitions; did you mean 'quiet'"),
        ({"end": START, "start": "2026-01-10T00:00:00"}, "arm 'quiet' has no users in the experiment"),
        ({"start": None}, "abtest.start: missing; the arms' first decisions lie apart"),
        ({"start": "2026-03-01"}, "begins at 2026-03-01.* correct abtest.start or abtest.end"),
        ({"start": "soon"}, "abtest.start is 'soon'; give a UTC time"),
        ({"segments": ["mood"]}, "abtest.segments: 'mood' is neither a state feature nor a category"),
        ({"looks": [0.01, 14]}, "enrolled after the first look; several looks are for users who all enrol at once"),
        ({"method": "always_valid"}, "abtest.users: missing"),
    ],
)
def test_an_experiment_that_is_not_in_the_log_is_told(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        reading(folder, **changes)


def test_a_configuration_names_what_it_is_about(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no \[abtest\]; add one"):
        run_plan(config_of(folder))
    with pytest.raises(InputError, match=r"abtest.metrics: 'click' is not a reward component; did you mean 'clicks'"):
        settings(folder, metrics={"click": {"direction": "up", "effect": 0.1}})
    with pytest.raises(InputError, match=r"abtest.metrics.clicks.efect: no such key"):
        settings(folder, metrics={"clicks": {"direction": "up", "efect": 0.1}})


def test_a_log_without_arms_is_told(world: dict[str, pa.Table], tmp_path: Path) -> None:
    tables = {name: world[name] for name in ("events", "users")}
    decisions = world["decisions"].drop_columns(["policy_id"])
    make(settings(tmp_path), {**tables, "decisions": decisions})
    with pytest.raises(InputError, match=r"no decision by arm 'logging'.*map data.decisions.columns.policy_id"):
        reading(tmp_path)
