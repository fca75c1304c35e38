"""Every quantizer, whatever its kind, options, width and granularity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conformance import GRANULARITIES, SPECS, label, specs, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import dequantize, fake_quantize, fake_quantize_ste, quantize
from quantopsy.quant.grouping import aligned
from quantopsy.quant.pwlq import bits_per_piece

pytestmark = pytest.mark.parametrize("base", SPECS, ids=label)
few = settings(max_examples=20, deadline=None)

# Of these zero need not be a level.
FREE_LEVELS = {"learned", "k_means", "lloyd_max"}


@few
@given(data=st.data())
def test_is_idempotent_and_agrees_with_its_codes(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    qparams = fit(spec, x)
    once = fake_quantize(x, qparams)
    assert torch.isfinite(once).all()
    assert torch.equal(fake_quantize(once, qparams), once)
    assert torch.equal(dequantize(quantize(x, qparams), qparams), once)


@few
@given(data=st.data())
def test_rises_with_its_input(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    qparams = fit(replace(spec, granularity="per_tensor"), x)
    line = torch.linspace(-1.5, 1.5, 501) * x.abs().max()
    assert (fake_quantize(line, qparams).diff() >= 0).all()
    assert (quantize(line, qparams).diff() >= 0).all()


@few
@given(data=st.data())
def test_zero_is_exact_where_promised(base: Spec, data: st.DataObject) -> None:
    if base.kind in FREE_LEVELS:
        pytest.skip("makes no such promise")
    spec, x = data.draw(specs(base)), data.draw(tensors())
    assert (fake_quantize(torch.zeros_like(x), fit(spec, x)) == 0).all()


@few
@given(data=st.data())
def test_no_level_is_nearer_inside_the_range(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    qparams = fit(replace(spec, granularity="per_tensor"), x)
    line = torch.linspace(float(x.min()), float(x.max()), 301)
    widest = 2 ** (spec.bits + 2)
    levels = (
        dequantize(torch.arange(-widest, widest + 1), qparams)
        if spec.kind in ("uniform", "piecewise")
        else (dequantize(torch.arange(len(qparams.levels)), qparams))
    )
    low, high = fake_quantize(torch.tensor([-torch.inf, torch.inf]), qparams)
    levels = levels[(levels >= low) & (levels <= high)]
    nearest = (line[:, None] - levels).abs().amin(1)
    error = (fake_quantize(line, qparams) - line).abs()
    assert (error <= nearest + 1e-6 * x.abs().max()).all()


@few
@given(data=st.data())
def test_ends_are_where_everything_saturates(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    qparams = fit(spec, x)
    for end, infinite in zip(qparams.ends, (-torch.inf, torch.inf), strict=True):
        saturated = fake_quantize(torch.full_like(x, infinite), qparams)
        assert torch.equal(aligned(end, x, qparams.axis, qparams.group_size).expand_as(x), saturated)


@few
@given(data=st.data())
def test_codes_fit_the_bits(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    codes = quantize(x * 3, fit(spec, x))
    assert codes.dtype == torch.int32
    width = spec.bits
    if spec.kind == "piecewise":
        signed = bool((x < 0).any())
        width = bits_per_piece(replace(spec, signed=signed)) + 1 + signed
    assert int(codes.max()) - int(codes.min()) < 2**width


@few
@given(data=st.data())
def test_straight_through_gradient_is_one_inside_and_zero_where_clipped(base: Spec, data: st.DataObject) -> None:
    spec, x = data.draw(specs(base)), data.draw(tensors())
    qparams = fit(spec, x)
    lowest = fake_quantize(torch.full_like(x, -torch.inf), qparams)
    highest = fake_quantize(torch.full_like(x, torch.inf), qparams)
    for value, expected in ((torch.lerp(lowest, highest, 0.4), 1.0), (highest + 2 * x.abs().max() + 1, 0.0)):
        value = value.clone().requires_grad_()
        result = fake_quantize_ste(value, qparams)
        assert torch.equal(result, fake_quantize(value.detach(), qparams))
        result.sum().backward()
        # A grid that is a single point, of constant data, has no inside.
        assert (value.grad == expected)[highest > lowest].all()


@pytest.mark.parametrize("granularity", GRANULARITIES[1:])
def test_many_grids_are_a_loop_over_single_ones(base: Spec, granularity: str) -> None:
    bits = 4
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(7))  # 5 inputs: a ragged last group of 2
    spec = replace(base, bits=bits, granularity=granularity, signed=True)
    whole = fake_quantize(x, fit(spec, x))
    single = replace(spec, granularity="per_tensor")
    step = 5 if granularity == "per_channel" else 2
    for channel in range(4):
        for start in range(0, 5, step):
            part = x[channel, start : start + step]
            torch.testing.assert_close(
                whole[channel, start : start + step],
                fake_quantize(part, fit(single, part)),
                rtol=1e-5,
                atol=1e-6,
            )


def test_transposed_weights_are_the_same_grids(base: Spec) -> None:
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(8))
    for granularity in GRANULARITIES:
        spec = replace(base, bits=4, granularity=granularity)
        expected = fake_quantize(x, fit(spec, x))
        other = x.transpose(0, 1).contiguous()
        assert torch.equal(fake_quantize(other, fit(spec, other, axis=1)).transpose(0, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_computed_wide_and_returned_as_they_came(base: Spec, dtype: torch.dtype) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(9)).to(dtype)
    qparams = fit(replace(base, bits=4), x)
    result = fake_quantize(x, qparams)
    assert result.dtype == dtype
    expected = fake_quantize(x.float(), qparams)
    torch.testing.assert_close(result.float(), expected.to(dtype).float())
    largest = torch.full((3,), min(torch.finfo(dtype).max, 3e38), dtype=dtype)
    assert torch.isfinite(fake_quantize(largest, fit(replace(base, bits=4), largest))).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept_and_of_no_consequence(base: Spec, memory_format: torch.memory_format) -> None:
    x = torch.randn(16, 9, 130, 130, generator=torch.Generator().manual_seed(10))
    for granularity in ("per_tensor", "per_channel"):
        qparams = fit(replace(base, bits=4, granularity=granularity), x[:1], axis=1)
        laid = x.contiguous(memory_format=memory_format)
        result = fake_quantize(laid, qparams)
        assert result.is_contiguous(memory_format=memory_format)
        assert torch.equal(result, dequantize(quantize(x, qparams), qparams))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 4),
        torch.full((3, 4), 1e-42),
        torch.full((3, 4), -2.5),
        torch.tensor([[3e38, -3e38]]),
        torch.ones(1),
    ],
    ids=["zero", "denormal", "constant", "huge", "single"],
)
def test_degenerate_data_give_finite_results(base: Spec, x: torch.Tensor) -> None:
    for bits in (2, 4, 8):
        if base.option("convention", "") == "pw_stor" and bits == 2:
            continue
        for symmetric in (False, True):
            spec = replace(base, bits=bits, symmetric=symmetric, granularity="per_channel")
            qparams = fit(spec, x)
            result = fake_quantize(x, qparams)
            assert torch.isfinite(result).all()
            assert (result - x).abs().max() <= 1.01 * x.abs().max() + 1e-38
            unseen = fake_quantize(torch.tensor([[7.0], [-torch.inf], [torch.inf]])[: len(x)], qparams)
            assert not unseen.isnan().any()


def test_empty_stays_empty_and_nan_is_refused(base: Spec) -> None:
    qparams = fit(replace(base, bits=4), torch.tensor([-1.0, 2.0]))
    assert fake_quantize(torch.empty(0, 3), qparams).shape == (0, 3)
    for function in (quantize, fake_quantize):
        with pytest.raises(QuantopsyError, match="NaN"):
            function(torch.tensor([1.0, torch.nan]), qparams)


def test_compiles_to_the_same_numbers(base: Spec) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(11))
    qparams = fit(replace(base, bits=4, granularity="per_channel"), x)
    compiled = torch.compile(lambda x: fake_quantize(x, qparams), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), fake_quantize(x, qparams))
    trained = torch.compile(lambda x: fake_quantize_ste(x, qparams), backend="aot_eager", fullgraph=True)
    x.requires_grad_()
    trained(x).sum().backward()
    assert torch.isfinite(x.grad).all()
