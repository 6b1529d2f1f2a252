"""One simulated log of the coverage study, and what every estimator says of every target policy on it.

The log is written by the world's logging policy mu, relevance above 0.3 with exploration. A target is the mixture
(1 - kappa) mu + kappa pi, pi sends where relevance is above CUT; in the log it is exact, from the propensities that
were logged, and in the world it acts by the same probabilities. Estimates and intervals are those of
`policies.evaluate`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from models.table import Transitions
from pipelines.config import Config, validate
from pipelines.inprocess import transitions_of
from policies.ope.diagnostics import weight_diagnostics
from policies.ope.fqe import Fit, fit_all, folds
from policies.ope.linear import fit_linear
from policies.ope.on_policy import on_policy
from policies.ope.sample import take
from policies.ope.target import Target
from policies.rowset import EvaluateConfig, Levels, RowSet
from policies.simulator import Decide, View, simulate, threshold

CUT = 0.45
"""The deterministic policy of the mixtures sends where relevance is above this."""
EPSILON = 0.8
"""Exploration of the logging policy: with less of it the same share of effective users has heavier weights."""
LEVEL = 0.95
RESAMPLES = 1000
CURVE_EVERY = 2
"""What lies beyond the bands, and the few users alone, are asked in one log of so many."""
MARGINAL_EVERY = 4
"""`mis`, which is slow, is asked in one log of so many."""
SOUND = ("pdis", "wpdis", "dr", "wdr")
"""Unbiased for V(pi) where propensities are right, or asymptotically so; and of V(mu), on_policy."""
OTHERS = ("ips", "mis", "magic", "fqe")
METRICS = ("sends", "clicks", "visits", "weekly_active_days", "disables", "ctr")
"""The reward components, then the ratio clicks / sends."""
KINDS = ("value", "difference")
FIGURES = ("estimate", "low", "high")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """The world of the study, and the targets by the share of the logging policy's users that they keep effective."""

    users: int
    days: int
    kappas: tuple[float, ...] = ()
    bands: int = 0
    """How many of the targets, from the first, are those of the bar: they are asked about in every log."""
    few: int = 2000
    """Users of each log that are also asked alone: what matters of overlap, its share or how many users it leaves?"""

    @cached_property
    def config(self) -> Config:
        """Features that what sends change shows in; the paths are never read."""
        state = ["notifications_on", "sends_7d", "clicks_7d", "visits_24h", "visits_7d", "hours_since_visit",
                 "visit_never", "badge", "click_rate_28d", "candidate_missing"]  # fmt: skip
        tree = {
            "name": "coverage",
            "run_dir": "runs/coverage",
            "rewards": list(METRICS[:-1]),
            "simulate": {"users": self.users, "days": self.days, "epsilon": EPSILON},
            "data": {name: {"path": name} for name in ("decisions", "events", "users")},
            "features": {"state": state, "context": ["relevance", "near_real_time"], "attributes": ["tenure_days"]},
            "train": {"weights": {"clicks": 1.0}},
        }
        return validate(tree, "the coverage study")

    def transitions(self, seed: int) -> Transitions:
        """The log of one seed."""
        assert self.config.simulate is not None
        return transitions_of(simulate(self.config.simulate, seed), self.config)

    def decide(self, kappa: float) -> Decide:
        """What the target of share kappa does in the world."""
        assert self.config.simulate is not None
        logging, other = threshold(self.config.simulate.threshold, EPSILON), threshold(CUT)

        def mixture(view: View) -> Floats:
            return (1 - kappa) * logging(view) + kappa * other(view)

        return mixture


@dataclass(frozen=True)
class RelevanceAbove:
    """Sends where the relevance in the state is above a cut."""

    cut: float
    place: int
    """Of relevance in the state."""
    name: str = "relevance above"
    learned: bool = False

    def action_probabilities(self, state: NDArray[np.float32], legal: NDArray[np.bool_]) -> Floats:
        send = ((state[:, self.place] > self.cut) & legal[:, 1]).astype(np.float64)
        return np.column_stack([1 - send, send])


def base_of(table: Transitions) -> Target:
    """The deterministic policy on every row of a log."""
    return Target.of(RelevanceAbove(CUT, table.contract.features.index("relevance")), table)


def find_kappas(setting: Setting, shares: Sequence[float], seeds: Sequence[int]) -> tuple[float, ...]:
    """The kappa at which the mean effective share of users over the logs of `seeds` is each of `shares`; one of 1 for
    those of which even the deterministic policy keeps more."""
    logs = []
    for seed in seeds:
        table = setting.transitions(seed)
        sample = take(table, np.ones(len(table.user), dtype=np.bool_), "week")
        logs.append((sample, base_of(table).ratio[sample.rows]))

    def share(kappa: float) -> float:
        found = [weight_diagnostics(each, (1 - kappa) + kappa * rho)["ess"] / each.users for each, rho in logs]
        return float(np.mean(found))

    least = share(1.0)
    found = [
        1.0 if goal <= least else round(float(brentq(lambda k, goal=goal: share(k) - goal, 0, 1, xtol=1e-3)), 3)
        for goal in shares
    ]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Asked:
    """What some users of a log say; T targets, E = len(SOUND + OTHERS) estimators, M = len(METRICS) metrics."""

    figures: Floats
    """[T, E, 2, M, 3] estimate, low and high of V(pi) and of V(pi) - V(mu); NaN where not asked or unknown."""
    logged: Floats
    """[M, 3] of V(mu), on-policy."""
    ess: Floats
    """[T] effective users, NaN where not asked."""


@dataclass(frozen=True)
class Evaluated:
    """What one log says."""

    seed: int
    every: Asked
    few: Asked
    """The same of some of its users alone."""
    totals: Floats
    """[M - 1] what was logged of each reward component."""


def evaluated(setting: Setting, seed: int) -> Evaluated:
    """Simulate the log of `seed` and ask every estimator about every target, and those of SOUND with few users."""
    table = setting.transitions(seed)
    curve = seed % CURVE_EVERY == 0
    targets = len(setting.kappas) if curve else setting.bands
    every = _asked(setting, table, seed, targets, setting.bands if seed % MARGINAL_EVERY == 0 else 0, None)
    few = _asked(setting, table.where(table.user < setting.few), seed, targets if curve else 0, 0, SOUND)
    return Evaluated(seed, every, few, table.reward.sum(axis=0))


def _asked(
    setting: Setting, table: Transitions, seed: int, asked: int, marginal: int, only: Collection[str] | None
) -> Asked:
    """What the first `asked` targets are said to be worth, by `mis` too for the first `marginal`."""
    # Each log draws resamples of its own: were they shared, so would be the quantiles' own error.
    config = EvaluateConfig(resamples=RESAMPLES, confidence=LEVEL)
    whole = RowSet.of(table, np.ones(len(table.user), dtype=np.bool_), config, seed)
    quick = replace(whole, place=None)
    levels = Levels((1 - LEVEL) / 2, (1 - LEVEL) / 2)
    logged = whole.metrics(on_policy(whole.sample))
    figures = np.full((len(setting.kappas), len(SOUND + OTHERS), len(KINDS), len(METRICS), 3), np.nan)
    ess = np.full(len(setting.kappas), np.nan)
    base, fold = base_of(table), folds(table.user_id)[table.user]
    targets = [base.mixture(table, kappa) for kappa in setting.kappas[:asked]]
    fits = [[Fit(each.probability, fold != half, fold == half) for half in (0, 1)] for each in targets]
    for number, (target, q) in enumerate(zip(targets, fit_all(table, fits, True, fit_linear), strict=True)):
        rows = whole if number < marginal else quick
        found = levels.against_logging(rows.estimates(target, q, only), logged)
        ess[number] = rows.diagnostics(target)["ess"]
        for place, metric in np.ndindex(len(SOUND + OTHERS), len(METRICS)):
            if (SOUND + OTHERS)[place] in found:
                value = found[(SOUND + OTHERS)[place]][METRICS[metric]]
                figures[number, place, :, metric] = [_figures(value), _figures(value["difference"])]
    return Asked(figures, np.array([_figures(levels.interval(logged[name])) for name in METRICS]), ess)


def _figures(interval: Mapping[str, float | None]) -> list[float]:
    return [np.nan if (value := interval[name]) is None else value for name in FIGURES]
