"""A user-week as dated events, for people and judges: what was done and what came of it, and nothing of who it was.

Times are relative to the stretch: hours since its start, to the minute. Where the state carries `hour_sin` and
`hour_cos` (and `weekday_sin`, `weekday_cos`), they are also told by the user's own clock; a date is never told.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.contract import HOLD, UNITS, Contract
from models.rewards.weeks import Weeks
from models.table import Transitions

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ACTIVE = "weekly_active_days"
"""A measure of time, told of the whole stretch: it is no event."""
HAPPENED = {"clicks": "clicked", "visits": "visited", "disables": "switched notifications off"}
MINUTES_PER_HOUR, HOURS_PER_DAY = 60, 24
US_PER_HOUR = 3_600_000_000
TENTHS_PER_DAY = 864_000

Why = Literal["", "off", "barred", "nothing waiting", "waiting", "silent"]
HELD: dict[Why, str] = {
    "": "",
    "off": " while notifications were off",
    "barred": " as nothing could be sent",
    "nothing waiting": " with nothing waiting",
    "waiting": " although something was waiting",
    "silent": "",
}
"""How a hold is told by its reason."""


@dataclass(frozen=True)
class Fact:
    """One decision of a user-week and what its interval earned, or a run of equal holds that earned nothing."""

    hours: float
    """Of its first decision since the stretch's start, to the minute."""
    until: float
    """Hours since the start at which its last interval ends; it may lie after the stretch."""
    when: str
    """`hours` as words: `Mon 09:20`, or `hour 33.3` where the state carries no clock."""
    action: str
    why: Why
    """Of a hold: notifications off, only hold legal, no candidate, one that was not sent, or no decision at all; else
    empty, as where the state does not say."""
    count: int
    """Decisions that it stands for."""
    earned: dict[str, float]
    """Component -> sum over its rows, raw units, zeros left out; without `sends`, which is the action."""
    closed: bool
    """Whether the account was closed in it."""

    @property
    def quiet(self) -> bool:
        """Nothing happened but time."""
        return not self.closed and not (self.earned.keys() - {ACTIVE})


@dataclass(frozen=True)
class Clock:
    """The user's own clock at the start of a stretch."""

    hour: float
    """[0, 24)"""
    weekday: int | None
    """0 is Monday; None where the state carries no weekday."""

    def at(self, hours: float) -> str:
        """What it shows `hours` later: `Mon 09:20`, or `day 2, 09:20` counted from the day of the start."""
        minutes = round((self.hour + hours) * MINUTES_PER_HOUR)
        day, minute = divmod(minutes, HOURS_PER_DAY * MINUTES_PER_HOUR)
        name = f"day {day + 1}," if self.weekday is None else WEEKDAYS[(self.weekday + day) % 7]
        return f"{name} {minute // MINUTES_PER_HOUR:02d}:{minute % MINUTES_PER_HOUR:02d}"


def facts_of(table: Transitions, weeks: Weeks, place: int) -> list[Fact]:
    """The events of the stretch at `place` of `weeks`, in order; a run of equal quiet holds is one."""
    clock = clock_of(table, weeks, place)
    found: list[Fact] = []
    for row in range(int(weeks.first[place]), int(weeks.end[place])):
        fact = _fact(table, row, int(weeks.start[place]), clock)
        if found and _same(found[-1], fact):
            last = found[-1]
            active = last.earned.get(ACTIVE, 0.0) + fact.earned.get(ACTIVE, 0.0)
            earned = {ACTIVE: active} if active else {}
            found[-1] = replace(last, until=fact.until, count=last.count + 1, earned=earned)
        else:
            found.append(fact)
    return found


def clock_of(table: Transitions, weeks: Weeks, place: int) -> Clock | None:
    """The user's clock at the stretch's start by the state of its first row; None where the state carries none.

    A change to or from summer time within the stretch is not followed.
    """
    row = int(weeks.first[place])
    hour = _turn(table, row, "hour")
    if hour is None:
        return None
    turn = _turn(table, row, "weekday")
    since = (int(table.decided_at[row]) - int(weeks.start[place])) / US_PER_HOUR
    # To a tenth of a second, which 32 bits still tell apart: else midnight may come out as the end of its own day.
    hour = round(hour * TENTHS_PER_DAY) % TENTHS_PER_DAY / TENTHS_PER_DAY
    back, at = divmod(hour * HOURS_PER_DAY - since, HOURS_PER_DAY)
    return Clock(at, None if turn is None else int(round(turn * 7) + back) % 7)


def in_words(table: Transitions, weeks: Weeks, place: int) -> str:
    """The stretch at `place` of `weeks` as plain text: one line for each event, then the sum of every component."""
    contract = table.contract
    lines = [f"{fact.when}: {told(fact, contract)}." for fact in facts_of(table, weeks, place)]
    days = float(weeks.days[place])
    sums = [
        f"- {name}: {total_in_words(name, float(total), days, contract)}"
        for name, total in zip(contract.rewards, weeks.totals[place], strict=True)
    ]
    decisions = counted(int(weeks.end[place] - weeks.first[place]), "decision")
    # The last interval may end long after the stretch: what came of its decisions is counted until then.
    opening = f"{decisions} of one user, and what came of them in {counted(round(days, 1), 'day')}."
    return "\n".join([opening, *lines, "In all:", *sums])


def told(fact: Fact, contract: Contract) -> str:
    """What was done and what came of it: `sent; clicked, visited 2 times`."""
    happened = [_happened(name, value, contract) for name, value in fact.earned.items() if name != ACTIVE]
    if fact.closed:
        happened.append("closed the account")
    return f"{_done(fact, contract)}; {', '.join(happened) or 'nothing came of it'}"


def total_in_words(name: str, total: float, days: float, contract: Contract) -> str:
    """The sum of a component over a stretch of `days`, with its unit: `4.3 days, 61% of the time`."""
    share = f", {100 * total / days:.0f}% of the time" if name == ACTIVE and days > 0 else ""
    return f"{number(total)} {unit_of(name, contract)}".rstrip() + share


def unit_of(name: str, contract: Contract) -> str:
    """Raw unit of a component, empty where nobody named one."""
    return contract.units.get(name, UNITS.get(name, ""))


def number(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    return f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def counted(value: float, noun: str) -> str:
    """`1 day`, `6.98 days`."""
    return f"{number(value)} {noun}{'' if number(value) == '1' else 's'}"


def _fact(table: Transitions, row: int, start: int, clock: Clock | None) -> Fact:
    hours = round((int(table.decided_at[row]) - start) / US_PER_HOUR * MINUTES_PER_HOUR) / MINUTES_PER_HOUR
    until = hours + float(table.elapsed_days[row]) * HOURS_PER_DAY
    earned = {
        name: float(value)
        for name, value in zip(table.contract.rewards, table.reward[row], strict=True)
        if name != "sends" and value
    }
    return Fact(
        hours,
        round(until * MINUTES_PER_HOUR) / MINUTES_PER_HOUR,
        f"hour {hours:.1f}" if clock is None else clock.at(hours),
        table.contract.actions[int(table.action[row])],
        _why(table, row),
        1,
        earned,
        bool(table.terminal[row]),
    )


def _why(table: Transitions, row: int) -> Why:
    if table.contract.is_send[int(table.action[row])]:
        return ""
    if table.silent[row]:
        return "silent"
    if table.legal[row].sum() == 1:
        return "off" if _feature(table, row, "notifications_on") == 0 else "barred"
    missing = _feature(table, row, "candidate_missing")
    return "" if missing is None else "nothing waiting" if missing else "waiting"


def _same(last: Fact, fact: Fact) -> bool:
    return fact.quiet and last.quiet and fact.action == last.action == HOLD and fact.why == last.why


def _done(fact: Fact, contract: Contract) -> str:
    if fact.why == "silent":
        return f"no decision for {counted((fact.until - fact.hours) / HOURS_PER_DAY, 'day')}"
    if fact.action == HOLD:
        return f"held{'' if fact.count == 1 else f' {fact.count} times'}{HELD[fact.why]}"
    if fact.action == "send":
        return "sent"
    return f"{'sent' if HOLD in contract.actions else 'chose'} {fact.action}"


def _happened(name: str, value: float, contract: Contract) -> str:
    if name not in HAPPENED:
        return f"{name} {number(value)} {unit_of(name, contract)}".rstrip()
    return HAPPENED[name] if value == 1 else f"{HAPPENED[name]} {number(value)} times"


def _feature(table: Transitions, row: int, name: str) -> float | None:
    """A state feature of a row; None where the state lacks it or it is unknown there."""
    if name not in table.contract.features:
        return None
    value = float(table.state[row, table.contract.features.index(name)])
    return None if np.isnan(value) else value


def _turn(table: Transitions, row: int, name: str) -> float | None:
    """Share of its round that a cyclic feature has gone, in [0, 1)."""
    sine, cosine = (_feature(table, row, f"{name}_{part}") for part in ("sin", "cos"))
    if sine is None or cosine is None:
        return None
    return math.atan2(sine, cosine) / (2 * math.pi) % 1.0
