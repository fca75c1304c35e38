"""Tables of levels: powers of two, learned ones, and those of least error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ddq_formulas import kronecker, stored_levels, symmetric_levels, uniform_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.cluster.vq import kmeans

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.quant import LevelsQParams, Sample, fake_quantize, quantize
from quantopsy.quant.learned import compose
from quantopsy.quant.lloyd import evenly_spaced, lloyd
from quantopsy.quant.power_of_two import additive_levels, power_of_two_levels


def test_power_of_two_levels_are_equation_2_of_ddq() -> None:
    assert power_of_two_levels(3, signed=True).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert power_of_two_levels(2, signed=False).tolist() == [0, 0.25, 0.5, 1]


def test_additive_levels_are_those_of_the_authors_code() -> None:
    def reference(choices: list[list[float]]) -> list[float]:
        sums = np.unique(np.sum(np.meshgrid(*choices), axis=0))
        return sorted((sums / sums.max()).tolist())

    # build_power_value of github.com/yhhhli/APoT_Quantization, exponents written out.
    assert additive_levels(4, signed=False).tolist() == pytest.approx(
        reference([[0, 2**-1, 2**-3, 2**-5], [0, 2**-2, 2**-4, 2**-6]])
    )
    assert additive_levels(3, signed=False).tolist() == pytest.approx(reference([[0, 2**-1, 2**-2, 2**-4], [0, 2**-3]]))
    assert additive_levels(5, signed=False).tolist() == pytest.approx(
        reference([[0, 2**-1, 2**-3, 2**-6], [0, 2**-2, 2**-4, 2**-7], [0, 2**-5]])
    )
    signed = additive_levels(4, signed=True)
    assert torch.equal(signed, -signed.flip(0))
    assert len(signed) == 15


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_composition_is_the_kronecker_product(gates: list[bool], seed: int) -> None:
    opened = torch.tensor(sorted(gates, reverse=True), dtype=torch.float64)
    q = torch.randn(3, 2 ** len(gates), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    U = kronecker(opened)
    block = 2 ** (len(gates) - int(opened.sum()))
    assert torch.equal(U, torch.block_diag(*[torch.ones(block, block)] * 2 ** int(opened.sum())).double())
    torch.testing.assert_close(compose(q, opened), q @ U / block)
    assert torch.autograd.gradcheck(compose, (q.requires_grad_(), opened.requires_grad_()))


def test_closed_gates_take_bits_away() -> None:
    q = uniform_levels(4, torch.tensor(-1.0), torch.tensor(1.0))
    for opened in range(5):
        gates = torch.tensor([1.0] * opened + [0.0] * (4 - opened))
        assert len(compose(q, gates).unique()) == 2**opened


def test_learned_levels_start_as_the_uniform_grid() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        spec = Spec(bits=4, symmetric=symmetric, granularity="per_channel")
        learned = fit(Spec(**{**spec.__dict__, "kind": "learned"}), x)
        torch.testing.assert_close(fake_quantize(x, learned), fake_quantize(x, fit(spec, x)), rtol=1e-5, atol=1e-6)


def test_ddq_reduces_to_uniform_and_power_of_two() -> None:
    x = torch.linspace(-1.2, 1.2, 997)
    clip = torch.tensor(1.0)
    uniform = LevelsQParams(compose(symmetric_levels(4, clip), torch.ones(4)), clip)
    narrow = fit(Spec(bits=4, symmetric=True, narrow=True), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(fake_quantize(x, uniform), fake_quantize(x, narrow))
    data = torch.tensor([-1.0, 1.0])
    learned = fit(Spec(kind="learned", bits=4, options={"start": "power_of_two"}), data)
    assert learned.levels.numel() == 16
    assert torch.equal(fake_quantize(x, learned), fake_quantize(x, fit(Spec(kind="power_of_two", bits=4), data)))


def test_stored_levels_lie_on_the_wider_grid() -> None:
    low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    q = torch.rand(1, 16) * 3 - 1
    stored = stored_levels(q, 8, low, high)
    codes = (stored + 1) / 3 * 255
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert (stored - q).abs().max() <= 3 / 255 / 2 + 1e-6


def lloyd_max_of_gaussian(bits: int) -> tuple[np.ndarray, float]:
    """Levels and error for a standard Gaussian: Max's conditions iterated on the density by scipy."""
    levels = np.linspace(-2, 2, 2**bits)
    for _ in range(2000):
        edges = np.concatenate(([-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]))
        mass = np.diff(stats.norm.cdf(edges))
        levels = -np.diff(stats.norm.pdf(edges)) / mass
    error = sum(
        integrate.quad(lambda r, level=level: (r - level) ** 2 * stats.norm.pdf(r), low, high)[0]
        for level, low, high in zip(levels, edges[:-1], edges[1:], strict=True)
    )
    return levels, error


@pytest.mark.parametrize("kind", ["k_means", "lloyd_max"])
@pytest.mark.parametrize("bits", [2, 3])
def test_finds_the_lloyd_max_levels_of_a_gaussian(kind: str, bits: int) -> None:
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float()
    qparams = fit(Spec(kind=kind, bits=bits), x)
    levels, error = lloyd_max_of_gaussian(bits)
    np.testing.assert_allclose((qparams.levels * qparams.scale).numpy(), levels, atol=5e-3)
    assert float((fake_quantize(x, qparams) - x).square().mean()) == pytest.approx(error, rel=2e-3)
    if bits == 2:
        assert error == pytest.approx(0.1175, abs=1e-4)  # Max 1960, table I


def test_lloyd_ends_where_scipy_does() -> None:
    x = np.sort(np.random.default_rng(0).laplace(size=500))
    start = evenly_spaced(torch.tensor([x.min()]), torch.tensor([x.max()]), 6)
    found = lloyd(torch.tensor(x)[None], None, start)[0]
    expected = np.sort(kmeans(x, start[0].numpy(), thresh=0)[0])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


def test_weights_count_as_repetitions() -> None:
    x, times = torch.randn(2, 40).sort(1).values, torch.randint(1, 5, (2, 40))
    start = evenly_spaced(x[:, 0], x[:, -1], 5)
    for row in range(2):
        repeated = x[row].repeat_interleave(times[row])[None]
        expected = lloyd(repeated, None, start[row : row + 1])
        torch.testing.assert_close(lloyd(x, times, start)[row : row + 1], expected)


def test_fewer_values_than_levels_are_all_kept() -> None:
    x = torch.tensor([-3.0, -1.0, 0.5, 2.0])
    for kind in ("k_means", "lloyd_max"):
        torch.testing.assert_close(fake_quantize(x, fit(Spec(kind=kind, bits=4), x)), x, rtol=1e-2, atol=1e-2)


def test_ties_go_to_the_lower_level() -> None:
    qparams = LevelsQParams(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(2.0))
    assert quantize(torch.tensor([-1.0, 1.0, 1.001]), qparams).tolist() == [0, 1, 2]


def test_sample_statistics_use_the_weights() -> None:
    values, weight = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2, 1, 1]])
    repeated = Sample.of(torch.tensor([[1.0, 1.0, 2.0, 4.0]]))
    sample = Sample(values, weight, repeated.low, repeated.high)
    torch.testing.assert_close(sample.mean(values), repeated.mean(repeated.values))
    torch.testing.assert_close(sample.std(), repeated.std())
