"""The goal classifier: p(goal | state), balanced, regularised and calibrated, and the reward that it is.

    r_k = p(goal | s at e_k) Delta_k, in goal-days: days, each counted by how likely its end is a state worth being in.

A reward that is never negative pays for going on. log p and the logit are negative for p < 1 and p < 1/2: with them the
shortest trajectory would be the best, and closing an account a way to succeed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from models.contract import SPLITS
from models.errors import InputError
from models.network import Population, initial, predicted, restored
from models.optimise import Descent
from models.rewards.store import Stored
from models.rewards.success import GoalConfig, Sets
from models.table import Transitions

KIND = "goal"
BINS = 10
"""Of the calibration table."""
Floats = NDArray[np.float64]
States = NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """States of one split, raw, of the features that the classifier sees: F of them."""

    success: States
    """[n, F]."""
    failure: States
    """[m, F]."""
    visited: States
    """[v, F] states that earlier policies visited; of none, naively."""

    @classmethod
    def of(cls, table: Transitions, sets: Sets, split: str, features: tuple[str, ...]) -> "Examples":
        """Those of the users of one split. Raises InputError where it has no success or no failure."""
        here, columns = table.split == SPLITS.index(split), places(table, features)
        parts = {
            name: table.state[np.ix_(here & rows, columns)]
            for name, rows in (("successes", sets.success), ("failures", sets.failure))
        }
        for name, found in parts.items():
            if not len(found):
                raise InputError(
                    f"learned.goal: the {split} users have no {name}; a longer log, more users in that split "
                    "(etl.split), or another success are needed."
                )
        return cls(parts["successes"], parts["failures"], np.empty((0, len(columns)), np.float32))


@dataclass(frozen=True)
class Classifier:
    """p(goal | s) = sigmoid(a mean_p logit_p(s) + b), a >= 0, where half of all states are goals."""

    features: tuple[str, ...]
    """[F] in the order of the input."""
    network: Population
    """P members with one output; normalises its input, an unknown feature being its mean."""
    slope: float
    """a."""
    intercept: float
    """b."""

    def logits(self, state: States) -> Floats:
        """[N] mean over the members, uncalibrated, at raw `state` [N, F]."""
        if not len(state):
            return np.empty(0)
        x = self.network.normalise(torch.from_numpy(np.ascontiguousarray(state)))
        found: Floats = predicted(self.network, x)[:, :, 0, 0].mean(axis=0)
        return found

    def probability(self, state: States) -> Floats:
        """[N] p(goal | s) at raw `state` [N, F], NaN where unknown."""
        return _sigmoid(self.slope * self.logits(state) + self.intercept)

    def stored(self, name: str, facts: Mapping[str, Any] | None = None) -> Stored:
        """As `component` takes it: version 0, which lies nowhere."""
        told = {"features": list(self.features), "slope": self.slope, "intercept": self.intercept, **(facts or {})}
        return Stored(name, 0, "goal", told, dict(self.network.state_dict()))


def component(stored: Stored, table: Transitions) -> Floats:
    """[N] p(goal | state at e_k) Delta_k, in goal-days.

    The state at e_k is that of the user's next row. Where the account closed it is none: 0. Where the log ended
    (truncated) nobody saw it, and the state at t_k stands in for it: see `stand_ins` for how often.
    """
    p = classifier_of(stored).probability(table.state[:, places(table, tuple(stored.facts["features"]))])
    after = table.next_row
    found: Floats = np.where(table.terminal, 0.0, p[np.where(after >= 0, after, np.arange(len(p)))])
    return found * table.elapsed_days


def stand_ins(table: Transitions) -> int:
    """Rows whose reward is by the state at their beginning, since the one at their end was not seen."""
    return int((~table.terminal & (table.next_row < 0)).sum())


def classifier_of(stored: Stored) -> Classifier:
    """Raises InputError where the stored reward is no goal classifier."""
    if stored.kind != KIND:
        raise InputError(f"learned:{stored.name}: kind is {stored.kind!r}; {KIND!r} is needed here.")
    facts, network = stored.facts, restored(stored.tensors, 1)
    return Classifier(tuple(facts["features"]), network, facts["slope"], facts["intercept"])


def places(table: Transitions, features: tuple[str, ...]) -> list[int]:
    """[F] columns of the state; all of them where no feature is named."""
    return [table.contract.features.index(name) for name in features or table.contract.features]


def fit(
    learned: Examples, held_out: Examples, features: tuple[str, ...], config: GoalConfig, seed: int
) -> tuple[Classifier, dict[str, Any]]:
    """A classifier of `learned`, calibrated on `held_out`, and what is to be said of it, as JSON.

    Every batch is half successes, half failures; of the failures half are visited states, where there are any.
    """
    everything = np.concatenate([learned.success, learned.failure])
    mean, std = np.nanmean(everything, axis=0), np.nanstd(everything, axis=0)
    mean, std = np.nan_to_num(mean), np.where(np.nan_to_num(std) > 0, std, 1.0)
    seeds = [seed * config.members + member for member in range(config.members)]
    centre, spread = torch.from_numpy(mean).float(), torch.from_numpy(std).float()
    network = initial(seeds, config.hidden, centre, spread, torch.zeros(1), torch.ones(1), 1)
    sets = [
        network.normalise(torch.from_numpy(np.ascontiguousarray(each)))
        for each in (learned.success, learned.failure, learned.visited)
    ]
    descent = Descent([network], [config.learning_rate] * config.members, config.steps)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    for step in range(config.steps):
        x, goal = _batch(sets, config, generator)
        descent.begin(step)
        descent.step(loss(network, x, goal, config, rng))
    plain = Classifier(features, network.requires_grad_(False), 1.0, 0.0)
    slope, intercept = calibrated(*(plain.logits(each) for each in _held(held_out)))
    found = Classifier(features, network, slope, intercept)
    return found, {"slope": slope, "intercept": intercept, **report(found, held_out)}


def loss(network: Population, x: Tensor, goal: Tensor, config: GoalConfig, rng: np.random.Generator) -> Tensor:
    """[P] mean cross-entropy at x [P, B, F] with `goal` [P, B] in {0, 1}, regularised as configured.

    Label smoothing: y = (1 - e) goal + e / 2 (Szegedy et al. 2016, of two classes). Mixup: x = l x_i +
    (1 - l) x_j, y alike, l of Beta(a, a), one for the batch (Zhang et al. 2018, eq. 1). Gradient penalty:
    c mean |d logit / d x|^2 at points drawn uniformly between successes and failures (Gulrajani et al. 2017, section
    4, with 0 for their 1, as Mescheder et al. 2018: no steepness is wanted).
    """
    y = (1 - config.label_smoothing) * goal + config.label_smoothing / 2
    if config.mixup:
        share, other = float(rng.beta(config.mixup, config.mixup)), torch.from_numpy(rng.permutation(x.shape[1]))
        x, y = share * x + (1 - share) * x[:, other], share * y + (1 - share) * y[:, other]
    logits = network.heads(x)[..., 0, 0]
    total = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(dim=1)
    if config.gradient_penalty:
        half = x.shape[1] // 2
        share_of = torch.from_numpy(rng.random((x.shape[0], half, 1))).float()
        between = (share_of * x[:, :half] + (1 - share_of) * x[:, half : 2 * half]).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(network.layers(between).sum(), between, create_graph=True)
        total = total + config.gradient_penalty * slope.square().sum(dim=2).mean(dim=1)
    return total


def _batch(sets: list[Tensor], config: GoalConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [P, B, F] normalised, its first half successes, and goal [P, B]."""
    success, failure, visited = sets
    half = config.batch_size // 2
    seen = half // 2 if len(visited) else 0

    def drawn(of: Tensor, number: int) -> Tensor:
        return of[torch.randint(len(of), (config.members, number), generator=generator)]

    parts = [drawn(success, half), drawn(failure, half - seen), *([drawn(visited, seen)] if seen else [])]
    goal = torch.cat([torch.ones(config.members, half), torch.zeros(config.members, half)], dim=1)
    return torch.cat(parts, dim=1), goal


def _held(examples: Examples) -> tuple[States, States, States]:
    return examples.success, examples.failure, examples.visited


def calibrated(success: Floats, failure: Floats, visited: Floats) -> tuple[float, float]:
    """(a, b) of sigmoid(a logit + b) that tell held-out logits best, each class weighing half (Platt 1999), a >= 0.

    Of the failures half the weight is that of visited states, where there are any, as in a batch.
    """
    logits = np.concatenate([success, failure, visited])
    weight = _weights(len(success), len(failure), len(visited))
    goal = np.arange(len(logits)) < len(success)

    def nll(ab: Floats) -> float:
        z = ab[0] * logits + ab[1]
        return float(weight @ np.logaddexp(0, np.where(goal, -z, z)))

    # Beyond these a few states that are told apart without error would be certain.
    found = minimize(nll, np.array([1.0, 0.0]), bounds=[(0.0, 10.0), (-10.0, 10.0)], method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def _weights(success: int, failure: int, visited: int) -> Floats:
    parts = [(success, 0.5), (failure, 0.25 if visited else 0.5), (visited, 0.25)]
    return np.concatenate([np.full(number, share / max(number, 1)) for number, share in parts])


def report(classifier: Classifier, held_out: Examples) -> dict[str, Any]:
    """How well held-out states are told apart, each class weighing half: accuracy, calibration and its error.

    `base_rate` is the share of successes among the held-out states that are either, visited ones left out.
    """
    p = classifier.probability(np.concatenate(_held(held_out)))
    counts = [len(each) for each in _held(held_out)]
    weight, goal = _weights(*counts), np.arange(len(p)) < counts[0]
    table, error = [], 0.0
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    for b in range(BINS):
        here = place == b
        share = float(weight[here].sum())
        if share:
            said, was = float(weight[here] @ p[here]) / share, float(weight[here] @ goal[here]) / share
            table.append({"low": b / BINS, "high": (b + 1) / BINS, "share": share, "predicted": said, "observed": was})
            error += share * abs(said - was)
    return {
        "held_out": dict(zip(("success", "failure", "visited"), counts, strict=True)),
        "base_rate": counts[0] / (counts[0] + counts[1]),
        "accuracy": float(weight @ ((p > 0.5) == goal)),
        "calibration_error": error,
        "calibration": table,
        "mean_p": {
            name: float(p[start : start + n].mean()) if n else None
            for name, n, start in zip(
                ("success", "failure", "visited"), counts, np.cumsum([0, *counts[:-1]]), strict=True
            )
        },
    }


def settings_of(config: GoalConfig) -> dict[str, Any]:
    """As facts of a version tell them."""
    return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(config).items()}


def _sigmoid(z: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -z))
