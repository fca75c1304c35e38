"""A plan as an ordinary module: the folded network with fake-quantizers that learn at the plan's sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantopsy.calibrate import fixed
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.calibration import Calibration, grids_of, tensors_at
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.execute import Lookup, Overlay, Program, Step, Values
from quantopsy.graph.network import Network
from quantopsy.quant import LevelsQParams, QParams, UniformQParams
from quantopsy.quant.uniform import from_range
from quantopsy.training.norm import KeptNorm, Moments
from quantopsy.training.quantizers import METHODS, FakeQuantizer, trainable
from quantopsy.training.quantizers.ddq import even


@dataclass(frozen=True)
class Learning:
    """How the grids of a plan are to learn.

    ``weight`` and ``activation`` are names of :data:`quantopsy.training.quantizers.METHODS`; ``correction`` the lambda
    of DDQ equation (9), for all of them. ``mixed``: gates set the bits of weights, the plan's being the most;
    ``mixed_inputs``: and of what layers with weights read.
    ``bias_bits``: biases on grids of their own too (DDQ equation (5)); None leaves them float.
    """

    weight: str = "ddq"
    activation: str = "ddq"
    correction: float = 0.0
    mixed: bool = False
    mixed_inputs: bool = False
    bias_bits: int | None = None

    def start(self, plan: Plan) -> Plan:
        """``plan`` with the specs whose calibrated grids training starts from."""
        return Plan.of({site: self._started(site, spec) for site, spec in plan.sites})

    def quantizer(self, site: Site, spec: Spec, grid: QParams, multiplied: bool) -> FakeQuantizer:
        """What learns at ``site`` from ``grid`` on; straight-through where the spec's kind is none of the method's.

        ``multiplied``: whether an activation is read by a layer with a weight.
        """
        method = self.method(site)
        learns = spec.kind == METHODS[method].start(replace(spec, kind="uniform", options=())).kind
        mixed = self.mixed if site.role == "weight" else self.mixed_inputs and multiplied
        return trainable(method if learns else "ste", spec, grid, site.role, correction=self.correction, mixed=mixed)

    def _started(self, site: Site, spec: Spec) -> Spec:
        if spec.tensors > 1 or spec.correction == "mean_variance":
            what = "a sum of tensors" if spec.tensors > 1 else "corrected by mean and variance"
            raise QuantopsyError(
                f"weight of layer {site.layer!r}", f"it is {what}, which does not train", "take that out of the plan"
            )
        # Kinds that no method trains (piecewise, k-means) stay what they are, straight through.
        return METHODS[self.method(site)].start(spec) if spec.kind == "uniform" else spec

    def method(self, site: Site) -> str:
        """The name of a site's method."""
        return self.weight if site.role == "weight" else self.activation


class QuantizedLayer(nn.Module):
    """One layer with what it learns; (values) -> its result.

    ``weight`` and ``bias`` are those of the folded network. The quantizers that it has are ``weight_quantizer``,
    ``bias_quantizer``, ``output_quantizer``, and those of its inputs, by value, in ``input_quantizers``; None or
    absent where the site is float, or the input on its producer's grid already. ``shift`` is what a correction takes
    away from the result.
    """

    shift: Tensor | None

    def __init__(self, step: Step, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        assert step.layer is not None
        self.step, self.layer = step, step.layer
        self.weight, self.bias = weight, bias
        self.weight_quantizer: FakeQuantizer | None = None
        self.bias_quantizer: FakeQuantizer | None = None
        self.output_quantizer: FakeQuantizer | None = None
        self.input_quantizers = nn.ModuleDict()
        self.norm: KeptNorm | None = None
        self.register_buffer("shift", None)

    def forward(self, values: Lookup) -> Tensor:
        """The layer's result on its grids, behind its activation function."""
        step = self.step
        norm = self.norm if self._normalises else None
        over: Values = {name: quantizer(values[name]) for name, quantizer in self.input_quantizers.items()}
        if step.weight is not None:
            over[step.weight] = self.quantized_weight()
        if step.bias is not None:
            assert self.bias is not None
            over[step.bias] = self.quantized_bias() if norm is None else torch.zeros_like(self.bias)
        lookup = Overlay(over, values)
        y: Tensor = step.operation(lookup)
        if norm is not None:
            assert self.bias is not None
            y = norm(y, self.bias)
        if self.shift is not None:
            y = y - self.shift
        if step.activate is not None:
            y = step.activate(lookup, y)
        return y if self.output_quantizer is None else self.output_quantizer(y)

    def latent_weight(self) -> Tensor:
        """The weight that its quantizer reads: what is trained, as the method bends it."""
        assert self.weight is not None
        return self.weight if self.weight_quantizer is None else self.weight_quantizer.weight(self.weight)

    def quantized_weight(self) -> Tensor:
        """The weight on its grid; in evaluation with a kept batch norm in it."""
        weight, quantizer = self.latent_weight(), self.weight_quantizer
        if self.norm is None or self._normalises:
            return weight if quantizer is None else quantizer(weight)
        if quantizer is None:
            return weight * self.norm.ratio.reshape(-1, *(1,) * (weight.dim() - 1))
        return self.grid.decode(quantizer.qparams.encode(weight))

    @property
    def _normalises(self) -> bool:
        """Whether a kept batch norm takes its moments from the batch."""
        return self.norm is not None and self.norm.training

    @property
    def takes_norm(self) -> bool:
        """Whether its weight's grid can take a factor for every channel: it is float, uniform, or a table of levels."""
        quantizer = self.weight_quantizer
        return quantizer is None or isinstance(quantizer.qparams, UniformQParams | LevelsQParams)

    @property
    def grid(self) -> QParams:
        """The grid of the weight as it is deployed: with a kept batch norm in it one for every channel."""
        assert self.weight_quantizer is not None
        grid = self.weight_quantizer.qparams
        return grid if self.norm is None else _per_channel(grid, self.norm.ratio.detach())

    def quantized_bias(self) -> Tensor:
        """The bias, with what a kept batch norm's mean has drifted, on its grid where it has one."""
        assert self.bias is not None
        bias = self.bias if self.norm is None else self.norm.bias(self.bias)
        return bias if self.bias_quantizer is None else self.bias_quantizer(bias)


class TrainableNetwork(nn.Module):
    """Takes and gives what the float module does, on grids that learn.

    Before the first step its outputs are those that :class:`quantopsy.engine.exact.ExactEngine` gives for the same plan
    and calibration, bit for bit; with kept batch norms in evaluation mode. Batch norms stay folded into weights and
    biases; ``moments``, of layers by name, lets those go on normalising (:class:`quantopsy.training.norm.KeptNorm`).

    ``layers`` are the network's layers by name, with ``/`` for the dots. ``sites`` are the quantizers of every site,
    one for each of its values; sites that mean the same value on the same grid share one.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        calibration: Calibration,
        grids: Learning = Learning(),
        moments: Mapping[str, Moments] | None = None,
    ) -> None:
        super().__init__()
        self.program, self.plan, self.given = program, plan, dict(calibration.given)
        self.layers = nn.ModuleDict()
        self.sites: dict[Site, list[FakeQuantizer]] = {}
        network = program.network
        encodings = dict(calibration.encodings)
        for layer in network.layers:  # layers that share a weight and a spec share the very grid
            spec = plan.get(Site(layer.name, "weight"))
            if spec is not None and layer.weight is not None and (layer.weight, spec) not in encodings:
                encodings[layer.weight, spec] = calibration.weight_qparams(layer, spec, network.tensors[layer.weight])
        calibration = replace(calibration, encodings=encodings)
        by_grid: dict[int, FakeQuantizer] = {}
        on_grids = list(grids_of(network, plan, calibration))
        multiplied = {
            id(grid)
            for site, found in on_grids
            if site.role == "input" and network.layer(site.layer).weight is not None
            for grid in found
        }
        for site, found in on_grids:
            for grid in found:
                if id(grid) not in by_grid:
                    by_grid[id(grid)] = grids.quantizer(site, plan[site], grid, id(grid) in multiplied)
            self.sites[site] = [by_grid[id(grid)] for grid in found]
        prepared = ExactEngine(program, calibration).prepare(plan).quantizers if plan.sites else {}
        made: dict[str, nn.Parameter] = {}
        started: dict[str, FakeQuantizer] = {}
        for step in program.steps:
            if step.layer is None:
                continue
            for name in (step.weight, step.bias):
                if name is not None and name not in made:
                    made[name] = nn.Parameter(program.constants[name].clone())
            learning = QuantizedLayer(step, made.get(step.weight or ""), made.get(step.bias or ""))
            own = prepared.get(step.index)
            if own is not None:
                learning.shift = own.shift
                learning.output_quantizer = None if own.output is None else by_grid[id(own.output)]
                learning.input_quantizers.update({name: by_grid[id(grid)] for name, grid in own.inputs})
                if own.weight is not None:
                    (learning.weight_quantizer,) = self.sites[Site(step.layer.name, "weight")]
                    started[str(step.weight)] = learning.weight_quantizer
            if grids.bias_bits is not None and learning.bias is not None:
                learning.bias_quantizer = _bias_quantizer(learning.bias, grids.bias_bits)
            if moments is not None and step.layer.name in moments and learning.takes_norm:
                learning.norm = KeptNorm(*moments[step.layer.name])
            self.layers[step.layer.name.replace(".", "/")] = learning
        for name, quantizer in started.items():
            made[name].data = quantizer.begin(made[name].data)
        self._by_step = {learning.step.index: learning for learning in self.quantized_layers}
        self.to(program.device)

    @property
    def quantized_layers(self) -> list[QuantizedLayer]:
        """The layers in topological order."""
        return [layer for layer in self.layers.values() if isinstance(layer, QuantizedLayer)]

    def _by_name(self, name: str) -> QuantizedLayer:
        found = self.layers[name.replace(".", "/")]
        assert isinstance(found, QuantizedLayer)
        return found

    @property
    def quantizers(self) -> list[FakeQuantizer]:
        """All of them, each once."""
        return [module for module in self.modules() if isinstance(module, FakeQuantizer)]

    def weight_bits(self) -> dict[str, int]:
        """The bits in effect of every layer's weight that is on a grid."""
        return {site.layer: found[0].bits for site, found in self.sites.items() if site.role == "weight"}

    def input_bits(self) -> dict[str, int]:
        """The bits in effect of what every layer with a weight reads, where that is on a grid."""
        return {
            site.layer: found[0].bits
            for site, found in self.sites.items()
            if site.role == "input" and self.program.network.layer(site.layer).weight is not None
        }

    def check_batches(self, images: int) -> None:
        """Raise :class:`QuantopsyError` where kept batch norms find no variance in a batch of so many ``images``."""
        for layer in self.quantized_layers:
            if layer.norm is not None and images * math.prod(layer.layer.output_shape[1:]) < 2:
                raise QuantopsyError(
                    f"batch norm of layer {layer.layer.name!r}",
                    "one image is one value for every channel, and has no variance",
                    "give each process two images a --batch at least, or --norms folded",
                )

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs, in the structure of the float module's."""
        return self.program.network.unflatten(self.run(inputs))

    def run(self, inputs: Any, observe: Callable[[str, Tensor], None] | None = None) -> tuple[Any, ...]:
        """The flat outputs. ``observe`` hears of every layer's name and result."""
        program = self.program
        values = program.place(inputs)
        for step in program.steps:
            lookup = Overlay(values, program.constants)
            layer = self._by_step.get(step.index)
            if layer is None:
                values[step.writes] = step.compute(lookup)
            else:
                values[step.writes] = layer(lookup)
                if observe is not None:
                    observe(layer.layer.name, values[step.writes])
            program.release(step, values)
        return tuple(values[name] for name in program.outputs)

    @torch.no_grad()
    def trained(self) -> tuple[Network, Plan, Calibration]:
        """The float network with the trained weights, the plan of the trained grids, and these grids.

        The engine gives for them what this module does in evaluation mode. Learned levels that are evenly spaced are
        uniform grids then (:func:`quantopsy.training.quantizers.ddq.even`).
        """
        network = self.program.network
        tensors = dict(network.tensors)
        for quantized in self.quantized_layers:
            layer = quantized.layer
            if quantized.weight is not None and layer.weight is not None:
                # With a batch norm in it the weight moves to its grid: w a / (s a) is not w / s to the last bit.
                kept = quantized.norm is not None
                tensors[layer.weight] = _plain(quantized.quantized_weight() if kept else quantized.latent_weight())
            if quantized.bias is not None and layer.bias is not None:
                tensors[layer.bias] = _plain(quantized.quantized_bias())
        calibration = Calibration(sources=network.grid_sources, given=dict(self.given))
        specs: dict[Site, Spec] = {}
        stated: dict[tuple[str, Spec], FakeQuantizer] = {}
        for site, quantizers in self.sites.items():
            layer = network.layer(site.layer)
            spec = quantizers[0].fitted(self.plan[site])
            if site.role == "weight":
                quantized = self._by_name(site.layer)
                found = [(str(layer.weight), quantized.grid)]
                if quantized.shift is not None:  # it was trained with, whatever bits there are now
                    spec = replace(spec, correction=calibration.give(quantized.shift.flatten()))
                if found[0][1].axis is not None and spec.granularity == "per_tensor":
                    spec = replace(spec, granularity="per_channel")
            else:
                pairs = zip(tensors_at(network, site, spec), quantizers, strict=True)
                found = [(value, quantizer.qparams) for value, quantizer in pairs]
            evenly = [even(grid, spec) if isinstance(grid, LevelsQParams) else None for _, grid in found]
            if spec.kind == "learned" and None not in evenly:
                spec = replace(spec, kind="uniform", options=())
                found = [(value, grid) for (value, _), grid in zip(found, evenly, strict=True) if grid is not None]
            for (value, grid), quantizer in zip(found, quantizers, strict=True):
                # Two grids of a value that began with other bits may end with as many: their ranges tell them apart.
                if stated.get((value, spec), quantizer) is not quantizer:
                    low, high = grid.ends
                    spec = replace(spec, range_estimator=fixed(float(low.amin()), float(high.amax())))
            specs[site] = spec
            for (value, grid), quantizer in zip(found, quantizers, strict=True):
                stated[value, spec] = quantizer
                calibration.encodings[value, spec] = grid.map_grids(lambda tensor: tensor.detach().cpu().clone())
        return replace(network, tensors=tensors), Plan.of(specs), calibration


def _bias_quantizer(bias: Tensor, bits: int) -> FakeQuantizer:
    """A symmetric uniform grid over the whole bias whose step learns."""
    spec = Spec(bits=bits, symmetric=True, signed=True)
    return trainable("lsq", spec, from_range(spec, bias.detach().amin(), bias.detach().amax()), "weight")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _per_channel(grid: QParams, factor: Tensor) -> QParams:
    """``grid`` with ``factor`` (C,) times its scale in every channel along axis 0."""
    assert isinstance(grid, UniformQParams | LevelsQParams)
    if grid.axis is not None:
        return replace(grid, scale=grid.scale * factor.reshape(-1, *(1,) * (grid.scale.dim() - 1)))
    scale = (grid.scale * factor).clamp(min=torch.finfo(torch.float32).tiny)
    if isinstance(grid, UniformQParams):
        return replace(grid, scale=scale, zero_point=grid.zero_point.expand(len(factor)).clone(), axis=0)
    return replace(grid, scale=scale, axis=0)
