"""The main job: from a model and images to a study of which layers quantization hurts."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantopsy.analysis import significance
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Distribution, Results
from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.analysis.summary import distribution_json, summarise
from quantopsy.calibrate import check, quantized_weight
from quantopsy.core import Plan, QuantopsyError, Role, Site
from quantopsy.data import Batch, Images, evenly_spaced_order, open_data, prefetch
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine, output_tensors, squared_norms
from quantopsy.engine.memory import bytes_per_image, choose_tile
from quantopsy.graph.capture import capture, load
from quantopsy.graph.execute import Program, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.metrics import Agreement, Metric, logits, measure, resolve_metric
from quantopsy.study import FLOAT, Store, TileResult, open_or_create
from quantopsy.transforms.channel_splitting import split_outlier_channels

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
        for name in ("samples", "calibration_samples", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QuantopsyError(f"{name} {value}", "must be positive", "give at least 1, or leave it out")


@dataclass(frozen=True)
class Experiment:
    """Everything that measuring needs, ready: the network, its images, its ranges, its plans."""

    network: Network
    program: Program
    images: Images
    order: np.ndarray
    metric: Metric
    calibration: Calibration
    full: Plan
    settings: Settings
    tile: int


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
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure every single-layer quantized network (layer-wise paper, Algorithm 1) and the whole one.

    ``model``, ``data``, ``calibration``, ``preprocess`` and ``metric`` as the command line takes them
    or as Python objects; ``out`` is the study folder, in which an interrupted analysis goes on.
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
    tile = choose_tile(program, settings.max_memory, settings.tile, len(order))
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
            _inputs(prefetch(calibration_images, _pieces(calibration_order, tile))),
            wanted_statistics(network, [full]),
            progress.advance,
        )
        experiment = Experiment(network, program, images, order, chosen, ranges, full, settings, tile)
        _describe(store, experiment, model, data, calibration)
        progress.say(settings_line(experiment))
        stopped = False
        try:
            measure_float(experiment, store, progress)
            progress.say(float_line(experiment, store))
            sweep(experiment, selected, store, progress)
        except KeyboardInterrupt:
            stopped = True
        spent = time.perf_counter() - begin
        store.note("seconds", store.noted("seconds", 0.0) + spent)
        if len(store.images(FLOAT)) == 0:
            raise KeyboardInterrupt
        return summarise(store, chosen, complete=not stopped)


def measure_float(experiment: Experiment, store: Store, progress: Progress) -> None:
    """The float network on every image, before anything else."""
    done = store.images(FLOAT)
    todo = experiment.order[~np.isin(experiment.order, done)]
    progress.start("float baseline", len(todo))
    engine = ExactEngine(experiment.program, experiment.calibration)
    for batch in prefetch(experiment.images, _pieces(todo, experiment.tile)):
        outputs, seconds = engine.float_pass(batch.inputs)
        _check_finite(outputs, batch, experiment.images)
        store.note("classes", classes(outputs))
        store.append([_measured(experiment, FLOAT, batch, outputs, outputs, seconds)])
        progress.advance(len(batch.indices))


def sweep(experiment: Experiment, selected: Sequence[Layer], store: Store, progress: Progress) -> None:
    """Every (layer, bits) cell, and the whole network at each bit-width, exactly."""
    plans: dict[int, Plan] = {}
    cells: list[dict[str, int]] = []
    whole: list[dict[str, int]] = []
    for bits in experiment.settings.bits:
        at = at_bits(experiment.full, bits)
        for layer in selected:
            plan = single_layer(at, layer)
            if not plan:
                continue
            run = store.run(plan)
            plans[run] = plan
            cells.append({"layer": layer.index, "bits": bits, "run": run})
        run = store.run(at)
        plans[run] = at
        whole.append({"bits": bits, "run": run})
    store.note("cells", cells)
    store.note("whole", whole)
    measure_plans(experiment, plans, store, progress)


def measure_plans(experiment: Experiment, plans: Mapping[int, Plan], store: Store, progress: Progress) -> None:
    """Measure ``plans`` (by run) on every image they have not been measured on, tile by tile."""
    engine = ExactEngine(experiment.program, experiment.calibration)
    prepared = {run: engine.prepare(plan) for run, plan in plans.items()}
    missing = {run: ~np.isin(experiment.order, store.images(run)) for run in plans}
    # Runs that lack the same images go together; after a kill that is one group, after --bits two.
    groups: dict[bytes, list[int]] = {}
    for run, mask in missing.items():
        groups.setdefault(mask.tobytes(), []).append(run)
    costs = {run: len(prepared[run].schedule) for run in plans}
    progress.start("layers", sum(costs[run] * int(mask.sum()) for run, mask in missing.items()))
    for runs in groups.values():
        todo = experiment.order[missing[runs[0]]]
        for batch in prefetch(experiment.images, _pieces(todo, experiment.tile)):
            results: list[TileResult] = []
            reference: tuple[Any, ...] = ()
            for measured in engine.run_tile(batch.inputs, [prepared[run] for run in runs]):
                if measured.run < 0:
                    reference = measured.outputs
                    continue
                run = runs[measured.run]
                results.append(_measured(experiment, run, batch, measured.outputs, reference, measured.seconds))
                progress.advance(costs[run] * len(batch.indices))
            store.append(results)


def _measured(
    experiment: Experiment,
    run: int,
    batch: Batch,
    outputs: tuple[Any, ...],
    reference: tuple[Any, ...],
    seconds: float,
) -> TileResult:
    begin = time.perf_counter()
    network = experiment.network
    energy = squared_norms(outputs) if run == FLOAT else squared_norms(outputs, reference)
    whole, float_whole = network.unflatten(outputs), network.unflatten(reference)
    statistics = measure(
        experiment.metric,
        whole,
        _to(batch.labels, experiment.program.device),
        float_whole,
        lambda row: experiment.images.name(int(batch.indices[row])),
    )
    return TileResult(
        run=run,
        images=batch.indices,
        energy=energy.cpu().numpy(),
        agreement=_agreement(whole, float_whole),
        statistics=statistics,
        seconds=seconds + time.perf_counter() - begin,
    )


def classes(outputs: Sequence[Any]) -> int | None:
    """Number of classes where the first output is scores of classes (B, C, ...)."""
    scores = outputs[0]
    return int(scores.shape[1]) if isinstance(scores, Tensor) and scores.dim() >= 2 else None


def _agreement(outputs: Any, reference: Any) -> np.ndarray:
    """(B,) share of decisions that equal the float network's; NaN where the outputs are no scores."""
    scores = logits(reference)
    if not scores.is_floating_point() or scores.dim() < 2 or scores.shape[1] < 2:
        return np.full(len(scores), np.nan)
    return Agreement().per_image(outputs, None, reference)[:, 0].cpu().numpy()


def check_folded(module: nn.Module, program: Program, example: Batch, images: Images) -> None:
    """Folded float must equal float: relative l2 distance per image below ``FOLD_TOLERANCE``."""
    inputs = example.inputs
    with torch.no_grad():
        raw = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
        folded = program.network.unflatten(program.forward(program.place(inputs)))
    float_outputs = output_tensors(torch.utils._pytree.tree_leaves(raw))
    folded_outputs = [tensor.cpu() for tensor in output_tensors(torch.utils._pytree.tree_leaves(folded))]
    _check_finite(folded_outputs, example, images)
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


def settings_line(experiment: Experiment) -> str:
    """What is about to be measured, with which settings, in a sentence."""
    settings = experiment.settings
    memory = experiment.tile * bytes_per_image(experiment.program) / 2**30
    return (
        f"{settings.scheme}, weights at {', '.join(map(str, settings.bits))} bits, activations at "
        f"{settings.activation_bits}; {len(experiment.order)} of {experiment.images.describe()}; ranges from "
        f"{experiment.calibration.images} images; {experiment.tile} images at once on {settings.device} "
        f"(about {memory:.1f} GiB), {torch.get_num_threads()} threads"
    )


def float_line(experiment: Experiment, store: Store) -> str:
    """The float network's metric, measured before anything else."""
    result = store.result(FLOAT)
    assert result is not None
    found = significance.metric_interval(experiment.metric, result.statistics)
    return f"float {experiment.metric.name} {found.value:.4g} (95 % interval {found.low:.4g} to {found.high:.4g})"


def _check_finite(outputs: Iterable[Any], batch: Batch, images: Images) -> None:
    for tensor in output_tensors(list(outputs)):
        bad = ~torch.isfinite(tensor).flatten(1).all(1).cpu().numpy()
        if bad.any():
            raise QuantopsyError(
                f"float network's output for {images.name(int(batch.indices[bad][0]))}",
                "has NaN or infinite values",
                "check the model and the preprocessing with that image",
            )


def _to(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)


def _inputs(batches: Iterator[Batch]) -> Iterator[Any]:
    return (batch.inputs for batch in batches)


def _pieces(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


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


def _describe(store: Store, experiment: Experiment, model: Any, data: Any, calibration: Any) -> None:
    """Note all that the tables and pictures need beside the measurements."""
    network, settings = experiment.network, experiment.settings
    store.note("model", model if isinstance(model, str) else _described(model))
    store.note("data", data if isinstance(data, str) else experiment.images.describe())
    store.note(
        "settings",
        {
            **{key: value for key, value in asdict(settings).items() if value not in (None, {}, ("*",), 0.0)},
            "bits": list(settings.bits),
            "samples": len(experiment.order),
            "calibration": "the evaluation images"
            if calibration is None
            else (calibration if isinstance(calibration, str) else type(calibration).__name__),
            "calibration_samples": experiment.calibration.images,
            "metric": experiment.metric.name,
            "tile": experiment.tile,
            "threads": torch.get_num_threads(),
        },
    )
    store.note("order", [int(index) for index in experiment.order])
    store.note("layers", [asdict(layer) for layer in network.layers])
    store.note("unquantized", [asdict(item) for item in network.unquantized])
    store.note("coverage", network.coverage)
    store.note("labelled", experiment.images.has_labels)
    store.note("bad", list(map(str, experiment.images.bad)))
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
        {layer.name: distribution_json(_distribution(experiment, layer)) for layer in network.layers},
    )


def _described(model: Any) -> str:
    return str(model) if isinstance(model, Path) else type(model).__name__


def _distribution(experiment: Experiment, layer: Layer) -> Distribution:
    ranges = experiment.calibration
    inputs = tuple(ranges.range(value) for value in layer.inputs if ranges.has(value))
    output = ranges.range(layer.output) if ranges.has(layer.output) else None
    weight = experiment.network.weight(layer)
    if weight is None:
        return Distribution(input_ranges=inputs, output_range=output)
    values = weight.detach().float().cpu()
    counts, edges = np.histogram(values.numpy(), bins=96)
    spec = experiment.full.get(Site(layer.name, "weight"))
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
