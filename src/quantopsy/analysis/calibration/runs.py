"""The whole network quantized with the ranges of some of the images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.budget import pass_seconds
from quantopsy.analysis.calibration.examination import Seen
from quantopsy.analysis.calibration.result import Outcome
from quantopsy.analysis.phases import Measuring, cost_share, measure_plans
from quantopsy.core import Plan
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.image_statistics import ImageStatistics
from quantopsy.study import FLOAT, RunResult, Store

Source = Literal["calibration", "evaluation"]


class Runs:
    """The whole network with the ranges of any calibration or evaluation images; each is run once."""

    def __init__(self, running: Measuring, plan: Plan, seen: Seen, level: float) -> None:
        self._running, self._plan, self._level = running, plan, level
        self.statistics: dict[Source, ImageStatistics] = {"calibration": seen.mine, "evaluation": seen.theirs}
        self._calibrations: dict[tuple[Source, bytes], Calibration] = {}

    @property
    def store(self) -> Store:
        """Where results are kept."""
        return self._running.store

    def calibration(self, source: Source, rows: np.ndarray) -> Calibration:
        """The ranges of the images ``rows`` of a set; the same object for the same rows."""
        key = source, rows.tobytes()
        if key not in self._calibrations:
            self._calibrations[key] = self.statistics[source].calibration(rows)
        return self._calibrations[key]

    def ranges(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """(V, 2): the ends of the grids."""
        return self.statistics[source].ranges(self.calibration(source, rows))

    def measure(self, wanted: Sequence[tuple[Source, np.ndarray]]) -> None:
        """Run what has not been run, together: each tile's float pass is shared."""
        plans, ranges = {}, {}
        for source, rows in wanted:
            run = self._run(source, rows)
            plans[run] = self._plan
            ranges[run] = self.calibration(source, rows)
        measure_plans(self._running, plans, ranges=ranges)

    def result(self, source: Source, rows: np.ndarray) -> RunResult:
        """What :meth:`measure` found."""
        result = self.store.result(self._run(source, rows))
        assert result is not None
        return result.on(np.sort(self._running.order))

    def float_result(self) -> RunResult:
        """The float network."""
        result = self.store.result(FLOAT)
        assert result is not None
        return result.on(np.sort(self._running.order))

    def outcome(self, source: Source, rows: np.ndarray, reference: RunResult) -> Outcome:
        """What was found, the loss against ``reference``."""
        result = self.result(source, rows)
        return Outcome(
            images=len(rows),
            value=self._running.metric.value(result.statistics),
            noise=float(result.energy.mean()),
            loss=self.loss(reference, result),
        )

    def loss(self, better: RunResult, worse: RunResult) -> significance.Interval:
        """By how much the metric of one is worse than that of another."""
        metric = self._running.metric
        return significance.degradation(metric, better.statistics, worse.statistics, level=self._level)

    def has_run(self, source: Source, rows: np.ndarray) -> bool:
        """Whether :meth:`measure` has run it on every image."""
        return len(self.store.images(self._run(source, rows))) >= len(self._running.order)

    def seconds_each(self) -> float:
        """What one takes, about, with its share of the float passes."""
        unit = pass_seconds(self.store) or float("nan")
        return unit * len(self._running.order) * (cost_share(self._running.engine, self._plan) + 0.2)

    def _run(self, source: Source, rows: np.ndarray) -> int:
        images = self.statistics[source].images[rows]
        return self.store.run(self._plan, f"{source} {hashlib.sha256(np.sort(images).tobytes()).hexdigest()[:32]}")
