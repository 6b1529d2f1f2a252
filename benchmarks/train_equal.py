"""Double DQN + CQL against d3rlpy's DiscreteCQL: loss and gradients for the same weights and minibatches.

d3rlpy's TD error is Huber's, half the square while it is below 1, as it is in every row here. With

    ours(alpha) = mean (Q - y)^2 + alpha gap,    theirs(alpha) = mean (Q - y)^2 / 2 + alpha gap

ours(alpha) = 2 theirs(alpha / 2), and so are the gradients. Each side makes the target with code of its own,
y = r + gamma^Delta (1 - terminal) Q'(s', argmax_a Q(s', a)). All actions are legal, and there is one head of weight 1:
d3rlpy knows no others.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Batch
from models.learners import Networks, ddqn_cql
from models.losses import discount_of, double_q_target, heads_at
from models.members import Settings
from models.network import Population, initial

SCRIPT = Path(__file__).with_name("train_d3rlpy.py")
GAMMA = (0.9, 0.97, 0.7)
ALPHA = (1.0, 0.3, 2.0)
"""A member each."""


def differences(
    python: Path, dtype: torch.dtype = torch.float32, features: int = 32, hidden: int = 256, rows: int = 1024
) -> dict[str, float]:
    """Largest difference of the loss, its parts and each gradient, as a share of the largest value of each.

    `python` is that of the environment with d3rlpy; raises CalledProcessError where it fails.
    """
    given = case(dtype, features, hidden, rows)
    theirs, found = by_d3rlpy(given, python), by_ours(given)
    twice = {name: each if name == "gap" else 2 * each for name, each in theirs.items()}
    return {name: float(np.abs(each - twice[name]).max() / np.abs(each).max()) for name, each in found.items()}


def case(dtype: torch.dtype, features: int, hidden: int, rows: int, actions: int = 2) -> dict[str, Tensor]:
    """Weights and minibatches of P members, by the names that both sides know."""
    members, generator = len(ALPHA), torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(members, rows, *shape, generator=generator)).to(dtype)

    found = {
        "alpha": torch.tensor(ALPHA, dtype=dtype),
        "gamma": torch.tensor(GAMMA, dtype=dtype),
        "state": uniform(-1.7, 1.7, features),
        "action": (uniform(0, 1) * actions).long(),
        "reward": uniform(-0.3, 0.3),
        "next_state": uniform(-1.7, 1.7, features),
        "terminal": (uniform(0, 1) < 0.2).to(dtype),
        "elapsed": uniform(0.1, 3.0),
    }
    for start, name in ((0, "online"), (members, "target")):
        zero, one = torch.zeros(features), torch.ones(features)
        seeds = range(start, start + members)
        network = initial(seeds, (hidden, hidden), zero, one, zero[:1], one[:1], actions).to(dtype)
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            found |= {f"{name}.weight{layer}": weight.detach(), f"{name}.bias{layer}": bias.detach()}
    return found


def by_ours(given: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """[P, ...] loss, td, gap and gradients by models/learners.py; raises AssertionError unless the case tells much."""
    networks, batch, settings = networks_of(given)
    terms = ddqn_cql(networks, batch, settings)
    with torch.no_grad():
        tp1 = [each.heads(batch.next_state) for each in (networks.online, networks.target)]
        target = double_q_target(batch.reward, batch.discount, tp1[0].squeeze(-1), tp1[1], batch.next_legal)
        error = heads_at(networks.online.heads(batch.state), batch.action) - target
        assert float(error.abs().max()) < 1, "Huber's loss is half the square below 1 alone"
        apart = tp1[0].squeeze(-1).argmax(dim=-1) != tp1[1].squeeze(-1).argmax(dim=-1)
        assert 0.1 < float(apart.float().mean()) < 0.9, "both networks would choose alike"
    online = networks.online
    gradients = torch.autograd.grad(terms.loss.sum(), list(online.parameters()))
    layers = len(online.weights)
    named = {f"weight{layer}": gradients[layer] for layer in range(layers)}
    named |= {f"bias{layer}": gradients[layers + layer] for layer in range(layers)}
    named |= {"loss": terms.loss, "td": terms.td, "gap": terms.gap}
    return {name: each.detach().numpy() for name, each in named.items()}


def networks_of(given: dict[str, Tensor]) -> tuple[Networks, Batch, Settings]:
    one = torch.ones_like(given["alpha"])
    layers = range(sum(name.startswith("online.weight") for name in given))
    actions = given[f"online.bias{layers[-1]}"].shape[-1]
    zero = torch.zeros_like(given["state"][0, 0])
    populations = [
        Population(
            [given[f"{name}.weight{layer}"].clone() for layer in layers],
            [given[f"{name}.bias{layer}"].clone() for layer in layers],
            zero, zero + 1, one[:1] * 0, one[:1], actions,
        )
        for name in ("online", "target")
    ]  # fmt: skip
    legal = torch.ones(*given["action"].shape, actions, dtype=torch.bool, device=given["action"].device)
    batch = Batch(
        state=given["state"],
        legal=legal,
        action=given["action"],
        reward=given["reward"].unsqueeze(-1),
        discount=discount_of(given["gamma"].unsqueeze(-1), given["elapsed"], given["terminal"] > 0),
        next_state=given["next_state"],
        next_legal=legal,
    )
    settings = Settings(
        weights=one.unsqueeze(-1), alpha=given["alpha"], credit=one, gamma=given["gamma"], expectile=one,
        temperature=one, target_rate=one,
    )  # fmt: skip
    return Networks(*populations), batch, settings


def by_d3rlpy(given: dict[str, Tensor], python: Path) -> dict[str, NDArray[Any]]:
    """[P, ...] loss, td, gap and gradients by d3rlpy, asked for alpha / 2."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked.npz"), Path(folder, "answered.npz")
        arrays: dict[str, Any] = {name: each.numpy() for name, each in given.items()}
        np.savez(asked, **arrays | {"alpha": arrays["alpha"] / 2})
        subprocess.run([python, SCRIPT, "loss", asked, answered], check=True, stdout=subprocess.DEVNULL)
        return dict(np.load(answered))
