"""From transitions to policies: the log cloned, a population learned, what acts valued."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Feed, Held
from models.cloning import clone_behaviour
from models.contract import Contract
from models.distributed import Group
from models.errors import InputError
from models.fqe import fit_fqe
from models.identity import identity_of
from models.learn import Keep, learn
from models.members import Learner, Member
from models.network import Population, predicted
from models.reach import Reach, reach_within
from models.run import Metrics, Run, first_line, prepare, seed_of
from models.scaling import Scales
from models.selection import chosen_of
from models.stream import Pool, Survey, reach_of, survey
from models.table import Shards, Transitions
from models.training import BEHAVIOUR, TrainConfig
from models.watch import Act, Assess, Deploy, Judge, Point

LOG = logging.getLogger("tactful")
FEWEST_USERS = 20
"""Validation users below which nothing is selected by them."""
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
    found = survey(shards, config.half_precision) if shards else None
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
        chosen = chosen_of(run, members, seen)
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
            f"training {members} members: {first_line(error)}; lower train.batch_size ({config.batch_size}), "
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
            seed_of(run.seed, 0),
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


def _softmax(logits: NDArray[np.float64], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, A] softmax over the legal actions."""
    masked = np.where(legal, logits, -np.inf)
    weight: NDArray[np.float64] = np.exp(masked - masked.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight
