"""Training from a stream, in a process that may kill itself: `python streamed_driver.py TABLE OUT [UPDATE]`.

With UPDATE it is killed (SIGKILL, nothing is tidied up) when a point of a curve is told at that update or later.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from models.contract import Contract
from models.members import Learner
from models.stream import sampled
from models.table import Shards
from models.train import Learned, train
from models.training import BEHAVIOUR, TrainConfig
from tests.models.distributed_driver import Kept, greedy

CONTRACT = Contract(("hold", "send", "push"), ("f0",), ("r0", "r1"))
CONFIG = TrainConfig(
    weights={"r0": 1.0, "r1": 0.5},
    gamma_per_day=0.8,
    learners={"cql": 1.0, "iql": Learner(kind="iql", policy="awr")},
    seeds=2,
    steps=640,
    batch_size=16,
    hidden=(8,),
    checks=7,
    patience=0,
    behaviour_steps=20,
    value_steps=20,
    stream_rows=500,
    device="cpu",
)


def told(learned: Learned) -> dict[str, np.ndarray]:
    """All that is exported of a policy, to the bit."""
    networks = {"q": learned.q_network, "behaviour": learned.behaviour, "values": learned.values}
    parts = {f"{name}.{key}": part for name, each in networks.items() for key, part in each.state_dict().items()}
    found = {key: part.numpy() for key, part in parts.items()}
    facts = json.dumps([learned.curves, learned.kept, learned.gains, learned.agreement])
    return {**found, "weights": learned.q_weights, "facts": np.array(facts)}


def main(table: Path, out: Path, last: int | None) -> None:
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    shards = Shards.of(table, CONTRACT)
    sample = sampled(shards, CONFIG.stream_rows, 0)

    def at(step: int, point: dict[str, float]) -> None:
        if last is not None and step >= last and not any(name.startswith(BEHAVIOUR) for name in point):
            os.kill(os.getpid(), signal.SIGKILL)

    found = train(
        sample, CONFIG, 0, greedy, False, at, lambda _: Kept(sample), out / "learn.safetensors", shards=shards
    )  # fmt: skip
    parts = {f"{name}.{key}": part for name, each in found.items() for key, part in told(each).items()}
    np.savez(out / "learned.npz", **parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
