"""Sums over the values that share a grid: the transpose of laying a grid out over a tensor.

Grid shapes as in :mod:`quantopsy.quant.qparams`: (), (C,) or (C, G).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.quant import QParams
from quantopsy.quant.grouping import rows_per_group


def sums(values: Tensor, grid: QParams) -> Tensor:
    """Sum of ``values`` over every grid of ``grid``, of the grid shape."""
    if grid.axis is None:
        return values.sum()
    if grid.group_size is None:
        kept = grid.axis % values.ndim
        others = [dim for dim in range(values.ndim) if dim != kept]
        return values.sum(others) if others else values
    return torch.cat([part.sum(-1) for part in rows_per_group(values, grid.axis, grid.group_size)], 1)


def counts(x: Tensor, grid: QParams) -> Tensor:
    """How many values of ``x`` each grid has, of the grid shape or () where all have as many."""
    if grid.group_size is not None:
        return sums(torch.ones_like(x), grid)
    channels = 1 if grid.axis is None else x.shape[grid.axis]
    return torch.tensor(x.numel() / channels, device=x.device)
