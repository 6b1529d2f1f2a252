"""What the gate says of policies whose true value is known: a better one is promoted, a harmful one is not."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from models import table
from pipelines import jobs
from pipelines.config import Config, validate
from pipelines.simulate import policy_truth
from policies.behaviour import KINDS
from policies.evaluate import evaluate
from policies.gate import judge
from policies.rules import GateConfig, GuardedMetric
from policies.simulator import simulate, user_totals

EPSILON, CUT = 0.6, 0.3
"""Of the logging policy."""
SHARE = 0.15
METRICS = {
    "sends": GuardedMetric("down", 0.0, improve=True),
    "weekly_active_days": GuardedMetric("up", 0.02),
    "clicks": GuardedMetric("up", 0.05),
}


@dataclass(frozen=True)
class Rollout:
    """(1 - share) of the logging policy, exactly, and a share of another: relevance above a cut, or always."""

    name: str
    cut: float
    learned: bool = True

    def action_probabilities(self, state: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
        relevance = state[:, 0]
        logging = np.where(relevance > CUT, 1 - EPSILON / 2, EPSILON / 2)
        send = ((1 - SHARE) * logging + SHARE * (relevance > self.cut)) * legal[:, 1]
        return np.column_stack([1 - send, send])


BETTER, HARMFUL = Rollout("better", 0.5), Rollout("harmful", -1.0)


@pytest.fixture(scope="module")
def study(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any, Any]:
    """The configuration, the evaluation of both rollouts on a simulated log, and their true values."""
    folder = tmp_path_factory.mktemp("truth")
    tree: dict[str, Any] = {
        "name": "truth",
        "seed": 3,
        "run_dir": str(folder),
        "rewards": ["sends", "clicks", "weekly_active_days"],
        "simulate": {"users": 3000, "days": 14, "epsilon": EPSILON, "threshold": CUT, "truth_users": 3000},
        "data": {name: {"path": str(folder / "lake" / name)} for name in ("decisions", "events", "users")},
        "features": {"state": ["visits_7d", "sends_7d", "hours_since_visit"], "context": ["relevance"]},
        "etl": {"buckets": 2, "split": [0.2, 0.1, 0.7]},
        "train": {"weights": {"clicks": 1.0}, "learners": {"better": 0.0}},
        "gate": {"candidate": "better"},
        "evaluate": {"resamples": 400, "fqe_steps": 300},
    }
    config = validate(tree, "truth.toml")
    jobs.simulate(config)
    jobs.etl(config)
    log = table.read(config.transitions_path, config.contract)
    # The state of these policies is relevance alone.
    place = config.contract.features.index("relevance")
    rollouts = [Seeing(policy, place) for policy in (BETTER, HARMFUL)]
    # What the gate asks beyond estimates is asked of the candidate alone.
    found = {}
    for rollout in rollouts:
        gate = replace(config.gate, candidate=rollout.name, metrics=METRICS)
        found[rollout.name] = evaluate(log, [rollout], config.evaluate, gate, seed=1, progress=False, tried=2)
    return config, found, policy_truth(config, rollouts, seed=99)


@dataclass(frozen=True)
class Seeing:
    """A rollout that is shown one feature of the state."""

    rollout: Rollout
    place: int
    learned: bool = True

    @property
    def name(self) -> str:
        return self.rollout.name

    def action_probabilities(self, state: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
        return self.rollout.action_probabilities(state[:, [self.place]], legal)


def test_the_etl_counts_what_the_world_counts(study: tuple[Config, Any, Any]) -> None:
    """Also among events without a decision: the log holds thousands, clicks among them.

    The lake's watermark comes seconds before the world's end, so that a last event or two may be missing.
    """
    config, _, _ = study
    assert config.simulate is not None
    written = simulate(config.simulate, config.seed)
    unasked = written.events["day"] < 0
    assert (unasked & (written.events["kind"] == KINDS.index("click"))).sum() > 500
    log, totals = table.read(config.transitions_path, config.contract), user_totals(written)
    for column, name in enumerate(config.contract.rewards):
        assert log.reward[:, column].sum() == pytest.approx(totals[name].sum(), rel=1e-5, abs=2), name


def verdict(found: Any, candidate: str) -> dict[str, Any]:
    return judge({**found[candidate], "seeds": None}, GateConfig(candidate=candidate, metrics=METRICS), tried=2)


def test_a_truly_better_rollout_is_promoted(study: tuple[Config, Any, Any]) -> None:
    _, found, truth = study
    for name, metric in METRICS.items():
        sign = 1 if metric.direction == "up" else -1
        better = sign * truth["better"][name]["difference"] / truth["logging"][name]["value"]
        assert better > (0.0 if metric.improve else -metric.margin), name
    assert verdict(found, "better")["verdict"] == "PROMOTE"


def test_a_rollout_that_truly_harms_beyond_a_margin_is_refused(study: tuple[Config, Any, Any]) -> None:
    _, found, truth = study
    assert truth["harmful"]["sends"]["difference"] / truth["logging"]["sends"]["value"] > 0.02
    judged = verdict(found, "harmful")
    assert judged["verdict"] == "REFUSE"
    assert "sends" in judged["reasons"][0]


def test_true_differences_lie_in_the_intervals(study: tuple[Config, Any, Any]) -> None:
    """Doubly robust differences against the world's own, each within three of its standard errors."""
    _, found, truth = study
    for name in ("better", "harmful"):
        own = found[name]["policies"][name]
        assert own["diagnostics"]["ess"] > 0.5 * own["users"]
        for metric in METRICS:
            figures = own["estimates"]["dr"][metric]["difference"]
            error = np.hypot(
                (figures["high"] - figures["low"]) / 3.92, truth[name][metric]["difference_standard_error"]
            )
            assert abs(figures["estimate"] - truth[name][metric]["difference"]) < 3 * error, (name, metric)
