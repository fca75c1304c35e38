"""Percentiles of absolute or of signed values."""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.calibrate.range_estimator import Argument, Number, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import Sample


def quantile(values: Tensor, weight: Tensor | None, q: float) -> Tensor:
    """The ``q``-quantile (R,) of each row of ``values`` (R, n): linear between order statistics where every
    value counts once, else the smallest value with at least that share of ``weight`` (R, n) up to it."""
    ordered, order = values.sort(1)
    if weight is None:
        place = q * (values.shape[1] - 1)
        below = int(place)
        above = min(below + 1, values.shape[1] - 1)
        return torch.lerp(ordered[:, below], ordered[:, above], place - below)
    share = weight.gather(1, order).double().cumsum(1)
    index = torch.searchsorted(share, q * share[:, -1:]).clamp(max=values.shape[1] - 1)
    return ordered.gather(1, index)[:, 0]


def _absolute(_: Spec, sample: Sample, argument: Argument) -> Range:
    assert isinstance(argument, float)
    reach = quantile(sample.values.abs(), sample.weight, argument / 100)
    return -reach, reach


def _signed(_: Spec, sample: Sample, argument: Argument) -> Range:
    assert isinstance(argument, float)
    low = quantile(sample.values, sample.weight, 1 - argument / 100)
    return low, quantile(sample.values, sample.weight, argument / 100)


_PERCENT = Number(default=99.99, above=50, most=100)

ABSOLUTE = RangeEstimator(
    name="percentile",
    summary="percentile of absolute values, the same on both sides; the argument is in percent",
    estimate=_absolute,
    argument=_PERCENT,
)
SIGNED = RangeEstimator(
    name="signed_percentile",
    summary="percentiles p and 100 - p of signed values; the argument p is in percent",
    estimate=_signed,
    argument=_PERCENT,
)
