"""A population of P multilayer perceptrons as one batched network, and the affine maps on either side of it."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Population(nn.Module):
    """P networks [P, B, S] -> [P, B, A, K], ReLU between layers, one batched product per layer.

    Holds the normalisation of its input (`mean`, `std` [S]; unknown becomes the mean) and the unit of its output
    (`shift`, `scale` [K]: raw = shift + scale heads), so that what is exported needs nothing else.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        mean: Tensor,
        std: Tensor,
        shift: Tensor,
        scale: Tensor,
        actions: int,
    ) -> None:
        """Layers l with `weights` [P, in, out] and `biases` [P, 1, out]; the last has out = A K."""
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight) for weight in weights])
        self.biases = nn.ParameterList([nn.Parameter(bias) for bias in biases])
        self.actions = actions
        for name, value in (("mean", mean), ("std", std), ("shift", shift), ("scale", scale)):
            self.register_buffer(name, value)

    @property
    def members(self) -> int:
        """P."""
        return int(self.weights[0].shape[0])

    def normalise(self, state: Tensor) -> Tensor:
        """(state - mean) / std, 0 where the state is NaN; `state` [..., S] in raw units."""
        return torch.where(torch.isnan(state), torch.zeros_like(state), (state - self.mean) / self.std)

    def heads(self, x: Tensor) -> Tensor:
        """[P, B, A, K] from a normalised state [P, B, S], or [1, B, S] where the members share it.

        Differentiable once; `layers` as often as one likes.
        """
        h = x.expand(self.members, *x.shape[1:])
        if h.is_cuda or torch.compiler.is_compiling():
            return self.layers(h)
        outputs: Tensor = _OnCPU.apply(torch.is_grad_enabled(), h, *self.weights, *self.biases)  # type: ignore[no-untyped-call]
        return outputs.reshape(*outputs.shape[:-1], self.actions, -1)

    def layers(self, x: Tensor) -> Tensor:
        """`heads` of [P, B, S], one operation of PyTorch's after another."""
        h, last = x, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # A GPU copies the bias to every row at the speed of its memory; a compiler adds it in the pass of whatever
            # follows.
            fused = h.is_cuda and not torch.compiler.is_compiling()
            h = torch.baddbmm(bias, h, weight) if fused else torch.bmm(h, weight) + bias
            if layer < last:
                h = h.relu_()
        return h.reshape(*h.shape[:-1], self.actions, -1)

    def raw(self, heads: Tensor) -> Tensor:
        """[..., K] heads in the unit of the rewards: shift + scale heads."""
        return self.shift + self.scale * heads

    def forward(self, state: Tensor) -> Tensor:
        """[P, N, A, K] heads at a raw `state` [N, S] that the members share."""
        return self.heads(self.normalise(state).unsqueeze(0))

    def member(self, index: int) -> "Population":
        """Member `index` alone, as a population of one on the CPU, its own copy, no longer trained."""
        pick = slice(index, index + 1)
        alone = Population(
            [weight[pick].detach().cpu().clone() for weight in self.weights],
            [bias[pick].detach().cpu().clone() for bias in self.biases],
            self.mean.cpu(),
            self.std.cpu(),
            self.shift.cpu(),
            self.scale.cpu(),
            self.actions,
        )
        return alone.requires_grad_(False)


class _OnCPU(torch.autograd.Function):
    """`Population.layers` and its gradients, in the fewest passes over memory and of the quickest products: [P, B, O].

    What is written is in a core's cache for the next pass over it, so bias, ReLU and ReLU's gradient are applied where
    it lies. The last layer is a few columns wide: its product with rows and columns exchanged takes a quarter of the
    time where they are two, and leaves each head as one piece of memory for what follows.
    """

    @staticmethod
    def forward(ctx: Any, differentiated: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        # Told by the caller: in here no gradients are ever enabled, and a parameter that wants one says so regardless.
        depth = len(parameters) // 2
        weights, biases = parameters[:depth], parameters[depth:]
        h, kept = x, [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.bmm(h, weight).add_(bias).relu_()
            if differentiated:
                kept.append(h)
        ctx.save_for_backward(*kept, *weights)
        return torch.bmm(weights[-1].mT.contiguous(), h.mT).add_(biases[-1].mT).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Else a penalty on a slope would be counted and its gradient be none.
            raise RuntimeError("gradients of Population.heads on a CPU have none of their own: take those of layers.")
        depth = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:depth], ctx.saved_tensors[depth:]
        of_weights, of_biases = [], []
        d: Tensor | None = gradient
        for layer in reversed(range(depth)):
            assert d is not None
            h, last = inputs[layer], layer == depth - 1
            # In the parameter's own layout: Adam's kernel reads the gradient as one piece of memory.
            of_weights.append(torch.bmm(d.mT, h).mT.contiguous() if last else torch.bmm(h.mT, d))
            of_biases.append(d.sum(dim=1, keepdim=True))
            if layer == 0 and not ctx.needs_input_grad[1]:
                d = None
                continue
            d = torch.bmm(d, weights[layer].mT)
            if layer:
                torch.ops.aten.threshold_backward.grad_input(d, h, 0, grad_input=d)
        return None, d, *reversed(of_weights), *reversed(of_biases)


@torch.no_grad()
def predicted(network: Population, state: Tensor) -> NDArray[np.float64]:
    """[P, N, A, K] heads at every row of a normalised `state` [N, S], where that lies, in parts that fit any memory."""
    if network.mean.device != state.device:
        # A copy: what is kept or exported stays where it is.
        network = copy.deepcopy(network).to(state.device)
    parts = torch.split(state, max(1, 2**18 // network.members))
    heads = [network.heads(part.float().unsqueeze(0)).cpu() for part in parts]
    return torch.cat(heads, dim=1).numpy().astype(np.float64)


def restored(parts: Mapping[str, Tensor], actions: int) -> Population:
    """The population whose `state_dict` is `parts`, no longer trained."""
    layers = range(sum(name.startswith("weights.") for name in parts))
    return Population(
        [parts[f"weights.{layer}"] for layer in layers],
        [parts[f"biases.{layer}"] for layer in layers],
        parts["mean"],
        parts["std"],
        parts["shift"],
        parts["scale"],
        actions,
    ).requires_grad_(False)


def together(members: Sequence[Population]) -> Population:
    """One population of all members of several that share their input, output and layers."""
    first = members[0]
    return Population(
        [torch.cat([each.weights[layer].detach() for each in members]) for layer in range(len(first.weights))],
        [torch.cat([each.biases[layer].detach() for each in members]) for layer in range(len(first.biases))],
        first.mean,
        first.std,
        first.shift,
        first.scale,
        first.actions,
    ).requires_grad_(False)


def initial(
    seeds: Sequence[int],
    hidden: Sequence[int],
    mean: Tensor,
    std: Tensor,
    shift: Tensor,
    scale: Tensor,
    actions: int,
    level: Tensor | None = None,
) -> Population:
    """A population of one member per seed, uniform in +-1/sqrt(inputs); equal seeds give equal members.

    `mean`, `std` [S], `shift`, `scale` [K]; `level` [P, K] is what every output starts around (0 by default).
    """
    sizes = [len(mean), *hidden, actions * len(scale)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights, biases = [], []
    for inputs, outputs in pairwise(sizes):
        draws = torch.stack([torch.rand(inputs + 1, outputs, generator=each) for each in generators])
        layer = (2 * draws - 1) / inputs**0.5
        weights.append(layer[:, :-1].contiguous())
        biases.append(layer[:, -1:].contiguous())
    if level is not None:
        biases[-1] = biases[-1] + level.cpu().repeat(1, actions).unsqueeze(1)
    return Population(weights, biases, mean, std, shift, scale, actions)
