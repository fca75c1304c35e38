"""Pooling, additions and concatenations of codes.

The greatest of values is the greatest of codes. An average is a sum of codes with the multiplier ``s_x / (s_y n)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantopsy.integer.codes import Codes
from quantopsy.integer.requantize import Requantization, Saturated, saturate
from quantopsy.integer.tables import identity, look_up, table
from quantopsy.quant import UniformQParams

Size = int | list[int] | tuple[int, ...]


def moved(function: Callable[[Tensor], Tensor], x: Codes) -> Codes:
    """``function`` that selects or re-arranges values, or takes the greatest of them, of codes.

    It sees ``codes - zero_point`` as float64, where zeros that it adds are real zeros.
    """
    return Codes((function(x.centred.double()).long() + int(x.grid.zero_point)).to(torch.int32), x.grid)


def max_pool(
    x: Codes,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Codes:
    """The greatest code of every window of ``x`` (B, C, H, W), on the same grid."""
    return moved(lambda values: F.max_pool2d(values, kernel_size, stride, padding, dilation, ceil_mode), x)


def window_sums(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums (int64) of the windows of ``x``, integers (B, C, H, W), and what each is divided by, (1, 1, H', W')."""
    sums = F.avg_pool2d(x.double(), kernel_size, stride, padding, ceil_mode, True, 1).round().long()
    ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float64, device=x.device)
    inside = F.avg_pool2d(ones, kernel_size, stride, padding, ceil_mode, True, 1)
    means = F.avg_pool2d(ones, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return sums, (inside / means).round().long()


def average_pool(
    x: Codes,
    kernel_size: Size,
    target: UniformQParams,
    *,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    requantization: Requantization | None = None,
) -> Saturated:
    """Averages of windows on ``target``: ``round(s_x sum (q_x - z_x) / (n s_y)) + z_y``."""
    sums, counts = window_sums(x.centred, kernel_size, stride, padding, ceil_mode, count_include_pad)
    unit = x.grid.scale.double() / counts
    steps = (requantization or Requantization()).steps([sums], [unit], target.scale)
    return saturate(steps, target.zero_point, target.qmin, target.qmax)


def adaptive_counts(sizes: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """(outputs...): how many values adaptive pooling from ``sizes`` to ``outputs`` averages at every place.

    Bin i of a dimension reaches from floor(i n / m) to ceil((i + 1) n / m).
    """
    counts = torch.ones((), dtype=torch.int64)
    for n, m in zip(sizes, outputs, strict=True):
        bins = torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)])
        counts = counts[..., None] * bins
    return counts


def addition(parts: Sequence[Codes], target: UniformQParams, requantization: Requantization | None = None) -> Saturated:
    """``round(sum_i s_i (q_i - z_i) / s_y) + z_y``, rounded once."""
    sums, units = [part.centred for part in parts], [part.grid.scale.double() for part in parts]
    steps = (requantization or Requantization()).steps(sums, units, target.scale)
    return saturate(steps, target.zero_point, target.qmin, target.qmax)


def concat(parts: Sequence[Codes], target: UniformQParams, axis: int = 1) -> Codes:
    """``parts`` side by side on ``target``, each through a table from its own grid where that is another."""
    laid = [
        part if part.grid is target else look_up(part, table(identity, part.grid, target), target) for part in parts
    ]
    return Codes(torch.cat([part.codes for part in laid], axis), target)
