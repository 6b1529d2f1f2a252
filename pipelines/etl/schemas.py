"""The tagged row that the kernels read and the transitions that they make, as Arrow schemas.

The tagged row, one per raw row of any dataset:

| column                    | type          | decisions     | events      | users      |
|---------------------------|---------------|---------------|-------------|------------|
| dataset                   | int8          | 0             | 1           | 2          |
| bucket, split             | int32, string | by user_id    | by user_id  | by user_id |
| user_id                   | string        | user_id       | user_id     | user_id    |
| row_id                    | string        | decision_id   | event_id    |            |
| at                        | int64 us      | decided_at    | occurred_at | valid_from |
| logged                    | int64 us      | logged_at     | logged_at   | logged_at  |
| ds                        | string        | arrival day   | arrival day | arrival day|
| hash                      | int64         | of the row without logged_at, all datasets |||
| label                     | string        | action        | kind        |            |
| decision_id               | string        |               | decision_id |            |
| propensity                | double        | NaN where it could not be read |  |       |
| legal                     | list<string>  | legal_actions |             |            |
| policy_id                 | string        | policy_id     |             |            |
| context:, category: NAME  | double, string| context       |             |            |
| outcome:NAME              | double        | column rewards|             |            |
| time_zone                 | string        |               |             | time_zone  |
| attribute:NAME            | double        |               |             | attributes |
| attribute_category:NAME   | string        |               |             | attributes |
| found                     | string        | text that could not be cast, all datasets |||
| reason (once marked)      | string        | null where kept, all datasets |||
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from models.contract import REWARD_PREFIX, STATE_PREFIX, Contract

DECISIONS, EVENTS, USERS, CANDIDATES = 0, 1, 2, 3
NAMES = ("decisions", "events", "users", "candidates")
COLUMN_REWARD = "column:"
"""Begins the name of a reward component that is a column of the decision row."""


def outcome_names(rewards: Sequence[str]) -> tuple[str, ...]:
    """Columns of the decision row that are reward components, without `column:`."""
    return tuple(name.removeprefix(COLUMN_REWARD) for name in rewards if name.startswith(COLUMN_REWARD))


@dataclass(frozen=True)
class Layout:
    """How a Delta table lies on disk."""

    schema: pa.Schema
    partitions: tuple[str, ...]
    order: tuple[str, ...]
    """Sort order within a file, led by the partitions."""


def transitions_layout(contract: Contract) -> Layout:
    """The transitions table: one file per day and user bucket."""
    order = ("ds", "bucket", "user_id", "decided_at", "decision_id")
    return Layout(transition_schema(contract), ("ds", "bucket"), order)


def transition_schema(contract: Contract) -> pa.Schema:
    """The transitions table, see models/contract.py."""
    fields = [
        ("user_id", pa.string()),
        ("decision_id", pa.string()),
        ("decided_at", pa.timestamp("us", "UTC")),
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
