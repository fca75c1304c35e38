"""Levels with the least squared error on the data, by Lloyd's iteration (Lloyd 1982, Max 1960).

R grids (rows), n values, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.core import Spec
from quantopsy.quant.levels import LevelsQParams, own_tables
from quantopsy.quant.quantizer import Quantizer
from quantopsy.quant.sample import Sample

_MOST_ITERATIONS = 1000


def lloyd(ordered: Tensor, weight: Tensor | None, levels: Tensor) -> Tensor:
    """A fixed point (R, L), ascending, of: borders half way between levels, levels the mean of what lies
    between their borders. Starts at ``levels``; a level without values stays.

    ``ordered`` (R, n) ascending, ``weight`` (R, n) how often each occurs. After one pass for cumulative sums
    an iteration costs a binary search per level.
    """
    ordered = ordered.double().contiguous()
    mass = torch.ones_like(ordered) if weight is None else weight.double()
    levels = levels.double()
    mass_below = torch.nn.functional.pad(mass.cumsum(1), (1, 0))
    moment_below = torch.nn.functional.pad((mass * ordered).cumsum(1), (1, 0))
    end = torch.full_like(levels[:, :1], ordered.shape[1], dtype=torch.int64)
    for _ in range(_MOST_ITERATIONS):
        borders = (levels[:, :-1] + levels[:, 1:]) / 2
        cut = torch.cat((torch.zeros_like(end), torch.searchsorted(ordered, borders.contiguous(), right=True), end), 1)
        inside = mass_below.gather(1, cut).diff(dim=1)
        means = moment_below.gather(1, cut).diff(dim=1) / inside
        moved = torch.where(inside > 0, means, levels)
        # Differences of cumulative sums round, which must not put levels out of order.
        moved = moved.cummax(1).values
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels


def evenly_spaced(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Middles of ``count`` equal parts of [low, high], (R, count)."""
    middles = (torch.arange(count, dtype=torch.float64, device=low.device) + 0.5) / count
    return low.double()[:, None] + (high - low).double()[:, None] * middles


def evenly_filled(ordered: Tensor, weight: Tensor | None, count: int) -> Tensor:
    """Medians of ``count`` parts of the data with equal mass, (R, count)."""
    mass = torch.ones_like(ordered, dtype=torch.float64) if weight is None else weight.double()
    share = mass.cumsum(1)
    wanted = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) / count * share[:, -1:]
    index = torch.searchsorted(share, wanted.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, index).double()


def _fit_from(start: str, spec: Spec, sample: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    clipped = torch.minimum(torch.maximum(sample.values, low[:, None]), high[:, None])
    ordered, order = clipped.sort(1)
    weight = None if sample.weight is None else sample.weight.gather(1, order)
    count = 2**spec.bits
    levels = evenly_filled(ordered, weight, count) if start == "filled" else evenly_spaced(low, high, count)
    return own_tables(lloyd(ordered, weight, levels))


def _fit_k_means(spec: Spec, sample: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    return _fit_from("filled", spec, sample, low, high)


def _fit_lloyd_max(spec: Spec, sample: Sample, low: Tensor, high: Tensor) -> LevelsQParams:
    return _fit_from("spaced", spec, sample, low, high)


K_MEANS = Quantizer(
    name="k_means",
    summary="levels at the means of clusters, started with as many values in each",
    fit=_fit_k_means,
    needs_values=True,
    max_bits=8,
)
LLOYD_MAX = Quantizer(
    name="lloyd_max",
    summary="levels of least squared error by Lloyd and Max, started evenly over the range",
    fit=_fit_lloyd_max,
    needs_values=True,
    max_bits=8,
)
