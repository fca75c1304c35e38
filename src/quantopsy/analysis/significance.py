"""How sure a measured difference is: intervals, verdicts over many cells, importance-weighted estimates.

Letters: n images, K statistics per image, R resamples, m cells looked at together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest, gamma, norm

from quantopsy.metrics import Metric

RESAMPLES = 2000

# Weights of so many resamples and images are in memory at a time.
_CHUNK = 4_000_000

# The jackknife behind BCa leaves out one of at most so many groups of images.
_JACKKNIFE_GROUPS = 100

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
    0 or 1 under a linear metric get Tango's score interval, anything else a paired BCa bootstrap.
    """
    _check_paired(float_statistics, quantized_statistics)
    sign = 1.0 if metric.higher_is_better else -1.0
    if metric.linear and is_binary(float_statistics) and is_binary(quantized_statistics):
        before, after = float_statistics[:, 0], quantized_statistics[:, 0]
        lost, gained = int((before > after).sum()), int((after > before).sum())
        return paired_proportions(lost, gained, len(before), level).scaled(sign * metric.scale)
    return _bootstrap(metric, float_statistics, quantized_statistics, level, resamples, seed).scaled(sign)


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
    return _bootstrap(metric, statistics, None, level, resamples, seed)


def mean_stderr(x: np.ndarray) -> tuple[float, float]:
    """Mean of x (n,) and its standard error s / sqrt(n); NaN for the error of a single value."""
    x = np.asarray(x, dtype=np.float64)
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def bootstrap_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n images is drawn in each of ``resamples`` draws of n with replacement: (R, n)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _bootstrap(
    metric: Metric, first: np.ndarray, second: np.ndarray | None, level: float, resamples: int, seed: int
) -> Interval:
    """BCa interval of metric(first) - metric(second), or of metric(first).

    B. Efron, JASA 82 (1987) 171-185; the acceleration by a jackknife over groups of images.
    """
    n = len(first)
    if second is not None and metric.linear:
        # One column of differences says it all, at half the work.
        first, second = first - second, None

    def values(weights: np.ndarray) -> np.ndarray:
        found = metric.values(first, weights)
        return found if second is None else found - metric.values(second, weights)

    value = float(values(np.ones((1, n)))[0])
    rows = max(1, _CHUNK // n)
    parts = [(start, min(rows, resamples - start)) for start in range(0, resamples, rows)]
    found = np.concatenate([values(bootstrap_counts(n, count, seed + start)) for start, count in parts])
    found = found[np.isfinite(found)]  # undefined where a resample lacks a class, say
    if n < 2 or not found.size or found.max() == found.min():
        return Interval(value, value, value, level)
    # Ties with the estimate count half: a difference that is mostly zero has many.
    below = np.mean(found < value) + 0.5 * np.mean(found == value)
    bias = norm.ppf(np.clip(below, 0.5 / resamples, 1.0 - 0.5 / resamples))
    groups = np.arange(n) % min(n, _JACKKNIFE_GROUPS)
    left_out = values((groups[None] != np.unique(groups)[:, None]).astype(np.float64))
    away = left_out.mean() - left_out
    norm_away = np.sum(away**2) ** 1.5
    acceleration = np.sum(away**3) / (6.0 * norm_away) if norm_away > 0 else 0.0
    z = bias + norm.ppf([(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    low, high = np.quantile(found, norm.cdf(bias + z / (1.0 - acceleration * z)))
    return Interval(value, float(low), float(high), level)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value that images are lost and gained equally often (McNemar); 1 without any."""
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


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
