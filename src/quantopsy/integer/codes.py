"""A tensor carried as integers: codes, with the scale and zero point of their grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantopsy.quant import UniformQParams


@dataclass(frozen=True)
class Codes:
    """``codes`` (int32) on ``grid``; the reals they stand for are ``(codes - zero_point) scale``."""

    codes: Tensor
    grid: UniformQParams

    @classmethod
    def of(cls, x: Tensor, grid: UniformQParams) -> Codes:
        """Reals ``x`` rounded to ``grid``."""
        return cls(grid.encode(x.float()), grid)

    @property
    def real(self) -> Tensor:
        """Float32, as the simulation has them."""
        return self.grid.decode(self.codes)

    @property
    def centred(self) -> Tensor:
        """Int64 ``codes - zero_point``: 0 where the real is 0."""
        return self.codes.long() - int(self.grid.zero_point)

    @property
    def per_tensor(self) -> bool:
        """One grid for all values, the only kind whose codes can be added up."""
        return self.grid.axis is None
