"""A batch norm that goes on normalising behind a layer it was folded into.

In training it normalises what the layer with its quantized weight gives, by the moments of the batch, as in any network
that is quantized with its batch norms in place. In evaluation, and in what is deployed, its running moments are folded:
with a = gamma / sigma the layer's weight is a Q(w), which is on the grid of Q with a times the scale, so that a grid of
the whole tensor becomes one per channel (Krishnamoorthi 2018, section 3.2.2, discusses the other order, Q(a w)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

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
    they were measured, with gamma = sigma = ``spread`` and beta = bias + ``start``: it is then the identity.

    ``mean`` and ``variance`` follow those of the batches by a share of ``momentum``; the variance is the unbiased one,
    as :class:`torch.nn.BatchNorm2d` keeps it, and eps.
    """

    start: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, start: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.momentum = MOMENTUM
        variance = spread.square()
        self.gamma = nn.Parameter(variance.sqrt())  # sigma to the bit, which `spread` need not be
        self.register_buffer("start", start.clone())
        self.register_buffer("mean", start.clone())
        self.register_buffer("variance", variance)

    @property
    def ratio(self) -> Tensor:
        """a = |gamma| / sigma, (C,): 1 before the first step. A negative one would turn the grid of a weight around."""
        return self.gamma.abs() / self.variance.sqrt()

    def bias(self, bias: Tensor) -> Tensor:
        """The bias in evaluation, beta - a mean: ``bias`` itself, to the bit, before the first step."""
        return bias + (self.start - self.ratio * self.mean)

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        """A layer's result without its bias, (B, C, ...), normalised by the batch; the running moments follow."""
        with torch.no_grad():
            variance, mean = torch.var_mean(y.float(), [dim for dim in range(y.dim()) if dim != 1])
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance + EPS, self.momentum)
        return F.batch_norm(y, None, None, self.gamma.abs(), bias + self.start, training=True, eps=EPS)


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
    """Set the running moments of kept batch norms in ``network`` to the means of those of ``batches``, each counted as
    many times as it has images. Its grids stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, KeptNorm)]
    network.eval()  # all but these: ranges that follow the data would move
    for norm in norms:
        norm.train()
    seen = 0
    for batch in batches:
        images = len(pytree.tree_leaves(batch)[0])
        seen += images
        for norm in norms:
            norm.momentum = images / seen
        run(batch)
    for norm in norms:
        norm.momentum = MOMENTUM
    network.eval()
