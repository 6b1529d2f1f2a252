"""Everything that was asked and answered, one line of JSON for each request: a record, a cache and a ledger in one.

| key | meaning |
|---|---|
| key | SHA-256 of what was posted: the same question of the same model is never asked twice |
| at, seconds | when it was asked, UTC, and how long the answer took |
| request | what was posted, without the key |
| status | HTTP status, null where none came |
| response | the answer as it came |
| content | the text of the model in it, null where there is none |
| verdict | what the text says, null where it is in no form |
| fault | why the request has to be made again, null where it has not |
| model | which model says that it answered |
| tokens | what was charged, or an estimate by length where the endpoint does not say |
"""

import fcntl
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from models.errors import InputError, TransientError


def key_of(body: dict[str, Any]) -> str:
    """Name of a question: SHA-256 of all that is posted: model, temperature, messages and the rest."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answered:
    """What a model said to a question, and which one says that it did."""

    content: str
    model: str | None


class Transcript:
    """The file at `path`, held by one process at a time; each line is in the file before the next request is made.

    A line that a killed process left half written says nothing: its question is asked again.

    Raises InputError where the file cannot be opened, TransientError where another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls = self.tokens = 0
        """Of all lines, those of earlier runs too."""
        self.answered: dict[str, Answered] = {}
        """By the key of the question."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error}); the judge keeps its transcript there.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise TransientError(f"{path}: another process asks the judge; wait for it.") from None
        self._file.seek(0)
        last = "\n"
        for last in self._file:
            self._count(last)
        if not last.endswith("\n"):
            self._file.write("\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        """Keep one request; whole, and before anything is made of it."""
        text = json.dumps(line, allow_nan=False)
        with self._lock:
            self._file.write(text + "\n")
            self._file.flush()
            self._count(text)

    def _count(self, text: str) -> None:
        try:
            line = json.loads(text)
            key, content, tokens = line["key"], line["content"], int(line["tokens"])
        except (ValueError, KeyError, TypeError):
            return
        self.calls += 1
        self.tokens += tokens
        if content is not None and line.get("fault") is None:
            self.answered[key] = Answered(content, line.get("model"))
