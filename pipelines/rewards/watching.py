"""What the gate is told of the learned rewards that a candidate was trained on; see policies/hacking.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.contract import SPLITS
from models.rewards import store
from models.rewards.store import Stored
from models.rewards.support import Support
from models.table import Transitions
from pipelines.config import Config
from pipelines.reading import LEARNED_VERSIONS
from policies.base import Policy
from policies.hacking import WRITTEN, distance


def trained_on(config: Config, lineage: Mapping[str, Any] | None) -> dict[str, Stored]:
    """The learned rewards that weigh in the objective, in the versions of the `lineage`; none without [train].

    Raises InputError where one is not there.
    """
    if config.train is None:
        return {}
    names = objective(config)
    used = {**config.learned.versions, **((lineage or {}).get(LEARNED_VERSIONS) or {})}
    return {name: store.read(config.rewards_path, name, used.get(name)) for name in names}


def objective(config: Config) -> list[str]:
    """The learned rewards that the candidate is trained on: by weights of its own, else by those of [train]."""
    train = config.learning
    own = train.named[config.gate.candidate].weights
    weights = train.weights if own is None else own
    names = [name for name in config.learned_names if weights.get(name)]
    return [*names, train.weights_from] if own is None and train.weights_from is not None else names


def returns_of(config: Config, stored: Mapping[str, Stored]) -> dict[str, dict[str, float]]:
    """Weighted sums of components to evaluate: each reward that is weights, and what was written by hand.

    Nothing where nothing was learned.
    """
    if not stored:
        return {}
    train = config.learning
    own = train.named[config.gate.candidate].weights
    weights = train.weights if own is None else own
    written = config.gate.return_weights or {
        name: weight for name, weight in weights.items() if weight and name not in config.learned_names
    }
    found = {name: dict(each.facts["weights"]) for name, each in stored.items() if name == train.weights_from}
    return {**found, **({WRITTEN: dict(written)} if written else {})}


def told_of(stored: Mapping[str, Stored], transitions: Transitions, candidate: Policy) -> dict[str, Any]:
    """By name {kind, version, distance}: how far `candidate` is from the log and from what raters saw, on test rows."""
    test = transitions.split == SPLITS.index("test")
    found = {}
    for name, each in stored.items():
        support = Support.read(each.facts["support"]) if "support" in each.facts else None
        far = distance(transitions, candidate, test if test.any() else np.ones(len(test), np.bool_), support)
        found[name] = {"kind": each.kind, "version": each.version, "distance": far}
    return found
