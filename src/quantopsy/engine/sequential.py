"""Layer by layer through the float and the quantized network at once, deciding on each layer as it is reached.

Both networks advance together over all images, so that what a layer is given to decide on is the quantized network
as decided so far: iterative bias correction (IBC) and AdaRound in the order of the layers. Of every value only what
a later layer reads stays in memory, in both networks.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from quantopsy.core import Plan, Site, Spec
from quantopsy.engine.exact import ExactEngine, LayerQuantizers, by_channel
from quantopsy.graph.execute import Lookup, Overlay, Step, Values
from quantopsy.graph.network import Layer


@dataclass(frozen=True)
class Arrival:
    """A layer with a weight as the walk reaches it: its step, and per tile what its operation reads.

    ``exact``: in the float network; ``on_grids``: in the quantized one, its own grids included.
    """

    step: Step
    layer: Layer
    quantizers: LayerQuantizers
    exact: tuple[Lookup, ...]
    on_grids: tuple[Lookup, ...]


Decide = Callable[[Arrival], LayerQuantizers]


def walk(
    engine: ExactEngine,
    plan: Plan,
    batches: Sequence[Any],
    layers: Container[str],
    decide: Decide,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Take all ``batches`` through both networks; ``decide`` is asked for the quantizers of each of ``layers``
    that has a weight on a grid. ``advance`` hears of every step."""
    program, prepared = engine.program, engine.prepare(plan)
    with torch.no_grad():  # not inference mode: whoever decides may want to differentiate
        exact = [program.place(batch) for batch in batches]
        moved: list[Values] = [{} for _ in exact]  # values that differ from the float network's
        for step in program.steps:
            quantizers = prepared.quantizers.get(step.index)
            layer = step.layer
            if quantizers is not None and quantizers.weight is not None and layer is not None and layer.name in layers:
                quantizers = decide(
                    Arrival(
                        step,
                        layer,
                        quantizers,
                        tuple(Overlay(values, program.constants) for values in exact),
                        tuple(
                            engine.on_grids(step, quantizers, own, values)
                            for own, values in zip(moved, exact, strict=True)
                        ),
                    )
                )
            for own, values in zip(moved, exact, strict=True):
                if quantizers is not None:
                    own[step.writes] = engine.quantized(step, quantizers, own, values)
                elif any(name in own for name in step.reads):
                    own[step.writes] = step.compute(Overlay(own, Overlay(values, program.constants)))
                values[step.writes] = step.compute(Overlay(values, program.constants))
                program.release(step, values, own)
            advance(1)


def correct_biases(
    engine: ExactEngine,
    plan: Plan,
    batches: Sequence[Any],
    layers: Container[str],
    advance: Callable[[int], None] = lambda _: None,
) -> Plan:
    """``plan`` with the mean shift of every channel taken out of the biases of ``layers``, one after the other.

    Iterative bias correction: b_c -= E[y_hat_c] - E[y_c] in front of the activation function, y_hat of the network
    that is quantized and corrected so far (DFQ, Nagel et al. 2019, section 4.2 with data; layer-wise paper, section
    4.4). The shifts are kept in the engine's calibration, the plan means them by ``correction="given:..."``.
    """
    specs = dict(plan)

    def decide(arrival: Arrival) -> LayerQuantizers:
        site = Site(arrival.layer.name, "weight")
        specs[site], quantizers = bias_corrected(engine, arrival, specs[site])
        return quantizers

    walk(engine, plan, batches, layers, decide, advance)
    return Plan.of(specs)


def bias_corrected(engine: ExactEngine, arrival: Arrival, spec: Spec) -> tuple[Spec, LayerQuantizers]:
    """The ``spec`` of the layer's weight with the mean shift of every channel taken out of its bias, put to work."""
    layer, operation = arrival.layer, arrival.step.operation
    # A site has one correction: this one takes the place of a weight's own mean and variance.
    spec = replace(spec, correction="none")
    weight = {str(arrival.step.weight): engine.quantized_weight(layer, spec)}
    total = torch.zeros(0, dtype=torch.float64)
    count = 0
    for exact, on_grids in zip(arrival.exact, arrival.on_grids, strict=True):
        shifted = operation(Overlay(weight, on_grids)) - operation(exact)
        difference = shifted.movedim(layer.channel_axis, 0).flatten(1)
        part = difference.sum(1, dtype=torch.float64).cpu()
        total = part if not count else total + part
        count += difference.shape[1]
    shift = (total / count).float()
    spec = replace(spec, correction=engine.calibration.give(shift))
    moved = by_channel(shift, layer).to(engine.program.device)
    return spec, replace(arrival.quantizers, weight=spec, shift=moved)


def bias_can_move(layer: Layer) -> bool:
    """Whether a shift per channel of the layer's result is a change of a bias."""
    return layer.weight is not None and layer.op.startswith(("conv", "linear"))
