"""What a study of a calibration set found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from quantopsy.analysis.calibration.duplicates import Duplicates
from quantopsy.analysis.calibration.outliers import RangeSetter
from quantopsy.analysis.calibration.shift import FALSE_ALARM, Shift
from quantopsy.analysis.significance import Interval

Kind = Literal["enough", "too few", "different", "wrong"]

TWICE = 2.0
"""Noise that is too much: what half a bit less of resolution would make of it."""

HALF_A_BIT = float(np.sqrt(TWICE))
"""A range wider by so much has grid steps with twice the noise."""

GROWTH_COLUMNS = (
    "source",
    "size",
    "draw",
    "coverage",
    "coverage_worst",
    "worst",
    "beyond",
    "value",
    "loss",
    "loss_low",
    "loss_high",
    "noise",
)

ACTIVATION_COLUMNS = ("activation", "low", "high", "share", "images", "expected", "excess", "unused", "p")


@dataclass(frozen=True)
class Outcome:
    """The whole network quantized with the ranges of some images: their number, the metric, the noise, and by how
    much the metric is worse than with other ranges (see :class:`CalibrationStudy`)."""

    images: int
    value: float
    noise: float
    loss: Interval


@dataclass(frozen=True)
class Outliers:
    """Calibration images that do not belong, by position.

    ``odd``: pixels unlike those of the evaluation images; ``setters``: those that set a range alone; ``blank``: of one
    colour. Without all of them (``images``) the ranges of activations shrink, at most by ``factor``, that of
    ``widest``.
    """

    odd: tuple[int, ...] = ()
    setters: tuple[RangeSetter, ...] = ()
    blank: tuple[int, ...] = ()
    factor: float = 1.0
    widest: str = ""

    @property
    def images(self) -> tuple[int, ...]:
        """Odd ones and range setters, ascending."""
        return tuple(sorted({*self.odd, *(image for setter in self.setters for image in setter.images)}))


@dataclass(frozen=True)
class Selection:
    """Images chosen to stand for all (``entries`` as a list of them has them), and what as many random ones give:
    medians over draws. The losses of the outcomes are against the ranges of all images.
    """

    images: tuple[int, ...]
    entries: tuple[str, ...]
    method: str
    coverage: float
    coverage_worst: float
    outcome: Outcome
    random_coverage: float
    random_coverage_worst: float
    random: tuple[Outcome, ...]


@dataclass(frozen=True)
class Verdict:
    """``enough``, ``too few``, ``wrong``, or ``different`` without a measurable effect; ``needed`` images would do, as
    subsets of the ``source`` set show; None where none of the sizes that were run do."""

    kind: Kind
    needed: int | None = None
    source: Literal["calibration", "evaluation"] = "calibration"


@dataclass(frozen=True)
class CalibrationStudy:
    """A calibration set looked at for a network: sizes, ranges, held-out clipping, mistakes, a verdict.

    ``images`` counts the calibration images, ``distinct`` those that differ, ``bad`` names what could not be read.
    Images are referred to by their place among those looked at; ``names`` has all that a finding mentions.

    ``given``: the network with the ranges of all calibration images, its loss against the float network; ``own``:
    with those of the evaluation images themselves; ``cleaned``: without the outliers, None where there are none.
    ``cost`` is by how much the metric is worse with ``given`` than with ``own``.

    ``growth`` has a row per subset: what it covers of the ranges of all (median and worst activation), the share of
    evaluation images beyond it (mean over activations), and where it was run its metric, its loss against the ranges
    of all, and its noise.

    ``activations`` has a row per grid, those that clip most first: its ends, the share of the evaluation images'
    values that it clips, the share of images beyond it and the share that chance would put there, how far the
    furthest lies beyond in units of the range, the share of the range that no evaluation image uses, and the
    corrected p-value that chance explains how many images of either set lie beyond all of the other.
    """

    model: str
    data: str
    calibration: str
    metric: str
    unit: str
    bits: int
    level: float
    tolerance: float
    images: int
    distinct: int
    evaluation: int
    bad: tuple[str, ...]
    float_value: Interval
    given: Outcome
    own: Outcome
    cost: Interval
    cleaned: Outcome | None
    growth: pd.DataFrame
    activations: pd.DataFrame
    shifts: tuple[Shift, ...]
    outliers: Outliers
    duplicates: Duplicates
    selection: Selection | None
    verdict: Verdict
    names: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"<CalibrationStudy of {self.model}: {self.images} calibration images, {self.verdict.kind}>"

    @property
    def noise_ratio(self) -> float:
        """Noise with the calibration images' ranges over noise with the evaluation images' own."""
        return self.given.noise / self.own.noise if self.own.noise > 0 else np.nan

    @property
    def beyond(self) -> pd.DataFrame:
        """Activations beyond which more images of one set lie than chance allows."""
        return self.activations[self.activations["p"] < FALSE_ALARM]
