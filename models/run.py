"""What every stage of one training shares: the log on its device, its units, and who is in the population."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Held, Resident, Rows, rows_of
from models.distributed import device_of
from models.errors import InputError
from models.members import Learner, Member
from models.scaling import Units
from models.table import Transitions
from models.training import TrainConfig
from models.watch import Point

Metrics = Callable[[int, dict[str, float]], None]
"""Told the update and the metrics there."""
VALIDATION_ROWS = 4096
"""At most so many validation rows behind each point of a curve."""


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
            member_of(name, s, learner, config, self.units, seed_of(self.seed, s), seed_of(self.seed, s))
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

    Raises InputError for a constant, infinite or extreme feature, a log with no training rows, no row with a target or
    no choice, a legal action that was never taken, a device that is not there, and one that is too small.
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
            f"the device has no room for {len(table.user):,} transitions ({first_line(error)}); set "
            "train.half_precision = true, or train.device = 'cpu'."
        ) from None
    return Run(table, config, seed, units, data, training, validation, device, progress, on_metrics)


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


def seed_of(seed: int, member: int) -> int:
    """A seed per member, far from every other's."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def first_line(error: BaseException) -> str:
    return str(error).split("\n")[0].rstrip(". ")
