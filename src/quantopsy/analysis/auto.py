"""``--mode auto``: screen everything, then run exactly what decides, until every verdict stands.

A verdict *stands* where measuring the cell on every image would not change it, as far as the screen can
tell and with the error that it has shown so far (:class:`quantopsy.analysis.prediction.ErrorModel`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantopsy.analysis.assessment import Assessment, assess, expectations
from quantopsy.analysis.budget import Budget, pass_seconds, passes_spent
from quantopsy.analysis.phases import Measuring, asked_for, cost_share, measure_plans
from quantopsy.analysis.significance import is_binary, sampling_probabilities
from quantopsy.core import Plan
from quantopsy.study import Draw, Store

CHECKS = 6
"""Cells that are run exactly though nothing is in doubt, drawn at random, as a check on the screen."""

_ROUND, _LEAST = 0.5, 8  # of the open cells at a time: what they teach closes others
_LOOKS = (0.2, 0.5)  # of the images, in the first looks at an open cell; then all
_GLANCE_SHARE, _GLANCE_LEAST = 0.125, 32  # images of what is plain: the worst cell and the whole network at low bits


@dataclass(frozen=True)
class Cells:
    """The runs of an analysis: single-layer plans with the bit-widths they stand for, and whole networks."""

    plans: Mapping[int, Plan]
    bits: Mapping[int, tuple[int, ...]]
    ladders: Sequence[Sequence[int]]  # a layer's runs, from its lowest bit-width up
    whole: Mapping[int, int]  # run by bit-width
    whole_plans: Mapping[int, Plan]


def measure_what_decides(
    measuring: Measuring, cells: Cells, budget: Budget, begin: float, *, level: float, tolerance: float
) -> None:
    """Rounds of exact runs, each chosen by what the ones before taught, until nothing is open or the budget is spent.

    First the worst of every bit-width and the whole networks (below the highest bit-width on few images,
    where much is lost), what the screen could not see, and a random few. Then open cells, those nearest to
    a verdict's border first, on images drawn by their risk and weighted back; those that are still open on
    more, and then on all images.
    """
    store, order = measuring.store, measuring.order
    plans = {**cells.plans, **cells.whole_plans}
    shares = {run: cost_share(measuring.engine, plan) for run, plan in plans.items()}
    expected = expectations(store, measuring.metric, cells.plans)
    deadline = None if budget.seconds is None else begin + budget.seconds

    def left() -> float:
        """Passes that may still be spent."""
        if budget.passes is not None:
            return budget.passes - passes_spent(store, len(order))
        unit = pass_seconds(store)
        return float("inf") if deadline is None or not unit else (deadline - time.perf_counter()) / (unit * len(order))

    def known() -> Assessment:
        return assess(store, measuring.metric, cells.plans, cells.ladders, expected, level=level, tolerance=tolerance)

    state = known()
    first = _first(state, cells, measuring.setup.seed)
    store.note("checks", list(first.checks))
    highest = {first.worst.get(max(cells.whole)), cells.whole[max(cells.whole)], *first.unseen, *first.checks}
    some = np.sort(order[: max(_GLANCE_LEAST, int(_GLANCE_SHARE * len(order)))])
    for run in (*first.worst.values(), *cells.whole.values()):
        if run not in highest and not len(store.images(run)):
            store.set_draw(run, Draw(some, np.ones(len(some))))
    wanted = (*cells.whole.values(), *first.worst.values(), *first.unseen, *first.checks)
    todo = [run for run in dict.fromkeys(wanted) if run not in state.measured]
    everywhere: frozenset[int] = frozenset()
    before: dict[int, Draw] = {}
    may_draw = measuring.metric.linear and is_binary(state.reference.statistics)
    while todo:
        measure_plans(measuring, {run: plans[run] for run in todo}, lambda: left() > 0, everywhere)
        if left() <= 0:
            for run, draw in before.items():
                if len(store.images(run)) < len(asked_for(store, run, order)):
                    store.set_draw(run, draw)  # what was drawn last is not all there: the draw before it is
            return
        state = known()
        open_cells = sorted((run for run in cells.plans if state.open(run)), key=lambda run: _from_border(state, run))
        todo = open_cells[: max(_LEAST, int(np.ceil(_ROUND * len(open_cells))))]
        looked = {
            run: _looked(store, run, len(order)) if may_draw and _has_outlook(state, run) else 1.0 for run in todo
        }
        share = next((share for share in _LOOKS if min(looked.values(), default=1.0) < share), 1.0)
        todo = _affordable([run for run in todo if looked[run] < share or share == 1.0], shares, left(), share)
        everywhere = frozenset(todo if share == 1.0 else ())
        drawn = {run: store.draw(run) for run in todo if share < 1.0}
        before = {run: draw for run, draw in drawn.items() if draw is not None}
        if todo and share < 1.0:
            _draw_together(state, todo, store, share, measuring.setup.seed)


def _looked(store: Store, run: int, images: int) -> float:
    """The share of the images that ``run`` was drawn or measured on."""
    design = store.draw(run)
    if design is not None and design.by_chance and len(design.images) == images:
        return round(float(design.probabilities.sum()) / images, 3)  # sums of floats miss what they add up to
    # What was measured on a few plain images can only be measured on all.
    return 1.0 if len(store.images(run)) else 0.0


def _has_outlook(state: Assessment, run: int) -> bool:
    return run in state.expected and bool(np.isfinite(state.expected[run].outlook.flips).all())


def _draw_together(state: Assessment, runs: Sequence[int], store: Store, share: float, seed: int) -> None:
    """One draw of images for all ``runs``, by their mean risk: images of small margin are at risk in all of them,
    and what runs on the same images shares the float network's values. What was drawn before is among them."""
    images = state.reference.images
    risk = np.mean([state.expected[run].outlook.flips for run in runs], axis=0)
    probabilities = sampling_probabilities(risk, max(_LEAST, share * len(images)))
    for run in runs:
        before = store.draw(run)
        if before is None or not np.array_equal(before.images, images):
            store.set_draw(run, Draw(images, probabilities, seed + len(state.measured)))
        else:
            store.set_draw(run, Draw(images, np.maximum(probabilities, before.probabilities), before.seed))


def _affordable(runs: Sequence[int], shares: Mapping[int, float], left: float, share: float) -> list[int]:
    """As many of ``runs``, in order, as ``left`` passes allow on a ``share`` of the images."""
    spent, kept = share, []
    for run in runs:
        spent += share * shares[run]
        if spent > left:
            break
        kept.append(run)
    return kept


@dataclass(frozen=True)
class _First:
    """What is run exactly in any case."""

    worst: Mapping[int, int]  # by bit-width
    unseen: Sequence[int]  # where no gradient tells anything
    checks: Sequence[int]  # drawn at random


def _first(state: Assessment, cells: Cells, seed: int) -> _First:
    unseen = [run for run in cells.plans if run not in state.expected or not state.expected[run].noise > 0.0]
    worst = {}
    for bits in cells.whole:
        mine = [run for run in state.expected if bits in cells.bits[run] and run not in unseen]
        if mine:
            worst[bits] = max(mine, key=lambda run: _severity(state, run))
    others = [run for run in cells.plans if run not in (*worst.values(), *unseen)]
    drawn = np.random.default_rng(seed).permutation(len(others))[:CHECKS]
    return _First(worst, unseen, [others[index] for index in sorted(drawn)])


def _severity(state: Assessment, run: int) -> tuple[float, float]:
    found = state.expected[run]
    return float(np.nan_to_num(found.outlook.lost)), found.noise


def _from_border(state: Assessment, run: int) -> float:
    """How far a cell's expected loss is from where its verdict would change: near ones teach most about it."""
    found = state.expected.get(run)
    if found is None or np.isnan(state.predicted[run].value):
        return -found.noise if found is not None else -np.inf  # no metric to go by: the noisiest first
    low, high = state.predicted[run].low, state.predicted[run].high
    # The range of what is expected is wide in logarithms around its middle: a border near one end is far.
    border = state.smallest_certain_loss
    return abs(float(np.log(max(low + high, 1e-9) / (2 * border))))
