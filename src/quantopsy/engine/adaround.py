"""AdaRound: which weights to round up and which down, so that the layer's output stays (Nagel et al. 2020).

With h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) and W~ = s clamp(floor(W / s) + h(V)), V minimises

    || f(W x) - f(W~ x_hat) ||^2 + lambda sum(1 - |2 h(V) - 1|^beta)                          (equations 21 to 25)

over patches drawn from the layer's inputs: x of the float network, x_hat of the quantized one, f the activation
function. Patches instead of whole maps make a step one product of small matrices, whatever the size of the images.

P patches, G groups, I inputs and O outputs of a group's patch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.exact import ExactEngine, LayerQuantizers, by_channel
from quantopsy.engine.sequential import Arrival, bias_corrected, walk
from quantopsy.graph.execute import Lookup, Step
from quantopsy.graph.network import Layer, Network
from quantopsy.quant import UniformQParams
from quantopsy.quant.grouping import aligned

ZETA, GAMMA = 1.1, -0.1  # of the rectified sigmoid
WARM_UP = 0.2  # share of the steps before rounding is asked for
BETAS = 20.0, 2.0  # of the annealing
RATE = 5e-2


@dataclass(frozen=True)
class Effort:
    """What is spent on a layer: ``steps`` of Adam on ``batch`` of ``patches``. ``weight``: the paper's lambda, for a
    loss in units of what rounding to the nearest costs and a mean over the weights."""

    steps: int = 500
    patches: int = 4096
    batch: int = 256
    weight: float = 10.0
    seed: int = 0


def can_round(layer: Layer, quantizers: LayerQuantizers) -> bool:
    """Whether AdaRound knows the layer: a convolution of images or linear, its weight on one uniform grid."""
    spec = quantizers.weight
    known = layer.op in ("conv2d", "linear") and spec is not None and spec.kind == "uniform"
    return known and spec is not None and spec.tensors == 1 and spec.correction != "mean_variance"


def round_weights(
    engine: ExactEngine,
    plan: Plan,
    batches: Sequence[Any],
    layers: Container[str],
    effort: Effort = Effort(),
    advance: Callable[[int], None] = lambda _: None,
    over: Callable[[], bool] = lambda: False,
) -> Plan:
    """``plan`` with the roundings found for ``layers``, in their order, each behind the ones before it.

    A bias is corrected at the same time: what mean shift the roundings leave is taken out. Layers that AdaRound
    does not know (:func:`can_round`), one whose output it would not bring nearer, and all that are reached when
    ``over`` says that time is up get their bias corrected alone, as of
    :func:`quantopsy.engine.sequential.correct_biases`.
    """
    specs = dict(plan)

    def decide(arrival: Arrival) -> LayerQuantizers:
        layer, site = arrival.layer, Site(arrival.layer.name, "weight")
        known = can_round(layer, arrival.quantizers) and not _knows_places(engine.program.network, layer)
        found = _rounding(engine, arrival, specs[site], effort) if known and not over() else None
        if found is None:
            # Here and not later: layers behind would make good a shift that is then taken out once more.
            specs[site], quantizers = bias_corrected(engine, arrival, specs[site])
            return quantizers
        up, shift = found
        give = engine.calibration.give
        specs[site] = replace(specs[site], rounding=give(up), correction=give(shift))
        moved = by_channel(shift, layer).to(engine.program.device)
        return replace(arrival.quantizers, weight=specs[site], shift=moved)

    walk(engine, plan, batches, layers, decide, advance)
    return Plan.of(specs)


def _knows_places(network: Network, layer: Layer) -> bool:
    """Whether the activation function behind a linear layer differs by position, which a patch says nothing of: prelu's
    slopes are along dimension 1, whatever that is."""
    if layer.op != "linear" or layer.activation != "prelu" or len(layer.output_shape) < 2:
        return False
    slopes: Any = next(node for node in network.graph.nodes if node.name == layer.output).args[1]
    return str(slopes.target) not in network.tensors or network.tensors[str(slopes.target)].numel() > 1


def _rounding(engine: ExactEngine, arrival: Arrival, spec: Spec, effort: Effort) -> tuple[Tensor, Tensor] | None:
    """(up, shift) for one layer; None where rounding to the nearest is as good."""
    layer = arrival.layer
    assert layer.weight is not None
    tensors, device = engine.program.network.tensors, engine.program.device
    qparams = weight_grid(engine, layer, spec)
    generator = torch.Generator().manual_seed(effort.seed)
    exact, on_grids = _patches(arrival, effort.patches, generator)
    with torch.enable_grad():
        problem = _Problem(
            step=arrival.step,
            constants=engine.program.constants,
            layer=layer,
            weight=tensors[layer.weight].detach().float().to(device),
            bias=None if layer.bias is None else tensors[layer.bias].detach().float().to(device),
            x=exact,
            x_hat=on_grids,
        )
        up = problem.solved(qparams, effort, generator)
        found, shift = problem.error(qparams.snap_by(problem.weight, up))
        nearest, _ = problem.error(qparams.snap(problem.weight))
    return (up, shift) if found < nearest else None


def weight_grid(engine: ExactEngine, layer: Layer, spec: Spec) -> UniformQParams:
    """The grid of the layer's weight, on the device where the layer runs."""
    assert layer.weight is not None
    grid = engine.calibration.weight_qparams(layer, spec, engine.program.network.tensors[layer.weight])
    assert isinstance(grid, UniformQParams)
    return grid.map_grids(lambda part: part.to(engine.program.device))


@dataclass(frozen=True)
class SoftRounding:
    """A weight between its two neighbours on the grid, by ``v`` of its shape: the leaf that is learned.

    ``down`` in steps, ``scale``, ``low`` and ``high`` (codes less their zero point) broadcast with it.
    """

    v: Tensor
    down: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, weight: Tensor, qparams: UniformQParams, now: Tensor | None = None) -> SoftRounding:
        """h is where the weight lies between its neighbours; half way to the one that ``now`` is, where it is given."""
        scale, zero_point = (aligned(grid, weight, qparams.axis, qparams.group_size) for grid in _grids(qparams))
        down = torch.floor(weight / scale)
        rest = weight / scale - down
        if now is not None:
            rest = (rest + (now / scale - down).round().clamp(0, 1)) / 2
        rest = rest.clamp(0.01, 0.99)
        v = torch.log((rest - GAMMA) / (ZETA - rest)).requires_grad_()
        return cls(v, down, scale, qparams.qmin - zero_point, qparams.qmax - zero_point)

    def weight(self) -> Tensor:
        """s clamp(floor(W / s) + h(V))."""
        return (self.down + self._h()).clamp(self.low, self.high) * self.scale

    def hard(self) -> Tensor:
        """The weight on the grid."""
        return (self.down + self.up).clamp(self.low, self.high) * self.scale

    @property
    def up(self) -> Tensor:
        """Which weights go up, bool."""
        return self.v.detach() > 0

    def undecided(self, beta: float) -> Tensor:
        """sum(1 - |2 h(V) - 1|^beta)."""
        return (1 - (2 * self._h() - 1).abs().pow(beta)).sum()

    def _h(self) -> Tensor:
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def rounding_asked_for(share: float) -> float | None:
    """beta when ``share`` of the steps are done; None as long as no rounding is asked for."""
    annealed = (share - WARM_UP) / (1 - WARM_UP)
    return BETAS[0] + (BETAS[1] - BETAS[0]) * annealed if annealed > 0 else None


@dataclass(frozen=True)
class _Problem:
    """One layer's reconstruction: ``x`` and ``x_hat`` (P, G, I) are its patches in both networks."""

    step: Step
    constants: Lookup
    layer: Layer
    weight: Tensor
    bias: Tensor | None
    x: Tensor
    x_hat: Tensor

    def solved(self, qparams: UniformQParams, effort: Effort, generator: torch.Generator) -> Tensor:
        """Which weights go up, bool of the weight's shape."""
        soft = SoftRounding.of(self.weight, qparams)
        plain = self._product(self.x, self.weight)
        wanted = self._activated(plain)
        nearest = max(self.error(qparams.snap(self.weight))[0], 1e-30)
        optimizer = torch.optim.Adam([soft.v], lr=RATE)
        for number in range(effort.steps):
            rows = torch.randint(len(plain), (min(effort.batch, len(plain)),), generator=generator)
            y = self._product(self.x_hat[rows], soft.weight())
            y = y - (y.detach() - plain[rows]).mean(0)
            # In units of what rounding to the nearest costs: lambda then suits layers of any scale.
            loss = (self._activated(y) - wanted[rows]).square().sum() / (len(rows) * nearest)
            beta = rounding_asked_for(number / effort.steps)
            if beta is not None:
                loss = loss + effort.weight * soft.undecided(beta) / soft.v.numel()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return soft.up

    def error(self, kernel: Tensor) -> tuple[float, Tensor]:
        """Mean squared l2 distance of what the layer gives with ``kernel``, the mean shift (O,) taken out."""
        plain, y = self._product(self.x, self.weight), self._product(self.x_hat, kernel)
        shift = (y - plain).mean(0)
        difference = self._activated(y - shift) - self._activated(plain)
        return float(difference.square().sum()) / len(y), shift

    def _product(self, x: Tensor, kernel: Tensor) -> Tensor:
        """(P, O) of patches (P, G, I)."""
        return torch.einsum("pgi,goi->pgo", x, kernel.reshape(x.shape[1], -1, x.shape[2])).flatten(1)

    def _activated(self, y: Tensor) -> Tensor:
        y = y if self.bias is None else y + self.bias
        if self.step.activate is None:
            return y
        # The activation may know its channels by their place: bounds of clamps have the output's dimensions.
        others = (1,) * (len(self.layer.output_shape) - 1)
        y = y.reshape(len(y), -1, *others) if self.layer.channel_axis == 1 else y.reshape(len(y), *others, -1)
        result: Tensor = self.step.activate(self.constants, y)
        return result


def _grids(qparams: UniformQParams) -> tuple[Tensor, Tensor]:
    return qparams.scale, qparams.zero_point


def _patches(arrival: Arrival, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(P, G, I) at the same random places of the float and of the quantized input."""
    each = -(-count // len(arrival.exact))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in zip(arrival.exact, arrival.on_grids, strict=True):
        state = generator.get_state()
        for values, kept in zip(pair, found, strict=True):
            generator.set_state(state)  # the same places
            kept.append(_drawn(arrival, values, each, generator))
    return torch.cat(found[0]), torch.cat(found[1])


def _drawn(arrival: Arrival, values: Lookup, count: int, generator: torch.Generator) -> Tensor:
    """(P, G, I) at ``count`` random places of the operation's result, P = ``count``."""
    x, weight, _, *rest = (*arrival.step.arguments(values), *(None,) * 6)[:7]
    if arrival.layer.op == "linear":
        rows = x.reshape(-1, x.shape[-1])
        return rows[torch.randint(len(rows), (count,), generator=generator)].unsqueeze(1)
    stride, padding, dilation, groups = (*rest[:3], arrival.layer.groups)
    (sy, sx), (dy, dx) = _two(stride, 1), _two(dilation, 1)
    height, width = weight.shape[2:]
    (top, bottom), (left, right) = _margins(padding, (dy * (height - 1), dx * (width - 1)))
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    rows = (padded.shape[2] - dy * (height - 1) - 1) // sy + 1
    columns = (padded.shape[3] - dx * (width - 1) - 1) // sx + 1
    image = torch.randint(len(x), (count, 1, 1), generator=generator)
    y0 = torch.randint(rows, (count, 1, 1), generator=generator) * sy
    x0 = torch.randint(columns, (count, 1, 1), generator=generator) * sx
    ys = y0 + dy * torch.arange(height).reshape(1, -1, 1)
    xs = x0 + dx * torch.arange(width).reshape(1, 1, -1)
    patches = padded[image, :, ys, xs]  # (P, kh, kw, C)
    return patches.permute(0, 3, 1, 2).reshape(count, groups, -1)


def _two(value: Any, default: int) -> tuple[int, int]:
    if value is None:
        return default, default
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def _margins(padding: Any, reach: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(before, after) in both directions; ``padding`` as a convolution takes it."""
    if padding == "same":
        return (reach[0] // 2, reach[0] - reach[0] // 2), (reach[1] // 2, reach[1] - reach[1] // 2)
    if padding == "valid":
        return (0, 0), (0, 0)
    y, x = _two(padding, 0)
    return (y, y), (x, x)
