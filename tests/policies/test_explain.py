"""What an explanation says: attributions known exactly, a second implementation by autograd, words for each case."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifact import Artifact, export, load
from models.contract import Contract
from models.errors import InputError
from models.graph import Deployed
from models.members import Learner
from models.network import initial
from models.scaling import Scales
from models.train import Learned
from policies.explain import (
    DAYS,
    Explanation,
    _described,
    _group,
    explain,
    in_words,
    integrated_gradients,
    movement_in_words,
    number,
    percent,
)
from policies.q_policy import QPolicy

ALONE = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
BOTH = np.array([True, True])
HALF = [np.log(0.5), np.log(0.5)]


class Linear:
    """q = bias + slopes x, x the state with unknowns at their mean; logits and values are the same everywhere."""

    def __init__(
        self,
        slopes: Any,
        values: Any,
        logits: Any = HALF,
        bias: Any = 0.0,
        decision: dict[str, float] | None = None,
        lineage: dict[str, Any] | None = None,
        features: tuple[str, ...] = ("badge", "relevance", "hours_since_visit"),
        mean: Any = (1.0, 0.5, 20.0),
    ) -> None:
        self.slopes, self.bias, self.logits = np.array(slopes), np.array(bias), np.array(logits)
        self.values = np.array(values)
        self.mean = np.array(mean)
        actions = ("hold", "send", "push")[: len(self.slopes)]
        units = {"sends": "notifications", "clicks": "clicks"}
        self.contract = Contract(actions, features, ("sends", "clicks"), units)
        self.decision = {**ALONE, **(decision or {})}
        self.lineage = {"learner": "ddqn_cql", "alpha": 1.0, **(lineage or {})}
        self.weights = {"sends": -0.1, "clicks": 1.0}
        self.scales = {"mean": self.mean.tolist(), "std": [2.0] * len(features)}

    def predict(self, state: Any) -> tuple[Any, Any, Any]:
        x = np.where(np.isnan(state), self.mean, state).astype(np.float64)
        n, a = len(x), len(self.slopes)
        q = self.bias + x @ self.slopes.T
        return q, np.tile(self.logits, (n, 1)), np.broadcast_to(self.values, (n, a, 2))


def linear(**changes: Any) -> Linear:
    """Sends where 0.5 badge + 2 relevance - 0.1 hours > 0; a send is worth 0.3 clicks more, and costs one."""
    plain: dict[str, Any] = {"slopes": [[0, 0, 0], [0.5, 2.0, -0.1]], "values": [[3.0, 0.2], [4.0, 0.5]]}
    return Linear(**{**plain, **changes})


STATE = np.array([3.0, 0.9, 4.0], dtype=np.float32)
"""Margin of send 0.5 * 3 + 2 * 0.9 - 0.1 * 4 = 2.9; of the average user 0.5 * 1 + 2 * 0.5 - 0.1 * 20 = -0.5."""


# Integrated gradients


def test_of_a_linear_function_each_part_is_its_slope_times_the_way() -> None:
    slopes, base = np.array([0.5, 2.0, -0.1]), np.array([1.0, 0.5, 20.0])
    found = integrated_gradients(lambda x: x @ slopes, STATE.astype(np.float64), base, np.full(3, 2.0))
    # 0.5 (3 - 1), 2 (0.9 - 0.5), -0.1 (4 - 20)
    np.testing.assert_allclose(found.parts, [1.0, 0.8, 1.6], atol=1e-6)
    assert found.difference == pytest.approx(2.9 + 0.5, abs=1e-6)
    assert abs(found.residual) < 1e-6
    assert found.points == 32


def test_of_a_product_both_share_it() -> None:
    # F = x y from 0 to (2, 3): dF/dx = y = 3 a on the path, so part x = 2 * 3/2 = 3, and part y the same.
    found = integrated_gradients(lambda x: x[:, 0] * x[:, 1], np.array([2.0, 3.0]), np.zeros(2), np.ones(2))
    np.testing.assert_allclose(found.parts, [3.0, 3.0], atol=1e-4)


def test_a_function_that_no_path_can_follow_says_what_remains() -> None:
    # A jump has no slope: no number of points finds it.
    found = integrated_gradients(
        lambda x: (x[:, 0] > 0.6180339).astype(float), np.ones(1), np.zeros(1), np.ones(1) / 1e3
    )
    assert found.points == 256
    assert found.difference == 1.0
    assert found.residual == found.difference - found.parts.sum()


def learned(seed: int, hidden: tuple[int, ...] = (16, 16), features: int = 6) -> Learned:
    """Random networks of two actions and two components."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=features).astype(np.float32) * 10
    std = rng.uniform(0.5, 20, size=features).astype(np.float32)
    scales = Scales(mean, std, np.array([0.5, 0.1]), 0.7, np.array([-0.5, 1.0]))
    state = torch.from_numpy(mean), torch.from_numpy(std)
    sigma, one = torch.tensor([0.5, 0.1]), torch.ones(1)
    return Learned(
        name="ddqn_cql",
        learner=Learner(alpha=1.0),
        contract=Contract(("hold", "send"), tuple(f"f{s}" for s in range(features)), ("sends", "clicks")),
        scales=scales,
        q_network=initial([seed], hidden, *state, 0 * sigma, sigma, 2).member(0),
        q_weights=scales.inner,
        behaviour=initial([seed + 1], (8,), *state, 0 * one, one, 2).member(0),
        values=initial([seed + 2], (8,), *state, 0 * sigma, sigma, 2).member(0),
        curves=[],
        agreement=None,
    )


def exported(each: Learned, folder: Path) -> Artifact:
    return load(export(each, folder, ALONE, {}))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learned, Artifact]:
    """One for every test that changes nothing in it."""
    each = learned(4)
    return each, exported(each, tmp_path_factory.mktemp("network"))


def a_state(each: Learned, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (each.scales.mean + 2 * each.scales.std * rng.normal(size=len(each.scales.mean))).astype(np.float32)


def margin_of(artifact: Artifact) -> Any:
    return lambda states: artifact.predict(states)[0] @ np.array([-1.0, 1.0])


def by_autograd(each: Learned, state: np.ndarray, points: int = 4000) -> np.ndarray:
    """[S] the same integral in torch, in 64 bits, by the network's own gradient."""
    module = Deployed(each).double()
    base, x = torch.from_numpy(each.scales.mean).double(), torch.from_numpy(state).double()
    alpha = (torch.arange(points).double() + 0.5) / points
    path = (base + alpha.unsqueeze(1) * (x - base)).requires_grad_(True)
    q = module(path)[0]
    (q[:, 1] - q[:, 0]).sum().backward()
    return ((x - base) * path.grad.mean(dim=0)).numpy()


@pytest.mark.parametrize("hidden", [(16, 16), (64,), (32, 32, 32)])
def test_on_a_network_it_is_the_integral_that_autograd_gives(hidden: tuple[int, ...], tmp_path: Path) -> None:
    each = learned(10, hidden)
    artifact = exported(each, tmp_path)
    mean, std = (np.array(artifact.scales[key]) for key in ("mean", "std"))
    for seed in range(8):
        state = a_state(each, seed)
        found = integrated_gradients(margin_of(artifact), state.astype(np.float64), mean, std)
        whole = np.abs(found.parts).sum()
        ends = margin_of(artifact)(np.stack([state, each.scales.mean]))
        assert found.difference == pytest.approx(ends[0] - ends[1])
        # Completeness, or all the points there are.
        assert abs(found.residual) <= 0.01 * abs(found.difference) or found.points == 256
        assert abs(found.residual) < 0.01 * whole
        assert np.abs(found.parts - by_autograd(each, state)).max() < 0.01 * whole


def test_a_feature_that_no_layer_reads_has_no_part_and_equal_ones_share(tmp_path: Path) -> None:
    each = learned(3)
    with torch.no_grad():
        first = each.q_network.weights[0]
        first[:, 2] = 0
        first[:, 1] = first[:, 0]
    # Of one mean and unit, so that equal values are equal to the network.
    for buffer in (each.q_network.mean, each.q_network.std, each.scales.mean, each.scales.std):
        buffer[1] = buffer[0]
    artifact, state = exported(each, tmp_path), a_state(each, 3)
    state[1] = state[0]
    found = explain(artifact, state, BOTH)
    shares = {movement.columns[0]: movement for movement in found.movements}
    assert shares["f0"].share > 0.01
    assert shares["f1"].share == pytest.approx(shares["f0"].share, abs=1e-3)
    assert shares["f1"].towards == shares["f0"].towards
    assert "f2" not in shares or shares["f2"].share < 1e-4
    assert sum(each.share for each in found.movements) + found.unattributed == pytest.approx(1)


def test_what_is_unknown_moves_nothing(network: tuple[Learned, Artifact]) -> None:
    each, artifact = network
    state = a_state(each, 4)
    state[[0, 3]] = np.nan
    known = {movement.columns[0] for movement in explain(artifact, state, BOTH).movements}
    assert known == {"f1", "f2", "f4", "f5"}
    nobody = explain(artifact, np.full(6, np.nan, dtype=np.float32), BOTH)
    assert nobody.movements == ()
    assert in_words(nobody)[-1] == "Nothing that it reads of this user moves the choice from there."


# What is told of a decision


def test_golden_words_of_a_plain_decision() -> None:
    found = explain(linear(), STATE, BOTH)
    # Movements 1.0, 0.8 and 1.6 of 3.4; values (4 - 3) sends * -0.1 + (0.5 - 0.2) clicks * 1 = 0.2.
    assert in_words(found) == [
        "The policy chooses send in 100% of such decisions, hold in 0%.",
        "Compared with hold, send is worth +1 notifications (× -0.1), +0.3 clicks (× 1): +0.2 in all.",
        "That speaks for send: what tips it is clicks, against sends.",
        "For the average user it would prefer hold. What moves it from there, most first:",
        "hours since visit is 4 h (average: 20 h): towards send, 47% of the movement.",
        "badge is 3 (average: 1): towards send, 29% of the movement.",
        "relevance is 0.9 (average: 0.5): towards send, 24% of the movement.",
    ]
    assert found.tips == "clicks"
    assert found.weighted.sum() == pytest.approx(0.2)
    assert [each.share for each in found.movements] == pytest.approx([1.6 / 3.4, 1.0 / 3.4, 0.8 / 3.4], abs=1e-6)


def said(**changes: Any) -> str:
    return " ".join(in_words(explain(linear(**changes), STATE, BOTH)))


HOLD_IS_WORTH_MORE = [[3.0, 0.5], [4.0, 0.2]]
"""Weighted: hold -0.3 + 0.5 = 0.2, send -0.4 + 0.2 = -0.2, while q prefers send."""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # In each the values speak for hold, and the policy prefers send.
        ({"logits": np.log([0.03, 0.97])}, "but the policy prefers send: it is cautious here, since the log rarely "
         "chose hold (3% of such decisions)."),
        ({"logits": np.log([0.3, 0.7])}, "it is cautious here, since the log chose hold less often than send (30% of"),
        ({"logits": np.log([0.7, 0.3])}, "values and preference are two estimates of one log, and here they differ."),
        ({"logits": np.log([0.03, 0.97]), "lineage": {"alpha": 0.0, "kind": "ddqn"}}, "two estimates of one log"),
        ({"logits": np.log([0.03, 0.97]), "lineage": {"alpha": 0.0, "kind": "iql"}}, "it is cautious here"),
        ({"logits": np.log([0.1, 0.9]), "lineage": {"alpha": 0.0, "kind": "ddqn, ensemble of 3"}}, "it is cautious"),
        ({"logits": np.log([0.1, 0.9]), "decision": {"rollout_share": 0.0}}, "prefers send: it does as the log did."),
    ],
)  # fmt: skip
def test_where_values_and_preference_disagree_it_says_so_and_why(changes: dict[str, Any], words: str) -> None:
    text = said(values=HOLD_IS_WORTH_MORE, **changes)
    assert (
        "+1 notifications (× -0.1), -0.3 clicks (× 1): -0.4 in all. That speaks for hold, most of all clicks; " in text
    )
    assert words in text


def test_where_they_agree_nothing_of_it_is_said() -> None:
    assert "but the policy" not in said()
    assert "By these values neither is better." in said(values=[[3.0, 0.5], [3.0, 0.5]])
    found = explain(linear(values=[[3.0, 0.5], [3.0, 0.5]]), STATE, BOTH)
    assert found.agrees
    assert found.tips is None


def test_a_price_of_a_send_that_decides_is_named() -> None:
    # q: send 2.9 against 0; less the price 3 it is -0.1.
    text = said(decision={"lambda": 3.0})
    assert "chooses hold in 100%" in text
    assert "The limit on volume decides: without it the policy would prefer another action." in text
    assert "but the policy prefers hold: the limit on volume makes a send dear." in text
    # The average user's preference is -0.5 - 3; the same way is travelled from there.
    assert "hours since visit is 4 h (average: 20 h): towards send, 47%" in text
    assert "volume" not in said(decision={"lambda": 2.8})


def test_a_mixture_says_whose_part_decides() -> None:
    # mu = (0.9, 0.1), own part send: 0.7 * 0.1 + 0.3 = 0.37.
    text = said(logits=np.log([0.9, 0.1]), decision={"rollout_share": 0.3})
    assert text.startswith(
        "The policy chooses hold in 63% of such decisions, send in 37%. 30% of decisions are the learned policy's own, "
        "which prefers send here; the others follow the logging policy, which chooses hold in 90%. "
        "The logging policy's part decides: it makes hold the likelier. Compared with hold, send is worth"
    )
    assert "part decides" not in said(logits=np.log([0.2, 0.8]), decision={"rollout_share": 0.3})


def test_chance_is_named() -> None:
    # 0.9 + 0.1 / 2
    text = said(decision={"exploration": 0.1})
    assert text.startswith(
        "The policy chooses send in 95% of such decisions, hold in 5%. It prefers send; the rest is ch"
    )


def test_a_policy_that_imitates_the_log_is_explained_by_what_it_acts_by() -> None:
    """Not by its q, which decides nothing."""

    class Imitating(Linear):
        def predict(self, state: Any) -> tuple[Any, Any, Any]:
            q, _, values = super().predict(state)
            return q, np.stack([0 * state[:, 0], -state[:, 2].astype(np.float64)], axis=1), values

    artifact = Imitating([[0, 0, 0], [0.5, 2.0, -0.1]], [[3.0, 0.2], [4.0, 0.5]], decision={"rollout_share": 0.0})
    found = explain(artifact, STATE, BOTH)
    # Logits 0 and -4: mu(send) = 1 / (1 + e^4)
    assert found.probabilities[1] == pytest.approx(1 / (1 + np.exp(4)))
    assert [each.feature for each in found.movements] == ["hours since visit"]
    # q prefers send, and no limit on volume is behind that.
    assert not found.budget
    assert in_words(found)[:2] == [
        "The policy chooses hold in 98% of such decisions, send in 2%.",
        "It imitates the logging policy.",
    ]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("consent", "Only hold is legal here: notifications are off. There is nothing to choose."),
        ("quiet_hours", "these are quiet hours"),
        ("max_sends_24h", "the limit of sends in 24 hours is reached"),
        ("max_sends_7d", "the limit of sends in 7 days is reached"),
        ("min_gap", "the last send is too recent"),
        ("", "the log or a configured limit allowed nothing else"),
    ],
)
def test_a_single_legal_action_has_a_rule_and_no_reasons(rule: str, words: str) -> None:
    found = explain(linear(), STATE, np.array([True, False]), rule)
    (sentence,) = in_words(found)
    assert words in sentence
    assert (found.rival, found.pair, found.movements, found.tips) == (None, None, (), None)
    assert found.rule == (rule or "only_legal_action")
    np.testing.assert_array_equal(found.probabilities, [1, 0])
    # What the other would be worth is there all the same.
    np.testing.assert_array_equal(found.values, linear().values)


THREE: dict[str, Any] = {
    "slopes": [[0, 0, 0], [0.5, 2.0, -0.1], [0.4, 2.0, -0.1]],
    "logits": np.log([0.5, 0.3, 0.2]),
}


def test_of_three_actions_the_rival_is_the_next_or_the_worthier() -> None:
    # Preference 0, 2.9, 2.6; worth 0.2 * 1 - 0.1 * 3 = -0.1, 0.1, -0.35.
    found = explain(linear(**THREE, values=[[3, 0.2], [4, 0.5], [4, 0.05]]), STATE, np.ones(3, bool))
    assert (found.preferred, found.rival, found.pair, found.agrees) == (1, 2, (2, 1), True)
    assert "Compared with send, push is worth 0 notifications (× -0.1), -0.45 clicks" in " ".join(in_words(found))
    found = explain(linear(**THREE, values=[[3, 0.9], [4, 0.5], [4, 0.05]]), STATE, np.ones(3, bool))
    assert (found.preferred, found.rival, found.agrees) == (1, 0, False)
    # What is illegal is neither chosen nor a rival, whatever its worth.
    found = explain(linear(**THREE, values=[[3, 0.2], [4, 9], [4, 0.5]]), STATE, np.array([True, False, True]))
    assert (found.preferred, found.rival, found.agrees, found.probabilities[1]) == (2, 0, True, 0)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_values_and_probabilities_are_the_artifacts(share: float, network: tuple[Learned, Artifact]) -> None:
    each, as_exported = network
    artifact = replace(as_exported, decision={"rollout_share": share, "exploration": 0.1, "lambda": 0.0})
    for seed in range(5):
        state = a_state(each, seed)
        found = explain(artifact, state, BOTH)
        np.testing.assert_array_equal(found.values, artifact.predict(state[None])[2][0])
        np.testing.assert_array_equal(
            found.probabilities, QPolicy(artifact).action_probabilities(state[None], BOTH[None])[0]
        )
        np.testing.assert_array_equal(found.difference, found.values[1] - found.values[0])
        np.testing.assert_allclose(found.weighted, found.difference * [-0.5, 1.0])


def plain(found: Explanation) -> tuple[Any, ...]:
    shares = [(each.feature, each.here, each.average, each.towards, round(each.share, 6)) for each in found.movements]
    return in_words(found), shares


def test_the_size_of_a_preference_is_nowhere_told() -> None:
    """A penalised q is no value: stretched, or moved for all actions alike, it leaves the same explanation."""
    found = plain(explain(linear(), STATE, BOTH))
    slopes = np.array([[0, 0, 0], [0.5, 2.0, -0.1]])
    assert plain(explain(linear(slopes=1000 * slopes), STATE, BOTH)) == found
    assert plain(explain(linear(slopes=slopes + np.array([3.0, 1.0, 2.0]), bias=-7.0), STATE, BOTH)) == found


def test_a_residual_is_admitted() -> None:
    found = replace(explain(linear(), STATE, BOTH), unattributed=0.04)
    assert in_words(found)[-1] == "4% of the movement could not be attributed."


def test_bad_calls(network: tuple[Learned, Artifact]) -> None:
    _, artifact = network
    with pytest.raises(InputError, match=r"state has shape \[1, 3\]; the policy was learned from \[N, 6\]"):
        explain(artifact, STATE, BOTH)
    with pytest.raises(InputError, match="1 rows have no legal action"):
        explain(linear(), STATE, np.array([False, False]))


# Columns that say one thing


@pytest.mark.parametrize(
    ("here", "usual", "words"),
    [
        ({"hour_sin": 1.0, "hour_cos": 0.0}, {"hour_sin": -0.5, "hour_cos": 0.0}, ("hour of day", "06:00", "18:00")),
        ({"hour_sin": -1e-9, "hour_cos": 1.0}, {"hour_sin": 0.1, "hour_cos": 0.1}, ("hour of day", "00:00", "")),
        (
            {"weekday_sin": np.sin(4 * np.pi / 7), "weekday_cos": np.cos(4 * np.pi / 7)},
            {"weekday_sin": 0.0, "weekday_cos": 0.0},
            ("day of week", "Wednesday", ""),
        ),
        ({"moon_sin": 0.0, "moon_cos": -1.0}, {"moon_sin": 0.0, "moon_cos": 0.0}, ("moon", "50% of its cycle", "")),
        ({"tone=glad": 0.0, "tone=sad": 1.0}, {"tone=glad": 0.7, "tone=sad": 0.2}, ("tone", "sad", "glad, 70%")),
        ({"tone=glad": 0.0, "tone=sad": 0.0}, {"tone=glad": 0.1, "tone=sad": 0.2}, ("tone", "another", "sad, 20%")),
        ({"topic=news": np.nan}, {"topic=news": 0.1}, ("topic", "unknown", "news, 10%")),
        ({"hours_since_visit": 71.2}, {"hours_since_visit": 20.04}, ("hours since visit", "71.2 h", "20 h")),
        (
            {"hours_since_visit": 672.0, "visit_never": 1.0},
            {"hours_since_visit": 20.0, "visit_never": 0.1},
            ("hours since visit", "never", "20 h"),
        ),
        ({"visit_never": 0.0}, {"visit_never": 0.004}, ("visit never", "no", "0.4% yes")),
        ({"notifications_on": 1.0}, {"notifications_on": 0.97}, ("notifications on", "yes", "97% yes")),
        ({"sends_7d": 3.0}, {"sends_7d": 1.234}, ("sends in 7 d", "3", "1.23")),
        ({"relevance": np.nan}, {"relevance": 0.5}, ("relevance", "unknown", "0.5")),
    ],
)  # fmt: skip
def test_a_group_of_columns_reads_as_one_feature(
    here: dict[str, float], usual: dict[str, float], words: tuple[str, str, str]
) -> None:
    (group,) = {_group(name, tuple(here)) for name in here}
    assert _described(group, here, usual) == words


def test_every_hour_and_day_survives_float32() -> None:
    for name, parts in (("hour", 24), ("weekday", 7)):
        read = []
        for each in range(parts):
            turn = 2 * np.pi * each / parts
            here = {f"{name}_sin": float(np.float32(np.sin(turn))), f"{name}_cos": float(np.float32(np.cos(turn)))}
            read.append(_described(name, here, here)[1])
        assert read == ([f"{hour:02d}:00" for hour in range(24)] if name == "hour" else list(DAYS))


def test_groups_take_what_belongs_together_and_nothing_else() -> None:
    names = (
        "hour_sin",
        "weekday_cos",
        "topic=news",
        "topics=a",
        "send_never",
        "visit_never",
        "hours_since_visit",
        "topic",
    )
    assert [_group(name, names) for name in names] == [
        "hour_sin",
        "weekday_cos",
        "topic=",
        "topics=",
        "send_never",
        "hours_since_visit",
        "hours_since_visit",
        "topic",
    ]


def test_a_pair_moves_as_one() -> None:
    # hour_sin 1 * 1, hour_cos -0.25 * 1: together 0.75, not 1 and 0.25.
    artifact = linear(
        slopes=[[0, 0, 0], [1.0, -0.25, 0.25]], features=("hour_sin", "hour_cos", "badge"), mean=(0.0, 0.0, 0.0)
    )
    found = explain(artifact, np.array([1.0, 1.0, 1.0], dtype=np.float32), BOTH)
    assert [(each.feature, each.here, each.columns) for each in found.movements] == [
        ("hour of day", "03:00", ("hour_sin", "hour_cos")),
        ("badge", "1", ("badge",)),
    ]
    assert [each.share for each in found.movements] == pytest.approx([0.75, 0.25], abs=1e-6)
    assert movement_in_words(found.movements[0]) == "hour of day is 03:00: towards send, 75% of the movement"


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.0, True, "0"),
        (-0.00001, True, "0"),
        (0.03149, True, "+0.0315"),
        (-0.97, False, "-0.97"),
        (12.34, False, "12.3"),
        (100.0, False, "100"),
        (12345.6, True, "+12,346"),
        (0.00214, False, "0.0021"),
    ],
)
def test_numbers_are_rounded_for_people(value: float, sign: bool, text: str) -> None:
    assert number(value, sign) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.0004, "under 0.1%"),
        (0.004, "0.4%"),
        (0.034, "3%"),
        (0.37, "37%"),
        (0.996, "99.6%"),
        (0.9999, "over 99.9%"),
        (1.0, "100%"),
    ],
)  # fmt: skip
def test_shares_near_the_ends_read_as_neither_never_nor_always(share: float, text: str) -> None:
    assert percent(share) == text
