"""One network in float, simulated, in integers, and as files give it, on the same images: where they part, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor

from quantopsy.analysis import significance
from quantopsy.analysis.phases import pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.recipes import named_as, realised
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Subject
from quantopsy.core import Plan, QuantopsyError
from quantopsy.core.errors import first_line
from quantopsy.core.recipe import Estimate, Recipe
from quantopsy.data import prefetch
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine, Prepared
from quantopsy.export.onnx.check import (
    LAYER_IMAGES,
    LEVEL,
    Tally,
    Tapped,
    as_stored,
    layer_tallies,
    share_grids,
    tapped,
)
from quantopsy.export.onnx.graph import CODES_NAME, to_onnx
from quantopsy.export.onnx.recipe import SAMPLES
from quantopsy.export.onnx.runtime import Inputs, Opener, run
from quantopsy.export.onnx.runtimes import ONNX_RUNTIME, Runtime, further
from quantopsy.graph.execute import Overlay, compile_network
from quantopsy.graph.network import Network
from quantopsy.integer.agreement import LayerAgreement, agreement
from quantopsy.integer.network import IntegerNetwork, arithmetic
from quantopsy.metrics import agreement as decisions_alike
from quantopsy.metrics import measure
from quantopsy.remedy.applied import opened

Cause = Literal["weights", "bias", "scale", "saturation", "fusion", "arithmetic", "rounding ties", "none"]

CAUSES: Mapping[Cause, str] = {
    "weights": "its integers are not the recipe's",
    "bias": "its integer bias is not the recipe's",
    "scale": "a scale or zero point is not the recipe's",
    "saturation": "pairs of products saturate in 16 bits on this processor: give weights 7 bits, or the session option "
    "session.x64quantprecision=1",
    "fusion": "only with the runtime's optimisations on: what they fuse computes something else",
    "arithmetic": "with optimisations off as well, and all stored numbers are the recipe's",
    "rounding ties": "single steps, at values next to the half between two codes",
    "none": "equal",
}

SCALES = ("scale", "zero_point", "inner_scale", "outer_scale", "gain", "offset")
"""Of a weight, as files name them."""


@dataclass(frozen=True)
class Layers:
    """Layers one by one, each from the inputs that it had in this run: shares of elements over all of them.

    ``first``: the first layer that is more than a step away, with ``cause``; without one, what the differences are.
    ``explained``: the share of differences that ties account for, None where that was not worked out.
    """

    equal: float
    within_step: float
    first: str | None
    cause: Cause
    explained: float | None = None
    example: str | None = None


@dataclass(frozen=True)
class Way:
    """One way to compute the network. ``lost``: of the metric against float; ``decisions``: percent as simulated.

    ``first_seen``: the first value, from the network's inputs on, that is more than a step from the simulation's, with
    the share of its elements; ``layers`` and it are None where the file keeps no codes under the recipe's names.
    """

    name: str
    value: Estimate
    lost: Estimate
    decisions: float
    layers: Layers | None = None
    first_seen: tuple[str, float] | None = None


Traced = tuple[Layers | None, tuple[str, float] | None]
"""Of a way: its layers one by one, and the first value that departs."""


@dataclass(frozen=True)
class Parity:
    """All ways, on the same ``samples`` images."""

    metric: str
    unit: str
    samples: int
    level: float
    ways: tuple[Way, ...]

    def __repr__(self) -> str:
        ways = ", ".join(f"{way.value[0]:.1f} {way.name}" for way in self.ways)
        return f"<Parity on {self.samples} images: {self.metric} {ways}>"

    def to_json(self) -> dict[str, Any]:
        """One document."""
        return asdict(self)


def parity(
    recipe: Recipe | str | Path,
    files: Sequence[str | Path] = (),
    model: Any = None,
    data: Any = None,
    *,
    metric: Any = None,
    preprocess: Any = None,
    samples: int = SAMPLES,
    integers: str = "onnxruntime",
    threads: int = 1,
    also: Sequence[str] = (),
    progress: Progress | None = None,
) -> Parity:
    """The network of ``recipe`` in float, simulated, in integer arithmetic, and as ``files`` give it in ONNX Runtime.

    Each file with the runtime's optimisations off and on; without files what :func:`to_onnx` makes of the recipe.
    ``also``: names of :mod:`quantopsy.export.onnx.runtimes` to run files in besides. ``integers``: one of
    :data:`quantopsy.integer.network.ARITHMETICS`. Model, data, metric and preprocessing are those of the recipe's study
    where none are given. Raises :class:`QuantopsyError` for whatever the user can mend.
    """
    progress = progress or Silent()
    device, elsewhere = arithmetic(integers), further(also)
    recipe, subject = opened(
        recipe, Settings(samples=samples), progress, model=model, data=data, metric=metric, preprocess=preprocess
    )
    network, calibration = realised(recipe, named_as(recipe, subject.network))
    session = _Session(subject, network, recipe.plan, calibration, threads)
    models = {Path(file).name: _read(Path(file)) for file in files} or {
        "file": to_onnx(network, recipe.plan, calibration)
    }
    whole = IntegerNetwork(network, recipe.plan, calibration, device)
    few = subject.images.batch(np.sort(subject.order)[:LAYER_IMAGES]).inputs
    traced: dict[str, Traced] = {f"integers ({integers})": (_integer_layers(whole, few), None)}
    computed: dict[str, Callable[[Inputs], Sequence[Any]]] = {f"integers ({integers})": whole.run}
    for name, file in models.items():
        ways = {name: (ONNX_RUNTIME, False), f"{name}, optimised": (ONNX_RUNTIME, True)}
        ways |= {f"{name}, {runtime.title}": (runtime, True) for runtime in elsewhere}
        for way, (runtime, on) in ways.items():
            computed[way] = session.runner(file, runtime, on, name)
            traced[way] = session.traced(file, runtime, on, few)
    return session.measured(computed, traced, progress)


class _Session:
    """What all ways are compared with."""

    def __init__(self, subject: Subject, network: Network, plan: Plan, calibration: Calibration, threads: int) -> None:
        self.subject, self.network, self.plan, self.calibration = subject, network, plan, calibration
        self.threads = threads
        self.fresh = to_onnx(network, plan, calibration)
        self.engine = ExactEngine(compile_network(network), calibration)
        self.prepared = self.engine.prepare(plan)

    @cached_property
    def stored(self) -> tuple[ExactEngine, Prepared]:
        """The simulation with the integer biases that a file of the recipe has."""
        network, plan = as_stored(self.network, self.plan, self.fresh)
        share_grids(self.network, self.calibration, self.plan, plan)
        engine = ExactEngine(compile_network(network), self.calibration)
        return engine, engine.prepare(plan)

    def runner(
        self, model: onnx.ModelProto, runtime: Runtime, optimised: bool, name: str
    ) -> Callable[[Inputs], Sequence[Any]]:
        """The file as a function of inputs; checked to take what the network does."""
        session = runtime.open(model, optimised=optimised, threads=self.threads)
        constants = {tensor.name for tensor in model.graph.initializer}
        wanted, found = set(self.network.input_names), {value.name for value in model.graph.input} - constants
        if wanted != found:
            raise QuantopsyError(
                f"file {name!r}",
                f"its inputs are {', '.join(sorted(found))}, the network's {', '.join(sorted(wanted))}",
                "give a file of this network, such as `quantopsy export` writes",
            )

        def outputs(inputs: Inputs) -> Sequence[Any]:
            try:
                given = run(session, self.network, inputs)
            except QuantopsyError as error:
                raise QuantopsyError(
                    f"file {name!r}",
                    f"it does not run on these images: {error.reason}",
                    "check the layout (N, C, H, W) and size that it was exported for",
                ) from error
            return given

        return outputs

    def traced(self, model: onnx.ModelProto, runtime: Runtime, optimised: bool, few: Inputs) -> Traced:
        """The layers of a file one by one, and the first value that departs from the inputs on."""
        engine, prepared = self.stored
        taps = self._tapped(model, few, runtime.opener(optimised=optimised, threads=self.threads))
        if not taps.grids:
            return None, None
        tallies = layer_tallies(taps, engine, prepared)
        total = sum(tallies.values(), Tally()).result()
        first = next((layer for layer, tally in tallies.items() if tally.within < tally.elements), None)
        cause: Cause = "none" if total.equal == 1 else "rounding ties"
        if first is not None:
            cause = self._cause(model, few, runtime, optimised, first)
        layers = Layers(total.equal, total.within_step, first, cause)
        return layers, _first_seen(taps, engine, prepared)

    def _tapped(self, model: onnx.ModelProto, few: Inputs, opener: Opener) -> Tapped:
        return tapped(model, *self.stored, few, opener)

    def _cause(self, model: onnx.ModelProto, few: Inputs, runtime: Runtime, optimised: bool, layer: str) -> Cause:
        """Why ``layer`` departs: what is stored, by name and value; then what the runtime makes of it."""
        stored, fresh = _stored(model), _stored(self.fresh)
        reads = [CODES_NAME.format(value) for value in self.network.layer(layer).inputs]
        writes = CODES_NAME.format(self.network.layer(layer).output)
        found: dict[Cause, list[str]] = {
            "scale": [*(f"{layer}.weight.{part}" for part in SCALES), *reads, writes],
            "weights": [f"{layer}.weight.codes", f"{layer}.weight.table"],
            "bias": [f"{layer}.bias.codes", f"{layer}.bias.scale"],
        }
        for cause, names in found.items():
            if any(name in fresh and not _same(fresh[name], stored.get(name)) for name in names):
                return cause
        if not optimised:
            return "arithmetic"

        def whole(opener: Opener) -> bool:
            tally = layer_tallies(self._tapped(model, few, opener), *self.stored)[layer]
            return tally.within == tally.elements

        if runtime.unsaturated is not None and whole(partial(runtime.unsaturated, threads=self.threads)):
            return "saturation"
        return "fusion" if whole(runtime.opener(optimised=False, threads=self.threads)) else "arithmetic"

    def measured(
        self,
        computed: Mapping[str, Callable[[Inputs], Sequence[Any]]],
        traced: Mapping[str, Traced],
        progress: Progress,
    ) -> Parity:
        """All ways on all images."""
        subject, network = self.subject, self.network
        names = ("float", "simulated", *computed)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
        alike: dict[str, list[np.ndarray]] = {name: [] for name in names}
        progress.start("parity", len(subject.order))
        for batch in prefetch(subject.images, pieces(np.sort(subject.order), subject.tile)):
            reals, _ = self.engine.float_pass(batch.inputs)
            simulated = self.engine.whole_pass(batch.inputs, self.prepared)
            found = {"float": reals, "simulated": simulated}
            found |= {name: tuple(way(batch.inputs)) for name, way in computed.items()}
            for name, outputs in found.items():
                whole = network.unflatten(outputs)
                rows[name].append(measure(subject.metric, whole, batch.labels, network.unflatten(reals)))
                alike[name].append(decisions_alike(whole, network.unflatten(simulated)))
            progress.advance(len(batch))
        statistics = {name: np.concatenate(parts) for name, parts in rows.items()}
        ways = []
        for name in names:
            value = significance.metric_interval(subject.metric, statistics[name], level=LEVEL)
            lost = significance.degradation(subject.metric, statistics["float"], statistics[name], level=LEVEL)
            layers, seen = traced.get(name, (None, None))
            ways.append(
                Way(
                    name=name,
                    value=value.estimate,
                    lost=lost.estimate,
                    decisions=100 * float(np.concatenate(alike[name]).mean()),
                    layers=layers,
                    first_seen=seen,
                )
            )
        metric = subject.metric
        return Parity(metric.name, metric.unit, len(statistics["float"]), LEVEL, tuple(ways))


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's exceptions differ by its implementation
        reason = first_line(error)
        raise QuantopsyError(f"file {str(path)!r}", f"cannot be read ({reason})", "give an ONNX file") from error
    return model


def _integer_layers(network: IntegerNetwork, few: Inputs) -> Layers | None:
    try:
        found: tuple[LayerAgreement, ...] = agreement(network, few)
    except QuantopsyError:  # no layer of it runs in integers
        return None
    elements = sum(layer.elements for layer in found)
    differences = sum(layer.differences for layer in found)
    example = next((layer for layer in found if layer.example is not None), None)
    first = next((layer.layer for layer in found if layer.within_step < 1), None)
    return Layers(
        equal=1 - differences / elements,
        within_step=sum(layer.within_step * layer.elements for layer in found) / elements,
        first=first,
        cause="arithmetic" if first is not None else "rounding ties" if differences else "none",
        explained=sum(layer.explained for layer in found) / differences if differences else None,
        example=None if example is None else f"{example.layer} {example.example}",
    )


def _first_seen(taps: Tapped, engine: ExactEngine, prepared: Prepared) -> tuple[str, float] | None:
    """The first layer whose codes are more than a step from the simulation's, both from the network's inputs on."""
    program = engine.program
    with torch.inference_mode():
        values: dict[str, Any] = program.place(taps.images)
        for step in program.steps:
            quantizers = prepared.quantizers.get(step.index)
            if quantizers is None:
                values[step.writes] = step.compute(Overlay(values, program.constants))
                continue
            result: Tensor = engine.quantized(step, quantizers, values, {})
            values[step.writes] = result
            if step.writes in taps.grids and step.layer is not None:
                mine = taps.grids[step.writes].encode(result.numpy(), result.dim())
                share = float((np.abs(mine - taps.codes[step.writes].astype(np.int64)) > 1).mean())
                if share > 0:
                    return step.layer.name, share
    return None


def _stored(model: onnx.ModelProto) -> dict[str, Any]:
    """Initializers by name, and under the name of every value's codes the scale and zero point that made them."""
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, Any] = dict(numbers)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            parts = [numbers[name].astype(np.float64).ravel() for name in node.input[1:] if name in numbers]
            found[node.output[0]] = np.concatenate(parts) if parts else np.zeros(0)
    return found


def _same(expected: np.ndarray, found: np.ndarray | None) -> bool:
    return found is not None and expected.shape == found.shape and bool((expected == found).all())
