"""The notification world: conservation, exact propensities, common random numbers, rewards, truth, calibration."""

import dataclasses

import numpy as np
import pytest

from models.errors import InputError
from policies.behaviour import DAY, HOUR, KINDS, MINUTE, STEP, Behaviour, SimulatorConfig
from policies.simulator import (
    COMPONENTS,
    Log,
    View,
    always,
    calibration,
    never,
    simulate,
    threshold,
    true_values,
    user_totals,
)
from policies.world import World

CONFIG = SimulatorConfig(users=1500, days=14, truth_users=1500)


@pytest.fixture(scope="module")
def log() -> Log:
    return simulate(CONFIG, 3)


@pytest.fixture(scope="module")
def logs() -> dict[str, Log]:
    return {"never": simulate(CONFIG, 3, never), "always": simulate(CONFIG, 3, always)}


def events_of(log: Log, kind: str) -> dict[str, np.ndarray]:
    rows = log.events["kind"] == KINDS.index(kind)
    return {name: column[rows] for name, column in log.events.items()}


def decided(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Events about a decision: the system's own notifications have none."""
    return {name: column[rows["day"] >= 0] for name, column in rows.items()}


def assert_same(one: Log, other: Log) -> None:
    for part in ("decisions", "events", "users", "candidates"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=f"{part}.{name}")


def test_same_seed_same_rows_and_another_seed_others(log):
    assert_same(log, simulate(CONFIG, 3))
    assert len(simulate(CONFIG, 4).events["at"]) != len(log.events["at"])


def test_first_users_of_a_larger_world_are_those_of_a_smaller_one(log):
    small = simulate(CONFIG, 3, users=400)
    mine = log.decisions["user"] < 400
    for name, column in small.decisions.items():
        np.testing.assert_array_equal(column, log.decisions[name][mine])


def test_decision_times_do_not_depend_on_the_policy(logs):
    """Off-policy evaluation holds them fixed; an account that closes is all that may end them."""
    both = []
    for log in logs.values():
        open_ = ~np.isin(log.decisions["user"], events_of(log, "account_closed")["user"])
        both.append(
            {(u, d): t for u, d, t in zip(*(log.decisions[n][open_] for n in ("user", "day", "at")), strict=True)}
        )
    shared = both[0].keys() & both[1].keys()
    assert len(shared) > 0.99 * 1500 * 14
    assert all(both[0][key] == both[1][key] for key in shared)


def test_every_open_account_is_reviewed_once_a_day_in_waking_hours(log):
    closed_at = np.full(CONFIG.users, log.end)
    closed = events_of(log, "account_closed")
    closed_at[closed["user"]] = closed["at"]
    assert len(closed["at"]) == len(np.unique(closed["user"]))
    world = World(CONFIG, 3)
    open_ = world.review_at[: CONFIG.days] < np.where(closed_at == log.end, log.end + 1, closed_at)
    np.testing.assert_array_equal(np.bincount(log.decisions["user"], minlength=CONFIG.users), open_.sum(0))
    np.testing.assert_array_equal((log.decisions["at"] - log.start) // DAY, log.decisions["day"])
    # Berlin is at UTC+1 in January: the middle of a waking step, 8 to 22 h, is at most two hours from any moment in it.
    berlin = log.users["time_zone"][log.decisions["user"]] == "Europe/Berlin"
    hour = ((log.decisions["at"][berlin] + HOUR) % DAY) / HOUR
    assert hour.min() >= 6
    assert hour.max() < 24
    assert berlin.sum() > 1000


def test_nothing_happens_after_an_account_closes(log):
    closed = events_of(log, "account_closed")
    assert len(closed["at"]) > 0
    at = dict(zip(closed["user"], closed["at"], strict=True))
    for rows in (log.events, log.decisions):
        for user, moment in zip(rows["user"], rows["at"], strict=True):
            assert moment <= at.get(user, log.end)
    assert not np.isin(closed["user"], log.candidates["user"]).any()
    assert len(log.candidates["user"]) == CONFIG.users - len(closed["user"])


def test_what_a_notification_was_to_bring_in_the_next_step_is_lost_with_the_account():
    """Of the system's notifications in the last half hour of a step: an account in five closes each day."""
    restless = Behaviour(close_per_day=0.2, disable=0.2, near_real_time_per_day=(3, 3, 3))
    log = simulate(SimulatorConfig(users=4000, days=14), 1, always, behaviour=restless)
    closed_at = np.full(4000, np.iinfo(np.int64).max)
    closed = events_of(log, "account_closed")
    closed_at[closed["user"]] = closed["at"]
    assert len(closed["user"]) > 3000
    assert (log.events["at"] <= closed_at[log.events["user"]]).all()


def test_events_about_a_decision_follow_a_send(log):
    """Every send is delivered once; it is clicked, dismissed or answered by switching off, at most one of them."""
    decisions = {
        (u, d): (t, a) for u, d, t, a in zip(*(log.decisions[n] for n in ("user", "day", "at", "action")), strict=True)
    }
    answers: dict[tuple[int, int], int] = {}
    for kind, longest in (("delivered", MINUTE), ("click", DAY), ("dismiss", HOUR), ("disable", HOUR)):
        rows = decided(events_of(log, kind))
        for user, day, moment in zip(rows["user"], rows["day"], rows["at"], strict=True):
            at, action = decisions[user, day]
            assert action == 1
            assert at < moment <= at + longest
            if kind != "delivered":
                answers[user, day] = answers.get((user, day), 0) + 1
    assert max(answers.values()) == 1
    sends = {key for key, (_, action) in decisions.items() if action == 1}
    delivered = decided(events_of(log, "delivered"))
    pairs = set(zip(delivered["user"], delivered["day"], strict=True))
    assert len(pairs) == len(delivered["user"])
    closed = set(events_of(log, "account_closed")["user"])
    late = log.end - MINUTE
    assert all(user in closed or decisions[user, day][0] > late for user, day in sends - pairs)


def test_every_click_opens_a_session_a_second_later(log):
    clicks, sessions = events_of(log, "click"), events_of(log, "session_start")
    opened = set(zip(sessions["user"], sessions["at"], strict=True))
    missing = [
        at for user, at in zip(clicks["user"], clicks["at"], strict=True) if (user, at + 1_000_000) not in opened
    ]
    assert len(clicks["at"]) > 300
    assert len(missing) <= 1
    assert (clicks["day"] < 0).sum() > 50


def test_send_is_illegal_exactly_while_off_or_without_an_item(log):
    """Consent replayed event by event."""
    changes = sorted(
        (user, at, kind == "enable")
        for kind in ("disable", "enable")
        for user, at in zip(*(events_of(log, kind)[n] for n in ("user", "at")), strict=True)
    )
    by_user: dict[int, list[tuple[int, bool]]] = {}
    for user, at, on in changes:
        # Switching alternates: off, on, off.
        assert on == (len(by_user.get(user, [])) % 2 == 1)
        by_user.setdefault(user, []).append((at, on))
    d = log.decisions
    for user, at, legal, relevance in zip(d["user"], d["at"], d["send_legal"], d["relevance"], strict=True):
        on = next((state for moment, state in reversed(by_user.get(user, [])) if moment < at), True)
        assert legal == (on and not np.isnan(relevance))
    assert by_user
    assert not d["send_legal"].all()


def test_logged_propensities_are_exact(log):
    """epsilon 0.3, threshold 0.3: 0.85 for the greedy action, 0.15 for the other, 1 where only hold is legal."""
    d = log.decisions
    greedy = (d["relevance"] > 0.3).astype(int)
    expected = np.where(d["send_legal"], np.where(d["action"] == greedy, 0.85, 0.15), 1.0)
    np.testing.assert_allclose(d["propensity"], expected, atol=1e-12)
    assert (d["action"][~d["send_legal"]] == 0).all()
    for greedy_action, probability in ((1, 0.85), (0, 0.15)):
        rows = d["send_legal"] & (greedy == greedy_action)
        error = np.sqrt(0.85 * 0.15 / rows.sum())
        assert abs(d["action"][rows].mean() - probability) < 4 * error
    weights = np.where(d["action"] == 1, d["send_legal"] / d["propensity"], 0.0)[d["send_legal"]]
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(len(weights))


def test_a_view_shows_only_what_was_logged_before_the_review():
    shown = {"decisions": 0, "events": 0, "late": 0}

    def decide(view: View) -> np.ndarray:
        limit = dict(zip(view.user, view.at, strict=True))
        decisions, events = view.decisions(), view.events()
        assert all(at < limit[user] for user, at in zip(decisions["user"], decisions["at"], strict=True))
        for user, at, logged in zip(events["user"], events["at"], events["logged"], strict=True):
            assert at < limit[user]
            assert logged <= limit[user]
        shown["decisions"] += len(decisions["at"])
        shown["events"] += len(events["at"])
        held_back = view._events["logged"] > view._limit[view._events["user"]]
        shown["late"] += int((held_back & (view._events["at"] < view._limit[view._events["user"]])).sum())
        np.testing.assert_array_equal(view.users()["user"], view.user)
        return threshold(0.3, 0.3)(view)

    simulate(dataclasses.replace(CONFIG, days=6), 5, decide, users=120)
    assert min(shown.values()) > 0


def test_everything_before_the_end_is_logged_by_the_end(log):
    events = log.events
    assert (events["at"] >= log.start).all()
    assert (events["at"] < log.end).all()
    assert (events["logged"] >= events["at"]).all()
    assert (events["logged"] <= log.end).all()
    delay = events["logged"] - events["at"]
    assert delay.max() > 12 * HOUR
    assert (delay > HOUR).mean() < 0.05
    settings = np.isin(events["kind"], [KINDS.index(k) for k in ("disable", "enable", "account_closed")])
    assert (delay[settings] == 0).all()


def test_items_leave_the_queue_when_sent_and_stay_when_held():
    """The same item may be reviewed again only after a hold; held items expire within 60 hours."""
    config = dataclasses.replace(CONFIG, days=10)
    for decide, repeats in ((never, True), (always, False)):
        d = simulate(config, 11, decide).decisions
        has = ~np.isnan(d["relevance"]) & d["send_legal"]
        seen: dict[tuple[int, float], list[int]] = {}
        for user, relevance, at in zip(d["user"][has], d["relevance"][has], d["at"][has], strict=True):
            if 0 < relevance < 1:
                seen.setdefault((user, relevance), []).append(at)
        assert (max(len(times) for times in seen.values()) > 1) == repeats
        assert max(times[-1] - times[0] for times in seen.values()) <= 60 * HOUR


def test_user_totals_against_a_naive_computation(log):
    totals = user_totals(log)
    d = log.decisions
    clicks = decided(events_of(log, "click"))
    sessions, disables, delivered = (events_of(log, kind) for kind in ("session_start", "disable", "delivered"))
    for user in range(0, CONFIG.users, 7):
        mine = d["user"] == user
        first = d["at"][mine].min()
        assert totals["days"][user] == pytest.approx((log.end - first) / DAY, abs=1e-12)
        assert totals["sends"][user] == ((d["action"][mine] == 1) & (d["at"][mine] < log.end)).sum()
        visits = np.sort(sessions["at"][sessions["user"] == user])
        assert totals["visits"][user] == (visits > first).sum()
        sent_at = dict(zip(d["day"][mine], d["at"][mine], strict=True))
        rows = clicks["user"] == user
        within = [at - sent_at[day] <= DAY for at, day in zip(clicks["at"][rows], clicks["day"][rows], strict=True)]
        assert totals["clicks"][user] == sum(within)
        for name, rows in (("disables", disables), ("delivered", delivered)):
            assert totals[name][user] == ((rows["user"] == user) & (rows["at"] > first)).sum()
        # Sweep over every moment at which activity can change, and ask at the middle of each piece.
        cuts = np.unique(np.clip(np.concatenate([visits, visits + 7 * DAY, [first, log.end]]), first, log.end))
        middle = (cuts[:-1] + cuts[1:]) / 2
        active = [bool(((visits < tau) & (visits >= tau - 7 * DAY)).any()) for tau in middle]
        assert totals["weekly_active_days"][user] == pytest.approx(np.diff(cuts)[active].sum() / DAY, abs=1e-9)


def test_user_totals_golden():
    """One user, reviews on days 1, 2 (sends) and 5 (hold), end on day 14; visits on days 0.5, 3 and 12.

    Covered: 14 - 1 = 13 days. The visit on day 0.5 lasts to 7.5, that on day 3 to 10: active in (1, 10] and (12, 14],
    9 + 2 = 11 days. Of the clicks, 24 h after the send of day 1 and 24 h and 1 us after that of day 2, one counts; a
    third, on what the system sent, does not. Of the notifications delivered on days 0.9, 1 (a second later), 2 and 4,
    three. The visit before the first review does not count.
    """
    rows = [
        ("session_start", int(0.5 * DAY), -1), ("delivered", int(0.9 * DAY), -1), ("delivered", DAY + 1_000_000, 1),
        ("click", 2 * DAY, 1), ("delivered", 2 * DAY + 1_000_000, 2), ("session_start", 3 * DAY, -1),
        ("click", 3 * DAY + 1, 2), ("disable", 4 * DAY, 2), ("delivered", 4 * DAY, -1), ("click", 4 * DAY + 5, -1),
        ("session_start", 12 * DAY, -1),
    ]  # fmt: skip
    kind, at, day = (np.array(column) for column in zip(*((KINDS.index(k), t, d) for k, t, d in rows), strict=True))
    log = Log(
        {"user": np.zeros(3, int), "at": np.array([1, 2, 5]) * DAY, "day": np.array([1, 2, 5]),
         "action": np.array([1, 1, 0])},
        {"user": np.zeros(len(rows), int), "at": at, "kind": kind, "day": day},
        {"user": np.zeros(1, int)}, {}, np.empty(0), 0, 14 * DAY,
    )  # fmt: skip
    found = {name: float(value[0]) for name, value in user_totals(log).items()}
    assert found == {
        "days": 13, "sends": 2, "clicks": 1, "visits": 2, "weekly_active_days": 11, "disables": 1, "delivered": 3,
    }  # fmt: skip


def test_identical_policies_differ_by_exactly_zero():
    truth = true_values(CONFIG, 2, {"twin": threshold(CONFIG.threshold, CONFIG.epsilon)})
    for component in COMPONENTS:
        assert truth["twin"][component]["value"] == truth["logging"][component]["value"]
        assert truth["twin"][component]["difference"] == 0
        assert truth["twin"][component]["difference_standard_error"] == 0


def test_common_random_numbers_shrink_the_error_of_a_difference():
    truth = true_values(CONFIG, 2, {"near": threshold(0.35, 0.3)})["near"]["weekly_active_days"]
    assert 0 < truth["difference_standard_error"] < truth["standard_error"] / 4


def test_true_value_agrees_with_another_seeds_log(log):
    """Two independent samples of users: the difference in units of its own error is unremarkable."""
    truth = true_values(CONFIG, 77, {})["logging"]
    totals = user_totals(log)
    for component in COMPONENTS:
        top, bottom, scale = (
            (totals["clicks"], totals["sends"], 1) if component == "ctr" else (totals[component], totals["days"], 7)
        )
        value = scale * top.sum() / bottom.sum()
        error = scale * (top - bottom * top.sum() / bottom.sum()).std() / bottom.mean() / np.sqrt(len(top))
        assert abs(value - truth[component]["value"]) < 3.5 * np.hypot(error, truth[component]["standard_error"])
        assert truth[component]["standard_error"] == pytest.approx(error, rel=0.4)


def test_standard_error_of_a_difference_matches_its_spread_over_seeds():
    config = dataclasses.replace(CONFIG, truth_users=200, days=6)
    runs = [true_values(config, seed, {"always": always})["always"] for seed in range(16)]
    for component in ("clicks", "visits", "weekly_active_days", "ctr"):
        spread = np.std([run[component]["difference"] for run in runs], ddof=1)
        stated = np.sqrt(np.mean([run[component]["difference_standard_error"] ** 2 for run in runs]))
        # A standard deviation of 16 draws is good to 18%; 0.6 to 1.7 is three of those.
        assert 0.6 < stated / spread < 1.7, component


def test_a_ratio_without_denominator_is_none():
    truth = true_values(dataclasses.replace(CONFIG, truth_users=50, days=3), 1, {"never": never})["never"]["ctr"]
    assert truth == {"value": None, "standard_error": None, "difference": None, "difference_standard_error": None}


def test_calibration_and_known_directions():
    """The ranges a real product would show, and what over-sending, silence and restraint do to them."""
    config = SimulatorConfig(users=5000, truth_users=5000)
    found = calibration(config, 7)
    assert 0.4 < found["weekly_active_share"] < 0.7
    segments = [found[f"weekly_active_share_{name}"] for name in ("dormant", "casual", "core")]
    assert segments == sorted(segments)
    assert segments[0] < 0.5
    assert segments[2] > 0.9
    assert 0.03 < found["click_through_rate"] < 0.10
    assert 0.01 < found["disabled_share"] < 0.06
    assert 0 < found["closed_share"] < 0.02
    truth = true_values(config, 7, {"never": never, "always": always, "better": threshold(0.45)})

    def relative(name: str, component: str) -> float:
        return truth[name][component]["difference"] / truth["logging"][component]["value"]

    def shown(name: str, component: str) -> float:
        return truth[name][component]["difference"] / truth[name][component]["difference_standard_error"]

    # What companies report: sessions +0.2 to +3%, volume -2 to -35%.
    assert -0.35 < relative("better", "sends") < -0.1
    assert -0.35 < relative("better", "delivered") < -0.02
    assert 0.002 < relative("better", "visits") < 0.03
    assert 0.002 < relative("better", "weekly_active_days") < 0.03
    assert shown("better", "visits") > 4
    assert shown("better", "weekly_active_days") > 4
    assert abs(relative("better", "clicks")) < 0.1
    assert relative("always", "sends") > 0.2
    assert shown("always", "disables") > 4
    assert shown("always", "weekly_active_days") < -4
    assert shown("never", "clicks") < -10
    assert shown("never", "weekly_active_days") < -4
    # The system goes on sending: silence of the policy is not silence.
    assert -0.6 < relative("never", "delivered") < -0.1


def test_without_fatigue_sending_more_brings_more_visits():
    config = SimulatorConfig(users=2000, truth_users=2000, fatigue_effect=0)
    assert true_values(config, 5, {"always": always})["always"]["visits"]["difference"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"users": 0}, r"simulate.users is 0; it must be 1 or more"),
        ({"days": 0}, r"simulate.days is 0"),
        ({"truth_users": -1}, r"simulate.truth_users is -1"),
        ({"epsilon": 1.5}, r"simulate.epsilon is 1.5; it must lie in \[0, 1\]"),
        ({"threshold": -0.1}, r"simulate.threshold is -0.1"),
        ({"fatigue_effect": -1}, r"simulate.fatigue_effect is -1"),
        ({"start": "5 January"}, r"simulate.start is '5 January'; write a day as YYYY-MM-DD"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(InputError, match=message):
        SimulatorConfig(**fields)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda view: np.ones(len(view.user)), "returned probabilities of shape"),
        (lambda view: np.tile([0.5, 0.5], (len(view.user), 1)), r"legal actions \[True, False\]"),
        (lambda view: np.tile([0.4, 0.0], (len(view.user), 1)), "must be 0 on illegal actions and sum to 1"),
        (lambda view: np.full((len(view.user), 2), np.nan), r"returned \[nan, nan\]"),
    ],
)
def test_a_policy_that_breaks_its_word_is_refused(decide, message):
    with pytest.raises(InputError, match=message):
        simulate(dataclasses.replace(CONFIG, days=2), 1, decide, users=50)


def test_world_refuses_a_negative_seed_and_acting_before_a_step_begins():
    with pytest.raises(InputError, match="seed is -1"):
        World(CONFIG, -1)
    world = World(CONFIG, 0, users=3)
    with pytest.raises(InputError, match="a step begins first"):
        world.act(np.zeros(0, np.int64), np.zeros(0))


def test_reset_is_a_fresh_world():
    world = World(CONFIG, 9, users=60)

    def run() -> tuple[np.ndarray, np.ndarray]:
        for step in range(30):
            reviews = world.begin(step)
            assert ((reviews.at - world.start) // STEP == step).all()
            world.act(reviews.legal[:, 1].astype(np.int64), np.ones(len(reviews.user)))
        return world.events["at"].copy(), world.badge.copy()

    first = run()
    world.reset()
    for one, other in zip(first, run(), strict=True):
        np.testing.assert_array_equal(one, other)
