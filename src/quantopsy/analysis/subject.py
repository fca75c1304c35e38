"""What is analysed, made ready once: network, images, metric, plan. Every command starts from it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantopsy.analysis.definition import definition
from quantopsy.analysis.phases import Measuring, pieces
from quantopsy.analysis.progress import Progress
from quantopsy.analysis.recipes import model_named, realised, recipe_named, unfused_of
from quantopsy.analysis.results import EVALUATION_IMAGES
from quantopsy.analysis.schemes import candidates, full_plan, grids
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.work import Done, Setup, Task, Worker, check_finite
from quantopsy.calibrate import check
from quantopsy.core import Plan, QuantopsyError
from quantopsy.core.imports import imported
from quantopsy.core.recipe import Recipe
from quantopsy.data import Batch, Images, evenly_spaced_order, open_data, prefetch, without_list
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.memory import bytes_per_image, choose_tile, screen_bytes_per_image
from quantopsy.engine.pool import LocalPool, Pool, parse_engine
from quantopsy.engine.probes import Loss
from quantopsy.engine.screen import Candidates
from quantopsy.graph.capture import capture, evaluating, load
from quantopsy.graph.execute import Program, compile_network
from quantopsy.graph.network import Layer, Network
from quantopsy.graph.outputs import output_tensors, squared_norms
from quantopsy.metrics import Metric, resolve_metric
from quantopsy.study import Store, open_existing
from quantopsy.transforms.channel_splitting import find_channel_splitting

FOLD_TOLERANCE = 1e-4  # relative l2 distance per image; rounding of deep float32 networks stays below 1e-5


@dataclass(frozen=True)
class Given:
    """Model and data as the user gave them: what the command line says, or Python objects."""

    model: Any
    data: Any
    metric: Any = None
    calibration: Any = None
    preprocess: Any = None
    skip_bad: bool = False
    loss: Any = None
    unfused: tuple[str, ...] = ()  # activation functions that are layers of their own

    def to_json(self) -> dict[str, Any]:
        """What a later command can start from; of Python objects only that there was one."""
        return {field.name: _named(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, noted: Mapping[str, Any], study: Path, instead: Mapping[str, Any]) -> Given:
        """The inverse of :meth:`to_json` with the objects of ``instead`` in their places.

        Raises :class:`QuantopsyError` for a Python object that nobody gives again.
        """
        values = {**noted, **{name: value for name, value in instead.items() if value is not None}}
        for name, value in values.items():
            if isinstance(value, Mapping) and value.get("object"):
                raise QuantopsyError(
                    f"study {str(study)!r}",
                    f"its {name} was a Python object ({value['object']})",
                    f"give {name}= in Python, or analyze it as package.module:callable",
                )
        return cls(**{**values, "unfused": tuple(values.get("unfused", ()))})


def _named(value: Any) -> Any:
    """``value`` in JSON; files by their whole path, so that it does not matter where a later command is run."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, str):
        data, listed = without_list(value)
        if listed is not None:
            return f"{_named(data)}@{listed.resolve()}"
        return str(Path(value).resolve()) if Path(value).exists() else value
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return {"object": type(value).__name__}


@dataclass(frozen=True)
class Subject:
    """A network with its images, its metric and the plan that quantizes all of it.

    ``order`` are the images that are looked at, ``calibration_order`` those that ranges are estimated on,
    ``selected`` the layers that have cells. ``full`` holds weights at 8 bits until a cell says otherwise, or it is the
    plan of the ``recipe`` that the model was.
    """

    given: Given
    settings: Settings
    program: Program
    images: Images
    calibration_images: Images
    metric: Metric
    loss: Loss | None
    full: Plan
    selected: tuple[Layer, ...]
    order: np.ndarray
    calibration_order: np.ndarray
    recipe: Recipe | None = None
    known: Calibration | None = None  # the grids of ``recipe``

    @property
    def network(self) -> Network:
        """The folded network."""
        return self.program.network

    @property
    def tile(self) -> int:
        """Images run at once."""
        return self._tile(bytes_per_image(self.program))

    @property
    def screen_tile(self) -> int:
        """Images screened at once."""
        return self._tile(screen_bytes_per_image(self.program))

    def _tile(self, per_image: int) -> int:
        return choose_tile(per_image, self.settings.max_memory, self.settings.tile, len(self.order))

    @property
    def model_name(self) -> str:
        """What a person calls the model."""
        model = self.given.model
        return str(model) if isinstance(model, str | Path) else type(model).__name__

    @property
    def data_name(self) -> str:
        """What a person calls the images."""
        return self.given.data if isinstance(self.given.data, str) else self.images.describe()

    @property
    def calibration_name(self) -> str:
        """What a person calls the images that ranges are estimated on."""
        calibration = self.given.calibration
        if calibration is None:
            return EVALUATION_IMAGES
        return calibration if isinstance(calibration, str) else type(calibration).__name__

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for measurements to belong together."""
        found = {
            "model": self.network.fingerprint,
            "data": self.images.fingerprint,
            "calibration": self.calibration_images.fingerprint,
            "calibration samples": len(self.calibration_order),
            "metric": self.metric.name,
            "metric code": definition(self.metric),
            "scheme": self.settings.scheme,
            "activation bits": self.settings.activation_bits,
            "plan": hashlib.sha256(json.dumps(self.full.to_json(), sort_keys=True).encode()).hexdigest(),
        }
        if self.recipe is not None:
            grids = json.dumps([self.recipe.encodings, sorted(self.recipe.given)], sort_keys=True)
            found["grids"] = hashlib.sha256(grids.encode()).hexdigest()
        return found


def provenance(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What made the measurements of ``identity``: versions and processor, and the identity itself."""
    return {
        "quantopsy": version("quantopsy"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        **identity,
    }


def make_ready(given: Given, settings: Settings, progress: Progress) -> Subject:
    """Open the data, capture and fold the network, check that folding changed nothing, plan.

    The model may be a :class:`Network` already, or a recipe, its file or its folder: then it is what the recipe makes
    of its own model, and the recipe's plan and grids take the place of the scheme. Raises :class:`QuantopsyError` for
    whatever the user can mend.
    """
    keep_freed_memory()
    usual = grids(settings.scheme, settings.activation_bits, settings.changes)
    for spec in usual.values():
        check(spec)
    recipe = recipe_named(given.model)
    model = given.model if recipe is None else model_named(recipe)
    preprocess = given.preprocess if given.preprocess is not None else _own_preprocess(model, given.data)
    if preprocess is None and recipe is not None:
        preprocess = recipe.provenance.get("given", {}).get("preprocess")
    images = open_data(given.data, preprocess=preprocess, skip_bad=given.skip_bad)
    calibration = given.calibration
    calibration_images = (
        images if calibration is None else open_data(calibration, preprocess=preprocess, skip_bad=given.skip_bad)
    )
    metric = resolve_metric(given.metric, images.has_labels)
    loss = imported(given.loss, "loss") if isinstance(given.loss, str) else given.loss
    device = device_named(settings.device)
    example = images.batch([0, min(1, len(images) - 1)])
    module = None if isinstance(model, Network) else load(model)
    unfused = given.unfused or (() if recipe is None else unfused_of(recipe))
    network = model if module is None else capture(module, example.inputs, unfused=unfused)
    if settings.split_channels:
        splitting = find_channel_splitting(network, settings.split_channels, bits=max(settings.bits))
        network = splitting.apply(network)
    if not any(layer.op.startswith("conv") for layer in network.layers):
        _refuse_guesses(images, calibration_images)
    progress.say(coverage_line(network))
    program = compile_network(network, device)
    if module is not None:
        check_folded(module, program, example, images)
    full = full_plan(network, usual, settings.plan)
    known = None
    if recipe is not None:
        network, known = realised(recipe, network)
        program = compile_network(network, device)
        full = recipe.plan if settings.plan is None else Plan.from_json(settings.plan, network.names, recipe.plan)
        progress.say("Plan and grids are the recipe's, and not the scheme's")
    for spec in set(full.values()):
        check(spec)
    return Subject(
        given=replace(given, preprocess=preprocess, unfused=unfused),
        settings=settings,
        program=program,
        images=images,
        calibration_images=calibration_images,
        metric=metric,
        loss=loss,
        full=full,
        selected=network.match(settings.layers),
        order=evenly_spaced_order(len(images))[: settings.samples],
        calibration_order=np.sort(evenly_spaced_order(len(calibration_images))[: settings.calibration_samples]),
        recipe=recipe,
        known=known,
    )


def calibrated(subject: Subject, plans: Iterable[Plan], progress: Progress) -> Calibration:
    """Ranges for ``plans`` from one float pass over the calibration images, and the grids of the subject's recipe."""
    progress.start("calibration", len(subject.calibration_order))
    found = calibrate(
        subject.program,
        (
            batch.inputs
            for batch in prefetch(subject.calibration_images, pieces(subject.calibration_order, subject.tile))
        ),
        wanted_statistics(subject.network, plans),
        progress.advance,
    )
    if subject.known is not None:
        found.encodings.update(subject.known.encodings)
        found.given.update(subject.known.given)
    return found


@contextmanager
def measuring(
    subject: Subject,
    store: Store,
    ranges: Calibration,
    progress: Progress,
    scored: Candidates | None = None,
) -> Iterator[Measuring]:
    """Where plans are measured, and what is measured is kept; a screen scores ``scored``, else the cells."""
    settings = subject.settings
    setup = Setup(
        network=subject.network,
        calibration=ranges,
        images=subject.images,
        metric=subject.metric,
        candidates=candidates(subject.full, subject.selected, settings.bits) if scored is None else scored,
        device=settings.device,
        noise_probes=settings.noise_probes,
        precision=settings.precision,
        loss=subject.loss,
        seed=settings.seed,
    )
    engine = ExactEngine(subject.program, ranges)
    with _pool(setup, engine, settings.engine) as (pool, worker):
        yield Measuring(setup, engine, pool, worker, subject.order, subject.tile, subject.screen_tile, store, progress)


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


def note_request(store: Store, subject: Subject) -> None:
    """Remember what :func:`reopen` needs."""
    store.note("request", {"given": subject.given.to_json(), "settings": asdict(subject.settings)})


@contextmanager
def reopen(folder: str | Path, progress: Progress, **instead: Any) -> Iterator[tuple[Store, Subject]]:
    """A study and its subject, made ready again as the analysis had it.

    ``instead`` gives the parts that were Python objects: ``model``, ``data``, ``calibration``, ``metric``,
    ``loss``. Raises :class:`QuantopsyError` where one is lacking, or is not what the study was made of.
    """
    folder = Path(folder)
    with open_existing(folder) as store:
        request = store.noted("request")
        if request is None:
            raise QuantopsyError(
                f"study {str(folder)!r}", "no analysis has begun in it", "run `quantopsy analyze` first"
            )
        given = Given.from_json(request["given"], folder, instead)
        subject = make_ready(given, Settings.from_json(request["settings"]), progress)
        store.check_identity(subject.identity)
        yield store, replace(subject, order=np.asarray(store.noted("order"), dtype=np.int64))


def check_folded(module: nn.Module, program: Program, example: Batch, images: Images) -> None:
    """Folded float must equal float: relative l2 distance per image below ``FOLD_TOLERANCE``."""
    inputs = example.inputs
    with torch.no_grad(), evaluating(module):
        raw = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
        folded = program.forward(program.place(inputs))
    float_outputs = output_tensors(program.network.flatten(raw))
    folded_outputs = [tensor.cpu() for tensor in output_tensors(folded)]
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


def _refuse_guesses(*given: Images) -> None:
    """For networks that run on (N, features) as on (features,): linear layers."""
    for images in given:
        if images.may_be_batches:
            raise QuantopsyError(
                f"data {images.describe()}",
                "a network without convolutions takes these items as images and as batches of vectors alike",
                "give a Dataset of single images, or a DataLoader",
            )


def device_named(name: str) -> torch.device:
    """The device that a setting means; raises :class:`QuantopsyError` where torch does not have it."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise QuantopsyError(f"device {name!r}", "is unknown to torch", "give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise QuantopsyError(f"device {name!r}", "torch sees no CUDA device", "give --device cpu")
    try:
        torch.zeros(1, device=device).cpu()  # there and back: some names stand for no device, and meta holds no values
    except Exception:
        raise QuantopsyError(f"device {name!r}", "torch cannot compute on it here", "give --device cpu") from None
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
