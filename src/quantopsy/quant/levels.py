"""Grids with levels anywhere: a table, and the nearest entry of it.

L levels; grid shapes as in :mod:`quantopsy.quant.qparams`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quantopsy.quant.grouping import aligned, map_rows
from quantopsy.quant.qparams import QParams
from quantopsy.quant.search import MOST_BINS, Bins, look_up
from quantopsy.quant.tiles import in_memory_order

# Values, from which on a table of bins is worth making.
_FEWEST = 1 << 12


@dataclass(frozen=True)
class LevelsQParams(QParams):
    """``q = argmin_j |levels_j - x / scale|``, ``x_hat = levels_q scale``; a tie goes to the lower level.

    ``levels`` ascending, float32: (L,) where all grids share the table, else the grid shape and L.
    ``scale`` float32 of the grid shape.
    """

    levels: Tensor
    scale: Tensor

    def encode(self, x: Tensor) -> Tensor:
        if (found := self._search(x)) is not None:
            bins, index = found
            return look_up(bins.codes.view(-1).to(torch.int32), index)
        position = x / self._aligned(self.scale, x)
        if self.levels.ndim == 1:
            return in_memory_order(lambda flat: torch.bucketize(flat, self._borders, out_int32=True), position)
        return map_rows(_nearest, position, self._borders, self.axis, self.group_size)

    def decode(self, codes: Tensor) -> Tensor:
        if self.levels.ndim == 1:
            values = self.levels[codes]
        else:
            values = map_rows(_look_up, codes, self.levels, self.axis, self.group_size)
        return values * self._aligned(self.scale, codes)

    def snap(self, x: Tensor) -> Tensor:
        found = self._search(x)
        values = self.decode(self.encode(x)) if found is None else self._values(*found, x)
        return _laid_like(values.to(x.dtype), x)

    def locate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``snap(x)``; the place of every value in a list, as small integers; and what the list says of a place:
        the level's number, int64, counted through all tables."""
        tables = self.levels.numel() // self.levels.shape[-1]
        if (found := self._search(x)) is not None:
            bins, index = found
            rows = torch.arange(tables)[:, None] * self.levels.shape[-1]
            return (
                self._values(bins, index, x).to(x.dtype),
                _small(index, bins.codes.numel()),
                (bins.codes + rows).view(-1),
            )
        codes = self.encode(x)
        values = _laid_like(self.decode(codes).to(x.dtype), x)
        if tables > 1:
            codes = codes + self._table(x) * self.levels.shape[-1]
        return values, _small(codes, self.levels.numel()), torch.arange(self.levels.numel(), device=x.device)

    def covers(self, x: Tensor) -> Tensor:
        low, high = (self._aligned(self.levels[..., end] * self.scale, x) for end in (0, -1))
        return (x >= low) & (x <= high)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.levels[..., 0] * self.scale, self.levels[..., -1] * self.scale

    def map_grids(self, change: Callable[[Tensor], Tensor], **layout: Any) -> LevelsQParams:
        levels = self.levels if self.levels.ndim == 1 else change(self.levels)
        return replace(self, levels=levels, scale=change(self.scale), **layout)

    def join(self, other: LevelsQParams) -> LevelsQParams:
        levels = self.levels if self.levels.ndim == 1 else torch.cat((self.levels, other.levels), -2)
        return replace(self, levels=levels, scale=torch.cat((self.scale, other.scale), -1))

    def _search(self, x: Tensor) -> tuple[Bins, Tensor] | None:
        """Bins and every value's place in them, where a look-up of so many values is cheaper than a binary search."""
        # Elsewhere the search is no bottleneck, and to look at the borders would be to wait for the device.
        # Nor must a traced program depend on how many values there are: that is asked for last.
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < _FEWEST:
            return None
        bins = self._bins
        if bins is None or x.numel() < bins.codes.numel():
            return None
        table = None if self.levels.ndim == 1 else self._table(x)
        return bins, bins.index(x, self._aligned(self.scale, x), table)

    def _table(self, x: Tensor) -> Tensor:
        """Which of the tables of their own values have, int32, broadcastable to ``x``."""
        tables = torch.arange(self.scale.numel(), dtype=torch.int32, device=x.device)
        return self._aligned(tables.view(self.scale.shape), x)

    @cached_property
    def _bins(self) -> Bins | None:
        # Bins of a subnormal width would not be where the quotients of values and scale are.
        if float(self.scale.amin()) < torch.finfo(torch.float32).tiny * MOST_BINS:
            return None
        return Bins.of(self._borders.reshape(-1, self.levels.shape[-1] - 1))

    def _values(self, bins: Bins, index: Tensor, x: Tensor) -> Tensor:
        levels = self.levels.reshape(len(bins.codes), -1).gather(1, bins.codes)
        if self.levels.ndim > self.scale.ndim:
            return look_up((levels * self.scale.reshape(-1, 1)).view(-1), index)
        return look_up(levels.view(-1), index).mul_(self._aligned(self.scale, x))

    @property
    def _borders(self) -> Tensor:
        """Half way between neighbouring levels, (..., L - 1)."""
        return ((self.levels[..., :-1] + self.levels[..., 1:]) / 2).contiguous()

    def _aligned(self, grid: Tensor, x: Tensor) -> Tensor:
        return aligned(grid, x, self.axis, self.group_size)


def _laid_like(values: Tensor, x: Tensor) -> Tensor:
    # Tables of their own are searched channel by channel, which loses the memory format.
    return values if values.stride() == x.stride() else torch.empty_like(x, dtype=values.dtype).copy_(values)


def _small(index: Tensor, most: int) -> Tensor:
    """``index``, below ``most``, in the fewest bytes that hold it."""
    if most <= 1 << 8:
        return index.to(torch.uint8)
    return index.to(torch.int16) if most <= 1 << 15 else index


def own_tables(levels: Tensor) -> LevelsQParams:
    """One table (R, L) for each of R channels along ``axis=0``, scaled to a largest magnitude of 1.

    All levels are zero where the largest is too small for a normal float32.
    """
    float32 = torch.finfo(torch.float32)
    reach = levels.double().abs().amax(1).clamp(max=float32.max)
    scale = torch.where(reach < float32.tiny, 1.0, reach)
    normal = torch.where((reach < float32.tiny)[:, None], 0.0, levels / scale[:, None]).clamp(-1, 1)
    return LevelsQParams(normal.float(), scale.float(), axis=0)


def _nearest(rows: Tensor, borders: Tensor) -> Tensor:
    return torch.searchsorted(borders.contiguous(), rows.contiguous(), out_int32=True)


def _look_up(rows: Tensor, levels: Tensor) -> Tensor:
    return levels.gather(1, rows.long())
