"""Whole quantized operators against ONNX Runtime's integer kernels and ONNX's reference evaluator.

Where both multiply in float32 in the same order results are equal to the bit; elsewhere they are equal, or one step
apart where the exact value lies within float32's errors of a half, and then the tie is asserted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integer_operators import convolution, matmul
from onnx import TensorProto
from onnx_kernels import by_reference, by_runtime, named, one_operator

from quantopsy.integer.codes import Codes
from quantopsy.integer.pooling import window_sums
from quantopsy.integer.requantize import Requantization, real_steps, saturate
from quantopsy.integer.tables import identity, look_up, table
from quantopsy.quant import UniformQParams

MICROSOFT = "com.microsoft"


def grid(scale: float, zero_point: int, signed: bool = False) -> UniformQParams:
    low = -128 if signed else 0
    return UniformQParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, low + 255)


def codes(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def onnx_grid(of: UniformQParams) -> tuple[np.ndarray, np.ndarray]:
    return of.scale.numpy(), np.array(int(of.zero_point), np.int8 if of.qmin else np.uint8)


def as_onnx(x: torch.Tensor, of: UniformQParams) -> np.ndarray:
    return x.numpy().astype(np.int8 if of.qmin else np.uint8)


def assert_equal_or_a_tie(found: np.ndarray, ours: torch.Tensor, value: torch.Tensor, error: torch.Tensor) -> int:
    """``value``: exact, in steps; one step apart only where it is within ``error`` of a half. How many were."""
    apart = np.abs(found.astype(np.int64) - ours.numpy())
    assert apart.max() <= 1
    to_half = (value - torch.round(value - 0.5) - 0.5).abs()
    assert bool((to_half <= error)[torch.from_numpy(apart == 1)].all())
    return int((apart == 1).sum())


def on_grid(sums: list[torch.Tensor], units: list[torch.Tensor], target: UniformQParams) -> torch.Tensor:
    """Codes of ``sum_i units_i sums_i``, rounded once."""
    steps = Requantization().steps(sums, units, target.scale)
    return saturate(steps, target.zero_point, target.qmin, target.qmax).codes


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_qlinearconv(groups: int, per_channel: bool, bias: bool) -> None:
    x_grid, y_grid = grid(0.0231, 113), grid(0.0613, 121)
    x, w = codes(3, 8, 12, 12), codes(8, 8 // groups, 3, 3, low=-127, high=128, seed=1)
    draw = np.random.default_rng(0)
    s_w = draw.uniform(0.001, 0.02, 8 if per_channel else ()).astype(np.float32)
    b = codes(8, low=-40000, high=40000, seed=2) if bias else None
    inputs = [
        as_onnx(x, x_grid),
        *onnx_grid(x_grid),
        w.numpy().astype(np.int8),
        s_w,
        np.zeros_like(s_w, np.int8),
        *onnx_grid(y_grid),
        *([] if b is None else [b.numpy()]),
    ]
    model = one_operator("QLinearConv", named(inputs), group=groups, pads=[1, 1, 1, 1])
    held = convolution(x, w, b, zero_point=113, padding=1, groups=groups)
    unit = torch.as_tensor(s_w).double() * x_grid.scale.double()
    units = [unit.reshape(-1, 1, 1) if per_channel else unit]
    kind = Requantization("float32")
    found = saturate(kind.steps([held.sums], units, y_grid.scale), 121, 0, 255)
    np.testing.assert_array_equal(found.codes.numpy(), by_runtime(model, named(inputs)))
    assert found.saturated > 0
    assert 0.01 < float((found.codes == 0).double().mean()) < 0.5
    # By exact multiplication: equal but for ties of float32.
    exact = saturate(Requantization().steps([held.sums], units, y_grid.scale), 121, 0, 255).codes
    value = real_steps([held.sums], units, y_grid.scale)
    assert_equal_or_a_tie(found.codes.numpy(), exact, value, kind.error([held.sums], units, y_grid.scale))


@pytest.mark.parametrize("zero_point", [4, 3])
def test_exact_ties_go_to_the_even_step_before_the_zero_point_is_added(zero_point: int) -> None:
    # Multiplier 1/4: every other odd sum is a tie that float32 represents exactly.
    x = torch.arange(0, 256, dtype=torch.int32).reshape(1, 1, 16, 16)
    x_grid, y_grid = grid(1.0, 0), grid(4.0, zero_point)
    weight = np.ones((1, 1, 1, 1), np.int8), np.array(1.0, np.float32), np.array(0, np.int8)
    inputs = named([as_onnx(x, x_grid), *onnx_grid(x_grid), *weight, *onnx_grid(y_grid)])
    model = one_operator("QLinearConv", inputs)
    sums = [convolution(x, torch.ones(1, 1, 1, 1, dtype=torch.int32)).sums]
    unit = [torch.tensor(1.0, dtype=torch.float64)]

    def ours(kind: Requantization) -> np.ndarray:
        return saturate(kind.steps(sums, unit, y_grid.scale), zero_point, 0, 255).codes.numpy()

    even = ours(Requantization())
    for kind in (Requantization("float32"), Requantization("fixed_point", "half_even")):
        np.testing.assert_array_equal(ours(kind), even)
    np.testing.assert_array_equal(even, by_runtime(model, inputs))
    # ONNX's reference adds the zero point first: an odd one turns every tie round.
    reference = by_reference(model, inputs)
    turned = [n for n in range(256) if n % 4 == 2] if zero_point % 2 else []
    assert np.argwhere(reference.flatten() != even.flatten()).flatten().tolist() == turned
    up = ours(Requantization("fixed_point", "half_up"))
    assert np.argwhere(up.flatten() != even.flatten()).flatten().tolist() == [n for n in range(256) if n % 8 == 2]


@pytest.mark.parametrize("signed", [False, True])
def test_a_matrix_product_is_qlinearmatmul(signed: bool) -> None:
    a_grid, b_grid, y_grid = grid(0.017, 100), grid(0.0093, 7, signed=True), grid(0.11, -12 if signed else 131, signed)
    a = codes(6, 33)
    b = codes(33, 11, low=-128, high=128, seed=1)
    if signed:
        a_grid, a = grid(0.017, -20, signed=True), a - 128
    inputs = [as_onnx(a, a_grid), *onnx_grid(a_grid), as_onnx(b, b_grid), *onnx_grid(b_grid), *onnx_grid(y_grid)]
    model = one_operator("QLinearMatMul", named(inputs), TensorProto.INT8 if signed else TensorProto.UINT8)
    sums = [matmul(a, b, zero_point=int(a_grid.zero_point), weight_zero_point=7).sums]
    units = [a_grid.scale.double() * b_grid.scale.double()]
    kind = Requantization("float32")
    ours = saturate(kind.steps(sums, units, y_grid.scale), y_grid.zero_point, y_grid.qmin, y_grid.qmax).codes
    np.testing.assert_array_equal(ours.numpy(), by_runtime(model, named(inputs)))
    value, error = real_steps(sums, units, y_grid.scale), kind.error(sums, units, y_grid.scale)
    assert_equal_or_a_tie(by_reference(model, named(inputs)), ours, value, error)


@pytest.mark.parametrize("seed", range(4))
def test_an_addition_is_qlinearadd_within_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    grids = [grid(float(np.float32(draw.uniform(0.005, 0.05))), int(draw.integers(0, 256))) for _ in range(3)]
    a, b = codes(4, 5000, seed=seed), codes(4, 5000, seed=seed + 100)
    inputs = [as_onnx(a, grids[0]), *onnx_grid(grids[0]), as_onnx(b, grids[1]), *onnx_grid(grids[1])]
    inputs += onnx_grid(grids[2])
    found = by_runtime(one_operator("QLinearAdd", named(inputs), domain=MICROSOFT), named(inputs))
    parts = [Codes(a, grids[0]), Codes(b, grids[1])]
    sums, units = [part.centred for part in parts], [part.grid.scale.double() for part in parts]
    ours = on_grid(sums, units, grids[2])
    value = real_steps(sums, units, grids[2].scale)
    # The runtime adds the zero points in float32 as well: 255 steps of each operand and the output.
    magnitude = sum(255 * unit / grids[2].scale.double() for unit in units) + 255
    assert_equal_or_a_tie(found, ours, value, 8 * 2.0**-24 * magnitude.expand_as(value))


def test_a_global_average_is_qlinearglobalaveragepool_within_ties() -> None:
    x_grid, y_grid = grid(0.031, 77), grid(0.0113, 120)
    x = codes(8, 200, 7, 7)
    inputs = [as_onnx(x, x_grid), *onnx_grid(x_grid), *onnx_grid(y_grid)]
    found = by_runtime(one_operator("QLinearGlobalAveragePool", named(inputs), domain=MICROSOFT), named(inputs))
    sums, counts = window_sums(Codes(x, x_grid).centred, (7, 7))
    assert torch.equal(sums, Codes(x, x_grid).centred.sum((2, 3), keepdim=True))
    unit = x_grid.scale.double() / counts
    ours = on_grid([sums], [unit], y_grid)
    value = real_steps([sums], [unit], y_grid.scale)
    error = Requantization("float32").error([sums], [unit], y_grid.scale)
    assert_equal_or_a_tie(found, ours, value, 2 * error)


@pytest.mark.parametrize(
    ("op", "function"), [("QLinearSigmoid", torch.sigmoid), ("QLinearLeakyRelu", lambda x: F.leaky_relu(x, 0.1))]
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_table_is_the_runtimes_function_of_codes(op: str, function, signed: bool) -> None:
    x_grid, y_grid = grid(0.043, -5 if signed else 120, signed), grid(1 / 256, -128 if signed else 0, signed)
    x = torch.arange(x_grid.qmin, x_grid.qmax + 1, dtype=torch.int32)
    inputs = [as_onnx(x, x_grid), *onnx_grid(x_grid), *onnx_grid(y_grid)]
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    attributes = {"alpha": 0.1} if op == "QLinearLeakyRelu" else {}
    found = by_runtime(one_operator(op, named(inputs), kind, domain=MICROSOFT, **attributes), named(inputs))
    entries = table(function, x_grid, y_grid)
    assert entries.shape == (256,)
    value = function(x_grid.decode(x).double()) / y_grid.scale.double()
    assert_equal_or_a_tie(found, look_up(Codes(x, x_grid), entries, y_grid).codes, value, torch.full((256,), 1e-4))


def test_codes_are_concatenated_as_qlinearconcat_does() -> None:
    grids = [grid(0.021, 10), grid(0.047, 200), grid(0.033, 90)]
    a, b = codes(2, 3, 16), codes(2, 5, 16, seed=1)
    parts = [Codes(a, grids[0]), Codes(b, grids[1])]
    inputs = [*onnx_grid(grids[2])]
    for part in parts:
        inputs += [as_onnx(part.codes, part.grid), *onnx_grid(part.grid)]
    found = by_runtime(one_operator("QLinearConcat", named(inputs), domain=MICROSOFT, axis=1), named(inputs))
    laid = [look_up(part, table(identity, part.grid, grids[2]), grids[2]).codes for part in parts]
    np.testing.assert_array_equal(torch.cat(laid, 1).numpy(), found)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_average_pooling_is_that_of_the_reals(count_include_pad: bool, ceil_mode: bool) -> None:
    x_grid = grid(0.031, 77)
    x = Codes(codes(2, 3, 10, 11), x_grid)
    fine = UniformQParams(torch.tensor(1e-4), torch.tensor(32000, dtype=torch.int32), 0, 65535)
    how = {"stride": 2, "padding": 1, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    sums, counts = window_sums(x.centred, (3, 3), **how)
    found = Codes(on_grid([sums], [x_grid.scale.double() / counts], fine), fine).real
    expected = F.avg_pool2d(x.real, 3, **how)
    torch.testing.assert_close(found, expected.clamp(-3.2, 3.3535), atol=6e-5, rtol=0)
