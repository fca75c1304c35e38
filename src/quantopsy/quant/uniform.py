"""Uniform affine quantization: one scale and zero point per grid.

C channels along ``axis``; G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformQParams:
    """``scale`` and ``zero_point`` (float64/int tensors of shape () or (C,)), code range, channel axis."""

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None
