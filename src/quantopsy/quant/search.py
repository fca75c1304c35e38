"""The nearest of a table's levels by one look-up instead of a binary search.

Where all borders between levels are whole multiples of some 1 / r, a bin of that width lies wholly on one side of
every border, so that the bin decides the level. Learned levels, kept in fixed point, and powers of two are such.

L levels, R tables, n bins of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantopsy.quant.tiles import in_memory_order

# Of one table, so that it stays in the cache.
MOST_BINS = 1 << 13


@dataclass(frozen=True)
class Bins:
    """``codes`` (R, n), int64, of positions in ((first + j - 1) / resolution, (first + j) / resolution], j < n;
    what lies below the first bin or above the last one belongs to it."""

    codes: Tensor
    first: int
    resolution: float

    @classmethod
    def of(cls, borders: Tensor) -> Bins | None:
        """For ``borders`` (R, L - 1), ascending, or ``None`` where they lie on no grid that is coarse enough.

        A position on a border belongs to the lower level.
        """
        # Dozens of operations on a few numbers, each step of a training: NumPy's cost a third of torch's.
        exact = borders.double().numpy()
        resolution = _resolution(exact)
        whole = exact * resolution
        if not whole.max() - whole.min() + 2 <= MOST_BINS:
            return None
        # From zero where that is near: then no first bin has to be subtracted.
        first = int(whole.min())
        first = 0 if 0 < first < resolution else first
        count = int(whole.max()) - first + 2
        # A bin lies above the borders that end one of the bins before it.
        row = count * np.arange(len(whole))[:, None]
        ended = np.bincount((whole.astype(np.int64) - first + 1 + row).ravel(), minlength=len(whole) * count)
        return cls(torch.from_numpy(ended.reshape(-1, count).cumsum(1)), first, resolution)

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


def _resolution(borders: np.ndarray) -> float:
    """The smallest power of two that makes whole numbers of all ``borders``, at least 1."""
    mantissa, exponent = np.frexp(borders)
    digits = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    return 1 / float(np.min(lowest, initial=1.0, where=digits != 0))
