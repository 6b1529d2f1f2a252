"""Several logs as one table, so that user-weeks of all of them can be compared and learned from."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import SOURCE, Transitions


def stacked(logs: Sequence[Transitions]) -> Transitions:
    """All rows of `logs`, one after another; the users of different logs are different users.

    The fingerprint is a hash of theirs. Raises InputError where the contracts differ or two logs share a user id.
    """
    first = logs[0]
    for each in logs[1:]:
        if each.contract != first.contract:
            raise InputError("logs: they differ in actions, features or rewards; make them by one configuration.")
    ids = np.concatenate([each.user_id for each in logs])
    if len(set(ids.tolist())) < len(ids):
        raise InputError("logs: two of them share a user id; rename the users of one, as of two samples.")
    start = np.cumsum([0, *(len(each.user_id) for each in logs)])
    columns: dict[str, Any] = {
        field.name: column_of(logs, field.name)
        for field in fields(first)
        if field.name not in {"contract", "user", *SOURCE}
    }
    user = np.concatenate([each.user + begin for each, begin in zip(logs, start[:-1], strict=True)])
    fingerprint = hashlib.sha256("".join(each.fingerprint for each in logs).encode()).hexdigest()[:16]
    return replace(first, user=user, fingerprint=fingerprint, **columns)


def column_of(logs: Sequence[Transitions], name: str) -> NDArray[Any] | None:
    """One column of all rows; None where one of `logs` lacks it."""
    parts = [getattr(each, name) for each in logs]
    return None if any(part is None for part in parts) else np.concatenate(parts)


def renamed(log: Transitions, prefix: str) -> Transitions:
    """The same with `prefix` before every user id."""
    return replace(log, user_id=np.array([prefix + each for each in log.user_id], dtype=object))
