"""What was read, kept, set aside and made; and the law that nothing is lost on the way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from models.errors import TactfulError
from pipelines.etl.arrivals import Arrivals
from pipelines.etl.schemas import NAMES

Report = dict[str, Any]
Forgotten = Mapping[str, Mapping[str, int]]
"""Dataset -> arrival day -> rows of users to be forgotten, which were left out."""
FLAGS = ("usable", "silent", "warm_up", "truncated", "terminal")
REASON = "reason:"


def count(partials: pa.Table, arrivals: Arrivals, forgotten: Forgotten) -> Report:
    """Per raw dataset: read, kept, exact duplicates, quarantined by reason, mature, immature, all and per day; and of
    the transitions: rows, usable, unusable, and of the usable: silent, warm_up, truncated, terminal.

    `read` was counted in the raw dataset before, the rest by the kernels. Raises TactfulError where, on some day, read
    is not kept + exact duplicates + quarantined + forgotten.
    """
    out: Report = {}
    for code, days in arrivals.items():
        name = NAMES[code]
        by_day = {day.text: _Tally(read=day.rows) for day in days}
        for row in _of(partials, name):
            by_day.setdefault(row["day"], _Tally()).add(row["name"], int(row["total"]))
        for day, rows in forgotten.get(name, {}).items():
            by_day.setdefault(day, _Tally()).forgotten += rows
        for day, tally in sorted(by_day.items()):
            tally.check(name, day)
        total = sum(by_day.values(), _Tally())
        out[name] = {**total.show(), "by_day": {day: tally.show() for day, tally in sorted(by_day.items())}}
    made = dict.fromkeys(("rows", *FLAGS), 0)
    for row in _of(partials, "transitions"):
        if row["name"] in made:
            made[row["name"]] += int(row["total"])
    rows = made.pop("rows")
    out["transitions"] = {"rows": rows, "unusable": rows - made["usable"], **made}
    return out


def conserve(rows: Report, expected: tuple[int, int]) -> None:
    """Raise TactfulError unless the transitions are the decisions that must be rows, and the silent rows.

    `expected` are the usable and the unusable ones, counted from the raw rows alone: usable = mature kept decisions of
    the days that are made anew + silent; unusable = quarantined decisions with a user, and a time in order.
    """
    made = rows["transitions"]
    for what, left, right in (
        ("usable = decisions + silent", made["usable"], expected[0] + made["silent"]),
        ("unusable = quarantined decisions with user and time", made["unusable"], expected[1]),
    ):
        if left != right:
            raise TactfulError(f"conservation law {what} is broken: {left} against {right}; this is a bug: report it.")


def _of(partials: pa.Table, dataset: str) -> Iterable[Mapping[str, Any]]:
    rows = partials.select(["dataset", "day", "name", "total"]).to_pylist()
    return (row for row in rows if row["dataset"] == dataset)


@dataclass
class _Tally:
    """Rows of one arrival day, or of all."""

    read: int = 0
    kept: int = 0
    exact: int = 0
    mature: int = 0
    forgotten: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, rows: int) -> None:
        if name.startswith(REASON):
            reason = name.removeprefix(REASON)
            self.reasons[reason] = self.reasons.get(reason, 0) + rows
        elif name == "kept":
            self.kept += rows
        elif name == "exact_duplicate":
            self.exact += rows
        elif name == "mature":
            self.mature += rows

    def __add__(self, other: "_Tally") -> "_Tally":
        reasons = dict(self.reasons)
        for reason, rows in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + rows
        return _Tally(
            self.read + other.read,
            self.kept + other.kept,
            self.exact + other.exact,
            self.mature + other.mature,
            self.forgotten + other.forgotten,
            reasons,
        )

    def check(self, dataset: str, day: str) -> None:
        caught = sum(self.reasons.values())
        accounted = self.kept + self.exact + caught + self.forgotten
        if self.read != accounted:
            raise TactfulError(
                f"{dataset}, arrival day {day}: {self.read} rows read, but kept {self.kept} + exact duplicates "
                f"{self.exact} + quarantined {caught} + forgotten {self.forgotten} = {accounted}; the dataset changed "
                "while it was read, or this is a bug: run again, then report it."
            )

    def show(self) -> Report:
        return {
            "read": self.read,
            "kept": self.kept,
            "exact_duplicates": self.exact,
            "quarantined": sum(self.reasons.values()),
            "mature": self.mature,
            "immature": self.kept - self.mature,
            "forgotten": self.forgotten,
            "by_reason": dict(sorted((name, rows) for name, rows in self.reasons.items() if rows)),
        }


def in_words(rows: Report) -> str:
    """A line for each dataset and one for the transitions, for a terminal."""
    lines = []
    for name in [each for each in NAMES if each in rows]:
        found = rows[name]
        reasons = sorted(found["by_reason"].items(), key=lambda item: -item[1])
        why = f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons)})" if reasons else ""
        left_out = f", {found['forgotten']:,} forgotten" if found["forgotten"] else ""
        lines.append(
            f"{name}: {found['read']:,} read, {found['kept']:,} kept, {found['exact_duplicates']:,} exact duplicates, "
            f"{found['quarantined']:,} quarantined{why}{left_out}"
        )
    made = rows["transitions"]
    usable = ", ".join(f"{made[flag]:,} {flag.replace('_', '-')}" for flag in FLAGS[1:])
    lines.append(f"transitions: {made['rows']:,} rows, {made['unusable']:,} of them unusable; {usable}")
    return "\n".join(lines)
