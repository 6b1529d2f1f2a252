"""Click threshold and visit uplift: known models recovered, volume met, the test split unread, bad logs refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from models.errors import InputError
from models.table import Transitions
from policies.base import checked_probabilities
from policies.baselines import NAMES, fit_baselines, fit_click_threshold, fit_survival_uplift, survival
from policies.baselines.design import LEAST_ROWS, Design
from policies.baselines.survival import INSTANT, VisitModel, next_visit
from policies.baselines.volume import UNTRIED
from policies.evaluate import EvaluateConfig


def clickable(table_of, logit, n: int = 12_000, actions: tuple[str, ...] = ("hold", "send"), seed: int = 2):
    """A log of single decisions of n users, uniformly random, whose sends are clicked with log odds logit(x, action);
    x is three standard normal features, the third noise with holes. Of ten users six train, two validate."""
    draw = np.random.default_rng(seed)
    state = draw.normal(size=(n, 3))
    action = draw.integers(len(actions), size=n)
    clicked = (draw.random(n) < 1 / (1 + np.exp(-logit(state, action)))).astype(float)
    state[draw.random(n) < 0.05, 2] = np.nan
    split = np.array([0, 0, 0, 1, 2, 0, 0, 0, 1, 2])[np.arange(n) % 10]
    table = table_of(
        [f"u{i:05d}" for i in range(n)],
        action,
        np.full(n, 1 / len(actions)),
        clicked * (action > 0),
        rewards=("clicks",),
        actions=actions,
        state=state,
        legal=np.ones((n, len(actions)), bool),
        split=split,
    )
    return replace(table, clicked=np.where(action > 0, clicked, np.nan)), state


SEND = ((-0.3, -0.25),)
"""(d, g) of the only send."""


def visiting(table_of, family: str, users: int = 9000, effects=SEND, seed: int = 5) -> Transitions:
    """A decision of every user and the nine days after it, in which the next visit comes T days after the decision:
    ln T = 0.5 + 0.4 x1 - 0.3 x2 + 1_send (d + g x1) + 0.7 W. Later rows leave no choice, so that no fit has them.
    """
    draw = np.random.default_rng(seed)
    x, send = draw.normal(size=(users, 2)), draw.integers(len(effects) + 1, size=users)
    noise = np.log(draw.exponential(size=users)) if family == "weibull" else draw.normal(size=users)
    d, g = np.array([(0.0, 0.0), *effects])[send].T
    log_time = 0.5 + x @ [0.4, -0.3] + d + g * x[:, 0] + 0.7 * noise
    days = 10
    at = np.ceil(np.exp(log_time)) - 1
    visits = (np.arange(days) == at[:, None]).ravel()
    first = np.tile(np.arange(days) == 0, users)
    return table_of(
        np.repeat([f"u{i:05d}" for i in range(users)], days),
        np.where(first, np.repeat(send, days), 0),
        np.full(users * days, 0.5),
        visits.astype(float),
        rewards=("visits",),
        actions=("hold", "send", "badge")[: len(effects) + 1],
        state=np.repeat(x, days, axis=0),
        legal=first[:, None] | (np.arange(len(effects) + 1) == 0),
        split=np.repeat(np.array([0, 0, 0, 1])[np.arange(users) % 4], days),
    )


# Click threshold


@pytest.mark.parametrize(
    ("logit", "kind", "off"),
    [
        (lambda x, a: -1.0 + 1.2 * x[:, 0] - 0.6 * x[:, 1], "logistic", 0.02),
        (lambda x, a: -1.5 + 3.0 * (x[:, 0] * x[:, 1] > 0), "trees", 0.05),
    ],
)
def test_known_log_odds_of_a_click_are_recovered(table_of, logit, kind, off) -> None:
    table, state = clickable(table_of, logit)
    found = fit_click_threshold(table)
    assert found.facts["model"] == kind
    test = table.split == 2
    truth = 1 / (1 + np.exp(-logit(state[test], 1)))
    assert np.abs(found.model(table.state[test])[:, 1] - truth).mean() < off


def test_the_threshold_meets_the_volume_of_the_validation_rows(table_of) -> None:
    table, _ = clickable(table_of, lambda x, a: -1.0 + x[:, 0])
    rows = table.split == 1
    for given, wanted in ((None, (table.action[rows] > 0).sum()), (0.2, 0.2 * rows.sum())):
        found = fit_click_threshold(table, send_rate=given)
        probability = checked_probabilities(found, table.state, table.legal)
        assert probability[rows, 1].sum() == pytest.approx(wanted, abs=1e-6)
        sent = found.model(table.state)[:, 1]
        assert (probability[sent > found.cut.threshold, 1] == 1).all()
        assert (probability[sent < found.cut.threshold, 1] == 0).all()


def test_of_several_sends_the_likeliest_to_be_clicked_is_chosen(table_of) -> None:
    def logit(x, a):
        return -0.5 + np.where(a == 2, -1.5, 1.5) * x[:, 0]

    table, state = clickable(table_of, logit, actions=("hold", "badge", "push"))
    found = fit_click_threshold(table, send_rate=1.0).action_probabilities(table.state, table.legal)
    clear = np.abs(state[:, 0]) > 0.2
    assert (found.argmax(axis=1) == np.where(state[:, 0] > 0, 1, 2))[clear].mean() > 0.99
    only = np.tile([True, True, False], (len(state), 1))
    assert fit_click_threshold(table).action_probabilities(table.state, only)[:, 2].max() == 0


def test_without_labels_the_clicks_of_the_interval_are_taken(table_of) -> None:
    table, _ = clickable(table_of, lambda x, a: -1.0 + x[:, 0])
    labelled = fit_click_threshold(table)
    assert labelled.facts["labels"] == "clicks of the notification"
    for absent in (None, np.full(len(table.action), np.nan)):
        counted = fit_click_threshold(replace(table, clicked=absent))
        # Here every click of an interval is one on its own send.
        np.testing.assert_array_equal(labelled.model(table.state), counted.model(table.state))
        assert counted.facts["labels"] == "clicks in the interval of the send"


def test_sends_whose_window_is_open_teach_nothing(table_of) -> None:
    table, _ = clickable(table_of, lambda x, a: -1.0 + x[:, 0])
    open_ = np.arange(len(table.action)) % 3 == 0
    opened = replace(table, clicked=np.where(open_, np.nan, table.clicked))
    nonsense = replace(opened, reward=np.where(open_[:, None], 1 - table.reward, table.reward))
    first, second = fit_click_threshold(opened), fit_click_threshold(nonsense)
    np.testing.assert_array_equal(first.model(table.state), second.model(table.state))
    assert first.facts["sends"] == int(((table.action > 0) & ~open_ & (table.split == 0)).sum())


def test_an_action_hardly_taken_is_never_chosen(table_of) -> None:
    table, _ = clickable(table_of, lambda x, a: 0.0 * x[:, 0], actions=("hold", "badge", "push"))
    pushed = np.flatnonzero((table.action == 2) & (table.split == 0))
    action = table.action.copy()
    action[pushed[LEAST_ROWS - 1 :]] = 0
    found = fit_click_threshold(replace(table, action=action), send_rate=0.5)
    assert found.action_probabilities(table.state, table.legal)[:, 2].max() == 0
    assert (found.model(table.state[:3])[:, 2] == UNTRIED).all()


# Visit uplift


def test_the_interval_of_the_next_visit(table_of) -> None:
    # a: hold, hold, visit in (2, 3]; a send at 3, watched until 4. b: a send, then a visit at once, to the end.
    table = table_of(["a"] * 4 + ["b"] * 2, [0, 0, 0, 1, 1, 0], [0.5] * 6, [0, 0, 1, 0, 0, 2], rewards=("visits",))
    lower, upper = next_visit(table)
    np.testing.assert_allclose(lower, [2, 1, INSTANT, 1, 1, INSTANT])
    np.testing.assert_allclose(upper, [3, 2, 1, np.inf, 2, 1])
    # Had a no visit, the send at 3 would end what is known of the decisions before it.
    lower, upper = next_visit(replace(table, reward=np.zeros((6, 1))))
    np.testing.assert_allclose(lower, [3, 2, 1, 1, 2, 1])
    assert np.isinf(upper).all()


def test_next_visits_are_those_of_a_loop(table_of) -> None:
    draw = np.random.default_rng(3)
    users = np.sort(draw.integers(60, size=900)).astype(str)
    users = np.array(sorted(users.tolist()))
    gap = draw.choice([0.25, 0.5, 1.0, 2.0], 900)
    terminal = np.append(users[1:] != users[:-1], True) & (draw.random(900) < 0.5)
    at = np.concatenate([np.cumsum(np.append(0, gap[users == user][:-1])) for user in np.unique(users)])
    table = table_of(
        users.tolist(),
        draw.integers(2, size=900),
        np.full(900, 0.5),
        draw.poisson(0.2, 900),
        rewards=("visits",),
        elapsed_days=gap,
        terminal=terminal,
        decided_at=np.rint(at * 86_400_000_000),
    )
    lower, upper = next_visit(table)
    for k in range(900):
        j, waited = k, 0.0
        while not table.reward[j, 0]:
            waited += gap[j]
            if j + 1 == 900 or users[j + 1] != users[k] or table.action[j + 1] == 1:
                assert (lower[k], upper[k]) == pytest.approx((waited, np.inf))
                break
            j += 1
        else:
            assert (lower[k], upper[k]) == pytest.approx((max(waited, INSTANT), waited + gap[j]))


@pytest.mark.parametrize("family", ["weibull", "log_normal"])
def test_a_known_accelerated_failure_time_model_is_recovered(table_of, family) -> None:
    table = visiting(table_of, family)
    found = fit_survival_uplift(table)
    model = found.model
    assert model.family == family
    spread, centre = model.design.spread, model.design.centre
    b, d, g = model.coefficient[:2] / spread, model.coefficient[2], model.coefficient[3:] / spread
    # Within four standard errors, which are near 0.012 for b and 0.018 for d and g.
    np.testing.assert_allclose(b, [0.4, -0.3], atol=0.05)
    np.testing.assert_allclose(g, [-0.25, 0.0], atol=0.07)
    assert d - g @ centre == pytest.approx(-0.3, abs=0.07)
    assert model.intercept - b @ centre == pytest.approx(0.5, abs=0.05)
    assert model.scale == pytest.approx(0.7, abs=0.03)
    assert found.facts["visited"] < found.facts["decisions"] == (table.legal[:, 1] & (table.split == 0)).sum()


def test_the_users_drawn_are_the_same_in_whatever_order_the_table_has_them(table_of, monkeypatch) -> None:
    """As another number of buckets lays them; another seed draws others."""
    monkeypatch.setattr(survival, "MOST_ROWS", 200)
    names = [f"u{i:03d}" for i in range(400)]

    def drawn(order: list[str], seed: int) -> set[str]:
        table = table_of(order, [0] * 400, [0.5] * 400, [0.0] * 400)
        return set(table.user_id[table.user[survival._drawn(table, np.ones(400, bool), seed)]])

    by_bucket = sorted(names, key=lambda name: (int(name[1:]) % 2, name))
    assert len(drawn(names, 0)) == 200
    assert drawn(names, 0) == drawn(by_bucket, 0)
    # Two draws of half of 400 share 100 in the mean, with a standard deviation of 5.
    assert len(drawn(names, 0) & drawn(names, 1)) < 130


def test_relative_uplift_is_that_of_the_distribution() -> None:
    design = Design(np.zeros(1), np.ones(1), np.zeros(1), np.array([True, False]))
    x, h = np.array([[-1.0], [0.5]]), 2.0
    for family, scale in (("weibull", 1.25), ("log_normal", 0.8)):
        model = VisitModel(family, design, np.array([1]), 3, 1.0, np.array([0.2, -0.5, 0.1]), scale)
        located = 1.0 + 0.2 * x[:, 0]
        sent = located - 0.5 + 0.1 * x[:, 0]
        if family == "weibull":
            held, with_send = (1 - np.exp(-((h / np.exp(m)) ** (1 / scale))) for m in (located, sent))
        else:
            held, with_send = (norm.cdf((np.log(h) - m) / scale) for m in (located, sent))
        found = model.uplift(x, h)
        np.testing.assert_allclose(found[:, 1], (with_send - held) / held, atol=1e-11)
        assert (found[:, 0] == 0).all()
        assert (found[:, 2] == UNTRIED).all()


def test_uplift_stays_finite_where_a_visit_is_all_but_certain_or_impossible() -> None:
    design = Design(np.zeros(1), np.ones(1), np.zeros(1), np.array([True, False]))
    for family in ("weibull", "log_normal"):
        for intercept in (-200.0, 200.0):
            model = VisitModel(family, design, np.array([1]), 2, intercept, np.array([0.0, -1.0, 0.0]), 0.5)
            assert np.isfinite(model.uplift(np.zeros((1, 1)), 1.0)).all()


def test_tau_meets_the_volume_and_sends_where_uplift_is_largest(table_of) -> None:
    table = visiting(table_of, "weibull", users=3000)
    for given in (None, 0.3):
        found = fit_survival_uplift(table, send_rate=given)
        probability = checked_probabilities(found, table.state, table.legal)
        rows = (table.split == 1) & table.legal.all(axis=1)
        wanted = (table.action[rows] > 0).sum() if given is None else given * rows.sum()
        assert probability[rows, 1].sum() == pytest.approx(wanted, abs=1e-6)
        uplift = found.model.uplift(table.state, found.horizon_days)[:, 1]
        assert uplift[rows & (probability[:, 1] == 1)].min() >= found.cut.threshold
        assert uplift[rows & (probability[:, 1] == 0)].max() <= found.cut.threshold


def test_of_several_sends_the_one_that_brings_the_visit_nearest_is_chosen(table_of) -> None:
    table = visiting(table_of, "weibull", users=4000, effects=((-0.5, -0.5), (-0.5, 0.5)))
    found = fit_survival_uplift(table, send_rate=1.0).action_probabilities(table.state, table.legal)
    rows = table.legal.all(axis=1) & (np.abs(table.state[:, 0]) > 0.3)
    assert (found[rows].argmax(axis=1) == np.where(table.state[rows, 0] > 0, 1, 2)).mean() > 0.99


# All of them


def test_the_test_split_is_never_read(table_of) -> None:
    table = visiting(table_of, "weibull", users=2000)
    clicks = np.where(table.legal[:, 1] & (table.action > 0), np.arange(len(table.action)) % 3 == 0, np.nan)
    split = np.repeat(np.array([0, 0, 1, 2])[np.arange(2000) % 4], 10).astype(np.int8)
    table = replace(table, clicked=clicks, split=split)
    test = split == 2
    other = replace(
        table,
        state=np.where(test[:, None], np.float32(1e6), table.state),
        action=np.where(test, 1, table.action),
        reward=np.where(test[:, None], 9.0, table.reward),
        legal=table.legal | test[:, None],
        clicked=np.where(test, 1.0, clicks),
    )
    for mine, theirs in zip(fit_baselines(table, None, 1)[0], fit_baselines(other, None, 1)[0], strict=True):
        assert mine.learned
        np.testing.assert_array_equal(
            mine.action_probabilities(table.state, table.legal), theirs.action_probabilities(table.state, table.legal)
        )


def test_what_a_log_does_not_allow_is_left_out_with_a_word_or_refused(table_of) -> None:
    table, _ = clickable(table_of, lambda x, a: -1.0 + x[:, 0], n=2000)
    fitted, facts = fit_baselines(table, None, 1)
    assert [policy.name for policy in fitted] == ["random", "click_threshold"]
    assert list(facts) == list(NAMES)
    assert "no reward component `visits` (it has clicks)" in facts["survival_uplift"]["left_out"]
    with pytest.raises(InputError, match="survival_uplift: the log has no reward component `visits`"):
        fit_baselines(table, ("random", "survival_uplift"), 1)
    assert fit_baselines(table, (), 1) == ([], {})


def test_bad_logs_are_refused(table_of) -> None:
    clicks, _ = clickable(table_of, lambda x, a: -1.0 + x[:, 0], n=2000)
    visits = visiting(table_of, "weibull", users=200)
    trial = replace(clicks, clicked=None, contract=replace(clicks.contract, rewards=("steps",)))
    nobody = np.zeros_like(visits.reward)
    for fit, table, message in (
        (fit_click_threshold, trial, "neither labels of clicks nor the reward component `clicks`"),
        (
            fit_click_threshold,
            replace(clicks, clicked=clicks.clicked * 0),
            "0 of the .* training sends .* were clicked",
        ),
        (fit_click_threshold, replace(clicks, split=clicks.split * 0), "0 of the 0 validation sends"),
        (fit_survival_uplift, replace(visits, reward=nobody), "no visit followed any of 150 training decisions"),
        (fit_survival_uplift, replace(visits, action=visits.action * 0), "150 were holds and 0 the commonest send"),
        (fit_survival_uplift, visits.where(visits.split == 0), "no decision of the validation split leaves a choice"),
    ):
        with pytest.raises(InputError, match=message):
            fit(table)
    with pytest.raises(InputError, match="the horizon is 0 days"):
        fit_survival_uplift(visits, horizon_days=0)
    for fit, table in ((fit_click_threshold, clicks), (fit_survival_uplift, visits)):
        forced = replace(table, contract=replace(table.contract, actions=("push", "send")))
        with pytest.raises(InputError, match="no action `hold`"):
            fit(forced)


def test_a_fit_that_does_not_converge_is_refused_with_a_remedy(table_of, monkeypatch) -> None:
    from lifelines import LogNormalAFTFitter, WeibullAFTFitter
    from lifelines.exceptions import ConvergenceError

    def fails(*_, **__):
        raise ConvergenceError("\n  Fitting did not converge. Try the following:\n 0. Look.")

    table = visiting(table_of, "log_normal", users=400)
    monkeypatch.setattr(WeibullAFTFitter, "fit_interval_censoring", fails)
    assert fit_survival_uplift(table).facts["distribution"] == "log_normal"
    monkeypatch.setattr(LogNormalAFTFitter, "fit_interval_censoring", fails)
    with pytest.raises(InputError, match=r"could not be fitted on 300 .*Fitting did not converge.*leave features out"):
        fit_survival_uplift(table)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"baselines": ("random", "ramdom")},
            "evaluate.baselines names 'ramdom'; name each of random, click_threshold",
        ),
        ({"baselines": ("random", "random")}, "names 'random'; name each"),
        ({"baseline_send_rate": 1.2}, r"evaluate.baseline_send_rate is 1.2; it must lie in \[0, 1\]"),
    ],
)
def test_settings_are_checked(setting, message) -> None:
    with pytest.raises(InputError, match=message):
        EvaluateConfig(**setting)
