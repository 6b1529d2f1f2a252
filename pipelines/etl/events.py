"""Raw events and raw users: which are kept, and the columns the kernels read from them.

Columns read (see schemas.tagged_fields): user_id, row_id (event_id), at (occurred_at, valid_from), logged, hash, label
(kind), decision_id, time_zone, attribute:NAME, attribute_category:NAME.
"""

import numpy as np
import pyarrow as pa

from pipelines.etl.features import KINDS, Happenings, Ints, People
from pipelines.etl.marks import Marks, Plan, floats, ints, is_null, mark_duplicates, mark_times, positions, texts


def mark_events(table: pa.Table, plan: Plan) -> Marks:
    """The reason of each event: times (see marks.mark_times), duplicates, unknown_kind."""
    marks = Marks(table.num_rows)
    mark_times(marks, table, plan, "event_id", "occurred_at")
    mark_duplicates(marks, table)
    marks.add("unknown_kind", positions(table["label"], KINDS) < 0)
    return marks


def mark_users(table: pa.Table) -> Marks:
    """The reason of each row of `users`: missing_user_id, missing_valid_from."""
    marks = Marks(table.num_rows)
    marks.add("missing_user_id", is_null(table, "user_id"))
    marks.add("missing_valid_from", is_null(table, "at"))
    return marks


def happenings(table: pa.Table, user: Ints, decision: Ints) -> Happenings:
    """Kept events with the given codes of their users and decisions, [E] each."""
    kind = positions(table["label"], KINDS).astype(np.int8)
    return Happenings(user, ints(table, "at"), ints(table, "logged"), kind, decision)


def people(table: pa.Table, user: Ints, plan: Plan) -> People:
    """Kept rows of `users`; of rows valid from one instant the one with the largest content hash comes last."""
    order = np.argsort(ints(table, "hash"), kind="stable")
    attributes = {name: floats(table, f"attribute:{name}") for name in plan.features.attributes}
    attributes |= {name: texts(table, f"attribute_category:{name}") for name in plan.features.attribute_categories}
    return People(
        user[order],
        ints(table, "at")[order],
        texts(table, "time_zone")[order],
        {name: column[order] for name, column in attributes.items()},
        ints(table, "logged")[order],
    )
