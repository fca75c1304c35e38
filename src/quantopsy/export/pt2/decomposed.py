"""PT2E's form: the ``quantized_decomposed`` operators that ``convert_pt2e`` leaves and back ends look for.

    weight:      int8 codes -> dequantize_per_tensor, or dequantize_per_channel -> convolution, float bias
    activation:  quantize_per_tensor -> dequantize_per_tensor

XNNPACK's and other back ends of ExecuTorch know int8 only: codes that count from 0 are moved down by half their number,
which changes no value. Above 8 bits codes are int16. The operators multiply by ``1 / scale`` where the simulation
divides, so values next to the half between two codes may get the other one.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines the operators
from torch import Tensor, nn

from quantopsy.core import QuantopsyError, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.network import Layer
from quantopsy.integer.stored import weight_parts
from quantopsy.quant import QParams, UniformQParams

_OPERATORS = torch.ops.quantized_decomposed
_REMEDY = "export it --to pt2, or --to onnx, or give the layer kind uniform"


class Decomposed:
    """Uniform grids, per tensor and per channel, one tensor a weight."""

    as_engine = False

    def weight(self, calibration: Calibration, layer: Layer, spec: Spec, weight: Tensor) -> nn.Module:
        """Integers behind a dequantization. Raises :class:`QuantopsyError` for what the operators have no form for."""
        thing = f"weight of layer {layer.name!r}"
        parts, correction = weight_parts(calibration, layer, spec, weight)
        if len(parts) > 1:
            raise QuantopsyError(thing, f"it is the sum of {len(parts)} tensors", _REMEDY)
        if correction is not None:
            raise QuantopsyError(thing, "the correction of its mean is no whole number of steps", _REMEDY)
        ((codes, qparams),) = parts
        return _Weight(_uniform(thing, qparams), codes)

    def activation(self, layer: Layer, role: str, qparams: QParams) -> nn.Module:
        """A quantization and its inverse. Raises :class:`QuantopsyError` as :meth:`weight` does."""
        return _Activation(_uniform(f"{role} of layer {layer.name!r}", qparams))


class _Grid(nn.Module):
    """What the operators take: scale, zero point, range and type of codes that are signed."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: UniformQParams) -> None:
        super().__init__()
        bits = (qparams.qmax - qparams.qmin).bit_length()
        self.down = 0 if qparams.qmin < 0 else 2 ** (bits - 1)
        self.dtype = torch.int8 if bits <= 8 else torch.int16
        self.limits = qparams.qmin - self.down, qparams.qmax - self.down
        self.axis = qparams.axis
        zero_point = qparams.zero_point.long() - self.down
        if self.axis is None:
            self.numbers = float(qparams.scale), int(zero_point)
        else:
            self.register_buffer("scale", qparams.scale)
            self.register_buffer("zero_point", zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        last = (*self.limits, self.dtype)
        if self.axis is None:
            result: Tensor = _OPERATORS.quantize_per_tensor(x, *self.numbers, *last)
        else:
            result = _OPERATORS.quantize_per_channel(x, self.scale, self.zero_point, self.axis % x.dim(), *last)
        return result

    def dequantize(self, codes: Tensor) -> Tensor:
        last = (*self.limits, self.dtype)
        if self.axis is None:
            result: Tensor = _OPERATORS.dequantize_per_tensor(codes, *self.numbers, *last)
        else:
            axis = self.axis % codes.dim()
            result = _OPERATORS.dequantize_per_channel(codes, self.scale, self.zero_point, axis, *last)
        return result


class _Activation(_Grid):
    def forward(self, x: Tensor) -> Tensor:
        return self.dequantize(self.quantize(x))


class _Weight(_Grid):
    codes: Tensor

    def __init__(self, qparams: UniformQParams, codes: Tensor) -> None:
        super().__init__(qparams)
        self.register_buffer("codes", (codes - self.down).to(self.dtype))

    def forward(self) -> Tensor:
        return self.dequantize(self.codes)


def _uniform(thing: str, qparams: QParams) -> UniformQParams:
    if not isinstance(qparams, UniformQParams):
        raise QuantopsyError(thing, "its levels are not evenly spaced, the operators of PT2E know no others", _REMEDY)
    if qparams.group_size is not None:
        if qparams.scale.shape[1] > 1:
            raise QuantopsyError(thing, "PT2E has no operator for a convolution's groups of channels", _REMEDY)
        return qparams.map_grids(lambda grid: grid[:, 0], group_size=None)
    return qparams
