"""A reward network from compared user-weeks: its losses by hand, a known utility recovered, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.errors import InputError
from models.network import initial
from models.rewards import network
from models.rewards.answers import Answers, Pair, Ranking
from models.rewards.network import component, disagreement, fit, member_returns
from models.rewards.questions import Questions
from models.rewards.settings import NetworkConfig
from models.rewards.store import add, read
from models.rewards.weeks import weeks_of

WEIGHTS = np.array([1.0, -0.5])


def log(table_of, users=120, seed=0, days=14):
    """Two weeks a user of daily rows; two components, and a feature that is unknown now and then."""
    rng = np.random.default_rng(seed)
    n = users * days
    state = rng.normal(size=(n, 2)).astype(np.float32)
    state[rng.random(n) < 0.1, 1] = np.nan
    reward = np.stack([rng.poisson(0.6, n), rng.random(n) < 0.5], axis=1).astype(float)
    # The last day of a user goes on into the 15th, so that both weeks are whole.
    return table_of(
        np.repeat(np.arange(users), days).tolist(),
        state=state,
        reward=reward,
        action=rng.integers(0, 2, n),
        elapsed_days=np.ones(n),
        decided_at=np.tile(np.arange(days), users) * 86_400_000_000,
    )


def answered(weeks, utility, number, seed, noise=True):
    """Bradley-Terry answers about random pairs of weeks whose utilities are `utility` [W]."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        a, b = rng.choice(len(weeks.id), 2, replace=False)
        gap = utility[a] - utility[b]
        left = rng.random() < 1 / (1 + math.exp(-gap)) if noise else gap > 0
        pairs.append(Pair(weeks.id[a], weeks.id[b], "left" if left else "right", "ann"))
    return Answers(tuple(pairs))


def asked(returns, order, target):
    """The losses of answers about weeks of one row each whose returns are given."""
    questions = Questions(
        torch.zeros(0), torch.zeros(0), torch.tensor(order), torch.tensor(target), torch.ones(len(target))
    )
    return questions.losses(torch.tensor([returns], requires_grad=True))


def test_losses_by_hand():
    """R = 2, 1, 0: log(1 + e^-1) = 0.3133 for 0 over 1, log(1 + e) = 1.3133 the other way, their mean for a tie; of
    the ranking 0, 1, 2 log(e^2 + e + 1) - 2 + log(e + 1) - 1 = 0.4076 + 0.3133."""
    found = asked([2.0, 1.0, 0.0], [[0, 1, -1], [1, 0, -1], [0, 1, -1], [0, 1, 2]], [1.0, 1.0, 0.5, 1.0])
    by_hand = [0.313262, 1.313262, 0.813262, 0.407606 + 0.313262]
    assert found[0].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_week_that_is_not_there_has_no_gradient():
    returns = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    questions = Questions(
        torch.zeros(0), torch.zeros(0), torch.tensor([[0, 1, -1], [2, 1, 0]]), torch.ones(2), torch.ones(2)
    )
    (gradient,) = torch.autograd.grad(questions.losses(returns)[0, 0], returns)
    # d log(1 + e^-(a - b)) / da = -sigma(b - a) = -0.2689
    assert gradient[0].tolist() == pytest.approx([-0.268941, 0.268941, 0.0], abs=1e-5)


def test_a_member_begins_as_weights_of_the_outcome():
    """Two layers, inputs (s, r, Delta): units carry r+, r-, Delta+, Delta-, and weights on them give 2 r - Delta."""
    net = network.from_weights(initial([3], (6, 5), torch.zeros(3), torch.ones(3), torch.zeros(1), torch.ones(1), 1), 2)
    x = torch.tensor([[9.0, 1.5, -0.5], [-4.0, -2.0, 3.0]])
    with torch.no_grad():
        assert net.heads(x.unsqueeze(0)).abs().max() == 0
        net.weights[-1][0, :4, 0] = torch.tensor([2.0, -2.0, -1.0, 1.0])
        assert net.heads(x.unsqueeze(0))[0, :, 0, 0].tolist() == pytest.approx([3.5, -7.0])


def test_a_week_returns_the_sum_of_its_rows():
    net = initial([3], (4,), torch.zeros(2), torch.ones(2), torch.zeros(1), torch.ones(1), 1)
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])
    questions = Questions(x, torch.tensor([0, 0, 1]), torch.tensor([[0, 1]]), torch.ones(1), torch.ones(1))
    row = net.heads(x.unsqueeze(0))[0, :, 0, 0].detach()
    assert questions.returns(net)[0].tolist() == pytest.approx([float(row[0] + row[1]), float(row[2])])


@pytest.fixture(scope="module")
def learned(table_of_module, tmp_path_factory):
    torch.set_num_threads(1)
    table = log(table_of_module)
    weeks = weeks_of(table)
    found = fit([(table, weeks)], answered(weeks, weeks.totals @ WEIGHTS, 400, 1), NetworkConfig(), seed=2)
    root = tmp_path_factory.mktemp("rewards")
    add(root, "liked", "network", found.facts, found.tensors)
    return table, weeks, read(root, "liked")


@pytest.fixture(scope="module")
def table_of_module():
    from tests.models.conftest import _table

    return _table


def test_a_known_utility_is_recovered_on_rows_it_never_saw(learned, table_of):
    stored = learned[2]
    fresh = log(table_of, seed=9)
    found, truth = component(stored, fresh), fresh.reward @ WEIGHTS
    assert np.corrcoef(found, truth)[0, 1] > 0.9
    # Over weeks too, which is what raters judged.
    later = weeks_of(fresh)
    assert np.corrcoef(later.sums(found), later.sums(truth))[0, 1] > 0.9
    assert stored.facts["accuracy"] > 0.65


def test_the_reward_is_standardised_over_the_log(learned):
    table, _, stored = learned
    found = component(stored, table)
    assert found.mean() == pytest.approx(0, abs=1e-4)
    assert found.std() == pytest.approx(1, abs=1e-4)


def test_members_are_on_the_raters_scale(learned):
    """R_p = sum of level_p + sigma_p r_p, and the average r is what `component` scales."""
    table, weeks, stored = learned
    returns = member_returns(stored, table, weeks)
    rows = network.predicted(network.network_of(stored), network._input(stored, table, network.network_of(stored)))
    level, sigma = np.array(stored.facts["level"]), np.array(stored.facts["sigma"])
    week = slice(weeks.first[5], weeks.end[5])
    by_hand = [(level[p] + sigma[p] * rows[p, week, 0, 0]).sum() for p in range(len(level))]
    assert returns[:, 5] == pytest.approx(by_hand)
    # About as steep as the raters were: noise of theirs, not a margin that grows with the steps.
    slope = np.polyfit(weeks.totals @ WEIGHTS, returns.mean(axis=0), 1)[0]
    assert 0.5 < slope < 1.6


def test_a_calibration_table_counts_every_held_out_comparison(learned):
    stored = learned[2]
    assert sum(each["answers"] for each in stored.facts["calibration"]) == stored.facts["held_out"] == 80


def test_slopes_of_a_linear_network_are_its_weights(table_of):
    """r = 2 r0 / sd - Delta / sd in standardised inputs and sigma = 0.5: 1 a unit of r0's sd, over sd = 4."""
    table = log(table_of, users=10)
    inputs = 2 + 2 + 3
    std = torch.ones(inputs)
    std[4] = 4.0
    net = initial([1], (6,), torch.zeros(inputs), std, torch.zeros(1), torch.ones(1), 1)
    network.from_weights(net, 3).requires_grad_(False)
    net.weights[-1][0, :2, 0] = torch.tensor([2.0, -2.0])
    facts = {
        "rewards": ["r0", "r1"],
        "features": ["f0", "f1"],
        "actions": ["hold", "send"],
        "sigma": [0.5],
        "level": [0.0],
    }
    stored = network.Stored("liked", 1, "network", facts, dict(net.state_dict()))
    positive = replace(table, reward=table.reward + 0.1)
    assert network.slopes(stored, positive) == {
        "r0": pytest.approx((0.25, 0.25, 0.25)),
        "r1": pytest.approx((0.0, 0.0, 0.0)),
    }


def test_disagreement_by_hand():
    """Members say sigma(0) = 0.5 and sigma(ln 3) = 0.75: variance 0.125^2; of equal members none."""
    returns = np.array([[0.0, 0.0, 1.0], [math.log(3), 0.0, 1.0 + math.log(3)]])
    assert disagreement(returns, np.array([[0, 1], [2, 0]])) == pytest.approx([0.015625, 0.0])


def test_equal_seeds_give_equal_networks(table_of):
    table = log(table_of, users=40)
    weeks = weeks_of(table)
    answers = answered(weeks, weeks.totals @ WEIGHTS, 60, 1)
    config = NetworkConfig(members=2, steps=20)
    one, two = (fit([(table, weeks)], answers, config, 5).facts for _ in range(2))
    assert one == two
    assert fit([(table, weeks)], answers, config, 6).facts != one


def test_rankings_and_rater_weights_teach(table_of):
    """Rankings of three by the truth teach; a contrarian who weighs 0 does not."""
    table = log(table_of)
    weeks = weeks_of(table)
    utility = weeks.totals @ WEIGHTS
    rng = np.random.default_rng(3)
    rankings = []
    for _ in range(150):
        three = rng.choice(len(weeks.id), 3, replace=False)
        rankings.append(Ranking(tuple(weeks.id[three[np.argsort(-utility[three])]]), "ann"))
    wrong = answered(weeks, -utility, 150, 4, noise=False)
    wrong = Answers(tuple(replace(each, rater="eve") for each in wrong.pairs))
    found = fit([(table, weeks)], wrong + Answers((), tuple(rankings)), NetworkConfig(raters={"eve": 0.0}), 1)
    stored = network.Stored("liked", 1, "network", found.facts, found.tensors)
    assert np.corrcoef(weeks.sums(component(stored, table)), utility)[0, 1] > 0.9


def test_weeks_of_two_logs_are_compared(table_of):
    first, second = log(table_of, users=60), log(table_of, users=60, seed=5)
    second = replace(second, user_id=np.array([f"later {each}" for each in second.user_id], dtype=object))
    one, two = weeks_of(first), weeks_of(second)
    rng = np.random.default_rng(0)
    pairs = tuple(
        Pair(one.id[a], two.id[b], "left" if (one.totals[a] - two.totals[b]) @ WEIGHTS > 0 else "right", "ann")
        for a, b in rng.integers(0, 120, (150, 2))
    )
    found = fit([(first, one), (second, two)], Answers(pairs), NetworkConfig(), 1)
    stored = network.Stored("liked", 1, "network", found.facts, found.tensors)
    assert np.corrcoef(component(stored, second), second.reward @ WEIGHTS)[0, 1] > 0.85


def few(weeks):
    return Answers(answered(weeks, weeks.totals @ WEIGHTS, 40, 1).pairs[:19])


def ties(weeks):
    return Answers(tuple(replace(each, answer="tie") for each in answered(weeks, weeks.totals @ WEIGHTS, 40, 1).pairs))


def unknown(weeks):
    return answered(weeks, weeks.totals @ WEIGHTS, 40, 1) + Answers((Pair(weeks.id[0], "nobody", "left", "ann"),))


@pytest.mark.parametrize(
    ("answers", "config", "words"),
    [
        (few, {}, "19 of them; a network needs 20"),
        (ties, {}, "every one is a tie"),
        (unknown, {}, "'nobody' is none of the"),
        (None, {"hidden": (5,)}, "6 units or more are needed"),
        (None, {"raters": {"bob": 2.0}}, "'bob' gave no answer"),
        (None, {"raters": {"ann": 0.0}}, "every rater weighs 0"),
    ],
)
def test_answers_that_teach_nothing_are_refused(table_of, answers, config, words):
    table = log(table_of, users=40)
    weeks = weeks_of(table)
    said = answers(weeks) if answers else answered(weeks, weeks.totals @ WEIGHTS, 40, 1)
    with pytest.raises(InputError, match=words):
        fit([(table, weeks)], said, NetworkConfig(steps=5, **config), 1)


def test_answers_that_nothing_explains_are_refused(table_of):
    """Every pair is answered the one way and the other: held-out answers are told no better than by a coin."""
    table = log(table_of, users=40)
    weeks = weeks_of(table)
    said = answered(weeks, weeks.totals @ WEIGHTS, 20, 1).pairs
    both = Answers((*said, *(replace(each, left=each.right, right=each.left) for each in said)) * 5)
    with pytest.raises(InputError, match="the same on every row"):
        fit([(table, weeks)], both, NetworkConfig(members=2, held_out=0.5, steps=20), 1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"members": 0}, "members is 0"),
        ({"hidden": ()}, "hidden is"),
        ({"state_scale": 0.0}, "state_scale is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"held_out": 1.0}, "held_out is 1"),
        ({"raters": {"ann": -1.0}}, "raters.ann is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changed, words):
    with pytest.raises(InputError, match=words):
        NetworkConfig(**changed)


def test_a_table_without_what_it_was_learned_from_is_refused(learned):
    table, _, stored = learned
    other = replace(table, contract=replace(table.contract, rewards=("r0", "x")))
    with pytest.raises(InputError, match="rewards that this log lacks: r1"):
        component(stored, other)
    with pytest.raises(InputError, match="learned with the actions"):
        component(stored, replace(table, contract=replace(table.contract, actions=("hold", "push"))))
    with pytest.raises(InputError, match="'network' is needed"):
        component(replace(stored, kind="weights"), table)


def test_answers_about_the_same_weeks_are_held_out_together():
    """Three raters and swapped repeats: what is known of a pair from one answer is never asked of another."""
    pairs = [
        Pair(*(named if rater != "cec" else named[::-1]), "left", rater)
        for named in (("w0", "w1"), ("w2", "w3"), ("w4", "w5"), ("w6", "w7"), ("w8", "w9"))
        for rater in ("ann", "bob", "cec")
    ]
    for seed in range(20):
        out = network._apart(Answers(tuple(pairs)), 0.2, np.random.default_rng(seed))
        held, learned = ({frozenset((p.left, p.right)) for p, o in zip(pairs, out, strict=True) if o is side}
                         for side in (np.True_, np.False_))  # fmt: skip
        assert not held & learned
        assert out.sum() == 3


def test_where_everything_is_linked_nothing_can_be_held_out():
    said = Answers((Pair("a", "b", "left", "ann"),) * 20, (Ranking(("a", "b", "c"), "ann"),))
    with pytest.raises(InputError, match="all are about the same user-weeks, or linked by rankings"):
        network._apart(said, 0.2, np.random.default_rng(0))


def test_test_users_move_no_unit(table_of):
    """Their rewards times ten: the reward of everybody else stays what it was."""
    table = log(table_of)
    split = np.where(table.user % 3 == 0, 2, 0).astype(np.int8)
    louder = table.reward.copy()
    louder[split == 2] *= 10
    plain = replace(table, split=split)
    other = replace(plain, reward=louder)
    weeks = weeks_of(plain, 7.0, plain.split != 2)
    said = answered(weeks, weeks.totals @ WEIGHTS, 60, 1)
    first, second = (
        fit([(each, weeks)], said, replace(NetworkConfig(), steps=40, members=2), 3) for each in (plain, other)
    )
    mine = component(add_to("a", first), plain)[split == 0]
    assert np.array_equal(mine, component(add_to("b", second), other)[split == 0])


def add_to(name, fitted):
    from models.rewards.store import Stored

    return Stored(name, 1, "network", fitted.facts, fitted.tensors)
