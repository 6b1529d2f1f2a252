"""The brake: while a run's folder is frozen every score holds, and nothing but the candidates is read."""

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path

from models.contract import HOLD
from models.errors import InputError
from pipelines.config import Config


def freeze(config: Config, reason: str) -> dict[str, str]:
    """Make every score hold from now on; returns since when, by whom and why.

    One that is frozen stays as it is. Raises InputError where the configuration has no `hold`.
    """
    if config.actions[0] != HOLD:
        raise InputError(f"actions: there is no `{HOLD}`, so nothing can be held; stop whoever acts on the scores.")
    found = frozen(config)
    if found is not None:
        return found
    made = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "by": _user(), "reason": reason}
    config.run_dir.mkdir(parents=True, exist_ok=True)
    partial = _path(config).with_suffix(".partial")
    partial.write_text(json.dumps(made, indent=1))
    partial.replace(_path(config))
    return made


def unfreeze(config: Config) -> dict[str, str] | None:
    """Let the champion decide again; returns what was lifted, None where nothing was frozen."""
    found = frozen(config)
    _path(config).unlink(missing_ok=True)
    return found


def frozen(config: Config) -> dict[str, str] | None:
    """Since when, by whom and why every score holds; None where none has to.

    A file that cannot be read freezes too: whoever left it meant to.
    """
    try:
        text = _path(config).read_text()
    except FileNotFoundError:
        return None
    try:
        found = dict(json.loads(text))
    except ValueError:
        found = {}
    return {key: str(found.get(key) or "unknown") for key in ("since", "by", "reason")}


def in_words(found: dict[str, str]) -> str:
    """One line for a log."""
    return f"FROZEN since {found['since']} by {found['by']} ({found['reason']})"


def _path(config: Config) -> Path:
    return config.run_dir / "frozen.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container whose user has no name.
        return "unknown"
