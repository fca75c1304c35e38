"""Images that are there twice: equal ones by hash, near ones by what they do to the activations.

n images, F statistics of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

FALSE_ALARM = 0.01
"""How often a set of different images may be said to hold a near-duplicate."""

_LEAST_REFERENCE = 50
"""Below so many different evaluation images the law of distances is not known well enough."""

_REFERENCE = 2048
_ROWS = 512


@dataclass(frozen=True)
class Duplicates:
    """Images of a set that say the same twice, by position.

    ``equal`` and ``near``: groups of two or more; a near group is of images that are not equal. ``shared``: those
    that are among the evaluation images too, ``nearly_shared`` those that are nearly. ``distinct`` has one image of
    every group and all others, ascending.
    """

    equal: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]
    shared: tuple[int, ...]
    nearly_shared: tuple[int, ...]
    distinct: np.ndarray


@dataclass(frozen=True)
class DistanceLaw:
    """How far the nearest of many different images is from one: P(distance < r) = 1 - exp(-(r / scale)^shape).

    The least of many independent distances is Weibull distributed where their density near zero is a power of r
    (E. Gumbel, Statistics of Extremes, 1958, section 7.1), here ``shape`` - 1, of ``images`` others.
    """

    scale: float
    shape: float
    images: int

    @classmethod
    def of(cls, nearest: np.ndarray) -> DistanceLaw:
        """The law with the quartiles of ``nearest`` (n,), distances of images of one set to the next of it.

        Quartiles, lest near-duplicates that are in that set already should count.
        """
        low, high = np.quantile(nearest, [0.25, 0.75])
        shape = np.log(np.log(4.0) / np.log(4.0 / 3.0)) / np.log(high / low)
        return cls(float(high / np.log(4.0) ** (1.0 / shape)), float(shape), len(nearest) - 1)

    def threshold(self, pairs: float, expected: float) -> float:
        """The distance below which of so many ``pairs`` of different images only ``expected`` lie."""
        return float(self.scale * (expected * self.images / pairs) ** (1.0 / self.shape))


def equal_images(digests: Sequence[str], other_digests: Sequence[str]) -> Duplicates:
    """Duplicates among images with hashes ``digests``, and with another set, by hash alone."""
    first: dict[str, int] = {}
    same = np.array([first.setdefault(digest, place) for place, digest in enumerate(digests)], dtype=np.int64)
    others = set(other_digests)
    shared = tuple(place for place, digest in enumerate(digests) if digest in others)
    return Duplicates(equal=_together(same), near=(), shared=shared, nearly_shared=(), distinct=np.unique(same))


def with_near(equal: Duplicates, statistics: np.ndarray, others: np.ndarray) -> Duplicates:
    """``equal`` and the near-duplicates by ``statistics`` (n, F); ``others`` (m, F) are of another set's
    images, each once.

    Near is closer, in standardised statistics, than different images come in one of a hundred sets, by the law of
    distances among the others. With fewer than 50 of them none is called near.
    """
    middle, spread = others.mean(axis=0), others.std(axis=0)
    told = spread > 0
    law = _law((others - middle)[:, told] / spread[told]) if len(others) >= _LEAST_REFERENCE and told.any() else None
    distinct = equal.distinct
    if law is None or not distinct.size:
        return equal
    mine, theirs = (statistics[distinct] - middle)[:, told] / spread[told], (others - middle)[:, told] / spread[told]
    within = law.threshold(max(1.0, len(mine) * (len(mine) - 1) / 2), FALSE_ALARM)
    across = law.threshold(len(mine) * len(theirs), FALSE_ALARM)
    pairs = np.concatenate(
        [np.argwhere(distances < within) + np.array([rows[0], 0]) for rows, distances in _distances(mine, mine)]
    )
    group = _groups(len(mine), pairs)
    shared = np.concatenate([(distances < across).any(axis=1) for _, distances in _distances(mine, theirs)])
    nearly = np.setdiff1d(distinct[shared], equal.shared)
    return replace(
        equal,
        near=tuple(tuple(int(distinct[i]) for i in members) for members in _together(group)),
        nearly_shared=tuple(map(int, nearly)),
        distinct=distinct[np.unique(group)],
    )


def _law(others: np.ndarray) -> DistanceLaw | None:
    """From evenly spaced ones of ``others`` (n, F); None where more than a quarter is there twice."""
    sample = others[np.linspace(0, len(others) - 1, min(len(others), _REFERENCE)).round().astype(np.int64)]
    nearest = np.empty(len(sample))
    for rows, distances in _distances(sample, sample):
        distances[np.arange(len(rows)), rows] = np.inf
        nearest[rows] = distances.min(axis=1)
    low, high = np.quantile(nearest, [0.25, 0.75])
    return DistanceLaw.of(nearest) if 0 < low < high else None


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Root mean square differences between rows of ``a`` and of ``b``, some rows at a time: (rows, (k, len(b)))."""
    norms = (b**2).sum(axis=1)
    for start in range(0, len(a), _ROWS):
        part = a[start : start + _ROWS]
        squares = (part**2).sum(axis=1)[:, None] + norms - 2.0 * part @ b.T
        yield np.arange(start, start + len(part)), np.sqrt(np.maximum(squares, 0.0) / a.shape[1])


def _groups(n: int, pairs: np.ndarray) -> np.ndarray:
    """(n,): for every image the least position in its group, ``pairs`` (m, 2) being linked."""
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    least: np.ndarray = np.unique(labels, return_index=True)[1][labels]
    return least


def _together(group: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The groups with two or more members, by their first member."""
    members: dict[int, list[int]] = {}
    for place, label in enumerate(group):
        members.setdefault(int(label), []).append(place)
    return tuple(tuple(found) for found in members.values() if len(found) > 1)
