"""Subsets, what they cover, and the order in which sizes are run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.analysis.calibration.growth import beyond, chance, coverage, default_sizes, needed, next_size, subset


def test_sizes_double_up_to_all() -> None:
    assert default_sizes(1) == (1,)
    assert default_sizes(8) == (1, 2, 4, 8)
    assert default_sizes(100) == (1, 2, 4, 8, 16, 32, 64, 100)


def test_subsets_of_a_draw_are_nested_and_draws_differ() -> None:
    pool = np.arange(5, 105)
    small, large = set(subset(pool, 8, 0, 1)), set(subset(pool, 32, 0, 1))
    assert small < large < set(pool)
    assert small != set(subset(pool, 8, 1, 1))
    assert (subset(pool, 8, 0, 1) == subset(pool, 8, 0, 1)).all()


def test_coverage_is_the_shared_part_of_the_reference() -> None:
    reference = np.array([[-1.0, 3.0], [0.0, 2.0], [0.0, 0.0]])
    found = coverage(np.array([[-2.0, 1.0], [0.0, 2.0], [0.0, 0.0]]), reference)
    np.testing.assert_allclose(found, [0.5, 1.0, 1.0])
    np.testing.assert_allclose(coverage(np.array([[5.0, 6.0]]), reference[:1]), [0.0])


def test_beyond_allows_for_a_step() -> None:
    ranges = np.array([[0.0, 255.0]])
    found = beyond(ranges, np.array([[0.0], [-2.0], [0.0], [0.0]]), np.array([[255.5], [1.0], [257.0], [9.0]]), 255)
    assert found[:, 0].tolist() == [False, True, True, False]


def test_chance_is_that_of_the_largest_of_n_and_one() -> None:
    x = np.random.default_rng(0).exponential(size=(20000, 5))
    assert (x[:, 4] > x[:, :4].max(1)).mean() == pytest.approx(chance(4), abs=0.01)


@given(st.integers(1, 12), st.integers(0, 12))
def test_halving_finds_the_least_size_that_does(count, first) -> None:
    sizes = [2**power for power in range(count)]
    passed: dict[int, bool] = {}
    while (size := next_size(sizes, passed)) is not None:
        assert size not in passed
        passed[size] = sizes.index(size) >= first
    expected = sizes[first] if first < count else None
    assert needed(sizes, passed) == expected
    assert len(passed) <= 2 + count.bit_length()


def test_nothing_to_run_and_nothing_needed_of_no_sizes() -> None:
    assert next_size([], {}) is None
    assert needed([], {}) is None


def test_a_size_between_failures_is_not_enough() -> None:
    assert needed([1, 2, 4, 8], {1: True, 2: False, 4: True, 8: True}) == 4
    assert needed([1, 2, 4, 8], {8: False, 4: True}) is None
