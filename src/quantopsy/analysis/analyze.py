"""The main job: from a model and images to a study of which layers quantization hurts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import ladders_of, tolerance_of
from quantopsy.analysis.auto import Cells, measure_what_decides
from quantopsy.analysis.budget import Budget, pass_seconds
from quantopsy.analysis.phases import Measuring, measure_float, measure_plans, screen, unscreened
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Distribution, Results
from quantopsy.analysis.schemes import at_bits, single_layer
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given, Subject, calibrated, make_ready, measuring, note_request, provenance
from quantopsy.analysis.summary import distribution_json, summarise
from quantopsy.calibrate import quantized_weight
from quantopsy.core import Plan, QuantopsyError, Site
from quantopsy.engine.calibration import Calibration, grid_ends
from quantopsy.engine.memory import bytes_per_image, screen_bytes_per_image
from quantopsy.graph.network import Layer
from quantopsy.metrics import chance_level, is_at_chance
from quantopsy.study import FLOAT, Store, open_or_create

DEFAULT_BUDGET = Budget(passes=30.0)
SCREEN_PASSES = 8.0
"""What the screen takes, about."""


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
    unfused: Sequence[str] = (),
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure every single-layer quantized network (layer-wise paper, Algorithm 1) and the whole one.

    ``model``, ``data``, ``calibration``, ``preprocess``, ``metric`` and ``loss`` as the command line takes
    them or as Python objects; ``unfused`` as of :func:`quantopsy.graph.capture.capture`; ``out`` is the study
    folder, in which an interrupted analysis goes on.
    Raises :class:`QuantopsyError` for whatever the user can mend, before the study is touched.
    """
    progress = progress or Silent()
    begin = time.perf_counter()
    given = Given(model, data, metric, calibration, preprocess, skip_bad, loss, tuple(unfused))
    subject = make_ready(given, settings or Settings(), progress)
    store = open_or_create(Path(out), subject.identity, fresh=fresh)
    with store:
        ranges = calibrated(subject, [subject.full], progress)
        _describe(store, subject, ranges)
        progress.say(settings_line(subject, ranges))
        stopped = False
        with measuring(subject, store, ranges, progress) as bench:
            try:
                measure_float(bench)
                progress.say(float_line(bench, subject.settings.level))
                if (warning := chance_line(bench)) is not None:
                    progress.say(f"! {warning}")
                _measure(bench, subject, begin)
            except KeyboardInterrupt:
                stopped = True
        spent = time.perf_counter() - begin
        store.note("seconds", store.noted("seconds", 0.0) + spent)
        if len(store.images(FLOAT)) == 0:
            raise KeyboardInterrupt
        return summarise(store, subject.metric, complete=not stopped)


def _measure(measuring: Measuring, subject: Subject, begin: float) -> None:
    """Every (layer, bits) cell, and the whole network at each bit-width, in the way that ``settings.mode`` says."""
    store, settings = measuring.store, subject.settings
    cells = _cells(store, subject)
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


def _cells(store: Store, subject: Subject) -> Cells:
    """The runs of every cell and whole network, noted in the study."""
    plans: dict[int, Plan] = {}
    whole_plans: dict[int, Plan] = {}
    bits_of: dict[int, tuple[int, ...]] = {}
    cells, whole = [], {}
    for bits in subject.settings.bits:
        at = at_bits(subject.full, bits)
        for layer in subject.selected:
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


def settings_line(subject: Subject, ranges: Calibration) -> str:
    """What is about to be measured, with which settings, in a sentence."""
    settings = subject.settings
    if settings.mode == "exact":
        at_once, per_image = subject.tile, bytes_per_image(subject.program)
    else:
        at_once, per_image = subject.screen_tile, screen_bytes_per_image(subject.program)
    return (
        f"{settings.mode}: {settings.scheme}, weights at {', '.join(map(str, settings.bits))} bits, "
        f"activations at {settings.activation_bits}; {len(subject.order)} of {subject.images.describe()}; ranges from "
        f"{ranges.images} images; {at_once} images at once on {settings.device} "
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


def chance_line(measuring: Measuring) -> str | None:
    """A warning where the float network is no better than guessing, else None."""
    metric, store = measuring.metric, measuring.store
    result, classes = store.result(FLOAT), store.noted("classes")
    assert result is not None
    if not classes or not is_at_chance(metric, result.statistics, classes):
        return None
    return (
        f"float {metric.name} is not certainly better than guessing among {classes} classes "
        f"({chance_level(metric, classes):.3g}): preprocessing other than in training is the usual cause"
    )


def _describe(store: Store, subject: Subject, ranges: Calibration) -> None:
    """Note all that the tables and pictures need beside the measurements."""
    network, settings = subject.network, subject.settings
    note_request(store, subject)
    store.note("model", subject.model_name)
    store.note("data", subject.data_name)
    store.note(
        "settings",
        {
            **{key: value for key, value in asdict(settings).items() if value not in (None, {}, ("*",), 0.0)},
            "bits": list(settings.bits),
            "samples": len(subject.order),
            "calibration": subject.calibration_name,
            "calibration_samples": ranges.images,
            "metric": subject.metric.name,
            "tile": subject.tile,
            "threads": torch.get_num_threads(),
        },
    )
    store.note("order", [int(index) for index in subject.order])
    store.note("layers", [asdict(layer) for layer in network.layers])
    store.note("unquantized", [asdict(item) for item in network.unquantized])
    store.note("coverage", network.coverage)
    store.note("grids", grid_ends(network, subject.full, ranges))
    store.note("labelled", subject.images.has_labels)
    store.note("bad", list(map(str, subject.images.bad)))
    store.note("provenance", provenance(store.noted("identity", {})))
    store.note(
        "distributions",
        {layer.name: distribution_json(_distribution(subject, ranges, layer)) for layer in network.layers},
    )


def _distribution(subject: Subject, ranges: Calibration, layer: Layer) -> Distribution:
    inputs = tuple(ranges.range(value) for value in layer.inputs if ranges.has(value))
    output = ranges.range(layer.output) if ranges.has(layer.output) else None
    weight = subject.network.weight(layer)
    if weight is None:
        return Distribution(input_ranges=inputs, output_range=output)
    values = weight.detach().float().cpu()
    counts, edges = np.histogram(values.numpy(), bins=96)
    spec = subject.full.get(Site(layer.name, "weight"))
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
