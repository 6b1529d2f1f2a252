"""Every command of the runbook, in order, those of the emergency last, on a small simulated lake."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from models.errors import TactfulError
from pipelines import cli, jobs
from pipelines.arguments import loaded

ROOT = Path(__file__).parents[1]
RUNBOOK = ROOT / "docs" / "runbook.md"
ELSEWHERE = re.compile(r"# run by (tests/\S+)$")
CONFIG = """
name = "runbook"
seed = 3
run_dir = "run"
rewards = ["sends", "clicks", "visits", "weekly_active_days", "disables"]

[simulate]
users = 300
days = 17
truth_users = 100

[data.decisions]
path = "run/lake/decisions"
[data.events]
path = "run/lake/events"
[data.users]
path = "run/lake/users"
[data.candidates]
path = "run/lake/candidates"

[etl]
buckets = 2

[quality]
reference = ["2026-01-13", "2026-01-20"]
docs = false

[features]
state = ["notifications_on", "sends_24h", "visits_7d", "hours_since_visit", "badge", "hour_sin", "hour_cos"]
context = ["relevance"]

[train]
steps = 40
batch_size = 64
hidden = [16]
behaviour_steps = 40
value_steps = 40
[train.weights]
clicks = 1.0
sends = -0.05
[train.learners]
ddqn_cql = 1.0

[evaluate]
resamples = 100
fqe_steps = 40

[gate]
shares = [0.2]
[gate.metrics.weekly_active_days]
direction = "up"
margin = 0.01
[gate.metrics.sends]
direction = "down"
margin = 0.0
improve = true

[abtest]
control = "logging"
treatments = ["tactful"]
[abtest.metrics.clicks]
direction = "up"
effect = 0.2

[spark]
master = "local[1]"
shuffle_partitions = 1
"""


@dataclass(frozen=True)
class Line:
    """One command, the exit codes that the runbook allows it, and where else it is run, if so."""

    words: str
    codes: frozenset[int]
    elsewhere: str


def lines() -> Iterator[Line]:
    """The commands of the runbook's `sh` blocks, in order, those of its first section last: they need a champion."""
    before, emergency, *rest = re.split(r"^## ", RUNBOOK.read_text(), flags=re.M)
    for block in re.findall(r"^```sh\n(.*?)^```", "\n".join([before, *rest, emergency]), re.M | re.S):
        for text in block.splitlines():
            command, _, comment = text.partition("  #")
            codes = re.match(r"\s*exit ([\d, ]+)$", comment)
            found = ELSEWHERE.search(text)
            skipped = found[1] if found else "nowhere" if "# not run:" in text else ""
            yield Line(command.strip(), frozenset(map(int, codes[1].split(","))) if codes else frozenset({0}), skipped)


def run(words: list[str]) -> int:
    """What `main` of the command line would exit with."""
    try:
        cli.app(words, standalone_mode=False)
    except TactfulError as error:
        print(error)
        return error.exit_code
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_what_is_run_elsewhere_is_there() -> None:
    for line in lines():
        if line.elsewhere not in {"", "nowhere"}:
            place = ROOT / line.elsewhere
            program, verb = line.words.split()[:2]
            assert program == "airflow"
            files = [place] if place.is_file() else sorted(place.glob("*.py"))
            assert any(verb in file.read_text() for file in files), line.words


@pytest.mark.timeout(900)
def test_every_command_does_what_the_runbook_says(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(CONFIG)
    jobs.simulate(loaded(Path("my.toml"), None))
    monkeypatch.setenv("DAY", "2026-01-20")
    monkeypatch.setenv("WHO", "u0000001")
    commands = [line for line in lines() if not line.elsewhere]
    assert len(commands) > 20
    for line in commands:
        words = [os.path.expandvars(word) for word in shlex.split(line.words)]
        assert words[0] == "tactful", line.words
        code = run(words[1:])
        assert code in line.codes, f"{line.words} ended with {code}, the runbook says {sorted(line.codes)}"
