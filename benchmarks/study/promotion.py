"""The gate over candidates whose truth is known, on logs that none of them learned from."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.estimators import Points
from benchmarks.study.members import load
from benchmarks.study.source import Source, log_of
from benchmarks.study.truth import UTILITY, Candidate, Truth, harmed, improves, near_margin, relative
from benchmarks.study.verdicts import Court, by_folds
from policies.ope.linear import fit_linear
from policies.ope.target import Target
from policies.rules import GuardedMetric

PROMOTE = "PROMOTE"
VERDICTS = (PROMOTE, "INCONCLUSIVE", "REFUSE")
SHARES = (0.1, 0.2, 0.3, 1.0)
"""Of the decisions that a candidate takes; the logging policy has the others."""
LOG_SEED = 5_000_011
"""Added to the configuration's seed for the first of the gate's logs."""


def candidates(truth: Mapping[str, Truth], members: int) -> list[Candidate]:
    """`members` of those in `truth`, evenly from the best to the worst by the objective, each at all SHARES."""
    ranked = sorted(truth, key=lambda name: (-relative(truth[name], UTILITY), name))
    places = np.unique(np.linspace(0, len(ranked) - 1, min(members, len(ranked))).round().astype(int))
    return [Candidate(ranked[place], share) for place in places for share in SHARES]


def log_verdicts(source: Source, place: Path, asked: Sequence[Candidate], seed: int, points: bool) -> dict[str, Any]:
    """The gate's verdict on each candidate from the log of `seed`, by name, each as the only try of its team.

    The candidates learned nothing from this log: all of its users judge, with value functions from the other of two
    folds of them. With `points` also what every estimator says.
    """
    table = log_of(source, seed)
    config = source.config
    every = np.ones(len(table.action), dtype=np.bool_)
    court = Court.of(table, every, config.evaluate, config.gate, seed)
    pointwise = Points.of(table, every, source) if points else None
    found: dict[str, Any] = {}
    # One member at a time: the value functions of all would not fit in memory.
    for member, group in itertools.groupby(asked, lambda each: each.member):
        mine, alone = list(group), Target.of(load(place)[member], table)
        targets = [alone if each.share == 1 else alone.mixture(table, each.share) for each in mine]
        q = by_folds(table, targets, fit_linear)
        described = court.described(targets, q, court.replicates(targets, q))
        for candidate, target, values, each in zip(mine, targets, q, described, strict=True):
            found[candidate.name] = {
                "verdict": court.verdict(each, {})["verdict"],
                "ess": each["diagnostics"]["ess"],
            }
            if pointwise is not None:
                found[candidate.name]["estimates"] = pointwise.differences(target, values)
    return found


def summary(
    truth: Mapping[str, Truth],
    verdicts: Mapping[int, Sequence[Mapping[str, Mapping[str, Any]]]],
    metrics: Mapping[str, GuardedMetric],
) -> dict[str, Any]:
    """How many verdicts on harmful and on improving candidates were promotions, in all and as it grows with the log.

    `verdicts` by number of users, one mapping of candidates to verdicts a log. A verdict is one pair of a candidate and
    a log: `harmful` and of these `harmful_promoted` over all logs, `improving` and of these `improving_promoted` over
    the largest; `growth` has the shares by number of users. `near_margin` are the candidates whose truth lies within
    two standard errors of a margin.
    """
    found = groups(truth, metrics)
    growth = {
        str(users): {"logs": len(logs), **{group: _shares(names, logs) for group, names in found.items()}}
        for users, logs in sorted(verdicts.items())
    }
    every = [log for logs in verdicts.values() for log in logs]
    harmful, improving = _given(found["harmful"], every), _given(found["improving"], verdicts[max(verdicts)])
    return {
        "candidates": len(truth),
        "logs": len(every),
        "harmful_candidates": len(found["harmful"]),
        "harmful": len(harmful),
        "harmful_promoted": harmful.count(PROMOTE),
        "improving_candidates": len(found["improving"]),
        "improving": len(improving),
        "improving_promoted": improving.count(PROMOTE),
        "near_margin": sum(near_margin(each, metrics) for each in truth.values()),
        "growth": growth,
    }


def groups(truth: Mapping[str, Truth], metrics: Mapping[str, GuardedMetric]) -> dict[str, list[str]]:
    """The candidates that truly harm, and those that truly improve by twice the margin and harm nothing."""
    return {
        "harmful": [name for name in truth if harmed(truth[name], metrics)],
        "improving": [name for name in truth if improves(truth[name], metrics)],
    }


def _shares(names: Sequence[str], logs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, float | None]:
    """The share of each verdict over all pairs of a candidate and a log; null where there are none."""
    given = _given(names, logs)
    return {verdict: given.count(verdict) / len(given) if given else None for verdict in VERDICTS}


def _given(names: Sequence[str], logs: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    return [log[name]["verdict"] for log in logs for name in names]


def by_candidate(
    truth: Mapping[str, Truth], verdicts: Mapping[int, Sequence[Mapping[str, Mapping[str, Any]]]]
) -> dict[str, dict[str, float]]:
    """By candidate and number of users, the share of logs on which it was promoted."""
    return {
        name: {str(users): _given([name], logs).count(PROMOTE) / len(logs) for users, logs in sorted(verdicts.items())}
        for name in truth
    }
