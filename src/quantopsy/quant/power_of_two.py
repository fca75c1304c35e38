"""Levels that are powers of two, or sums of a few.

Both tables are normalised to a largest level of 1; the scale is the largest magnitude of the range.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant.levels import LevelsQParams
from quantopsy.quant.quantizer import Quantizer
from quantopsy.quant.sample import Sample

# Relative to the largest level; anything smaller is zero beside it in float32.
_SMALLEST_EXPONENT = -120


def power_of_two_levels(bits: int, signed: bool) -> Tensor:
    """0 and 2^-k, with both signs where ``signed``: at most 2^b - 1 levels, or 2^b unsigned, ascending.

    DDQ equation (2) with c = 2: k from 0 to 2^(b-1) - 2, zero having two of its codes.
    """
    count = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    magnitudes = [2.0**-k for k in range(min(count, -_SMALLEST_EXPONENT))]
    return _table(magnitudes, signed)


def additive_levels(bits: int, signed: bool) -> Tensor:
    """Sums of powers of two (APoT, Li et al. 2020, equation (5) with k = 2), ascending.

    The B bits of a magnitude (B = b - 1 where ``signed``) make n = B // 2 terms, the i-th one of 0, 2^-i,
    2^-(i+n), 2^-(i+2n+r), and, where B is odd (r = 1), one more: 0 or 2^-2n.
    """
    width = bits - 1 if signed else bits
    terms, odd = divmod(width, 2)
    choices: list[tuple[float, ...]] = [
        (0.0, 2.0**-i, 2.0 ** -(i + terms), 2.0 ** -(i + 2 * terms + odd)) for i in range(terms)
    ]
    if odd:
        choices.append((0.0, 2.0 ** (-2 * terms)))
    sums = {sum(terms) for terms in product(*choices)}
    largest = max(sums)
    return _table([total / largest for total in sums if total > 0], signed)


def _table(magnitudes: list[float], signed: bool) -> Tensor:
    positive = torch.tensor([0.0, *sorted(magnitudes)])
    return torch.cat((-positive[1:].flip(0), positive)) if signed else positive


def _scaled(levels: Tensor, low: Tensor, high: Tensor) -> LevelsQParams:
    reach = torch.maximum(-low, high)
    scale = torch.where(reach < torch.finfo(torch.float32).tiny, 1.0, reach.float())
    return LevelsQParams(levels.to(scale.device), scale, axis=0)


def _fit(spec: Spec, _: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    return _scaled(power_of_two_levels(spec.bits, bool(spec.signed)), low, high)


def _fit_additive(spec: Spec, _: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    return _scaled(additive_levels(spec.bits, bool(spec.signed)), low, high)


POWER_OF_TWO = Quantizer(
    name="power_of_two",
    summary="zero and powers of two below the largest magnitude (PoT)",
    fit=_fit,
)
ADDITIVE = Quantizer(
    name="additive_power_of_two",
    summary="sums of powers of two (APoT): denser towards the ends than power_of_two",
    fit=_fit_additive,
    max_bits=12,
)
