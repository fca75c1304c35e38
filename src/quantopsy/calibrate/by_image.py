"""Statistics kept image by image, so that those of any subset are a reduction and no forward pass.

N images, R grids (see :mod:`quantopsy.calibrate.observer`), B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from quantopsy.calibrate.histogram import Histogram

# Counts of so many images are widened and added at a time.
_CHUNK = 256


@dataclass(frozen=True)
class ByImage:
    """What :meth:`quantopsy.calibrate.Observer.each` found: ``low`` and ``high`` (N, R) float32, and a
    histogram of N R rows, image by image, where values are looked at."""

    low: Tensor
    high: Tensor
    histogram: Histogram | None = None

    def __len__(self) -> int:
        return len(self.low)

    def take(self, images: Tensor) -> ByImage:
        """Those of ``images`` (n,), positions, in that order."""
        if self.histogram is None:
            return ByImage(self.low[images], self.high[images])
        grids = self.low.shape[1]
        rows = (images[:, None] * grids + torch.arange(grids)).flatten()
        whole = self.histogram
        part = Histogram(whole.counts[rows], whole.zeros[rows], whole.exponent[rows])
        return ByImage(self.low[images], self.high[images], part)

    def histogram_of_all(self) -> Histogram | None:
        """One histogram of R rows for all images."""
        if self.histogram is None:
            return None
        parts = torch.arange(len(self)).split(_CHUNK)
        sums = (_histogram(self.take(part)).summed(len(part)) for part in parts)
        return reduce(Histogram.merge, sums)

    @classmethod
    def joined(cls, parts: Sequence[ByImage]) -> ByImage:
        """All images of ``parts``, one part behind the other."""
        low, high = torch.cat([part.low for part in parts]), torch.cat([part.high for part in parts])
        if parts[0].histogram is None:
            return cls(low, high)
        whole = [_histogram(part) for part in parts]
        histogram = Histogram(
            torch.cat([part.counts for part in whole]),
            torch.cat([part.zeros for part in whole]),
            torch.cat([part.exponent for part in whole]),
        )
        return cls(low, high, histogram)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        ends = self.low.nbytes + self.high.nbytes
        return ends if self.histogram is None else ends + self.histogram.counts.nbytes


def _histogram(part: ByImage) -> Histogram:
    assert part.histogram is not None
    return part.histogram
