"""What a fit sees of a tensor: its values, or a histogram's bins, as weighted rows.

R grids (rows), n values in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Weighted rows and their exact extremes.

    ``values`` (R, n); ``weight`` (R, n), how often each occurs, or ``None`` for once; ``width`` (R,) of the
    bins that the values stand for, or ``None`` where they are the tensor's own; ``low`` and ``high`` (R,)
    the extremes of everything seen; ``tracked`` another running range, (R,) each, where one was kept.
    """

    values: Tensor
    weight: Tensor | None
    low: Tensor
    high: Tensor
    width: Tensor | None = None
    tracked: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, rows: Tensor) -> Sample:
        """Every value of ``rows`` (R, n), once."""
        return cls(rows, None, rows.amin(1), rows.amax(1))

    @property
    def reach(self) -> Tensor:
        """max |x| of each row, (R,)."""
        return torch.maximum(-self.low, self.high)

    def rows(self, part: slice) -> Sample:
        """Some of the rows."""
        return Sample(
            self.values[part],
            None if self.weight is None else self.weight[part],
            self.low[part],
            self.high[part],
            None if self.width is None else self.width[part],
            None if self.tracked is None else (self.tracked[0][part], self.tracked[1][part]),
        )

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean (R,) of ``values`` (R, n), some function of ``self.values``."""
        if self.weight is None:
            return values.mean(1)
        weight = self.weight.to(values.dtype)
        return (values * weight).sum(1) / weight.sum(1)

    def std(self) -> Tensor:
        """Standard deviation (R,) about the mean, of the population."""
        return self.mean((self.values - self.mean(self.values)[:, None]) ** 2).sqrt()
