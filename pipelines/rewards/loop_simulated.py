"""Rounds of the loop in a simulated world: a simulated rater answers, and every policy writes a log of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import artifact
from models.contract import SPLITS
from models.members import Learner
from models.rewards import answers as told
from models.rewards import network, simulated, store
from models.rewards.answers import Answers
from models.rewards.learned import with_components
from models.rewards.logs import renamed, stacked
from models.rewards.preferences import Fitted, PreferenceConfig, choose, fit, random_pairs
from models.rewards.store import Stored
from models.rewards.support import Support, seen_rows
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from models.train import train
from models.training import TrainConfig
from pipelines.config import Config
from pipelines.etl.units import feature_units
from pipelines.inprocess import transitions_of
from pipelines.jobs.steps import console, decision_of, lineage_of
from pipelines.rewards.fitting import learned_facts
from pipelines.rewards.looping import Loop
from pipelines.rewards.watching import told_of
from pipelines.simulate import policy_truth, state_decide
from policies.base import Booleans, Floats
from policies.evaluate import evaluate
from policies.gate import judge
from policies.hacking import WRITTEN
from policies.q_policy import QPolicy
from policies.selection import Slope
from policies.simulator import simulate
from policies.volume import Deployed

TRUTH_SEED = 1_000_003


@dataclass(frozen=True)
class Exploring:
    """(1 - share) pi + share x uniform over the legal actions: what gathers the next log."""

    policy: QPolicy
    share: float
    learned: bool = True

    @property
    def name(self) -> str:
        return self.policy.name

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A]."""
        even = legal / legal.sum(axis=1, keepdims=True)
        found: Floats = (1 - self.share) * self.policy.action_probabilities(state, legal) + self.share * even
        return found


class Simulated:
    """A loop whose world is simulated; what a round made stays in memory for the next."""

    def __init__(self, config: Config, name: str, loop: Loop) -> None:
        self.config = config
        self.name = name
        self.loop = loop
        self.settings = config.learned.loop
        self.logs: list[Transitions] = []

    def round(self, number: int) -> None:
        """Ask about weeks of the newest log, fit, train, evaluate; and say what came out."""
        self.loop.stage(number, "answers", lambda: self._answer(number))
        self.loop.stage(number, "fitted", lambda: self._fit(number))
        self.loop.stage(number, "trained", lambda: self._train(number))
        found = self.loop.stage(number, "evaluated", lambda: self._evaluate(number))
        console.print(_line(number, found), markup=False, highlight=False, soft_wrap=True)

    def _logs(self, number: int) -> list[Transitions]:
        """The logs of rounds 1 .. number: the first by the logging policy, each other by the policy of the one before,
        each of users of its own."""
        while len(self.logs) < number:
            self.logs.append(self._log(len(self.logs) + 1))
        return self.logs[:number]

    def _log(self, number: int) -> Transitions:
        world = self.config.simulate
        assert world is not None
        decide = None
        if number > 1:
            decide = state_decide(Exploring(self._policy(number - 1), self.settings.exploration), self.config)
        plain = self.config.model_copy(update={"rewards": self.config.logged_rewards})
        return renamed(transitions_of(simulate(world, self.config.seed + number - 1, decide), plain), f"{number:03d}-")

    def _table(self, number: int) -> tuple[Transitions, Weeks]:
        """All logs of a round and their user-weeks; those of the test split are kept for the evaluation."""
        table = stacked(self._logs(number))
        return table, weeks_of(table, self.config.learned.days, table.split != SPLITS.index("test"))

    def _answer(self, number: int) -> dict[str, Any]:
        table, weeks = self._table(number)
        newest = np.flatnonzero(weeks.first >= len(table.user) - len(self._logs(number)[-1].user))
        mine = weeks.only(newest)
        rng = np.random.default_rng([self.config.seed, number])
        pairs = self._chosen(number, table, weeks, mine, rng)
        of_week = simulated.utility(mine, table.contract.rewards, self.settings.rater)
        said = simulated.answers(mine, pairs, of_week, rng)
        path = self.loop.folder / "answers" / f"round-{number:03d}.jsonl"
        told.write(path, said)
        return {"pairs": len(said), "file": path.name, "weeks": len(mine.id)}

    def _chosen(
        self, number: int, table: Transitions, weeks: Weeks, mine: Weeks, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """[n, 2] pairs of the newest weeks: those that an ensemble disagrees about, at first of what may be."""
        wanted = int(self.loop.begun["pairs"])
        nothing = np.zeros((0, 2), np.int64)
        if number == 1 or self.settings.form == "weights":
            fitted = None if number == 1 else self._weights(number - 1, table, weeks)
            return choose(fitted, mine, nothing, wanted, int(rng.integers(2**31)), self.settings.candidates)
        pool = random_pairs(mine, nothing, max(wanted, self.settings.candidates), rng, at_least=wanted)
        returns = network.member_returns(self._stored(number - 1), table, mine)
        return pool[np.argsort(-network.disagreement(returns, pool), kind="stable")[:wanted]]

    def _weights(self, number: int, table: Transitions, weeks: Weeks) -> Fitted:
        """Weights from the answers of rounds 1 .. number, without intervals."""
        said = told.read(self.loop.answered(number))
        return fit(weeks, table.contract.rewards, said, self._told_of(said, table, weeks), intervals=False)

    def _told_of(self, said: Answers, table: Transitions, weeks: Weeks) -> PreferenceConfig:
        """Settings by which a component in which no compared weeks differ gets no weight."""
        rewards = table.contract.rewards
        places = [weeks.places([each.left, each.right]) for each in said.pairs]
        differ = np.any([weeks.totals[a] != weeks.totals[b] for a, b in places], axis=0)
        told_of_them = tuple(name for name, some in zip(rewards, differ, strict=True) if some)
        settings = self.config.learned.preference
        components = settings.components or told_of_them
        return replace(settings, components=components)

    def _fit(self, number: int) -> dict[str, Any]:
        table, weeks = self._table(number)
        said = told.read(self.loop.answered(number))
        if self.settings.form == "network":
            found = network.fit([(table, weeks)], said, self.config.learned.network, self.config.seed + number)
            stored = store.add(self.config.rewards_path, self.name, "network", found.facts, found.tensors)
            return {"version": stored.version, "accuracy": found.facts["accuracy"]}
        learned = self.config.learned.model_copy(update={"preference": self._told_of(said, table, weeks)})
        facts = learned_facts(self.config.model_copy(update={"learned": learned}), table, weeks, said) | {
            "answers": network.answers_hash(said),
            "support": Support.of([(table, seen_rows(table, weeks, said.weeks))]).plain(),
        }
        stored = store.add(self.config.rewards_path, self.name, "weights", facts, {})
        return {"version": stored.version, "weights": facts["weights"]}

    def _stored(self, number: int) -> Stored:
        version = self.loop.round(number)["fitted"]["version"]
        return store.read(self.config.rewards_path, self.name, version)

    def _learning(self, number: int) -> tuple[Transitions, TrainConfig]:
        """All logs, with the reward as a component where it is a network, and [train] with it as the objective."""
        table, stored = stacked(self._logs(number)), self._stored(number)
        weights: Mapping[str, float] = stored.facts.get("weights", {self.name: 1.0})
        if stored.kind == "network":
            table = with_components(table, [stored])
        candidate = self.config.gate.candidate
        learners: dict[str, float | Learner] = {candidate: replace(self.config.learning.named[candidate], weights=None)}
        settings = replace(self.config.learning, weights=dict(weights), weights_from=None, learners=learners)
        return table, settings

    def _train(self, number: int) -> dict[str, Any]:
        table, settings = self._learning(number)
        learned = train(
            table,
            settings,
            self.config.seed + number,
            Deployed(decision_of(self.config), table.contract.is_send),
            progress=False,
            assess_of=lambda cloned: Slope.of(table, cloned, self.config.evaluate.per),
        )[self.config.gate.candidate]
        folder = self.loop.place(number)
        lineage = lineage_of(self.config, table, {self.name: self._stored(number).version})
        artifact.export(learned, folder, decision_of(self.config), lineage, feature_units(self.config.features))
        return {"policy": str(folder.relative_to(self.loop.folder)), "kept": learned.kept}

    def _policy(self, number: int) -> QPolicy:
        """Alone, without the share of the logging policy that it may be deployed with."""
        return QPolicy(artifact.load(self.loop.place(number)), self.config.gate.candidate, share=1.0)

    def _evaluate(self, number: int) -> dict[str, Any]:
        """What the gate says on the test users of all logs, and the true gain in the rater's hidden utility."""
        config, stored, policy = self.config, self._stored(number), self._policy(number)
        table, settings = self._learning(number)
        written = config.gate.return_weights
        returns = {**({self.name: settings.weights} if stored.kind == "weights" else {}),
                   **({WRITTEN: written} if written else {})}  # fmt: skip
        found = evaluate(
            table, [policy], config.evaluate, config.gate, config.seed, progress=False, tried=number, returns=returns
        )
        found["learned_rewards"] = told_of({self.name: stored}, table, policy)
        found["seeds"] = None
        verdict = judge(found, config.gate, number) if config.gate.metrics else None
        plain = config.model_copy(update={"rewards": config.logged_rewards})
        truth = policy_truth(plain, [policy], config.seed + TRUTH_SEED)[policy.name]
        gain = sum(weight * float(truth[name]["difference"] or 0.0) for name, weight in self.settings.rater.items())
        return {"verdict": verdict, "true_gain": gain, "truth": truth}


def _line(number: int, found: Mapping[str, Any]) -> str:
    verdict = found["verdict"]
    judged = f", {verdict['verdict']}" if verdict else ""
    warned = "".join(f"\n  {each['reason']}" for each in (verdict or {}).get("warnings", []))
    return f"round {number}: true utility {found['true_gain']:+.4f} a user-week against logging{judged}{warned}"
