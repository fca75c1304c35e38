"""Run random subsets of layers at a low bit-width, of a study whose single layers are known."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.analysis.phases import measure_plans
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Results
from quantopsy.analysis.subject import Subject, calibrated, measuring, reopen
from quantopsy.analysis.subsets import Design, Evidence, design
from quantopsy.analysis.summary import summarise
from quantopsy.core import QuantopsyError
from quantopsy.core.spec import MAX_BITS, MIN_BITS
from quantopsy.study import FLOAT, Store


def measure_additivity(
    folder: str | Path,
    *,
    low: int = 4,
    high: int = 8,
    subsets: int = 24,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **instead: Any,
) -> Results:
    """Whether the single layers of the study in ``folder`` add up (layer-wise paper, Figures 2 and 9).

    Runs at most ``subsets`` networks, all layers quantized, the weights of a random subset of layers at
    ``low`` bits and all others at ``high``, on the first ``samples`` images of the study (``None``: on all).
    Results stay in the study: the same again runs nothing. ``instead`` as of :func:`quantopsy.analysis.subject.reopen`.
    Raises :class:`QuantopsyError` where the study lacks a single layer at one of the bit-widths.
    """
    progress = progress or Silent()
    begin = time.perf_counter()
    _check(low, high, subsets, samples)
    with reopen(folder, progress, **instead) as (store, subject):
        asked = design(
            store,
            subject.full,
            subject.network.layers,
            low=low,
            high=high,
            subsets=subsets,
            samples=samples,
            seed=seed,
        )
        order = subject.order[:samples]
        _check_cells(store, subject, asked, order)
        store.note("additivity", asked.to_json())
        plans = {subset.run: store.plan(subset.run) for subset in asked.subsets}
        todo = {run: plan for run, plan in plans.items() if not np.isin(order, store.images(run)).all()}
        progress.say(
            f"additivity: {len(plans)} subsets of layers at {low} bits, the others at {high}, on {len(order)} images"
            + ("" if len(todo) == len(plans) else f"; {len(plans) - len(todo)} of them are run already")
        )
        if todo:
            # What was measured before a stop is kept, and the result says on how many of the images it is.
            with suppress(KeyboardInterrupt):
                ranges = calibrated(subject, [subject.full], progress)
                with measuring(subject, store, ranges, progress) as bench:
                    measure_plans(replace(bench, order=order), todo, everywhere=todo)
            store.note("seconds", store.noted("seconds", 0.0) + time.perf_counter() - begin)
        return summarise(store, subject.metric, complete=True)


def _check(low: int, high: int, subsets: int, samples: int | None) -> None:
    for bits in (low, high):
        if not MIN_BITS <= bits <= MAX_BITS:
            raise QuantopsyError(
                f"bit-width {bits}", "out of range", f"give whole numbers from {MIN_BITS} to {MAX_BITS}"
            )
    if low >= high:
        raise QuantopsyError(f"low bit-width {low}", f"it is not below the high one, {high}", "give --low below --high")
    for name, value in (("subsets", subsets), ("samples", samples)):
        if value is not None and value < 1:
            raise QuantopsyError(f"{name} {value}", "must be positive", "give at least 1")


def _check_cells(store: Store, subject: Subject, asked: Design, order: np.ndarray) -> None:
    """Raise where a sum would lack a layer."""
    study = f"study {str(store.path.parent)!r}"
    images = np.sort(order)
    if not np.isin(images, store.images(FLOAT)).all():
        raise QuantopsyError(
            study, "its float network was not run on all images", "run `quantopsy analyze` as before: it goes on"
        )
    known = Evidence(store, subject.metric, images)
    for place, bits in enumerate((asked.low, asked.high)):
        missing = [layer for layer, runs in asked.cells.items() if known.of(runs[place]) is None]
        if missing:
            names = {layer.index: layer.name for layer in subject.network.layers}
            widths = ",".join(map(str, sorted({*subject.settings.bits, asked.low, asked.high})))
            raise QuantopsyError(
                study,
                f"{len(missing)} of {len(asked.cells)} layers, {names[missing[0]]!r} first, are neither run nor "
                f"screened at {bits} bits",
                f"run `quantopsy analyze` as before with all layers and --bits {widths}, which adds them",
            )
