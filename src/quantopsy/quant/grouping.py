"""Which values share a grid.

C channels along ``axis``, K channels along the other channel dimension (a weight's input channels), G
groups of ``group_size`` of them; the last group may be smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError


def group_axis(axis: int) -> int:
    """The dimension that groups divide: 1 for a weight (out, in, ...), 0 for a transposed one."""
    return 1 if axis == 0 else 0


def group_size(granularity: str, shape: tuple[int, ...]) -> int:
    """Input channels per group; ``per_group:pwlq`` is 32 for kernels under 9 taps, else 256 (PWLQ 5.1.2)."""
    name = granularity.partition(":")[2]
    if name == "pwlq":
        return 32 if prod(shape[2:]) < 9 else 256
    return int(name)


def aligned(grid: Tensor, x: Tensor, axis: int | None, group: int | None) -> Tensor:
    """``grid`` of shape (), (C,) or (C, G) made broadcastable to ``x``."""
    if axis is None:
        return grid
    axis %= x.ndim
    if group is None:
        return grid.reshape([-1 if dim == axis else 1 for dim in range(x.ndim)])
    other = group_axis(axis)
    spread = grid.repeat_interleave(group, dim=1)[:, : x.shape[other]]
    if axis > other:
        spread = spread.T
    return spread.reshape([x.shape[dim] if dim in (axis, other) else 1 for dim in range(x.ndim)])


def rows_per_channel(x: Tensor, axis: int) -> Tensor:
    """(C, values of the channel)."""
    if not -x.ndim <= axis < x.ndim:
        raise QuantopsyError(f"axis {axis}", f"the tensor has {x.ndim} dimensions", "name one of them")
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def rows_per_group(x: Tensor, axis: int, group: int) -> list[Tensor]:
    """(C, G, values of the group) for the whole groups, then (C, 1, values) for a ragged last one."""
    if x.ndim < 2:
        raise QuantopsyError("per_group", f"the tensor has {x.ndim} dimension", "use per_channel or per_tensor")
    axis %= x.ndim
    laid = x.movedim((axis, group_axis(axis)), (0, 1))
    channels, inputs = laid.shape[:2]
    whole = inputs - inputs % group
    parts = []
    if whole:
        parts.append(laid[:, :whole].reshape(channels, whole // group, -1))
    if whole < inputs:
        parts.append(laid[:, whole:].reshape(channels, 1, -1))
    return parts


def map_rows(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    table: Tensor,
    axis: int | None,
    group: int | None,
) -> Tensor:
    """``function(rows (R, n), table (R, L)) -> (R, n)`` over all grids of ``x``, reassembled to its shape.

    ``table`` has the grid shape and L.
    """
    if axis is None:
        return function(x.reshape(1, -1), table[None])[0].reshape(x.shape)
    if group is None:
        moved = x.movedim(axis, 0)
        return function(moved.reshape(len(table), -1), table).reshape(moved.shape).movedim(0, axis)
    axes = (axis % x.ndim, group_axis(axis % x.ndim))
    moved = x.movedim(axes, (0, 1))
    pieces, first = [], 0
    for part in rows_per_group(x, axis, group):
        channels, groups, _ = part.shape
        tables = table[:, first : first + groups].reshape(channels * groups, -1)
        mapped = function(part.reshape(channels * groups, -1), tables)
        pieces.append(mapped.reshape(channels, -1, *moved.shape[2:]))
        first += groups
    return torch.cat(pieces, 1).movedim((0, 1), axes)
