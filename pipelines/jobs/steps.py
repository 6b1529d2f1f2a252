"""What every step shares: the terminal, the run's folder, a session, the registry, and what a policy came from."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console

from models import table
from models.errors import InputError
from models.registry import Registry
from models.training import BEHAVIOUR
from pipelines.config import Config
from pipelines.reading import LEARNED_VERSIONS
from pipelines.session import spark_session

logger = logging.getLogger("tactful.gate")

# Into a file or a pipe a table is as wide as it needs, not as narrow as the eighty columns of nobody's terminal.
console = Console(width=None if sys.stdout.isatty() else 160)


def step_path(config: Config, step: str) -> Path:
    return config.run_dir / "steps" / f"{step}.json"


@contextmanager
def step(config: Config, step: str) -> Iterator[dict[str, Any]]:
    """Collect a step's result and write it with its duration, only when the step succeeded."""
    console.rule(f"[bold]{step}", align="left")
    started = time.perf_counter()
    result: dict[str, Any] = {}
    # What an earlier run left is no result of this one, should it fail.
    step_path(config, step).unlink(missing_ok=True)
    yield result
    result["seconds"] = round(time.perf_counter() - started, 3)
    write_json(step_path(config, step), result)
    console.print(f"[dim]{step}: {result['seconds']:.1f} s[/]")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: of two commands that write it at once neither moves the other's.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False))
    # A reader sees the old file or the new one, never half of one.
    partial.replace(path)


def left_by(config: Config, step: str) -> dict[str, Any]:
    """The result of an earlier step; InputError naming the command that makes it where it is absent."""
    path = step_path(config, step)
    if not path.exists():
        raise InputError(f"{path}: not there; run `tactful {step}` with this configuration first.")
    return dict(json.loads(path.read_text()))


@contextmanager
def session(config: Config) -> Iterator[SparkSession]:
    """A session, stopped at the end by whoever started it."""
    running = SparkSession.getActiveSession()
    spark = running or spark_session(config.spark, f"tactful {config.name}")
    try:
        yield spark
    finally:
        if running is None:
            spark.stop()


def warn_unpromotable(config: Config) -> None:
    """Say before hours of work what would keep its result from ever being promoted."""
    if config.learning.seeds == 1:
        logger.warning(
            "train.seeds is 1: one seed cannot say whether another would act alike, so that the gate promotes nothing "
            "that is learned now; give train.seeds = 2 or more where it is to be promoted."
        )
    warn_unguarded(config)


def warn_unguarded(config: Config) -> None:
    """The same of a gate that has nothing to guard: a policy is promoted by the rules that it was evaluated with."""
    if not config.gate.metrics:
        logger.warning(
            "gate.metrics is empty: `tactful promote` will judge nothing; name the metrics to guard, each with "
            "direction and margin, before `tactful evaluate`."
        )


def policy_folder(config: Config, name: str) -> Path:
    return config.run_dir / "policies" / name


def _commit() -> str | None:
    """The commit of the working tree, where it is one."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def registry_of(config: Config) -> Registry:
    uri = config.mlflow.tracking_uri or f"sqlite:///{config.run_dir.resolve() / 'mlflow.db'}"
    return Registry(uri, config.mlflow.model, config.mlflow.experiment)


def registry_there(config: Config) -> Registry:
    """The registry, for a command that only asks it. Raises InputError where there is none: asking makes none."""
    found = registry_of(config)
    if found.database is not None and not found.database.exists():
        key = "run_dir" if config.mlflow.tracking_uri is None else "mlflow.tracking_uri"
        raise InputError(
            f"{found.database}: no registry lies there; correct {key}, or register a policy first (`tactful train`, "
            "`evaluate`, `promote`)."
        )
    return found


def decision_of(config: Config, name: str = "") -> dict[str, float]:
    """How an artifact's outputs become probabilities before a volume fixes lambda; the cloned logging policy acts as
    itself."""
    if name == BEHAVIOUR:
        return {"rollout_share": 0.0, "exploration": 0.0, "lambda": 0.0}
    policy = config.policy
    return {"rollout_share": policy.rollout_share, "exploration": policy.exploration, "lambda": policy.lambda_}


def _window(transitions: table.Transitions) -> list[str]:
    return table.span(transitions.decided_at.min(), transitions.decided_at.max())


def lineage_of(
    config: Config, transitions: table.Transitions, weights_from: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What a policy was learned from, or what was evaluated without learning; `weights_from` is the version by name of
    a learned reward that its weights are."""
    learned = {**(transitions.learned_versions or {}), **(weights_from or {})}
    return {
        "data_version": transitions.version,
        "estimates_version": transitions.estimates_version,
        **({LEARNED_VERSIONS: learned} if learned else {}),
        "fingerprint": transitions.fingerprint,
        "window": _window(transitions),
        "config_hash": config.digest(),
        "etl_hash": config.etl_hash(),
        "commit": _commit(),
        "seed": config.seed,
    }


def checkpoint_of(config: Config, step: str = "learn") -> Path:
    return config.run_dir / "checkpoints" / f"{step}.safetensors"
