"""The study of a calibration set: what its images do to the ranges, and what that does to the network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import tolerance_of
from quantopsy.analysis.budget import Budget
from quantopsy.analysis.calibration.examination import Examination, Seen, examine
from quantopsy.analysis.calibration.growth import beyond, coverage, default_sizes, needed, next_size, subset
from quantopsy.analysis.calibration.result import (
    GROWTH_COLUMNS,
    TWICE,
    CalibrationStudy,
    Outcome,
    Selection,
    Verdict,
)
from quantopsy.analysis.calibration.runs import Runs, Source
from quantopsy.analysis.calibration.selection import by_extremes, by_moments
from quantopsy.analysis.phases import measure_float, pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.schemes import at_bits
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.significance import Interval
from quantopsy.analysis.subject import Given, Subject, make_ready, measuring, provenance
from quantopsy.core import Plan, QuantopsyError
from quantopsy.data import Images, evenly_spaced_order, open_data, prefetch
from quantopsy.engine.calibration import Calibration, wanted_statistics
from quantopsy.engine.image_statistics import ImageStatistics, image_statistics
from quantopsy.study import open_or_create


@dataclass(frozen=True)
class Choices:
    """What is asked of a calibration set beside the settings of any analysis.

    ``sizes`` of subsets, None: doubling, the metric only where it decides; ``draws`` subsets of each size; ``select``
    so many images that stand for all, None: none.
    """

    sizes: tuple[int, ...] | None = None
    draws: int = 5
    select: int | None = None

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise QuantopsyError(f"draws {self.draws}", "a spread needs at least two", "give 2 or more, say 5")
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1):
            raise QuantopsyError(f"sizes {self.sizes}", "not all are positive", "give numbers of images such as 1,4,16")
        if self.select is not None and self.select < 1:
            raise QuantopsyError(f"select {self.select}", "must be positive", "give at least 1, or leave it out")


def study_calibration(
    given: Given,
    settings: Settings,
    choices: Choices,
    *,
    out: Path,
    fresh: bool = False,
    progress: Progress | None = None,
) -> CalibrationStudy:
    """Look at ``given.calibration`` as the calibration set of ``given.model``, ``given.data`` being held out.

    One float pass over either set, image by image; the ranges of every subset are reductions of that. Then the whole
    network is run quantized, weights at ``settings.bits``, with the ranges of those subsets that decide. What was run
    is kept in the folder ``out`` and never run again. Raises :class:`QuantopsyError` for whatever the user can mend.
    """
    begin = time.perf_counter()
    progress = progress or Silent()
    if len(settings.bits) != 1:
        raise QuantopsyError(f"bits {settings.bits}", "a calibration set is looked at with one", "give one bit-width")
    (bits,) = settings.bits
    subject = _made_ready(given, settings, progress)
    plan = at_bits(subject.full, bits)
    identity = {"study": "calibration", **subject.identity, "bits": bits, "seed": settings.seed}
    with open_or_create(out, identity, fresh=fresh) as store:
        seen = _look(subject, plan, progress)
        found = examine(seen, 2**settings.activation_bits - 1)
        _check_choices(choices, len(found.kept))
        everything = seen.mine.calibration(np.arange(len(seen.mine)))
        with measuring(subject, store, everything, progress, scored={}) as running:
            measure_float(running)
            runs = Runs(running, plan, seen, settings.level)
            study = _Study(subject, seen, found, runs, choices, progress).result()
    return replace(study, seconds=time.perf_counter() - begin)


def _made_ready(given: Given, settings: Settings, progress: Progress) -> Subject:
    """The subject, its calibration images sifted: those that cannot be read are named instead of ending the study."""
    subject = make_ready(replace(given, calibration=None), settings, progress)
    images = open_data(given.calibration, preprocess=subject.given.preprocess, skip_bad=True)
    order = np.sort(evenly_spaced_order(len(images))[: settings.calibration_samples])
    return replace(subject, given=given, calibration_images=images, calibration_order=order)


def _check_choices(choices: Choices, images: int) -> None:
    asked = {"select": choices.select, "sizes": None if choices.sizes is None else max(choices.sizes)}
    for name, value in asked.items():
        if value is not None and value > images:
            raise QuantopsyError(
                f"{name} {value}",
                f"there are only {images} different calibration images without outliers",
                f"give at most {images}",
            )


def _look(subject: Subject, plan: Plan, progress: Progress) -> Seen:
    wanted = wanted_statistics(subject.network, [plan])

    def look(phase: str, images: Images, order: np.ndarray, ranges: Calibration | None) -> ImageStatistics:
        progress.start(phase, len(order))
        return image_statistics(
            subject.program,
            prefetch(images, pieces(order, subject.tile)),
            wanted,
            images=len(order),
            ranges=ranges,
            max_memory=subject.settings.max_memory,
            advance=progress.advance,
        )

    mine = look("calibration set", subject.calibration_images, subject.calibration_order, None)
    ranges = mine.calibration(np.arange(len(mine)))
    return Seen(mine, look("evaluation set", subject.images, subject.order, ranges))


class _Study:
    """A study in motion: what has been seen, what is run with it, and the result."""

    def __init__(
        self, subject: Subject, seen: Seen, found: Examination, runs: Runs, choices: Choices, progress: Progress
    ) -> None:
        self.subject, self.seen, self.found, self.runs = subject, seen, found, runs
        self.choices, self.progress = choices, progress
        self.everything = np.arange(len(seen.mine))
        self.others = np.arange(len(seen.theirs))
        # Without outliers the set is what it is; with them, what it would be without.
        self.base = found.kept if found.outliers.images else self.everything
        metric = subject.metric
        self.tolerance = subject.settings.tolerance
        if self.tolerance is None:
            self.tolerance = tolerance_of(metric, metric.value(runs.float_result().statistics))

    def result(self) -> CalibrationStudy:
        """Run what decides, and say what was found."""
        settings, subject, runs = self.subject.settings, self.subject, self.runs
        self._say_estimate()
        runs.measure([("calibration", self.everything), ("calibration", self.base), ("evaluation", self.others)])
        float_result = runs.float_result()
        given = runs.outcome("calibration", self.everything, float_result)
        own = runs.outcome("evaluation", self.others, float_result)
        cost = runs.loss(runs.result("evaluation", self.others), runs.result("calibration", self.everything))
        sizes = tuple(sorted({*(self.choices.sizes or default_sizes(len(self.found.kept)))}))
        passed = self._sizes_run(sizes)
        verdict = self._verdict(sizes, passed, cost, given.noise, own.noise)
        tested: dict[Source, Sequence[int]] = {"calibration": sizes}
        if verdict.kind == "too few":
            more, enough = self._more()
            tested["evaluation"] = more
            verdict = replace(verdict, needed=enough, source="evaluation")
        return CalibrationStudy(
            model=_called(self.subject.given.model, type(subject.given.model).__name__),
            data=_called(subject.given.data, subject.images.describe()),
            calibration=_called(subject.given.calibration, subject.calibration_images.describe()),
            metric=subject.metric.name,
            unit=subject.metric.unit,
            bits=settings.bits[0],
            level=settings.level,
            tolerance=float(self.tolerance or 0.0),
            images=len(self.everything),
            distinct=len(self.found.duplicates.distinct),
            evaluation=len(self.others),
            bad=tuple(map(str, subject.calibration_images.bad)),
            float_value=significance.metric_interval(subject.metric, float_result.statistics, level=settings.level),
            given=given,
            own=own,
            cost=cost,
            cleaned=runs.outcome("calibration", self.base, float_result) if self.found.outliers.images else None,
            growth=self._growth(tested),
            activations=self.found.activations,
            shifts=self.found.shifts,
            outliers=self.found.outliers,
            duplicates=self.found.duplicates,
            selection=self._selection() if self.choices.select is not None else None,
            verdict=verdict,
            names=self._names(),
            settings=self._settings(),
            provenance=provenance(subject.identity),
        )

    def _sizes_run(self, sizes: Sequence[int]) -> dict[int, bool]:
        """Which of the smaller ``sizes`` do: all, where the user asked for them, else those that decide."""
        smaller = [size for size in sizes if size < len(self.found.kept)]
        if self.choices.sizes is not None:
            self._run_draws("calibration", smaller)
            return {size: self._does("calibration", size) for size in smaller}
        passed: dict[int, bool] = {}
        # Of a set that is wrong nobody needs to know how much of it would do.
        while not self.found.mistaken and (size := next_size(smaller, passed)) is not None:
            self._run_draws("calibration", [size])
            passed[size] = self._does("calibration", size)
        return passed

    def _more(self) -> tuple[list[int], int | None]:
        """How many images like the evaluation images would do: the sizes that were run, and the least that does."""
        tried: list[int] = []
        size = 2 * len(self.found.kept)
        while size <= len(self._pool("evaluation")) / 2:
            self._run_draws("evaluation", [size])
            tried.append(size)
            if self._does("evaluation", size):
                return tried, size
            size *= 2
        return tried, None

    def _pool(self, source: Source) -> np.ndarray:
        """The images that subsets are drawn from."""
        return self.found.kept if source == "calibration" else self.found.others

    def _reference(self, source: Source) -> np.ndarray:
        """The images whose ranges subsets are held against."""
        return self.base if source == "calibration" else self.others

    def _subset(self, source: Source, size: int, draw: int) -> np.ndarray:
        pool = self._pool(source)
        return pool if size == len(pool) else subset(pool, size, draw, self.subject.settings.seed)

    def _run_draws(self, source: Source, sizes: Iterable[int]) -> None:
        draws = range(self.choices.draws)
        self.runs.measure([(source, self._subset(source, size, draw)) for size in sizes for draw in draws])

    def _outcomes(self, source: Source, size: int) -> list[Outcome]:
        reference = self.runs.result(source, self._reference(source))
        draws = range(self.choices.draws)
        return [self.runs.outcome(source, self._subset(source, size, draw), reference) for draw in draws]

    def _does(self, source: Source, size: int) -> bool:
        """Whether every draw of ``size`` images is as good as all of them."""
        noise = float(self.runs.result(source, self._reference(source)).energy.mean())
        return all(not self._too_much(outcome.loss, outcome.noise, noise) for outcome in self._outcomes(source, size))

    def _too_much(self, loss: Interval, noise: float, reference: float) -> bool:
        """A loss that is certain and above the tolerance, or twice the noise."""
        assert self.tolerance is not None
        return (loss.value > self.tolerance and loss.low > 0.0) or noise > TWICE * reference

    def _verdict(
        self, sizes: Sequence[int], passed: Mapping[int, bool], cost: Interval, given_noise: float, own_noise: float
    ) -> Verdict:
        found = needed(sizes, passed)
        costly = self._too_much(cost, given_noise, own_noise)
        if self.found.mistaken or (self.found.different and (costly or cost.low > 0.0)):
            return Verdict("wrong", found)
        if costly or found is None or len(self.found.kept) < 2:
            return Verdict("too few", None)
        return Verdict("different" if self.found.different else "enough", found)

    def _growth(self, sizes: Mapping[Source, Sequence[int]]) -> pd.DataFrame:
        """``GROWTH_COLUMNS`` for every subset, its metric where it was run."""
        rows = []
        names = [activation.layer for activation in self.seen.mine.activations]
        theirs = self.seen.theirs.moments
        for source, asked in sizes.items():
            whole = self.runs.ranges(source, self._reference(source))
            reference = self.runs.result(source, self._reference(source))
            for size in asked:
                for draw in range(1 if size == len(self._pool(source)) else self.choices.draws):
                    images = self._subset(source, size, draw)
                    ranges = self.runs.ranges(source, images)
                    share = coverage(ranges, whole)
                    row: dict[str, Any] = {"source": source, "size": size, "draw": draw}
                    row |= {"coverage": float(np.median(share)), "coverage_worst": float(share.min())}
                    row |= {"worst": names[int(share.argmin())]}
                    row |= {"beyond": float(beyond(ranges, theirs.low, theirs.high, self._steps).mean())}
                    if self.runs.has_run(source, images):
                        outcome = self.runs.outcome(source, images, reference)
                        row |= {"value": outcome.value, "noise": outcome.noise, "loss": outcome.loss.value}
                        row |= {"loss_low": outcome.loss.low, "loss_high": outcome.loss.high}
                    rows.append(row)
        return pd.DataFrame(rows).reindex(columns=list(GROWTH_COLUMNS))

    def _selection(self) -> Selection:
        """The images that stand for all, run against as many random ones."""
        count, kept, runs = self.choices.select or 0, self.found.kept, self.runs
        extremes = self.seen.mine.activations[0].spec.range_estimator == "min_max"
        choose = by_extremes if extremes else by_moments
        chosen = kept[choose(self.seen.mine.moments.take(kept), count)]
        random = [self._subset("calibration", count, draw) for draw in range(self.choices.draws)]
        runs.measure([("calibration", rows) for rows in (chosen, *random)])
        reference = runs.result("calibration", self.base)
        whole = runs.ranges("calibration", self.base)
        shares = [coverage(runs.ranges("calibration", rows), whole) for rows in (chosen, *random)]
        images = self.subject.calibration_images
        return Selection(
            images=tuple(map(int, chosen)),
            entries=tuple(images.entry(int(index)) for index in self.seen.mine.images[chosen]),
            method="facility location of extremes" if extremes else "herding",
            coverage=float(np.median(shares[0])),
            coverage_worst=float(shares[0].min()),
            outcome=runs.outcome("calibration", chosen, reference),
            random_coverage=float(np.median([np.median(share) for share in shares[1:]])),
            random_coverage_worst=float(np.median([share.min() for share in shares[1:]])),
            random=tuple(runs.outcome("calibration", rows, reference) for rows in random),
        )

    def _names(self) -> dict[int, str]:
        """What a person calls each image that a finding mentions."""
        found = self.found.duplicates
        mentioned = {*self.found.outliers.images, *self.found.outliers.blank, *found.shared, *found.nearly_shared}
        mentioned |= {image for group in (*found.equal, *found.near) for image in group}
        images = self.subject.calibration_images
        return {row: images.entry(int(self.seen.mine.images[row])) for row in sorted(mentioned)}

    def _settings(self) -> dict[str, Any]:
        wanted = {"bits", "scheme", "activation_bits", "changes", "level", "seed", "device"}
        settings = {key: value for key, value in asdict(self.subject.settings).items() if key in wanted and value}
        return {
            **settings,
            "bits": self.subject.settings.bits[0],
            "draws": self.choices.draws,
            "tolerance": self.tolerance,
            "images": len(self.everything),
            "samples": len(self.others),
            "tile": self.subject.tile,
            "threads": torch.get_num_threads(),
        }

    @property
    def _steps(self) -> int:
        return int(2**self.subject.settings.activation_bits - 1)

    def _say_estimate(self) -> None:
        draws, count = self.choices.draws, 3
        smaller = len(default_sizes(len(self.found.kept))) - 1
        if self.choices.sizes is not None:
            count += draws * len(self.choices.sizes)
        elif not self.found.mistaken and smaller:
            count += draws * (1 + ceil(log2(smaller)))
        if self.choices.select is not None:
            count += 1 + draws
        seconds = self.runs.seconds_each() * count
        self.progress.say(
            f"up to {count} runs of the whole quantized network on {len(self.others)} images, "
            f"about {Budget(seconds=seconds)}"
        )


def _called(what: Any, else_: str) -> str:
    return str(what) if isinstance(what, str | Path) else else_
