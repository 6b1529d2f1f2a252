"""The log of docs/your-log.md in that company's own words: a simulated world told in other names, clocks and files.

Times are whole seconds and numbers have three decimals, so that what the files say is what the world was.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from pipelines.simulate import tables
from policies.behaviour import SECOND, SimulatorConfig
from policies.simulator import Log, simulate

WORLD = {"users": 400, "days": 16, "start": "2026-03-16", "epsilon": 0.6}
"""Berlin's clocks go forward on the 29th."""
SEED = 5
WORDS = {
    "delivered": "shown",
    "click": "tap",
    "dismiss": "swipe_away",
    "disable": "push_off",
    "enable": "push_on",
    "session_start": "app_open",
    "account_closed": "goodbye",
}
OTHER = "add_to_cart"
"""What the app also writes into its activity, and Tactful has no word for."""
BAD = [
    ["bad-1", "u0000001", "31.02.2026 10:00:00", "no", "0,3", "yes", "0,5"],
    ["bad-2", "stranger", "25.03.2026 10:00:00", "sms", "0,3", "yes", "0,5"],
    ["bad-3", "stranger", "26.03.2026 10:00:00", "push", "30 %", "yes", "0,5"],
    ["bad-4", "stranger", "27.03.2026 10:00:00", "push", "0,3", "yes", ""],
]
"""No such day, an action that is none, a propensity that is no number, no context where there was a choice."""


def world() -> Log:
    """What happened, to the second."""
    log = simulate(SimulatorConfig(**WORLD), SEED)  # type: ignore[arg-type]
    decisions, events, candidates = (dict(each) for each in (log.decisions, log.events, log.candidates))
    for columns in (decisions, events, candidates):
        for name in ("at", "logged"):
            if name in columns:
                columns[name] = columns[name] // SECOND * SECOND
    for columns in (decisions, candidates):
        columns["relevance"] = np.round(columns["relevance"], 3)
    decisions["propensity"] = np.round(decisions["propensity"], 3)
    return replace(log, decisions=decisions, events=events, candidates=candidates)


def create(folder: str) -> None:
    """The shop's four files, in a folder that is not there yet."""
    write(world(), Path(folder))


def write(log: Log, folder: Path) -> None:
    """The four files of a log; the decisions have a copy and some bad rows besides."""
    folder.mkdir()
    told = {name: table.to_pylist() for name, table in tables(log).items()}
    nudges = [
        [row["decision_id"], row["user_id"], berlin(row["decided_at"]), "push" if row["action"] == "send" else "no",
         comma(row["propensity"]), could(row), comma(row["relevance"])]
        for row in told["decisions"]
    ]  # fmt: skip
    nudges += [nudges[-1], *BAD]
    activity = [
        {"id": row["event_id"], "customer": row["user_id"], "ms": ms(row["occurred_at"]), "got": ms(row["logged_at"]),
         "what": WORDS[row["kind"]], "nudge": row["decision_id"]}
        for row in told["events"]
    ]  # fmt: skip
    customers = [
        [row["user_id"], f"{row['valid_from']:%d.%m.%Y}", row["time_zone"], f"{row['tenure_days']:g}"]
        for row in told["users"]
    ]
    tonight = [
        [row["candidate_id"], row["user_id"], berlin(row["decide_at"]), could(row), comma(row["relevance"])]
        for row in told["candidates"]
    ]
    write_csv(folder / "nudges.csv", "nudge;customer;decided;sent;chance;could_push;fit", nudges)
    write_csv(folder / "customers.csv", "customer;since;zone;days_with_us", customers)
    write_csv(folder / "tonight.csv", "offer;customer;at;could_push;fit", tonight)
    bought = {"id": "c1", "customer": "u0000000", "ms": activity[0]["ms"], "got": activity[0]["got"], "what": OTHER}
    lines = [json.dumps(omitting(row)) + "\n" for row in [*activity, bought]]
    (folder / "activity.jsonl").write_text("".join(lines))


def write_csv(path: Path, header: str, rows: Iterable[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\n")
        writer.writerows([header.split(";"), *rows])


def berlin(moment: datetime) -> str:
    return f"{moment.astimezone(ZoneInfo('Europe/Berlin')):%d.%m.%Y %H:%M:%S}"


def ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def comma(number: float | None) -> str:
    """As a German prints it; nothing where it is unknown."""
    return "" if number is None or number != number else f"{number:g}".replace(".", ",")


def could(row: Mapping[str, Any]) -> str:
    return "yes" if "send" in row["legal_actions"] else "no"


def omitting(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null."""
    return {name: value for name, value in row.items() if value is not None}
