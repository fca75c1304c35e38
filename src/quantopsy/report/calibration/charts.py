"""The pictures of a study of a calibration set: what grows with the number of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from quantopsy.analysis.calibration.growth import chance
from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.report.calibration.tables import active_ends
from quantopsy.report.calibration.words import decimals, share
from quantopsy.report.chart import Axis, Chart, Group, Line, Point
from quantopsy.report.palette import Tone
from quantopsy.report.wording import count, fixed, percent, significant

_SETS = (("calibration", "calibration images", Tone("accent")), ("evaluation", "evaluation images", Tone("noise")))


def coverage_chart(study: CalibrationStudy) -> Chart:
    """How much of the ranges of all images subsets cover: the median activation, and the worst."""
    growth = study.growth[study.growth["source"] == "calibration"]
    groups = (
        Group("median activation", _points(growth, "coverage", percent), Tone("accent")),
        Group("worst activation", _points(growth, "coverage_worst", percent), Tone("worse")),
    )
    return Chart(
        "Range against number of images",
        Axis("calibration images", logarithmic=True),
        Axis("share of the range of all"),
        groups=groups,
        lines=tuple(_through(group) for group in groups),
        note="Medians over draws, from the least to the greatest of them.",
    )


def metric_chart(study: CalibrationStudy) -> Chart:
    """The metric of the quantized network, where it was run (practical approach, Figure 7)."""
    groups = _by_set(study, "value", lambda value: fixed(value, decimals(study)))
    levels = (
        (f"float {fixed(study.float_value.value, decimals(study))}", study.float_value.value, Tone("ink"), False),
        ("ranges of the evaluation images themselves", study.own.value, Tone("noise"), True),
    )
    return Chart(
        f"{study.metric} against number of images",
        Axis("calibration images", logarithmic=True),
        Axis(study.metric),
        groups=groups,
        lines=(*map(_through, groups), *(_level(study, *level) for level in levels)),
        note="Medians over draws, from the least to the greatest of them; only at sizes that were run.",
    )


def noise_chart(study: CalibrationStudy) -> Chart:
    """The noise of the quantized network, where it was run."""
    groups = _by_set(study, "noise", significant)
    own = _level(study, "ranges of the evaluation images themselves", study.own.noise, Tone("noise"), True)
    return Chart(
        "Noise against number of images",
        Axis("calibration images", logarithmic=True),
        Axis("noise", logarithmic=True),
        groups=groups,
        lines=(*map(_through, groups), own),
        note="Clipping shows in the noise long before it shows in the metric.",
    )


def beyond_chart(study: CalibrationStudy) -> Chart:
    """How many held-out images lie beyond a range, against what chance makes of it."""
    growth = study.growth[study.growth["source"] == "calibration"]
    group = Group("evaluation images", _points(growth, "beyond", share), Tone("accent"))
    ends = active_ends(study)
    sizes = sorted(growth["size"].unique())
    return Chart(
        "Held-out images beyond a range",
        Axis("calibration images", logarithmic=True),
        Axis("share, mean over activations", logarithmic=True),
        groups=(group,),
        lines=(
            Line(
                "chance, were both sets alike", tuple((size, ends * chance(size)) for size in sizes), Tone("ink"), True
            ),
        ),
        note="Of images that are alike one in n + 1 lies beyond an end of the range of n others. Range estimators that "
        "clip leave more out; fewer, where many images reach the very same bound.",
    )


def _by_set(study: CalibrationStudy, column: str, text: Callable[[float], str]) -> tuple[Group, ...]:
    run = study.growth[study.growth[column].notna()]
    groups = (Group(label, _points(run[run["source"] == source], column, text), tone) for source, label, tone in _SETS)
    return tuple(group for group in groups if group.points)


def _points(growth: pd.DataFrame, column: str, text: Callable[[float], str]) -> tuple[Point, ...]:
    """A point per size: the median over draws with their extremes."""
    points = []
    for size, draws in growth.groupby("size"):
        values = draws[column].dropna()
        if values.empty:
            continue
        number = int(str(size))
        middle, low, high = float(values.median()), float(values.min()), float(values.max())
        title = f"{count(number, 'image')}\n{text(middle)}"
        if len(values) > 1:
            title += f", {text(low)} to {text(high)} over {len(values)} draws"
        points.append(Point(number, middle, low, high, title))
    return tuple(points)


def _through(group: Group) -> Line:
    return Line("", tuple((point.x, point.y) for point in group.points), group.tone)


def _level(study: CalibrationStudy, label: str, value: float, tone: Tone, dashed: bool) -> Line:
    sizes = study.growth["size"]
    # Beyond all points: the chart cuts it off at its edges.
    ends = (float(sizes.min()) / 10, float(sizes.max()) * 10)
    return Line(label, tuple((end, value) for end in ends) if math.isfinite(value) else (), tone, dashed)
