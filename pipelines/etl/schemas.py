"""What the ETL reads and what it makes, as Arrow schemas.

A raw table as the kernels see it, one per dataset:

| column                    | type          | decisions     | events      | users      | candidates  |
|---------------------------|---------------|---------------|-------------|------------|-------------|
| user_id                   | string        | user_id       | user_id     | user_id    | user_id     |
| row_id                    | string        | decision_id   | event_id    |            | candidate_id|
| at                        | int64 us      | decided_at    | occurred_at | valid_from | decide_at   |
| logged                    | int64 us      | logged_at     | logged_at   | logged_at  |             |
| label                     | string        | action        | kind        |            |             |
| decision_id               | string        |               | decision_id |            |             |
| propensity                | double        | NaN where it could not be read |  |       |             |
| legal                     | list<string>  | legal_actions |             |            | legal_actions |
| policy_id                 | string        | policy_id     |             |            |             |
| value                     | double        |               | value       |            |             |
| context:, category: NAME  | double, string| context       |             |            | context     |
| outcome:NAME              | double        | column rewards|             |            |             |
| time_zone                 | string        |               |             | time_zone  |             |
| attribute:NAME            | double        |               |             | attributes |             |
| attribute_category:NAME   | string        |               |             | attributes |             |
| found                     | string        | text that could not be cast, all datasets ||| |
| day                       | int32         | arrival day, days since the epoch, null where unknown |||  |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from models.contract import REWARD_PREFIX, STATE_PREFIX, Contract

if TYPE_CHECKING:
    from pipelines.config import Config

DECISIONS, EVENTS, USERS, CANDIDATES = 0, 1, 2, 3
NAMES = ("decisions", "events", "users", "candidates")
COLUMN_REWARD = "column:"
"""Begins the name of a reward component that is a column of the decision row."""
UNKNOWN_DAY = "unknown"
"""The arrival day of a row without any time."""

Days = tuple[int, int]
"""First and last arrival day, days since the epoch."""
EVER = -(1 << 31)
"""Earlier than any day."""


def days_of(code: int, days: Days | None) -> Days | None:
    """The arrival days of a dataset that a run over `days` reads: of `users` all before too, since a row holds on; of
    candidates all there are."""
    if days is None or code == CANDIDATES:
        return None
    return (EVER, days[1]) if code == USERS else days


TEXT, NUMBER, TIME, TEXTS = "string", "double", "timestamp", "array<string>"
ARROW = {TEXT: pa.string(), NUMBER: pa.float64(), TIME: pa.int64(), TEXTS: pa.list_(pa.string())}
"""How the kernels see what a raw dataset gives."""


def outcome_names(rewards: Sequence[str]) -> tuple[str, ...]:
    """Columns of the decision row that are reward components, without `column:`."""
    return tuple(name.removeprefix(COLUMN_REWARD) for name in rewards if name.startswith(COLUMN_REWARD))


@dataclass(frozen=True)
class Wanted:
    """A column that Tactful reads from a raw dataset."""

    name: str
    """As the configuration calls it."""
    kind: str
    """TEXT, NUMBER, TIME or TEXTS."""
    required: bool = True
    """Whether its absence is an error; otherwise it is null throughout."""
    alias: str = ""
    """The raw table's name for it; by default its own."""
    default: str = ""
    """The column that stands in for it where it is absent."""
    source: str = ""
    """The column of plain files that it is read from as it is, once that is settled."""

    @property
    def column(self) -> str:
        """Its name in the raw table."""
        return self.alias or self.name


def wanted(code: int, config: "Config") -> list[Wanted]:
    """Columns of the dataset with the given code."""
    return (_decisions, _events, _users, _candidates)[code](config)


def raw_schema(columns: Sequence[Wanted]) -> pa.Schema:
    """The raw table of a dataset, see above."""
    fields = [(column.column, ARROW[column.kind]) for column in columns]
    return pa.schema([*fields, ("found", pa.string()), ("day", pa.int32())])


def _decisions(config: "Config") -> list[Wanted]:
    return [
        Wanted("decision_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("decided_at", TIME, alias="at"),
        Wanted("action", TEXT, alias="label"),
        Wanted("propensity", NUMBER, required=False),
        Wanted("legal_actions", TEXTS, required=False, alias="legal"),
        Wanted("policy_id", TEXT, required=False),
        Wanted("logged_at", TIME, required=False, alias="logged", default="decided_at"),
        *_context(config),
        *(Wanted(name, NUMBER, alias=f"outcome:{name}") for name in outcome_names(config.rewards)),
    ]


def _context(config: "Config") -> list[Wanted]:
    """Context columns, the same in `decisions` and `candidates`."""
    numbers = [Wanted(name, NUMBER, alias=f"context:{name}") for name in config.features.context]
    return numbers + [Wanted(name, TEXT, alias=f"category:{name}") for name in config.features.context_categories]


def _candidates(config: "Config") -> list[Wanted]:
    return [
        Wanted("candidate_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("decide_at", TIME, alias="at"),
        Wanted("legal_actions", TEXTS, required=False, alias="legal"),
        *_context(config),
    ]


def _events(config: "Config") -> list[Wanted]:
    return [
        Wanted("event_id", TEXT, alias="row_id"),
        Wanted("user_id", TEXT),
        Wanted("occurred_at", TIME, alias="at"),
        Wanted("kind", TEXT, alias="label"),
        Wanted("decision_id", TEXT, required=False),
        Wanted("value", NUMBER, required=False),
        Wanted("logged_at", TIME, required=False, alias="logged", default="occurred_at"),
    ]


def _users(config: "Config") -> list[Wanted]:
    features = config.features
    numbers = [Wanted(name, NUMBER, alias=f"attribute:{name}") for name in features.attributes]
    texts = [Wanted(name, TEXT, alias=f"attribute_category:{name}") for name in features.attribute_categories]
    return [
        Wanted("user_id", TEXT),
        Wanted("valid_from", TIME, alias="at"),
        Wanted("logged_at", TIME, required=False, alias="logged", default="valid_from"),
        Wanted("time_zone", TEXT, required=False),
        *numbers,
        *texts,
    ]


@dataclass(frozen=True)
class Layout:
    """How a Delta table lies on disk."""

    schema: pa.Schema
    partitions: tuple[str, ...]


def transitions_layout(contract: Contract) -> Layout:
    """The transitions table: one file per day and user bucket."""
    return Layout(transition_schema(contract), ("ds", "bucket"))


def quarantine_layout(raw: pa.Schema) -> Layout:
    """Quarantined rows of one dataset, by arrival day: as read, times readable, with the reason and the remedy."""
    fields = [pa.field(f.name, _TIMESTAMP) if f.name in ("at", "logged") else f for f in raw if f.name != "day"]
    return Layout(pa.schema([*fields, ("reason", pa.string()), ("remedy", pa.string()), ("ds", pa.string())]), ("ds",))


def consent_layout() -> Layout:
    """Every kept `disable` and `enable` that occurred before the next run's window, one file per user bucket."""
    fields = [("user_id", pa.string()), ("at", pa.int64()), ("logged", pa.int64()), ("kind", pa.string())]
    return Layout(pa.schema([*fields, ("bucket", pa.int32())]), ("bucket",))


_TIMESTAMP = pa.timestamp("us", "UTC")


def transition_schema(contract: Contract) -> pa.Schema:
    """The transitions table, see models/contract.py."""
    fields = [
        ("user_id", pa.string()),
        ("decision_id", pa.string()),
        ("decided_at", _TIMESTAMP),
        ("ds", pa.string()),
        ("bucket", pa.int32()),
        ("split", pa.string()),
        ("action", pa.string()),
        ("legal", pa.list_(pa.bool_())),
        ("propensity", pa.float64()),
        ("propensity_source", pa.string()),
        ("policy_id", pa.string()),
        *((STATE_PREFIX + name, pa.float32()) for name in contract.features),
        *((REWARD_PREFIX + name, pa.float64()) for name in contract.rewards),
        ("elapsed_days", pa.float64()),
        *((name, pa.bool_()) for name in ("terminal", "truncated", "silent", "warm_up", "usable")),
        ("clicks_attributed", pa.int32()),
        ("reason", pa.string()),
    ]
    return pa.schema(fields)
