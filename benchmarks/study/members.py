"""128 members of Double DQN and the same 128 with CQL, learned as one population from one simulated log."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.acting import Acting
from benchmarks.study.source import Source, log_of
from models import checkpoint
from models.batch import Held, rows_of
from models.learn import learn
from models.members import Learner, Member
from models.network import restored, together
from models.reach import reach_within
from models.run import Run, prepare
from models.table import Transitions
from models.training import TrainConfig

PLAIN, PENALISED = "ddqn", "ddqn_cql"
KINDS = (PLAIN, PENALISED)
GRID = {
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
    "gamma_per_day": (0.8, 0.95),
    "target_rate": (0.01, 0.1),
    "sends": (-0.03, -0.08),
}
"""What members differ by, beside their seed; `sends` is the weight of a send in the learner's own reward."""
KEYS = ("learning_rate", "gamma_per_day", "target_rate", "sends")
SEEDS = 4
"""Of each combination: 4 x 2 x 2 x 2 x 4 = 128."""


@dataclass(frozen=True)
class Setting:
    """One member of either half."""

    number: int
    """Among the 128."""
    learning_rate: float
    gamma_per_day: float
    target_rate: float
    sends: float
    seed: int

    def named(self, kind: str) -> str:
        return f"{kind}/{self.number:03d}"

    def learner(self, kind: str, training: TrainConfig) -> Learner:
        """As the kind's learner in [train], with the member's own settings."""
        weights = {**training.weights, "sends": self.sends}
        return replace(
            training.named[kind],
            weights=weights,
            learning_rate=self.learning_rate,
            gamma_per_day=self.gamma_per_day,
            target_rate=self.target_rate,
        )


def settings(members: int) -> list[Setting]:
    """`members` of the 128, evenly over the grid; all of them by default."""
    every = [
        Setting(number, rate, gamma, target, sends, seed)
        for number, ((rate, gamma, target, sends), seed) in enumerate(
            itertools.product(itertools.product(*(GRID[key] for key in KEYS)), range(SEEDS))
        )
    ]
    return [every[place * len(every) // members] for place in range(members)]


def train(source: Source, members: int, threads: int, place: Path, progress: bool) -> dict[str, str]:
    """Learn both halves from one log, every member to its last update; why members diverged, by name.

    The networks are left at `place`, those of the members that did not diverge.
    """
    config = source.config
    table = log_of(source, config.seed)
    wanted = settings(members)
    training = replace(config.learning, seeds=SEEDS, threads=threads)
    run = prepare(table, training, config.seed, progress)
    pairs = [(kind, setting) for kind in KINDS for setting in wanted]
    population = [_member(run, kind, setting) for kind, setting in pairs]
    kept, stopped = learned(run, population)
    acting = {setting.named(kind): each for (kind, setting), each in zip(pairs, kept, strict=True) if each is not None}
    save(acting, place)
    return {setting.named(kind): why for (kind, setting), why in zip(pairs, stopped, strict=True) if why}


def _member(run: Run, kind: str, setting: Setting) -> Member:
    """Members of one seed share minibatches and first parameters, whatever their kind."""
    drawn = int(np.random.SeedSequence([run.seed, setting.seed]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    learner = setting.learner(kind, run.config)
    assert learner.weights is not None
    return Member(
        name=kind,
        number=setting.number,
        learner=learner,
        scales=run.units.weighed(learner.weights),
        learning_rate=setting.learning_rate,
        gamma_per_day=setting.gamma_per_day,
        target_rate=setting.target_rate,
        seed=drawn,
        draws=drawn,
    )


def learned(run: Run, population: Sequence[Member]) -> tuple[list[Acting | None], list[str | None]]:
    """Each member as it acts at its last update, None where it diverged; and why."""
    feed = Held.of(run.data, run.training.target)
    seen = learn(population, run.config, feed, reach_within(population, feed, run.table), progress=run.progress)
    acting = [
        Acting(member.label, each.kept.network, each.kept.weights) if each.kept and not each.stopped else None
        for member, each in zip(population, seen, strict=True)
    ]
    return acting, [each.stopped for each in seen]


def two(table: Transitions, training: TrainConfig, seed: int) -> dict[str, Acting | None]:
    """A Double DQN and a Double DQN + CQL from one log, None where it diverged.

    A component that never happened to a training user has nothing to be learned about it and weighs nothing.
    """
    rows = rows_of(table, "train").all
    varies = dict(zip(table.contract.rewards, np.ptp(table.reward[rows], axis=0) > 0, strict=True))
    weights = {name: weight for name, weight in training.weights.items() if varies[name]}
    run = prepare(table, replace(training, weights=weights), seed, progress=False)
    population = run.members()
    acting, _ = learned(run, population)
    return {member.name: each for member, each in zip(population, acting, strict=True)}


def save(acting: dict[str, Acting], place: Path) -> None:
    """Networks and weights in one file; nothing pickled."""
    whole = together([each.network for each in acting.values()])
    tensors: dict[str, Tensor] = whole.state_dict()
    facts = {
        "names": list(acting),
        "weights": [each.weights.tolist() for each in acting.values()],
        "actions": whole.actions,
    }
    checkpoint.write(place, tensors, facts)


@functools.lru_cache(maxsize=1)
def load(place: Path) -> dict[str, Acting]:
    """The members that `save` left."""
    tensors, facts = checkpoint.read(place)
    whole = restored(tensors, facts["actions"])
    weights: list[NDArray[np.float64]] = [np.array(each) for each in facts["weights"]]
    return {name: Acting(name, whole.member(m), weights[m]) for m, name in enumerate(facts["names"])}
