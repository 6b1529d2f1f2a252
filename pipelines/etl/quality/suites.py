"""The fixed expectations at each boundary, on all days of a run as one row (`profiles.pooled`); no reference needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from models.contract import REWARD_PREFIX, STATE_PREFIX, Contract
from pipelines.etl.features import KINDS

CRITICAL, WARNING = "critical", "warning"
MOST = 0.05
"""Share of raw rows that may lack what every row must have, or say what nobody knows."""
MOST_UNKNOWN = 0.5
"""Share of decisions whose propensity may be unknown before it is a warning."""


@dataclass(frozen=True)
class Demand:
    """Bounds (both included unless `strict`) on a column of a profile, or the columns that it must have."""

    metric: str | None
    severity: str
    remedy: str
    low: float | None = None
    high: float | None = None
    strict: bool = False
    columns: Sequence[str] = field(default_factory=tuple)

    @property
    def expected(self) -> str:
        """The bounds as text."""
        if self.low is None and self.high is None:
            return "there"
        if self.low is not None and self.high is not None:
            return f"{show(self.low)} to {show(self.high)}"
        if self.low is not None:
            return f"{'above' if self.strict else 'at least'} {show(self.low)}"
        return f"at most {show(self.high or 0.0)}"

    def broken(self, frame: Any) -> list[tuple[str, float]]:
        """(day, value) of the rows of a profile that lie outside the bounds."""
        pairs = zip(frame["day"], frame[self.metric], strict=True)
        return [(day, float(value)) for day, value in pairs if self._outside(value)]

    def _outside(self, value: float) -> bool:
        low = self.low is not None and (value <= self.low if self.strict else value < self.low)
        return bool(low or (self.high is not None and value > self.high))


def show(value: float) -> str:
    """A number as a person reads it."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def fixed(dataset: str, pool: Any, contract: Contract) -> list[Demand]:
    """What a boundary demands of `pool`; of a dataset without rows nothing but rows."""
    rows = {
        "decisions": (CRITICAL, "check data.decisions.path: it has no rows"),
        "events": (CRITICAL, "check data.events.path: it has no rows"),
        "users": (WARNING, "check data.users.path: it has no rows"),
        "transitions": (
            CRITICAL,
            "no decision lies before the watermark: set etl.watermark, or wait for more of the log",
        ),
    }
    severity, remedy = rows[dataset]
    there = Demand("rows", severity, remedy, low=1)
    if not pool["rows"].iloc[0]:
        return [there]
    rest = {"decisions": _decisions, "events": _events, "users": _users}
    return [there, *(rest[dataset]() if dataset in rest else _transitions(contract))]


def _decisions() -> list[Demand]:
    return [
        *_present("decisions", "user_id", "decision_id", "decided_at"),
        Demand(
            "bad_share:action",
            CRITICAL,
            "name every action of the log in `actions`, or map data.decisions.columns.action",
            high=MOST,
        ),
        Demand(
            "bad_share:propensity",
            CRITICAL,
            "log the probability of the action taken, in (0, 1], or null where unknown",
            high=MOST,
        ),
        Demand(
            "null_share:propensity",
            WARNING,
            "log propensities: without them nothing can be evaluated but the logging policy",
            high=MOST_UNKNOWN,
        ),
    ]


def _events() -> list[Demand]:
    remedy = f"map data.events.columns.kind to {', '.join(KINDS)}, or leave other events out"
    return [
        *_present("events", "user_id", "event_id", "occurred_at"),
        Demand("bad_share:kind", CRITICAL, remedy, high=MOST),
    ]


def _users() -> list[Demand]:
    return _present("users", "user_id", "valid_from")


def _present(dataset: str, *columns: str) -> list[Demand]:
    remedy = "map data.{}.columns.{}: it is empty or cannot be read"
    return [Demand(f"null_share:{name}", CRITICAL, remedy.format(dataset, name), high=MOST) for name in columns]


def _transitions(contract: Contract) -> list[Demand]:
    measured = [f"mean:{STATE_PREFIX}{name}" for name in contract.features]
    measured += [f"mean:{REWARD_PREFIX}{name}" for name in contract.rewards]
    return [
        Demand(None, CRITICAL, "rebuild the table with --rebuild", columns=measured),
        *(
            Demand(f"null_share:{name}", CRITICAL, "report this: the ETL must set it", high=0)
            for name in ("user_id", "decided_at", "split", "legal", "elapsed_days")
        ),
        Demand("elapsed_days_least", CRITICAL, "report this: time ran backwards", low=0),
        Demand(
            "propensity_least",
            CRITICAL,
            "report this: a propensity outside (0, 1] passed quarantine",
            low=0,
            strict=True,
        ),
        Demand("propensity_largest", CRITICAL, "report this: a propensity outside (0, 1] passed quarantine", high=1),
        Demand("share:no_action", CRITICAL, "report this: a usable row has no action", high=0),
        Demand("null_share:propensity", WARNING, "log propensities, or estimate them before evaluation", high=0),
    ]
