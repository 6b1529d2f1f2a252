"""A synthetic raw log for the ETL benchmark: everything that hurts, at any size, the same for the same seed.

Parquet (zstd), one file per arrival day (`ds=`, UTC date of logged_at) in order of arrival, times in microseconds UTC:

| dataset   | columns |
|-----------|---------|
| decisions | decision_id, user_id, decided_at, action (hold or send), propensity, relevance, logged_at |
| events    | event_id, user_id, occurred_at, kind, decision_id, logged_at |
| users     | user_id, valid_from, time_zone, tenure_days; one file |

Of N decisions and 4 N events: most are logged within minutes, some days later and a few too late; some are logged
twice, the same or with other contents; some are broken. Many times are whole quarters of an hour, so that rows tie.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.etl.features import DAY, HOUR, KINDS

Ints = NDArray[np.int64]

START = 1_711_324_800_000_000
"""2024-03-25T00:00Z, us: clocks change in Europe (31 March) and on Lord Howe Island (6 April) in a log of 14 days."""
MINUTE = HOUR // 60
QUARTER = HOUR // 4
ACTIONS = ("hold", "send", "shout")
"""The last is unknown to the configuration."""
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC", None)
_TIME = pa.timestamp("us", "UTC")
_FINISHED = "log.json"


@dataclass(frozen=True)
class LogConfig:
    """A log of `decisions` rows and four times as many events; shares are of the rows of each dataset."""

    decisions: int = 5_000_000
    per_user: int = 15
    """Decisions per user, on average."""
    days: int = 21
    """Arrival days."""
    seed: int = 0
    slow: float = 0.022
    """Logged hours to days after they happened."""
    too_late: float = 0.003
    """Logged more than 7 days after they happened."""
    repeated: float = 0.005
    """Logged again, unchanged."""
    conflicting: float = 0.001
    """Logged again with other contents."""
    broken: float = 0.002
    """Without a user, of an unknown action or kind, with propensity 0, ...: a quarter of it for each defect."""
    closed: float = 0.005
    """Share of users who close their account."""

    @property
    def as_of(self) -> str:
        """The UTC end of the log, after which clocks are ahead."""
        return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.end)).strftime("%Y-%m-%dT%H:%M:%S")

    @property
    def users(self) -> int:
        return max(self.decisions // self.per_user, 1)

    @property
    def end(self) -> int:
        """us."""
        return START + self.days * DAY


@dataclass(frozen=True)
class Rows:
    """N rows of one dataset by number: ids become text when they are written."""

    user: Ints
    """[N] -1 where missing."""
    number: Ints
    """[N] of decision_id or event_id, -1 where missing."""
    at: Ints
    logged: Ints
    label: NDArray[np.int8]
    """[N] index into ACTIONS, or into KINDS and one beyond."""
    decision: Ints
    """[N] the decision that an event is about, -1 where none."""
    propensity: NDArray[np.float64]
    relevance: NDArray[np.float64]
    """[N] NaN where missing."""

    def take(self, rows: NDArray[Any]) -> "Rows":
        return Rows(*(column[rows] for column in vars(self).values()))

    def __add__(self, other: "Rows") -> "Rows":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Rows(*(np.concatenate(pair) for pair in pairs))


def write_log(config: LogConfig, folder: Path) -> dict[str, Any]:
    """Write the log under `folder`, unless it is there from before; returns its row counts and bytes by dataset."""
    finished = folder / _FINISHED
    if finished.exists():
        facts: dict[str, Any] = json.loads(finished.read_text())
        if facts["config"] == asdict(config):
            return facts
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(config.seed)
    decisions = _decisions(config, rng)
    events = _events(config, rng, decisions)
    facts = {"config": asdict(config)}
    for name, rows, to_table in (("decisions", decisions, _decision_table), ("events", events, _event_table)):
        rows = _spoil(rows, config, rng, name)
        _write_days(rows, folder / name, to_table)
        facts[name] = len(rows.at)
    users = _users(config, rng)
    (folder / "users").mkdir()
    pq.write_table(users, folder / "users" / "users.parquet", compression="zstd")
    facts["users"] = users.num_rows
    facts["bytes"] = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    finished.write_text(json.dumps(facts))
    return facts


def _decisions(config: LogConfig, rng: np.random.Generator) -> Rows:
    """Some users get many decisions, and one in seven none after some moment, so that silence follows."""
    count = config.decisions
    user = _whose(config, rng, count)
    leaves = np.where(rng.random(config.users) < 1 / 7, rng.uniform(0.1, 0.9, config.users), 1.0)
    at = _ties(START + (rng.random(count) * leaves[user] * (config.days * DAY - HOUR)).astype(np.int64), rng)
    relevance = rng.random(count)
    chance = np.select([relevance < 0.3, relevance < 0.7], [0.3, 0.5], 0.7)
    send = rng.random(count) < chance
    propensity = np.where(send, chance, 1 - chance)
    nothing = np.full(count, -1)
    logged = _logged(at, config, rng)
    return Rows(user, np.arange(count), at, logged, send.astype(np.int8), nothing, propensity, relevance)


def _events(config: LogConfig, rng: np.random.Generator, decisions: Rows) -> Rows:
    """What follows sends, what users do unprompted, and page views until there are 4 N rows."""
    kind = {name: index for index, name in enumerate(KINDS)}
    sends = np.flatnonzero(decisions.label == 1)
    parts: list[tuple[Ints, Ints, str, Ints]] = []

    def about(rows: NDArray[Any], name: str, delay: NDArray[Any]) -> None:
        parts.append((decisions.user[rows], decisions.at[rows] + delay.astype(np.int64), name, decisions.number[rows]))

    def alone(user: Ints, at: Ints, name: str) -> None:
        parts.append((user, at, name, np.full(len(user), -1)))

    reached = sends[rng.random(len(sends)) < 0.97]
    about(reached, "delivered", rng.integers(0, 20, len(reached)) * 1_000_000)
    clicked = sends[rng.random(len(sends)) < 0.12]
    about(clicked, "click", rng.exponential(6 * HOUR, len(clicked)) * (rng.random(len(clicked)) < 0.98))
    about(clicked[::40], "click", rng.exponential(12 * HOUR, len(clicked[::40])))
    # Clicks on what was held back, before the send, or about nothing at all.
    stray = rng.integers(0, config.decisions, config.decisions // 500)
    about(stray, "click", rng.integers(-HOUR, HOUR, len(stray)))
    alone(decisions.user[stray], decisions.at[stray], "click")
    dismissed = sends[rng.random(len(sends)) < 0.15]
    about(dismissed, "dismiss", rng.exponential(HOUR, len(dismissed)))

    def some(share: float) -> Ints:
        return np.flatnonzero(rng.random(config.users) < share)

    def moments(count: int) -> Ints:
        return _ties(START + (rng.random(count) * config.days * DAY).astype(np.int64), rng)

    off = np.repeat(some(0.06), 2)
    alone(off, moments(len(off)), "disable")
    on = off[rng.random(len(off)) < 0.7]
    alone(on, moments(len(on)), "enable")
    closing = some(config.closed)
    alone(closing, moments(len(closing)), "account_closed")

    left = 4 * config.decisions - sum(len(part[0]) for part in parts)
    visitor = _whose(config, rng, round(left / 3.4))
    visit = moments(len(visitor))
    # Now and then a user comes back just within, or at, the edge of a session.
    again = rng.integers(1, len(visitor), len(visitor) // 20)
    visitor[again], visit[again] = visitor[again - 1], visit[again - 1] + rng.choice([29, 30, 31], len(again)) * MINUTE
    named = np.flatnonzero(rng.random(len(visitor)) < 0.4)
    alone(visitor[named], visit[named], "session_start")
    views = rng.integers(0, len(visitor), left - len(named))
    after = rng.exponential(6 * MINUTE, len(views)) * (rng.random(len(views)) < 0.7)
    alone(visitor[views], visit[views] + after.astype(np.int64), "page_view")

    at = np.minimum(np.concatenate([part[1] for part in parts]), config.end - 1)
    label = np.repeat(np.array([kind[part[2]] for part in parts], np.int8), [len(part[0]) for part in parts])
    user, decision = (np.concatenate([part[column] for part in parts]) for column in (0, 3))
    nothing = np.full(len(at), np.nan)
    return Rows(user, np.arange(len(at)), at, _logged(at, config, rng), label, decision, nothing, nothing)


def _whose(config: LogConfig, rng: np.random.Generator, count: int) -> Ints:
    """[count] users, the first of them far busier than the last."""
    return np.asarray((rng.random(count) ** 1.5 * config.users).astype(np.int64))


def _ties(at: Ints, rng: np.random.Generator) -> Ints:
    """A third of the times on the quarter of an hour."""
    return np.where(rng.random(len(at)) < 1 / 3, at // QUARTER * QUARTER, at)


def _logged(at: Ints, config: LogConfig, rng: np.random.Generator) -> Ints:
    """When each row became known: minutes, hours to days, or more than 7 days later; before the end of the log."""
    draw = rng.random(len(at))
    delay = np.where(rng.random(len(at)) < 0.2, 0, rng.exponential(3 * MINUTE, len(at)))
    delay = np.where(draw < config.too_late + config.slow, rng.uniform(HOUR, 7 * DAY, len(at)), delay)
    delay = np.where(draw < config.too_late, rng.uniform(7 * DAY, 12 * DAY, len(at)), delay)
    left = config.end - at
    delay = np.where(delay >= left, rng.random(len(at)) * left, delay)
    return at + delay.astype(np.int64)


def _spoil(rows: Rows, config: LogConfig, rng: np.random.Generator, name: str) -> Rows:
    """Broken rows, clocks ahead, and copies that are logged a little later, each at a time of its own."""

    def some(share: float) -> Ints:
        return rng.integers(0, len(rows.at), round(share * len(rows.at)))

    quarter = config.broken / 4
    rows.user[some(quarter)] = -1
    rows.label[some(quarter)] = ACTIONS.index("shout") if name == "decisions" else len(KINDS)
    if name == "decisions":
        rows.propensity[some(quarter)] = 0.0
        rows.relevance[some(quarter / 2)] = np.nan
    else:
        rows.number[some(quarter)] = -1
    early, ahead = some(quarter / 4), some(quarter / 4)
    rows.logged[early] = rows.at[early] - MINUTE
    rows.logged[ahead] = config.end + rng.integers(1, DAY, len(ahead))

    same, other = rows.take(some(config.repeated)), rows.take(some(config.conflicting))
    other = replace(other, label=(other.label + 1) % 2 if name == "decisions" else (other.label + 1) % len(KINDS))
    late = [replace(copy, logged=copy.logged + 1 + _apart(len(copy.at), rng)) for copy in (same, other)]
    return rows + late[0] + late[1]


def _apart(count: int, rng: np.random.Generator) -> Ints:
    """Delays up to an hour, no two alike: were copies logged at one moment, a hash of their contents would decide."""
    return np.asarray(rng.permutation(count) * (HOUR // max(count, 1)))


def _decision_table(rows: Rows) -> pa.Table:
    return pa.table(
        {
            "decision_id": _ids("d", rows.number),
            "user_id": _ids("u", rows.user),
            "decided_at": pa.array(rows.at, _TIME),
            "action": _names(ACTIONS, rows.label),
            "propensity": pa.array(rows.propensity),
            "relevance": pa.array(rows.relevance, mask=np.isnan(rows.relevance)),
            "logged_at": pa.array(rows.logged, _TIME),
        }
    )


def _event_table(rows: Rows) -> pa.Table:
    return pa.table(
        {
            "event_id": _ids("e", rows.number),
            "user_id": _ids("u", rows.user),
            "occurred_at": pa.array(rows.at, _TIME),
            "kind": _names((*KINDS, "wave"), rows.label),
            "decision_id": _ids("d", rows.decision),
            "logged_at": pa.array(rows.logged, _TIME),
        }
    )


def _ids(letter: str, number: Ints) -> pa.Array:
    text = pc.binary_join_element_wise(letter, pa.array(number).cast(pa.string()), "")
    return pc.if_else(pa.array(number >= 0), text, None)


def _names(names: tuple[str | None, ...], index: NDArray[np.int8]) -> pa.Array:
    return pa.array(names).take(pa.array(index))


def _write_days(rows: Rows, folder: Path, to_table: Any) -> None:
    order = np.argsort(rows.logged, kind="stable")
    days = rows.logged[order] // DAY
    edges = np.flatnonzero(np.append(True, days[1:] != days[:-1]))
    for first, last in zip(edges, [*edges[1:], len(order)], strict=True):
        day = datetime.fromtimestamp(int(days[first]) * 86_400, UTC)
        path = folder / f"ds={day:%Y-%m-%d}"
        path.mkdir(parents=True)
        pq.write_table(to_table(rows.take(order[first:last])), path / "part-0.parquet", compression="zstd")


def _users(config: LogConfig, rng: np.random.Generator) -> pa.Table:
    """A row of every user from before the log, and for one in ten another from within it; one in fifty has none."""
    first = np.flatnonzero(rng.random(config.users) < 0.98)
    moved = np.flatnonzero(rng.random(config.users) < 0.1)
    user = np.concatenate([first, moved])
    began = START - rng.integers(1, 400, len(first)) * DAY
    valid_from = np.concatenate([began, START + rng.integers(0, config.days * 24, len(moved)) * HOUR])
    tenure = rng.integers(0, 400, len(user)).astype(np.float64)
    missing = rng.random(len(user)) < 0.01
    zone = rng.integers(0, len(ZONES), len(user))
    return pa.table(
        {
            "user_id": _ids("u", user),
            "valid_from": pa.array(valid_from, _TIME),
            "time_zone": _names(ZONES, zone.astype(np.int8)),
            "tenure_days": pa.array(tenure, mask=missing),
        }
    )
