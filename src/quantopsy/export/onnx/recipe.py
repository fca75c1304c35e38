"""A recipe as a file that runs: written, compared with the simulation on images, and timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantopsy.analysis.phases import pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.recipes import named_as, realised, same_weights
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Subject
from quantopsy.core import Plan
from quantopsy.core.recipe import Recipe
from quantopsy.data import Batch, prefetch
from quantopsy.export.onnx.export import Exported, export_onnx
from quantopsy.export.onnx.graph import OPSET, to_onnx
from quantopsy.export.onnx.runtime import Inputs, Latency, Session, latency, seconds_by_layer
from quantopsy.export.onnx.runtimes import ONNX_RUNTIME, further
from quantopsy.graph.network import Network
from quantopsy.remedy.applied import opened
from quantopsy.remedy.target import check_recipe
from quantopsy.remedy.target import target as profile_of

SAMPLES = 256
"""Images that the file is compared on, where nothing else is said."""


@dataclass(frozen=True)
class LayerTime:
    """Seconds that ONNX Runtime spends in the kernels of a layer, of one image; "" is what belongs to no layer."""

    layer: str
    exact: float
    quantized: float


@dataclass(frozen=True)
class Timed:
    """The float network and the file in one runtime, one image at a time."""

    exact: Latency
    quantized: Latency

    @property
    def faster(self) -> float:
        """How many times as fast as in float, by first quartiles: other work on the machine only adds."""
        return self.exact.low / self.quantized.low

    def to_json(self) -> dict[str, Any]:
        """Both, in seconds."""
        return {"float": asdict(self.exact), "quantized": asdict(self.quantized)}


@dataclass(frozen=True)
class Delivered:
    """A recipe's file: what comparing it showed, and how fast it is beside the float network.

    ``timed`` and ``by_layer`` are ONNX Runtime's, ``also`` has further runtimes by name. ``same_model``: whether the
    network has the weights that the recipe was made for.
    """

    exported: Exported
    same_model: bool
    timed: Timed
    also: Mapping[str, Timed]
    by_layer: tuple[LayerTime, ...]
    threads: int

    def __repr__(self) -> str:
        found = self.exported.verified
        return (
            f"<Delivered {self.exported.path}: {found.metric} {found.optimised.value:.1f} in ONNX Runtime, "
            f"{found.simulated:.1f} simulated, {found.float_network:.1f} in float, {found.images} images>"
        )

    def to_json(self) -> dict[str, Any]:
        """One document; shares are of 1, sizes in bytes, times in seconds."""
        done = self.exported
        found = done.verified
        return {
            "file": str(done.path),
            "metric": found.metric,
            "unit": found.unit,
            "samples": found.images,
            "float": found.float_network,
            "simulated": found.simulated,
            "stored": found.stored,
            "runtime": found.optimised.value,
            "lost": list(found.optimised.lost),
            "departs": list(found.optimised.departs),
            "plain": asdict(found.plain),
            "optimised": asdict(found.optimised),
            "integer": asdict(done.kernels),
            "also": {
                name: {**asdict(run), "integer": asdict(done.also[name]), "latency": self.also[name].to_json()}
                for name, run in found.also.items()
            },
            "float_weights": done.float_weights,
            "saturating": list(done.saturating),
            "between": list(done.between),
            "bytes": done.bytes,
            "bytes_float": done.bytes_float,
            "same_model": self.same_model,
            "threads": self.threads,
            "latency": self.timed.to_json(),
            "seconds_by_layer": [asdict(layer) for layer in self.by_layer],
        }


def export_recipe(
    recipe: Recipe | str | Path,
    out: str | Path = "model.onnx",
    model: Any = None,
    data: Any = None,
    *,
    metric: Any = None,
    preprocess: Any = None,
    samples: int = SAMPLES,
    opset: int = OPSET,
    integer_convolutions: bool = False,
    threads: int = 1,
    also: Sequence[str] = (),
    target: str | Path | None = None,
    progress: Progress | None = None,
) -> Delivered:
    """Write what ``recipe`` makes of ``model`` to ``out`` as ONNX QDQ, once it was run beside the simulation.

    ``recipe`` may be a study's folder. Model, data, metric and preprocessing are those of the recipe's study where
    none are given. ``samples``: images to compare on. ``threads`` of the runtimes; ``also``: names of
    :mod:`quantopsy.export.onnx.runtimes` to run the file in besides ONNX Runtime. ``target``: a back end's profile
    (:mod:`quantopsy.remedy.target`) that the plan must keep to. Raises :class:`QuantopsyError` for what ONNX has no
    form for or the target cannot run, for a recipe of another network, and where the file cannot be written.
    """
    progress = progress or Silent()
    elsewhere, profile = further(also), None if target is None else profile_of(target)
    settings = Settings(samples=samples)
    recipe, subject = opened(recipe, settings, progress, model=model, data=data, metric=metric, preprocess=preprocess)
    named = named_as(recipe, subject.network)
    network, calibration = realised(recipe, named)
    if profile is not None:
        check_recipe(profile, recipe.plan, network.layers)
    progress.start("ONNX Runtime", len(subject.order))
    done = export_onnx(
        network,
        recipe.plan,
        calibration,
        out,
        _batches(subject, progress),
        subject.metric,
        opset=opset,
        integer_convolutions=integer_convolutions,
        threads=threads,
        also=elsewhere,
    )
    models: Mapping[str, onnx.ModelProto] = {
        "float": to_onnx(named, Plan(), calibration, opset=opset),
        "quantized": onnx.load(done.path),
    }
    one = subject.images.batch(np.sort(subject.order)[:1]).inputs
    timed = {
        runtime.name: _timed({name: runtime.open(file, threads=threads) for name, file in models.items()}, network, one)
        for runtime in (ONNX_RUNTIME, *elsewhere)
    }
    layers = {name: seconds_by_layer(found, network, one, threads=threads) for name, found in models.items()}
    return Delivered(
        exported=done,
        same_model=same_weights(recipe, named),
        timed=timed.pop(ONNX_RUNTIME.name),
        also=timed,
        by_layer=tuple(LayerTime(name, layers["float"][name], layers["quantized"][name]) for name in layers["float"]),
        threads=threads,
    )


def _timed(sessions: Mapping[str, Session], network: Network, one: Inputs) -> Timed:
    found = latency(sessions, network, one)
    return Timed(found["float"], found["quantized"])


def _batches(subject: Subject, progress: Progress) -> Iterator[Batch]:
    for batch in prefetch(subject.images, pieces(np.sort(subject.order), subject.tile)):
        yield batch
        progress.advance(len(batch))
