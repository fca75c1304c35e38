"""The piecewise quantizer of PWLQ: which breakpoint, and what its bits count."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import breakpoints, piecewise
from quantopsy.quant.quantizer import Quantizer
from quantopsy.quant.sample import Sample


def bits_per_piece(spec: Spec) -> int:
    """b. By the option ``convention``, ``spec.bits`` is B with

    ``per_piece``   b = B, the default and that of PWLQ's tables 1 and 2: 2^(b+2) codes
    ``pw_comp``     as costly to multiply as B-bit uniform: b = B - 1 signed, B unsigned
    ``pw_stor``     as large to store as B-bit uniform: b = B - 2 signed, B - 1 unsigned

    Raises :class:`QuantopsyError` where that leaves no bit.
    """
    sign = int(bool(spec.signed))
    taken = {"per_piece": 0, "pw_comp": sign, "pw_stor": sign + 1}
    bits = spec.bits - taken[str(QUANTIZER.option(spec, "convention"))]
    if bits < 1:
        raise QuantopsyError(f"piecewise with {spec.bits} bits stored", "pieces would have none", "give at least 3")
    return bits


def stored_bits(spec: Spec) -> int:
    """b, a bit for the piece and one for the sign; values of unknown sign are taken to have one."""
    signed = spec.signed is not False
    return bits_per_piece(replace(spec, signed=signed)) + 1 + signed


def _fit(spec: Spec, sample: Sample, low: Tensor, high: Tensor) -> piecewise.PiecewiseQParams:
    bits, signed = bits_per_piece(spec), bool(spec.signed)
    maximum = torch.maximum(-low, high).clamp(min=0)
    solve = breakpoints.SOLVERS[str(QUANTIZER.option(spec, "breakpoint"))]
    return piecewise.from_breakpoint(maximum, solve(sample, maximum, bits), bits, signed, axis=0)


QUANTIZER = Quantizer(
    name="piecewise",
    summary="two linear regions, dense around zero (PWLQ); bits are those of each piece, see `convention`",
    fit=_fit,
    options={
        "breakpoint": tuple(breakpoints.SOLVERS),
        "convention": ("per_piece", "pw_comp", "pw_stor"),
    },
    needs_values=True,
    stored_bits=stored_bits,
)
