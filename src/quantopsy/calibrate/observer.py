"""Streaming statistics of one site's activations: what a range estimator will need, and never more.

N images, C channels, R grids: 1, or C where the spec is per channel.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.calibrate.by_image import ByImage
from quantopsy.calibrate.histogram import Histogram
from quantopsy.calibrate.range_estimator import Tracker
from quantopsy.calibrate.registry import check, range_estimator
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import Sample
from quantopsy.quant.grouping import rows_per_channel
from quantopsy.quant.registry import quantizer

# Histograms look at no more values than this of an image: evenly spaced positions of every channel.
# The extremes are those of all values. With a few hundred images that is millions of values.
VALUES_PER_IMAGE = 1 << 14
_BINS_PER_TENSOR, _BINS_PER_CHANNEL = 2048, 512
# An 8-bit step is only a few bins wide: one point a bin would measure rounding errors at a few phases of it.
_POINTS_PER_BIN = 8


@dataclass(frozen=True)
class _Seen:
    """Statistics of some images; ``low`` and ``high`` are (R,)."""

    low: Tensor
    high: Tensor
    histogram: Histogram | None
    tracker: Tracker | None


class Observer:
    """Collects statistics of batches (N, ...) of one tensor; memory does not grow with what it has seen.

    ``key`` is equal for two observers that collect the same statistics, so one can serve both specs.
    """

    def __init__(self, axis: int | None, values: bool, tracker: Tracker | None) -> None:
        self.axis = axis
        self._values = values
        self._tracker = tracker  # an empty one, to start from
        self._seen: _Seen | None = None

    @property
    def key(self) -> Hashable:
        """What is collected."""
        return self.axis, self._values, self._tracker

    @property
    def low(self) -> Tensor:
        """Smallest value seen: float32, () or (C,)."""
        low = self._statistics.low
        return low[0] if self.axis is None else low

    @property
    def high(self) -> Tensor:
        """Largest value seen: float32, () or (C,)."""
        high = self._statistics.high
        return high[0] if self.axis is None else high

    def update(self, x: Tensor, images: int | None = None) -> None:
        """Add a batch ``x``, images along dimension 0, or as many rows of each of ``images`` behind each other.

        Raises :class:`QuantopsyError` for an empty tensor, NaN and infinite values; then nothing was added.
        """
        if x.numel() == 0:
            raise QuantopsyError("activation to calibrate", "it is empty", "calibrate on at least one image")
        x = x.detach().reshape(x.shape if x.ndim > 1 else (-1, 1))  # a number for each image is one channel
        low, high = self._extremes(x, images or len(x))
        histogram = None
        if self._values:
            histogram = self._histogram(x, low, high, torch.maximum(-low, high).amax(0))
        tracker = None if self._tracker is None else self._tracker.after(low, high)
        self._add(_Seen(low.amin(0), high.amax(0), histogram, tracker))

    def each(self, x: Tensor, images: int | None = None) -> ByImage:
        """What this observer collects, of every image of a batch ``x`` alone; nothing is added to it.

        Arguments and :class:`QuantopsyError` as of :meth:`update`.
        """
        images = images or len(x)
        low, high = self._extremes(x, images)
        if not self._values:
            return ByImage(low, high)
        kept = self._thinned(x)
        axis = self._channel(x)
        # A row for every grid of every image, as if each were a grid of its own.
        rows = (kept if axis is None else kept.movedim(axis, 1).unflatten(0, (images, -1)).movedim(2, 1)).reshape(
            low.numel(), -1
        )
        ends = torch.stack((low.flatten(), high.flatten()), 1)
        histogram = self._of_rows(rows, ends, torch.maximum(-low, high).flatten(), x.numel() / kept.numel())
        return ByImage(low, high, histogram.compact())

    def after(self, images: ByImage) -> Observer:
        """A new observer of the same statistics that has seen ``images``, in that order, and nothing else."""
        seen = Observer(self.axis, self._values, self._tracker)
        tracker = None if self._tracker is None else self._tracker.after(images.low, images.high)
        seen._add(_Seen(images.low.amin(0), images.high.amax(0), images.histogram_of_all(), tracker))
        return seen

    def merge(self, other: Observer) -> Observer:
        """A new observer that has seen this one's batches and then ``other``'s."""
        if self.key != other.key:
            raise QuantopsyError(f"observer of {other.key}", f"it cannot join one of {self.key}", "use one spec")
        merged = Observer(self.axis, self._values, self._tracker)
        for part in (self, other):
            if part._seen is not None:
                merged._add(part._seen)
        return merged

    def sample(self) -> Sample:
        """What was seen, as R weighted rows."""
        seen = self._statistics
        tracked = None if seen.tracker is None else seen.tracker.range()
        if seen.histogram is None:
            return Sample(torch.stack((seen.low, seen.high), 1), None, seen.low, seen.high, tracked=tracked)
        values, weight = seen.histogram.weighted(_POINTS_PER_BIN)
        # The points of an outermost bin may lie beyond every value in it.
        values = torch.minimum(torch.maximum(values, seen.low[:, None]), seen.high[:, None])
        return Sample(values, weight, seen.low, seen.high, seen.histogram.width, tracked)

    @property
    def _statistics(self) -> _Seen:
        if self._seen is None:
            raise QuantopsyError("observer", "it has seen no image", "calibrate on at least one")
        return self._seen

    def _add(self, new: _Seen) -> None:
        old = self._seen
        if old is not None:
            new = _Seen(
                torch.minimum(old.low, new.low),
                torch.maximum(old.high, new.high),
                old.histogram.merge(new.histogram) if old.histogram and new.histogram else None,
                old.tracker.merge(new.tracker) if old.tracker and new.tracker else None,
            )
        self._seen = new

    def _extremes(self, x: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """Each image's extremes, (N, R) each; raises where they are not finite."""
        axis = self._channel(x)
        rest = [dim for dim in range(1, x.ndim) if dim != axis]
        low, high = (x.amin(rest), x.amax(rest)) if rest else (x, x)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise QuantopsyError(
                "activation to calibrate",
                "it holds NaN or infinite values",
                "mend the float network or its inputs",
            )
        low, high = (end.float().reshape(images, len(x) // images, -1) for end in (low, high))
        return low.amin(1), high.amax(1)

    def _histogram(self, x: Tensor, low: Tensor, high: Tensor, reach: Tensor) -> Histogram:
        """Of all images together."""
        kept = self._thinned(x)
        rows = kept.reshape(1, -1) if self.axis is None else rows_per_channel(kept, self.axis)
        return self._of_rows(rows, torch.cat((low, high)).T, reach, x.numel() / kept.numel())

    def _of_rows(self, rows: Tensor, extremes: Tensor, reach: Tensor, stands_for: float) -> Histogram:
        """Of all values, or of evenly spaced ones, each standing for its neighbours, and every image's
        extremes, lest a tail that was stepped over should look worth clipping."""
        bins = _BINS_PER_TENSOR if self.axis is None else _BINS_PER_CHANNEL
        histogram = Histogram.of(rows.float(), reach, bins)
        if round(stands_for) == 1:
            return histogram
        return histogram.repeated(round(stands_for)).merge(Histogram.of(extremes, reach, bins))

    def _thinned(self, x: Tensor) -> Tensor:
        """Every few rows and columns of an image with more than ``VALUES_PER_IMAGE``."""
        kept = self._channel(x) or (1 if x.ndim > 2 else 0)
        positions = [dim for dim in range(1, x.ndim) if dim != kept]
        excess = x[0].numel() / VALUES_PER_IMAGE
        if positions and excess > 1:
            step = int(-(-(excess ** (1 / len(positions))) // 1))
            for dim in positions:
                x = x[(slice(None),) * dim + (slice(min(step, x.shape[dim]) // 2, None, step),)]
        return x

    def _channel(self, x: Tensor) -> int | None:
        if self.axis is None:
            return None
        if not -x.ndim <= self.axis < x.ndim or self.axis % x.ndim == 0:
            raise QuantopsyError(
                f"channel axis {self.axis}", f"activations are {tuple(x.shape)}", "name a channel axis"
            )
        return self.axis % x.ndim


def observer(spec: Spec, axis: int = 1) -> Observer:
    """An empty observer for activations that ``spec`` will quantize; ``axis`` is their channel dimension.

    Raises :class:`QuantopsyError` for a spec that cannot be realised from streamed activations.
    """
    check(spec)
    if spec.granularity.startswith("per_group"):
        raise QuantopsyError(
            f"granularity {spec.granularity} of activations",
            "groups divide weights",
            "use per_channel or per_tensor",
        )
    estimator, argument = range_estimator(spec.range_estimator)
    tracker = None if estimator.tracker is None else estimator.tracker(argument)
    values = estimator.needs_values or quantizer(spec.kind).needs_values
    return Observer(axis if spec.granularity == "per_channel" else None, values, tracker)
