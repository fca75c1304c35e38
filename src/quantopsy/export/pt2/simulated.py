"""The simulation itself in ATen operators, to the bit: any grid, weights stored as codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantopsy.calibrate.bias_correction import WeightCorrection
from quantopsy.core import Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.execute import channels_last
from quantopsy.graph.network import Layer
from quantopsy.integer.stored import weight_parts
from quantopsy.quant import QParams

_TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)


class Simulation:
    """``x_hat = decode(encode(x))`` of every grid, weights ``decode(codes)``: the formulas of its qparams."""

    as_engine = True

    def weight(self, calibration: Calibration, layer: Layer, spec: Spec, weight: Tensor) -> nn.Module:
        """The codes of the weight, in the smallest type that holds them, and their decoding."""
        return _Decoded(*weight_parts(calibration, layer, spec, weight))

    def activation(self, layer: Layer, role: str, qparams: QParams) -> nn.Module:
        """Encoding and decoding."""
        del layer, role
        return _OnGrid(qparams)


class _Decoded(nn.Module):
    def __init__(self, parts: tuple[tuple[Tensor, QParams], ...], correction: WeightCorrection | None) -> None:
        super().__init__()
        self._grids = [_own(qparams) for _, qparams in parts]
        self._correction = correction
        for i, (codes, _) in enumerate(parts):
            self.register_buffer(f"codes_{i}", channels_last(codes.to(_smallest(codes))))

    def forward(self) -> Tensor:
        parts = [grid.decode(codes.int()) for grid, codes in zip(self._grids, self.buffers(), strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total if self._correction is None else self._correction.apply(total)


class _OnGrid(nn.Module):
    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self._qparams = _own(qparams)

    def forward(self, x: Tensor) -> Tensor:
        return self._qparams.decode(self._qparams.encode(x))


def _own(qparams: QParams) -> QParams:
    """The same with tensors that are no parts of others: a file stores whole memories."""
    return qparams.map_grids(torch.clone)


def _smallest(codes: Tensor) -> torch.dtype:
    low, high = (int(end) for end in codes.aminmax())
    return next(dtype for dtype in _TYPES if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max)
