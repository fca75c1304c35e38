"""Per-sample weight gradients, never by a loop over samples.

B images, P probes, C and D input and output channels, k taps. For an operation y = op(x, W), linear in
W, the gradients of <g, y> of every image, each probe with its own g.

Which way is taken depends on shape and is measured (``benchmarks/screen.py --layers``): products of
matrices for pointwise layers; one backward with all images as groups for others; for depthwise kernels
above 3 x 3 the same sum as a forward whose kernel is g, because that backward has no fast kernel there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, aten

# A tile's per-sample gradients of one layer; beyond it one forward per candidate is taken instead.
LARGEST = 2**26  # elements

# What a layer lays out anew at a time: of a depthwise one twice as fast as a whole tile, because it stays in cache.
_CACHED = 2**20  # elements

# Up to this many input channels an image's patches are cheap to lay out, and groups are too thin to be fast.
_THIN = 4

# Largest g, by edge, that serves as a convolution kernel.
_LARGEST_KERNEL = 64


def supported(target: Any, arguments: Sequence[Any], images: int) -> bool:
    """Whether :func:`per_sample_gradients` knows this operation and its result fits."""
    weight = arguments[1]
    if target in LINEARS:
        return images * weight.numel() <= LARGEST and arguments[0].dim() >= 2
    if target not in CONVOLUTIONS or weight.dim() != 4 or images * weight.numel() > LARGEST:
        return False
    return len(arguments) <= 4 or not isinstance(arguments[4], str)  # padding="same" has its own overload


def per_sample_gradients(target: Any, arguments: Sequence[Any], gradients: Sequence[Tensor]) -> list[Tensor]:
    """(B, *W.shape) for every probe, from the operation's ``arguments`` and the gradients of its output."""
    x, weight = arguments[0], arguments[1]
    if target in LINEARS:
        return [torch.einsum("b...d,b...c->bdc", gradient, x) for gradient in gradients]
    stride, padding, dilation, groups = _geometry(arguments)
    if weight.shape[2:] == (1, 1) and groups == 1 and padding == [0, 0]:
        found = _products(x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).flatten(1, 2), gradients)
        return [part.reshape(len(x), *weight.shape) for part in found]
    if groups == 1 and weight.shape[1] <= _THIN:
        return _by_patches(x, gradients, weight, stride, padding, dilation)
    depthwise = groups == x.shape[1] == weight.shape[0]
    if depthwise and max(weight.shape[2:]) > 3 and max(gradients[0].shape[2:]) <= _LARGEST_KERNEL:
        return _swapped(x, gradients, weight, stride, padding, dilation)
    size = max(1, _CACHED // x[0].numel())
    pieces = [
        _grouped(x[i : i + size], [g[i : i + size] for g in gradients], weight, stride, padding, dilation, groups)
        for i in range(0, len(x), size)
    ]
    return pieces[0] if len(pieces) == 1 else [torch.cat(part) for part in zip(*pieces, strict=True)]


def _products(rows: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    """(B, D, N) for every probe, from rows (B, HW, N) and gradients (B, D, H, W)."""
    return [torch.bmm(gradient.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2), rows) for gradient in gradients]


def _by_patches(
    x: Tensor, gradients: Sequence[Tensor], weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[Tensor]:
    """A dense layer as a product with its input's patches, laid out tap by tap."""
    height, width = gradients[0].shape[2:]
    rows, columns = weight.shape[2:]
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    patches = padded.unfold(1, dilation[0] * (rows - 1) + 1, stride[0])[:, :height, :, :, :: dilation[0]]
    patches = patches.unfold(2, dilation[1] * (columns - 1) + 1, stride[1])[:, :, :width, :, :, :: dilation[1]]
    laid = patches.permute(0, 1, 2, 4, 5, 3).reshape(len(x), height * width, rows * columns * x.shape[1])
    found = _products(laid, gradients)
    return [part.unflatten(-1, (rows, columns, x.shape[1])).movedim(-1, 2) for part in found]


def _grouped(
    x: Tensor,
    gradients: Sequence[Tensor],
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> list[Tensor]:
    """One backward of a single image whose channels are those of all images, in B times the groups.

    Depthwise layers keep channels innermost: with images and channels interleaved the library's
    channels-last kernel runs at the speed of the ordinary weight gradient.
    """
    images = len(x)
    merge = _interleave if groups == x.shape[1] else _stack
    wide = weight.new_empty((images * weight.shape[0], *weight.shape[1:]))
    merged = merge(x)
    found = [
        aten.convolution_backward(
            merge(gradient),
            merged,
            wide,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            images * groups,
            [False, True, False],
        )[1]
        for gradient in gradients
    ]
    return [part.reshape(images, *weight.shape) for part in found]


def _swapped(
    x: Tensor, gradients: Sequence[Tensor], weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[Tensor]:
    """A depthwise layer's gradient as its input convolved with g: what was stride is dilation, and back."""
    images, rows, columns = len(x), *weight.shape[2:]
    height, width = gradients[0].shape[2:]
    # Inputs that a stride steps over at the far edges touch no tap.
    bottom = (height - 1) * stride[0] + dilation[0] * (rows - 1) + 1 - x.shape[2] - padding[0]
    right = (width - 1) * stride[1] + dilation[1] * (columns - 1) + 1 - x.shape[3] - padding[1]
    merged = _interleave(F.pad(x, (padding[1], right, padding[0], bottom)))
    found = [
        F.conv2d(
            merged,
            gradient.reshape(-1, 1, height, width),
            None,
            tuple(dilation),
            0,
            tuple(stride),
            merged.shape[1],
        )
        for gradient in gradients
    ]
    return [part.reshape(images, *weight.shape) for part in found]


def _interleave(t: Tensor) -> Tensor:
    """(B, C, H, W) to (1, B C, H, W), channels last."""
    images, channels, height, width = t.shape
    rows = t.permute(2, 3, 0, 1).contiguous()
    return rows.view(1, height, width, images * channels).permute(0, 3, 1, 2)


def _stack(t: Tensor) -> Tensor:
    """(B, C, H, W) to (1, B C, H, W), channels outermost."""
    return t.contiguous().view(1, -1, *t.shape[2:])


def _geometry(arguments: Sequence[Any]) -> tuple[list[int], list[int], list[int], int]:
    defaults: tuple[Any, ...] = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    filled = (*arguments, *defaults[len(arguments) :])
    stride, padding, dilation = (list(v) * (2 // len(v)) for v in filled[3:6])
    return stride, padding, dilation, int(filled[6])
