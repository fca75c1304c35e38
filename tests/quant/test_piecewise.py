"""Piecewise linear quantization against the equations and lemmas of PWLQ."""

from __future__ import annotations

import pytest
import torch
from expected_error import piecewise_error, step_error, symmetric_piecewise_error, uniform_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import Tensor

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import PiecewiseQParams, Sample, breakpoints, fake_quantize, quantize
from quantopsy.quant.piecewise import from_breakpoint
from quantopsy.quant.pwlq import bits_per_piece
from quantopsy.quant.registry import stored_bits

normal = torch.distributions.Normal(0, 1)
laplace = torch.distributions.Laplace(0, 0.5**0.5)


def uni(r: Tensor, bits: int, low: float, high: float, offset: float) -> Tensor:
    """PWLQ equation (1), its clamp the right way round."""
    s = (high - low) / (2**bits - 1)
    return s * torch.round((r.clamp(low, high) - offset) / s) + offset


def pw(r: Tensor, bits: int, m: float, p: float) -> Tensor:
    """PWLQ equation (3), written as it stands."""
    inner = r.sign() * uni(r.abs(), bits, 0, p, 0)
    outer = r.sign() * uni(r.abs(), bits, p, m, p)
    return torch.where(r.abs() <= p, inner, outer)


def quantile_sample(distribution: torch.distributions.Distribution, m: float) -> Tensor:
    """(1, n): a distribution cut off at +-m, at evenly spaced quantiles."""
    low = distribution.cdf(torch.tensor(-m, dtype=torch.float64))
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    return distribution.icdf(low + share * (1 - 2 * low)).float()[None]


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.5, 0.9])
def test_equals_equation_3(bits: int, ratio: float) -> None:
    r = torch.linspace(-2.5, 2.5, 3001, dtype=torch.float64)
    qparams = from_breakpoint(torch.tensor(2.0), torch.tensor(2.0 * ratio), bits, signed=True)
    expected = pw(r, bits, float(qparams.maximum.double()), float(qparams.breakpoint.double()))
    different = (fake_quantize(r, qparams) - expected).abs() > 1e-6
    assert different.float().mean() < 2e-3  # ties that rounding of the scale has moved


def test_half_range_breakpoint_is_uniform_of_two_more_bits() -> None:
    qparams = from_breakpoint(torch.tensor(1.0), torch.tensor(0.5), 3, signed=True)
    line = torch.linspace(-1, 1, 20_001)
    error = (fake_quantize(line, qparams) - line).square().mean()
    # Four pieces of 2^b - 1 steps each, as equation (9) has it.
    torch.testing.assert_close(float(error), 4 * step_error(3) / 16, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("distribution", "optimum", "solver"),
    [
        (normal, 1.392, "pwg"),
        (laplace, 1.288, "pwl"),
    ],
)
def test_approximations_come_near_the_optimum_of_equation_5(
    distribution: torch.distributions.Distribution, optimum: float, solver: str
) -> None:
    def error(p: float) -> float:
        return float(symmetric_piecewise_error(4, torch.tensor(4.0), torch.tensor(p), distribution.cdf))

    best = optimize.minimize_scalar(error, bounds=(0.1, 2), method="bounded").x
    assert best == pytest.approx(optimum, abs=3e-3)
    sample = Sample.of(quantile_sample(distribution, 12.0))
    approximated = breakpoints.SOLVERS[solver](sample, torch.tensor([4.0]), 4)
    assert float(approximated) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize(
    ("density", "reference"),
    [
        (breakpoints.GAUSSIAN, stats.truncnorm),
        (breakpoints.LAPLACIAN, None),
    ],
)
def test_bisection_minimises_equation_5(density: breakpoints.Density, reference: object) -> None:
    for m in (2.0, 3.0, 5.0, 8.0):
        mass = 2 * float(density[0](torch.tensor(m, dtype=torch.float64))) - 1

        def cumulative(p: float, mass: float = mass, m: float = m) -> float:
            if reference is not None:
                return float(stats.truncnorm(-m, m).cdf(p))
            return 0.5 + (float(stats.laplace(scale=0.5**0.5).cdf(p)) - 0.5) / mass

        best = optimize.minimize_scalar(
            lambda p, m=m, F=cumulative: symmetric_piecewise_error(4, m, p, F), bounds=(1e-3, m / 2), method="bounded"
        ).x
        assert float(breakpoints.bisect(torch.tensor([m]), density)) == pytest.approx(best, abs=1e-3)


def test_empirical_minimum_beats_every_other_breakpoint() -> None:
    values = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) ** 3
    sample = Sample.of(values)
    m = sample.reach
    chosen = breakpoints.empirical_minimum(sample, m, 4)

    def error(p: Tensor) -> Tensor:
        inside = (values.abs() <= p[:, None]).double().mean(1)
        return (m - p) ** 2 * (1 - inside) + p**2 * inside

    grid = torch.stack([error(m * k / 20_000) for k in range(1, 10_001)])
    assert (error(chosen * (1 + 1e-6)) <= grid.amin(0) * (1 + 1e-4)).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_three_stage_search_is_the_papers_for_every_row(weighted: bool) -> None:
    values = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 6)[:, None]
    weight = torch.randint(1, 9, values.shape, generator=torch.Generator().manual_seed(2)) if weighted else None
    sample = Sample(values, weight, values.amin(1), values.amax(1))
    chosen = breakpoints.three_stage_search(sample, sample.reach, 3)
    for row in range(5):
        m = float(sample.reach[row])

        def error(ratio: float, row: int = row, m: float = m) -> float:
            qparams = from_breakpoint(torch.tensor(m), torch.tensor(ratio * m), 3, signed=True)
            square = (fake_quantize(values[row], qparams) - values[row]).square()
            return float((square if weight is None else square * weight[row]).sum())

        best = min((k / 10 for k in range(1, 11)), key=error)
        best = min((min(max(best + k / 100, 1e-3), 1) for k in range(-10, 11)), key=error)
        best = min((min(max(best + k / 1000, 1e-3), 1) for k in range(-10, 11)), key=error)
        assert error(float(chosen[row]) / m) == pytest.approx(error(best), rel=1e-3)


symmetric_mixtures = st.tuples(st.floats(0.2, 3), st.floats(0.2, 3), st.floats(0, 1))


def mixture_cdf(parts: tuple[float, float, float], m: float):
    """A unimodal symmetric distribution on [-m, m]: a mixture of a Gaussian and a Laplacian, cut off."""
    a, b, share = parts

    def raw(r: Tensor) -> Tensor:
        one = torch.special.ndtr(r / a)
        other = 0.5 - 0.5 * torch.expm1(-r.abs() / b) * r.sign()
        return share * one + (1 - share) * other

    end = raw(torch.tensor(m, dtype=torch.float64))
    return lambda r: (raw(r) - (1 - end)) / (2 * end - 1)


@settings(max_examples=50, deadline=None)
@given(symmetric_mixtures, st.floats(1, 10), st.integers(1, 8))
def test_lemma_1_error_is_convex_up_to_half_the_range(parts: tuple[float, float, float], m: float, bits: int) -> None:
    p = torch.linspace(1e-3, m / 2, 201, dtype=torch.float64)
    F = mixture_cdf(parts, m)
    error = symmetric_piecewise_error(bits, torch.full_like(p, m), p, F)
    assert (error.diff().diff() >= -1e-12 * error.max()).all()
    torch.testing.assert_close(piecewise_error(bits, torch.full_like(p, m), p, F), error)


@settings(max_examples=50, deadline=None)
@given(symmetric_mixtures, st.floats(1, 10), st.integers(1, 8))
def test_lemma_2_piecewise_beats_uniform_of_two_more_bits(
    parts: tuple[float, float, float], m: float, bits: int
) -> None:
    p = torch.linspace(1e-3, m / 2, 2001, dtype=torch.float64)
    best = symmetric_piecewise_error(bits, torch.full_like(p, m), p, mixture_cdf(parts, m)).min()
    relaxed = step_error(bits) / 16 * (2 * m) ** 2  # C(b + 2) taken for C(b) / 16, as the lemma does
    assert float(best) <= relaxed * (1 + 1e-9)
    assume(min(parts[:2]) < m / 3)
    assert float(best) < relaxed


def test_lemma_2_holds_for_measured_errors() -> None:
    x = quantile_sample(normal, 4.0)
    # Not at 2 bits, where C(4) is far below C(2) / 16: 1 / 225 against 1 / 144.
    for bits in (3, 4, 6):
        piecewise = fit(Spec(kind="piecewise", bits=bits), x)
        uniform = fit(Spec(bits=bits + 2, symmetric=True), x)
        assert (fake_quantize(x, piecewise) - x).square().mean() < (fake_quantize(x, uniform) - x).square().mean()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_measured_errors_agree_with_equations_2_and_4(bits: int) -> None:
    x = quantile_sample(normal, 4.0)
    m, p = torch.tensor(4.0), torch.tensor(1.4)
    measured = (fake_quantize(x, from_breakpoint(m, p, bits, signed=True)) - x).double().square().mean()
    torch.testing.assert_close(float(measured), float(piecewise_error(bits, m, p, normal.cdf)), rtol=0.03, atol=0)
    flat = torch.linspace(-1, 1, 100_001)[None]
    qparams = fit(Spec(bits=bits, symmetric=True), flat)
    measured = (fake_quantize(flat, qparams) - flat).double().square().mean()
    torch.testing.assert_close(float(measured), uniform_error(bits, -1.0, 1.0), rtol=0.03, atol=0)


def test_conventions_count_bits_as_the_paper_does() -> None:
    def bits(convention: str, signed: bool) -> int:
        return bits_per_piece(Spec(kind="piecewise", bits=6, signed=signed, options={"convention": convention}))

    assert [bits(name, True) for name in ("per_piece", "pw_comp", "pw_stor")] == [6, 5, 4]
    assert [bits(name, False) for name in ("per_piece", "pw_comp", "pw_stor")] == [6, 6, 5]
    with pytest.raises(QuantopsyError, match="pieces would have none"):
        fit(Spec(kind="piecewise", bits=2, options={"convention": "pw_stor"}), torch.tensor([-1.0, 1.0]))


def test_breakpoint_at_the_end_leaves_one_region() -> None:
    qparams = from_breakpoint(torch.tensor(2.0), torch.tensor(2.0), 3, signed=False)
    assert isinstance(qparams, PiecewiseQParams)
    assert fake_quantize(torch.tensor([1.0, 2.0, 5.0, torch.inf]), qparams).amax() == qparams.maximum
    assert qparams.maximum == pytest.approx(2.0)


@pytest.mark.parametrize("convention", ["per_piece", "pw_comp", "pw_stor"])
@pytest.mark.parametrize("positive", [False, True])
def test_stored_bits_hold_all_codes(convention, positive):
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values = values.abs() if positive else values
    spec = Spec("piecewise", bits=4, signed=not positive, options={"convention": convention})
    codes = len(quantize(values, fit(spec, values)).unique())
    assert 2 ** (stored_bits(spec) - 1) < codes <= 2 ** stored_bits(spec)
    if convention == "pw_stor":
        assert stored_bits(spec) == 4


def test_weights_whose_sign_the_data_decide_are_stored_with_it():
    assert stored_bits(Spec("piecewise", bits=4)) == 6
    assert stored_bits(Spec("piecewise", bits=4, tensors=2)) == 12
    assert stored_bits(Spec(bits=4, tensors=2)) == 8
