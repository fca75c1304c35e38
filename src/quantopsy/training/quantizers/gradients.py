"""Values on a grid whose scale, offset or levels are trained, and the gradients of those.

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

from quantopsy.quant import LevelsQParams, QParams, fake_quantize
from quantopsy.quant.qparams import narrow, refuse_nan, wide
from quantopsy.training.quantizers.sharing import products, sums, sums_by_place, within_ends


class LearnedStep(Function):
    """``apply(x, scale, offset, grid, factor, correction)``: gradients of LSQ (Esser et al. 2020, equation (3))
    and, where ``offset`` is not ``None``, of LSQ+ (Bhalgat et al. 2020, section 3.1).

    dx_q/ds = (x_q - x) / s within the ends and x_q / s beyond: for a uniform grid round(x / s) - x / s, and Q_N or
    Q_P. With an offset beta = -zero_point s, which stays while s moves, it is (x_q - beta) / s beyond the ends, the
    code; dx_q/dbeta = 0 within, 1 beyond. ``factor``, LSQ's gradient scale, multiplies all of them.
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
        gradient, x, result = wide(grads[0]), wide(x), wide(result)
        to_x = within_ends(gradient, x, ctx.grid)
        to_grid, rounded = _corrected(gradient, to_x, result, x, ctx)
        # The sum of g' (x_q - x) within and g' x_q beyond, as two inner products.
        to_scale = (products(to_grid, result, ctx.grid) - products(rounded, x, ctx.grid)) / scale
        to_x = to_x.to(grads[0].dtype)
        if not offset:
            return to_x, factor * to_scale, None, None, None, None
        beyond = sums(to_grid - rounded, ctx.grid)
        to_scale = to_scale - beyond * offset[0] / scale
        return to_x, factor * to_scale, factor * beyond, None, None, None


class LearnedClip(Function):
    """``apply(x, scale, grid, correction)``: the gradient of PACT (Choi et al. 2018, section 3).

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
        gradient, x, result = wide(grads[0]), wide(x), wide(result)
        to_x = within_ends(gradient, x, ctx.grid)
        to_grid, rounded = _corrected(gradient, to_x, result, x, ctx)
        to_scale = products(to_grid - rounded, result, ctx.grid) / scale
        return to_x.to(grads[0].dtype), to_scale, None, None


class GatedBits(Function):
    """``apply(x_q, x, gates, coarser, finer)``: ``x_q`` itself, with a gradient to the ``gates`` (b,) that say how many
    bits there are.

    ``coarser`` and ``finer`` are the grids with one bit less and one more, None where there is none. An output between
    the two, Q_(s-1)(x) + gate_s (Q_s(x) - Q_(s-1)(x)), has the gradient <g, Q_s(x) - Q_(s-1)(x)> to gate s, the last
    that is open, and likewise to the first that is closed; others get none.
    """

    @staticmethod
    def forward(
        ctx: Any, x_q: Tensor, x: Tensor, gates: Tensor, coarser: QParams | None, finer: QParams | None
    ) -> Tensor:
        ctx.save_for_backward(x_q, x, gates)
        ctx.coarser, ctx.finer = coarser, finer
        return x_q.view_as(x_q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_q, x, gates = ctx.saved_tensors
        gradient, x_q, x = wide(grads[0]), wide(x_q), wide(x)
        to_gates, bits = torch.zeros_like(gates), int(gates.sum())
        if ctx.coarser is not None:
            to_gates[bits - 1] = (gradient * (x_q - ctx.coarser.snap(x))).sum()
        if ctx.finer is not None:
            to_gates[bits] = (gradient * (ctx.finer.snap(x) - x_q)).sum()
        return grads[0], None, to_gates, None, None


class LearnedLevels(Function):
    """``apply(x, scale, levels, grid, factor, correction)``: DDQ equations (8) and (9).

    ``grid`` has the same ``levels`` (..., L) and scale, detached. dL/dlevels_k = s times the sum of g' over the values
    on level k; the scale's gradient is LSQ's. Kept: ``x`` and where each value was found, 1 to 4 bytes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, _: Tensor, grid: LevelsQParams, factor: Tensor, correction: float
    ) -> Tensor:
        refuse_nan(x)
        result, places, level = grid.locate(wide(x))
        ctx.save_for_backward(x, places, level, scale, factor)
        ctx.grid, ctx.correction = grid, correction
        return narrow(result, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, places, level, scale, factor = ctx.saved_tensors
        grid: LevelsQParams = ctx.grid
        gradient, x = wide(grads[0]), wide(x)
        to_x = within_ends(gradient, x, grid)
        to_grid, rounded = gradient, to_x
        if ctx.correction:
            to_grid, rounded = _corrected(gradient, to_x, grid.snap(x), x, ctx)
        by_place = sums_by_place(to_grid, places, len(level))
        by_level = by_place.new_zeros(grid.levels.numel()).index_add_(0, level, by_place).view_as(grid.levels)
        to_scale = (grid.levels * by_level).sum(-1) - products(rounded, x, grid) / scale
        return to_x.to(grads[0].dtype), factor * to_scale, by_level * scale[..., None], None, None, None


def _corrected(gradient: Tensor, to_x: Tensor, x_q: Tensor, x: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
    """``g + lambda (x_q - x)``, what the quantizer's own parameters receive (DDQ equation (9)), and its part
    within the ends. ``to_x`` is that part of ``gradient``."""
    if ctx.correction == 0:
        return gradient, to_x
    whole = torch.add(gradient, x_q - x, alpha=ctx.correction)
    return whole, within_ends(whole, x, ctx.grid)
