"""`killed_nights.py FOLDER`: kill the scoring of the night in FOLDER four times at each station, then let it be.

Each scoring is a process of its own, forked from this one, which has imported everything and opened nothing: a real
death (SIGKILL) within a second. Prints as JSON, by station, how each of the processes ended.
"""

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.scoring import tasks
from tests.pipelines.scoring.nights import champion_for, configured, score

KILLS = 4
WRITES = {"first file": 1, "half of the files": 2}
"""Station -> how many files of scores were written by then; there are four buckets."""
LINES = ("candidates: first task wrote", "about to commit", "committed", "manifest written")
STATIONS = (*WRITES, *LINES)


class Death(logging.Handler):
    """Ends the process at a line of its log."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def emit(self, record: logging.LogRecord) -> None:
        if self.marker in record.getMessage():
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def night_of(folder: Path, run: str) -> Config:
    return configured(folder, run, score={"share_at_most": 0.4}, etl={"buckets": 4})


def play(config: Config, station: str | None) -> None:
    """Score; dead at the station, if there is one."""
    if station in WRITES:
        write, left = tasks.staging.write, [WRITES[station]]

        def writing(*given: Any) -> Any:
            found = write(*given)
            left[0] -= 1
            if left[0] == 0:
                die()
            return found

        tasks.staging.write = writing
    elif station is not None:
        logger = logging.getLogger("tactful.score")
        logger.setLevel(logging.INFO)
        logger.addHandler(Death(station))
    score(config, champion_for(config, lambda_low=-3.0, lambda_high=3.0))


def forked(config: Config, station: str | None) -> int:
    """How a process that scores ended: 0, or the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            play(config, station)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    for place, station in enumerate((None, *STATIONS)):
        run = f"station{place}"
        shutil.copytree(folder / "made", folder / run)
        config = night_of(folder, run)
        kills = [] if station is None else [forked(config, station) for _ in range(KILLS)]
        found[station or "undisturbed"] = {"run": run, "killed": kills, "then": forked(config, None)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
