"""`tactful rewards goal`: a goal classifier from a log, conservative by what its own policies would visit."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from models import artifact
from models.batch import rows_of
from models.contract import SPLITS
from models.errors import InputError
from models.rewards import store
from models.rewards.conservative import Visited, rounds_of
from models.rewards.goal import Classifier, component, settings_of, stand_ins
from models.rewards.learned import UNITS, with_components
from models.rewards.success import seeded, sets_of
from models.rewards.support import Support
from models.table import Transitions, span
from models.train import train as fit_policies
from models.training import TrainConfig
from pipelines import reading
from pipelines.config import Config
from pipelines.estimation import check_known
from pipelines.jobs.steps import console
from policies.base import Floats, Policy
from policies.q_policy import QPolicy
from policies.visited import visited_rows, visits_weight
from policies.volume import Deployed

ALONE = {"rollout_share": 1.0, "exploration": 0.0, "lambda": 0.0}
"""How the policies of the rounds act: what a reward makes of a policy is not hidden by the logging policy's share."""


def run_goal(config: Config, name: str) -> store.Stored:
    """Learn a goal classifier from the newest transitions, and store it as the next version of reward `name`.

    Round r trains a policy on the classifier's reward, by gate.candidate's learner of [train]; where train.weights
    names the reward its weights are used, else the reward alone is maximised. What that policy visits are states of
    this log, drawn by marginalised importance weights: no state that the log lacks is among them.

    Raises InputError as `reading.logged`, `sets_of`, `rounds_of`, `store.add` and training do.
    """
    store.check_name(name)
    settings, table = config.learned.goal, reading.logged(config)
    check_known(config, table)
    sets = sets_of(table, settings)
    rounds = OnLog(config, name, table, seeded(table, sets.best, settings.seed_copies))
    found = rounds_of(table, sets, settings, config.seed, rounds.train, rounds.visited)
    facts = [each.facts | told for each, told in zip(found, [*rounds.told, {}], strict=True)]
    for line in facts:
        line["logged"] = _per_week(table, component(found[line["round"]].classifier.stored(name), table))
    last = found[-1].classifier.stored(name)
    console.print(_rounds_table(facts))
    kept = {
        "component_unit": UNITS["goal"],
        "settings": settings_of(settings),
        "successes": int(sets.success.sum()),
        "failures": int(sets.failure.sum()),
        "best_users": int(sets.best.sum()),
        "stand_ins": stand_ins(table),
        "terminal": int(table.terminal.sum()),
        "fingerprint": table.fingerprint,
        "window": span(table.decided_at.min(), table.decided_at.max()),
        "rounds": facts,
        "support": Support.of([(table, rows_of(table, "train").all & (sets.success | sets.failure))]).plain(),
    }
    stored = store.add(config.rewards_path, name, "goal", last.facts | kept, last.tensors)
    console.print(f"learned:{name}: version {stored.version} in {config.rewards_path / name}", highlight=False)
    return stored


def _per_week(table: Transitions, paid: Floats, weight: Floats | None = None) -> float:
    """7 sum_k w_k r_k / sum_k w_k Delta_k."""
    w = np.ones(len(paid)) if weight is None else weight
    return float(7 * (w @ paid) / (w @ table.elapsed_days))


@dataclass
class OnLog:
    """The policies of the rounds, learned from a log and laid over it."""

    config: Config
    name: str
    table: Transitions
    """As it was logged."""
    data: Transitions
    """What policies learn from."""

    def __post_init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        """What the policy of each round is expected to earn by the reward it was trained on."""
        self._reward: Classifier | None = None

    def train(self, classifier: Classifier) -> Policy:
        """A policy of the classifier's reward. Raises InputError where it diverged, and as training does."""
        self._reward = classifier
        return policy_of(self.config, self.name, with_components(self.data, [classifier.stored(self.name)]))

    def visited(self, policy: Policy) -> Visited:
        """States of the log, test users left out, as often as `policy` would be in them."""
        settings = self.config.learned.goal
        log = self.table.where(self.table.split != SPLITS.index("test"))
        weight = visits_weight(log, policy, self.config.evaluate.marginal)
        seed = self.config.seed + len(self.told)
        train, held_out = (
            log.state[visited_rows(log, weight, split, settings.visited, seed)] for split in ("train", "validation")
        )
        assert self._reward is not None, "a policy is trained before it visits anything"
        paid = component(self._reward.stored(self.name), log)
        drawn_from = weight[rows_of(log, "train").all]
        told = {
            "policy": _per_week(log, paid, weight),
            "effective_states": drawn_from.sum() ** 2 / (drawn_from @ drawn_from),
        }
        self.told.append({key: float(each) for key, each in told.items()})
        return Visited(train, held_out)


def policy_of(config: Config, name: str, table: Transitions) -> Policy:
    """What gate.candidate's learner makes of the reward `name` of `table`, acting alone.

    Raises InputError where every member diverged, and as `models.train.train` does.
    """
    train = config.train or TrainConfig(weights={name: 1.0})
    # The table has no other learned reward: a goal is learned from the log alone.
    here = {each: weight for each, weight in train.weights.items() if each in table.contract.rewards}
    weights = here if name in here else {name: 1.0}
    learner = replace(train.named[config.gate.candidate], weights=None)
    once = replace(
        train,
        weights=weights,
        weights_from=None,
        learners={config.gate.candidate: learner},
        stream_rows=0,
        # Nothing is shown of its values.
        value_steps=1,
    )
    act = Deployed(ALONE, config.contract.is_send)
    learned = fit_policies(table, once, config.seed, act, progress=False)
    if config.gate.candidate not in learned:
        raise InputError(f"learned:{name}: the policy of its reward diverged; lower train.learning_rate.")
    with tempfile.TemporaryDirectory() as folder:
        artifact.export(learned[config.gate.candidate], Path(folder), ALONE, {})
        return QPolicy(artifact.load(folder), name)


def _rounds_table(facts: Sequence[dict[str, Any]]) -> Table:
    shown = Table("round", "accuracy", "calibration error", "p of successes", "of failures", "of visited states",
                  "goal-days a user-week: log", "its policy", title="goal classifier, held-out users")  # fmt: skip
    for each in facts:
        p = each["mean_p"]
        cells = [each["accuracy"], each["calibration_error"], p["success"], p["failure"], p["visited"]]
        cells += [each["logged"], each.get("policy")]
        shown.add_row(str(each["round"]), *("" if cell is None else f"{cell:.3f}" for cell in cells))
    shown.caption = f"base rate of success {facts[0]['base_rate']:.3f}; in a batch it is one half"
    return shown
