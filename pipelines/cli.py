"""The command line: thin over jobs.py, one command per step, exit codes as documented."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from models.errors import TactfulError
from pipelines.config import Config, load

app = typer.Typer(
    name="tactful",
    help="Decides when a notification is worth sending: from a raw log to a gated, registered, scored policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file; see configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as data.decisions.path=x.csv."),
]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="Replace a table that another ETL configuration made.")]

EXIT_CODE = {"PROMOTE": 0, "REFUSE": 4, "INCONCLUSIVE": 5}


def _load(path: Path, overrides: list[str] | None) -> Config:
    pairs = {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text}: write it as KEY=VALUE.")
        pairs[key.strip()] = value.strip()
    return load(path, pairs)


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, rebuild: Rebuild = False) -> None:
    """The whole road: every step below in order; exit code 0 whatever the verdict."""
    from pipelines import jobs

    jobs.run(_load(config, overrides), rebuild=rebuild)


@app.command()
def simulate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write a raw log from the simulated world, where the configuration has one."""
    from pipelines import jobs

    jobs.simulate(_load(config, overrides))


@app.command()
def etl(config: ConfigPath, overrides: Overrides = None, rebuild: Rebuild = False) -> None:
    """Turn the raw log into transitions; exit code 3 where the data broke a critical expectation."""
    from pipelines import jobs

    jobs.etl(_load(config, overrides), rebuild=rebuild)


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Learn the policies and export each as ONNX."""
    from pipelines import jobs

    jobs.train(_load(config, overrides))


@app.command()
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Estimate the value of every policy from the log, with intervals."""
    from pipelines import jobs

    jobs.evaluate(_load(config, overrides))


@app.command()
def promote(config: ConfigPath, overrides: Overrides = None) -> None:
    """Judge the candidate and move the registry's aliases; exit code 0 promote, 4 refuse, 5 inconclusive."""
    from pipelines import jobs

    verdict = jobs.promote(_load(config, overrides))
    raise typer.Exit(EXIT_CODE[verdict["verdict"]])


@app.command()
def score(config: ConfigPath, overrides: Overrides = None) -> None:
    """Decide for every candidate of the night with the champion."""
    from pipelines import jobs

    jobs.score(_load(config, overrides))


@app.command()
def report(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write report.html and summary.json from what the steps left in the run's folder."""
    from pipelines import jobs

    jobs.report(_load(config, overrides))


def main() -> None:
    """Run the command; an error of ours is printed as its message and ends with its exit code."""
    # MLflow reads this when imported, and nobody asked it to phone anyone.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()
    except TactfulError as error:
        _say(error)
        sys.exit(error.exit_code)


def _say(error: Any) -> None:
    console.print(f"[bold red]{type(error).__name__}[/]", highlight=False)
    console.print(str(error), markup=False, highlight=False, soft_wrap=True)
