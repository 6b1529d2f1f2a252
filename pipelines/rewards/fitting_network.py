"""A network from answers: `tactful rewards fit --form network`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from models.rewards import answers as told
from models.rewards import network, store
from models.rewards.store import Stored
from models.rewards.weeks import weeks_of
from pipelines import reading
from pipelines.config import Config
from pipelines.jobs.steps import console, step


def run_network(config: Config, name: str, files: Sequence[Path], untrusted: bool = False) -> Stored:
    """Learn a network from `files` of answers about the log, and write it as the next version of `name`.

    `untrusted` answers of a judge count where that is asked for.

    Raises InputError as `answers.read`, `table.read`, `weeks_of` and `models.rewards.network.fit` do.
    """
    with step(config, f"rewards_fit_{name}") as result:
        log = reading.logged(config)
        weeks = weeks_of(log, config.learned.days)
        found = network.fit([(log, weeks)], told.read(files, untrusted), config.learned.network, config.seed)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {**found.facts, "days": config.learned.days, "data_version": log.version, "created_at": created}
        trial = Stored(name, 0, "network", facts, found.tensors)
        facts["slopes"] = {key: list(each) for key, each in network.slopes(trial, log).items()}
        stored = store.add(config.rewards_path, name, "network", facts, found.tensors)
        result |= {"version": stored.version, "held_out": facts["held_out"], "accuracy": facts["accuracy"]}
    for each in shown(stored):
        console.print(each, highlight=False, soft_wrap=True)
    return stored


def shown(stored: Stored) -> list[str | Table]:
    """What a version of kind network is, for a terminal: held-out accuracy, calibration, and what a unit is worth."""
    facts = stored.facts
    accuracy = "unknown" if facts["accuracy"] is None else f"{facts['accuracy']:.1%}"
    told = (
        f"{stored.name} version {stored.version}, a network: {accuracy} of {facts['held_out']} held-out comparisons "
        f"right, log loss {facts['log_loss']:.3f} (0.693 by chance); they stopped the learning, so both are a little "
        "better than on others"
    )
    worth = Table("component", "one unit more is worth, log odds", "members from", "to")
    for name, numbers in facts.get("slopes", {}).items():
        worth.add_row(name, *(f"{number:+.3g}" for number in numbers))
    calibrated = Table("P(left)", "held-out comparisons", "predicted", "observed")
    for each in facts["calibration"]:
        bounds = f"{each['low']:.1f} to {each['high']:.1f}"
        calibrated.add_row(bounds, str(each["answers"]), f"{each['predicted']:.2f}", f"{each['observed']:.2f}")
    return [told, worth, calibrated]
