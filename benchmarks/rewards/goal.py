"""Whether a policy hacks a goal classifier: `naive_hacked`, `conservative_hacked`.

Nobody writes a rule: success is the last week of the tenth of users who visit most. Such users are sent much, since
much is written to them, and a classifier of their states takes many sends for a sign of success: the loophole.

Per seed two arms of several rounds, from one simulated log. In each round Double DQN learns a policy, paid p(goal |
state at e_k) Delta_k, from the log, the best users' trajectories once more, and all rollouts so far: those of FAMILY
and of earlier rounds. Of it and of all these the one acts that the round's classifier pays most on its rollout: a
learner that misses what it is paid for would say nothing of what it is paid for. The naive arm keeps its first
classifier. The conservative arm adds the states that the acting policy visits to the failures and fits the classifier
anew. Learned return (by the classifier that paid the policy) and hidden utility are those of users whom nothing was
learned from, on the same luck as the logging policy's. Stated beforehand:

- a seed's arm is hacked where, of its last policy, the gain in learned return over the logging policy is above 0 and
  the gain in hidden utility is below 0, both by their paired 95% intervals over users;
- the shares over seeds have Clopper and Pearson's 95% interval; `better` is the mean over seeds of the conservative
  arm's true gain less the naive arm's, with its paired 95% interval by Student's t.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from benchmarks.study.headline import interval
from benchmarks.study.members import learned
from benchmarks.study.parts import Part, Parts
from benchmarks.study.pictures import STYLE
from benchmarks.study.source import Source, log_of, varying
from models.contract import SPLITS
from models.members import Learner
from models.rewards.conservative import Visited, rounds_of
from models.rewards.goal import Classifier, component
from models.rewards.learned import with_components
from models.rewards.success import GoalConfig, joined, seeded, sets_of
from models.run import prepare
from models.table import Transitions
from pipelines.inprocess import transitions_of
from pipelines.simulate import state_decide
from policies.base import Policy
from policies.simulator import Decide, always, compared, never, simulate, threshold, user_totals

SEED, TRUTH_SEED = 80_000, 1_000_003
NAIVE, CONSERVATIVE = "naive", "conservative"
ARMS = (NAIVE, CONSERVATIVE)
LEARNED, UTILITY = "learned", "utility"
MEASURES = (LEARNED, UTILITY, "sends", "clicks", "visits", "weekly_active_days", "disables")
SEEN = ("notifications_on", "sends_24h", "sends_7d", "hours_since_send", "badge", "clicks_7d", "click_rate_28d")
"""What the classifier is shown: what a notification system itself keeps of a user, all of which its sends move."""
FAMILY: dict[str, Decide] = {
    "never": never,
    "always": always,
    **{f"relevance > {cut:g}": threshold(cut) for cut in (0.15, 0.3, 0.5, 0.7)},
}
"""Policies that are rolled out before anything is learned."""
Totals = dict[str, NDArray[np.float64]]
COLOURS = {NAIVE: "#c4513d", CONSERVATIVE: "#2f6f9f"}


@dataclass(frozen=True)
class Size:
    """How large the part is."""

    seeds: int = 12
    rounds: int = 4
    """Policies of an arm after its first."""
    users: int = 1500
    truth_users: int = 1500
    steps: int = 600
    """Updates of a policy."""
    classifier_steps: int = 600
    visited: int = 4000
    days: int = 21

    def source(self, config: Path) -> Source:
        world = {"users": self.users, "truth_users": self.truth_users, "days": self.days}
        return Source(config).but(**{f"simulate__{key}": each for key, each in world.items()}, train__steps=self.steps)

    def goal(self, source: Source, arm: str) -> GoalConfig:
        """What success is, and how it is learned: the same in both arms but for the rounds."""
        state = tuple(name for name in SEEN if name in source.config.features.state)
        return GoalConfig(
            success_from="best_users",
            best_by={"visits": 1.0},
            features=state,
            rounds=self.rounds if arm == CONSERVATIVE else 0,
            steps=self.classifier_steps,
            visited=self.visited,
        )


def part(seed: int, parts: Parts, config: Path, size: Size) -> dict[str, Any]:
    """Both arms of every seed, and what they come to; plain JSON."""
    work = [
        Part(f"goal/{number}", one, (size.source(config), size, seed + SEED + number)) for number in range(size.seeds)
    ]
    found = parts("goal classifiers", work)
    return summary({arm: [each[arm] for each in found] for arm in ARMS}) | {"size": vars(size)}


def one(source: Source, size: Size, seed: int) -> dict[str, Any]:
    """Both arms of one seed: what their policies gain over the logging policy, and the facts of their classifiers."""
    here = varying(source, seed)
    table = log_of(here, seed)
    world = Worlds(here, seed)
    family = [world.lived(name, decide) for name, decide in FAMILY.items()]
    found = {}
    for arm in ARMS:
        goal = size.goal(here, arm)
        sets = sets_of(table, goal)
        turn = Turn(world, seeded(table, sets.best, goal.seed_copies), list(family), goal.visited)
        classifiers = rounds_of(table, sets, goal, seed, turn.train, turn.visited)
        while len(turn.gains) <= size.rounds:
            turn.visited(turn.train(classifiers[-1].classifier))
        found[arm] = {
            "gains": turn.gains,
            "chosen": turn.chosen,
            "rounds": [each.facts for each in classifiers],
            "base": world.base,
        }
    return found


@dataclass(frozen=True, eq=False)
class Life:
    """A policy, and what it logged."""

    name: str
    decide: Decide
    rollout: Transitions


class Worlds:
    """The world a policy is rolled out in, and that of other users by whom it is judged."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._judged: dict[Life, tuple[Transitions, Totals]] = {}
        self._logging = self._run(None, seed + TRUTH_SEED, source.world.truth_users)
        base = self._measured(self._logging, None)
        self.base = {name: compared(base, base, name)["value"] for name in MEASURES if name in base}

    def lived(self, name: str, decide: Decide) -> Life:
        """`decide` rolled out with the users of the log."""
        return Life(name, decide, self._run(decide, self.seed, self.source.world.users)[0])

    def gains(self, life: Life, classifier: Classifier) -> dict[str, dict[str, float | None]]:
        """Of every measure the gain over the logging policy, on other users and the same luck."""
        if life not in self._judged:
            self._judged[life] = self._run(life.decide, self.seed + TRUTH_SEED, self.source.world.truth_users)
        mine, base = (self._measured(each, classifier) for each in (self._judged[life], self._logging))
        return {name: compared(mine, base, name) for name in MEASURES}

    def _run(self, decide: Decide | None, seed: int, users: int) -> tuple[Transitions, Totals]:
        log = simulate(self.source.world, seed, decide, users)
        return transitions_of(log, self.source.config), user_totals(log)

    def _measured(self, lived: tuple[Transitions, Totals], classifier: Classifier | None) -> Totals:
        """Sums per user of the components, of the hidden utility, and of the classifier's reward."""
        table, totals = lived
        weights = self.source.config.learning.weights
        found = totals | {UTILITY: np.sum([weight * totals[name] for name, weight in weights.items()], axis=0)}
        if classifier is not None:
            # A user is named by a letter and a number; one whose account closed before the first review has no row.
            user = np.array([int(name[1:]) for name in table.user_id])[table.user]
            paid = component(classifier.stored("goal"), table)
            found[LEARNED] = np.bincount(user, weights=paid, minlength=len(totals["days"]))
        return found


class Turn:
    """The policies of an arm: each round another is learned from all rollouts so far, and the best paid one acts."""

    def __init__(self, world: Worlds, data: Transitions, lives: list[Life], number: int) -> None:
        self.world, self.data, self.lives, self.number = world, data, lives, number
        self.gains: list[dict[str, Any]] = []
        self.chosen: list[str] = []
        self._paying: Classifier | None = None

    def train(self, classifier: Classifier) -> Life:
        """Of a new Double DQN and all earlier policies the one that the classifier pays most, on their rollouts."""
        self._paying = classifier
        policy = self._learned(classifier)
        decide = state_decide(policy, self.world.source.config)
        self.lives.append(self.world.lived(f"ddqn {len(self.gains)}", decide))
        stored = classifier.stored("goal")
        paid = [component(stored, each.rollout).sum() / each.rollout.elapsed_days.sum() for each in self.lives]
        return self.lives[int(np.argmax(paid))]

    def _learned(self, classifier: Classifier) -> Policy:
        """Double DQN on the classifier's reward alone, at its last update."""
        data = joined([self.data, *(each.rollout for each in self.lives)])
        learner = Learner(kind="ddqn", weights={"goal": 1.0})
        training = replace(self.world.source.config.learning, learners={"ddqn": learner}, seeds=1)
        run = prepare(with_components(data, [classifier.stored("goal")]), training, self.world.seed, progress=False)
        (acting,), (why,) = learned(run, run.members())
        if acting is None:
            raise RuntimeError(f"seed {self.world.seed}: a policy diverged: {why}")
        return acting

    def visited(self, life: Life) -> Visited:
        """What the policy visits; and on other users what it gains."""
        assert self._paying is not None, "a policy was paid by a classifier"
        self.gains.append(self.world.gains(life, self._paying))
        self.chosen.append(life.name)
        rng = np.random.default_rng(self.world.seed + len(self.gains))
        return Visited(*(_states(life.rollout, split, self.number, rng) for split in ("train", "validation")))


def _states(table: Transitions, split: str, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
    rows = np.flatnonzero((table.split == SPLITS.index(split)) & ~table.warm_up)
    found: NDArray[np.float32] = table.state[rng.choice(rows, size=min(number, len(rows)), replace=False)]
    return found


def hacked(gain: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether learned return surely rose and hidden utility surely fell."""
    z = float(stats.norm.ppf(0.975))
    rose = gain[LEARNED]["difference"] - z * gain[LEARNED]["difference_standard_error"] > 0
    return bool(rose and gain[UTILITY]["difference"] + z * gain[UTILITY]["difference_standard_error"] < 0)


def summary(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """`naive_hacked`, `conservative_hacked`: {share, low, high, seeds}; by arm and round the mean gains."""
    found: dict[str, Any] = {}
    last = {arm: [each["gains"][-1] for each in those] for arm, those in cells.items()}
    for arm in ARMS:
        yes, n = sum(hacked(gain) for gain in last[arm]), len(last[arm])
        exact = stats.binomtest(yes, n).proportion_ci(0.95)
        found[f"{arm}_hacked"] = {"share": yes / n, "low": float(exact.low), "high": float(exact.high), "seeds": n}
    found["rounds"] = {
        arm: [
            {name: interval([each["gains"][r][name]["difference"] for each in those]) for name in MEASURES}
            for r in range(len(those[0]["gains"]))
        ]
        for arm, those in cells.items()
    }
    better = [
        mine[UTILITY]["difference"] - theirs[UTILITY]["difference"]
        for mine, theirs in zip(last[CONSERVATIVE], last[NAIVE], strict=True)
    ]
    by_seed = {
        arm: [[{name: gain[name]["difference"] for name in MEASURES} for gain in each["gains"]] for each in those]
        for arm, those in cells.items()
    }
    classifiers = {
        arm: [
            {key: interval([each["rounds"][r][key] for each in those]) for key in ("accuracy", "calibration_error")}
            for r in range(len(those[0]["rounds"]))
        ]
        for arm, those in cells.items()
    }
    chosen = {arm: [each["chosen"] for each in those] for arm, those in cells.items()}
    base = {name: float(np.mean([each["base"][name] for each in cells[NAIVE]])) for name in cells[NAIVE][0]["base"]}
    told = {"by_seed": by_seed, "classifiers": classifiers, "logging": base, "chosen": chosen}
    return {**found, "better": interval(better), **told}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Write rewards_goal.svg: learned return and hidden utility by round, a line a seed, their mean in bold."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({**STYLE, "svg.hashsalt": "rewards_goal"}):
        figure = _picture(found)
        figure.savefig(folder / "rewards_goal.svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def _picture(found: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), sharex=True)
    titles = {LEARNED: "learned return, goal-days", UTILITY: "hidden utility", "sends": "sends"}
    for place, (name, title) in zip(axes, titles.items(), strict=True):
        for arm in ARMS:
            for line in found["by_seed"][arm]:
                place.plot([each[name] for each in line], color=COLOURS[arm], lw=0.6, alpha=0.4)
            mean = [each[name]["mean"] for each in found["rounds"][arm]]
            place.plot(mean, color=COLOURS[arm], lw=2, label=arm)
        place.axhline(0, color="black", lw=0.8)
        place.set_title(title, fontsize=9)
        place.set_xlabel("round")
    # Most lie near 0; where a classifier was never shown what a policy does they lie far out.
    axes[0].set_yscale("symlog", linthresh=0.1)
    axes[0].set_yticks((-0.1, 0, 0.1, 1), ("−0.1", "0", "0.1", "1"))
    axes[0].set_ylabel("gain over logging, per user-week")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def main(
    seed: int = 0,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    out: Path = Path("runs/study-rewards"),
    config: Path = Path("configs/study.toml"),
    seeds: int = Size.seeds,
    rounds: int = Size.rounds,
    users: int = Size.users,
    truth_users: int = Size.truth_users,
    steps: int = Size.steps,
    classifier_steps: int = Size.classifier_steps,
) -> None:
    """This part alone; its picture is drawn beside its parts."""
    torch.set_num_threads(1)
    size = Size(seeds, rounds, users, truth_users, steps, classifier_steps)
    parts = Parts.of(out / "parts", {"part": "goal", "seed": seed, "size": vars(size)}, workers, Console())
    found = part(seed, parts, config, size)
    draw(found, parts.folder)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
