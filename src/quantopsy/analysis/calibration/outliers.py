"""Single images that do not belong: far from what the evaluation images are, setting a range alone, or blank.

n images, m evaluation images, F statistics, V activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantopsy.engine.image_statistics import Moments

FALSE_ALARM = 0.01
"""How often a set like the evaluation images may be said to hold such an image, by each of the two tests."""

_TAIL = 0.1
"""The share of the evaluation images that the law of the tail is fitted to."""

_LEAST_REFERENCE = 50
_FURTHEST = 5
"""So many images at most can set a range together and still be told from a heavy tail."""


@dataclass(frozen=True)
class RangeSetter:
    """``images`` beyond everything else that was seen of an activation: without them its range ends at ``without``
    instead of ``end``. ``p_value`` is corrected for all activations."""

    images: tuple[int, ...]
    activation: int
    end: float
    without: float
    p_value: float

    @property
    def factor(self) -> float:
        """By how much they widen that side of the range."""
        return self.end / self.without


def unlike(statistics: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """p-values (n,) that an image with ``statistics`` (n, F) is one like those of ``reference`` (m, F).

    An image's score is its largest distance from the median of the evaluation images, in units of their spread. The
    logarithms of their k largest scores, a tenth of all, lie above the next one, log u, as exponential ones do (B.
    Hill, Annals of Statistics 3 (1975) 1163-1174), with a mean of ``index``; so, that mean being estimated,
    p = 0.1 (1 + log(score / u) / (k index))^-k, a power of the score and thus no short tail. Corrected for n images
    (Bonferroni). 1 with fewer than 50 evaluation images.
    """
    n, m = len(statistics), len(reference)
    middle, spread = np.median(reference, axis=0), _spread(reference)
    told = spread > 0
    if m < _LEAST_REFERENCE or not told.any():
        return np.ones(n)
    known = (np.abs(reference - middle)[:, told] / spread[told]).max(axis=1)
    score = (np.abs(statistics - middle)[:, told] / spread[told]).max(axis=1)
    k = int(_TAIL * m)
    last, index = _tail(known, k)
    beyond = np.log(np.maximum(score, 1e-300)) - last
    p = np.where(beyond > 0, _TAIL * _survival(beyond, index, k), 1.0)
    corrected: np.ndarray = np.minimum(p * n, 1.0)
    return corrected


def _tail(values: np.ndarray, k: int) -> tuple[float, float]:
    """Of positive values the logarithm of the (k + 1)-th largest, and the mean by which those above it exceed it."""
    top = np.log(-np.sort(-values.astype(np.float64))[: k + 1])
    return float(top[-1]), float(np.mean(top[:-1] - top[-1]))


def _survival(x: np.ndarray, index: float, k: int) -> np.ndarray:
    """P(X > x) of an exponential X whose mean is known from k others."""
    found: np.ndarray = (1.0 + x / (k * index)) ** -k
    return found


def _spread(x: np.ndarray) -> np.ndarray:
    """(F,): standard deviation by the 5th and 95th percentiles, or by all values where those are equal."""
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    spread: np.ndarray = np.where(high > low, (high - low) / 3.29, x.std(axis=0))
    return spread


def range_setters(moments: Moments, reference: Moments, steps: int) -> tuple[RangeSetter, ...]:
    """The few images that set the range of an activation alone, most activations first told apart from a heavy tail.

    Of the largest values of all images the logarithms' gaps, the j-th times j, are exponential with one mean, the
    tail index (A. Renyi 1953; B. Hill, Annals of Statistics 3 (1975) 1163-1174). That is taken from the evaluation
    images' largest tenth, k values, whence P(j gap > t) = (1 + t / (k index))^-k. Tested are the gaps behind the
    first five, where all before the gap are calibration images; corrected for gaps, ends and activations. The index
    is at least a step of the grid, one of ``steps``: many images may reach one and the same bound.
    """
    found: list[RangeSetter] = []
    m = len(reference)
    k = int(_TAIL * m)
    if m < _LEAST_REFERENCE:
        return ()
    sides = ((moments.high, reference.high, 1.0), (-moments.low, -reference.low, -1.0))
    active = [(mine, theirs, sign, _reach(theirs, k)) for mine, theirs, sign in sides]
    tests = sum(int(reach.sum()) for _, _, _, reach in active) * _FURTHEST
    for mine, theirs, sign, reach in active:
        for activation in np.flatnonzero(reach):
            setter = _setter(mine[:, activation], theirs[:, activation], k, tests, 1.0 / steps)
            if setter is not None:
                images, end, without, p = setter
                found.append(RangeSetter(images, int(activation), sign * end, sign * without, p))
    return tuple(found)


def _reach(values: np.ndarray, k: int) -> np.ndarray:
    """(V,): where the largest k + 1 values are positive."""
    reach: np.ndarray = -np.sort(-values, axis=0)[k] > 0
    return reach


def _setter(
    mine: np.ndarray, theirs: np.ndarray, k: int, tests: int, least_index: float
) -> tuple[tuple[int, ...], float, float, float] | None:
    index = max(_tail(theirs, k)[1], least_index)
    order = np.argsort(-mine, kind="stable")[: _FURTHEST + 1]
    best: tuple[int, float, float] | None = None
    for j in range(1, min(_FURTHEST, len(mine)) + 1):
        last = float(mine[order[j - 1]])
        if last <= theirs.max():
            break
        next_one = max(float(theirs.max()), float(mine[order[j]]) if j < len(order) else -np.inf)
        p = tests * float(_survival(np.asarray(j * np.log(last / next_one)), index, k))
        if p < FALSE_ALARM and (best is None or p < best[1]):
            best = j, p, next_one
    if best is None:
        return None
    j, p, without = best
    return tuple(int(i) for i in order[:j]), float(mine[order[0]]), without, p


def blank(inputs: Moments) -> np.ndarray:
    """(n,): whether an image is of one colour, every channel constant."""
    constant: np.ndarray = (inputs.low == inputs.high).all(axis=1)
    return constant
