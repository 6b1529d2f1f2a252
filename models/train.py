"""The training loop on one screen."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Batch, Draws, Resident, Rows, rows_of
from models.contract import Contract
from models.errors import InputError
from models.fqe import LONGEST_HORIZON, fit_fqe
from models.learners import behaviour_cloning, ddqn_cql
from models.network import Population, initial
from models.optimise import Descent, counted, follow
from models.scaling import Scales, measure
from models.table import Transitions

BEHAVIOUR = "behaviour"
"""The logging policy, cloned; the first champion."""
Act = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
"""(q [N, A], behaviour logits [N, A], legal [N, A]) -> probabilities [N, A]: how a learned policy is deployed."""
Metrics = Callable[[int, dict[str, float]], None]
"""Told the update and the metrics there."""
CURVE_POINTS = 50
VALIDATION_ROWS = 4096
"""At most so many validation rows behind each point of a curve."""


@dataclass(frozen=True)
class TrainConfig:
    """What is learned, from what, for how long."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weights: dict[str, float] = field(default_factory=dict)
    """Weight per reward component and raw unit (a click is worth 1, a send costs 0.05); an absent one weighs 0."""
    gamma_per_day: float = 0.97
    """Discount per day; the learner uses gamma ** elapsed_days."""
    learners: dict[str, float] = field(default_factory=lambda: {"ddqn": 0.0, "ddqn_cql": 1.0})
    """Name of each learned policy, and the alpha of its CQL penalty (0 is plain Double DQN)."""
    seeds: int = 1
    """Members per learner; the first is exported, the others tell how stable the choice is."""
    steps: int = 3000
    """Updates."""
    batch_size: int = 512
    """Transitions per update and member."""
    hidden: tuple[int, ...] = (64, 64)
    """Units per hidden layer."""
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    """Polyak rate of the target network per update."""
    behaviour_steps: int = 1500
    """Updates of the behaviour network (the logging policy, cloned)."""
    value_steps: int = 2000
    """Updates of the unpenalised fitted Q evaluation that travels with each policy."""
    threads: int = 1
    """Torch threads on CPU."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma_per_day <= 1:
            raise InputError(f"train.gamma_per_day is {self.gamma_per_day}; it must lie in (0, 1].")
        for name in ("seeds", "steps", "batch_size", "behaviour_steps", "value_steps", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}; it must be 1 or more.")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"train.hidden is {list(self.hidden)}; give one or more layers of 1 or more units.")
        if self.learning_rate <= 0:
            raise InputError(f"train.learning_rate is {self.learning_rate}; it must be above 0.")
        if not 0 < self.target_rate <= 1:
            raise InputError(f"train.target_rate is {self.target_rate}; it must lie in (0, 1].")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"train.device is {self.device!r}; it must be auto, cpu or cuda.")
        if BEHAVIOUR in self.learners:
            raise InputError(f"train.learners: {BEHAVIOUR!r} is the cloned logging policy's name; choose another.")
        if not self.learners:
            raise InputError("train.learners is empty; name at least one, for example ddqn_cql = 1.0.")
        for name, alpha in self.learners.items():
            if alpha < 0:
                raise InputError(f"train.learners.{name} is {alpha}; alpha must be 0 or more.")
        if not any(self.weights.values()):
            raise InputError("train.weights are all zero; give at least one reward component a weight.")


@dataclass(frozen=True)
class Learned:
    """A policy to export: three networks of one member each, on the CPU, and how they came about."""

    name: str
    alpha: float | None
    """Of the CQL penalty; None for the behaviour policy."""
    contract: Contract
    scales: Scales
    q_network: Population
    q_weights: NDArray[np.float64]
    """[K] q = sum_k q_weights_k heads_k: in standard deviations of the weighted reward."""
    behaviour: Population
    """Logits of the logging policy, K = 1."""
    values: Population
    """Unpenalised fitted Q of the deployed policy; `raw` gives raw units, gamma_per_day discounts."""
    curves: list[dict[str, float]]
    """One point per measured update: step, and td_loss, cql_gap, mean_q, or nll; validation_* where there are rows."""
    agreement: float | None
    """Share of validation choices at which the other seeds choose as the first; None with one seed."""


@dataclass(frozen=True)
class Run:
    """What every stage of one training shares; N transitions."""

    table: Transitions
    config: TrainConfig
    seed: int
    scales: Scales
    data: Resident
    training: Rows
    validation: Rows
    device: torch.device
    progress: bool
    on_metrics: Metrics | None

    def population(self, seeds: list[int], shift: Tensor, scale: Tensor, level: Tensor | None = None) -> Population:
        """One network per seed over this log's state, with len(scale) components."""
        mean, std = torch.from_numpy(self.scales.mean), torch.from_numpy(self.scales.std)
        actions = len(self.table.contract.actions)
        return initial(seeds, self.config.hidden, mean, std, shift, scale, actions, level).to(self.device)

    def draws(self, rows: NDArray[np.bool_], seed: int) -> Draws:
        return Draws(rows, seed, self.config.batch_size, self.device)

    def held_out(self, rows: NDArray[np.bool_]) -> Batch | None:
        """The same few of `rows` [N] at every point of a curve, P = 1; None where there are none."""
        places = np.flatnonzero(rows)
        if not len(places):
            return None
        few = np.random.default_rng(self.seed).permutation(places)[:VALIDATION_ROWS]
        return self.data.at(torch.from_numpy(few).to(self.device).unsqueeze(0))

    def record(self, curve: list[dict[str, float]], name: str, step: int, point: dict[str, float]) -> None:
        """Append a point; raise InputError where training diverged."""
        wrong = [key for key, value in point.items() if not np.isfinite(value)]
        if wrong:
            raise InputError(
                f"training {name} diverged: {wrong[0]} is {point[wrong[0]]} at update {step}; lower "
                f"train.learning_rate ({self.config.learning_rate}) or look for extreme rewards."
            )
        curve.append({"step": float(step), **point})
        if self.on_metrics:
            self.on_metrics(step, {f"{name}/{key}": value for key, value in point.items()})


def train(
    table: Transitions,
    config: TrainConfig,
    seed: int,
    act: Act,
    progress: bool = True,
    on_metrics: Metrics | None = None,
) -> dict[str, Learned]:
    """A policy per configured learner, and `behaviour`; the same seed and table give the same numbers.

    1. the behaviour network clones the log; 2. a population of learners x seeds learns by Double DQN, each member with
    its own alpha; 3. the first seed's policy, as `act` deploys it, is valued by an unpenalised fitted Q evaluation.

    Raises InputError for a constant feature or weighted component, for a log with no training rows, no row with a
    target or no choice, for a device that is not there, and when training diverges.
    """
    torch.set_num_threads(config.threads)
    device = _device(config.device)
    training, validation = rows_of(table, "train"), rows_of(table, "validation")
    _check(training)
    scales = measure(table, training.all, config.weights)
    data = Resident.of(table, scales, config.gamma_per_day, device)
    run = Run(table, config, seed, scales, data, training, validation, device, progress, on_metrics)
    clone, clone_curve = clone_behaviour(run)
    online, curves = learn(run)
    logits = _predict(clone, data)[0, :, :, 0]
    q = np.einsum("pnak,k->pna", _predict(online, data), scales.inner)
    firsts = range(0, online.members, config.seeds)
    policies = [act(q[first], logits, table.legal) for first in firsts]
    values = value(run, [*policies, _softmax(logits, table.legal)])
    found = {}
    for m, (first, (name, alpha)) in enumerate(zip(firsts, config.learners.items(), strict=True)):
        found[name] = Learned(
            name=name,
            alpha=alpha,
            contract=table.contract,
            scales=scales,
            q_network=online.member(first),
            q_weights=scales.inner,
            behaviour=clone.member(0),
            values=values.member(m),
            curves=curves[m],
            agreement=_agreement(q[first : first + config.seeds], run),
        )
    # What the logging policy earns, weighed as the learners weigh it: its q is its own fitted value.
    own = values.member(len(policies))
    found[BEHAVIOUR] = Learned(
        name=BEHAVIOUR,
        alpha=None,
        contract=table.contract,
        scales=scales,
        q_network=own,
        q_weights=scales.weights * own.scale.numpy().astype(np.float64) / scales.reward_sd,
        behaviour=clone.member(0),
        values=own,
        curves=clone_curve,
        agreement=None,
    )
    return found


def learn(run: Run) -> tuple[Population, list[list[dict[str, float]]]]:
    """The population, learner by learner and seed by seed within each; and each learner's curve, of its first seed."""
    config, learners = run.config, len(run.config.learners)
    seeds = [_seed(run.seed, s) for s in range(config.seeds)]
    sigma = torch.from_numpy(run.scales.sigma).float()
    online = run.population(seeds * learners, torch.zeros_like(sigma), sigma, _level(run))
    target = copy.deepcopy(online).requires_grad_(False)
    alpha = torch.tensor(list(config.learners.values()), device=run.device).repeat_interleave(config.seeds)
    weights = torch.from_numpy(run.scales.inner).float().to(run.device).expand(online.members, -1)
    draws = [run.draws(run.training.target, each) for each in seeds]
    held_out = run.held_out(run.validation.target)
    descent = Descent(online, config.learning_rate, config.steps)
    curves: list[list[dict[str, float]]] = [[] for _ in config.learners]
    for step in counted(config.steps, "learning", run.progress):
        # Members of one seed share its minibatches, whatever their learner: they differ by their loss alone.
        batch = run.data.at(torch.stack([each.next() for each in draws])).repeat(learners)
        terms = ddqn_cql(online, target, batch, weights, alpha)
        descent.step(terms.loss)
        follow(target, online, config.target_rate)
        if not _measured(step, config.steps):
            continue
        now = {"td_loss": terms.td, "cql_gap": terms.gap, "mean_q": _mean_best(terms.q, batch.legal)}
        if held_out is not None:
            with torch.no_grad():
                now["validation_td"] = ddqn_cql(online, target, held_out.repeat(online.members), weights, alpha).td
        for m, name in enumerate(config.learners):
            point = {key: float(each[m * config.seeds].detach()) for key, each in now.items()}
            run.record(curves[m], name, step + 1, point)
    return online.requires_grad_(False), curves


def clone_behaviour(run: Run) -> tuple[Population, list[dict[str, float]]]:
    """The logging policy as a network (P = K = 1), from the rows that offered a choice; and its curve.

    Of the points of the curve the one that tells validation users' actions best is kept: an overfitted clone would put
    a weight of its own on every decision of a policy that is deployed as a mixture with it.
    """
    seed, steps = _seed(run.seed, 0), run.config.behaviour_steps
    network = run.population([seed], torch.zeros(1), torch.ones(1))
    draws, held_out = run.draws(run.training.choice, seed), run.held_out(run.validation.choice)
    descent = Descent(network, run.config.learning_rate, steps)
    curve: list[dict[str, float]] = []
    best, least = network, float("inf")
    for step in counted(steps, "cloning the log", run.progress):
        nll = behaviour_cloning(network, run.data.at(draws.next().unsqueeze(0)))
        descent.step(nll)
        if not _measured(step, steps):
            continue
        point = {"nll": float(nll.detach())}
        if held_out is not None:
            with torch.no_grad():
                point["validation_nll"] = float(behaviour_cloning(network, held_out))
        run.record(curve, BEHAVIOUR, step + 1, point)
        if point.get("validation_nll", -float("inf")) < least:
            best, least = copy.deepcopy(network), point.get("validation_nll", float("inf"))
    return best.requires_grad_(False), curve


def value(run: Run, policies: list[NDArray[np.float64]]) -> Population:
    """A member per policy [N, A]: its discounted fitted Q evaluation on the training rows."""
    following = np.where(run.table.next_row >= 0, run.table.next_row, np.arange(len(run.table.user)))
    return fit_fqe(
        run.table,
        np.repeat(run.training.target[None], len(policies), axis=0),
        np.stack(policies)[:, following].astype(np.float32),
        run.config.value_steps,
        run.config.gamma_per_day,
        None,
        _seed(run.seed, 0),
        hidden=run.config.hidden,
        batch_size=run.config.batch_size,
        device=run.device,
        progress=run.progress,
    ).network


def _check(training: Rows) -> None:
    remedies = {
        "all": "users of the train split past the warm-up (etl.split, etl.warmup_days)",
        "target": "decisions followed by another of the same user before the watermark",
        "choice": "decisions with two or more legal actions, the logged one among them",
    }
    for name, remedy in remedies.items():
        if not getattr(training, name).any():
            raise InputError(f"train: of {int(training.all.sum())} training rows none can be used; needed: {remedy}.")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is cuda, but torch sees no such device here; use auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _seed(seed: int, member: int) -> int:
    """A seed per member, far from every other's."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _level(run: Run) -> Tensor:
    """[K] E[r] / (1 - E[discount]), what rewards of the mean for ever are worth, in units of sigma.

    All actions start there: the target network has no distance to travel that is common to every action.
    """
    rows = torch.from_numpy(run.training.target).to(run.device)
    horizon = 1 / (1 - run.data.discount[rows].mean()).clamp(min=1 / LONGEST_HORIZON)
    return run.data.reward[rows].mean(dim=0) * horizon


def _measured(step: int, steps: int) -> bool:
    """Whether an update is one of the CURVE_POINTS."""
    return (step + 1) % max(1, steps // CURVE_POINTS) == 0 or step + 1 == steps


def _mean_best(q: Tensor, legal: Tensor) -> Tensor:
    """[P] mean over B of the best legal q [P, B, A]."""
    return q.masked_fill(~legal, -torch.inf).amax(dim=-1).mean(dim=-1)


@torch.no_grad()
def _predict(network: Population, data: Resident) -> NDArray[np.float64]:
    """[P, N, A, K] heads at every row."""
    parts = [network.heads(part.unsqueeze(0)) for part in torch.split(data.state, 2**18 // network.members)]
    return torch.cat(parts, dim=1).cpu().numpy().astype(np.float64)


def _softmax(logits: NDArray[np.float64], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, A] softmax over the legal actions."""
    masked = np.where(legal, logits, -np.inf)
    weight: NDArray[np.float64] = np.exp(masked - masked.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def _agreement(q: NDArray[np.float64], run: Run) -> float | None:
    """Over the validation choices (training ones where there are none), how often other seeds' greedy action is the
    first's; `q` [seeds, N, A]."""
    if len(q) == 1:
        return None
    rows = run.validation.choice if run.validation.choice.any() else run.training.choice
    greedy = np.where(run.table.legal[rows], q[:, rows], -np.inf).argmax(axis=-1)
    return float((greedy[1:] == greedy[0]).mean())
