"""The range with the least squared quantization error, for any kind of grid (Choukroun et al. 2019).

R grids (rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.calibrate.range_estimator import Argument, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import QParams, Sample, fake_quantize
from quantopsy.quant.registry import quantizer

_COARSE = tuple(k / 20 for k in range(1, 21))
_FINE = tuple(k / 200 for k in range(-9, 10))
_ROWS_AT_ONCE = 1 << 20  # values: the temporaries of the search stay small beside a network


def squared_error(sample: Sample, qparams: QParams) -> Tensor:
    """Mean squared error (R,) of ``qparams`` (``axis=0``) on the rows of ``sample``."""
    return sample.mean(fake_quantize(sample.values, qparams).sub_(sample.values).square_())


def _estimate(spec: Spec, sample: Sample, _: Argument) -> Range:
    at_once = max(1, _ROWS_AT_ONCE // sample.values.shape[1])
    parts = [_search(spec, sample.rows(slice(i, i + at_once))) for i in range(0, len(sample.low), at_once)]
    low, high = (torch.cat(bounds) for bounds in zip(*parts, strict=True))
    return low, high


def _search(spec: Spec, sample: Sample) -> Range:
    """Both ends shrunk by one factor, a coarse search and a fine one; then, where they may differ, each by
    itself, since the tails of a skewed distribution want to be cut differently."""
    low, high = sample.low.clamp(max=0), sample.high.clamp(min=0)
    ones = torch.ones_like(low)
    best = _best(spec, sample, low, high, [(k * ones, k * ones) for k in _COARSE])
    best = _best(spec, sample, low, high, [_near(best, k, k) for k in _FINE])
    if not spec.symmetric and bool(((low < 0) & (high > 0)).any()):
        for _ in range(2):
            best = _best(spec, sample, low, high, [_near(best, k, 0) for k in (*_FINE, -0.2, -0.1, 0.1, 0.2)])
            best = _best(spec, sample, low, high, [_near(best, 0, k) for k in (*_FINE, -0.2, -0.1, 0.1, 0.2)])
    return low * best[0], high * best[1]


def _near(factors: Range, below: float, above: float) -> Range:
    return (factors[0] + below).clamp(0.01, 1), (factors[1] + above).clamp(0.01, 1)


def _best(spec: Spec, sample: Sample, low: Tensor, high: Tensor, candidates: list[Range]) -> Range:
    fit = quantizer(spec.kind).fit
    errors = torch.stack([squared_error(sample, fit(spec, sample, low * a, high * b)) for a, b in candidates])
    choice = errors.argmin(0, keepdim=True)
    below, above = (torch.stack(factors).gather(0, choice)[0] for factors in zip(*candidates, strict=True))
    return below, above


ESTIMATOR = RangeEstimator(
    name="mse",
    summary="range with the least squared quantization error on the data (OMSE)",
    estimate=_estimate,
)
