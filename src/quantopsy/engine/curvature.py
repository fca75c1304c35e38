"""How strongly the network's decision bends with every weight: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from quantopsy.graph.execute import Overlay, Program
from quantopsy.graph.outputs import output_tensors


def mean_curvature(
    program: Program,
    batches: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """By layer tr(F) / N of its weight with N elements, F the Fisher information of softmax outputs, mean over images.

    F is the Gauss-Newton part of the cross-entropy's Hessian, and all of it where the network is sure. For labels
    drawn from what the network itself says, E ||dL/dW||^2 = tr(F); with labels drawn image by image, gradients of
    different images are uncorrelated, so that the squared norm of a batch's summed gradient is as good. Classes are
    along dimension 1 of every floating output; other outputs count as normal variables of variance 1. A weight that
    layers share counts for each of them as if it were that layer's own.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {step.layer.name: step.weight for step in program.steps if step.layer and step.weight}
    total = dict.fromkeys(weights, 0.0)
    images = 0
    for batch in batches:
        values = program.place(batch)
        size = int(next(iter(values.values())).shape[0])
        leaves = {name: program.constants[weight].detach().requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            for step in program.steps:
                constants = program.constants
                if step.layer and step.weight:
                    constants = {**constants, step.weight: leaves[step.layer.name]}
                raw = step.operation(Overlay(values, constants))
                values[step.writes] = step.activated(constants, raw)
            outputs = output_tensors([values[name] for name in program.outputs])
            loss = torch.stack([(output * _drawn(output, generator)).sum() for output in outputs]).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                total[name] += float(gradient.square().mean())
        images += size
        if advance is not None:
            advance(size)
    return {name: value / max(images, 1) for name, value in total.items()}


def _drawn(output: Tensor, generator: torch.Generator) -> Tensor:
    """softmax less a one-hot class drawn from it: the gradient of the cross-entropy at that label.

    Of numbers that are no scores of classes, the gradient of half the squared error at labels that are off by a
    standard normal variable.
    """
    if output.dim() < 2 or output.shape[1] < 2:
        return torch.randn(output.shape, generator=generator).to(output)
    share = output.detach().softmax(1).movedim(1, -1)
    label = torch.multinomial(share.reshape(-1, share.shape[-1]).cpu(), 1, generator=generator)
    hot = torch.zeros(len(label), share.shape[-1]).scatter_(1, label, 1.0).reshape(share.shape)
    return (share - hot.to(share)).movedim(-1, 1)
