"""What the README and the documents tell a reader to type exists."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.M))
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}
COMMANDS |= {group.name for group in app.registered_groups}


def test_the_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_it_names_exists(document):
    text = document.read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))
    assert set(re.findall(r"\bmake ([a-z][a-z0-9-]*)\b", code)) <= TARGETS
    assert set(re.findall(r"(?<![\w/.])(?:\.venv/bin/)?tactful ([a-z]+)\b", code)) <= COMMANDS
    for path in re.findall(
        r"(?<![\w/])(?:configs|docs|airflow_dags|tests|models|policies|pipelines)/[\w/.-]*\.\w+", text
    ):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda each: each.callback.__name__)
def test_the_help_of_a_command_loses_no_word(command):
    name = command.name or command.callback.__name__
    words = " ".join(command.callback.__doc__.replace("`", "").split())
    for asked in ([name, "--help"], ["--help"]):
        shown = CliRunner().invoke(app, asked, env={"COLUMNS": "300"}).output.replace("`", "")
        assert words in " ".join(shown.split())
