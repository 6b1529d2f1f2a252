"""`tactful rewards ask`: choose pairs of user-weeks and write the page on which a person compares them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.contract import SPLITS
from models.errors import InputError
from models.rewards import answers as said
from models.rewards import network, store
from models.rewards.active import CANDIDATES, choose, known, random_pairs
from models.rewards.asking import Question, repeated, with_repeats
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import reading
from pipelines.config import Config
from pipelines.rewards.page import render

LONGEST = 60
"""Letters of a rater's name."""


@dataclass(frozen=True)
class Asked:
    """What was put on the page."""

    questions: list[Question]
    weeks: int
    """User-weeks they were chosen from."""
    by: str
    """How: `chance`, or `what NAME vN leaves open`."""
    file: str
    """Name under which the page saves the answers."""
    command: str
    """How to go on."""


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    pairs: int
    """Questions on the page, repeats among them."""
    rater: str
    out: Path
    name: str | None = None
    """Learned reward whose doubts choose the pairs, where a version of it is there."""
    answers: Sequence[Path] = ()
    """Answers so far: their pairs are not asked again."""
    repeats: float = 0.1
    """Share of the questions that ask an earlier pair again, sides swapped."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise InputError(f"pairs: {self.pairs} asked for; one or more are needed.")
        if not self.rater.strip() or len(self.rater) > LONGEST or not self.rater.isprintable():
            raise InputError(f"rater: {self.rater[:80]!r} is no name; give one of at most {LONGEST} letters.")
        if not 0 <= self.repeats <= 0.5:
            raise InputError(f"repeats is {self.repeats}; it must be a share between 0 and 0.5.")


def ask(config: Config, request: Request, config_path: Path) -> Asked:
    """Write the page of `request` about the log of `config`, and say what is on it.

    Users of the test split are left out: what is learned from the answers may be judged on them. Raises InputError
    where the log has no whole stretch or too few pairs, and where the page cannot be written.
    """
    log = reading.logged(config)
    weeks = weeks_of(log, config.learned.days, log.split != SPLITS.index("test"))
    again = repeated(request.pairs, request.repeats)
    chosen, by = _chosen(config, request, log, weeks, request.pairs - again)
    questions = with_repeats(chosen, again, request.seed)
    file = f"answers-{re.sub(r'[^A-Za-z0-9_-]+', '-', request.rater).strip('-') or 'rater'}.jsonl"
    words = {
        "name": config.name,
        "rater": request.rater,
        "file": file,
        "command": go_on(config_path, request.name, [*map(str, request.answers), file]),
    }
    page = render(log, weeks, questions, config.learned.days, words)
    _write(request.out, page)
    return Asked(questions, len(weeks.id), by, file, words["command"])


def go_on(config_path: Path, name: str | None, files: Sequence[str]) -> str:
    """The command that learns from the answers."""
    told = [word for file in files for word in ("--answers", file)]
    return shlex.join(["tactful", "rewards", "fit", str(config_path), name or "NAME", *told])


def _chosen(config: Config, request: Request, log: Transitions, weeks: Weeks, n: int) -> tuple[NDArray[np.int64], str]:
    asked, rng = _asked(request, weeks), np.random.default_rng(request.seed)
    if request.name is None or not store.versions(config.rewards_path, request.name):
        return random_pairs(weeks, asked, n, rng), "chance"
    stored = store.read(config.rewards_path, request.name, config.learned.versions.get(request.name))
    if stored.kind == "goal":
        return random_pairs(weeks, asked, n, rng), f"chance, as {stored.name} is a goal and learned from no pairs"
    return telling(stored, log, weeks, asked, n, rng), f"what {stored.name} v{stored.version} leaves open"


def telling(
    stored: store.Stored,
    log: Transitions,
    weeks: Weeks,
    asked: NDArray[np.int64],
    n: int,
    rng: np.random.Generator,
    candidates: int = CANDIDATES,
) -> NDArray[np.int64]:
    """[n, 2] new pairs that tell most: of `candidates`, where the ensemble of a learned reward disagrees."""
    if stored.kind == "weights":
        return choose(known(stored, log.contract.rewards), weeks, asked, n, int(rng.integers(2**31)), candidates)
    pool = random_pairs(weeks, asked, max(n, candidates), rng, at_least=n)
    returns = network.member_returns(stored, log, weeks)
    return pool[np.argsort(-network.disagreement(returns, pool), kind="stable")[:n]]


def _asked(request: Request, weeks: Weeks) -> NDArray[np.int64]:
    """[M, 2] places of the pairs answered so far."""
    if not request.answers:
        return np.zeros((0, 2), dtype=np.int64)
    pairs = said.read(request.answers).pairs
    left, right = ([getattr(each, side) for each in pairs] for side in ("left", "right"))
    return np.column_stack([weeks.places(left), weeks.places(right)])


def _write(path: Path, page: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"out: {path} cannot be written ({error.strerror}); name a file in a folder that can."
        ) from None
