"""The order in which images are taken, so that a run with more of them continues one with fewer."""

from __future__ import annotations

import numpy as np

_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def evenly_spaced_order(n: int) -> np.ndarray:
    """A permutation (n,) of ``range(n)`` of which every prefix is nearly evenly spaced.

    Entry k is the rank of frac(k * golden) among k = 0..n-1. By the three-gap theorem the gaps of
    a prefix then differ by at most a factor of 2.62 (before rounding to whole positions), whatever
    its length. Bit reversal would be as even but takes multiples of powers of two, hence only some
    classes of a data set whose classes alternate.
    """
    fractions = np.arange(n) * _GOLDEN % 1.0
    order = np.empty(n, dtype=np.int64)
    order[np.argsort(fractions, kind="stable")] = np.arange(n)
    return order
