"""Before an analysis: what of a model can be quantized, whether it gives what it should, and what a study will cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quantopsy.analysis import significance
from quantopsy.analysis.analyze import DEFAULT_BUDGET, SCREEN_PASSES, chance_line
from quantopsy.analysis.budget import pass_seconds
from quantopsy.analysis.phases import Measuring, cost_share, measure_float
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.schemes import at_bits, single_layer
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.significance import Interval
from quantopsy.analysis.subject import Given, Subject, calibrated, make_ready, measuring
from quantopsy.engine.memory import GIB, bytes_per_image, screen_bytes_per_image
from quantopsy.graph.network import Network
from quantopsy.metrics import Metric, chance_level
from quantopsy.study import FLOAT, open_or_create

LOOKED_AT = 64
"""Images that a check runs, unless told otherwise."""


@dataclass(frozen=True)
class InputValues:
    """What one input holds over the images looked at; ``mean`` and ``std`` by channel (C,) where it has channels."""

    name: str
    shape: tuple[int, ...]
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Checked:
    """What a check found.

    ``images`` are those of the data, of which ``looked_at`` were run. ``passes`` are what each mode of an analysis
    takes, about, in float passes over all images, ``pass_seconds`` what one of these takes, ``gib`` the memory of the
    images in flight there, ``at_chance`` what is to be said of a network that may be guessing, ``seconds`` what the
    check itself took.
    """

    model: str
    data: str
    network: Network
    inputs: tuple[InputValues, ...]
    images: int
    looked_at: int
    bad: tuple[str, ...]
    metric: Metric
    value: Interval
    classes: int | None
    at_chance: str | None
    bits: tuple[int, ...]
    passes: Mapping[str, float]
    pass_seconds: float
    gib: float
    device: str
    threads: int
    seconds: float

    @property
    def chance(self) -> float | None:
        """What guessing among the classes is worth, where that means something."""
        return chance_level(self.metric, self.classes) if self.classes else None

    def operations(self) -> pd.DataFrame:
        """A row per kind of layer, most MACs first: ``op``, ``layers``, ``macs_share``, ``parameters``."""
        layers = [
            {"op": layer.op, "layers": 1, "macs_share": layer.macs, "parameters": layer.parameters}
            for layer in self.network.layers
        ]
        found = pd.DataFrame(layers).groupby("op", sort=False).sum().reset_index()
        found["macs_share"] /= max(self.network.total_macs, 1)
        return found.sort_values(["macs_share", "layers"], ascending=False, kind="stable", ignore_index=True)


def check(given: Given, settings: Settings, progress: Progress | None = None) -> Checked:
    """Capture, fold and run ``settings.samples`` images of a float network; nothing is kept.

    Raises :class:`QuantopsyError` for whatever would stop an analysis before it begins.
    """
    progress = progress or Silent()
    begin = time.perf_counter()
    samples = settings.samples or LOOKED_AT
    few = replace(settings, samples=samples, calibration_samples=settings.calibration_samples or samples)
    subject = make_ready(given, few, progress)
    # For the plans whose cost is asked; and what is timed next is warm by it.
    ranges = calibrated(subject, [subject.full], progress)
    with (
        tempfile.TemporaryDirectory(prefix="quantopsy-") as folder,
        open_or_create(Path(folder), subject.identity, fresh=True) as store,
        measuring(subject, store, ranges, progress) as bench,
    ):
        measure_float(bench)
        result, classes, unit = store.result(FLOAT), store.noted("classes"), pass_seconds(store)
        assert result is not None
        assert unit is not None
        metric, statistics = bench.metric, result.statistics
        return Checked(
            model=subject.model_name,
            data=subject.data_name,
            network=subject.network,
            inputs=_input_values(subject),
            images=len(subject.images),
            looked_at=len(subject.order),
            bad=tuple(map(str, subject.images.bad)),
            metric=metric,
            value=significance.metric_interval(metric, statistics, level=settings.level),
            classes=classes,
            at_chance=chance_line(bench),
            bits=settings.bits,
            passes={
                "screen": SCREEN_PASSES,
                "auto": DEFAULT_BUDGET.passes or 0.0,
                "exact": _exact_passes(bench, subject),
            },
            pass_seconds=unit * len(subject.images),
            gib=_memory(replace(subject, order=np.arange(len(subject.images)))),
            device=settings.device,
            threads=torch.get_num_threads(),
            seconds=time.perf_counter() - begin,
        )


def _exact_passes(bench: Measuring, subject: Subject) -> float:
    """Of every cell, and the whole network at every bit-width; a layer without a weight is one cell."""
    at = at_bits(subject.full, subject.settings.bits[0])
    times = len(subject.settings.bits)
    cells = [(single_layer(at, layer), times if layer.weight is not None else 1) for layer in subject.selected]
    return sum(cost_share(bench.engine, plan) * count for plan, count in [*cells, (at, times)] if plan)


def _memory(subject: Subject) -> float:
    exact = subject.tile * bytes_per_image(subject.program)
    return max(exact, subject.screen_tile * screen_bytes_per_image(subject.program)) / GIB


def _input_values(subject: Subject) -> tuple[InputValues, ...]:
    network = subject.network
    inputs = network.arrange(subject.images.batch(subject.order).inputs)
    return tuple(_values(*each) for each in zip(network.input_names, network.input_shapes, inputs, strict=True))


def _values(name: str, shape: tuple[int, ...], values: Tensor) -> InputValues:
    values = values.double()
    by_channel = values.movedim(1, 0).flatten(1) if values.dim() == 4 else values.reshape(1, -1)
    mean, std = by_channel.mean(1), by_channel.std(1, correction=0)
    return InputValues(
        name, shape, float(values.amin()), float(values.amax()), tuple(mean.tolist()), tuple(std.tolist())
    )
