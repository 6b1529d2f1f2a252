"""A learned reward as a component: what each kind pays, where it stands, what it asks of a log."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.contract import Contract
from models.errors import InputError
from models.rewards import store
from models.rewards.learned import LearnedRewards, component, digest, weights_of, with_components
from models.table import Transitions

TASTE = {"rewards": ["r0", "r1"], "weights": {"r1": 0.5, "r0": 2.0}}
Log = Callable[..., Transitions]


@pytest.fixture
def log(table_of: Log) -> Transitions:
    return table_of([0, 0, 1], state=[[1, 2], [3, 4], [5, 6]], reward=[[1, 0], [0, 4], [2, 2]])


def taste(root: Path, **changes: Any) -> store.Stored:
    return store.add(root, "taste", "weights", {**TASTE, **changes}, {})


def test_weights_pay_the_weighted_sum(log: Transitions, tmp_path: Path) -> None:
    # 2 r0 + r1 / 2, whichever order the weights were written in: 2 * 1, 4 / 2, 2 * 2 + 2 / 2.
    assert component(taste(tmp_path), log).tolist() == [2.0, 2.0, 5.0]


@pytest.mark.parametrize(("order", "reward"), [(None, [1, 0, 2]), (("r0", "taste", "r1"), [1, 2, 0])])
def test_it_stands_where_the_configuration_names_it(
    log: Transitions, tmp_path: Path, order: tuple[str, ...] | None, reward: list[float]
) -> None:
    found = with_components(log, [taste(tmp_path)], order)
    assert found.contract.rewards == (order or ("r0", "r1", "taste"))
    assert found.reward[0].tolist() == reward
    assert found.contract.units == {"taste": "log-odds of preference"}
    assert found.learned_versions == {"taste": 1}
    assert found.where(np.array([True, False, True])).learned_versions == {"taste": 1}
    # The log itself is what it was.
    assert log.contract.rewards == ("r0", "r1")
    assert log.learned_versions is None


def test_the_fingerprint_is_of_the_log_and_of_what_the_reward_is(log: Transitions, tmp_path: Path) -> None:
    first, same = taste(tmp_path), taste(tmp_path)
    other = taste(tmp_path, weights={"r0": 2.0, "r1": 0.6})
    prints = [with_components(log, [each]).fingerprint for each in (first, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert log.fingerprint not in prints
    assert with_components(replace(log, fingerprint="x"), [first]).fingerprint not in prints
    assert digest(first) == digest(store.read(tmp_path, "taste", 1)) != digest(other)


def test_a_unit_of_its_own_is_kept(log: Transitions, tmp_path: Path) -> None:
    stored = taste(tmp_path, component_unit="happy days", units={"r0": ""})
    assert LearnedRewards(log.contract, ("r0", "taste", "r1"), (stored,)).contract.units == {"taste": "happy days"}


def test_an_empty_bucket_has_the_components_too(log: Transitions, tmp_path: Path) -> None:
    empty = log.where(np.zeros(3, dtype=bool))
    found = LearnedRewards(log.contract, ("r0", "taste", "r1"), (taste(tmp_path),))(empty)
    assert found.reward.shape == (0, 3)


def test_a_version_is_asked_in_the_order_it_was_learned_in(
    table_of: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions, features and components by name; a log that orders them otherwise is another table, the same reward."""
    log = table_of(
        [0, 0], state=[[1, 2, 9], [3, 4, 9]], reward=[[1, 0], [0, 4]], legal=[[True] * 3, [True, True, False]],
        action=np.array([2, 1]),
    )  # fmt: skip
    seen = []

    def paid(stored: store.Stored, table: Transitions) -> Any:
        seen.append(table)
        return np.zeros(len(table.user))

    monkeypatch.setattr("models.rewards.network.component", paid)
    facts = {"actions": ["hold", "push", "send"], "features": ["f1", "f0"], "rewards": ["r1"]}
    component(store.add(tmp_path, "net", "network", facts, {}), log)
    (found,) = seen
    assert found.contract == Contract(("hold", "push", "send"), ("f1", "f0"), ("r1",))
    assert found.action.tolist() == [1, 2]
    assert found.legal.tolist() == [[True, True, True], [True, False, True]]
    assert found.state.tolist() == [[2, 1], [4, 3]]
    assert found.reward.tolist() == [[0], [4]]


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("weights", {"weights": {"r0": 1.0, "steps": 1.0}}, "with the rewards steps, which the log has not"),
        ("network", {"features": ["f0", "mood"]}, "with the features mood, which the log has not"),
        ("network", {"actions": ["hold", "send", "mail"]}, "with the actions mail, which the log has not"),
        ("network", {"actions": ["hold"]}, "says nothing of send"),
        ("weights", {"weights": {"r0": 1.0}, "units": {"r0": "minutes"}}, "with r0 in minutes, and it is in hours now"),
        ("weights", {"weights": {"r0": 1e308}}, "pays inf at 1 of 3 rows, first at row 2 of user u1"),
    ],
)
def test_what_a_log_cannot_give_is_named(
    log: Transitions, tmp_path: Path, kind: store.Kind, facts: dict[str, Any], message: str
) -> None:
    log = replace(log, contract=replace(log.contract, units={"r0": "hours"}))
    stored = store.add(tmp_path, "taste", kind, facts, {})
    with np.errstate(over="ignore"), pytest.raises(InputError, match=message):
        component(stored, log)


def test_a_nan_from_a_network_is_refused(log: Transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.rewards.network.component", lambda *_: np.array([0.0, np.nan, 1.0]))
    with pytest.raises(InputError, match=r"learned:net: version 1 pays nan at 1 of 3 rows, first at row 1 of user u0"):
        component(store.add(tmp_path, "net", "network", {}, {}), log)


def test_a_component_cannot_be_called_as_another(log: Transitions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="r0 is named more than once"):
        with_components(log, [store.add(tmp_path, "r0", "weights", TASTE, {})])


def test_weights_to_train_with(log: Transitions, tmp_path: Path) -> None:
    assert weights_of(taste(tmp_path), log.contract) == {"r0": 2.0, "r1": 0.5}
    with pytest.raises(InputError, match="'taste': version 2 was learned with the rewards r9"):
        weights_of(taste(tmp_path, weights={"r9": 1.0}), log.contract)
    with pytest.raises(InputError, match="'net' version 1 is a network, which has no weights; add 'learned:net'"):
        weights_of(store.add(tmp_path, "net", "network", {}, {}), log.contract)
