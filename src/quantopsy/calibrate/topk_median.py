"""Median of the k most extreme images (PWLQ section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.calibrate.range_estimator import (
    Argument,
    Number,
    Range,
    RangeEstimator,
    Tracker,
    tracked_range,
)


@dataclass(frozen=True)
class TopkMedian(Tracker):
    """The median of the ``k`` smallest minima and of the ``k`` largest maxima of single images.

    N images, R grids; ``low`` and ``high`` are (at most k, R).
    """

    k: int
    low: Tensor | None = None
    high: Tensor | None = None

    def after(self, low: Tensor, high: Tensor) -> TopkMedian:
        if self.low is not None and self.high is not None:
            low, high = torch.cat((self.low, low)), torch.cat((self.high, high))
        keep = min(self.k, len(low))
        return TopkMedian(self.k, low.topk(keep, 0, largest=False).values, high.topk(keep, 0).values)

    def merge(self, later: TopkMedian) -> TopkMedian:
        if later.low is None or later.high is None:
            return self
        return self.after(later.low, later.high)

    def range(self) -> Range:
        assert self.low is not None
        assert self.high is not None
        return self.low.quantile(0.5, 0), self.high.quantile(0.5, 0)


def _tracker(argument: Argument) -> Tracker:
    assert isinstance(argument, float)
    return TopkMedian(int(argument))


ESTIMATOR = RangeEstimator(
    name="topk_median",
    summary="median of the k most extreme images' extremes (PWLQ section 5); the argument is k",
    estimate=tracked_range,
    argument=Number(default=10.0, above=0, most=10_000, whole=True),
    needs_values=False,
    tracker=_tracker,
)
