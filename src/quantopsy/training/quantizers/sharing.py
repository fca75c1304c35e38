"""Sums over the values that share a grid, and the mask of those between its ends.

Grid shapes as in :mod:`quantopsy.quant.qparams`: (), (C,) or (C, G); L levels.
"""

from __future__ import annotations

import math

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


def sums_by_code(values: Tensor, codes: Tensor, levels: int, grid: QParams) -> Tensor:
    """Sum of ``values`` over every level of every grid, of the grid shape and L = ``levels``."""
    shape = grid.ends[0].shape
    if shape.numel() > 1:
        table = torch.arange(shape.numel(), dtype=torch.int32, device=codes.device).view(shape)
        codes = codes + aligned(table, codes, grid.axis, grid.group_size) * levels
    order = memory_order(values)
    codes, values = codes.permute(order).reshape(-1), values.permute(order).reshape(-1)
    ways = 1
    if codes.dtype == torch.uint8 and levels <= 256 // _WAYS and len(codes) % _WAYS == 0:
        # Neighbours often share a level, rectified zeros above all; added to the same place one would wait for
        # the other. So each of eight neighbours has a table of its own: their bytes are one int64.
        ways = _WAYS
        apart = sum(way * levels << 8 * way for way in range(_WAYS))
        codes = (codes.view(torch.int64) + (apart - (apart >> 63 << 64))).view(torch.uint8)
    counted = torch.bincount(codes, weights=values, minlength=ways * shape.numel() * levels)
    return counted.view(ways, -1).sum(0).view(*shape, levels)


_WAYS = 8


def values_per_grid(x: Tensor, grid: QParams) -> Tensor | float:
    """How many values of ``x`` each grid has, of the grid shape or one number where all have as many."""
    if grid.group_size is not None:
        return sums(torch.ones_like(x), grid)
    return math.prod(x.shape) / (1 if grid.axis is None else x.shape[grid.axis])


def within_ends(values: Tensor, x: Tensor, grid: QParams) -> Tensor:
    """``values`` where ``x`` lies between the lowest and the highest level, both included, and 0 elsewhere."""
    low, high = grid.ends
    if grid.axis is None and x.device.type == "cpu":
        # One pass instead of five; its interval is open.
        outside = low.to(x.dtype).nextafter(low.new_tensor(-math.inf).to(x.dtype)), high
        low, high = outside[0], high.to(x.dtype).nextafter(high.new_tensor(math.inf).to(x.dtype))
        return torch.ops.aten.hardtanh_backward(values, x, float(low), float(high))
    low, high = (aligned(end, x, grid.axis, grid.group_size) for end in (low, high))
    return torch.where((x >= low) & (x <= high), values, 0)
