"""What a night reads of the log: no more than its candidates' states look back on.

A state at time t knows of nothing that happened before t - lookback but consent, and which page view began a session of
that time is settled by at most a session's gap before. So of a night whose first candidate is decided at t0 everything
that happened from

    known_since = t0 - lookback - session_gap

is read, and max_lateness further back every row that one of these can be a duplicate of. Older changes of consent come
from the table that the ETL left. Where that table does not reach so far, or is another configuration's, the whole log
is read.
"""

import logging
from dataclasses import dataclass

from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.buckets import Resume
from pipelines.etl.features import DAY, HOUR
from pipelines.etl.plans import max_lateness
from pipelines.etl.schemas import Days
from pipelines.etl.window import Facts, by_bucket

logger = logging.getLogger("tactful.score")
EVER_AFTER = (1 << 31) - 1
"""Later than any day."""


@dataclass(frozen=True)
class Lookback:
    """The part of the log that a night reads."""

    days: Days | None
    """First and last arrival day; None is all there are."""
    resume: Resume | None
    """The older changes of consent; None where the raw log tells of all."""
    versions: dict[str, int]
    """Of the tables that were read beside the raw log."""


def look_back(config: Config, first: int) -> Lookback:
    """What a night reads whose first candidate is decided at `first`, us."""
    etl = config.etl
    spans = round(etl.lookback_days * DAY) + round(etl.session_gap_minutes * HOUR / 60)
    known_since, lateness = first - spans, max_lateness(config)
    if config.data.events is None:
        # Without events nobody changes consent, and every row that can matter is a decision.
        return Lookback(((known_since - lateness) // DAY, EVER_AFTER), None, {})
    base, consent = (store.opened(config.run_dir / name) for name in ("transitions", "consent"))
    facts = Facts.of(base) if base is not None else None
    if base is None or consent is None or facts is None:
        why = "the ETL has left no changes of consent yet"
    elif store.fact(base, store.ETL_HASH) != config.etl_hash():
        why = "the transitions are another configuration's"
    elif facts.last_day < (known_since + lateness) // DAY:
        why = "the ETL has not run for so long that changes of consent would be missed"
    else:
        days = (known_since - lateness) // DAY, EVER_AFTER
        resume = Resume(known_since, known_since, days[0], {}, by_bucket(consent))
        return Lookback(days, resume, {"consent": consent.version()})
    logger.warning("the whole raw log is read: %s; run `tactful etl` first.", why)
    return Lookback(None, None, {})
