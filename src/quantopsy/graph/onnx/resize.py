"""Resize: indices (nearest) or weights (linear, cubic) of every axis, and torch's own upsampling where it has the same.

An axis of ``size`` values becomes one of ``out``; ``scale`` is what the file says out / size is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.graph.onnx.graph import Node, UnsupportedError
from quantopsy.graph.onnx.values import Value, integers, plain_numbers, static

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
LARGEST_SIDE = 2**20


def resize(
    node: Node, x: Tensor, roi: Value | None = None, scales: Value | None = None, to: Value | None = None
) -> Tensor:
    """ONNX Resize: without a region of interest."""
    attributes = node.attributes
    mode, kind = attributes["mode"], attributes["coordinate_transformation_mode"]
    if kind == "tf_crop_and_resize":
        raise UnsupportedError("a region of interest")
    axes, factors, sides = _wanted(node, x, scales, to)
    if any(axis < 2 for axis in axes):
        raise UnsupportedError("resizing images or channels")
    if attributes.get("antialias") and any(factor < 1 for factor in factors):
        raise UnsupportedError("antialiasing")
    size = static(x.shape[2:], "sizes")
    out = list(size)
    scale = [1.0] * len(size)
    for axis, ratio, side in zip(axes, factors, sides, strict=True):
        out[axis - 2], scale[axis - 2] = side, ratio
    if any(not 1 <= side <= LARGEST_SIDE for side in out):
        raise UnsupportedError(f"a result of {out} pixels")
    if mode == "nearest":
        return _nearest(x, size, out, scale, kind, attributes["nearest_mode"])
    if mode not in ("linear", "cubic"):
        raise UnsupportedError(f"mode {mode!r}")
    cubic = (attributes["cubic_coeff_a"], bool(attributes["exclude_outside"])) if mode == "cubic" else None
    matrices = [_weights(*axis, kind, cubic) for axis in zip(size, out, scale, strict=True)]
    name = _LINEAR.get(x.dim()) if cubic is None else ("bicubic" if x.dim() == 4 else None)
    for aligned in (False, True):
        theirs = "align_corners" if aligned else "half_pixel"
        usual = None if cubic is None else (-0.75, False)
        if name is not None and all(
            np.allclose(matrix, _weights(n, m, m / n, theirs, usual), atol=1e-6)
            for matrix, n, m in zip(matrices, size, out, strict=True)
        ):
            return F.interpolate(x, out, mode=name, align_corners=aligned)
    for axis, (matrix, n, m) in enumerate(zip(matrices, size, out, strict=True), start=2):
        if n != m or not np.allclose(matrix, np.eye(n)):
            factor = torch.tensor(matrix, dtype=torch.float32)
            x = (x.transpose(axis, -1) @ factor).transpose(axis, -1)
    return x


def _wanted(node: Node, x: Tensor, scales: Value | None, to: Value | None) -> tuple[list[int], list[float], list[int]]:
    """The axes that change, and the scale and the size of each."""
    given = node.attributes.get("axes")
    axes = list(range(x.dim())) if given is None else [axis % x.dim() for axis in given]
    if scales is not None and 0 not in _shape_of(scales):
        numbers = plain_numbers(scales, "scales").reshape(-1).tolist()
        pairs = [(a, s) for a, s in zip(axes, numbers, strict=True) if s != 1]
        if any(not 0 < s < LARGEST_SIDE for _, s in pairs):
            raise UnsupportedError(f"scales {numbers}")
        # In float32, as runtimes do: 0.7 of 50 values are 35 then, and 34 in float64.
        sides = [math.floor(np.float32(int(x.shape[a])) * np.float32(s)) for a, s in pairs]
        return [a for a, _ in pairs], [s for _, s in pairs], sides
    if to is None:
        raise UnsupportedError("neither scales nor sizes")
    numbers = integers(to, "sizes")
    pairs = [(a, n) for a, n in zip(axes, numbers, strict=True) if a >= 2]  # images and channels stay
    policy = node.attributes.get("keep_aspect_ratio_policy") or "stretch"
    if any(a == 1 and n != x.shape[1] for a, n in zip(axes, numbers, strict=True)):
        raise UnsupportedError("resizing channels")
    sides = static([n for _, n in pairs], "sizes")
    old = [int(x.shape[a]) for a, _ in pairs]
    factors = [n / o for n, o in zip(sides, old, strict=True)]
    if policy != "stretch" and factors:
        one = min(factors) if policy == "not_larger" else max(factors)
        factors, sides = [one] * len(old), [math.floor(one * o + 0.5) for o in old]
    return [a for a, _ in pairs], factors, sides


def _shape_of(value: Value) -> tuple[Any, ...]:
    return tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else value.array.shape


def _coordinates(size: int, out: int, scale: float | np.float32, kind: str) -> np.ndarray:
    """Where in the old axis the new one's values lie (ONNX Resize, coordinate_transformation_mode).

    In float32 where the scale is one.
    """
    i = np.arange(out, dtype=np.asarray(scale).dtype)
    if kind == "asymmetric":
        return i / scale
    if kind == "align_corners":
        return i * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if kind == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    if kind in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    if kind == "half_pixel_symmetric":
        return size / 2 * (1 - out / (scale * size)) + (i + 0.5) / scale - 0.5
    raise UnsupportedError(f"coordinate_transformation_mode {kind!r}")


def _nearest(x: Tensor, size: list[int], out: list[int], scale: list[float], kind: str, rounding: str) -> Tensor:
    indices = []
    for n, m, s in zip(size, out, scale, strict=True):
        # As runtimes do: which neighbour is the nearest to 11 / 2.2, a float's rounding decides.
        place = _coordinates(n, m, np.float32(s), kind).astype(np.float64)
        if rounding == "round_prefer_floor":
            index = np.ceil(place - 0.5)
        elif rounding == "round_prefer_ceil":
            index = np.floor(place + 0.5)
        elif rounding in ("floor", "ceil"):
            index = np.floor(place) if rounding == "floor" else np.ceil(place)
        else:
            raise UnsupportedError(f"nearest_mode {rounding!r}")
        indices.append(index.clip(0, n - 1).astype(np.int64))
    theirs = [_nearest_in_torch(n, m) for n, m in zip(size, out, strict=True)]
    if x.dim() in _LINEAR and all(map(np.array_equal, indices, theirs)):
        return F.interpolate(x, out, mode="nearest")
    for axis, index in enumerate(indices, start=2):
        if not np.array_equal(index, np.arange(size[axis - 2])):
            x = x.index_select(axis, torch.tensor(index))
    return x


def _nearest_in_torch(size: int, out: int) -> np.ndarray:
    """The indices that ``F.interpolate`` takes: of a product of floats, which may fall below a whole number."""
    place = np.arange(out, dtype=np.float32) * (np.float32(size) / np.float32(out))
    return np.floor(place).clip(0, size - 1).astype(np.int64)


def _weights(size: int, out: int, scale: float, kind: str, cubic: tuple[float, bool] | None) -> np.ndarray:
    """(size, out): what every old value gives to every new one. ``cubic``: its coefficient, exclude_outside."""
    place = _coordinates(size, out, scale, kind)
    below = np.floor(place)
    t = place - below
    if cubic is None:
        taps = {0: 1 - t, 1: t}
    else:
        a = cubic[0]

        def near(d: np.ndarray) -> np.ndarray:
            return ((a + 2) * d - (a + 3)) * d * d + 1

        def far(d: np.ndarray) -> np.ndarray:
            return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

        taps = {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}
    matrix = np.zeros((size, out))
    for step, weight in taps.items():
        index = below + step
        if cubic is not None and cubic[1]:
            weight = np.where((index >= 0) & (index < size), weight, 0.0)
        np.add.at(matrix, (index.clip(0, size - 1).astype(np.int64), np.arange(out)), weight)
    return matrix / matrix.sum(0) if cubic is not None and cubic[1] else matrix
