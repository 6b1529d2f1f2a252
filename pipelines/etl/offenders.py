"""The values for which raw rows are quarantined: counted where the rows are, so that an error can name them.

A value may itself say who somebody is, as where a column of addresses was mapped to `action`: it is named only where
the rows of `NAMED_FROM` users hold it. Users lie whole in one bucket, so that counts of rows and of users add.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.contract import Contract
from pipelines.etl.features import KINDS
from pipelines.etl.marks import REMEDIES

NAMED_FROM = 5
"""A value that fewer users hold is counted and not named."""
NAMED = 5
"""Values named of one reason, the commonest."""
SENT = 100
"""Values that a bucket sends of one reason, the commonest: a column of other things has as many as rows."""
LONGEST = 40
"""Letters of a value that are kept."""

Offence = tuple[str, str, int, int]
"""Reason, value, its rows, the users whose rows they are."""

UNREAD = ("decided_at", "occurred_at", "valid_from", "logged_at", "feature", "reward")
"""What is missing where it could not be read: `found` has the text."""
LABEL = ("unknown_action", "unknown_kind")
PROPENSITY = ("propensity_out_of_range", "forced_propensity")


def offences(rows: pa.Table, reason: pa.ChunkedArray, contract: Contract) -> list[Offence]:
    """What the quarantined `rows` [N] of whole users hold in the column that their `reason` [N] is about, the commonest
    first; nothing of reasons that are about no value."""
    found = []
    for name in pc.unique(reason).to_pylist():
        these = rows.filter(pc.equal(reason, name))
        place, values = _values(name.split(":")[0], these, contract)
        if values is None:
            continue
        users = these["user_id"].take(place)
        table = pa.table({"value": pc.utf8_slice_codeunits(values, 0, LONGEST), "user": users})
        counted = table.group_by("value").aggregate([([], "count_all"), ("user", "count_distinct")])
        order = [("count_all", "descending"), ("value", "ascending")]
        for row in counted.sort_by(order).slice(0, SENT).to_pylist():
            found.append((name, row["value"], row["count_all"], row["user_count_distinct"]))
    return found


def _values(reason: str, rows: pa.Table, contract: Contract) -> tuple[pa.Array, pa.Array | None]:
    """Places [V] among the rows, and the text [V] that each holds; None where the reason is about no value."""
    place = pa.array(np.arange(rows.num_rows))
    if reason in LABEL:
        return place, pc.fill_null(_whole(rows["label"]), "null")
    if reason == "illegal_action":
        legal = pc.binary_join(_whole(rows["legal"]), ", ")
        return place, pc.binary_join_element_wise(_whole(rows["label"]), legal, ", where legal is: ")
    if reason == "unknown_legal_action":
        lists = _whole(rows["legal"])
        texts = pc.fill_null(pc.list_flatten(lists), "null")
        unknown = pc.invert(pc.is_in(texts, value_set=pa.array(contract.actions)))
        return pc.list_parent_indices(lists).filter(unknown), texts.filter(unknown)
    unread = _whole(rows["found"])
    if reason in PROPENSITY:
        return place, pc.coalesce(unread, pc.cast(_whole(rows["propensity"]), pa.string()))
    if reason.removeprefix("missing_") in UNREAD:
        return place.filter(pc.is_valid(unread)), unread.drop_null()
    return place, None


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def in_words(by_reason: Mapping[str, int], found: Iterable[Offence], contract: Contract, table: Path) -> str:
    """Lines for an error: each reason with its rows, the values found, those known and the remedy; then where they lie.

    `by_reason`: rows of each reason. `table`: the Delta table of quarantined rows.
    """
    totals: dict[str, dict[str, tuple[int, int]]] = {}
    for reason, value, rows, users in found:
        values = totals.setdefault(reason, {})
        before = values.get(value, (0, 0))
        values[value] = before[0] + rows, before[1] + users
    lines = []
    for reason, rows in sorted(by_reason.items(), key=lambda item: (-item[1], item[0])):
        words = [_named(totals[reason])] if reason in totals else []
        if known := _known(reason, contract):
            words.append(f"known: {', '.join(known)}")
        words.append(REMEDIES[reason.split(":")[0]])
        lines.append(f"- {reason}, {rows:,} rows: {'; '.join(words)}.")
    lies = table.resolve()
    lines.append(
        f"Each row is in the Delta table {lies}, with its reason and remedy; "
        f"`deltalake.DeltaTable({str(lies)!r}).to_pandas()` reads it."
    )
    return "\n".join(lines)


def _named(values: Mapping[str, tuple[int, int]]) -> str:
    shared = [(value, rows) for value, (rows, users) in values.items() if users >= NAMED_FROM]
    if not shared:
        return f"no value stands in rows of {NAMED_FROM} users or more, so none is named here"
    shared.sort(key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{value!r} ({rows:,})" for value, rows in shared[:NAMED])
    return f"found {told}" + (" and others" if len(values) > len(shared[:NAMED]) else "")


def _known(reason: str, contract: Contract) -> Sequence[str]:
    if reason in ("unknown_action", "unknown_legal_action"):
        return contract.actions
    return KINDS if reason == "unknown_kind" else ()
