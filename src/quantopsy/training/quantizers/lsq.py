"""Learned step size: a grid whose scale is trained, and whose offset may be.

LSQ (Esser et al. 2020), LSQ+ (Bhalgat et al. 2020); with a table of powers of two in place of evenly spaced
levels the same gradient is that of APoT's clipping threshold (Li et al. 2020, equation (8)).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from quantopsy.core import Spec
from quantopsy.core.plan import Role
from quantopsy.quant import LevelsQParams, QParams, UniformQParams
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer, RateGroup
from quantopsy.training.quantizers.gates import Gates
from quantopsy.training.quantizers.gradients import GatedBits, LearnedStep
from quantopsy.training.quantizers.sharing import values_per_grid
from quantopsy.training.quantizers.state import GridState

# Training can push a scale to zero and beyond, where there is no grid.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class LearnedScale(FakeQuantizer):
    """x_q = scale level, with trained ``scale`` and the levels of the calibrated grid.

    With ``gates`` of a uniform grid, every gate that closes keeps every other level: the grid of s bits has
    2^(b - s) times the step, and integer runtimes can hold it whatever s is.
    """

    def __init__(
        self,
        spec: Spec,
        qparams: UniformQParams | LevelsQParams,
        role: Role,
        correction: float = 0.0,
        gates: Gates | None = None,
    ) -> None:
        super().__init__(spec, correction, gates)
        self.scale = nn.Parameter(qparams.scale.detach().clone())
        self._grid = GridState(qparams)
        self._gradient_scale = GradientScale(qparams, role)

    @property
    def qparams(self) -> UniformQParams | LevelsQParams:
        return self._with_bits(self.bits)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.qparams
        factor = self._gradient_scale(x, grid, self.spec.bits - self.bits)
        result: Tensor = LearnedStep.apply(x, self.scale, None, grid, factor, self.correction)
        if self.gates is None or not torch.is_grad_enabled():
            return result
        coarser, finer = (
            self._with_bits(bits) if self._may_have(bits) else None for bits in (self.bits - 1, self.bits + 1)
        )
        gated: Tensor = GatedBits.apply(result, x, self.gates(), coarser, finer)
        return gated

    def rate_groups(self) -> dict[RateGroup, list[nn.Parameter]]:
        return {"scale": [self.scale], **super().rate_groups()}

    def _may_have(self, bits: int) -> bool:
        return self.gates is not None and self.gates.minimum <= bits <= self.spec.bits

    def _with_bits(self, bits: int) -> UniformQParams | LevelsQParams:
        grid = replace(self._grid.value, scale=self.scale.detach().clamp(min=SMALLEST_SCALE))
        return grid if bits == self.spec.bits else _every(grid, 2 ** (self.spec.bits - bits))


class LearnedScaleAndOffset(FakeQuantizer):
    """x_q = (code - zero_point) scale with ``zero_point = round(-offset / scale)``; both trained. For activations.

    The paper's offset is any real; ours is rounded to a multiple of the scale, straight through, so that zero
    stays a level and integer runtimes can hold the grid.
    """

    def __init__(self, spec: Spec, qparams: UniformQParams, role: Role, correction: float = 0.0) -> None:
        super().__init__(spec, correction)
        self.scale = nn.Parameter(qparams.scale.detach().clone())
        self.offset = nn.Parameter(-qparams.zero_point * qparams.scale.detach())
        self._grid = GridState(qparams)
        self._gradient_scale = GradientScale(qparams, role)

    @property
    def qparams(self) -> UniformQParams:
        scale = self.scale.detach().clamp(min=SMALLEST_SCALE)
        grid = self._grid.value
        zero_point = torch.round(-self.offset.detach() / scale).clamp(grid.qmin, grid.qmax)
        return replace(grid, scale=scale, zero_point=zero_point.to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.qparams
        factor = self._gradient_scale(x, grid)
        result: Tensor = LearnedStep.apply(x, self.scale, self.offset, grid, factor, self.correction)
        return result

    def rate_groups(self) -> dict[RateGroup, list[nn.Parameter]]:
        return {"scale": [self.scale], "offset": [self.offset]}

    def fitted(self, spec: Spec) -> Spec:
        fitted, start = super().fitted(spec), self._grid.value.zero_point
        return replace(fitted, symmetric=fitted.symmetric and torch.equal(self.qparams.zero_point, start))


def _every(grid: UniformQParams | LevelsQParams, step: int) -> UniformQParams:
    """Every ``step``-th level of a uniform grid, counted from zero."""
    assert isinstance(grid, UniformQParams)
    qmin, qmax = -(-grid.qmin // step), (grid.qmax + 1) // step - 1
    zero_point = torch.round(grid.zero_point / step).clamp(qmin, qmax).to(grid.zero_point.dtype)
    return replace(grid, scale=grid.scale * step, zero_point=zero_point, qmin=qmin, qmax=qmax)


class GradientScale(nn.Module):
    """``1 / sqrt(N Q_P)`` (LSQ section 2.2): N values that share the grid, of one image where they are
    activations; Q_P the highest level in units of the scale, at least 1.

    With ``closed`` gates the step is S = 2^closed times the scale, and there are as many times fewer levels. The
    scale's gradient over the scale is 4^closed times that of S over S; what moves S as LSQ moves it at that many bits
    is 2^(-3/2 closed) of the above.
    """

    unit: Tensor

    def __init__(self, qparams: UniformQParams | LevelsQParams, role: Role) -> None:
        super().__init__()
        highest = (qparams.ends[1] / qparams.scale).detach().clamp(min=1)
        self.register_buffer("unit", highest.rsqrt(), persistent=False)
        self._role = role

    def forward(self, x: Tensor, grid: QParams, closed: int = 0) -> Tensor:
        images = 1 if self._role == "weight" else x.shape[0]
        return self.unit * (values_per_grid(x, grid) / images) ** -0.5 * 2 ** (-1.5 * closed)
