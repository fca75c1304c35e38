"""The published definitions of gemmlowp's and TFLite's fixed-point arithmetic, line by line, in Python's integers.

gemmlowp/fixedpoint/fixedpoint.h: SaturatingRoundingDoublingHighMul, RoundingDivideByPOT. tensorflow/lite/kernels/
internal: quantization_util.cc QuantizeMultiplier; common.cc MultiplyByQuantizedMultiplier, with and without
TFLITE_SINGLE_ROUNDING; reference/add.h and add.cc for ADD.
"""

from __future__ import annotations

import math

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def towards_zero(a: int, b: int) -> int:
    """C's integer division."""
    quotient = abs(a) // abs(b)
    return quotient if (a >= 0) == (b >= 0) else -quotient


def saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    overflow = a == b and a == INT32_MIN
    ab = a * b
    nudge = (1 << 30) if ab >= 0 else (1 - (1 << 30))
    return INT32_MAX if overflow else towards_zero(ab + nudge, 1 << 31)


def rounding_divide_by_pot(x: int, exponent: int) -> int:
    mask = (1 << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def quantize_multiplier(value: float) -> tuple[int, int]:
    if value == 0.0:
        return 0, 0
    q, shift = math.frexp(value)
    fixed = math.floor(abs(q) * (1 << 31) + 0.5) * (1 if q > 0 else -1)  # TfLiteRound: half away from zero
    if fixed == 1 << 31:
        fixed //= 2
        shift += 1
    if shift < -31:
        shift, fixed = 0, 0
    return fixed, shift


def multiply_by_quantized_multiplier(x: int, multiplier: int, shift: int) -> int:
    left, right = max(shift, 0), max(-shift, 0)
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(x * (1 << left), multiplier), right)


def multiply_single_rounding(x: int, multiplier: int, shift: int) -> int:
    total = 31 - shift
    return (x * multiplier + (1 << (total - 1))) >> total


def add(a: int, b: int, scale_a: float, scale_b: float, scale: float) -> int:
    """TFLite's ADD of 8 bits, of codes less their zero points, without the output's zero point and clamp."""
    left_shift = 20
    twice_max = 2 * max(scale_a, scale_b)
    parts = []
    for value, own in ((a, scale_a), (b, scale_b)):
        parts.append(multiply_by_quantized_multiplier(value * (1 << left_shift), *quantize_multiplier(own / twice_max)))
    multiplier = twice_max / ((1 << left_shift) * scale)
    return multiply_by_quantized_multiplier(sum(parts), *quantize_multiplier(multiplier))
