"""Weights as integer terms: what piecewise, grouped and learned weights need of accumulators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ddq_formulas import kronecker, stored_levels
from integer_operators import convolution
from torch import Tensor

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.integer.levels import level_sums, merge, multiply_levels, stored_levels_product
from quantopsy.integer.terms import decoded, piecewise_terms, terms, uniform_terms
from quantopsy.quant import PiecewiseQParams, UniformQParams, fake_quantize
from quantopsy.quant.learned import compose

SPECS = {
    "uniform": Spec(bits=8),
    "uniform per channel": Spec(bits=4, granularity="per_channel"),
    "uniform per group": Spec(bits=4, granularity="per_group:4"),
    "piecewise": Spec("piecewise", bits=3),
    "piecewise per channel": Spec("piecewise", bits=4, granularity="per_channel"),
    "piecewise per group": Spec("piecewise", bits=3, granularity="per_group:4"),
    "power of two": Spec("power_of_two", bits=4),
    "additive power of two": Spec("additive_power_of_two", bits=4, granularity="per_channel"),
    "learned": Spec("learned", bits=3, granularity="per_channel"),
    "learned, merged by gates": Spec("learned", bits=4, granularity="per_group:4", options=(("open_gates", 2),)),
}
X_SCALE, X_ZERO = 0.0371, 117


def weight() -> Tensor:
    return torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1


def x_codes() -> Tensor:
    return torch.randint(0, 256, (2, 10, 5, 5), generator=torch.Generator().manual_seed(1))


def unpadded(x: Tensor, w: Tensor) -> Tensor:
    return convolution(x, w).sums


@pytest.mark.parametrize("name", SPECS)
def test_the_terms_of_a_weight_add_up_to_its_reals(name: str) -> None:
    w = weight()
    qparams = fit(SPECS[name], w)
    parts = terms(qparams.encode(w), qparams)
    torch.testing.assert_close(decoded(parts, 0).float(), fake_quantize(w, qparams), rtol=1e-6, atol=1e-9)
    assert all(not part.weight.is_floating_point() for part in parts)


@pytest.mark.parametrize("name", SPECS)
def test_accumulators_and_constants_make_the_real_convolution(name: str) -> None:
    # Raw codes of the input, zero point not taken off: what hardware multiplies (PWLQ section 4).
    w, x = weight(), x_codes()
    qparams = fit(SPECS[name], w)
    parts = terms(qparams.encode(w), qparams)
    sums = [unpadded(x, part.weight) for part in parts]
    # What is known before any input: C_0, C_1 and C_2 of PWLQ (13) to (15), in units of s_x m_t.
    constants = tuple(-X_ZERO * unpadded(torch.ones_like(x[:1]), part.weight) for part in parts)
    total = torch.zeros(2, 6, 3, 3, dtype=torch.float64)
    for part, one, fixed in zip(parts, sums, constants, strict=True):
        multiplier = part.multiplier.reshape(-1, 1, 1) if part.multiplier.dim() else part.multiplier
        total += X_SCALE * multiplier * (one + fixed)
    expected = F.conv2d((x - X_ZERO).double() * X_SCALE, fake_quantize(w, qparams).double())
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_a_uniform_weight_has_two_accumulators() -> None:
    # PWLQ (13): <X_q, W_q>, <X_q, I> and a constant, with z = -s zero_point of the paper.
    w, x = weight()[0, 0].flatten(), x_codes().flatten()[:9].double()
    qparams = fit(Spec(bits=4), w)
    assert isinstance(qparams, UniformQParams)
    codes = qparams.encode(w)
    first, second = uniform_terms(codes, qparams)
    s_x, s_w, z_x = X_SCALE, float(qparams.scale), -X_SCALE * X_ZERO
    z_w = -s_w * int(qparams.zero_point)
    assert float(second.multiplier) == pytest.approx(z_w)
    products, activations = float((x * first.weight).sum()), float((x * second.weight).sum())
    C_0 = z_x * s_w * float(codes.sum()) + z_x * z_w * len(codes)
    found = s_x * s_w * products + s_x * z_w * activations + C_0
    expected = float(((s_x * x + z_x) * fake_quantize(w, qparams).double()).sum())
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_piecewise_weight_has_three_accumulators(bits: int) -> None:
    # PWLQ (14) and (15), written down for one vector from the reals: region by |w|, codes of the absolute value.
    w, x = weight()[0, :3].flatten(), x_codes().flatten()[:27].double()
    qparams = fit(Spec("piecewise", bits=bits), w)
    assert isinstance(qparams, PiecewiseQParams)
    inner, outer, offset = piecewise_terms(qparams.encode(w), qparams)
    s_1, s_2, p = (float(t) for t in (qparams.inner_scale, qparams.outer_scale, qparams.breakpoint))
    w_hat = fake_quantize(w, qparams).double()
    in_r1 = w_hat.abs() <= p * (1 + 1e-6)
    sign = w_hat.sign()
    W_1, W_2 = (w_hat.abs() / s_1).round(), ((w_hat.abs() - p) / s_2).round()
    s_x, z_x = X_SCALE, -X_SCALE * X_ZERO
    P_1 = s_x * s_1 * float((x * sign * W_1)[in_r1].sum()) + z_x * s_1 * float((sign * W_1)[in_r1].sum())
    P_2 = s_x * s_2 * float((x * sign * W_2)[~in_r1].sum()) + s_x * p * float((x * sign)[~in_r1].sum())
    C_2 = z_x * s_2 * float((sign * W_2)[~in_r1].sum()) + z_x * p * float(sign[~in_r1].sum())
    ours = s_x * sum(float((x * part.weight).sum()) * float(part.multiplier) for part in (inner, outer, offset))
    ours += z_x * sum(float(part.weight.sum()) * float(part.multiplier) for part in (inner, outer, offset))
    assert ours == pytest.approx(P_1 + P_2 + C_2, rel=1e-6)
    assert ours == pytest.approx(float(((s_x * x + z_x) * w_hat).sum()), rel=1e-5)
    # A multiplier operand of b bits and a sign, and signs alone: no product is wider than of b-bit uniform weights.
    assert int(inner.weight.abs().max()) <= 2**bits - 1
    assert int(outer.weight.abs().max()) <= 2**bits - 1
    assert set(offset.weight.tolist()) <= {-1, 0, 1}


def test_learned_levels_are_summed_by_code_and_multiplied_last() -> None:
    # DDQ section 2.2: y = q^T (U / Z_U) w_o x_q.
    w, x = weight(), x_codes() - X_ZERO
    q = torch.tensor([-0.31, -0.201, -0.124, -0.053, 0.0, 0.032, 0.113, 0.29], dtype=torch.float64)
    codes = (w[..., None] - q).abs().argmin(-1)
    sums = level_sums(unpadded, x, codes, len(q))
    assert sums.shape == (8, 2, 6, 3, 3)
    assert not sums.is_floating_point()
    expected = F.conv2d(x.double(), q[codes])
    torch.testing.assert_close(multiply_levels(sums, q), expected)
    # An int8 table: everything is an integer until one scale at the end.
    stored = torch.round((q - q[0]) / (q[-1] - q[0]) * 255).long()
    step = float(q[-1] - q[0]) / 255
    reals = stored_levels(q, 8, q[0], q[-1])
    found = stored_levels_product(sums, stored, float(q[0]), step)
    torch.testing.assert_close(found, F.conv2d(x.double(), reals[codes]))
    assert not multiply_levels(sums, stored).is_floating_point()


@pytest.mark.parametrize("effective", [0, 1, 2, 3])
def test_gates_merge_sums_of_levels_and_divide_by_a_shift(effective: int) -> None:
    gates = torch.tensor([1.0] * effective + [0.0] * (3 - effective), dtype=torch.float64)
    q = torch.tensor([-0.31, -0.201, -0.124, -0.053, 0.0, 0.032, 0.113, 0.29], dtype=torch.float64)
    x = x_codes() - X_ZERO
    codes = torch.randint(0, 8, (6, 10, 3, 3), generator=torch.Generator().manual_seed(2))
    sums = level_sums(unpadded, x, codes, 8)
    merged, shift = merge(sums, gates)
    assert torch.equal(merged, torch.tensordot(kronecker(gates).long(), sums, dims=1))
    found = multiply_levels(merged, q) * 2.0**shift
    torch.testing.assert_close(found, F.conv2d(x.double(), compose(q, gates)[codes]))


def test_gates_out_of_order_are_refused() -> None:
    with pytest.raises(QuantopsyError, match="descending"):
        merge(torch.zeros(4, 2, dtype=torch.int64), torch.tensor([0.0, 1.0]))
