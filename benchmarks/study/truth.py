"""What policies are truly worth: members alone, and mixtures of them with the logging policy."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.members import load
from benchmarks.study.source import Source
from pipelines.simulate import state_decide
from policies.base import Policy
from policies.rules import GuardedMetric
from policies.simulator import COMPONENTS, Decide, SimulatorConfig, View, compared, simulate, threshold, user_totals

Truth = dict[str, dict[str, float | None]]
"""Component, and `utility` -> value, difference from the logging policy, and the standard errors of both."""
Totals = dict[str, NDArray[np.float64]]
UTILITY = "utility"
TRUTH_SEED = 1_000_003
"""Added to the configuration's seed for the world whose truth is told, as `tactful evaluate` does."""
LOGGING = "logging"


@dataclass(frozen=True)
class Candidate:
    """A member of the study with a share of the decisions; the logging policy has the others."""

    member: str
    share: float = 1.0

    @property
    def name(self) -> str:
        return self.member if self.share == 1 else f"{self.member} x {self.share:g}"

    @property
    def file(self) -> str:
        return self.name.replace("/", "-").replace(" ", "")


def truths(source: Source, place: Path, candidates: Sequence[Candidate]) -> dict[str, Truth]:
    """The true value of each, acting on the ETL's state in one world with common random numbers, by name."""
    seed = source.config.seed + TRUTH_SEED
    base = _logging_totals(source, seed)
    found = {LOGGING: _all(base, base)}
    for each in candidates:
        decide = mixed(state_decide(load(place)[each.member], source.config), source.world, each.share)
        found[each.name] = _all(_totals(source, seed, decide), base)
    return found


def mixed(decide: Decide, world: SimulatorConfig, share: float) -> Decide:
    """(1 - share) mu + share pi, mu the policy that logs the world."""
    if share == 1:
        return decide
    mu = threshold(world.threshold, world.epsilon)

    def both(view: View) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (1 - share) * mu(view) + share * decide(view)
        return found

    return both


@functools.lru_cache(maxsize=1)
def _logging_totals(source: Source, seed: int) -> Totals:
    return _totals(source, seed, None)


def _totals(source: Source, seed: int, decide: Decide | None) -> Totals:
    """`user_totals`, and those of the objective, w.r."""
    world = source.world
    totals = user_totals(simulate(world, seed, decide, world.truth_users))
    weights = source.config.learning.weights
    return {**totals, UTILITY: np.sum([weight * totals[name] for name, weight in weights.items()], axis=0)}


def _all(mine: Totals, base: Totals) -> Truth:
    return {name: compared(mine, base, name) for name in (*COMPONENTS, UTILITY)}


def differences(source: Source, seed: int, acting: Mapping[str, Policy], metrics: Sequence[str]) -> dict[str, Any]:
    """The true relative change of each metric by each policy, by name, in the world of `seed`."""
    base = _totals(source, seed, None)
    found = {}
    for name, policy in acting.items():
        truth = _all(_totals(source, seed, state_decide(policy, source.config)), base)
        found[name] = {metric: relative(truth, metric) for metric in metrics}
    return found


def relative(truth: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """The difference from the logging policy as a share of its |value|; NaN where that is 0 or unknown."""
    return _share(truth[name], "difference")


def relative_error(truth: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """Standard error of `relative`, but for that of the logging policy's own value."""
    return _share(truth[name], "difference_standard_error")


def _share(found: Mapping[str, Any], key: str) -> float:
    if found["value"] is None or found[key] is None:
        return float("nan")
    base = abs(found["value"] - found["difference"])
    return float(found[key] / base) if base else float("nan")


def harmed(truth: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, GuardedMetric]) -> list[str]:
    """The guarded metrics that truly are worse by more than their margin."""
    return [name for name, metric in metrics.items() if better(truth, name, metric) < -metric.margin]


def improves(truth: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, GuardedMetric]) -> bool:
    """Whether the metric that earns a promotion is truly better by twice its margin, and none is harmed."""
    (name,) = (name for name, metric in metrics.items() if metric.improve)
    return better(truth, name, metrics[name]) >= 2 * metrics[name].margin and not harmed(truth, metrics)


def near_margin(truth: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, GuardedMetric]) -> bool:
    """Whether some guarded metric lies within two standard errors of its margin: the truth may be on the other side."""
    return any(
        abs(better(truth, name, metric) + metric.margin) < 2 * relative_error(truth, name)
        for name, metric in metrics.items()
    )


def better(truth: Mapping[str, Mapping[str, Any]], name: str, metric: GuardedMetric) -> float:
    """The relative difference, more being better."""
    return relative(truth, name) * (1 if metric.direction == "up" else -1)
