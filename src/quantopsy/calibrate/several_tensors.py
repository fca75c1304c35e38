"""One hard tensor as the sum of several low-bit ones (LBQ, Choukroun et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quantopsy.calibrate.fit import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.quant import QParams, fake_quantize

_ROUNDS = 3


def fit_several(spec: Spec, x: Tensor, count: int, *, axis: int = 0) -> tuple[QParams, ...]:
    """``count`` grids of ``spec`` with MSE-optimal ranges, whose roundings of what is left add up to ``x``.

    The first is fitted to ``x``, each next one to the residual; then each in turn to what the others leave.
    Of the rounds the best is kept. One grid is OMSE. Raises :class:`QuantopsyError` for a count below 1.
    """
    if count < 1:
        raise QuantopsyError(f"{count} tensors", "a weight needs at least one", "give 1 or more")
    # A residual has both signs, whatever x has.
    spec = replace(spec, range_estimator="mse", signed=True if count > 1 else spec.signed)
    parts = [torch.zeros_like(x) for _ in range(count)]
    grids: list[QParams] = []
    best: tuple[float, tuple[QParams, ...]] | None = None
    for _ in range(_ROUNDS if count > 1 else 1):
        grids = []
        for i in range(count):
            left = x - sum((part for k, part in enumerate(parts) if k != i), torch.zeros_like(x))
            grids.append(fit(spec, left, axis=axis))
            parts[i] = fake_quantize(left, grids[i])
        error = float((x - fake_quantize_several(x, grids)).square().mean())
        if best is None or error < best[0]:
            best = error, tuple(grids)
    assert best is not None
    return best[1]


def fake_quantize_several(x: Tensor, grids: Sequence[QParams]) -> Tensor:
    """Sum of the tensors that ``grids`` make of ``x``, each of what the ones before it left."""
    total = torch.zeros_like(x)
    for grid in grids:
        total = total + fake_quantize(x - total, grid)
    return total
