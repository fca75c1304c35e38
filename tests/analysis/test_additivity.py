"""Whether sums hold, on made-up numbers with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import linregress, pearsonr

from quantopsy.analysis.additivity import (
    fit,
    geometric_ratio,
    holds,
    reach,
    relation,
    typical_factor,
)

EXPECTED = np.linspace(1.0, 20.0, 20)


def values(estimate: np.ndarray, spread: float = 0.0, resamples: int = 400, seed: int = 0) -> np.ndarray:
    """(1 + R, m): ``estimate`` and resamples around it."""
    rng = np.random.default_rng(seed)
    return np.vstack([estimate, estimate + spread * rng.normal(size=(resamples, len(estimate)))])


def test_what_adds_up_is_trusted_as_far_as_it_was_tried() -> None:
    found = relation(values(EXPECTED), values(EXPECTED))
    assert found.everywhere
    assert found.limit == found.largest == 20.0
    assert found.reach == 0.0
    for interval, true in ((found.fit.slope, 1.0), (found.fit.intercept, 0.0), (found.fit.proportion, 1.0)):
        assert (interval.low, interval.value, interval.high) == pytest.approx((true,) * 3, abs=1e-9)


def test_trust_ends_before_the_first_sum_that_is_wrong() -> None:
    measured = np.where(EXPECTED <= 9.0, EXPECTED, 1.5 * EXPECTED)
    shuffled = np.random.default_rng(3).permutation(len(EXPECTED))
    found = relation(values(EXPECTED[shuffled]), values(measured[shuffled]))
    assert found.limit == 9.0
    assert not found.everywhere
    np.testing.assert_array_equal(found.holds, EXPECTED[shuffled] <= 9.0)


def test_nothing_is_trusted_where_the_smallest_sum_is_wrong() -> None:
    found = relation(values(EXPECTED), values(3.0 * EXPECTED))
    assert np.isnan(found.limit)
    assert not found.everywhere


def test_small_differences_and_a_fifth_of_the_sum_are_no_mistake() -> None:
    assert holds(values(np.array([0.5, 10.0])), values(np.array([1.4, 11.9])), tolerance=1.0).all()
    assert not holds(values(np.array([0.5, 10.0])), values(np.array([1.6, 12.1])), tolerance=1.0).any()


def test_what_chance_allows_is_no_mistake() -> None:
    wrong = EXPECTED + 5.0
    assert not holds(values(EXPECTED), values(wrong)).all()
    assert holds(values(EXPECTED), values(wrong, spread=5.0)).all()


def test_nobody_can_lose_more_than_all() -> None:
    found = relation(values(EXPECTED), values(np.minimum(EXPECTED, 12.0)), most=12.5)
    assert found.limit == 12.0
    assert found.fit.slope.value == pytest.approx(1.0)


def test_subsets_without_an_expected_value_do_not_count() -> None:
    expected = values(np.where(EXPECTED > 10.0, np.nan, EXPECTED))
    found = relation(expected, values(EXPECTED))
    assert found.limit == found.largest == 10.0
    assert found.holds.sum() == 10
    assert relation(np.full((3, 2), np.nan), values(EXPECTED[:2], resamples=2)) is None


def test_the_line_is_scipys() -> None:
    rng = np.random.default_rng(1)
    y = 2.0 + 1.3 * EXPECTED + rng.normal(size=len(EXPECTED))
    found = fit(values(EXPECTED), values(y))
    line = linregress(EXPECTED, y)
    assert found.slope.value == pytest.approx(line.slope)
    assert found.intercept.value == pytest.approx(line.intercept)
    assert found.correlation.value == pytest.approx(pearsonr(EXPECTED, y).statistic)
    assert found.proportion.value == pytest.approx(np.linalg.lstsq(EXPECTED[:, None], y)[0][0])


def test_a_line_needs_points_apart() -> None:
    assert fit(values(EXPECTED[:3]), values(EXPECTED[:3])) is None
    assert fit(values(np.ones(5)), values(EXPECTED[:5])) is None


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Values are means over images of what images share: the case for which Student's intervals are too narrow."""
    truth, inside = 1.4, {"slope": 0, "ratio": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        images = rng.gamma(4.0, 0.25, size=(100, 1)) * np.exp(0.5 * rng.normal(size=(100, 20)))
        other = truth * images * np.exp(0.5 * rng.normal(size=images.shape) - 0.125)
        weights = np.vstack([np.ones(100), rng.multinomial(100, np.full(100, 0.01), size=300)])
        x, y = (weights @ (EXPECTED * part) / 100 for part in (images, other))
        found, ratio = fit(x, y).slope, geometric_ratio(y, x)
        inside["slope"] += found.low <= truth <= found.high
        inside["ratio"] += ratio.low <= truth <= ratio.high
    assert all(count >= 52 for count in inside.values())  # of 60 at 95 %: fewer happens once in 150 times


def test_bands_hold_for_all_subsets_at_once() -> None:
    alone = values(np.zeros(1), 1.0, resamples=4000)
    apart = values(np.zeros(24), 1.0, resamples=4000)
    together = np.repeat(alone, 24, 1)
    nothing = np.zeros_like(alone)
    assert reach(nothing, alone)[0] == pytest.approx(1.96, rel=0.05)
    # Sidak's correction for 24 independent intervals; none where all are the same.
    assert reach(np.zeros_like(apart), apart) == pytest.approx(np.full(24, 3.07), rel=0.06)
    assert reach(np.zeros_like(together), together) == pytest.approx(np.full(24, 1.96), rel=0.05)


def test_a_factor_between_noises_is_found_with_its_spread() -> None:
    rng = np.random.default_rng(2)
    measured = 2.3 * EXPECTED * np.exp(0.1 * rng.normal(size=len(EXPECTED)))
    found = geometric_ratio(values(measured), values(EXPECTED))
    assert found.low < 2.3 < found.high
    assert 1.0 < found.high / found.low < 1.2
    assert np.isnan(geometric_ratio(values(np.zeros(3)), values(EXPECTED[:3])).value)


def test_typical_error_is_a_factor_either_way() -> None:
    assert typical_factor(np.array([1.2, 1 / 1.2, 5.0]), np.ones(3)) == pytest.approx(0.2)
    assert np.isnan(typical_factor(np.ones(2), np.full(2, np.nan)))


@given(
    expected=arrays(float, 8, elements=st.floats(0.01, 100)),
    measured=arrays(float, 8, elements=st.floats(0.01, 100)),
    factor=st.floats(0.1, 10),
    order=st.permutations(range(8)),
)
def test_the_limit_depends_neither_on_the_order_nor_on_the_unit(expected, measured, factor, order) -> None:
    found = relation(values(expected, resamples=2), values(measured, resamples=2))
    turned = relation(values(factor * expected[order], resamples=2), values(factor * measured[order], resamples=2))
    np.testing.assert_allclose(turned.limit, factor * found.limit, rtol=1e-9)
