"""The questions of an evaluation answered: sums of the parts merged, and the replicates that are read of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from policies.base import Floats
from policies.ope.bernstein import Capped
from policies.ope.diagnostics import Calibration, Explored, Steps, Support, Weights
from policies.ope.merging import added, from_bytes
from policies.ope.mis import MarginalSums
from policies.ope.sample import check_exposure
from policies.ope.summaries import Additive, Corrected, Normalised
from policies.rowset import Metrics, estimates_of, named, values_of
from policies.tally import Asked, Buckets, Key, LogTally, Part, Plan, Tally, tally

LOGGED = "logged"


@dataclass(frozen=True)
class Read:
    """What one question's sums say, resample by resample."""

    tally: Tally
    """Its counts and facts; the sums themselves are gone."""
    values: Mapping[str, Floats]
    """[R, K] by estimator."""
    logged: Floats
    """[R, K]."""
    segments: Mapping[str, "Read"]

    @classmethod
    def of(cls, found: Tally) -> "Read":
        values = values_of({**found.estimators, LOGGED: found.logged}, found.exposure)
        logged = values.pop(LOGGED)
        segments = {label: cls.of(each) for label, each in found.segments.items()}
        return cls(replace(found, estimators={}, segments={}), values, logged, segments)


@dataclass(frozen=True)
class Answer:
    """One question answered: every metric's replicates."""

    users: int
    decisions: int
    left_out: int
    logged: Metrics
    """Of the logging policy on the same rows."""
    estimates: dict[str, Metrics]
    facts: Mapping[str, Any]
    segments: dict[str, "Answer"]

    @classmethod
    def of(cls, parts: Sequence[Read], plan: Plan, only: Sequence[str] | None) -> "Answer":
        """`parts` in the order of their resamples; the first has the log itself and the facts."""
        first, components = parts[0], plan.contract.rewards
        if first.tally.facts:
            check_exposure(float(first.tally.exposure[0]))
        return cls(
            users=first.tally.users,
            decisions=first.tally.decisions,
            left_out=first.tally.left_out,
            logged=named(np.concatenate([part.logged for part in parts]), components),
            estimates=estimates_of([part.values for part in parts], components, only),
            facts=first.tally.facts,
            segments={
                label: cls.of([part.segments[label] for part in parts], plan, (plan.gate.estimator,))
                for label in first.segments
                if first.segments[label].tally.users < first.tally.users
            },
        )


KINDS = {
    kind.__name__: kind
    for kind in (
        *(Buckets, Tally, LogTally, Read, Weights, Steps, Support, Capped, Explored, Calibration),
        *(Additive, Normalised, Corrected, MarginalSums),
    )
}


def read_back(content: bytes) -> Any:
    """Sums, or what was read of them, from what `policies.ope.merging.to_bytes` made of them."""
    return from_bytes(content, KINDS)


Answers = dict[tuple[str, Key | None], Answer]
"""By row set and policy."""


def tallied(plan: Plan, parts: Sequence[Part]) -> tuple[LogTally, Answers]:
    """What `parts`, which hold different users, say together: one question after the other, each part in turn.

    Raises InputError where a bucket lies in two parts, and as `LogTally.of` does.
    """
    log = reduce(added, (LogTally.of(part.table, part.buckets, plan.config.most_per_decision) for part in parts))
    found: Answers = {}
    for asked in plan.asked():
        reads = [Read.of(each) for each in _merged(plan, parts, asked)]
        if reads:
            found[asked.rows, asked.key] = Answer.of(reads, plan, asked.only)
    return log, found


def _merged(plan: Plan, parts: Sequence[Part], asked: Asked) -> Iterator[Tally]:
    """The sums over all parts, in the order of the resamples; of one part never more than one at a time."""
    if len(parts) == 1:
        yield from (found for _, found in tally(parts[0], plan, asked))
        return
    held: dict[int, Tally] = {}
    for part in parts:
        for low, found in tally(part, plan, asked):
            held[low] = held[low] + found if low in held else found
    for low in sorted(held):
        yield held.pop(low)
