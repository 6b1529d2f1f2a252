"""Reading a small Delta table: order, next rows, nulls, and tables that cannot be read."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from models.contract import Contract
from models.errors import InputError
from models.table import read

CONTRACT = Contract(("hold", "send"), ("badge", "rate"), ("sends", "clicks"))
START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("user_id", "decision_id", "ds", "split", "action", "propensity_source")),
        ("decided_at", pa.timestamp("us", "UTC")),
        ("bucket", pa.int32()),
        ("legal", pa.list_(pa.bool_())),
        *((name, pa.float64()) for name in ("propensity", "elapsed_days", "reward_sends", "reward_clicks")),
        *((name, pa.float32()) for name in ("state_rate", "state_badge")),
        *((name, pa.bool_()) for name in ("terminal", "truncated", "silent", "warm_up", "usable")),
    ]
)


def row(user: str, hour: float, decision: str, **changes: object) -> dict[str, object]:
    at = START + timedelta(hours=hour)
    plain: dict[str, object] = {
        "user_id": user,
        "decision_id": decision,
        "ds": at.date().isoformat(),
        "split": "train",
        "action": "hold",
        "propensity_source": "logged",
        "decided_at": at,
        "bucket": 1 if user == "zoe" else 0,
        "legal": [True, True],
        "propensity": 0.5,
        "elapsed_days": 0.5,
        "reward_sends": 0.0,
        "reward_clicks": hour,
        "state_rate": 0.25,
        "state_badge": 2.0,
        **dict.fromkeys(("terminal", "truncated", "silent", "warm_up"), False),
        "usable": True,
    }
    assert changes.keys() <= plain.keys()
    return {**plain, **changes}


LOG = [
    row("bob", 36, "b3", truncated=True),
    row("bob", 12, "b2", terminal=True, action="send", reward_sends=1.0),
    row("zoe", 5, "z1", truncated=True, split="test"),
    # An unusable row: bob's first decision was truncated by it, and it is not read.
    row("bob", 6, "b1x", usable=False, action=None, reward_sends=None, reward_clicks=None),
    row("bob", 0, "b1", truncated=True, legal=[True, False], propensity=None, propensity_source=None),
    row("ann", 30, "a3", truncated=True, silent=True, state_badge=None),
    # A tie in time: ordered by decision_id.
    row("ann", 24, "a2b", propensity_source="estimated"),
    row("ann", 24, "a2a", warm_up=True),
]


def write(path: Path, rows: list[dict[str, object]], **how: str) -> None:
    """One file per row and partition, in the order given: readers must not rely on it."""
    for each in rows:
        table = pa.Table.from_pylist([each], schema=SCHEMA)
        write_deltalake(path, table, partition_by=["ds", "bucket"], mode="append", **how)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lake") / "transitions"
    write(path, LOG)
    return path


def test_rows_come_sorted_by_user_time_and_id_and_only_the_usable(lake) -> None:
    found = read(lake, CONTRACT)
    assert found.user.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert found.user_id.tolist() == ["ann", "bob", "zoe"]
    hours = (found.decided_at - int(START.timestamp() * 1e6)) / 3.6e9
    assert hours.tolist() == [24, 24, 30, 0, 12, 36, 5]
    assert found.warm_up.tolist() == [True, False, False, False, False, False, False]  # a2a before a2b
    assert found.reward.tolist() == [[0, 24], [0, 24], [0, 30], [0, 0], [1, 12], [0, 36], [0, 5]]
    assert found.action.tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert found.split.tolist() == [0, 0, 0, 0, 0, 0, 2]
    assert found.silent.tolist() == [False, False, True, False, False, False, False]


def test_nothing_follows_a_terminal_or_truncated_row(lake) -> None:
    found = read(lake, CONTRACT)
    assert found.next_row.tolist() == [1, 2, -1, -1, -1, -1, -1]
    assert found.terminal.tolist() == [False, False, False, False, True, False, False]
    assert found.truncated.tolist() == [False, False, True, True, False, True, True]


def test_columns_follow_the_contract_and_nulls_are_nan(lake) -> None:
    found = read(lake, CONTRACT)
    assert found.state.dtype == np.float32
    assert found.state[0].tolist() == [2.0, 0.25]  # badge, rate: the contract's order, not the table's
    assert np.isnan(found.state[2]).tolist() == [True, False]
    assert found.legal[3].tolist() == [True, False]
    assert np.isnan(found.propensity).tolist() == [False, False, False, True, False, False, False]
    assert found.estimated.tolist() == [False, True, False, False, False, False, False]
    turned = read(lake, Contract(("hold", "send"), ("rate", "badge"), ("clicks", "sends")))
    assert turned.state[0].tolist() == [0.25, 2.0]
    assert turned.reward[4].tolist() == [12, 1]


def test_a_version_is_pinned_and_its_fingerprint_is_its_content(lake, tmp_path) -> None:
    found = read(lake, CONTRACT)
    assert found.version == len(LOG) - 1
    assert len(read(lake, CONTRACT, version=1).user) == 2
    write(tmp_path / "again", LOG[::-1])
    assert read(tmp_path / "again", CONTRACT).fingerprint == found.fingerprint
    write(tmp_path / "other", [{**LOG[0], "propensity": 0.25}, *LOG[1:]])
    assert read(tmp_path / "other", CONTRACT).fingerprint != found.fingerprint


def test_where_makes_user_codes_dense_again(lake) -> None:
    found = read(lake, CONTRACT)
    part = found.where(found.user != 1)
    assert part.user.tolist() == [0, 0, 0, 1]
    assert part.user_id.tolist() == ["ann", "zoe"]
    assert part.next_row.tolist() == [1, 2, -1, -1]
    assert part.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "email"}, "action is 'email' at decision z1.*known: hold, send"),
        ({"split": "holdout"}, "split is 'holdout' at decision z1"),
        ({"legal": [True]}, "legal has 1 entries at decision z1, but 2 actions"),
        ({"legal": [False, False]}, "no action is legal.*first decision z1"),
        ({"reward_clicks": None}, "reward_clicks is null or not finite: 1 usable rows, first decision z1"),
        ({"elapsed_days": None}, "elapsed_days is null or negative"),
        ({"truncated": False}, "last row is neither terminal nor truncated.*first decision z1"),
    ],
)
def test_rows_nobody_could_use_are_refused(tmp_path, change, message) -> None:
    write(tmp_path / "t", [row("ann", 1, "a1", truncated=True), row("zoe", 5, "z1", **{"truncated": True, **change})])
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t", CONTRACT)


def test_tables_that_are_not_there(lake, tmp_path) -> None:
    with pytest.raises(InputError, match="no transitions table; run the ETL first"):
        read(tmp_path / "nothing", CONTRACT)
    with pytest.raises(InputError, match="version 99 cannot be read"):
        read(lake, CONTRACT, version=99)
    with pytest.raises(InputError, match=r"no column state_hour.*--rebuild"):
        read(lake, Contract(("hold", "send"), ("hour",), ("sends",)))
    write(tmp_path / "empty", [row("ann", 1, "a1", usable=False)])
    with pytest.raises(InputError, match="no usable row"):
        read(tmp_path / "empty", CONTRACT)
