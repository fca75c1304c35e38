"""Per-sample weight gradients, never by a loop over samples.

B images, C and D input and output channels, k taps. For an operation y = op(x, W), linear in W, the
gradient of <g, y> of every image: (B, *W.shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantopsy.graph.operators import CONVOLUTIONS, LINEARS, aten

# A tile's per-sample gradients of one layer; beyond it one forward per candidate is taken instead.
LARGEST = 2**26  # elements


def supported(target: Any, arguments: Sequence[Any], images: int) -> bool:
    """Whether :func:`per_sample_gradient` knows this operation and its result fits."""
    weight = arguments[1]
    if target in LINEARS:
        return images * weight.numel() <= LARGEST and arguments[0].dim() >= 2
    if target not in CONVOLUTIONS or weight.dim() != 4 or images * weight.numel() > LARGEST:
        return False
    return len(arguments) <= 4 or not isinstance(arguments[4], str)  # padding="same" has its own overload


def per_sample_gradient(target: Any, arguments: Sequence[Any], x: Tensor, gradient: Tensor) -> Tensor:
    """(B, *W.shape) from the operation's input ``x`` and the gradient of its output."""
    weight = arguments[1]
    if target in LINEARS:
        return torch.einsum("b...d,b...c->bdc", gradient, x)
    stride, padding, dilation, groups = _geometry(arguments)
    if weight.shape[2:] == (1, 1) and groups == 1 and padding == [0, 0]:
        return _pointwise(x[:, :, :: stride[0], :: stride[1]], gradient).reshape(len(x), *weight.shape)
    return _grouped(x, gradient, weight, stride, padding, dilation, groups)


def _pointwise(x: Tensor, gradient: Tensor) -> Tensor:
    pixels = x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])
    return torch.bmm(gradient.permute(0, 2, 3, 1).reshape(len(x), -1, gradient.shape[1]).transpose(1, 2), pixels)


def _grouped(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """One backward of a single image whose channels are those of all images, in B times the groups.

    Depthwise layers keep channels innermost: with images and channels interleaved the library's
    channels-last kernel runs at the speed of the ordinary weight gradient.
    """
    images = len(x)
    merge = _interleave if groups == x.shape[1] else _stack
    wide = weight.new_empty((images * weight.shape[0], *weight.shape[1:]))
    found = aten.convolution_backward(
        merge(gradient),
        merge(x),
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
    return found.reshape(images, *weight.shape)


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
