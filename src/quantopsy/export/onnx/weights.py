"""Quantized weights as an ONNX file stores them: integers, and what makes reals of them.

- Evenly spaced levels are codes behind DequantizeLinear, which runtimes fuse into integer kernels
  (:class:`StoredWeight`).
- All others are codes behind operators of constants (:class:`CodedWeight`): tables are looked up (Gather), the pieces
  of a piecewise grid taken apart (Clip) and scaled, scales of groups spread over their channels. A runtime does that
  once, when it loads the file. Blocks of DequantizeLinear would repeat the scales of groups over a kernel's taps, are
  worked out at every run, and ONNX Runtime 1.31 takes them for columns of a MatMul of 8 bits, which then fails.

C output channels along a weight's axis, G groups of the other channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from torch import Tensor

from quantopsy.calibrate.bias_correction import WeightCorrection
from quantopsy.core import Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.export.onnx.writer import OnnxWriter
from quantopsy.graph.network import Layer
from quantopsy.integer.stored import LARGEST_BIAS, weight_parts, with_room
from quantopsy.quant import LevelsQParams, PiecewiseQParams, QParams, UniformQParams
from quantopsy.quant.grouping import group_axis

_LARGEST_CODE = 127  # of the integers that kernels multiply
_SAME_LEVEL = 1e-6  # relative to the largest: float32 rounding
_SIGNED = {4: ml_dtypes.int4, 8: np.int8, 16: np.int16, 32: np.int32}
_UNSIGNED = {4: ml_dtypes.uint4, 8: np.uint8, 16: np.uint16, 32: np.uint32}


@dataclass(frozen=True)
class IntegerTerm:
    """Integers in a graph by name, with the type and the one zero point that they have; each is worth ``scale``.

    ``scale`` is () or (C,). A weight is the sum of a few, ``w_hat = sum_t scale_t (q_t - zero_point_t)``.
    """

    codes: str
    dtype: Any
    zero_point: int
    scale: Tensor


@dataclass(frozen=True)
class StoredWeight:
    """Integer codes of a weight on a uniform grid, in no groups.

    ``table`` (L,): every code that occurs, where they are so few that their places in it take a smaller type.
    """

    qparams: UniformQParams
    codes: Tensor
    table: Tensor | None = None

    @cached_property
    def bits(self) -> int:
        """Bits of a code."""
        return (self.qparams.qmax - self.qparams.qmin).bit_length()

    @property
    def transposed(self) -> StoredWeight:
        """Of a matrix: turned."""
        axis = self.qparams.axis
        turned = self.qparams.map_grids(lambda grid: grid, axis=None if axis is None else 1 - axis % 2)
        return replace(self, qparams=turned, codes=self.codes.T)

    @property
    def dtype(self) -> Any:
        """numpy's type of the smallest ONNX integers that hold the codes."""
        return _smallest_type(self.qparams.qmin, self.qparams.qmax)

    @property
    def has_kernels(self) -> bool:
        """Whether integer kernels can read it: codes of 8 bits or fewer."""
        return self.bits <= 8

    @property
    def has_terms(self) -> bool:
        """Whether ConvInteger can: ONNX Runtime's takes one zero point for all channels."""
        return self.has_kernels and len(self.qparams.zero_point.unique()) == 1

    def write_terms(self, graph: OnnxWriter, name: str) -> list[IntegerTerm]:
        """The one term that it is."""
        codes, dtype = self.write_codes(graph, name)
        return [IntegerTerm(codes, dtype, int(self.qparams.zero_point.flatten()[0]), self.qparams.scale)]

    def write_codes(self, graph: OnnxWriter, name: str) -> tuple[str, Any]:
        """The codes and the type that they have in the graph.

        Those of 4 bits are stored so and widened to 8 in the graph: a runtime does that once, when it loads the file,
        and may then use its 8-bit kernels.
        """
        dtype = self.dtype
        if self.table is not None:
            places = torch.searchsorted(self.table, self.codes.contiguous())
            kind = _smallest_type(0, len(self.table) - 1)
            table = graph.initializer(f"{name}.table", self.table.numpy().astype(dtype))
            return graph.add("Gather", table, _write_integers(graph, f"{name}.codes", places, kind, np.int32)), dtype
        if self.bits > 4:
            return graph.weight(f"{name}.codes", self.codes.numpy().astype(dtype)), dtype
        wide = np.int8 if self.qparams.qmin < 0 else np.uint8
        return _write_integers(graph, f"{name}.codes", self.codes, dtype, wide), wide

    def write(self, graph: OnnxWriter, name: str) -> str:
        """The weight as a float tensor of the graph: stored codes, dequantized."""
        codes, dtype = self.write_codes(graph, name)
        parameters = (
            graph.initializer(f"{name}.scale", self.qparams.scale.numpy().astype(np.float32)),
            graph.initializer(f"{name}.zero_point", self.qparams.zero_point.numpy().astype(dtype)),
        )
        axis = self.qparams.axis
        return graph.add("DequantizeLinear", codes, *parameters, axis=None if axis is None else axis % self.codes.ndim)


@dataclass(frozen=True)
class CodedWeight:
    """The sum of ``parts``, each the codes of a weight on a grid of any kind, then corrected."""

    parts: tuple[tuple[Tensor, QParams], ...]
    correction: WeightCorrection | None

    @property
    def bytes(self) -> int:
        """Of codes, and of what is larger than a scale: tables."""
        return sum(
            codes.numel() * _width(*_code_range(qparams)) // 8
            + (4 * qparams.levels.numel() if isinstance(qparams, LevelsQParams) else 0)
            for codes, qparams in self.parts
        )

    @property
    def has_terms(self) -> bool:
        """Whether it is a sum of a few tensors of 8-bit integers, each with one scale for a channel."""
        return all(_has_terms(qparams) for _, qparams in self.parts)

    def write(self, graph: OnnxWriter, name: str) -> str:
        """The weight as a float tensor of the graph."""
        result = ""
        for codes, qparams in self.parts:
            part = _write_decoded(graph, name, codes, qparams)
            result = graph.add("Add", result, part) if result else part
        if self.correction is None:
            return result
        # In the order of the simulation: once more by the gain, not by a scale that has it.
        laid = [-1 if dim == self.correction.axis else 1 for dim in range(self.parts[0][0].dim())]
        gain, offset = (grid.reshape(laid).numpy() for grid in (self.correction.gain, self.correction.offset))
        result = graph.add("Mul", result, graph.initializer(f"{name}.gain", gain))
        return graph.add("Add", result, graph.initializer(f"{name}.offset", offset))

    def write_terms(self, graph: OnnxWriter, name: str) -> list[IntegerTerm]:
        """Its integer terms: a convolution of integers for each, the multipliers behind it.

        The two pieces of PWLQ section 4 are two terms: ``p = (N - 1) s_1``, so that the sum of signs in R2 of equation
        (15) belongs to the first one, whose weights stay at N - 1 there. A correction is a gain of all multipliers and
        a term of ones.
        """
        gain = torch.ones(()) if self.correction is None else self.correction.gain
        terms = []
        for codes, qparams in self.parts:
            if isinstance(qparams, UniformQParams):
                terms += StoredWeight(qparams, codes).write_terms(graph, name)
            else:
                assert isinstance(qparams, PiecewiseQParams)
                pieces = _write_pieces(graph, name, codes, qparams)
                for piece, scale in zip(pieces, (qparams.inner_scale, qparams.outer_scale), strict=True):
                    integers = graph.add("Cast", piece, to=onnx.TensorProto.INT8)
                    terms.append(IntegerTerm(integers, np.int8, 0, scale))
        terms = [replace(term, scale=term.scale * gain) for term in terms]
        if self.correction is not None:
            shape = graph.integers(self.parts[0][0].shape)
            one = onnx.numpy_helper.from_array(np.ones(1, np.int8))
            ones = graph.add("ConstantOfShape", shape, value=one)
            terms.append(IntegerTerm(ones, np.int8, 0, self.correction.offset))
        return terms


def stored_weight(
    calibration: Calibration, layer: Layer, spec: Spec, weight: Tensor
) -> tuple[StoredWeight | CodedWeight | None, str]:
    """The ``weight`` of ``layer`` on the grid of ``spec`` as integers; or None, and why reals are the smaller way."""
    found, correction = weight_parts(calibration, layer, spec, weight)
    parts = tuple((codes, _ungrouped(grid)) for codes, grid in found)
    codes, grid = parts[0]
    # ONNX Runtime 1.31 makes QLinearMatMul of several matrices on grids by channel too, which then fails.
    matrices = layer.op == "matmul" and weight.dim() > 2 and grid.axis is not None
    if len(parts) == 1 and correction is None and grid.group_size is None and not matrices:
        if isinstance(grid, UniformQParams):
            return StoredWeight(grid, codes), ""
        if isinstance(grid, LevelsQParams) and (whole := _whole_levels(codes, grid)) is not None:
            return whole, ""
    coded = CodedWeight(parts, correction)
    if coded.bytes < 4 * weight.numel():
        return coded, ""
    return None, f"its codes and tables of {spec.kind} levels take no less"


def _whole_levels(codes: Tensor, grid: LevelsQParams) -> StoredWeight | None:
    """Levels that are whole multiples of one number, at most 127 times, as a uniform grid; None where they are not.

    Powers of two of up to 4 bits are, and sums of them of up to 6.
    """
    if grid.levels.dim() > 1:
        return None
    counts = torch.arange(1, _LARGEST_CODE + 1, dtype=torch.float64)[:, None]
    multiples = grid.levels.double() * counts / (grid.levels.abs().max().double() or 1.0)
    whole = ((multiples - multiples.round()).abs() <= _SAME_LEVEL * counts).all(1)
    if not bool(whole.any()):
        return None
    count = int(whole.nonzero()[0]) + 1
    table = multiples[count - 1].round().int()
    lowest = -count if bool((table < 0).any()) else 0
    uniform = UniformQParams(
        (grid.scale.double() * grid.levels.abs().max().double() / count).float(),
        torch.zeros_like(grid.scale, dtype=torch.int32),
        lowest,
        count,
        axis=grid.axis,
    )
    stored = StoredWeight(uniform, uniform.encode(grid.decode(codes)))
    table = table.unique()
    smaller = _width(0, len(table) - 1) < _width(lowest, count)
    return replace(stored, table=table) if smaller else stored


def _has_terms(qparams: QParams) -> bool:
    if qparams.group_size is not None:
        return False
    if isinstance(qparams, UniformQParams):
        return qparams.qmax - qparams.qmin < 256 and len(qparams.zero_point.unique()) == 1
    return isinstance(qparams, PiecewiseQParams) and 2**qparams.bits - 1 <= _LARGEST_CODE


def _ungrouped(qparams: QParams) -> QParams:
    """One grid a channel where groups are of all of its inputs."""
    if qparams.group_size is None or qparams.ends[0].shape[1] > 1:
        return qparams
    return qparams.map_grids(lambda grid: grid[:, 0], group_size=None)


def _code_range(qparams: QParams) -> tuple[int, int]:
    if isinstance(qparams, UniformQParams):
        return qparams.qmin, qparams.qmax
    if isinstance(qparams, PiecewiseQParams):
        highest = 2 * (2**qparams.bits - 1)
        return -highest if qparams.signed else 0, highest
    assert isinstance(qparams, LevelsQParams)
    return 0, qparams.levels.shape[-1] - 1


def _width(low: int, high: int) -> int:
    """Bits of the smallest ONNX integers that hold ``low`` to ``high``."""
    bits = high.bit_length() if low >= 0 else 1 + max(high.bit_length(), (-low - 1).bit_length())
    return next(width for width in _SIGNED if bits <= width)


def _smallest_type(low: int, high: int) -> Any:
    """numpy's type of these integers."""
    return (_SIGNED if low < 0 else _UNSIGNED)[_width(low, high)]


def _write_integers(graph: OnnxWriter, name: str, codes: Tensor, dtype: Any, wanted: Any) -> str:
    """``codes`` stored as ``dtype``, in the graph as ``wanted``."""
    stored = graph.weight(name, codes.numpy().astype(dtype))
    return graph.add("Cast", stored, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))


def _write_laid(graph: OnnxWriter, name: str, grid: Tensor, codes: Tensor, qparams: QParams) -> str:
    """``grid`` of the grid shape, in a form that broadcasts to ``codes``: groups are spread over their channels."""
    if qparams.axis is None:
        return graph.initializer(name, grid.numpy())
    axis = qparams.axis % codes.dim()
    shape = [codes.shape[dim] if dim == axis else 1 for dim in range(codes.dim())]
    if qparams.group_size is None:
        return graph.initializer(name, grid.reshape(shape).numpy())
    other = group_axis(axis)
    shape[other] = grid.shape[1]
    stored = graph.initializer(name, (grid if axis < other else grid.T).reshape(shape).numpy())
    groups = np.arange(codes.shape[other]) // qparams.group_size
    return graph.add("Gather", stored, graph.constant(groups, np.int32), axis=other)


def _write_pieces(graph: OnnxWriter, name: str, codes: Tensor, qparams: PiecewiseQParams) -> tuple[str, str]:
    """Float tensors of whole numbers: what the inner steps count, up to N - 1, and what the outer ones do."""
    most = 2**qparams.bits - 1
    whole = _write_integers(graph, f"{name}.codes", codes, _smallest_type(*_code_range(qparams)), np.float32)
    inner = graph.add("Clip", whole, graph.constant(-most), graph.constant(most))
    return inner, graph.add("Sub", whole, inner)


def _write_decoded(graph: OnnxWriter, name: str, codes: Tensor, qparams: QParams) -> str:
    """``qparams.decode(codes)``, operation by operation: a float tensor."""
    add = graph.add

    def laid(part: str, grid: Tensor) -> str:
        return _write_laid(graph, f"{name}.{part}", grid, codes, qparams)

    if isinstance(qparams, PiecewiseQParams):
        inner, outer = _write_pieces(graph, name, codes, qparams)
        inner = add("Mul", inner, laid("inner_scale", qparams.inner_scale))
        return add("Add", inner, add("Mul", outer, laid("outer_scale", qparams.outer_scale)))
    dtype = _smallest_type(*_code_range(qparams))
    if isinstance(qparams, UniformQParams):
        whole = _write_integers(graph, f"{name}.codes", codes, dtype, np.float32)
        centred = add("Sub", whole, laid("zero_point", qparams.zero_point.float()))
        return add("Mul", centred, laid("scale", qparams.scale))
    assert isinstance(qparams, LevelsQParams)
    places = _write_integers(graph, f"{name}.codes", codes, dtype, np.int32)
    if qparams.levels.dim() == 1:
        table = graph.initializer(f"{name}.table", qparams.levels.numpy())
        return add("Mul", add("Gather", table, places), laid("scale", qparams.scale))
    # Tables of channels or groups one behind the other.
    levels = qparams.levels * qparams.scale[..., None]
    first = torch.arange(0, levels.numel(), levels.shape[-1], dtype=torch.int32).reshape(qparams.scale.shape)
    table = graph.initializer(f"{name}.table", levels.flatten().numpy())
    return add("Gather", table, add("Add", places, laid("table.first", first)))


def with_integer_bias(
    stored: StoredWeight, bias: Tensor, input_scale: float | None
) -> tuple[StoredWeight, tuple[np.ndarray, np.ndarray] | None]:
    """The bias as int32 codes and their scale ``s_x s_w``, and the weight, whose scale it may have to enlarge.

    A channel whose weights are next to nothing has a scale so small that its bias leaves int32: there the weight
    gets the smallest scale at which the bias takes half of int32, the rest being the sum's. The bias of a weight that
    meets no integer kernel has the finest scale that holds it. A channel of zeros takes its scale from its bias. No
    integers (None) for a real input.
    """
    reals = bias.detach().double().numpy()
    if not stored.has_kernels:
        largest = max(float(np.abs(reals).max()), float(np.finfo(np.float32).tiny))
        scales = np.asarray(largest / LARGEST_BIAS, np.float32)
    elif input_scale is None:
        return stored, None
    else:
        codes, wider, _ = with_room(stored.codes, stored.qparams, bias.detach(), input_scale)
        if wider is not stored.qparams:
            stored = StoredWeight(wider, codes)
        scales = np.asarray(stored.qparams.scale.numpy() * np.float32(input_scale))
        if stored.qparams.axis is not None:
            scales = np.tile(scales, len(reals) // len(scales))
    return stored, (np.round(reals / scales.astype(np.float64)).astype(np.int32), scales)
