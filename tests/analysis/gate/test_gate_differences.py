"""What changed between the grids and specs of two networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.analysis.gate.differences import range_changes
from quantopsy.core import Site

ENDS = st.tuples(st.floats(-100, 0, width=32), st.floats(0.0625, 100, width=32))
WEIGHT, SAME = Site("conv", "weight"), {"conv": "conv"}


def factor(old, new, partners=SAME) -> float:
    (found,) = range_changes({WEIGHT: (np.array(old),)}, {WEIGHT: (np.array(new),)}, partners)
    return found.factor


@settings(deadline=None)
@given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=5))
def test_a_change_and_its_undoing_are_as_great(pairs) -> None:
    old, new = zip(*pairs, strict=True)
    assert factor(old, new) == factor(new, old) >= 1.0
    assert factor(old, old) == 1.0


@settings(deadline=None)
@given(st.lists(ENDS, min_size=1, max_size=5), st.integers(0, 4), st.integers(-3, 3))
def test_the_channel_that_was_scaled_is_found(ends, channel, power) -> None:
    channel %= len(ends)
    old = np.array(ends)
    new = old.copy()
    new[channel] *= 2.0**power
    (found,) = range_changes({WEIGHT: (old,)}, {WEIGHT: (new,)}, SAME)
    assert found.factor == 2.0 ** abs(power)
    if power and len(ends) > 1:
        assert found.channel == channel
        assert found.after == tuple(new[channel])


def test_one_grid_against_many_is_the_widest_of_them() -> None:
    assert factor([(-1.0, 1.0)], [(-0.1, 0.1), (-2.0, 2.0)]) == pytest.approx(2.0)


def test_each_value_of_a_site_has_its_own_grid() -> None:
    site = Site("add", "input")
    old = {site: (np.array([(-1.0, 1.0)]), np.array([(0.0, 1.0)]))}
    new = {site: (np.array([(-1.0, 1.0)]), np.array([(0.0, 4.0)]))}
    assert [found.factor for found in range_changes(old, new, {"add": "add"})] == [4.0, 1.0]


def test_a_renamed_layer_is_found_by_its_partner() -> None:
    (found,) = range_changes(
        {WEIGHT: (np.array([(0.0, 1.0)]),)}, {Site("stem", "weight"): (np.array([(0.0, 3.0)]),)}, {"conv": "stem"}
    )
    assert (found.layer, found.factor) == ("conv", 3.0)


def test_a_grid_that_only_one_has_is_no_change() -> None:
    assert range_changes({WEIGHT: (np.array([(0.0, 1.0)]),)}, {}, SAME) == ()
