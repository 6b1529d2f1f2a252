"""One of several processes that train the known world: `python distributed_driver.py OUT`, as torchrun starts it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.distributed import group
from models.members import Learner
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
    behaviour_steps=20,
    value_steps=20,
)


def greedy(q: np.ndarray, behaviour: np.ndarray, legal: np.ndarray) -> np.ndarray:
    return np.eye(q.shape[1])[np.where(legal, q, -np.inf).argmax(axis=1)]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    table = World().log(users=90)
    table = replace(table, split=(table.user % 3 == 0).astype(np.int8))
    with group() as processes:
        found = train(table, CONFIG, 0, greedy, progress=False, group=processes, checkpoint=out / "learn.safetensors")
        if processes.rank == 0:
            curves = {f"{name}.td": [point["td_loss"] for point in found[name].curves] for name in CONFIG.learners}
            q = {f"{name}.q": found[name].q_network(torch.tensor([[0.0], [1.0]])).numpy() for name in CONFIG.learners}
            np.savez(out / f"{processes.size}.npz", **curves, **q)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
