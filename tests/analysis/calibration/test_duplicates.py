"""Images that are there twice, exactly or nearly, are found; different ones are not taken for the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from quantopsy.analysis.calibration.duplicates import DistanceLaw, equal_images, with_near


def statistics(n: int, seed: int) -> np.ndarray:
    """Many statistics of a few things that images differ in."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)) @ np.random.default_rng(0).normal(size=(8, 60)) + 0.1 * rng.normal(size=(n, 60))


def digests(n: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


def test_equal_images_are_grouped_by_hash() -> None:
    found = equal_images(["a", "b", "a", "c", "b", "a"], ["c", "x"])
    assert found.equal == ((0, 2, 5), (1, 4))
    assert found.shared == (3,)
    assert found.distinct.tolist() == [0, 1, 3]


def test_different_images_are_not_near() -> None:
    alarms = 0
    for seed in range(60):
        found = with_near(equal_images(digests(150), []), statistics(150, seed), statistics(300, 1000 + seed))
        alarms += bool(found.near) + bool(found.nearly_shared)
    assert alarms <= 4


def test_near_duplicates_are_grouped_and_count_once() -> None:
    x, others = statistics(100, 1), statistics(300, 2)
    x[60:70] = x[:10] + 0.01 * np.random.default_rng(3).normal(size=(10, 60))
    x[70] = x[0] + 0.01
    x[80] = others[17] + 0.01
    found = with_near(equal_images(digests(100), []), x, others)
    assert found.near[0] == (0, 60, 70)
    assert found.near[1:] == tuple((i, 60 + i) for i in range(1, 10))
    assert found.nearly_shared == (80,)
    assert len(found.distinct) == 100 - 11
    assert not {60, 69, 70} & set(found.distinct.tolist())


def test_equal_ones_are_not_named_again_as_near() -> None:
    x, others = statistics(50, 1), statistics(300, 2)
    x[40:] = x[:10]
    found = with_near(equal_images([*digests(40), *digests(10)], []), x, others)
    assert len(found.equal) == 10
    assert found.near == ()
    assert found.distinct.tolist() == list(range(40))


def test_few_others_tell_nothing_of_nearness() -> None:
    x = np.zeros((10, 60))
    assert with_near(equal_images(digests(10), []), x, statistics(20, 2)).near == ()


def test_the_law_is_of_nearest_neighbours() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(1500, 3))
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    law = DistanceLaw.of(distances.min(1))
    assert law.shape == pytest.approx(3, rel=0.15)  # the dimension
    radius = law.threshold(1500 * 1499 / 2, 20.0)
    assert 8 <= np.triu(distances < radius).sum() <= 40
