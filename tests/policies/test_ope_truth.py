"""Every estimator against a truth that is known: small Markov decision processes, solved exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np

from models.table import Transitions
from policies.base import Floats
from policies.ope.dr import dr
from policies.ope.fqe import fqe
from policies.ope.ips import ips
from policies.ope.mis import mis
from policies.ope.pdis import pdis
from policies.ope.sample import Sample, take
from policies.ope.summaries import Summary
from policies.ope.target import Target
from policies.ope.wdr import magic, wdr
from policies.ope.wpdis import wpdis

Build = Callable[..., Transitions]

# 2 states, 2 actions, 3 steps.
MU = np.array([[0.6, 0.4], [0.3, 0.7]])
TARGET = np.array([[0.2, 0.8], [0.9, 0.1]])
REWARD = np.array([[0.0, 1.0], [2.0, -1.0]])
NEXT_IS_1 = np.array([[0.1, 0.9], [0.9, 0.8]])
HORIZON = 3


def solve(policy: Floats) -> tuple[float, Floats]:
    """Value from s = 0 or 1 with equal chance, and Q [HORIZON, s, a], by backward induction."""
    ahead, found = np.zeros(2), np.zeros((HORIZON, 2, 2))
    for t in reversed(range(HORIZON)):
        found[t] = REWARD + (1 - NEXT_IS_1) * ahead[0] + NEXT_IS_1 * ahead[1]
        ahead = (policy * found[t]).sum(1)
    return float(ahead.mean()), found


class Tabular:
    learned = False

    def __init__(self, probability: Floats, name: str = "tabular") -> None:
        self.probability, self.name = probability, name

    def action_probabilities(self, state: Any, legal: Any) -> Floats:
        return self.probability[state[:, 0].astype(int)]


def everything(table: Transitions, per: str) -> Sample:
    return take(table, np.ones(len(table.action), dtype=bool), per)


def per_user(summary: Summary, sample: Sample) -> float:
    """The value in rewards per user."""
    return float(summary.over(np.ones((1, sample.users))).total()[0, 0]) / sample.users


def simulate(table_of: Build, seed: int, users: int, horizon: int) -> Transitions:
    rng = np.random.default_rng(seed)
    s = rng.integers(0, 2, users)
    states, actions, rewards = [], [], []
    for _ in range(horizon):
        a = (rng.random(users) < MU[s, 1]).astype(int)
        states.append(s)
        actions.append(a)
        rewards.append(REWARD[s, a] + rng.normal(size=users))
        s = (rng.random(users) < NEXT_IS_1[s, a]).astype(int)
    state, action, reward = (np.stack(each, 1).ravel() for each in (states, actions, rewards))
    names = np.repeat([f"u{i}" for i in range(users)], horizon).tolist()
    return table_of(names, action, MU[state, action], reward, state=state)


def test_known_truth_is_recovered_over_seeds(table_of: Build) -> None:
    truth, exact = solve(TARGET)
    found: dict[str, list[float]] = {}
    for seed in range(40):
        table = simulate(table_of, seed, 400, HORIZON)
        sample, target = everything(table, "week"), Target.of(Tabular(TARGET), table)
        q = exact[sample.group, table.state[:, 0].astype(int)][..., None]
        summaries = {
            "pdis": pdis(sample, target.ratio),
            "wpdis": wpdis(sample, target.ratio),
            "mis": mis(sample, target.ratio, table.state[:, 0].astype(np.int64)),
            "dr exact": dr(sample, target.ratio, target.probability, q),
            "dr wrong": dr(sample, target.ratio, target.probability, 0.5 * q + 1),
            "wdr exact": wdr(sample, target.ratio, target.probability, q),
            "wdr wrong": wdr(sample, target.ratio, target.probability, 0.5 * q + 1),
            "fqe": fqe(sample, target.probability, q),
            "ips": ips(sample, target.ratio),
        }
        for name, summary in summaries.items():
            found.setdefault(name, []).append(per_user(summary, sample))
    spread = {name: np.std(values, ddof=1) for name, values in found.items()}
    for name in found.keys() - {"ips"}:
        error = spread[name] / np.sqrt(40)
        assert abs(np.mean(found[name]) - truth) < 3.5 * error + 1e-3, name
        assert error < (0.12 if name == "pdis" else 0.05), name
    assert spread["dr exact"] < spread["dr wrong"] < spread["pdis"]
    assert spread["wdr exact"] < spread["wdr wrong"]
    assert spread["mis"] < spread["wpdis"] < spread["pdis"]
    # one-step weights value each decision of pi with mu before it: another quantity, which they recover
    one_step, share = 0.0, np.array([0.5, 0.5])
    for _ in range(HORIZON):
        one_step += float(share @ (TARGET * REWARD).sum(1))
        ahead = float(share @ (MU * NEXT_IS_1).sum(1))
        share = np.array([1 - ahead, ahead])
    assert abs(one_step - truth) > 0.1
    assert abs(np.mean(found["ips"]) - one_step) < 3.5 * spread["ips"] / np.sqrt(40)


def test_ips_recovers_the_truth_of_one_decision(table_of: Build) -> None:
    truth = float((TARGET * REWARD).sum(1).mean())
    for per in ("week", "decision"):
        found = []
        for seed in range(40):
            table = simulate(table_of, seed, 400, 1)
            sample, target = everything(table, per), Target.of(Tabular(TARGET), table)
            found.append(per_user(ips(sample, target.ratio), sample))
        assert abs(np.mean(found) - truth) < 3.5 * np.std(found, ddof=1) / np.sqrt(40)


# Fatigue: sends add 1 (to at most 3), a hold takes 1 away; the reward of a send falls with it.
LEVELS, STEPS = 4, 6
SEND_MORE, LOGGED = 0.8, 0.4


def tired(table_of: Build, seed: int, users: int) -> Transitions:
    rng = np.random.default_rng(seed)
    f = rng.integers(0, LEVELS, users)
    columns: list[list[Any]] = [[], [], []]
    for _ in range(STEPS):
        a = (rng.random(users) < LOGGED).astype(int)
        for column, each in zip(columns, (f, a, a * (1 - 0.6 * f) + rng.normal(size=users) * 0.5), strict=True):
            column.append(each)
        f = np.clip(f + 2 * a - 1, 0, LEVELS - 1)
    state, action, reward = (np.stack(each, 1).ravel() for each in columns)
    names = np.repeat([f"u{i}" for i in range(users)], STEPS).tolist()
    return table_of(names, action, np.where(action == 1, LOGGED, 1 - LOGGED), reward, state=state)


def true_tired(send: float) -> float:
    share, total = np.full(LEVELS, 1 / LEVELS), 0.0
    for _ in range(STEPS):
        total += float(share @ (send * (1 - 0.6 * np.arange(LEVELS))))
        moved = np.zeros(LEVELS)
        for f in range(LEVELS):
            moved[min(f + 1, LEVELS - 1)] += share[f] * send
            moved[max(f - 1, 0)] += share[f] * (1 - send)
        share = moved
    return total


def test_bias_and_variance_are_ordered_as_what_the_weights_know(table_of: Build) -> None:
    """One step, the last action's bin, the whole history: bias falls and variance rises (2202.03867, Fig. 4)."""
    truth = true_tired(SEND_MORE)
    probability = np.tile([1 - SEND_MORE, SEND_MORE], (LEVELS, 1))
    found: dict[str, list[float]] = {"one step": [], "marginalised": [], "trajectory": []}
    for seed in range(60):
        table = tired(table_of, seed, 300)
        sample, target = everything(table, "week"), Target.of(Tabular(probability), table)
        # Half of what fatigue is: low or high.
        coarse = (table.state[:, 0] >= LEVELS // 2).astype(np.int64)
        found["one step"].append(per_user(ips(sample, target.ratio), sample))
        found["marginalised"].append(per_user(mis(sample, target.ratio, coarse), sample))
        found["trajectory"].append(per_user(pdis(sample, target.ratio), sample))
    bias = {name: abs(np.mean(values) - truth) for name, values in found.items()}
    spread = {name: np.std(values, ddof=1) for name, values in found.items()}
    assert bias["one step"] > 2 * bias["marginalised"] > 4 * bias["trajectory"]
    assert spread["one step"] < spread["marginalised"] < spread["trajectory"]
    assert bias["trajectory"] < 3.5 * spread["trajectory"] / np.sqrt(60)


class TestMagic:
    def blend(self, model: Floats, corrected: Floats) -> Floats:
        """[R + 1] of two lengths: `model` alone and `corrected` [R + 1]."""
        return magic(np.stack([model, corrected - model], axis=1)[..., None])[:, 0]

    def test_a_model_within_wdrs_interval_is_weighed_by_the_variances(self) -> None:
        # Four resamples: var(model) = 4 * 0.01 / 3, var(wdr) = 4 / 3, uncorrelated: the least variance has
        # x_model = (4/3) / (4/3 + 0.04/3) = 100/101. Both are 0 in the log: no bias.
        model = np.array([0.0, 0.1, 0.1, -0.1, -0.1])
        corrected = np.array([0.0, 1.0, -1.0, 1.0, -1.0])
        expected = (100 * model + corrected) / 101
        np.testing.assert_allclose(self.blend(model, corrected), expected, atol=1e-6)

    def test_a_model_outside_it_pays_for_its_bias(self) -> None:
        # The 5% and 95% quantiles of (-1, -1, 1, 1) are -1 and 1: at 3 the model is 2 outside. M = diag(v_m + 4, 4/3).
        model = 3 + np.array([0.0, 0.1, 0.1, -0.1, -0.1])
        corrected = np.array([0.0, 1.0, -1.0, 1.0, -1.0])
        x = (4 / 3) / (4 / 3 + 0.04 / 3 + 4)
        np.testing.assert_allclose(self.blend(model, corrected), x * model + (1 - x) * corrected, atol=1e-6)

    def test_where_wdr_says_nothing_neither_does_magic(self) -> None:
        assert np.isnan(self.blend(np.zeros(5), np.full(5, np.nan))).all()

    def test_lengths_that_are_all_alike_have_one_answer(self) -> None:
        np.testing.assert_array_equal(self.blend(np.ones(5), np.ones(5)), 1.0)

    def test_it_errs_less_than_both_of_its_ends_where_each_is_bad(self, table_of: Build) -> None:
        """A model that is right in the second half only: over 40 logs blends beat the model and WDR alone."""
        truth, exact = solve(TARGET)
        errors: dict[str, list[float]] = {"magic": [], "wdr": [], "model": []}
        for seed in range(40):
            table = simulate(table_of, 100 + seed, 60, HORIZON)
            sample, target = everything(table, "week"), Target.of(Tabular(TARGET), table)
            q = exact[sample.group, table.state[:, 0].astype(int)][..., None]
            q[sample.group == 0] += 0.8
            counts = np.vstack([np.ones(60), np.random.default_rng(seed).poisson(1.0, (200, 60))])
            terms = wdr(sample, target.ratio, target.probability, q).over(counts).terms()
            terms /= counts.sum(1)[:, None, None]
            errors["magic"].append(float(magic(terms)[0, 0]) - truth)
            errors["wdr"].append(float(terms[0].sum()) - truth)
            errors["model"].append(float(terms[0, 0, 0]) - truth)
        squared = {name: float(np.mean(np.square(each))) for name, each in errors.items()}
        assert squared["magic"] < squared["model"]
        assert squared["magic"] < 1.1 * squared["wdr"]


def test_a_user_who_is_there_twice_does_not_look_like_two(table_of: Build) -> None:
    """Each user's rows doubled under one name: the value is the same, and so is every resample of it."""
    table = simulate(table_of, 0, 50, HORIZON)
    twice = np.repeat(np.arange(len(table.user)), 2)
    rng = np.random.default_rng(1)
    once, doubled = (
        take(each, np.ones(len(each.user), dtype=np.bool_), "decision") for each in (table, table.where(twice))
    )
    counts = rng.poisson(1.0, (200, 50)).astype(float)
    one = ips(once, Target.of(Tabular(TARGET), table).ratio).over(counts).total() / (counts @ once.exposure)[:, None]
    both = table.where(twice)
    two = ips(doubled, Target.of(Tabular(TARGET), both).ratio).over(counts).total()
    np.testing.assert_allclose(two / (counts @ doubled.exposure)[:, None], one, rtol=1e-12)


def test_a_bin_for_all_that_matters_is_consistent_where_histories_are_hopeless(table_of: Build) -> None:
    """Six steps at 0.8 against 0.4: the weight of a history reaches 2^6; z = fatigue is all that matters."""
    probability = np.tile([1 - SEND_MORE, SEND_MORE], (LEVELS, 1))
    marginal, history = [], []
    for seed in range(40):
        table = tired(table_of, 1000 + seed, 300)
        sample, target = everything(table, "week"), Target.of(Tabular(probability), table)
        marginal.append(per_user(mis(sample, target.ratio, table.state[:, 0].astype(np.int64)), sample))
        history.append(per_user(wpdis(sample, target.ratio), sample))
    error = np.std(marginal, ddof=1) / np.sqrt(40)
    assert abs(np.mean(marginal) - true_tired(SEND_MORE)) < 3.5 * error
    assert np.std(marginal) < 0.7 * np.std(history)
