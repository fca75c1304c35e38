"""Every trainable quantizer, whatever its method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable_cases import cases, quantizer, sample

from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import fake_quantize
from quantopsy.quant.registry import QUANTIZERS
from quantopsy.training.quantizers import METHODS, trainable

pytestmark = pytest.mark.parametrize("method", METHODS)
few = settings(max_examples=25, deadline=None)


@few
@given(data=st.data())
def test_starts_as_the_calibrated_grid_bit_for_bit(method: str, data: st.DataObject) -> None:
    made, qparams, x = data.draw(cases(method))
    for mode in (True, False):
        assert torch.equal(made.train(mode)(x), fake_quantize(x, qparams))
        assert torch.equal(fake_quantize(x, made.qparams), fake_quantize(x, qparams))


@few
@given(data=st.data())
def test_is_its_own_grid_bit_for_bit_wherever_training_leads(method: str, data: st.DataObject) -> None:
    made, _, x = data.draw(cases(method))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    assert torch.equal(made(x), fake_quantize(x, made.qparams))
    assert torch.isfinite(made(x)).all()


@few
@given(data=st.data())
def test_correction_does_not_reach_the_values(method: str, data: st.DataObject) -> None:
    made, _, x = data.draw(cases(method))
    x.requires_grad_()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for made.correction in (0.0, 0.5):
        x.grad = None
        made(x).backward(gradient)
        found.append(x.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_return_as_they_came(method: str, dtype: torch.dtype) -> None:
    role = METHODS[method].roles[0]
    made, _ = quantizer(method, sample(0, role=role), Spec(bits=4), role, correction=0.1)
    x = sample(1, role=role).to(dtype).requires_grad_()
    result = made(x)
    assert result.dtype == dtype
    assert torch.equal(result, fake_quantize(x, made.qparams))
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


def test_memory_format_is_of_no_consequence(method: str) -> None:
    role = METHODS[method].roles[0]
    x = sample(2, (4, 8, 13, 13), role)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    found = []
    for laid in (torch.contiguous_format, torch.channels_last):
        made, _ = quantizer(method, x, Spec(bits=3), role, correction=0.2)
        value = x.clone(memory_format=laid).requires_grad_()
        result = made(value)
        assert result.is_contiguous(memory_format=laid)
        result.backward(gradient)
        found.append([result, value.grad, *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_kept_for_backward_does_not_grow_with_the_bits(method: str) -> None:
    role = METHODS[method].roles[0]
    x = sample(4, (8, 16, 32, 32), role).requires_grad_()
    kept = []
    for bits in (2, 8):
        saved: dict[int, int] = {}
        made, _ = quantizer(method, x, Spec(bits=bits), role, correction=0.1)

        def count(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            made(x)
        kept.append(sum(saved.values()))
    assert kept[1] <= kept[0] + x.numel() + 2**15
    assert kept[1] <= 2.6 * x.numel() * x.element_size()


def test_state_comes_back(method: str) -> None:
    role = METHODS[method].roles[0]
    x, other = sample(5, role=role), 3 * sample(6, role=role)
    made, _ = quantizer(method, x, Spec(bits=4), role)
    moved, _ = quantizer(method, other, Spec(bits=4), role)
    moved.load_state_dict(made.state_dict())
    assert torch.equal(moved(x), made(x))


def test_rates_are_given_for_every_parameter(method: str) -> None:
    role = METHODS[method].roles[0]
    made, _ = quantizer(method, sample(7, role=role), Spec(bits=4), role)
    grouped = [parameter for group in made.rate_groups().values() for parameter in group]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in made.parameters()}


def test_a_recipe_can_state_the_trained_grid(method: str) -> None:
    role = METHODS[method].roles[0]
    spec = METHODS[method].start(Spec(bits=4, kind="uniform", rounding="nearest", options={"scale": "power_of_two"}))
    made, _ = quantizer(method, sample(8, role=role), spec, role)
    fitted = made.fitted(spec)
    QUANTIZERS[fitted.kind].check(fitted)
    assert fitted.bits == made.bits == 4


def test_refuses_nan_and_a_grid_of_another_kind(method: str) -> None:
    role = METHODS[method].roles[0]
    x = sample(9, role=role)
    made, _ = quantizer(method, x, Spec(bits=4), role)
    with pytest.raises(QuantopsyError, match="NaN"):
        made(torch.full_like(x, torch.nan))
    if METHODS[method].kind is not None:
        _, piecewise = quantizer("ste", x, Spec(kind="piecewise", bits=4), "weight")
        with pytest.raises(QuantopsyError, match="calibrate the spec"):
            trainable(method, Spec(kind="piecewise", bits=4), piecewise, role)
    if not METHODS[method].mixes:
        with pytest.raises(QuantopsyError, match="ddq"):
            quantizer(method, x, Spec(bits=4), role, mixed=True)
