"""Undoing what quantized weights shift: their own mean and variance, and the mean of what they give.

C output channels along ``axis``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.quant.grouping import aligned, rows_per_channel


@dataclass(frozen=True)
class WeightCorrection:
    """``w = gain w_hat + offset`` per channel, (C,) each: to be folded into scale and offset of the grid."""

    gain: Tensor
    offset: Tensor
    axis: int

    def apply(self, w_hat: Tensor) -> Tensor:
        """The corrected weight."""
        gain, offset = (aligned(grid, w_hat, self.axis, None) for grid in (self.gain, self.offset))
        return w_hat * gain + offset


def weight_correction(w: Tensor, w_hat: Tensor, axis: int = 0) -> WeightCorrection:
    """The correction after which every channel of the quantized ``w_hat`` has mean and variance of ``w``.

    A channel that quantization made constant keeps gain 1: there is no variance to restore.
    """
    mean, mean_hat = (rows_per_channel(x, axis).mean(1) for x in (w, w_hat))
    std, std_hat = (rows_per_channel(x, axis).std(1, correction=0) for x in (w, w_hat))
    gain = torch.where(std_hat > 0, std / std_hat, 1.0)
    return WeightCorrection(gain, mean - gain * mean_hat, axis)


def output_shift(change: Tensor, mean: Tensor, groups: int) -> Tensor:
    """(C,): what ``change`` of a weight adds to the mean of every output channel, to be taken from the bias.

    ``sum_i sum_k change[c, i, k] mean[i]`` (DFQ, Nagel et al. 2019, equation (17), with means of data), where
    ``change`` is (C, I / groups, ...) and ``mean`` (I,) the mean of every input channel. At borders that are
    padded with zeros it is less.
    """
    per_input = change.double().flatten(2).sum(2) if change.dim() > 2 else change.double()
    grouped = per_input.unflatten(0, (groups, -1))  # (G, C / G, I / G)
    return torch.einsum("gci,gi->gc", grouped, mean.double().unflatten(0, (groups, -1))).flatten().float()
