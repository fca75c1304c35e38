"""A float ONNX node, or a few, for every ATen operator that networks of images are made of.

A function here takes the writer and the operator's arguments as ATen orders them; activations and constants come
as operands, numbers as they are. It returns the name of the result, whose shape the operands and ``Call`` tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from quantopsy.export.onnx.writer import Constant, OnnxWriter, Operand, Value

Shape = tuple[int | None, ...]

_SAME_SOFTPLUS = 16.0  # from there on log(1 + exp(x)) < x + exp(-x) is x in float32: exp(-16) / 16 < 2^-27


@dataclass(frozen=True)
class Call:
    """What an operator's writer needs besides its arguments: the graph, and the shape of the result."""

    graph: OnnxWriter
    shape: Shape

    def add(self, op_type: str, *operands: Operand | str, **attributes: Any) -> str:
        """A node on ``operands``, numbers as float constants."""
        names = [operand if isinstance(operand, str) else self.graph.name(operand) for operand in operands]
        return self.graph.add(op_type, *names, **attributes)


class UnsupportedError(Exception):
    """An argument that ONNX has no form for; the message says which."""


WRITERS: dict[str, Callable[..., str | tuple[str, ...]]] = {}


def _writes(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        WRITERS.update(dict.fromkeys(names.split(), function))
        return function

    return register


def _spread(value: Any, count: int) -> list[int]:
    """An ATen list argument, where one number stands for all dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _axis(dim: int, shape: Shape) -> int:
    return dim % len(shape)


def _static(shape: Shape) -> list[int]:
    """``shape`` for a Reshape: what the number of images decides is what is left over."""
    if sum(dim is None for dim in shape) > 1:
        raise UnsupportedError("a shape that the number of images decides in two dimensions")
    return [-1 if dim is None else dim for dim in shape]


# --- convolutions and products


@_writes("conv1d conv2d conv3d")
def _conv(w: Call, x: Value, weight: Operand, bias: Any = None, *arguments: Any) -> str:
    attributes = _convolution(_kernel(weight), *arguments)
    return w.add("Conv", x, weight, *(() if bias is None else (bias,)), **attributes)


def write_integer_convolution(w: Call, operands: Sequence[str], kernel: list[int], arguments: Sequence[Any]) -> str:
    """ConvInteger of codes: int32. ``operands`` are x, w and their zero points, ``arguments`` those behind the bias."""
    return w.add("ConvInteger", *operands, **_convolution(kernel, *arguments))


def write_integer_linear(w: Call, operands: Sequence[str]) -> str:
    """MatMulInteger of codes: int32. ``operands`` as of :func:`write_integer_convolution`, the weight (out, in)."""
    x, weight, *zeros = operands
    return w.add("MatMulInteger", x, w.add("Transpose", weight, perm=[1, 0]), *zeros)


def _kernel(weight: Operand) -> list[int]:
    assert isinstance(weight, Value | Constant)
    if None in weight.shape:
        raise UnsupportedError("a kernel whose size the number of images decides")
    return [int(size) for size in weight.shape[2:] if size is not None]


def _convolution(
    kernel: list[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> dict[str, Any]:
    count = len(kernel)
    dilations = _spread(dilation, count)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = _spread(0 if padding == "valid" else padding, count) * 2
    strides = _spread(stride, count)
    return {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}


@_writes("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(
    w: Call, x: Value, weight: Operand, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> str:  # fmt: skip
    kernel = _kernel(weight)
    count = len(kernel)
    return w.add(
        "ConvTranspose",
        x,
        weight,
        *(() if bias is None else (bias,)),
        kernel_shape=kernel,
        strides=_spread(stride, count),
        pads=_spread(padding, count) * 2,
        output_padding=_spread(output_padding, count),
        dilations=_spread(dilation, count),
        group=groups,
    )


@_writes("linear")
def _linear(w: Call, x: Value, weight: Operand, bias: Any = None) -> str:
    if len(x.shape) == 2:
        return w.add("Gemm", x, weight, *(() if bias is None else (bias,)), transB=1, alpha=1.0, beta=1.0)
    factor = w.graph.transposed(weight) if isinstance(weight, Constant) else w.add("Transpose", weight, perm=[1, 0])
    product = w.add("MatMul", x, factor)
    return product if bias is None else w.add("Add", product, bias)


@_writes("matmul mm bmm")
def _matmul(w: Call, x: Operand, y: Operand) -> str:
    return w.add("MatMul", x, y)


@_writes("batch_norm")
def _batch_norm(
    w: Call, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, cudnn: bool = False,
) -> str:  # fmt: skip
    del training, momentum, cudnn
    channels = mean.shape[0]
    weight = w.graph.constant(np.ones(channels)) if weight is None else weight
    bias = w.graph.constant(np.zeros(channels)) if bias is None else bias
    return w.add("BatchNormalization", x, weight, bias, mean, variance, epsilon=eps)


@_writes("group_norm")
def _group_norm(
    w: Call, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = False
) -> str:
    del cudnn
    channels = x.shape[1]
    assert channels is not None
    flat = w.add("Reshape", x, w.graph.integers([0, groups, -1]))
    ones, zeros = w.graph.constant(np.ones(groups)), w.graph.constant(np.zeros(groups))
    normal = w.add("InstanceNormalization", flat, ones, zeros, epsilon=eps)
    result = w.add("Reshape", normal, w.graph.integers(_static(w.shape)))
    for op_type, constant in (("Mul", weight), ("Add", bias)):
        if constant is not None:
            laid = constant.tensor.reshape(-1, *[1] * (len(x.shape) - 2)).numpy()
            result = w.add(op_type, result, w.graph.constant(laid))
    return result


@_writes("layer_norm")
def _layer_norm(
    w: Call, x: Value, normalized: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> str:  # fmt: skip
    del cudnn
    weight = w.graph.constant(np.ones(list(normalized))) if weight is None else weight
    operands = (x, weight) if bias is None else (x, weight, bias)
    return w.add("LayerNormalization", *operands, axis=-len(normalized), epsilon=eps)


# --- pooling


@dataclass(frozen=True)
class _Windows:
    """Kernel, strides and pads of a pooling; ``extra`` is what torch's ceil mode reads beyond the end."""

    kernel: list[int]
    strides: list[int]
    pads: list[int]
    dilations: list[int]
    extra: list[int]

    @classmethod
    def of(cls, w: Call, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> _Windows:
        count = len(x.shape) - 2
        kernels = _spread(kernel, count)
        strides = _spread(stride, count) if stride else kernels
        pads, dilations = _spread(padding, count), _spread(dilation, count)
        extra = []
        for size, out, k, s, p, d in zip(x.shape[2:], w.shape[2:], kernels, strides, pads, dilations, strict=True):
            assert size is not None
            assert out is not None
            extra.append(max(0, (out - 1) * s + d * (k - 1) + 1 - (size + 2 * p)))
        return cls(kernels, strides, pads, dilations, extra)


@_writes("max_pool1d max_pool2d max_pool3d")
def _max_pool(
    w: Call, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> str:
    del ceil
    win = _Windows.of(w, x, kernel, stride, padding, dilation)
    ends = [p + e for p, e in zip(win.pads, win.extra, strict=True)]
    return w.add(
        "MaxPool", x, kernel_shape=win.kernel, strides=win.strides, pads=win.pads + ends, dilations=win.dilations
    )


@_writes("avg_pool1d avg_pool2d avg_pool3d")
def _avg_pool(
    w: Call, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, include_pad: bool = True,
    divisor: int | None = None,
) -> str:  # fmt: skip
    del ceil
    win = _Windows.of(w, x, kernel, stride, padding)
    pads, source, padded = win.pads, w.graph.name(x), any(win.pads)
    if any(win.extra) and padded and include_pad:
        # Torch counts the padding but not what lies beyond it: pad first, then leave the rest out of the count.
        borders = [0, 0, *pads]
        source = w.add("Pad", source, w.graph.integers(borders * 2), w.graph.constant(0.0))
        pads, include_pad = [0] * len(pads), False
    ends = [p + e for p, e in zip(pads, win.extra, strict=True)]
    if divisor is not None and (any(win.extra) or (padded and not include_pad)):
        raise UnsupportedError("a divisor of its own together with windows that are cut off")
    result = w.add(
        "AveragePool",
        source,
        kernel_shape=win.kernel,
        strides=win.strides,
        pads=pads + ends,
        count_include_pad=int(include_pad and not any(win.extra)),
    )
    if divisor is None:
        return result
    return w.add("Mul", result, w.graph.constant(math.prod(win.kernel) / divisor))


@_writes("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
def _adaptive_avg_pool(w: Call, x: Value, size: Any) -> str:
    del size
    sizes = list(zip(x.shape[-len(w.shape[2:]) :], w.shape[2:], strict=True))
    if all(out == 1 for _, out in sizes):
        return w.add("GlobalAveragePool", x)
    if all(n % out == 0 for n, out in sizes):  # type: ignore[operator]
        kernel = [n // out for n, out in sizes]  # type: ignore[operator]
        return w.add("AveragePool", x, kernel_shape=kernel, strides=kernel)
    # Windows of several sizes: every axis times a matrix of averages.
    result, rank = w.graph.name(x), len(w.shape)
    for axis, (n, out) in enumerate(sizes, start=2):
        assert n is not None
        assert out is not None
        averages = np.zeros((n, out))
        for i in range(out):
            window = slice(i * n // out, -(-(i + 1) * n // out))
            averages[window, i] = 1 / (window.stop - window.start)
        order = [*(d for d in range(rank) if d != axis), axis]
        turned = w.add("Transpose", result, perm=order)
        product = w.add("MatMul", turned, w.graph.constant(averages))
        result = w.add("Transpose", product, perm=[order.index(d) for d in range(rank)])
    return result


@_writes("mean")
def _mean(w: Call, x: Value, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
    del dtype
    axes = _axes(dims, x.shape)
    if axes == list(range(2, len(x.shape))) and axes:  # what runtimes have an integer kernel for
        pooled = w.add("GlobalAveragePool", x)
        return pooled if keepdim else w.add("Reshape", pooled, w.graph.integers(_static(w.shape)))
    return w.add("ReduceMean", x, w.graph.integers(axes), keepdims=int(keepdim))


@_writes("sum")
def _sum(w: Call, x: Value, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
    del dtype
    return w.add("ReduceSum", x, w.graph.integers(_axes(dims, x.shape)), keepdims=int(keepdim))


@_writes("amax")
def _amax(w: Call, x: Value, dims: Any = (), keepdim: bool = False) -> str:
    return w.add("ReduceMax", x, w.graph.integers(_axes(dims, x.shape)), keepdims=int(keepdim))


def _axes(dims: Any, shape: Shape) -> list[int]:
    if dims is None or (not isinstance(dims, int) and not list(dims)):
        return list(range(len(shape)))
    return sorted(_axis(dim, shape) for dim in ([dims] if isinstance(dims, int) else dims))


# --- arithmetic


def _scaled(w: Call, y: Operand, alpha: float) -> Operand | str:
    return y if alpha == 1 else w.add("Mul", y, w.graph.constant(alpha))


@_writes("add")
def _add(w: Call, x: Operand, y: Operand, alpha: float = 1) -> str:
    return w.add("Add", x, _scaled(w, y, alpha))


@_writes("sub")
def _sub(w: Call, x: Operand, y: Operand, alpha: float = 1) -> str:
    return w.add("Sub", x, _scaled(w, y, alpha))


@_writes("rsub")
def _rsub(w: Call, x: Operand, y: Operand, alpha: float = 1) -> str:
    return w.add("Sub", y, _scaled(w, x, alpha))


@_writes("mul")
def _mul(w: Call, x: Operand, y: Operand) -> str:
    return w.add("Mul", x, y)


@_writes("div")
def _div(w: Call, x: Operand, y: Operand, rounding_mode: str | None = None) -> str:
    quotient = w.add("Div", x, y)
    if rounding_mode == "floor":
        return w.add("Floor", quotient)
    if rounding_mode is not None:
        raise UnsupportedError(f"rounding_mode {rounding_mode!r}")
    return quotient


@_writes("pow")
def _pow(w: Call, x: Operand, exponent: Operand) -> str:
    return w.add("Pow", x, exponent)


@_writes("square")
def _square(w: Call, x: Value) -> str:
    return w.add("Mul", x, x)


@_writes("rsqrt")
def _rsqrt(w: Call, x: Value) -> str:
    return w.add("Reciprocal", w.add("Sqrt", x))


@_writes("maximum")
def _maximum(w: Call, x: Operand, y: Operand) -> str:
    return w.add("Max", x, y)


@_writes("minimum")
def _minimum(w: Call, x: Operand, y: Operand) -> str:
    return w.add("Min", x, y)


@_writes("cat concat")
def _cat(w: Call, values: Sequence[Operand], dim: int = 0) -> str:
    return w.add("Concat", *values, axis=_axis(dim, w.shape))


@_writes("stack")
def _stack(w: Call, values: Sequence[Operand], dim: int = 0) -> str:
    axis = _axis(dim, w.shape)
    axes = w.graph.integers([axis])
    return w.add("Concat", *(w.add("Unsqueeze", value, axes) for value in values), axis=axis)


@_writes("softmax _softmax")
def _softmax(w: Call, x: Value, dim: int, *_: Any) -> str:
    return w.add("Softmax", x, axis=dim)


@_writes("log_softmax _log_softmax")
def _log_softmax(w: Call, x: Value, dim: int, *_: Any) -> str:
    return w.add("LogSoftmax", x, axis=dim)


def _plain(op_type: str) -> Callable[..., str]:
    return lambda w, x: w.add(op_type, x)


WRITERS.update(
    {
        name: _plain(op_type)
        for name, op_type in {
            "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal",
            "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sin": "Sin", "cos": "Cos",
            "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "mish": "Mish", "hardswish": "HardSwish",
        }.items()
    }
)  # fmt: skip


# --- resampling


def _scales(shapes: Sequence[tuple[int, int]], given: Sequence[Any]) -> list[float]:
    """What torch takes for the ratio of sizes: the factors that a call gives, else (``shapes``: before, after) theirs.

    ``given``: a list of them or None, as ``vec`` overloads have them, or one by one.
    """
    factors = [factor for entry in given for factor in (entry if isinstance(entry, list | tuple) else [entry])]
    factors = factors if len(factors) == len(shapes) else [None] * len(shapes)
    return [out / n if factor is None else factor for factor, (n, out) in zip(factors, shapes, strict=True)]


def _float_scale(scale: float, n: int, out: int) -> np.float32:
    """``scale`` as ONNX keeps it: the float next to it by which ``n`` become ``out`` wherever the product is taken."""
    near = np.float32(scale)
    while int(np.float32(n) * near) > out or int(n * float(near)) > out:
        near = np.nextafter(near, np.float32(0))
    while int(np.float32(n) * near) < out or int(n * float(near)) < out:
        near = np.nextafter(near, np.float32(np.inf))
    return near


def _sides(w: Call, x: Value) -> list[tuple[int, int]]:
    """Of every axis of positions the size before and after."""
    return list(zip(x.shape[2:], w.shape[2:], strict=True))  # type: ignore[arg-type]


def _resize(w: Call, x: Value, mode: str, scales: Sequence[float], **attributes: Any) -> str:
    """Resize by ``scales``; by sizes where their ratios are the scales, which no rounding of a float then moves."""
    sides = _sides(w, x)
    by_ratio = all(scale == out / n for scale, (n, out) in zip(scales, sides, strict=True))
    if by_ratio and not all(scale == int(scale) for scale in scales):
        axes = list(range(2, len(w.shape)))
        sizes = w.graph.integers([out for _, out in sides])
        return w.add("Resize", x, "", "", sizes, mode=mode, axes=axes, **attributes)
    if not by_ratio and all(n == out for n, out in sides):  # ONNX Runtime 1.31 copies what keeps its size
        raise UnsupportedError(f"resampling by {', '.join(f'{scale:g}' for scale in scales)} to the size that it had")
    factors = [_float_scale(scale, n, out) for scale, (n, out) in zip(scales, sides, strict=True)]
    return w.add("Resize", x, "", w.graph.constant([1.0, 1.0, *factors]), mode=mode, **attributes)


@_writes("upsample_nearest1d upsample_nearest2d upsample_nearest3d")
def _nearest(w: Call, x: Value, size: Any, *given: Any) -> str:
    """By other than whole factors torch's own places: the next float's rounding would choose another neighbour."""
    del size
    sides = _sides(w, x)
    scales = _scales(sides, given)
    if all(scale == int(scale) == out / n for scale, (n, out) in zip(scales, sides, strict=True)):
        return _resize(w, x, "nearest", scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    result, before, after = w.graph.name(x), *([int(side) for side in part] for part in zip(*sides, strict=True))
    upsample = getattr(torch.ops.aten, f"upsample_nearest{len(sides)}d")
    for axis, n in enumerate(before):
        old = torch.arange(n, dtype=torch.float32).reshape(-1, *[1] * (len(before) - axis - 1)).expand(before)
        places = upsample(old[None, None], after, *scales)[0, 0].movedim(axis, 0).flatten(1)[:, 0]
        result = w.add("Gather", result, w.graph.integers(places.long().tolist()), axis=axis + 2)
    return result


@_writes("upsample_linear1d upsample_bilinear2d upsample_trilinear3d")
def _linear_resize(w: Call, x: Value, size: Any, align: bool, *given: Any) -> str:
    del size
    return _interpolated(w, x, "linear", align, given)


@_writes("upsample_bicubic2d")
def _cubic_resize(w: Call, x: Value, size: Any, align: bool, *given: Any) -> str:
    del size
    return _interpolated(w, x, "cubic", align, given, cubic_coeff_a=-0.75)


def _interpolated(w: Call, x: Value, mode: str, align: bool, given: Sequence[Any], **attributes: Any) -> str:
    """With aligned corners only sizes count; else half_pixel, which for a single result is torch's middle.

    Torch's linear kernels leave an axis that keeps its size as it is, whatever the factor; its cubic ones do not.
    """
    place, sides = "align_corners" if align else "half_pixel", _sides(w, x)
    scales = _scales(sides, () if align else given)
    if mode == "linear":
        scales = [1.0 if n == out else scale for scale, (n, out) in zip(scales, sides, strict=True)]
    return _resize(w, x, mode, scales, coordinate_transformation_mode=place, **attributes)


# --- activation functions


@dataclass(frozen=True)
class Bounds:
    """A clip: what lies outside [low, high] goes to the nearer end. Numbers, constants, or None for no end."""

    low: Any
    high: Any


def clip_bounds(name: str, arguments: Sequence[Any]) -> Bounds | None:
    """The clip that an activation is; ``arguments`` are those behind its operand. None for any other."""
    first, second = [*arguments, None, None][:2]
    if name == "relu":
        return Bounds(0.0, None)
    if name == "relu6":
        return Bounds(0.0, 6.0)
    if name == "hardtanh":
        return Bounds(-1.0 if first is None else first, 1.0 if second is None else second)
    if name == "clamp":
        return Bounds(first, second)
    if name == "clamp_min":
        return Bounds(first, None)
    if name == "clamp_max":
        return Bounds(None, first)
    return None


def write_clip(w: Call, x: Operand | str, bounds: Bounds) -> str:
    """``bounds`` as one node where they are numbers, else as a Max and a Min."""
    if bounds.low == 0.0 and bounds.high is None:
        return w.add("Relu", x)
    if not isinstance(bounds.low, Constant) and not isinstance(bounds.high, Constant):
        ends = ["" if end is None else w.graph.constant(end) for end in (bounds.low, bounds.high)]
        return w.add("Clip", x, *ends)
    result = x if isinstance(x, str) else w.graph.name(x)
    for op_type, end in (("Max", bounds.low), ("Min", bounds.high)):
        if end is not None:
            result = w.add(op_type, result, end)
    return result


def _clip_writer(name: str) -> Callable[..., str]:
    def write(w: Call, x: Value, *arguments: Any) -> str:
        bounds = clip_bounds(name, arguments)
        assert bounds is not None
        return write_clip(w, x, bounds)

    return write


WRITERS.update({name: _clip_writer(name) for name in ("relu6", "hardtanh", "clamp", "clamp_min", "clamp_max")})


@_writes("leaky_relu")
def _leaky_relu(w: Call, x: Value, slope: float = 0.01) -> str:
    return w.add("LeakyRelu", x, alpha=slope)


@_writes("prelu")
def _prelu(w: Call, x: Value, slope: Constant) -> str:
    laid = slope.tensor.reshape(-1, *[1] * (len(x.shape) - 2)) if slope.tensor.numel() > 1 else slope.tensor.reshape(1)
    return w.add("PRelu", x, w.graph.constant(laid.detach().numpy()))


@_writes("elu")
def _elu(w: Call, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> str:
    if (scale, input_scale) != (1.0, 1.0):
        raise UnsupportedError("an ELU with scales of its own")
    return w.add("Elu", x, alpha=alpha)


@_writes("selu")
def _selu(w: Call, x: Value) -> str:
    return w.add("Selu", x)


@_writes("celu")
def _celu(w: Call, x: Value, alpha: float = 1.0) -> str:
    return w.add("Celu", x, alpha=alpha)


@_writes("gelu")
def _gelu(w: Call, x: Value, approximate: str = "none") -> str:
    return w.add("Gelu", x, approximate=approximate)


@_writes("silu")
def _silu(w: Call, x: Value) -> str:
    return w.add("Mul", x, w.add("Sigmoid", x))


@_writes("softplus")
def _softplus(w: Call, x: Value, beta: float = 1.0, threshold: float = 20.0) -> str:
    inner = x if beta == 1 else w.add("Mul", x, w.graph.constant(beta))
    result = w.add("Softplus", inner)
    if beta != 1:
        result = w.add("Mul", result, w.graph.constant(1 / beta))
    if threshold >= _SAME_SOFTPLUS:
        return result
    return w.add("Where", w.add("Greater", inner, w.graph.constant(threshold)), x, result)


@_writes("hardsigmoid")
def _hardsigmoid(w: Call, x: Value) -> str:
    return w.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


# --- movements: the same nodes for floats and for codes; a constant that a Pad adds is ``zero``


@_writes("reshape view _unsafe_view flatten unflatten squeeze unsqueeze")
def _reshape(w: Call, x: Value, *_: Any) -> str:
    return w.add("Reshape", x, w.graph.integers(_static(w.shape)))


@_writes("permute")
def _permute(w: Call, x: Value, dims: Sequence[int]) -> str:
    return w.add("Transpose", x, perm=[_axis(dim, x.shape) for dim in dims])


@_writes("transpose")
def _transpose(w: Call, x: Value, first: int, second: int) -> str:
    order = list(range(len(x.shape)))
    a, b = _axis(first, x.shape), _axis(second, x.shape)
    order[a], order[b] = order[b], order[a]
    return w.add("Transpose", x, perm=order)


@_writes("t numpy_T")
def _t(w: Call, x: Value) -> str:
    return w.add("Transpose", x, perm=list(reversed(range(len(x.shape)))))


@_writes("movedim")
def _movedim(w: Call, x: Value, source: Any, target: Any) -> str:
    ends = ([_axis(d, x.shape) for d in _spread(dims, 1)] for dims in (target, source))
    moved = dict(zip(*ends, strict=True))
    rest = iter([d for d in range(len(x.shape)) if d not in moved.values()])
    return w.add("Transpose", x, perm=[moved[d] if d in moved else next(rest) for d in range(len(x.shape))])


@_writes("expand expand_as")
def _expand(w: Call, x: Value, *_: Any) -> str:
    grown = len(w.shape) - len(x.shape)
    if any(dim is None and (i < grown or x.shape[i - grown] is not None) for i, dim in enumerate(w.shape)):
        raise UnsupportedError("an expansion to the number of images")
    return w.add("Expand", x, w.graph.integers([1 if dim is None else dim for dim in w.shape]))


@_writes("repeat")
def _repeat(w: Call, x: Value, repeats: Sequence[int]) -> str:
    source = w.graph.name(x)
    if len(repeats) > len(x.shape):
        source = w.add("Unsqueeze", source, w.graph.integers(range(len(repeats) - len(x.shape))))
    return w.add("Tile", source, w.graph.integers(repeats))


@_writes("slice")
def _slice(w: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> str:
    ends = [0 if start is None else start], [2**63 - 1 if end is None else end], [_axis(dim, x.shape)], [step]
    return w.add("Slice", x, *(w.graph.integers(values) for values in ends))


@_writes("narrow")
def _narrow(w: Call, x: Value, dim: int, start: int, length: int) -> str:
    return _slice(w, x, dim, start, start + length)


@_writes("select")
def _select(w: Call, x: Value, dim: int, index: int) -> str:
    return w.add("Gather", x, w.graph.constant(index, np.int64), axis=_axis(dim, x.shape))


@_writes("index_select")
def _index_select(w: Call, x: Value, dim: int, index: Operand) -> str:
    return w.add("Gather", x, index, axis=_axis(dim, x.shape))


def write_parts(graph: OnnxWriter, x: Value, parts: Sequence[Shape], dim: int, drop: bool) -> tuple[str, ...]:
    """``x`` in parts along ``dim``, as split, chunk and (``drop``: the dimension goes) unbind give them."""
    axis = _axis(dim, x.shape)
    sizes = [1 if drop else part[axis] for part in parts]
    edges = np.cumsum([0, *sizes])
    names = []
    for (start, end), part in zip(pairwise(edges.tolist()), parts, strict=True):
        name = graph.add("Slice", x.name, *(graph.integers([n]) for n in (start, end, axis)))
        names.append(graph.add("Reshape", name, graph.integers(_static(part))) if drop else name)
    return tuple(names)


@_writes("pad constant_pad_nd")
def _pad(
    w: Call, x: Value, pads: Sequence[int], mode: Any = "constant", value: Any = None, *, zero: str | None = None
) -> str:
    if not isinstance(mode, str):  # constant_pad_nd(self, pad, value=0)
        mode, value = "constant", mode
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    begins, ends = [0] * len(x.shape), [0] * len(x.shape)
    for i, (begin, end) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        begins[-1 - i], ends[-1 - i] = begin, end
    amount = w.graph.integers(begins + ends)
    if modes[mode] != "constant":
        return w.add("Pad", x, amount, mode=modes[mode])
    return w.add("Pad", x, amount, zero or w.graph.constant(value or 0.0))


@_writes("reflection_pad1d reflection_pad2d reflection_pad3d")
def _reflection_pad(w: Call, x: Value, pads: Sequence[int]) -> str:
    return _pad(w, x, pads, "reflect")


@_writes("replication_pad1d replication_pad2d replication_pad3d")
def _replication_pad(w: Call, x: Value, pads: Sequence[int]) -> str:
    return _pad(w, x, pads, "replicate")


def _image_sides(x: Value) -> tuple[int, int, int]:
    """Channels, height and width of what has no further axes."""
    if len(x.shape) != 4 or None in x.shape[1:]:
        raise UnsupportedError(f"pixels that are shuffled in {len(x.shape)} dimensions")
    return x.shape[1:]  # type: ignore[return-value]


@_writes("pixel_shuffle")
def _pixel_shuffle(w: Call, x: Value, factor: int) -> str:
    _image_sides(x)
    return w.add("DepthToSpace", x, blocksize=factor, mode="CRD")


@_writes("pixel_unshuffle")
def _pixel_unshuffle(w: Call, x: Value, factor: int) -> str:
    channels, height, width = _image_sides(x)
    cut = w.add("Reshape", x, w.graph.integers([-1, channels, height // factor, factor, width // factor, factor]))
    turned = w.add("Transpose", cut, perm=[0, 1, 3, 5, 2, 4])
    return w.add("Reshape", turned, w.graph.integers(_static(w.shape)))


@_writes("channel_shuffle native_channel_shuffle")
def _channel_shuffle(w: Call, x: Value, groups: int) -> str:
    channels = x.shape[1]
    assert channels is not None
    order = np.arange(channels).reshape(groups, -1).T.flatten()
    return w.add("Gather", x, w.graph.integers(order.tolist()), axis=1)


@_writes("flip")
def _flip(w: Call, x: Value, dims: Sequence[int]) -> str:
    axes = [_axis(dim, x.shape) for dim in dims]
    starts, ends, steps = [-1] * len(axes), [-(2**63) + 1] * len(axes), [-1] * len(axes)
    return w.add("Slice", x, *(w.graph.integers(values) for values in (starts, ends, axes, steps)))


@_writes("roll")
def _roll(w: Call, x: Value, shifts: Any, dims: Any = ()) -> str:
    result = w.graph.name(x)
    for shift, dim in zip(_spread(shifts, 1), _spread(dims, 1), strict=True):
        axis = _axis(dim, x.shape)
        size = x.shape[axis]
        assert size is not None
        order = np.roll(np.arange(size), shift).tolist()
        result = w.add("Gather", result, w.graph.integers(order), axis=axis)
    return result


@_writes("clone contiguous detach alias dropout feature_dropout")
def _identity(w: Call, x: Value, *_: Any) -> str:
    return w.add("Identity", x)


@_writes("_to_copy")
def _to_copy(w: Call, x: Value, *, dtype: Any = None, **_: Any) -> str:
    """To float32, which all values are that this writes."""
    if dtype not in (None, torch.float32):
        raise UnsupportedError(f"a conversion to {str(dtype).removeprefix('torch.')}")
    return w.add("Identity", x)
