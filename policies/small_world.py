"""The notification world made small enough to solve: one user at a time, one review a day, a queue of one item.

Its transitions are computed from the formulas and constants of `Behaviour`, not estimated. The state, known to no log:
notifications on or off, badge (0 to 3), whole days since the last visit (7: a week or more), fatigue (points, between
which moves are split so that the mean is kept) and the relevance of the item (cell 0: none). Kept out: the hour, the
weekday and demand (at their means), drifting habit (at the user's mean), the noise of observed relevance, closed
accounts, and the items behind the best one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array
from scipy.special import expit, ndtri

from policies.behaviour import DAY, Behaviour
from policies.ledger import REWARDS
from policies.queues import relevance_at_most
from policies.simulator import Decide, View
from policies.tabular import Mdp, solve
from policies.world import World

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

FATIGUE = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0])
EDGES = np.array([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0])
"""Cell k > 0 of relevance holds EDGES[k - 1] <= r < EDGES[k]."""
SHAPE = (2, 4, 8, len(FATIGUE), len(EDGES))
"""on, badge, days, fatigue, item"""
SURVIVES = 0.5
"""Chance that a held item lives on to the next review: items are held one day more on average, as in the world."""
RATES = (-0.967, 0.0, 0.967)
"""Standard normal quantiles 1/6, 1/2 and 5/6: the visit rates within a segment that are solved for."""


@dataclass(frozen=True)
class Moves:
    """One phase of a day: a matrix [S, S], and what it earns in expectation [S, K]."""

    matrix: csr_array
    reward: Floats

    def then(self, other: "Moves") -> "Moves":
        """This phase and another after it."""
        return Moves(self.matrix @ other.matrix, self.reward + self.matrix @ other.reward)


class SmallWorld:
    """A user of a segment (an index) with `visits_per_day` unprompted visits a day when without habit or fatigue."""

    def __init__(self, behaviour: Behaviour, segment: int, visits_per_day: float) -> None:
        self.behaviour, self.segment, self.visits_per_day = behaviour, segment, visits_per_day
        self.on, self.badge, self.days, self._fatigue_at, self.item = np.indices(SHAPE).reshape(len(SHAPE), -1)
        self.fatigue = FATIGUE[self._fatigue_at]
        self.middle = np.append(np.nan, (EDGES[1:] + EDGES[:-1]) / 2)
        self.sendable = (self.on == 1) & (self.item > 0)

    def mdp(self) -> Mdp:
        """The day from review to review under hold and under send; rewards as REWARDS."""
        rest = self._pushed().then(self._expired()).then(self._day()).then(self._arrived())
        states = len(self.on)
        hold = Moves(eye_array(states, format="csr"), np.zeros((states, len(REWARDS))))
        days = [choice.then(rest) for choice in (hold, self._decided())]
        legal = np.column_stack([np.ones(states, np.bool_), self.sendable])
        return Mdp([day.matrix for day in days], np.stack([day.reward for day in days], 1), legal)

    def threshold(self, cell: int) -> Integers:
        """[S] the policy that sends items of `cell` and above wherever it may."""
        send: Integers = (self.sendable & (self.item >= cell)).astype(np.int64)
        return send

    def _moves(self, branches: list[tuple[Floats, dict[str, NDArray[np.generic]]]], **earned: Floats) -> Moves:
        """Branches of probability [S], each with the parts of the state [S] that it changes."""
        states = np.arange(len(self.on))
        rows, columns, chances = [], [], []
        for chance, changed in branches:
            now = {"on": self.on, "badge": self.badge, "days": self.days, "fatigue": self.fatigue, "item": self.item}
            now |= {name: np.broadcast_to(value, states.shape) for name, value in changed.items()}
            fatigue = np.clip(now["fatigue"], FATIGUE[0], FATIGUE[-1])
            above = np.clip(np.searchsorted(FATIGUE, fatigue), 1, len(FATIGUE) - 1)
            share = (fatigue - FATIGUE[above - 1]) / (FATIGUE[above] - FATIGUE[above - 1])
            for point, part in ((above - 1, 1 - share), (above, share)):
                rows.append(states)
                columns.append(np.ravel_multi_index((now["on"], now["badge"], now["days"], point, now["item"]), SHAPE))
                chances.append(chance * part)
        parts = (np.concatenate(each) for each in (chances, rows, columns))
        chance, row, column = parts
        there = chance > 0
        matrix = csr_array((chance[there], (row[there], column[there])), shape=(len(states),) * 2)
        reward = np.zeros((len(states), len(REWARDS)))
        for name, value in earned.items():
            reward[:, REWARDS.index(name)] = value
        return Moves(matrix, reward)

    def _sent(self, happens: Floats, relevance: Floats, weight: Floats, by_policy: bool, **changed: Integers) -> Moves:
        """A notification with probability `happens` [S], its relevance [S, R] with `weight` [S, R] over R values."""
        b, f = self.behaviour, self.fatigue[:, None]
        push = b.click_near_real_time if not by_policy and "item" not in changed else 0.0
        odds = b.click_odds[self.segment] + b.click_relevance * relevance + push - b.click_fatigue * f
        annoyance = (1 - relevance) ** 2 * (1.0 if by_policy else b.system_annoyance)
        off = (1 - expit(odds)) * np.minimum(b.disable * annoyance * np.exp(b.disable_fatigue * f), 0.5)
        click, off, annoyance = ((weight * each).sum(1) for each in (expit(odds), off, annoyance))
        after = {"fatigue": self.fatigue + b.fatigue_gain * annoyance, **changed}
        unseen = after | {"badge": np.minimum(self.badge + 1, 3)}
        zero = np.zeros_like(self.on)
        found = self._moves(
            [
                (1 - happens, {}),
                (happens * click, after | {"badge": zero, "days": zero}),
                (happens * off, unseen | {"on": zero}),
                (happens * (1 - click - off), unseen),
            ],
            visits=happens * click,
            disables=happens * off,
            delivered=happens,
        )
        if by_policy:
            found.reward[:, REWARDS.index("sends")] = happens
            found.reward[:, REWARDS.index("clicks")] = happens * click
        return found

    def _decided(self) -> Moves:
        relevance = np.nan_to_num(self.middle)[self.item][:, None]
        none = np.zeros_like(self.item)
        return self._sent(self.sendable * 1.0, relevance, np.ones_like(relevance), by_policy=True, item=none)

    def _pushed(self) -> Moves:
        weight = np.diff(relevance_at_most(EDGES))
        happens = self.on * -np.expm1(-self.behaviour.near_real_time_per_day[self.segment])
        everywhere = np.ones((len(self.on), 1))
        return self._sent(happens, everywhere * self.middle[1:], everywhere * weight, by_policy=False)

    def _expired(self) -> Moves:
        """What is held lives on, or the system sends it or drops it."""
        relevance = np.nan_to_num(self.middle)[self.item][:, None]
        none, waits = np.zeros_like(self.item), self.item > 0
        sent = (1 - SURVIVES) * self.behaviour.expired_sent * self.sendable
        dropped = np.where(waits, (1 - SURVIVES) - sent, 0.0)
        system = self._sent(sent, relevance, np.ones_like(relevance), by_policy=False, item=none)
        # Of those not sent a part is dropped: its chance given that nothing was sent.
        gone = np.where(sent < 1, dropped / (1 - sent), 0.0)
        drop = self._moves([(1 - gone, {}), (gone, {"item": none})])
        return system.then(drop)

    def _day(self) -> Moves:
        """Unprompted visits, recovery, and switching on again."""
        b = self.behaviour
        prompted = self.visits_per_day * b.habit_gain * b.habit_days
        tired = self.fatigue * b.fatigue_days * -np.expm1(-1 / b.fatigue_days)
        pull = b.habit_pull * prompted / (1 + prompted) - b.fatigue_visits[self.segment] * tired
        rate = self.visits_per_day * np.exp(pull) * (1 + b.badge_pull * self.badge)
        visits, any_ = 6 * -np.expm1(-rate / 6), -np.expm1(-rate)
        # Of the next day, what the week after the last visit still holds; that visit lies half a day into its cell.
        held = np.clip(6.5 - self.days, 0, 1)
        active = (1 - any_) * held + any_ * (held - held**2 / 2 + 0.5)
        rested = {"fatigue": self.fatigue * np.exp(-1 / b.fatigue_days)}
        zero = np.zeros_like(self.on)
        came, not_ = rested | {"badge": zero, "days": zero}, rested | {"days": np.minimum(self.days + 1, 7)}
        again = np.where(self.on == 0, -np.expm1(-b.enable_per_day), 0.0)
        branches = [
            (chance * switch, state | ({"on": zero + 1} if switches else {}))
            for chance, state in ((any_, came), (1 - any_, not_))
            for switches, switch in ((True, again), (False, 1 - again))
        ]
        return self._moves(branches, visits=visits, weekly_active_days=active)

    def _arrived(self) -> Moves:
        """The best of a day's arrivals takes the place of a worse item: P(best <= r) = exp(-rate (1 - F(r)))."""
        rate = self.behaviour.arrivals_per_day[self.segment]
        best = np.diff(np.append(0.0, np.exp(-rate * (1 - relevance_at_most(EDGES)))))
        return self._moves(
            [
                (np.full(len(self.item), chance), {"item": np.maximum(self.item, cell)})
                for cell, chance in enumerate(best)
            ]
        )


def cells(world: World, view: View) -> Integers:
    """[n] the small world's state of each user under review, read from the hidden state of the world."""
    user = view.user
    days = np.clip((view.at - world.visited_at[user]) // DAY, 0, 7)
    fatigue = np.abs(world.fatigue[user, None] - FATIGUE).argmin(1)
    item = np.clip(np.searchsorted(EDGES, view.relevance, "right"), 1, len(EDGES) - 1)
    item = np.where(view.legal[:, 1], item, 0)
    badge = np.minimum(world.badge[user], 3)
    found: Integers = np.ravel_multi_index((np.ones_like(item), badge, days, fatigue, item), SHAPE)
    return found


def oracle(behaviour: Behaviour, weights: Floats, horizon: int) -> Decide:
    """What the small world's optimum does in the world: it reads hidden state, which no policy on a log can.

    `weights` [K] per unit of REWARDS; one solution per segment and third of the visit rates within it; day h of the log
    takes the action of decision h of `horizon`.
    """
    plans = np.stack(
        [
            solve(SmallWorld(behaviour, segment, rate * np.exp(behaviour.visits_spread * z)).mdp(), weights, horizon)[0]
            for segment, rate in enumerate(behaviour.visits_per_day)
            for z in RATES
        ]
    )

    def decide(view: View) -> Floats:
        world, user = view.hidden, view.user
        segment = world.segment[user]
        z = np.log(world.visits_per_day[user] / np.asarray(behaviour.visits_per_day)[segment]) / behaviour.visits_spread
        kind = segment * len(RATES) + np.searchsorted(ndtri([1 / 3, 2 / 3]), z)
        action = plans[kind, (view.at - world.start) // DAY, cells(world, view)]
        send = (action == 1) & view.legal[:, 1]
        return np.column_stack([~send, send]).astype(np.float64)

    return decide
