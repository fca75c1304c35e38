"""Whether two sets of images went through the same preprocessing: value range, mean and spread, order of channels.

n calibration images, m evaluation images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from scipy.special import gammaln
from scipy.stats import mannwhitneyu, multivariate_t, t

from quantopsy.analysis.significance import holm
from quantopsy.engine.image_statistics import Moments

FALSE_ALARM = 0.01
"""How often two sets that are alike may be called different, by each of the three tests."""

LARGE = 0.71
"""Chance that an image of one set has more of something than one of the other, from which the difference is a large
one (A. Vargha, H. Delaney, J. Educational and Behavioral Statistics 25 (2000) 101-132)."""

_DEGREES = 5
_MOST_CHANNELS = 4
_LEAST_IMAGES = 8

_ROUNDING = (1.0 / 255.0) ** 2 / 12.0
"""Variance of an 8-bit pixel's rounding in units of its range: channels of grey pictures differ by no more."""


@dataclass(frozen=True)
class Channel:
    """One channel of both sets, calibration first: the least and greatest value of the set, and of the single
    images' means and standard deviations the medians.

    ``beyond``: (images of either set beyond all of the other below, above), each by more than a step of the grid;
    ``brighter`` and ``wider``: the chance that a calibration image has a greater mean, standard deviation than an
    evaluation image. The p-values are corrected for all channels of the input.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    mean: tuple[float, float]
    std: tuple[float, float]
    below: tuple[int, int]
    above: tuple[int, int]
    range_p: float
    brighter: float
    wider: float
    location_p: float

    @property
    def gain(self) -> float:
        """a of x' = a x + b, which would turn the evaluation images' values into the calibration images'."""
        return self.std[0] / self.std[1] if self.std[1] > 0 else float("nan")

    @property
    def offset(self) -> float:
        """b of it."""
        return self.mean[0] - self.gain * self.mean[1]


@dataclass(frozen=True)
class Order:
    """Which channel of the evaluation images each channel of the calibration images is most like.

    ``known``: whether the evaluation images tell one order from another at all. ``p_value``: of the order that both
    sets have in common, corrected for all others. ``before``: whether the channels changed places before they were
    normalised; None where that is all the same.
    """

    channels: tuple[int, ...]
    known: bool
    p_value: float
    before: bool | None = None

    @property
    def swapped(self) -> bool:
        """Whether it is another order."""
        return self.channels != tuple(range(len(self.channels)))


@dataclass(frozen=True)
class Shift:
    """How the calibration images of one input differ from the evaluation images as a whole."""

    name: str
    channels: tuple[Channel, ...]
    order: Order | None

    @property
    def range_differs(self) -> bool:
        """Whether more images lie beyond all of the other set than chance allows."""
        return any(channel.range_p < FALSE_ALARM for channel in self.channels)

    @property
    def location_differs(self) -> bool:
        """Whether brightness or contrast are certain to differ, and by a large effect."""
        return any(
            channel.location_p < FALSE_ALARM and _effect(max(channel.brighter, channel.wider, key=_effect)) >= LARGE
            for channel in self.channels
        )

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return self.range_differs or self.location_differs or (self.order is not None and self.order.swapped)


def compare_inputs(name: str, mine: Moments, theirs: Moments, steps: int) -> Shift:
    """The calibration images ``mine`` of the input ``name`` against the evaluation images ``theirs``.

    ``steps`` of the grid that activations are put on: a difference of ends by less than one of them is none. Where
    the channels are in another order the rest is told of them put right, or as they are where their ranges fit so:
    then they changed places before each was normalised in its own way.
    """
    order = channel_order(mine, theirs)
    as_is = Shift(name, _channels(mine, theirs, steps), order)
    if order is None or not order.swapped:
        return as_is
    back = np.argsort(order.channels)
    turned = Moments(mine.low[:, back], mine.high[:, back], mine.mean[:, back], mine.std[:, back])
    put_right = Shift(name, _channels(turned, theirs, steps), replace(order, before=False))
    if not put_right.range_differs:
        return put_right if as_is.range_differs else replace(put_right, order=order)
    return put_right if as_is.range_differs else replace(as_is, order=replace(order, before=True))


def _channels(mine: Moments, theirs: Moments, steps: int) -> tuple[Channel, ...]:
    count = mine.low.shape[1]
    n, m = len(mine), len(theirs)
    found = []
    for c in range(count):
        step = float(theirs.high[:, c].max() - theirs.low[:, c].min()) / steps
        above = exceeding(mine.high[:, c], theirs.high[:, c], step)
        below = exceeding(-mine.low[:, c], -theirs.low[:, c], step)
        logs = [exceedance_log_p(k, *sizes) for k, sizes in ((above[0], (n, m)), (below[0], (n, m)))]
        logs += [exceedance_log_p(k, *sizes) for k, sizes in ((above[1], (m, n)), (below[1], (m, n)))]
        brighter, brighter_p = superiority(mine.mean[:, c], theirs.mean[:, c])
        wider, wider_p = superiority(mine.std[:, c], theirs.std[:, c])
        found.append(
            (
                Channel(
                    low=(float(mine.low[:, c].min()), float(theirs.low[:, c].min())),
                    high=(float(mine.high[:, c].max()), float(theirs.high[:, c].max())),
                    mean=(float(np.median(mine.mean[:, c])), float(np.median(theirs.mean[:, c]))),
                    std=(float(np.median(mine.std[:, c])), float(np.median(theirs.std[:, c]))),
                    below=below,
                    above=above,
                    range_p=min(1.0, 4 * count * float(np.exp(min(logs)))),
                    brighter=brighter,
                    wider=wider,
                    location_p=1.0,
                ),
                (brighter_p, wider_p),
            )
        )
    adjusted = holm(np.array([p for _, pair in found for p in pair])).reshape(-1, 2)
    # The p-value that counts is the one of the larger effect.
    return tuple(
        Channel(**{**vars(channel), "location_p": float(pair[int(_effect(channel.wider) > _effect(channel.brighter))])})
        for (channel, _), pair in zip(found, adjusted, strict=True)
    )


def _effect(chance: float) -> float:
    return max(chance, 1.0 - chance)


def exceeding(mine: np.ndarray, theirs: np.ndarray, margin: float = 0.0) -> tuple[int, int]:
    """How many of ``mine`` are above all of ``theirs`` by more than ``margin``, and the other way round."""
    return int((mine > theirs.max() + margin).sum()), int((theirs > mine.max() + margin).sum())


def exceedance_log_p(k: int, n: int, m: int) -> float:
    """Logarithm of the chance that at least ``k`` of ``n`` images exceed all of ``m`` others that are like them.

    Of all orders of the n + m images, those where the k largest are among the n: n! (n + m - k)! / ((n - k)! (n + m)!)
    (P. Rosenbaum, Annals of Mathematical Statistics 25 (1954) 146-150). Exact; ties make it conservative.
    """
    return float(gammaln(n + 1) - gammaln(n - k + 1) + gammaln(n + m - k + 1) - gammaln(n + m + 1))


def superiority(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The chance that one of ``mine`` is above one of ``theirs``, and the p-value that it is 1/2 (Mann and Whitney)."""
    if mine.min() == mine.max() == theirs.min() == theirs.max():
        return 0.5, 1.0
    found = mannwhitneyu(mine, theirs)
    return float(found.statistic) / (len(mine) * len(theirs)), float(found.pvalue)


def channel_order(mine: Moments, theirs: Moments) -> Order | None:
    """Which order of channels makes the calibration images most like the evaluation images; None for 1 or above 4.

    Means and standard deviations of an image's channels are taken as multivariate t with 5 degrees of freedom, fitted
    to the evaluation images. Another order is believed where the mean gain in log-likelihood over the images is above
    zero, one-sided, corrected for all orders: where the order is right the gain is below zero, so that false alarms
    are rarer still. Whether it is below zero is tested on the evaluation images themselves, halves fitted to halves:
    where it is not, as with grey pictures, no order is ``known``.

    Values are taken in units of each set's own range, so that a wrong scale does not look like a wrong order, and an
    order changed before normalising shows as one changed after it.
    """
    channels = mine.low.shape[1]
    features = 2 * channels
    if not 2 <= channels <= _MOST_CHANNELS or len(mine) < _LEAST_IMAGES or len(theirs) < 4 * features:
        return None
    a, b = _pixels(mine), _pixels(theirs)
    if a is None or b is None:
        return None
    orders = [order for order in permutations(range(channels)) if order != tuple(range(channels))]
    halves = np.arange(len(b)) % 2 == 0
    right = tuple(range(channels))
    level = FALSE_ALARM / len(orders)
    for order in orders:
        own = np.concatenate([_gain(b[halves], b[~halves], order), _gain(b[~halves], b[halves], order)])
        if not _believed(-own) < level:
            return Order(right, known=False, p_value=1.0)
    tested = [(_believed(gain), float(gain.mean()), order) for order, gain in ((o, _gain(a, b, o)) for o in orders)]
    p = min(1.0, min(p for p, _, _ in tested) * len(orders))
    if p >= FALSE_ALARM:
        return Order(right, known=True, p_value=p)
    _, _, best = max(tested, key=lambda entry: entry[1])
    # ``best`` says which calibration channel stands for each evaluation channel; asked for is the inverse.
    return Order(tuple(map(int, np.argsort(best))), known=True, p_value=p)


def _pixels(moments: Moments) -> np.ndarray | None:
    """(n, 2 C): means and standard deviations of the channels in units of the set's range; None where it has none.

    The ends are what a tenth of the images reach, lest a single bright image should set the scale.
    """
    low, high = np.quantile(moments.low, 0.1, axis=0), np.quantile(moments.high, 0.9, axis=0)
    width = high - low
    if not (width > 0).all():
        return None
    return np.concatenate([(moments.mean - low) / width, moments.std / width], axis=1)


def _gain(x: np.ndarray, reference: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """(n,): log-likelihood of ``x`` with its channels in another order, less that of ``x`` as it is."""
    columns = [*order, *(channel + len(order) for channel in order)]
    covariance = np.cov(reference.T) * (_DEGREES - 2) / _DEGREES
    covariance += _ROUNDING * np.eye(len(covariance))
    law = multivariate_t(reference.mean(axis=0), covariance, df=_DEGREES)
    gain: np.ndarray = np.atleast_1d(law.logpdf(x[:, columns])) - np.atleast_1d(law.logpdf(x))
    return gain


def _believed(gain: np.ndarray) -> float:
    """p-value that gains in log-likelihood (n,) are none: the larger one of two.

    Student's, one-sided, that their mean is not above zero, which holds whatever the law; and exp(-sum), by which a
    likelihood ratio exceeds 1 (Markov), lest a consistent gain of nothing should count.
    """
    spread, n = gain.std(ddof=1), len(gain)
    student = float(t.sf(gain.mean() / (spread / np.sqrt(n)), n - 1)) if spread > 0 else float(gain.mean() <= 0)
    return max(student, float(np.exp(min(0.0, -gain.sum()))))
