"""Nested figures, such as an evaluation's JSON, compared leaf by leaf."""

from collections.abc import Iterator
from typing import Any


def figures(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested mappings and lists."""
    if isinstance(found, dict | list):
        for name, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from figures(value, f"{path}/{name}")
    else:
        yield path, found


def assert_equal(found: Any, expected: Any) -> None:
    """To 1e-9, relative to figures above 1."""
    mine, theirs = dict(figures(found)), dict(figures(expected))
    assert mine.keys() == theirs.keys()

    def same(a: Any, b: Any) -> bool:
        return abs(a - b) <= 1e-9 * max(1, abs(b)) if isinstance(b, float) else a == b

    off = {path: (mine[path], value) for path, value in theirs.items() if not same(mine[path], value)}
    assert off == {}
