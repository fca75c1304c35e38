"""What layers add up, in integers: the accumulators of an operation, and the reals that one of each stands for.

An operation is run as the network has it, on float64 tensors that hold integers: strides, paddings and groups are
then its own, and padded zeros are real zeros, since codes are taken less their zero point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from quantopsy.engine.exact import by_channel
from quantopsy.graph.execute import Lookup, Overlay, Step
from quantopsy.graph.network import Layer
from quantopsy.integer.accumulator import Accumulated, Accumulator
from quantopsy.integer.pooling import adaptive_counts, window_sums
from quantopsy.integer.products import exact_product
from quantopsy.integer.stored import StoredLayer, by_output
from quantopsy.quant import UniformQParams

Grids = Mapping[str, UniformQParams]
Operands = Mapping[str, Tensor]  # by value: codes less their zero point, int64


@dataclass(frozen=True)
class Sums:
    """Accumulators (int64) and the real that one of each stands for (float64, broadcast to it).

    The last ``constants`` of the values are not accumulated but int32 constants, such as a bias that has its own scale.
    """

    values: tuple[Tensor, ...]
    units: tuple[Tensor, ...]
    constants: int = 0

    @property
    def accumulators(self) -> tuple[Tensor, ...]:
        """The values that are sums."""
        return self.values[: len(self.values) - self.constants]

    @property
    def real(self) -> Tensor:
        """``sum_t units_t values_t``, float64."""
        total: Tensor = sum((v * u for v, u in zip(self.values, self.units, strict=True)), torch.zeros(()))
        return total

    def held(self, accumulator: Accumulator) -> tuple[Sums, tuple[Accumulated, ...]]:
        """What ``accumulator`` keeps of each."""
        found = tuple(accumulator.hold(values) for values in self.accumulators)
        rest = self.values[len(found) :]
        return Sums((*(one.sums for one in found), *rest), self.units, self.constants), found


class Kernel(ABC):
    """The accumulators of one layer, from the codes of its inputs on ``grids`` per tensor."""

    def __init__(self, step: Step, grids: Grids, constants: Lookup) -> None:
        assert step.layer is not None
        self.step, self.layer, self.grids, self.constants = step, step.layer, grids, constants

    @property
    def pair(self) -> bool:
        """Whether the sums are two tensors of 8-bit codes."""
        return False

    @abstractmethod
    def sums(self, operands: Operands) -> Sums:
        """Exact sums of the layer's operation."""

    @abstractmethod
    def magnitude(self, operands: Operands) -> Tensor:
        """The same sums of absolute values, as reals: what float rounding errors are relative to."""

    @abstractmethod
    def operations(self) -> int:
        """Float operations on the way to one element in the simulation, each with a rounding."""

    @abstractmethod
    def reach(self) -> float:
        """The largest real magnitude that the accumulators can stand for."""

    def scale(self, value: str) -> Tensor:
        """s_x, float64."""
        return self.grids[value].scale.double()

    def furthest(self, value: str) -> float:
        """The largest real magnitude on the grid of an input."""
        grid = self.grids[value]
        ends = abs(grid.qmin - int(grid.zero_point)), abs(grid.qmax - int(grid.zero_point))
        return max(ends) * float(grid.scale)

    def call(self, over: Mapping[str, Any]) -> Tensor:
        """The operation with ``over`` in place of what it reads."""
        result: Tensor = self.step.operation(Overlay(over, self.constants))
        return result


class Weighted(Kernel):
    """Convolutions, linear layers and products with a constant: an accumulator for each term of the weight."""

    def __init__(self, step: Step, grids: Grids, constants: Lookup, stored: StoredLayer) -> None:
        super().__init__(step, grids, constants)
        (self.input,) = dict.fromkeys(self.layer.inputs)
        self.stored = stored
        self.units = tuple(self._laid(part.multiplier) * self.scale(self.input) for part in stored.weight)

    def sums(self, operands: Operands) -> Sums:
        stored = self.stored
        values = [self._product(operands[self.input], part.weight) for part in stored.weight]
        if stored.bias is None:
            return Sums(tuple(values), self.units)
        bias = by_channel(stored.bias.long(), self.layer)
        if stored.in_accumulator:
            return Sums((values[0] + bias,), self.units)
        assert stored.bias_unit is not None
        units = *self.units, by_channel(stored.bias_unit, self.layer)
        return Sums((*values, bias.expand_as(values[0])), units, 1)

    def magnitude(self, operands: Operands) -> Tensor:
        x = operands[self.input].abs()
        total = torch.zeros((), dtype=torch.float64)
        for part, unit in zip(self.stored.weight, self.units, strict=True):
            total = total + self._product(x, part.weight.abs()) * unit.abs()
        bias = self.stored.bias_hat
        return total if bias is None else total + by_channel(bias.double().abs(), self.layer)

    def operations(self) -> int:
        return self.stored.weight[0].weight.numel() // max(1, len(self._rows(self.stored.weight[0].weight))) + 4

    def reach(self) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for part in self.stored.weight:
            total = total + self._rows(part.weight).abs().sum(1) * part.multiplier.abs()
        bias = self.stored.bias_hat
        return float(total.max()) * self.furthest(self.input) + (0.0 if bias is None else float(bias.abs().max()))

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.layer.weight_axis, 0).flatten(1)

    def _laid(self, multiplier: Tensor) -> Tensor:
        channels = self.layer.output_shape[-1 if self.layer.channel_axis == -1 else 0]
        return by_channel(by_output(multiplier, channels), self.layer) if multiplier.dim() else multiplier

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        step = self.step
        assert step.weight is not None

        def product(a: Tensor, w: Tensor) -> Tensor:
            assert step.weight is not None
            over = {self.input: a, step.weight: w}
            if step.bias is not None:
                over[step.bias] = torch.zeros_like(self.constants[step.bias], dtype=torch.float64)
            return self.call(over)

        return exact_product(product, x, weight, self.layer.weight_axis)


class Added(Kernel):
    """Sums and differences of values, ``alpha`` a whole number; an operand that is no value is int32 of its own."""

    def __init__(self, step: Step, grids: Grids, constants: Lookup, alpha: int) -> None:
        super().__init__(step, grids, constants)
        self.inputs = tuple(dict.fromkeys(self.layer.inputs))
        self.alpha = alpha

    @property
    def pair(self) -> bool:
        return len(self.inputs) == 2 and self.alpha == 1 and all(g.qmax - g.qmin < 256 for g in self.grids.values())

    def sums(self, operands: Operands) -> Sums:
        zeros = {name: torch.zeros_like(operands[name], dtype=torch.float64) for name in self.inputs}
        constant = self.call(zeros)
        values, units = [], []
        for name in self.inputs:
            values.append((self.call({**zeros, name: operands[name].double()}) - constant).round().long())
            units.append(self.scale(name))
        largest = float(constant.abs().max()) if constant.numel() else 0.0
        if largest:
            unit = torch.tensor(largest / 2**30, dtype=torch.float64)
            values.append((constant / unit).round().long())
            units.append(unit)
        return Sums(tuple(values), tuple(units), int(bool(largest)))

    def magnitude(self, operands: Operands) -> Tensor:
        sums = self.sums(operands)
        return Sums(tuple(values.abs() for values in sums.values), sums.units).real

    def operations(self) -> int:
        return len(self.inputs) + 3

    def reach(self) -> float:
        ends = {
            name: torch.full((1,) * (len(self.layer.output_shape) + 1), self.furthest(name)) for name in self.inputs
        }
        zeros = {name: torch.zeros_like(end) for name, end in ends.items()}
        alone = (self.call({**zeros, name: end}).abs().max() for name, end in ends.items())
        return float(sum(alone))


class Multiplied(Kernel):
    """Products of two values, or of one and a constant, which the multiplier takes in. ``factors``: the values."""

    def __init__(self, step: Step, grids: Grids, constants: Lookup, factors: Sequence[str]) -> None:
        super().__init__(step, grids, constants)
        self.factors = tuple(factors)

    def sums(self, operands: Operands) -> Sums:
        if len(self.factors) > 1:
            values = self.call({name: x.double() for name, x in operands.items()})
            return Sums((values.round().long(),), (self._scale,))
        (name,) = self.factors
        constant = self.call({name: torch.ones_like(operands[name], dtype=torch.float64)})
        return Sums((operands[name].expand_as(constant),), (self._scale * constant,))

    def magnitude(self, operands: Operands) -> Tensor:
        return self.sums(operands).real.abs()

    def operations(self) -> int:
        return 4

    def reach(self) -> float:
        shape = (1,) * (len(self.layer.output_shape) + 1)
        return float(self.call({name: torch.full(shape, self.furthest(name)) for name in self.factors}).abs().max())

    @property
    def _scale(self) -> Tensor:
        total = torch.ones((), dtype=torch.float64)
        for name in self.factors:
            total = total * self.scale(name)
        return total


class MatrixProduct(Multiplied):
    """Matrix products of two values."""

    _terms = 1

    def sums(self, operands: Operands) -> Sums:
        left, right = self.factors
        self._terms = operands[left].shape[-1]
        if left == right:
            values = self.call({left: operands[left].double()}).round().long()  # two codes of 16 bits and 2^20 terms
        else:
            values = exact_product(lambda a, b: self.call({left: a, right: b}), operands[left], operands[right], None)
        return Sums((values,), (self._scale,))

    def magnitude(self, operands: Operands) -> Tensor:
        return self.sums({name: values.abs() for name, values in operands.items()}).real

    def operations(self) -> int:
        return self._terms + 4

    def reach(self) -> float:
        left, right = self.factors
        terms = self.layer.macs // max(1, prod(self.layer.output_shape))  # or more, of an image with several rows
        return self.furthest(left) * self.furthest(right) * (terms + 4)


class Averaged(Kernel):
    """Means and average pooling: a sum of codes, divided through the multiplier."""

    def __init__(self, step: Step, grids: Grids, constants: Lookup) -> None:
        super().__init__(step, grids, constants)
        (self.input,) = dict.fromkeys(self.layer.inputs)
        self._largest = 1

    def sums(self, operands: Operands) -> Sums:
        x = operands[self.input]
        if self.layer.op.startswith("avg_pool"):
            values, counts = window_sums(x, *self._arguments(x))
        else:
            averages = self.call({self.input: x.double()})
            if self.layer.op == "mean":
                counts = torch.tensor(x.numel() // averages.numel())
            else:
                dims = len(averages.shape) - 2
                counts = adaptive_counts(x.shape[-dims:], averages.shape[-dims:]).to(x.device)
            values = (averages * counts).round().long()
        self._largest = int(counts.max())
        return Sums((values,), (self.scale(self.input) / counts,))

    def magnitude(self, operands: Operands) -> Tensor:
        return self.sums({name: values.abs() for name, values in operands.items()}).real

    def operations(self) -> int:
        return self._largest + 4

    def reach(self) -> float:
        return self.furthest(self.input)

    def _arguments(self, x: Tensor) -> Sequence[Any]:
        return self.step.arguments(Overlay({self.input: x}, self.constants))[1:]


def weighted(layer: Layer) -> bool:
    """Whether the layer multiplies by a constant weight that integers have a form for."""
    return layer.weight is not None and layer.op.startswith(("conv", "linear", "matmul"))
