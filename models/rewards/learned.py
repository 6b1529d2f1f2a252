"""A learned reward as a component of a table, and as weights: computed from a stored version whenever rows are read.

The table itself never holds one, so that no ETL waits for a reward and a new version needs no new table.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.contract import Contract
from models.errors import InputError
from models.rewards.store import Kind, Stored
from models.table import Transitions

UNITS: dict[Kind, str] = {
    "weights": "log-odds of preference",
    "network": "standard deviations",
    "goal": "goal-days",
}
"""Raw unit of a component of each kind, where its facts name no `component_unit`."""
NEEDED = ("actions", "features", "rewards")
"""What the facts of a version may ask of a table, by these keys."""


@dataclass(frozen=True)
class LearnedRewards:
    """Versions of learned rewards and where their components stand among those of the log; a `table.Extension`."""

    logged: Contract
    order: tuple[str, ...]
    """[K] names of all components, in the order of the configuration."""
    stored: tuple[Stored, ...]

    @property
    def contract(self) -> Contract:
        """Of a table that has been extended."""
        return _extended(self.logged, self.stored, self.order)

    def __call__(self, table: Transitions) -> Transitions:
        """See `with_components`."""
        return with_components(table, self.stored, self.order)

    @property
    def versions(self) -> dict[str, int]:
        """Of each by name."""
        return {each.name: each.version for each in self.stored}


def with_components(table: Transitions, stored: Sequence[Stored], order: Sequence[str] | None = None) -> Transitions:
    """`table`, whose N rows are those of whole users, with a component for each of `stored`.

    They stand where `order` [K] names them, behind the others by default. The fingerprint is a hash of the table's and
    of what each reward is. Raises InputError as `component`, and where a component is called as another.
    """
    contract = _extended(table.contract, stored, order)
    columns = dict(zip(table.contract.rewards, table.reward.T, strict=True))
    columns |= {each.name: component(each, table) for each in stored}
    reward = np.stack([columns[name] for name in contract.rewards], axis=1)
    told = [table.fingerprint, *contract.rewards, *(digest(each) for each in stored)]
    return replace(
        table,
        contract=contract,
        reward=reward,
        fingerprint=hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
        learned_versions={**(table.learned_versions or {}), **{each.name: each.version for each in stored}},
    )


def _extended(logged: Contract, stored: Sequence[Stored], order: Sequence[str] | None) -> Contract:
    names = tuple(order) if order is not None else (*logged.rewards, *(each.name for each in stored))
    units = {each.name: str(each.facts.get("component_unit", UNITS[each.kind])) for each in stored}
    return replace(logged, rewards=names, units={**logged.units, **units})


def component(stored: Stored, table: Transitions) -> NDArray[np.float64]:
    """[N] the reward of each row, raw: in log-odds of preference (weights), standard deviations of what the network
    pays (network), or goal-days.

    A version of weights pays w . r; a network and a goal classifier pay what their modules say.

    Raises InputError where the table lacks an action, a feature or a reward component that the version was learned
    with, or has one in another unit, and where the reward of a row is not finite.
    """
    seen = _as_learned(stored, table)
    found: NDArray[np.float64]
    if stored.kind == "weights":
        found = seen.reward @ np.array([stored.facts["weights"][name] for name in seen.contract.rewards])
    elif stored.kind == "network":
        # Both bring torch along, which an executor needs for these alone.
        from models.rewards import network

        found = network.component(stored, seen)
    else:
        from models.rewards import goal

        found = goal.component(stored, seen)
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise InputError(
            f"learned:{stored.name}: version {stored.version} pays {found[wrong[0]]} at {len(wrong)} of {len(found)} "
            f"rows, first at row {wrong[0]} of user {table.user_id[table.user[wrong[0]]]}; learn it again, or pin an "
            f"earlier version (learned.versions.{stored.name})."
        )
    return found


def weights_of(stored: Stored, contract: Contract) -> dict[str, float]:
    """Weight per raw unit of each component, from a version of kind weights.

    Raises InputError where it is of another kind, or `contract` lacks a component, or has one in another unit.
    """
    if stored.kind != "weights":
        raise InputError(
            f"train.weights_from: {stored.name!r} version {stored.version} is a {stored.kind}, which has no weights; "
            f"add 'learned:{stored.name}' to rewards and give it a weight in train.weights."
        )
    found = {str(name): float(weight) for name, weight in stored.facts["weights"].items()}
    _check(stored, contract, {"rewards": list(found)}, f"train.weights_from: {stored.name!r}")
    return found


def digest(stored: Stored) -> str:
    """Hash of all that a version is."""
    told = hashlib.sha256(json.dumps([stored.name, stored.kind, stored.facts], sort_keys=True).encode())
    for name in sorted(stored.tensors):
        told.update(name.encode() + stored.tensors[name].numpy().tobytes())
    return told.hexdigest()


def _as_learned(stored: Stored, table: Transitions) -> Transitions:
    """The table with the actions, features and components that the version knows, in its order, and no others."""
    there = table.contract
    wanted = {key: list(stored.facts[key]) for key in NEEDED if key in stored.facts}
    if stored.kind == "weights":
        wanted = {"rewards": list(stored.facts["weights"])}
    _check(stored, there, wanted, f"learned:{stored.name}")
    actions, features, rewards = (list(wanted.get(key, getattr(there, key))) for key in NEEDED)
    unknown = [name for name in there.actions if name not in actions]
    if unknown:
        raise InputError(
            f"learned:{stored.name}: version {stored.version} was learned with the actions {', '.join(actions)} and "
            f"says nothing of {', '.join(unknown)}; learn it again from this log."
        )
    places = [there.actions.index(name) for name in actions]
    code = np.argsort(places)
    units = {name: unit for name, unit in there.units.items() if name in rewards}
    return replace(
        table,
        contract=Contract(tuple(actions), tuple(features), tuple(rewards), units),
        state=table.state[:, [there.features.index(name) for name in features]],
        reward=table.reward[:, [there.rewards.index(name) for name in rewards]],
        legal=table.legal[:, places],
        action=code[table.action].astype(np.int64),
    )


def _check(stored: Stored, there: Contract, wanted: dict[str, list[str]], who: str) -> None:
    """Raise InputError naming what `there` lacks of what is `wanted`, or has in another unit."""
    for key, names in wanted.items():
        known = getattr(there, key)
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(
                f"{who}: version {stored.version} was learned with the {key} {', '.join(missing)}, which the log has "
                f"not (it has {', '.join(known)}); configure them, or learn the reward again without."
            )
    for name, unit in dict(stored.facts.get("units", {})).items():
        now = there.units.get(name, unit)
        # A version that knew no unit asks for none.
        if unit and name in wanted.get("rewards", ()) and now != unit:
            raise InputError(
                f"{who}: version {stored.version} was learned with {name} in {unit}, and it is in {now} now; learn it "
                "again, or give the column its unit back."
            )
