"""From a spec and data to qparams: for a tensor in hand, and for statistics of activations."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from quantopsy.calibrate.observer import Observer, observer
from quantopsy.calibrate.registry import check, estimate_range
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import QParams, Sample
from quantopsy.quant.grouping import group_size, rows_per_channel, rows_per_group
from quantopsy.quant.registry import quantizer


def fit(spec: Spec, x: Tensor, *, axis: int = 0) -> QParams:
    """Qparams of ``spec`` for the tensor ``x`` in hand, such as a weight with output channels along ``axis``.

    Grid shape () per tensor, (C,) per channel, (C, G) per group. Raises :class:`QuantopsyError` for a spec
    that names what there is not, an empty tensor, NaN and infinite values.
    """
    check(spec)
    if x.numel() == 0:
        raise QuantopsyError("tensor to fit", f"its shape {tuple(x.shape)} is empty", "give at least one value")
    x = x.detach().float()
    low, high = x.aminmax()
    if not torch.isfinite(high - low) and not torch.isfinite(x).all():
        raise QuantopsyError(
            "tensor to fit", "it holds NaN or infinite values", "mend the weights of the float network"
        )
    spec = _signed(spec, low)
    if spec.granularity == "per_tensor":
        return _rows(spec, Sample.of(x.reshape(1, -1))).map_grids(lambda grid: grid[0], axis=None)
    if spec.granularity == "per_channel":
        return _rows(spec, Sample.of(rows_per_channel(x, axis))).map_grids(lambda grid: grid, axis=axis)
    size = group_size(spec.granularity, tuple(x.shape))
    groups = (_group(spec, part, axis, size) for part in rows_per_group(x, axis, size))
    return reduce(lambda whole, ragged: whole.join(ragged), groups)


def realise(spec: Spec, observer_: Observer) -> QParams:
    """Qparams of ``spec`` for the activations that ``observer_`` has seen.

    Raises :class:`QuantopsyError` where it has seen none, or has not collected what ``spec`` needs.
    """
    axis = 1 if observer_.axis is None else observer_.axis
    if observer(spec, axis).key != observer_.key:
        raise QuantopsyError(
            f"spec {spec.to_json()}", "the observer collected other statistics", "observe with this spec"
        )
    sample = observer_.sample()
    qparams = _rows(_signed(spec, sample.low.amin()), sample)
    if observer_.axis is None:
        return qparams.map_grids(lambda grid: grid[0], axis=None)
    return qparams.map_grids(lambda grid: grid, axis=observer_.axis)


def _signed(spec: Spec, low: Tensor) -> Spec:
    """``spec`` with signedness settled for the whole tensor, so that all its grids share their codes."""
    return spec if spec.signed is not None else replace(spec, signed=bool(low < 0))


def _group(spec: Spec, part: Tensor, axis: int, size: int) -> QParams:
    shape = part.shape[:2]
    qparams = _rows(spec, Sample.of(part.flatten(0, 1)))
    return qparams.map_grids(lambda grid: grid.unflatten(0, shape), axis=axis, group_size=size)


def _rows(spec: Spec, sample: Sample) -> QParams:
    low, high = estimate_range(spec, sample)
    return quantizer(spec.kind).fit(spec, sample, low, high)
