"""The page on which a person compares user-weeks: one HTML file that loads nothing and works without a server."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from models.rewards.asking import Question
from models.rewards.describe import (
    ACTIVE,
    HOURS_PER_DAY,
    WEEKDAYS,
    clock_of,
    counted,
    facts_of,
    told,
    total_in_words,
    unit_of,
)
from models.rewards.describe import number as short
from models.rewards.weeks import Weeks
from models.table import Transitions
from pipelines.report import environment
from pipelines.report.text import metric_name

View = dict[str, Any]
FOLDER = Path(__file__).parent
COUNTS = ("sends", "clicks", "visits", "disables")
LANES = {**{name: name for name in COUNTS}, ACTIVE: "active"}
"""How a component is drawn; every other one as bars."""
DIGITS = 6


def render(table: Transitions, weeks: Weeks, questions: Sequence[Question], days: float, words: dict[str, str]) -> str:
    """The page that asks `questions` about stretches of `days` days.

    `words` are the texts `name` (of the log), `rater`, `file` (of the answers) and `command` (how to go on).
    """
    data = page_data(table, weeks, questions, days)
    data |= {"rater": words["rater"], "file": words["file"]}
    # What is kept in a browser belongs to these questions of this rater, and to no other page there.
    data["key"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
    templates = environment(FOLDER)
    style = templates.get_template("ask.css").render()
    return templates.get_template("ask.html.j2").render(
        name=words["name"],
        rater=words["rater"],
        command=words["command"],
        count=len(questions),
        data=data,
        style=_hashed(style),
        script=_hashed((FOLDER / "ask.js").read_text(encoding="utf-8")),
    )


def page_data(table: Transitions, weeks: Weeks, questions: Sequence[Question], days: float) -> View:
    """What the script draws: every user-week once, the pairs by place, and the scales that all of them share."""
    shown = list(dict.fromkeys(place for each in questions for place in (each.left, each.right)))
    stories = [_week(table, weeks, place) for place in shown]
    hours = HOURS_PER_DAY * days
    rows = max(math.ceil((story["start"] + hours) / HOURS_PER_DAY - 1e-9) for story in stories)
    for story in stories:
        first = story.pop("weekday")
        story["days"] = [str(row + 1) if first is None else WEEKDAYS[(first + row) % 7] for row in range(rows)]
    number = {place: at for at, place in enumerate(shown)}
    components = [_component(table, stories, place) for place in range(len(table.contract.rewards))]
    return {
        "hours": hours,
        "rows": rows,
        "clock": all(story.pop("clock") for story in stories),
        "components": components,
        "signs": _signs(table, components),
        "weeks": stories,
        "pairs": [{"weeks": [number[each.left], number[each.right]], "repeats": each.repeats} for each in questions],
    }


def _week(table: Transitions, weeks: Weeks, place: int) -> View:
    contract, days = table.contract, float(weeks.days[place])
    clock = clock_of(table, weeks, place)
    facts = [
        {
            "hours": round(fact.hours, DIGITS),
            "until": round(fact.until, DIGITS),
            "when": fact.when,
            "told": told(fact, contract),
            "acted": contract.is_send[contract.actions.index(fact.action)],
            "silent": fact.why == "silent",
            "off": fact.why == "off",
            "closed": fact.closed,
            "earned": {name: round(value, DIGITS) for name, value in fact.earned.items()},
        }
        for fact in facts_of(table, weeks, place)
    ]
    totals = [
        # The name of a built-in count says its unit.
        {
            "value": round(float(total), DIGITS),
            "text": short(float(total)) if name in COUNTS else total_in_words(name, float(total), days, contract),
        }
        for name, total in zip(contract.rewards, weeks.totals[place], strict=True)
    ]
    span = [counted(int(weeks.end[place] - weeks.first[place]), "decision"), counted(round(days, 1), "day")]
    span += [] if clock is None else [f"from {clock.at(0)}"]
    return {
        "id": str(weeks.id[place]),
        "clock": clock is not None,
        "weekday": None if clock is None else clock.weekday,
        "start": 0.0 if clock is None else round(clock.hour, DIGITS),
        "span": ", ".join(span),
        "facts": facts,
        "totals": totals,
    }


def _component(table: Transitions, stories: Sequence[View], place: int) -> View:
    name = table.contract.rewards[place]
    return {
        "name": name,
        "title": metric_name(name),
        "as": LANES.get(name, "bars"),
        "most": max((abs(fact["earned"].get(name, 0.0)) for story in stories for fact in story["facts"]), default=0.0),
        "widest": max(abs(story["totals"][place]["value"]) for story in stories),
    }


def _signs(table: Transitions, components: Sequence[View]) -> list[View]:
    """The legend: only what this log can show."""
    contract = table.contract
    drawn = {each["as"] for each in components}
    dot = {"cx": 9, "cy": 7, "r": 5}
    act = "sent" if "hold" in contract.actions else "acted"
    found = [(f"{act}, no click after it" if "clicks" in drawn else act, [("circle", {"class": "sent", **dot})])]
    if "clicks" in drawn:
        found.append(("sent, clicked before the next decision", [("circle", {"class": "sent clicked", **dot})]))
        found.append(("clicked later", [("circle", {"class": "late", **dot, "r": 3})]))
    if "hold" in contract.actions:
        found.append(("held", [("line", {"class": "held", "x1": 9, "x2": 9, "y1": 3, "y2": 11})]))
    if "disables" in drawn:
        found.append(
            ("switched off, or closed the account", [("path", {"class": "ended", "d": "M4 2 L14 12 M14 2 L4 12"})])
        )
        found.append(("notifications off", [("line", {"class": "off", "x1": 0, "x2": 18, "y1": 7, "y2": 7})]))
    if "visits" in drawn:
        box = {"x": 0, "width": 18, "y": 2, "height": 10}
        found.append(("visited in that time, how often", [("rect", {"class": "visits", **box})]))
    if "active" in drawn:
        found.append(
            ("active within 7 days", [("rect", {"class": "active", "x": 0, "width": 18, "y": 5, "height": 3})])
        )
    for each in components:
        if each["as"] == "bars":
            unit = unit_of(each["name"], contract)
            text = f"{each['title']}, the tallest {short(each['most'])} {unit}".rstrip()
            found.append((text, [("rect", {"class": "bar", "x": 6, "width": 6, "y": 0, "height": 14})]))
    return [{"text": text, "shapes": shapes} for text, shapes in found]


def _hashed(text: str) -> View:
    """A style or a script, and the hash by which the page's policy admits it and nothing else."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "hash": Markup(f"sha256-{digest}")}
