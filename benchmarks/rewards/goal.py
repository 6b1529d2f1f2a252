"""Whether a policy hacks a goal classifier: `naive_hacked`, `conservative_hacked`.

Nobody writes a rule: success is the last week of the tenth of users who visit most. Such users are sent much, since
much is written to them, and a classifier of their states takes many sends for a sign of success: the loophole.

Per seed two arms of ROUNDS policies each, from one simulated log. A policy is Double DQN on everything logged so far,
its predecessors' rollouts among it, seeded by the best users' trajectories; it is paid p(goal | state at e_k) Delta_k.
The naive arm keeps its first classifier. The conservative arm adds what each policy visits to the failures and fits
the classifier anew. Learned return (by the classifier that paid the policy) and hidden utility are those of users whom
nothing was learned from, on the same luck as the logging policy's. Stated beforehand:

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
from models.table import Transitions
from models.train import prepare
from pipelines.inprocess import transitions_of
from pipelines.simulate import state_decide
from policies.base import Policy
from policies.simulator import compared, simulate, user_totals

SEED, TRUTH_SEED = 70_000, 1_000_003
NAIVE, CONSERVATIVE = "naive", "conservative"
ARMS = (NAIVE, CONSERVATIVE)
LEARNED, UTILITY = "learned", "utility"
MEASURES = (LEARNED, UTILITY, "sends", "clicks", "visits", "weekly_active_days", "disables")
SEEN = ("notifications_on", "sends_24h", "sends_7d", "hours_since_send", "badge", "clicks_7d", "click_rate_28d")
"""What the classifier is shown: what a notification system itself keeps of a user, all of which its sends move."""
COLOURS = {NAIVE: "#c4513d", CONSERVATIVE: "#2f6f9f"}


@dataclass(frozen=True)
class Size:
    """How large the part is."""

    seeds: int = 10
    rounds: int = 5
    """Policies of an arm after its first."""
    users: int = 2500
    truth_users: int = 2500
    days: int = 21
    steps: int = 600
    """Updates of a policy."""
    classifier_steps: int = 600
    visited: int = 4000

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
    """Every arm of every seed, and what they come to; plain JSON."""
    work = [
        Part(f"goal/{arm}/{number}", one, (size.source(config), size, arm, seed + SEED + number))
        for number in range(size.seeds)
        for arm in ARMS
    ]
    found = parts("goal classifiers", work)
    return summary({arm: found[place :: len(ARMS)] for place, arm in enumerate(ARMS)}) | {"size": vars(size)}


def one(source: Source, size: Size, arm: str, seed: int) -> dict[str, Any]:
    """One arm of one seed: the gains of its policies over the logging policy, and the facts of its classifiers."""
    here = varying(source, seed)
    table, goal = log_of(here, seed), size.goal(here, arm)
    sets = sets_of(table, goal)
    turn = Turn(here, seed, seeded(table, sets.best, goal.seed_copies), goal.visited)
    found = rounds_of(table, sets, goal, seed, turn.train, turn.visited)
    while len(turn.gains) <= size.rounds:
        turn.visited(turn.train(found[-1].classifier))
    return {"gains": turn.gains, "rounds": [each.facts for each in found], "base": turn.base_values}


class Turn:
    """The policies of an arm: each learned from everything so far, rolled out, and judged on other users."""

    def __init__(self, source: Source, seed: int, data: Transitions, number: int) -> None:
        self.source, self.seed, self.number = source, seed, number
        self.data = [data]
        self.gains: list[dict[str, Any]] = []
        self._truth = seed + TRUTH_SEED
        self._base = self._lived(None, self._truth, source.world.truth_users)
        self._paying: Classifier | None = None
        base = self._measured(self._base, None)
        self.base_values = {name: compared(base, base, name)["value"] for name in MEASURES if name in base}

    def train(self, classifier: Classifier) -> Policy:
        """Double DQN on the classifier's reward alone, at its last update."""
        self._paying = classifier
        paid = with_components(joined(self.data), [classifier.stored("goal")])
        learner = Learner(kind="ddqn", weights={"goal": 1.0})
        training = replace(self.source.config.learning, learners={"ddqn": learner}, seeds=1)
        run = prepare(paid, training, self.seed, progress=False)
        (acting,), (why,) = learned(run, run.members())
        if acting is None:
            raise RuntimeError(f"seed {self.seed}: a policy diverged: {why}")
        return acting

    def visited(self, policy: Policy) -> Visited:
        """Roll `policy` out: what it visits, and on other users what it gains."""
        assert self._paying is not None, "a policy was paid by a classifier"
        rollout, _ = self._lived(policy, self.seed, self.source.world.users)
        self.data.append(rollout)
        base = self._measured(self._base, self._paying)
        mine = self._measured(self._lived(policy, self._truth, self.source.world.truth_users), self._paying)
        self.gains.append({name: compared(mine, base, name) for name in MEASURES})
        rng = np.random.default_rng(self.seed + len(self.gains))
        return Visited(*(_states(rollout, split, self.number, rng) for split in ("train", "validation")))

    def _lived(
        self, policy: Policy | None, seed: int, users: int
    ) -> tuple[Transitions, dict[str, NDArray[np.float64]]]:
        decide = None if policy is None else state_decide(policy, self.source.config)
        log = simulate(self.source.world, seed, decide, users)
        return transitions_of(log, self.source.config), user_totals(log)

    def _measured(
        self, lived: tuple[Transitions, dict[str, NDArray[np.float64]]], classifier: Classifier | None
    ) -> dict[str, NDArray[np.float64]]:
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
    base = {name: float(np.mean([each["base"][name] for each in cells[NAIVE]])) for name in cells[NAIVE][0]["base"]}
    return {**found, "better": interval(better), "by_seed": by_seed, "classifiers": classifiers, "logging": base}


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
    size = Size(seeds, rounds, users, truth_users, steps=steps, classifier_steps=classifier_steps)
    parts = Parts.of(out / "parts", {"part": "goal", "seed": seed, "size": vars(size)}, workers, Console())
    found = part(seed, parts, config, size)
    draw(found, parts.folder)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
