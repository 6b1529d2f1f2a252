"""An evaluation as the report reads it: metrics and their good side, policies, differences from the logging policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.report.text import Range, known, metric_name, policy_name

LOGGING = "logging"
ON_POLICY = "on_policy"
RATIOS = ("ctr",)
PREFERRED = ("dr", "wpdis", "ips", "fqe")
UNTRUSTED = " †"
SAID = {"good": "shown better", "bad": "shown worse", "unclear": "no difference shown"}


@dataclass(frozen=True)
class Metric:
    """A reward component or a ratio, and which way is better."""

    key: str
    unit: str
    better: int
    """+1 up, -1 down, 0 neither."""
    margin: float | None
    """Non-inferiority margin as a share of the logging policy's value, where the gate guards this metric."""

    @property
    def name(self) -> str:
        return metric_name(self.key)

    @property
    def scale(self) -> float:
        """Ratios are read in per cent."""
        return 100.0 if self.key in RATIOS else 1.0

    @property
    def suffix(self) -> str:
        return "%" if self.key in RATIOS else ""

    @property
    def points(self) -> str:
        """Unit of a difference between two values."""
        return " pp" if self.key in RATIOS else ""

    def tone(self, difference: Range) -> str:
        """good, bad or unclear; `ink` for a difference that is neither better nor worse."""
        side = difference.excludes_zero
        if not side:
            return "unclear"
        return {1: "good", -1: "bad", 0: "ink"}[side * self.better]

    def said(self, difference: Range) -> str:
        tone = self.tone(difference)
        return SAID.get(tone) or ("shown higher" if difference.excludes_zero > 0 else "shown lower")


@dataclass(frozen=True)
class Entry:
    """One policy on one row set."""

    key: str
    rows: str
    learned: bool
    candidate: bool
    estimates: Mapping[str, Mapping[str, Any]]
    truth: Mapping[str, Any]
    trusted: bool = True
    """Whether the log follows the policy far enough for its intervals to mean what they say."""

    @property
    def name(self) -> str:
        return policy_name(self.key) + ("" if self.trusted else UNTRUSTED)

    def tone(self, metric: Metric, difference: Range) -> str:
        """The metric's tone; never better or worse where the interval cannot be trusted."""
        return metric.tone(difference) if self.trusted else "unclear"

    def said(self, metric: Metric, difference: Range) -> str:
        if difference.value is None:
            return "not estimable"
        return metric.said(difference) if self.trusted else "too little overlap to say"

    @property
    def logging(self) -> bool:
        return self.key == LOGGING

    def true(self, metric: Metric) -> float | None:
        """The simulator's value, in the unit shown; a plain number or {"value": x}."""
        found = self.truth.get(metric.key)
        value = known(found.get("value") if isinstance(found, Mapping) else found)
        return None if value is None else value * metric.scale


@dataclass(frozen=True)
class Reading:
    """An evaluation together with what the gate guards and what the learner was paid for."""

    evaluation: Mapping[str, Any]
    verdict: Mapping[str, Any]
    weights: Mapping[str, Any]

    @cached_property
    def candidate(self) -> str:
        return str(self.verdict.get("candidate") or "")

    @cached_property
    def metrics(self) -> list[Metric]:
        """In the order of the evaluation's components."""
        units = self.evaluation.get("units") or {}
        guarded = self.verdict.get("metrics") or {}
        found = []
        for key in self.evaluation.get("components") or []:
            rule = guarded.get(key) or {}
            weight = known(self.weights.get("clicks" if key in RATIOS else key)) or 0.0
            better = {"up": 1, "down": -1}.get(str(rule.get("direction")), int(weight > 0) - int(weight < 0))
            unit = (
                "clicks per notification sent"
                if key in RATIOS
                else f"{units.get(key, '')} {self.evaluation.get('unit', '')}".strip()
            )
            found.append(Metric(key, unit, better, known(rule.get("margin"))))
        return found

    @cached_property
    def estimator(self) -> str:
        """The estimator that is quoted: the gate's own where it says, else the most robust there is."""
        named = self.verdict.get("estimator") or self.evaluation.get("estimator")
        there = {name for entry in self.policies for name in entry.estimates}
        return next((name for name in (named, *PREFERRED) if name in there), ON_POLICY)

    @cached_property
    def policies(self) -> list[Entry]:
        """Every policy but the one that wrote the log."""
        return [
            Entry(
                key,
                str(found.get("rows") or "all"),
                bool(found.get("learned")),
                key == self.candidate,
                found.get("estimates") or {},
                found.get("truth") or {},
                bool(found.get("trusted", True)),
            )
            for key, found in (self.evaluation.get("policies") or {}).items()
            if key != LOGGING
        ]

    @cached_property
    def logging(self) -> list[Entry]:
        """The logging policy on each row set that a policy is judged on."""
        own = (self.evaluation.get("policies") or {}).get(LOGGING) or {}
        by_rows = dict(self.evaluation.get("logging_by_rows") or {})
        if own.get("estimates"):
            by_rows.setdefault(own.get("rows") or "all", own["estimates"].get(ON_POLICY) or {})
        used = list(dict.fromkeys(entry.rows for entry in self.policies)) or list(by_rows)
        truth = own.get("truth") or {}
        return [
            Entry(LOGGING, rows, False, False, {ON_POLICY: by_rows[rows]}, truth) for rows in used if rows in by_rows
        ]

    def quoted(self, entry: Entry, metric: Metric) -> Mapping[str, Any]:
        """The figures of the quoted estimator; empty where there are none."""
        name = ON_POLICY if entry.logging or self.estimator not in entry.estimates else self.estimator
        return (entry.estimates.get(name) or {}).get(metric.key) or {}

    def base(self, rows: str, metric: Metric) -> float | None:
        """The logging policy's value on a row set, raw."""
        entry = next((entry for entry in self.logging if entry.rows == rows), None)
        return known(self.quoted(entry, metric).get("estimate")) if entry else None

    def relative(self, figures: Mapping[str, Any], rows: str, metric: Metric) -> Range | None:
        """A difference as a share of the logging policy's value on the same rows; None if that is zero or unknown."""
        base = self.base(rows, metric)
        difference = figures.get("difference")
        return (
            Range.of(difference).scaled(1 / abs(base))
            if base and difference and known(difference.get("estimate")) is not None
            else None
        )

    def true_difference(self, entry: Entry, metric: Metric) -> float | None:
        """True value less the logging policy's, in the unit shown."""
        theirs = self.logging[0].true(metric) if self.logging else None
        own = entry.true(metric)
        return None if own is None or theirs is None else own - theirs
