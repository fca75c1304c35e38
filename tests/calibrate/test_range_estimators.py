"""Range estimators against numpy, scipy, published tables and brute force."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import rel_entr

from quantopsy.calibrate import check, fit, fixed, observer, realise, summaries
from quantopsy.calibrate.aciq import gaussian_clip, laplace_clip
from quantopsy.calibrate.entropy import divergence, magnitudes
from quantopsy.calibrate.mse import squared_error
from quantopsy.calibrate.registry import RANGE_ESTIMATORS, estimate_range
from quantopsy.calibrate.sawb import COEFFICIENTS
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import Sample, fake_quantize
from quantopsy.quant.registry import QUANTIZERS
from quantopsy.quant.uniform import from_range

FROM_DATA = [name for name in RANGE_ESTIMATORS if name != "fixed"]


def heavy(seed: int = 0, rows: int = 3, n: int = 5000) -> torch.Tensor:
    """(rows, n) of Student's t with 3 degrees of freedom, off centre."""
    return torch.tensor(np.random.default_rng(seed).standard_t(3, (rows, n)) + 0.2).float()


def range_of(name: str, rows: torch.Tensor, **spec: object) -> tuple[torch.Tensor, torch.Tensor]:
    return estimate_range(Spec(range_estimator=name, **{"signed": True, **spec}), Sample.of(rows))


def test_percentiles_are_numpys() -> None:
    rows = heavy()
    _, high = range_of("percentile:99", rows)
    np.testing.assert_allclose(high.numpy(), np.percentile(rows.abs(), 99, axis=1), rtol=1e-5)
    low, high = range_of("signed_percentile:97.5", rows)
    np.testing.assert_allclose(low.numpy(), np.percentile(rows, 2.5, axis=1), rtol=1e-4)
    np.testing.assert_allclose(high.numpy(), np.percentile(rows, 97.5, axis=1), rtol=1e-4)


def test_sigma_is_mean_plus_minus_k_deviations() -> None:
    rows = heavy()
    low, high = range_of("sigma:2", rows)
    np.testing.assert_allclose(low.numpy(), rows.numpy().mean(1) - 2 * rows.numpy().std(1), rtol=1e-4)
    np.testing.assert_allclose(high.numpy(), rows.numpy().mean(1) + 2 * rows.numpy().std(1), rtol=1e-4)


def test_a_fixed_range_is_taken_as_given_to_the_last_bit() -> None:
    ends = -0.1, 1e3 / 7
    for rows in (heavy(), 0.001 * heavy()):
        low, high = range_of(fixed(*ends), rows)
        np.testing.assert_array_equal(low.numpy(), np.float32([ends[0]] * 3))
        np.testing.assert_array_equal(high.numpy(), np.float32([ends[1]] * 3))
    seen = observer(Spec(range_estimator=fixed(-1.0, 3.0)))
    seen.update(torch.rand(2, 3, 4, 4))
    qparams = realise(Spec(range_estimator=fixed(-1.0, 3.0)), seen)
    expected = from_range(Spec(), torch.tensor(-1.0), torch.tensor(3.0))
    x = torch.linspace(-2, 4, 99)
    assert torch.equal(fake_quantize(x, qparams), fake_quantize(x, expected))


@pytest.mark.parametrize("name", FROM_DATA)
def test_never_leaves_what_was_seen(name: str) -> None:
    rows = heavy()
    low, high = range_of(name, rows, bits=8)
    assert (low >= rows.amin(1)).all()
    assert (high <= rows.amax(1)).all()
    assert (low < high).all()


def test_aciq_clips_are_the_published_ones() -> None:
    laplace = [2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89]
    gaussian = [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]
    assert [laplace_clip(bits) for bits in range(2, 9)] == pytest.approx(laplace, abs=0.02)
    assert [gaussian_clip(bits) for bits in range(2, 9)] == pytest.approx(gaussian, abs=0.02)


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_aciq_gaussian_minimises_the_closed_form(bits: int) -> None:
    def error(alpha: float) -> float:
        outside = integrate.quad(lambda r: (r - alpha) ** 2 * stats.norm.pdf(r), alpha, 20)[0]
        return 2 * outside + alpha**2 / (3 * 4**bits)

    best = gaussian_clip(bits)
    assert error(best) <= min(error(best * 0.98), error(best * 1.02))


def test_aciq_tells_the_distributions_apart() -> None:
    generator = np.random.default_rng(1)
    rows = torch.tensor(np.stack([generator.normal(size=20_000), generator.laplace(size=20_000)])).float()
    gaussian, laplace = range_of("aciq:gaussian", rows, bits=4), range_of("aciq:laplace", rows, bits=4)
    fitted = range_of("aciq", rows, bits=4)
    assert (fitted[1][0], fitted[1][1]) == (gaussian[1][0], laplace[1][1])
    assert float(fitted[1][0]) == pytest.approx(gaussian_clip(4), rel=0.03)
    half = rows[:1].relu()
    _, high = range_of("aciq:gaussian", half, bits=4, signed=False)
    assert float(high) == pytest.approx(gaussian_clip(5), rel=0.03)  # half the range: one bit more


def derivation():  # type: ignore[no-untyped-def]
    path = Path(__file__).parents[2] / "scripts" / "derive_sawb.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("derive_sawb", path))
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_sawb_coefficients_are_derived_and_near_the_published_ones(bits: int) -> None:
    assert derivation().coefficients(bits) == pytest.approx(COEFFICIENTS[bits], abs=2e-3)
    published = {2: (3.212, 2.178), 4: (12.68, 12.80), 5: (17.74, 18.64)}[bits]
    assert COEFFICIENTS[bits] == pytest.approx(published, rel=0.06)
    # c1 and c2 trade off against each other; the clips that they give agree far better.
    for moments in (np.sqrt(np.pi / 2), np.sqrt(2)):  # Gaussian, Laplacian
        ours, theirs = (c1 * moments - c2 for c1, c2 in (COEFFICIENTS[bits], published))
        assert ours == pytest.approx(theirs, rel=0.035)


def test_mse_is_a_brute_force_search() -> None:
    row = heavy(rows=1)
    for bits in (3, 8):
        spec = Spec(bits=bits, symmetric=True, signed=True)
        sample = Sample.of(row)
        found = squared_error(sample, from_range(spec, *range_of("mse", row, bits=bits, symmetric=True), axis=0))
        reach = float(sample.reach)
        brute = min(
            float(squared_error(sample, from_range(spec, torch.tensor([-a]), torch.tensor([a]), axis=0)))
            for a in np.linspace(reach / 150, reach, 150)
        )
        assert float(found) <= brute * 1.02


def test_mse_is_the_least_of_all_estimators() -> None:
    rows = heavy(rows=4)
    for bits in (3, 8):
        errors = {
            name: float((fake_quantize(rows, qparams) - rows).square().mean())
            for name in FROM_DATA
            for qparams in [fit(Spec(bits=bits, granularity="per_channel", range_estimator=name), rows)]
        }
        assert errors["mse"] <= min(errors.values()) * 1.005


def reference_divergence(counts: np.ndarray, threshold: int, levels: int) -> float:
    """The loop of TensorRT's slides, KL by scipy."""
    P = counts[:threshold].astype(float)
    Q = np.zeros(threshold)
    edges = [-(-threshold * k // levels) for k in range(levels + 1)]
    for start, stop in pairwise(edges):
        part = P[start:stop]
        if (part > 0).any():
            Q[start:stop][part > 0] = part.sum() / (part > 0).sum()
    P[-1] += counts[threshold:].sum()
    return float(rel_entr(P / P.sum(), Q / Q.sum()).sum())


def test_divergence_is_scipys() -> None:
    counts, _ = magnitudes(Sample.of(heavy(rows=2, n=100_000)))
    for threshold, levels in ((128, 128), (300, 128), (555, 8), (2048, 128)):
        ours = divergence(counts, threshold, levels)
        for row in range(2):
            expected = reference_divergence(counts[row].numpy(), threshold, levels)
            if np.isfinite(expected):
                assert float(ours[row]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_entropy_clips_tails_and_leaves_a_flat_distribution_alone() -> None:
    tailed = heavy(rows=1, n=200_000)
    _, high = range_of("entropy", tailed, bits=8)
    assert float(high) < 0.5 * float(tailed.abs().max())
    flat = torch.linspace(-1, 1, 200_000)[None]
    assert float(range_of("entropy", flat, bits=8)[1]) > 0.9


@pytest.mark.parametrize(
    "text",
    [
        "mni_max",
        "sigma:-1",
        "sigma:x",
        "percentile:0",
        "percentile:101",
        "min_max:3",
        "aciq:cauchy",
        "topk_median:2.5",
        "fixed",
        "fixed:1",
        "fixed:2:1",
        "fixed:0:inf",
    ],
)
def test_wrong_names_and_arguments_are_refused(text: str) -> None:
    with pytest.raises(QuantopsyError, match=text.split(":")[0]):
        check(Spec(range_estimator=text))


def test_wrong_kinds_options_and_widths_are_refused() -> None:
    for spec, word in (
        (Spec(kind="unifrom"), "nearest are uniform"),
        (Spec(options={"breakpoint": "pws"}), "known: scale"),
        (Spec(kind="piecewise", options={"breakpoint": "pwx"}), "pws, pwg"),
        (Spec(kind="k_means", bits=12), "give 2 to 8"),
        (Spec(range_estimator="sawb", bits=9), "ends at 8"),
    ):
        with pytest.raises(QuantopsyError, match=word):
            fit(spec, torch.randn(4, 4))


def test_everything_is_listed_with_one_line() -> None:
    listed = summaries()
    assert set(listed["quantizers"]) == set(QUANTIZERS)
    for line in [*listed["quantizers"].values(), *listed["range_estimators"].values()]:
        assert line
        assert "\n" not in line
    for usage in listed["range_estimators"]:
        check(Spec(range_estimator=usage))


@pytest.mark.parametrize("kind", [*QUANTIZERS])
@pytest.mark.parametrize("name", FROM_DATA)
def test_every_kind_goes_with_every_estimator(kind: str, name: str) -> None:
    spec = Spec(kind=kind, bits=4, range_estimator=name, granularity="per_channel")
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(fake_quantize(weight, fit(spec, weight))).all()
    images = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1)).relu()
    seen = observer(spec)
    seen.update(images)
    result = fake_quantize(images, realise(spec, seen))
    assert (result - images).square().mean() < 0.3 * images.square().mean()
    # Dead channels and constant ones are data too.
    for constant in (torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3)):
        seen = observer(spec)
        seen.update(constant)
        assert torch.isfinite(fake_quantize(constant, realise(spec, seen))).all()
        assert torch.isfinite(fake_quantize(constant, fit(spec, constant))).all()
