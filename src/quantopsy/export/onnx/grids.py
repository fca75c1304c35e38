"""Grids of activations as ONNX has them: integer types, scales, zero points, and what lies between Q and DQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from quantopsy.export.onnx.writer import OnnxWriter, Value
from quantopsy.quant import UniformQParams


@dataclass(frozen=True)
class ActivationGrid:
    """A uniform grid with unsigned codes from 0 on, in uint8 or uint16.

    Signed codes are moved up by -qmin, which changes no value. All activations then have one type, and only
    convolutions whose input and output have one type have an integer kernel in ONNX Runtime.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    highest: int
    axis: int | None

    @classmethod
    def of(cls, qparams: UniformQParams) -> ActivationGrid:
        """The same levels as ``qparams``."""
        lowest = min(qparams.qmin, 0)
        highest = qparams.qmax - lowest
        dtype = np.uint8 if highest < 256 else np.uint16
        zero_point = (qparams.zero_point.numpy() - lowest).astype(dtype)
        return cls(qparams.scale.numpy().astype(np.float32), zero_point, highest, qparams.axis)

    @property
    def dtype(self) -> Any:
        """numpy's type of the codes."""
        return self.zero_point.dtype

    @property
    def per_tensor(self) -> bool:
        """One scale for all values."""
        return self.axis is None

    def encode(self, x: np.ndarray, rank: int) -> np.ndarray:
        """int64 codes of ``x``, rounded and cut as QuantizeLinear does, then to ``highest``.

        A grid per channel is laid along its axis of a tensor with ``rank`` dimensions.
        """
        scale, zero_point = self._laid(rank)
        return np.clip(np.round(x.astype(np.float32) / scale) + zero_point, 0, self.highest).astype(np.int64)

    def decode(self, codes: np.ndarray, rank: int) -> np.ndarray:
        """float32 reals that ``codes`` stand for."""
        scale, zero_point = self._laid(rank)
        return ((codes.astype(np.int64) - zero_point) * scale).astype(np.float32)

    def _laid(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        scale, zero_point = self.scale, self.zero_point.astype(np.int64)
        if self.axis is None:
            return scale, zero_point
        shape = [-1 if dim == self.axis % rank else 1 for dim in range(rank)]
        return scale.reshape(shape), zero_point.reshape(shape)

    def write_parameters(self, graph: OnnxWriter) -> tuple[str, str]:
        """Names of scale and zero point."""
        return graph.constant(self.scale), graph.constant(self.zero_point, self.dtype)

    def write_quantize(self, graph: OnnxWriter, x: str, result: str | None = None) -> str:
        """``x`` as codes, called ``result``; the type's end is their highest unless a clip follows."""
        return graph.add("QuantizeLinear", x, *self.write_parameters(graph), axis=self.axis, result=result)

    def write_dequantize(self, graph: OnnxWriter, codes: Value) -> str:
        """Codes as reals.

        By DequantizeLinear where there is one scale. ONNX Runtime 1.31 fuses that with poolings whose integer kernels
        then refuse several scales, so those are multiplied by.
        """
        if self.per_tensor:
            return graph.add("DequantizeLinear", codes.name, *self.write_parameters(graph))
        scale, zero_point = self._laid(len(codes.shape))
        whole = graph.add("Cast", codes.name, to=onnx.TensorProto.FLOAT)
        return graph.add("Mul", graph.add("Sub", whole, graph.constant(zero_point)), graph.constant(scale))
