"""Raw events and raw users: which are kept, and the columns the kernels read from them.

Columns read (see schemas.py): user_id, row_id (event_id), at (occurred_at, valid_from), logged, label (kind),
decision_id, time_zone, attribute:NAME, attribute_category:NAME.
"""

import numpy as np
import pyarrow as pa

from pipelines.etl.features import KINDS, Ints, People
from pipelines.etl.marks import (
    Marks,
    Plan,
    contents,
    floats,
    ints,
    is_null,
    mark_duplicates,
    mark_times,
    mark_user,
    positions,
    texts,
)


def mark_events(table: pa.Table, user: Ints, plan: Plan) -> Marks:
    """The reason of each event: times (see marks.mark_times), duplicates, unknown_kind."""
    marks = Marks(table.num_rows)
    mark_times(marks, table, plan, "event_id", "occurred_at")
    mark_duplicates(marks, table, user, plan)
    marks.add("unknown_kind", positions(table["label"], KINDS) < 0)
    return marks


def mark_users(table: pa.Table) -> Marks:
    """The reason of each row of `users`: missing_user_id, oversized_user_id, missing_valid_from."""
    marks = Marks(table.num_rows)
    mark_user(marks, table)
    marks.add("missing_valid_from", is_null(table, "at"))
    return marks


def people(table: pa.Table, user: Ints, plan: Plan) -> People:
    """Kept rows of `users`; of rows valid from one instant the one with the largest content hash comes last."""
    order = np.argsort(contents(table), kind="stable")
    attributes = {name: floats(table, f"attribute:{name}") for name in plan.features.attributes}
    attributes |= {name: texts(table, f"attribute_category:{name}") for name in plan.features.attribute_categories}
    return People(
        user[order],
        ints(table, "at")[order],
        texts(table, "time_zone")[order],
        {name: column[order] for name, column in attributes.items()},
        ints(table, "logged")[order],
    )
