"""What a run over some arrival days must read, and which rows it makes anew.

New rows arrived on D1..D2, so that they happened at D1 - max_lateness at the earliest. They can change

- the rows from there on: states, legal actions, silent rows; and rows that waited for the last run's watermark W;
- the interval of the row before, which is no longer than max_gap: silent rows see to that;
- whether a notification of at most click_window before was clicked.

So rows are made anew from the midnight before

    since = min(D1 - max_lateness, W) - max(max_gap, click_window)

to the end of the table. Where later days are there already (a day was delivered late), a change of consent, a new row
of `users` or a shifted grid of silent rows reaches on to the user's next one, however far that is.

To make those rows the run reads what happened in the longest span that a row looks back, and max_lateness further every
row that one of these can be a duplicate of. Each user's last row before `since` and older changes of consent come from
the tables as they stand. Without silent rows (a log without events, or without `hold`) an interval may begin anywhere,
and a run makes every row anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta

from deltalake import DeltaTable

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.arrivals import EPOCH, Arrivals, check_arrivals, check_days
from pipelines.etl.buckets import Resume
from pipelines.etl.features import DAY
from pipelines.etl.marks import Plan
from pipelines.etl.plans import make_plan, watermark
from pipelines.etl.rewards import WEEK
from pipelines.etl.schemas import DECISIONS, EVENTS, NAMES, Days

FACTS = "etl_facts"
EVER = 0
"""As the first arrival day of a run: from whichever day the log begins on."""


@dataclass(frozen=True)
class Facts:
    """What the commit of a run tells the next one."""

    watermark: int
    log_start: int
    logged: Mapping[str, int]
    """Latest good `logged` of decisions and events, us."""
    first_day: int
    last_day: int
    """Arrival days that the table knows, days since the epoch."""

    @classmethod
    def of(cls, table: DeltaTable) -> "Facts | None":
        """As the newest run left them; None of a table that no run committed."""
        found = store.fact(table, FACTS)
        return None if found is None else cls(**json.loads(found))

    def as_text(self) -> str:
        return json.dumps({**self.__dict__, "logged": dict(self.logged)})


@dataclass(frozen=True)
class Window:
    """One run: what it reads and what it makes anew."""

    plan: Plan
    facts: Facts
    days: Days | None
    """First and last arrival day to read; None is all there are."""
    resume: Resume | None
    """None where every row is made anew."""

    @property
    def accounted(self) -> Days | None:
        """The arrival days whose rows are counted, and whose quarantine is made anew: from there on reasons change."""
        return self.days if self.resume is None else (self.resume.first_day, self.facts.last_day)


def open_window(
    config: Config,
    arrivals: Arrivals,
    days: Days | None,
    base: DeltaTable | None,
    consent: DeltaTable | None,
    as_of: int | None = None,
) -> Window:
    """The window of a run over the arrival days `days` (None: over all), of which `arrivals` were counted.

    `base` and `consent` are the tables as they stand, None where they are to be made from nothing. `as_of`, us: that
    by which the arrivals were counted; None reads the configuration, or the clock, anew.
    Raises InputError where a dataset has no usable rows, and for days that are missing.
    """
    before = Facts.of(base) if base is not None and days is not None else None
    if base is not None and days is not None and before is None:
        raise InputError(
            f"{config.transitions_path}: no commit of it tells which days it knows, so that none can be added; make it "
            "anew without --from and --to."
        )
    if before is None:
        check_arrivals(arrivals)
        check_days(config, arrivals, *(days or (None, None)))
        return Window(_plan(config, facts := _facts(config, arrivals, days, None), as_of), facts, days, None)
    assert days is not None
    check_days(config, arrivals, *days)
    _check_between(config, before, days)
    facts = _facts(config, arrivals, days, before)
    plan = _plan(config, facts, as_of)
    if not plan.silent_rows:
        return Window(plan, facts, (facts.first_day, facts.last_day), None)
    fresh = [day for found in arrivals.values() for day in found if day.day is not None and day.day >= days[0]]
    first = min((day.first for day in fresh if day.first is not None), default=None)
    changed = min(days[0] * DAY - plan.max_lateness, before.watermark, plan.watermark)
    # A row in the folder of a later day than it was logged can be older still.
    changed = changed if first is None else min(changed, first)
    since = (changed - max(plan.max_gap, plan.click_window)) // DAY * DAY
    known_since = since - max(plan.lookback, WEEK, plan.click_window) - plan.session_gap
    resume = Resume(
        since=since,
        known_since=known_since,
        first_day=days[0],
        rows=by_bucket(base, _date(since - plan.max_gap), _date(since)),
        consent=by_bucket(consent),
    )
    return Window(plan, facts, ((known_since - plan.max_lateness) // DAY, facts.last_day), resume)


def days_until(table: DeltaTable | None, last: int) -> Days:
    """The arrival days up to `last` that the table does not know, from EVER where there is none; where it knows them
    all, `last` alone."""
    before = Facts.of(table) if table is not None else None
    return (EVER if before is None else min(before.last_day + 1, last)), last


def from_the_first(days: Days, arrivals: Arrivals) -> Days:
    """`days` with the day on which the log begins instead of EVER."""
    if days[0] != EVER:
        return days
    counted = [day for code in (DECISIONS, EVENTS) for day in arrivals.get(code, []) if day.good]
    return min((day.day for day in counted if day.day is not None), default=days[1]), days[1]


def _facts(config: Config, arrivals: Arrivals, days: Days | None, before: Facts | None) -> Facts:
    logged = dict(before.logged) if before else {}
    starts = [before.log_start] if before else []
    there: list[int] = [before.first_day, before.last_day] if before else []
    there += days or ()
    for code in (DECISIONS, EVENTS):
        for day in arrivals.get(code, []):
            if day.logged is not None and day.first is not None:
                logged[NAMES[code]] = max(day.logged, logged.get(NAMES[code], day.logged))
                starts.append(day.first)
            if days is None and day.day is not None and day.good:
                there.append(day.day)
    return Facts(watermark(config, min(logged.values())), min(starts), logged, min(there), max(there))


def _plan(config: Config, facts: Facts, as_of: int | None) -> Plan:
    plan = make_plan(config, facts.watermark, facts.log_start)
    return plan if as_of is None else replace(plan, as_of=as_of)


def _check_between(config: Config, before: Facts, days: Days) -> None:
    """Raise InputError for days between those that the table knows and those of the run, unless they are known gaps."""
    skipped = [*range(before.last_day + 1, days[0]), *range(days[1] + 1, before.first_day)]
    missing = [str(day) for n in skipped if (day := EPOCH + timedelta(days=n)) not in set(config.etl.known_gaps)]
    if missing:
        raise InputError(
            f"--from {EPOCH + timedelta(days=days[0])}: {', '.join(missing[:10])} never went into the table, which "
            f"knows {EPOCH + timedelta(days=before.first_day)} to {EPOCH + timedelta(days=before.last_day)}; begin "
            f"with --from {missing[0]}, or list the days in etl.known_gaps if they come later."
        )


def _date(moment: int) -> str:
    return str(EPOCH + timedelta(days=moment // DAY))


def by_bucket(table: DeltaTable | None, first: str = "", before: str = "~") -> dict[int, tuple[str, ...]]:
    """Bucket -> absolute paths of its files of the days first <= ds < before."""
    found: dict[int, list[str]] = {}
    for path, values in store.files(table) if table is not None else ():
        if first <= values.get("ds", "") < before:
            found.setdefault(int(values["bucket"]), []).append(str(store.place(table, path)))
    return {bucket: tuple(paths) for bucket, paths in found.items()}


def day_number(text: str, key: str) -> int:
    """Days since the epoch of a date; raises InputError naming `key`."""
    try:
        return (date.fromisoformat(text) - EPOCH).days
    except ValueError:
        raise InputError(f"{key} is {text!r}; give a UTC date such as 2026-01-31.") from None
