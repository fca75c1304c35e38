"""Whether single layers add up: expected values, sums over single layers, against measured ones.

Layer-wise paper, section 3.1 (Figure 2) and section 4.4 (Figure 9). Pure functions of tables; where the
numbers come from is in :mod:`quantopsy.analysis.subsets`.

m subsets of layers, R resamples of images. Values (1 + R, m) hold the estimate itself in row 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from quantopsy.analysis.significance import Interval

MARGIN = 0.2
"""Share of an expected value that a measured one may be off by before sums count as wrong."""

FIT_FROM = 4
"""Subsets from which a line is put through them."""

ADDITIVITY_COLUMNS = (
    "layers",  # those at the low bit-width, by their position in topological order
    "low_layers",  # how many they are
    "screened",  # how many of the cells summed are predicted, not run
    "noise_expected",  # sum over all layers of the single layer's noise at its bits
    "noise_expected_stderr",
    "noise_measured",
    "noise_measured_stderr",
    "noise_predicted",  # by the screen, with cross terms; NaN without one
    "noise_predicted_stderr",
    "degradation_expected",
    "degradation_expected_low",
    "degradation_expected_high",
    "degradation_measured",
    "degradation_measured_low",
    "degradation_measured_high",
    "degradation_predicted",
    "below_signal",  # whether the expected noise is less than the mean squared output: beyond, noise saturates
    "noise_holds",  # whether the sum is right, within its margin or as far as these images can tell
    "degradation_holds",
)


@dataclass(frozen=True)
class Fit:
    """A straight line of measured y on expected x over m subsets.

    ``slope`` and ``intercept`` by ordinary least squares; ``proportion`` is the slope of the line through
    the origin, sum(x y) / sum(x^2); ``correlation`` is Pearson's. Percentile intervals from resampling images
    and subsets at once: Student's would take the subsets for independent, and they share their images.
    """

    slope: Interval
    intercept: Interval
    proportion: Interval
    correlation: Interval


@dataclass(frozen=True)
class Relation:
    """How measured values follow expected ones.

    ``holds`` (m,): see :func:`holds`. ``limit``: the largest expected value such that sums hold there and at
    every smaller one; NaN where they do not at the smallest. ``reach``: half width of the interval of measured
    minus expected there (at the smallest, where there is no limit): as far as these images can tell. ``fit`` is of
    sums up to ``most``, the largest value that there can be; None where there are too few.
    """

    holds: np.ndarray
    limit: float
    reach: float
    largest: float
    most: float
    fit: Fit | None

    @property
    def everywhere(self) -> bool:
        """Whether sums hold for every subset."""
        return self.limit == self.largest


@dataclass(frozen=True)
class Interaction:
    """What the screen says of the cross terms of all layers at the low bit-width.

    ``factor``: predicted noise of the network over the sum of its layers' own, what two layers share being
    counted once; above 1 layers reinforce each other. ``first`` and ``second`` are the two layers with the
    largest cross term that is certain, 2 <J d_a, J d_b>, and ``share`` what it is of the network's noise;
    empty where none is certain.
    """

    factor: Interval
    first: str = ""
    second: str = ""
    share: float = float("nan")


@dataclass(frozen=True)
class Additivity:
    """Random subsets of layers at ``low_bits``, all others at ``high_bits``, against what single layers promise.

    ``table`` has the columns of :data:`ADDITIVITY_COLUMNS`. ``noise_ratio``: the geometric mean of measured to
    expected noise over the subsets whose sum is below the signal, over all where there is none. ``sum_error`` and
    ``screen_error``: the median over the same subsets of how far the sum, and the screen's prediction with its
    cross terms, are from measured noise, as a factor less 1 (NaN without a screen).
    """

    low_bits: int
    high_bits: int
    samples: int
    wanted: int  # images asked for: more than ``samples`` where the run was stopped
    signal: float  # mean squared norm of the float network's output
    table: pd.DataFrame
    noise: Relation
    degradation: Relation | None
    noise_ratio: Interval
    sum_error: float
    screen_error: float
    interaction: Interaction | None

    @property
    def below_signal(self) -> int:
        """Subsets whose expected noise is less than the signal."""
        return int(self.table["below_signal"].sum())

    @property
    def degradation_errors(self) -> tuple[float, float]:
        """Mean distance of the sum, and of the screen's prediction, from measured degradation; NaN for what is not
        known of every subset."""
        measured = self.table["degradation_measured"]
        names = ("degradation_expected", "degradation_predicted")
        total, screened = (float((self.table[name] - measured).abs().mean(skipna=False)) for name in names)
        return total, screened

    @property
    def bias_shift(self) -> bool:
        """Whether noise is certain to be more than sums say, by more than :data:`MARGIN`: layers reinforce each other.

        A zero-mean noise adds up; a mean shift that is passed on does not (layer-wise paper, section 4.4).
        """
        return self.below_signal > 0 and self.noise_ratio.low > 1.0 + MARGIN


def fit(expected: np.ndarray, measured: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Fit | None:
    """The line through values (1 + R, m); None for fewer than :data:`FIT_FROM`, or all at one place."""
    m = expected.shape[1]
    if m < FIT_FROM or np.ptp(expected[0]) == 0.0 or np.ptp(measured[0]) == 0.0:
        return None
    drawn = resampled(m, len(expected), seed)
    x, y = np.take_along_axis(expected, drawn, 1), np.take_along_axis(measured, drawn, 1)
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have all its subsets at one place
        slope = (dx * dy).sum(1) / np.square(dx).sum(1)
        proportion = (x * y).sum(1) / np.square(x).sum(1)
        correlation = (dx * dy).sum(1) / np.sqrt(np.square(dx).sum(1) * np.square(dy).sum(1))
    intercept = y.mean(1) - slope * x.mean(1)
    return Fit(*(percentile_interval(values, level) for values in (slope, intercept, proportion, correlation)))


def holds(expected: np.ndarray, measured: np.ndarray, *, tolerance: float = 0.0, level: float = 0.95) -> np.ndarray:
    """(m,): whether sums are right, of values (1 + R, m).

    |measured - expected| is at most ``tolerance``, or :data:`MARGIN` of the expected value, or :func:`reach`.
    """
    allowed = np.maximum(tolerance, MARGIN * np.abs(expected[0]))
    allowed = np.fmax(allowed, reach(expected, measured, level))
    found: np.ndarray = np.abs(measured[0] - expected[0]) <= allowed
    return found


def reach(expected: np.ndarray, measured: np.ndarray, level: float = 0.95) -> np.ndarray:
    """(m,): half widths of the intervals of measured - expected, of values (1 + R, m), that hold all at once.

    c s_j, with the spread s_j over resamples of images and c the quantile of the largest |difference| / s over
    subsets (max-t bands: P. Westfall, S. Young, Resampling-Based Multiple Testing, 1993). Subsets share their
    images, so that c is hardly above that of a single interval.
    """
    difference = measured - expected
    away = np.abs(difference[1:] - difference[0])
    spread: np.ndarray = np.nanstd(difference[1:], 0, ddof=1)
    moving = spread > 0
    if not moving.any():
        return spread
    largest = np.nanmax(away[:, moving] / spread[moving], axis=1)
    return float(np.quantile(largest, level)) * spread


def relation(
    expected: np.ndarray,
    measured: np.ndarray,
    *,
    tolerance: float = 0.0,
    most: float = float("inf"),
    level: float = 0.95,
) -> Relation | None:
    """The relation of values (1 + R, m), subsets without an expected value left out; None where none has one.

    Sums beyond ``most``, the largest value that there can be, do not hold, whatever the images can tell, and no
    line is put through them.
    """
    known = np.isfinite(expected[0]) & np.isfinite(measured[0])
    if not known.any():
        return None
    x, y = expected[:, known], measured[:, known]
    right = holds(x, y, tolerance=tolerance, level=level) & (x[0] <= most)
    good = x[0] < x[0, ~right].min(initial=np.inf)
    last = int(np.where(good, x[0], -np.inf).argmax()) if good.any() else int(x[0].argmin())
    everything = np.zeros(len(known), dtype=bool)
    everything[known] = right
    return Relation(
        holds=everything,
        limit=float(x[0, last]) if good.any() else float("nan"),
        reach=float(reach(x, y, level)[last]),
        largest=float(x[0].max()),
        most=most,
        fit=fit(x[:, x[0] <= most], y[:, x[0] <= most], level=level),
    )


def geometric_ratio(numerator: np.ndarray, denominator: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Geometric mean over subsets of the ratio of values (1 + R, m), resampling images and subsets at once.

    Percentile interval. Subsets where either is not positive are left out; NaN where none is left.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(numerator) - np.log(denominator)
    logarithm = logarithm[:, np.isfinite(logarithm[0])]
    rows, m = logarithm.shape
    if not m:
        return Interval(np.nan, np.nan, np.nan, level)
    found = np.exp(np.nanmean(np.take_along_axis(logarithm, resampled(m, rows, seed), 1), 1))
    return percentile_interval(found, level)


def resampled(m: int, rows: int, seed: int) -> np.ndarray:
    """(rows, m): which of m subsets each row takes: each once in the first, drawn with replacement in the others."""
    drawn = np.random.default_rng(seed).integers(m, size=(rows, m))
    drawn[0] = np.arange(m)
    return drawn


def percentile_interval(values: np.ndarray, level: float) -> Interval:
    """The estimate ``values[0]``, and quantiles of the resamples (R,) behind it; NaN without any."""
    found = values[1:][np.isfinite(values[1:])]
    if not len(found):
        return Interval(float(values[0]), np.nan, np.nan, level)
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(values[0]), float(low), float(high), level)


def typical_factor(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Median over subsets of how far apart two values (m,) are, as a factor less 1; NaN where none is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.abs(np.log(numerator) - np.log(denominator))
    known = logarithm[np.isfinite(logarithm)]
    return float(np.expm1(np.median(known))) if len(known) else float("nan")
