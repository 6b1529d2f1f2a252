"""The headline of the KDD 2022 paper: what logs of several sizes and exploration rates teach Double DQN with and
without CQL."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.study.members import KINDS, two
from benchmarks.study.source import Source, log_of, varying
from benchmarks.study.truth import TRUTH_SEED, UTILITY, differences
from models.errors import InputError

METRICS = ("weekly_active_days", "ctr", "visits", "sends", "clicks", "disables", "delivered", UTILITY)
"""WAU, CTR, visits and volume first: they are the paper's."""


def cell(source: Source, users: int, epsilon: float, seed: int) -> dict[str, Any]:
    """One log, both learners, and the true relative change of each metric, by learner; a reason where there is none.

    The log, the learners' first parameters and the world of the truth are all of `seed`.
    """
    here = varying(source.but(simulate__users=users, simulate__epsilon=epsilon), seed)
    try:
        acting = two(log_of(here, seed), here.config.learning, seed)
    except InputError as error:
        return {"failed": str(error)}
    alive = {name: each for name, each in acting.items() if each is not None}
    found: dict[str, Any] = {name: "diverged" for name in acting if name not in alive}
    return found | differences(here, seed + TRUTH_SEED, alive, METRICS)


def summary(cells: Mapping[tuple[int, float], Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """By log size, exploration and learner: the mean over seeds of each metric's relative change, its 95% interval.

    The interval is mean +- t s / sqrt(n) over the seeds that gave a number; `seeds` is their number, `without` counts
    the others by reason.
    """
    found: dict[str, Any] = {}
    for (users, epsilon), those in cells.items():
        failed = Counter(each["failed"] for each in those if "failed" in each)
        alive = [each for each in those if "failed" not in each]
        by_learner: dict[str, Any] = {"without": dict(failed)} if failed else {}
        for kind in KINDS:
            values = [each[kind] for each in alive if not isinstance(each[kind], str)]
            by_learner[kind] = {name: interval([each[name] for each in values]) for name in METRICS}
        found.setdefault(str(users), {})[f"{epsilon:g}"] = by_learner
    return found


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """{mean, low, high, seeds}: the mean of what is known and its 95% interval by Student's t; null with too few."""
    known = np.array([each for each in values if np.isfinite(each)])
    n = len(known)
    mean = float(known.mean()) if n else None
    if mean is None or n < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": n}
    half = float(stats.t.ppf(0.975, n - 1) * known.std(ddof=1) / n**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n}
