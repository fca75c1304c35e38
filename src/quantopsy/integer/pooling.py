"""Sums of codes that poolings average: the multiplier of one is ``s_x / (s_y n)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = int | list[int] | tuple[int, ...]


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


def adaptive_counts(sizes: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """(outputs...): how many values adaptive pooling from ``sizes`` to ``outputs`` averages at every place.

    Bin i of a dimension reaches from floor(i n / m) to ceil((i + 1) n / m).
    """
    counts = torch.ones((), dtype=torch.int64)
    for n, m in zip(sizes, outputs, strict=True):
        bins = torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)])
        counts = counts[..., None] * bins
    return counts
