"""d3rlpy's side of benchmarks/learners.py, run by the Python of .venv-d3rlpy.

    python benchmarks/learners_d3rlpy.py LOG.npz SETTINGS.json OUT.npz

Trains DiscreteCQL once per seed on one log and leaves every seed's weights.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import DiscreteCQLConfig
from d3rlpy.constants import ActionSpace, LoggingStrategy
from d3rlpy.dataset import MDPDataset
from d3rlpy.logging import NoopAdapterFactory
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.optimizers import AdamFactory, LRSchedulerFactory
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class Falling(LRSchedulerFactory):  # type: ignore[misc]
    """The learning rate falls linearly to `final_rate` of itself, as in models/optimise.py."""

    steps: int
    final_rate: float

    def create(self, optim: Optimizer) -> LambdaLR:
        return LambdaLR(optim, lambda update: 1 - (1 - self.final_rate) * min(update / self.steps, 1.0))

    @staticmethod
    def get_type() -> str:
        return "falling"


def fit(log: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`weight<l>` [P, in, out] and `bias<l>` [P, 1, out] of one network per seed."""
    torch.set_num_threads(1)
    dataset = MDPDataset(
        observations=log["state"],
        actions=log["action"],
        rewards=log["reward"],
        terminals=log["terminal"],
        timeouts=log["truncated"],
        action_space=ActionSpace.DISCRETE,
        action_size=int(log["actions"]),
    )
    found: dict[str, list[Any]] = {}
    for seed in settings["seeds"]:
        d3rlpy.seed(seed)
        cql = DiscreteCQLConfig(
            encoder_factory=VectorEncoderFactory(settings["hidden"]),
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            optim_factory=AdamFactory(lr_scheduler_factory=Falling(settings["steps"], settings["final_rate"])),
            gamma=settings["gamma"],
            alpha=settings["alpha"],
            target_update_interval=settings["target_update_interval"],
        ).create(device="cpu")
        cql.fit(
            dataset,
            n_steps=settings["steps"],
            n_steps_per_epoch=settings["steps"],
            show_progress=False,
            logger_adapter=NoopAdapterFactory(),
            logging_strategy=LoggingStrategy.EPOCH,
            save_interval=2,
        )
        assert cql.impl is not None
        layers = [each for each in cql.impl.modules.q_funcs.modules() if isinstance(each, nn.Linear)]
        for place, layer in enumerate(layers):
            found.setdefault(f"weight{place}", []).append(layer.weight.detach().numpy().T)
            found.setdefault(f"bias{place}", []).append(layer.bias.detach().numpy()[None])
        print(f"d3rlpy: seed {seed}", file=sys.stderr, flush=True)
    return {name: np.stack(parts) for name, parts in found.items()}


if __name__ == "__main__":
    content = dict(np.load(Path(sys.argv[1])))
    np.savez(sys.argv[3], **fit(content, json.loads(Path(sys.argv[2]).read_text())))
