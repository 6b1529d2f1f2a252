"""The values for which raw rows are quarantined: counted where the rows are, so that an error can name them.

A value may itself say who somebody is, as where a column of addresses was mapped to `action`: it is told only where
the rows of `NAMED_FROM` users hold it. Where row ids were mapped to `user_id` each row is a user: so what does not look
like a label is told by its form alone. Users lie whole in one bucket, so that counts of rows and of users add.
"""

import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
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

Offence = tuple[str, str | None, int, int]
"""Reason, value, its rows, the users whose rows they are; None stands for the values that were not sent."""

TIMES = ("decided_at", "occurred_at", "valid_from", "logged_at")
LABEL = ("unknown_action", "unknown_kind")
PROPENSITY = ("propensity_out_of_range", "forced_propensity")
KEPT_AS = {"missing_feature": "context:", "missing_reward": "outcome:"}
"""What begins the raw table's name of the number that such a reason is about."""
DIGITS = 3
"""Of a label at most: more may be the number of somebody."""
PLAIN = frozenset("_-. ")
"""What a label has besides letters and digits."""
KEPT = frozenset(string.punctuation + " ")
"""What a form shows as it is."""
PARTS = re.compile(r"; (?=[^;=]+=)")
"""Between what `found` has of one column and of the next."""


def offences(rows: pa.Table, reason: pa.ChunkedArray, contract: Contract) -> list[Offence]:
    """What the quarantined `rows` [N] of whole users hold in the column that their `reason` [N] is about, the commonest
    first; nothing of reasons that are about no value."""
    found = []
    for name in pc.unique(reason).to_pylist():
        these = rows.filter(pc.equal(reason, name))
        place, values = _values(name, these, contract)
        if values is None:
            continue
        users = these["user_id"].take(place)
        table = pa.table({"value": pc.utf8_slice_codeunits(values, 0, LONGEST), "user": users})
        counted = table.group_by("value").aggregate([([], "count_all"), ("user", "count_distinct")])
        order = [("count_all", "descending"), ("value", "ascending")]
        ordered = counted.sort_by(order)
        for row in ordered.slice(0, SENT).to_pylist():
            found.append((name, row["value"], row["count_all"], row["user_count_distinct"]))
        if ordered.num_rows > SENT:
            found.append((name, None, pc.sum(ordered["count_all"].slice(SENT)).as_py(), 0))
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
    first, _, name = reason.partition(":")
    if reason in PROPENSITY:
        name = column = "propensity"
    elif first in KEPT_AS:
        column = KEPT_AS[first] + name
    elif reason.removeprefix("missing_") in TIMES:
        name, column = reason.removeprefix("missing_"), ""
    else:
        return place, None
    told = _of_column(_whole(rows["found"]), name, rows.schema)
    if column in rows.column_names:
        told = pc.coalesce(told, pc.cast(_whole(rows[column]), pa.string()))
    return place.filter(pc.is_valid(told)), told.drop_null()


def _of_column(found: pa.Array, name: str, schema: pa.Schema) -> pa.Array:
    """[V] what each `found` [V] has of the column; null where it has nothing."""
    others = {field.name.split(":", 1)[-1] for field in schema if pa.types.is_floating(field.type)} - {name}
    coded = found.dictionary_encode()
    parts = [part_of(text, name, others) for text in coded.dictionary.to_pylist()]
    return pa.array(parts, pa.string()).take(coded.indices)


def part_of(found: str, name: str, others: Collection[str]) -> str | None:
    """`NAME=text` of the column, out of what could not be read of a row (see sources.py); None where it is not there.

    A mapped time is told by the log's own columns, `name=text, name=text`: the part that begins with none of the
    `others`, which are the numbers, is the time's.
    """
    parts = PARTS.split(found)
    own = next((part for part in parts if part.startswith(f"{name}=")), None)
    if own is None and name in TIMES:
        known = {*others, "logged_at"}
        return next((part for part in parts if part.partition("=")[0] not in known), None)
    return own


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def in_words(by_reason: Mapping[str, int], found: Iterable[Offence], contract: Contract, table: Path) -> str:
    """Lines for an error: each reason with its rows, the values found, those known and the remedy; then where they lie.

    `by_reason`: rows of each reason. `table`: the Delta table of quarantined rows.
    """
    totals: dict[str, dict[str | None, tuple[int, int]]] = {}
    for reason, value, rows, users in found:
        values = totals.setdefault(reason, {})
        before = values.get(value, (0, 0))
        values[value] = before[0] + rows, before[1] + users
    lines = []
    for reason, rows in sorted(by_reason.items(), key=lambda item: (-item[1], item[0])):
        words = [_named(reason, totals[reason])] if reason in totals else []
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


def _named(reason: str, values: Mapping[str | None, tuple[int, int]]) -> str:
    # A bucket that did not send all may hold more rows of any value.
    most = None in values
    shared = [(v, rows) for v, (rows, users) in values.items() if v is not None and users >= NAMED_FROM]
    if not shared:
        stands = "is known to stand" if most else "stands"
        return f"no value {stands} in rows of {NAMED_FROM} users or more, so none is named here"
    told: Counter[str] = Counter()
    for value, rows in shared:
        told[_shown(reason, value)] += rows
    named = sorted(told.items(), key=lambda item: (-item[1], item[0]))[:NAMED]
    listed = ", ".join(f"{text!r} ({'at least ' * most}{rows:,})" for text, rows in named)
    return f"found {listed}" + (" and others" if len(values) > len(shared) or len(told) > len(named) else "")


def _shown(reason: str, value: str) -> str:
    """The value, or its form."""
    if reason == "illegal_action":
        # The action and those legal stand in `actions`, or the reason were another.
        return value
    if reason in (*LABEL, "unknown_legal_action"):
        return _told(value)
    number = reason in PROPENSITY
    own = "propensity" if number else reason.partition(":")[2] or reason.removeprefix("missing_")
    if value.startswith(f"{own}="):
        return f"{own}={_told(value.removeprefix(f'{own}='), number)}"
    # The log's own name of a mapped time.
    name, equals, text = value.partition("=")
    return f"{_told(name)}={_told(text)}" if equals else _told(value, number)


def _told(text: str, number: bool = False) -> str:
    """The text where it looks like a label (or, if asked, a short number), else its form."""
    digits = sum(letter.isdigit() for letter in text)
    plain = all(letter.isalpha() or letter.isdigit() or letter in PLAIN for letter in text)
    worded = number or any(letter.isalpha() for letter in text)
    return text if plain and worded and digits <= DIGITS and len(text) < LONGEST else form_of(text)


def form_of(text: str) -> str:
    """The text with 9 for a digit and a for all else but ASCII punctuation and spaces."""
    return "".join(letter if letter in KEPT else "9" if letter.isdigit() else "a" for letter in text)


def _known(reason: str, contract: Contract) -> Sequence[str]:
    if reason in ("unknown_action", "unknown_legal_action"):
        return contract.actions
    return KINDS if reason == "unknown_kind" else ()
