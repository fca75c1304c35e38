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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, LayerQuantizers
from quantopsy.export.onnx.aten import (
    WRITERS,
    Bounds,
    Call,
    UnsupportedError,
    clip_bounds,
    write_clip,
    write_integer_convolution,
    write_integer_linear,
    write_parts,
)
from quantopsy.export.onnx.grids import ActivationGrid
from quantopsy.export.onnx.weights import CodedWeight, StoredWeight, stored_weight, with_integer_bias
from quantopsy.export.onnx.writer import Constant, OnnxWriter, Value
from quantopsy.graph.execute import Program, Step, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.operators import ACTIVATIONS, WEIGHTED_SUMS, pads_with
from quantopsy.quant import QParams, UniformQParams

OPSET = 21  # the first with 4- and 16-bit integers in Q and DQ
FLOAT_WEIGHTS = "quantopsy.float_weights"
CODES_NAME = "{}.codes"  # of a value of the network; its names have no dots
WEIGHT_CODES_NAME = "{}.weight.codes"  # as weights.py names them behind a layer's name
BIAS_CODES_NAME, BIAS_SCALE_NAME = "{}.bias.codes", "{}.bias.scale"
_NO_QUANTIZERS = LayerQuantizers((), None, None, None)


def to_onnx(
    network: Network,
    plan: Plan,
    calibration: Calibration,
    *,
    opset: int = OPSET,
    integer_convolutions: bool = False,
) -> onnx.ModelProto:
    """``network`` under ``plan``, ranges from ``calibration``; an empty plan gives the float network.

    Weights are stored as integers. On a uniform grid they are dequantized by DequantizeLinear: per tensor, per channel,
    a bias beside them being int32 on the scale ``s_x s_w``. On other grids, as sums of several
    tensors and corrected, they are codes that operators of constants turn into reals. Only where codes and tables take
    as much as the reals are those stored; the model's metadata ``quantopsy.float_weights`` names these layers with the
    reason (JSON). Inputs and outputs keep the network's names; the number of images is free.

    QDQ has integer kernels for a layer whose result is rounded at once and whose weight has one grid a channel: not
    for a convolution behind which a PReLU or SiLU still computes in reals, nor for a piecewise weight, which is two
    tensors of integers (PWLQ section 4), or another sum. ``integer_convolutions`` writes those as ConvInteger, a linear
    layer as MatMulInteger, one for each tensor: all sums are of integers then, but ONNX Runtime's convolution is much
    slower so than in float, and other runtimes may lack it.

    Raises :class:`QuantopsyError` for an operator or a grid that ONNX has no form for, naming the
    layer.
    """
    if opset < OPSET:
        raise QuantopsyError(f"opset {opset}", "it has no 4- and 16-bit integers", f"give {OPSET} or higher")
    export = _Export(compile_network(network), plan, calibration, OnnxWriter(opset), integer_convolutions)
    return export.model()


@dataclass
class _Export:
    """Walks the steps of a program; every value of the network is known as reals, as codes, or as both."""

    program: Program
    plan: Plan
    calibration: Calibration
    graph: OnnxWriter
    integer_convolutions: bool
    reals: dict[str, Any] = field(default_factory=dict)  # network value -> Value, tuple of them, or number
    codes: dict[str, tuple[Value, ActivationGrid]] = field(default_factory=dict)  # network value -> codes
    coded: dict[str, tuple[Value, ActivationGrid]] = field(default_factory=dict)  # ONNX reals -> codes they come from
    quantized: dict[tuple[str, int], Value] = field(default_factory=dict)
    rounded: set[str] = field(default_factory=set)  # ONNX codes that nothing has cut or moved since QuantizeLinear
    float_weights: dict[str, str] = field(default_factory=dict)
    integer_weights: set[str] = field(default_factory=set)

    def model(self) -> onnx.ModelProto:
        program, network = self.program, self.program.network
        for key, tensor in network.tensors.items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise QuantopsyError(f"tensor {key!r}", f"it is {tensor.dtype}", "convert the model with .float()")
        self.shapes = _shapes(program)
        self.engine = ExactEngine(program, self.calibration)
        prepared = self.engine.prepare(self.plan).quantizers if self.plan.sites else {}
        inputs = []
        for name, image in zip(network.input_names, network.zeros(1), strict=True):
            value = Value(self.graph.unique(name), (None, *image.shape[1:]), image.numpy().dtype)
            inputs.append(value)
            if not image.is_floating_point():  # bytes of pixels, say, with which ONNX computes no reals
                value = Value(self.graph.add("Cast", name, to=onnx.TensorProto.FLOAT), value.shape)
            self.reals[name] = value
        nodes = {node.name: node for node in network.graph.nodes}
        for step in program.steps:
            self._step(step, nodes, prepared.get(step.index, _NO_QUANTIZERS))
        outputs = []
        self.graph.scope = ""
        for name in program.outputs:
            value = self._real(name)
            output = self.graph.unique(f"{name}_output" if name in network.input_names else name)
            self.graph.nodes.append(
                onnx.helper.make_node("Identity", [value.name], [output], name=f"{output}/Identity")
            )
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
        except UnsupportedError as reason:
            raise QuantopsyError(
                f"operator {node.target} of {self.graph.scope!r}",
                f"ONNX has no form for {reason}",
                "write the model without it",
            ) from None

    # --- layers

    def _layer(self, step: Step, layer: Layer, node: fx.Node, last: fx.Node, quantizers: LayerQuantizers) -> None:
        over: dict[str, Any] = {value: self._on_grid(value, qparams) for value, qparams in quantizers.inputs}
        grid = None if quantizers.output is None else activation_grid(layer.name, "output", quantizers.output)
        activation = last if last is not node or node.target in ACTIVATIONS else None
        behind = [self._argument(argument, over) for argument in activation.args[1:]] if activation is not None else []
        bounds = clip_bounds(_operator(activation), behind) if activation is not None else None
        rounded_next = grid is not None and (activation is None or bounds is not None)
        shape = self.shapes[step.writes]
        call = Call(self.graph, shape)
        result = self._operation(layer, node, call, quantizers, over, rounded_next)
        if activation is not None and bounds is None:
            result = Value(self._write(activation, call, [result, *behind]), shape)
        elif bounds is not None and grid is None:
            result = Value(write_clip(call, result, bounds), shape)
        if grid is None:
            self.reals[step.writes] = result
            return
        name = CODES_NAME.format(step.writes)
        in_reals = layer.weight is not None and layer.name not in self.integer_weights
        self.codes[step.writes] = self._quantize(result, grid, bounds, name, in_reals), grid

    def _operation(
        self,
        layer: Layer,
        node: fx.Node,
        call: Call,
        quantizers: LayerQuantizers,
        over: dict[str, Any],
        rounded_next: bool,
    ) -> Value:
        """What the layer gives in front of its activation function."""
        if node.target in ACTIVATIONS:
            operand: Value = self._argument(node.args[0], over)
            return operand
        weight, bias = self._constants(layer, quantizers)
        source = self._argument(node.args[0], over)
        coded = self.coded.get(source.name) if isinstance(source, Value) else None
        if layer.op == "max_pool" and coded is not None and _moves_as_codes(coded[1]):
            # The greatest of values is the greatest of codes.
            rest = [self._argument(argument, over) for argument in node.args[1:]]
            return self._dequantized(Value(self._write(node, call, [coded[0], *rest]), call.shape), coded[1])
        if layer.op == "avg_pool" and coded is not None and _moves_as_codes(coded[1]):
            rest = [self._argument(argument, over) for argument in node.args[1:]]
            if (padded := pad_average(call, *coded, rest)) is not None:
                codes, rest = padded
                return Value(self._write(node, call, [self._dequantized(codes, coded[1]), *rest]), call.shape)
        stored = None if weight is None or quantizers.weight is None else self._stored(layer, weight, quantizers.weight)
        in_terms = stored is not None and self._in_terms(layer, stored, coded, rounded_next)
        if in_terms or isinstance(stored, StoredWeight):
            self.integer_weights.add(layer.name)
        if in_terms:
            assert stored is not None
            assert coded is not None
            return Value(self._integer_products(layer, call, stored, coded, bias, node.args[3:]), call.shape)
        if weight is not None and quantizers.weight is not None:
            new_bias = self._put_weight(layer, quantizers, over, source, weight, bias, stored)
        else:
            new_bias = None
        arguments = [self._argument(argument, over) for argument in node.args]
        if new_bias is not None:
            arguments = [*arguments, None][: max(3, len(arguments))]
            arguments[2] = new_bias
        return Value(self._write(node, call, arguments), call.shape)

    def _constants(self, layer: Layer, quantizers: LayerQuantizers) -> tuple[Tensor | None, Tensor | None]:
        """The layer's float weight, and its bias with the correction that the plan wants."""
        tensors = self.program.network.tensors
        weight = tensors[layer.weight] if layer.weight is not None else None
        bias = tensors[layer.bias] if layer.bias is not None else None
        if quantizers.shift is not None:
            shift = quantizers.shift.flatten()
            bias = -shift if bias is None else bias - shift
        return weight, bias

    def _put_weight(
        self,
        layer: Layer,
        quantizers: LayerQuantizers,
        over: dict[str, Any],
        source: Value,
        weight: Tensor,
        bias: Tensor | None,
        stored: StoredWeight | CodedWeight | None,
    ) -> Constant | None:
        """Put the quantized weight into ``over``; the bias that goes with it, where it is not the network's own."""
        assert layer.weight is not None
        assert quantizers.weight is not None
        turned = layer.op == "linear" and len(source.shape) != 2  # a MatMul reads it so, a Gemm as it is
        name, integers = f"{layer.name}.weight", None
        if stored is None:
            w_hat = self.engine.quantized_weight(layer, quantizers.weight)
            written = self.graph.weight(name, (w_hat.T if turned else w_hat).contiguous().numpy())
        elif isinstance(stored, CodedWeight):
            written = stored.write(self.graph, name)
            written = self.graph.add("Transpose", written, perm=[1, 0]) if turned else written
        else:
            grid = self.coded[source.name][1] if source.name in self.coded else None
            input_scale = float(grid.scale) if grid is not None and grid.per_tensor else None
            if bias is not None and layer.op != "batch_norm":
                stored, integers = with_integer_bias(stored, bias, input_scale)
            written = (stored.transposed if turned else stored).write(self.graph, name)
        over[layer.weight] = Constant(layer.weight, weight, written)
        if bias is None or (integers is None and quantizers.shift is None):
            return None
        name = f"{layer.name}.bias"
        if integers is None:
            return Constant(name, bias, self.graph.initializer(name, bias.detach().numpy()))
        return Constant(name, bias, self._write_bias(layer, *integers))

    def _in_terms(
        self,
        layer: Layer,
        stored: StoredWeight | CodedWeight,
        coded: tuple[Value, ActivationGrid] | None,
        rounded_next: bool,
    ) -> bool:
        """Whether the layer is written as products of integers, because DequantizeLinear would leave it in reals."""
        return (
            self.integer_convolutions
            and not (rounded_next and isinstance(stored, StoredWeight))
            and layer.op in WEIGHTED_SUMS  # what ConvInteger and MatMulInteger compute
            and coded is not None
            and _moves_as_codes(coded[1])
            and stored.has_terms
        )

    def _integer_products(
        self,
        layer: Layer,
        call: Call,
        stored: StoredWeight | CodedWeight,
        coded: tuple[Value, ActivationGrid],
        bias: Tensor | None,
        arguments: Sequence[Any],
    ) -> str:
        """Sums that go on as reals, ``sum_t s_x s_t <q_x - z_x, q_t - z_t> + b``."""
        graph, (codes, grid) = self.graph, coded
        assert layer.weight_shape is not None
        kernel = list(layer.weight_shape[2:])
        laid = (-1, *[1] * len(kernel))
        result = ""
        for term in stored.write_terms(graph, f"{layer.name}.weight"):
            zeros = graph.constant(grid.zero_point, grid.dtype), graph.constant(term.zero_point, term.dtype)
            operands = (codes.name, term.codes, *zeros)
            if layer.op == "linear":
                sums = write_integer_linear(call, operands)
            else:
                sums = write_integer_convolution(call, operands, kernel, arguments)
            scale = (term.scale.numpy() * grid.scale).astype(np.float32).reshape(laid)
            part = call.add("Mul", call.add("Cast", sums, to=onnx.TensorProto.FLOAT), graph.constant(scale))
            result = call.add("Add", result, part) if result else part
        return result if bias is None else call.add("Add", result, graph.constant(bias.detach().numpy().reshape(laid)))

    def _stored(self, layer: Layer, weight: Tensor, spec: Spec) -> StoredWeight | CodedWeight | None:
        """The weight as integers, or None with the reason noted."""
        stored, reason = stored_weight(self.calibration, layer, spec, weight)
        if stored is None:
            self.float_weights[layer.name] = reason
        return stored

    def _write_bias(self, layer: Layer, codes: np.ndarray, scale: np.ndarray) -> str:
        graph = self.graph
        parameters = (
            graph.initializer(BIAS_CODES_NAME.format(layer.name), codes),
            graph.initializer(BIAS_SCALE_NAME.format(layer.name), scale),
            graph.constant(np.zeros_like(scale), np.int32),
        )
        return graph.add("DequantizeLinear", *parameters, axis=0 if scale.ndim else None)

    # --- values

    def _real(self, value: str) -> Any:
        """``value`` as reals, its codes dequantized once."""
        if value not in self.reals:
            codes, grid = self.codes[value]
            self.reals[value] = self._dequantized(codes, grid)
        return self.reals[value]

    def _dequantized(self, codes: Value, grid: ActivationGrid) -> Value:
        result = Value(grid.write_dequantize(self.graph, codes), codes.shape)
        self.coded[result.name] = codes, grid
        return result

    def _on_grid(self, value: str, qparams: QParams) -> Value:
        """``value`` on a grid that its producer did not put it on; one pair for all readers that want it."""
        key = (value, id(qparams))
        if key not in self.quantized:
            grid = activation_grid(self.graph.scope, "input", qparams)
            codes = self._quantize(self._real(value), grid, None, CODES_NAME.format(value))
            self.quantized[key] = self._dequantized(codes, grid)
        return self.quantized[key]

    def _quantize(
        self,
        x: Value,
        grid: ActivationGrid,
        bounds: Bounds | None,
        result: str | None = None,
        in_reals: bool = False,
    ) -> Value:
        """``x`` clipped to ``bounds`` as codes of ``grid``, called ``result``.

        With ``in_reals`` a clip is written in front of the rounding, at least the one at the grid's lower end: ONNX
        Runtime quantizes float weights to 8 bits on its own where a rounding follows their layer immediately. So it is
        between two pairs, of which ONNX Runtime would make one on a third grid.
        """
        rank, add, constant = len(x.shape), self.graph.add, self.graph.constant
        low, high = np.asarray(0), np.asarray(grid.highest)
        if bounds is not None and bounds.low is not None:
            low = grid.encode(_array(bounds.low), rank)
        if bounds is not None and bounds.high is not None:
            high = grid.encode(_array(bounds.high), rank)
        ends = [("Max", low)] if (low > 0).any() else []
        ends += [("Min", high)] if (high < np.iinfo(grid.dtype).max).any() else []
        again = x.name in self.coded and self.coded[x.name][0].name in self.rounded
        if (in_reals or again) and not ends:
            in_reals, ends = True, [("Max", low)]
        if not ends:
            codes = grid.write_quantize(self.graph, x.name, result)
            self.rounded.add(codes)
            return Value(codes, x.shape)
        if in_reals or grid.dtype != np.uint8:  # runtimes lack kernels for 16-bit codes
            # The same clip on the reals that the end codes stand for.
            clipped = x.name
            for op_type, end in ends:
                clipped = add(op_type, clipped, constant(grid.decode(end, rank)))
            codes = grid.write_quantize(self.graph, clipped, result)
            self.rounded.add(codes)
            return Value(codes, x.shape)
        codes = grid.write_quantize(self.graph, x.name)
        if low.size == high.size == 1:
            limits = (constant(end.reshape(()), grid.dtype) for end in (low, high))
            return Value(add("Clip", codes, *limits, result=result), x.shape)
        for i, (op_type, end) in enumerate(ends, 1):
            codes = add(op_type, codes, constant(end, grid.dtype), result=result if i == len(ends) else None)
        return Value(codes, x.shape)

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
            if _moves_as_codes(grid):
                self._note(name, self._moved(node, call, codes, grid), shape, grid)
                return
        arguments = [self._argument(argument, {}) for argument in node.args]
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


def _array(bound: Any) -> np.ndarray:
    return bound.tensor.detach().numpy() if isinstance(bound, Constant) else np.asarray(bound)


def activation_grid(layer: str, role: str, qparams: QParams) -> ActivationGrid:
    """The grid as ONNX has it. Raises :class:`QuantopsyError` for one whose levels are not evenly spaced."""
    if not isinstance(qparams, UniformQParams):
        raise QuantopsyError(
            f"{role} of layer {layer!r}",
            "ONNX quantizes activations to evenly spaced levels only",
            "give kind uniform to inputs and outputs",
        )
    return ActivationGrid.of(qparams)


def _moves_as_codes(grid: ActivationGrid) -> bool:
    """Whether runtimes have kernels that move codes of ``grid``."""
    return grid.dtype == np.uint8 and grid.per_tensor


def pad_average(
    call: Call, codes: Value, grid: ActivationGrid, arguments: Sequence[Any]
) -> tuple[Value, list[Any]] | None:
    """The zeros that an average pooling counts in, put around ``codes``; with them the arguments that are left.

    ``arguments``: kernel, stride, padding, ceil mode, whether to count the padding, divisor. None without such zeros.
    They stand in front of DequantizeLinear because OpenVINO 2026.4 pads codes with 0, not with their zero point, where
    the pooling itself pads, and moves a Pad behind DequantizeLinear into the pooling.
    """
    left_out: tuple[Any, ...] = ((), 0, False, True, None)[len(arguments) - 1 :]
    kernel, stride, padding, ceil, counted, divisor = (*arguments, *left_out)
    count = len(codes.shape) - 2
    pads = list(padding) if isinstance(padding, list | tuple) else [padding]
    pads = pads * count if len(pads) == 1 else pads
    if not counted or not any(pads):
        return None
    zero = call.graph.constant(grid.zero_point, grid.dtype)
    sides = [pad for pad in reversed(pads) for _ in range(2)]
    sizes = (None if size is None else size + 2 * pad for size, pad in zip(codes.shape[2:], pads, strict=True))
    padded = Value(str(WRITERS["pad"](call, codes, sides, zero=zero)), (*codes.shape[:2], *sizes))
    return padded, [kernel, stride, [0] * count, ceil, False, divisor]


def _shapes(program: Program) -> dict[str, Any]:
    """Shape of every value, None where the number of images decides; a plain number as itself, or None."""
    runs = []
    for images in (2, 3):
        values = program.place(program.network.zeros(images))
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
