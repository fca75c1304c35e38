"""Analytic clipping: the least expected squared error for a known distribution (Banner et al. 2018).

R grids (rows), b bits, alpha half the width of the clipped range.
"""

from __future__ import annotations

from functools import lru_cache
from math import e, exp, pi, sqrt

import torch
from scipy.optimize import brentq
from scipy.special import lambertw, ndtr
from torch import Tensor

from quantopsy.calibrate.range_estimator import Argument, Range, RangeEstimator, Word
from quantopsy.core import Spec
from quantopsy.quant import Sample


@lru_cache
def laplace_clip(bits: int) -> float:
    """alpha / b for a Laplacian of mean absolute deviation b: the minimum of
    ``2 b^2 exp(-alpha / b) + alpha^2 / (3 4^bits)``, which is Lambert's W of 3 4^bits."""
    return float(lambertw(3 * 4**bits).real)


@lru_cache
def gaussian_clip(bits: int) -> float:
    """alpha / sigma for a Gaussian: where clipping error falls as fast as rounding error grows,
    ``2 (density(alpha) - alpha tail(alpha)) = alpha / (3 4^bits)``."""

    def slope(alpha: float) -> float:
        density = exp(-(alpha**2) / 2) / sqrt(2 * pi)
        return alpha / (3 * 4**bits) - 2 * (density - alpha * float(ndtr(-alpha)))

    return float(brentq(slope, 1e-3, 20))


def _estimate(spec: Spec, sample: Sample, argument: Argument) -> Range:
    if spec.signed:
        middle = sample.mean(sample.values)
        bits = spec.bits
        keep = torch.ones_like(sample.values)
    else:
        # One half of a symmetric distribution: its other half would have doubled the range, so the same
        # step is that of one more bit. The zeros are what a ReLU cut off.
        middle = torch.zeros_like(sample.low)
        bits = spec.bits + 1
        keep = (sample.values > 0).to(sample.values.dtype)
    share = sample.mean(keep).clamp(min=torch.finfo(torch.float32).tiny)
    away = (sample.values - middle[:, None]) * keep
    deviation = sample.mean(away.abs()) / share
    sigma = (sample.mean(away.square()) / share).sqrt()
    gaussian, laplacian = sigma * gaussian_clip(bits), deviation * laplace_clip(bits)
    if argument == "gaussian":
        reach = gaussian
    elif argument == "laplace":
        reach = laplacian
    else:
        reach = torch.where(_laplacian_fits(deviation, sigma), laplacian, gaussian)
    return middle - reach, middle + reach


def _laplacian_fits(deviation: Tensor, sigma: Tensor) -> Tensor:
    """Where the best Laplacian has the greater likelihood: entropies ln(2 e b) and ln(sigma sqrt(2 pi e))."""
    return 2 * e * deviation < sigma * sqrt(2 * pi * e)


ESTIMATOR = RangeEstimator(
    name="aciq",
    summary="analytic clip of a Gaussian or a Laplacian, whichever is the likelier (ACIQ)",
    estimate=_estimate,
    argument=Word(("fit", "gaussian", "laplace")),
)
