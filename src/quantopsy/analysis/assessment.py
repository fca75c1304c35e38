"""All that a study knows of its cells, measured or expected, with a verdict on each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.phases import asked_for, scores_of
from quantopsy.analysis.prediction import (
    Baseline,
    ErrorModel,
    Outlook,
    Seen,
    outlook,
    predicted_interval,
    standing_verdict,
)
from quantopsy.analysis.screening import is_linear
from quantopsy.analysis.significance import Interval, Verdict, is_binary
from quantopsy.analysis.verdicts import Measured, measured
from quantopsy.core import Plan, QuantopsyError
from quantopsy.metrics import Metric, PerImageScore
from quantopsy.study import FLOAT, RunResult, Store


@dataclass(frozen=True)
class Expected:
    """What the screen says of a plan on the images it was screened on; nothing that is run exactly changes it."""

    noise: float
    noise_stderr: float
    signal: float
    linear: bool  # whether a first-order prediction is to be believed
    outlook: Outlook
    loss_change: float  # of a user's loss, the mean over images; NaN without one

    @property
    def images(self) -> int:
        """How many were screened."""
        return len(self.outlook.flips)

    @property
    def agreement(self) -> float:
        """Expected share of unchanged decisions."""
        return float(1.0 - self.outlook.flips.mean())


@dataclass(frozen=True)
class Implied:
    """A verdict that follows from that of the same layer at another bit-width, which is that ``run``."""

    verdict: Verdict
    run: int


@dataclass(frozen=True)
class Assessment:
    """Every run of a study: what was measured of it, what the screen expects, and what follows from both.

    ``predicted``: the degradation that measuring the screened images would give, between its ends, either at
    95 %; NaN where the metric is a score that decisions do not tell. ``standing``: verdicts that the screen
    expects and measuring could not change.
    """

    reference: RunResult  # the float network on all images asked for
    measured: Mapping[int, Measured]
    expected: Mapping[int, Expected]
    predicted: Mapping[int, Interval]
    standing: Mapping[int, Verdict]
    implied: Mapping[int, Implied]  # by what was found of the same layer at other bit-widths
    smallest_certain_loss: float  # of the metric, where it cannot be chance among all cells
    error: ErrorModel  # how far what was measured is from what was expected
    level: float  # of intervals; verdicts are corrected for the number of cells
    tolerance: float  # loss that a harmless cell may have, in the metric's unit
    results: Mapping[int, RunResult] = field(repr=False, default_factory=dict)

    def verdict(self, run: int) -> Verdict:
        """Of what was measured, else what is expected to stand or follows from other bit-widths, else undecided."""
        if run in self.measured and self.measured[run].settled:
            return self.measured[run].verdict
        if run not in self.measured and run in self.standing:
            return self.standing[run]
        return self.implied[run].verdict if run in self.implied else "undecided"

    def found_by(self, run: int) -> int:
        """The run that the verdict of ``run`` is of: another where it is implied."""
        own = self.measured[run].settled if run in self.measured else run in self.standing
        return run if own or run not in self.implied else self.implied[run].run

    def open(self, run: int) -> bool:
        """Whether measuring more could change the verdict."""
        if run in self.measured:
            return not self.measured[run].settled and run not in self.implied
        return run not in self.standing and run not in self.implied


def expectations(store: Store, metric: Metric, plans: Mapping[int, Plan]) -> dict[int, Expected]:
    """What the study's newest screen says of ``plans`` (by run), as far as it scored all their sites.

    Once for a screen: reading its scores and working out their outlooks is what takes long. Raises
    ValueError where the float network has not been measured.
    """
    reference, scores, runner_up = _reference(store), scores_of(store), store.runner_up()
    if scores is None or runner_up is None:
        return {}
    scores = scores.on(reference.images)
    baseline = Baseline.of(reference, runner_up, scores.images)
    signal = float(reference.on(scores.images).energy.mean())
    found = {}
    for run, plan in plans.items():
        if not scores.covers(plan):
            continue
        noise, stderr = scores.predicted(plan)
        change = scores.change(plan)
        found[run] = Expected(
            noise=noise,
            noise_stderr=stderr,
            signal=signal,
            linear=is_linear(noise, signal, scores.most_moved(plan)),
            outlook=outlook(scores, change, baseline, metric),
            loss_change=float(change.mean()) if scores.kind == "loss" else float("nan"),
        )
    return found


def assess_study(store: Store, metric: Metric) -> Assessment:
    """The assessment of every cell and whole network that a study notes, with the settings it was made with."""
    settings, noted = store.noted("settings", {}), store.noted("cells", [])
    plans = {entry["run"]: store.plan(entry["run"]) for entry in (*noted, *store.noted("whole", []))}
    level, tolerance = settings.get("level", 0.95), settings.get("tolerance")
    if tolerance is None:
        tolerance = tolerance_of(metric, metric.value(_reference(store).statistics))
    expected = expectations(store, metric, plans)
    return assess(store, metric, plans, ladders_of(noted), expected, level=level, tolerance=tolerance)


def assess(
    store: Store,
    metric: Metric,
    plans: Mapping[int, Plan],
    ladders: Sequence[Sequence[int]],
    expected: Mapping[int, Expected],
    *,
    level: float,
    tolerance: float,
) -> Assessment:
    """The assessment of ``plans`` (by run), of which the screen expects what :func:`expectations` gave.

    ``ladders`` are the runs of each layer from its lowest bit-width up: the cells that are looked at
    together. What hurts at a bit-width is taken to hurt at every lower one, and what was measured and does
    not, not at any higher one. Raises ValueError where the float network has not been measured.
    """
    cells = max(1, len({run for ladder in ladders for run in ladder}))
    reference = _reference(store)
    results = {run: done for run in plans if (done := _finished(store, run, reference.images)) is not None}
    certain = _smallest_certain_loss(len(reference.images), significance.corrected_level(level, cells)) * metric.scale
    known = {
        run: measured(metric, reference, done, level=level, cells=cells, tolerance=tolerance, draw=store.draw(run))
        for run, done in results.items()
    }
    screened = max((found.images for found in expected.values()), default=0)  # the same number for all
    everywhere = screened == len(reference.images)
    seen = {
        run: _seen(metric, reference, results[run])
        for run, found in expected.items()
        if everywhere and run in results and np.isfinite(found.outlook.lost)
    }
    told = np.array(
        [
            (expected[run].outlook.lost, expected[run].outlook.losing[some.images].sum(), some.lost)
            for run, some in seen.items()
        ]
    ).reshape(-1, 3)
    error = ErrorModel.fit(screened, *told.T)
    told_by_decisions = _told_by_decisions(metric, reference)
    predicted = {
        run: predicted_interval(found.outlook, error, metric, screened)
        if told_by_decisions
        else Interval(np.nan, np.nan, np.nan)
        for run, found in expected.items()
    }
    standing: dict[int, Verdict] = {}
    if metric.linear and is_binary(reference.statistics):
        judge = partial(
            standing_verdict,
            error=error,
            metric=metric,
            images=screened,
            level=level,
            cells=cells,
            tolerance=tolerance,
        )
        for run, some in seen.items():
            if not known[run].settled and (verdict := judge(expected[run].outlook, seen=some)) is not None:
                known[run] = replace(known[run], verdicts=frozenset([verdict]))
        for run, found in expected.items():
            if found.noise > 0.0 and (verdict := judge(found.outlook)) is not None:
                standing[run] = verdict
    implied = _implied(ladders, known, standing)
    return Assessment(
        reference, known, expected, predicted, standing, implied, certain, error, level, tolerance, results
    )


def ladders_of(cells: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    """The runs of each layer from its lowest bit-width up; ``cells`` have ``layer``, ``bits`` and ``run``."""
    found: dict[int, list[int]] = {}
    for cell in sorted(cells, key=lambda cell: cell["bits"]):
        found.setdefault(cell["layer"], []).append(cell["run"])
    return list(found.values())


def images_asked_for(store: Store) -> np.ndarray:
    """The images last asked for, ascending."""
    return np.sort(np.asarray(store.noted("order", []), dtype=np.int64))


def _reference(store: Store) -> RunResult:
    """The float network on the images last asked for; raises where an analysis was stopped before it."""
    found = within(store.result(FLOAT), images_asked_for(store))
    if found is None:
        raise QuantopsyError(
            f"study {str(store.path.parent)!r}",
            "float was not measured",
            "run the same `quantopsy analyze` again: it goes on",
        )
    return found


def _told_by_decisions(metric: Metric, reference: RunResult) -> bool:
    """Whether what is lost can be told from decisions that change: a score of the user's own moves without any."""
    return not isinstance(metric, PerImageScore) or is_binary(reference.statistics)


def _seen(metric: Metric, reference: RunResult, result: RunResult) -> Seen:
    """What the images that ``result`` has lost and gained of a linear metric's statistic."""
    change = metric.sign * (reference.on(result.images).statistics - result.statistics)[:, 0]
    return Seen(
        np.isin(reference.images, result.images),
        float(np.maximum(change, 0.0).sum()),
        float(np.maximum(-change, 0.0).sum()),
    )


def _implied(
    ladders: Sequence[Sequence[int]], known: Mapping[int, Measured], standing: Mapping[int, Verdict]
) -> dict[int, Implied]:
    found: dict[int, Implied] = {}
    for ladder in ladders:
        for place, run in enumerate(ladder):
            own = known[run].verdict if run in known and known[run].settled else None
            if own is None and run not in known:
                own = standing.get(run)
            if own == "hurts":
                found.update(dict.fromkeys(ladder[:place], Implied("hurts", run)))
            elif own is not None and run in known:
                found.update({higher: Implied(own, run) for higher in ladder[place + 1 :] if higher != run})
    return found


def _finished(store: Store, run: int, images: np.ndarray) -> RunResult | None:
    """What ``run`` gave; None while images that were drawn for it by risk are lacking: weights are of them all."""
    found = within(store.result(run), images)
    design = store.draw(run)
    if found is None or design is None or not design.by_chance or len(found.images) == len(images):
        return found
    asked = asked_for(store, run, images)
    drawn = np.intersect1d(asked, found.images)
    return found.on(drawn) if len(drawn) == len(asked) else None


def _smallest_certain_loss(images: int, level: float) -> float:
    """Share of ``images`` that must be lost, none being gained, for the interval to exclude chance."""
    low, high = 1, images
    while low < high:
        middle = (low + high) // 2
        certain = significance.paired_proportions(middle, 0, images, level).low > 0.0
        low, high = (low, middle) if certain else (middle + 1, high)
    return low / images


def within(result: RunResult | None, wanted: np.ndarray) -> RunResult | None:
    """The part of ``result`` on ``wanted`` images; None where there is none."""
    if result is None:
        return None
    common = np.intersect1d(result.images, wanted)
    return result.on(common) if len(common) else None


def tolerance_of(metric: Metric, float_value: float) -> float:
    """The loss that is accepted where the user names none: 1 point, or 1 % of the float network's value."""
    return 1.0 if metric.unit == "points" else 0.01 * abs(float_value)
