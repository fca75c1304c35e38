"""From the screen to the metric: which images a plan is expected to flip, and what that costs.

n images, M runners-up, K statistics per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import nbinom

from quantopsy.analysis import significance
from quantopsy.analysis.screening import Scores
from quantopsy.analysis.significance import Interval, Verdict
from quantopsy.metrics import Metric
from quantopsy.study import RunnerUp, RunResult

# Before anything has been run exactly: log(measured / predicted) losses. Small losses turn out smaller than
# predicted, since where margins are wide the runner-up rarely gains all that first order gives it; where
# more than a tenth of the images is lost, they hardly differ on average and scatter more.
PRIOR_SHARES = (0.02, 0.05, 0.1, 0.15)  # of the images that are predicted to be lost
PRIOR_BIAS = (-0.4, -0.35, -0.15, 0.1)
PRIOR_SPREAD = (0.4, 0.4, 0.45, 0.55)
PRIOR_WEIGHT = 3.0  # the prior counts as so many measured cells

_NEAR = 0.5  # in log(predicted): how near measured cells must be to count fully
EITHER_END = 0.95
"""In so many of 100 cells either end of a range holds, where nothing else is asked for."""


@dataclass(frozen=True)
class Baseline:
    """The float network on n images: its statistics, and those with the runner-up in front."""

    images: np.ndarray
    statistics: np.ndarray  # (n, K)
    gaps: np.ndarray  # (n, M)
    turned: np.ndarray  # (n, K)

    @classmethod
    def of(cls, result: RunResult, runner_up: RunnerUp, images: np.ndarray) -> Baseline:
        """What a study holds of ``images`` (ascending, all of them measured)."""
        rows = np.searchsorted(runner_up.images, images)
        return cls(images, result.on(images).statistics, runner_up.gaps[rows], runner_up.statistics[rows])


@dataclass(frozen=True)
class Outlook:
    """What is expected of one plan on n images.

    ``flips`` (n,): probability that the image's decision changes (of a map: share of its pixels).
    ``value``: the metric's expected value. ``losing``, ``gaining`` (n,): what each image is expected to lose
    and to gain of the metric's statistic; NaN for a metric that is not linear.
    """

    flips: np.ndarray
    value: float
    losing: np.ndarray
    gaining: np.ndarray

    @property
    def lost(self) -> float:
        """The expected sum of what images lose, in units of one image."""
        return float(self.losing.sum())

    @property
    def gained(self) -> float:
        """The expected sum of what images gain, in units of one image."""
        return float(self.gaining.sum())


@dataclass(frozen=True)
class Seen:
    """What some of n images lost and gained; ``images`` (n,) says which were measured."""

    images: np.ndarray
    lost: float
    gained: float


class Bias(NamedTuple):
    """A normal distribution of log((measured + 1/2) / (predicted + 1/2))."""

    mean: float
    spread: float


@dataclass(frozen=True)
class ErrorModel:
    """How measured losses relate to predicted ones of about the same size, on n images.

    log((measured + 1/2) / (predicted + 1/2)) is normal around a bias, both learned from the cells that were
    run exactly, near ones counting most, and shrunk towards the prior. ``predicted``, ``ratio`` (m,):
    logarithms of what all images of a cell were predicted to lose, and of that ratio.
    """

    images: int
    predicted: np.ndarray
    ratio: np.ndarray

    @classmethod
    def fit(cls, images: int, predicted: np.ndarray, there: np.ndarray, measured: np.ndarray) -> ErrorModel:
        """From cells (m,) of which some or all images were run: the losses ``predicted`` of all images, those
        predicted of the images that were run, and theirs as ``measured``. Of a few lost images a ratio says
        nothing: left out."""
        telling = np.maximum(there, measured) >= 4.0
        ratio = np.log((measured + 0.5) / (there + 0.5))
        return cls(images, np.log(predicted + 0.5)[telling], ratio[telling])

    def bias(self, predicted: float) -> Bias:
        """Of cells that are predicted to lose so much."""
        at = np.log(predicted + 0.5)
        share = predicted / self.images
        near = np.exp(-0.5 * np.square((self.predicted - at) / _NEAR))
        weight = PRIOR_WEIGHT + near.sum()
        mean = (PRIOR_WEIGHT * np.interp(share, PRIOR_SHARES, PRIOR_BIAS) + near @ self.ratio) / weight
        variance = PRIOR_WEIGHT * np.interp(share, PRIOR_SHARES, PRIOR_SPREAD) ** 2
        return Bias(float(mean), float(np.sqrt((variance + near @ np.square(self.ratio - mean)) / weight)))

    def range(self, predicted: float, either_end: float = EITHER_END) -> tuple[float, float]:
        """Bounds that the measured loss keeps above, and below, each in a share ``either_end`` of cells."""
        bias = self.bias(predicted)
        middle, reach = np.log(predicted + 0.5) + bias.mean, ndtri(either_end) * bias.spread
        low, high = np.exp(middle - reach) - 0.5, np.exp(middle + reach) - 0.5
        return max(0.0, float(low)), min(float(self.images), float(high))

    def range_of_rest(self, found: Outlook, seen: Seen, either_end: float = EITHER_END) -> tuple[float, float]:
        """The same bounds for what all images lose, of which some were ``seen``: that much, and of the others
        what is predicted.

        What the seen images say of this cell's bias is weighed with what other cells say, by precision. The
        others then lose a number of negative binomial distribution: Poisson's, of a rate that is known to
        within that bias.
        """
        there, elsewhere = found.losing[seen.images].sum(), float(found.losing[~seen.images].sum())
        bias = self.bias(found.lost)
        # A spread over cells holds the chance of counting their lost images too; that comes later, of the rest.
        own = max(bias.spread**2 - 1.0 / (found.lost + 0.5), bias.spread**2 / 4.0)
        told = seen.lost + 0.5
        variance = 1.0 / (1.0 / own + told)
        mean = variance * (bias.mean / own + told * float(np.log(told / (there + 0.5))))
        rate = elsewhere * float(np.exp(mean))
        if rate <= 0.0:
            return seen.lost, seen.lost
        size = 1.0 / float(np.expm1(variance))
        low, high = nbinom.ppf([1.0 - either_end, either_end], size, size / (size + rate))
        return seen.lost + float(low), min(seen.lost + float(high), float(self.images))


def flip_probabilities(scores: Scores, change: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """(n,) probability that each image's decision changes; NaN where the screen cannot say.

    ``change`` (n,) is a plan's, as :meth:`Scores.change` has it. Of classes:
    1 - Phi((m_1 + D) / s) prod_{j > 1} Phi(m_j / s), with the distances m_j of the largest score to the
    runners-up and the first-order change D of the first of them (0 for images that were not probed: those
    of large margin). s is D's spread over images, as measure of what the first order leaves out and of the
    other runners-up. A hard threshold m_1 + D < 0 misses most of what a large perturbation does. Of maps:
    the mean over pixels of 1 - Phi(m / s), from quantiles of m.
    """
    probed = np.isfinite(change)
    if scores.kind not in ("margin", "pixel margins") or not probed.any():
        return np.full(len(scores.images), np.nan)
    spread = _spread(change)
    if scores.kind == "pixel margins":
        return ndtr(-scores.margins / spread).mean(1)
    first = gaps[:, 0] + np.where(probed, change, 0.0)
    kept = log_ndtr(first / spread) + log_ndtr(gaps[:, 1:] / spread).sum(1)
    return -np.expm1(kept)


def _spread(change: np.ndarray) -> float:
    """The standard deviation of changes (n,), NaN left out, from their mean size: few large ones count less."""
    return max(float(np.sqrt(np.pi / 2) * np.nanmean(np.abs(change))), 1e-30)


def outlook(scores: Scores, change: np.ndarray, baseline: Baseline, metric: Metric) -> Outlook:
    """What a plan that makes this ``change`` (n,) of the decisions is expected to do to ``metric``.

    A flipped image counts as if its runner-up had won. Where several runners-up are as likely, what it
    could gain by that is as much less likely.
    """
    flips = flip_probabilities(scores, change, baseline.gaps)
    unknown = np.full(len(flips), np.nan)
    nothing = Outlook(flips, np.nan, unknown, unknown)
    if not np.isfinite(flips).all() or not baseline.turned.shape[1]:
        return nothing
    if not metric.linear:
        mixed = baseline.statistics + flips[:, None] * (baseline.turned - baseline.statistics)
        return Outlook(flips, float(metric.values(mixed, np.ones((1, len(mixed))))[0]), unknown, unknown)
    loss = metric.sign * (baseline.statistics - baseline.turned)[:, 0]
    gaining = -flips * np.minimum(loss, 0.0) * _share_of_first(scores, change, baseline.gaps)
    losing = flips * np.maximum(loss, 0.0)
    value = metric.scale * (baseline.statistics[:, 0].mean() - metric.sign * (losing - gaining).mean())
    return Outlook(flips, float(value), losing, gaining)


def _share_of_first(scores: Scores, change: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """(n,): how much of a flip goes to the first runner-up."""
    if scores.kind != "margin":
        return np.ones(len(gaps))
    odds = ndtr(-gaps / _spread(change))
    total = odds.sum(1)
    return np.where(total > 0, odds[:, 0] / np.where(total > 0, total, 1.0), 1.0)


def predicted_interval(found: Outlook, error: ErrorModel, metric: Metric, images: int) -> Interval:
    """Between what and what the degradation measured on these images will lie, either end at 95 %."""
    if np.isnan(found.lost):
        return Interval(np.nan, np.nan, np.nan)
    low, high = error.range(found.lost)
    gain_low, gain_high = error.range(found.gained)
    factor = metric.scale / images
    return Interval(
        factor * (found.lost - found.gained),
        factor * (low - gain_high),
        factor * min(high - gain_low, float(images)),
    )


def population_interval(found: Outlook, error: ErrorModel, metric: Metric, images: int, level: float) -> Interval:
    """Interval of the degradation that is predicted, as one would be of a measurement of it on so many images.

    It holds both what a measurement may turn out to be and that its images are a sample: from the lower end
    of the score interval of the least loss that is to be expected to the upper end of that of the greatest, all
    at ``level``. For scores of 0 and 1 under a linear metric. NaN where the screen cannot say.
    """
    if np.isnan(found.lost):
        return Interval(np.nan, np.nan, np.nan, level)
    gained = min(round(found.gained), images)
    either_end = (1.0 + level) / 2.0
    low, high = (min(round(end), images - gained) for end in error.range(found.lost, either_end=either_end))
    least, most = (
        significance.paired_proportions(lost, gained, images, level).scaled(metric.scale) for lost in (low, high)
    )
    return Interval(metric.scale * (found.lost - found.gained) / images, least.low, most.high, level)


def standing_verdict(
    found: Outlook,
    error: ErrorModel,
    metric: Metric,
    images: int,
    *,
    level: float,
    cells: int,
    tolerance: float,
    seen: Seen | None = None,
) -> Verdict | None:
    """The verdict that measuring every image would give among ``cells``, where there is no doubt; else None.

    For scores of 0 and 1: that of the score interval at both ends of the range of lost images, with the
    predicted number of gained ones; where some images were ``seen``, of what they did and the others are
    expected to. None for other metrics.
    """
    if np.isnan(found.lost):
        return None
    if seen is None:
        gained, bounds = round(found.gained), error.range(found.lost)
    else:
        gained = round(seen.gained + found.gaining[~seen.images].sum())
        bounds = error.range_of_rest(found, seen)
    corrected = significance.corrected_level(level, cells)
    ends = {
        significance.verdict(
            significance.paired_proportions(lost, min(gained, images - lost), images, corrected).scaled(metric.scale),
            tolerance,
        )
        for lost in (min(round(end), images) for end in bounds)
    }
    return ends.pop() if len(ends) == 1 else None
