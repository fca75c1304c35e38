"""A batch norm that goes on normalising behind a layer it is folded into.

The layer's folded weight is w gamma / sigma, with sigma the running standard deviation of what the batch norm reads,
and that is what is quantized, so that training sees the very weight that is deployed (Jacob et al. 2017, section 3.2;
Krishnamoorthi 2018, section 3.2.2). In training the result y of the layer is normalised by its batch's own moments,

    gamma (y - mean_B(y)) / std_B(y) + beta,

which is the batch norm of the unfolded layer, since normalising undoes the factor gamma / sigma. In evaluation nothing
is left to do beside the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantopsy.engine.calibration import ChannelMean
from quantopsy.graph.execute import Overlay, Program, Step, Values
from quantopsy.graph.fold import took_batch_norm
from quantopsy.graph.network import Layer

NORMS = ("folded", "kept")
"""What becomes of batch norms: frozen in weights and biases, or going on."""

MOMENTUM = 0.1
EPS = 1e-5


Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation (C,) of a layer's result without its bias."""


class KeptNorm(nn.Module):
    """The batch norm of a folded layer with C channels, in units of what the folded layer gives.

    It starts from ``start`` and ``spread``, mean and standard deviation of the folded layer's result (without bias) as
    they were measured, with gamma = sigma = ``spread``: the folded weight is then the network's own.
    """

    start: Tensor
    sigma: Tensor
    drift: Tensor

    def __init__(self, start: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.momentum = MOMENTUM
        self.gamma = nn.Parameter(spread.clone())
        self.register_buffer("start", start.clone())
        self.register_buffer("sigma", spread.clone())
        # Of the running mean from where it started: zero, so that the bias is the folded one to the bit.
        self.register_buffer("drift", torch.zeros_like(start))

    @property
    def ratio(self) -> Tensor:
        """gamma / sigma, (C,): 1 before the first step."""
        return self.gamma / self.sigma

    def folded(self, weight: Tensor) -> Tensor:
        """``weight`` with the batch norm in it."""
        return weight * self.ratio.reshape(-1, *(1,) * (weight.dim() - 1))

    def bias(self, bias: Tensor) -> Tensor:
        """The bias in evaluation: less by what the running mean has drifted."""
        return bias - self.ratio * self.drift

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        """A layer's result without its bias, (B, C, ...), normalised by the batch; the running moments follow."""
        beta = bias + self.ratio * self.start
        self.follow(y.detach(), self.momentum)
        return F.batch_norm(y, None, None, self.gamma, beta, training=True, eps=EPS)

    @torch.no_grad()
    def follow(self, y: Tensor, momentum: float) -> None:
        """Move the running moments towards those of ``y``, a layer's result without its bias."""
        dims = [dim for dim in range(y.dim()) if dim != 1]
        variance, mean = torch.var_mean(y, dims, correction=0)
        ratio = self.ratio
        # Not in place: backward needs the moments as forward had them.
        self.drift = self.drift + momentum * (mean / ratio - self.start - self.drift)
        sigma = (variance + EPS).sqrt() / ratio.abs()
        self.sigma = self.sigma + momentum * (sigma - self.sigma)


def normalised(layer: Layer) -> bool:
    """Whether a batch norm was folded into ``layer``, and can be kept there: its weight has the channels outermost."""
    return took_batch_norm(layer.weight) and layer.weight_axis == 0


@torch.no_grad()
def measured_moments(program: Program, batches: Iterable[Any]) -> dict[str, Moments]:
    """The moments of every layer that took a batch norm (:func:`normalised`), in one float pass over ``batches``."""
    sums: dict[str, ChannelMean] = {}
    squares: dict[str, ChannelMean] = {}

    def observe(step: Step, values: Values) -> None:
        layer = step.layer
        if layer is None or not normalised(layer):
            return
        without = {str(step.bias): torch.zeros_like(program.constants[str(step.bias)])}
        y = step.operation(Overlay(without, Overlay(values, program.constants)))
        sums.setdefault(layer.name, ChannelMean(1)).update(y)
        squares.setdefault(layer.name, ChannelMean(1)).update(y.double().square())

    for batch in batches:
        program.forward(program.place(batch), observe)
    found = {}
    for name, mean in sums.items():
        variance = (squares[name].mean - mean.mean.square()).clamp(min=0)
        found[name] = (mean.mean.float(), (variance + EPS).sqrt().float())
    return found


@torch.no_grad()
def reestimate(network: nn.Module, run: Callable[[Any], object], batches: Iterable[Any]) -> None:
    """Set the running moments of kept batch norms in ``network`` to those over ``batches``, its grids as they are."""
    norms = [module for module in network.modules() if isinstance(module, KeptNorm)]
    network.train()
    for number, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        run(batch)
    network.eval()
