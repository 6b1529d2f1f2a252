"""The one place through which the transitions are read: pinned, with their estimates and their learned rewards."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models import propensities, table
from models.errors import InputError
from models.rewards import store
from models.rewards.learned import LearnedRewards, weights_of
from models.training import TrainConfig
from pipelines.config import Config

LEARNED_VERSIONS = "learned_versions"
"""Key of a lineage: version of each learned reward that was used."""


def logged(config: Config, lineage: Mapping[str, Any] | None = None) -> table.Transitions:
    """The transitions as the ETL made them, with their estimates and without learned rewards: what those are learned
    from.

    In the versions that a `lineage` names, or the newest. Raises InputError as `table.read` does.
    """
    estimates = config.propensities_path if propensities.exists(config.propensities_path) else None
    versions = (lineage["data_version"], lineage["estimates_version"]) if lineage else (None, None)
    return table.read(config.transitions_path, config.logged_contract, versions[0], estimates, versions[1])


def transitions(config: Config, lineage: Mapping[str, Any] | None = None) -> table.Transitions:
    """The same with learned rewards, in the versions of the `lineage` too.

    Raises InputError as `logged` and `learned_rewards` do, and where the table is none that a reward can be paid on.
    """
    rewards = learned_rewards(config, lineage)
    found = logged(config, lineage)
    return found if rewards is None else rewards(found)


def shards(config: Config, lineage: Mapping[str, Any] | None = None, deployed: bool = False) -> table.Shards:
    """The same a bucket at a time, without estimates; a `lineage` without a version of the data is of its newest.

    Raises InputError as `transitions` does.
    """
    version = lineage.get("data_version") if lineage else None
    rewards = learned_rewards(config, lineage, deployed)
    return table.Shards.of(config.transitions_path, config.logged_contract, version, rewards)


def learned_rewards(
    config: Config, lineage: Mapping[str, Any] | None = None, deployed: bool = False
) -> LearnedRewards | None:
    """The learned rewards among the components; None where there is none.

    In the versions of the `lineage` where it names them, else as configured. What is `deployed` keeps its versions
    whatever is pinned for the next training. Raises InputError where a reward or a version is not there, and where the
    configuration pins another version than the lineage of what is not deployed.
    """
    if not config.learned_names:
        return None
    stored = tuple(_stored(config, name, lineage, deployed) for name in config.learned_names)
    return LearnedRewards(config.logged_contract, config.contract.rewards, stored)


def learning(config: Config, lineage: Mapping[str, Any] | None = None) -> tuple[TrainConfig, dict[str, int]]:
    """[train] with its weights, where they are learned those of a version, and the version by name.

    Raises InputError as `learned_rewards` and `weights_of` do.
    """
    train = config.learning
    if train.weights_from is None:
        return train, {}
    stored = _stored(config, train.weights_from, lineage)
    rewards = learned_rewards(config, lineage)
    weights = weights_of(stored, config.contract if rewards is None else rewards.contract)
    return replace(train, weights=weights, weights_from=None), {stored.name: stored.version}


def _stored(config: Config, name: str, lineage: Mapping[str, Any] | None, deployed: bool = False) -> store.Stored:
    pinned, used = config.learned.versions.get(name), ((lineage or {}).get(LEARNED_VERSIONS) or {}).get(name)
    if pinned is not None and used is not None and pinned != used and not deployed:
        raise InputError(
            f"learned.versions.{name} is {pinned}, but what is judged was learned with version {used}; train again, or "
            f"pin version {used}."
        )
    return store.read(config.rewards_path, name, pinned if used is None else used)
