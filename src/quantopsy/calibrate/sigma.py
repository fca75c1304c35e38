"""Mean plus and minus k standard deviations."""

from __future__ import annotations

from quantopsy.calibrate.range_estimator import Argument, Number, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import Sample


def _estimate(_: Spec, sample: Sample, argument: Argument) -> Range:
    assert isinstance(argument, float)
    mean, spread = sample.mean(sample.values), argument * sample.std()
    return mean - spread, mean + spread


ESTIMATOR = RangeEstimator(
    name="sigma",
    summary="mean plus and minus k standard deviations; the argument is k",
    estimate=_estimate,
    argument=Number(default=3.0, above=0, most=100),
)
