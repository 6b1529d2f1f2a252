"""The online experiment in the transitions: who was in which arm since when, read a bucket at a time.

The arm is the `policy_id` that the ETL carries from the decisions to the transitions, so that it makes no difference
how the raw log is stored. A user belongs to the arm of the first decision by one from the start on, and stays in it
whatever decides later (intention to treat).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError
from models.table import Shards
from pipelines.config import Config
from pipelines.etl.plans import moment, text_of
from pipelines.reading import LEARNED_VERSIONS
from pipelines.reading import shards as shards_of
from pipelines.sections import suggest
from policies.abtest.config import AbtestConfig
from policies.abtest.plan import plan
from policies.abtest.predicted import against_prediction
from policies.abtest.read import Clock, read
from policies.abtest.users import DAY, Users, cut, join
from policies.base import Booleans, Integers

MAX_LATE = 0.05
"""Largest share of users that may enrol after the first of several looks, which is for users who enrol at once."""
ENROL_DAYS = (7, 1)
"""Days within which a plan's users are met by a decision; the shorter where the log is too short for the longer."""


@dataclass(frozen=True)
class Span:
    """What the transitions cover, us, and the policies that decided in them."""

    start: int
    end: int
    first: Mapping[str, int]
    """policy_id -> its first decision."""

    @classmethod
    def of(cls, shards: Shards) -> "Span":
        start, end, first = [], [], dict[str, int]()
        for bucket in shards.buckets:
            rows = _rows(shards, bucket, ["decided_at", "elapsed_days", "policy_id"])
            if not rows.num_rows:
                continue
            at = _micros(rows)
            start.append(int(at.min()))
            end.append(int((at + np.rint(rows["elapsed_days"].to_numpy() * DAY).astype(np.int64)).max()))
            earliest = pa.table({"policy_id": rows["policy_id"], "at": at}).group_by("policy_id")
            for found in earliest.aggregate([("at", "min")]).to_pylist():
                if found["policy_id"] is not None:
                    first[found["policy_id"]] = min(found["at_min"], first.get(found["policy_id"], found["at_min"]))
        if not start:
            raise InputError(f"{shards.path}: no transitions; run the ETL first (`tactful etl CONFIG`).")
        return cls(min(start), max(end), first)


@dataclass(frozen=True)
class Assigned:
    """Of one bucket: by the codes of its users, arm (-1 without one) and enrolment."""

    arm: Integers
    enrolled: Integers
    crossed: int
    """Users seen in two arms, left out."""
    elsewhere: int
    """Users whom something else decided about later too; they stay."""
    unusable: int
    """Users of an arm without a usable row, left out."""


def run_read(config: Config, predicted: Path) -> dict[str, Any]:
    """The reading of `policies.abtest.read.read`, with who was left out, and the prediction where `predicted` is there.

    Raises InputError where the configuration has no [abtest], an arm has no users or an unknown name, too many users
    were seen in two arms or enrol late, and as `read` does.
    """
    settings, shards = _settings(config), shards_of(config, _learned_with(predicted), deployed=True)
    span = Span.of(shards)
    start, end = _bounds(settings, span)
    over = [each for each in settings.looks if start + round(each * DAY) <= end]
    parts, counts = [], np.zeros(3, np.int64)
    for bucket in shards.buckets:
        table = shards.read(bucket)
        found = _assigned(shards, bucket, table.user_id, settings, start, end)
        counts += (found.crossed, found.elsewhere, found.unusable)
        parts.append(cut(table, found.arm, found.enrolled, _until(found, settings, start, over), settings.pre_days))
    users = join(parts)
    _check_users(users, int(counts[0]), span, settings)
    late = _late(users, settings, start)
    users = users.where(~late)
    enrolled = [int((users.arm == arm).sum()) for arm in range(len(settings.arms))]
    reading = read(_clock(users, settings, end, over), enrolled, settings)
    return {
        **reading,
        "start": text_of(start),
        "end": text_of(start + round(over[-1] * DAY) if settings.method == "looks" and over else end),
        "data_version": shards.version,
        **_learned_with(predicted),
        "enrolled": enrolled,
        "left_out": {"crossed": int(counts[0]), "late": int(late.sum()), "unusable": int(counts[2])},
        "decided_elsewhere": int(counts[1]),
        "users_planned": settings.users,
        "looks_over": over if settings.method == "looks" else None,
        "units": _units(shards, settings),
        "predicted": _predicted(reading, predicted, config, settings),
    }


def run_plan(config: Config) -> dict[str, Any]:
    """The plan of `policies.abtest.plan.plan`, from the newest weeks of the log.

    Raises InputError where the configuration has no [abtest], the log is shorter than two days, and as `plan` does.
    """
    settings, shards = _settings(config), shards_of(config)
    span = Span.of(shards)
    days = (span.end - span.start) / DAY
    wait, horizon, pre_days = _stretch(days, settings)
    since = span.end - round((horizon + wait) * DAY)
    arrivals: Integers = np.zeros(int(np.ceil(days)) or 1, np.int64)
    parts = []
    for bucket in shards.buckets:
        table = shards.read(bucket)
        first: Integers = np.flatnonzero(np.diff(table.user, prepend=-1)).astype(np.int64)
        arrivals += np.bincount((table.decided_at[first] - span.start) // DAY, minlength=len(arrivals))[: len(arrivals)]
        enrolled = _first_where(table.user, table.decided_at, ~table.silent & (table.decided_at >= since), len(first))
        met = (enrolled >= 0) & (enrolled <= since + wait * DAY)
        cuts = np.array([settings.horizon_days] if settings.method == "always_valid" else settings.looks)
        ahead = np.rint(cuts / settings.horizon_days * horizon * DAY).astype(np.int64)
        parts.append(cut(table, np.where(met, 0, -1), enrolled, enrolled[:, None] + ahead, pre_days))
    found = plan(join(parts), arrivals, settings)
    planned_on = {"days": horizon, "pre_days": pre_days, "enrol_days": wait, "start": text_of(since)}
    return {**found, "planned_on": planned_on, "data_version": shards.version, "units": _units(shards, settings)}


def _settings(config: Config) -> AbtestConfig:
    if config.abtest is None:
        raise InputError(f"{config.name}: the configuration has no [abtest]; add one, see docs/abtest.md.")
    return config.abtest


def _stretch(days: float, settings: AbtestConfig) -> tuple[int, float, float]:
    """(days to enrol in, days that count, days before) that a log of so many `days` has room for."""
    for wait in ENROL_DAYS:
        if days >= settings.horizon_days + wait + settings.pre_days:
            return wait, settings.horizon_days, settings.pre_days
    wait = ENROL_DAYS[-1]
    if days < wait + 1:
        raise InputError(f"transitions: they cover {days:.1f} days; a plan needs a log of {wait + 1} at least.")
    horizon = min(settings.horizon_days, days - wait)
    return wait, horizon, min(settings.pre_days, days - wait - horizon)


def _bounds(settings: AbtestConfig, span: Span) -> tuple[int, int]:
    """Start and end of what is read, us."""
    missing = [arm for arm in settings.arms if arm not in span.first]
    if missing:
        raise InputError(
            f"abtest: no decision by arm {missing[0]!r} in the transitions{suggest(missing[0], span.first)}; name the "
            "arms as `policy_id` does, and map data.decisions.columns.policy_id where the log calls it otherwise."
        )
    first = [span.first[arm] for arm in settings.arms]
    if settings.start is None and max(first) - min(first) > DAY:
        raise InputError(
            f"abtest.start: missing; the arms' first decisions lie apart ({text_of(min(first))} to "
            f"{text_of(max(first))}), so that one of them is older than the experiment: say when it began."
        )
    start = min(first) if settings.start is None else moment(settings.start, "abtest.start")
    end = span.end if settings.end is None else min(span.end, moment(settings.end, "abtest.end"))
    if end <= start:
        raise InputError(
            f"abtest: the experiment begins at {text_of(start)} and what is read ends at {text_of(end)}; correct "
            "abtest.start or abtest.end, or wait for the log."
        )
    return start, end


def _rows(shards: Shards, bucket: int, columns: list[str]) -> pa.Table:
    """All rows of a bucket, those that are not usable too: whoever decided was there."""
    return shards.dataset.to_table(columns=columns, filter=pc.field("bucket") == bucket)


def _micros(rows: pa.Table) -> Integers:
    found: Integers = rows["decided_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return found


def _first_where(user: Integers, at: Integers, rows: Booleans, users: int) -> Integers:
    """[U] the earliest time of each user's marked rows, -1 without any."""
    found = np.full(users, np.iinfo(np.int64).max)
    np.minimum.at(found, user[rows], at[rows])
    return np.where(found == np.iinfo(np.int64).max, -1, found)


def _assigned(shards: Shards, bucket: int, user_id: Any, settings: AbtestConfig, start: int, end: int) -> Assigned:
    """Arm and enrolment of the users `user_id` [U] of a bucket, by all decisions in [start, end)."""
    rows = _rows(shards, bucket, ["user_id", "decided_at", "policy_id"])
    at = _micros(rows)
    rows = rows.filter(pa.array((at >= start) & (at < end)))
    at = _micros(rows)
    ids = rows["user_id"].combine_chunks().dictionary_encode()
    user: Integers = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    arm = pc.index_in(rows["policy_id"], value_set=pa.array(settings.arms)).fill_null(-1).to_numpy().astype(np.int64)
    other = rows["policy_id"].is_valid().to_numpy() & (arm < 0)
    names = len(ids.dictionary)
    enrolled = _first_where(user, at, arm >= 0, names)
    low, high = np.full(names, len(settings.arms)), np.full(names, -1)
    np.minimum.at(low, user[arm >= 0], arm[arm >= 0])
    np.maximum.at(high, user, arm)
    crossed = (high >= 0) & (low != high)
    left = np.zeros(names, np.bool_)
    left[user[other & (at > enrolled[user]) & (enrolled[user] >= 0)]] = True
    place = pc.index_in(ids.dictionary, value_set=pa.array(user_id, pa.string())).fill_null(-1).to_numpy()
    kept = (high >= 0) & ~crossed & (place >= 0)
    arms, since = np.full(len(user_id), -1), np.zeros(len(user_id), np.int64)
    arms[place[kept]], since[place[kept]] = high[kept], enrolled[kept]
    unusable = (high >= 0) & ~crossed & (place < 0)
    return Assigned(arms, since, int(crossed.sum()), int((left & kept).sum()), int(unusable.sum()))


def _until(found: Assigned, settings: AbtestConfig, start: int, over: list[float]) -> Integers:
    """[U, L] up to when each user counts."""
    if settings.method == "always_valid":
        return found.enrolled[:, None] + round(settings.window_days * DAY)
    ends: Integers = start + np.rint(np.array(over, np.float64) * DAY).astype(np.int64)
    return np.broadcast_to(ends, (len(found.arm), len(over)))


def _check_users(users: Users, crossed: int, span: Span, settings: AbtestConfig) -> None:
    share = crossed / max(len(users) + crossed, 1)
    if share > settings.max_crossed:
        raise InputError(
            f"abtest: {crossed} users ({share:.1%}) were seen in two arms, at most {settings.max_crossed:.1%} may be "
            "(abtest.max_crossed): the assignment does not hold. See that a user keeps an arm, and start anew."
        )
    for place, arm in enumerate(settings.arms):
        if not (users.arm == place).any():
            raise InputError(
                f"abtest: arm {arm!r} has no users in the experiment (policies in the log: {', '.join(span.first)}); "
                "correct its name, abtest.start or abtest.end."
            )


def _late(users: Users, settings: AbtestConfig, start: int) -> Booleans:
    """[U] users who enrolled after the first of several looks: they were not there when it was read."""
    late = users.enrolled > start + round(settings.looks[0] * DAY)
    if settings.method == "always_valid" or len(settings.looks) == 1:
        return np.zeros_like(late)
    if late.mean() > MAX_LATE:
        raise InputError(
            f"abtest.looks: {int(late.sum())} of {len(late)} users enrolled after the first look; several looks are "
            'for users who all enrol at once: set method = "always_valid", or a single look.'
        )
    return late


def _clock(users: Users, settings: AbtestConfig, end: int, over: list[float]) -> Clock:
    if settings.method == "always_valid":
        return Clock(users.where(users.until[:, 0] <= end), (1.0,))
    # Before the first look nobody counts.
    counting = np.full(len(users), bool(over))
    return Clock(users.where(counting), tuple(each / settings.looks[-1] for each in over))


def _units(shards: Shards, settings: AbtestConfig) -> dict[str, str]:
    units = shards.contract.units
    return {
        name: "clicks per send" if name == "ctr" else f"{units.get(name, 'units')} per user-week"
        for name in settings.metrics
    }


def _learned_with(predicted: Path) -> dict[str, Any]:
    """The part of a lineage that says in which versions learned rewards were predicted: they are measured in those."""
    found = json.loads(predicted.read_text()) if predicted.exists() else {}
    return {LEARNED_VERSIONS: found[LEARNED_VERSIONS]} if LEARNED_VERSIONS in found else {}


def _predicted(reading: Mapping[str, Any], path: Path, config: Config, settings: AbtestConfig) -> dict[str, Any] | None:
    """The comparison with what evaluation predicted; None where nothing was evaluated."""
    if not path.exists():
        return None
    return against_prediction(reading, json.loads(path.read_text())["evaluation"], config.gate.estimator, settings)
