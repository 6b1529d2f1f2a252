"""The rows that policies are compared on: every estimator's replicates, and the intervals that are read of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.baselines import NAMES
from policies.named import NamedPolicy
from policies.ope import diagnostics
from policies.ope.bernstein import floor, most_per_user
from policies.ope.dr import dr
from policies.ope.fqe import fqe
from policies.ope.intervals import Keys, lower, poisson_counts, replicates, upper, user_keys
from policies.ope.ips import ips
from policies.ope.mis import bins, default_cuts, mis
from policies.ope.pdis import pdis
from policies.ope.sample import Sample, take
from policies.ope.summaries import Corrected, Summary
from policies.ope.target import Target
from policies.ope.wdr import magic, wdr
from policies.ope.wpdis import wpdis

CTR = "ctr"
Metrics = dict[str, Floats]
"""Metric name -> [R + 1] its value in the log (first) and in each resample."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How policies are evaluated on the log."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    per: Literal["week", "decision"] = "week"
    """`week`: pi acts from the user's first row to the last, value per user-week. `decision`: pi at this decision
    only."""
    resamples: int = 1000
    """Bootstrap replicates over users."""
    confidence: float = 0.95
    """Level of the two-sided intervals shown in tables."""
    fqe_steps: int = 1500
    """Updates of the evaluation's fitted Q networks."""
    baselines: tuple[str, ...] | None = None
    """Policies fitted to be compared with, of random, click_threshold and survival_uplift; all that the log allows
    where this is left out."""
    baseline_send_rate: float | None = None
    """Share of the decisions with a choice at which they send; as often as the log where this is left out."""
    policies: dict[str, NamedPolicy] = field(default_factory=dict)
    """Name -> a policy that learned nothing; by default never and always send, where `hold` is an action."""
    marginal: dict[str, int] | None = None
    """State features that state-marginalised IS carries its weights by, and into how many parts each is cut; by default
    those of policies/ope/mis.py, and none at all leaves that estimator out."""

    most_per_decision: dict[str, float] = field(default_factory=dict)
    """Of components that cannot be negative, the most that one decision can bring: they then have a floor that holds at
    any sample size. Sends, disables and weekly active days have it by definition."""

    def __post_init__(self) -> None:
        if self.per not in ("week", "decision"):
            raise InputError(f"evaluate.per is {self.per!r}; it must be 'week' or 'decision'.")
        if self.resamples < 100:
            raise InputError(f"evaluate.resamples is {self.resamples}; an interval needs 100 or more.")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"evaluate.confidence is {self.confidence}; it must lie in [0.5, 1).")
        if self.fqe_steps < 1:
            raise InputError(f"evaluate.fqe_steps is {self.fqe_steps}; it must be 1 or more.")
        for name in self.baselines or ():
            if name not in NAMES or (self.baselines or ()).count(name) > 1:
                raise InputError(f"evaluate.baselines names {name!r}; name each of {', '.join(NAMES)} once at most.")
        if self.baseline_send_rate is not None and not 0 <= self.baseline_send_rate <= 1:
            raise InputError(f"evaluate.baseline_send_rate is {self.baseline_send_rate}; it must lie in [0, 1].")
        for name, parts in (self.marginal or {}).items():
            if parts < 2:
                raise InputError(f"evaluate.marginal.{name} is {parts}; a feature is cut into 2 parts or more.")
        for name, most in self.most_per_decision.items():
            if not 0 < most < np.inf:
                raise InputError(f"evaluate.most_per_decision.{name} is {most}; it must be finite and above 0.")


@dataclass(frozen=True)
class RowSet:
    """Rows that policies are compared on, and the resamples they share."""

    sample: Sample
    counts: NDArray[np.uint8]
    """[R + 1, U]."""
    components: tuple[str, ...]
    """K reward components."""
    keys: Keys
    """[U] who they are."""
    place: Integers | None
    """[n] bins that state-marginalised IS carries its weights by; None where it is left out."""

    @classmethod
    def of(cls, table: Transitions, rows: Booleans, config: EvaluateConfig, seed: int) -> "RowSet":
        sample = take(table, rows, config.per)
        keys = user_keys(table.user_id[table.user[sample.rows[sample.start]]])
        cuts = default_cuts(table.contract.features) if config.marginal is None else config.marginal
        place = bins(table, cuts)[sample.rows] if cuts and sample.sequential else None
        return cls(sample, poisson_counts(keys, config.resamples, seed), table.contract.rewards, keys, place)

    def among(self, table: Transitions, rows: Booleans) -> "RowSet":
        """Those of its users who have `rows` [N] of the `table` it is of: the same resamples, their rows alone."""
        sample = take(table, rows, "week" if self.sample.sequential else "decision")
        place = None if self.place is None else self.place[rows[self.sample.rows]]
        users = np.isin(table.user[self.sample.rows[self.sample.start]], table.user[sample.rows[sample.start]])
        return RowSet(sample, self.counts[:, users], self.components, self.keys[users], place)

    def metrics(self, summary: Summary) -> Metrics:
        """Every component's replicates, and CTR = clicks / sends from the totals of each resample."""
        return self._named(replicates(summary, self.sample.exposure, self.counts))

    def _named(self, values: Floats) -> Metrics:
        found = dict(zip(self.components, values.T, strict=True))
        if {"clicks", "sends"} <= found.keys():
            found[CTR] = quotient(found["clicks"], found["sends"])
        return found

    def estimates(self, target: Target, q: Floats, only: Collection[str] | None = None) -> dict[str, Metrics]:
        """Every off-policy estimator of `target`, or `only` some; `q` [N, A, K] over the whole table, fitted on other
        users."""
        rows = self.sample.rows
        ratio, probability, q_rows = target.ratio[rows], target.probability[rows], q[rows]
        sample, place = self.sample, self.place
        made: dict[str, Callable[[], Summary]] = {"ips": lambda: ips(sample, ratio)}
        if place is not None:
            made["mis"] = lambda: mis(sample, ratio, place)
        if sample.sequential:
            made["pdis"] = lambda: pdis(sample, ratio)
        made["wpdis"] = lambda: wpdis(sample, ratio)
        made["dr"] = lambda: dr(sample, ratio, probability, q_rows)
        made["fqe"] = lambda: fqe(sample, probability, q_rows)
        wanted = {*made, "wdr", "magic"} if only is None else set(only)
        found = {name: self.metrics(make()) for name, make in made.items() if name in wanted}
        if wanted & {"wdr", "magic"}:
            terms = replicates(wdr(sample, ratio, probability, q_rows), sample.exposure, self.counts, Corrected.terms)
            found["wdr"] = self._named(terms.sum(axis=1))
            # It needs the lengths of WDR in every resample, and so is no summary of its own.
            found["magic"] = self._named(magic(terms))
        return found

    def diagnostics(self, target: Target) -> dict[str, float]:
        rows = self.sample.rows
        found = diagnostics.weight_diagnostics(self.sample, target.ratio[rows])
        return {**found, "support": diagnostics.support(self.sample, target.probability[rows])}

    def floors(self, target: Target, stated: Mapping[str, float], alpha: float) -> dict[str, float]:
        """Of the components that are bounded, what V(pi) exceeds but for a chance of `alpha`, at any sample size."""
        most = most_per_user(self.sample, self.components, stated)
        found = floor(self.sample, target.ratio[self.sample.rows], self.keys, most, alpha)
        return {name: float(low) for name, low in zip(self.components, found, strict=True) if np.isfinite(low)}


@dataclass(frozen=True)
class Levels:
    """Error rates: `table` on each side of the intervals shown, `gate` on one side, the candidates tried sharing it."""

    table: float
    gate: float

    def interval(self, values: Floats) -> dict[str, float | None]:
        """{estimate, low, high} of a metric's replicates [R + 1]; null where the log cannot say."""
        return {
            "estimate": _number(float(values[0])),
            "low": _number(lower(values[1:], self.table)),
            "high": _number(upper(values[1:], self.table)),
        }

    def difference(self, values: Floats, logged: Floats) -> dict[str, float | None]:
        """V(pi) - V(mu), paired by resample, absolute and as a share of |V(mu)|; with the gate's one-sided bounds of
        both."""
        delta = values - logged
        relative = quotient(delta, np.abs(logged))
        return {
            **self.interval(delta),
            "gate_low": _number(lower(delta[1:], self.gate)),
            "gate_high": _number(upper(delta[1:], self.gate)),
            "relative": _number(float(relative[0])),
            "relative_gate_low": _number(lower(relative[1:], self.gate)),
            "relative_gate_high": _number(upper(relative[1:], self.gate)),
        }

    def against_logging(self, estimates: dict[str, Metrics], logged: Metrics) -> dict[str, Any]:
        return {
            estimator: {
                name: {**self.interval(values), "difference": self.difference(values, logged[name])}
                for name, values in metrics.items()
            }
            for estimator, metrics in estimates.items()
        }


def quotient(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0: a ratio that the resample does not define."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(below == 0, np.nan, above / below)
    return found


def _number(value: float) -> float | None:
    """A number for JSON: null for NaN and the infinities."""
    return value if np.isfinite(value) else None
