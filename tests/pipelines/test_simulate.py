"""The raw lake of the simulator and policies that act in it on the ETL's state."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import InputError
from pipelines import simulate as lake
from pipelines.config import Config, validate
from pipelines.sections import STATE_FEATURES
from policies.baselines import Always, LoggingPolicy, Never
from policies.simulator import Log, View, always, simulate, threshold, true_values

NAMES = ("decisions", "events", "users", "candidates")


def config_of(folder: Path, **changes: Any) -> Config:
    tree = {
        "name": "test",
        "seed": 3,
        "run_dir": str(folder / "run"),
        "rewards": ["sends", "clicks", "visits", "weekly_active_days", "disables"],
        "simulate": {"users": 300, "days": 10, "truth_users": 200},
        "data": {name: {"path": str(folder / "lake" / name)} for name in NAMES},
        "features": {
            "state": list(STATE_FEATURES),
            "context": ["relevance", "near_real_time"],
            "attributes": ["tenure_days"],
            "attribute_categories": {"time_zone": ["Asia/Tokyo"]},
        },
        "train": {"weights": {"clicks": 1.0}},
        **changes,
    }
    return validate(tree, "test")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(tmp_path)


@pytest.fixture(scope="module")
def log() -> Log:
    return simulate(config_of(Path("unused")).simulate, 3)


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.concat([pq.ParquetFile(path).read().to_pandas() for path in sorted((folder / name).rglob("*.parquet"))])


def write_lake(log, folder):
    """All datasets of a log under one folder; rows of each."""
    found = lake.tables(log)
    lake.write(found, {name: folder / name for name in found})
    return {name: table.num_rows for name, table in found.items()}


def test_lake_says_what_the_log_says(log, tmp_path):
    counts = write_lake(log, tmp_path)
    frames = {name: read(tmp_path, name) for name in NAMES}
    assert counts == {name: len(frame) for name, frame in frames.items()}
    decisions, events = frames["decisions"], frames["events"]
    assert decisions.decision_id.is_unique
    assert events.event_id.is_unique
    assert frames["users"].user_id.is_unique
    assert (decisions.action == "send").sum() == log.decisions["action"].sum()
    both = decisions.legal_actions.map(list).map(len) == 2
    assert both.sum() == log.decisions["send_legal"].sum()
    assert decisions.legal_actions.map(lambda a: a[0] == "hold").all()
    assert (decisions.propensity[~both] == 1).all()
    assert decisions.relevance[both].notna().all()
    assert (decisions.relevance.isna() == decisions.near_real_time.isna()).all()
    assert decisions.relevance.isna().any()
    assert (decisions.logged_at == decisions.decided_at).all()
    assert (events.logged_at >= events.occurred_at).all()
    # Every event about a decision names an existing send of the same user.
    about = events.dropna(subset="decision_id").merge(decisions, on="decision_id", how="left")
    assert set(about.kind) <= {"delivered", "click", "dismiss", "disable"}
    assert (about.user_id_x == about.user_id_y).all()
    assert (about.action == "send").all()
    # The system's own notifications and what answers them name none.
    unasked = {"delivered", "click", "dismiss", "disable"}
    assert set(events.kind[events.decision_id.isna()]) <= {"session_start", "enable", "account_closed"} | unasked
    assert (events.decision_id.isna() & (events.kind == "click")).any()
    assert set(frames["candidates"].user_id) <= set(frames["users"].user_id)
    end = pd.Timestamp("2026-01-15", tz="UTC")
    assert (frames["candidates"].decide_at >= end).all()
    assert (frames["candidates"].decide_at < end + pd.Timedelta("1D")).all()
    assert (frames["users"].valid_from < decisions.decided_at.min()).all()


def test_partitions_are_arrival_days_and_times_are_microseconds(log, tmp_path):
    write_lake(log, tmp_path)
    for name in ("decisions", "events"):
        folders = sorted(path for path in (tmp_path / name).iterdir() if path.is_dir())
        for folder in folders:
            (file,) = folder.iterdir()
            table = pq.ParquetFile(file).read()
            days = pd.to_datetime(table["logged_at"].to_pandas()).dt.strftime("%Y-%m-%d").unique()
            assert [f"ds={day}" for day in days] == [folder.name]
            assert table.schema.field("logged_at").type == pa.timestamp("us", tz="UTC")
        assert [folder.name for folder in folders[:10]] == [f"ds=2026-01-{day:02d}" for day in range(5, 15)]


def test_same_log_same_files(log, tmp_path):
    write_lake(log, tmp_path / "one")
    write_lake(log, tmp_path / "two")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet"))
    assert len(files) > 20
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_run_simulate_writes_to_the_configured_places_and_replaces_its_own(config):
    counts = lake.run_simulate(config)
    assert counts["users"] == 300
    # The rule for W on the rows themselves; truth covers the same time, but for the last moments.
    frames = {name: read(config.data.decisions.path.parent, name) for name in ("decisions", "events")}
    watermark = min(frame.logged_at.max() for frame in frames.values())
    assert pd.Timestamp(counts["watermark"]) == watermark
    end = pd.Timestamp(simulate(config.simulate, config.seed).end, unit="us", tz="UTC")
    assert pd.Timedelta(0) <= end - watermark < pd.Timedelta("10min")
    assert end > pd.Timestamp("2026-01-14T20:00", tz="UTC")
    assert lake.run_simulate(config) == counts
    for name in NAMES:
        path = getattr(config.data, name).path
        assert len(read(path.parent, name)) == counts[name]
        assert sorted(p.name for p in path.parent.iterdir()) == sorted(NAMES)


def test_real_data_is_never_overwritten(config):
    place = config.data.events.path
    place.mkdir(parents=True)
    (place / "part-0.parquet").write_text("a year of events")
    with pytest.raises(InputError, match="events holds something that was not simulated; move it away"):
        lake.run_simulate(config)
    assert (place / "part-0.parquet").read_text() == "a year of events"
    assert not config.data.decisions.path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulate": None}, r"add a \[simulate\] section"),
        ({"actions": ["hold", "badge", "push"]}, r"the simulated world knows \['hold', 'send'\]"),
        (
            {"data": {"decisions": {"path": "a.csv"}}, "rewards": ["sends"], "train": {"weights": {"sends": -1.0}}},
            "data.decisions.path is a.csv; .* name a folder",
        ),
    ],
)
def test_bad_config(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        lake.run_simulate(config_of(tmp_path, **changes))


@pytest.mark.parametrize(("key", "name"), [("context", "price"), ("attributes", "age")])
def test_a_feature_the_world_lacks_is_named(tmp_path, key, name):
    config = config_of(tmp_path, features={"state": ["badge"], key: [name]})
    with pytest.raises(InputError, match=f"features.{key}: '{name}' is not in the simulated log"):
        lake.policy_truth(config, [Never()], 0)


def test_state_in_the_world_is_the_state_the_etl_computes_afterwards(config):
    """No look-ahead: what the policy saw at each review equals one call of the kernel on the finished log."""
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def decide(view: View) -> np.ndarray:
        _, state = lake.view_state(view, config)
        seen.append((view.user, view.at, state))
        return threshold(0.3, 0.3)(view)

    log = simulate(config.simulate, 3, decide)
    user, at, state = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    order = np.lexsort((at, user))
    np.testing.assert_array_equal(user[order], log.decisions["user"])
    _, afterwards = lake.log_state(log.decisions, log.decisions, log.events, log.users, config)
    np.testing.assert_array_equal(state[order], afterwards)
    names = config.features.names
    for name in ("sends_7d", "visits_7d", "clicks_7d", "badge", "hours_since_send", "notifications_on", "tenure_days"):
        assert np.unique(afterwards[:, names.index(name)]).size > 1, name


@dataclasses.dataclass(frozen=True)
class Restrained:
    """Sends while fewer than two sends lie in the last week, by the ETL's own count."""

    column: int
    name: str = "restrained"
    learned: bool = False

    def action_probabilities(self, state: np.ndarray, legal: np.ndarray) -> np.ndarray:
        send = legal[:, 1] & (state[:, self.column] < 2)
        return np.column_stack([~send, send]).astype(np.float64)


def test_a_policy_acts_on_its_state(config):
    policy = Restrained(config.features.names.index("sends_7d"))
    d = simulate(config.simulate, 1, lake.state_decide(policy, config)).decisions
    week = 7 * 86_400_000_000
    for user in range(300):
        sends = d["at"][(d["user"] == user) & (d["action"] == 1)]
        assert all((sends[(sends < at) & (sends >= at - week)]).size < 2 for at in sends)
    assert d["action"].sum() > 300


def test_policy_truth_agrees_with_the_world_played_directly(config):
    truth = lake.policy_truth(config, [LoggingPolicy(), Never(), Always()], 5)
    assert truth == true_values(
        config.simulate, 5, {"never": lambda v: np.tile([1.0, 0.0], (len(v.user), 1)), "always": always}
    )
    assert set(truth) == {"logging", "never", "always"}


def test_constraints_bind_in_the_world(tmp_path):
    config = config_of(tmp_path, constraints={"min_gap_hours": 60.0})
    d = simulate(config.simulate, 1, lake.state_decide(Always(), config)).decisions
    sent = d["action"] == 1
    gaps = np.diff(d["at"][sent])[np.diff(d["user"][sent]) == 0]
    assert sent.sum() > 300
    assert gaps.min() >= 60 * 3_600_000_000
