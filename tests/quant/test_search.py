"""The nearest level by look-up is the nearest level by binary search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.quant import LevelsQParams
from quantopsy.quant.search import Bins


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    levels=st.integers(2, 256),
    fraction=st.sampled_from((1, 4, 16)),
    tables=st.sampled_from((None, 3)),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_is_the_binary_search(seed: int, levels: int, fraction: int, tables: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (levels,) if tables is None else (tables, levels)
    table = (torch.randn(shape, generator=generator) * 20 * fraction).round().sort(-1).values / fraction
    scale = torch.rand(shape[:-1], generator=generator) * 10.0 ** (seed % 20 - 10)
    grid = LevelsQParams(table, scale, axis=None if tables is None else 0)
    spread = scale if tables is None else scale[:, None]
    x = torch.randn(3, 20_000, generator=generator, dtype=dtype) * 25 * spread
    x[:, ::2] = (x[:, ::2] / spread * 2 * fraction).round() / (2 * fraction) * spread  # many on borders
    x[:, :2] = torch.tensor([-torch.inf, torch.inf])
    borders = (table[..., :-1] + table[..., 1:]) / 2
    expected = torch.searchsorted(borders if tables else borders.expand(3, -1).contiguous(), x / spread, out_int32=True)
    assert grid._search(x) is not None
    assert torch.equal(grid.encode(x), expected)
    assert torch.equal(grid.snap(x), grid.decode(expected).to(dtype))
    values, places, list_ = grid.locate(x)
    assert torch.equal(values, grid.snap(x))
    number = list_[places.long()]
    rows = 0 if tables is None else torch.arange(3)[:, None] * levels
    assert torch.equal(number - rows, expected.long())


@pytest.mark.parametrize(
    "levels",
    [torch.tensor([0.0, 0.1, 0.3]), torch.tensor([-1e6, 0.0, 0.5]), torch.tensor([0.0, 2.0**-100, 1.0])],
    ids=["no grid", "too wide", "too fine"],
)
def test_falls_back_to_the_binary_search(levels: torch.Tensor) -> None:
    grid = LevelsQParams(levels, torch.tensor(1.0))
    x = torch.randn(5000)
    assert grid._search(x) is None
    borders = (levels[:-1] + levels[1:]) / 2
    assert torch.equal(grid.encode(x), torch.bucketize(x, borders, out_int32=True))


def test_a_scale_that_is_barely_a_number_is_searched() -> None:
    grid = LevelsQParams(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(torch.finfo(torch.float32).tiny))
    assert grid._search(torch.randn(5000)) is None


def test_bins_start_at_zero_where_that_is_near() -> None:
    bins = Bins.of(torch.tensor([[0.5, 1.5, 2.5]]))
    assert bins is not None
    assert (bins.first, bins.resolution, bins.codes.tolist()) == (0, 2.0, [[0, 0, 1, 1, 2, 2, 3]])
