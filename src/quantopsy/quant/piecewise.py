"""Piecewise linear quantization: a dense grid around zero, a sparse one beyond (PWLQ section 3.2).

Grid shapes as in :mod:`quantopsy.quant.qparams`; N = 2^b levels in each piece, p the breakpoint, m the
largest magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantopsy.quant.grouping import aligned
from quantopsy.quant.qparams import QParams
from quantopsy.quant.tiles import tiled


@dataclass(frozen=True)
class PiecewiseQParams(QParams):
    """Steps ``inner_scale`` on [-p, p] and ``outer_scale`` beyond, up to m, where ``p = (N - 1) inner_scale``
    and ``m = p + (N - 1) outer_scale``; float32 of the grid shape. ``bits`` is b, per piece.

    Codes count levels from zero outwards, with the sign of the value: |code| <= N - 1 lies in the inner
    region, |code| - (N - 1) is the code of the outer one. They need b + 2 bits (b + 1 unsigned), as in
    PWLQ; the breakpoint, which both regions hold, has one code here.
    """

    inner_scale: Tensor
    outer_scale: Tensor
    bits: int
    signed: bool

    @property
    def breakpoint(self) -> Tensor:
        """p."""
        return self.inner_scale * self._most

    @property
    def maximum(self) -> Tensor:
        """m."""
        return self.breakpoint + self.outer_scale * self._most

    def encode(self, x: Tensor) -> Tensor:
        position = x / self._aligned(self.inner_scale, x)
        inner = position.clamp(self._least, self._most)
        outer = ((position - inner) * self._aligned(self._ratio, x)).round().clamp(self._least, self._most)
        return (inner.round() + outer).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        inner = codes.clamp(self._least, self._most)
        outer = (codes - inner) * self._aligned(self.outer_scale, codes)
        return inner * self._aligned(self.inner_scale, codes) + outer

    def snap(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.decode(self.encode(x)).to(x.dtype)
        grids = (self.inner_scale, self._ratio, self.outer_scale)
        kernel = partial(snap_tile, least=self._least, most=self._most)
        return tiled(kernel, x, *(self._aligned(grid, x) for grid in grids))

    def covers(self, x: Tensor) -> Tensor:
        # As for a uniform grid: up to half a step beyond the last level is rounded to it, not clipped.
        end = self._aligned(self.maximum + self.outer_scale / 2, x)
        return (x <= end) & (x >= (-end if self.signed else -self._aligned(self.inner_scale / 2, x)))

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        highest = self.maximum
        return -highest if self.signed else torch.zeros_like(highest), highest

    def map_grids(self, change: Callable[[Tensor], Tensor], **layout: Any) -> PiecewiseQParams:
        inner, outer = change(self.inner_scale), change(self.outer_scale)
        return replace(self, inner_scale=inner, outer_scale=outer, **layout)

    def join(self, other: PiecewiseQParams) -> PiecewiseQParams:
        inner = torch.cat((self.inner_scale, other.inner_scale), -1)
        return replace(self, inner_scale=inner, outer_scale=torch.cat((self.outer_scale, other.outer_scale), -1))

    @property
    def _most(self) -> int:
        return 2**self.bits - 1

    @property
    def _least(self) -> int:
        return -self._most if self.signed else 0

    @property
    def _ratio(self) -> Tensor:
        return step_ratio(self.inner_scale, self.outer_scale)

    def _aligned(self, grid: Tensor, x: Tensor) -> Tensor:
        return aligned(grid, x, self.axis, self.group_size)


def step_ratio(inner_scale: Tensor, outer_scale: Tensor) -> Tensor:
    """Inner over outer step; next to nothing where there is no outer region, so that outer codes are 0."""
    return torch.where(outer_scale > 0, inner_scale / outer_scale, 1e-30)


def snap_tile(
    out: Tensor, x: Tensor, inner_scale: Tensor, ratio: Tensor, outer_scale: Tensor, *, least: int, most: int
) -> None:
    """PWLQ equation (3) into ``out``, without branches: what the inner region cannot hold is left for the
    outer one, and both round towards even alike on either side of zero, so the sign needs no care."""
    torch.div(x, inner_scale, out=out)
    inner = out.clamp(least, most)
    out.sub_(inner).mul_(ratio).round_().clamp_(least, most).mul_(outer_scale)
    out.add_(inner.round_().mul_(inner_scale))


def scales(maximum: Tensor, breakpoint_: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(inner, outer) steps, float32, of pieces that meet at ``breakpoint_`` and end at ``maximum``.

    A region too narrow for its levels to be told apart in float32 is given to the other one, and a range
    too small for normal numbers gets steps of 1.
    """
    most = 2**bits - 1
    epsilon = torch.finfo(torch.float32).eps
    maximum, breakpoint_ = maximum.double(), breakpoint_.double()
    breakpoint_ = torch.where(maximum - breakpoint_ < 8 * epsilon * most * maximum, maximum, breakpoint_)
    inner, outer = breakpoint_ / most, (maximum - breakpoint_) / most
    tiny = inner < torch.finfo(torch.float32).tiny
    # The last level must stay finite where the range reaches the largest floats.
    inner, outer = (torch.where(tiny, 1.0, scale * (1 - 4 * epsilon)).float() for scale in (inner, outer))
    return inner, outer


def from_breakpoint(
    maximum: Tensor,
    breakpoint_: Tensor,
    bits: int,
    signed: bool,
    axis: int | None = None,
    group_size: int | None = None,
) -> PiecewiseQParams:
    """The grid over [-m, m], or [0, m] unsigned, with ``bits`` in each piece; m and p of the grid shape."""
    inner, outer = scales(maximum, breakpoint_, bits)
    return PiecewiseQParams(inner, outer, bits, signed, axis=axis, group_size=group_size)
