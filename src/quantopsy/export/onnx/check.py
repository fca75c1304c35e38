"""A file against the simulation it was made from, on the same images.

The runtime's bias is int32 on the scale s_x s_w, the simulation's is real. That rounding alone moves a few values in
a thousand by a step, and layers behind spread it. So elements are compared with the simulation of the network *as
stored*, with the biases that the file holds: what then departs is arithmetic. The metric is given for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from quantopsy.analysis import significance
from quantopsy.core import Plan, QuantopsyError
from quantopsy.core.errors import first_line
from quantopsy.core.recipe import Estimate
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, Prepared
from quantopsy.export.onnx.graph import BIAS_CODES_NAME, BIAS_SCALE_NAME, CODES_NAME, activation_grid
from quantopsy.export.onnx.grids import ActivationGrid
from quantopsy.export.onnx.runtime import Inputs, Opener, feed, open_session, run
from quantopsy.graph.execute import Overlay, channels_last, compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.outputs import is_measured, output_tensors
from quantopsy.metrics import Metric, agreement, measure
from quantopsy.quant import QParams

LEVEL = 0.95  # of intervals
LAYER_IMAGES = 16  # whose every layer is compared: millions of elements
FLOAT_ROUNDING = 1e-3
"""Distance to the network's float outputs over their length that no order of float operations explains."""
_REFERENCES = ("float_network", "simulated", "stored")
_PLAIN, _OPTIMISED = "plain", "optimised"


@dataclass(frozen=True)
class Departure:
    """How far one run's elements are from a reference: shares, and the largest distance in steps. NaN of none."""

    equal: float
    within_step: float
    largest: float


@dataclass(frozen=True)
class Run:
    """The file in one runtime, with its optimisations off or on.

    ``value``: of the metric; ``lost``: what it loses against float, ``departs``: against the simulation (positive is
    worse); value and 95 % interval, of paired images. ``outputs`` are compared with the simulation as stored, in steps
    of the output's grid, or 1/255 of its range where it is on none. ``by_layer`` has the output codes of quantized
    layers, each on the inputs that it had in this run, and ``layers`` all of them together: differences of arithmetic
    alone, where ``outputs`` also has what the layers behind make of them. ``decisions`` is the share of decisions that
    are the same as the plan's own simulation's, in percent; NaN where outputs are no scores.
    """

    value: float
    lost: Estimate
    departs: Estimate
    outputs: Departure
    layers: Departure
    by_layer: Mapping[str, Departure]
    decisions: float


@dataclass(frozen=True)
class Verified:
    """A metric on the same images in float, simulated, simulated with the file's biases, and as the file gives it.

    ``plain`` and ``optimised`` are ONNX Runtime with its optimisations off and on, which is how a file is deployed;
    ``also`` has further runtimes by name.
    """

    metric: str
    unit: str
    images: int
    float_network: float
    simulated: float
    stored: float
    plain: Run
    optimised: Run
    also: Mapping[str, Run]


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
    exact: onnx.ModelProto,
    network: Network,
    plan: Plan,
    calibration: Calibration,
    batches: Iterable[Batch],
    metric: Metric,
    *,
    threads: int = 1,
    also: Mapping[str, Opener] = MappingProxyType({}),
) -> Verified:
    """Check ``model``, which :func:`to_onnx` made of the others, and run it beside them on ``batches``.

    ``exact`` is what it makes of them without a plan.

    ONNX's checker with shape inference, then ONNX Runtime with its optimisations off and on, and whatever ``also``
    opens, against the exact engine. Raises :class:`QuantopsyError` where the checker or a runtime refuses the model,
    where ``exact`` does not compute the network (:func:`check_float`), and without images.
    """
    check_model(model)
    engine = ExactEngine(compile_network(network), calibration)
    prepared = engine.prepare(plan)
    network_stored, plan_stored = as_stored(network, plan, model)
    share_grids(network, calibration, plan, plan_stored)
    engine_stored = ExactEngine(compile_network(network_stored), calibration)
    prepared_stored = engine_stored.prepare(plan_stored)
    openers: dict[str, Opener] = {
        _PLAIN: partial(open_session, optimised=False, threads=threads),
        _OPTIMISED: partial(open_session, threads=threads),
        **also,
    }
    sessions = {name: opener(model) for name, opener in openers.items()}
    outputs_apart = {name: Tally() for name in sessions}
    layers_apart: dict[str, dict[str, Tally]] = {}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*_REFERENCES, *sessions)}
    images = 0
    for batch in batches:
        reals, simulated = (found.outputs for found in engine.run_tile(batch.inputs, [prepared]))
        stored = list(engine_stored.run_tile(batch.inputs, [prepared_stored]))[1].outputs
        runs = {name: run(session, network, batch.inputs) for name, session in sessions.items()}
        if not images:
            check_float(exact, network, batch.inputs, reals, threads=threads)
            steps = _output_steps(network, engine, prepared, simulated)
            layers_apart = {
                name: layer_tallies(
                    tapped(model, engine_stored, prepared_stored, batch.inputs, opener), engine_stored, prepared_stored
                )
                for name, opener in openers.items()
            }
        images += len(batch)
        for name, outputs in runs.items():
            kept[name].append(agreement(network.unflatten(outputs), network.unflatten(simulated)))
            for tensor, other, step in zip(output_tensors(outputs), output_tensors(stored), steps, strict=True):
                outputs_apart[name].add(tensor, other, step)
        computed = dict(zip(_REFERENCES, (reals, simulated, stored), strict=True)) | runs
        for name, outputs in computed.items():
            rows[name].append(measure(metric, network.unflatten(outputs), batch.labels, network.unflatten(reals)))
    if not images:
        raise QuantopsyError("data", "it gives no image to compare on", "give a few hundred")
    measured = {name: np.concatenate(found) for name, found in rows.items()}

    def loss(reference: str, name: str) -> Estimate:
        return significance.degradation(metric, measured[reference], measured[name], level=LEVEL).estimate

    done = {
        name: Run(
            value=metric.value(measured[name]),
            lost=loss("float_network", name),
            departs=loss("simulated", name),
            outputs=outputs_apart[name].result(),
            layers=sum(layers_apart[name].values(), Tally()).result(),
            by_layer={layer: tally.result() for layer, tally in layers_apart[name].items()},
            decisions=100 * float(np.concatenate(kept[name]).mean()),
        )
        for name in sessions
    }
    return Verified(
        metric=metric.name,
        unit=metric.unit,
        images=images,
        **{name: metric.value(measured[name]) for name in _REFERENCES},
        plain=done[_PLAIN],
        optimised=done[_OPTIMISED],
        also={name: done[name] for name in also},
    )


@dataclass(frozen=True)
class Tapped:
    """What a runtime gave for a file's codes on ``images``, the inputs in order: by value its grid and its codes.

    ``reads``: reals of values that only their readers put on a grid, such as the network's inputs, by value and that
    grid's ``id``. Pixels often lie halfway between two codes, where runtimes round to either.
    """

    images: tuple[Tensor, ...]
    grids: Mapping[str, ActivationGrid]
    codes: Mapping[str, np.ndarray]
    reads: Mapping[tuple[str, int], Tensor]


def tapped(
    model: onnx.ModelProto,
    engine: ExactEngine,
    prepared: Prepared,
    inputs: Inputs,
    opener: Opener,
) -> Tapped:
    """The codes of every quantized output that the file has under our name, on ``LAYER_IMAGES`` images.

    They come out as outputs of their own, which leaves the fusions of the runtime behind ``opener`` as they are.
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
        return Tapped(images, {}, {}, {})
    reads: dict[str, QParams] = {}
    for _, quantizers in sorted(prepared.quantizers.items()):
        for value, qparams in quantizers.inputs:
            if value not in grids and CODES_NAME.format(value) in named:
                reads.setdefault(value, qparams)
    tapped_grids = grids | {value: activation_grid("", "input", qparams) for value, qparams in reads.items()}
    tapping = onnx.ModelProto()
    tapping.CopyFrom(model)
    for value, grid in tapped_grids.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(grid.dtype)
        tapping.graph.output.append(onnx.helper.make_tensor_value_info(CODES_NAME.format(value), kind, None))
    outputs = opener(tapping).run([CODES_NAME.format(value) for value in tapped_grids], feed(program.network, images))
    codes = {value: np.asarray(found) for value, found in zip(tapped_grids, outputs, strict=True)}
    decoded = {
        (value, id(qparams)): torch.from_numpy(tapped_grids[value].decode(codes[value], codes[value].ndim))
        for value, qparams in reads.items()
    }
    return Tapped(images, grids, codes, decoded)


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
            reads = ((value, taps.reads.get((value, id(qparams)))) for value, qparams in quantizers.inputs)
            own = {value: reals for value, reals in reads if reals is not None}
            result = engine.quantized(step, quantizers, own, values)
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
            "ONNX model", f"its checker refuses it ({first_line(error)})", "please report it"
        ) from error


def check_float(
    exact: onnx.ModelProto, network: Network, inputs: Inputs, outputs: Sequence[Any], *, threads: int = 1
) -> None:
    """That ``exact``, without a plan, gives the network's float ``outputs`` for ``inputs``, up to rounding.

    A comparison of grids would take an operator written wrongly for a step more of noise. Raises
    :class:`QuantopsyError` where a floating output is further off than :data:`FLOAT_ROUNDING` of its length.
    """
    session = open_session(exact, optimised=False, threads=threads)
    found = output_tensors(run(session, network, inputs))
    for tensor, reference in zip(found, output_tensors(outputs), strict=True):
        same = (tensor == reference) | (tensor.isnan() & reference.isnan())  # infinities have no distance
        apart = torch.where(same, 0.0, tensor.double() - reference.double()).norm()
        length = reference.double()[reference.isfinite()].norm()
        if not apart <= FLOAT_ROUNDING * length:
            raise QuantopsyError(
                "ONNX model",
                f"in float it is {100 * float(apart / length):.2g} % off the network: an operator computes another "
                "function",
                "please report it with the network's operators; no file was written",
            )


def _output_steps(network: Network, engine: ExactEngine, prepared: Prepared, outputs: tuple[Any, ...]) -> list[float]:
    """The step of each floating output: of its grid, the largest of several, else 1/255 of its range."""
    steps = []
    for name, output in zip(engine.program.outputs, outputs, strict=True):
        if not is_measured(output):
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
    tensors, layers, sites = dict(network.tensors), [], dict(plan)
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
