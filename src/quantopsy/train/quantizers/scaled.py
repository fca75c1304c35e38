"""Values on a grid whose scale is trained, and the gradients of that scale and of an offset.

x the values, x_q = snap(x), s the scale, [low, high] the ends of the grid, g the incoming gradient, and
g' = g + lambda (x_q - x), the corrected one that reaches parameters (DDQ equation (9)). Straight through the
rounding, dx_q/dx = 1 within [low, high] and 0 beyond, ends included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from quantopsy.quant import QParams, fake_quantize
from quantopsy.quant.grouping import aligned
from quantopsy.train.quantizers.sharing import sums


class LearnedStep(Function):
    """``apply(x, scale, offset, grid, factor, correction)``: gradients of LSQ (Esser et al. 2020, equation (3))
    and, where ``offset`` is not ``None``, of LSQ+ (Bhalgat et al. 2020, equations (5) and (6)).

    dx_q/ds = (x_q - x) / s within the ends and x_q / s beyond: for a uniform grid round(x / s) - x / s, and Q_N or
    Q_P. With an offset beta = -zero_point s it is held while s moves, so beyond the ends it is (x_q - beta) / s,
    the code; and dx_q/dbeta = 0 within, 1 beyond. Both are multiplied by ``factor``, LSQ's gradient scale.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor | None, grid: QParams, factor: Tensor, correction: float
    ) -> Tensor:
        result = fake_quantize(x, grid)
        ctx.save_for_backward(x, result, scale, factor, *(() if offset is None else (offset,)))
        ctx.grid, ctx.correction = grid, correction
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, result, scale, factor, *offset = ctx.saved_tensors
        inside = within(x, ctx.grid)
        to_x = grads[0] * inside
        to_grid = corrected(grads[0], result, x, ctx.correction)
        to_scale = sums(to_grid * (result - x * inside), ctx.grid) / scale
        if not offset:
            return to_x, factor * to_scale, None, None, None, None
        beyond = sums(to_grid * ~inside, ctx.grid)
        to_scale = to_scale - beyond * offset[0] / scale
        return to_x, factor * to_scale, factor * beyond, None, None, None


class LearnedClip(Function):
    """``apply(x, scale, grid, correction)``: the gradient of PACT (Choi et al. 2018, equation (3)).

    Only clipped values reach the scale: dx_q/ds = x_q / s beyond the ends, 0 within.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: QParams, correction: float) -> Tensor:
        result = fake_quantize(x, grid)
        ctx.save_for_backward(x, result, scale)
        ctx.grid, ctx.correction = grid, correction
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, result, scale = ctx.saved_tensors
        inside = within(x, ctx.grid)
        to_grid = corrected(grads[0], result, x, ctx.correction)
        return grads[0] * inside, sums(to_grid * (result * ~inside), ctx.grid) / scale, None, None


def within(x: Tensor, grid: QParams) -> Tensor:
    """True where ``x`` lies between the lowest and the highest level, both included."""
    low, high = (aligned(end, x, grid.axis, grid.group_size) for end in grid.ends)
    return (x >= low) & (x <= high)


def corrected(gradient: Tensor, x_q: Tensor, x: Tensor, correction: float) -> Tensor:
    """``g + lambda (x_q - x)``, what the quantizer's own parameters receive (DDQ equation (9))."""
    if correction == 0:
        return gradient
    return torch.add(gradient, x_q - x, alpha=correction)
