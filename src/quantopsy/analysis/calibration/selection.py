"""A few images that stand for many, chosen by what they do to the activations.

n images, V activations, F statistics.
"""

from __future__ import annotations

import numpy as np

from quantopsy.engine.image_statistics import Moments


def by_extremes(moments: Moments, count: int) -> np.ndarray:
    """``count`` images (ascending) whose extremes come closest to those of all.

    Greedily the largest sum over activations of what share of either end of the range of all images is reached:
    facility location, a monotone submodular function, of which the greedy choice has at least 1 - 1/e (G. Nemhauser,
    L. Wolsey, M. Fisher, Mathematical Programming 14 (1978) 265-294). Ends that are zero for all count nothing.
    """
    ends = np.maximum(np.concatenate([-moments.low, moments.high], axis=1).astype(np.float64), 0.0)
    width = ends[:, : moments.low.shape[1]].max(axis=0) + ends[:, moments.low.shape[1] :].max(axis=0)
    width = np.where(width > 0, width, 1.0)
    share = ends / np.concatenate([width, width])
    reached = np.zeros(share.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(share))):
        gain = np.maximum(share, reached).sum(axis=1)
        gain[chosen] = -np.inf
        if chosen and np.all(gain <= reached.sum()):
            break
        best = int(gain.argmax())
        chosen.append(best)
        reached = np.maximum(reached, share[best])
    return _filled(chosen, count, moments)


def by_moments(moments: Moments, count: int) -> np.ndarray:
    """``count`` images (ascending) whose mean statistics come closest to those of all.

    Herding (M. Welling, ICML 2009): each next image brings the mean of the chosen ones' standardised extremes and
    means nearest to that of all images.
    """
    return _filled([], count, moments)


def _filled(chosen: list[int], count: int, moments: Moments) -> np.ndarray:
    """``chosen`` and as many by herding as it takes to make ``count``."""
    x = np.concatenate([moments.low, moments.high, moments.mean], axis=1).astype(np.float64)
    spread = x.std(axis=0)
    told = spread > 0
    x = (x[:, told] - x[:, told].mean(axis=0)) / spread[told]
    total = x[chosen].sum(axis=0)
    while len(chosen) < min(count, len(x)):
        distance = (((total + x) / (len(chosen) + 1)) ** 2).sum(axis=1)
        distance[chosen] = np.inf
        best = int(distance.argmin())
        chosen.append(best)
        total += x[best]
    return np.sort(np.array(chosen, dtype=np.int64))
