"""One of several processes that train the known world: `python distributed_driver.py OUT`, as torchrun starts it.

With a further word, `settings`, `data` or `seed`, nothing is kept, and that is another one in the second process.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.distributed import group
from models.members import Learner
from models.table import Transitions
from models.train import train
from models.training import TrainConfig
from tests.models.conftest import World

CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=0.8,
    learners={"ddqn": 0.0, "cql": 1.0, "iql": Learner(kind="iql", policy="awr")},
    seeds=2,
    steps=60,
    batch_size=64,
    hidden=(16,),
    checks=6,
    behaviour_steps=20,
    value_steps=20,
)


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]


def scattered() -> Transitions:
    """The world's log; a second feature, of no use, makes every state another: so extremes differ between shares."""
    table = World().log(users=90)
    noise = np.random.default_rng(1).normal(size=(len(table.user), 1)).astype(np.float32)
    contract = replace(table.contract, features=("f0", "f1"))
    split = (table.user % 3 == 0).astype(np.int8)
    return replace(table, contract=contract, state=np.hstack([table.state, noise]), split=split)


class Kept:
    """An evaluation on the validation split: a user's mean probability of each of two actions."""

    def __init__(self, table: Transitions) -> None:
        self.rows = table.split == 1
        self.users = np.unique(table.user[self.rows], return_inverse=True)[1]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(self.users, probabilities[:, a]) for a in (1, 2)], axis=1)
        return sums / np.bincount(self.users)[:, None]


def other(differs: str) -> None:
    """A run that keeps nothing, of processes that are not of one run."""
    with group("cpu") as processes:
        second = processes.rank == 1
        table, config, seed = scattered(), CONFIG, int(second and differs == "seed")
        if second and differs == "data":
            table = replace(table, fingerprint="other")
        if second and differs == "settings":
            config = replace(CONFIG, learning_rate=2e-3)
        train(table, config, seed, greedy, False, group=processes)


def main(out: Path) -> None:
    """Each process has a disk of its own: OUT / RANK."""
    logging.basicConfig(level=logging.INFO)
    table = scattered()
    with group("cpu") as processes:
        path = out / str(processes.rank) / "learn.safetensors"
        found = train(table, CONFIG, 0, greedy, False, None, lambda _: Kept(table), checkpoint=path, group=processes)
        if processes.rank == 0:
            told = {}
            for name in CONFIG.learners:
                curves, kept = found[name].curves, found[name].kept or {}
                told |= {f"{name}.curve.{key}": [point[key] for point in curves if key in point] for key in curves[-1]}
                told |= {f"{name}.kept.{key}": each for key, each in kept.items()}
                told[f"{name}.gains"] = [[gain["gain"], gain["standard_error"]] for gain in found[name].gains]
                told[f"{name}.q"] = found[name].q_network(torch.from_numpy(table.state[:20])).numpy()
            np.savez(out / f"{processes.size}.npz", **told)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        other(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
