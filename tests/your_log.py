"""docs/your-log.md taken apart: its sections, tables and blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-log.md").read_text()


def section(title: str) -> str:
    """What stands under a heading, up to the next of any depth."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return re.sub(r"```.*?```", "", found[1], flags=re.S)


def rows_of(title: str, first: str) -> list[list[str]]:
    """The cells of the table under a heading whose first column is called so."""
    tables = re.findall(r"(?:^\|.*\|\n)+", section(title), re.M)
    found = [text for text in tables if text.startswith(f"| {first} |")]
    assert len(found) == 1, (title, first)
    lines = found[0].strip().split("\n")[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def block(kind: str, after: str = "") -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE[PAGE.index(after) :], re.S)
    assert found is not None, (kind, after)
    return found[1]
