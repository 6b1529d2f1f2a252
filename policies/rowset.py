"""The rows that policies are compared on: every estimator's replicates, and the intervals that are read of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.baselines import NAMES
from policies.named import NamedPolicy
from policies.ope.diagnostics import Support, Weights
from policies.ope.dr import dr
from policies.ope.fqe import fqe
from policies.ope.intervals import Keys, at_a_time, lower, poisson_counts, replicates, sums_of, upper, user_keys
from policies.ope.ips import ips
from policies.ope.mis import Bins, default_cuts, mis
from policies.ope.pdis import pdis
from policies.ope.sample import Pace, Sample, take
from policies.ope.summaries import Corrected, Summary, Summed
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
    only, the default of a configuration without data.events."""
    resamples: int = 1000
    """Bootstrap replicates over users."""
    confidence: float = 0.95
    """Level of the two-sided intervals shown in tables."""
    fqe_steps: int = 1500
    """Updates of the evaluation's fitted Q networks."""
    fit_rows: int = 2_000_000
    """With --spark: rows, of whole buckets, that value functions and baselines are fitted on and cuts are made by."""
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
        for name in ("fqe_steps", "fit_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"evaluate.{name} is {getattr(self, name)}; it must be 1 or more.")
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
    pace: Pace
    place: Integers | None
    """[n] bins that state-marginalised IS carries its weights by; None where it is left out."""
    bins: int = 0
    """Z, how many of those there are."""

    @classmethod
    def of(cls, table: Transitions, rows: Booleans, config: EvaluateConfig, seed: int) -> "RowSet":
        """`rows` [N] of a whole log. Raises InputError as `take` and `Bins.of` do."""
        return cls.cut(table, rows, config, seed, marginal_bins(table, config), Pace.of(table))

    @classmethod
    def cut(
        cls,
        table: Transitions,
        rows: Booleans,
        config: EvaluateConfig,
        seed: int,
        bins: Bins | None,
        pace: Pace,
        part: bool = False,
    ) -> "RowSet":
        """`rows` [N] of a log or of a `part` of its users, by `bins` and `pace` that all parts share."""
        sample = take(table, rows, config.per, part, pace)
        keys = user_keys(table.user_id[table.user[sample.rows[sample.start]]])
        counts = poisson_counts(keys, config.resamples, seed)
        if bins is None:
            return cls(sample, counts, table.contract.rewards, keys, pace, None)
        # Whoever left is in a bin of their own.
        place: Integers = np.where(sample.closed, bins.number, bins.place(table)[sample.rows])
        return cls(sample, counts, table.contract.rewards, keys, pace, place, bins.number + 1)

    def among(self, table: Transitions, rows: Booleans) -> "RowSet":
        """Those of its users who have `rows` [N] of the `table` it is of: the same resamples, their rows alone."""
        sample = take(table, rows, "week" if self.sample.sequential else "decision", True, self.pace)
        place = None if self.place is None else self.place[rows[self.sample.rows]]
        users = np.isin(table.user[self.sample.rows[self.sample.start]], table.user[sample.rows[sample.start]])
        return RowSet(sample, self.counts[:, users], self.components, self.keys[users], self.pace, place, self.bins)

    def metrics(self, summary: Summary) -> Metrics:
        """Every component's replicates, and CTR = clicks / sends from the totals of each resample."""
        found = replicates(summary, self.sample.exposure, self.counts, cells=self._sums)
        return named(found, self.components)

    @property
    def _sums(self) -> int:
        return sums_of(int(self.sample.group.max()) + 1, len(self.components), self.bins)

    def summaries(self, target: Target, q: Floats | None, only: Collection[str] | None = None) -> dict[str, Summary]:
        """What every off-policy estimator of `target`, or `only` some, reads of each user.

        `q` [N, A, K] over the whole table, fitted on other users; None where `only` names none that needs it. MAGIC is
        read of the sums of WDR.
        """
        rows, sample, place = self.sample.rows, self.sample, self.place
        ratio, probability = sample.ratios(target.ratio), target.probability[rows]
        of_rows = np.zeros(0) if q is None else q[rows]
        if q is not None:
            of_rows[sample.closed] = 0.0
        made: dict[str, Callable[[], Summary]] = {"ips": lambda: ips(sample, ratio)}
        if place is not None:
            made["mis"] = lambda: mis(sample, ratio, place, self.bins)
        if sample.sequential:
            made["pdis"] = lambda: pdis(sample, ratio)
        made["wpdis"] = lambda: wpdis(sample, ratio)
        made["dr"] = lambda: dr(sample, ratio, probability, of_rows)
        made["fqe"] = lambda: fqe(sample, probability, of_rows)
        made["wdr"] = lambda: wdr(sample, ratio, probability, of_rows)
        wanted = set(made) if only is None else {"wdr" if name == "magic" else name for name in only}
        return {name: make() for name, make in made.items() if name in wanted}

    def estimates(self, target: Target, q: Floats, only: Collection[str] | None = None) -> dict[str, Metrics]:
        """Every off-policy estimator of `target`, or `only` some; `q` [N, A, K] over the whole table, fitted on other
        users."""
        summaries, step = self.summaries(target, q, only), at_a_time(self.sample.users, self._sums)
        parts = []
        for low in range(0, len(self.counts), step):
            counts = self.counts[low : low + step].astype(np.float64)
            summed = {name: summary.over(counts) for name, summary in summaries.items()}
            parts.append(values_of(summed, counts @ self.sample.exposure))
        return estimates_of(parts, self.components, only)

    def diagnostics(self, target: Target) -> dict[str, float]:
        rows = self.sample.rows
        weights, support = (
            Weights.of(self.sample, self.sample.ratios(target.ratio)),
            Support.of(self.sample, target.probability[rows]),
        )
        return {**weights.diagnostics(), "support": support.share()}


def marginal_bins(table: Transitions, config: EvaluateConfig) -> Bins | None:
    """Of `evaluate.marginal`, cut by the rows of `table`; None where that estimator is left out."""
    cuts = default_cuts(table.contract.features) if config.marginal is None else config.marginal
    return Bins.of(table, cuts) if cuts and config.per == "week" else None


def values_of(summed: Mapping[str, Summed], exposure: Floats) -> dict[str, Floats]:
    """[R, K] by estimator from sums over users: total / `exposure` [R]; of WDR its terms [R, 1 + G, K]. NaN where a
    resample covers no time."""
    found, covered = {}, np.where(exposure > 0, exposure, np.nan)
    for name, sums in summed.items():
        values = sums.terms() if isinstance(sums, Corrected) else sums.total()
        found[name] = values / covered.reshape(-1, *[1] * (values.ndim - 1))
    return found


def estimates_of(
    parts: Sequence[Mapping[str, Floats]], components: Sequence[str], only: Collection[str] | None = None
) -> dict[str, Metrics]:
    """Every estimator's metrics, or `only` some, from the values of all resamples in their order."""
    found = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        if name != "wdr":
            found[name] = named(values, components)
            continue
        found["wdr"] = named(values.sum(axis=1), components)
        if only is None or "magic" in only:
            # It needs the lengths of WDR in every resample, and so is no sum of its own.
            found["magic"] = named(magic(values), components)
    return found if only is None else {name: metrics for name, metrics in found.items() if name in only}


def named(values: Floats, components: Sequence[str]) -> Metrics:
    """[R + 1] by component from `values` [R + 1, K], and CTR = clicks / sends where both are there."""
    found = dict(zip(components, values.T, strict=True))
    if {"clicks", "sends"} <= found.keys():
        found[CTR] = quotient(found["clicks"], found["sends"])
    return found


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
