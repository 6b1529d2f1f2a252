"""An order of users that a seed draws."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from policies.base import Integers


def shuffled(user_id: Iterable[object], seed: int) -> Integers:
    """[U] places of the users in the order of a hash of seed and id: the same users come in the same order wherever in
    the log they lie and whoever else is in it."""
    salt = str(seed).encode()[:16]
    digests = [blake2b(str(name).encode(), salt=salt).digest() for name in user_id]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
