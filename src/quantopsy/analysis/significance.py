"""How sure a measured difference is: intervals, verdicts over many cells, importance-weighted estimates.

Letters: n images, K statistics per image, R resamples, m cells looked at together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.stats import binomtest, gamma, kurtosis, norm, t

from quantopsy.core.recipe import Estimate
from quantopsy.metrics import Metric

RESAMPLES = 2000

# Weights of so many resamples and images are in memory at a time.
_CHUNK = 4_000_000

# The jackknife behind BCa leaves out one of at most so many groups of images.
_JACKKNIFE_GROUPS = 100

# With fewer images a bootstrap is too sure: its resamples know nothing of what so few did not show.
_FEW = 30

# What rounding makes of a difference, as a share of what is subtracted.
_ROUNDING = 1e-12

# Resamples that must lie outside a bootstrap's interval, for its quantiles to be told.
_OUTSIDE = 10

Verdict = Literal["hurts", "harmless", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval ``low`` to ``high`` of coverage ``level`` around the estimate ``value``."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level must be between 0 and 1, not {self.level}")

    @property
    def estimate(self) -> Estimate:
        """``(value, low, high)``, as recipes keep it."""
        return self.value, self.low, self.high

    def scaled(self, factor: float) -> Interval:
        """The interval of ``factor`` times the quantity."""
        low, high = sorted((factor * self.low, factor * self.high))
        return Interval(factor * self.value, low, high, self.level)


def degradation(
    metric: Metric,
    float_statistics: np.ndarray,
    quantized_statistics: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """By how much the metric is worse quantized than float, over the same images (n, K); positive is worse.

    metric(float) - metric(quantized), the other way round where lower is better. Scores that are all
    0 or 1 under a linear metric get Tango's score interval, anything else a paired BCa bootstrap, of few
    images widened to Student's. Of a single image nothing is certain: the interval is infinite.
    """
    _check_paired(float_statistics, quantized_statistics)
    if metric.linear and is_binary(float_statistics) and is_binary(quantized_statistics):
        before, after = float_statistics[:, 0], quantized_statistics[:, 0]
        lost, gained = int((before > after).sum()), int((after > before).sum())
        return paired_proportions(lost, gained, len(before), level).scaled(metric.sign * metric.scale)
    return _bootstrap(metric, [float_statistics], [quantized_statistics], level, resamples, seed).scaled(metric.sign)


def change_of_degradation(
    metric: Metric,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """By how much more the metric loses ``after`` than ``before``, over the same images; positive is worse.

    Each a pair of statistics (n, K), float and quantized. Where both float networks score alike it is the
    difference of the quantized ones, see :func:`degradation`. Else, of scores that are 0 or 1 under a linear
    metric, the difference of two degradations, correlated as their images say (:func:`difference`,
    :func:`correlation`); anything else gets a BCa bootstrap.
    """
    _check_paired(*before)
    _check_paired(before[0], after[0])
    _check_paired(*after)
    if np.array_equal(before[0], after[0]):
        return degradation(metric, before[1], after[1], level=level, seed=seed)
    if metric.linear and all(map(is_binary, (*before, *after))):
        lost = [(float_scores - quantized)[:, 0] for float_scores, quantized in (before, after)]
        mine, other = (degradation(metric, *pair, level=level) for pair in (before, after))
        return difference(other, mine, correlation(*lost))
    plus, minus = [after[0], before[1]], [after[1], before[0]]
    return _bootstrap(metric, plus, minus, level, RESAMPLES, seed).scaled(metric.sign)


def difference(after: Interval, before: Interval, correlation: float = 0.0) -> Interval:
    """``after`` - ``before`` from the interval of each, of equal level, and how the two estimates correlate.

    Distances d of each end from its estimate combine as sqrt(d_1^2 - 2 r d_1 d_2 + d_2^2): the method of
    variance estimates recovered (G. Zou, A. Donner, Statistics in Medicine 27 (2008) 1693-1702). It keeps the
    asymmetry of the intervals, and a width where nothing was seen to differ. An infinite end stays infinite.
    """
    if after.level != before.level:
        raise ValueError(f"intervals of equal level are needed, not {after.level} and {before.level}")

    def reach(first: float, second: float) -> float:
        if np.isinf(first) or np.isinf(second):
            return float("inf")
        return float(np.sqrt(max(0.0, first**2 - 2.0 * correlation * first * second + second**2)))

    value = after.value - before.value
    return Interval(
        value,
        value - reach(after.value - after.low, before.high - before.value),
        value + reach(after.high - after.value, before.value - before.low),
        after.level,
    )


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of counts (n,) over images, a positive covariance made smaller by half an image.

    The continuity correction of R. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10: a single
    image that both count says little. 0 where either is constant.
    """
    a, b = first - first.mean(), second - second.mean()
    together, size = float(a @ b), float(np.sqrt((a @ a) * (b @ b)))
    if size == 0.0:
        return 0.0
    return min(max(0.0, together - 0.5) if together > 0.0 else together, size) / size


def decibels(above: Sequence[np.ndarray], below: Sequence[np.ndarray], *, level: float = 0.95) -> Interval:
    """10 log10 of the product of means ``above`` over that of the means ``below``, all (n,) of the same images.

    Noise over signal of a study in decibels, or that of one study over that of another. By the delta
    method: an image adds z = sum(x / mean(x)) - sum(y / mean(y)) to the logarithm. The interval is Student's
    with 2 n / (kurtosis(z) - 1) degrees of freedom, as many as the estimated variance is worth (F. Satterthwaite,
    Biometrics Bulletin 2 (1946) 110-114): a few loud images widen it. A mean of exactly zero has no
    logarithm: infinite, or 0 where both sides have one.
    """
    means = [[float(x.mean()) for x in side] for side in (above, below)]
    up, down = (sum(mean == 0.0 for mean in side) for side in means)
    if up or down:
        value = 0.0 if up == down else float("-inf") if up > down else float("inf")
        return Interval(value, value, value, level)
    value = float(np.log(means[0]).sum() - np.log(means[1]).sum())
    z = sum(x / x.mean() for x in above) - sum(y / y.mean() for y in below)
    reach = _student_reach(np.asarray(z), level)
    factor = 10.0 / float(np.log(10.0))
    return Interval(factor * value, factor * (value - reach), factor * (value + reach), level)


def _student_reach(z: np.ndarray, level: float) -> float:
    """Half the width of an interval of the mean of z (n,)."""
    n = len(z)
    if n < 2:
        return float("inf")
    if z.min() == z.max():
        return 0.0
    _, stderr = mean_stderr(z)
    # A kurtosis of 1, two values equally often, is the least there is.
    freedom = np.clip(2.0 * n / max(kurtosis(z, fisher=False) - 1.0, _ROUNDING), 1.0, n - 1.0)
    return float(t.isf((1.0 - level) / 2.0, freedom)) * stderr


def is_binary(statistics: np.ndarray) -> bool:
    """Whether statistics (n, K) are one column of zeros and ones."""
    return statistics.shape[1] == 1 and bool(np.isin(statistics, (0.0, 1.0)).all())


def paired_proportions(lost: int, gained: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of the difference (lost - gained) / n of paired proportions.

    The set of d with |lost - gained - n d| <= z sqrt(n (2 q(d) + d (1 - d))), where q(d) is the
    maximum-likelihood estimate of P(gained) given the difference d. T. Tango, Statistics in Medicine
    17 (1998) 891-908, equations 24 to 26. Without a discordant pair it is +- z^2 / (n + z^2).
    """
    if lost < 0 or gained < 0 or lost + gained > n or n < 1:
        raise ValueError(f"{lost} lost and {gained} gained of {n} are no paired counts")
    z = float(norm.isf((1.0 - level) / 2.0))
    value = (lost - gained) / n
    # Both ends at once by bisection: the score is monotone in d on either side of the estimate.
    inside = np.array([value, value])
    outside = np.array([-1.0, 1.0])
    for _ in range(60):
        middle = (inside + outside) / 2.0
        within = np.abs(_tango_score(middle, lost, gained, n)) <= z
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    return Interval(value, float(outside[0]), float(outside[1]), level)


def _tango_score(difference: np.ndarray, lost: int, gained: int, n: int) -> np.ndarray:
    a = 2.0 * n
    b = -lost - gained + (2.0 * n - lost + gained) * difference
    c = -gained * difference * (1.0 - difference)
    q = (np.sqrt(np.maximum(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * q + difference * (1.0 - difference))
    numerator = lost - gained - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        score = numerator / np.sqrt(np.maximum(variance, 0.0))
    return np.where(numerator == 0.0, 0.0, score)


def proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22 (1927) 209-212)."""
    bounds = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), level)


def metric_interval(
    metric: Metric, statistics: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The value of the metric itself over images with ``statistics`` (n, K): Wilson's, or a BCa bootstrap."""
    if metric.linear and is_binary(statistics):
        return proportion(int(statistics.sum()), len(statistics), level).scaled(metric.scale)
    return _bootstrap(metric, [statistics], [], level, resamples, seed)


def mean_stderr(x: np.ndarray) -> tuple[float, float]:
    """Mean of x (n,) and its standard error s / sqrt(n); NaN for the error of a single value."""
    x = np.asarray(x, dtype=np.float64)
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray, level: float) -> Interval:
    """mean(numerator) / mean(denominator) of paired samples (n,), with the delta method's interval."""
    bottom = float(denominator.mean())
    if bottom <= 0.0:
        return Interval(1.0, 1.0, 1.0, level)
    ratio = float(numerator.mean()) / bottom
    _, stderr = mean_stderr((numerator - ratio * denominator) / bottom)
    reach = float(norm.ppf(0.5 + level / 2)) * stderr
    return Interval(ratio, ratio - reach, ratio + reach, level)


def bootstrap_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n images is drawn in each of ``resamples`` draws of n with replacement: (R, n)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _bootstrap(
    metric: Metric,
    plus: Sequence[np.ndarray],
    minus: Sequence[np.ndarray],
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """BCa interval of the metric over ``plus`` less that over ``minus``, all statistics (n, K) of the same images.

    B. Efron, JASA 82 (1987) 171-185; the acceleration by a jackknife over groups of images. Where so few
    resamples lie outside an interval of ``level`` that its ends cannot be told, those of the farthest that
    can be told are moved out as a normal distribution's would be. Of few images it is at least as wide as
    Student's of the jackknife's pseudo-values, which for a linear metric are the images' own.
    """

    terms = [*((1.0, x) for x in plus), *((-1.0, x) for x in minus)]
    if metric.linear:
        # One column of differences says it all, at half the work.
        terms = [(1.0, np.sum([sign * x for sign, x in terms], axis=0))]
    parts = [(sign, _resampled(_Sample(metric, x), resamples, seed)) for sign, x in terms]
    value, found, left_out = (np.sum([sign * part[i] for sign, part in parts], axis=0) for i in range(3))
    value, n = float(value[0]), len(plus[0])
    if n < 2:
        return Interval(value, -np.inf, np.inf, level)
    found = found[np.isfinite(found)]  # undefined where a resample lacks a class, say
    if not found.size or np.ptp(found) <= _ROUNDING * abs(metric.scale) * max(np.abs(x).max() for x in (*plus, *minus)):
        reach = _unseen(metric, (*plus, *minus), level)
        return Interval(value, value - reach, value + reach, level)
    # Ties with the estimate count half: a difference that is mostly zero has many.
    below = np.mean(found < value) + 0.5 * np.mean(found == value)
    bias = norm.ppf(np.clip(below, 0.5 / resamples, 1.0 - 0.5 / resamples))
    away = left_out.mean() - left_out
    norm_away = np.sum(away**2) ** 1.5
    acceleration = np.sum(away**3) / (6.0 * norm_away) if norm_away > 0 else 0.0
    told = min(level, max(0.5, 1.0 - _OUTSIDE / len(found)))
    z = bias + norm.ppf([(1.0 - told) / 2.0, (1.0 + told) / 2.0])
    low, high = np.quantile(found, norm.cdf(bias + z / (1.0 - acceleration * z)))
    farther = float(norm.isf((1.0 - level) / 2.0) / norm.isf((1.0 - told) / 2.0))
    # Where leaving one out leaves the metric undefined, nothing is certain either.
    reach = float(np.nan_to_num(_student_reach((n - 1) * away, level), nan=np.inf, posinf=np.inf)) if n < _FEW else 0.0
    return Interval(
        value,
        value - max(farther * (value - float(low)), reach),
        value + max(farther * (float(high) - value), reach),
        level,
    )


class _Sample:
    """Statistics (n, K) under a metric; the same ones under the same metric are equal."""

    def __init__(self, metric: Metric, statistics: np.ndarray) -> None:
        self.metric, self.statistics = metric, statistics
        self._key = id(metric), statistics.shape, hashlib.sha256(statistics.tobytes()).digest()

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sample) and self._key == other._key


# A torchmetric takes a tenth of a second for this; every cell has the float network's, and each is asked at two levels.
@lru_cache(maxsize=8)
def _resampled(sample: _Sample, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The metric of all images (1,), of every resample (R,), and without each group of the jackknife (G,)."""
    metric, statistics = sample.metric, sample.statistics
    n = len(statistics)
    value = metric.values(statistics, np.ones((1, n)))
    if n < 2:
        return value, np.empty(0), np.empty(0)
    rows = max(1, _CHUNK // n)
    parts = [(start, min(rows, resamples - start)) for start in range(0, resamples, rows)]
    found = [metric.values(statistics, bootstrap_counts(n, count, seed + start)) for start, count in parts]
    groups = np.arange(n) % min(n, _JACKKNIFE_GROUPS)
    left_out = metric.values(statistics, (groups[None] != np.unique(groups)[:, None]).astype(np.float64))
    return value, np.concatenate(found), left_out


def _unseen(metric: Metric, statistics: Sequence[np.ndarray], level: float) -> float:
    """Half the width of an interval of what was the same on each of n images, which have ``statistics`` (n, K).

    As :func:`paired_proportions` without a discordant pair, z^2 / (n + z^2): so large a share of images may be
    another way, by as much as images' scores span. Scores that are many and all different would have shown any
    change and leave no width, and neither do pixels counted over many images.
    """
    n = len(statistics[0])
    if n >= _FEW and (not metric.linear or any(len(np.unique(x)) == n for x in statistics)):
        return 0.0
    alone = [metric.scale * x if metric.linear else metric.values(x, n * np.eye(n)) for x in statistics]
    span = abs(float(max(x.max() for x in alone) - min(x.min() for x in alone)))
    if not span > 0.0:
        return float("inf") if n < _FEW else 0.0
    z2 = float(norm.isf((1.0 - level) / 2.0)) ** 2
    return span * z2 / (n + z2)


def corrected_level(level: float, m: int) -> float:
    """The level of each of ``m`` intervals that hold together at ``level`` (Bonferroni)."""
    if m < 1:
        raise ValueError(f"m must be at least 1, not {m}")
    return 1.0 - (1.0 - level) / m


def verdict(interval: Interval, tolerance: float = 0.0) -> Verdict:
    """What an interval of a degradation says, ``tolerance`` being the loss that is accepted, in its units.

    ``harmless`` where no more than that is possible, ``hurts`` where some loss is certain, else
    ``undecided``. For a verdict among many cells give intervals of :func:`corrected_level`.
    """
    if tolerance < 0.0:
        raise ValueError(f"tolerance must not be negative, it is {tolerance}")
    if interval.high <= tolerance:
        return "harmless"
    return "hurts" if interval.low > 0.0 else "undecided"


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values (m,) adjusted for looking at all of them (S. Holm, Scand. J. Statistics 6 (1979) 65-70).

    Calling guilty what is at most alpha errs anywhere with probability at most alpha, whatever the
    dependence between cells. Never less powerful than Bonferroni's m p.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def sampling_probabilities(risk: np.ndarray, budget: float, floor: float = 0.5) -> np.ndarray:
    """Inclusion probabilities (n,) that grow with predicted ``risk`` >= 0 and add up to ``budget``.

    A share ``floor`` of the budget is spread evenly, so that an image whose risk was predicted as
    zero can still be drawn and the estimate stays unbiased; the rest is in proportion to risk. What
    exceeds 1 is capped and handed to the others. Half is a defence against a wrong prediction: no
    weight is then above 2 n / budget. With a fifth, 95 % intervals of :func:`importance_weighted`
    held only 91 % of the time where risk said nothing, and were no narrower where it was right.
    """
    risk = np.asarray(risk, dtype=np.float64)
    n = len(risk)
    if not (np.isfinite(risk).all() and (risk >= 0).all()):
        raise ValueError("risk must be finite and not negative")
    if budget <= 0.0 or not 0.0 < floor <= 1.0:
        raise ValueError(f"budget must be positive and floor in (0, 1], they are {budget} and {floor}")
    if budget >= n:
        return np.ones(n)
    total = risk.sum()
    wanted = risk / total if total > 0 else np.full(n, 1.0 / n)
    size = floor / n + (1.0 - floor) * wanted
    capped = np.zeros(n, dtype=bool)
    while True:
        probability = np.where(capped, 1.0, size * (budget - capped.sum()) / size[~capped].sum())
        over = probability > 1.0
        if not over.any():
            return probability
        capped |= over


def draw(probabilities: np.ndarray, seed: int) -> np.ndarray:
    """Indices drawn independently of each other, image i with ``probabilities[i]`` (Poisson sampling).

    Independence makes the variance of the estimate known without pairwise probabilities; the number
    drawn is random with mean ``probabilities.sum()``.
    """
    return np.flatnonzero(np.random.default_rng(seed).random(len(probabilities)) < probabilities)


def importance_weighted(
    sampled: np.ndarray, indices: np.ndarray, probabilities: np.ndarray, level: float = 0.95
) -> Interval:
    """Mean over all n images of a per-image difference, unbiased, from the images that were drawn.

    ``sampled`` (k,) are the differences at ``indices`` (k,), which :func:`draw` gave for
    ``probabilities`` (n,). Estimate: sum(x / p) / n (D. Horvitz, D. Thompson, JASA 47 (1952) 663-685),
    variance sum((1 - p) (x / p)^2) / n^2.

    The interval holds the mean over these n images. Losses and gains are rare and their weights
    unequal, so each gets a gamma interval (M. Fay, E. Feuer, Statistics in Medicine 16 (1997)
    791-801). Its upper end allows for one more event, with the mean weight of those seen or of all
    draws, whichever is larger, and so it has a width also where no difference was seen. The two
    combine by squares as in Newcombe's method.
    Images of probability 1 are known and add no width.
    """
    x, p = np.asarray(sampled, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if not ((p > 0) & (p <= 1)).all() or x.shape != np.shape(indices):
        raise ValueError("every image needs an inclusion probability in (0, 1], every index its value")
    n, drawn = len(p), p[indices]
    share = x / drawn / n
    value = float(share.sum())
    uncertain = p < 1.0
    if not uncertain.any():
        return Interval(value, value, value, level)
    largest = float(np.abs(x).max(initial=0.0)) or 1.0
    further = largest * uncertain.sum() / p[uncertain].sum() / n
    loose = drawn < 1.0
    lost, lost_low, lost_high = _gamma_interval(share[loose & (x > 0)], drawn[loose & (x > 0)], further, level)
    gained, gained_low, gained_high = _gamma_interval(-share[loose & (x < 0)], drawn[loose & (x < 0)], further, level)
    low = value - float(np.hypot(lost - lost_low, gained_high - gained))
    high = value + float(np.hypot(lost_high - lost, gained - gained_low))
    return Interval(value, low, high, level)


def _gamma_interval(share: np.ndarray, p: np.ndarray, further: float, level: float) -> tuple[float, float, float]:
    """The sum of positive ``share`` of events drawn with ``p``, and its gamma bounds."""
    alpha = (1.0 - level) / 2.0
    total, variance = float(share.sum()), float(np.sum((1.0 - p) * share**2))
    further = max(further, total / len(share)) if len(share) else further
    low = gamma.ppf(alpha, total**2 / variance, scale=variance / total) if variance > 0 else total
    total_up, variance_up = total + further, variance + further**2
    high = gamma.isf(alpha, total_up**2 / variance_up, scale=variance_up / total_up)
    return total, float(low), float(high)


def _check_paired(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 2 or not len(first):
        raise ValueError(f"statistics of the same images are needed, not {first.shape} and {second.shape}")
