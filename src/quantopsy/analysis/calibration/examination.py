"""What the images' statistics say of a calibration set, before anything is run quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from quantopsy.analysis.calibration.duplicates import Duplicates, equal_images, with_near
from quantopsy.analysis.calibration.growth import beyond, chance, coverage
from quantopsy.analysis.calibration.outliers import FALSE_ALARM as OUTLIER_ALARM
from quantopsy.analysis.calibration.outliers import blank, range_setters, unlike
from quantopsy.analysis.calibration.result import ACTIVATION_COLUMNS, HALF_A_BIT, Outliers
from quantopsy.analysis.calibration.shift import FALSE_ALARM, Shift, compare_inputs, exceedance_log_p, exceeding
from quantopsy.engine.image_statistics import ImageStatistics


@dataclass(frozen=True)
class Seen:
    """Statistics of the calibration images (``mine``) and of the evaluation images (``theirs``), these with what the
    ranges of all calibration images clip."""

    mine: ImageStatistics
    theirs: ImageStatistics


@dataclass(frozen=True)
class Examination:
    """What the statistics alone say. ``kept`` are the calibration images, each once, without the outliers;
    ``others`` the evaluation images, each once."""

    duplicates: Duplicates
    outliers: Outliers
    shifts: tuple[Shift, ...]
    kept: np.ndarray
    others: np.ndarray
    activations: pd.DataFrame

    @property
    def mistaken(self) -> bool:
        """Whether their preparation differs, or images that do not belong widen a range: harm without a run."""
        return (
            any(shift.range_differs or (shift.order is not None and shift.order.swapped) for shift in self.shifts)
            or self.outliers.factor >= HALF_A_BIT
        )

    @property
    def different(self) -> bool:
        """Whether the images are not like the evaluation images."""
        return (
            self.mistaken
            or any(shift.differs for shift in self.shifts)
            or bool((self.activations["p"] < FALSE_ALARM).any())
        )


def examine(seen: Seen, steps: int) -> Examination:
    """Duplicates, outliers, shifts and clipping; ``steps`` of the grids that activations are put on."""
    mine, theirs = seen.mine, seen.theirs
    others = np.sort(np.unique(np.asarray(theirs.digests), return_index=True)[1])
    equal = equal_images(mine.digests, theirs.digests)
    duplicates = with_near(equal, mine.moments.columns, theirs.moments.columns[others])
    outliers = _outliers(seen, steps)
    # What sets most of the images apart is the set's own.
    if len(outliers.images) > len(mine) / 2:
        outliers = Outliers(blank=outliers.blank)
    kept = np.setdiff1d(duplicates.distinct, outliers.images)
    shifts = tuple(
        compare_inputs(name, moments.take(kept), theirs.inputs[name].take(others), steps)
        for name, moments in mine.inputs.items()
    )
    if any(shift.differs for shift in shifts):
        # Distances between images in another scale say nothing of how alike they are.
        duplicates = equal
        kept = np.setdiff1d(duplicates.distinct, outliers.images)
    if outliers.images:
        outliers = _with_factor(outliers, mine, kept)
    return Examination(duplicates, outliers, shifts, kept, others, _activations(seen, kept, others, steps))


def _outliers(seen: Seen, steps: int) -> Outliers:
    mine, theirs = seen.mine, seen.theirs
    odd: set[int] = set()
    colourless = np.zeros(len(mine), dtype=bool)
    for name, moments in mine.inputs.items():
        odd |= set(np.flatnonzero(unlike(moments.columns, theirs.inputs[name].columns) < OUTLIER_ALARM).tolist())
        colourless |= blank(moments)
    return Outliers(
        odd=tuple(sorted(odd)),
        setters=range_setters(mine.moments, theirs.moments, steps),
        blank=tuple(np.flatnonzero(colourless).tolist()),
    )


def _with_factor(outliers: Outliers, mine: ImageStatistics, kept: np.ndarray) -> Outliers:
    """With what the ranges of activations shrink by where the outliers are left out."""
    whole, without = (_widths(mine, rows) for rows in (np.arange(len(mine)), kept))
    factors = np.divide(whole, without, out=np.ones_like(whole), where=without > 0)
    widest = int(factors.argmax())
    return replace(outliers, factor=float(factors[widest]), widest=mine.activations[widest].layer)


def _widths(statistics: ImageStatistics, rows: np.ndarray) -> np.ndarray:
    return np.diff(statistics.ranges(statistics.calibration(rows)), axis=1)[:, 0]


def _activations(seen: Seen, kept: np.ndarray, others: np.ndarray, steps: int) -> pd.DataFrame:
    """``ACTIVATION_COLUMNS``, those that clip most first."""
    mine, theirs = seen.mine, seen.theirs
    assert theirs.clipped is not None
    ranges = mine.ranges(mine.calibration(np.arange(len(mine))))
    a, b = mine.moments, theirs.moments
    logs = [
        _exceedance(sign * a_end[kept, v], sign * b_end[others, v], float(width) / steps)
        for v, width in enumerate(np.diff(ranges, axis=1)[:, 0])
        for sign, a_end, b_end in ((-1, a.low, b.low), (1, a.high, b.high))
    ]
    ends = (ranges[:, 0] < 0).astype(int) + (ranges[:, 1] > 0)
    own = np.stack((np.minimum(b.low.min(axis=0), 0.0), np.maximum(b.high.max(axis=0), 0.0)), axis=1)
    table = pd.DataFrame(
        {
            "activation": [activation.layer for activation in mine.activations],
            "low": ranges[:, 0],
            "high": ranges[:, 1],
            "share": theirs.clipped.share.mean(axis=0),
            "images": beyond(ranges, b.low, b.high, steps).mean(axis=0),
            "expected": beyond(ranges, a.low, a.high, steps).mean(axis=0) + ends * chance(len(kept)),
            "excess": theirs.clipped.excess.max(axis=0),
            "unused": 1.0 - coverage(own, ranges),
            "p": np.minimum(1.0, 2 * len(logs) * np.exp(np.min(np.reshape(logs, (-1, 2)), axis=1))),
        }
    )
    return table.sort_values(["share", "images"], ascending=False, kind="stable", ignore_index=True)[
        list(ACTIVATION_COLUMNS)
    ]


def _exceedance(mine: np.ndarray, theirs: np.ndarray, step: float) -> float:
    """The lesser log p-value of so many images of either set beyond all of the other."""
    n, m = len(mine), len(theirs)
    of_mine, of_theirs = exceeding(mine, theirs, step)
    return min(exceedance_log_p(of_mine, n, m), exceedance_log_p(of_theirs, m, n))
