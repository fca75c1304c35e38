"""What each source of error of a fixed-point layer costs, switched on alone (practical approach, Figure 10).

A convolution in integers departs from the real one in six places: its input, weight and bias are rounded, its
accumulator may not hold the sum, the requantization multiplies by an approximate constant, and the output is rounded.
Each is put into the float network alone, everything else real; then in all layers at once; last, all together, which
is the integer network. B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.engine.exact import by_channel
from quantopsy.graph.execute import Lookup, Overlay, Step
from quantopsy.graph.outputs import squared_norms
from quantopsy.integer.accumulator import Accumulator
from quantopsy.integer.codes import Codes
from quantopsy.integer.kernels import Sums, Weighted
from quantopsy.integer.network import Inputs, IntegerLayer, IntegerNetwork, SummedLayer
from quantopsy.integer.requantize import Requantization
from quantopsy.integer.stored import StoredLayer
from quantopsy.metrics import agreement
from quantopsy.quant import fake_quantize

Source = Literal["input", "weight", "bias", "accumulator", "requantization", "output", "all"]

ACCUMULATORS = (Accumulator(32), Accumulator(20), Accumulator(16), Accumulator(16, "saturate"))
REQUANTIZATIONS = (
    Requantization("float32"),
    Requantization("fixed_point", "half_up"),
    Requantization("fixed_point", "gemmlowp"),
    Requantization("fixed_point", "half_up", 8),
)


@dataclass(frozen=True)
class ErrorRow:
    """One source in one layer, or in all (``layer`` None); ``variant`` says which accumulator or requantization.

    ``noise`` is the mean over images of the squared l2 distance of the network's outputs from the float network's
    (layer-wise paper, Algorithm 1), with its standard error; ``sqnr_db`` that of the layer's result, of the outputs for
    all layers, infinite where nothing changed; ``decisions`` the percentage of decisions as in float, NaN where
    outputs are no scores.
    """

    layer: str | None
    source: Source
    variant: str
    noise: float
    noise_stderr: float
    sqnr_db: float
    decisions: float


@dataclass(frozen=True)
class ErrorSources:
    """All rows, layers in order and each source of them, the whole network last; on ``images`` images."""

    rows: tuple[ErrorRow, ...]
    images: int

    def frame(self) -> pd.DataFrame:
        """One row for each layer, source and variant; ``layer`` is None for the whole network."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    @property
    def whole(self) -> tuple[ErrorRow, ...]:
        """The rows of all layers at once."""
        return tuple(row for row in self.rows if row.layer is None)


Change = Callable[["_Reading"], Tensor]


@dataclass(frozen=True)
class _Switch:
    source: Source
    variant: str
    applies: Callable[[IntegerLayer], bool]
    change: Change


def error_sources(
    network: IntegerNetwork,
    batches: Iterable[Inputs],
    *,
    accumulators: Sequence[Accumulator] = ACCUMULATORS,
    requantizations: Sequence[Requantization] = REQUANTIZATIONS,
    by_layer: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> ErrorSources:
    """Noise of each source in each layer alone and in all layers, on ``batches``.

    ``input``, ``weight``, ``output``: that tensor on its grid; a value between two layers is one's output and the
    next one's input, so the two count the same rounding. ``bias``: rounded to int32 on s_x s_w. ``accumulator`` and
    ``requantization`` are taken from the layer's integers: what the accumulator makes of their sums, and where the
    device's codes differ from those of exact multiplication rounded half to even, is added to the real result. Layers
    that run in float have no rows. Raises :class:`QuantopsyError` where there is no image.
    """
    switches = list(_switches(accumulators, requantizations))
    found: dict[tuple[str | None, int], _Tally] = {}
    images = 0
    with torch.inference_mode():
        for inputs in batches:
            program = network.program
            values = program.place(inputs)
            images += len(next(iter(values.values())))
            outputs = program.forward(values, keep=True)
            for kernel in network.layers.values() if by_layer else ():
                reading = _Reading(kernel, Overlay(values, program.constants), values[kernel.step.writes])
                for place, switch in enumerate(switches):
                    if switch.applies(kernel):
                        changed = switch.change(reading)
                        tally = found.setdefault((kernel.layer.name, place), _Tally())
                        tally.add_signal(values[kernel.step.writes], changed)
                        tally.add(network, outputs, _onwards(network, kernel.step, values, changed))
                advance(1)
            for place, switch in enumerate(switches):
                result = _everywhere(network, switch, values)
                found.setdefault((None, place), _Tally()).add_whole(network, outputs, result)
            found.setdefault((None, len(switches)), _Tally()).add_whole(network, outputs, network.run(inputs))
    if not images:
        raise QuantopsyError("data", "it gives no image to measure on", "give a few")
    together = _Switch("all", network.arithmetic.requantization.name, lambda _: True, lambda reading: reading.result)
    order = {layer.layer.name: place for place, layer in enumerate(network.layers.values())}
    rows = [
        tally.row(layer, [*switches, together][place])
        for (layer, place), tally in sorted(
            found.items(), key=lambda item: (order.get(item[0][0] or "", len(order)), item[0][1])
        )
    ]
    return ErrorSources(tuple(rows), images)


class _Reading:
    """What one layer reads and gives in a network of reals, and its integers, worked out when first asked for."""

    def __init__(self, kernel: IntegerLayer, values: Lookup, result: Tensor) -> None:
        self.kernel, self.values, self.result = kernel, values, result
        self._sums: Sums | None = None

    @property
    def stored(self) -> StoredLayer:
        """The layer's weight and bias as integers."""
        assert isinstance(self.kernel, SummedLayer)
        assert isinstance(self.kernel.kernel, Weighted)
        return self.kernel.kernel.stored

    @property
    def sums(self) -> Sums:
        """The exact sums of the layer's integers."""
        assert isinstance(self.kernel, SummedLayer)
        if self._sums is None:
            operands = {name: Codes.of(self.values[name], grid).centred for name, grid in self.kernel.grids.items()}
            self._sums = self.kernel.kernel.sums(operands)
        return self._sums

    def plus(self, error: Tensor) -> Tensor:
        """The layer's result with ``error`` added to its sums."""
        step = self.kernel.step
        result = step.operation(self.values) + error.to(self.result.dtype)
        return step.activated(self.values, result)


def _switches(accumulators: Sequence[Accumulator], requantizations: Sequence[Requantization]) -> Iterator[_Switch]:
    yield _Switch("input", "", lambda _: True, _input)
    yield _Switch("weight", "", _weighted, _weight)
    yield _Switch("bias", "", _biased, _bias)
    for accumulator in accumulators:
        name = f"{accumulator.bits} bits, {accumulator.overflow}"
        yield _Switch("accumulator", name, _summed, partial(_accumulator, accumulator))
    for requantization in requantizations:
        yield _Switch("requantization", requantization.name, _requantized, partial(_requantization, requantization))
    yield _Switch("output", "", lambda kernel: kernel.target is not None, _output)


def _summed(kernel: IntegerLayer) -> bool:
    return isinstance(kernel, SummedLayer)


def _requantized(kernel: IntegerLayer) -> bool:
    return isinstance(kernel, SummedLayer) and kernel.finish is not None


def _weighted(kernel: IntegerLayer) -> bool:
    return isinstance(kernel, SummedLayer) and isinstance(kernel.kernel, Weighted)


def _biased(kernel: IntegerLayer) -> bool:
    return (
        isinstance(kernel, SummedLayer)
        and isinstance(kernel.kernel, Weighted)
        and kernel.kernel.stored.bias_error is not None
    )


def _input(reading: _Reading) -> Tensor:
    kernel = reading.kernel
    over = {name: fake_quantize(reading.values[name], grid) for name, grid in kernel.grids.items()}
    result: Tensor = kernel.step.compute(Overlay(over, reading.values))
    return result


def _weight(reading: _Reading) -> Tensor:
    step = reading.kernel.step
    assert step.weight is not None
    result: Tensor = step.compute(Overlay({step.weight: reading.stored.weight_hat}, reading.values))
    return result


def _bias(reading: _Reading) -> Tensor:
    assert reading.stored.bias_error is not None
    return reading.plus(by_channel(reading.stored.bias_error, reading.kernel.layer))


def _accumulator(accumulator: Accumulator, reading: _Reading) -> Tensor:
    held, found = reading.sums.held(accumulator)
    if not any(one.overflows for one in found):
        return reading.result
    return reading.plus(held.real - reading.sums.real)


def _requantization(requantization: Requantization, reading: _Reading) -> Tensor:
    kernel = reading.kernel
    assert isinstance(kernel, SummedLayer)
    assert kernel.finish is not None
    finish = kernel.finish.using(requantization)
    apart = finish.codes(reading.sums).codes.long() - finish.ideal(reading.sums)
    if not bool(apart.any()):
        return reading.result
    return reading.result + (apart * finish.scale_of(reading.result)).to(reading.result.dtype)


def _output(reading: _Reading) -> Tensor:
    assert reading.kernel.target is not None
    return fake_quantize(reading.result, reading.kernel.target)


def _onwards(network: IntegerNetwork, step: Step, values: Mapping[str, Any], result: Tensor) -> tuple[Any, ...]:
    """The network's outputs where ``step`` gives ``result``; only what depends on it is run."""
    program = network.program
    local: dict[str, Any] = {step.writes: result}
    if not torch.equal(result, values[step.writes]):
        lookup = Overlay(local, Overlay(values, program.constants))
        for later in program.steps[step.index + 1 :]:
            if any(name in local for name in later.reads):
                local[later.writes] = later.compute(lookup)
    return tuple(local.get(name, values[name]) for name in program.outputs)


def _everywhere(network: IntegerNetwork, switch: _Switch, reals: Mapping[str, Any]) -> tuple[Any, ...]:
    """The network's outputs with the source on in every layer that has it."""
    program = network.program
    values = {name: reals[name] for name in network.network.input_names}
    for step in program.steps:
        lookup = Overlay(values, program.constants)
        kernel = network.layers.get(step.index)
        result = step.compute(lookup)
        if kernel is not None and switch.applies(kernel):
            result = switch.change(_Reading(kernel, lookup, result))
        values[step.writes] = result
    return tuple(values[name] for name in program.outputs)


@dataclass
class _Tally:
    norms: list[Tensor] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    signal: float = 0.0
    error: float = 0.0

    def add_signal(self, reference: Tensor, changed: Tensor) -> None:
        """The layer's own result."""
        self.signal += float(reference.double().square().sum())
        self.error += float((changed.double() - reference.double()).square().sum())

    def add(self, network: IntegerNetwork, reference: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """The network's outputs."""
        self.norms.append(squared_norms(outputs, reference).cpu())
        unflatten = network.network.unflatten
        self.kept.append(agreement(unflatten(outputs), unflatten(reference)))

    def add_whole(self, network: IntegerNetwork, reference: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """The network's outputs, of which the ratio to the signal is taken too."""
        self.add(network, reference, outputs)
        self.signal += float(squared_norms(reference).sum())
        self.error += float(self.norms[-1].sum())

    def row(self, layer: str | None, switch: _Switch) -> ErrorRow:
        """The figures."""
        norms, kept = torch.cat(self.norms).numpy(), np.concatenate(self.kept)
        return ErrorRow(
            layer=layer,
            source=switch.source,
            variant=switch.variant,
            noise=float(norms.mean()),
            noise_stderr=float(norms.std(ddof=1) / len(norms) ** 0.5) if len(norms) > 1 else float("nan"),
            sqnr_db=10 * float(np.log10(self.signal / self.error)) if self.error else float("inf"),
            decisions=100 * float(kept.mean()),
        )
