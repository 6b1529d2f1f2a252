"""Raw decisions: which are kept, and what each says about actions.

Columns read (see schemas.py): user_id, row_id (decision_id), at (decided_at), logged, label (action), propensity, legal
(list of text), context:NAME, category:NAME, outcome:NAME.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.etl.features import Floats, Ints, is_missing
from pipelines.etl.marks import Marks, Plan, floats, is_null, mark_duplicates, mark_times, positions, texts

CERTAIN = 1e-9
"""How far from 1 the propensity of the only legal action may lie."""


def mark_decisions(table: pa.Table, user: Ints, plan: Plan) -> Marks:
    """The reason of each decision, in this order: times (see marks.mark_times), duplicates, unknown_action,
    unknown_legal_action, illegal_action, propensity_out_of_range, forced_propensity, missing_feature:NAME (only where
    more than one action is legal), missing_reward:NAME.
    """
    marks = Marks(table.num_rows)
    mark_times(marks, table, plan, "decision_id", "decided_at")
    mark_duplicates(marks, table, user, plan)
    action = actions(table, plan)
    legal, unknown = logged_legal(table, plan)
    marks.add("unknown_action", action < 0)
    marks.add("unknown_legal_action", unknown)
    marks.add("illegal_action", ~legal[np.arange(len(action)), action])
    propensity, given = floats(table, "propensity"), ~is_null(table, "propensity")
    marks.add("propensity_out_of_range", given & ~((propensity > 0) & (propensity <= 1)))
    choice = legal.sum(axis=1) > 1
    marks.add("forced_propensity", given & ~choice & (np.abs(propensity - 1) > CERTAIN))
    for name, column in context(table, plan).items():
        marks.add(f"missing_feature:{name}", choice & is_missing(column))
    for name, column in outcomes(table, plan).items():
        marks.add(f"missing_reward:{name}", is_missing(column))
    return marks


def actions(table: pa.Table, plan: Plan) -> Ints:
    """[N] index of the action taken, -1 where it is none of the configured ones."""
    return positions(table["label"], plan.contract.actions)


def logged_legal(table: pa.Table, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[N, A] the actions that were legal by the log (null means all), and [N] whether an unknown one was named."""
    lists = table["legal"].combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    legal = np.zeros((table.num_rows, len(plan.contract.actions)), bool)
    legal[is_null(table, "legal")] = True
    row = np.asarray(pc.list_parent_indices(lists).to_numpy(), dtype=np.int64)
    action = positions(pc.list_flatten(lists), plan.contract.actions)
    legal[row[action >= 0], action[action >= 0]] = True
    unknown = np.zeros(table.num_rows, bool)
    unknown[row[action < 0]] = True
    return legal, unknown


def context(table: pa.Table, plan: Plan) -> dict[str, NDArray[Any]]:
    """Context columns of the state, numbers as float64 (NaN missing) and texts as objects (None missing)."""
    numbers = {name: floats(table, f"context:{name}") for name in plan.features.context}
    return numbers | {name: texts(table, f"category:{name}") for name in plan.features.context_categories}


def outcomes(table: pa.Table, plan: Plan) -> dict[str, Floats]:
    """Outcome columns that are reward components, by name."""
    return {name: floats(table, f"outcome:{name}") for name in plan.outcomes}
