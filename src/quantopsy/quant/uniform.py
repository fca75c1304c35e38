"""Uniform affine quantization: evenly spaced levels, zero among them.

Grid shapes as in :mod:`quantopsy.quant.qparams`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant.grouping import aligned
from quantopsy.quant.qparams import QParams
from quantopsy.quant.quantizer import Quantizer
from quantopsy.quant.sample import Sample
from quantopsy.quant.tiles import tiled


@dataclass(frozen=True)
class UniformQParams(QParams):
    """``q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)``, ``x_hat = (q - zero_point) scale``.

    ``scale`` float32 and ``zero_point`` int32, both of the grid shape.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int

    def encode(self, x: Tensor) -> Tensor:
        zero_point = self._aligned(self.zero_point, x)
        codes = torch.round(x / self._aligned(self.scale, x)) + zero_point
        return codes.clamp_(self.qmin, self.qmax).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self._aligned(self.zero_point, codes)) * self._aligned(self.scale, codes)

    def snap(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.decode(self.encode(x)).to(x.dtype)
        scale = self._aligned(self.scale, x)
        shared = self._shared_zero_point
        if shared is None:
            return tiled(self._snap_tile, x, scale, self._aligned(self.zero_point, x).to(x.dtype))
        low, high = self.qmin - shared, self.qmax - shared
        return tiled(
            lambda out, tile, scale: torch.div(tile, scale, out=out).round_().clamp_(low, high).mul_(scale),
            x,
            scale,
        )

    def snap_by(self, x: Tensor, up: Tensor) -> Tensor:
        """``x`` rounded down to its grid, up where ``up`` says so (AdaRound, Nagel et al. 2020, equation (22))."""
        codes = torch.floor(x / self._aligned(self.scale, x)) + up + self._aligned(self.zero_point, x)
        return self.decode(codes.clamp_(self.qmin, self.qmax).to(torch.int32))

    def covers(self, x: Tensor) -> Tensor:
        codes = torch.round(x / self._aligned(self.scale, x)) + self._aligned(self.zero_point, x)
        return (codes >= self.qmin) & (codes <= self.qmax)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return (self.qmin - self.zero_point) * self.scale, (self.qmax - self.zero_point) * self.scale

    def map_grids(self, change: Callable[[Tensor], Tensor], **layout: Any) -> UniformQParams:
        return replace(self, scale=change(self.scale), zero_point=change(self.zero_point), **layout)

    def join(self, other: UniformQParams) -> UniformQParams:
        scale = torch.cat((self.scale, other.scale), -1)
        return replace(self, scale=scale, zero_point=torch.cat((self.zero_point, other.zero_point), -1))

    @cached_property
    def _shared_zero_point(self) -> int | None:
        """The zero point where all grids have the same: then clamping needs no tensor, 15 times faster."""
        first = self.zero_point.flatten()[:1]
        return int(first) if bool((self.zero_point == first).all()) else None

    def _snap_tile(self, out: Tensor, tile: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        torch.div(tile, scale, out=out).round_().add_(zero_point)
        out.clamp_(self.qmin, self.qmax).sub_(zero_point).mul_(scale)

    def _aligned(self, grid: Tensor, x: Tensor) -> Tensor:
        return aligned(grid, x, self.axis, self.group_size)


def code_range(spec: Spec, signed: bool) -> tuple[int, int]:
    """(qmin, qmax): 0 .. 2^b - 1, or -2^(b-1) .. 2^(b-1) - 1, one less below where ``spec.narrow``."""
    if not signed:
        return 0, 2**spec.bits - 1
    half = 2 ** (spec.bits - 1)
    return -half + spec.narrow, half - 1


def from_range(
    spec: Spec, low: Tensor, high: Tensor, axis: int | None = None, group_size: int | None = None
) -> UniformQParams:
    """The grid of ``spec`` over [``low``, ``high``], tensors of the grid shape, widened to include zero.

    Asymmetric: ``scale = (high - low) / (qmax - qmin)``, zero_point the rounded code of zero. Symmetric with
    m = max(-low, high): ``scale = 2 m / (2^b - 1)``, ``m / qmax`` where narrow, and zero_point 0; unsigned
    codes have zero_point 2^(b-1), or 0 and ``scale = high / qmax`` where no value is negative (PWLQ equation
    (1)). ``spec.signed is None``: signed where any ``low`` is negative. Option ``scale=power_of_two`` takes
    the next larger power of two. A range too small for a normal float32 scale gets scale 1.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    signed = bool((low < 0).any()) if spec.signed is None else spec.signed
    qmin, qmax = code_range(spec, signed)
    steps = qmax - qmin
    if spec.symmetric:
        reach = torch.maximum(-low, high)
        scale = 2 * reach / steps
        middle = torch.full_like(scale, 0 if signed else 2 ** (spec.bits - 1))
        if not signed:
            one_sided = low >= 0
            scale = torch.where(one_sided, high / qmax, scale)
            middle = torch.where(one_sided, 0.0, middle)
    else:
        scale = (high - low) / steps
    if spec.option("scale", "any") == "power_of_two":
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
        scale = torch.where(mantissa == 0, 0.0, scale)
    float32 = torch.finfo(torch.float32)
    scale = torch.where(scale < float32.tiny, 1.0, scale)
    zero_point = middle if spec.symmetric else (qmin - (low / scale).round()).clamp(qmin, qmax)
    # (q - zero_point) * scale must not overflow where the range reaches the largest floats.
    furthest = torch.maximum(zero_point - qmin, qmax - zero_point)
    scale = torch.minimum(scale.float(), (float32.max / furthest).float())
    return UniformQParams(scale, zero_point.to(torch.int32), qmin, qmax, axis=axis, group_size=group_size)


def _fit(spec: Spec, _: Sample, low: Tensor, high: Tensor) -> UniformQParams:
    return from_range(spec, low, high, axis=0)


QUANTIZER = Quantizer(
    name="uniform",
    summary="evenly spaced levels: affine, symmetric or not, zero always exact",
    fit=_fit,
    options={"scale": ("any", "power_of_two")},
)
