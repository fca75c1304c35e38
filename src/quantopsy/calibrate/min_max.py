"""The extremes: nothing is clipped."""

from __future__ import annotations

from quantopsy.calibrate.range_estimator import RangeEstimator, tracked_range

ESTIMATOR = RangeEstimator(
    name="min_max",
    summary="smallest and largest value: nothing is clipped",
    estimate=tracked_range,
    needs_values=False,
)
