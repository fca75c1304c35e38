"""Functions of one variable as tables: an entry for every code of the input, 256 of 8 bits.

What the table holds is ``Q_y(f(x_hat))`` for each x_hat, so it is exact: a sigmoid, a hardswish, another grid for the
same values, all cost one look-up and no error of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError, Spec
from quantopsy.integer.codes import Codes
from quantopsy.quant import UniformQParams
from quantopsy.quant.uniform import from_range

Function = Callable[[Tensor], Tensor]

_SAMPLES = 1 << 14


def table(function: Function, source: UniformQParams, target: UniformQParams) -> Tensor:
    """(qmax - qmin + 1,) int32: the codes on ``target`` of ``function`` at every level of ``source``, in order.

    Raises :class:`QuantopsyError` for grids of single channels, and a function that gives NaN.
    """
    if source.axis is not None or target.axis is not None:
        raise QuantopsyError("table", "a grid of single channels would need one each", "take grids per tensor")
    codes = torch.arange(source.qmin, source.qmax + 1, device=source.scale.device)
    values = function(source.decode(codes))
    if bool(values.isnan().any()):
        raise QuantopsyError("table", "the function is not defined on all of the input's grid", "narrow that grid")
    return target.encode(values)


def look_up(x: Codes, entries: Tensor, target: UniformQParams) -> Codes:
    """``entries`` of :func:`table` for the grid of ``x``, at every code."""
    return Codes(entries[x.codes.long() - x.grid.qmin], target)


def identity(x: Tensor) -> Tensor:
    """The function of a change of grids."""
    return x


def table_input(function: Function, target: UniformQParams, reach: float, bits: int) -> UniformQParams:
    """The grid on which ``function`` of accumulators is looked up: ``bits`` over the reals that matter.

    Accumulators have no grid of so few bits. Below some x, and above another, all results have one code on
    ``target``; the grid spans what lies between, within [-``reach``, ``reach``], the reals that the accumulators can
    stand for. What is outside is clipped and gets the right code all the same.
    """
    low, high = -reach, reach
    for _ in range(4):  # each time what is constant at the ends is cut off, and the rest looked at more closely
        x = torch.linspace(low, high, _SAMPLES, dtype=torch.float64)
        codes = target.encode(function(x.float()))
        changes = torch.nonzero(codes[1:] != codes[:-1]).flatten()
        if not len(changes):
            break
        step = (high - low) / (_SAMPLES - 1)
        low, high = max(low, float(x[changes[0]]) - step), min(high, float(x[changes[-1] + 1]) + step)
    # The zero point is rounded, which moves the ends by up to half a step: what is clipped must still be right.
    step = (high - low) / (2**bits - 1)
    low, high = low - step, high + step
    return from_range(Spec(bits=bits, signed=True), torch.tensor(low).double(), torch.tensor(high).double())
