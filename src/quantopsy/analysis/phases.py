"""What an analysis does in turn, tile by tile, each tile committed to the study as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, log
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from quantopsy.analysis.definition import definition
from quantopsy.analysis.progress import Progress
from quantopsy.analysis.screening import Scores, columns_from_json, columns_json
from quantopsy.analysis.significance import draw as drawn_images
from quantopsy.analysis.work import BaselineTask, Done, ExactTask, ScreenTask, Setup, Task, Worker
from quantopsy.core import Plan
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.pool import Pool
from quantopsy.engine.screen import Column, columns
from quantopsy.metrics import Metric
from quantopsy.study import FLOAT, Cost, Store

DECISION_ODDS = 100.0
DECISION_SHARE = 0.25, 0.5
"""The images that get the probe of the decision are those whose largest score makes them at most so many times as
likely as their runner-up: at least the one share of all, at most the other, those of smallest margin. The rest is
flipped only by perturbations so large that their spread, which the probed ones tell, says as much. A screen costs three
quarters of what it would with the probe for all, or less (benchmarks/screen.py --cost-only)."""

HALF_RANK = 0.95
"""Rank correlation of bfloat16's noises with float32's from which the screen may use it."""

RANK_IMAGES = 64
"""On which the two are compared: chance takes the lowest of many correlations down to 0.95 on 32."""

QUANTIZER_SHARE = 0.6
"""What it takes to put every value of a network on its grid, in float passes."""


@dataclass(frozen=True)
class Measuring:
    """One analysis in motion: what is measured, where, in tiles of which size, and where it is kept.

    ``worker`` is the one that runs in this process, if any; ``engine`` is its, or else only knows what
    plans cost.
    """

    setup: Setup
    engine: ExactEngine
    pool: Pool[Task, Done]
    worker: Worker | None
    order: np.ndarray
    tile: int
    screen_tile: int
    store: Store
    progress: Progress

    @property
    def metric(self) -> Metric:
        """The figure of merit."""
        return self.setup.metric


def measure_float(measuring: Measuring) -> None:
    """The float network on every image, before anything else."""
    store, progress = measuring.store, measuring.progress
    todo = measuring.order[~np.isin(measuring.order, store.images(FLOAT))]
    progress.start("float baseline", len(todo))
    for done in measuring.pool.map([BaselineTask(piece) for piece in pieces(todo, measuring.tile)]):
        if done.classes != store.noted("classes"):
            store.note("classes", done.classes)
        store.append(done.results, done.runner_up)
        store.spend(_cost("float", done))
        progress.advance(len(done.task.images))


def unscreened(measuring: Measuring) -> tuple[int, np.ndarray]:
    """The number of the screen that the set-up asks for, and the images it still lacks, in order."""
    store, setup = measuring.store, measuring.setup
    design = {
        "columns": columns_json(columns(setup.network, setup.candidates)),
        "probes": setup.noise_probes,
        "seed": setup.seed,
        "loss": None if setup.loss is None else definition(setup.loss),
        "precision": setup.precision,
    }
    number = store.screen(design)
    return number, measuring.order[~np.isin(measuring.order, store.screened_images(number))]


def screen(measuring: Measuring) -> None:
    """Every candidate of the set-up scored to first order on every image; what the study holds is not done again."""
    store, progress = measuring.store, measuring.progress
    number, todo = unscreened(measuring)
    store.note("screen", number)
    at_risk = np.isin(todo, _smallest_margins(measuring))
    tasks = [
        ScreenTask(piece, decision)
        for decision, images in ((True, todo[at_risk]), (False, todo[~at_risk]))
        for piece in pieces(images, measuring.screen_tile)
    ]
    progress.start("screen", len(todo))
    if measuring.setup.precision == "bf16" and tasks:
        tasks = _in_bfloat16(measuring, number, tasks)
    for done in measuring.pool.map(tasks):
        _keep_screened(measuring, number, done)


def _keep_screened(measuring: Measuring, number: int, done: Done) -> None:
    store = measuring.store
    assert done.screened is not None
    if done.hidden:
        # Of a single image nothing is mixed with others: what one tile hides is hidden.
        store.note("hidden", {**store.noted("hidden", {}), **done.hidden})
    if store.noted(_moved_by(number)) is None:
        store.note(_moved_by(number), list(done.moved))
    store.append_screened(number, done.screened)
    store.spend(_cost("screen", done))
    measuring.progress.advance(len(done.task.images))


def _in_bfloat16(measuring: Measuring, number: int, tasks: Sequence[ScreenTask]) -> list[ScreenTask]:
    """Those of ``tasks`` that are left when the first have been done in float32 and in bfloat16: in bfloat16 where
    it ranked what was scored as float32 did there."""
    store = measuring.store
    found = store.noted(_ranks_of(number))
    if found is None:
        images = np.cumsum([len(task.images) for task in tasks])
        few = int(np.searchsorted(images, RANK_IMAGES)) + 1
        first, tasks = tasks[:few], tasks[few:]
        exact = list(measuring.pool.map(first))
        halved = list(measuring.pool.map([replace(task, half=True) for task in first]))
        scored = columns(measuring.setup.network, measuring.setup.candidates)
        rank = lowest_rank(scored, *(_noises(done, measuring.setup.noise_probes) for done in (exact, halved)))
        for done in exact:
            _keep_screened(measuring, number, done)
        for done in halved:
            store.spend(_cost("screen", done))
        found = {"rank": rank, "images": int(images[min(few, len(images)) - 1]), "holds": rank >= HALF_RANK}
        store.note(_ranks_of(number), found)
        measuring.progress.say(_half_line(found))
    return [replace(task, half=found["holds"]) for task in tasks]


def _noises(tiles: Iterable[Done], probes: int) -> np.ndarray:
    """(S,) mean of e^2 over images and random probes."""
    e = np.concatenate([done.screened.e[:, :, :probes] for done in tiles if done.screened is not None], 1)
    noises: np.ndarray = np.square(e, dtype=np.float64).mean((1, 2))
    return noises


def lowest_rank(scored: Sequence[Column], exact: np.ndarray, halved: np.ndarray) -> float:
    """Spearman's correlation of two sets of noises (S,) within weights and within activations of every bit-width: the
    lowest, 1 where there is nothing to rank, 0 where one of them is not known."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for row, column in enumerate(scored):
        if exact[row] > 0:  # which what is hidden, NaN, is not
            groups.setdefault((column.site.role == "weight", column.spec.bits), []).append(row)
    ranks = [spearmanr(exact[rows], halved[rows]).statistic for rows in groups.values() if len(rows) > 2]
    # A NaN, of numbers that are infinite or all the same, is not less than anything: where it stands would decide.
    return min((float(np.nan_to_num(rank)) for rank in ranks), default=1.0)


def half_refused(store: Store) -> str | None:
    """Why the newest screen went on in float32, where bfloat16 was asked for; else None."""
    found = store.noted(_ranks_of(store.noted("screen")))
    return None if found is None or found["holds"] else _half_line(found)


def _half_line(found: Mapping[str, Any]) -> str:
    ranks = f"rank correlation with float32's noises {found['rank']:.3f} on {found['images']} images"
    if found["holds"]:
        return f"screened in bf16: {ranks}"
    return f"Screened in float32, not in bf16: its {ranks}, less than {HALF_RANK:g}."


def scores_of(store: Store) -> Scores | None:
    """The scores of the study's newest screen; None where there is none."""
    number = store.noted("screen")
    tiles = store.screened(number) if number is not None else []
    if not tiles:
        return None
    design = store.screen_design(number)
    scored, moved = columns_from_json(design["columns"]), store.noted(_moved_by(number), ())
    return Scores.of_tiles(scored, tiles, design["probes"], store.noted("hidden", {}), moved)


def _moved_by(screen: int) -> str:
    return f"moved by screen {screen}"


def _ranks_of(screen: int | None) -> str:
    return f"bf16 of screen {screen}"


def _smallest_margins(measuring: Measuring) -> np.ndarray:
    """The images that are worth a probe of the decision: all, where that is not a margin between classes."""
    known = measuring.store.runner_up()
    if known is None or not known.gaps.shape[1] or measuring.setup.loss is not None:
        return measuring.order
    mine = np.isin(known.images, measuring.order)
    images, gaps = known.images[mine], known.gaps[mine, 0]
    nearest: np.ndarray = images[np.argsort(gaps, kind="stable")][: worth_probing(gaps)]
    return nearest


def worth_probing(gaps: np.ndarray) -> int:
    """How many images with these distances of their two largest scores (n,) get the probe of the decision."""
    least, most = (ceil(share * len(gaps)) for share in DECISION_SHARE)
    return min(max(int((gaps < log(DECISION_ODDS)).sum()), least), most)


def asked_for(store: Store, run: int, order: np.ndarray) -> np.ndarray:
    """The images that ``run`` is to be measured on: all of ``order``, or those drawn for it."""
    design = store.draw(run)
    if design is None:
        return order
    kept: np.ndarray = design.images[drawn_images(design.probabilities, design.seed)]
    return kept


def measure_plans(
    measuring: Measuring,
    plans: Mapping[int, Plan],
    go_on: Callable[[], bool] = lambda: True,
    everywhere: Container[int] = (),
    ranges: Mapping[int, Calibration] | None = None,
) -> None:
    """Measure ``plans`` (by run) on the images that they are asked for and lack, until ``go_on`` says no.

    Runs in ``everywhere`` on all images, whatever was drawn for them; runs in ``ranges`` with those ranges.
    """
    store, progress, order = measuring.store, measuring.progress, measuring.order
    costs = {run: cost_share(measuring.engine, plan) for run, plan in plans.items()}
    asked = {run: order if run in everywhere else asked_for(store, run, order) for run in plans}
    missing = {run: np.isin(order, asked[run]) & ~np.isin(order, store.images(run)) for run in plans}
    tasks = list(_exact_tasks(order, plans, missing, measuring.tile, ranges or {}))
    progress.start("layers", sum(costs[run] * int(mask.sum()) for run, mask in missing.items()))
    with _listening(measuring.worker, lambda run, images: progress.advance(costs[run] * images)):
        for done in measuring.pool.map(tasks):
            store.append(done.results)
            store.spend(_cost("exact", done))
            if measuring.worker is None:
                progress.advance(sum(costs[result.run] * len(result.images) for result in done.results))
            if not go_on():
                break


def _exact_tasks(
    order: np.ndarray,
    plans: Mapping[int, Plan],
    missing: Mapping[int, np.ndarray],
    tile: int,
    ranges: Mapping[int, Calibration],
) -> Iterator[ExactTask]:
    """Tiles of the images that any run lacks. Runs that lack all of a tile run on it whole."""
    wanted = np.logical_or.reduce(list(missing.values())) if missing else np.zeros(len(order), dtype=bool)
    for positions in pieces(np.flatnonzero(wanted), tile):
        mine = {run: np.flatnonzero(mask[positions]) for run, mask in missing.items()}
        yield ExactTask(
            order[positions],
            {run: plan for run, plan in plans.items() if len(mine[run])},
            {run: rows for run, rows in mine.items() if 0 < len(rows) < len(positions)},
            ranges,
        )


@contextmanager
def _listening(worker: Worker | None, advance: Callable[[int, int], None]) -> Iterator[None]:
    """While a task runs in this process, hear of each of its runs."""
    if worker is not None:
        worker.advance = advance
    try:
        yield
    finally:
        if worker is not None:
            worker.advance = None


def _cost(phase: str, done: Done) -> Cost:
    return Cost(phase, len(done.task.images), done.seconds, done.pace)


def pieces(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """``indices`` in pieces of ``size``."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def cost_share(engine: ExactEngine, plan: Plan) -> float:
    """What running a plan costs, in float passes: the share of values that are computed again, and of those
    that are put on a grid."""
    program, prepared = engine.program, engine.prepare(plan)
    sizes = {layer.output: int(np.prod(layer.output_shape)) for layer in program.network.layers}
    total = sum(sizes.values())
    again = sum(sizes.get(program.steps[index].writes, 0) for index in prepared.schedule)
    snapped = sum(
        sizes.get(program.steps[index].writes, 0) for index, q in prepared.quantizers.items() if q.output is not None
    )
    return (again + QUANTIZER_SHARE * snapped) / total
