"""A network and a plan as an ONNX graph with QuantizeLinear and DequantizeLinear (QDQ).

What is quantized, and where, is what the exact engine does with the same plan: an input that its producer left on
the same grid gets no second pair. Three identities place the integers where runtimes have kernels for them, none
of them changing a value (Q is rounding to codes, monotone):

- a clip behind an operation is a clip of codes, Q(clip(y, a, b)) = clip(Q(y), Q(a), Q(b)), and nothing at all where
  Q(a) and Q(b) are the ends of the type;
- bits that ONNX has no type for are 8 bit codes with such a clip;
- values that only move (reshapes, slices, zeros added, a maximum) move as codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantopsy.calibrate import fit
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.export.aten_to_onnx import WRITERS, Bounds, Call, Unsupported, clip_bounds, write_clip, write_parts
from quantopsy.export.onnx_writer import Constant, OnnxWriter, Value
from quantopsy.export.stored_grids import ActivationGrid, StoredWeight
from quantopsy.graph.execute import Program, Step, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import ACTIVATIONS, pads_with
from quantopsy.quant import QParams, UniformQParams

OPSET = 21  # the first with 4- and 16-bit integers and blocks in Q and DQ
FLOAT_WEIGHTS = "quantopsy.float_weights"
_MOVED_AS_CODES = {np.dtype(np.uint8)}
_NO_QUANTIZERS = LayerQuantizers((), None, None, None)


def to_onnx(network: Network, plan: Plan, calibration: Calibration, *, opset: int = OPSET) -> onnx.ModelProto:
    """``network`` under ``plan``, ranges from ``calibration``; an empty plan gives the float network.

    Weights are stored as integers where their grid is uniform: per tensor, per channel, or per group as blocks.
    Other kinds, sums of several tensors and corrected weights are stored as the reals they stand for; the model's
    metadata ``quantopsy.float_weights`` names these layers with the reason (JSON). A bias is int32 on the scale
    ``s_x s_w`` where input and weight are uniform. Inputs and outputs keep the network's names; the number of
    images is free. Raises :class:`QuantopsyError` for an operator or a grid that ONNX has no form for, naming the
    layer.
    """
    if opset < OPSET:
        raise QuantopsyError(f"opset {opset}", "it has no 4- and 16-bit integers", f"give {OPSET} or higher")
    export = _Export(compile_network(network), plan, calibration, OnnxWriter(opset))
    return export.model()


@dataclass
class _Export:
    """Walks the steps of a program; every value of the network is known as reals, as codes, or as both."""

    program: Program
    plan: Plan
    calibration: Calibration
    graph: OnnxWriter
    reals: dict[str, Any] = field(default_factory=dict)  # network value -> Value, tuple of them, or number
    codes: dict[str, tuple[Value, ActivationGrid]] = field(default_factory=dict)  # network value -> codes
    coded: dict[str, tuple[Value, ActivationGrid]] = field(default_factory=dict)  # ONNX reals -> codes they come from
    quantized: dict[tuple[str, int], Value] = field(default_factory=dict)
    float_weights: dict[str, str] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        program, network = self.program, self.program.network
        for key, tensor in network.tensors.items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise QuantopsyError(f"tensor {key!r}", f"it is {tensor.dtype}", "convert the model with .float()")
        self.shapes = _shapes(program)
        engine = ExactEngine(program, self.calibration)
        prepared = engine.prepare(self.plan).quantizers if self.plan.sites else {}
        inputs = []
        for name, shape in zip(network.input_names, network.input_shapes, strict=True):
            self.graph.unique(name)
            self.reals[name] = Value(name, (None, *shape))
            inputs.append(self.reals[name])
        nodes = {node.name: node for node in network.graph.nodes}
        for step in program.steps:
            self._step(step, nodes, prepared.get(step.index, _NO_QUANTIZERS))
        outputs = []
        self.graph.scope = ""
        for name in program.outputs:
            value = self._real(name)
            output = self.graph.unique(f"{name}_output" if name in network.input_names else name)
            self.graph.nodes.append(onnx.helper.make_node("Identity", [value.name], [output], name=f"{output}/Identity"))
            outputs.append(Value(output, value.shape))
        return self.graph.model(inputs, outputs, {FLOAT_WEIGHTS: json.dumps(self.float_weights)})

    def _step(self, step: Step, nodes: Mapping[str, fx.Node], quantizers: LayerQuantizers) -> None:
        shape = self.shapes[step.writes]
        if not isinstance(shape, tuple):  # a size, or another plain number; None where the number of images decides
            self.reals[step.writes] = shape
            return
        node = nodes[step.layer.node if step.layer is not None else step.writes]
        self.graph.scope = step.layer.name if step.layer is not None else step.writes
        try:
            if step.layer is not None:
                self._layer(step, step.layer, node, nodes[step.writes], quantizers)
            else:
                self._movement(step, node)
        except Unsupported as reason:
            raise QuantopsyError(
                f"operator {node.target} of {self.graph.scope!r}",
                f"ONNX has no form for {reason}",
                "write the model without it",
            ) from None

    # --- layers

    def _layer(
        self, step: Step, layer: Layer, node: fx.Node, last: fx.Node, quantizers: LayerQuantizers
    ) -> None:
        over: dict[str, Any] = {value: self._on_grid(value, qparams) for value, qparams in quantizers.inputs}
        self._weight_and_bias(layer, node, quantizers, over)
        grid = self._output_grid(layer, quantizers.output)
        arguments = list(self._arguments(node, over))
        if quantizers.shift is not None or "bias" in over:
            arguments = (arguments + [None] * 3)[: max(3, len(arguments))]
            arguments[2] = over["bias"]
        shape = self.shapes[step.writes]
        call = Call(self.graph, shape)
        activation = None if last is node else last
        if node.target in ACTIVATIONS:  # a layer that is an activation function
            result, activation = arguments[0], node
        elif (source := self._moves_as_codes(layer, arguments[0])) is not None:
            codes = WRITERS[_operator(node)](call, source[0], *arguments[1:])
            result = self._dequantized(Value(codes, shape), source[1])
        else:
            result = Value(self._write(node, call, arguments), shape)
        bounds = None
        if activation is not None:
            behind = [self._argument(argument, over) for argument in activation.args[1:]]
            bounds = clip_bounds(_operator(activation), behind)
            if bounds is None:
                result = Value(self._write(activation, call, [result, *behind]), shape)
            elif grid is None:
                result = Value(write_clip(call, result, bounds), shape)
        if grid is None:
            self.reals[step.writes] = result
        else:
            self.codes[step.writes] = self._quantize(result, grid, bounds), grid

    def _weight_and_bias(
        self, layer: Layer, node: fx.Node, quantizers: LayerQuantizers, over: dict[str, Any]
    ) -> None:
        """Put the quantized weight into ``over`` under its tensor's name, and a bias made for it under "bias"."""
        if layer.weight is None or quantizers.weight is None:
            return
        tensors = self.program.network.tensors
        weight, bias = tensors[layer.weight], tensors[layer.bias] if layer.bias is not None else None
        if quantizers.shift is not None:
            bias = (0 if bias is None else bias) - quantizers.shift.flatten()
        stored = self._stored(layer, weight, quantizers.weight)
        source = over.get(layer.inputs[0]) or self._real(layer.inputs[0])
        if stored is None:
            assert layer.weight is not None
            w_hat = ExactEngine(self.program, self.calibration).quantized_weight(layer, quantizers.weight)
            turned = w_hat.T if self._turned(layer, source) else w_hat
            name = self.graph.initializer(f"{layer.name}.weight", turned.contiguous().numpy())
        else:
            grid = self.coded[source.name][1] if source.name in self.coded else None
            integers = None
            if bias is not None and layer.op != "batch_norm" and grid is not None and grid.per_tensor:
                stored, integers = _with_bias(stored, weight, bias, float(grid.scale), layer)
            turned_weight = stored.transposed if self._turned(layer, source) else stored
            name = turned_weight.write(self.graph, f"{layer.name}.weight")
            if integers is not None:
                over["bias"] = Constant(f"{layer.name}.bias", bias, self._write_bias(layer, *integers))
        over[layer.weight] = Constant(layer.weight, weight, name)
        if bias is not None and layer.op != "batch_norm":
            over.setdefault("bias", Constant(layer.bias if quantizers.shift is None else f"{layer.name}.bias", bias))

    def _stored(self, layer: Layer, weight: Tensor, spec: Spec) -> StoredWeight | None:
        """The weight as integers, or None with the reason noted."""
        reason = None
        if spec.tensors > 1:
            reason = f"a sum of {spec.tensors} tensors"
        elif spec.correction == "mean_variance":
            reason = "corrected to the float weight's mean and variance"
        else:
            qparams = fit(spec, weight, axis=layer.weight_axis)
            if isinstance(qparams, UniformQParams):
                return StoredWeight.of(weight, qparams)
            reason = f"levels of kind {spec.kind}"
        self.float_weights[layer.name] = reason
        return None

    @staticmethod
    def _turned(layer: Layer, source: Value) -> bool:
        """Whether the weight of a linear layer is stored transposed: a MatMul reads it so, a Gemm as it is."""
        return layer.op == "linear" and len(source.shape) != 2

    def _write_bias(self, layer: Layer, codes: np.ndarray, scale: np.ndarray) -> str:
        graph, name = self.graph, f"{layer.name}.bias"
        parameters = (
            graph.initializer(f"{name}.codes", codes),
            graph.initializer(f"{name}.scale", scale),
            graph.constant(np.zeros_like(scale), np.int32),
        )
        result: str = graph.add("DequantizeLinear", *parameters, axis=0 if scale.ndim else None)
        return result

    def _output_grid(self, layer: Layer, qparams: QParams | None) -> ActivationGrid | None:
        return None if qparams is None else _activation_grid(layer.name, "output", qparams)

    def _moves_as_codes(self, layer: Layer, operand: Any) -> tuple[Value, ActivationGrid] | None:
        """The codes of a maximum's operand: the greatest of values is the greatest of codes."""
        if layer.op != "max_pool" or not isinstance(operand, Value):
            return None
        found = self.coded.get(operand.name)
        return found if found is not None and found[1].dtype in _MOVED_AS_CODES and found[1].per_tensor else None

    # --- values

    def _real(self, value: str) -> Any:
        """``value`` as reals, its codes dequantized once."""
        if value not in self.reals:
            codes, grid = self.codes[value]
            self.reals[value] = self._dequantized(codes, grid)
        return self.reals[value]

    def _dequantized(self, codes: Value, grid: ActivationGrid) -> Value:
        result = Value(grid.write_dequantize(self.graph, codes.name), codes.shape)
        self.coded[result.name] = codes, grid
        return result

    def _on_grid(self, value: str, qparams: QParams) -> Value:
        """``value`` on a grid that its producer did not put it on; one pair for all readers that want it."""
        key = (value, id(qparams))
        if key not in self.quantized:
            grid = _activation_grid(self.graph.scope, "input", qparams)
            self.quantized[key] = self._dequantized(self._quantize(self._real(value), grid, None), grid)
        return self.quantized[key]

    def _quantize(self, x: Value, grid: ActivationGrid, bounds: Bounds | None) -> Value:
        """``x`` clipped to ``bounds`` as codes of ``grid``."""
        rank = len(x.shape)
        ends: list[Any] = [0, grid.highest]
        for i, bound in enumerate(() if bounds is None else (bounds.low, bounds.high)):
            if bound is not None:
                ends[i] = grid.codes(bound.tensor if isinstance(bound, Constant) else torch.tensor(float(bound)), rank)
        low, high = (np.asarray(end) for end in ends)
        type_high = np.iinfo(grid.dtype).max
        open_below, open_above = bool((low == 0).all()), bool((high == type_high).all())
        call = Call(self.graph, x.shape)
        if open_below and open_above:
            return Value(grid.write_quantize(self.graph, x.name), x.shape)
        if low.size == 1 and high.size == 1 and grid.dtype in _MOVED_AS_CODES:
            codes = grid.write_quantize(self.graph, x.name)
            limits = (self.graph.constant(end.reshape(()), grid.dtype) for end in (low, high))
            return Value(self.graph.add("Clip", codes, *limits), x.shape)
        if grid.dtype in _MOVED_AS_CODES:
            codes = grid.write_quantize(self.graph, x.name)
            for op_type, end, is_open in (("Max", low, open_below), ("Min", high, open_above)):
                if not is_open:
                    codes = self.graph.add(op_type, codes, self.graph.constant(end, grid.dtype))
            return Value(codes, x.shape)
        # No kernels for 16-bit codes to spare: the same clip on the reals that the end codes stand for.
        clipped = x.name
        for op_type, end, is_open in (("Max", low, open_below), ("Min", high, open_above)):
            if not is_open:
                clipped = call.add(op_type, clipped, self.graph.constant(_reals(grid, end, rank)))
        return Value(grid.write_quantize(self.graph, clipped), x.shape)

    # --- movements and what is no layer

    def _movement(self, step: Step, node: fx.Node) -> None:
        name = step.writes
        if _operator(node) == "getitem":
            self._item(name, node)
            return
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        shape = self.shapes[name]
        call = Call(self.graph, shape)
        if source is not None and name in self.program.network.origins and source.name in self.codes:
            codes, grid = self.codes[source.name]
            if grid.dtype in _MOVED_AS_CODES and grid.per_tensor:
                self._note(name, self._moved(node, call, codes, grid), shape, grid)
                return
        arguments = list(self._arguments(node, {}))
        self._note(name, self._moved(node, call, arguments[0], None, arguments), shape, None)

    def _moved(
        self, node: fx.Node, call: Call, source: Any, grid: ActivationGrid | None, arguments: Sequence[Any] = ()
    ) -> Any:
        """Names of the node's results, ``source`` being reals, or codes of ``grid``."""
        operator = _operator(node)
        rest = list(arguments[1:]) or [self._argument(argument, {}) for argument in node.args[1:]]
        if operator in ("split", "split_with_sizes", "chunk", "unbind"):
            position = 0 if operator == "unbind" else 1
            dim = rest[position] if len(rest) > position else node.kwargs.get("dim", 0)
            return write_parts(self.graph, source, call.shape, dim, operator == "unbind")  # type: ignore[arg-type]
        if grid is not None and pads_with(node.target, node.args) is not None:
            zero = self.graph.constant(grid.zero_point, grid.dtype)
            return WRITERS["pad"](call, source, rest[0], zero=zero)
        return self._write(node, call, [source, *rest])

    def _note(self, name: str, result: Any, shape: Any, grid: ActivationGrid | None) -> None:
        if isinstance(result, tuple):
            values = tuple(Value(part, part_shape) for part, part_shape in zip(result, shape, strict=True))
            self.reals[name] = tuple((value, grid) for value in values)
        elif grid is None:
            self.reals[name] = Value(result, shape)
        else:
            self.codes[name] = Value(result, shape), grid

    def _item(self, name: str, node: fx.Node) -> None:
        parts, index = node.args
        assert isinstance(parts, fx.Node)
        value, grid = self.reals[parts.name][index]
        if grid is None:
            self.reals[name] = value
        else:
            self.codes[name] = value, grid

    # --- arguments

    def _arguments(self, node: fx.Node, over: Mapping[str, Any]) -> list[Any]:
        return [self._argument(argument, over) for argument in node.args]

    def _argument(self, argument: Any, over: Mapping[str, Any]) -> Any:
        def found(leaf: Any) -> Any:
            if not isinstance(leaf, fx.Node):
                return leaf
            if leaf.op != "get_attr":
                return over[leaf.name] if leaf.name in over else self._real(leaf.name)
            key = str(leaf.target)
            return over[key] if key in over else Constant(key, self.program.network.tensors[key])

        return pytree.tree_map(found, argument)

    def _write(self, node: fx.Node, call: Call, arguments: Sequence[Any]) -> Any:
        operator = _operator(node)
        writer = WRITERS.get(operator)
        if writer is None:
            raise QuantopsyError(
                f"operator {node.target} of {self.graph.scope!r}",
                "there is no ONNX form of it here",
                "replace it in the model by operators of convolutional networks",
            )
        keywords = {key: self._argument(value, {}) for key, value in node.kwargs.items()}
        return writer(call, *arguments, **keywords)


def _operator(node: fx.Node) -> str:
    target: Any = node.target
    return target._schema.name.removeprefix("aten::") if hasattr(target, "_schema") else target.__name__


def _activation_grid(layer: str, role: str, qparams: QParams) -> ActivationGrid:
    if not isinstance(qparams, UniformQParams):
        raise QuantopsyError(
            f"{role} of layer {layer!r}",
            "ONNX quantizes activations to evenly spaced levels only",
            "give kind uniform to inputs and outputs",
        )
    return ActivationGrid.of(qparams)


def _reals(grid: ActivationGrid, codes: np.ndarray, rank: int) -> np.ndarray:
    scale, zero_point = grid.scale, grid.zero_point.astype(np.int64)
    if grid.axis is not None:
        laid = [-1 if dim == grid.axis % rank else 1 for dim in range(rank)]
        scale, zero_point = scale.reshape(laid), zero_point.reshape(laid)
    return ((codes - zero_point) * scale).astype(np.float32)


BIAS_CODES = 2**30  # half of int32's range: the other half is the sum's


def _with_bias(
    stored: StoredWeight, weight: Tensor, bias: Tensor, input_scale: float, layer: Layer
) -> tuple[StoredWeight, tuple[np.ndarray, np.ndarray] | None]:
    """The bias as int32 codes and their scale ``s_x s_w``, and the weight, whose scale it may have to enlarge.

    A channel whose weights are next to nothing has a scale so small that its bias leaves int32: there the weight
    gets the smallest scale at which the bias fits, which moves its results by less than 2^-29 of the bias for every
    tap and code of the input. No integers (None) for a weight in groups or of more than 8 bits.
    """
    if stored.qparams.group_size is not None or stored.bits > 8:
        return stored, None
    per_channel = stored.qparams.axis is not None
    needed = (bias.double().abs() / BIAS_CODES / input_scale).float()
    if per_channel:
        needed = needed.reshape(-1, len(stored.qparams.scale)).amax(0)  # groups of a transposed one share a scale
    else:
        needed = needed.amax()
    if bool((needed > stored.qparams.scale).any()):
        scale = torch.maximum(stored.qparams.scale, needed)
        stored = StoredWeight.of(weight, replace(stored.qparams, scale=scale))
    scales = stored.qparams.scale.numpy() * np.float32(input_scale)
    if per_channel:
        scales = np.tile(scales, len(bias) // len(scales))
    codes = np.round(bias.double().numpy() / scales.astype(np.float64))
    return stored, (codes.astype(np.int32), scales.astype(np.float32))


def _shapes(program: Program) -> dict[str, Any]:
    """Shape of every value, None where the number of images decides; a plain number as itself, or None."""
    runs = []
    for images in (2, 3):
        values = program.place([torch.zeros(images, *shape) for shape in program.network.input_shapes])
        with torch.inference_mode():
            program.forward(values, keep=True)
        runs.append(values)

    def shape(first: Any, second: Any) -> Any:
        if isinstance(first, Tensor):
            return tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
        if isinstance(first, list | tuple):
            return tuple(shape(a, b) for a, b in zip(first, second, strict=True))
        return first if first == second else None

    return {name: shape(value, runs[1][name]) for name, value in runs[0].items()}
