"""Random subsets of layers at a low bit-width: their plans, and what a study holds of them.

n images, R resamples of them, L layers, m subsets. Values (1 + R, ...) hold the estimate itself in row 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from quantopsy.analysis import significance
from quantopsy.analysis.additivity import (
    ADDITIVITY_COLUMNS,
    Additivity,
    Interaction,
    geometric_ratio,
    percentile_interval,
    relation,
    typical_factor,
)
from quantopsy.analysis.phases import asked_for, scores_of
from quantopsy.analysis.prediction import Baseline, outlook
from quantopsy.analysis.schemes import at_bits, single_layer
from quantopsy.analysis.screening import Scores
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan
from quantopsy.graph.network import Layer
from quantopsy.metrics import Metric
from quantopsy.study import FLOAT, RunResult, Store

RESAMPLES = 1000

_CHUNK = 4_000_000  # weights of so many resamples and images are in memory at a time

Values = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Subset:
    """Layers at the low bit-width, by their position, all others at the high one; ``run`` measures that network."""

    layers: tuple[int, ...]
    run: int


@dataclass(frozen=True)
class Design:
    """What an additivity experiment asked for, as the study notes it.

    ``cells``: of every layer the runs of its single-layer plans at the low and at the high bit-width.
    """

    low: int
    high: int
    samples: int | None  # the first so many images of the study, or all
    seed: int
    subsets: tuple[Subset, ...]
    cells: Mapping[int, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """What a study can note."""
        return {
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
            "seed": self.seed,
            "subsets": [[list(subset.layers), subset.run] for subset in self.subsets],
            "cells": [[layer, *runs] for layer, runs in self.cells.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Design:
        """The inverse of :meth:`to_json`."""
        return cls(
            data["low"],
            data["high"],
            data["samples"],
            data["seed"],
            tuple(Subset(tuple(layers), run) for layers, run in data["subsets"]),
            {layer: (low, high) for layer, low, high in data["cells"]},
        )


def drawn_subsets(layers: Sequence[int], count: int, seed: int) -> list[tuple[int, ...]]:
    """At most ``count`` different random subsets of ``layers``, their sizes spread evenly from one layer to all."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(1, len(layers), count).round().astype(int)
    drawn = [tuple(sorted(int(layer) for layer in rng.choice(layers, size, replace=False))) for size in sizes]
    return list(dict.fromkeys(drawn))


def mixed(full: Plan, layers: frozenset[str], low: int, high: int) -> Plan:
    """``full`` with the weights of ``layers`` at ``low`` bits, all others at ``high``."""
    coarse, fine = at_bits(full, low), at_bits(full, high)
    return Plan(
        tuple(
            (site, spec if site.layer in layers else other)
            for (site, spec), (_, other) in zip(coarse.sites, fine.sites, strict=True)
        )
    )


def design(
    store: Store,
    full: Plan,
    layers: Sequence[Layer],
    *,
    low: int,
    high: int,
    subsets: int,
    samples: int | None,
    seed: int,
) -> Design:
    """The experiment on a network of ``layers`` that ``full`` quantizes, its runs made in the study."""
    names = {layer.index: layer.name for layer in layers}
    drawn = drawn_subsets([layer.index for layer in layers if layer.weight is not None], subsets, seed)
    cells = {}
    for layer in layers:
        plans = [single_layer(at_bits(full, bits), layer) for bits in (low, high)]
        if all(plans):
            cells[layer.index] = (store.run(plans[0]), store.run(plans[1]))
    made = tuple(
        Subset(chosen, store.run(mixed(full, frozenset(names[index] for index in chosen), low, high)))
        for chosen in drawn
    )
    return Design(low, high, samples, seed, made, cells)


@dataclass(frozen=True)
class Contribution:
    """What a study knows of one run on n images.

    ``noise`` (n,): of every image. ``loss``: the metric's degradation (R,) under weights (R, n) of the images.
    ``screened``: both are predicted, not run.
    """

    noise: np.ndarray
    loss: Callable[[np.ndarray], np.ndarray]
    screened: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a study holds of any plan on ``images`` (ascending): measured there, else drawn by risk, else screened."""

    store: Store
    metric: Metric
    images: np.ndarray

    @cached_property
    def reference(self) -> RunResult:
        """The float network."""
        return self._result(FLOAT)

    @property
    def signal(self) -> float:
        """Mean squared norm of the float network's output."""
        return float(self.reference.energy.mean())

    @property
    def most(self) -> float:
        """The most that the metric can lose: all of it."""
        return self.metric.value(self.reference.statistics) if self.metric.higher_is_better else float("inf")

    @cached_property
    def scores(self) -> Scores | None:
        """The newest screen on these images; None where it has not seen them all."""
        found = scores_of(self.store)
        if found is None or not np.isin(self.images, found.images).all():
            return None
        return found.on(self.images)

    def of(self, run: int) -> Contribution | None:
        """What is known of ``run``; None where it is neither measured nor screened."""
        result = self.store.result(run)
        if result is not None and np.isin(self.images, result.images).all():
            return self.measured(run)
        return self._drawn(run, result) or self._screened(self.store.plan(run))

    def measured(self, run: int) -> Contribution:
        """What was measured of ``run``, on all images."""
        result = self._result(run)

        def loss(weights: np.ndarray) -> np.ndarray:
            before = self.metric.values(self.reference.statistics, weights)
            return self.metric.sign * (before - self.metric.values(result.statistics, weights))

        return Contribution(result.energy, loss)

    def degradation(self, run: int, level: float) -> Interval:
        """The degradation of ``run``, measured on all images."""
        return significance.degradation(
            self.metric, self.reference.statistics, self._result(run).statistics, level=level
        )

    def predicted(self, plan: Plan) -> tuple[float, float, float]:
        """Noise with its standard error, and degradation, of ``plan`` by the screen with all cross terms; or NaN."""
        if self.scores is None or not self.scores.covers(plan):
            return (float("nan"),) * 3
        return (*self.scores.predicted(plan), self._predicted_loss(plan))

    def _drawn(self, run: int, result: RunResult | None) -> Contribution | None:
        """Every drawn image stands for 1 / probability of them (Horvitz and Thompson)."""
        draw = self.store.draw(run)
        if result is None or draw is None or not draw.by_chance or not self.metric.linear:
            return None
        asked = asked_for(self.store, run, self.images)
        if not np.isin(asked, result.images).all() or not np.isin(self.images, draw.images).all():
            return None
        found = result.on(np.intersect1d(asked, self.images))
        at = np.searchsorted(self.images, found.images)
        weight = 1.0 / draw.probabilities[np.searchsorted(draw.images, found.images)]
        noise, lost = np.zeros(len(self.images)), np.zeros(len(self.images))
        noise[at] = weight * found.energy
        lost[at] = weight * (self.reference.statistics[at] - found.statistics)[:, 0]
        scale = self.metric.sign * self.metric.scale
        return Contribution(noise, lambda weights: scale * (weights @ lost) / weights.sum(1))

    def _screened(self, plan: Plan) -> Contribution | None:
        if self.scores is None or not self.scores.covers(plan):
            return None
        noise, lost = self.scores.per_image(plan), self._predicted_loss(plan)
        if not np.isfinite(noise).all():
            return None
        return Contribution(noise, lambda weights: np.full(len(weights), lost), screened=True)

    def _predicted_loss(self, plan: Plan) -> float:
        if self.scores is None or self._baseline is None:
            return float("nan")
        expected = outlook(self.scores, self.scores.change(plan), self._baseline, self.metric).value
        return float(self.metric.sign * (self.metric.value(self.reference.statistics) - expected))

    @cached_property
    def _baseline(self) -> Baseline | None:
        runner_up = self.store.runner_up()
        return None if runner_up is None else Baseline.of(self.reference, runner_up, self.images)

    def _result(self, run: int) -> RunResult:
        found = self.store.result(run)
        assert found is not None
        return found.on(self.images)


def additivity_of(store: Store, metric: Metric, *, level: float, tolerance: float) -> Additivity | None:
    """What the study holds of its additivity experiment; None where there is none, or nothing of it has been run.

    All values are of the images that every subset was measured on, within the samples last asked for.
    """
    noted = store.noted("additivity")
    if noted is None:
        return None
    asked = Design.from_json(noted)
    wanted = np.asarray(store.noted("order", [])[: asked.samples], dtype=np.int64)
    images = np.sort(wanted)
    for run in (FLOAT, *(subset.run for subset in asked.subsets)):
        images = np.intersect1d(images, store.images(run))
    if not len(images):
        return None
    known = Evidence(store, metric, images)
    found = {run: known.of(run) for runs in asked.cells.values() for run in runs}
    contributions = {run: contribution for run, contribution in found.items() if contribution is not None}
    cells = [_summed(asked, subset) for subset in asked.subsets]
    kept = [index for index, parts in enumerate(cells) if all(run in contributions for run in parts)]
    if not kept:
        return None
    subsets = [asked.subsets[index] for index in kept]
    single = _values(list(contributions.values()), len(images))
    columns = {run: column for column, run in enumerate(contributions)}
    expected = tuple(
        np.stack([values[:, [columns[run] for run in cells[index]]].sum(1) for index in kept], 1) for values in single
    )
    measured = _values([known.measured(subset.run) for subset in subsets], len(images))
    plans = [store.plan(subset.run) for subset in subsets]
    predicted = np.array([known.predicted(plan) for plan in plans])
    screened = [sum(contributions[run].screened for run in cells[index]) for index in kept]
    below = expected[0][0] < known.signal
    some = below if below.any() else np.ones(len(kept), dtype=bool)
    noise = relation(expected[0], measured[0], level=level)
    assert noise is not None
    degradation = relation(expected[1], measured[1], tolerance=tolerance, most=known.most, level=level)
    intervals = [known.degradation(subset.run, level) for subset in subsets]
    table = _table(subsets, screened, expected, measured, intervals, predicted, level).assign(
        below_signal=below,
        noise_holds=noise.holds,
        degradation_holds=False if degradation is None else degradation.holds,
    )
    largest = max(range(len(kept)), key=lambda place: len(subsets[place].layers))
    return Additivity(
        low_bits=asked.low,
        high_bits=asked.high,
        samples=len(images),
        wanted=len(wanted),
        signal=known.signal,
        table=table[list(ADDITIVITY_COLUMNS)],
        noise=noise,
        degradation=degradation,
        noise_ratio=geometric_ratio(measured[0][:, some], expected[0][:, some], level=level),
        sum_error=typical_factor(measured[0][0, some], expected[0][0, some]),
        screen_error=typical_factor(measured[0][0, some], predicted[some, 0]),
        interaction=interaction(known.scores, plans[largest], level=level),
    )


def interaction(scores: Scores | None, plan: Plan, *, level: float) -> Interaction | None:
    """How much the layers of ``plan`` reinforce each other, by the screen; None where it does not cover them."""
    if scores is None or not scores.covers(plan):
        return None
    parts = scores.by_layer(plan)
    e = np.stack(list(parts.values()))  # (L, n, R)
    together, alone = np.square(e.sum(0)).mean(1), np.square(e).mean(2).sum(0)
    if not (np.isfinite(together).all() and alone.sum() > 0):
        return None
    ratios = np.concatenate([(weights @ together) / (weights @ alone) for weights in _weightings(len(together))])
    factor = percentile_interval(ratios, level)
    if len(parts) < 2:
        return Interaction(factor)
    flat = e.reshape(len(e), -1)
    cross = flat @ flat.T / flat.shape[1]
    spread = np.sqrt(np.maximum(np.square(flat) @ np.square(flat).T / flat.shape[1] - cross**2, 0) / flat.shape[1])
    pairs = np.triu_indices(len(e), 1)
    reach = norm.isf((1.0 - significance.corrected_level(level, len(pairs[0]))) / 2.0)
    certain = cross[pairs] > reach * spread[pairs]
    if not certain.any():
        return Interaction(factor)
    best = int(np.where(certain, cross[pairs], -np.inf).argmax())
    names = list(parts)
    first, second = (names[pair[best]] for pair in pairs)
    return Interaction(factor, first, second, float(2 * cross[pairs][best] / together.mean()))


def _summed(asked: Design, subset: Subset) -> list[int]:
    """The runs of all single layers at the bits that they have in ``subset``."""
    low = set(subset.layers)
    return [coarse if layer in low else fine for layer, (coarse, fine) in asked.cells.items()]


def _weightings(n: int) -> Iterator[np.ndarray]:
    """Every image once, then how often each is drawn in :data:`RESAMPLES` resamples: rows (n,)."""
    yield np.ones((1, n))
    rows = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, rows):
        yield significance.bootstrap_counts(n, min(rows, RESAMPLES - start), start)


def _values(contributions: Sequence[Contribution], n: int) -> Values:
    """Noise and degradation (1 + R, runs), on every image once and on resamples of them."""
    energy = np.stack([found.noise for found in contributions], 1)
    noise, loss = [], []
    for weights in _weightings(n):
        noise.append(weights @ energy / n)
        loss.append(np.stack([found.loss(weights) for found in contributions], 1))
    return np.concatenate(noise), np.concatenate(loss)


def _table(
    subsets: Sequence[Subset],
    screened: Sequence[int],
    expected: Sequence[np.ndarray],
    measured: Sequence[np.ndarray],
    intervals: Sequence[Interval],
    predicted: np.ndarray,
    level: float,
) -> pd.DataFrame:
    low, high = np.nanquantile(expected[1][1:], [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    return pd.DataFrame(
        {
            "layers": [subset.layers for subset in subsets],
            "low_layers": [len(subset.layers) for subset in subsets],
            "screened": screened,
            "noise_expected": expected[0][0],
            "noise_expected_stderr": expected[0][1:].std(0, ddof=1),
            "noise_measured": measured[0][0],
            "noise_measured_stderr": measured[0][1:].std(0, ddof=1),
            "noise_predicted": predicted[:, 0],
            "noise_predicted_stderr": predicted[:, 1],
            "degradation_expected": expected[1][0],
            "degradation_expected_low": low,
            "degradation_expected_high": high,
            "degradation_measured": [interval.value for interval in intervals],
            "degradation_measured_low": [interval.low for interval in intervals],
            "degradation_measured_high": [interval.high for interval in intervals],
            "degradation_predicted": predicted[:, 2],
        }
    )
