"""What each step of the world earns each user: the rewards of `simulator.user_totals`, paid step by step.

U users, K components in the order of REWARDS.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.behaviour import DAY, KINDS, STEP, WEEK
from policies.world import World

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

REWARDS = ("sends", "clicks", "visits", "weekly_active_days", "disables", "delivered")


class Ledger:
    """Reads, and empties, the rows of a world after each of its steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._last_visit: Integers = np.full(world.size, world.start - WEEK)

    def close(self, step: int) -> tuple[Floats, Columns, Columns]:
        """[U, K] what happened in `step`, which has been acted on; and the rows that it added: decisions, events.

        A row counts in the step it happens in and after the user's first review. Summed over an episode this is
        user_totals: clicks on decided sends alone, active days to the end of the log for closed accounts too.
        """
        world = self.world
        decisions, events = world.decisions.take(), world.events.take()
        paid = np.zeros((world.size, len(REWARDS)))
        first = self._first()
        sent = decisions["user"][(decisions["action"] == 1) & (decisions["at"] < world.end)]
        paid[:, 0] = np.bincount(sent, minlength=world.size)
        counted = events["at"] > first[events["user"]]
        for column, kind in ((1, "click"), (2, "session_start"), (4, "disable"), (5, "delivered")):
            mine = counted & (events["kind"] == KINDS.index(kind))
            if kind == "click":
                mine &= events["day"] >= 0
            paid[:, column] = np.bincount(events["user"][mine], minlength=world.size)
        visits = events["kind"] == KINDS.index("session_start")
        until = world.start + (step + 1) * STEP
        paid[:, 3] = self._active(until, first, events["user"][visits], events["at"][visits])
        return paid, decisions, events

    def remaining(self, step: int) -> Floats:
        """[U] active days after `step` that are certain already: those of a user who will never visit again."""
        after = np.maximum(self.world.start + (step + 1) * STEP, self._first())
        left: Floats = np.maximum(np.minimum(self._last_visit + WEEK, self.world.end) - after, 0) / DAY
        return left

    def _first(self) -> Integers:
        """[U] the first review; the end for those whose account closed before it."""
        at = self.world.review_at[0]
        first: Integers = np.where(self.world.closed_at <= at, self.world.end, at)
        return first

    def _active(self, until: int, first: Integers, user: Integers, at: Integers) -> Floats:
        """[U] days of the step, after `first`, that a visit precedes by at most 7 days.

        A week is longer than a step: from the first visit of the step on it is all active, before it while the last
        visit of earlier steps holds.
        """
        low, high = np.maximum(first, until - STEP), np.minimum(until, self.world.end)
        earliest = np.full(self.world.size, high)
        np.minimum.at(earliest, user, at)
        before = np.maximum(np.minimum(self._last_visit + WEEK, earliest) - low, 0)
        after = np.maximum(high - np.maximum(earliest, low), 0)
        np.maximum.at(self._last_visit, user, at)
        active: Floats = np.where(low < high, before + after, 0) / DAY
        return active
