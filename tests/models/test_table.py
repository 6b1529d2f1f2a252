"""Reading a small Delta table: order, next rows, nulls, closed accounts, estimates, and what cannot be read."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from models import propensities
from models.contract import Contract
from models.errors import InputError
from models.table import Transitions, count_unknown, read, read_with_keys

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
    row("zoe", 5, "z1", truncated=True, split="test", propensity=None, propensity_source=None),
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
    assert np.isnan(found.propensity).tolist() == [False, False, False, False, False, False, True]
    assert found.propensity[3] == 1  # bob's first: only what he was given was legal
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


def test_labels_of_click_models_are_read_where_there_are_any(lake, tmp_path) -> None:
    plain = read(lake, CONTRACT)
    assert plain.clicked is None
    assert plain.where(plain.user == 1).clicked is None
    schema = SCHEMA.append(pa.field("clicks_attributed", pa.int32()))
    labelled = [{**each, "clicks_attributed": {"b2": 1, "a2b": 0}.get(str(each["decision_id"]))} for each in LOG]
    table = pa.Table.from_pylist(labelled, schema=schema)
    write_deltalake(tmp_path / "labelled", table, partition_by=["ds", "bucket"])
    found = read(tmp_path / "labelled", CONTRACT)
    np.testing.assert_array_equal(found.clicked, [np.nan, 0, np.nan, np.nan, 1, np.nan, np.nan])
    np.testing.assert_array_equal(found.where(found.user == 1).clicked, [np.nan, 1, np.nan])
    assert found.fingerprint == plain.fingerprint


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


# Closed accounts


def silent(user: str, hour: float, days: float, **changes: object) -> dict[str, object]:
    plain = {"silent": True, "legal": [True, False], "propensity": 1.0, "propensity_source": "certain"}
    return row(user, hour, f"silent{hour}:{user}", elapsed_days=days, **{**plain, "reward_clicks": 0.0, **changes})


def test_a_terminal_row_takes_in_the_silent_rows_behind_it(tmp_path) -> None:
    """The account closes at 12 h; 0.25 + 7 + 7 + 1.5 = 15.75 days are covered from there, with 3 + 0 + 2 + 1 clicks."""
    rows = [
        silent("ann", 0, 0.5),  # silent, but before the account closed
        row("ann", 12, "a1", terminal=True, elapsed_days=0.25, reward_clicks=3.0, action="send", reward_sends=1.0),
        silent("ann", 18, 7.0),
        silent("ann", 186, 7.0, reward_clicks=2.0, terminal=True),  # 18 + 7 * 24; closed twice
        silent("ann", 354, 1.5, reward_clicks=1.0, truncated=True),  # 186 + 7 * 24, to the watermark
        row("zoe", 354, "z1", truncated=True),
    ]
    write(tmp_path / "t", rows)
    found = read(tmp_path / "t", CONTRACT)
    assert found.user.tolist() == [0, 0, 1]
    assert found.silent.tolist() == [True, False, False]
    assert found.elapsed_days.tolist() == [0.5, 15.75, 0.5]
    assert found.reward.tolist() == [[0, 0], [1, 6], [0, 354]]
    assert found.terminal.tolist() == [False, True, False]
    assert found.truncated.tolist() == [False, False, True]
    assert found.action.tolist() == [0, 1, 0]
    assert found.next_row.tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("behind", "left"),
    [
        ([silent("ann", 12, 7.0, truncated=True)], 1),
        ([silent("ann", 12, 7.0), row("ann", 180, "a2"), silent("ann", 192, 1.0, truncated=True)], 3),
        ([silent("ann", 13, 7.0, truncated=True)], 2),
        ([row("ann", 12, "a1x", usable=False), silent("ann", 24, 7.0, truncated=True)], 2),
        ([row("ann", 12, "a2", truncated=True)], 2),
        ([silent("bob", 12, 7.0, truncated=True)], 2),
    ],
    ids=["it does", "up to a decision", "not beyond a gap", "not past an unusable row", "no decision", "no other user"],
)
def test_which_rows_a_terminal_row_takes_in(tmp_path, behind, left) -> None:
    write(tmp_path / "t", [row("ann", 0, "a1", terminal=True), *behind])
    assert len(read(tmp_path / "t", CONTRACT).user) == left


def naive(rows: list[dict[str, object]]) -> list[list[float]]:
    """One row at a time: [days, clicks] of what is left."""
    left: list[list[float]] = []
    closed, due, user = False, None, None
    for each in rows:
        goes_on = each["user_id"] == user and each["silent"] and each["decided_at"] == due
        if closed and goes_on:
            left[-1] = [left[-1][0] + each["elapsed_days"], left[-1][1] + each["reward_clicks"]]
        else:
            left.append([each["elapsed_days"], each["reward_clicks"]])
            closed = False
        closed = closed or each["terminal"]
        user, due = each["user_id"], each["decided_at"] + timedelta(days=each["elapsed_days"])
    return left


def test_closed_accounts_as_one_row_at_a_time_and_nothing_lost(tmp_path) -> None:
    draw = np.random.default_rng(3)
    rows = []
    for user in range(60):
        hour, last = 0.0, int(draw.integers(1, 9))
        for k in range(last):
            days = float(draw.integers(1, 40)) / 7
            kind = silent if k and draw.random() < 0.7 else row
            more = {"elapsed_days": days} if kind is row else {}
            at = (f"u{user:02d}", hour, f"{k}") if kind is row else (f"u{user:02d}", hour, days)
            made = kind(*at, **more, terminal=bool(draw.random() < 0.3), reward_clicks=float(draw.integers(5)))
            made["decision_id"] = f"{user}:{k}"
            made["truncated"] = k == last - 1 and not made["terminal"]
            rows.append(made)
            hour += days * 24 + (5 if draw.random() < 0.1 else 0)
    write_deltalake(tmp_path / "t", pa.Table.from_pylist(rows[::-1], schema=SCHEMA), partition_by=["ds", "bucket"])
    found = read(tmp_path / "t", CONTRACT)
    wanted = np.array(naive(rows))
    assert 60 < len(wanted) < len(rows) - 20
    np.testing.assert_allclose(np.stack([found.elapsed_days, found.reward[:, 1]], axis=1), wanted, atol=1e-9)
    assert found.elapsed_days.sum() == pytest.approx(sum(each["elapsed_days"] for each in rows), abs=1e-9)
    assert found.reward[:, 1].sum() == sum(each["reward_clicks"] for each in rows)


# Estimated propensities

UNKNOWN = [
    row("ann", 0, "a1", propensity=None, propensity_source=None),
    row("ann", 12, "a2"),
    row("ann", 24, "a3", propensity=None, propensity_source=None, truncated=True),
    row("bob", 0, "b1", propensity=None, propensity_source=None, legal=[True, False]),
    # A decision's id is its user's: ann has an a1 too.
    row("bob", 12, "a1", propensity=None, propensity_source=None, truncated=True),
    row("zoe", 12, "z1", propensity=0.9, truncated=True),
]


def estimate(lake: Path, at: Path, values: list[float], **facts: str) -> int:
    """Estimates for the first rows of `lake` that lack one."""
    found, keys = read_with_keys(lake, CONTRACT)
    places = np.flatnonzero(np.isnan(found.propensity))[: len(values)]
    columns = {"decided_at": found.decided_at[places], "propensity": np.array(values), "fold": np.zeros(len(values))}
    made_for = {propensities.MADE_FOR: found.fingerprint, propensities.MADE_FROM: str(found.version)}
    return propensities.write(at, keys[: len(values)], columns, {**made_for, **facts}, propensities.newest(at))


@pytest.fixture
def unknown(tmp_path) -> Path:
    write(tmp_path / "unknown", UNKNOWN)
    return tmp_path / "unknown"


def test_estimates_fill_what_the_log_lacks_and_nothing_else(unknown, tmp_path) -> None:
    assert count_unknown(unknown) == 4  # the one where only hold was legal among them
    plain = read(unknown, CONTRACT)
    _, keys = read_with_keys(unknown, CONTRACT)
    assert keys.to_pylist() == [
        {"user_id": "ann", "decision_id": "a1"},
        {"user_id": "ann", "decision_id": "a3"},
        {"user_id": "bob", "decision_id": "a1"},
    ]
    assert estimate(unknown, tmp_path / "p", [0.1, 0.2, 0.3]) == 0
    found = read(unknown, CONTRACT, estimates=tmp_path / "p")
    assert found.propensity.tolist() == [0.1, 0.5, 0.2, 1.0, 0.3, 0.9]
    assert found.estimated.tolist() == [True, False, True, False, True, False]
    assert (found.estimates_version, plain.estimates_version) == (0, None)
    changed = {"propensity", "estimated", "fingerprint", "estimates_version"}
    for name in {field.name for field in fields(Transitions)} - changed:
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert found.where(found.user == 0).estimates_version == 0


def test_the_fingerprint_tells_of_the_estimates(unknown, tmp_path) -> None:
    plain = read(unknown, CONTRACT).fingerprint
    for values in ([0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.1, 0.2, 0.3]):
        estimate(unknown, tmp_path / "p", values)
    first, second, third = (read(unknown, CONTRACT, None, tmp_path / "p", v).fingerprint for v in range(3))
    assert first == third
    assert len({plain, first, second}) == 3
    newest = read(unknown, CONTRACT, estimates=tmp_path / "p")
    assert (newest.estimates_version, newest.propensity[4]) == (2, 0.3)


def test_a_log_that_lacks_nothing_needs_no_estimates(unknown, tmp_path) -> None:
    write(tmp_path / "whole", [row("ann", 0, "a1", truncated=True)])
    estimate(unknown, tmp_path / "p", [0.1, 0.2, 0.3])
    found = read(tmp_path / "whole", CONTRACT, estimates=tmp_path / "p")
    assert (found.estimates_version, found.propensity.tolist()) == (None, [0.5])


def test_estimates_that_do_not_fit_are_refused(unknown, tmp_path) -> None:
    with pytest.raises(InputError, match="no estimated propensities; run `tactful propensity CONFIG` first"):
        read(unknown, CONTRACT, estimates=tmp_path / "nothing")
    estimate(unknown, tmp_path / "few", [0.1, 0.2])
    with pytest.raises(InputError, match=r"holds 2 estimates for 3 decisions.*first a1; run `tactful propensity"):
        read(unknown, CONTRACT, estimates=tmp_path / "few")
    with pytest.raises(InputError, match=r"version 7 cannot be read.*then train again"):
        read(unknown, CONTRACT, None, tmp_path / "few", 7)
    write(tmp_path / "theirs", UNKNOWN)
    with pytest.raises(InputError, match="not written by `tactful propensity`"):
        read(unknown, CONTRACT, estimates=tmp_path / "theirs")


def test_stale_estimates_are_refused_and_those_for_equal_rows_are_not(unknown, tmp_path) -> None:
    estimate(unknown, tmp_path / "p", [0.1, 0.2, 0.3])
    # Another version with the same rows, as a compaction leaves it.
    DeltaTable(unknown).optimize.compact()
    write(unknown, [row("zoe", 24, "z2", usable=False)])
    assert read(unknown, CONTRACT, estimates=tmp_path / "p").propensity[0] == 0.1
    made, version = len(UNKNOWN) - 1, DeltaTable(unknown).version()
    write(unknown, [row("zoe", 36, "z3", truncated=True)])
    with pytest.raises(
        InputError, match=rf"for version {made} of the transitions .*not for version {version + 1} of .*run `tactful"
    ):
        read(unknown, CONTRACT, estimates=tmp_path / "p")
    assert read(unknown, CONTRACT, version, tmp_path / "p").estimates_version == 0
    assert estimate(unknown, tmp_path / "p", [0.4, 0.5, 0.6]) == 1
    assert read(unknown, CONTRACT, None, tmp_path / "p").propensity[0] == 0.4
    # Each version knows what it was made for, whatever came after it.
    assert read(unknown, CONTRACT, version, tmp_path / "p", 0).propensity[0] == 0.1
    with pytest.raises(InputError, match=rf"version 1 was estimated for version {version + 1} of"):
        read(unknown, CONTRACT, version, tmp_path / "p", 1)


def test_erasing_a_user_from_the_estimates_leaves_what_they_were_made_for(unknown, tmp_path) -> None:
    estimate(unknown, tmp_path / "p", [0.1, 0.2, 0.3])
    DeltaTable(tmp_path / "p").delete("user_id = 'bob'")
    rows, facts, version = propensities.read(tmp_path / "p")
    assert (rows.num_rows, version) == (2, 1)
    assert facts[propensities.MADE_FROM] == str(len(UNKNOWN) - 1)
    with pytest.raises(InputError, match="holds 2 estimates for 3 decisions"):
        read(unknown, CONTRACT, estimates=tmp_path / "p")


@pytest.mark.parametrize("keep", [0, 40, -10])
def test_a_shard_cut_short_is_named_with_the_remedy(tmp_path, keep) -> None:
    write(tmp_path / "cut", LOG)
    shard = next((tmp_path / "cut").glob("ds=*/bucket=1/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut: bucket 1 of version 7 cannot be read \(.*restore its files, or make"):
        read(tmp_path / "cut", CONTRACT)


def test_a_shard_that_is_gone_is_named_with_the_remedy(tmp_path) -> None:
    write(tmp_path / "gone", LOG)
    next((tmp_path / "gone").glob("ds=*/bucket=1/*.parquet")).unlink()
    with pytest.raises(InputError, match=r"gone: bucket 1 of version 7 cannot be read \(.*restore its files, or make"):
        read(tmp_path / "gone", CONTRACT)


def test_more_actions_than_a_byte_tells_apart_are_refused() -> None:
    names = tuple(f"a{each}" for each in range(257))
    assert len(Contract(names[:256], ("f",), ("r",)).actions) == 256
    with pytest.raises(InputError, match="actions: 257 configured; 256 are possible at most"):
        Contract(names, ("f",), ("r",))
