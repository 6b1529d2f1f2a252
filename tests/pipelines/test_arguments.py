"""What the help of every command says of its arguments."""

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli import app

GROUPS = {"abtest", "rewards"}


def commands() -> list[list[str]]:
    """The words of every command, those of groups too."""
    found = typer.main.get_command(app).commands
    within = {name: found[name].commands for name in GROUPS}
    return [[name] for name in found if name not in GROUPS] + [[name, each] for name in within for each in within[name]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_usage_of_a_command_has_plain_names(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    usage = next(line for line in done.output.splitlines() if "Usage:" in line)
    assert f"{' '.join(words)} [OPTIONS] CONFIG" in usage
    assert "{" not in usage
