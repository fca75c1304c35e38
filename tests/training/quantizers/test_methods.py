"""What is particular to one method: ranges that follow, squashed weights, levels, gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from trainable_cases import quantizer, sample

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import UniformQParams, fake_quantize
from quantopsy.training.quantizers import METHODS, method
from quantopsy.training.quantizers.ddq import DDQ
from quantopsy.training.quantizers.dorefa import DoReFa
from quantopsy.training.quantizers.gates import Gates, Heaviside
from quantopsy.training.quantizers.lsq import LearnedScaleAndOffset
from quantopsy.training.quantizers.ste import StraightThrough


def test_names_are_looked_up() -> None:
    assert method("ddq") is METHODS["ddq"]
    with pytest.raises(QuantopsyError, match="lsq"):
        method("lsp")


def test_training_starts_from_a_grid_of_the_methods_kind() -> None:
    assert METHODS["pot"].start(Spec(bits=4)).kind == "power_of_two"
    assert METHODS["apot"].start(Spec(bits=4)).kind == "additive_power_of_two"
    assert METHODS["ste"].start(Spec(kind="piecewise", bits=4)).kind == "piecewise"
    with pytest.raises(QuantopsyError, match="learned"):
        METHODS["ddq"].start(Spec(bits=12))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group:2"])
def test_a_weights_range_is_followed_until_frozen(granularity: str) -> None:
    x, other = sample(0), 2 * sample(1)
    spec = Spec(bits=4, granularity=granularity)
    made, qparams = quantizer("ste", x, spec)
    assert isinstance(made, StraightThrough)
    made.observe()
    assert torch.equal(made.eval()(other), fake_quantize(other, qparams))
    assert torch.equal(made.train()(other), fake_quantize(other, fit(replace(spec, signed=True), other)))
    made.freeze()
    before = made(x)
    made(3 * other)
    assert torch.equal(made(x), before)


def test_an_activations_range_is_a_moving_average() -> None:
    made, _ = quantizer("ste", torch.tensor([0.0, 1.0]), Spec(bits=8), "output")
    assert isinstance(made, StraightThrough)
    made.observe(rate=0.25)
    made(torch.tensor([0.0, 3.0]))
    made(torch.tensor([0.5, 2.0]))
    assert isinstance(made.qparams, UniformQParams)
    assert float(made.qparams.ends[1]) == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 3) + 0.25 * 2, rel=1e-6)
    assert float(made.qparams.ends[0]) == 0


def test_only_a_uniform_grid_follows_a_range() -> None:
    made, _ = quantizer("ste", sample(0), Spec(kind="power_of_two", bits=4))
    assert isinstance(made, StraightThrough)
    with pytest.raises(QuantopsyError, match="uniform"):
        made.observe()


@pytest.mark.parametrize("largest", [1e-30, 0.1, 1.0, 40.0])
def test_squashed_weights_start_as_they_were(largest: float) -> None:
    w = sample(2, (8, 9, 3, 3))
    w = w / w.abs().max() * largest
    made, qparams = quantizer("dorefa", w, Spec(bits=4, symmetric=True, granularity="per_channel"))
    assert isinstance(made, DoReFa)
    latent = made.begin(w).requires_grad_()
    torch.testing.assert_close(made.weight(latent), w, rtol=1e-5, atol=1e-6 * largest)
    made(made.weight(latent)).square().sum().backward()
    assert latent.grad is not None
    assert torch.isfinite(latent.grad).all()
    assert torch.equal(made(w), fake_quantize(w, qparams))


def test_squashed_weights_stay_within_their_largest_magnitude() -> None:
    w = sample(3, (8, 9))
    made, _ = quantizer("pact", w, Spec(bits=4, symmetric=True), "weight")
    moved = made.weight(10 * made.begin(w))
    assert float(moved.abs().max()) == pytest.approx(float(w.abs().max()))


def test_dorefa_is_for_weights() -> None:
    with pytest.raises(QuantopsyError, match="weight"):
        quantizer("dorefa", sample(0), Spec(bits=4), "output")


def test_zero_stays_exact_with_a_trained_offset() -> None:
    made, _ = quantizer("lsq+", sample(4) + 1, Spec(bits=3), "output")
    assert isinstance(made, LearnedScaleAndOffset)
    assert made.fitted(Spec(bits=3, symmetric=True)).symmetric  # until its zero point leaves where it was
    with torch.no_grad():
        made.offset += 0.97
        made.scale *= 1.13
    assert made(torch.zeros(1)).tolist() == [0]
    assert not made.fitted(Spec(bits=3, symmetric=True)).symmetric


def test_lsq_plus_keeps_weights_symmetric() -> None:
    spec = Spec(bits=4, symmetric=True, signed=True)
    made, _ = quantizer("lsq+", sample(4), spec)
    made(sample(4) + 1).sum().backward()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter -= 0.1 * parameter.grad
    assert int(made.qparams.zero_point) == 0
    assert made.fitted(spec).symmetric


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_zero_stays_exact_for_activations(closed: int) -> None:
    made, _ = quantizer("ddq", sample(5, role="output") - 0.3, Spec(bits=4), "output", mixed=True)
    assert isinstance(made, DDQ)
    assert isinstance(made.gates, Gates)
    with torch.no_grad():
        made.levels += torch.randn(made.levels.shape, generator=torch.Generator().manual_seed(0))
        made.gates.logits[4 - closed :] = -1
    assert made(torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("stored_bits", [4, 6, 8, 12])
def test_levels_are_stored_in_so_many_bits(stored_bits: int) -> None:
    x = sample(6, (999,))
    made, qparams = quantizer("ddq", x, Spec(bits=4), stored_bits=stored_bits)
    assert isinstance(made, DDQ)
    assert torch.equal(made(x), fake_quantize(x, qparams))
    with torch.no_grad():
        made.levels += 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    stored = (made.qparams.levels - made.lowest) * 2 ** (stored_bits - 4)
    assert torch.equal(stored, stored.round())
    assert 0 <= stored.min() <= stored.max() < 2**stored_bits
    assert (made.qparams.levels.diff() >= 0).all()


def test_levels_take_as_many_bits_as_codes_at_least() -> None:
    with pytest.raises(QuantopsyError, match="at least as many"):
        quantizer("ddq", sample(0), Spec(bits=6), stored_bits=5)
    with pytest.raises(QuantopsyError, match="store more bits"):
        quantizer("ddq", sample(0), Spec(kind="learned", bits=5, options={"start": "power_of_two"}))


def test_closed_gates_halve_the_levels() -> None:
    x = sample(7, (999,))
    made, _ = quantizer("ddq", x, Spec(bits=4), mixed=True, minimum_bits=2)
    assert isinstance(made, DDQ)
    assert isinstance(made.gates, Gates)
    for closed in range(4):
        with torch.no_grad():
            made.gates.logits[:closed] = -0.5  # whichever: they are sorted
        bits = max(2, 4 - closed)
        assert made.bits == bits
        assert made.qparams.levels.shape == (2**bits,)
        assert 2 ** (bits - 1) < made(x).unique().numel() <= 2**bits
        assert made.fitted(Spec(kind="learned", bits=4)).bits == bits


def test_gates_pass_the_gradient_straight_and_those_of_the_minimum_none() -> None:
    gates = Gates(4, minimum=2)
    assert (gates.logits == 1e-8).all()
    (gates() * torch.arange(1.0, 5)).sum().backward()
    assert gates.logits.grad is not None
    assert gates.logits.grad.tolist() == [0, 0, 0, 4]  # the next to close
    with torch.no_grad():
        gates.logits[3] = -1e-8
    gates.logits.grad = None
    (gates() * torch.arange(1.0, 5)).sum().backward()
    assert gates.logits.grad.tolist() == [0, 0, 3, 4]  # the next to close, and the one that may open again
    logits = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5], requires_grad=True)
    values = Heaviside.apply(logits)
    assert values.tolist() == [0, 0, 1, 1, 1]
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [0, 1, 1, 1, 0]


def test_gates_refuse_a_minimum_that_they_cannot_hold() -> None:
    for minimum in (1, 5):
        with pytest.raises(QuantopsyError, match="2 to 4"):
            Gates(4, minimum)


@pytest.mark.parametrize("name", ["lsq", "lsq+", "pot", "apot", "ddq"])
def test_training_the_grid_lowers_the_error(name: str) -> None:
    x = sample(8, (2000,)) ** 3
    made, qparams = quantizer(name, x, Spec(bits=3, symmetric=True), correction=1.0)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02 * float(qparams.scale))  # type: ignore[attr-defined]
    before = (fake_quantize(x, qparams) - x).square().mean()
    for _ in range(200):
        optimizer.zero_grad()
        (made(x) * 0).sum().backward()  # the correction alone
        optimizer.step()
    assert (made(x) - x).square().mean() < 0.8 * before
