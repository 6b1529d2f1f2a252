"""The state of a candidate is that of a logged decision, bit for bit, whatever part of the log was read for it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from models.contract import STATE_PREFIX
from pipelines.etl.blocks import arrival_day
from pipelines.etl.features import DAY, Ints
from pipelines.etl.history import Before, mark
from pipelines.etl.marks import ints
from pipelines.etl.schemas import DECISIONS, EVENTS
from pipelines.etl.transitions import transitions
from tests.pipelines.hostile import NAMES, PLAN, START, a_log, tables_of
from tests.pipelines.scoring.candidates import SCHEMA, candidate, judged

LOG = tables_of(a_log(3, 60))


def turns(table: pa.Table) -> Iterator[pa.Table]:
    """The rows, at most one of each user at a time: a logged decision knows of no draw of tonight."""
    users = np.array(table["user_id"].to_pylist())
    order = np.argsort(users, kind="stable")
    nth = np.empty(len(users), np.int64)
    nth[order] = np.arange(len(users)) - np.searchsorted(users[order], users[order])
    for turn in range(int(nth.max()) + 1):
        yield table.take(pa.array(np.flatnonzero(nth == turn)))


def bits(state: NDArray[np.float32]) -> Ints:
    """The very bits; every NaN is one."""
    found = np.where(np.isnan(state), np.float32(np.nan), state).astype(np.float32)
    return found.view(np.uint32).astype(np.int64)


def keys(users: pa.ChunkedArray, ids: pa.ChunkedArray, at: pa.ChunkedArray) -> list[tuple[str, str, int]]:
    return list(zip(users.to_pylist(), ids.to_pylist(), at.cast(pa.int64()).to_pylist(), strict=True))


def test_logged_decisions_scored_as_candidates_have_the_logged_states_and_legal_actions() -> None:
    made = transitions(mark(LOG, PLAN), PLAN)
    made = made.filter(pc.and_(made["usable"], pc.invert(made["silent"])))
    state = np.column_stack([made[STATE_PREFIX + name].to_numpy() for name in NAMES])
    legal = np.array(made["legal"].to_pylist())
    rows = dict(zip(keys(made["user_id"], made["decision_id"], made["decided_at"]), range(len(state)), strict=True))
    assert len(rows) == made.num_rows > 300

    kept = LOG[DECISIONS].filter(pa.array(mark(LOG, PLAN).marks[DECISIONS].kept))
    kept = kept.filter(pc.less(kept["at"], PLAN.watermark)).select(SCHEMA.names)
    seen = 0
    for candidates in turns(kept):
        found = judged(LOG, candidates)
        place = [rows[key] for key in keys(candidates["user_id"], candidates["row_id"], candidates["at"])]
        assert np.array_equal(bits(found.state), bits(state[place]))
        assert np.array_equal(found.legal, legal[place])
        seen += len(place)
    assert seen == len(rows)
    # Nothing is equal because nothing was there.
    assert (np.nanstd(state.astype(np.float64), axis=0) > 0).all()


def consent_of(known_since: int) -> pa.Table:
    """Older changes of consent, as the ETL leaves them."""
    events = LOG[EVENTS].filter(pa.array(mark(LOG, PLAN).marks[EVENTS].kept))
    events = events.filter(pc.is_in(events["label"], value_set=pa.array(["disable", "enable"])))
    events = events.filter(pc.less(events["at"], known_since))
    return events.select(["user_id", "at", "logged", "label"]).rename_columns(["user_id", "at", "logged", "kind"])


@pytest.mark.parametrize("day", [29, 36, 42.3, 49, 56])
def test_the_window_of_a_night_tells_all_that_its_states_know(day: float) -> None:
    at = START + round(day * DAY)
    people = sorted({user for user in LOG[DECISIONS]["user_id"].to_pylist() if user is not None})
    asked = [candidate(user, f"c-{user}", at + 7 * place) for place, user in enumerate(people)]
    known_since = at - PLAN.lookback - PLAN.session_gap
    first = (known_since - PLAN.max_lateness) // DAY
    read, dropped = {}, 0
    for code, table in LOG.items():
        rows = table
        if code in (DECISIONS, EVENTS):
            days = arrival_day(table.append_column("day", pa.nulls(table.num_rows, pa.int32())))
            rows = table.filter(pc.fill_null(pc.greater_equal(days, first), True))
        read[code], dropped = rows, dropped + table.num_rows - rows.num_rows
    none = np.empty(0, np.int64)
    before = Before(known_since, pa.array([], pa.string()), none, consent_of(known_since), known_since)
    whole, part = judged(LOG, asked), judged(read, asked, before=before)
    assert np.array_equal(bits(whole.state), bits(part.state))
    assert np.array_equal(whole.legal, part.legal)
    assert list(whole.reason) == list(part.reason)
    assert (dropped > 0) == (day > 37)
    if day > 45:
        # Without the older changes of consent some would be thought to agree.
        forgetful = judged(read, asked)
        assert not np.array_equal(bits(whole.state), bits(forgetful.state))


def test_users_who_do_not_fit_one_key_are_judged_in_halves() -> None:
    """A candidate of the year 1000 and one of the year 3000: their times span so much that few users fit one key."""
    far = [-30_000_000_000_000_000, 32_000_000_000_000_000]
    people = sorted({user for user in LOG[DECISIONS]["user_id"].to_pylist() if user is not None})
    crowd = [f"crowd{number}" for number in range(400)]
    asked = [candidate(user, f"c-{user}", START + 40 * DAY) for user in people + crowd]
    odd = [candidate(f"odd{n}", f"odd{n}", at) for n, at in enumerate(far)]
    alone, together = judged(LOG, asked), judged(LOG, asked + odd)
    assert np.array_equal(bits(alone.state), bits(together.state[: len(asked)]))
    assert ints(together.asked, "at")[-2:].tolist() == far
