"""Whole operators of ONNX made of the exact product and accumulators: what tests run beside other software."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.integer.accumulator import Accumulated, Accumulator
from quantopsy.integer.products import exact_product
from quantopsy.quant.grouping import aligned

_INT32 = Accumulator()


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    zero_point: int = 0,
    weight_zero_point: int | Tensor = 0,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    accumulator: Accumulator = _INT32,
) -> Accumulated:
    """``sum (q_x - z_x)(q_w - z_w) + b`` over windows; ONNX ConvInteger with a bias, in 1 to 3 dimensions.

    Codes ``x`` (B, I, ...), ``weight`` (O, I / groups, ...), ``bias`` (O,) int32 codes on the scale s_x s_w;
    ``weight_zero_point`` a number or (O,). Padding adds real zeros. Depthwise where ``groups = I``.
    """
    dims = x.dim() - 2
    operator = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def product(a: Tensor, w: Tensor) -> Tensor:
        result: Tensor = operator(a, w, None, stride, padding, dilation, groups)
        return result

    sums = exact_product(product, x.to(torch.int64) - zero_point, _centred(weight, weight_zero_point), 0)
    return accumulator.hold(sums if bias is None else sums + bias.to(torch.int64).reshape(-1, *(1,) * dims))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    zero_point: int = 0,
    weight_zero_point: int | Tensor = 0,
    accumulator: Accumulator = _INT32,
) -> Accumulated:
    """``(q_x - z_x) (q_w - z_w)^T + b`` of codes ``x`` (..., I) and ``weight`` (O, I): as :func:`convolution`."""
    sums = exact_product(F.linear, x.to(torch.int64) - zero_point, _centred(weight, weight_zero_point), 0)
    return accumulator.hold(sums if bias is None else sums + bias.to(torch.int64))


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    zero_point: int = 0,
    weight_zero_point: int | Tensor = 0,
    accumulator: Accumulator = _INT32,
) -> Accumulated:
    """``(q_a - z_a)(q_b - z_b)``, ONNX MatMulInteger, of codes (..., M, K) and (..., K, N); ``weight_zero_point``
    a number or (N,)."""
    sums = exact_product(torch.matmul, a.to(torch.int64) - zero_point, b.to(torch.int64) - weight_zero_point, -1)
    return accumulator.hold(sums)


def _centred(weight: Tensor, zero_point: int | Tensor) -> Tensor:
    if isinstance(zero_point, Tensor) and zero_point.dim():
        zero_point = aligned(zero_point, weight, 0, None)
    return weight.to(torch.int64) - zero_point
