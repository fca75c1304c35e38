"""Exact sums of products, against loops over Python's integers and ONNX Runtime's integer operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_operators import convolution, linear, matmul
from onnx import TensorProto
from onnx_kernels import by_runtime, one_operator

from quantopsy.core import QuantopsyError
from quantopsy.integer.accumulator import Accumulator, bits_for


def codes(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def run(op: str, inputs: dict[str, np.ndarray], **attributes) -> np.ndarray:
    """One ONNX operator in ONNX Runtime."""
    return by_runtime(one_operator(op, inputs, TensorProto.INT32, **attributes), inputs)


def naive_convolution(x, w, zero_x: int, zero_w, stride: int, padding: int, dilation: int, groups: int) -> np.ndarray:
    """Loops over whole numbers without a width."""
    batch, _, height, width = x.shape
    out, per_group, kernel, _ = w.shape
    reach = dilation * (kernel - 1) + 1
    size = [(side + 2 * padding - reach) // stride + 1 for side in (height, width)]
    y = np.zeros((batch, out, *size), dtype=object)
    for b, o, i, j in np.ndindex(y.shape):
        total = 0
        for c, k, m in np.ndindex(per_group, kernel, kernel):
            row, column = i * stride - padding + k * dilation, j * stride - padding + m * dilation
            if 0 <= row < height and 0 <= column < width:
                source = int(x[b, o // (out // groups) * per_group + c, row, column])
                total += (source - zero_x) * (int(w[o, c, k, m]) - int(zero_w[o]))
        y[b, o, i, j] = total
    return y


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution_is_the_loop_over_its_window(groups: int, stride: int, padding: int, dilation: int) -> None:
    x, w = codes(2, 6, 7, 8), codes(6, 6 // groups, 3, 3, low=-128, high=128, seed=1)
    zeros = codes(6, low=-3, high=4, seed=2)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    found = convolution(x, w, zero_point=117, weight_zero_point=zeros, **how)
    expected = naive_convolution(x.numpy(), w.numpy(), 117, zeros.numpy(), stride, padding, dilation, groups)
    assert found.sums.tolist() == expected.tolist()
    assert found.overflows == 0


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolution_is_onnx_runtimes_conv_integer(groups: int, signed: bool) -> None:
    x = codes(2, 8, 9, 9)
    low, high = (-128, 128) if signed else (0, 256)
    w = codes(8, 8 // groups, 3, 3, low=low, high=high, seed=1)
    zero_w = -5 if signed else 130
    inputs = {
        "x": x.numpy().astype(np.uint8),
        "w": w.numpy().astype(np.int8 if signed else np.uint8),
        "zx": np.array(101, np.uint8),
        "zw": np.array(zero_w, np.int8 if signed else np.uint8),
    }
    expected = run("ConvInteger", inputs, group=groups, pads=[1, 1, 1, 1], strides=[2, 2])
    found = convolution(x, w, zero_point=101, weight_zero_point=zero_w, groups=groups, padding=1, stride=2)
    np.testing.assert_array_equal(found.sums.numpy(), expected)


def test_matrix_products_are_onnx_runtimes_matmul_integer() -> None:
    a, b = codes(3, 5, 40), codes(40, 7, low=-128, high=128, seed=1)
    zeros = codes(7, low=-9, high=9, seed=2)
    inputs = {
        "a": a.numpy().astype(np.uint8),
        "b": b.numpy().astype(np.int8),
        "za": np.array(77, np.uint8),
        "zb": zeros.numpy().astype(np.int8),
    }
    expected = run("MatMulInteger", inputs)
    np.testing.assert_array_equal(matmul(a, b, zero_point=77, weight_zero_point=zeros).sums.numpy(), expected)
    bias = codes(7, low=-1000, high=1000, seed=3)
    found = linear(a, b.T, bias, zero_point=77, weight_zero_point=zeros)
    np.testing.assert_array_equal(found.sums.numpy(), expected + bias.numpy())


def test_the_bias_starts_the_accumulator_of_its_channel() -> None:
    x, w, bias = codes(1, 3, 5, 5), codes(4, 3, 3, 3, low=-128, high=128, seed=1), codes(4, low=-(2**29), high=2**29)
    without, with_bias = convolution(x, w).sums, convolution(x, w, bias).sums
    assert torch.equal(with_bias - without, bias.long().reshape(1, 4, 1, 1).expand_as(without))


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions_are_as_two(dims: int) -> None:
    x, w = codes(2, 3, *[6] * dims), codes(4, 3, *[3] * dims, low=-128, high=128, seed=1)
    operator = {1: torch.nn.functional.conv1d, 3: torch.nn.functional.conv3d}[dims]
    assert torch.equal(convolution(x, w, zero_point=3, padding=1).sums, operator(x.long() - 3, w.long(), padding=1))


def test_sums_of_16_bit_codes_are_exact_beyond_float32() -> None:
    x, w = codes(1, 512, 3, 3, high=2**16), codes(2, 512, 3, 3, low=-(2**15), high=2**15, seed=1)
    expected = (x.long() * w.long()).flatten(1).sum(1)  # one window each
    found = convolution(x, w, accumulator=Accumulator(48)).sums.flatten()
    assert found.tolist() == expected.tolist()
    assert int(expected.abs().max()) > 2**32


def test_products_that_float64_cannot_count_are_refused() -> None:
    x = torch.full((1, 2**12), 2**30, dtype=torch.int64)
    with pytest.raises(QuantopsyError, match="beyond 2\\^53"):
        linear(x, torch.full((1, 2**12), 2**15, dtype=torch.int64))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5), st.sampled_from([8, 16, 24, 32]))
def test_a_register_wraps_as_twos_complement_and_saturates_at_its_ends(values: list[int], bits: int) -> None:
    x = torch.tensor(values)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    wrapped, saturated = Accumulator(bits).hold(x), Accumulator(bits, "saturate").hold(x)
    assert wrapped.sums.tolist() == [(v - low) % 2**bits + low for v in values]
    assert saturated.sums.tolist() == [min(max(v, low), high) for v in values]
    assert wrapped.overflows == saturated.overflows == sum(not low <= v <= high for v in values)
    if bits == 32:
        assert wrapped.sums.tolist() == np.array(values).astype(np.int32).tolist()


@settings(deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5))
def test_the_width_that_is_reported_is_the_narrowest_that_holds_all(values: list[int]) -> None:
    bits = bits_for(min(values), max(values))
    assert Accumulator(48).hold(torch.tensor(values)).bits == bits
    assert all(-(2 ** (bits - 1)) <= v < 2 ** (bits - 1) for v in values)
    assert bits == 1 or not all(-(2 ** (bits - 2)) <= v < 2 ** (bits - 2) for v in values)


def test_partial_sums_may_wrap_as_long_as_the_whole_sum_fits() -> None:
    # As in hardware: 16 bits wrap on the way and are right in the end.
    x, w = torch.tensor([[200, 200]]), torch.tensor([[127, -127]])
    assert linear(200 * x, w, accumulator=Accumulator(16)).overflows == 0


@pytest.mark.parametrize(("bits", "overflow"), [(4, "wrap"), (64, "wrap"), (32, "ignore"), (True, "wrap")])
def test_a_register_that_there_is_not_is_refused(bits, overflow) -> None:
    with pytest.raises(QuantopsyError, match="give"):
        Accumulator(bits, overflow)
