"""Propensities for a log that lacks them: from the transitions to the versioned table of estimates."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import propensities, table
from models.errors import InputError, TransientError
from pipelines import reading
from pipelines.config import Config
from policies.propensity import describe, estimate


def run_propensity(config: Config) -> dict[str, Any]:
    """Estimate every unknown propensity of the newest transitions and write them as a new version; returns the report.

    The report is that of `policies.propensity.describe`, with the version written and the transitions it is for.

    Raises InputError as `table.read` and `estimate` do, TransientError where another writer committed to either table
    meanwhile: what was read may hold users who are forgotten since.
    """
    base = propensities.newest(config.propensities_path)
    transitions, keys = table.read_with_keys(config.transitions_path, config.logged_contract)
    found = estimate(transitions, config.propensity, config.seed)
    report = describe(transitions, found, config.propensity, config.seed)
    columns: dict[str, NDArray[Any]] = {
        "decided_at": transitions.decided_at[found.rows],
        "propensity": found.propensity,
        "fold": found.fold,
    }
    made_from = {propensities.MADE_FROM: str(transitions.version), propensities.MADE_FOR: transitions.fingerprint}
    facts = {**made_from, "model": json.dumps(report["model"]), "calibration": json.dumps(report["calibration"])}
    if (now := table.newest(config.transitions_path)) != transitions.version:
        raise TransientError(
            f"{config.transitions_path}: version {now} came while propensities were estimated for version "
            f"{transitions.version}; run it again."
        )
    version = propensities.write(config.propensities_path, keys, columns, facts, base)
    return {**report, **made_from, "version": version}


def transitions_to_train(config: Config) -> table.Transitions:
    """The newest transitions, with the newest estimates of what the log lacks where there are any.

    Raises InputError as `reading.transitions` does: where the estimates are there, they must be for these transitions.
    """
    return reading.transitions(config)


def transitions_to_evaluate(config: Config, lineage: Mapping[str, Any] | None) -> table.Transitions:
    """The transitions that training read, by its `lineage`, with the same estimates, or the newest if it had none, and
    the same learned rewards; where nothing was trained (None), the newest of all.

    Raises InputError as `reading.transitions` does, and where a propensity is neither logged nor estimated.
    """
    found = reading.transitions(config, lineage)
    check_known(config, found)
    return found


def check_known(config: Config, found: table.Transitions) -> None:
    """Raise InputError where a propensity is neither logged nor estimated."""
    unknown = int(np.isnan(found.propensity).sum())
    if unknown:
        raise InputError(
            f"{config.transitions_path}: {unknown} of {len(found.propensity)} decisions have no propensity; estimate "
            "them (`tactful propensity CONFIG`: enough to evaluate, never to promote), or log the probability of the "
            "action taken."
        )


def in_words(report: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    errors = [
        f"{each['ece']:.3f} over {each['decisions']:,} decisions of {whose} users"
        for whose, key in (("training", "cross_fitted"), ("other", "held_out"))
        if (each := report["calibration"][key]) is not None
    ]
    return (
        f"{report['estimated']:,} of {report['decisions']:,} propensities estimated, {report['floored']:,} raised to "
        f"{report['model']['floor']:g}; calibration error {', '.join(errors) or 'unknown: no decision had a choice'}"
    )
