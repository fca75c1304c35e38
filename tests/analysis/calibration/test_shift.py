"""Two sets are called different only where they are, and what differs is named."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from photographs import MEAN, STD, normalised, pixels
from torch import Tensor

from quantopsy.analysis.calibration.shift import (
    FALSE_ALARM,
    channel_order,
    compare_inputs,
    exceedance_log_p,
    exceeding,
    superiority,
)
from quantopsy.engine.image_statistics import Moments

STEPS = 255


def moments(x: Tensor) -> Moments:
    return Moments.of(x, axis=1)


HELD_OUT = moments(normalised(pixels(400, 1000)))


def compared(x: Tensor):
    return compare_inputs("x", moments(x), HELD_OUT, STEPS)


def test_right_sets_raise_no_more_alarms_than_stated() -> None:
    alarms = [compared(normalised(pixels(n, seed))).differs for seed in range(60) for n in (8, 100)]
    # Three kinds at 1 in 100 each: of 120 sets above 10 have one with probability 0.001.
    assert sum(alarms) <= 10


MISTAKES = {
    "not normalised": lambda x: x,
    "0 to 1": lambda x: x / 255,
    "no mean": lambda x: x / STD,
    "slightly wrong mean": lambda x: normalised(x) + 0.2,
    "half the contrast": lambda x: normalised(x) / 2,
    "darker": lambda x: normalised(255 * (x / 255) ** 2),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_preprocessing_is_found(name) -> None:
    found = compared(MISTAKES[name](pixels(64, 7)))
    assert found.differs
    assert found.range_differs == (name != "darker")
    assert found.location_differs or "wrong mean" in name
    assert found.order is None or not found.order.swapped


def test_the_map_between_the_sets_is_estimated() -> None:
    found = compared(pixels(400, 3))
    for channel, mean, std in zip(found.channels, MEAN.flatten(), STD.flatten(), strict=True):
        assert channel.gain == pytest.approx(float(std), rel=0.1)
        assert channel.offset == pytest.approx(float(mean), rel=0.1)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_swapped_channels_are_named_and_when_they_were_swapped(order) -> None:
    after = compared(normalised(pixels(150, 5))[:, list(order)])
    assert after.order is not None
    assert after.order.channels == order
    assert after.order.before is False
    before = compared(normalised(pixels(150, 5)[:, list(order)]))
    assert before.order is not None
    assert before.order.channels == order
    assert before.order.before is True
    scaled = compared(pixels(150, 5)[:, list(order)])
    assert scaled.order is not None
    assert scaled.order.channels == order
    assert scaled.range_differs


def test_grey_images_tell_no_order() -> None:
    grey = normalised(pixels(200, 2)[:, :1].expand(-1, 3, -1, -1))
    found = channel_order(moments(grey[:100]), moments(grey[100:]))
    assert found is None or not found.known
    assert channel_order(moments(grey[:, :1]), moments(grey[:, :1])) is None


def test_exceedance_is_counted_over_all_orders() -> None:
    n, m = 4, 5
    for k in range(n + 1):
        # Of all ways to place the n among the ranks, those that hold the k highest.
        ways = list(combinations(range(n + m), n))
        held = sum(set(range(n + m - k, n + m)) <= set(way) for way in ways)
        assert np.exp(exceedance_log_p(k, n, m)) == pytest.approx(held / len(ways))


def test_exceedance_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        x = rng.standard_cauchy(30)
        k, _ = exceeding(x[:10], x[10:])
        alarms += exceedance_log_p(k, 10, 20) < np.log(0.05)
    assert alarms <= 130


def test_superiority_is_the_share_of_pairs() -> None:
    a, b = np.array([1.0, 4.0, 6.0]), np.array([0.0, 3.0, 3.0, 9.0])
    chance, p = superiority(a, b)
    assert chance == pytest.approx(np.mean(a[:, None] > b))
    assert FALSE_ALARM < p <= 1
    assert superiority(np.ones(3), np.ones(4)) == (0.5, 1.0)
