"""Requantization: TFLite's to the last bit, float32 as numpy's, each as near the real multiplier as it says."""

from __future__ import annotations

import gemmlowp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.core import QuantopsyError
from quantopsy.integer.requantize import (
    FixedPointMultiplier,
    Requantization,
    add_tflite,
    add_tflite_error,
    high_product,
    multiply,
    real_steps,
    saturate,
)

int32 = st.integers(-(2**31), 2**31 - 1)
sums = st.integers(-(2**27), 2**27)
multipliers = st.floats(-20, 0).map(lambda exponent: 2.0**exponent)  # below 1, as s_x s_w / s_y nearly always is
scales = st.floats(1e-4, 1.0)

KINDS = [
    Requantization("exact"),
    Requantization("exact", "half_up"),
    Requantization("float32"),
    Requantization("fixed_point", "gemmlowp"),
    Requantization("fixed_point", "half_up"),
    Requantization("fixed_point", "half_even"),
    Requantization("fixed_point", "half_up", 15),
    Requantization("fixed_point", "gemmlowp", 8),
]


def real(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@settings(deadline=None)
@given(int32, int32)
def test_the_high_product_is_gemmlowps(a: int, b: int) -> None:
    for x, y in ((a, b), (-(2**31), -(2**31)), (2**31 - 1, b), (a, -(2**31))):
        expected = gemmlowp.saturating_rounding_doubling_high_mul(x, y)
        assert int(high_product(torch.tensor(x), torch.tensor(y))) == expected


@settings(deadline=None)
@given(st.floats(1e-12, 1e3) | st.floats(-30, 3).map(lambda exponent: 2.0**exponent))
def test_a_multiplier_is_stored_as_tflite_stores_it(value: float) -> None:
    found = FixedPointMultiplier.of(real(value))
    assert (int(found.mantissa), int(found.shift)) == gemmlowp.quantize_multiplier(value)
    if value > 2.0**-31:
        assert float(found.value) == pytest.approx(value, rel=2.0**-31)


@settings(deadline=None)
@given(int32, st.floats(1e-9, 0.999))
def test_a_product_is_tflites_with_two_roundings_and_with_one(x: int, value: float) -> None:
    multiplier = FixedPointMultiplier.of(real(value))
    mantissa, shift = gemmlowp.quantize_multiplier(value)
    twice = gemmlowp.multiply_by_quantized_multiplier(x, mantissa, shift)
    assert int(multiply(torch.tensor(x), multiplier)) == twice
    assert int(multiply(torch.tensor(x), multiplier, "half_up")) == gemmlowp.multiply_single_rounding(
        x, mantissa, shift
    )


@settings(deadline=None)
@given(st.integers(-(2**20), 2**20), st.floats(1.0, 500.0))
def test_multipliers_above_one_are_tflites_too(x: int, value: float) -> None:
    multiplier = FixedPointMultiplier.of(real(value))
    mantissa, shift = gemmlowp.quantize_multiplier(value)
    expected = gemmlowp.multiply_by_quantized_multiplier(x, mantissa, shift)
    assert int(multiply(torch.tensor(x), multiplier)) == expected
    assert int(multiply(torch.tensor(x), multiplier, "half_up")) == gemmlowp.multiply_single_rounding(
        x, mantissa, shift
    )


@settings(deadline=None)
@given(st.integers(-128, 127), st.integers(-128, 127), scales, scales, scales)
def test_an_addition_is_tflites(a: int, b: int, scale_a: float, scale_b: float, scale: float) -> None:
    found = add_tflite([torch.tensor(a), torch.tensor(b)], [real(scale_a), real(scale_b)], real(scale))
    assert int(found) == gemmlowp.add(a, b, scale_a, scale_b, scale)
    exact = (a * scale_a + b * scale_b) / scale
    error = add_tflite_error([torch.tensor(a), torch.tensor(b)], [real(scale_a), real(scale_b)], real(scale))
    assert abs(int(found) - exact) <= 0.5 + float(error) + 1e-9


@settings(deadline=None)
@given(sums, multipliers)
def test_a_fixed_point_multiplier_is_within_a_step_of_the_real_one(x: int, value: float) -> None:
    exact = Requantization("exact").steps([torch.tensor(x)], [real(value)], torch.tensor(1.0))
    for rounding in ("gemmlowp", "half_up", "half_even", "half_away"):
        found = Requantization("fixed_point", rounding).steps([torch.tensor(x)], [real(value)], torch.tensor(1.0))
        assert abs(int(found) - int(exact)) <= 1


@settings(deadline=None)
@given(sums, multipliers)
def test_half_up_and_half_even_differ_at_ties_only(x: int, value: float) -> None:
    for x_, value_ in ((x, value), (2 * x + 1, 0.5), (4 * x + 2, 0.25)):
        up, even = (
            int(Requantization("fixed_point", rounding).steps([torch.tensor(x_)], [real(value_)], torch.tensor(1.0)))
            for rounding in ("half_up", "half_even")
        )
        mantissa, shift = gemmlowp.quantize_multiplier(value_)
        tie = (x_ * mantissa) % 2 ** (31 - shift) == 2 ** (30 - shift)
        assert up - even == (1 if tie and even % 2 == 0 and up % 2 == 1 else 0)
        if not tie:
            assert up == even


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(deadline=None)
@given(st.lists(sums, min_size=1, max_size=3), st.lists(multipliers, min_size=3, max_size=3))
def test_what_is_rounded_is_as_near_the_real_value_as_is_said(kind, values, reals) -> None:
    parts = [torch.tensor(value) for value in values]
    units = [real(value) for value in reals[: len(parts)]]
    scale = torch.tensor(0.75)
    steps, error = kind.steps(parts, units, scale), float(kind.error(parts, units, scale))
    assert abs(int(steps) - float(real_steps(parts, units, scale))) <= 0.5 + error + 1e-9
    if kind.multiplication == "exact":
        assert error < 1e-5


def test_float32_is_what_numpy_computes_in_single_precision() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(-(2**26), 2**26, 5000)
    s_x, s_w, s_y = np.float32(0.0173), draw.uniform(1e-4, 1e-2, 5000).astype(np.float32), np.float32(0.031)
    expected = np.rint(values.astype(np.int32).astype(np.float32) * (s_x * s_w / s_y))
    unit = torch.tensor(s_x).double() * torch.from_numpy(s_w).double()
    found = Requantization("float32").steps([torch.from_numpy(values)], [unit], torch.tensor(s_y))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_multipliers_of_single_channels_are_laid_along_them() -> None:
    x = torch.randint(-(2**20), 2**20, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    units = torch.tensor([0.001, 0.02, 3e-5], dtype=torch.float64)
    for kind in KINDS:
        whole = kind.steps([x], [units.reshape(3, 1)], torch.tensor(0.5))
        for channel in range(3):
            alone = kind.steps([x[:, channel]], [units[channel]], torch.tensor(0.5))
            assert torch.equal(whole[:, channel], alone)


def test_saturation_is_counted_where_the_type_cuts_and_not_where_a_clip_does() -> None:
    steps = torch.tensor([-300, -5, 0, 100, 300])
    found = saturate(steps, 10, 0, 255)
    assert found.codes.tolist() == [0, 5, 10, 110, 255]
    assert found.codes.dtype == torch.int32
    assert found.saturated == 2
    clipped = saturate(steps, 0, 0, 255, low=torch.tensor(0), high=torch.tensor(200))
    assert clipped.codes.tolist() == [0, 0, 0, 100, 200]
    assert clipped.saturated == 0
    assert saturate(steps, 0, 0, 255, low=torch.tensor(0)).saturated == 1


def test_sums_beyond_int32_have_no_fixed_point_product() -> None:
    with pytest.raises(QuantopsyError, match="beyond int32"):
        multiply(torch.tensor(2**31), FixedPointMultiplier.of(real(0.1)))
