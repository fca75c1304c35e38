"""A layer's weight and bias as a device stores them: integers, and the reals that one of each stands for.

C output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantopsy.calibrate import fit_several, weight_correction
from quantopsy.calibrate.bias_correction import WeightCorrection
from quantopsy.core import Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.network import Layer
from quantopsy.integer.terms import Term, decoded, terms
from quantopsy.quant import QParams, UniformQParams, fake_quantize
from quantopsy.quant.grouping import aligned

LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class StoredLayer:
    """``weight``: its terms. ``bias``: (C,) int32 codes, or None, each worth ``bias_unit`` (C,) float64.

    ``in_accumulator``: the bias is on the scale s_x s_w of the only accumulator and starts it. ``weight_hat`` and
    ``bias_hat`` are the reals that they stand for (float32), for the simulation; ``bias_error`` (C,) float64 is what
    the rounding of the bias added. ``enlarged`` counts the channels whose scale had to grow for their bias.
    """

    weight: tuple[Term, ...]
    weight_hat: Tensor
    bias: Tensor | None
    bias_unit: Tensor | None
    bias_hat: Tensor | None
    bias_error: Tensor | None
    in_accumulator: bool
    enlarged: int


def store(
    calibration: Calibration,
    layer: Layer,
    spec: Spec,
    weight: Tensor,
    bias: Tensor | None,
    input_scale: float,
) -> StoredLayer:
    """The layer's ``weight`` on the grid of ``spec``, and its ``bias`` (C,), real, with any correction in it.

    A bias is int32 on ``s_x s_w``. A channel whose weights are next to nothing has a scale so small that its bias
    leaves int32: its scale grows until the bias takes 2^30 (:func:`with_room`). Weights of several terms have several
    scales and those of levels none of a step: there a bias has the finest scale of its own that holds it.
    """
    found, correction = weight_parts(calibration, layer, spec, weight)
    parts, w_hat = _terms(found, correction, weight), calibration.quantized_weight(layer, spec, weight)
    single = len(parts) == 1
    if bias is None:
        return StoredLayer(parts, w_hat, None, None, None, None, single, 0)
    reals = bias.detach().double()
    codes, grid = found[0]
    if not single or not isinstance(grid, UniformQParams):
        largest = float(reals.abs().max()) or 1.0
        unit = torch.full_like(reals, largest / LARGEST_BIAS)
        return _with_bias(parts, w_hat, reals, unit, False, 0)
    codes, wider, grown = with_room(codes, grid, reals, input_scale)
    if wider is not grid:
        parts = terms(codes, wider)
        w_hat = decoded(parts, layer.weight_axis).float()
    unit = by_output(parts[0].multiplier, len(reals)) * input_scale
    return _with_bias(parts, w_hat, reals, unit, True, int(grown.sum()))


def with_room(
    codes: Tensor, grid: UniformQParams, bias: Tensor, input_scale: float
) -> tuple[Tensor, UniformQParams, Tensor]:
    """Codes of a weight and their grid, with scales at which its ``bias`` (C,) takes 2^30 on ``s_x s_w`` at most.

    Last, of the grid's shape, which scales grew. Codes of the others stay: they may be rounded otherwise than to the
    nearest (AdaRound). A channel of zeros, whose scale means nothing, gets the one at which its bias takes 2^30: on
    ``s_x`` times any other the bias, all that the channel gives, would lose its places.
    """
    needed = (bias.double().abs() / LARGEST_BIAS / input_scale).float()
    # The groups of a transposed convolution share their scales.
    needed = needed.reshape(-1, len(grid.scale)).amax(0) if grid.scale.dim() else needed.max()
    needed = needed.reshape(grid.scale.shape)
    magnitudes = grid.decode(codes).abs()
    if grid.axis is not None:
        magnitudes = magnitudes.movedim(grid.axis, 0).flatten(1).amax(1)
    silent = (magnitudes.amax() if grid.axis is None else magnitudes.reshape(grid.scale.shape)) == 0
    grown = (needed > grid.scale) & ~silent
    scale = torch.where(silent & (needed > 0), needed, torch.maximum(grid.scale, needed))
    if torch.equal(scale, grid.scale):
        return codes, grid, grown
    wider = replace(grid, scale=scale)
    stays = ~aligned(grown, codes, grid.axis, grid.group_size)
    return torch.where(stays, codes, wider.encode(grid.decode(codes))), wider, grown


def _with_bias(
    parts: tuple[Term, ...], w_hat: Tensor, reals: Tensor, unit: Tensor, in_accumulator: bool, enlarged: int
) -> StoredLayer:
    # Scales are stored in float32, also that of a bias.
    codes = (reals / unit.float().double()).round().to(torch.int32)
    b_hat = codes * unit
    return StoredLayer(parts, w_hat, codes, unit, b_hat.float(), b_hat - reals, in_accumulator, enlarged)


def by_output(multiplier: Tensor, channels: int) -> Tensor:
    """() or (C / groups,) as (C,): groups of a transposed convolution repeat theirs."""
    return multiplier.expand(channels) if not multiplier.dim() else multiplier.repeat(channels // len(multiplier))


def weight_parts(
    calibration: Calibration, layer: Layer, spec: Spec, weight: Tensor
) -> tuple[tuple[tuple[Tensor, QParams], ...], WeightCorrection | None]:
    """Codes and grids of the tensors whose sum the weight is, one but for LBQ; and how it is corrected then."""
    axis = layer.weight_axis
    w_hat = calibration.quantized_weight(layer, spec, weight, corrected=False)
    if spec.tensors > 1:
        parts: tuple[tuple[Tensor, QParams], ...] = ()
        left = weight.detach()
        for grid in fit_several(spec, weight, spec.tensors, axis=axis):
            parts += ((grid.encode(left.float()), grid),)
            left = left - fake_quantize(left, grid)
    else:
        grid = calibration.weight_qparams(layer, spec, weight)
        parts = ((grid.encode(w_hat.float()), grid),)
    corrected = spec.correction == "mean_variance"
    return parts, weight_correction(weight, w_hat, axis) if corrected else None


def _terms(
    found: Sequence[tuple[Tensor, QParams]], correction: WeightCorrection | None, weight: Tensor
) -> tuple[Term, ...]:
    """Terms of the weight that :func:`weight_parts` gave."""
    parts = tuple(term for codes, grid in found for term in terms(codes, grid))
    if correction is None:
        return parts
    gain, offset = correction.gain.double(), correction.offset.double()
    ones = Term(torch.ones_like(weight, dtype=torch.int64), offset)
    return (*(Term(part.weight, part.multiplier * gain) for part in parts), ones)
