"""Policies that a configuration names instead of learning them: fixed probabilities, and who wrote another log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.contract import HOLD
from models.errors import InputError
from policies.base import Booleans, Floats, Integers, Policy
from policies.baselines import Always, Never

SAME = 1e-6
"""How far apart the propensities of one action in one cell may lie, and their sum from 1, to be the policy itself."""
RECORDED_KEYS = ("path", "format", "separator", "where", "columns", "by")
"""What says where another log lies and how it is cut into cells."""


def check_separator(separator: str) -> str:
    """What may separate the columns of CSV, as it is. Raises ValueError for what Spark cannot use."""
    if len(separator) != 1 or separator in '\\"\r\n':
        raise ValueError("give one character, and no quote, backslash or end of a line")
    return separator


@dataclass(frozen=True)
class NamedPolicy:
    """One entry of evaluate.policies: a policy that learned nothing from this log."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["uniform", "fixed", "never", "always", "logged"]
    """`uniform` over the legal actions; `fixed` by `probabilities`; `never` and `always` send, where `hold` is an
    action; `logged`: the policy that wrote the log at `path`."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """fixed: weight of each action, 0 for those left out; divided by the sum over the legal ones at every decision."""
    path: Path | None = None
    """logged: that log, as data.decisions has its own; so are format, separator, where and columns, which default to
    those of data.decisions."""
    format: Literal["parquet", "csv", "json"] | None = None
    separator: str | None = None
    where: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    by: tuple[str, ...] = ()
    """logged: context columns that the other policy's probabilities depend on; with the legal actions they make a
    cell."""

    def __post_init__(self) -> None:
        if self.separator is not None:
            try:
                check_separator(self.separator)
            except ValueError as error:
                raise InputError(f"separator is {self.separator!r}; {error}.") from None
        given = [name for name in RECORDED_KEYS if getattr(self, name)]
        if self.kind == "logged" and self.path is None:
            raise InputError("kind 'logged' needs `path`, the log that the policy wrote.")
        if self.kind != "logged" and given:
            raise InputError(f"kind {self.kind!r} reads no log; remove {', '.join(given)}.")
        if (self.kind == "fixed") != bool(self.probabilities):
            raise InputError(f"kind {self.kind!r} with probabilities {self.probabilities}; `fixed` alone needs them.")
        values = list(self.probabilities.values())
        if values and not (all(np.isfinite(value) and value >= 0 for value in values) and sum(values) > 0):
            raise InputError(f"probabilities are {self.probabilities}; give 0 or more to each, and not 0 to all.")

    def check(self, key: str, actions: Sequence[str], context: Sequence[str]) -> None:
        """Raise InputError naming `key` where the policy needs an action or a context column that is not configured."""
        if self.kind in ("never", "always") and HOLD not in actions:
            raise InputError(f"{key}: kind {self.kind!r} needs the action `hold`, which is not configured; remove it.")
        for what, names, known in (("probabilities", self.probabilities, actions), ("by", self.by, context)):
            for name in names:
                if name not in known:
                    raise InputError(f"{key}.{what}: {name!r} is not configured (known: {', '.join(known) or 'none'}).")


@dataclass(frozen=True)
class Fixed:
    """The same weight for an action at every decision."""

    name: str
    weight: Floats
    """[A] 0 or more."""
    learned: bool = False

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] weight_a / sum of the weights of the legal actions; `state` is not read.

        Raises InputError where no legal action of `legal` [N, A] has weight.
        """
        found: Floats = legal * self.weight
        total = found.sum(axis=1, keepdims=True)
        if (total == 0).any():
            row = int((total[:, 0] == 0).argmax())
            raise InputError(
                f"{self.name}: gives no weight to any action that is legal at row {row} and {int((total == 0).sum())} "
                "in all; give every action some weight that may be the only legal one."
            )
        found /= total
        return found


@dataclass(frozen=True)
class Recorded:
    """The policy that wrote another log, as a table of its probabilities by cell."""

    name: str
    features: Integers
    """[B] places in the state of what a cell is known by."""
    cells: NDArray[np.float32]
    """[C, B + A] those features and the legal actions of each cell, all different."""
    probability: Floats
    """[C, A]."""
    told: Mapping[str, float | int]
    """How the table came about, see `recorded`."""
    learned: bool = False

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] the probabilities of each row's cell, by `state` [N, S] and `legal` [N, A]; 1 where one action is
        legal.

        Raises InputError where the other log never was in a row's cell: what its policy does there is not known.
        """
        # Cells are matched by their bytes, in which -0 is not 0.
        keys = np.concatenate([state[:, self.features], legal], axis=1).astype(np.float32) + np.float32(0.0)
        different, place = np.unique(keys, axis=0, return_inverse=True)
        known = {cell.tobytes(): number for number, cell in enumerate(self.cells)}
        cell = np.array([known.get(key.tobytes(), -1) for key in different])[place.ravel()]
        choice = legal.sum(axis=1) > 1
        unknown = choice & (cell < 0)
        if unknown.any():
            row = int(unknown.argmax())
            raise InputError(
                f"{self.name}: its log has no decision like {int(unknown.sum())} of {len(legal)} here, first row {row} "
                f"(context {keys[row, : len(self.features)].tolist()}, {int(legal[row].sum())} legal actions): what "
                "the policy would do there is not known; name fewer columns in `by`, or a log that covers them."
            )
        found: Floats = legal.astype(np.float64)
        found[choice] = self.probability[cell[choice]]
        return found

    def warnings(self) -> list[str]:
        """What a reader of its value must know of the table."""
        told = self.told
        if told["exact_cells"] == told["cells"]:
            return []
        return [
            f"{self.name}: in {told['cells'] - told['exact_cells']} of {told['cells']} cells its log does not state "
            f"the policy's probabilities (propensities of one action differ by up to {told['spread']:.3g} within a "
            f"cell, {told['unseen']} legal actions were never chosen in theirs). The target is that log's average "
            f"policy, by how often each action was chosen (at least {told['smallest_cell']} decisions a cell); no "
            "interval holds the error of that."
        ]


def recorded(
    name: str,
    features: Integers,
    keys: NDArray[np.float32],
    action: Integers,
    number: Integers,
    stated: Floats,
    actions: int,
) -> Recorded:
    """The policy that wrote a log, from groups of its decisions that share cell and action.

    `keys` [G, B + A] cell of each group (values of `features`, legal actions), `action` [G], `number` [G] decisions,
    `stated` [G, 3] mean, least and largest of their propensities. Cell and action of several groups may be the same.

    Where each action's propensities agree to SAME in a cell and sum to 1, they are the policy. Elsewhere
    pi(a | cell) = n_a / n, whose mean over logs is the average policy of the cell. A mean of the propensities would not
    be: they are logged for the action taken, so it is E[p^2] / E[p] and sums to more than 1. An action never chosen
    gets 0 there, nothing is made up for it. `told`: cells, exact_cells, decisions, spread (largest high - low of an
    action), unseen (legal actions never chosen in their cell), smallest_cell (decisions).
    """
    cells, place = np.unique(keys + np.float32(0.0), axis=0, return_inverse=True)
    shape = len(cells), actions
    where = place.ravel(), action
    count, total, least, most = np.zeros(shape), np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf)
    np.add.at(count, where, number)
    np.add.at(total, where, number * stated[:, 0])
    np.minimum.at(least, where, stated[:, 1])
    np.maximum.at(most, where, stated[:, 2])
    seen = count > 0
    spread = np.where(seen, most - least, 0.0)
    mean = total / np.maximum(count, 1)
    exact = (spread <= SAME).all(axis=1) & (np.abs(mean.sum(axis=1) - 1) <= SAME)
    of_cell = np.where(exact[:, None], mean, count)
    legal = cells[:, len(features) :] > 0
    told = {
        "cells": len(cells),
        "exact_cells": int(exact.sum()),
        "decisions": int(count.sum()),
        "spread": float(spread.max()),
        "unseen": int((legal & ~seen)[~exact].sum()),
        "smallest_cell": int(count.sum(axis=1).min()),
    }
    return Recorded(name, features, cells, of_cell / of_cell.sum(axis=1, keepdims=True), told)


def plain(name: str, named: NamedPolicy, actions: Sequence[str]) -> Policy:
    """The policy of any kind but `logged`."""
    if named.kind == "never":
        return Never(name)
    if named.kind == "always":
        return Always(name)
    if named.kind == "uniform":
        return Fixed(name, np.ones(len(actions)))
    return Fixed(name, np.array([named.probabilities.get(action, 0.0) for action in actions]))
