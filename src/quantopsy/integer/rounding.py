"""Rounding to whole numbers, by name.

``half_even``   a tie goes to the even neighbour: ONNX, IEEE 754
``half_up``     a tie goes up: TFLite's single rounding, ``(x + half) >> shift``
``half_away``   a tie goes away from zero: gemmlowp's RoundingDivideByPOT
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Rounding = Literal["half_even", "half_up", "half_away"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def round_real(x: Tensor, rounding: Rounding) -> Tensor:
    """Float ``x`` rounded to a whole number of the same dtype; exact, also next to a tie."""
    if rounding == "half_even":
        return torch.round(x)
    # Not floor(x + 0.5), whose sum is rounded itself: up, for the number just below a half. This rest is exact.
    whole = torch.trunc(x)
    rest = x - whole
    down = rest < -0.5 if rounding == "half_up" else rest <= -0.5
    return whole + (rest >= 0.5).to(x.dtype) - down.to(x.dtype)


def shift_right(x: Tensor, bits: Tensor | int, rounding: Rounding) -> Tensor:
    """``x / 2^bits`` (int64, bits 0 to 62) rounded; RoundingDivideByPOT of gemmlowp is ``half_away``."""
    bits = torch.as_tensor(bits, device=x.device)
    below = x >> bits
    rest = x - (below << bits)
    half = torch.where(bits > 0, torch.ones_like(bits) << (bits - 1).clamp(min=0), 1)  # nothing is left of 0 bits
    if rounding == "half_up":
        return below + (rest >= half)
    towards = below.remainder(2) == 1 if rounding == "half_even" else x >= 0
    return below + ((rest > half) | ((rest == half) & towards))
