"""d3rlpy's side of benchmarks/train.py, run by the Python of .venv-d3rlpy, which has numpy, torch and d3rlpy alone.

    python benchmarks/train_d3rlpy.py loss IN.npz OUT.npz
    python benchmarks/train_d3rlpy.py time LOG.npz HIDDEN BATCH

`loss`: P members by `DiscreteCQLImpl.compute_target` and `.compute_loss`, see benchmarks/train_equal.py.
`time`: for every line {"threads", "updates"} of standard input one of {"seconds", "sampling"}: as many updates as
`fit` makes them, a minibatch drawn and `update`d with, without fit's logging. `sampling` are the seconds of drawing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from d3rlpy.algos import DiscreteCQL, DiscreteCQLConfig
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import MDPDataset
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.torch_utility import TorchMiniBatch
from torch import Tensor, nn


def algorithm(hidden: list[int], **settings: Any) -> DiscreteCQL:
    return DiscreteCQLConfig(encoder_factory=VectorEncoderFactory(hidden), **settings).create(device="cpu")


def loss(given: dict[str, Tensor]) -> dict[str, Any]:
    """[P] loss, td and gap, and the gradients, in the layout of the parameters that were given."""
    found: dict[str, list[Any]] = {}
    layers = range(sum(name.startswith("online.weight") for name in given))
    for m, (alpha, gamma) in enumerate(zip(given["alpha"].tolist(), given["gamma"].tolist(), strict=True)):
        hidden = [given[f"online.bias{layer}"].shape[-1] for layer in layers]
        cql = algorithm(hidden[:-1], alpha=alpha, gamma=gamma)
        cql.create_impl((given["state"].shape[-1],), hidden[-1])
        impl = cql.impl
        assert impl is not None
        networks = {"online": impl.modules.q_funcs, "target": impl.modules.targ_q_funcs}
        for name, network in networks.items():
            network.to(given["state"].dtype)
            for layer, linear in enumerate(_linear(network)):
                linear.weight.data.copy_(given[f"{name}.weight{layer}"][m].T)
                linear.bias.data.copy_(given[f"{name}.bias{layer}"][m, 0])
        reward = given["reward"][m].unsqueeze(-1)
        batch = TorchMiniBatch(
            observations=given["state"][m],
            actions=given["action"][m].unsqueeze(-1),
            rewards=reward,
            next_observations=given["next_state"][m],
            next_actions=torch.zeros_like(reward),
            returns_to_go=torch.zeros_like(reward),
            terminals=given["terminal"][m].unsqueeze(-1),
            intervals=given["elapsed"][m].unsqueeze(-1),
            device="cpu",
        )
        parts = impl.compute_loss(batch, impl.compute_target(batch))
        parts.loss.backward()
        told = {"loss": parts.loss, "td": parts.td_loss, "gap": parts.conservative_loss}
        for layer, linear in enumerate(_linear(networks["online"])):
            assert linear.weight.grad is not None
            assert linear.bias.grad is not None
            told |= {f"weight{layer}": linear.weight.grad.T, f"bias{layer}": linear.bias.grad.unsqueeze(0)}
        for name, part in told.items():
            found.setdefault(name, []).append(part.detach().numpy())
    return {name: np.stack(parts) for name, parts in found.items()}


def _linear(network: nn.Module) -> list[nn.Linear]:
    """Of the first and only Q function, from input to output."""
    return [each for each in network.modules() if isinstance(each, nn.Linear)]


def serve(log: dict[str, Any], hidden: int, batch: int) -> None:
    dataset = MDPDataset(
        observations=log["state"],
        actions=log["action"],
        rewards=log["reward"],
        terminals=log["terminal"],
        timeouts=log["truncated"],
        action_space=ActionSpace.DISCRETE,
        action_size=int(log["actions"]),
    )
    cql = algorithm([hidden, hidden], batch_size=batch)
    cql.build_with_dataset(dataset)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"])
        sampling, started = 0.0, time.perf_counter()
        for _ in range(asked["updates"]):
            drawing = time.perf_counter()
            drawn = dataset.sample_transition_batch(batch)
            sampling += time.perf_counter() - drawing
            cql.update(drawn)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "sampling": sampling}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    # d3rlpy logs to standard output, which carries the answers.
    sys.stdout = sys.stderr
    step, path, *rest = sys.argv[1:]
    content = dict(np.load(Path(path)))
    if step == "loss":
        np.savez(rest[0], **loss({name: torch.from_numpy(each) for name, each in content.items()}))
    else:
        serve(content, *map(int, rest))
