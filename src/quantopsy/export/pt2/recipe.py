"""A recipe as a ``.pt2`` file: traced, saved, loaded again and compared with the simulation on images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from quantopsy.analysis import significance
from quantopsy.analysis.phases import pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.recipes import named_as, realised, same_weights
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Subject
from quantopsy.core import QuantopsyError, names
from quantopsy.core.files import write_file
from quantopsy.core.recipe import Estimate, Recipe
from quantopsy.data import prefetch
from quantopsy.engine.exact import ExactEngine
from quantopsy.export.pt2.decomposed import Decomposed
from quantopsy.export.pt2.program import Form, exported, traced
from quantopsy.export.pt2.simulated import Simulation
from quantopsy.graph.capture import save
from quantopsy.graph.execute import compile_network
from quantopsy.graph.outputs import output_tensors
from quantopsy.metrics import agreement, measure
from quantopsy.remedy.applied import opened

SAMPLES = 256
"""Images that the program is compared on, where nothing else is said."""
LEVEL = 0.95  # of intervals

To = Literal["pt2", "pt2e"]
FORMS: Mapping[str, Form] = {"pt2": Simulation(), "pt2e": Decomposed()}


@dataclass(frozen=True)
class SavedProgram:
    """A program on disk, and what running it as loaded showed.

    ``runtime``: the metric of the program. ``lost``: what it loses against float, ``departs``: against the simulation;
    value and 95 % interval, of paired images. ``equal``: the share of output elements that are the simulation's to the
    bit, ``largest`` the greatest difference as a share of the outputs' range, ``decisions`` percent as simulated.
    ``bytes_float``: of the float network's program. ``same_model``: whether the network has the weights that the recipe
    was made for.
    """

    path: Path
    to: To
    bytes: int
    bytes_float: int
    metric: str
    unit: str
    images: int
    float_network: float
    simulated: float
    runtime: float
    lost: Estimate
    departs: Estimate
    equal: float
    largest: float
    decisions: float
    same_model: bool

    def __repr__(self) -> str:
        return (
            f"<SavedProgram {self.path}: {self.metric} {self.runtime:.1f} as loaded, {self.simulated:.1f} simulated, "
            f"{self.float_network:.1f} in float, {self.images} images>"
        )

    def to_json(self) -> dict[str, Any]:
        """One document, with the names that the document of an ONNX file has."""
        document = asdict(self)
        document["file"] = str(document.pop("path"))
        document["samples"] = document.pop("images")
        document["float"] = document.pop("float_network")
        return document


def export_program(
    recipe: Recipe | str | Path,
    out: str | Path = "model.pt2",
    model: Any = None,
    data: Any = None,
    *,
    to: To = "pt2",
    metric: Any = None,
    preprocess: Any = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> SavedProgram:
    """Write what ``recipe`` makes of ``model`` to ``out`` as a program of ``torch.export``, once it was run as loaded.

    ``to``: ``pt2`` is the simulation in ATen operators, any grid, to the bit, and loads with torch alone. ``pt2e`` has
    the ``quantized_decomposed`` operators that PT2E leaves and back ends such as ExecuTorch's look for; it loads where
    ``torch.ao.quantization.fx._decomposed`` is imported. ``recipe`` may be a study's folder; model, data, metric and
    preprocessing are those of its study where none are given. Raises :class:`QuantopsyError` for what the operators
    have no form for, naming the layer, for a recipe of another network, and where the file cannot be written.
    """
    if to not in FORMS:
        raise names.unknown(to, list(FORMS), "form of a program")
    progress = progress or Silent()
    recipe, subject = opened(
        recipe, Settings(samples=samples), progress, model=model, data=data, metric=metric, preprocess=preprocess
    )
    if not recipe.plan.sites:
        raise QuantopsyError(
            "recipe", "its plan quantizes nothing", "export the float network with torch.export.export"
        )
    named = named_as(recipe, subject.network)
    network, calibration = realised(recipe, named)
    program = exported(network, recipe.plan, calibration, FORMS[to])
    content = _bytes(program)
    engine = ExactEngine(compile_network(network), calibration)
    progress.start("program", len(subject.order))
    found = _compared(torch.export.load(io.BytesIO(content)), engine, recipe, subject, progress)
    return SavedProgram(
        path=write_file(out, content),
        to=to,
        bytes=len(content),
        bytes_float=len(_bytes(traced(named, named.module()))),
        same_model=same_weights(recipe, named),
        **found,
    )


def _bytes(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    save(program, buffer)
    return buffer.getvalue()


def _compared(
    program: torch.export.ExportedProgram, engine: ExactEngine, recipe: Recipe, subject: Subject, progress: Progress
) -> dict[str, Any]:
    """The fields of :class:`SavedProgram` that images show."""
    network, metric = engine.program.network, subject.metric
    prepared, module = engine.prepare(recipe.plan), program.module()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("float_network", "simulated", "runtime")}
    kept: list[np.ndarray] = []
    elements = equal = 0
    largest, low, high = 0.0, np.inf, -np.inf
    for batch in prefetch(subject.images, pieces(np.sort(subject.order), subject.tile)):
        reals, simulated = (found.outputs for found in engine.run_tile(batch.inputs, [prepared]))
        with torch.no_grad():
            given = module(*network.arrange(batch.inputs))
        run = network.flatten(given)
        for name, outputs in zip(rows, (reals, simulated, run), strict=True):
            rows[name].append(measure(metric, network.unflatten(outputs), batch.labels, network.unflatten(reals)))
        kept.append(agreement(given, network.unflatten(simulated)))
        for tensor, other in zip(output_tensors(run), output_tensors(simulated), strict=True):
            elements, equal = elements + other.numel(), equal + int((tensor == other).sum())
            largest = max(largest, float((tensor - other).abs().max()))
            low, high = min(low, float(other.min())), max(high, float(other.max()))
        progress.advance(len(batch))
    measured = {name: np.concatenate(found) for name, found in rows.items()}
    lost, departs = (
        significance.degradation(metric, measured[better], measured["runtime"], level=LEVEL)
        for better in ("float_network", "simulated")
    )
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "images": len(measured["runtime"]),
        **{name: metric.value(found) for name, found in measured.items()},
        "lost": lost.estimate,
        "departs": departs.estimate,
        "equal": equal / elements,
        "largest": largest / (high - low) if high > low else 0.0,
        "decisions": 100 * float(np.concatenate(kept).mean()),
    }
