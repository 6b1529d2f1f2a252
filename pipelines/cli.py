"""The command line: thin over jobs, one command per step, exit codes as documented."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from models.errors import TactfulError
from pipelines.arguments import Commands, ConfigPath, Overrides, loaded
from pipelines.rewards.cli import app as rewards

app = Commands(
    name="tactful",
    help="Decides when a notification is worth sending: from a raw log to a gated, registered, scored policy.",
    no_args_is_help=True,
    add_completion=False,
    # In Rich's own markup [sweep] is a style, and not shown; without any the list of commands is cut short.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
abtest = Commands(help="Plan an experiment, and read it.", no_args_is_help=True)
app.add_typer(abtest, name="abtest")
app.add_typer(rewards, name="rewards")
console = Console(stderr=True)

Rebuild = Annotated[bool, typer.Option("--rebuild", help="Replace a table that another ETL configuration made.")]

EXIT_CODE = {"PROMOTE": 0, "REFUSE": 4, "INCONCLUSIVE": 5}


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, rebuild: Rebuild = False) -> None:
    """The whole road: simulate, etl, propensity, train, evaluate, promote, score and report, each where the
    configuration asks for it; exit code 0 whatever the verdict."""
    from pipelines import jobs

    jobs.run(loaded(config, overrides), rebuild=rebuild)


@app.command()
def simulate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write a raw log from the simulated world, where the configuration has one."""
    from pipelines import jobs

    jobs.simulate(loaded(config, overrides))


@app.command()
def etl(
    config: ConfigPath,
    overrides: Overrides = None,
    rebuild: Rebuild = False,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First arrival day, YYYY-MM-DD.")] = None,
    last: Annotated[
        str | None,
        typer.Option("--to", metavar="DAY", help="Last arrival day; without --from, all until then that is new."),
    ] = None,
) -> None:
    """Turn the raw log into transitions, all of it or what arrived on some days; exit code 3 on bad data."""
    from pipelines import jobs

    jobs.etl(loaded(config, overrides), rebuild=rebuild, first=first, last=last)


@app.command()
def ready(
    config: ConfigPath,
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last arrival day, YYYY-MM-DD.", show_default=False)],
    overrides: Overrides = None,
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="DAY", help="First arrival day; by default the first not yet taken in."),
    ] = None,
    marker: Annotated[
        str,
        typer.Option("--marker", metavar="NAME", help="A file that says a day's folder is whole, as _SUCCESS."),
    ] = "",
) -> None:
    """Say whether the raw days that `tactful etl` would take in have arrived; exit code 75 where they have not."""
    from pipelines import jobs

    jobs.ready(loaded(config, overrides), last, first, marker)


@app.command()
def quality(config: ConfigPath, overrides: Overrides = None) -> None:
    """Make the thresholds of data quality from the reference period, for every later run of the ETL."""
    from pipelines import jobs

    jobs.quality(loaded(config, overrides))


@app.command()
def propensity(config: ConfigPath, overrides: Overrides = None) -> None:
    """Estimate the propensities that the log lacks; they serve evaluation, and never a promotion."""
    from pipelines import jobs

    jobs.propensity(loaded(config, overrides))


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    spark_processes: Annotated[
        int, typer.Option("--spark-processes", min=1, help="So many processes, started by Spark's TorchDistributor.")
    ] = 1,
) -> None:
    """Learn the policies and export each as ONNX; `torchrun -m pipelines.cli train CONFIG` shares the work."""
    from pipelines import jobs

    found = loaded(config, overrides)
    if spark_processes > 1:
        jobs.train_by_spark(found, config, overrides or [], spark_processes)
    else:
        jobs.train(found)


@app.command()
def sweep(config: ConfigPath, overrides: Overrides = None) -> None:
    """Learn one policy per weighting in [sweep] and say what each would cost and bring, and which nobody beats."""
    from pipelines import jobs

    jobs.sweep(loaded(config, overrides))


@app.command()
def pick(
    config: ConfigPath,
    most: Annotated[
        float,
        typer.Option("--sends-at-most", metavar="X", help="Budget, per user-week or decision.", show_default=False),
    ],
    relative: Annotated[
        bool, typer.Option("--relative", help="X is a share of what the logging policy sends: 0.9.")
    ] = False,
    maximise: Annotated[
        str, typer.Option("--maximise", metavar="METRIC", help="A reward component, or weighted: by train.weights.")
    ] = "weighted",
    by_estimate: Annotated[
        bool, typer.Option("--by-estimate", help="Hold the estimate to X, not the upper end of its interval.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Say which member of the sweep meets a volume budget, as lines for the configuration."""
    from pipelines import jobs

    jobs.pick(loaded(config, overrides), most, relative, maximise, "estimate" if by_estimate else "high")


@app.command()
def evaluate(
    config: ConfigPath,
    overrides: Overrides = None,
    spark: Annotated[
        bool, typer.Option("--spark", help="One bucket of users at a time, on Spark's executors, for logs of any size.")
    ] = False,
) -> None:
    """Estimate the value of every policy from the log, with intervals; without [train] no training is needed."""
    from pipelines import jobs

    jobs.evaluate(loaded(config, overrides), spark)


@app.command()
def promote(
    config: ConfigPath,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="A registered version, judged before.", show_default=False)
    ] = None,
    override: Annotated[
        str | None,
        typer.Option("--override", metavar="REASON", help="With --version: promote without a verdict; kept."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Judge the candidate and move the registry's aliases; exit code 0 promote, 4 refuse, 5 inconclusive."""
    from pipelines import jobs

    if version is None and override is not None:
        raise typer.BadParameter("--override goes with --version N; a candidate that is judged now has its verdict.")
    found = loaded(config, overrides)
    verdict = jobs.promote(found) if version is None else jobs.promote_version(found, str(version), override)
    raise typer.Exit(EXIT_CODE[verdict["verdict"]])


@app.command()
def rollback(
    config: ConfigPath,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the registry.")] = "",
    overrides: Overrides = None,
) -> None:
    """Make the champion before this one champion again, in one command."""
    from pipelines import jobs

    jobs.rollback(loaded(config, overrides), reason)


@app.command()
def score(config: ConfigPath, overrides: Overrides = None) -> None:
    """Decide for every candidate of the night with the champion."""
    from pipelines import jobs

    jobs.score(loaded(config, overrides))


@app.command()
def handover(
    config: ConfigPath,
    file: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .parquet or a .csv.", show_default=False)],
    night: Annotated[
        str | None, typer.Option("--night", metavar="DAY", help="A scored night, YYYY-MM-DD; by default the newest.")
    ] = None,
    expired: Annotated[
        bool, typer.Option("--expired", help="Also rows past their valid_until: to look at, not to act on.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Write a scored night as one file for the sender, with those rows alone that hold now."""
    from pipelines import jobs

    jobs.handover(loaded(config, overrides), file, night, expired)


@app.command()
def freeze(
    config: ConfigPath,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever comes next.")] = "",
    overrides: Overrides = None,
) -> None:
    """Make every score hold until `unfreeze`; no model and no registry is needed."""
    from pipelines import jobs

    jobs.freeze(loaded(config, overrides), reason)


@app.command()
def unfreeze(config: ConfigPath, overrides: Overrides = None) -> None:
    """Let the champion decide again."""
    from pipelines import jobs

    jobs.unfreeze(loaded(config, overrides))


@app.command()
def monitor(
    config: ConfigPath,
    overrides: Overrides = None,
    night: Annotated[str | None, typer.Option("--night", metavar="DAY", help="One night, YYYY-MM-DD.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First night of several.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last night; by default --from.")] = None,
) -> None:
    """Hold what was scored against what was logged and earned; exit code 3 where something critical is wrong."""
    from pipelines import jobs

    jobs.monitor(loaded(config, overrides), night=night, first=first, last=last)


@app.command()
def report(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write report.html and summary.json from what the steps left in the run's folder."""
    from pipelines import jobs

    jobs.report(loaded(config, overrides))


@app.command()
def explain(
    config: ConfigPath,
    user: Annotated[str, typer.Argument(metavar="USER", help="A user id, as the log has it.", show_default=False)],
    decision: Annotated[str | None, typer.Option("--decision", metavar="ID", help="One decision of theirs.")] = None,
    last: Annotated[int, typer.Option("--last", metavar="N", help="Their newest decisions with a choice.")] = 1,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="A trained policy; by default the champion.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Say why a policy chooses as it does for a user: what each action is worth, what tips it, what moved it."""
    from pipelines import jobs

    jobs.explain(loaded(config, overrides), user, decision=decision, last=last, policy=policy, as_json=as_json)


@abtest.command("plan")
def abtest_plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say how many users and days the experiment needs, from the log's own variance."""
    from pipelines import jobs

    jobs.abtest_plan(loaded(config, overrides))


@abtest.command("read")
def abtest_read(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say what the arms differ in, with a verdict; exit code 0 whatever it is."""
    from pipelines import jobs

    jobs.abtest_read(loaded(config, overrides))


@app.command()
def vacuum(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove files of every table that no kept version needs, see [retention]."""
    from pipelines import jobs

    jobs.vacuum(loaded(config, overrides), dry_run=dry_run)


@app.command()
def forget(
    config: ConfigPath,
    ids: Annotated[list[str] | None, typer.Argument(metavar="IDS...", help="User ids.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A text with a user id on each line.")] = None,
    overrides: Overrides = None,
) -> None:
    """Erase users from every version of every table; what the raw log still holds of them is read no more."""
    from pipelines import erase, jobs

    jobs.forget(loaded(config, overrides), [*(ids or []), *(erase.ids_in(file) if file else [])])


def main() -> None:
    """Run the command; an error of ours is printed as its message and ends with its exit code."""
    # MLflow reads this when imported, and nobody asked it to phone anyone.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _log_to_stderr()
    try:
        app()
    except TactfulError as error:
        _say(error)
        sys.exit(error.exit_code)


def _log_to_stderr() -> None:
    """Milestones and notices, with the time: what the on-call engineer reads the morning after."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("tactful")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _say(error: Any) -> None:
    console.print(f"[bold red]{type(error).__name__}[/]", highlight=False)
    console.print(str(error), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
