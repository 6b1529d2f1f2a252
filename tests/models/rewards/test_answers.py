"""Answers as lines: read back as written, several files together, and one row per line that is none."""

import json
from pathlib import Path

import pytest

from models.errors import InputError
from models.rewards.answers import Answers, Pair, Ranking, read, write

PAIRS = [Pair("a", "b", "left", "ann"), Pair("b", "c", "tie", "bob"), Pair("c", "a", "right", "ann")]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    write(path, PAIRS[:2])
    write(path, PAIRS[2:], append=True)
    assert read([path]) == Answers(tuple(PAIRS))
    write(path, PAIRS[:1])
    assert read([path]).pairs == (PAIRS[0],)


def test_several_files_and_rankings_and_other_keys(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text('\n{"left": "a", "right": "b", "answer": "left", "rater": "ann", "seconds": 4}\n\n')
    second.write_text('{"ranking": ["c", "a", "b"], "rater": "cy"}\n')
    found = read([first, second])
    assert found == Answers((PAIRS[0],), (Ranking(("c", "a", "b"), "cy"),))
    assert found.raters == ("ann", "cy")
    assert (found + Answers((PAIRS[1],))).raters == ("ann", "bob", "cy")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("left", r"answers\.jsonl:2: no JSON"),
        ('["a", "b"]', "names no rater"),
        ('{"left": "a", "right": "b", "answer": "left"}', "names no rater"),
        ('{"left": "a", "right": "b", "answer": "left", "rater": 3}', "names no rater"),
        ('{"left": "a", "answer": "left", "rater": "ann"}', "compares no two user-weeks"),
        ('{"left": "a", "right": "a", "answer": "left", "rater": "ann"}', "'a' is compared with itself"),
        ('{"left": "a", "right": "b", "answer": "a", "rater": "ann"}', "answer is 'a'; it must be one of left, right"),
        ('{"ranking": ["a", "b"], "rater": "ann"}', "three or more user-weeks are needed"),
        ('{"ranking": ["a", "b", 3], "rater": "ann"}', "three or more user-weeks are needed"),
        ('{"ranking": ["a", "b", "a"], "rater": "ann"}', "a user-week is ranked twice"),
    ],
)
def test_a_line_that_is_no_answer(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(vars(PAIRS[0])) + "\n" + line + "\n")
    with pytest.raises(InputError, match=message):
        read([path])


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n", "no answer; compare user-weeks first"), (b"\xff\xfe", "cannot be read")]
)
def test_a_file_that_holds_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read([path])
    with pytest.raises(InputError, match="cannot be read"):
        read([tmp_path / "absent.jsonl"])
