"""The queue of every user: items that wait to be sent, in U x 8 arrays; a free place has expiry 0."""

import numpy as np
from numpy.typing import NDArray

from policies.behaviour import NEVER

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

PLACES = 8


class Queues:
    """Of U users; times are us."""

    def __init__(self, users: int) -> None:
        self.expiry: Integers = np.zeros((users, PLACES), np.int64)
        """[U, 8]"""
        self._relevance, self._seen = np.zeros((users, PLACES)), np.zeros((users, PLACES))

    def add(self, user: Integers, expiry: Integers, relevance: Floats, seen: Floats) -> None:
        """One item for each of n different users; where no place is free it replaces the item next to expire."""
        place = self.expiry[user].argmin(1)
        self.expiry[user, place] = expiry
        self._relevance[user, place], self._seen[user, place] = relevance, seen

    def best(self, user: Integers, at: Integers) -> tuple[Integers, Floats]:
        """[n] place of the item of the highest observed relevance that lives at `at` [n], and that relevance; NaN where
        none does."""
        live = self.expiry[user] > at[:, None]
        score = np.where(live, self._seen[user], -1.0)
        place = score.argmax(1)
        return place, np.where(live.any(1), score[np.arange(len(user)), place], np.nan)

    def expired(self, until: int) -> tuple[Integers, Integers]:
        """Users with items that expire no later than `until`, and the place of the first to expire."""
        gone = (self.expiry > 0) & (self.expiry <= until)
        user = np.flatnonzero(gone.any(1))
        return user, np.where(gone[user], self.expiry[user], NEVER).argmin(1)

    def take(self, user: Integers, place: Integers) -> Floats:
        """[n] true relevance of the items at these places, which are free from now on."""
        self.expiry[user, place] = 0
        return self._relevance[user, place]


def relevance_of(u: Floats) -> Floats:
    """[n] relevance at the quantiles u: Kumaraswamy(2, 3), like Beta(2, 2.4) but with an inverse in closed form."""
    found: Floats = np.sqrt(1 - (1 - u) ** (1 / 3))
    return found


def relevance_at_most(relevance: Floats) -> Floats:
    """[n] its distribution function, 1 - (1 - r^2)^3."""
    found: Floats = 1 - (1 - relevance**2) ** 3
    return found
