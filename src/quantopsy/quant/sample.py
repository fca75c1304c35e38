"""What a fit sees of a tensor: its values, or a histogram's bins, as weighted rows.

R grids (rows), n values in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """``values`` (R, n); ``weight`` (R, n), how often each occurs, or None for once; ``low`` and ``high`` (R,)
    the exact extremes of everything seen; ``tracked`` another running range (R,) each, where one was kept."""

    values: Tensor
    weight: Tensor | None
    low: Tensor
    high: Tensor
    tracked: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, rows: Tensor) -> Sample:
        """Every value of ``rows`` (R, n), once."""
        return cls(rows, None, rows.amin(1), rows.amax(1))

    @property
    def reach(self) -> Tensor:
        """max |x| of each row, (R,)."""
        return torch.maximum(-self.low, self.high)

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean (R,) of ``values`` (R, n), some function of ``self.values``."""
        if self.weight is None:
            return values.mean(1)
        weight = self.weight.to(values.dtype)
        return (values * weight).sum(1) / weight.sum(1).clamp(min=1)

    def std(self) -> Tensor:
        """Standard deviation (R,) about the mean, of the population."""
        return self.mean((self.values - self.mean(self.values)[:, None]) ** 2).sqrt()
