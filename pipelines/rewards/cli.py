"""The commands of `tactful rewards`: thin over the other files of this folder."""

import typer

app = typer.Typer(help="Learn a reward: from preferences, a goal, or a judge.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Commands are added below, one for each way."""
