"""Convolutions and pooling: ONNX's pads, which may differ at both ends, in torch's form.

B images, C channels, then the spatial axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.graph.onnx.graph import Node, UnsupportedError
from quantopsy.graph.onnx.values import static

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GLOBAL_AVERAGES: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}

LARGEST_KERNEL = 2**26
"""Elements: a pooling over a whole image of 8192 x 8192; torch walks through them, also where they are padding."""


@dataclass(frozen=True)
class Windows:
    """How a kernel goes over the spatial axes; ``out`` is the size of the result."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    out: list[int]

    @classmethod
    def of(cls, node: Node, size: list[int], kernel: list[int]) -> Windows:
        """``node``'s windows over axes of ``size``."""
        count = len(size)
        attributes = node.attributes
        strides = attributes.get("strides") or [1] * count
        dilations = attributes.get("dilations") or [1] * count
        pads = attributes.get("pads") or [0] * (2 * count)
        if any(len(found) != count for found in (kernel, strides, dilations)) or len(pads) != 2 * count:
            raise UnsupportedError(f"attributes that are not of {count} axes")
        if min([*kernel, *strides, *dilations]) < 1:
            raise UnsupportedError("a kernel, stride or dilation below 1")
        if math.prod(kernel) > LARGEST_KERNEL:
            raise UnsupportedError(f"a kernel of {kernel}")
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        begin, end = list(pads[:count]), list(pads[count:])
        automatic = attributes.get("auto_pad") or "NOTSET"
        if automatic == "VALID":
            begin, end = [0] * count, [0] * count
        elif automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = [max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(size, strides, spans, strict=True)]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            begin, end = (less, more) if automatic == "SAME_UPPER" else (more, less)
        elif automatic != "NOTSET":
            raise UnsupportedError(f"auto_pad {automatic!r}")
        out = []
        for n, s, span, b, e in zip(size, strides, spans, begin, end, strict=True):
            room = n + b + e - span
            steps = -(-room // s) if attributes.get("ceil_mode") else room // s
            # A window that begins behind the image and its first padding is left out.
            out.append(steps + 1 - int(steps * s >= n + b and steps > 0))
        if min(out) < 1:
            raise UnsupportedError("windows larger than the image")
        return cls(kernel, list(strides), list(dilations), begin, end, out)

    @property
    def symmetric(self) -> bool:
        """Whether the pads are what torch takes."""
        return self.begin == self.end and min(self.begin) >= 0

    @property
    def pads(self) -> list[int]:
        """As F.pad wants them: the last axis first."""
        return [n for pair in reversed(list(zip(self.begin, self.end, strict=True))) for n in pair]

    def reaches(self, size: list[int]) -> bool | None:
        """The ceil_mode with which torch's pool, padded by ``begin`` at both ends, covers ``out``; None for neither."""
        if any(
            b < 0 or b > (d * (k - 1) + 1) // 2 for b, k, d in zip(self.begin, self.kernel, self.dilations, strict=True)
        ):
            return None
        rooms = [
            n + 2 * b - d * (k - 1) - 1
            for n, b, k, d in zip(size, self.begin, self.kernel, self.dilations, strict=True)
        ]
        if min(rooms) < 0:
            return None
        for ceil in (False, True):
            found = []
            for room, s, n, b in zip(rooms, self.strides, size, self.begin, strict=True):
                steps = -(-room // s) if ceil else room // s
                found.append(steps + 1 - int(ceil and steps * s >= n + b))
            if all(f >= o for f, o in zip(found, self.out, strict=True)):
                return ceil
        return None


def _rank(x: Tensor) -> int:
    if not 3 <= x.dim() <= 5:
        raise UnsupportedError(f"an input of {x.dim()} dimensions")
    return x.dim() - 2


def _spatial(x: Tensor) -> list[int]:
    return static(x.shape[2:], "image sizes")


def _cut(x: Tensor, out: list[int]) -> Tensor:
    for axis, length in enumerate(out, start=2):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x


def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv."""
    rank = _rank(x)
    kernel = static(weight.shape[2:], "kernels")
    if node.attributes["kernel_shape"] not in (None, kernel):
        raise UnsupportedError(f"kernel_shape {node.attributes['kernel_shape']} for a weight of {kernel}")
    win = Windows.of(node, _spatial(x), kernel)
    padding = win.begin
    if not win.symmetric:
        x, padding = F.pad(x, win.pads), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, win.strides, padding, win.dilations, node.attributes["group"])


def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose: computed with the smaller pad at both ends, the rest is cut off."""
    rank, attributes = _rank(x), node.attributes
    kernel = static(weight.shape[2:], "kernels")
    strides = attributes["strides"] or [1] * rank
    dilations = attributes["dilations"] or [1] * rank
    extra = attributes["output_padding"] or [0] * rank
    pads = attributes["pads"] or [0] * (2 * rank)
    begin, end = list(pads[:rank]), list(pads[rank:])
    automatic = attributes["auto_pad"] or "NOTSET"
    shape = attributes["output_shape"]
    full = [
        s * (n - 1) + e + d * (k - 1) + 1
        for n, k, s, d, e in zip(_spatial(x), kernel, strides, dilations, extra, strict=True)
    ]
    if automatic == "VALID":
        begin, end = [0] * rank, [0] * rank
    elif shape is not None or automatic != "NOTSET":
        wanted = shape[-rank:] if shape is not None else [n * s for n, s in zip(_spatial(x), strides, strict=True)]
        total = [f - w for f, w in zip(full, wanted, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (less, more) if automatic == "SAME_UPPER" else (more, less)
    if min([*begin, *end]) < 0:
        raise UnsupportedError("negative pads")
    if min(f - b - e for f, b, e in zip(full, begin, end, strict=True)) < 1:
        raise UnsupportedError("pads larger than the image")
    padding = [min(pair) for pair in zip(begin, end, strict=True)]
    y = _TRANSPOSED[rank](x, weight, bias, strides, padding, extra, attributes["group"], dilations)
    for axis, (b, e, p, f) in enumerate(zip(begin, end, padding, full, strict=True), start=2):
        if b != e:
            y = y.narrow(axis, b - p, f - b - e)
    return y


def max_pool(node: Node, x: Tensor) -> Tensor:
    """MaxPool."""
    rank, size = _rank(x), _spatial(x)
    win = Windows.of(node, size, node.attributes["kernel_shape"])
    ceil = win.reaches(size)
    if ceil is not None:
        y = _MAX_POOLS[rank](x, win.kernel, win.strides, win.begin, win.dilations, ceil)
        return _cut(y, win.out)
    if max(win.dilations) > 1 or any(p >= k for p, k in zip([*win.begin, *win.end], win.kernel * 2, strict=True)):
        raise UnsupportedError("pads that torch's pooling has no form for")
    # A window that reads a border value repeated outside reads the value itself too: the greatest is the same.
    padded = F.pad(x, win.pads, mode="replicate")
    return _cut(
        _MAX_POOLS[rank](padded, win.kernel, win.strides, ceil_mode=bool(node.attributes["ceil_mode"])), win.out
    )


def average_pool(node: Node, x: Tensor) -> Tensor:
    """AveragePool."""
    rank, size = _rank(x), _spatial(x)
    win = Windows.of(node, size, node.attributes["kernel_shape"])
    if max(win.dilations) > 1:
        raise UnsupportedError("dilations")
    pool, ceil = _AVERAGE_POOLS[rank], win.reaches(size)
    if not node.attributes["count_include_pad"] and ceil is not None:
        return _cut(pool(x, win.kernel, win.strides, win.begin, ceil, False), win.out)
    if win.symmetric and ceil is not None:
        return _cut(pool(x, win.kernel, win.strides, win.begin, bool(node.attributes["ceil_mode"]), True), win.out)
    rounded = bool(node.attributes["ceil_mode"])
    y = _cut(pool(F.pad(x, win.pads), win.kernel, win.strides, 0, rounded), win.out)
    if node.attributes["count_include_pad"]:
        return y
    share = pool(F.pad(torch.ones(1, 1, *size), win.pads), win.kernel, win.strides, 0, rounded)
    return y / _cut(share, win.out)


def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    rank = _rank(x)
    return _GLOBAL_AVERAGES[rank](x, [1] * rank)


def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(list(range(2, 2 + _rank(x))), True)


def local_response_norm(node: Node, x: Tensor) -> Tensor:
    """LRN: of an even size the window reaches further up here, further down in torch."""
    attributes = node.attributes
    size = attributes["size"]
    if not 1 <= size <= 2 * math.prod(x.shape[1:2]):
        raise UnsupportedError(f"size {size}")
    arguments = (size, attributes["alpha"], attributes["beta"], attributes["bias"])
    if size % 2:
        return F.local_response_norm(x, *arguments)
    return F.local_response_norm(x.flip(1), *arguments).flip(1)
