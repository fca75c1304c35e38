"""Selected images stand for all: their extremes, or their means."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from quantopsy.analysis.calibration.selection import by_extremes, by_moments
from quantopsy.engine.image_statistics import Moments


def moments(n: int = 40, columns: int = 6, seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    high = np.exp(rng.normal(0, 0.5, (n, columns))).astype(np.float32)
    low = -np.exp(rng.normal(0, 0.5, (n, columns))).astype(np.float32)
    return Moments(low, high, (high + low) / 3, (high - low) / 6)


def covered(found: Moments, images: np.ndarray) -> float:
    ends = found.high[images].max(0) - found.low[images].min(0)
    return float((ends / (found.high.max(0) - found.low.min(0))).sum())


def test_extremes_come_within_the_bound_of_the_best_choice() -> None:
    found = moments(12)
    best = max(covered(found, np.array(images)) for images in combinations(range(12), 3))
    assert covered(found, by_extremes(found, 3)) >= (1 - 1 / np.e) * best
    assert covered(found, by_extremes(found, 3)) > np.mean([covered(found, np.arange(i, i + 3)) for i in range(9)])


def test_as_many_as_there_are_ends_reach_nearly_all_of_them() -> None:
    found = moments()
    assert covered(found, by_extremes(found, 12)) > 0.99 * 6


def test_means_of_a_herd_are_nearer_than_those_of_random_images() -> None:
    found = moments(200)
    standard = (found.high - found.high.mean(0)) / found.high.std(0)
    herd = np.abs(standard[by_moments(found, 10)].mean(0)).mean()
    rng = np.random.default_rng(1)
    random = [np.abs(standard[rng.permutation(200)[:10]].mean(0)).mean() for _ in range(50)]
    assert herd < np.min(random)


@pytest.mark.parametrize("choose", [by_extremes, by_moments])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_as_many_different_ones_as_asked_for(choose, count) -> None:
    chosen = choose(moments(), count)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
