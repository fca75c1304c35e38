"""A file against the simulation it was made from, on the same images.

The runtime's bias is int32 on the scale s_x s_w, the simulation's is real. That rounding alone moves a few values in
a thousand by a step, and layers behind spread it. So elements are compared with the simulation of the network *as
stored*, with the biases that the file holds: what then departs is arithmetic. The metric is given for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from quantopsy.analysis import significance
from quantopsy.core import Plan, QuantopsyError
from quantopsy.core.recipe import Estimate
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, Prepared
from quantopsy.export.onnx.graph import BIAS_CODES_NAME, BIAS_SCALE_NAME, CODES_NAME, activation_grid
from quantopsy.export.onnx.grids import ActivationGrid
from quantopsy.export.onnx.runtime import Inputs, feed, open_session, run
from quantopsy.graph.execute import Overlay, channels_last, compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.outputs import output_tensors
from quantopsy.metrics import Metric, agreement, measure

LEVEL = 0.95  # of intervals
LAYER_IMAGES = 16  # whose every layer is compared: millions of elements


@dataclass(frozen=True)
class Departure:
    """How far one run's elements are from a reference: shares, and the largest distance in steps. NaN of none."""

    equal: float
    within_step: float
    largest: float


@dataclass(frozen=True)
class LayerDeparture:
    """A layer's output codes against the engine's, from the same inputs: those that the runtime itself had."""

    layer: str
    plain: Departure
    optimised: Departure


@dataclass(frozen=True)
class Run:
    """The file with the runtime's optimisations off or on.

    ``outputs`` are compared with the simulation as stored, in steps of the output's grid, or 1/255 of its range
    where it is on none. ``layers`` takes the quantized layers together, each on the inputs that it had in this run:
    differences of arithmetic alone, where ``outputs`` also has what the layers behind make of them. ``decisions`` is
    the share of decisions that are the same as the plan's own simulation's, in percent; NaN where outputs are no
    scores.
    """

    outputs: Departure
    layers: Departure
    decisions: float


@dataclass(frozen=True)
class Verified:
    """A metric on the same images in float, simulated, simulated with the file's biases, and as the file gives it.

    ``runtime`` is with the runtime's optimisations on, which is how a file is deployed. ``lost``: what it loses
    against float, ``departs``: against the simulation (positive is worse); value and 95 % interval, of paired images.
    """

    metric: str
    unit: str
    images: int
    float_network: float
    simulated: float
    stored: float
    runtime: float
    lost: Estimate
    departs: Estimate
    plain: Run
    optimised: Run
    by_layer: tuple[LayerDeparture, ...]


@dataclass
class Tally:
    """Sums of distances in steps."""

    elements: int = 0
    equal: int = 0
    within: int = 0
    largest: float = 0.0

    def add(self, tensor: Tensor, reference: Tensor, step: float | Tensor) -> None:
        # A grid's steps are whole up to float rounding; off a grid, half a step is as good as none.
        apart = (tensor.double() - reference.double()).abs() / step
        self.elements += apart.numel()
        self.equal += int((apart < 0.5).sum())
        self.within += int((apart < 1.5).sum())
        self.largest = max(self.largest, float(apart.max()))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.elements + other.elements,
            self.equal + other.equal,
            self.within + other.within,
            max(self.largest, other.largest),
        )

    def result(self) -> Departure:
        if not self.elements:
            return Departure(np.nan, np.nan, np.nan)
        return Departure(self.equal / self.elements, self.within / self.elements, self.largest)


def verify(
    model: onnx.ModelProto,
    network: Network,
    plan: Plan,
    calibration: Calibration,
    batches: Iterable[Batch],
    metric: Metric,
    *,
    threads: int = 1,
) -> Verified:
    """Check ``model``, which :func:`to_onnx` made of the others, and run it beside them on ``batches``.

    ONNX's checker with shape inference, then ONNX Runtime with its optimisations off and on against the exact
    engine. Raises :class:`QuantopsyError` where the checker or the runtime refuses the model, and without images.
    """
    check_model(model)
    engine = ExactEngine(compile_network(network), calibration)
    prepared = engine.prepare(plan)
    network_stored, plan_stored = as_stored(network, plan, model)
    share_grids(network, calibration, plan, plan_stored)
    engine_stored = ExactEngine(compile_network(network_stored), calibration)
    prepared_stored = engine_stored.prepare(plan_stored)
    sessions = {on: open_session(model, optimised=on, threads=threads) for on in (False, True)}
    outputs_apart = {on: Tally() for on in sessions}
    layers_apart: dict[bool, dict[str, Tally]] = {}
    kept: dict[bool, list[np.ndarray]] = {on: [] for on in sessions}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("float_network", "simulated", "stored", "runtime")}
    images = 0
    for batch in batches:
        reals, simulated = (found.outputs for found in engine.run_tile(batch.inputs, [prepared]))
        stored = list(engine_stored.run_tile(batch.inputs, [prepared_stored]))[1].outputs
        runs = {on: run(session, network, batch.inputs) for on, session in sessions.items()}
        if not images:
            steps = _output_steps(network, engine, prepared, simulated)
            layers_apart = {
                on: layer_tallies(
                    tapped(model, engine_stored, prepared_stored, batch.inputs, optimised=on, threads=threads),
                    engine_stored,
                    prepared_stored,
                )
                for on in sessions
            }
        images += len(batch)
        for on, outputs in runs.items():
            kept[on].append(agreement(network.unflatten(outputs), network.unflatten(simulated)))
            for tensor, other, step in zip(output_tensors(outputs), output_tensors(stored), steps, strict=True):
                outputs_apart[on].add(tensor, other, step)
        for name, outputs in zip(rows, (reals, simulated, stored, runs[True]), strict=True):
            rows[name].append(measure(metric, network.unflatten(outputs), batch.labels, network.unflatten(reals)))
    if not images:
        raise QuantopsyError("data", "it gives no image to compare on", "give a few hundred")
    plain, optimised = (
        Run(
            outputs=outputs_apart[on].result(),
            layers=sum(layers_apart[on].values(), Tally()).result(),
            decisions=100 * float(np.concatenate(kept[on]).mean()),
        )
        for on in (False, True)
    )
    measured = {name: np.concatenate(found) for name, found in rows.items()}
    lost, departs = (
        significance.degradation(metric, measured[better], measured["runtime"], level=LEVEL)
        for better in ("float_network", "simulated")
    )
    return Verified(
        metric=metric.name,
        unit=metric.unit,
        images=images,
        **{name: metric.value(found) for name, found in measured.items()},
        lost=(lost.value, lost.low, lost.high),
        departs=(departs.value, departs.low, departs.high),
        plain=plain,
        optimised=optimised,
        by_layer=tuple(
            LayerDeparture(layer, tally.result(), layers_apart[True][layer].result())
            for layer, tally in layers_apart[False].items()
        ),
    )


@dataclass(frozen=True)
class Tapped:
    """What a runtime gave for a file's codes on ``images``, the inputs in order: by value its grid and its codes."""

    images: tuple[Tensor, ...]
    grids: Mapping[str, ActivationGrid]
    codes: Mapping[str, np.ndarray]


def tapped(
    model: onnx.ModelProto,
    engine: ExactEngine,
    prepared: Prepared,
    inputs: Inputs,
    *,
    optimised: bool,
    threads: int,
    unsaturated: bool = False,
) -> Tapped:
    """The codes of every quantized output that the file has under our name, on ``LAYER_IMAGES`` images.

    They come out as outputs of their own, which leaves the runtime's fusions as they are.
    """
    program = engine.program
    images = tuple(tensor[:LAYER_IMAGES] for tensor in program.network.arrange(inputs))
    named = {value for node in model.graph.node for value in node.output}
    grids = {
        program.steps[index].writes: activation_grid("", "output", quantizers.output)
        for index, quantizers in prepared.quantizers.items()
        if quantizers.output is not None and CODES_NAME.format(program.steps[index].writes) in named
    }
    if not grids:
        return Tapped(images, {}, {})
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for value, grid in grids.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(grid.dtype)
        opened.graph.output.append(onnx.helper.make_tensor_value_info(CODES_NAME.format(value), kind, None))
    session = open_session(opened, optimised=optimised, threads=threads, unsaturated=unsaturated)
    found = session.run([CODES_NAME.format(value) for value in grids], feed(program.network, images))
    return Tapped(images, grids, {value: np.asarray(codes) for value, codes in zip(grids, found, strict=True)})


def layer_tallies(taps: Tapped, engine: ExactEngine, prepared: Prepared) -> dict[str, Tally]:
    """Every layer with a quantized output, computed by the engine from the codes that it read in the runtime."""
    program = engine.program
    tallies: dict[str, Tally] = {}
    with torch.inference_mode():
        values = program.place(taps.images)
        for step in program.steps if taps.grids else ():
            quantizers = prepared.quantizers.get(step.index)
            if quantizers is None:
                values[step.writes] = step.compute(Overlay(values, program.constants))
                continue
            result = engine.quantized(step, quantizers, values, values)
            if step.writes in taps.grids:
                assert step.layer is not None
                grid, found = taps.grids[step.writes], taps.codes[step.writes]
                mine = torch.from_numpy(grid.encode(result.numpy(), result.dim()))
                tally = tallies[step.layer.name] = Tally()
                tally.add(torch.from_numpy(found.astype(np.int64)), mine, 1.0)
                result = channels_last(torch.from_numpy(grid.decode(found, result.dim())))
            values[step.writes] = result
    return tallies


def check_model(model: onnx.ModelProto) -> None:
    """ONNX's own checker, with types and shapes inferred. Raises :class:`QuantopsyError` with its words."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise QuantopsyError(
            "ONNX model", f"its checker refuses it ({str(error).splitlines()[0][:200]})", "please report it"
        ) from error


def _output_steps(network: Network, engine: ExactEngine, prepared: Prepared, outputs: tuple[Any, ...]) -> list[float]:
    """The step of each floating output: of its grid, the largest of several, else 1/255 of its range."""
    steps = []
    for name, output in zip(engine.program.outputs, outputs, strict=True):
        if not isinstance(output, Tensor) or not output.is_floating_point():
            continue
        quantizers = prepared.quantizers.get(engine.program.producer.get(network.origin(name), -1))
        grid: Any = quantizers.output if quantizers is not None else None
        steps.append(float(grid.scale.max() if grid is not None else (output.max() - output.min()) / 255))
    return steps


def as_stored(network: Network, plan: Plan, model: onnx.ModelProto) -> tuple[Network, Plan]:
    """``network`` with the int32 biases that ``model`` holds, and ``plan`` without what they contain already.

    A correction of biases is in the stored bias, so the plan's weights lose theirs.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(network.graph, copies))
    nodes = {node.name: node for node in graph.nodes}
    tensors, layers, sites = dict(network.tensors), [], dict(plan.sites)
    for layer in network.layers:
        codes = stored.get(BIAS_CODES_NAME.format(layer.name))
        if codes is None:
            layers.append(layer)
            continue
        scale = onnx.numpy_helper.to_array(stored[BIAS_SCALE_NAME.format(layer.name)])
        name = f"{layer.node}.stored_bias"
        tensors[name] = torch.from_numpy(onnx.numpy_helper.to_array(codes) * scale.astype(np.float64)).float()
        node = nodes[layer.node]
        with graph.inserting_before(node):
            bias = graph.get_attr(name)
        arguments = (list(node.args) + [None] * 3)[: max(3, len(node.args))]
        arguments[2] = bias
        node.args = tuple(arguments)
        layers.append(replace(layer, bias=name))
        for site, spec in plan.sites:
            if site.layer == layer.name and spec.corrects_bias:
                sites[site] = replace(spec, correction="none")
    return replace(network, graph=graph, tensors=tensors, layers=tuple(layers)), Plan.of(sites)


def share_grids(network: Network, calibration: Calibration, plan: Plan, stored: Plan) -> None:
    """The grids of weights that ``calibration`` was given for ``plan``, for the specs of ``stored`` as well."""
    for (site, spec), (_, other) in zip(plan.sites, stored.sites, strict=True):
        known = calibration.encodings.get((str(network.layer(site.layer).weight), spec))
        if site.role == "weight" and spec != other and known is not None:
            calibration.encodings[str(network.layer(site.layer).weight), other] = known
