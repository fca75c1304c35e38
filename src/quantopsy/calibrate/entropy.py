"""The threshold whose quantized distribution has the least KL divergence (Migacz 2017, as in TensorRT).

R grids (rows), B bins of |x|, T a threshold in bins, L levels of |x|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantopsy.calibrate.range_estimator import Argument, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import Sample

BINS = 2048
_THRESHOLDS = 64  # tried, evenly spaced


def magnitudes(sample: Sample) -> tuple[Tensor, Tensor]:
    """(counts (R, B) float64 of |x|, bin width (R,)): the sample's own bins where it has some, else B over
    max |x|."""
    width = sample.width
    if width is None:
        width = sample.reach / BINS
    width = torch.where(width > 0, width, 1.0)
    index = (sample.values.abs() / width[:, None]).long().clamp(max=BINS - 1)
    weight = torch.ones_like(index) if sample.weight is None else sample.weight
    counts = torch.zeros(len(width), BINS, dtype=torch.float64, device=index.device)
    return counts.scatter_add_(1, index, weight.double()), width


def divergence(counts: Tensor, threshold: int, levels: int) -> Tensor:
    """KL(P || Q) in nats (R,): P is ``counts`` (R, B) up to ``threshold`` with all beyond put into its last
    bin; Q is the part below in ``levels`` equal parts, each spread evenly over its bins that are not empty.
    """
    below = counts[:, :threshold]
    P = below.clone()
    P[:, -1] += counts[:, threshold:].sum(1)
    part = torch.arange(threshold, device=counts.device) * levels // threshold
    part = part.expand_as(below)
    filled = (below > 0).double()
    empty = counts.new_zeros(len(counts), levels)
    mass = empty.scatter_add(1, part, below)
    places = empty.scatter_add(1, part, filled).clamp(min=1)
    Q = (mass / places).gather(1, part) * filled
    P = P / P.sum(1, keepdim=True).clamp(min=1)
    Q = Q / Q.sum(1, keepdim=True).clamp(min=1)
    # A bin that holds only what was clipped has no Q: TensorRT's "infinite" is a finite, large penalty.
    floor = 1e-12
    return (P * (P.clamp(min=floor).log() - Q.clamp(min=floor).log())).sum(1)


def _estimate(spec: Spec, sample: Sample, _: Argument) -> Range:
    levels = 2 ** (spec.bits - 1) if spec.signed else 2**spec.bits
    counts, width = magnitudes(sample)
    # Zeros are exact in every grid and would only drown the rest (TensorRT leaves out its first bin too).
    counts[:, 0] = counts[:, 1]
    if levels >= BINS:
        return -sample.reach, sample.reach
    thresholds = torch.linspace(levels, BINS, _THRESHOLDS).long().unique().tolist()
    divergences = torch.stack([divergence(counts, threshold, levels) for threshold in thresholds])
    best = torch.tensor(thresholds, device=width.device)[divergences.argmin(0)]
    reach = best * width
    return -reach, reach


ESTIMATOR = RangeEstimator(
    name="entropy",
    summary="clip whose quantized distribution diverges least from the data's (KL, TensorRT)",
    estimate=_estimate,
)
