"""Single-layer quantized networks, exactly, without ever running a layer's prefix again.

Per tile of images: one float pass keeps its values; then, walking forward, every plan starts at its
first quantized layer and runs only what depends on it (DESIGN, section 5). A value is released once
the walk has passed its last reader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.tensor_cache import WEIGHT_CACHE_BYTES, TensorCache
from quantopsy.graph.execute import Lookup, Overlay, Program, Step, Values, channels_last
from quantopsy.graph.images import image_axis
from quantopsy.graph.network import Layer
from quantopsy.quant import QParams, fake_quantize

_COUNTS = 8
"""Numbers of images of a tile that runs are of. oneDNN keeps a kernel for every number that it has met, by layer."""


@dataclass(frozen=True)
class LayerQuantizers:
    """What one layer of a prepared plan puts on its grid."""

    inputs: tuple[tuple[str, QParams], ...]
    weight: Spec | None
    shift: Tensor | None  # (C, 1, ...) of the result, that the quantized weight adds and the bias takes away
    output: QParams | None


@dataclass(frozen=True)
class Prepared:
    """A plan with its ranges realised and its schedule worked out.

    ``schedule`` are the indices of the steps that have to run, ``release`` for each the values that
    nobody in the schedule reads after it.
    """

    plan: Plan
    quantizers: dict[int, LayerQuantizers]
    schedule: tuple[int, ...]
    release: tuple[tuple[str, ...], ...]

    @property
    def start(self) -> int:
        """Index of the first step to run."""
        return self.schedule[0]


class Measured(NamedTuple):
    """One plan on one tile: the network's flat outputs, and the seconds they took."""

    run: int
    outputs: tuple[Any, ...]
    seconds: float


class ExactEngine:
    """Runs plans on tiles of images. Holds the program, the ranges, prepared plans and quantized weights."""

    def __init__(self, program: Program, calibration: Calibration) -> None:
        keep_freed_memory()
        self.program = program
        self.calibration = calibration
        self._prepared: dict[tuple[Plan, Calibration], Prepared] = {}
        self._weights = TensorCache[tuple[str, Spec]](WEIGHT_CACHE_BYTES)

    def prepare(self, plan: Plan, ranges: Calibration | None = None) -> Prepared:
        """``plan`` with its ranges realised, and the steps it changes; worked out once.

        ``ranges`` takes the place of the engine's own. Raises ValueError for an empty plan.
        """
        ranges = ranges or self.calibration
        key = plan, ranges
        if key not in self._prepared:
            self._prepared[key] = self._realised(plan, ranges)
        return self._prepared[key]

    def _realised(self, plan: Plan, ranges: Calibration) -> Prepared:
        program = self.program
        quantizers: dict[int, LayerQuantizers] = {}
        on_grid: dict[str, QParams] = {}
        dirty: set[str] = set()
        schedule: list[int] = []
        for step in program.steps:
            touched = step.layer is not None and step.layer.name in plan.layers
            if not touched and dirty.isdisjoint(step.reads):
                continue
            schedule.append(step.index)
            dirty.add(step.writes)
            if touched:
                assert step.layer is not None
                quantizers[step.index] = self._layer_quantizers(step.layer, plan, on_grid, ranges)
                output = quantizers[step.index].output
                if output is not None:
                    on_grid[step.writes] = output
            elif step.writes in program.network.origins and step.reads[0] in on_grid:
                on_grid[step.writes] = on_grid[step.reads[0]]
        if not schedule:
            raise ValueError("an empty plan is the float network")
        last = {name: index for index in schedule for name in program.steps[index].reads}
        release = tuple(
            tuple(
                name
                for name in program.steps[index].reads
                if name in dirty and last[name] == index and name not in program.outputs
            )
            for index in schedule
        )
        return Prepared(plan, quantizers, tuple(schedule), release)

    def _layer_quantizers(
        self, layer: Layer, plan: Plan, on_grid: dict[str, QParams], ranges: Calibration
    ) -> LayerQuantizers:
        spec = plan.get(Site(layer.name, "input"))
        inputs = []
        for value in layer.inputs if spec is not None else ():
            assert spec is not None
            qparams = ranges.qparams(value, spec)
            # The producer left the value on this very grid; quantizing again changes nothing.
            if on_grid.get(value) is not qparams:
                inputs.append((value, qparams))
        weight = plan.get(Site(layer.name, "weight")) if layer.weight is not None else None
        output = plan.get(Site(layer.name, "output"))
        return LayerQuantizers(
            inputs=tuple(inputs),
            weight=weight,
            shift=self._shift(layer, weight, ranges) if weight is not None and weight.corrects_bias else None,
            output=ranges.qparams(layer.output, output) if output is not None else None,
        )

    def _shift(self, layer: Layer, spec: Spec, ranges: Calibration) -> Tensor:
        assert layer.weight is not None
        change = self.quantized_weight(layer, spec).cpu() - self.program.network.tensors[layer.weight]
        return by_channel(ranges.shift(layer, spec, change), layer).to(self.program.device)

    def quantized_weight(self, layer: Layer, spec: Spec) -> Tensor:
        """The layer's weight on the grid of ``spec``; kept while the cache has room."""
        return self._weights.get((layer.name, spec), lambda: self._weight_on_grid(layer, spec))

    def _weight_on_grid(self, layer: Layer, spec: Spec) -> Tensor:
        assert layer.weight is not None
        # From the tensor as the network has it: memory format must not decide the order of sums.
        weight = self.program.network.tensors[layer.weight]
        return channels_last(self.calibration.quantized_weight(layer, spec, weight).to(self.program.device))

    def float_pass(self, inputs: Any) -> tuple[tuple[Any, ...], float]:
        """Outputs of the float network and the seconds they took, values released on the way."""
        with torch.inference_mode():
            values = self.program.place(inputs)
            begin = self._now()
            return self.program.forward(values), self._now() - begin

    def whole_pass(self, inputs: Any, prepared: Prepared) -> tuple[Any, ...]:
        """Outputs of one plan from the inputs on, without the float network beside it."""
        program = self.program
        with torch.inference_mode():
            values = program.place(inputs)
            for step in program.steps:
                quantizers = prepared.quantizers.get(step.index)
                if quantizers is None:
                    values[step.writes] = step.compute(Overlay(values, program.constants))
                else:
                    values[step.writes] = self.quantized(step, quantizers, values, {})
                program.release(step, values)
            return tuple(values[name] for name in program.outputs)

    def run_tile(
        self, inputs: Any, prepared: Sequence[Prepared], rows: Sequence[np.ndarray | None] | None = None
    ) -> Iterator[Measured]:
        """Every prepared plan on one tile, in order of its first quantized layer.

        The float network comes first, as run -1. With ``rows`` a plan runs on those images of the tile only
        (positions; ``None``: on all of them).
        """
        program = self.program
        with torch.inference_mode():
            values = program.place(inputs)
            begin = self._now()
            outputs = program.forward(values, keep=True)
            yield Measured(-1, outputs, self._now() - begin)
            some = self._some(values, rows)
            starts: dict[int, list[int]] = {}
            for run, plan in enumerate(prepared):
                starts.setdefault(plan.start, []).append(run)
            last_start = max(starts, default=-1)
            for step in program.steps[: last_start + 1]:
                inputs_on_grid: dict[tuple[str, int], Tensor] = {}
                for run in starts.get(step.index, ()):
                    begin = self._now()
                    kept = None if rows is None else rows[run]
                    if kept is None:
                        outputs = self._run(prepared[run], values, inputs_on_grid)
                    else:
                        outputs = some(prepared[run], kept)
                    yield Measured(run, outputs, self._now() - begin)
                program.release(step, values)

    def _some(
        self, values: Values, rows: Sequence[np.ndarray | None] | None
    ) -> Callable[[Prepared, np.ndarray], tuple[Any, ...]]:
        """How to run a plan on some of a tile's images: alone, or where the network turns images away from
        the outermost dimension, with the others, to be picked out of the outputs."""
        program = self.program
        images = len(values[program.network.input_names[0]])
        counts = {_filled(len(kept), images) for kept in rows or () if kept is not None}
        if not counts:
            return lambda prepared, _: self._run(prepared, values, None)
        alone = {name: values[name][:1] for name in program.network.input_names}
        program.forward(alone, keep=True)
        if not _by_image(values, alone, images):
            return lambda prepared, kept: tuple(
                value[torch.from_numpy(kept).to(value.device)] if isinstance(value, Tensor) and value.dim() else value
                for value in self._run(prepared, values, None)
            )
        numbers = {count: _numbers(program, values, alone, count) for count in counts}

        def run(prepared: Prepared, kept: np.ndarray) -> tuple[Any, ...]:
            count = _filled(len(kept), images)
            taken = torch.from_numpy(np.resize(kept, count)).to(program.device)
            outputs = self._run(prepared, _Rows(values, alone, taken, numbers[count]), None)
            wanted = zip(outputs, (alone[name] for name in program.outputs), strict=True)
            return tuple(value if _is_whole(value, one) else value[: len(kept) * len(one)] for value, one in wanted)

        return run

    def _run(self, prepared: Prepared, values: Lookup, shared: dict[tuple[str, int], Tensor] | None) -> tuple[Any, ...]:
        """One plan from its first quantized layer on.

        ``shared`` keeps the first layer's quantized inputs for the next plan that starts there.
        """
        program = self.program
        local: Values = {}
        for position, (index, released) in enumerate(zip(prepared.schedule, prepared.release, strict=True)):
            step = program.steps[index]
            quantizers = prepared.quantizers.get(index)
            if quantizers is None:
                local[step.writes] = step.compute(Overlay(local, Overlay(values, program.constants)))
            else:
                local[step.writes] = self.quantized(step, quantizers, local, values, shared if position == 0 else None)
            for name in released:
                del local[name]
        return tuple(local[name] if name in local else values[name] for name in program.outputs)

    def quantized(
        self,
        step: Step,
        quantizers: LayerQuantizers,
        local: Values,
        values: Lookup,
        shared: dict[tuple[str, int], Tensor] | None = None,
    ) -> Tensor:
        """What the layer of ``step`` gives on its grids, reading from ``local``, else from ``values``."""
        lookup = self.on_grids(step, quantizers, local, values, shared)
        if quantizers.shift is None:
            result = step.compute(lookup)
        else:
            result = step.activated(lookup, step.operation(lookup) - quantizers.shift)
        return result if quantizers.output is None else fake_quantize(result, quantizers.output)

    def on_grids(
        self,
        step: Step,
        quantizers: LayerQuantizers,
        local: Values,
        values: Lookup,
        shared: dict[tuple[str, int], Tensor] | None = None,
    ) -> Lookup:
        """What the operation of ``step`` reads: inputs from ``local``, else from ``values``, and weight on grids."""
        over: Values = {}  # for this layer's use only: other readers of an input get it as it was
        for name, qparams in quantizers.inputs:
            key = (name, id(qparams))
            quantized = shared.get(key) if shared is not None else None
            if quantized is None:
                quantized = fake_quantize(local[name] if name in local else values[name], qparams)
                if shared is not None:
                    shared[key] = quantized
            over[name] = quantized
        if quantizers.weight is not None:
            assert step.layer is not None
            assert step.weight is not None
            over[step.weight] = self.quantized_weight(step.layer, quantizers.weight)
        return Overlay(over, Overlay(local, Overlay(values, self.program.constants)))

    def _now(self) -> float:
        if self.program.device.type == "cuda":
            torch.cuda.synchronize(self.program.device)
        return time.perf_counter()


def by_channel(x: Tensor, layer: Layer) -> Tensor:
    """(C,) shaped to be added to the layer's result."""
    return x if layer.channel_axis == -1 else x.reshape(-1, *(1,) * (len(layer.output_shape) - 1))


class _Rows:
    """Look-up of some of a tile's images, each value taken out once; what is not by image stays whole.

    ``alone`` are the values of a tile of one image: what has another length there is by image, and has as many rows
    of every image as of that one. ``numbers`` are the values that are no tensors, for so many images.
    """

    def __init__(self, values: Values, alone: Values, rows: Tensor, numbers: Values) -> None:
        self._values, self._alone, self._rows = values, alone, rows
        self._taken = dict(numbers)

    def __getitem__(self, name: str) -> Any:
        if name not in self._taken:
            self._taken[name] = pytree.tree_map(self._take, self._values[name], self._alone[name])
        return self._taken[name]

    def _take(self, value: Any, alone: Any) -> Any:
        if _is_whole(value, alone):
            return value
        rows = self._rows
        if len(alone) > 1:
            rows = (rows[:, None] * len(alone) + torch.arange(len(alone), device=rows.device)).flatten()
        return channels_last(value.index_select(0, rows))


def _is_whole(value: Any, alone: Any) -> bool:
    """Whether a value is of no image: not longer than that of one."""
    return not isinstance(value, Tensor) or not value.dim() or len(value) == len(alone)


def _filled(count: int, images: int) -> int:
    """So many of a tile's images, filled up to one of :data:`_COUNTS` numbers: kernels are kept for each."""
    step = -(-images // _COUNTS)
    return min(images, -(-count // step) * step)


def _by_image(values: Values, alone: Values, images: int) -> bool:
    """Whether every value that depends on the number of images has them outermost."""
    pairs = [
        pair
        for name, one in alone.items()
        for pair in zip(pytree.tree_leaves(values[name]), pytree.tree_leaves(one), strict=True)
    ]
    axes = [image_axis(many, one, images) for many, one in pairs if isinstance(many, Tensor)]
    return all(axis is not None and axis.dim == 0 and not axis.apart for axis in axes)


def _numbers(program: Program, values: Values, alone: Values, count: int) -> Values:
    """The values that are numbers, such as sizes, for ``count`` images."""
    found: Values = {}
    rows = torch.arange(count, device=program.device)
    for step in program.steps:
        if isinstance(values[step.writes], int | float):
            found[step.writes] = step.compute(Overlay(_Rows(values, alone, rows, found), program.constants))
    return found
