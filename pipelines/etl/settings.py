"""What the rows of a run's folder were made with: run_dir/etl/HASH.json, by the hash that tables and policies keep.

Not in the tables' own log: a condition on the raw log may name a user, and no one may rewrite that log.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.store import ETL_HASH, fact, opened

SHOWN = 5
"""Keys that are told."""
ABSENT = object()


def keep_settings(config: Config) -> None:
    """Write the settings that decide a transition, for `changes` to compare with."""
    path = _path(config, config.etl_hash())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(config.etl_settings(), indent=1, sort_keys=True))
    partial.replace(path)


def changes(config: Config, theirs: str | None) -> str:
    """What differs from the settings with the hash `theirs`, in words: each key, what it was and what it is."""
    path = _path(config, str(theirs))
    if not path.exists():
        return f"etl hash {theirs}, now {config.etl_hash()}; which keys differ was not kept"
    was, now = (dict(_flat(each)) for each in (json.loads(path.read_text()), config.etl_settings()))
    keys = sorted(key for key in was.keys() | now.keys() if was.get(key, ABSENT) != now.get(key, ABSENT))
    told = [f"{key} was {_value(was, key)}, is {_value(now, key)}" for key in keys[:SHOWN]]
    more = [f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return "; ".join([*told, *more])


def check_settings(config: Config, rebuild: bool = False) -> None:
    """Raise InputError where the transitions were made with other settings and `rebuild` is not asked for."""
    base = opened(config.transitions_path)
    if rebuild or base is None:
        return
    found = fact(base, ETL_HASH)
    if found != config.etl_hash():
        raise InputError(
            f"{config.transitions_path}: its rows were made with other settings: {changes(config, found)}. Run the ETL "
            "with --rebuild to replace them, set those keys as they were, or give `run_dir` another folder."
        )


def _path(config: Config, etl_hash: str) -> Path:
    return config.run_dir / "etl" / f"{etl_hash}.json"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(found: dict[str, Any], key: str) -> str:
    return json.dumps(found[key]) if found.get(key) not in (None, {}) else "not set"
