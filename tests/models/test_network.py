"""The network's own pass on a CPU against the formula, and its gradients against PyTorch's."""

import numpy as np
import pytest
import torch

from models.network import Population, initial

SHAPES = [(1, ()), (1, (5,)), (3, (5,)), (3, (4, 6)), (2, (3, 5, 4))]
"""Members and hidden layers."""
ROWS, FEATURES, ACTIONS, HEADS = 7, 4, 3, 2


def network(members: int, hidden: tuple[int, ...]) -> Population:
    """Of double precision, so that only the order of sums differs."""
    zeros, ones = torch.zeros(FEATURES), torch.ones(FEATURES)
    return initial(range(members), hidden, zeros, ones, torch.zeros(HEADS), torch.ones(HEADS), ACTIONS).double()


def states(members: int) -> torch.Tensor:
    return torch.randn(members, ROWS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("members", "hidden"), SHAPES)
def test_heads_are_those_of_the_formula(members, hidden) -> None:
    population, x = network(members, hidden), states(members)
    with torch.no_grad():
        found = population.heads(x)
    for p in range(members):
        h = x[p].numpy()
        for layer, (weight, bias) in enumerate(zip(population.weights, population.biases, strict=True)):
            h = h @ weight[p].detach().numpy() + bias[p].detach().numpy()
            if layer < len(hidden):
                h = np.maximum(h, 0)
        # The last layer's columns are A x K, an action's heads beside one another.
        assert np.abs(found[p].numpy() - h.reshape(ROWS, ACTIONS, HEADS)).max() < 1e-12


@pytest.mark.parametrize(("members", "hidden"), SHAPES)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_plain_operations(members, hidden, shared) -> None:
    population, x = network(members, hidden), states(1 if shared else members).requires_grad_()
    weight = torch.randn(members, ROWS, ACTIONS, HEADS, dtype=torch.float64)
    of = [x, *population.parameters()]
    found = torch.autograd.grad((population.heads(x) * weight).sum(), of)
    plain = (population.layers(x.expand(members, -1, -1)) * weight).sum()
    for one, other in zip(found, torch.autograd.grad(plain, of), strict=True):
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert (one - other).abs().max() < 1e-12
        assert one.abs().max() > 0


def test_gradients_are_those_of_differences() -> None:
    population, x = network(2, (3,)), states(2)
    for part in population.parameters():
        # A step of 1e-6 crosses a kink of ReLU only where an activation is that near to 0.
        flat, (gradient,) = part.data.view(-1), torch.autograd.grad(population.heads(x).square().sum(), part)
        for place in range(0, len(flat), 5):
            sides = []
            for step in (1e-6, -2e-6):
                flat[place] += step
                sides.append(population.heads(x).square().sum().item())
            flat[place] += 1e-6
            assert gradient.reshape(-1)[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_a_gradient_of_a_gradient_is_for_layers_alone() -> None:
    population, x = network(1, (5,)), states(1).requires_grad_()
    with pytest.raises(RuntimeError, match="take those of layers"):
        torch.autograd.grad(population.heads(x).sum(), x, create_graph=True)
    (slope,) = torch.autograd.grad(population.layers(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert population.weights[0].grad is not None
    assert population.weights[0].grad.abs().max() > 0


def test_what_a_head_reads_is_one_piece_of_memory() -> None:
    heads = network(2, (5,)).heads(states(2))
    assert heads.shape == (2, ROWS, ACTIONS, HEADS)
    assert heads.stride()[1] == 1
