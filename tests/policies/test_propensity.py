"""Estimated propensities: the truth recovered, nobody's own choices in their estimate, bounds, calibration, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from models.errors import InputError
from models.table import Transitions
from policies.propensity import (
    HELD_OUT,
    Estimates,
    PropensityConfig,
    describe,
    estimate,
    logged_calibration,
    reliability,
)

CONFIG = PropensityConfig()
NAMES = ("hold", "send", "push")


def log(table_of, users: int, per: int, actions: int, seed: int = 1) -> tuple[Transitions, np.ndarray]:
    """A log whose propensities were lost, and mu [N, A] that drew it; every third user lies outside training.

    Two actions: mu(send) is 0.8 where the first feature is above 0.3, else 0.2; 0.5 where the second is above 1. Three:
    a softmax of two features over the legal actions, push being legal in 70% of decisions. A third feature is noise.
    """
    draw = np.random.default_rng(seed)
    n = users * per
    state = draw.normal(size=(n, 3))
    legal = np.ones((n, actions), dtype=bool)
    if actions == 2:
        send = np.where(state[:, 1] > 1, 0.5, np.where(state[:, 0] > 0.3, 0.8, 0.2))
        mu = np.stack([1 - send, send], axis=1)
    else:
        legal[:, 2] = draw.random(n) < 0.7
        mu = np.exp(np.stack([0 * state[:, 0], state[:, 0], -state[:, 1] - 0.5], axis=1)) * legal
        mu /= mu.sum(axis=1, keepdims=True)
    # What the policy knew and the log lost: a hundredth of the noise feature.
    state[draw.random(n) < 0.01, 2] = np.nan
    action = (draw.random(n)[:, None] > mu.cumsum(axis=1)).sum(axis=1)
    names = [f"u{user:04d}" for user in range(users) for _ in range(per)]
    split = np.repeat(np.array([0, 0, 1, 0, 0, 2])[np.arange(users) % 6], per)
    table = table_of(
        names, action, np.full(n, np.nan), np.zeros(n), state=state, legal=legal, split=split, actions=NAMES[:actions]
    )
    return table, mu


@pytest.fixture(scope="module")
def two(table_of) -> tuple[Transitions, np.ndarray, Estimates]:
    table, mu = log(table_of, 900, 24, 2)
    return table, mu, estimate(table, CONFIG, 3)


@pytest.fixture(scope="module")
def three(table_of) -> tuple[Transitions, np.ndarray, Estimates]:
    table, mu = log(table_of, 900, 24, 3)
    return table, mu, estimate(table, CONFIG, 3)


@pytest.mark.parametrize("which", ["two", "three"])
def test_the_truth_is_recovered(which, request) -> None:
    """Mean |estimate - mu| well below that of the base rates, and what is left foretells about as well as mu itself."""
    table, mu, found = request.getfixturevalue(which)
    assert found.rows.tolist() == list(range(len(mu)))
    base = found.share * table.legal
    off = np.abs(found.probability - mu).mean()
    assert off < 0.03
    assert off < 0.25 * np.abs(base / base.sum(axis=1, keepdims=True) - mu).mean()
    at = (np.arange(len(mu)), table.action)
    calibration = describe(table, found, CONFIG, 3)["calibration"]
    for key, rows in (("cross_fitted", found.fold != HELD_OUT), ("held_out", found.fold == HELD_OUT)):
        true_loss = -np.log(mu[at][rows & (table.legal.sum(axis=1) > 1)]).mean()
        assert calibration[key]["ece"] < 0.025, key
        # In nats; half the mean square error over mu (1 - mu) is 0.01 where estimates are off by 0.06.
        assert true_loss - 0.02 < calibration[key]["log_loss"] < true_loss + 0.015, key
        assert calibration[key]["base_log_loss"] > true_loss + 0.1, key


@pytest.mark.parametrize("which", ["two", "three"])
def test_estimates_are_probabilities_over_the_legal_actions(which, request) -> None:
    table, _, found = request.getfixturevalue(which)
    np.testing.assert_allclose(found.probability.sum(axis=1), 1, atol=1e-12)
    assert (found.probability[~table.legal] == 0).all()
    assert found.probability[table.legal].min() >= CONFIG.floor - 1e-15
    assert (found.propensity == found.probability[np.arange(len(table.action)), table.action]).all()


def test_a_users_own_choices_never_reach_its_estimate(table_of) -> None:
    """The actions of a user turned round: its own probabilities stay to the last bit, those of other folds move."""
    table, _ = log(table_of, 120, 20, 2)
    first = estimate(table, CONFIG, 3)
    for who in (0, 55, 118):
        own = table.user == who
        assert (table.split[own] == 0).all()
        turned = replace(table, action=np.where(own, 1 - table.action, table.action))
        second = estimate(turned, CONFIG, 3)
        fold = first.fold[own][0]
        same = (first.probability == second.probability).all(axis=1)
        assert same[first.fold == fold].all()
        assert not same[first.fold != fold].all()


def test_users_outside_training_teach_nothing(table_of) -> None:
    table, _ = log(table_of, 120, 20, 2)
    other = table.split != 0
    turned = replace(table, action=np.where(other, 1 - table.action, table.action))
    np.testing.assert_array_equal(estimate(table, CONFIG, 3).probability, estimate(turned, CONFIG, 3).probability)
    assert set(estimate(table, CONFIG, 3).fold[other]) == {HELD_OUT}


def test_folds_hold_whole_users_and_are_even(two) -> None:
    table, _, found = two
    training = np.unique(table.user[table.split == 0])
    of_user = np.array([np.unique(found.fold[table.user == user]) for user in training])
    assert of_user.shape == (len(training), 1)
    assert np.bincount(of_user[:, 0]).tolist() == [120] * 5


def test_the_same_seed_gives_the_same_and_another_other_folds(table_of) -> None:
    table, _ = log(table_of, 120, 20, 2)
    first, again, other = (estimate(table, CONFIG, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.probability, again.probability)
    assert (first.fold != other.fold).any()


def test_known_propensities_are_left_alone_and_teach_nothing(table_of) -> None:
    """An arm of the log that says its own probabilities is no evidence about the one that does not."""
    table, _ = log(table_of, 240, 20, 2)
    arm = np.arange(len(table.action)) % 2 == 0
    known = replace(table, propensity=np.where(arm, 0.5, np.nan))
    flipped = replace(known, action=np.where(arm, 1 - table.action, table.action))
    first, second = estimate(known, CONFIG, 3), estimate(flipped, CONFIG, 3)
    assert first.rows.tolist() == np.flatnonzero(~arm).tolist()
    np.testing.assert_array_equal(first.probability, second.probability)


def test_warm_up_rows_are_estimated_and_teach_nothing(table_of) -> None:
    table, _ = log(table_of, 240, 20, 2)
    warm = replace(table, warm_up=np.arange(len(table.action)) % 20 < 4)
    flipped = replace(warm, action=np.where(warm.warm_up, 1 - table.action, table.action))
    first, second = estimate(warm, CONFIG, 3), estimate(flipped, CONFIG, 3)
    assert len(first.rows) == len(table.action)
    np.testing.assert_array_equal(first.probability, second.probability)


def test_where_one_action_is_legal_it_is_certain(table_of) -> None:
    table, _ = log(table_of, 120, 20, 2)
    forced = np.arange(len(table.action)) % 7 == 0
    legal = np.where(forced[:, None], np.array([True, False]), table.legal)
    found = estimate(replace(table, legal=legal, action=np.where(forced, 0, table.action)), CONFIG, 3)
    assert (found.propensity[forced] == 1).all()
    assert (found.propensity[~forced] < 1).all()


def test_an_action_that_only_a_configured_constraint_forbids_was_possible(table_of) -> None:
    """The log took it, so its probability is between 0 and 1; and such rows alone show one action, so they teach
    nothing."""
    table, _ = log(table_of, 240, 20, 2)
    night = np.arange(len(table.action)) % 10 == 0
    legal = np.where(night[:, None], np.array([True, False]), table.legal)
    found = estimate(replace(table, legal=legal), CONFIG, 3)
    sent = night & (table.action == 1)
    assert sent.sum() > 100
    assert ((found.propensity[sent] >= CONFIG.floor) & (found.propensity[sent] < 1)).all()
    np.testing.assert_allclose(found.share, np.bincount(table.action[~night & (table.split == 0)]) / (
        ~night & (table.split == 0)
    ).sum())  # fmt: skip


def test_the_floor_bounds_every_estimate_and_is_counted(table_of) -> None:
    """A rule with 0.3% of exceptions in each direction: what is estimated below 2% is put there and counted."""
    draw = np.random.default_rng(0)
    users, per = 300, 40
    n = users * per
    state = draw.normal(size=n)
    action = ((state > 0) ^ (draw.random(n) < 0.003)).astype(int)
    names = [f"u{user:04d}" for user in range(users) for _ in range(per)]
    table = table_of(names, action, np.full(n, np.nan), np.zeros(n), state=state, split=np.zeros(n))
    found = estimate(table, PropensityConfig(floor=0.02), 0)
    surprising = action != (state > 0)
    assert found.propensity.min() == 0.02
    assert 0 < found.floored <= surprising.sum() + 5
    assert found.floored == (found.propensity == 0.02).sum()
    np.testing.assert_allclose(found.probability.sum(axis=1), 1, atol=1e-12)


def test_reliability_by_hand() -> None:
    """Four decisions of two actions. send is foretold .2 .2 .9 and once .2 where hold alone is legal (left out).

    Bins of send: [.2, .3) holds .2 .2, one of which sent: observed .5; [.9, 1] holds .9, sent: observed 1.
    ece = (2 |.2 - .5| + 1 |.9 - 1|) / 3 = .7 / 3, and of hold = 1 - send the same. log_loss = -(ln .8 + ln .2 + ln .9)
    / 3; the base rate of send is .4, its loss -(ln .6 + ln .4 + ln .4) / 3.
    """
    send = np.array([0.2, 0.2, 0.9, 0.2])
    found = reliability(
        np.stack([1 - send, send], axis=1),
        np.array([0, 1, 1, 0]),
        np.array([[True, True], [True, True], [True, True], [True, False]]),
        np.array([0.6, 0.4]),
        ("hold", "send"),
    )
    assert found is not None
    assert found["decisions"] == 3
    assert found["actions"]["send"]["bins"] == [
        {"predicted": pytest.approx(0.2), "observed": 0.5, "n": 2},
        {"predicted": pytest.approx(0.9), "observed": 1.0, "n": 1},
    ]
    assert [found["actions"][name]["ece"] for name in ("hold", "send")] == pytest.approx([0.7 / 3, 0.7 / 3])
    assert found["ece"] == pytest.approx(0.7 / 3)
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.2) + np.log(0.9)) / 3)
    assert found["base_log_loss"] == pytest.approx(-(np.log(0.6) + 2 * np.log(0.4)) / 3)


def test_calibration_of_logged_propensities_finds_wrong_ones(table_of) -> None:
    """True ones are within noise; those of a rule read upside down are far off, in bins and in mean weight.

    They are 0.2, 0.5 and 0.8, at edges of bins: 1 - 0.8 belongs with 0.2.
    """
    table, mu = log(table_of, 600, 20, 2)
    at = (np.arange(len(mu)), table.action)
    assert logged_calibration(table) is None
    right = logged_calibration(replace(table, propensity=mu[at]))
    wrong = logged_calibration(replace(table, propensity=1 - mu[at]))
    assert right["reliability"]["ece"] < 0.02
    assert [each["n"] > 1000 for each in right["reliability"]["actions"]["send"]["bins"]] == [True] * 3
    assert wrong["reliability"]["ece"] > 0.2
    for each in right["mean_weights"].values():
        assert abs(each["mean_weight"] - 1) < 4 * each["se"]
    assert min(abs(each["mean_weight"] - 1) / each["se"] for each in wrong["mean_weights"].values()) > 10


def test_of_three_actions_the_log_tells_the_mean_weights_alone(table_of) -> None:
    table, mu = log(table_of, 300, 20, 3)
    found = logged_calibration(replace(table, propensity=mu[np.arange(len(mu)), table.action]))
    assert found["reliability"] is None
    assert set(found["mean_weights"]) == set(NAMES)


def test_what_is_reported_is_json_and_counts(two) -> None:
    table, _, found = two
    report = json.loads(json.dumps(describe(table, found, CONFIG, 3), allow_nan=False))
    assert (report["decisions"], report["estimated"], report["users"]) == (900 * 24, 900 * 24, 900)
    assert report["model"]["seed"] == 3
    assert report["calibration"]["cross_fitted"]["decisions"] == 600 * 24
    assert report["calibration"]["held_out"]["decisions"] == 300 * 24
    assert report["calibration"]["logged"] is None


def broken(table: Transitions, case: str) -> Transitions:
    n = len(table.action)
    changes = {
        "all known": {"propensity": np.full(n, 0.5)},
        "no training user": {"split": np.full(n, 2, dtype=np.int8)},
        "one action": {"action": np.zeros(n, dtype=np.int64)},
        "no choice": {"action": np.zeros(n, dtype=np.int64), "legal": np.tile([True, False], (n, 1))},
        "rare action": {"action": (np.arange(n) == 7).astype(np.int64)},
    }
    return table.where(table.user < 5) if case == "few users" else replace(table, **changes[case])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("all known", "all 2400 decisions have one, nothing is to be estimated; go on with `tactful train`"),
        ("few users", "4 users of the training split have decisions without a propensity, 5 folds need as many"),
        ("no training user", "0 users of the training split"),
        ("one action", "only 'hold' was taken in the 1600 training decisions"),
        ("no choice", "no decision had a choice in the 0 training decisions"),
        ("rare action", "'send' was taken 1 times in training, in 1 of 5 folds of users.*lower propensity.folds"),
    ],
)
def test_logs_that_cannot_be_estimated_are_refused(table_of, case, message) -> None:
    with pytest.raises(InputError, match=message):
        estimate(broken(log(table_of, 120, 20, 2)[0], case), CONFIG, 0)


def test_a_floor_too_high_for_the_actions_is_refused(table_of) -> None:
    with pytest.raises(InputError, match=r"floor is 0.4; with 3 actions it must be below 1 / 3"):
        estimate(log(table_of, 30, 5, 3)[0], PropensityConfig(floor=0.4), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 2}, "propensity.folds is 2; 3 or more"),
        ({"trees": 0}, "propensity.trees is 0"),
        ({"floor": 0.0}, "propensity.floor is 0.0"),
        ({"floor": 0.5}, "propensity.floor is 0.5"),
        ({"floor": float("nan")}, "propensity.floor is nan"),
    ],
)
def test_configuration_out_of_range_is_named(change, message) -> None:
    with pytest.raises(InputError, match=message):
        PropensityConfig(**change)
