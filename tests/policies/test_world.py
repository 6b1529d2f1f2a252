"""Dynamics of the notification world: what the system sends of itself, arrivals by calendar and demand, the badge."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.behaviour import DAY, HOUR, KINDS, STEP, STEPS_PER_DAY, Behaviour, SimulatorConfig
from policies.calendar import demand, local_hours
from policies.queues import PLACES, Queues
from policies.world import Reviews, World

CONFIG = SimulatorConfig(users=800, days=12)


class Watched(World):
    """A world that notes every notification and every item that leaves a queue."""

    def reset(self) -> None:
        self.notified: list[tuple[str, int, int, float]] = []
        self.expired = self.arrived = 0
        super().reset()

    def _send(self, sender, user, at, relevance, day=-1):
        self.notified += zip([sender] * len(user), user.tolist(), at.tolist(), relevance.tolist(), strict=True)
        super()._send(sender, user, at, relevance, day)

    def _expire(self, step):
        before = (self._queues.expiry > 0).sum()
        super()._expire(step)
        self.expired += int(before - (self._queues.expiry > 0).sum())

    def of(self, sender: str) -> list[tuple[int, int, float]]:
        return [(user, at, relevance) for who, user, at, relevance in self.notified if who == sender]


def played(world: Watched, act: Callable[[Reviews], NDArray[np.int64]]) -> Watched:
    for step in range(world.steps):
        reviews = world.begin(step)
        world.act(act(reviews), np.ones(len(reviews.user)))
    return world


def hold(reviews: Reviews) -> NDArray[np.int64]:
    return np.zeros(len(reviews.user), np.int64)


def send(reviews: Reviews) -> NDArray[np.int64]:
    return reviews.legal[:, 1].astype(np.int64)


@pytest.fixture(scope="module")
def worlds() -> dict[str, Watched]:
    """Nobody switches off and no account closes, so that all are reached."""
    calm = Behaviour(disable=0, close_per_day=0)
    return {name: played(Watched(CONFIG, 5, behaviour=calm), act) for name, act in (("hold", hold), ("send", send))}


def test_near_real_time_notifications_go_out_whatever_the_policy_does(worlds):
    pushes = {name: sorted(world.of("push")) for name, world in worlds.items()}
    assert pushes["hold"] == pushes["send"]
    rate = np.asarray(Behaviour().near_real_time_per_day)[worlds["hold"].segment].sum() * CONFIG.days
    level = np.mean([worlds["hold"]._demand[step] for step in range(worlds["hold"].steps)])
    # At most one a step and fewer on the weekend: 3% of slack, and four standard deviations of a Poisson count.
    assert abs(len(pushes["hold"]) - rate * level) < 0.03 * rate + 4 * np.sqrt(rate)


def test_decisions_are_the_same_in_number_and_time_whatever_the_system_sends():
    quiet = played(Watched(CONFIG, 5, behaviour=Behaviour(near_real_time_per_day=(0, 0, 0), expired_sent=0)), hold)
    loud = played(Watched(CONFIG, 5, behaviour=Behaviour(near_real_time_per_day=(2, 2, 2), close_per_day=0)), send)
    closed = quiet.closed_at[quiet.decisions["user"]] < quiet.end + DAY
    ours = set(zip(quiet.decisions["user"][~closed], quiet.decisions["at"][~closed], strict=True))
    assert ours <= set(zip(loud.decisions["user"], loud.decisions["at"], strict=True))
    assert not quiet.of("push")
    assert len(loud.of("push")) > 10 * CONFIG.users


def test_half_of_what_expires_unsent_is_sent_by_the_system(worlds):
    """Binomial(expired, 1/2) within four standard deviations; sending leaves less to expire."""
    for world in worlds.values():
        sent = len(world.of("expired"))
        assert abs(sent - world.expired / 2) < 4 * np.sqrt(world.expired / 4)
    assert worlds["send"].expired < 0.8 * worlds["hold"].expired
    for share, expected in ((0.0, 0), (1.0, None)):
        world = played(Watched(CONFIG, 5, 200, Behaviour(disable=0, close_per_day=0, expired_sent=share)), hold)
        assert len(world.of("expired")) == (world.expired if expected is None else expected)
        assert world.expired > 0


def test_expired_items_follow_the_last_review_of_their_step_and_come_one_a_step(worlds):
    for world in worlds.values():
        at = np.array([moment for _, moment, _ in world.of("expired")])
        assert (((at - world.start) % STEP) >= 3.5 * HOUR).all()
        both = world.of("push") + world.of("expired")
        steps = [(user, (moment - world.start) // STEP) for user, moment, _ in both]
        assert len(steps) == len(set(steps))


def test_an_item_is_sent_once(worlds):
    """By the policy or by the system, and no other item has its true relevance."""
    items = [(user, relevance) for who in ("policy", "expired") for user, _, relevance in worlds["send"].of(who)]
    assert len(items) == len(set(items)) > 4 * CONFIG.users


def test_nobody_is_reached_while_notifications_are_off():
    """Consent replayed: off from a disable on, until an enable; a delivery lags its send by at most 4 s."""
    world = played(Watched(CONFIG, 6, behaviour=Behaviour(disable=0.2, enable_per_day=0.3)), send)
    events, rows = world.events, []
    for kind, on in (("disable", False), ("enable", True)):
        here = events["kind"] == KINDS.index(kind)
        rows += [(user, at, on) for user, at in zip(events["user"][here], events["at"][here], strict=True)]
    by_user: dict[int, list[tuple[int, bool]]] = {}
    for user, at, on in sorted(rows):
        assert on == (len(by_user.get(user, [])) % 2 == 1)
        by_user.setdefault(user, []).append((at, on))
    assert sum(len(each) for each in by_user.values()) > 300
    for sender in ("policy", "push", "expired"):
        sent = world.of(sender)
        assert sent
        for user, at, _ in sent:
            assert next((on for moment, on in reversed(by_user.get(user, [])) if moment < at), True), (sender, user)


def test_system_notifications_raise_fatigue_by_their_share_and_the_badge_like_any_other():
    """Only near-real-time ones, nobody visits or clicks: badge = their number, fatigue = sum of 2 * 0.5 (1 - r)^2, less
    by exp(-1/24) each step."""
    alone = Behaviour(
        arrivals_per_day=(0, 0, 0), near_real_time_per_day=(1, 1, 1), visits_per_day=(0, 0, 0), disable=0,
        close_per_day=0, click_odds=(-99, -99, -99), fatigue_gain=2.0, fatigue_days=4.0, system_annoyance=0.5,
    )  # fmt: skip
    world = Watched(CONFIG, 7, 50, alone)
    fatigue, badge = world.fatigue.copy(), np.zeros(50)
    for step in range(30):
        seen = len(world.notified)
        reviews = world.begin(step)
        world.act(hold(reviews), np.ones(len(reviews.user)))
        for sender, user, _, relevance in world.notified[seen:]:
            assert sender == "push"
            fatigue[user] += 2 * 0.5 * (1 - relevance) ** 2
            badge[user] += 1
        fatigue *= np.exp(-1 / 24)
    np.testing.assert_allclose(world.fatigue, fatigue, rtol=1e-12)
    np.testing.assert_array_equal(world.badge, badge)
    assert badge.sum() > 150


def test_near_real_time_context_says_whether_one_went_out_in_the_day_before(worlds):
    for world in worlds.values():
        pushed: dict[int, list[int]] = {}
        for user, at, _ in world.of("push"):
            pushed.setdefault(user, []).append(at)
        d = world.decisions
        for user, at, near, relevance in zip(
            *(d[n] for n in ("user", "at", "near_real_time", "relevance")), strict=True
        ):
            if np.isnan(relevance):
                assert np.isnan(near)
            else:
                assert near == any(at - DAY <= moment < at for moment in pushed.get(user, []))
        assert 0.05 < np.nanmean(d["near_real_time"]) < 0.3


def test_queue_golden():
    """Two items, observed 0.3 until 10 and 0.7 until 20: the better one first, then the other, then none."""
    queue = Queues(2)
    user = np.array([1])
    for expiry, relevance, seen in ((10, 0.2, 0.3), (20, 0.9, 0.7)):
        queue.add(user, np.array([expiry]), np.array([relevance]), np.array([seen]))
    place, seen = queue.best(np.array([0, 1]), np.array([5, 5]))
    assert np.isnan(seen[0])
    assert seen[1] == 0.7
    assert queue.take(user, place[1:]) == 0.9
    assert queue.best(user, np.array([9]))[1] == 0.3
    assert np.isnan(queue.best(user, np.array([10]))[1])  # it lives while its expiry is later
    assert queue.expired(9)[0].size == 0
    found, place = queue.expired(10)
    np.testing.assert_array_equal(found, [1])
    assert queue.take(found, place) == 0.2
    assert (queue.expiry == 0).all()
    for expiry in range(1, PLACES + 2):  # one more than there is room for: the first to expire gives way
        queue.add(user, np.array([expiry]), np.zeros(1), np.zeros(1))
    assert sorted(queue.expiry[1]) == list(range(2, PLACES + 2))


def test_demand_is_an_autoregression_of_the_calendar_alone():
    start, days = CONFIG.start_us, 3000
    level = demand(start, 0, days * STEPS_PER_DAY, persistence=0.8, spread=0.15)
    daily = np.array([level[day * STEPS_PER_DAY] for day in range(days)])
    assert all(level[6 * 7 + i] == daily[7] for i in range(STEPS_PER_DAY))
    x = np.log(daily) + 0.15**2 / 2
    # Errors of an AR(1) with 3,000 days: its effective number of days is 3000 (1 - 0.64) / (1 + 0.64) = 660.
    assert abs(x.mean()) < 4 * 0.15 * np.sqrt(1.8 / 0.2 / days)
    assert x.std() == pytest.approx(0.15, rel=4 / np.sqrt(2 * 660))
    assert np.corrcoef(x[1:], x[:-1])[0, 1] == pytest.approx(0.8, abs=4 * 0.6 / np.sqrt(days))
    assert daily.mean() == pytest.approx(1, abs=4 * 0.15 * np.sqrt(1.8 / 0.2 / days))
    # A week later the same days have the same demand, and another seed lives through them too.
    later = demand(start + 7 * DAY, 0, 12, 0.8, 0.15)
    assert later[0] == daily[7]
    assert World(CONFIG, 1, 5)._demand == World(CONFIG, 2, 9)._demand


def test_arrivals_follow_hour_weekday_and_demand():
    """Near-real-time notifications of 4,000 users in each step against the rate: a chi-square over 84 steps."""
    world = World(SimulatorConfig(users=4000, days=14), 8)
    clock = local_hours(world.start, 0, 84)
    np.testing.assert_array_equal(clock[0].weekend, [True, True, False, False, False])  # Monday 02:00 UTC
    calm = Behaviour()
    chi = []
    for step in range(84):
        rate = world._arrivals(step, calm.near_real_time_per_day)
        user, at = world._pushes(step)
        assert ((at - world.start) // STEP == step).all()
        expected = -np.expm1(-rate)
        chi.append((len(user) - expected.sum()) ** 2 / (expected * (1 - expected)).sum())
        hour = clock[step].hour[world.zone]
        factor = np.where(clock[step].weekend, 0.85, 1.06)[world.zone] * (
            1 + 0.8 * np.cos(2 * np.pi * (hour - 19) / 24)
        )
        per_day = np.array(calm.near_real_time_per_day)[world.segment]
        np.testing.assert_allclose(rate, per_day / 6 * factor * world._demand[step], rtol=1e-12)
    assert abs(sum(chi) - 84) < 4 * np.sqrt(2 * 84)
    assert pytest.approx(7) == 5 * 1.06 + 2 * 0.85
    assert pytest.approx(7) == 5 * 0.96 + 2 * 1.1


def test_demand_moves_what_there_is_to_decide():
    counts = []
    for level in (0.5, 2.0):
        world = World(dataclasses.replace(CONFIG, days=3), 3, 400)
        world._demand = dict.fromkeys(world._demand, level)
        world.reset()
        for step in range(world.steps):
            reviews = world.begin(step)
            world.act(send(reviews), np.ones(len(reviews.user)))
        counts.append(int(world.decisions["send_legal"].sum()))
    assert counts[1] > 1.5 * counts[0]
