"""Images that do not belong are told from the tail of those that do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantopsy.analysis.calibration.outliers import blank, range_setters, unlike
from quantopsy.engine.image_statistics import Moments

STEPS = 255


def moments(n: int, seed: int, columns: int = 20) -> Moments:
    """Of activations: extremes with a heavy tail, images alike in all of them to a degree."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.2, (n, columns)))
    high = (4 * size).astype(np.float32)
    low = np.where(np.arange(columns) % 2, 0.0, -2 * size).astype(np.float32)
    return Moments(low, high, (high + low) / 3, (high - low) / 6)


def scaled(found: Moments, images: list[int], by: float) -> Moments:
    factor = np.ones((len(found), 1), dtype=np.float32)
    factor[images] = by
    return Moments(found.low * factor, found.high * factor, found.mean * factor, found.std * factor)


def test_right_sets_raise_no_more_alarms_than_stated() -> None:
    odd = [(unlike(moments(100, s).columns, moments(200, 500 + s).columns) < 0.01).any() for s in range(100)]
    setters = [bool(range_setters(moments(n, s), moments(200, 900 + s), STEPS)) for s in range(50) for n in (8, 100)]
    assert sum(odd) <= 5
    assert sum(setters) <= 5


@pytest.mark.parametrize("n", [8, 100])
@pytest.mark.parametrize("images", [[3], [0, 7]])
def test_planted_outliers_are_named(n, images) -> None:
    found, reference = scaled(moments(n, 1), images, 40.0), moments(300, 2)
    assert np.flatnonzero(unlike(found.columns, reference.columns) < 0.01).tolist() == images
    setters = range_setters(found, reference, STEPS)
    assert {image for setter in setters for image in setter.images} == set(images)
    high = next(setter for setter in setters if setter.end > 0 and set(setter.images) == set(images))
    column = found.high[:, high.activation]
    assert high.end == column.max()
    assert high.without == max(np.delete(column, images).max(), reference.high[:, high.activation].max())
    assert high.factor == pytest.approx(high.end / high.without)
    assert any(setter.end < 0 for setter in setters)


def test_a_bound_that_many_images_reach_is_not_to_be_exceeded() -> None:
    reference = replace(moments(300, 2), high=np.full((300, 20), 6.0, dtype=np.float32))
    found = replace(moments(100, 1), high=np.full((100, 20), 6.0, dtype=np.float32))
    assert not any(setter.end > 0 for setter in range_setters(found, reference, STEPS))
    found.high[5, 4] = 9.0
    (setter,) = (setter for setter in range_setters(found, reference, STEPS) if setter.end > 0)
    assert (setter.images, setter.activation, setter.end, setter.without) == ((5,), 4, 9.0, 6.0)


def test_few_evaluation_images_tell_nothing() -> None:
    found = scaled(moments(10, 1), [0], 100.0)
    assert (unlike(found.columns, moments(20, 2).columns) == 1).all()
    assert range_setters(found, moments(20, 2), STEPS) == ()


def test_blank_is_constant_in_every_channel() -> None:
    low = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 2.0]])
    high = np.array([[0.0, 1.0], [0.0, 3.0], [2.0, 2.0]])
    assert blank(Moments(low, high, low, low)).tolist() == [True, False, True]
