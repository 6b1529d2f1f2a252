"""Tonight's candidates judged: what was known, what is legal, what the champion makes of it.

A user's candidates are judged one after another, by decide_at and then by id: what was drawn for one is a send that the
next one knows of. Round r holds the r-th candidate of every user, so that each round is one call of the state function
and of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.etl import decisions as log
from pipelines.etl.features import Happenings, Ints, Keys, Probes, Seeing, Seen, Sends, is_missing, known, state_matrix
from pipelines.etl.hashing import xxhash64
from pipelines.etl.history import Before, History, mark, read_history
from pipelines.etl.marks import Plan, ints, is_null
from pipelines.etl.schemas import CANDIDATES
from policies.budget import Volume, fixed_volume, volume_of
from policies.constraints import legal_actions
from policies.q_policy import QArtifact, deployed_probabilities, softmax_over_legal

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ONLY_LEGAL_ACTION = "only_legal_action"
NEW_USER = "new_user"
MISSING_FEATURE = "missing_feature:"
TONIGHT = np.iinfo(np.int64).min
"""`logged` of a send that was drawn tonight: whoever comes after it knows of it."""


@dataclass(frozen=True)
class Price:
    """What a send costs tonight, in units of q."""

    lambda_: float
    theta: float = 0.0
    """Probability of a send where it is worth exactly that."""


@dataclass(frozen=True)
class Rules:
    """What scoring does beside asking the model."""

    seed: int
    """Of the draws, from run and night."""
    fallback: int | None
    """Index of the action that stands in for the model, None for the logging policy."""
    judge_new: bool
    """Whether the model judges users without a history."""


@dataclass(frozen=True)
class Judged:
    """N candidates, in the order of the raw table."""

    asked: pa.Table
    """row_id, user_id, at."""
    reason: NDArray[Any]
    """[N] None where the policy decides, else the rule, see tasks.py."""
    legal: Bools
    """[N, A]"""
    q: Floats
    logits: Floats
    """[N, A] of the champion; NaN where it was not asked."""
    values: Floats
    """[N, A, K] raw units; NaN where the model does not decide, or was not asked."""
    fixed: Floats
    """[N, A] probabilities where the policy does not decide; NaN where it does."""
    state: NDArray[np.float32]
    """[N, S]; NaN where nobody asked. Not kept in files."""

    @property
    def policy(self) -> Bools:
        """[N] where the probabilities are the policy's."""
        return np.isnan(self.fixed[:, 0])

    def probabilities(self, champion: QArtifact, price: Price) -> Floats:
        """[N, A] of every action; exact given what was drawn in earlier rounds."""
        found, rows = self.fixed.copy(), self.policy
        decision = {**champion.decision, "lambda": price.lambda_}
        found[rows] = deployed_probabilities(
            self.q[rows], self.logits[rows], self.legal[rows], decision, champion.contract.is_send, price.theta
        )
        return found

    def volume(self, champion: QArtifact, window: tuple[float, float]) -> Volume:
        """What these rows add to the expected sends at every price; `window` as `volume_of` has it."""
        rows, decision, sends = self.policy, champion.decision, np.array(champion.contract.is_send)
        decided = volume_of(
            self.q[rows], self.logits[rows], self.legal[rows], decision, champion.contract.is_send, window
        )
        return decided + fixed_volume(self.fixed[~rows][:, sends].sum(axis=1), decision, window)


@dataclass(frozen=True)
class Past:
    """What whole users did and were sent before tonight, and tonight until now."""

    history: History
    acts: Happenings | None
    """Their decisions and events by user and time, where new users are asked for."""

    @classmethod
    def of(cls, history: History, with_acts: bool) -> "Past":
        if not with_acts:
            return cls(history, None)
        logged = ints(history.decisions, "logged")[history.raw]
        blank = np.full(len(history.user), -1)
        decided = Happenings(history.user, history.at, logged, blank.astype(np.int8), blank)
        every = (np.append(getattr(decided, f.name), getattr(history.events, f.name)) for f in fields(Happenings))
        return cls(history, Happenings(*every).ordered())

    def among(self, keep: Bools) -> "Past":
        """Of those users alone, `keep` [U]; their codes stay."""
        history = self.history
        sends, people = history.sends, history.people
        sent, held = keep[sends.user], keep[people.user]
        kept = replace(
            history,
            sends=Sends(sends.user[sent], sends.at[sent], sends.logged[sent]),
            events=history.events.where(keep[history.events.user]),
            visits=history.visits.where(keep[history.visits.user]),
            people=replace(
                people,
                user=people.user[held],
                valid_from=people.valid_from[held],
                time_zone=people.time_zone[held],
                attributes={name: column[held] for name, column in people.attributes.items()},
                logged=None if people.logged is None else people.logged[held],
            ),
        )
        return Past(kept, None if self.acts is None else self.acts.where(keep[self.acts.user]))

    def plus(self, sent: Sends) -> "Past":
        """And these sends."""
        old = self.history.sends
        both = (np.append(getattr(old, each.name), getattr(sent, each.name)) for each in fields(Sends))
        return Past(replace(self.history, sends=Sends(*both).ordered()), self.acts)

    def facts(self, probes: Probes, plan: Plan) -> dict[str, NDArray[Any]]:
        """`features.known` at the probes, and `new_user`; users apart in halves where they do not fit one key."""
        try:
            return self._facts(probes, plan)
        except OverflowError:
            users = len(self.history.users)
            if users < 2:
                raise
        parts, places = [], []
        for first, last in ((0, users // 2), (users // 2, users)):
            rows = np.flatnonzero((probes.user >= first) & (probes.user < last))
            if not len(rows):
                continue
            context = {name: column[rows] for name, column in probes.context.items()}
            mine = Probes(probes.user[rows] - first, probes.at[rows], context)
            parts.append(self._of(first, last).facts(mine, plan))
            places.append(rows)
        order = np.argsort(np.concatenate(places))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _of(self, first: int, last: int) -> "Past":
        acts = self.acts
        if acts is not None:
            acts = acts.where((acts.user >= first) & (acts.user < last))
            acts = replace(acts, user=acts.user - first)
        return Past(self.history.of(first, last), acts)

    def _facts(self, probes: Probes, plan: Plan) -> dict[str, NDArray[Any]]:
        past = self.history
        found = known(
            probes, past.sends, past.events, past.visits, past.people, plan.lookback, plan.features.click_prior
        )
        if self.acts is not None:
            keys = Keys.over(len(past.users), probes.at, probes.at - plan.lookback)
            seen = Seen(Seeing(keys, probes), self.acts.user, np.maximum(self.acts.at + 1, self.acts.logged))
            found[NEW_USER] = seen.count(self.acts.at + plan.lookback) == 0
        return found


class Judge:
    """Judges one bucket's candidates, round by round."""

    def __init__(
        self, tables: Mapping[int, pa.Table], plan: Plan, before: Before | None, champion: QArtifact, rules: Rules
    ) -> None:
        self.plan, self.champion, self.rules = plan, champion, rules
        marked = mark(tables, plan, before)
        self.past = Past.of(read_history(marked, plan, before), not rules.judge_new)
        self.asked = tables[CANDIDATES]
        self.user, self.at = marked.user[CANDIDATES], ints(self.asked, "at")
        self.context = log.context(self.asked, plan)
        self.offered, unknown = log.logged_legal(self.asked, plan)
        self.choice = self.offered.sum(axis=1) > 1
        self.wrong, self.able = _wrong(self.asked, self.context, self.choice, self.offered, unknown)

    def judged(self, price: Price) -> Judged:
        """Every candidate, what is drawn at that price known to those after it."""
        contract, rows = self.champion.contract, self.asked.num_rows
        first = np.arange(len(contract.actions)) == 0
        found = Judged(
            asked=self.asked.select(["row_id", "user_id", "at"]),
            reason=self.wrong.copy(),
            legal=np.tile(first, (rows, 1)),
            q=np.full(self.offered.shape, np.nan),
            logits=np.full(self.offered.shape, np.nan),
            values=np.full((*self.offered.shape, len(contract.rewards)), np.nan),
            fixed=np.tile(first.astype(np.float64), (rows, 1)),
            state=np.full((rows, len(contract.features)), np.nan, np.float32),
        )
        past, turn = self.past, self._turns()
        for r in range(int(turn.max(initial=-1)) + 1):
            these = np.flatnonzero(turn == r)
            self._round(found, these, past)
            further = np.zeros(len(past.history.users), bool)
            further[self.user[turn > r]] = True
            past = past.among(further).plus(self._sent(found, these[further[self.user[these]]], price))
        return found

    def _turns(self) -> Ints:
        """[N] the round of each candidate, -1 where nothing can be known of it."""
        turn = np.full(len(self.user), -1)
        able = np.flatnonzero(self.able)
        ids = pc.rank(pc.fill_null(self.asked["row_id"], ""), tiebreaker="dense").to_numpy()
        order = able[np.lexsort((ids[able], self.at[able], self.user[able]))]
        start = np.flatnonzero(np.append(True, np.diff(self.user[order]) != 0)[: len(order)])
        turn[order] = np.arange(len(order)) - np.repeat(start, np.diff(np.append(start, len(order))))
        return turn

    def _round(self, found: Judged, rows: Ints, past: Past) -> None:
        """Fill in the rows, at most one of each user."""
        plan, champion = self.plan, self.champion
        context = {name: column[rows] for name, column in self.context.items()}
        probes = Probes(self.user[rows], self.at[rows], context)
        facts = past.facts(probes, plan)
        legal, rule = legal_actions(facts, self.offered[rows], plan.contract.actions, plan.constraints)
        self._at_one_instant(rows, probes, past, legal, rule)
        state = state_matrix(facts, context, plan.features)
        q, logits, values = champion.predict(state)
        reason = np.full(len(rows), None, dtype=object)
        reason[~self.choice[rows]] = ONLY_LEGAL_ACTION
        reason[rule != ""] = rule[rule != ""]
        if NEW_USER in facts:
            reason[(reason == None) & facts[NEW_USER]] = NEW_USER  # noqa: E711
        wrong = self.wrong[rows] != None  # noqa: E711
        reason[wrong] = self.wrong[rows][wrong]
        stands_in = wrong | (reason == NEW_USER)
        fixed = np.full(legal.shape, np.nan)
        fixed[stands_in], legal[stands_in] = self._fallback(logits[stands_in], legal[stands_in])
        values[stands_in] = np.nan
        for name, column in (
            ("reason", reason), ("legal", legal), ("q", q), ("logits", logits), ("values", values), ("fixed", fixed),
            ("state", state),
        ):  # fmt: skip
            getattr(found, name)[rows] = column

    def _at_one_instant(self, rows: Ints, probes: Probes, past: Past, legal: Bools, rule: NDArray[Any]) -> None:
        """What was drawn for the very moment of a candidate is no part of its state, but counts against its limits."""
        sends, now = past.history.sends, np.full(len(past.history.users), np.iinfo(np.int64).min)
        now[probes.user] = probes.at
        # A logged send of that instant is nothing that was known: only one of tonight was drawn a moment ago.
        same = (sends.at == now[sends.user]) & (sends.logged == TONIGHT)
        tied = np.flatnonzero(np.isin(probes.user, sends.user[same]))
        if not len(tied):
            return
        before = Sends(sends.user, np.where(same, sends.at - 1, sends.at), sends.logged)
        earlier = Past(replace(past.history, sends=before.ordered()), None)
        context = {name: column[tied] for name, column in probes.context.items()}
        facts = earlier.facts(Probes(probes.user[tied], probes.at[tied], context), self.plan)
        legal[tied], rule[tied] = legal_actions(
            facts, self.offered[rows[tied]], self.plan.contract.actions, self.plan.constraints
        )

    def _fallback(self, logits: Floats, legal: Bools) -> tuple[Floats, Bools]:
        """[N, A] probabilities and [N, A] legal actions where the model does not judge."""
        if self.rules.fallback is None:
            return softmax_over_legal(logits, legal), legal
        action = np.where(legal[:, self.rules.fallback], self.rules.fallback, 0)
        only: Bools = np.arange(legal.shape[1]) == action[:, None]
        return only.astype(np.float64), only

    def _sent(self, found: Judged, rows: Ints, price: Price) -> Sends:
        """What is drawn for the rows, as sends."""
        part = Judged(*(getattr(found, each.name).take(pa.array(rows)) if each.name == "asked"
                        else getattr(found, each.name)[rows] for each in fields(Judged)))  # fmt: skip
        action = drawn(part.probabilities(self.champion, price), part.asked["row_id"], self.rules.seed)
        sent = rows[np.array(self.champion.contract.is_send)[action]]
        return Sends(self.user[sent], self.at[sent], np.full(len(sent), TONIGHT))


def _wrong(
    asked: pa.Table, context: Mapping[str, NDArray[Any]], choice: Bools, offered: Bools, unknown: Bools
) -> tuple[NDArray[Any], Bools]:
    """[N] why the model cannot judge a candidate by its row alone, None where it can; and [N] whether it can be asked
    what it would do all the same."""
    reason = np.full(asked.num_rows, None, dtype=object)
    for name, column in context.items():
        reason[choice & is_missing(column)] = MISSING_FEATURE + name
    able = np.ones(asked.num_rows, bool)
    for name, wrong in (
        ("no_legal_action", ~offered.any(axis=1)),
        ("unknown_legal_action", unknown),
        ("missing_decide_at", is_null(asked, "at")),
        ("missing_user_id", is_null(asked, "user_id")),
    ):
        reason[wrong] = name
        able &= ~wrong
    return reason, able


def drawn(probability: Floats, ids: pa.ChunkedArray, seed: int) -> Ints:
    """[N] the action of each row: the first whose cumulative probability exceeds a hash of run and candidate."""
    # As fine as a double in [0, 1) can be.
    draw = (xxhash64(ids, seed) >> np.uint64(11)) / 2.0**53
    action = (np.cumsum(probability, axis=1) <= draw[:, None]).sum(axis=1)
    # Rounding must choose none of probability 0.
    last = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(axis=1)
    found: Ints = np.minimum(action, last)
    return found
