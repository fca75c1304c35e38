"""A range that is known already: decided elsewhere, carried by a recipe, or put to the test."""

from __future__ import annotations

import torch

from quantopsy.calibrate.range_estimator import Argument, Ends, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import Sample


def _estimate(_: Spec, sample: Sample, argument: Argument) -> Range:
    assert isinstance(argument, tuple)
    low, high = argument
    return torch.full_like(sample.low, low), torch.full_like(sample.high, high)


ESTIMATOR = RangeEstimator(
    name="fixed",
    summary="the two numbers given, whatever the data say; of every channel, where grids are per channel",
    estimate=_estimate,
    argument=Ends(),
    bounded=False,
    needs_values=False,
)


def fixed(low: float, high: float) -> str:
    """The name of the range estimator that gives ``low`` to ``high``, to the last bit."""
    return f"{ESTIMATOR.name}:{low!r}:{high!r}"
