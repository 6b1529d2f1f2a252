"""Policies x estimators x reward components, one table."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from models.contract import SPLITS
from models.errors import InputError
from models.fqe import fit_fqe
from models.table import Transitions
from policies.base import Booleans, Floats, Integers, Policy
from policies.baselines import LoggingPolicy
from policies.gate import GateConfig
from policies.ope import diagnostics
from policies.ope.dr import dr
from policies.ope.fqe import Fit, FitQ, fit_all, folds, fqe
from policies.ope.intervals import lower, one_sided, poisson_counts, replicates, upper, user_keys
from policies.ope.ips import ips
from policies.ope.mis import bins, default_cuts, mis
from policies.ope.on_policy import on_policy
from policies.ope.pdis import pdis
from policies.ope.sample import Sample, check_propensities, take
from policies.ope.summaries import Corrected, Summary
from policies.ope.target import Target
from policies.ope.wdr import magic, wdr
from policies.ope.wpdis import wpdis

LOGGING = LoggingPolicy().name
CTR = "ctr"
Key = str | float
"""A policy by name, or a mixture of the candidate by its rollout share."""
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
    marginal: dict[str, int] | None = None
    """State features that state-marginalised IS carries its weights by, and into how many parts each is cut; by default
    those of policies/ope/mis.py, and none at all leaves that estimator out."""

    def __post_init__(self) -> None:
        if self.per not in ("week", "decision"):
            raise InputError(f"evaluate.per is {self.per!r}; it must be 'week' or 'decision'.")
        if self.resamples < 100:
            raise InputError(f"evaluate.resamples is {self.resamples}; an interval needs 100 or more.")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"evaluate.confidence is {self.confidence}; it must lie in [0.5, 1).")
        if self.fqe_steps < 1:
            raise InputError(f"evaluate.fqe_steps is {self.fqe_steps}; it must be 1 or more.")
        for name, parts in (self.marginal or {}).items():
            if parts < 2:
                raise InputError(f"evaluate.marginal.{name} is {parts}; a feature is cut into 2 parts or more.")


@dataclass(frozen=True)
class RowSet:
    """Rows that policies are compared on, and the resamples they share."""

    sample: Sample
    counts: NDArray[np.uint8]
    """[R + 1, U]."""
    components: tuple[str, ...]
    """K reward components."""
    place: Integers | None
    """[n] bins that state-marginalised IS carries its weights by; None where it is left out."""

    @classmethod
    def of(cls, table: Transitions, rows: Booleans, config: EvaluateConfig, seed: int) -> "RowSet":
        sample = take(table, rows, config.per)
        keys = user_keys(table.user_id[table.user[sample.rows[sample.start]]])
        cuts = default_cuts(table.contract.features) if config.marginal is None else config.marginal
        place = bins(table, cuts)[sample.rows] if cuts and sample.sequential else None
        return cls(sample, poisson_counts(keys, config.resamples, seed), table.contract.rewards, place)

    def metrics(self, summary: Summary) -> Metrics:
        """Every component's replicates, and CTR = clicks / sends from the totals of each resample."""
        return self._named(replicates(summary, self.sample.exposure, self.counts))

    def _named(self, values: Floats) -> Metrics:
        found = dict(zip(self.components, values.T, strict=True))
        if {"clicks", "sends"} <= found.keys():
            found[CTR] = quotient(found["clicks"], found["sends"])
        return found

    def estimates(self, target: Target, q: Floats) -> dict[str, Metrics]:
        """Every off-policy estimator of `target`; `q` [N, A, K] over the whole table, fitted on other users."""
        rows = self.sample.rows
        ratio, probability, q_rows = target.ratio[rows], target.probability[rows], q[rows]
        found = {"ips": self.metrics(ips(self.sample, ratio))}
        if self.place is not None:
            found["mis"] = self.metrics(mis(self.sample, ratio, self.place))
        if self.sample.sequential:
            found["pdis"] = self.metrics(pdis(self.sample, ratio))
        found["wpdis"] = self.metrics(wpdis(self.sample, ratio))
        found["dr"] = self.metrics(dr(self.sample, ratio, probability, q_rows))
        weighted = wdr(self.sample, ratio, probability, q_rows)
        terms = replicates(weighted, self.sample.exposure, self.counts, Corrected.terms)
        found["wdr"] = self._named(terms.sum(axis=1))
        found["magic"] = self._named(magic(terms))
        found["fqe"] = self.metrics(fqe(self.sample, probability, q_rows))
        return found

    def diagnostics(self, target: Target) -> dict[str, float]:
        rows = self.sample.rows
        found = diagnostics.weight_diagnostics(self.sample, target.ratio[rows])
        return {**found, "support": diagnostics.support(self.sample, target.probability[rows])}


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


@dataclass(frozen=True)
class Study:
    """Everything one evaluation compares."""

    sets: dict[str, RowSet]
    """By name: all, test (where something learned) and choice (per decision)."""
    levels: Levels
    targets: dict[str, Target]
    learned: set[str]
    mixtures: dict[float, Target]
    """Of the gate's candidate, by rollout share."""
    logged: dict[str, Metrics]
    """The logging policy's own metrics, by row set."""
    q: dict[Key, Floats]
    """[N, A, K] of every target and mixture."""

    def row_set_of(self, name: str) -> str:
        return "test" if name in self.learned else "all"

    def rows(self, name: str) -> RowSet:
        return self.sets[self.row_set_of(name)]


def evaluate(
    table: Transitions,
    policies: Sequence[Policy | LoggingPolicy],
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    progress: bool = True,
    tried: int = 1,
    alone: str | None = None,
    fit: FitQ | None = None,
) -> dict[str, Any]:
    """Each of `policies` and the logging policy by every estimator and component, as plain numbers ready for JSON.

    Per week V = 7 E_u[sum_k r_k] / E_u[sum_k Delta_k], the policy acting from a user's first row to the last and
    the log's decision times held fixed; per decision V = mean reward of a row, the policy at that row only. Raw
    units per user-week or decision; CTR clicks per send. Policies that learned nothing are evaluated on all rows,
    with value functions fitted on the other of two folds of users; learned ones on the test split, with value
    functions fitted on train and validation. Warm-up rows take part: they train no policy, but they happened.
    `tried` is how many candidates this test split has judged, this one included; they share the gate's confidence.
    `alone` names the policy that the mixtures at the gate's shares mix with the logging policy: by default the
    candidate, else what the candidate is without the part of the logging policy that it is deployed with. `fit`
    solves for the value functions; by default `models.fqe.fit_fqe`.

    Raises InputError for propensities that are unknown, out of range or all 1, a policy that names itself twice or
    gives no probabilities, a split without users, and too few resamples for the gate's level.
    """
    check_propensities(table)
    fit = fit or default_fit(config.fqe_steps, seed, progress)
    study = _study(table, policies, config, gate, seed, tried, alone, fit)
    metrics = list(study.logged["all"])
    units = {**table.contract.units, CTR: "clicks per send"}
    return {
        "per": config.per,
        "unit": f"per {'user-week' if config.per == 'week' else 'decision'}",
        "components": metrics,
        "units": {name: units.get(name, "") for name in metrics},
        "confidence": config.confidence,
        "gate_confidence": 1 - study.levels.gate,
        "tried": tried,
        "resamples": config.resamples,
        "propensities": {"decisions": len(table.action), "estimated": int(table.estimated.sum())},
        "policies": _describe_policies(study, gate.min_ess),
        "row_sets": {
            name: {"users": each.sample.users, "decisions": len(each.sample.rows), "left_out": each.sample.left_out}
            for name, each in study.sets.items()
        },
        "logging_by_rows": {
            name: {metric: study.levels.interval(values) for metric, values in logged.items()}
            for name, logged in study.logged.items()
        },
        "contrasts": _contrasts(study),
        "mixtures": {
            gate.candidate: {
                str(share): _trusted(_describe(study, "test", target, study.q[share]), gate.min_ess)
                for share, target in study.mixtures.items()
            }
        },
        "weights": {
            name: diagnostics.histogram(study.rows(name).sample, target.ratio[study.rows(name).sample.rows])
            for name, target in study.targets.items()
        },
        "calibration": diagnostics.calibration(table, table.contract.actions),
    }


def default_fit(steps: int, seed: int, progress: bool) -> FitQ:
    """`models.fqe.fit_fqe`, undiscounted, with `steps` updates."""

    def fit(
        table: Transitions, rows: Booleans, ahead: NDArray[np.float32], extra: NDArray[np.float32] | None
    ) -> NDArray[np.float64]:
        return fit_fqe(table, rows, ahead, steps, None, extra, seed, progress=progress)()

    return fit


def _row_sets(table: Transitions, config: EvaluateConfig, seed: int, learned: bool) -> dict[str, RowSet]:
    every = np.ones(len(table.action), dtype=np.bool_)
    wanted = {"all": every}
    if learned:
        wanted["test"] = table.split == SPLITS.index("test")
        if not wanted["test"].any():
            raise InputError(
                "evaluate: no user lies in the test split; raise its share in etl.split or use a longer log."
            )
    if config.per == "decision":
        wanted["choice"] = table.legal.sum(axis=1) > 1
    return {name: RowSet.of(table, rows, config, seed) for name, rows in wanted.items()}


def _study(
    table: Transitions,
    policies: Sequence[Policy | LoggingPolicy],
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    tried: int,
    alone: str | None,
    fit: FitQ,
) -> Study:
    asked = [policy for policy in policies if not isinstance(policy, LoggingPolicy)]
    names = [LOGGING, *(policy.name for policy in asked)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"policies: {repeated} named more than once; name each once.")
    levels = Levels((1 - config.confidence) / 2, one_sided(gate.confidence, tried, config.resamples))
    targets = {policy.name: Target.of(policy, table) for policy in asked}
    learned = {policy.name for policy in asked if policy.learned}
    mixtures = {}
    if gate.candidate in learned:
        whole = targets[alone or gate.candidate]
        mixtures = {float(x): whole if x == 1 else whole.mixture(table, x) for x in sorted(gate.shares)}
    sets = _row_sets(table, config, seed, bool(learned))
    logged = {name: row_set.metrics(on_policy(row_set.sample)) for name, row_set in sets.items()}
    q = _value_functions(table, targets, mixtures, learned, config, fit)
    return Study(sets, levels, targets, learned, mixtures, logged, q)


def _value_functions(
    table: Transitions,
    targets: dict[str, Target],
    mixtures: dict[float, Target],
    learned: set[str],
    config: EvaluateConfig,
    fit: FitQ,
) -> dict[Key, Floats]:
    """Q [N, A, K] of every policy and mixture, at rows whose users it was not fitted on; one population."""
    fold = folds(table.user_id)[table.user]
    test = table.split == SPLITS.index("test")
    every: list[tuple[Key, Target]] = [*targets.items(), *mixtures.items()]
    wanted: dict[int, list[Fit]] = {}
    for key, target in every:
        if isinstance(key, float) or key in learned:
            wanted[id(target)] = [Fit(target.probability, ~test, test)]
        else:
            wanted[id(target)] = [Fit(target.probability, fold != each, fold == each) for each in (0, 1)]
    # The mixture of share 1 is a policy of the table: one target, fitted once.
    fitted = dict(zip(wanted, fit_all(table, list(wanted.values()), config.per == "week", fit), strict=True))
    return {key: fitted[id(target)] for key, target in every}


def _describe_policies(study: Study, min_ess: float) -> dict[str, Any]:
    """Every policy; `trusted` where the log follows it far enough for its intervals to mean what they say."""
    everybody = study.sets["all"].sample
    logged = {metric: study.levels.interval(values) for metric, values in study.logged["all"].items()}
    ones = diagnostics.weight_diagnostics(everybody, np.ones(len(everybody.rows)))
    found: dict[str, Any] = {
        LOGGING: {
            "rows": "all",
            "users": everybody.users,
            "decisions": len(everybody.rows),
            "learned": False,
            "estimates": {"on_policy": logged},
            "diagnostics": {**ones, "support": 1.0},
            "trusted": True,
            "truth": None,
        }
    }
    for name, target in study.targets.items():
        row_set = study.rows(name)
        found[name] = {
            "rows": study.row_set_of(name),
            "users": row_set.sample.users,
            "decisions": len(row_set.sample.rows),
            "learned": name in study.learned,
            **_describe(study, study.row_set_of(name), target, study.q[name]),
            "truth": None,
        }
        _trusted(found[name], min_ess)
    return found


def _trusted(described: dict[str, Any], min_ess: float) -> dict[str, Any]:
    described["trusted"] = bool(described["diagnostics"]["ess"] >= min_ess)
    return described


def _describe(study: Study, rows: str, target: Target, q: Floats) -> dict[str, Any]:
    row_set = study.sets[rows]
    return {
        "estimates": study.levels.against_logging(row_set.estimates(target, q), study.logged[rows]),
        "diagnostics": row_set.diagnostics(target),
    }


def _contrasts(study: Study) -> list[dict[str, Any]]:
    """Each pair of policies that learned nothing, later against earlier, over all rows and over those with a choice."""
    plain = [name for name in study.targets if name not in study.learned]
    found = []
    for rows in (name for name in ("all", "choice") if name in study.sets):
        values = {name: study.sets[rows].estimates(study.targets[name], study.q[name]) for name in plain}
        for against, policy in itertools.combinations(plain, 2):
            pair = {
                estimator: {
                    metric: study.levels.interval(values[policy][estimator][metric] - base)
                    for metric, base in metrics.items()
                }
                for estimator, metrics in values[against].items()
            }
            found.append({"policy": policy, "against": against, "rows": rows, "estimates": pair})
    return found


def quotient(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0: a ratio that the resample does not define."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(below == 0, np.nan, above / below)
    return found


def _number(value: float) -> float | None:
    """A number for JSON: null for NaN and the infinities."""
    return value if np.isfinite(value) else None
