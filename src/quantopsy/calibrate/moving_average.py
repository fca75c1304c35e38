"""Exponential moving average of each image's extremes (Jacob et al. 2018)."""

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
class MovingAverage(Tracker):
    """``y <- (1 - rate) y + rate x`` over images in order, starting at the first.

    A step is an image, not a batch, so that the batch size is of no consequence. Kept as the first
    image's extremes, which have decayed ``images`` times, and the rest's sum: so halves can be merged.
    N images, R grids; ``first`` and ``rest`` are (2, R), low and high.
    """

    rate: float
    images: int = 0
    first: Tensor | None = None
    rest: Tensor | None = None

    def after(self, low: Tensor, high: Tensor) -> MovingAverage:
        extremes = torch.stack((low, high)).double()
        count = extremes.shape[1]
        decay = (1 - self.rate) ** torch.arange(count - 1, -1, -1, dtype=torch.float64, device=low.device)
        rest = self.rate * (extremes * decay[:, None]).sum(1)
        return self.merge(MovingAverage(self.rate, count, extremes[:, 0], rest))

    def merge(self, later: MovingAverage) -> MovingAverage:
        if self.first is None or self.rest is None:
            return later
        if later.rest is None:
            return self
        rest = (1 - self.rate) ** later.images * self.rest + later.rest
        return MovingAverage(self.rate, self.images + later.images, self.first, rest)

    def range(self) -> Range:
        assert self.first is not None
        assert self.rest is not None
        low, high = ((1 - self.rate) ** self.images * self.first + self.rest).float()
        return low, high


def _tracker(argument: Argument) -> Tracker:
    assert isinstance(argument, float)
    return MovingAverage(argument)


ESTIMATOR = RangeEstimator(
    name="moving_average",
    summary="exponential moving average of each image's extremes; the argument is the rate",
    estimate=tracked_range,
    argument=Number(default=0.01, above=0, most=1),
    needs_values=False,
    tracker=_tracker,
)
