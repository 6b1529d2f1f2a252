"""From transitions to policies: the log cloned, a population learned, what acts valued."""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Draws, Feed, Held, Resident, Rows, rows_of
from models.contract import Contract
from models.distributed import Group, device_of
from models.errors import InputError
from models.fqe import fit_fqe
from models.identity import identity_of
from models.learn import CURVE_POINTS, Keep, learn, marks
from models.learners import behaviour_cloning
from models.members import Learner, Member
from models.network import Population, initial, predicted, together
from models.optimise import Descent, counted
from models.reach import Reach, reach_within
from models.recorded import Recorded
from models.scaling import Scales, Units
from models.stream import Pool, Survey, reach_of, survey
from models.table import Shards, Transitions
from models.training import BEHAVIOUR, TrainConfig
from models.watch import Act, Assess, Deploy, Judge, Kept, Point, Seen

Metrics = Callable[[int, dict[str, float]], None]
"""Told the update and the metrics there."""
LOG = logging.getLogger("tactful")
FEWEST_USERS = 20
"""Validation users below which nothing is selected by them."""
VALIDATION_ROWS = 4096
"""At most so many validation rows behind each point of a curve."""
AssessOf = Callable[[NDArray[np.float64]], Assess]
"""What evaluates policies on the validation split, given the cloned logging policy's probabilities [N, A]."""


@dataclass(frozen=True)
class Learned:
    """A policy to export: networks on the CPU, and how they came about."""

    name: str
    learner: Learner | None
    """None for the behaviour policy."""
    contract: Contract
    scales: Scales
    q_network: Population
    """One member, or the ensemble that acts together."""
    q_weights: NDArray[np.float64]
    """[K] q = sum_k q_weights_k heads_k: in standard deviations of the weighted reward, or logits (awr)."""
    behaviour: Population
    """Logits of the logging policy, K = 1."""
    values: Population
    """Unpenalised fitted Q of the deployed policy; `raw` gives raw units, gamma_per_day discounts."""
    curves: list[Point]
    """One point per measured update: step, and td_loss, cql_gap, mean_q, ..., or nll; validation_* where there are
    rows."""
    agreement: float | None
    """Share of validation choices at which the other seeds choose as the first; None with one seed."""
    kept: dict[str, float | None] | None = None
    """The update it is kept at, and its gain on the validation split with its standard error; None for an ensemble and
    the behaviour policy."""
    stopped: tuple[str, ...] = ()
    """Why seeds of it diverged."""
    gains: tuple[dict[str, float | None], ...] = ()
    """Of each seed that did not, the gain on the validation split where it is kept, with its standard error."""
    act: Act | None = None
    """How it is deployed, which `values` are of; None for the behaviour policy, which acts as it is."""

    @property
    def alpha(self) -> float | None:
        """Of the CQL penalty; None for the behaviour policy."""
        return None if self.learner is None else self.learner.penalised

    @property
    def pessimism(self) -> float:
        return 0.0 if self.learner is None else self.learner.pessimism


@dataclass(frozen=True)
class Run:
    """What every stage of one training shares; N transitions."""

    table: Transitions
    config: TrainConfig
    seed: int
    units: Units
    data: Resident
    training: Rows
    validation: Rows
    device: torch.device
    progress: bool
    on_metrics: Metrics | None

    def held_out(self, rows: NDArray[np.bool_]) -> Held | None:
        """The same few of `rows` [N] at every point of a curve; None where there are none."""
        places = np.flatnonzero(rows)
        if not len(places):
            return None
        few = np.random.default_rng(self.seed).permutation(places)[:VALIDATION_ROWS]
        return Held(self.data, torch.from_numpy(few).to(self.device))

    def tell(self, name: str, step: int, point: Point) -> None:
        if self.on_metrics:
            self.on_metrics(step, {f"{name}/{key}": value for key, value in point.items()})

    def members(self) -> list[Member]:
        """Learners x seeds; those of one seed share its minibatches, and differ by their loss alone."""
        config = self.config
        return [
            member_of(name, s, learner, config, self.units, _seed(self.seed, s), _seed(self.seed, s))
            for name, learner in config.named.items()
            for s in range(config.seeds)
        ]


def member_of(
    name: str, number: int, learner: Learner, config: TrainConfig, units: Units, seed: int, draws: int
) -> Member:
    """A member as its learner says, and [train] where that says nothing."""

    def own(key: str) -> float:
        given = getattr(learner, key)
        return float(getattr(config, key) if given is None else given)

    weights, key = config.weights, "train.weights"
    if learner.weights is not None:
        weights, key = learner.weights, f"train.learners.{name}.weights"
    return Member(
        name=name,
        number=number,
        learner=learner,
        scales=units.weighed(weights, key),
        learning_rate=own("learning_rate"),
        gamma_per_day=own("gamma_per_day"),
        target_rate=own("target_rate"),
        seed=seed,
        draws=draws,
    )


def prepare(
    table: Transitions,
    config: TrainConfig,
    seed: int,
    progress: bool = True,
    on_metrics: Metrics | None = None,
    units: Units | None = None,
) -> Run:
    """The table on its device, measured, or in the `units` of a larger one.

    Raises InputError for a constant or infinite feature, a log with no training rows, no row with a target or no
    choice, a legal action that was never taken, a device that is not there, and one that is too small.
    """
    torch.set_num_threads(config.threads)
    device = device_of(config.device, os.environ)
    training, validation = rows_of(table, "train"), rows_of(table, "validation")
    _check(training)
    _check_actions(table, training)
    units = units or Units.of(table, training.all)
    try:
        data = Resident.of(table, units, device, config.half_precision)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the device has no room for {len(table.user):,} transitions ({_first_line(error)}); set "
            "train.half_precision = true, or train.device = 'cpu'."
        ) from None
    return Run(table, config, seed, units, data, training, validation, device, progress, on_metrics)


def train(
    table: Transitions,
    config: TrainConfig,
    seed: int,
    act: Act,
    progress: bool = True,
    on_metrics: Metrics | None = None,
    assess_of: AssessOf | None = None,
    checkpoint: Path | None = None,
    group: Group | None = None,
    shards: Shards | None = None,
    deploy: Deploy | None = None,
    judged_by: str = "",
) -> dict[str, Learned]:
    """A policy per configured learner, and `behaviour`; the same seed and table give the same numbers.

    1. the behaviour network clones the log; 2. a population of learners x seeds learns, each member kept at the check
    whose policy, as `act` deploys it, is best on the validation split (`assess_of`; the last where that is None);
    3. what is exported of each learner is valued by an unpenalised fitted Q evaluation. With `checkpoint` a run that
    was killed goes on from that file. With `shards` the population learns from all of them as they pass through a
    buffer of `config.stream_rows`, and `table` is what of them fits (`stream.sampled`). `deploy` says how each policy
    is deployed by what it is at the rows of `assess_of`, where that is not `act` for all of them; `judged_by` names the
    settings of `act`, `deploy` and `assess_of`: a checkpoint of others is not taken up.

    A learner all of whose seeds diverge is left out, with a warning. Raises InputError as `prepare` does, for a
    weighted component that is constant, and where every learner diverges.
    """
    found = survey(shards) if shards else None
    run = prepare(table, config, seed, progress, on_metrics, found.units if found else None)
    members = run.members()
    with _room(config, len(members)):
        clone, clone_curve = clone_behaviour(run)
        logits = predicted(clone, run.data.state)[0, :, :, 0]
        cloned = _softmax(logits, table.legal)
        assess = assess_of(cloned) if assess_of else None
        deploy = deploy or (lambda *_: act)
        judge = _judge(run, deploy, assess, logits) if assess else None
        keep = Keep(checkpoint, identity_of(table, config, seed, members, assess, found, judged_by))
        with _feed(run, members, shards, found) as (feed, reach):
            held_out = run.held_out(run.validation.target)
            seen = learn(members, config, feed, reach, held_out, judge, group, keep, run.tell, progress)
        chosen = _chosen(run, members, seen)
        qs = [each.q(run) for each in chosen]
        asked = np.ones(len(logits), dtype=np.bool_) if assess is None else assess.rows
        acts = [deploy(q[asked], logits[asked], table.legal[asked]) for q in qs]
        policies = [own(q, logits, table.legal) for own, q in zip(acts, qs, strict=True)]
        gammas = [each.member.gamma_per_day for each in chosen]
        values = value(run, [*policies, cloned], [*gammas, config.gamma_per_day])
    learned = {}
    for m, each in enumerate(chosen):
        learned[each.member.name] = Learned(
            name=each.member.name,
            learner=each.member.learner,
            contract=table.contract,
            scales=each.member.scales,
            q_network=each.network,
            q_weights=each.weights,
            behaviour=clone.member(0),
            values=values[m],
            curves=each.curve,
            agreement=each.agreement,
            kept=each.kept,
            stopped=each.stopped,
            gains=each.gains,
            act=acts[m],
        )
    # What the logging policy earns, weighed as the learners weigh it: its q is its own fitted value.
    own, scales = values[-1], run.units.weighed(config.weights)
    learned[BEHAVIOUR] = Learned(
        name=BEHAVIOUR,
        learner=None,
        contract=table.contract,
        scales=scales,
        q_network=own,
        q_weights=scales.weights * own.scale.numpy().astype(np.float64) / scales.reward_sd,
        behaviour=clone.member(0),
        values=own,
        curves=clone_curve,
        agreement=None,
    )
    return learned


@contextmanager
def _room(config: TrainConfig, members: int) -> Iterator[None]:
    """A device that is too small is told in the words of the configuration."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        streamed = f", train.stream_rows ({config.stream_rows})" if config.stream_rows else ""
        raise InputError(
            f"training {members} members: {_first_line(error)}; lower train.batch_size ({config.batch_size}), "
            f"train.hidden ({list(config.hidden)}){streamed} or train.seeds ({config.seeds})."
        ) from None


@contextmanager
def _feed(
    run: Run, members: list[Member], shards: Shards | None, found: Survey | None
) -> Iterator[tuple[Feed, list[Reach]]]:
    """What the population learns from: all that is there, or what passes through a buffer."""
    if shards is None or found is None:
        held = Held.of(run.data, run.training.target)
        yield held, reach_within(members, held, run.table)
        return
    config = run.config
    capacity, half = config.stream_rows, config.half_precision
    with Pool(shards, found, capacity, config.batch_size, run.seed, run.device, half) as pool:
        yield pool, reach_of(members, shards, found)


def clone_behaviour(run: Run) -> tuple[Population, list[Point]]:
    """The logging policy as a network (P = K = 1), from the rows that offered a choice; and its curve.

    Of the points of the curve the one that tells validation users' actions best is kept: an overfitted clone would put
    a weight of its own on every decision of a policy that is deployed as a mixture with it.
    """
    config, seed, steps = run.config, _seed(run.seed, 0), run.config.behaviour_steps
    mean, std = torch.from_numpy(run.units.mean), torch.from_numpy(run.units.std)
    actions = len(run.table.contract.actions)
    network = initial([seed], config.hidden, mean, std, torch.zeros(1), torch.ones(1), actions).to(run.device)
    draws = Draws([Held.of(run.data, run.training.choice)], [seed], config.batch_size)
    held_out, no_discount = run.held_out(run.validation.choice), torch.ones(1, device=run.device)
    descent, measured = Descent([network], [config.learning_rate], steps), marks(steps, CURVE_POINTS)
    curve: list[Point] = []
    best, least = network, float("inf")

    def clone(rows: torch.Tensor) -> torch.Tensor:
        nll = behaviour_cloning(network, run.data.at(rows, no_discount))
        descent.step(nll)
        return nll.detach()

    recorded: Recorded[torch.Tensor] = Recorded(run.device)
    for step in counted(steps, "cloning the log", run.progress):
        descent.begin(step)
        nll = recorded(clone, draws.at(step))
        if step + 1 not in measured:
            continue
        point = {"nll": float(nll)}
        if held_out is not None:
            with torch.no_grad():
                unseen = run.data.at(held_out.places.unsqueeze(0), no_discount)
                point["validation_nll"] = float(behaviour_cloning(network, unseen))
        if not all(np.isfinite(each) for each in point.values()):
            name, value = next((name, value) for name, value in point.items() if not np.isfinite(value))
            raise InputError(
                f"training {BEHAVIOUR} diverged: {name} is {value} at update {step + 1}; lower train.learning_rate "
                f"({config.learning_rate}) or look for extreme features."
            )
        curve.append({"step": float(step + 1), **point})
        run.tell(BEHAVIOUR, step + 1, point)
        if point.get("validation_nll", -float("inf")) < least:
            best, least = copy.deepcopy(network), point.get("validation_nll", float("inf"))
    return best.requires_grad_(False), curve


@dataclass(frozen=True)
class Chosen:
    """What of a learner's members is exported."""

    member: Member
    network: Population
    weights: NDArray[np.float64]
    curve: list[Point]
    agreement: float | None
    kept: dict[str, float | None] | None
    stopped: tuple[str, ...]
    gains: tuple[dict[str, float | None], ...]

    def q(self, run: Run) -> NDArray[np.float64]:
        """[N, A] at every row of the table."""
        return lower_bound(predicted(self.network, run.data.state) @ self.weights,
                           self.member.learner.pessimism)  # fmt: skip


def lower_bound(q: NDArray[np.float64], pessimism: float) -> NDArray[np.float64]:
    """[N, A] mean - c sd over the members of `q` [E, N, A], c = `pessimism`: taken on w~.Q, never per head.

    sd with denominator E; with one member it is that member's q.
    """
    found: NDArray[np.float64] = q.mean(axis=0) - pessimism * q.std(axis=0)
    return found


def _chosen(run: Run, members: list[Member], seen: list[Seen]) -> list[Chosen]:
    """Of each learner the seed that did best on the validation split, or all of them where they act together.

    What diverged is not trusted at an earlier check either.
    """
    found, failed = [], []
    for name in run.config.learners:
        mine = [(member, each) for member, each in zip(members, seen, strict=True) if member.name == name]
        stopped = tuple(each.stopped for _, each in mine if each.stopped)
        alive = [(each.kept, each.curve) for _, each in mine if each.kept and not each.stopped]
        for reason in stopped:
            LOG.warning("%s", reason)
        if not alive:
            failed.append(stopped[0])
            continue
        networks = [kept.network for kept, _ in alive]
        place = max(range(len(alive)), key=lambda each: _gain(alive[each][0]))
        (kept, curve), member = alive[place], mine[0][0]
        ensemble = member.learner.pessimism > 0
        q = predicted(together(networks), run.data.state) @ kept.weights
        chosen = {"step": float(kept.step), "gain": kept.gain, "standard_error": kept.standard_error}
        found.append(
            Chosen(
                member=member,
                network=together(networks) if ensemble else kept.network,
                weights=kept.weights,
                curve=curve,
                agreement=_agreement(q, place, run),
                kept=None if ensemble else chosen,
                stopped=stopped,
                gains=tuple({"gain": each.gain, "standard_error": each.standard_error} for each, _ in alive),
            )
        )
    if not found:
        raise InputError(f"training {failed[0]}.")
    return found


def _gain(kept: Kept) -> float:
    return -float("inf") if kept.gain is None else kept.gain


def value(run: Run, policies: list[NDArray[np.float64]], gammas: list[float]) -> list[Population]:
    """For each policy [N, A] a network of its own: its discounted fitted Q evaluation on the training rows.

    One population for all that discount alike.
    """
    following = np.where(run.table.next_row >= 0, run.table.next_row, np.arange(len(run.table.user)))
    found: dict[int, Population] = {}
    for gamma in sorted(set(gammas)):
        places = [place for place, each in enumerate(gammas) if each == gamma]
        network = fit_fqe(
            run.table,
            np.repeat(run.training.target[None], len(places), axis=0),
            np.stack([policies[place] for place in places])[:, following].astype(np.float32),
            run.config.value_steps,
            gamma,
            None,
            _seed(run.seed, 0),
            hidden=run.config.hidden,
            batch_size=run.config.batch_size,
            device=run.device,
            progress=run.progress,
        ).network
        found |= {place: network.member(m) for m, place in enumerate(places)}
    return [found[place] for place in range(len(policies))]


def _judge(run: Run, deploy: Deploy, assess: Assess, logits: NDArray[np.float64]) -> Judge | None:
    """What checks evaluate by; None where the validation split has too few users to tell anything."""
    rows = assess.rows
    if len(np.unique(run.table.user[rows])) < FEWEST_USERS:
        LOG.warning("train: the validation split has fewer than %d users; every member is kept at its last update, "
                    "unselected; raise its share in etl.split", FEWEST_USERS)  # fmt: skip
        return None
    places = torch.from_numpy(np.flatnonzero(rows)).to(run.device)
    return Judge(assess, deploy, run.data.state[places], logits[rows], run.table.legal[rows])


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0].rstrip(". ")


def _check(training: Rows) -> None:
    remedies = {
        "all": "users of the train split past the warm-up (etl.split, etl.warmup_days)",
        "target": "decisions followed by another of the same user before the watermark",
        "choice": "decisions with two or more legal actions, the logged one among them",
    }
    for name, remedy in remedies.items():
        if not getattr(training, name).any():
            raise InputError(f"train: of {int(training.all.sum())} training rows none can be used; needed: {remedy}.")


def _check_actions(table: Transitions, training: Rows) -> None:
    """Raise InputError for an action that could be chosen and was never seen: what is said of it would be invented."""
    legal, action = table.legal[training.all], table.action[training.all]
    absent = [name for a, name in enumerate(table.contract.actions) if legal[:, a].any() and not (action == a).any()]
    if absent:
        raise InputError(
            f"actions: {absent[0]!r} is legal in the training rows and taken in none of {int(training.all.sum())}, so "
            "nothing can be learned about it; remove it from `actions`, or log it with some probability."
        )


def _seed(seed: int, member: int) -> int:
    """A seed per member, far from every other's."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _softmax(logits: NDArray[np.float64], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, A] softmax over the legal actions."""
    masked = np.where(legal, logits, -np.inf)
    weight: NDArray[np.float64] = np.exp(masked - masked.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def _agreement(q: NDArray[np.float64], first: int, run: Run) -> float | None:
    """Over the validation choices (training ones where there are none), how often the other members' greedy action is
    that of member `first`; `q` [members, N, A]."""
    if len(q) == 1:
        return None
    rows = run.validation.choice if run.validation.choice.any() else run.training.choice
    greedy = np.where(run.table.legal[rows], q[:, rows], -np.inf).argmax(axis=-1)
    same = greedy == greedy[first]
    return float(np.delete(same, first, axis=0).mean())
