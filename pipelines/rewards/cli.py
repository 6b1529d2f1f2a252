"""The commands of `tactful rewards`: thin over the other files of this folder."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.arguments import ConfigPath, Overrides, loaded

app = typer.Typer(help="Learn a reward: from preferences, a goal, or a judge.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Commands are added below, one for each way."""


@app.command()
def judge(
    config: ConfigPath,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The learned reward; its transcript goes on from run to run.")
    ],
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", min=1, help="Pairs of user-weeks to ask about.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The answers.")] = Path("answers.jsonl"),
    human: Annotated[
        list[Path] | None,
        typer.Option("--human", metavar="FILE", help="Answers of people that the judge is held against."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Learn weights, corrected for the judge's errors and bias.")
    ] = False,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Learn them of a judge that is not trusted too.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Have a language model compare user-weeks, and say how far it agrees with people."""
    from rich.console import Console

    from pipelines.rewards.judging import Request, run_judge, shown

    request = Request(name, pairs, out, human or (), fit, untrusted)
    facts = run_judge(loaded(config, overrides), request, Console(stderr=True))
    for line in shown(facts):
        typer.echo(line)
    typer.echo(f"Written: {out}" + (f", and version {facts['version']} of {name}" if fit else ""))
