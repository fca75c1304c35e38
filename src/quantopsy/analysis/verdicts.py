"""What can be said of a plan from what has been measured of it, on all images or on drawn ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.significance import Interval, Verdict
from quantopsy.metrics import Metric
from quantopsy.study import Draw, RunResult


@dataclass(frozen=True)
class Measured:
    """A plan's figures over n images, from those it was measured on.

    ``degradation`` has the interval at the level asked for. ``verdicts`` are those that all n images could
    give at the level of many cells: one where all were measured, and where what was drawn leaves no doubt.
    """

    noise: float
    noise_stderr: float
    signal: float
    value: float
    degradation: Interval
    verdicts: frozenset[Verdict]
    agreement: float
    samples: int

    @property
    def verdict(self) -> Verdict:
        """Hurts, harmless, or undecided, among all cells that were looked at."""
        return next(iter(self.verdicts)) if self.settled else "undecided"

    @property
    def settled(self) -> bool:
        """Whether more of the n images could not change the verdict."""
        return len(self.verdicts) == 1


def measured(
    metric: Metric,
    reference: RunResult,
    result: RunResult,
    *,
    level: float,
    cells: int,
    tolerance: float,
    draw: Draw | None = None,
) -> Measured:
    """The figures of ``result`` against the float network's ``reference``, which holds all its images.

    With a ``draw`` whose images are not all there, every image stands for 1 / probability of them; its
    scores must be 0 or 1.
    """
    on = reference.on(result.images)
    corrected = significance.corrected_level(level, cells)
    if draw is not None and draw.by_chance and len(result.images) < len(draw.images):
        return _from_draw(metric, reference, result, draw, level, corrected, tolerance)
    noise, stderr = significance.mean_stderr(result.energy)
    strict = significance.degradation(metric, on.statistics, result.statistics, level=corrected)
    verdict = significance.verdict(strict, tolerance)
    all_images = len(result.images) == len(reference.images)
    return Measured(
        noise=noise,
        noise_stderr=stderr,
        signal=float(on.energy.mean()),
        value=metric.value(result.statistics),
        degradation=significance.degradation(metric, on.statistics, result.statistics, level=level),
        # Fewer images than there are may leave open what all of them would decide.
        verdicts=frozenset([verdict]) if all_images or verdict != "undecided" else frozenset(get_args(Verdict)),
        agreement=float(result.agreement.mean()),
        samples=len(result.images),
    )


def _from_draw(
    metric: Metric,
    reference: RunResult,
    result: RunResult,
    draw: Draw,
    level: float,
    corrected: float,
    tolerance: float,
) -> Measured:
    n = len(draw.images)
    rows = np.searchsorted(draw.images, result.images)
    p = draw.probabilities[rows]
    on = reference.on(result.images)
    sign = metric.sign * metric.scale
    difference = sign * (on.statistics - result.statistics)[:, 0]
    whole = reference.on(draw.images)
    # The ratio estimator: with few images drawn the sum of weights is itself off by more than the mean.
    weights = 1.0 / p
    noise = float(np.average(result.energy, weights=weights))
    spread = np.square(weights * (result.energy - noise)).sum()

    drawn = significance.importance_weighted(difference, rows, draw.probabilities, level)
    # Either end on its own: what matters is on which side of a border all images would be.
    ends = significance.importance_weighted(difference, rows, draw.probabilities, 2 * level - 1)
    scale = abs(metric.scale)
    gained = round(float((np.maximum(-difference, 0.0) * weights).sum() / scale))

    def of_all(net: float, at: float) -> Interval:
        """What all n images would say, did they lose ``net`` more than they gain."""
        lost = min(max(0, round(net * n / scale) + gained), n)
        return significance.paired_proportions(lost, min(gained, n - lost), n, at).scaled(scale)

    # Had every image been measured they would still be a sample: that width comes on top, by squares.
    middle = of_all(drawn.value, level)
    degradation = Interval(
        drawn.value,
        drawn.value - float(np.hypot(drawn.value - drawn.low, middle.value - middle.low)),
        drawn.value + float(np.hypot(drawn.high - drawn.value, middle.high - middle.value)),
        level,
    )
    float_value = metric.value(whole.statistics)
    return Measured(
        noise=noise,
        noise_stderr=float(np.sqrt(spread) / weights.sum()),
        signal=float(whole.energy.mean()),
        value=float_value - metric.sign * degradation.value,
        degradation=degradation,
        verdicts=frozenset(
            significance.verdict(of_all(net, corrected), tolerance) for net in (ends.low, ends.value, ends.high)
        ),
        agreement=float(np.average(result.agreement, weights=weights)),
        samples=len(result.images),
    )
