"""From a layer's accumulators to its codes: the activation function and the requantization, in integers.

- a clip (ReLU, ReLU6, clamps, also one a channel) is a clip of codes;
- a slope (leaky ReLU, PReLU) is a second multiplier for sums below zero;
- any other function is looked up: accumulators are requantized to a grid of ``table_bits`` that spans the reals at
  which the result changes (:func:`quantopsy.integer.tables.table_input`), and its codes index a table.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from quantopsy.graph.execute import Lookup, Step
from quantopsy.integer.kernels import Sums
from quantopsy.integer.requantize import Requantization, Saturated, add_tflite, add_tflite_error, saturate
from quantopsy.integer.tables import table, table_input
from quantopsy.quant import UniformQParams
from quantopsy.quant.grouping import aligned

CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})
SLOPES = frozenset({"leaky_relu", "prelu"})

# Beyond every real a network has, within every float32.
_FAR = 1e30
# Whole numbers that int64 holds with room for a zero point.
_STEPS = 2**40


@dataclass(frozen=True)
class Interval:
    """Codes that rounding may give of a real known to within some error (int64)."""

    low: Tensor
    high: Tensor

    def holds(self, codes: Tensor) -> Tensor:
        """Where ``codes`` lie within."""
        return (codes >= self.low) & (codes <= self.high)


class Finish:
    """What is behind the accumulators of one layer whose result has the grid ``target``.

    ``reach``: the largest real that they stand for. ``pair``: they are two tensors of 8-bit codes to be added, for
    which TFLite has an operator of its own.
    """

    def __init__(
        self,
        step: Step,
        constants: Lookup,
        target: UniformQParams,
        requantization: Requantization,
        table_bits: int,
        reach: float,
        pair: bool,
    ) -> None:
        assert step.layer is not None
        self.step, self.constants, self.target, self.requantization = step, constants, target, requantization
        self.kind, self.pair = step.layer.activation, pair
        self.source: UniformQParams | None = None
        self.entries: Tensor | None = None
        if self.kind is not None and self.kind not in CLIPS | SLOPES:
            self.source = table_input(self.function, target, reach, table_bits)
            self.entries = table(self.function, self.source, target)

    def using(self, requantization: Requantization) -> Finish:
        """The same with another requantization."""
        other = copy(self)
        other.requantization = requantization
        return other

    def function(self, x: Tensor) -> Tensor:
        """The activation function of reals (float32)."""
        result: Tensor = self.step.activated(self.constants, x)
        return result

    def codes(self, sums: Sums) -> Saturated:
        """Codes of the layer's result."""
        if self.source is not None:
            assert self.entries is not None
            steps = self._steps(sums, self.source)
            inside = saturate(steps, self.source.zero_point, self.source.qmin, self.source.qmax).codes
            return Saturated(self.entries[inside.long() - self.source.qmin], 0)
        target = self.target
        like = sums.values[0]
        steps = self._steps(sums, target)
        low = high = None
        if self.kind in CLIPS:
            low, high = (self._in_steps(self._bound(like, end)) for end in (-_FAR, _FAR))
        elif self.kind in SLOPES:
            steps = torch.where(sums.real < 0, self._steps(self._tilted(sums), target), steps)
        return saturate(steps, self._laid(target.zero_point, like), target.qmin, target.qmax, low, high)

    def ideal(self, sums: Sums) -> Tensor:
        """Codes (int64) by exact multiplication and function, rounded half to even: what a device approximates."""
        real = self._of_double(sums.real)
        steps = torch.round(real / self.scale_of(real)).clamp(-_STEPS, _STEPS).long()
        return (steps + self._laid(self.target.zero_point, real)).clamp(self.target.qmin, self.target.qmax)

    def device_error(self, sums: Sums) -> Tensor:
        """How far, in reals in front of the activation function, the device may be from the sums."""
        target = self.source or self.target
        scale = self._laid(target.scale, sums.values[0]).double()
        bound = add_tflite_error if self._adds_as_tflite else self.requantization.error
        error = bound(sums.values, sums.units, scale) * scale
        if self.kind in SLOPES:
            slope = self._slope(sums.values[0]).abs()
            below = bound(sums.values, self._tilted(sums).units, scale) * scale / slope.clamp(min=2.0**-40)
            error = torch.where(sums.real < 0, torch.maximum(error, below), error)
        return error if self.source is None else error + scale / 2  # of being rounded to the table's grid

    def interval(self, real: Tensor, error: Tensor) -> Interval:
        """The codes that a real (float64) may get which is known to within ``error``, a tie going either way."""
        ends = torch.stack([self._of_double(value) for value in (real - error, real, real + error)])
        scale = self.scale_of(real)
        zero = self._laid(self.target.zero_point, real).long()
        slack = 2.0**-40  # of computing this in float64
        low = torch.ceil(ends.amin(0) / scale - 0.5 - slack).clamp(-_STEPS, _STEPS).long() + zero
        high = torch.floor(ends.amax(0) / scale + 0.5 + slack).clamp(-_STEPS, _STEPS).long() + zero
        return Interval(low.clamp(self.target.qmin, self.target.qmax), high.clamp(self.target.qmin, self.target.qmax))

    def scale_of(self, like: Tensor) -> Tensor:
        """s_y, float64, broadcast to a tensor of the result's rank."""
        return self._laid(self.target.scale, like).double()

    def in_steps(self, real: Tensor) -> Tensor:
        """A real in front of the activation function as codes before rounding (float64)."""
        scale, zero = (self._laid(grid, real) for grid in (self.target.scale, self.target.zero_point))
        return self._of_double(real) / scale.double() + zero

    def _of_double(self, x: Tensor) -> Tensor:
        if self.step.activate is None:
            return x
        # Parameters of the network are float32: they promote.
        return self.step.activate(self.constants, x).double() if self.kind != "prelu" else self._prelu(x)

    def _prelu(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x * self._slope(x), x)

    def _slope(self, like: Tensor) -> Tensor:
        """What a leaky ReLU or PReLU multiplies negative values by."""
        return -self._bound(like, -1.0).double()

    def _tilted(self, sums: Sums) -> Sums:
        """The sums as if all were negative."""
        slope = self._slope(sums.values[0])
        return Sums(sums.values, tuple(unit * slope for unit in sums.units), sums.constants)

    def _steps(self, sums: Sums, grid: UniformQParams) -> Tensor:
        if self._adds_as_tflite:
            return add_tflite(sums.values, sums.units, self._laid(grid.scale, sums.values[0]))
        return self.requantization.steps(sums.values, sums.units, self._laid(grid.scale, sums.values[0]))

    @property
    def _adds_as_tflite(self) -> bool:
        return self.pair and self.requantization == Requantization("fixed_point", "gemmlowp")

    def _bound(self, like: Tensor, value: float) -> Tensor:
        """The activation function at ``value``, (1, ...) of the result's shape."""
        return self.function(torch.full((1, *like.shape[1:]), value, device=like.device))

    def _in_steps(self, bound: Tensor) -> Tensor:
        # As the simulation rounds it: Q(clip(y, a, b)) = clip(Q(y), Q(a), Q(b)).
        steps = torch.round(bound / self._laid(self.target.scale, bound))
        return steps.clamp(-_STEPS, _STEPS).long()

    def _laid(self, grid: Tensor, like: Tensor) -> Tensor:
        return aligned(grid, like, self.target.axis, None) if grid.dim() else grid
