"""Outlier channel splitting, the tensor part (OCS, Zhao et al. 2019).

K input channels along ``axis`` of a weight, S of them split.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from quantopsy.core import QuantopsyError


@dataclass(frozen=True)
class SplitWeight:
    """``weight`` with K + S input channels; ``source`` (K + S,) says which input each of them reads, so that
    ``layer(x, original)`` equals ``layer(x.index_select(channel, source), weight)``."""

    weight: Tensor
    source: Tensor


def split_channels(weight: Tensor, ratio: float, step: float | Tensor, axis: int = 1) -> SplitWeight:
    """``weight`` with ceil(``ratio`` K) input channels duplicated, those with the largest values.

    A channel w becomes (w - step / 2) / 2 and (w + step / 2) / 2: rounded to multiples of ``step`` they add
    up to w rounded, where plain halves would double its error. Channels are split one at a time, so a very
    large one is split again. ``step`` is the scale that the split weight will have, a number or
    broadcastable to ``weight``; 0 for plain halves.

    Raises :class:`QuantopsyError` for a ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise QuantopsyError(f"channel splitting by {ratio}", "not a share of the channels", "give 0.01 to 0.05")
    channels = weight.shape[axis]
    splits = ceil(ratio * channels)
    largest = weight.abs().movedim(axis, 0).reshape(channels, -1).amax(1)
    largest = torch.cat((largest, largest.new_zeros(splits)))
    source = torch.cat((torch.arange(channels), torch.zeros(splits, dtype=torch.long))).to(weight.device)
    grown = torch.cat(
        (weight, weight.new_zeros(()).expand_as(weight.narrow(axis, 0, 1)).repeat_interleave(splits, axis)),
        axis,
    )
    for new in range(channels, channels + splits):
        old = int(largest[:new].argmax())
        whole = grown.select(axis, old)
        half_step = step / 2 if isinstance(step, float | int) else step.expand_as(weight).select(axis, 0) / 2
        lower = (whole - half_step) / 2
        upper = whole - lower  # not (w + step / 2) / 2: so the two add up to w in floats too
        grown.select(axis, old).copy_(lower)
        grown.select(axis, new).copy_(upper)
        source[new] = source[old]
        largest[old], largest[new] = lower.abs().max(), upper.abs().max()
    return SplitWeight(grown, source)
