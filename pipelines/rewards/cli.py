"""The commands of `tactful rewards`: thin over the other files of this folder."""

from typing import Annotated

import typer

from pipelines.arguments import ConfigPath, Overrides, loaded

app = typer.Typer(help="Learn a reward: from preferences, a goal, or a judge.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Commands are added below, one for each way."""


Name = Annotated[str, typer.Argument(help="What the learned reward is called, as in `learned:NAME`.")]


@app.command()
def goal(config: ConfigPath, name: Name, set_: Overrides = None) -> None:
    """Learn how likely a state is one worth being in, as [learned.goal] says; a new version of the reward."""
    from pipelines.rewards.goals import run_goal

    run_goal(loaded(config, set_), name)
