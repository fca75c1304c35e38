"""From accumulators to the codes of an output: ``q = clamp(round(M a) + z_y, qmin, qmax)``, ``M = s_x s_w / s_y``.

A device multiplies by M in one of three ways, here by name:

``exact``        the product as it is (float64, which holds it to 2^-52), rounded once
``float32``      the accumulator and M as float32, their product rounded half to even: ONNX Runtime's CPU kernels
``fixed_point``  an integer mantissa and a shift: TFLite and gemmlowp, and hardware without floats

A value may be the sum of several accumulators with multipliers of their own (piecewise and learned levels, groups,
an addition): they are scaled, added, and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, get_args

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, names
from quantopsy.integer.accumulator import Accumulator
from quantopsy.integer.rounding import ROUNDINGS, Rounding, round_real, shift_right

Multiplication = Literal["exact", "float32", "fixed_point"]
FixedPointRounding = Literal["gemmlowp", "half_even", "half_up", "half_away"]

_INT32 = Accumulator(32, "saturate")
RAISED = 20  # places below the point of what is added before it is rounded, as in TFLite's ADD of 8 bits
_UNIT = 2.0**-24  # of float32: the relative error of one operation


@dataclass(frozen=True)
class FixedPointMultiplier:
    """``mantissa 2^(shift - bits)``: int64 tensors of one shape, the mantissa below 2^bits."""

    mantissa: Tensor
    shift: Tensor
    bits: int = 31

    @classmethod
    def of(cls, value: Tensor, bits: int = 31) -> FixedPointMultiplier:
        """The nearest to ``value``, real (float64); TFLite's QuantizeMultiplier (quantization_util.cc) for 31 bits.

        ``frexp``, the mantissa rounded half away from zero; below 2^-32 all is shifted out, to 0.
        """
        fraction, exponent = torch.frexp(value.double())
        mantissa = round_real(fraction * 2.0**bits, "half_away").to(torch.int64)
        full = mantissa.abs() == 2**bits
        mantissa = torch.where(full, torch.div(mantissa, 2, rounding_mode="trunc"), mantissa)
        shift = exponent.to(torch.int64) + full
        lost = (shift < -31) | (mantissa == 0)
        return cls(torch.where(lost, 0, mantissa), torch.where(lost, 0, shift), bits)

    @property
    def value(self) -> Tensor:
        """The real multiplier that this is (float64)."""
        return torch.ldexp(self.mantissa.double(), self.shift - self.bits)


def high_product(a: Tensor, b: Tensor, bits: int = 31) -> Tensor:
    """``round(a b / 2^bits)``, saturated: gemmlowp's SaturatingRoundingDoublingHighMul (fixedpoint.h) for 31 bits.

    Of signed integers of ``bits + 1`` (int64 tensors). Its nudge by half and division towards zero round a tie up,
    on both sides of zero; only the square of the least number saturates.
    """
    return shift_right(a * b, bits, "half_up").clamp(max=2**bits - 1)


def multiply(sums: Tensor, multiplier: FixedPointMultiplier, rounding: FixedPointRounding = "gemmlowp") -> Tensor:
    """Int32 ``sums`` times ``multiplier``, as whole numbers (int64).

    ``gemmlowp``: TFLite's MultiplyByQuantizedMultiplier (kernels/internal/common.cc) as it is built by default, which
    rounds twice: ``RoundingDivideByPOT(SaturatingRoundingDoublingHighMul(sums 2^left, mantissa), right)``. Where the
    shift to the left leaves int32, which C leaves undefined, it saturates. ``half_up``: TFLite with
    TFLITE_SINGLE_ROUNDING, ``(sums mantissa + half) >> (31 - shift)``; other names round that once in their way.
    Raises :class:`QuantopsyError` for sums beyond int32.
    """
    if sums.numel() and not _INT32.low <= int(sums.amin()) <= int(sums.amax()) <= _INT32.high:
        raise QuantopsyError(
            "fixed-point multiplication", "a sum is beyond int32", "take an accumulator of 32 bits or fewer"
        )
    mantissa, shift, bits = multiplier.mantissa, multiplier.shift, multiplier.bits
    if rounding != "gemmlowp":
        down = bits - shift
        # Beyond 62 places nothing is left; up to there the product of 32 and 31 bits is an int64.
        scaled = shift_right(sums * mantissa, down.clamp(0, 62), rounding)
        return scaled << (-down).clamp(min=0)
    left, right = shift.clamp(min=0), (-shift).clamp(min=0)
    raised = (sums << left).clamp(_INT32.low, _INT32.high)
    high = high_product(raised, mantissa) if bits == 31 else shift_right(raised * mantissa, bits, "half_up")
    return shift_right(high, right, "half_away")


@dataclass(frozen=True)
class Requantization:
    """How accumulators become codes: ``multiplication`` and ``rounding`` by name, mantissas of so many bits.

    ``exact`` takes half_even, half_up or half_away, ``fixed_point`` also gemmlowp; ``float32`` is half_even.
    """

    multiplication: Multiplication = "exact"
    rounding: FixedPointRounding = "half_even"
    mantissa_bits: int = 31

    def __post_init__(self) -> None:
        if self.multiplication not in get_args(Multiplication):
            raise names.unknown(self.multiplication, get_args(Multiplication), "multiplication")
        allowed: tuple[str, ...] = {"float32": ("half_even",), "exact": ROUNDINGS}.get(
            self.multiplication, ("gemmlowp", *ROUNDINGS)
        )
        if self.rounding not in allowed:
            raise names.unknown(self.rounding, allowed, f"rounding of {self.multiplication}")
        if not 2 <= self.mantissa_bits <= 31:
            raise QuantopsyError(f"mantissa of {self.mantissa_bits} bits", "not a width", "give 2 to 31")

    @property
    def name(self) -> str:
        """Multiplication and rounding in one word."""
        mantissa = f" {self.mantissa_bits}-bit" if self.multiplication == "fixed_point" else ""
        return f"{self.multiplication}{mantissa}, {self.rounding}"

    def steps(self, sums: Sequence[Tensor], units: Sequence[Tensor], scale: Tensor) -> Tensor:
        """``round(sum_t units_t sums_t / scale)``, int64.

        ``sums`` int64; ``units`` float64, the real that one of a sum stands for (s_x s_w), and ``scale`` float32, s_y,
        broadcast to them.
        """
        if self.multiplication == "exact":
            return round_real(real_steps(sums, units, scale), self._single).to(torch.int64)
        if self.multiplication == "float32":
            # M as ONNX Runtime computes it: s_x s_w rounded to float32, then divided.
            parts = (values.float() * (unit.float() / scale.float()) for values, unit in zip(sums, units, strict=True))
            return torch.round(reduce(add, parts)).to(torch.int64)
        reals = [unit.double() / scale.double() for unit in units]
        if len(sums) == 1:
            return multiply(sums[0], FixedPointMultiplier.of(reals[0], self.mantissa_bits), self.rounding)
        return _added(sums, reals, self.mantissa_bits, self._single)

    def error(self, sums: Sequence[Tensor], units: Sequence[Tensor], scale: Tensor) -> Tensor:
        """How far, in steps, what is rounded may be from the real ``sum_t units_t sums_t / scale`` at most."""
        parts = [(values * (unit.double() / scale.double())).abs() for values, unit in zip(sums, units, strict=True)]
        whole = reduce(add, parts)
        if self.multiplication == "exact":
            return whole * 2.0**-50
        if self.multiplication == "float32":
            # The sum as float32, s_x s_w, the division, the product; then the additions.
            return whole * (4 + len(parts)) * _UNIT
        raised = RAISED if len(sums) > 1 else 0
        error = whole * 2.0**-50
        for values, unit in zip(sums, units, strict=True):
            real = unit.double() / scale.double()
            multiplier = FixedPointMultiplier.of(real * 2.0**raised, self.mantissa_bits)
            error = error + values.abs() * (multiplier.value * 2.0**-raised - real).abs()
        if raised:
            return error + len(sums) * 2.0 ** -(raised + 1)
        if self.rounding != "gemmlowp":
            return error
        # The first of two roundings is by half of what the second one then shifts out.
        return error + 2.0 ** (multiplier.shift.clamp(max=0).double() - 1)

    @property
    def _single(self) -> Rounding:
        return "half_up" if self.rounding == "gemmlowp" else self.rounding


def real_steps(sums: Sequence[Tensor], units: Sequence[Tensor], scale: Tensor) -> Tensor:
    """``sum_t units_t sums_t / scale`` in float64: the value in steps of the output, before it is rounded."""
    # One sum times one multiplier, so that what is a tie on paper stays one.
    return reduce(add, (values * (unit.double() / scale.double()) for values, unit in zip(sums, units, strict=True)))


def _added(sums: Sequence[Tensor], reals: Sequence[Tensor], bits: int, rounding: Rounding) -> Tensor:
    """Several accumulators: products are rounded 20 places below the point, added in 64 bits, and rounded."""
    parts = (
        multiply(values, FixedPointMultiplier.of(real * 2.0**RAISED, bits), "half_up")
        for values, real in zip(sums, reals, strict=True)
    )
    return shift_right(reduce(add, parts), RAISED, rounding)


@dataclass(frozen=True)
class Saturated:
    """``codes`` (int32) of an output, and how many of them its type cut."""

    codes: Tensor
    saturated: int


def saturate(
    steps: Tensor,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Saturated:
    """``clamp(steps + zero_point, qmin, qmax)``.

    ``low`` and ``high``, in steps, are the bounds of a clip such as a ReLU, Q(clip(y, a, b)) = clip(Q(y), Q(a), Q(b)):
    what they cut is the function's doing and is not counted.
    """
    if low is not None:
        steps = torch.maximum(steps, low)
    if high is not None:
        steps = torch.minimum(steps, high)
    codes = steps + zero_point
    saturated = int(((codes < qmin) | (codes > qmax)).sum())
    return Saturated(codes.clamp(qmin, qmax).to(torch.int32), saturated)


def add_tflite(
    sums: Sequence[Tensor], units: Sequence[Tensor], scale: Tensor, rounding: FixedPointRounding = "gemmlowp"
) -> Tensor:
    """``round(sum_i units_i sums_i / scale)`` (int64) as TFLite's ADD of 8 bits, of codes less their zero points.

    Operands are raised by 20 places and brought to twice the larger scale, added, and brought to the output's
    (kernels/internal/reference/add.h, prepared in kernels/add.cc): three multiplications, each rounding.
    """
    twice = 2 * _largest(units)
    parts = (
        multiply(values << RAISED, FixedPointMultiplier.of(unit.double() / twice), rounding)
        for values, unit in zip(sums, units, strict=True)
    )
    return multiply(reduce(add, parts), FixedPointMultiplier.of(twice / (2**RAISED * scale.double())), rounding)


def add_tflite_error(sums: Sequence[Tensor], units: Sequence[Tensor], scale: Tensor) -> Tensor:
    """As :meth:`Requantization.error` for :func:`add_tflite`: a raised place for each operand, then as gemmlowp."""
    place = 2 * _largest(units) / 2**RAISED
    total = (real_steps(sums, units, scale) * scale.double() / place).round()
    last = Requantization("fixed_point", "gemmlowp").error([total], [place], scale)
    return last + (len(sums) + 1) * place / scale.double()


def _largest(units: Sequence[Tensor]) -> Tensor:
    return reduce(torch.maximum, (unit.double().abs() for unit in units))
