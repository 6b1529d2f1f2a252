"""What the gate says of many policies on one log: the checks of `policies.gate.judge` and nothing else computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats
from policies.evidence import CONSISTENT, disagreement
from policies.gate import judge
from policies.ope.diagnostics import Calibration
from policies.ope.fqe import Fit, FitQ, fit_all, folds
from policies.ope.intervals import one_sided, replicates
from policies.ope.on_policy import on_policy
from policies.ope.summaries import Additive
from policies.ope.target import Target
from policies.rowset import CTR, EvaluateConfig, Levels, Metrics, RowSet, quotient
from policies.rules import GateConfig

JUDGES_BY = "dr"
OTHERS = tuple(name for name in CONSISTENT if name not in {JUDGES_BY, "ips"})
"""Estimators that must agree with it; one-step IPS is not asked per week."""
NO_DISTANCE = {"relative": 0.0, "se": 0.0}
"""What an estimator that agrees is said to differ by."""
UNDECIDED = "INCONCLUSIVE"


@dataclass(frozen=True)
class Court:
    """One log, the rows that policies are judged on, and what all their verdicts share."""

    table: Transitions
    rows: RowSet
    tested: bool
    """Whether the rows are the test split, for policies that learned from the others; else they are all rows."""
    logged: Metrics
    levels: Levels
    calibration: dict[str, Any]
    gate: GateConfig
    tried: int

    @classmethod
    def of(
        cls, table: Transitions, rows: Booleans, config: EvaluateConfig, gate: GateConfig, seed: int, tried: int = 1
    ) -> "Court":
        """Judge by `gate` on the `rows` [N] of `table`, with the resamples that `policies.evaluate` would draw.

        Raises InputError where the gate judges by another estimator than `dr`, or by segments.
        """
        if gate.estimator != JUDGES_BY:
            raise InputError(f"gate.estimator is {gate.estimator!r}; the study judges by {JUDGES_BY!r} alone.")
        if gate.segments:
            raise InputError(f"gate.segments is {list(gate.segments)}; the study judges all users together: remove it.")
        row_set = RowSet.of(table, rows, config, seed)
        return cls(
            table=table,
            rows=row_set,
            tested=not bool(rows.all()),
            logged=row_set.metrics(on_policy(row_set.sample)),
            levels=Levels((1 - config.confidence) / 2, one_sided(gate.confidence, tried, config.resamples)),
            calibration=Calibration.of(table).plain(table.contract.actions),
            gate=gate,
            tried=tried,
        )

    def trying(self, tried: int) -> "Court":
        """The same court where so many candidates share the confidence."""
        resamples = len(self.rows.counts) - 1
        return replace(
            self, levels=replace(self.levels, gate=one_sided(self.gate.confidence, tried, resamples)), tried=tried
        )

    def replicates(self, targets: Sequence[Target], q: Sequence[Floats]) -> list[Metrics]:
        """The doubly robust estimate of each target in every resample, all in one product."""
        sums = []
        for target, values in zip(targets, q, strict=True):
            made = self.rows.summaries(target, values, only=(JUDGES_BY,))[JUDGES_BY]
            assert isinstance(made, Additive)
            sums.append(made.sums)
        whole = replicates(Additive(np.concatenate(sums, axis=1)), self.rows.sample.exposure, self.rows.counts)
        names = self.rows.components
        found = []
        for values in np.split(whole, len(sums), axis=1):
            metrics = dict(zip(names, values.T, strict=True))
            if {"clicks", "sends"} <= metrics.keys():
                metrics[CTR] = quotient(metrics["clicks"], metrics["sends"])
            found.append(metrics)
        return found

    def described(
        self, targets: Sequence[Target], q: Sequence[Floats], found: Sequence[Metrics]
    ) -> list[dict[str, Any]]:
        """What the gate reads of each target, from its `replicates`; what cannot change a verdict is not computed."""
        return [self._described(*each) for each in zip(targets, q, found, strict=True)]

    def _described(self, target: Target, q: Floats, metrics: Metrics) -> dict[str, Any]:
        found: dict[str, Any] = {
            "estimates": self.levels.against_logging({JUDGES_BY: metrics}, self.logged),
            "diagnostics": self.rows.diagnostics(target),
            "rows": "test" if self.tested else "all",
            "users": self.rows.sample.users,
            "learned": self.tested,
        }
        # One more check can take a decision back, and never makes one.
        agreeing = {name: dict.fromkeys(self.gate.metrics, NO_DISTANCE) for name in OTHERS}
        if self.verdict({**found, "disagreement": agreeing}, {})["verdict"] != UNDECIDED:
            others = self.rows.estimates(target, q, OTHERS)
            found["disagreement"] = disagreement({**others, JUDGES_BY: metrics}, self.logged, JUDGES_BY, "week")
        return found

    def verdict(self, described: dict[str, Any], mixtures: Mapping[float, dict[str, Any]]) -> dict[str, Any]:
        """The gate's judgement of one policy and, by rollout share, of its mixtures with the logging policy."""
        name = self.gate.candidate
        evaluation = {
            "per": "week",
            "components": list(self.logged),
            "tried": self.tried,
            "gate_confidence": 1 - self.levels.gate,
            "propensities": {
                "decisions": len(self.table.action),
                "estimated": int(self.table.estimated.sum()),
            },
            "policies": {name: described},
            "mixtures": {name: {str(share): each for share, each in mixtures.items()}},
            "calibration": self.calibration,
            "seeds": None,
        }
        return judge(evaluation, self.gate, self.tried)


def held_out(table: Transitions, test: Booleans, targets: Sequence[Target], fit: FitQ) -> list[Floats]:
    """Q [N, A, K] of each target at the `test` rows, fitted on all others."""
    return fit_all(table, [[Fit(each.probability, ~test, test)] for each in targets], True, fit)


def by_folds(table: Transitions, targets: Sequence[Target], fit: FitQ) -> list[Floats]:
    """Q [N, A, K] of each target at every row, fitted on the users of the other of two folds."""
    fold = folds(table.user_id)[table.user]
    parts = [[Fit(each.probability, fold != mine, fold == mine) for mine in (0, 1)] for each in targets]
    return fit_all(table, parts, True, fit)
