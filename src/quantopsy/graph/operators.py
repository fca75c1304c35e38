"""Which ATen operators are layers, which are activation functions, which only move values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """A typical operation of a layer.

    ``activations`` are the positions of the arguments that may be activations, ``weight`` and
    ``bias`` those of constants; ``axis`` is the weight's output-channel axis (per group of a
    transposed convolution its second).
    """

    name: str
    activations: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    axis: int = 0


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


def _each(names: str, make: Callable[[str], Operation]) -> dict[Any, Operation]:
    return {target: make(name) for name in names.split() for target in _overloads(name)}


CONVOLUTIONS = _each("conv1d conv2d conv3d", lambda name: Operation(name, weight=1, bias=2))
TRANSPOSED = _each(
    "conv_transpose1d conv_transpose2d conv_transpose3d", lambda name: Operation(name, weight=1, bias=2, axis=1)
)
LINEARS = _each("linear", lambda name: Operation(name, weight=1, bias=2))

WEIGHTED_SUMS = frozenset(operation.name for operation in (*CONVOLUTIONS.values(), *LINEARS.values()))
"""Layers that add up their inputs times a weight with the output channels first, and a bias."""

OPERATIONS: dict[Any, Operation] = {
    **CONVOLUTIONS,
    **TRANSPOSED,
    **LINEARS,
    # A product with a constant second factor is a linear layer without its transposition.
    **_each("matmul mm bmm", lambda _: Operation("matmul", activations=(0, 1), weight=1, axis=-1)),
    **_each("batch_norm", lambda _: Operation("batch_norm", weight=1, bias=2)),
    **_each("max_pool1d max_pool2d max_pool3d", lambda _: Operation("max_pool")),
    **_each("avg_pool1d avg_pool2d avg_pool3d", lambda _: Operation("avg_pool")),
    **_each("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", lambda _: Operation("adaptive_avg_pool")),
    **_each("mean", lambda _: Operation("mean")),
    **_each("add sub", lambda _: Operation("add", activations=(0, 1))),
    **_each("mul div", lambda _: Operation("mul", activations=(0, 1))),
    **_each("cat concat", lambda _: Operation("concat")),
    **_each(
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d",
        lambda _: Operation("upsample"),
    ),
}

# name, and the in-place form that saves a pass over memory where nobody else reads the operand.
_ACTIVATIONS = {
    "relu": "relu_",
    "relu6": "relu6_",
    "hardtanh": "hardtanh_",
    "clamp": "clamp_",
    "clamp_min": "clamp_min_",
    "clamp_max": "clamp_max_",
    "leaky_relu": "leaky_relu_",
    "prelu": None,
    "elu": "elu_",
    "selu": "selu_",
    "celu": "celu_",
    "gelu": "gelu_",
    "silu": "silu_",
    "mish": "mish_",
    "softplus": None,
    "hardswish": "hardswish_",
    "sigmoid": "sigmoid_",
    "hardsigmoid": "hardsigmoid_",
    "tanh": "tanh_",
}


ACTIVATION_NAMES = tuple(_ACTIVATIONS)
"""What :func:`activation_name` may give."""


def _activations() -> tuple[dict[Any, str], dict[Any, Any]]:
    names, in_place = {}, {}
    for name, twin in _ACTIVATIONS.items():
        for target in _overloads(name):
            overload = target._overloadname
            if overload.endswith("out"):
                continue
            names[target] = name
            if twin is not None and hasattr(getattr(aten, twin), overload):
                in_place[target] = getattr(getattr(aten, twin), overload)
    return names, in_place


ACTIVATIONS, IN_PLACE = _activations()

PURE = {in_place: pure for pure, in_place in IN_PLACE.items()} | {
    getattr(getattr(aten, f"{name}_"), overload): getattr(getattr(aten, name), overload)
    for name in ("add", "sub", "mul", "div", "dropout", "feature_dropout")
    for overload in getattr(aten, f"{name}_").overloads()
    if overload in getattr(aten, name).overloads()
}
"""Operators that write into their first operand, and what computes the same without."""

# Operators that copy, select or re-arrange values (or compute with sizes): a quantized value stays
# on its grid through them, so they need no quantizer of their own.
_MOVEMENTS = """
view reshape _unsafe_view flatten unflatten permute transpose t numpy_T movedim squeeze unsqueeze expand expand_as
repeat slice select narrow index_select split split_with_sizes chunk unbind stack pad constant_pad_nd
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
pixel_shuffle pixel_unshuffle channel_shuffle flip roll clone contiguous detach alias dropout feature_dropout
sym_size sym_numel sym_stride zeros ones full arange
"""
MOVEMENTS = {
    operator.getitem,
    *(target for name in _MOVEMENTS.split() if hasattr(aten, name) for target in _overloads(name)),
}

COMPOSED = {
    aten.split.sizes,
    *(t for name in ("chunk", "expand_as", "movedim", "narrow", "numpy_T", "unflatten") for t in _overloads(name)),
}
"""Movements that a decomposition writes as others."""

# What gives several values, each a part of the one that it divides.
_DIVISIONS = {target for name in ("split", "split_with_sizes", "chunk", "unbind") for target in _overloads(name)}

# What looks only at a tensor's shape.
_SIZES = """
sym_size sym_numel sym_stride zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
"""
SIZES = {target for name in _SIZES.split() for target in _overloads(name)}

# Flat almost everywhere: autograd gives them a gradient of zero, which says nothing about a finite step.
STEPWISE = {
    target
    for name in ("round", "floor", "ceil", "trunc", "sign", "heaviside", "floor_divide", "gt", "lt", "ge", "le", "eq")
    for target in _overloads(name)
}


def pads_with(target: Any, arguments: Sequence[Any]) -> float | None:
    """The constant that a call pads its first argument with; None for whatever is no such call."""
    if target is aten.constant_pad_nd.default:  # (self, pad, value=0)
        return float(arguments[2]) if len(arguments) > 2 else 0.0
    if target is aten.pad.default and (len(arguments) < 3 or arguments[2] == "constant"):  # (self, pad, mode, value)
        return float(arguments[3] or 0.0) if len(arguments) > 3 else 0.0
    return None


def moved_value(node: fx.Node) -> fx.Node | None:
    """The one value that the node re-arranges, with nothing but zeros added; None where it does anything else."""
    operands = [a for a in node.all_input_nodes if a.op != "get_attr" and a.target not in SIZES]
    if node.target not in MOVEMENTS or len(operands) != 1 or pads_with(node.target, node.args):
        return None
    if node.target is operator.getitem and operands[0].target not in _DIVISIONS:
        return None  # one of several results (a maximum and its place), which are no tensor together
    return operands[0]


_KEEPING = {
    target
    for name in (
        *("slice", "pad", "constant_pad_nd", "clone", "contiguous", "detach", "alias", "dropout", "feature_dropout"),
        *(f"{kind}_pad{dims}d" for kind in ("reflection", "replication") for dims in (1, 2, 3)),
    )
    for target in _overloads(name)
}


def keeps_channels(node: fx.Node, source: fx.Node, axis: int) -> bool:
    """Whether ``node``, which re-arranges ``source``, leaves the channels along ``axis`` as they are."""
    after, before = node.meta.get("val"), source.meta.get("val")
    if node.target not in _KEEPING or not isinstance(after, Tensor) or not isinstance(before, Tensor):
        return False
    return after.dim() == before.dim() and after.shape[axis] == before.shape[axis]


@dataclass(frozen=True)
class Clip:
    """An activation whose derivative is 1 strictly within bounds and 0 elsewhere: its result tells which.

    ``apply(x)`` in place; ``back(g, y)``: the gradient in front from the one behind, in place, and the result.
    """

    apply: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]


CLIPS = {
    "relu": Clip(aten.relu_.default, lambda g, y: aten.threshold_backward.grad_input(g, y, 0, grad_input=g)),
    "relu6": Clip(
        lambda x: aten.clamp_.default(x, 0, 6), lambda g, y: aten.hardtanh_backward.grad_input(g, y, 0, 6, grad_input=g)
    ),
}


def clip_between(low: Tensor | None, high: Tensor | None) -> Clip:
    """The clip between bounds that are tensors, such as one a channel."""

    def back(g: Tensor, y: Tensor) -> Tensor:
        # Where a distance to a bound is above zero; masks are several times as slow on a CPU.
        for inside in (None if low is None else y - low, None if high is None else high - y):
            if inside is not None:
                aten.threshold_backward.grad_input(g, inside, 0, grad_input=g)
        return g

    return Clip(lambda x: aten.clamp_.Tensor(x, low, high), back)


# What does nothing at inference, or nothing that matters to a value.
IDENTITIES = {
    target
    for name in ("clone", "contiguous", "detach", "alias", "dropout", "feature_dropout", "lift_fresh_copy")
    for target in _overloads(name)
}


def activation_name(target: Any, args: tuple[Any, ...]) -> str:
    """The field's name of an activation: a hardtanh or clamp from 0 to 6 is a relu6."""
    name = ACTIVATIONS[target]
    if name in ("hardtanh", "clamp"):
        low = args[1] if len(args) > 1 else (-1.0 if name == "hardtanh" else None)
        high = args[2] if len(args) > 2 else (1.0 if name == "hardtanh" else None)
        if low == 0 and high == 6:
            return "relu6"
        if low == 0 and high is None:
            return "relu"
        return name
    if name == "clamp_min" and args[1] == 0:
        return "relu"
    return name
