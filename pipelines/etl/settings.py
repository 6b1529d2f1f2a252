"""What the rows of a run's folder were made with: run_dir/etl/HASH.json, by the hash that tables and policies keep.

Not in the tables' own log, which no one may rewrite. Conditions on the raw log and expressions over its columns, which
may name a user, are kept as digests and never told.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.store import ETL_HASH, fact, opened

SHOWN = 5
"""Keys that are told."""
UNTOLD = re.compile(r"data\.\w+\.(where|columns\..*)", re.DOTALL)
"""Keys whose values are Spark SQL."""


def keep_settings(config: Config) -> None:
    """Write the settings that decide a transition, for `changes` to compare with."""
    path = _path(config, config.etl_hash())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(_kept(config, config.etl_hash()), indent=1, sort_keys=True))
    partial.replace(path)


def changes(config: Config, theirs: str | None) -> str:
    """What differs from the settings with the hash `theirs`, in words: each key, what it was and what it is; of a
    condition or an expression that it differs."""
    path, hashes = _path(config, str(theirs)), f"etl hash {theirs}, now {config.etl_hash()}"
    if not path.exists():
        return f"{hashes}; which keys differ was not kept"
    was, now = (dict(_flat(each)) for each in (json.loads(path.read_text()), _kept(config, str(theirs))))
    differing = {key for key in was.keys() | now.keys() if was.get(key) != now.get(key)}
    keys = sorted(key for key in differing if key.rpartition(".")[0] not in differing)
    told = [
        f"{key} differs" if UNTOLD.fullmatch(key) else f"{key} was {_value(was, key)}, is {_value(now, key)}"
        for key in keys[:SHOWN]
    ]
    more = [f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return "; ".join([*told, *more]) or hashes


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


def _kept(config: Config, salt: str) -> dict[str, Any]:
    """The settings with a digest in place of every condition and expression, salted by the file's name and the key."""

    def hidden(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: hidden(each, f"{key}.{name}" if key else name) for name, each in value.items()}
        if value is None or not UNTOLD.fullmatch(key):
            return value
        return hashlib.sha256(json.dumps([salt, key, value]).encode()).hexdigest()

    found: dict[str, Any] = hidden(config.etl_settings(), "")
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, of a section {}."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield prefix + key, {}
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    return "not set" if value is None else "set" if value == {} else json.dumps(value)
