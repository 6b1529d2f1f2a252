"""What share of the truth's gain a learned reward brings: `gain_of_truth`.

Per seed one simulated log, one rater with a hidden utility u of user-weeks, 200 noisy answers, and policies learned
alike (same log, first parameters and minibatches; LEARNERS of each, whose gains are averaged) from three rewards: the
hidden utility itself, the weights learned from the answers, and the network learned from the same answers. Each acts
alone in the same world of other users; gain(pi) = u(pi) - u(logging) per user-week, on the same luck. Stated
beforehand:

- the share is rho = mean gain(learned) / mean gain(truth) over seeds, its 95% interval Fieller's, which is paired;
- the bar is rho >= 0.8 by the estimate; `margin` is the mean of gain(learned) - 0.8 gain(truth) over seeds, with its
  paired 95% interval by Student's t.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats

from benchmarks.study.headline import interval
from benchmarks.study.members import learned
from benchmarks.study.parts import Part, Parts, code
from benchmarks.study.source import Source, log_of, varying
from models.batch import rows_of
from models.members import Learner
from models.rewards import network, simulated
from models.rewards.answers import Answers
from models.rewards.learned import with_components
from models.rewards.preferences import PreferenceConfig, choose, fit, random_pairs
from models.rewards.settings import NetworkConfig
from models.rewards.store import Stored
from models.rewards.weeks import Weeks, weeks_of
from models.run import prepare
from models.table import Transitions
from models.training import TrainConfig
from pipelines.simulate import state_decide
from policies.base import Policy
from policies.simulator import Decide, compared, simulate, user_totals

HIDDEN = {"clicks": 3.0, "visits": 0.1, "weekly_active_days": 0.5, "sends": -0.2, "disables": -3.0}
"""The rater's utility per raw unit, on the scale of the rater's own noise: one under which the policy learned from it
gains clearly and sends about half of what the log did. Where never sending is best, nearly any weights find it. It was
settled, like the learner and the network's defaults, after runs of this part on seeds 40,000 to 40,009 were seen; the
seeds here are others."""
CONFIG = Path("configs/improves.toml")
BAR = 0.8
SHOWING = ("rewards.__main__", "rewards.page")
"""What of the code decides no number."""
ROUND = 50
"""Answers between two fits: the first are about random pairs, the others about those that tell most."""
LEARNER, LEARNERS = Learner(alpha=0.1), 2
"""Double DQN with a little of the CQL penalty: a single Double DQN falls silent on some seeds, whatever its reward."""
TRUTH, WEIGHTS, NETWORK = "truth", "weights", "network"
FORMS = (WEIGHTS, NETWORK)
SEED, TRUTH_SEED = 70_000, 1_000_003


@dataclass(frozen=True)
class Size:
    """How large the part is."""

    seeds: int = 10
    users: int = 6000
    truth_users: int = 4000
    steps: int = 1500
    answers: int = 200

    def source(self, config: Path) -> Source:
        return Source(config).but(
            simulate__users=self.users,
            simulate__truth_users=self.truth_users,
            train__steps=self.steps,
            etl__split="[0.8, 0.1, 0.1]",
        )


def part(seed: int, workers: int, out: Path, config: Path = CONFIG, size: Size | None = None) -> dict[str, Any]:
    """The gains of every seed and what they come to; what is done lies in OUT/parts: a killed run goes on."""
    size = size or Size()
    settings = {"part": "truth", "seed": seed, "size": vars(size), "hidden": HIDDEN, "code": code(SHOWING)}
    parts = Parts.of(out / "parts", json.loads(json.dumps(settings)), workers, Console())
    work = [
        Part(f"truth/{number}", one, (size.source(config), size.answers, seed + SEED + number))
        for number in range(size.seeds)
    ]
    found = summary(parts("gain of truth", work))
    return {**found, "size": {**vars(size), "hidden": HIDDEN}}


def one(source: Source, number: int, seed: int) -> dict[str, Any]:
    """One seed: true gains per user-week by reward, the learned weights, and how well the network tells answers."""
    here = varying(source, seed)
    table = log_of(here, seed)
    weeks = weeks_of(table, rows=rows_of(table, "train").all)
    said, weights = asked(table, weeks, number, np.random.default_rng(seed))
    fitted = network.fit([(table, weeks)], said, NetworkConfig(), seed)
    extended = with_components(table, [Stored("liked", 1, "network", fitted.facts, fitted.tensors)])
    rewards = {TRUTH: HIDDEN, WEIGHTS: weights, NETWORK: {"liked": 1.0}}
    acting = policies(extended, here.config.learning, rewards, seed)
    base = _totals(here, seed, None)
    return {
        "gains": {name: _gain(here, seed, several, base) for name, several in acting.items()},
        "logging": compared(base, base, "utility")["value"],
        "weights": weights,
        "accuracy": fitted.facts["accuracy"],
    }


def asked(table: Transitions, weeks: Weeks, number: int, rng: np.random.Generator) -> tuple[Answers, dict[str, float]]:
    """`number` answers in rounds, and the weights that they teach.

    A component in which no weeks that were compared differ has no weight.
    """
    rewards = table.contract.rewards
    of_week = simulated.utility(weeks, rewards, HIDDEN)
    pairs = np.zeros((0, 2), np.int64)
    said = Answers(())
    fitted = None
    while len(pairs) < number:
        few = min(ROUND, number - len(pairs))
        fresh = (
            random_pairs(weeks, pairs, few, rng)
            if fitted is None
            else choose(fitted, weeks, pairs, few, int(rng.integers(2**31)))
        )
        pairs = np.concatenate([pairs, fresh])
        said = said + Answers(simulated.answers(weeks, fresh, of_week, rng))
        differ = (weeks.totals[pairs[:, 0]] != weeks.totals[pairs[:, 1]]).any(axis=0)
        told = tuple(name for name, varies in zip(rewards, differ, strict=True) if varies)
        fitted = fit(weeks, rewards, said, PreferenceConfig(components=told), intervals=False)
    assert fitted is not None
    return said, {name: float(weight) for name, weight in zip(fitted.components, fitted.weights, strict=True)}


def policies(
    table: Transitions, training: TrainConfig, rewards: Mapping[str, Mapping[str, float]], seed: int
) -> dict[str, list[Policy]]:
    """Policies from each of `rewards` (weights per raw unit of a component), learned alike, at their last update.

    A component that never happened to a training user has nothing to be learned about it and weighs nothing.
    """
    varies = np.ptp(table.reward[rows_of(table, "train").all], axis=0) > 0
    there = {name for name, some in zip(table.contract.rewards, varies, strict=True) if some}
    learners: dict[str, float | Learner] = {
        name: replace(LEARNER, weights={key: weight for key, weight in weights.items() if key in there})
        for name, weights in rewards.items()
    }
    run = prepare(table, replace(training, learners=learners, seeds=LEARNERS), seed, progress=False)
    members = run.members()
    acting, stopped = learned(run, members)
    found: dict[str, list[Policy]] = {name: [] for name in rewards}
    for member, policy, why in zip(members, acting, stopped, strict=True):
        if policy is None:
            raise RuntimeError(f"{member.name}: its learner diverged: {why}")
        found[member.name].append(policy)
    return found


def _totals(source: Source, seed: int, decide: Decide | None) -> dict[str, NDArray[np.float64]]:
    """Sums per user of the components and of the hidden utility, in a world of other users than the log's."""
    totals = user_totals(simulate(source.world, seed + TRUTH_SEED, decide, source.world.truth_users))
    return totals | {"utility": np.sum([weight * totals[name] for name, weight in HIDDEN.items()], axis=0)}


def _gain(
    source: Source, seed: int, several: Sequence[Policy], base: Mapping[str, NDArray[np.float64]]
) -> dict[str, float]:
    """The mean gain of several policies, in the hidden utility and in each of its components."""
    mine = [_totals(source, seed, state_decide(policy, source.config)) for policy in several]
    return {
        name: float(np.mean([compared(each, base, name)["difference"] for each in mine]))
        for name in ("utility", *HIDDEN)
    }


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`gain_of_truth` by form: {ratio, low, high, margin, met}; the gains by reward, mean and 95% interval."""
    gains = {name: np.array([each["gains"][name]["utility"] for each in cells]) for name in (TRUTH, *FORMS)}
    return {
        "gain_of_truth": {name: ratio(gains[name], gains[TRUTH]) for name in FORMS},
        "gains": {name: interval(list(values)) for name, values in gains.items()},
        "by_seed": {name: values.tolist() for name, values in gains.items()},
        "logging": float(np.mean([each["logging"] for each in cells])),
        "components": {
            name: {c: float(np.mean([each["gains"][name][c] for each in cells])) for c in HIDDEN} for name in gains
        },
        "weights": {name: interval([each["weights"].get(name, float("nan")) for each in cells]) for name in HIDDEN},
        "network_accuracy": interval([each["accuracy"] for each in cells]),
    }


def ratio(mine: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, Any]:
    """rho = mean(mine) / mean(truth) of n seeds, and the rho for which mean(mine - rho truth) is 0 within its error.

    Fieller (1954): with t the 97.5% quantile of Student's t at n - 1, low and high are where n (m - rho T)^2 = t^2
    var(mine - rho truth); null where the truth's own gain is not surely apart from 0, as then no interval is bounded.
    `margin` is of mine - BAR truth.
    """
    n, t = len(mine), float(stats.t.ppf(0.975, len(mine) - 1))
    m, big = float(mine.mean()), float(truth.mean())
    cover = np.cov(mine, truth) * t**2 / n
    a, b, c = big**2 - cover[1, 1], m * big - cover[0, 1], m**2 - cover[0, 0]
    bounded = a > 0
    root = np.sqrt(max(b**2 - a * c, 0.0))
    found = {
        "ratio": m / big if big else None,
        "low": float((b - root) / a) if bounded else None,
        "high": float((b + root) / a) if bounded else None,
        "margin": interval(list(mine - BAR * truth)),
        "seeds": n,
    }
    return found | {"bar": BAR, "met": bool(big > 0 and m >= BAR * big)}


def main(
    seed: int = 0,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    out: Path = Path("runs/study-rewards"),
    config: Path = CONFIG,
    seeds: int = Size.seeds,
    users: int = Size.users,
    truth_users: int = Size.truth_users,
    steps: int = Size.steps,
    answers: int = Size.answers,
) -> None:
    """This part alone."""
    torch.set_num_threads(1)
    found = part(seed, workers, out, config, Size(seeds, users, truth_users, steps, answers))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
