"""What every realised grid can do, whatever its kind.

A grid's tensors have the *grid shape*: ``()`` for one grid per tensor, ``(C,)`` for one per channel of
``axis``, ``(C, G)`` for G groups of ``group_size`` channels of the other channel dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError


@dataclass(frozen=True, kw_only=True)
class QParams(ABC):
    """Tensors that realise a spec. ``axis`` and ``group_size`` say which values share a grid."""

    axis: int | None = None
    group_size: int | None = None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes (int32) of a float32 or float64 ``x`` without NaN; same shape."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Reals (float32) that ``codes`` stand for; same shape."""

    @abstractmethod
    def snap(self, x: Tensor) -> Tensor:
        """``decode(encode(x))`` for a float32 or float64 ``x``, without the detour over integers."""

    @abstractmethod
    def covers(self, x: Tensor) -> Tensor:
        """True where ``x`` is rounded, False where it is clipped."""

    @property
    @abstractmethod
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest real of every grid: two tensors (float32) of the grid shape."""

    @property
    def outermost(self) -> tuple[float, float]:
        """The lowest and the highest real of all grids."""
        low, high = self.ends
        return float(low.min()), float(high.max())

    @abstractmethod
    def map_grids(self, change: Callable[[Tensor], Tensor], **layout: Any) -> Self:
        """The same grids with ``change`` applied to every tensor of the grid shape (levels: its leading
        dimensions) and the fields named in ``layout`` replaced."""

    @abstractmethod
    def join(self, other: Self) -> Self:
        """The groups of ``self`` followed by those of ``other``, along the grid shape's last dimension."""


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Codes (int32) of ``x``; infinite values saturate. Raises :class:`QuantopsyError` for NaN."""
    refuse_nan(x)
    return qparams.encode(wide(x.detach()))


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """Reals (float32) that ``codes`` stand for."""
    return qparams.decode(codes)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``dequantize(quantize(x))`` in the dtype and memory format of ``x``, without a gradient.

    float16 and bfloat16 are computed in float32. Infinite values saturate. Raises
    :class:`QuantopsyError` for NaN, except on an accelerator or under ``torch.compile``, where looking
    would mean waiting for the device: there NaN stays NaN.
    """
    refuse_nan(x)
    return narrow(qparams.snap(wide(x.detach())), x.dtype)


def fake_quantize_ste(x: Tensor, qparams: QParams) -> Tensor:
    """:func:`fake_quantize` with the straight-through gradient: 1 where ``x`` is rounded, 0 where clipped."""
    result: Tensor = _StraightThrough.apply(x, qparams)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qparams: QParams) -> Tensor:
        ctx.save_for_backward(qparams.covers(wide(x)))
        return fake_quantize(x, qparams)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (covered,) = ctx.saved_tensors
        return grads[0] * covered, None


def wide(x: Tensor) -> Tensor:
    """``x`` in a float that grids are computed in: float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``, its values within what that can hold."""
    # The outermost level may lie just beyond what a half can hold; it must not become infinite.
    if x.dtype == dtype:
        return x
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def refuse_nan(x: Tensor) -> None:
    """Raise :class:`QuantopsyError` for what is not a float, and for NaN where looking does not cost a wait."""
    if not x.is_floating_point():
        raise QuantopsyError(f"tensor of {x.dtype}", "only floats can be quantized", "convert it with .float()")
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return
    # A sum is the cheapest look at every value: 4 % of the fake quantization it guards.
    if not torch.isfinite(x.sum()) and torch.isnan(x).any():
        raise QuantopsyError("tensor to quantize", "it holds NaN", "find the layer that makes it in the float network")
