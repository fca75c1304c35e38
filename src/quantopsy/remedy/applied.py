"""A recipe put to work on a model and images: the metric of what it makes, beside float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.phases import pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.recipes import Simulated, named_as, realised, recipe_file, same_weights, unfused_of
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given, Subject, make_ready
from quantopsy.core import QuantopsyError
from quantopsy.core.recipe import Estimate, Expected, Recipe
from quantopsy.data import prefetch
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine
from quantopsy.metrics import measure


@dataclass(frozen=True)
class Applied:
    """What a recipe's network gave on ``samples`` images; ``same_model``: whether it has the weights it was made for.

    ``renamed``: the recipe's names of layers by the model's own, where they are not the same. ``float`` and
    ``after``: the metric; ``lost``: the degradation. ``source``: what wrote the recipe. ``trained``: whether ``float``
    is of weights that a training has moved, where the recipe's ``expected`` has those before it.
    """

    metric: str
    unit: str
    samples: int
    level: float
    float: Estimate
    after: Estimate
    lost: Estimate
    same_model: bool
    renamed: Mapping[str, str]
    expected: Expected | None
    source: str
    trained: bool
    module: Simulated

    def __repr__(self) -> str:
        values = f"{self.metric} {self.after[0]:.4g}, float {self.float[0]:.4g}, {self.samples} images"
        return f"<Applied, recipe of {self.source}: {values}>"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the module left out."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("module", "expected")}
        return {**values, "expected": self.expected and asdict(self.expected)}


def apply(
    recipe: Recipe | str | Path,
    model: Any = None,
    data: Any = None,
    *,
    metric: Any = None,
    preprocess: Any = None,
    samples: int | None = None,
    device: str = "cpu",
    level: float = 0.95,
    progress: Progress | None = None,
) -> Applied:
    """The network that ``recipe`` makes of ``model``, run on ``data``.

    Model, data, metric and preprocessing are those of the study that the recipe comes from, where none are given and
    they have names. Raises :class:`QuantopsyError` for a recipe of another network and whatever else can be mended.
    """
    progress = progress or Silent()
    settings = Settings(samples=samples, device=device)
    recipe, subject = opened(recipe, settings, progress, model=model, data=data, metric=metric, preprocess=preprocess)
    named = named_as(recipe, subject.network)
    network, calibration = realised(recipe, named)
    module = Simulated(network, recipe.plan, calibration, device)
    progress.start("network", len(subject.order))
    exact, quantized = statistics(subject, progress, module)
    interval = significance.metric_interval
    values = [interval(subject.metric, found, level=level) for found in (exact, quantized)]
    lost = significance.degradation(subject.metric, exact, quantized, level=level)
    same = same_weights(recipe, named)
    return Applied(
        metric=subject.metric.name,
        unit=subject.metric.unit,
        samples=len(exact),
        level=level,
        float=values[0].estimate,
        after=values[1].estimate,
        lost=lost.estimate,
        same_model=same,
        renamed={
            own.name: layer.name
            for own, layer in zip(subject.network.layers, named.layers, strict=True)
            if own.name != layer.name
        },
        expected=recipe.expected,
        source=recipe.source,
        trained=same and "training" in recipe.provenance,
        module=module,
    )


def opened(recipe: Recipe | str | Path, settings: Settings, progress: Progress, **parts: Any) -> tuple[Recipe, Subject]:
    """A recipe, its file or its study's folder, with what it is to be run on. ``progress`` is told what wrote it.

    ``parts``: ``model``, ``data``, ``metric``, ``preprocess``; what is None is as the recipe's study had it. Raises
    :class:`QuantopsyError` where that has no name.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe_file(Path(recipe)))
    progress.say(f"Recipe of {recipe.source}")
    noted: Mapping[str, Any] = recipe.provenance.get("given", {})
    parts = {name: noted.get(name) if value is None else value for name, value in parts.items()}
    for name, value in parts.items():
        if (value is None and name in ("model", "data")) or (isinstance(value, Mapping) and "object" in value):
            raise QuantopsyError("recipe", f"it does not name its {name}", f"give --{name}, or {name}= in Python")
    return recipe, make_ready(Given(**parts, unfused=unfused_of(recipe)), settings, progress)


def statistics(subject: Subject, progress: Progress, *modules: Simulated) -> tuple[np.ndarray, ...]:
    """The metric's statistics (n, K) of the subject's images, of its float network and of each of ``modules``."""
    engine, network = ExactEngine(subject.program, Calibration()), subject.network
    found: list[list[np.ndarray]] = [[] for _ in range(1 + len(modules))]
    for batch in prefetch(subject.images, pieces(np.sort(subject.order), subject.tile)):
        reference, _ = engine.float_pass(batch.inputs)
        exact = network.unflatten(reference)
        inputs = subject.network.arrange(batch.inputs)
        labels = None if batch.labels is None else batch.labels.to(subject.program.device)
        for outputs, kept in zip((exact, *(module(*inputs) for module in modules)), found, strict=True):
            kept.append(measure(subject.metric, outputs, labels, exact, lambda row: str(row)))
        progress.advance(len(batch))
    return tuple(np.concatenate(kept) for kept in found)
