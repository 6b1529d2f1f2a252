"""Several logs as one table, so that user-weeks of all of them can be compared and learned from."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

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
        field.name: np.concatenate([getattr(each, field.name) for each in logs])
        for field in fields(first)
        if field.name not in {"contract", "user", *SOURCE}
        and all(getattr(each, field.name) is not None for each in logs)
    }
    user = np.concatenate([each.user + begin for each, begin in zip(logs, start[:-1], strict=True)])
    fingerprint = hashlib.sha256("".join(each.fingerprint for each in logs).encode()).hexdigest()[:16]
    return replace(first, user=user, fingerprint=fingerprint, **columns)


def renamed(log: Transitions, prefix: str) -> Transitions:
    """The same with `prefix` before every user id."""
    return replace(log, user_id=np.array([prefix + each for each in log.user_id], dtype=object))
