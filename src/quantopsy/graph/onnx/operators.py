"""What every ONNX operator is in torch: a function of the node and its operands, as ONNX orders them.

An operand is a tensor, a constant of the file, or sizes (:mod:`quantopsy.graph.onnx.values`); one that is left out is
None. The calls are those that capture knows layers by, so a network read from ONNX has the layers of the network
that it was exported from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.graph.onnx import windows
from quantopsy.graph.onnx.graph import Node, UnsupportedError
from quantopsy.graph.onnx.resize import resize
from quantopsy.graph.onnx.values import Constant, Value, integers, number, operand, plain_numbers, sizes, static, tensor

READERS: dict[str, Callable[..., Any]] = {}
LARGEST_RANGE = 2**24

# Codes of TensorProto; all real types are computed in float32.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,
    11: torch.float32,
    16: torch.float32,
}


def _reads(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        READERS.update(dict.fromkeys(names.split(), function))
        return function

    return register


def _on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of tensors and nothing else."""
    return lambda node, *operands: function(node, *(None if x is None else tensor(x) for x in operands))


def _alone(node: Node) -> None:
    """Raise for a second result that somebody may read."""
    if any(node.outputs[1:]):
        raise UnsupportedError("its second result")


def _axis(axis: Any, rank: int) -> int:
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} of {rank} dimensions")
    return axis % rank


def _axes(given: Value | None, rank: int) -> list[int] | None:
    if given is None:
        return None
    return [_axis(axis, rank) for axis in integers(given, "axes")]


# --- convolutions, products, pooling

READERS |= {
    "Conv": _on_tensors(windows.conv),
    "ConvTranspose": _on_tensors(windows.conv_transpose),
    "AveragePool": _on_tensors(windows.average_pool),
    "GlobalAveragePool": _on_tensors(windows.global_average_pool),
    "GlobalMaxPool": _on_tensors(windows.global_max_pool),
    "LRN": _on_tensors(windows.local_response_norm),
    "Resize": lambda node, x, *rest: resize(node, tensor(x), *rest),
}


@_reads("MaxPool")
def _max_pool(node: Node, x: Value) -> Tensor:
    _alone(node)
    return windows.max_pool(node, tensor(x))


@_reads("Gemm")
def _gemm(node: Node, x: Value, y: Value, bias: Value | None = None) -> Tensor:
    a, weight = tensor(x), tensor(y)
    if a.dim() != 2 or weight.dim() != 2:
        raise UnsupportedError("operands that are no matrices")
    if node.attributes["transA"]:
        a = a.t()
    if not node.attributes["transB"]:
        weight = weight.t()
    if node.attributes["alpha"] != 1:
        weight = weight * node.attributes["alpha"]
    if bias is None or node.attributes["beta"] == 0:
        return F.linear(a, weight)
    shift = tensor(bias)
    if node.attributes["beta"] != 1:
        shift = shift * node.attributes["beta"]
    width = weight.shape[0]
    if shift.shape[-1:] == (width,) and shift.numel() == width:
        return F.linear(a, weight, shift.reshape(-1) if shift.dim() > 1 else shift)
    if shift.numel() == 1:
        return F.linear(a, weight, shift.reshape(1).expand(width))
    return F.linear(a, weight) + shift


@_reads("MatMul")
def _matmul(node: Node, x: Value, y: Value, bias: Value | None = None) -> Tensor:
    """With a constant matrix it is a linear layer; ``bias`` is what an Add behind it added."""
    if isinstance(y, Constant) and y.array.ndim == 2 and not isinstance(x, Constant) and tensor(x).dim() > 1:
        return F.linear(tensor(x), y.tensor.t(), None if bias is None else tensor(bias))
    product = tensor(x) @ tensor(y)
    return product if bias is None else product + tensor(bias)


@_reads("Einsum")
def _einsum(node: Node, *operands: Value) -> Tensor:
    return torch.einsum(node.attributes["equation"], *map(tensor, operands))


# --- normalisation


@_reads("BatchNormalization")
def _batch_norm(node: Node, x: Value, weight: Value, bias: Value, mean: Value, variance: Value) -> Tensor:
    _alone(node)
    if node.attributes.get("training_mode"):
        raise UnsupportedError("training_mode: it is not the network that runs")
    return F.batch_norm(
        tensor(x), tensor(mean), tensor(variance), tensor(weight), tensor(bias), False, 0.0, node.attributes["epsilon"]
    )


@_reads("InstanceNormalization")
def _instance_norm(node: Node, x: Value, weight: Value, bias: Value) -> Tensor:
    return F.instance_norm(
        tensor(x), weight=tensor(weight), bias=tensor(bias), use_input_stats=True, eps=node.attributes["epsilon"]
    )


@_reads("LayerNormalization")
def _layer_norm(node: Node, x: Value, weight: Value, bias: Value | None = None) -> Tensor:
    _alone(node)
    data = tensor(x)
    shape = static(data.shape[_axis(node.attributes["axis"], data.dim()) :], "axes")
    scale, shift = (None if given is None else tensor(given).expand(shape) for given in (weight, bias))
    return F.layer_norm(data, shape, scale, shift, node.attributes["epsilon"])


@_reads("RMSNormalization")
def _rms_norm(node: Node, x: Value, weight: Value) -> Tensor:
    data = tensor(x)
    shape = static(data.shape[_axis(node.attributes["axis"], data.dim()) :], "axes")
    return F.rms_norm(data, shape, tensor(weight).expand(shape), node.attributes["epsilon"])


@_reads("GroupNormalization")
def _group_norm(node: Node, x: Value, weight: Value, bias: Value) -> Tensor:
    data, groups = tensor(x), node.attributes["num_groups"]
    if groups < 1 or data.dim() < 2 or data.shape[1] % groups:
        raise UnsupportedError(f"{groups} groups of channels {tuple(data.shape[1:2])}")
    scale, shift = tensor(weight), tensor(bias)
    if node.version < 21:  # one value a group
        scale, shift = (given.repeat_interleave(data.shape[1] // groups) for given in (scale, shift))
    return F.group_norm(data, groups, scale, shift, node.attributes["epsilon"])


@_reads("LpNormalization")
def _lp_norm(node: Node, x: Value) -> Tensor:
    return F.normalize(tensor(x), float(node.attributes["p"]), node.attributes["axis"])


# --- activation functions


@_reads("Clip")
def _clip(node: Node, x: Value, low: Value | None = None, high: Value | None = None) -> Tensor:
    least, most = number(low, "bounds"), number(high, "bounds")
    if least is None and most is None:
        return tensor(x)
    if least is not None and most is not None and least > most:
        least = most
    if least == 0 and (most is None or most >= np.finfo(np.float32).max):
        return F.relu(tensor(x))
    return torch.clamp(tensor(x), least, most)


@_reads("PRelu")
def _prelu(node: Node, x: Value, slope: Value) -> Tensor:
    data, factor = tensor(x), tensor(slope)
    channels = data.shape[1] if data.dim() > 1 else 1
    laid = (1,) * (data.dim() - factor.dim()) + tuple(factor.shape)
    if factor.numel() == 1 or laid == (1, channels, *[1] * (data.dim() - 2)):
        return F.prelu(data, factor.reshape(-1))
    return torch.where(data < 0, data * factor, data)


@_reads("Elu")
def _elu(node: Node, x: Value) -> Tensor:
    return F.elu(tensor(x), node.attributes["alpha"])


@_reads("Celu")
def _celu(node: Node, x: Value) -> Tensor:
    return F.celu(tensor(x), node.attributes["alpha"])


@_reads("Selu")
def _selu(node: Node, x: Value) -> Tensor:
    alpha, gamma = node.attributes["alpha"], node.attributes["gamma"]
    if math.isclose(alpha, 1.67326319217681884765625) and math.isclose(gamma, 1.05070102214813232421875):
        return F.selu(tensor(x))
    return gamma * F.elu(tensor(x), alpha)


@_reads("LeakyRelu")
def _leaky_relu(node: Node, x: Value) -> Tensor:
    return F.leaky_relu(tensor(x), node.attributes["alpha"])


@_reads("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Value) -> Tensor:
    return F.threshold(tensor(x), node.attributes["alpha"], 0.0)


@_reads("HardSigmoid")
def _hard_sigmoid(node: Node, x: Value) -> Tensor:
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(tensor(x))
    return torch.clamp(tensor(x) * alpha + beta, 0.0, 1.0)


@_reads("Gelu")
def _gelu(node: Node, x: Value) -> Tensor:
    return F.gelu(tensor(x), approximate=node.attributes["approximate"])


@_reads("Swish")
def _swish(node: Node, x: Value) -> Tensor:
    alpha, data = node.attributes["alpha"], tensor(x)
    return F.silu(data) if alpha == 1 else data * torch.sigmoid(data * alpha)


@_reads("Softmax LogSoftmax")
def _softmax(node: Node, x: Value) -> Tensor:
    data = tensor(x)
    axis = _axis(node.attributes["axis"], data.dim())
    return data.softmax(axis) if node.op_type == "Softmax" else data.log_softmax(axis)


READERS |= {
    name: _on_tensors(lambda node, x, function=function: function(x))
    for name, function in {
        "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
        "Softplus": F.softplus, "Softsign": F.softsign, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
        "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Floor": torch.floor,
        "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
        "Not": torch.logical_not, "Identity": lambda x: x,
    }.items()
}  # fmt: skip


# --- arithmetic


def _both(function: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    """A function of two operands, of which one may be a number."""

    def read(node: Node, x: Value, y: Value) -> Tensor:
        if isinstance(x, Tensor):
            return function(x, operand(y, x.dim()))
        return function(operand(x, y.dim()) if isinstance(y, Tensor) else tensor(x), tensor(y))

    return read


def _divide(x: Any, y: Any) -> Any:
    if any(isinstance(v, Tensor) and v.is_floating_point() for v in (x, y)):
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


READERS |= {
    "Add": _both(operator.add),
    "Sub": _both(operator.sub),
    "Mul": _both(operator.mul),
    "Div": _both(_divide),
    "Pow": _both(operator.pow),
    "Equal": _both(operator.eq),
    "Less": _both(operator.lt),
    "LessOrEqual": _both(operator.le),
    "Greater": _both(operator.gt),
    "GreaterOrEqual": _both(operator.ge),
    "And": _on_tensors(lambda node, x, y: torch.logical_and(x, y)),
    "Or": _on_tensors(lambda node, x, y: torch.logical_or(x, y)),
    "Where": _on_tensors(lambda node, condition, x, y: torch.where(condition, x, y)),
}


@_reads("Mod")
def _mod(node: Node, x: Value, y: Value) -> Tensor:
    return torch.fmod(tensor(x), tensor(y)) if node.attributes["fmod"] else torch.remainder(tensor(x), tensor(y))


@_reads("Min Max Sum Mean")
def _several(node: Node, *operands: Value) -> Tensor:
    given = [tensor(x) for x in operands]
    functions: dict[str, Any] = {"Min": torch.minimum, "Max": torch.maximum}
    total = reduce(functions.get(node.op_type, operator.add), given)
    return total / len(given) if node.op_type == "Mean" else total


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}


@_reads(" ".join(_REDUCTIONS))
def _reduce(node: Node, x: Value, axes: Value | None = None) -> Tensor:
    data = tensor(x)
    given = node.attributes.get("axes") if axes is None else integers(axes, "axes")
    if not given:
        if node.attributes.get("noop_with_empty_axes"):  # of each value alone: |x|, x^2, ...
            return _REDUCTIONS[node.op_type](data.unsqueeze(-1), [-1], False)
        given = range(data.dim())
    keep = bool(node.attributes["keepdims"])
    if node.op_type == "ReduceMean" and keep and data.dim() == 4 and list(given) == [-1, -2]:
        return F.adaptive_avg_pool2d(data, (1, 1))  # torch's exporter writes that one so
    over = [_axis(axis, data.dim()) for axis in given]
    return _REDUCTIONS[node.op_type](data, over, keep)


@_reads("ReduceProd")
def _reduce_product(node: Node, x: Value, axes: Value | None = None) -> Tensor:
    data = tensor(x)
    given = node.attributes.get("axes") if axes is None else integers(axes, "axes")
    keep = bool(node.attributes["keepdims"])
    if not given and node.attributes.get("noop_with_empty_axes"):
        return data
    for axis in sorted((_axis(a, data.dim()) for a in given or range(data.dim())), reverse=True):
        data = data.prod(axis, keep)
    return data


@_reads("ArgMax ArgMin")
def _arg(node: Node, x: Value) -> Tensor:
    data = tensor(x)
    axis, keep = _axis(node.attributes["axis"], data.dim()), bool(node.attributes["keepdims"])
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    if node.attributes.get("select_last_index"):
        return data.shape[axis] - 1 - find(data.flip(axis), axis, keep)
    return find(data, axis, keep)


@_reads("CumSum")
def _cumulated(node: Node, x: Value, axis: Value) -> Tensor:
    data, along = tensor(x), _axis(number(axis, "axis"), tensor(x).dim())
    if node.attributes["reverse"]:
        data = data.flip(along)
    total = data.cumsum(along)
    if node.attributes["exclusive"]:
        total = total - data
    return total.flip(along) if node.attributes["reverse"] else total


# --- movements


@_reads("Concat")
def _concat(node: Node, *parts: Value) -> Tensor:
    tensors = [tensor(part) for part in parts]
    return torch.cat(tensors, _axis(node.attributes["axis"], tensors[0].dim()))


@_reads("Split")
def _split(node: Node, x: Value, lengths: Value | None = None) -> tuple[Tensor, ...]:
    data, count = tensor(x), len(node.outputs)
    axis = _axis(node.attributes["axis"], data.dim())
    if lengths is not None:
        parts = static(integers(lengths, "lengths"), "lengths")
    else:
        if node.attributes.get("num_outputs") not in (None, count):
            raise UnsupportedError(f"num_outputs {node.attributes['num_outputs']} with {count} results")
        (size,) = static([data.shape[axis]], "parts")
        each = -(-size // count)
        parts = [each] * (count - 1) + [size - each * (count - 1)]
    if len(parts) != count or min(parts) < 0:
        raise UnsupportedError(f"lengths {parts[:8]} for {count} results")
    return tuple(data.split_with_sizes(parts, axis))


@_reads("Slice")
def _slice(
    node: Node, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Tensor:
    data = tensor(x)
    begin, end = integers(starts, "starts"), integers(ends, "ends")
    over = _axes(axes, data.dim()) or list(range(len(begin)))
    strides = integers(steps, "steps") or [1] * len(begin)
    for axis, start, stop, step in zip(over, begin, end, strides, strict=True):
        if step == 0:
            raise UnsupportedError("a step of 0")
        if step > 0:
            data = data[(slice(None),) * axis + (slice(start, stop, step),)]
            continue
        (size,) = static([data.shape[axis]], "slices backwards")
        picked = range(size)[slice(start, None if stop < -size else stop, step)]
        if picked == range(size - 1, -1, -1):
            data = data.flip(axis)
        else:
            data = data.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return data


@_reads("Gather")
def _gather(node: Node, x: Value, indices: Value) -> Tensor:
    data = tensor(x)
    axis = _axis(node.attributes["axis"], data.dim())
    if isinstance(indices, Constant):
        (size,) = static([data.shape[axis]], "indices") if axis or isinstance(data.shape[0], int) else (2**62,)
        found = indices.array
        if found.size and not (-size <= found.min() and found.max() < size):
            raise UnsupportedError(f"an index outside 0 to {size - 1}")
        if found.ndim == 0:
            return data.select(axis, int(found))
        picked = torch.tensor(found.reshape(-1) % size)
        flat = data.index_select(axis, picked)
        return flat if found.ndim == 1 else flat.unflatten(axis, found.shape)
    index = tensor(indices)
    index = torch.where(index < 0, index + data.shape[axis], index)
    flat = data.index_select(axis, index.reshape(-1))
    return flat.reshape([*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]])


@_reads("GatherElements")
def _gather_elements(node: Node, x: Value, indices: Value) -> Tensor:
    data, index = tensor(x), tensor(indices)
    axis = _axis(node.attributes["axis"], data.dim())
    return data.gather(axis, torch.where(index < 0, index + data.shape[axis], index))


@_reads("Reshape")
def _reshape(node: Node, x: Value, shape: Value) -> Tensor:
    data, wanted = tensor(x), integers(shape, "shapes")
    if not node.attributes.get("allowzero"):
        wanted = [
            data.shape[i] if isinstance(dim, int) and dim == 0 and i < data.dim() else dim
            for i, dim in enumerate(wanted)
        ]
    return data.reshape(wanted)


@_reads("Flatten")
def _flatten(node: Node, x: Value) -> Tensor:
    data, axis = tensor(x), node.attributes["axis"]
    if not -data.dim() <= axis <= data.dim():
        raise UnsupportedError(f"axis {axis} of {data.dim()} dimensions")
    axis = axis if axis == data.dim() else axis % data.dim()
    if axis == 0:
        return data.reshape(1, -1)
    tail = data.flatten(axis) if axis < data.dim() else data.unsqueeze(-1)
    return tail.flatten(0, axis - 1) if axis > 1 else tail


@_reads("Transpose")
def _transpose(node: Node, x: Value) -> Tensor:
    data, order = tensor(x), node.attributes["perm"]
    order = list(reversed(range(data.dim()))) if order is None else order
    return data if list(order) == list(range(data.dim())) else data.permute(order)


@_reads("Squeeze")
def _squeeze(node: Node, x: Value, axes: Value | None = None) -> Tensor:
    data = tensor(x)
    given = _axes(axes, data.dim())
    if given is None:  # the first dimension is that of the images, also where there is one
        given = [axis for axis in range(1, data.dim()) if data.shape[axis] == 1]
    if 0 in given and not isinstance(x, Constant):
        raise UnsupportedError("taking away the dimension of the images")
    if any(data.shape[axis] != 1 for axis in given):
        raise UnsupportedError(f"axes {given} of {tuple(data.shape)}, which are not 1")
    return data.squeeze(given)


@_reads("Unsqueeze")
def _unsqueeze(node: Node, x: Value, axes: Value) -> Tensor:
    data, given = tensor(x), integers(axes, "axes")
    for axis in sorted(_axis(axis, data.dim() + len(given)) for axis in given):
        data = data.unsqueeze(axis)
    return data


@_reads("Expand")
def _expand(node: Node, x: Value, shape: Value) -> Tensor:
    data, wanted = tensor(x), integers(shape, "shapes")
    wanted = [1] * (data.dim() - len(wanted)) + wanted
    grown = len(wanted) - data.dim()
    # Either side may be the 1 that is repeated.
    dims = [-1 if i >= grown and isinstance(dim, int) and dim == 1 else dim for i, dim in enumerate(wanted)]
    return data.expand(dims)


@_reads("Tile")
def _tile(node: Node, x: Value, repeats: Value) -> Tensor:
    return tensor(x).repeat(static(integers(repeats, "repeats"), "repeats"))


@_reads("Pad")
def _pad(node: Node, x: Value, pads: Value, value: Value | None = None, axes: Value | None = None) -> Tensor:
    data = tensor(x)
    amounts = static(integers(pads, "pads"), "pads")
    over = _axes(axes, data.dim()) or list(range(data.dim()))
    if len(amounts) != 2 * len(over):
        raise UnsupportedError(f"{len(amounts)} pads for {len(over)} axes")
    both = {axis: (amounts[i], amounts[i + len(over)]) for i, axis in enumerate(over)}
    mode = node.attributes["mode"]
    if mode == "constant":
        return F.pad(data, _pairs(both, data.dim()), value=number(value, "value") or 0.0)
    for axis, (begin, end) in both.items():  # what is cut off goes first
        if min(begin, end) < 0:
            (size,) = static([data.shape[axis]], "pads")
            if size + min(begin, 0) + min(end, 0) < 1:
                raise UnsupportedError("pads that leave nothing")
            data = data.narrow(axis, max(-begin, 0), size + min(begin, 0) + min(end, 0))
    grown = {axis: (max(begin, 0), max(end, 0)) for axis, (begin, end) in both.items() if begin > 0 or end > 0}
    if not grown:
        return data
    if min(grown) >= 2 and 3 <= data.dim() <= 5 and mode in ("reflect", "edge"):
        pairs = _pairs(grown, data.dim())[: 2 * (data.dim() - 2)]
        return F.pad(data, pairs, mode="reflect" if mode == "reflect" else "replicate")
    for axis, (begin, end) in grown.items():
        (size,) = static([data.shape[axis]], "pads")
        if begin + end > LARGEST_RANGE or (mode == "reflect" and max(begin, end) >= size):
            raise UnsupportedError(f"pads {begin, end} of {size} values")
        place = np.arange(-begin, size + end)
        if mode == "reflect":
            place = size - 1 - np.abs(size - 1 - np.abs(place))
        elif mode in ("edge", "wrap"):
            place = place.clip(0, size - 1) if mode == "edge" else place % size
        else:
            raise UnsupportedError(f"mode {mode!r}")
        data = data.index_select(axis, torch.tensor(place))
    return data


def _pairs(both: dict[int, tuple[int, int]], rank: int) -> list[int]:
    """As F.pad wants them: the last axis first."""
    return [amount for axis in reversed(range(rank)) for amount in both.get(axis, (0, 0))]


@_reads("DepthToSpace")
def _depth_to_space(node: Node, x: Value) -> Tensor:
    data, block = tensor(x), node.attributes["blocksize"]
    _check_block(data, block, data.shape[1] % (block * block) if block > 0 and data.dim() > 1 else 1)
    if node.attributes["mode"] == "CRD":
        return F.pixel_shuffle(data, block)
    channels, height, width = data.shape[1:]
    cut = data.reshape(data.shape[0], block, block, channels // block**2, height, width)
    return cut.permute(0, 3, 4, 1, 5, 2).reshape(data.shape[0], -1, height * block, width * block)


@_reads("SpaceToDepth")
def _space_to_depth(node: Node, x: Value) -> Tensor:
    data, block = tensor(x), node.attributes["blocksize"]
    _check_block(data, block, 0)
    channels, height, width = data.shape[1:]
    cut = data.reshape(data.shape[0], channels, height // block, block, width // block, block)
    return cut.permute(0, 3, 5, 1, 2, 4).reshape(data.shape[0], -1, height // block, width // block)


def _check_block(data: Tensor, block: int, rest: int) -> None:
    if block < 1 or data.dim() != 4 or rest:
        raise UnsupportedError(f"blocks of {block} in {tuple(data.shape[1:])}")


@_reads("Dropout")
def _dropout(node: Node, x: Value, ratio: Value | None = None, training: Value | None = None) -> Tensor:
    _alone(node)
    if number(training, "training_mode"):
        raise UnsupportedError("training_mode: it is not the network that runs")
    return tensor(x)


# --- constants and shapes


@_reads("Constant")
def _constant(node: Node) -> Tensor:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for attribute in (name, f"{name}s"):
            if node.attributes.get(attribute) is not None:
                return torch.tensor(np.asarray(node.attributes[attribute], dtype))
    if node.attributes.get("value") is None:
        raise UnsupportedError("a value that is no tensor of numbers")
    return torch.tensor(node.attributes["value"])


@_reads("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Value) -> Tensor:
    value = node.attributes["value"]
    filled = np.zeros((), np.float32) if value is None else value.reshape(-1)[0]
    return torch.full(integers(shape, "shapes"), filled.item(), dtype=torch.tensor(filled).dtype)


@_reads("Range")
def _range(node: Node, start: Value, limit: Value, delta: Value) -> Tensor:
    ends = [plain_numbers(value, "ends").reshape(-1)[0] for value in (start, limit, delta)]
    if ends[2] == 0 or abs(float(ends[1]) - float(ends[0])) / abs(float(ends[2])) > LARGEST_RANGE:
        raise UnsupportedError(f"the range {ends}")
    return torch.tensor(np.arange(*ends))


@_reads("Shape")
def _shape(node: Node, x: Value) -> Any:
    dims = list(tensor(x).shape)
    return sizes(dims[slice(node.attributes.get("start") or 0, node.attributes.get("end"))])


@_reads("Size")
def _size(node: Node, x: Value) -> Any:
    return sizes(reduce(operator.mul, tensor(x).shape, 1))


@_reads("Cast")
def _cast(node: Node, x: Value) -> Tensor:
    dtype = DTYPES.get(node.attributes["to"])
    if dtype is None:
        raise UnsupportedError(f"type {node.attributes['to']}")
    data = tensor(x)
    return data if data.dtype == dtype else data.to(dtype)


@_reads("CastLike")
def _cast_like(node: Node, x: Value, like: Value) -> Tensor:
    data, dtype = tensor(x), tensor(like).dtype
    return data if data.dtype == dtype else data.to(dtype)
