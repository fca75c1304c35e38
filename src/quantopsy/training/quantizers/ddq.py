"""Differentiable dynamic quantization: levels that are trained (DDQ sections 2.2 and 3.2).

b bits at most, b_q bits in which a level is stored, L = 2^b; grid shapes as in :mod:`quantopsy.quant.qparams`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from quantopsy.core import QuantopsyError, Spec
from quantopsy.core.plan import Role
from quantopsy.quant import LevelsQParams, UniformQParams
from quantopsy.quant.learned import compose
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer, RateGroup
from quantopsy.training.quantizers.gates import Gates
from quantopsy.training.quantizers.gradients import LearnedLevels
from quantopsy.training.quantizers.lsq import SMALLEST_SCALE, GradientScale


class DDQ(FakeQuantizer):
    """x_q is the nearest of the levels ``(U^T / Z_U (R(q~) + lowest)) scale`` (DDQ equations (3) and (4)).

    Trained: ``q~`` (..., 2^b) in units of the scale, which starts at 0, 1, ..., 2^b - 1; the ``scale``; with
    ``gates`` the bit-width, U being theirs (section 2.3). R is fixed point of b integer and b_q - b further bits,
    so that the uniform start is exact for any ``stored_bits`` b_q; it is sorted, so that levels may cross. Of levels
    that have met, the lower gets the values below and the upper those above, which can part them again.

    The scale takes the place of the paper's (x_max - x_min) / (2^b - 1), which is the data's: it is trained with
    LSQ's gradient and gradient scale, so that with ``q~`` held DDQ is LSQ. The level of an activation that is
    nearest to zero is put at exactly zero, where padding and rectified values are.
    """

    lowest: Tensor

    def __init__(
        self,
        spec: Spec,
        qparams: LevelsQParams,
        role: Role,
        correction: float = 0.0,
        stored_bits: int = 8,
        gates: Gates | None = None,
    ) -> None:
        super().__init__(spec, correction, gates)
        if stored_bits < spec.bits:
            raise QuantopsyError(
                f"levels stored with {stored_bits} bits", f"the quantizer has {spec.bits}", "give at least as many"
            )
        self.scale = nn.Parameter(qparams.scale.detach().clone())
        self.register_buffer("lowest", qparams.levels[..., :1].detach().clone())
        self.levels = nn.Parameter((qparams.levels - self.lowest).detach().clone())
        self._fraction = 2 ** (stored_bits - spec.bits)
        if not torch.equal(store(self.levels.detach(), self._fraction), self.levels):
            raise QuantopsyError(
                f"levels stored with {stored_bits} bits",
                "the calibrated ones are not among those",
                "start from a uniform grid, or store more bits",
            )
        self._axis, self._group_size = qparams.axis, qparams.group_size
        self._of_activation = role != "weight"
        self._gradient_scale = GradientScale(qparams, role)

    @property
    def qparams(self) -> LevelsQParams:
        with torch.no_grad():
            return self._grid(self._composed())

    def forward(self, x: Tensor) -> Tensor:
        levels = self._composed()
        grid = self._grid(levels.detach())
        factor = self._gradient_scale(x, grid, self.spec.bits - self.bits)
        result: Tensor = LearnedLevels.apply(x, self.scale, levels, grid, factor, self.correction)
        return result

    def rate_groups(self) -> dict[RateGroup, list[nn.Parameter]]:
        return {"scale": [self.scale], "levels": [self.levels], **super().rate_groups()}

    def _composed(self) -> Tensor:
        """Levels (..., 2^s) in units of the scale, ascending, with a gradient."""
        if self.gates is None:
            levels: Tensor = StoredLevels.apply(self.levels, self.lowest, self._fraction, self._of_activation)
            return levels
        block = 2 ** (self.spec.bits - self.gates.bits)
        levels = StoredLevels.apply(self.levels, self.lowest, self._fraction, False)
        levels = compose(levels, self.gates())[..., ::block]
        return levels.masked_fill(nearest_to_zero(levels.detach()), 0) if self._of_activation else levels

    def _grid(self, levels: Tensor) -> LevelsQParams:
        scale = self.scale.detach().clamp(min=SMALLEST_SCALE)
        return LevelsQParams(levels, scale, axis=self._axis, group_size=self._group_size)


def even(grid: LevelsQParams, spec: Spec) -> UniformQParams | None:
    """The uniform grid that has the levels of ``grid``, to the bit; None where they are not evenly spaced around zero
    by a power of two of the scale (DDQ section 2.2: "DDQ reduces to a uniform quantizer when q is uniform").

    Only values half way between two levels go elsewhere: to the even code instead of the lower level.
    """
    gaps = grid.levels.diff(dim=-1)
    gap = gaps.flatten()[0]
    lowest = grid.levels[..., 0] / gap
    mantissa, _ = torch.frexp(gap)
    if gap <= 0 or mantissa != 0.5 or not bool((gaps == gap).all()) or not torch.equal(lowest, lowest.round()):
        return None
    count = grid.levels.shape[-1]
    signed = bool((lowest < 0).any()) if spec.signed is None else spec.signed
    qmin = -count // 2 if signed else 0
    zero_point = (qmin - lowest).expand(grid.scale.shape)
    if bool((zero_point < qmin).any()) or bool((zero_point > qmin + count - 1).any()):
        return None
    return UniformQParams(
        grid.scale * gap,
        zero_point.to(torch.int32).clone(),
        qmin,
        qmin + count - 1,
        axis=grid.axis,
        group_size=grid.group_size,
    )


def store(levels: Tensor, fraction: int) -> Tensor:
    """``R()`` of DDQ equation (4): ``levels`` (..., 2^b) as fixed point within [0, 2^b), with ``fraction`` =
    2^(b_q - b) parts of one."""
    largest = levels.shape[-1] * fraction - 1
    return (levels * fraction).round().clamp(0, largest) / fraction


def nearest_to_zero(levels: Tensor) -> Tensor:
    """True for the level of least magnitude of every table (..., L), for two where they are equally near."""
    magnitude = levels.abs()
    return magnitude == magnitude.amin(-1, keepdim=True)


class StoredLevels(Function):
    """``apply(q~, lowest, fraction, pinned)``: ``R(q~) + lowest`` in ascending order, the one nearest to zero at
    exactly zero where ``pinned``.

    Straight through: every entry gets the gradient of the place it was sorted to, a pinned one none.
    """

    @staticmethod
    def forward(ctx: Any, levels: Tensor, lowest: Tensor, fraction: int, pinned: bool) -> Tensor:
        stored, order = store(levels, fraction).sort(dim=-1, stable=True)
        stored += lowest
        held = nearest_to_zero(stored) if pinned else None
        ctx.save_for_backward(order, held)
        return stored if held is None else stored.masked_fill_(held, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        order, held = ctx.saved_tensors
        gradient = grads[0] if held is None else grads[0].masked_fill(held, 0)
        return torch.empty_like(gradient).scatter_(-1, order, gradient), None, None, None
