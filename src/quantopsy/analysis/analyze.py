"""The main job: from a model and images to a study of which layers quantization hurts."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import ladders_of, tolerance_of
from quantopsy.analysis.auto import Cells, measure_what_decides
from quantopsy.analysis.budget import Budget, pass_seconds
from quantopsy.analysis.phases import Measuring, measure_float, measure_plans, pieces, screen, unscreened
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Distribution, Results
from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.analysis.summary import distribution_json, summarise
from quantopsy.analysis.work import Done, Setup, Task, Worker, check_finite
from quantopsy.calibrate import check, quantized_weight
from quantopsy.core import Plan, QuantopsyError, Role, Site, Spec, names
from quantopsy.core.imports import imported
from quantopsy.data import Batch, Images, evenly_spaced_order, open_data, prefetch
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine, output_tensors, squared_norms
from quantopsy.engine.memory import bytes_per_image, choose_tile, screen_bytes_per_image
from quantopsy.engine.pool import LocalPool, Pool, parse_engine
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import Program, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.metrics import Metric, resolve_metric
from quantopsy.study import FLOAT, Store, open_or_create
from quantopsy.transforms.channel_splitting import split_outlier_channels

MODES = ("auto", "screen", "exact")
DEFAULT_BUDGET = Budget(passes=30.0)
SCREEN_PASSES = 8.0
"""What the screen takes, about."""

FOLD_TOLERANCE = 1e-4  # relative l2 distance per image; rounding of deep float32 networks stays below 1e-5
DEFAULT_BITS = (3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Settings:
    """What an analysis does; all of it is echoed, and kept in the study."""

    bits: tuple[int, ...] = DEFAULT_BITS
    scheme: str = "per-tensor"
    activation_bits: int = 8
    changes: Mapping[Role, Mapping[str, Any]] = field(default_factory=dict)  # fields of the scheme's specs
    split_channels: float = 0.0  # share of input channels split in two (OCS) before all else
    plan: Mapping[str, Any] | None = None  # JSON plan laid over the scheme
    layers: tuple[str, ...] = ("*",)
    samples: int | None = None
    calibration_samples: int | None = None
    mode: str = "auto"  # or screen, exact
    budget: str | None = None  # of auto: a time such as 10m, or a number of passes
    level: float = 0.95  # of intervals; verdicts are corrected for the number of cells
    tolerance: float | None = None  # loss of the metric that is accepted; None: 1 point, or 1 % of the float value
    noise_probes: int = 1  # random probes of the screen
    seed: int = 0
    engine: str = "local"
    device: str = "cpu"
    tile: int | None = None
    max_memory: float = 4.0  # GiB

    def __post_init__(self) -> None:
        if not self.bits:
            raise QuantopsyError("bits", "the list is empty", "give at least one bit-width from 2 to 16")
        for bits in (*self.bits, self.activation_bits):
            if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
                raise QuantopsyError(f"bit-width {bits!r}", "out of range", "give whole numbers from 2 to 16")
        object.__setattr__(self, "bits", tuple(sorted(set(self.bits))))
        if self.mode not in MODES:
            raise names.unknown(self.mode, MODES, "mode")
        if self.budget is not None:
            Budget.parse(self.budget)
            if self.mode != "auto":
                raise QuantopsyError(f"budget {self.budget}", f"mode {self.mode} has none", "leave out one of the two")
        if not 0.5 <= self.level < 1.0:
            raise QuantopsyError(f"level {self.level:g}", "out of range", "give a share from 0.5 to below 1, say 0.95")
        if self.tolerance is not None and not self.tolerance >= 0.0:
            raise QuantopsyError(f"tolerance {self.tolerance:g}", "must not be negative", "give the loss you accept")
        parse_engine(self.engine)
        for name in ("samples", "calibration_samples", "tile", "noise_probes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QuantopsyError(f"{name} {value}", "must be positive", "give at least 1, or leave it out")


def analyze(
    model: str | Path | nn.Module,
    data: Any,
    *,
    out: str | Path,
    metric: Any = None,
    calibration: Any = None,
    preprocess: Any = None,
    skip_bad: bool = False,
    fresh: bool = False,
    loss: Any = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure every single-layer quantized network (layer-wise paper, Algorithm 1) and the whole one.

    ``model``, ``data``, ``calibration``, ``preprocess``, ``metric`` and ``loss`` as the command line takes
    them or as Python objects; ``out`` is the study folder, in which an interrupted analysis goes on.
    Raises :class:`QuantopsyError` for whatever the user can mend, before the study is touched.
    """
    settings = settings or Settings()
    progress = progress or Silent()
    begin = time.perf_counter()
    keep_freed_memory()
    preprocess = preprocess if preprocess is not None else _own_preprocess(model, data)
    images = open_data(data, preprocess=preprocess, skip_bad=skip_bad)
    calibration_images = (
        images if calibration is None else open_data(calibration, preprocess=preprocess, skip_bad=skip_bad)
    )
    chosen = resolve_metric(metric, images.has_labels)
    loss = imported(loss, "loss") if isinstance(loss, str) else loss
    device = _device(settings.device)
    module = load(model)
    example = images.batch([0, min(1, len(images) - 1)])
    network = capture(module, example.inputs)
    if settings.split_channels:
        network = split_outlier_channels(network, settings.split_channels, bits=max(settings.bits))
    progress.say(coverage_line(network))
    program = compile_network(network, device)
    check_folded(module, program, example, images)
    full = full_plan(network, grids(settings.scheme, settings.activation_bits, settings.changes), settings.plan)
    for spec in set(full.values()):
        check(spec)
    selected = network.match(settings.layers)
    order = evenly_spaced_order(len(images))[: settings.samples]
    tile = choose_tile(bytes_per_image(program), settings.max_memory, settings.tile, len(order))
    screen_tile = choose_tile(screen_bytes_per_image(program), settings.max_memory, settings.tile, len(order))
    calibration_order = np.sort(evenly_spaced_order(len(calibration_images))[: settings.calibration_samples])

    store = open_or_create(
        Path(out),
        _identity(network, images, calibration_images, len(calibration_order), chosen, full, settings),
        fresh=fresh,
    )
    with store:
        progress.start("calibration", len(calibration_order))
        ranges = calibrate(
            program,
            (batch.inputs for batch in prefetch(calibration_images, pieces(calibration_order, tile))),
            wanted_statistics(network, [full]),
            progress.advance,
        )
        setup = Setup(
            network=network,
            calibration=ranges,
            images=images,
            metric=chosen,
            candidates=candidates(full, selected, settings.bits),
            device=settings.device,
            noise_probes=settings.noise_probes,
            loss=loss,
            seed=settings.seed,
        )
        _describe(store, setup, full, settings, order, tile, model, data, calibration)
        progress.say(settings_line(setup, settings, order, tile, screen_tile, program))
        stopped = False
        engine = ExactEngine(program, ranges)
        with _pool(setup, engine, settings.engine) as (pool, worker):
            measuring = Measuring(setup, engine, pool, worker, order, tile, screen_tile, store, progress)
            try:
                measure_float(measuring)
                progress.say(float_line(measuring, settings.level))
                _measure(measuring, full, selected, settings, begin)
            except KeyboardInterrupt:
                stopped = True
        spent = time.perf_counter() - begin
        store.note("seconds", store.noted("seconds", 0.0) + spent)
        if len(store.images(FLOAT)) == 0:
            raise KeyboardInterrupt
        return summarise(store, chosen, complete=not stopped)


def _measure(measuring: Measuring, full: Plan, selected: Sequence[Layer], settings: Settings, begin: float) -> None:
    """Every (layer, bits) cell, and the whole network at each bit-width, in the way that ``settings.mode`` says."""
    store = measuring.store
    cells = _cells(store, full, selected, settings.bits)
    runs = {**cells.plans, **cells.whole_plans}
    if settings.mode == "exact":
        for run in runs:
            store.forget_draw(run)
        measure_plans(measuring, runs)
        return
    budget = Budget.parse(settings.budget) if settings.budget else DEFAULT_BUDGET
    if settings.mode == "auto":
        _check_budget(budget, measuring, time.perf_counter() - begin)
    screen(measuring)
    if settings.mode == "auto":
        result = store.result(FLOAT)
        assert result is not None
        tolerance = settings.tolerance
        if tolerance is None:
            tolerance = tolerance_of(measuring.metric, measuring.metric.value(result.statistics))
        measure_what_decides(measuring, cells, budget, begin, level=settings.level, tolerance=tolerance)


def _cells(store: Store, full: Plan, selected: Sequence[Layer], widths: Sequence[int]) -> Cells:
    """The runs of every cell and whole network, noted in the study."""
    plans: dict[int, Plan] = {}
    whole_plans: dict[int, Plan] = {}
    bits_of: dict[int, tuple[int, ...]] = {}
    cells, whole = [], {}
    for bits in widths:
        at = at_bits(full, bits)
        for layer in selected:
            plan = single_layer(at, layer)
            if plan:
                run = store.run(plan)
                plans[run] = plan
                bits_of[run] = (*bits_of.get(run, ()), bits)
                cells.append({"layer": layer.index, "bits": bits, "run": run})
        whole[bits] = store.run(at)
        whole_plans[whole[bits]] = at
    store.note("cells", cells)
    store.note("whole", [{"bits": bits, "run": run} for bits, run in whole.items()])
    return Cells(plans, bits_of, ladders_of(cells), whole, whole_plans)


def candidates(full: Plan, selected: Sequence[Layer], widths: Sequence[int]) -> dict[Site, list[Spec]]:
    """The specs of every site of ``selected`` layers that the cells need, weights at each of ``widths``."""
    layers = {layer.name for layer in selected}
    return {
        site: list(dict.fromkeys(spec.with_bits(bits) for bits in widths)) if site.role == "weight" else [spec]
        for site, spec in full.sites
        if site.layer in layers
    }


def _check_budget(budget: Budget, measuring: Measuring, spent: float) -> None:
    """Raise where not even the screen fits, saying what it needs."""
    unit = pass_seconds(measuring.store)
    _, todo = unscreened(measuring)
    needed = SCREEN_PASSES * len(todo) / len(measuring.order)
    if budget.passes is not None and budget.passes < needed:
        raise QuantopsyError(
            f"budget of {budget}", f"the screen alone takes about {needed:.0f} passes", "give more, or --mode screen"
        )
    if budget.seconds is not None and unit is not None:
        seconds = spent + unit * len(measuring.order) * needed
        if budget.seconds < seconds:
            raise QuantopsyError(
                f"budget of {budget}",
                f"up to the end of the screen it takes about {Budget(seconds=seconds)}",
                "give more, or fewer --samples",
            )


@contextmanager
def _pool(setup: Setup, engine: ExactEngine, where: str) -> Iterator[tuple[Pool[Task, Done], Worker | None]]:
    """Where tasks run, and the worker of this process if that is where."""
    place = parse_engine(where)
    if place.kind == "local":
        worker = Worker(setup, engine)
        with LocalPool(worker) as pool:
            yield pool, worker
        return
    from quantopsy.engine.ray import RayPool

    with RayPool(Worker, setup, address=place.address, threads=torch.get_num_threads()) as remote:
        yield remote, None


def check_folded(module: nn.Module, program: Program, example: Batch, images: Images) -> None:
    """Folded float must equal float: relative l2 distance per image below ``FOLD_TOLERANCE``."""
    inputs = example.inputs
    with torch.no_grad():
        raw = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
        folded = program.network.unflatten(program.forward(program.place(inputs)))
    float_outputs = output_tensors(torch.utils._pytree.tree_leaves(raw))
    folded_outputs = [tensor.cpu() for tensor in output_tensors(torch.utils._pytree.tree_leaves(folded))]
    check_finite(folded_outputs, example, images)
    distance = squared_norms(folded_outputs, float_outputs).sqrt()
    relative = float((distance / squared_norms(float_outputs).sqrt().clamp(min=1e-12)).max())
    if relative > FOLD_TOLERANCE:
        raise QuantopsyError(
            "network",
            f"folding batch norms changes its output by {relative:.2g} of its length",
            "run the model in evaluation mode and in float32; if it does so already, please report it",
        )


def coverage_line(network: Network) -> str:
    """What can be quantized, in a sentence."""
    coverage = network.coverage
    line = (
        f"{coverage['layers']:.0f} layers, {coverage['weighted_layers']:.0f} with weights; "
        f"{coverage['macs_share']:.1%} of {coverage['macs'] / 1e6:,.0f} M MACs can be quantized"
    )
    if network.unquantized:
        operators = sorted({item.operator.removeprefix("aten.") for item in network.unquantized})
        line += f"; {len(network.unquantized)} operators stay float ({', '.join(operators[:5])})"
    return line


def settings_line(
    setup: Setup, settings: Settings, order: np.ndarray, tile: int, screen_tile: int, program: Program
) -> str:
    """What is about to be measured, with which settings, in a sentence."""
    if settings.mode == "exact":
        at_once, per_image = tile, bytes_per_image(program)
    else:
        at_once, per_image = screen_tile, screen_bytes_per_image(program)
    return (
        f"{settings.mode}: {settings.scheme}, weights at {', '.join(map(str, settings.bits))} bits, "
        f"activations at {settings.activation_bits}; {len(order)} of {setup.images.describe()}; ranges from "
        f"{setup.calibration.images} images; {at_once} images at once on {settings.device} "
        f"(about {at_once * per_image / 2**30:.1f} GiB), {torch.get_num_threads()} threads"
    )


def float_line(measuring: Measuring, level: float) -> str:
    """The float network's metric, measured before anything else."""
    result = measuring.store.result(FLOAT)
    assert result is not None
    found = significance.metric_interval(measuring.metric, result.statistics, level=level)
    unit = pass_seconds(measuring.store) or float("nan")
    return (
        f"float {measuring.metric.name} {found.value:.4g} ({level:.0%} interval {found.low:.4g} to {found.high:.4g}); "
        f"a pass takes {unit * len(measuring.order):.2g} s"
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise QuantopsyError(f"device {name!r}", "is unknown to torch", "give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise QuantopsyError(f"device {name!r}", "torch sees no CUDA device", "give --device cpu")
    if device.type == "cuda":
        # Float means float: TensorFloat-32 would be noise of the size that is measured.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device


def _own_preprocess(model: Any, data: Any) -> Any:
    """A timm model carries its own preprocessing; used only where the data are files."""
    if not isinstance(model, nn.Module) or not isinstance(data, str | Path):
        return None
    configuration = getattr(model, "pretrained_cfg", None)
    if not isinstance(configuration, dict) or "mean" not in configuration or "input_size" not in configuration:
        return None
    crop = int(configuration["input_size"][-1])
    return {
        "resize": round(crop / float(configuration.get("crop_pct") or 1.0)),
        "crop": crop,
        "interpolation": configuration.get("interpolation", "bilinear"),
        "mean": [255 * value for value in configuration["mean"]],
        "std": [255 * value for value in configuration["std"]],
    }


def _identity(
    network: Network,
    images: Images,
    calibration: Images,
    calibration_samples: int,
    metric: Metric,
    full: Plan,
    settings: Settings,
) -> dict[str, Any]:
    """What must be the same for measurements to belong together."""
    return {
        "model": network.fingerprint,
        "data": images.fingerprint,
        "calibration": calibration.fingerprint,
        "calibration samples": calibration_samples,
        "metric": metric.name,
        "scheme": settings.scheme,
        "activation bits": settings.activation_bits,
        "plan": hashlib.sha256(json.dumps(full.to_json(), sort_keys=True).encode()).hexdigest(),
    }


def _describe(
    store: Store,
    setup: Setup,
    full: Plan,
    settings: Settings,
    order: np.ndarray,
    tile: int,
    model: Any,
    data: Any,
    calibration: Any,
) -> None:
    """Note all that the tables and pictures need beside the measurements."""
    network = setup.network
    store.note("model", model if isinstance(model, str) else _described(model))
    store.note("data", data if isinstance(data, str) else setup.images.describe())
    store.note(
        "settings",
        {
            **{key: value for key, value in asdict(settings).items() if value not in (None, {}, ("*",), 0.0)},
            "bits": list(settings.bits),
            "samples": len(order),
            "calibration": "the evaluation images"
            if calibration is None
            else (calibration if isinstance(calibration, str) else type(calibration).__name__),
            "calibration_samples": setup.calibration.images,
            "metric": setup.metric.name,
            "tile": tile,
            "threads": torch.get_num_threads(),
        },
    )
    store.note("order", [int(index) for index in order])
    store.note("layers", [asdict(layer) for layer in network.layers])
    store.note("unquantized", [asdict(item) for item in network.unquantized])
    store.note("coverage", network.coverage)
    store.note("labelled", setup.images.has_labels)
    store.note("bad", list(map(str, setup.images.bad)))
    store.note(
        "provenance",
        {
            "quantopsy": version("quantopsy"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            **store.noted("identity", {}),
        },
    )
    store.note(
        "distributions",
        {layer.name: distribution_json(_distribution(setup, full, layer)) for layer in network.layers},
    )


def _described(model: Any) -> str:
    return str(model) if isinstance(model, Path) else type(model).__name__


def _distribution(setup: Setup, full: Plan, layer: Layer) -> Distribution:
    ranges = setup.calibration
    inputs = tuple(ranges.range(value) for value in layer.inputs if ranges.has(value))
    output = ranges.range(layer.output) if ranges.has(layer.output) else None
    weight = setup.network.weight(layer)
    if weight is None:
        return Distribution(input_ranges=inputs, output_range=output)
    values = weight.detach().float().cpu()
    counts, edges = np.histogram(values.numpy(), bins=96)
    spec = full.get(Site(layer.name, "weight"))
    grid = None
    if spec is not None:
        low, high = quantized_weight(spec, values, axis=layer.weight_axis).aminmax()
        grid = float(low), float(high)
    by_channel = values.movedim(layer.weight_axis, 0).reshape(values.shape[layer.weight_axis], -1)
    return Distribution(
        weight_edges=edges,
        weight_counts=counts,
        channel_low=by_channel.amin(1).numpy(),
        channel_high=by_channel.amax(1).numpy(),
        input_ranges=inputs,
        output_range=output,
        weight_range=grid,
    )
