"""Quantization-aware training of a model, a study's network or a recipe's, and what comes out of it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.recipes import Simulated, encodings_of, given_of, model_of
from quantopsy.core import Plan, QuantopsyError, Site, names
from quantopsy.core.files import write_file
from quantopsy.core.imports import imported
from quantopsy.core.plain import plain
from quantopsy.core.recipe import RECIPE, Expected, Recipe
from quantopsy.data import Batch, Images, evenly_spaced_order
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.capture import capture, load, save
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.remedy.applied import statistics
from quantopsy.remedy.proof import by_image, expectation
from quantopsy.training.footprint import FLOAT_BITS, Footprint, Limit, Part, Width, share_gates
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.norm import measured_moments, reestimate
from quantopsy.training.quantizers import FakeQuantizer
from quantopsy.training.result import Trained, first_levels, kind, levels_of
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.start import Start, ready
from quantopsy.training.tensorboard import TensorBoard
from quantopsy.training.trainer import CHECKPOINT, Job, Trainer, accelerator, steps_per_epoch
from quantopsy.training.worth import noises, start_gates

NETWORK = "network.pt2"
TRAINING = "training.json"

SCREENED = 64
"""Images by which it is told what bits are worth."""

_FREE = ("device", "checkpoint_seconds")  # settings that may differ when a training goes on


def train(
    source: Any,
    data: Any,
    *,
    evaluation: Any = None,
    metric: Any = None,
    preprocess: Any = None,
    loss: Any = None,
    unfused: Sequence[str] = (),
    out: str | Path,
    fresh: bool = False,
    settings: TrainingSettings | None = None,
    progress: Progress | None = None,
) -> Trained | None:
    """Train the quantized network of ``source`` on ``data``.

    ``source`` is a model, a study's folder or a recipe; ``evaluation`` images that decide nothing, of a study or a
    recipe its own where none are given, else those of ``data`` that the best epoch is chosen by. To ``out`` go the
    trained network (``network.pt2``), its ``recipe.json``, and what happened (``training.json``); a training that was
    stopped goes on there. Of several processes only the first gets a result. ``unfused``: of a model, as of
    :func:`quantopsy.graph.capture.capture`.

    Raises :class:`QuantopsyError` for whatever the user can mend.
    """
    progress, settings, folder = progress or Silent(), settings or TrainingSettings(), Path(out)
    begin = time.monotonic()
    processes = accelerator(settings)
    if not processes.is_main_process:
        progress = Silent()
    start = ready(
        source,
        data,
        settings,
        progress,
        evaluation=evaluation,
        metric=metric,
        preprocess=preprocess,
        unfused=tuple(unfused),
        device=str(processes.device),
    )
    training, validation = start.split(settings)
    settings = replace(settings, batch=settings.batch_of(len(training)))
    program = compile_network(start.network, processes.device)
    moments, batches = None, []
    if settings.norms == "kept":
        batches = [batch.inputs for batch in _some(start.images, training, settings.calibration_samples)]
        moments = measured_moments(program, batches)
    network = TrainableNetwork(program, start.plan, start.calibration, settings.learning, moments)
    network.check_batches(settings.batch_of(len(training)) // processes.num_processes)
    limit = None
    if settings.limit is not None:
        for pattern in settings.share:
            matched = names.match([pattern], list(network.weight_bits()), "layer with a weight on a grid")
            together = {id(network.sites[Site(name, "weight")][0].gates) for name in matched}
            # All that have them already: patterns may overlap.
            share_gates(quantizer for quantizer in network.quantizers if id(quantizer.gates) in together)
        limit = Limit.parse(settings.limit, counted(network, settings))
        start_gates(limit, noises(network, start.calibration, _some(start.images, training, SCREENED)))
    job = Job(
        network=network,
        teacher=start.subject.program,
        images=start.images,
        training=training,
        validation=validation,
        metric=start.subject.metric,
        settings=settings,
        limit=limit,
        loss=imported(loss, "loss") if isinstance(loss, str) else loss,
        identity=_identity(start, settings, loss),
    )
    progress.say(settings_line(job))
    folder.mkdir(parents=True, exist_ok=True)
    if fresh and processes.is_main_process:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    processes.wait_for_everyone()
    first = first_levels(network)
    history = Trainer(job, folder, progress, TensorBoard.at(folder / "tensorboard")).run()
    if not processes.is_main_process:
        return None
    if moments is not None:
        reestimate(network, network.run, batches)
    expected, recipe = _written(start, network.trained(), folder, validation, settings, progress)
    memory = memory_of(network)
    operations = None if settings.bitops is None else operations_of(network)
    result = Trained(
        folder=folder,
        model=start.subject.model_name,
        data=data if isinstance(data, str) else start.images.describe(),
        evaluation=start.subject.data_name,
        held_out=start.own_evaluation,
        settings=settings,
        history=history,
        expected=expected,
        average_bits=memory.total / memory.elements,
        bitops=None if operations is None or limit is None else (operations.total, limit.target),
        levels=tuple(levels_of(network, first)),
        kinds={layer.name: kind(layer) for layer in start.network.layers if layer.weight is not None},
        recipe=recipe,
        seconds=time.monotonic() - begin,
    )
    recipe.save(folder / RECIPE)
    write_file(folder / TRAINING, json.dumps(plain(result.to_json()), indent=1, allow_nan=False) + "\n")
    return result


def counted(network: TrainableNetwork, settings: TrainingSettings) -> Footprint:
    """What the limit of ``settings`` is of."""
    return memory_of(network, settings.footprint) if settings.bitops is None else operations_of(network)


def memory_of(network: TrainableNetwork, form: str = "bits") -> Footprint:
    """What the weights take, those that layers share once."""
    parts = {
        id(layer.weight): Part(layer.weight.numel(), _width(layer.weight_quantizer))
        for layer in network.quantized_layers
        if layer.weight is not None
    }
    return Footprint(tuple(parts.values()), form)


def operations_of(network: TrainableNetwork) -> Footprint:
    """BitOps: multiply-accumulates of every layer times bits of its weight times bits of what it reads."""
    parts = []
    for layer in network.quantized_layers:
        if layer.weight is not None:
            (entering, *_) = network.sites.get(Site(layer.layer.name, "input"), [None])
            parts.append(Part(layer.layer.macs, _width(layer.weight_quantizer), _width(entering)))
    return Footprint(tuple(parts), resource="bitops")


def _width(quantizer: FakeQuantizer | None) -> Width:
    if quantizer is None:
        return FLOAT_BITS
    return quantizer.bits if quantizer.gates is None else quantizer.gates


def settings_line(job: Job) -> str:
    """What is about to be trained, with which settings, in a sentence."""
    settings, bits = job.settings, job.network.weight_bits()
    if not bits:
        what = "float, nothing quantized"
    else:
        widths = sorted(set(bits.values()))
        what = f"{settings.method} weights at {', '.join(map(str, widths))} bits"
        what += f", {settings.target} the target" if settings.target else ""
        what += f", {settings.learning.activation} activations"
        if "ste" in (settings.learning.weight, settings.learning.activation):
            what += ", ranges of ste from least to greatest value"
        what += f", {settings.bitops} of BitOps the limit" if settings.bitops else ""
    images = len(job.training)
    batch = settings.batch_of(images)
    steps = steps_per_epoch(images, batch)
    epochs = f"{settings.epochs} {'epoch' if settings.epochs == 1 else 'epochs'}"
    epochs += f" of {steps} {'batch' if steps == 1 else 'batches'} of {batch}"
    if left := images - steps * batch:
        epochs += f" (each without {left} of the {images} images, others every time)"
    return (
        f"{what}; {epochs}, rate {settings.rate:g}, distillation {settings.distillation:g}; {len(job.validation)} "
        f"other images choose the epoch; batch norms {settings.norms}; {settings.device}, "
        f"{torch.get_num_threads()} threads"
    )


def _some(images: Images, order: np.ndarray, count: int) -> list[Batch]:
    """``count`` of the images ``order``, two at least, spread evenly: data sets are often sorted by class.

    In pieces of about 32: of one that is left over a batch norm would find no variance.
    """
    kept = np.sort(order[evenly_spaced_order(len(order))[: max(count, 2)]])
    return [images.batch(piece) for piece in np.array_split(kept, -(-len(kept) // 32))]


def _identity(start: Start, settings: TrainingSettings, loss: Any) -> dict[str, Any]:
    """What must be the same for a checkpoint to go on from."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    return {
        "model": start.network.fingerprint,
        "data": start.images.fingerprint,
        "plan": start.plan.fingerprint,
        "settings": json.dumps(chosen, sort_keys=True),
        "metric": start.subject.metric.name,
        "loss": loss if loss is None or isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__),
    }


def _written(
    start: Start,
    done: tuple[Network, Plan, Calibration],
    folder: Path,
    validation: np.ndarray,
    settings: TrainingSettings,
    progress: Progress,
) -> tuple[Expected, Recipe]:
    """The trained network as a file, what it is worth, measured by running it, and its recipe."""
    network, plan, calibration = done
    path = folder / NETWORK
    images = start.subject.images if start.own_evaluation else start.images
    save_network(network, images.batch([0, len(images) - 1]).inputs, path)  # two, however many there are
    subject = start.subject if start.own_evaluation else replace(start.subject, images=start.images, order=validation)
    progress.start("proof", len(subject.order))
    device = str(subject.program.device)
    before = Simulated(start.network, start.plan, start.calibration, device)
    after = Simulated(network, plan, calibration, device)
    exact, at_start, trained = statistics(subject, progress, before, after)
    given = {**subject.given.to_json(), "model": str(path.resolve()), "calibration": None}
    expected = expectation(subject.metric, exact, at_start, trained, level=subject.settings.level)
    return expected, Recipe(
        plan=plan,
        encodings=encodings_of(network, plan, calibration),
        given=given_of(plan, calibration),
        model=model_of(network, str(path)),
        expected=expected,
        proof=by_image(np.sort(subject.order), exact, trained),
        provenance={
            "quantopsy": version("quantopsy"),
            "torch": version("torch"),
            "trained from": start.subject.model_name,
            "training": asdict(settings),
            "given": given,
        },
    )


def save_network(network: Network, example: Any, path: Path) -> None:
    """Write ``network`` as a ``.pt2`` whose capture has the same layers, the number of images left free.

    It takes its inputs as ``example`` gives them, by name or in their order.
    """
    batch = torch.export.Dim("batch", min=1)
    inputs = network.arrange(example)
    named = dict(zip(network.input_names, inputs, strict=True)) if isinstance(example, Mapping) else {}
    shapes: Any = {name: {0: batch} for name in named} or tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network.module(), () if named else inputs, named, dynamic_shapes=shapes)
    save(program, path)
    check_same(network, capture(load(path), named or inputs, unfused=network.unfused), path)


def check_same(network: Network, again: Network, path: Path) -> None:
    """Raise :class:`QuantopsyError` where a network that was read back has other layers than were written."""
    if network.names != again.names:
        raise QuantopsyError(
            f"network {str(path)!r}", "its layers read back under other names", "please report it, with the model"
        )
