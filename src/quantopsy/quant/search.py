"""The nearest of a table's levels by one look-up instead of a binary search.

Where all borders between levels are whole multiples of some 1 / r, a bin of that width lies wholly on one side of
every border, so that the bin decides the code. Learned levels, kept in fixed point, and powers of two are such.

L levels, R tables, n bins of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.quant.tiles import in_memory_order

# Of one table, so that it stays in the cache.
MOST_BINS = 1 << 13


@dataclass(frozen=True)
class Bins:
    """``codes`` (R, n), uint8, of positions in ((first + j - 1) / resolution, (first + j) / resolution], j < n;
    what lies below the first bin or above the last one belongs to it."""

    codes: Tensor
    first: int
    resolution: float

    @classmethod
    def of(cls, borders: Tensor) -> Bins | None:
        """For ``borders`` (R, L - 1), ascending, or ``None`` where they lie on no grid that is coarse enough.

        A position on a border belongs to the lower level.
        """
        if borders.shape[-1] == 0 or borders.shape[-1] > 255:
            return None
        resolution = _resolution(borders)
        whole = borders.double() * resolution
        lowest, highest = (float(end) for end in whole.aminmax())
        if not highest - lowest + 2 <= MOST_BINS:
            return None
        first, count = int(lowest), int(highest - lowest) + 2
        # A bin is above the borders that end one of the bins before it.
        above = torch.zeros(len(borders), count, dtype=torch.uint8)
        one = torch.ones((), dtype=torch.uint8).expand(borders.shape)
        above.scatter_add_(1, (whole - (first - 1)).long(), one)
        return cls(above.cumsum(1, dtype=torch.uint8), first, resolution)

    def index(self, x: Tensor, scale: Tensor, table: Tensor | None) -> Tensor:
        """Where in the flattened codes the values of ``x`` are, int32: for ``scale`` and the number of the
        ``table`` (``None`` where there is one), both broadcastable to ``x``."""
        count = self.codes.shape[1]
        position = torch.div(x, scale / self.resolution).ceil_().clamp_(self.first, self.first + count - 1)
        index = (position.sub_(self.first) if self.first else position).to(torch.int32)
        return index if table is None else index.add_(table * count)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table`` (n,) at ``index``, laid out as ``index`` is."""
    return in_memory_order(lambda flat: table.index_select(0, flat.reshape(-1)).view(flat.shape), index)


def _resolution(borders: Tensor) -> float:
    """The smallest power of two that makes whole numbers of all ``borders``."""
    mantissa, exponent = torch.frexp(borders.double())
    digits = (mantissa * 2.0**53).long()
    lowest = torch.ldexp((digits & -digits).double(), exponent - 53)
    return 1 / float(torch.where(digits == 0, 1.0, lowest).amin().clamp(max=1))
