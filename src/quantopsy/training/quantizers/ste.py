"""A grid that follows the data or stays, and a gradient that passes straight through it (Jacob et al. 2018)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, Spec
from quantopsy.core.plan import Role
from quantopsy.quant import QParams, UniformQParams, fake_quantize_ste
from quantopsy.quant.grouping import rows_per_channel, rows_per_group
from quantopsy.quant.uniform import from_range
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.state import GridState


class StraightThrough(FakeQuantizer):
    """dx_q/dx = 1 where ``x`` is rounded, 0 where it is clipped; nothing of the grid has a gradient.

    The grid is fixed, or, between :meth:`observe` and :meth:`freeze` and in training mode, its range is that
    of the weight, or the moving average of an activation's batches (Jacob et al. 2018, section 3.1): from the least to
    the greatest value, whatever range the spec's estimator calibrated.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: Spec, qparams: QParams, role: Role) -> None:
        super().__init__(spec)
        self._grid = GridState(qparams)
        self._role = role
        self._rate: float | None = None
        low, high = qparams.ends
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("high", high.detach().clone())

    def observe(self, rate: float = 0.01) -> None:
        """Follow the data from now on; ``rate`` is a batch's share in an activation's moving average.

        Raises :class:`QuantopsyError` for a grid that is not uniform.
        """
        if not isinstance(self.qparams, UniformQParams):
            raise QuantopsyError(f"a grid of kind {self.spec.kind}", "only a uniform one can follow a range", "fix it")
        self._rate = 1.0 if self._role == "weight" else rate

    def freeze(self) -> None:
        """Keep the grid as it is from now on."""
        self._rate = None

    @property
    def qparams(self) -> QParams:
        return self._grid.value

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self._rate is not None:
            self._follow(x.detach().float(), self._rate)
        return fake_quantize_ste(x, self.qparams)

    def _follow(self, x: Tensor, rate: float) -> None:
        grid = self.qparams
        assert isinstance(grid, UniformQParams)
        low, high = _extremes(x, grid)
        self.low.lerp_(low, rate)
        self.high.lerp_(high, rate)
        spec = replace(self.spec, signed=grid.qmin < 0)
        self._grid.value = from_range(spec, self.low, self.high, grid.axis, grid.group_size)


def _extremes(x: Tensor, grid: QParams) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every grid."""
    if grid.axis is None:
        low, high = x.aminmax()
        return low, high
    if grid.group_size is None:
        low, high = rows_per_channel(x, grid.axis).aminmax(dim=1)
        return low, high
    parts = [part.aminmax(dim=-1) for part in rows_per_group(x, grid.axis, grid.group_size)]
    return torch.cat([part.min for part in parts], 1), torch.cat([part.max for part in parts], 1)
