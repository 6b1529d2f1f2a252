"""What raters said: pairs of user-weeks compared, and user-weeks ranked, as lines of JSON.

A line is one answer, of one of two forms:

    {"left": ID, "right": ID, "answer": "left" | "right" | "tie", "rater": NAME}
    {"ranking": [ID, ID, ID, ...], "rater": NAME}                   best first, three or more

Other keys (when, how long, which principle) are kept by whoever wrote them and read by nobody here.

Beside a file that a judge answered lies FILE.facts.json, which says how far the judge agrees with people. The answers
of a rater whose name begins with `judge:` are read where it says that this very file is trusted.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import InputError

Side = Literal["left", "right", "tie"]
SIDES: tuple[Side, ...] = ("left", "right", "tie")
JUDGE = "judge:"
"""How the names of raters begin that are no people."""


@dataclass(frozen=True)
class Pair:
    """One comparison of two user-weeks."""

    left: str
    right: str
    answer: Side
    rater: str


@dataclass(frozen=True)
class Ranking:
    """Three or more user-weeks, the best first."""

    order: tuple[str, ...]
    rater: str


@dataclass(frozen=True)
class Answers:
    """Everything that raters said, in the order of the files."""

    pairs: tuple[Pair, ...]
    rankings: tuple[Ranking, ...] = ()

    @property
    def raters(self) -> tuple[str, ...]:
        """Each once, in the order of first appearance."""
        said = [each.rater for each in self.pairs] + [each.rater for each in self.rankings]
        return tuple(dict.fromkeys(said))

    @property
    def weeks(self) -> set[str]:
        """The user-weeks that raters saw."""
        pairs = {name for each in self.pairs for name in (each.left, each.right)}
        return pairs | {name for each in self.rankings for name in each.order}

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(self.pairs + other.pairs, self.rankings + other.rankings)


def read(paths: Sequence[Path], untrusted: bool = False) -> Answers:
    """The answers of several files together; those of an untrusted judge only where `untrusted` says so.

    Raises InputError naming the file and the line that is no answer, where there is none at all, and for answers of a
    judge that is not known to agree with people.
    """
    pairs: list[Pair] = []
    rankings: list[Ranking] = []
    for path in paths:
        try:
            content = path.read_bytes()
            lines = content.decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); name a file of answers.") from None
        found = [_answer(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
        if not untrusted and any(each.rater.startswith(JUDGE) for each in found):
            _check_trusted(path, content)
        pairs += [each for each in found if isinstance(each, Pair)]
        rankings += [each for each in found if isinstance(each, Ranking)]
    if not pairs and not rankings:
        raise InputError(f"{', '.join(map(str, paths)) or 'answers'}: no answer; compare user-weeks first.")
    return Answers(tuple(pairs), tuple(rankings))


def write(path: Path, pairs: Iterable[Pair], append: bool = False) -> None:
    """One line for each pair; an existing file is replaced, or with `append` continued."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.writelines(json.dumps(vars(each)) + "\n" for each in pairs)


def facts_path(path: Path) -> Path:
    """Where it is said how far the answers of a judge at `path` can be trusted."""
    return path.with_name(path.name + ".facts.json")


def _check_trusted(path: Path, content: bytes) -> None:
    wanted = "have people answer some pairs and name their file with --human of `tactful rewards judge`, or say that "
    wanted += "untrusted answers are wanted"
    try:
        facts = json.loads(facts_path(path).read_text())
        trusted, why, digest = facts["trusted"], facts["why"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: a judge answered, and {facts_path(path).name} does not say how well; {wanted}."
        ) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{path}: has changed since its judge was held against people; ask the judge again, or {wanted}."
        )
    if trusted is not True:
        raise InputError(f"{path}: its judge is not trusted: {why}; {wanted}.")


def _answer(line: str, where: str) -> Pair | Ranking:
    wanted = f"; a line is one answer as {__name__} describes it"
    try:
        told = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: no JSON ({error}){wanted}.") from None
    if not isinstance(told, dict) or not isinstance(told.get("rater"), str):
        raise InputError(f"{where}: {line[:80]!r} names no rater{wanted}.")
    if "ranking" in told:
        order = told["ranking"]
        if not isinstance(order, list) or len(order) < 3 or not all(isinstance(each, str) for each in order):
            raise InputError(f"{where}: ranking is {order!r}; three or more user-weeks are needed, the best first.")
        if len(set(order)) < len(order):
            raise InputError(f"{where}: a user-week is ranked twice; name each once.")
        return Ranking(tuple(order), told["rater"])
    if not isinstance(told.get("left"), str) or not isinstance(told.get("right"), str):
        raise InputError(f"{where}: {line[:80]!r} compares no two user-weeks{wanted}.")
    if told["left"] == told["right"]:
        raise InputError(f"{where}: {told['left']!r} is compared with itself; a pair is of two user-weeks.")
    if told.get("answer") not in SIDES:
        raise InputError(f"{where}: answer is {told.get('answer')!r}; it must be one of {', '.join(SIDES)}.")
    return Pair(told["left"], told["right"], told["answer"], told["rater"])
