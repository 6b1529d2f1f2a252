"""Where the study's logs come from: a configuration as a file and what is changed of it."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.batch import rows_of
from models.errors import InputError
from models.table import Transitions
from pipelines.config import Config, load
from pipelines.inprocess import transitions_of
from policies.simulator import SimulatorConfig, simulate


@dataclass(frozen=True)
class Source:
    """A configuration by name, so that every process can read it and cache what it makes."""

    path: Path
    changed: tuple[tuple[str, str], ...] = ()
    """(dotted key, value as TOML)."""

    def but(self, **changed: object) -> "Source":
        """The same with other values; `simulate__users` stands for simulate.users."""
        pairs = tuple((key.replace("__", "."), str(value)) for key, value in changed.items())
        return replace(self, changed=self.changed + pairs)

    @property
    def config(self) -> Config:
        return _config(self)

    @property
    def world(self) -> SimulatorConfig:
        """Raises InputError where the configuration simulates nothing."""
        found = self.config.simulate
        if found is None:
            raise InputError(f"{self.path}: has no [simulate]; the study needs a world whose truth is known.")
        return found


@functools.lru_cache(maxsize=8)
def _config(source: Source) -> Config:
    return load(source.path, dict(source.changed))


@functools.lru_cache(maxsize=1)
def log_of(source: Source, seed: int) -> Transitions:
    """The transitions of the log of `source` in the world of `seed`; the last one stays in memory."""
    return transitions_of(simulate(source.world, seed), source.config)


def varying(source: Source, seed: int) -> Source:
    """Without the built-in features that are the same at all training rows of a small log: they tell nothing."""
    log = log_of(source, seed)
    rows = rows_of(log, "train").all
    same = {name for name, column in zip(log.contract.features, log.state[rows].T, strict=True) if np.ptp(column) == 0}
    kept = [name for name in source.config.features.state if name not in same]
    return source.but(features__state=json.dumps(kept)) if same else source
