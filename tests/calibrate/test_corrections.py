"""Corrections of quantized weights, channel splitting, several tensors for one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quantopsy.calibrate import (
    fake_quantize_several,
    fit,
    fit_several,
    split_channels,
    weight_correction,
)
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import fake_quantize


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["uniform", "piecewise"])
def test_correction_restores_mean_and_variance(axis: int, kind: str) -> None:
    w = torch.randn(8, 9, 3, 3, generator=torch.Generator().manual_seed(0)) ** 3 + 0.1
    w_hat = fake_quantize(w, fit(Spec(kind=kind, bits=2, granularity="per_channel"), w, axis=axis))
    corrected = weight_correction(w, w_hat, axis).apply(w_hat)
    others = [dim for dim in range(4) if dim != axis]
    torch.testing.assert_close(corrected.mean(others), w.mean(others), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(corrected.std(others), w.std(others), atol=1e-5, rtol=1e-5)


def test_correction_of_a_channel_made_constant_restores_its_mean() -> None:
    w = torch.randn(3, 50)
    corrected = weight_correction(w, torch.zeros_like(w)).apply(torch.zeros_like(w))
    torch.testing.assert_close(corrected, w.mean(1, keepdim=True).expand_as(w))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1), st.floats(0, 0.5), st.integers(0, 99))
def test_splitting_preserves_the_function(ratio: float, step: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 7, 3, 3, generator=generator) ** 3
    x = torch.randn(2, 7, 6, 6, generator=generator)
    split = split_channels(weight, ratio, step)
    torch.testing.assert_close(F.conv2d(x[:, split.source], split.weight), F.conv2d(x, weight), rtol=1e-4, atol=1e-4)
    restored = torch.zeros_like(weight).index_add_(1, split.source, split.weight)
    torch.testing.assert_close(restored, weight, rtol=1e-6, atol=1e-7)
    assert split.weight.shape[1] == 7 + -(-ratio * 7 // 1)


def test_splitting_halves_the_largest_and_may_split_it_again() -> None:
    weight = torch.ones(1, 20)
    weight[0, 4] = 16
    split = split_channels(weight, 0.15, 0)
    assert split.source[20:].tolist() == [4, 4, 4]
    assert float(split.weight.max()) == 4
    assert torch.equal(weight, torch.tensor([1.0] * 4 + [16.0] + [1.0] * 15)[None])  # the argument is left alone


def test_quantization_aware_halves_round_to_the_whole() -> None:
    step = 0.25
    w = torch.randn(200, 1, generator=torch.Generator().manual_seed(1))
    split = split_channels(w, 1.0, step).weight
    halves = torch.round(split / step).sum(1)
    assert torch.equal(halves, torch.round(w[:, 0] / step))
    plain = torch.round(split_channels(w, 1.0, 0).weight / step).sum(1)
    assert not torch.equal(plain, torch.round(w[:, 0] / step))


def test_splitting_lowers_the_error_of_a_weight_with_outliers() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    weight[:, 7] *= 12
    spec = Spec(bits=4, symmetric=True)
    step = fit(spec, split_channels(weight, 0.05, 0).weight).scale
    split = split_channels(weight, 0.05, float(step))
    quantized = fake_quantize(split.weight, fit(spec, split.weight))
    error = torch.zeros_like(weight).index_add_(1, split.source, quantized) - weight
    plain = fake_quantize(weight, fit(spec, weight)) - weight
    assert error.square().mean() < 0.5 * plain.square().mean()


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5])
def test_splitting_by_an_impossible_share_is_refused(ratio: float) -> None:
    with pytest.raises(QuantopsyError, match="share"):
        split_channels(torch.ones(2, 2), ratio, 0)


def test_several_tensors_each_lower_the_error() -> None:
    x = torch.distributions.Laplace(0, 1).sample((8, 12, 3, 3))
    spec = Spec(bits=4, granularity="per_channel", symmetric=True)
    errors = []
    for count in (1, 2, 3):
        grids = fit_several(spec, x, count)
        assert len(grids) == count
        errors.append(float((fake_quantize_several(x, grids) - x).square().mean()))
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 2
    omse = fake_quantize(x, fit(Spec(bits=4, granularity="per_channel", symmetric=True, range_estimator="mse"), x))
    assert float((omse - x).square().mean()) == pytest.approx(errors[0])
    with pytest.raises(QuantopsyError, match="at least one"):
        fit_several(spec, x, 0)
