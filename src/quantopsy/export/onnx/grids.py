"""Our grids as ONNX stores them: integer types, scales, zero points, and what lies between Q and DQ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from torch import Tensor

from quantopsy.export.onnx.writer import OnnxWriter
from quantopsy.quant import UniformQParams
from quantopsy.quant.grouping import aligned, group_axis


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

    def write_dequantize(self, graph: OnnxWriter, codes: str) -> str:
        """Codes as reals."""
        return graph.add("DequantizeLinear", codes, *self.write_parameters(graph), axis=self.axis)


@dataclass(frozen=True)
class StoredWeight:
    """Integer codes of a weight, the grid they are on, and the ``reals`` that were put on it."""

    qparams: UniformQParams
    codes: Tensor
    reals: Tensor

    @classmethod
    def of(cls, weight: Tensor, qparams: UniformQParams) -> StoredWeight:
        """``weight`` on its grid. Groups of one input channel and more are one per channel."""
        if qparams.group_size is not None and qparams.scale.shape[1] == 1:
            qparams = qparams.map_grids(lambda grid: grid[:, 0], group_size=None)
        return cls(qparams, qparams.encode(weight.float()), weight)

    @cached_property
    def bits(self) -> int:
        """Bits of a code."""
        return (self.qparams.qmax - self.qparams.qmin).bit_length()

    @property
    def transposed(self) -> StoredWeight:
        """Of a matrix: turned."""
        axis = self.qparams.axis
        turned = self.qparams.map_grids(lambda grid: grid, axis=None if axis is None else 1 - axis % 2)
        return StoredWeight(turned, self.codes.T, self.reals.T)

    @property
    def dtype(self) -> Any:
        """numpy's type of the smallest ONNX integers that hold the codes."""
        signed = self.qparams.qmin < 0
        if self.bits <= 4:
            return ml_dtypes.int4 if signed else ml_dtypes.uint4
        if self.bits <= 8:
            return np.int8 if signed else np.uint8
        return np.int16 if signed else np.uint16

    @property
    def has_kernels(self) -> bool:
        """Whether integer kernels can read it: codes of 8 bits or fewer, in no groups."""
        return self.bits <= 8 and self.qparams.group_size is None

    @property
    def shared_zero_point(self) -> int | None:
        """The zero point where all grids have the same."""
        values = self.qparams.zero_point.unique()
        return int(values) if len(values) == 1 else None

    def write_codes(self, graph: OnnxWriter, name: str) -> tuple[str, Any]:
        """The codes and the type that they have in the graph.

        Those of 4 bits are stored so and widened to 8 in the graph: a runtime does that once, when it loads the file,
        and may then use its 8-bit kernels.
        """
        dtype = self.dtype
        stored = graph.initializer(f"{name}.codes", self.codes.numpy().astype(dtype))
        if self.bits > 4 or not self.has_kernels:
            return stored, dtype
        wide = np.int8 if self.qparams.qmin < 0 else np.uint8
        return graph.add("Cast", stored, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wide))), wide

    def write(self, graph: OnnxWriter, name: str) -> str:
        """The weight as a float tensor of the graph: stored codes, dequantized.

        Groups are blocks of DequantizeLinear, whose scale repeats over a kernel's taps.
        """
        qparams, axis, block = self.qparams, self.qparams.axis, None
        scale, zero_point = qparams.scale, qparams.zero_point
        if axis is not None:
            axis %= self.codes.ndim
        if qparams.group_size is not None:
            assert axis is not None
            block, other = qparams.group_size, group_axis(axis)
            first = torch.arange(0, self.codes.shape[other], block)
            scale, zero_point = (
                aligned(grid, self.codes, axis, block).expand(self.codes.shape).index_select(other, first)
                for grid in (scale, zero_point)
            )
            axis = other
        codes, dtype = self.write_codes(graph, name)
        parameters = (
            graph.initializer(f"{name}.scale", scale.numpy().astype(np.float32)),
            graph.initializer(f"{name}.zero_point", zero_point.numpy().astype(dtype)),
        )
        return graph.add("DequantizeLinear", codes, *parameters, axis=axis, block_size=block)
