"""Learned levels that are evenly spaced are a uniform grid, to the bit; others are not."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.quant import LevelsQParams, fake_quantize
from quantopsy.training.quantizers.ddq import even


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    rectified=st.booleans(),
    wider=st.sampled_from([1.0, 2.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_an_even_table_is_its_uniform_grid(bits, symmetric, granularity, rectified, wider, seed) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    x = x.relu() if rectified else x
    spec = Spec("learned", bits=bits, symmetric=symmetric, granularity=granularity)
    grid = fit(spec, x)
    assert isinstance(grid, LevelsQParams)
    grid = LevelsQParams(grid.levels * wider, grid.scale, axis=grid.axis, group_size=grid.group_size)
    found = even(grid, spec)
    assert found is not None
    y = 0.97 * x  # the ends of a range may lie half way between two levels, where the two differ
    assert torch.equal(fake_quantize(y, found), fake_quantize(y, grid))


def test_uneven_tables_and_tables_without_zero_are_none() -> None:
    spec = Spec("learned", bits=2)
    for levels in ([-2.0, -1.0, 0.0, 1.5], [-1.5, -0.5, 0.5, 1.5], [-3.0, 0.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]):
        assert even(LevelsQParams(torch.tensor(levels), torch.tensor(0.1)), spec) is None
