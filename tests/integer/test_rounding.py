"""Rounding by name, against Python's fractions and decimals."""

from __future__ import annotations

from decimal import ROUND_HALF_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.core import QuantopsyError
from quantopsy.integer.requantize import Requantization
from quantopsy.integer.rounding import ROUNDINGS, round_real, shift_right


def expected(numerator: int, denominator: int, rounding: str) -> int:
    value = Fraction(numerator, denominator)
    if rounding == "half_up":
        return floor(value + Fraction(1, 2))
    if rounding == "half_even":
        return round(value)
    below = floor(abs(value) + Fraction(1, 2))
    return below if value >= 0 else -below


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(deadline=None)
@given(st.integers(-(2**62), 2**62 - 1), st.integers(0, 62))
def test_a_shift_is_a_rounded_division(rounding, x: int, bits: int) -> None:
    assert int(shift_right(torch.tensor(x), bits, rounding)) == expected(x, 2**bits, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(deadline=None)
@given(st.floats(-(2.0**40), 2.0**40) | st.integers(-(2**20), 2**20).map(lambda n: n + 0.5))
def test_a_real_is_rounded_as_the_number_it_is(rounding, x: float) -> None:
    # Also the float64 just below a half, which added to a half would give one.
    for value in (x, 0.49999999999999994, -0.49999999999999994):
        found = float(round_real(torch.tensor(value, dtype=torch.float64), rounding))
        assert found == expected(*value.as_integer_ratio(), rounding)


def test_only_ties_tell_the_roundings_apart() -> None:
    numbers = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    names = {"half_even": ROUND_HALF_EVEN, "half_away": ROUND_HALF_UP}
    x = torch.tensor(numbers, dtype=torch.float64)
    with localcontext():
        for ours, theirs in names.items():
            assert round_real(x, ours).tolist() == [float(Decimal(n).quantize(Decimal(1), theirs)) for n in numbers]
    assert round_real(x, "half_up").tolist() == [1, 2, 3, 0, -1, -2]
    nearly = [0.51, 1.49, 2.51, -0.49, -1.51]
    assert len({tuple(round_real(torch.tensor(nearly), rounding).tolist()) for rounding in ROUNDINGS}) == 1
    assert [float(Decimal(n).quantize(Decimal(1), ROUND_HALF_DOWN)) for n in nearly] == [1, 1, 3, 0, -2]


@pytest.mark.parametrize(
    ("multiplication", "rounding"),
    [("exact", "gemmlowp"), ("float32", "half_up"), ("fixed_point", "half_evn"), ("fixedpoint", "half_up")],
)
def test_a_name_that_there_is_not_gives_the_nearest(multiplication, rounding) -> None:
    with pytest.raises(QuantopsyError, match="nearest are"):
        Requantization(multiplication, rounding)


def test_a_mantissa_has_a_width() -> None:
    with pytest.raises(QuantopsyError, match="2 to 31"):
        Requantization("fixed_point", "half_up", 32)
