"""Operators on sizes: what exporters compute from shapes before a Reshape, a Slice or a Resize.

Each takes the node and its operands as arrays of Python numbers. An operator that is not here is computed on
tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch

from quantopsy.graph.onnx.graph import Node, UnsupportedError
from quantopsy.graph.onnx.values import Sizes, sizes

LARGEST = 2**16
"""Numbers in an array of sizes; shapes have a dozen."""

ON_SIZES: dict[str, Callable[..., Sizes | tuple[Sizes, ...]]] = {}


def _reads(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ON_SIZES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def _each(function: Callable[..., Any]) -> Callable[..., Sizes]:
    def apply(node: Node, *operands: Sizes) -> Sizes:
        return sizes(reduce(lambda a, b: np.asarray(np.frompyfunc(function, 2, 1)(a, b), object), operands))

    return apply


def _single(function: Callable[[Any], Any]) -> Callable[..., Sizes]:
    return lambda node, x: sizes(np.asarray(np.frompyfunc(function, 1, 1)(x), object))


def _divide(a: Any, b: Any) -> Any:
    if any(isinstance(item, float | torch.SymFloat) for item in (a, b)):
        return a / b
    if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0):
        return -(abs(a) // abs(b))  # ONNX cuts off, Python rounds down
    return a // b


ON_SIZES |= {
    "Add": _each(operator.add),
    "Sub": _each(operator.sub),
    "Mul": _each(operator.mul),
    "Div": _each(_divide),
    "Min": _each(torch.sym_min),
    "Max": _each(torch.sym_max),
    "Mod": _each(operator.mod),
    "Equal": _each(operator.eq),
    "Less": _each(operator.lt),
    "LessOrEqual": _each(operator.le),
    "Greater": _each(operator.gt),
    "GreaterOrEqual": _each(operator.ge),
    "And": _each(lambda a, b: bool(a) and bool(b)),
    "Or": _each(lambda a, b: bool(a) or bool(b)),
    "Neg": _single(operator.neg),
    "Not": _single(operator.not_),
    "Floor": _single(lambda a: _real(_floor(a))),
    "Ceil": _single(lambda a: _real(-_floor(-a))),
    "Identity": _single(lambda a: a),
}


def _floor(a: Any) -> Any:
    return a if isinstance(a, int | torch.SymInt) else a // 1


def _real(a: Any) -> Any:
    return torch.sym_float(a)


@_reads("Cast")
def _cast(node: Node, x: Sizes) -> Sizes:
    # 1, 10, 11, 16: the real types of TensorProto; 9: bool.
    kind = node.attributes["to"]
    if kind in (1, 10, 11, 16):
        return _single(torch.sym_float)(node, x)
    return _single(bool if kind == 9 else _whole)(node, x)


def _whole(a: Any) -> Any:
    return int(a) if isinstance(a, bool) else torch.sym_int(a)


@_reads("Shape")
def _shape(node: Node, x: Sizes) -> Sizes:
    return sizes(list(x.shape[slice(node.attributes.get("start") or 0, node.attributes.get("end"))]))


@_reads("Gather")
def _gather(node: Node, x: Sizes, indices: Sizes) -> Sizes:
    return sizes(np.asarray(np.take(x, indices.astype(np.int64), axis=node.attributes["axis"]), object))


@_reads("Slice")
def _slice(node: Node, x: Sizes, starts: Sizes, ends: Sizes, axes: Any = None, steps: Any = None) -> Sizes:
    picked = [slice(None)] * x.ndim
    over = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(over, starts.tolist(), ends.tolist(), strides, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else int(end)
        picked[axis] = slice(int(start), stop, int(step))
    return x[tuple(picked)]


@_reads("Concat")
def _concat(node: Node, *parts: Sizes) -> Sizes:
    return np.concatenate(parts, axis=node.attributes["axis"])


@_reads("Unsqueeze")
def _unsqueeze(node: Node, x: Sizes, axes: Sizes) -> Sizes:
    return np.expand_dims(x, tuple(axes.tolist()))


@_reads("Squeeze")
def _squeeze(node: Node, x: Sizes, axes: Any = None) -> Sizes:
    return np.squeeze(x, None if axes is None else tuple(axes.tolist()))


@_reads("Reshape")
def _reshape(node: Node, x: Sizes, shape: Sizes) -> Sizes:
    return x.reshape([int(dim) for dim in shape.tolist()])


@_reads("ReduceProd")
def _product(node: Node, x: Sizes, axes: Any = None) -> Sizes:
    if x.ndim > 1:
        raise UnsupportedError("a product of a table of sizes")
    found = reduce(operator.mul, x.tolist(), 1)
    return sizes([found]) if node.attributes["keepdims"] else sizes(found)


@_reads("Split")
def _split(node: Node, x: Sizes, parts: Any = None) -> tuple[Sizes, ...]:
    count = len(node.outputs)
    edges = np.cumsum(parts.tolist())[:-1] if parts is not None else count
    return tuple(np.split(x, edges, axis=node.attributes["axis"]))


@_reads("Where")
def _where(node: Node, condition: Sizes, x: Sizes, y: Sizes) -> Sizes:
    return sizes(np.asarray(np.where(condition.astype(bool), x, y), object))


@_reads("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Sizes) -> Sizes | Any:
    dims = shape.reshape(-1).tolist()
    if any(not isinstance(dim, int) for dim in dims) or len(dims) != 1 or not 0 <= dims[0] <= LARGEST:
        return NotImplemented
    value = node.attributes["value"]
    return sizes([0 if value is None else value.reshape(-1)[0].item()] * dims[0])


@_reads("Expand")
def _expand(node: Node, x: Sizes, shape: Sizes) -> Sizes | Any:
    dims = shape.reshape(-1).tolist()
    if any(not isinstance(dim, int) for dim in dims) or np.prod([float(dim) for dim in dims]) > LARGEST:
        return NotImplemented
    return sizes(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(dims))))


def compute(node: Node, operands: list[Sizes | None]) -> Any:
    """The node's result on sizes, or NotImplemented where it has to be computed on tensors."""
    function = ON_SIZES.get(node.op_type)
    return NotImplemented if function is None else function(node, *operands)
