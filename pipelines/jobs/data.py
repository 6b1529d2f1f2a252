"""Steps that bring a log in and keep its tables: simulate, ready, etl, quality, propensity, vacuum, forget."""

import json
from typing import Any

from models import artifact
from models.errors import InputError, TransientError
from pipelines import erase
from pipelines import vacuum as retention
from pipelines.config import Config
from pipelines.estimation import in_words, run_propensity
from pipelines.etl import counts
from pipelines.etl.checks import check_inputs
from pipelines.etl.flow import run_etl
from pipelines.etl.quality import make_thresholds
from pipelines.etl.ready import waited_for
from pipelines.etl.schemas import USERS, Days
from pipelines.etl.store import opened
from pipelines.etl.window import EVER, day_number, days_until
from pipelines.jobs.steps import console, registry_of, session, step, step_path
from pipelines.simulate import run_simulate

SHOWN = 10
"""Of what is waited for, so many are named."""


def simulate(config: Config) -> dict[str, Any]:
    """Write the simulated world's raw log to the paths of `data`."""
    if config.simulate is None:
        raise InputError(f"{config.name}: the configuration has no [simulate]; add it, or start with `tactful etl`.")
    with step(config, "simulate") as result:
        result.update(run_simulate(config))
    return result


def etl(config: Config, rebuild: bool = False, first: str | None = None, last: str | None = None) -> dict[str, Any]:
    """Turn the raw log into transitions and check the data on the way; with `first`, what arrived from then to `last`.

    With `last` alone, what arrived until then and is not in the table yet, or where all is, what arrived on `last`.
    Raises InputError where the days are no dates, or in the wrong order.
    """
    days = _days(config, rebuild, first, last)
    with step(config, "etl") as result:
        check_inputs(config, range(USERS + 1))
        with session(config) as spark:
            result.update(run_etl(spark, config, rebuild=rebuild, days=days))
            console.print(counts.in_words(result["rows"]), markup=False, highlight=False, soft_wrap=True)
    return result


def _days(config: Config, rebuild: bool, first: str | None, last: str | None) -> Days | None:
    if first is None:
        if last is None:
            return None
        return days_until(None if rebuild else opened(config.transitions_path), day_number(last, "--to"))
    days = day_number(first, "--from"), day_number(last or first, "--to")
    if days[0] > days[1]:
        raise InputError(f"--from {first} lies after --to {last}; name the first day first.")
    return days


def ready(config: Config, last: str, first: str | None = None, marker: str = "") -> None:
    """Whether what `tactful etl` would take in with these days lies in the lake.

    Raises InputError where the days are no dates, or in the wrong order; TransientError naming what is not there yet.
    """
    days = _days(config, False, first, last)
    if lacking := waited_for(config, days or (EVER, EVER), marker):
        more = [f"and {len(lacking) - SHOWN} more"] if len(lacking) > SHOWN else []
        raise TransientError("\n".join([*lacking[:SHOWN], *more]))
    console.print(f"ready: what arrived until {last} lies in the lake", highlight=False)


def quality(config: Config) -> dict[str, Any]:
    """Make thresholds from the profiles that the ETL left of the reference period."""
    with step(config, "quality") as result:
        made = make_thresholds(config.quality, config.run_dir / "quality")
        result["reference"] = [str(day) for day in made.reference]
        result["metrics"] = {name: len(bounds) for name, bounds in made.datasets.items()}
        result["left_out"] = made.left_out
    return result


def propensity(config: Config) -> dict[str, Any]:
    """Estimate the propensities that the log lacks, as a new version of the table of estimates."""
    with step(config, "propensity") as result:
        result.update(run_propensity(config))
        console.print(in_words(result))
    return result


def vacuum(config: Config, dry_run: bool = False) -> dict[str, retention.Removed]:
    """Remove the files that no kept version of a table needs."""
    found = retention.vacuum(config, _lineages(config), dry_run)
    console.print(retention.in_words(found, dry_run), highlight=False)
    return found


def _lineages(config: Config) -> list[dict[str, Any]]:
    """What the newest policies were learned from, and those that the registry's aliases name."""
    path = step_path(config, "train")
    found = [json.loads(path.read_text())["lineage"]] if path.exists() else []
    versions = registry_of(config)
    # A registry that was never used is not made by looking into it.
    if versions.database is None or versions.database.exists():
        named = [alias for alias in ("champion", "challenger", "previous") if versions.alias(alias) is not None]
        found += [artifact.load(versions.load(alias)[0]).lineage for alias in named]
    return found


def forget(config: Config, ids: list[str]) -> erase.Forgotten:
    """Erase users from every version of every table, and keep them out of those to come."""
    found = erase.forget(config, ids)
    console.print(erase.in_words(found, config), markup=False, highlight=False, soft_wrap=True)
    return found
