"""Where a training starts: a model, a study or a recipe, made ready with its images, plan and grids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.analysis.progress import Progress
from quantopsy.analysis.recipes import portable, realised, recipe_named
from quantopsy.analysis.schemes import SCHEMES
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given, Subject, calibrated, make_ready
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.core.recipe import Recipe
from quantopsy.data import Images, evenly_spaced_order
from quantopsy.engine.calibration import Calibration, tensors_at
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.quant import UniformQParams
from quantopsy.quant.learned import of_uniform
from quantopsy.remedy.applied import opened
from quantopsy.study import FILE, open_existing
from quantopsy.training.settings import FLOAT, TrainingSettings

BITS, MOST_BITS, ACTIVATION_BITS = 4, 8, 8
"""Of weights, of weights whose bits learn, and of a model's activations, where nothing else is said."""

LEAST_VALIDATION = 8


@dataclass(frozen=True)
class Start:
    """A network, its plan and the grids that it starts from.

    ``subject`` holds the float network that the result is compared with, the images that it is proven on
    (``subject.images``) and those that are trained on (``subject.calibration_images``); ``network`` is what trains: the
    float one, transformed where a recipe says so, and with weights where found roundings put them.
    """

    subject: Subject
    network: Network
    plan: Plan
    calibration: Calibration
    own_evaluation: bool

    @property
    def images(self) -> Images:
        """Those that are trained on."""
        return self.subject.calibration_images

    def split(self, settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
        """Positions to train on and to choose the best epoch by: disjoint, the latter spread evenly."""
        order = evenly_spaced_order(len(self.images))[: settings.samples]
        count = max(round(settings.validation * len(order)), 1)
        if count < LEAST_VALIDATION or count == len(order):
            raise QuantopsyError(
                f"{len(order)} images to train on",
                f"{count} of them are too few to choose by" if count < LEAST_VALIDATION else "none is left to train on",
                f"give at least {round(LEAST_VALIDATION / settings.validation) + 1}, or another --validation",
            )
        return np.sort(order[count:]), np.sort(order[:count])


def ready(
    source: Any,
    data: Any,
    settings: TrainingSettings,
    progress: Progress,
    *,
    evaluation: Any = None,
    metric: Any = None,
    preprocess: Any = None,
    unfused: tuple[str, ...] = (),
    device: str = "cpu",
) -> Start:
    """``source`` (a model, a study's folder, a recipe or its file) ready to be trained on ``data``.

    ``evaluation`` are images that nothing is decided on; of a study or a recipe its own where none are given.
    """
    parts = {"metric": metric, "preprocess": preprocess}
    own = Settings(device=device, calibration_samples=settings.calibration_samples)
    folder = Path(source) if isinstance(source, str | Path) else None
    if folder is not None and folder.is_dir() and (folder / FILE).exists():
        subject, network, plan, known = _from_study(folder, data, evaluation, settings, own, progress, parts)
    elif (recipe := recipe_named(source)) is not None:
        subject, network, plan, known = _from_recipe(recipe, data, evaluation, settings, own, progress, parts)
    else:
        given = Given(source, data if evaluation is None else evaluation, calibration=data, unfused=unfused, **parts)
        subject = make_ready(given, own, progress)
        network, known = subject.network, Calibration()
        plan = Plan() if settings.method == FLOAT else usual_plan(network, settings)
    if not any(layer.weight is not None for layer in network.layers):
        raise QuantopsyError(f"model {subject.model_name!r}", "no layer has a weight", "give one that can be trained")
    if settings.method == FLOAT:
        plan = Plan()
    started = settings.learning.start(plan)
    ready_to_run = replace(subject, program=compile_network(network, device))
    calibration = calibrated(ready_to_run, [plan, started], progress)
    calibration.given.update(known.given)
    calibration.encodings.update(known.encodings)
    network, plan, calibration = _settled(network, portable(network, plan, calibration), calibration)
    started = settings.learning.start(plan)
    calibration = _carried(network, plan, started, calibration)
    # By what they hold, not by how they are named: a study may have been made of the very images.
    own_evaluation = subject.images.fingerprint != subject.calibration_images.fingerprint
    return Start(subject, network, started, calibration, own_evaluation)


def usual_plan(network: Network, settings: TrainingSettings) -> Plan:
    """What is quantized of a model, ``settings.plan`` laid over it.

    Weights and inputs of all layers with weights, at their bits; the first and the last of them keep ``edge_bits``.
    With the edges ``all`` every other value too, as runtimes in integers need it, at 8 bits at least: on the very grid
    of its readers where all of them are layers with weights. With ``inputs`` nothing else, as in the papers.
    """
    granularity = SCHEMES[settings.scheme]["weight"].granularity
    weight = Spec(
        bits=_bits(settings),
        symmetric=True,
        signed=True,
        granularity=granularity,
        range_estimator=settings.weight_range,
    )
    bits = ACTIVATION_BITS if settings.activation_bits is None else settings.activation_bits
    activation = Spec(bits=bits, range_estimator=settings.activation_range)
    between = activation.with_bits(max(activation.bits, ACTIVATION_BITS))
    weighted = [layer.name for layer in network.layers if layer.weight is not None]
    edges = {*weighted[:1], *weighted[-1:]} if settings.edge_bits else set()
    sites: dict[Site, Spec] = {}
    for name in weighted:
        for site, spec in ((Site(name, "weight"), weight), (Site(name, "input"), activation)):
            sites[site] = spec.with_bits(max(spec.bits, settings.edge_bits)) if name in edges else spec
    if settings.edges == "all":
        for layer in network.layers:
            sites.setdefault(Site(layer.name, "input"), between)
        for layer in network.layers:
            read = {sites[Site(reader.name, "input")] for reader in network.layers if _reads(network, reader, layer)}
            sites[Site(layer.name, "output")] = read.pop() if len(read) == 1 else between
    plan = Plan.of(sites)
    return plan if settings.plan is None else Plan.from_json(settings.plan, network.names, plan)


def _bits(settings: TrainingSettings) -> int:
    """Of weights, where neither a recipe nor the user says."""
    usual = MOST_BITS if settings.limit else BITS
    return usual if settings.bits is None else settings.bits


def _reads(network: Network, reader: Layer, layer: Layer) -> bool:
    return network.origin(layer.output) in {network.origin(value) for value in reader.inputs}


def _from_study(
    folder: Path,
    data: Any,
    evaluation: Any,
    settings: TrainingSettings,
    own: Settings,
    progress: Progress,
    parts: dict[str, Any],
) -> tuple[Subject, Network, Plan, Calibration]:
    with open_existing(folder) as store:
        request = store.noted("request")
    if request is None:
        raise QuantopsyError(f"study {str(folder)!r}", "no analysis has begun in it", "run `quantopsy analyze` first")
    instead = {**parts, "data": evaluation, "calibration": data}
    given = Given.from_json(request["given"], folder, instead)
    noted = Settings.from_json(request["settings"])
    kept = replace(noted, device=own.device, calibration_samples=own.calibration_samples)
    subject = make_ready(given, kept, progress)
    return subject, subject.network, _at(subject.full, _bits(settings), settings.activation_bits), Calibration()


def _from_recipe(
    recipe: Recipe,
    data: Any,
    evaluation: Any,
    settings: TrainingSettings,
    own: Settings,
    progress: Progress,
    parts: dict[str, Any],
) -> tuple[Subject, Network, Plan, Calibration]:
    _, subject = opened(recipe, own, progress, model=None, data=evaluation, calibration=data, **parts)
    network, known = realised(recipe, subject.network)
    return subject, network, _at(recipe.plan, settings.bits, settings.activation_bits), known


def _at(plan: Plan, bits: int | None, activation_bits: int | None) -> Plan:
    """``plan`` with other bits, where there are any."""
    wanted = {"weight": bits, "input": activation_bits, "output": activation_bits}
    other = {role: bits for role, bits in wanted.items() if bits is not None}
    return Plan.of({site: spec.with_bits(other.get(site.role, spec.bits)) for site, spec in plan.sites})


def _settled(network: Network, plan: Plan, calibration: Calibration) -> tuple[Network, Plan, Calibration]:
    """The network with its weights where roundings that were found put them, and the plan that rounds to the nearest
    with its grids: the same quantized network, from which weights can move."""
    tensors, specs, encodings = dict(network.tensors), dict(plan), dict(calibration.encodings)
    for site, spec in plan.sites:
        layer = network.layer(site.layer)
        if site.role != "weight" or spec.rounding == "nearest" or layer.weight is None:
            continue
        weight = network.tensors[layer.weight]
        nearest = specs[site] = replace(spec, rounding="nearest")
        encodings[layer.weight, nearest] = calibration.weight_qparams(layer, spec, weight)
        tensors[layer.weight] = calibration.quantized_weight(layer, spec, weight)
    return replace(network, tensors=tensors), Plan.of(specs), replace(calibration, encodings=encodings)


def _carried(network: Network, plan: Plan, started: Plan, calibration: Calibration) -> Calibration:
    """``calibration`` in which learned levels start from the very uniform grid that a site of ``plan`` has by what was
    found or given."""
    encodings = dict(calibration.encodings)
    for site, spec in plan.sites:
        wanted = started[site]
        if wanted.kind != "learned" or spec.kind != "uniform":
            continue
        for value in tensors_at(network, site, spec):
            grid = calibration.encodings.get((value, spec))
            if isinstance(grid, UniformQParams):
                encodings[value, wanted] = of_uniform(grid, wanted.bits)
    return replace(calibration, encodings=encodings)
