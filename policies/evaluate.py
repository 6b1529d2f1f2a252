"""Policies x estimators x reward components, one table."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contract import SPLITS
from models.errors import InputError
from models.fqe import fit_fqe
from models.table import Transitions
from policies.base import Booleans, Floats, Policy
from policies.baselines import LoggingPolicy
from policies.evidence import by_segment, confounding, disagreement
from policies.named import Recorded
from policies.ope import diagnostics
from policies.ope.diagnostics import ess_if_explored
from policies.ope.fqe import Fit, FitQ, fit_all, folds
from policies.ope.intervals import one_sided
from policies.ope.on_policy import on_policy
from policies.ope.sample import check_propensities, check_rewards
from policies.ope.target import Target
from policies.rowset import CTR, EvaluateConfig, Levels, Metrics, RowSet
from policies.rules import GateConfig
from policies.segments import segments

LOGGING = LoggingPolicy().name
UNWEIGHTED, ONE_STEP = ("fqe",), ("ips", "mis")
"""Estimators that no weights enter, and those whose weights are of one decision each."""
Key = str | float
"""A policy by name, or a mixture of the candidate by its rollout share."""


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
    table: Transitions
    config: EvaluateConfig
    gate: GateConfig
    _made: dict[tuple[str, Key], dict[str, Metrics]] = field(default_factory=dict)

    def row_set_of(self, name: str) -> str:
        return "test" if name in self.learned else "all"

    def rows(self, name: str) -> RowSet:
        return self.sets[self.row_set_of(name)]

    def estimates(self, rows: str, key: Key) -> dict[str, Metrics]:
        """Of a policy or a mixture on a row set; made once."""
        if (rows, key) not in self._made:
            self._made[rows, key] = self.sets[rows].estimates(self.target(key), self.q[key])
        return self._made[rows, key]

    def target(self, key: Key) -> Target:
        return self.mixtures[key] if isinstance(key, float) else self.targets[key]


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

    Where one user holds half of a policy's weight or more, `withheld` has the reason and estimates by weights are null.
    `clusters` says what the intervals resample: users, or rows where none has two; `warnings` what to know first.

    Raises InputError for propensities that are unknown, out of range or all 1, rewards that are no number, a policy
    that names itself twice or gives no probabilities, a split without users, too few resamples for the gate's level.
    """
    check_propensities(table)
    check_rewards(table)
    fit = fit or default_fit(config.fqe_steps, seed, progress)
    study = _study(table, policies, config, gate, seed, tried, alone, fit)
    metrics = list(study.logged["all"])
    described = _describe_policies(study)
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
        "policies": described,
        "clusters": "users" if len(table.user_id) < len(table.action) else "rows",
        "warnings": _warnings(study, policies, described),
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
            gate.candidate: {str(share): _described(study, "test", share, judged=True) for share in study.mixtures}
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
    return Study(sets, levels, targets, learned, mixtures, logged, q, table, config, gate)


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


def _describe_policies(study: Study) -> dict[str, Any]:
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
            "withheld": {},
            "trusted": True,
            "truth": None,
        }
    }
    for name in study.targets:
        row_set = study.rows(name)
        found[name] = {
            "rows": study.row_set_of(name),
            "users": row_set.sample.users,
            "decisions": len(row_set.sample.rows),
            "learned": name in study.learned,
            **_described(study, study.row_set_of(name), name, judged=name == study.gate.candidate),
            "truth": None,
        }
    return found


def _described(study: Study, rows: str, key: Key, judged: bool) -> dict[str, Any]:
    """Estimates, how far the log follows the policy and, where it is to be judged, what else the gate asks."""
    row_set, gate, logged, target = study.sets[rows], study.gate, study.logged[rows], study.target(key)
    made = study.estimates(rows, key)
    withheld = _withheld(row_set, target, made)
    estimates = study.levels.against_logging(made, logged)
    diagnosed: dict[str, Any] = dict(row_set.diagnostics(target))
    found: dict[str, Any] = {
        "estimates": {name: _nulls(each) if name in withheld else each for name, each in estimates.items()},
        "withheld": withheld,
        "floors": row_set.floors(target, study.config.most_per_decision, study.levels.gate),
        "diagnostics": diagnosed,
        "trusted": bool(diagnosed["ess"] >= gate.min_ess),
    }
    if not judged:
        return found
    diagnosed["ess_if_explored"] = ess_if_explored(row_set.sample, target.ratio[row_set.sample.rows])
    every = study.table.split == SPLITS.index("test") if rows == "test" else np.ones(len(study.table.user), np.bool_)
    parts = segments(study.table, every, gate.segments)
    shown = {name: metrics for name, metrics in made.items() if name not in withheld}
    if gate.estimator in shown:
        found["disagreement"] = disagreement(shown, logged, gate.estimator, study.config.per)
        found["segments"] = by_segment(study.table, row_set, parts, target, study.q[key], gate.estimator)
    if study.table.estimated.any():
        found["confounding"] = confounding(row_set, study.table.estimated, target, logged)
    return found


def _withheld(row_set: RowSet, target: Target, estimators: Iterable[str]) -> dict[str, str]:
    """Of `estimators`, those that must not be shown, and why: too few users carry the weights."""
    ratio = target.ratio[row_set.sample.rows]
    reasons = {each: diagnostics.too_few_carry(row_set.sample, ratio, each) for each in (False, True)}
    found = {name: reasons[name in ONE_STEP] for name in estimators if name not in UNWEIGHTED}
    return {name: reason for name, reason in found.items() if reason is not None}


def _nulls(found: Any) -> Any:
    """The same with null for every figure."""
    return {key: _nulls(value) for key, value in found.items()} if isinstance(found, dict) else None


def _warnings(
    study: Study, policies: Sequence[Policy | LoggingPolicy], described: dict[str, dict[str, Any]]
) -> list[str]:
    """What a reader must know before any figure; tells in `described` how a table of another log came about."""
    found = []
    few = {each.sample.users for each in study.sets.values() if each.sample.users < diagnostics.FEW_CLUSTERS}
    if few:
        found.append(
            f"Intervals resample {' and '.join(map(str, sorted(few)))} users: with fewer than "
            f"{diagnostics.FEW_CLUSTERS} they are likely too narrow, and no level is promised."
        )
    for policy in policies:
        if isinstance(policy, Recorded):
            described[policy.name]["recorded"] = dict(policy.told)
            found += policy.warnings()
    for name, each in described.items():
        for reason in dict.fromkeys(each["withheld"].values()):
            names = ", ".join(estimator for estimator, why in each["withheld"].items() if why == reason)
            found.append(f"{name}: {reason}, so there is no estimate of it by weights ({names}).")
    return found


def _contrasts(study: Study) -> list[dict[str, Any]]:
    """Each pair of policies that learned nothing, later against earlier, over all rows and over those with a choice."""
    plain = [name for name in study.targets if name not in study.learned]
    found = []
    for rows in (name for name in ("all", "choice") if name in study.sets):
        values = {name: study.estimates(rows, name) for name in plain}
        withheld = {name: _withheld(study.sets[rows], study.targets[name], values[name]) for name in plain}
        for against, policy in itertools.combinations(plain, 2):
            pair = {
                estimator: {
                    metric: study.levels.interval(values[policy][estimator][metric] - base)
                    for metric, base in metrics.items()
                }
                for estimator, metrics in values[against].items()
            }
            kept_back = withheld[policy].keys() | withheld[against].keys()
            shown = {name: _nulls(each) if name in kept_back else each for name, each in pair.items()}
            found.append({"policy": policy, "against": against, "rows": rows, "estimates": shown})
    return found
