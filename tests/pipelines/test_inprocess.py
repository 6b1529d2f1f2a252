"""The road from a simulated log to transitions without files, against the ETL over the lake of the same log."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models import table
from models.contract import SPLITS
from models.errors import InputError
from pipelines import simulate as lake
from pipelines.etl.flow import run_etl
from pipelines.inprocess import transitions_of
from policies.simulator import Log, simulate
from tests.pipelines.inprocess import in_process
from tests.pipelines.test_simulate import config_of

WORLD = {"users": 300, "days": 20}
NO_ATTRIBUTES = {"state": ["badge", "hour_sin"], "context": ["relevance"]}


@pytest.fixture(scope="module")
def log() -> Log:
    world = config_of(Path("unused"), simulate=WORLD).simulate
    assert world is not None
    return simulate(world, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"etl": {"max_gap_days": 0.6, "buckets": 3}},
        {"etl": {"watermark": "2026-01-20T00:00:00", "warmup_days": 2.5, "click_window_hours": 0.5}},
        {"etl": {"as_of": "2026-01-22T07:00:00", "max_quarantined": 1.0, "split": [0.2, 0.3, 0.5]}},
        {"etl": {"max_lateness_days": 0.02, "max_quarantined": 1.0, "lookback_days": 5}},
        {"rewards": ["clicks", "sends"]},
        {"constraints": {"quiet_hours": [10, 15], "min_gap_hours": 30}},
        {"features": NO_ATTRIBUTES, "without": "users"},
        {"features": NO_ATTRIBUTES, "rewards": ["sends"], "without": "events"},
    ],
    ids=lambda changes: "-".join([*changes, *changes.get("etl", {})]) or "plain",
)
def test_equal_to_the_etl_in_every_column(log: Log, changes: dict[str, Any], tmp_path: Path) -> None:
    without = changes.get("without")
    changes = {key: value for key, value in changes.items() if key != "without"}
    data = {name: {"path": str(tmp_path / "lake" / name)} for name in ("decisions", "events", "users")}
    config = config_of(
        tmp_path,
        data={name: place for name, place in data.items() if name != without},
        **{"simulate": WORLD, "train": {"weights": {"sends": 1.0}}, **changes},
    )
    lake.write({name: lake.tables(log)[name] for name in data}, {name: tmp_path / "lake" / name for name in data})
    with in_process() as session:
        report = run_etl(session, config)
    wanted, found = table.read(config.transitions_path, config.contract), transitions_of(log, config)
    for field in fields(found):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert ours == theirs, field.name
    assert {SPLITS[code] for code in np.unique(found.split)} == set(SPLITS)
    if without is None and "etl" in changes:
        # Equality of what is never there would prove nothing.
        assert all(getattr(found, name).any() for name in ("warm_up", "truncated"))
        assert found.silent.any() == ("max_gap_days" in changes["etl"])
    if not changes:
        assert found.terminal.any()
    assert report["rows"]["transitions"]["usable"] >= len(found.action)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"context": ["mood"]}}, r"features\.context: 'mood' is not in the simulated log"),
        (
            {"features": {"context_categories": {"relevance": ["high"]}}},
            r"data\.decisions: the simulated log has no column 'relevance' of kind string",
        ),
        ({"rewards": ["column:margin"]}, r"data\.decisions: the simulated log has no column 'margin'"),
        (
            {"data": {"decisions": {"path": "x", "where": "propensity < 1"}}, "rewards": ["sends"]},
            r"data\.decisions: a simulated log is read as it is",
        ),
    ],
)
def test_what_the_log_cannot_give_is_refused(log: Log, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    weights = {name.removeprefix("column:"): 1.0 for name in changes.get("rewards", ["clicks"])}
    config = config_of(tmp_path, **{"simulate": WORLD, "train": {"weights": weights}, **changes})
    with pytest.raises(InputError, match=message):
        transitions_of(log, config)


def test_a_log_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the log: no usable row"):
        table.from_rows(pa.table({"usable": [False, False]}), config_of(tmp_path).contract, "the log")
