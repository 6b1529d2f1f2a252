"""What makes a checkpoint that of one run: all that its numbers follow from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from models.members import Member
from models.stream import Survey
from models.table import Transitions
from models.training import TrainConfig
from models.watch import Assess

FREE = ("threads", "device", "compile")
"""Settings that another process may change."""


def identity_of(
    table: Transitions,
    config: TrainConfig,
    seed: int,
    members: Sequence[Member],
    assess: Assess | None,
    found: Survey | None,
    judged_by: str,
) -> dict[str, Any]:
    """As JSON gives it back.

    `table` is held in memory, `found` says what passes through beside it, `judged_by` names the settings of how
    policies are deployed and evaluated, on the rows of `assess`.
    """
    rows = None if assess is None else hashlib.sha256(assess.rows.tobytes()).hexdigest()
    named = {
        "data": [table.fingerprint, None if found is None else found.fingerprint],
        "contract": {key: each for key, each in asdict(table.contract).items() if key != "units"},
        "settings": _settings(config),
        "seed": seed,
        "members": [[each.name, each.seed, each.draws] for each in members],
        "evaluation": [judged_by, rows],
    }
    told: dict[str, Any] = json.loads(json.dumps(named))
    return told


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Those that no other process may change, an alpha by what is in force."""
    found = {key: each for key, each in asdict(config).items() if key not in FREE}
    for each in found["learners"].values():
        if isinstance(each, dict) and each["alpha"] is None:
            # The default of the kind that has a penalty; checkpoints of older versions have it for the others too.
            each["alpha"] = 1.0
    return found
