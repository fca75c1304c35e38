"""A whole network in integers under a plan: activations are carried as codes from layer to layer.

What is quantized, and where, is what the exact engine does with the same plan. A layer runs in integers where its
inputs have codes on uniform grids per tensor and its weight, where it has one, is quantized; the others run in float
on dequantized values, and are listed with the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantopsy.core import Plan, QuantopsyError, Site, names
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, LayerQuantizers, by_channel
from quantopsy.graph.execute import Lookup, Overlay, Program, Step, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import ACTIVATIONS
from quantopsy.integer.accumulator import Accumulator
from quantopsy.integer.codes import Codes
from quantopsy.integer.finish import CLIPS, SLOPES, Finish
from quantopsy.integer.kernels import Added, Averaged, Kernel, MatrixProduct, Multiplied, Sums, Weighted, weighted
from quantopsy.integer.requantize import Requantization
from quantopsy.integer.stored import store
from quantopsy.integer.tables import identity, look_up, table
from quantopsy.quant import QParams, UniformQParams

Inputs = Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes: its accumulators, its requantization, and the width of its tables' inputs."""

    requantization: Requantization = field(default_factory=Requantization)
    accumulator: Accumulator = field(default_factory=Accumulator)
    table_bits: int = 16

    def __post_init__(self) -> None:
        if not 4 <= self.table_bits <= 16:
            raise QuantopsyError(f"tables of {self.table_bits} bits", "not a width", "give 4 to 16")


ARITHMETICS: dict[str, Arithmetic] = {
    "exact": Arithmetic(),
    "onnxruntime": Arithmetic(Requantization("float32")),
    "tflite": Arithmetic(Requantization("fixed_point", "gemmlowp")),
    "tflite_single_rounding": Arithmetic(Requantization("fixed_point", "half_up")),
}


def arithmetic(name: str) -> Arithmetic:
    """The arithmetic called ``name``; raises with the nearest names where there is none."""
    if name not in ARITHMETICS:
        raise names.unknown(name, tuple(ARITHMETICS), "arithmetic")
    return ARITHMETICS[name]


@dataclass
class LayerCounts:
    """What happened in one layer: over all elements of all images run so far.

    ``reason``: why it ran in float, None where it ran in integers. ``accumulators`` a result; ``bits`` is the narrowest
    width that had held every sum, ``overflows`` counts sums that the accumulator did not hold, ``saturated`` results
    that the output's type cut (not what an activation function cuts). ``enlarged`` channels have a larger weight scale
    than the plan's, for their bias to fit int32.
    """

    layer: str
    reason: str | None
    requantization: str | None = None
    accumulators: int = 0
    enlarged: int = 0
    elements: int = 0
    bits: int = 0
    overflows: int = 0
    saturated: int = 0


@dataclass(frozen=True)
class Result:
    """Of one layer: its value, and how it came to be where it was added up from integers."""

    value: Codes | Tensor
    sums: Sums | None = None
    overflows: int = 0
    bits: int = 0
    saturated: int = 0


class IntegerLayer(ABC):
    """One layer in integers. ``grids``: the input grids by value; ``target``: the output's, None for real results."""

    def __init__(
        self, step: Step, grids: Mapping[str, UniformQParams], target: UniformQParams | None, constants: Lookup
    ) -> None:
        assert step.layer is not None
        self.step, self.layer, self.grids, self.target, self.constants = step, step.layer, grids, target, constants

    @abstractmethod
    def run(self, operands: Mapping[str, Codes]) -> Result:
        """The layer of codes that are on ``grids``."""


class SummedLayer(IntegerLayer):
    """A layer that adds up: accumulators, then its activation function and the requantization."""

    def __init__(self, kernel: Kernel, target: UniformQParams | None, arithmetic: Arithmetic) -> None:
        super().__init__(kernel.step, kernel.grids, target, kernel.constants)
        self.kernel, self.arithmetic = kernel, arithmetic
        self.finish = (
            None
            if target is None
            else Finish(
                kernel.step,
                kernel.constants,
                target,
                arithmetic.requantization,
                arithmetic.table_bits,
                kernel.reach() if self.layer.activation is not None else 0.0,
                kernel.pair,
            )
        )

    def run(self, operands: Mapping[str, Codes]) -> Result:
        exact = self.kernel.sums({name: codes.centred for name, codes in operands.items()})
        sums, held = exact.held(self.arithmetic.accumulator)
        overflows, bits = sum(one.overflows for one in held), max(one.bits for one in held)
        if self.finish is None:
            real = sums.real.float()
            value = self.step.activated(self.constants, real)
            return Result(value, sums, overflows, bits)
        found = self.finish.codes(sums)
        assert self.target is not None
        return Result(Codes(found.codes, self.target), sums, overflows, bits, found.saturated)


class TableLayer(IntegerLayer):
    """A layer that selects or moves codes, or is a function of one variable: exact, through tables."""

    def __init__(
        self, step: Step, grids: Mapping[str, UniformQParams], target: UniformQParams | None, constants: Lookup
    ) -> None:
        super().__init__(step, grids, target, constants)
        first = next(iter(grids.values()))
        self.function = self._function()
        # What is on one grid can be moved first and looked up once.
        self.shared = first if all(grid is first for grid in grids.values()) else None
        self.entries: dict[str, Tensor] = {}
        if target is not None:
            self.entries = {
                name: table(self.function, grid, target)
                for name, grid in grids.items()
                if self.shared is None or name == next(iter(grids))
            }

    def _function(self) -> Callable[[Tensor], Tensor]:
        step, constants = self.step, self.constants
        if step.target in ACTIVATIONS:
            (name,) = self.grids
            return lambda x: step.operation(Overlay({name: x}, constants))
        return identity if step.activate is None else lambda x: step.activate(constants, x)  # type: ignore[misc]

    def run(self, operands: Mapping[str, Codes]) -> Result:
        if self.shared is None:
            assert self.target is not None
            laid = {name: look_up(codes, self.entries[name], self.target) for name, codes in operands.items()}
            return Result(self._moved(laid, self.target))
        result = self._moved(operands, self.shared)
        if self.target is None:
            real = result.real
            return Result(real if self.function is identity else self.function(real))
        (entries,) = self.entries.values()
        return Result(look_up(result, entries, self.target))

    def _moved(self, operands: Mapping[str, Codes], grid: UniformQParams) -> Codes:
        if self.step.target in ACTIVATIONS:
            return next(iter(operands.values()))
        over = {name: codes.centred.double() for name, codes in operands.items()}
        result = self.step.operation(Overlay(over, self.constants))
        return Codes((result.long() + int(grid.zero_point)).to(torch.int32), grid)


class IntegerNetwork:
    """``network`` under ``plan`` in a device's integer arithmetic, computed on a CPU.

    ``layers`` by step index, ``reasons`` of those in float by name, ``counts`` of all layers in order, added up over
    :meth:`run` until :meth:`reset`.
    """

    def __init__(
        self, network: Network | Program, plan: Plan, calibration: Calibration, arithmetic: Arithmetic | None = None
    ) -> None:
        self.program = network if isinstance(network, Program) else compile_network(network)
        if self.program.device.type != "cpu":
            raise QuantopsyError(
                f"integer network on {self.program.device}", "it is computed on a CPU", "compile the network for a CPU"
            )
        self.network = self.program.network
        self.arithmetic = arithmetic or ARITHMETICS["exact"]
        self.engine = ExactEngine(self.program, calibration)
        self.prepared = self.engine.prepare(plan)
        self.layers: dict[int, IntegerLayer] = {}
        self.moved: set[int] = set()
        self.reasons: dict[str, str] = {}
        self._plan = plan
        self._nodes = {node.name: node for node in self.network.graph.nodes}
        self._requantizers: dict[tuple[int, int], Tensor] = {}
        self._compile()
        self.reset()

    @property
    def macs_share(self) -> float:
        """The share of the network's multiplications that are of integers."""
        inside = sum(layer.layer.macs for layer in self.layers.values())
        return inside / self.network.total_macs if self.network.total_macs else 0.0

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts = {
            layer.name: LayerCounts(layer.name, self.reasons.get(layer.name)) for layer in self.network.layers
        }
        for kernel in self.layers.values():
            counts = self.counts[kernel.layer.name]
            counts.requantization = "table"
            if isinstance(kernel, SummedLayer):
                counts.requantization = None if kernel.finish is None else self.arithmetic.requantization.name
                if isinstance(kernel.kernel, Weighted):
                    counts.enlarged = kernel.kernel.stored.enlarged

    def run(
        self, inputs: Inputs, look: Callable[[IntegerLayer, Mapping[str, Codes], Result], None] | None = None
    ) -> tuple[Any, ...]:
        """The flat outputs, dequantized, of one batch; ``look`` sees every integer layer with its operands."""
        program = self.program
        with torch.inference_mode():
            values: dict[str, Any] = dict(program.place(inputs))
            for step in program.steps:
                values[step.writes] = self._step(step, values, look)
                program.release(step, values)
            return tuple(_real(values[name]) for name in program.outputs)

    def operands(self, kernel: IntegerLayer, values: Mapping[str, Any]) -> dict[str, Codes]:
        """The codes that ``kernel`` reads, from codes on any grid or from reals."""
        return {name: self._on(values[name], grid) for name, grid in kernel.grids.items()}

    def simulate(self, kernel: IntegerLayer, operands: Mapping[str, Codes]) -> Tensor:
        """What the engine's simulation gives for the layer of the same codes, with weight and bias as stored."""
        step, quantizers = kernel.step, self.prepared.quantizers[kernel.step.index]
        local: dict[str, Any] = {name: codes.real for name, codes in operands.items()}
        shift = None
        if isinstance(kernel, SummedLayer) and isinstance(kernel.kernel, Weighted):
            stored = kernel.kernel.stored
            assert step.weight is not None
            local[step.weight] = stored.weight_hat
            if stored.bias_hat is not None and step.bias is not None:
                local[step.bias] = stored.bias_hat
            elif stored.bias_hat is not None:
                shift = -by_channel(stored.bias_hat, kernel.layer)
        quantizers = replace(quantizers, inputs=(), weight=None, shift=shift)
        return self.engine.quantized(step, quantizers, local, self.program.constants)

    # --- compiling

    def _compile(self) -> None:
        coded: dict[str, QParams] = {}
        for step in self.program.steps:
            quantizers = self.prepared.quantizers.get(step.index)
            layer = step.layer
            if layer is None:
                source = step.reads[0] if step.writes in self.network.origins else None
                if source in coded and coded[source].axis is None:
                    self.moved.add(step.index)
                    coded[step.writes] = coded[source]
                continue
            if quantizers is None:
                self.reasons[layer.name] = "the plan leaves it in float"
                continue
            kernel = self._kernel(step, layer, quantizers, coded)
            if isinstance(kernel, str):
                self.reasons[layer.name] = kernel
            else:
                self.layers[step.index] = kernel
            if isinstance(quantizers.output, UniformQParams):
                coded[step.writes] = quantizers.output

    def _kernel(
        self, step: Step, layer: Layer, quantizers: LayerQuantizers, coded: Mapping[str, QParams]
    ) -> IntegerLayer | str:
        """The layer in integers, or why not."""
        grids: dict[str, UniformQParams] = {}
        wanted = dict(quantizers.inputs)
        if not layer.inputs:
            return "it reads no activation"
        if not set(step.reads) <= set(layer.inputs):
            return "it reads a value that has no grid, such as a mask"
        for value in layer.inputs:
            grid = wanted.get(value, coded.get(value))
            if grid is None:
                return "an input is not quantized"
            if not isinstance(grid, UniformQParams):
                return "the levels of an input are not evenly spaced"
            if grid.axis is not None:
                return "an input has a grid for each channel"
            grids[value] = grid
        target = quantizers.output
        if target is not None and not isinstance(target, UniformQParams):
            return "the levels of the output are not evenly spaced"
        if target is not None and target.axis not in (None, 1):
            return "the output has grids along an axis that is not its channels'"
        if target is not None and target.axis is not None and layer.activation not in (None, *CLIPS, *SLOPES):
            return "its activation function would need a table for each channel"
        constants = self.program.constants
        if weighted(layer):
            return self._weighted(step, layer, quantizers, grids, target)
        if layer.weight is not None:
            return f"integers have no form for {layer.op} with a weight"
        node = self._nodes[layer.node]
        kernel: Kernel
        if layer.op == "add":
            alpha = float(node.kwargs.get("alpha", 1))
            if not alpha.is_integer():
                return "one operand is multiplied by a fraction"
            kernel = Added(step, grids, constants, int(alpha))
        elif layer.op == "mul":
            if "div" in str(node.target) and not _divides_by_constant(node):
                return "it divides by a value"
            if node.kwargs.get("rounding_mode") is not None:
                return "it rounds its quotient"
            kernel = Multiplied(step, grids, constants, _operands(node))
        elif layer.op == "matmul":
            kernel = MatrixProduct(step, grids, constants, _operands(node))
        elif layer.op in ("mean", "avg_pool", "adaptive_avg_pool"):
            if layer.op == "avg_pool" and "avg_pool2d" not in str(node.target):
                return f"integers have no form for {node.target}"
            kernel = Averaged(step, grids, constants)
        else:
            return self._table(step, layer, grids, target, str(node.target))
        return SummedLayer(kernel, target, self.arithmetic)

    def _table(
        self, step: Step, layer: Layer, grids: Mapping[str, UniformQParams], target: UniformQParams | None, name: str
    ) -> IntegerLayer | str:
        moves = layer.op in ("max_pool", "concat") or (layer.op == "upsample" and "nearest" in name)
        if not moves and step.target not in ACTIVATIONS:
            return f"integers have no form for {name}"
        if target is not None and target.axis is not None:
            return "the output has a grid for each channel"
        if layer.op == "concat" and target is None and len({id(grid) for grid in grids.values()}) > 1:
            return "its inputs are on several grids, its output on none"
        if "prelu" in (layer.op, layer.activation) or (layer.activation == "clamp" and _has_tensors(step, self._nodes)):
            return "its activation function differs from channel to channel"
        return TableLayer(step, grids, target, self.program.constants)

    def _weighted(
        self,
        step: Step,
        layer: Layer,
        quantizers: LayerQuantizers,
        grids: Mapping[str, UniformQParams],
        target: UniformQParams | None,
    ) -> IntegerLayer | str:
        if quantizers.weight is None:
            return "its weight is not quantized"
        tensors, spec = self.network.tensors, self._plan[Site(layer.name, "weight")]
        assert layer.weight is not None
        bias = tensors[layer.bias] if layer.bias is not None else None
        if quantizers.shift is not None:
            shift = quantizers.shift.flatten().cpu()
            bias = -shift if bias is None else bias - shift
        (grid,) = grids.values()
        stored = store(self.engine.calibration, layer, spec, tensors[layer.weight], bias, float(grid.scale))
        return SummedLayer(Weighted(step, grids, self.program.constants, stored), target, self.arithmetic)

    # --- running

    def _step(
        self,
        step: Step,
        values: Mapping[str, Any],
        look: Callable[[IntegerLayer, Mapping[str, Codes], Result], None] | None,
    ) -> Any:
        kernel = self.layers.get(step.index)
        if kernel is not None:
            operands = self.operands(kernel, values)
            result = kernel.run(operands)
            self._count(kernel.layer.name, result)
            if look is not None:
                look(kernel, operands, result)
            return result.value
        if step.index in self.moved:
            return _moved(step, values, self.program.constants)
        reals = _Reals(values)
        quantizers = self.prepared.quantizers.get(step.index)
        if quantizers is None:
            return step.compute(Overlay(reals, self.program.constants))
        result_real = self.engine.quantized(step, quantizers, {}, reals)
        output = quantizers.output
        return Codes.of(result_real, output) if isinstance(output, UniformQParams) else result_real

    def _count(self, layer: str, result: Result) -> None:
        counts = self.counts[layer]
        value = result.value.codes if isinstance(result.value, Codes) else result.value
        counts.elements += value.numel()
        counts.accumulators = 0 if result.sums is None else len(result.sums.accumulators)
        counts.overflows += result.overflows
        counts.saturated += result.saturated
        counts.bits = max(counts.bits, result.bits)

    def _on(self, value: Any, grid: UniformQParams) -> Codes:
        if not isinstance(value, Codes):
            return Codes.of(value, grid)
        if value.grid is grid:
            return value
        if not value.per_tensor:
            return Codes.of(value.real, grid)
        key = id(value.grid), id(grid)
        if key not in self._requantizers:
            self._requantizers[key] = table(identity, value.grid, grid)
        return look_up(value, self._requantizers[key], grid)


@dataclass
class _Reals:
    """Look-up of values as reals, each dequantized once."""

    values: Mapping[str, Any]
    found: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self.found:
            self.found[name] = _real(self.values[name])
        return self.found[name]


def _is_codes(value: Any) -> bool:
    return isinstance(value, Codes)


def _real(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.real if _is_codes(leaf) else leaf, value, is_leaf=_is_codes)


def _moved(step: Step, values: Mapping[str, Any], constants: Lookup) -> Any:
    """The movement of ``step`` on codes; parts of a split stay codes."""
    over: dict[str, Any] = {}
    grid: UniformQParams | None = None
    for name in step.reads:
        for leaf in pytree.tree_leaves(values[name], is_leaf=_is_codes):
            grid = leaf.grid if _is_codes(leaf) else grid
        over[name] = pytree.tree_map(
            lambda leaf: leaf.centred.double() if _is_codes(leaf) else leaf, values[name], is_leaf=_is_codes
        )
    assert grid is not None
    zero_point = int(grid.zero_point)
    result = step.compute(Overlay(over, constants))
    return pytree.tree_map(lambda tensor: Codes((tensor.long() + zero_point).to(torch.int32), grid), result)


def _operands(node: fx.Node) -> list[str]:
    """Names of the values among the first two arguments, a value twice where it is both."""
    return [operand.name for operand in node.args[:2] if isinstance(operand, fx.Node) and operand.op != "get_attr"]


def _divides_by_constant(node: fx.Node) -> bool:
    divisor = node.args[1]
    return not isinstance(divisor, fx.Node) or divisor.op == "get_attr"


def _has_tensors(step: Step, nodes: Mapping[str, fx.Node]) -> bool:
    return any(isinstance(argument, fx.Node) for argument in nodes[step.writes].args[1:])
