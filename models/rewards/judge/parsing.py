"""What the judge said: an answer where it is one beyond doubt, else nothing. An answer is never guessed from prose."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Said = Literal["A", "B", "tie"]
SAID: dict[str, Said] = {"a": "A", "b": "B", "tie": "tie"}
THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
"""What models that think aloud put before their answer; drafts in it are no answers, nor where it was cut off."""


@dataclass(frozen=True)
class Verdict:
    """One answer of the judge to one question."""

    answer: Said
    principle: int | None
    """Number of the principle that decided, where the judge named one."""
    why: str


def verdict(text: str) -> Verdict | None:
    """The one answer in `text`, None where there is none or where there are several that differ.

    An answer is a JSON object whose `answer` is A, B or tie; it may stand alone, in a Markdown fence, or among words.
    """
    found = [_read(each) for each in _objects(THOUGHT.sub("", text))]
    if not found or any(each is None for each in found):
        return None
    first = found[0]
    return first if first is not None and all(each and each.answer == first.answer for each in found) else None


def _objects(text: str) -> Iterator[dict[str, Any] | None]:
    """The outermost JSON objects with an `answer`; None for one that says something twice."""
    reader = json.JSONDecoder(object_pairs_hook=_pairs)
    place = text.find("{")
    while place >= 0:
        try:
            found, end = reader.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        if found is None or "answer" in found:
            yield found
        place = text.find("{", end)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else None


def _read(told: dict[str, Any] | None) -> Verdict | None:
    answer = None if told is None else told["answer"]
    said = SAID.get(answer.strip().lower()) if isinstance(answer, str) else None
    if told is None or said is None:
        return None
    number, why = told.get("principle"), told.get("why")
    named = number if isinstance(number, int) and not isinstance(number, bool) else None
    return Verdict(said, named, why if isinstance(why, str) else "")
