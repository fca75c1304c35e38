"""Sums over the values that share a grid, and the mask of those between its ends.

Grid shapes as in :mod:`quantopsy.quant.qparams`: (), (C,) or (C, G).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quantopsy.quant import QParams
from quantopsy.quant.grouping import aligned, rows_per_group
from quantopsy.quant.tiles import memory_order


def sums(values: Tensor, grid: QParams) -> Tensor:
    """Sum of ``values`` over every grid of ``grid``, of the grid shape: the transpose of ``aligned``."""
    if grid.axis is None:
        return values.sum()
    if grid.group_size is None:
        kept = grid.axis % values.ndim
        others = [dim for dim in range(values.ndim) if dim != kept]
        return values.sum(others) if others else values
    return torch.cat([part.sum(-1) for part in rows_per_group(values, grid.axis, grid.group_size)], 1)


def products(a: Tensor, b: Tensor, grid: QParams) -> Tensor:
    """``sums(a * b, grid)``."""
    if grid.axis is not None:
        return sums(a * b, grid)
    order = memory_order(a)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))


def sums_by_place(values: Tensor, places: Tensor, count: int) -> Tensor:
    """(``count``,): sum of ``values`` over each of so many places; ``places`` integers, same shape as ``values``."""
    order = memory_order(values)
    places, values = places.permute(order).reshape(-1), values.permute(order).reshape(-1)
    size = places.element_size()
    ways = _WORD // size
    # Neighbours often share a place, rectified zeros above all, and one addition to it would wait for the other.
    # So the neighbours that lie in one int64 get a list each, in one addition to all of them.
    if places.device.type == "cpu" and ways > 1 and len(places) % ways == 0 and ways * count <= _MOST[size]:
        apart = np.arange(ways, dtype=f"u{size}") * count
        places = (places.view(torch.int64) + int(apart.view(np.int64)[0])).view(places.dtype)
        return torch.bincount(places, weights=values, minlength=ways * count).view(ways, count).sum(0)
    return torch.bincount(places, weights=values, minlength=count)


_WORD = 8
_MOST = {1: 1 << 8, 2: 1 << 15, 4: 1 << 31}
"""Places that an integer of so many bytes tells apart."""


def values_per_grid(x: Tensor, grid: QParams) -> Tensor | float:
    """How many values of ``x`` each grid has, of the grid shape or one number where all have as many."""
    if grid.group_size is not None:
        return sums(torch.ones_like(x), grid)
    return math.prod(x.shape) / (1 if grid.axis is None else x.shape[grid.axis])


def within_ends(values: Tensor, x: Tensor, grid: QParams) -> Tensor:
    """``values`` where ``x`` lies between the lowest and the highest level, both included, and 0 elsewhere."""
    low, high = grid.ends
    if grid.axis is None and x.device.type == "cpu":
        # One pass instead of five; its interval is open, so it is the next one larger.
        real = np.float32 if x.dtype == torch.float32 else np.float64
        outside = np.nextafter(np.array([float(low), float(high)], real), np.array([-np.inf, np.inf], real))
        return torch.ops.aten.hardtanh_backward(values, x, *outside.tolist())
    low, high = (aligned(end, x, grid.axis, grid.group_size) for end in (low, high))
    return torch.where((x >= low) & (x <= high), values, 0)
