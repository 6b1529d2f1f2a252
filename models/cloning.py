"""Behaviour cloning: the logging policy as a network."""

import copy

import numpy as np
import torch

from models.batch import Draws, Held
from models.errors import InputError
from models.learn import CURVE_POINTS, marks
from models.learners import behaviour_cloning
from models.network import Population, initial
from models.optimise import Descent, counted
from models.recorded import Recorded
from models.run import Run, seed_of
from models.training import BEHAVIOUR
from models.watch import Point


def clone_behaviour(run: Run) -> tuple[Population, list[Point]]:
    """The logging policy as a network (P = K = 1), from the rows that offered a choice; and its curve.

    Of the points of the curve the one that tells validation users' actions best is kept: an overfitted clone would put
    a weight of its own on every decision of a policy that is deployed as a mixture with it.
    """
    config, seed, steps = run.config, seed_of(run.seed, 0), run.config.behaviour_steps
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
