"""How much one plan differs from another, of one study or of two, by what they hold of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import Expected
from quantopsy.analysis.prediction import ErrorModel, population_interval
from quantopsy.analysis.significance import Interval, is_binary
from quantopsy.analysis.verdicts import measured
from quantopsy.metrics import Metric
from quantopsy.study import Draw, RunResult

ChangeVerdict = Literal["worse", "better", "unchanged", "undecided"]

SCREEN_SPREAD_DB = 1.0
"""Standard deviation of predicted over measured noise, in decibels, of cells in the linear regime: what is
screened may be off by that, however many images were screened. It is 0.4 to 0.5 on ResNets and MobileNets of 18
to 81 such cells, 0.9 on SqueezeNet's 64."""


@dataclass(frozen=True)
class Evidence:
    """What a study knows of one plan: what it gave on images, or else what the screen expects of it.

    ``data`` identifies the images, so that equal indices mean equal images; ``reference`` is the float network.
    """

    metric: Metric
    data: str
    reference: RunResult
    result: RunResult | None = None
    draw: Draw | None = None
    expected: Expected | None = None
    error: ErrorModel | None = None

    @property
    def drawn(self) -> bool:
        """Whether the images were drawn by their risk, each standing for others."""
        return (
            self.result is not None
            and self.draw is not None
            and self.draw.by_chance
            and len(self.result.images) < len(self.draw.images)
        )


@dataclass(frozen=True)
class Change:
    """From one plan to another: ``degradation`` in the metric's unit, noise in decibels; positive is worse."""

    degradation: Interval
    noise_db: Interval  # 10 log10(noise after / noise before)
    over_signal_db: Interval  # the same of noise over the float network's own signal: what the SQNR loses
    images: int  # that both were measured on, paired; 0 where they are not


def change(before: Evidence, after: Evidence, level: float) -> Change:
    """What changed from ``before`` to ``after``, with intervals of ``level``.

    Over the images that both were measured on, image by image; where there are none, the data differ, or one
    of the two was drawn by risk or only screened, from the interval of each
    (:func:`quantopsy.analysis.significance.difference`). NaN where that cannot be told.
    """
    images = common_images(before, after)
    return Change(
        _degradation_change(before, after, images, level),
        _noise_change(before, after, images, level, over_signal=False),
        _noise_change(before, after, images, level, over_signal=True),
        len(images),
    )


def verdict_on(change: Interval, tolerance: float) -> ChangeVerdict:
    """What an interval of a change says, ``tolerance`` being the change that does not matter."""
    if -tolerance <= change.low and change.high <= tolerance:
        return "unchanged"
    return "worse" if change.low > 0.0 else "better" if change.high < 0.0 else "undecided"


def drop(before: Evidence, after: Evidence, level: float) -> Interval:
    """By how much the metric is worse under the plan ``after`` than under ``before``; positive is worse.

    Over the images that both were measured on, image by image, whatever the float networks are. Else what the
    degradations against float differ by (:func:`quantopsy.analysis.significance.difference`). NaN where that cannot
    be told.
    """
    images = common_images(before, after)
    if before.metric.name != after.metric.name or not len(images):
        return _degradation_change(before, after, images, level)
    assert before.result is not None
    assert after.result is not None
    old, new = before.result.on(images).statistics, after.result.on(images).statistics
    return significance.degradation(before.metric, old, new, level=level)


def common_images(before: Evidence, after: Evidence) -> np.ndarray:
    """Images, ascending, over which the two can be paired; none where either was drawn by risk or only screened."""
    if before.data != after.data or before.result is None or after.result is None or before.drawn or after.drawn:
        return np.empty(0, dtype=np.int64)
    return np.intersect1d(before.result.images, after.result.images)


def _degradation_change(before: Evidence, after: Evidence, images: np.ndarray, level: float) -> Interval:
    if before.metric.name != after.metric.name:
        return _unknown(level)
    if not len(images):
        return significance.difference(degradation(after, level), degradation(before, level))

    def statistics(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        assert evidence.result is not None
        return evidence.reference.on(images).statistics, evidence.result.on(images).statistics

    return significance.change_of_degradation(before.metric, statistics(before), statistics(after), level=level)


def degradation(evidence: Evidence, level: float) -> Interval:
    """metric(float) - metric(quantized) by what is known of a plan, measured or screened; NaN where it is not."""
    metric, reference, result = evidence.metric, evidence.reference, evidence.result
    if result is None:
        expected, error = evidence.expected, evidence.error
        if expected is None or error is None or not (metric.linear and is_binary(reference.statistics)):
            return _unknown(level)
        return population_interval(expected.outlook, error, metric, expected.images, level)
    if evidence.drawn:
        return measured(metric, reference, result, level=level, cells=1, tolerance=0.0, draw=evidence.draw).degradation
    return significance.degradation(metric, reference.on(result.images).statistics, result.statistics, level=level)


def _noise_change(
    before: Evidence, after: Evidence, images: np.ndarray, level: float, *, over_signal: bool
) -> Interval:
    if not len(images):
        mine, other = (_noise(evidence, level, over_signal=over_signal) for evidence in (before, after))
        return significance.difference(other, mine)
    noise, signal = [], []
    for evidence in (before, after):
        assert evidence.result is not None
        noise.append(evidence.result.on(images).energy)
        signal.append(evidence.reference.on(images).energy)
    above, below = [noise[1]], [noise[0]]
    # The same float network has the same signal: it cancels, and so does what rounding makes of it.
    if over_signal and not np.array_equal(signal[0], signal[1]):
        above, below = [noise[1], signal[0]], [noise[0], signal[1]]
    return significance.decibels(above, below, level=level)


def _noise(evidence: Evidence, level: float, *, over_signal: bool) -> Interval:
    """10 log10 of the noise, or of noise over signal."""
    reference, result = evidence.reference, evidence.result
    if result is not None and not evidence.drawn:
        below = [reference.on(result.images).energy] if over_signal else []
        return significance.decibels([result.energy], below, level=level)
    if result is not None:
        found = measured(evidence.metric, reference, result, level=level, cells=1, tolerance=0.0, draw=evidence.draw)
        noise, stderr, spread = found.noise, found.noise_stderr, 0.0
    elif evidence.expected is not None and evidence.expected.linear:
        noise, stderr, spread = evidence.expected.noise, evidence.expected.noise_stderr, SCREEN_SPREAD_DB
    else:
        return _unknown(level)
    if noise == 0.0:  # as of decibels of measurements: no logarithm
        return Interval(-np.inf, -np.inf, -np.inf, level)
    signal, signal_stderr = significance.mean_stderr(reference.energy)
    if not over_signal:
        signal, signal_stderr = 1.0, 0.0
    factor = 10.0 / np.log(10.0)
    value = factor * float(np.log(noise / signal))
    reach = float(
        norm.isf((1.0 - level) / 2.0) * np.hypot(factor * np.hypot(stderr / noise, signal_stderr / signal), spread)
    )
    return Interval(value, value - reach, value + reach, level)


def _unknown(level: float) -> Interval:
    return Interval(np.nan, np.nan, np.nan, level)
