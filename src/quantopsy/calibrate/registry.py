"""All range estimators by name. A new one is a file beside this one and a line in the table."""

from __future__ import annotations

import torch

from quantopsy.calibrate import (
    aciq,
    entropy,
    fixed,
    min_max,
    moving_average,
    mse,
    percentile,
    sawb,
    sigma,
    topk_median,
)
from quantopsy.calibrate.range_estimator import Argument, Range, RangeEstimator
from quantopsy.core import Spec, names
from quantopsy.quant import Sample, registry

_ENTRIES = (
    min_max.ESTIMATOR,
    moving_average.ESTIMATOR,
    topk_median.ESTIMATOR,
    sigma.ESTIMATOR,
    percentile.ABSOLUTE,
    percentile.SIGNED,
    entropy.ESTIMATOR,
    mse.ESTIMATOR,
    aciq.ESTIMATOR,
    sawb.ESTIMATOR,
    fixed.ESTIMATOR,
)
RANGE_ESTIMATORS: dict[str, RangeEstimator] = {entry.name: entry for entry in _ENTRIES}


def range_estimator(text: str) -> tuple[RangeEstimator, Argument]:
    """The estimator and its argument that ``name`` or ``name:argument`` means; raises
    :class:`QuantopsyError` with the nearest names."""
    name, _, argument = text.partition(":")
    if name not in RANGE_ESTIMATORS:
        raise names.unknown(name, list(RANGE_ESTIMATORS), "range estimator")
    estimator = RANGE_ESTIMATORS[name]
    return estimator, estimator.parse(argument)


def check(spec: Spec) -> None:
    """Raise :class:`QuantopsyError` where ``spec`` names a kind, width, option or estimator there is not."""
    registry.check(spec)
    estimator, _ = range_estimator(spec.range_estimator)
    estimator.check(spec)


def estimate_range(spec: Spec, sample: Sample) -> Range:
    """(low, high), (R,) each: what the spec's estimator says, beyond what was seen only where it is fixed."""
    estimator, argument = range_estimator(spec.range_estimator)
    low, high = estimator.estimate(spec, sample, argument)
    if not estimator.bounded:
        return low, high
    return torch.maximum(low, sample.low), torch.minimum(high, sample.high)


def summaries() -> dict[str, dict[str, str]]:
    """A line for each: {"quantizers": {name: line}, "range_estimators": {name: line}}."""
    return {
        "quantizers": {name: entry.summary for name, entry in registry.QUANTIZERS.items()},
        "range_estimators": {entry.usage: entry.summary for entry in RANGE_ESTIMATORS.values()},
    }
