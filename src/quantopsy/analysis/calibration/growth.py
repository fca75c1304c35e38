"""How ranges, and what they cost, grow with the number of calibration images: subsets, coverage, what to run next.

V activations, N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def default_sizes(images: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all ``images``."""
    doubling = [2**power for power in range(max(images, 1).bit_length()) if 2**power < images]
    return (*doubling, images)


def subset(pool: np.ndarray, size: int, draw: int, seed: int) -> np.ndarray:
    """``size`` of the images ``pool``, ascending. Of one ``draw`` the smaller subsets are parts of the larger ones."""
    order = np.random.default_rng([seed, draw]).permutation(len(pool))
    return np.sort(pool[order[:size]])


def coverage(ranges: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(V,): the share of each ``reference`` range (V, 2) that ``ranges`` (V, 2) cover."""
    low, high = np.maximum(ranges[:, 0], reference[:, 0]), np.minimum(ranges[:, 1], reference[:, 1])
    width = reference[:, 1] - reference[:, 0]
    shared = np.maximum(high - low, 0.0)
    share: np.ndarray = np.divide(shared, width, out=np.ones_like(width), where=width > 0)
    return share


def beyond(ranges: np.ndarray, low: np.ndarray, high: np.ndarray, steps: int) -> np.ndarray:
    """(n, V): whether an image with extremes ``low`` and ``high`` (n, V) lies beyond, by over a step of the grid."""
    step = (ranges[:, 1] - ranges[:, 0]) / steps
    outside: np.ndarray = (low < ranges[:, 0] - step) | (high > ranges[:, 1] + step)
    return outside


def chance(size: int) -> float:
    """The chance that an image is beyond one end of the range of ``size`` others that are like it: 1 / (n + 1)."""
    return 1.0 / (size + 1)


def next_size(sizes: Sequence[int], passed: Mapping[int, bool]) -> int | None:
    """Which of ``sizes`` (ascending) tells most of where they begin to do, given which of them did; None when known.

    The largest first: it says whether there are enough at all. Then halving, as whoever passes passes with more.
    """
    if not sizes:
        return None
    if sizes[-1] not in passed:
        return sizes[-1]
    if not passed[sizes[-1]]:
        return None
    failed = [place for place, size in enumerate(sizes) if not passed.get(size, True)]
    low = failed[-1] + 1 if failed else 0
    high = min(place for place, size in enumerate(sizes) if passed.get(size) and place >= low)
    return None if low == high else sizes[(low + high) // 2]


def needed(sizes: Sequence[int], passed: Mapping[int, bool]) -> int | None:
    """The least of ``sizes`` from which on all that were measured do; None where the largest does not."""
    found = None
    for size in sorted(sizes, reverse=True):
        if not passed.get(size, True):
            break
        if size in passed:
            found = size
    return found
