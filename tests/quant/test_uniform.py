"""Uniform grids against torch and ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.quant import UniformQParams, dequantize, fake_quantize, fake_quantize_ste, quantize
from quantopsy.quant.uniform import from_range


def onnx_round_trip(x: torch.Tensor, qparams: UniformQParams) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear of ONNX's reference evaluator; 8-bit grids."""
    integer = TensorProto.INT8 if qparams.qmin < 0 else TensorProto.UINT8
    axis = {} if qparams.axis is None else {"axis": qparams.axis}
    scale = helper.make_tensor("scale", TensorProto.FLOAT, qparams.scale.shape, qparams.scale.flatten().tolist())
    zero = helper.make_tensor("zero", integer, qparams.zero_point.shape, qparams.zero_point.flatten().tolist())
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **axis),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **axis),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [scale, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    return onnx.reference.ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_onnx_bit_for_bit(granularity: str, signed: bool, symmetric: bool) -> None:
    x = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)) + 0.3
    spec = Spec(signed=signed, symmetric=symmetric, granularity=granularity, range_estimator="percentile:99")
    qparams = fit(spec, x)
    ties = (torch.arange(-300, 300)[None] + 0.5) * qparams.scale.reshape(-1, 1)
    ties = ties.expand(8, -1).contiguous()
    for data in (x, ties):
        np.testing.assert_array_equal(fake_quantize(data, qparams).numpy(), onnx_round_trip(data, qparams))


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 10), st.integers(-128, 127), st.integers(0, 1000))
def test_equals_torch_except_where_its_reciprocal_straddles_a_tie(scale: float, zero: int, seed: int) -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) * scale * 60
    qparams = UniformQParams(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), -128, 127)
    scale = float(qparams.scale)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)
    differs = fake_quantize(x, qparams) != expected
    position = x.double() / scale
    tie = ((position - position.floor()) - 0.5).abs() < 1e-6 * position.abs().clamp(min=1)
    assert (tie | ~differs).all()


def test_gradient_equals_torch() -> None:
    x = torch.linspace(-3, 3, 1001, requires_grad=True)
    for zero in (-20, 0, 7):
        qparams = UniformQParams(torch.tensor(0.0173), torch.tensor(zero, dtype=torch.int32), -128, 127)
        (ours,) = torch.autograd.grad(fake_quantize_ste(x, qparams).sum(), x)
        theirs = torch.fake_quantize_per_tensor_affine(x, float(qparams.scale), zero, -128, 127)
        assert torch.equal(ours, torch.autograd.grad(theirs.sum(), x)[0])


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 16),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 2.0**100, width=32),
    st.booleans(),
)
def test_error_inside_the_range_is_at_most_half_a_step(
    bits: int, symmetric: bool, narrow: bool, signed: bool | None, low: float, width: float, power: bool
) -> None:
    options = {"scale": "power_of_two"} if power else {}
    spec = Spec(bits=bits, symmetric=symmetric, narrow=narrow, signed=signed, options=options)
    low, high = torch.tensor(low), torch.tensor(low) + width
    qparams = from_range(spec, low, high)
    step = qparams.scale.double()
    ends = (torch.tensor([qparams.qmin, qparams.qmax]) - qparams.zero_point) * step
    x = torch.lerp(*ends, torch.linspace(0, 1, 257, dtype=torch.float64)).float()
    assert ((fake_quantize(x, qparams) - x).abs() <= step * (0.5 + 2.0 ** (bits - 22))).all()
    # The grid reaches all of the range, but for the half step by which zero was moved onto it.
    assert float(ends[0]) <= min(float(low), 0) + 0.51 * step or bool(low > 0)
    assert float(ends[1]) >= max(float(high), 0) - 0.51 * step or bool(high < 0)
    assert qparams.qmin <= int(qparams.zero_point) <= qparams.qmax
    if power:
        assert torch.frexp(qparams.scale).mantissa == 0.5


def test_signedness_comes_from_the_data_unless_given() -> None:
    positive, mixed = torch.rand(10), torch.linspace(-1, 2, 10)
    assert fit(Spec(symmetric=True), positive).qmin == 0
    assert fit(Spec(symmetric=True), mixed).qmin == -128
    assert fit(Spec(symmetric=True, narrow=True), mixed).qmin == -127
    middle = fit(Spec(symmetric=True, signed=False), mixed)
    assert (middle.qmin, int(middle.zero_point)) == (0, 128)
    assert int(fit(Spec(symmetric=True, signed=False), positive).zero_point) == 0


def test_large_ranges_stay_finite_and_tiny_ones_get_scale_one() -> None:
    largest = torch.finfo(torch.float32).max
    huge = torch.tensor([-largest, largest])
    for symmetric in (True, False):
        assert torch.isfinite(fake_quantize(huge, fit(Spec(symmetric=symmetric), huge))).all()
    assert fit(Spec(), torch.zeros(3)).scale == 1
    assert fit(Spec(), torch.full((3,), 1e-44)).scale == 1


def test_codes_of_a_known_grid() -> None:
    qparams = UniformQParams(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 0, 15)
    x = torch.tensor([-9.0, -1.5, -0.25, 0.0, 0.25, 0.75, 1.0, 99.0])
    assert quantize(x, qparams).tolist() == [0, 0, 3, 3, 3, 5, 5, 15]
    assert dequantize(torch.tensor([0, 3, 15]), qparams).tolist() == [-1.5, 0.0, 6.0]
