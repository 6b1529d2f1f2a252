"""What an evaluation reads of some of the users, as sums that add: one table, a bucket of it, or a part of a Spark job.

A plan says what is asked and where everything is cut, the same of every part of a log. A part tallies: for each
question and for so many resamples at a time it gives the sums over its users. Tallies of different users add up to
that of all of them, and what is read of it (`policies.evaluate`) does not depend on how the users were parted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.contract import SPLITS, Contract
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers, Policy
from policies.evidence import CONSISTENT
from policies.ope.bernstein import Capped, check_most, most_per_user
from policies.ope.diagnostics import Calibration, Explored, Support, Weights
from policies.ope.intervals import at_a_time, sums_of
from policies.ope.merging import Sums
from policies.ope.mis import Bins
from policies.ope.on_policy import on_policy
from policies.ope.sample import Pace, check_range, check_rewards, choices, trajectory_rows
from policies.ope.summaries import Additive, Summary, Summed
from policies.ope.target import Target
from policies.rowset import EvaluateConfig, Levels, RowSet, marginal_bins
from policies.rules import GateConfig
from policies.segments import Cuts

Key = str | float
"""A policy by name, or a mixture of the candidate by its rollout share."""


@dataclass(frozen=True)
class Asked:
    """One question: a policy on a row set."""

    rows: str
    key: Key | None
    """None: the logging policy, valued by its own rows."""
    only: tuple[str, ...] | None = None
    """Estimators; all of them by default."""
    judged: bool = False
    """Whether the gate asks for its segments and what exploration would bring."""


@dataclass(frozen=True)
class Plan:
    """What is asked of every part of a log, and where it is cut; fixed beforehand."""

    config: EvaluateConfig
    gate: GateConfig
    seed: int
    levels: Levels
    contract: Contract
    names: tuple[str, ...]
    """Policies other than the logging policy."""
    learned: frozenset[str]
    whole: str | None
    """The policy that is mixed with the logging policy at the gate's shares; None without a learned candidate."""
    along: tuple[str, ...]
    """Of `names`, the candidate at other prices of its range: the gate judges them beside it."""
    bins: Bins | None
    pace: Pace
    cuts: Cuts
    step: int
    """Resamples that are summed at a time."""

    @classmethod
    def of(
        cls,
        table: Transitions,
        policies: Sequence[Policy],
        config: EvaluateConfig,
        gate: GateConfig,
        seed: int,
        levels: Levels,
        alone: str | None = None,
        along: Sequence[str] = (),
        step: int | None = None,
    ) -> "Plan":
        """Cut where the rows of `table` say; `alone` and `along` as in `policies.evaluate.evaluate`.

        Raises InputError where policies were learned and no user lies in the test split, and as `Bins.of` and `Cuts.of`
        do.
        """
        learned = frozenset(policy.name for policy in policies if policy.learned)
        test = table.split == SPLITS.index("test")
        if learned and not test.any():
            raise InputError(
                "evaluate: no user lies in the test split; raise its share in etl.split or use a longer log."
            )
        judged = test if gate.candidate in learned else np.ones(len(table.user), dtype=np.bool_)
        bins, pace = marginal_bins(table, config), Pace.of(table)
        sums = sums_of(pace.steps, len(table.contract.rewards), 0 if bins is None else bins.number + 1)
        return cls(
            config=config,
            gate=gate,
            seed=seed,
            levels=levels,
            contract=table.contract,
            names=tuple(policy.name for policy in policies),
            learned=learned,
            whole=(alone or gate.candidate) if gate.candidate in learned else None,
            along=tuple(along),
            bins=bins,
            pace=pace,
            cuts=Cuts.of(table, judged, gate.segments),
            step=step or at_a_time(len(table.user_id), sums),
        )

    @property
    def plain(self) -> list[str]:
        """Policies that learned nothing."""
        return [name for name in self.names if name not in self.learned]

    @property
    def shares(self) -> list[float]:
        return [] if self.whole is None else [float(share) for share in sorted(self.gate.shares)]

    def row_set_of(self, name: str) -> str:
        return "test" if name in self.learned else "all"

    def same(self, key: Key) -> Key:
        """The mixture of share 1 is a policy of the table."""
        return self.whole if key == 1 and self.whole is not None else key

    def row_sets(self, table: Transitions) -> dict[str, Booleans]:
        """[N] rows by name: all, test (where something learned) and choice (per decision)."""
        found = {"all": np.ones(len(table.action), dtype=np.bool_)}
        if self.learned:
            found["test"] = table.split == SPLITS.index("test")
        if self.config.per == "decision":
            found["choice"] = table.legal.sum(axis=1) > 1
        return found

    def asked(self) -> list[Asked]:
        """Every question, the logging policy's first."""
        sets = ("all", *(["test"] if self.learned else []), *(["choice"] if self.config.per == "decision" else []))
        judged = {self.gate.candidate, self.whole}
        found = [Asked(rows, None) for rows in sets]
        shown = (name for name in self.names if name not in self.along)
        found += [Asked(self.row_set_of(name), name, judged=name in judged) for name in shown]
        if "choice" in sets and len(self.plain) > 1:
            found += [Asked("choice", name) for name in self.plain]
        # Of a mixture, and of the candidate at another price, the gate reads its own estimator, and whether the others
        # that are right in the long run agree.
        only = {self.gate.estimator, *CONSISTENT} - ({"ips"} if self.config.per == "week" else set())
        only |= {self.gate.estimator}
        keys: list[Key] = [*(share for share in self.shares if share != 1), *self.along]
        return [*found, *(Asked("test", key, tuple(sorted(only)), judged=True) for key in keys)]

    def target(self, targets: Mapping[str, Target], key: Key, table: Transitions) -> Target:
        """Of a policy or a mixture, from those of the policies."""
        key = self.same(key)
        if isinstance(key, str):
            return targets[key]
        assert self.whole is not None, "only mixtures of a candidate have a share"
        return targets[self.whole].mixture(table, key)


@dataclass(frozen=True)
class Part:
    """Whole users of a log, all of them or some."""

    table: Transitions
    targets: Mapping[str, Target]
    q: Callable[[Key], Floats]
    """[N, A, K] of a policy or a mixture, at rows whose users its value function was not fitted on."""
    rows: Mapping[str, Booleans]
    """[N] by row set."""
    sets: Mapping[str, RowSet]
    """Those that have rows here."""
    buckets: Integers
    """Which of the parts that users are dealt to it holds."""

    @classmethod
    def of(
        cls,
        table: Transitions,
        plan: Plan,
        targets: Mapping[str, Target],
        q: Callable[[Key], Floats],
        buckets: Sequence[int] = (0,),
    ) -> "Part":
        rows = plan.row_sets(table)
        there = trajectory_rows(table) if plan.config.per == "week" else rows["all"]
        sets = {
            name: RowSet.cut(table, each, plan.config, plan.seed, plan.bins, plan.pace, part=True)
            for name, each in rows.items()
            if (each & there).any()
        }
        return cls(table, targets, q, rows, sets, np.array(sorted(buckets), dtype=np.int64))


@dataclass(frozen=True)
class Buckets:
    """Which parts of the users a sum holds."""

    numbers: Integers

    def __add__(self, other: "Buckets", /) -> "Buckets":
        """Those of both. Raises InputError where they share one: its users would count as others of the same name."""
        twice = np.intersect1d(self.numbers, other.numbers)
        if len(twice):
            raise InputError(
                f"evaluate: bucket {int(twice[0])} lies in two parts, so that a user would count as two; give every "
                "part whole buckets (partition by the column `bucket`)."
            )
        return Buckets(np.union1d(self.numbers, other.numbers))


@dataclass(frozen=True)
class Tally(Sums):
    """Sums over users of what one question needs, for R resamples."""

    buckets: Buckets
    users: int
    decisions: int
    left_out: int
    exposure: Floats
    """[R]."""
    logged: Additive
    """[R, K] of the logging policy."""
    estimators: Mapping[str, Summed]
    segments: Mapping[str, "Tally"]
    """The gate's estimator among some of the users."""
    facts: Mapping[str, Sums]
    """What does not depend on resamples, beside the first of them: weights, support, capped, explored."""


@dataclass(frozen=True)
class LogTally(Sums):
    """Sums over all rows of what the log says of itself."""

    buckets: Buckets
    users: int
    decisions: int
    estimated: int
    choices: int
    """Decisions with more than one legal action."""
    chances: int
    """Those of them that were left to chance."""
    calibration: Calibration

    @classmethod
    def of(cls, table: Transitions, buckets: Integers, most: Mapping[str, float]) -> "LogTally":
        """`most` that a decision may bring, by component. Raises InputError where a propensity or a reward could not
        be used."""
        check_range(table)
        check_rewards(table)
        check_most(table, most)
        counts = len(table.user_id), len(table.action), int(table.estimated.sum()), *choices(table)
        return cls(Buckets(buckets), *counts, Calibration.of(table))


def tally(part: Part, plan: Plan, asked: Asked) -> Iterator[tuple[int, Tally]]:
    """(number of the first resample, sums of `plan.step` of them) of one question; nothing where no row is asked about.

    Resample 0 is the log itself; the first sums carry the facts.
    """
    row_set = part.sets.get(asked.rows)
    if row_set is None:
        return
    buckets, segments = Buckets(part.buckets), dict[str, _Counted]()
    if asked.key is None:
        counted, target = _Counted(row_set, {}, buckets), None
    else:
        target, q = plan.target(part.targets, asked.key, part.table), part.q(asked.key)
        counted = _Counted(row_set, row_set.summaries(target, q, asked.only), buckets)
        if asked.judged:
            segments = _segments(part, plan, asked, row_set, target, q)
    for low in range(0, plan.config.resamples + 1, plan.step):
        facts = _facts(plan, asked, row_set, target) if low == 0 else {}
        inside = {label: each.over(low, plan.step) for label, each in segments.items()}
        yield low, counted.over(low, plan.step, inside, facts)


@dataclass(frozen=True)
class _Counted:
    """Users whose sums are taken, resample by resample."""

    row_set: RowSet
    summaries: Mapping[str, Summary]
    buckets: Buckets

    def over(
        self,
        low: int,
        step: int,
        segments: Mapping[str, Tally] | None = None,
        facts: Mapping[str, Sums] | None = None,
    ) -> Tally:
        sample = self.row_set.sample
        counts = self.row_set.counts[low : low + step].astype(np.float64)
        return Tally(
            buckets=self.buckets,
            users=sample.users,
            decisions=sample.decisions,
            left_out=sample.left_out,
            exposure=counts @ sample.exposure,
            logged=on_policy(sample).over(counts),
            estimators={name: summary.over(counts) for name, summary in self.summaries.items()},
            segments=segments or {},
            facts=facts or {},
        )


def _segments(part: Part, plan: Plan, asked: Asked, whole: RowSet, target: Target, q: Floats) -> dict[str, _Counted]:
    """The users of each segment that are here."""
    found, only = {}, (plan.gate.estimator,)
    here = np.zeros(len(part.table.user), dtype=np.bool_)
    here[whole.sample.rows] = True
    for label, rows in plan.cuts.parts(part.table, part.rows[asked.rows]).items():
        if (rows & here).any():
            among = whole.among(part.table, rows)
            found[label] = _Counted(among, among.summaries(target, q, only), Buckets(part.buckets))
    return found


def _facts(plan: Plan, asked: Asked, row_set: RowSet, target: Target | None) -> dict[str, Sums]:
    sample = row_set.sample
    if target is None:
        return {"weights": Weights.of(sample, np.ones(len(sample.rows)))}
    ratio = sample.ratios(target.ratio)
    found: dict[str, Sums] = {"weights": Weights.of(sample, ratio)}
    if asked.rows != "choice":
        bounded = np.isfinite(most_per_user(1.0, 1.0, plan.contract.rewards, plan.config.most_per_decision))
        found["support"] = Support.of(sample, target.probability[sample.rows])
        found["capped"] = Capped.of(sample, ratio, row_set.keys, bounded)
    if asked.judged:
        found["explored"] = Explored.of(sample, ratio)
    return found
