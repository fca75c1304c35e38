"""A scatter or line chart as a plain value: the page draws it, and ``figures.chart`` makes it plotly's.

Any section of the page hands over charts; none draws its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantopsy.report.palette import Tone
from quantopsy.report.wording import drawn

Ends = tuple[float, float]

_MARGIN = 0.05
"""Share of an axis left free at either end."""


@dataclass(frozen=True)
class Axis:
    """What is along an axis. A logarithmic one holds positive numbers only: the others are left out.

    With ``names`` 0, 1, ... are the named things, and the axis is as long as there are names. A ``whole`` one is
    marked at whole numbers only.
    """

    label: str
    logarithmic: bool = False
    names: tuple[str, ...] = ()
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` has a place on it."""
        return math.isfinite(value) and (value > 0 or not self.logarithmic)

    def ends(self, values: Iterable[float]) -> Ends:
        """Where it begins and ends so that every one of ``values`` that it holds lies within."""
        if self.names:
            return -0.5, len(self.names) - 0.5
        held = [value for value in values if self.holds(value)]
        if not held:
            return (0.1, 10.0) if self.logarithmic else (0.0, 1.0)
        low, high = min(held), max(held)
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        spare = _MARGIN * (high - low) or (0.2 if self.logarithmic else 0.5 * abs(low) or 0.5)
        low, high = low - spare, high + spare
        return (10.0**low, 10.0**high) if self.logarithmic else (low, high)


@dataclass(frozen=True)
class Point:
    """One mark: a disc, or a ``hollow`` diamond; ``low`` to ``high`` is a vertical interval around it.

    ``title`` is shown where it is pointed at: lines, the first of them its name.
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    title: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Group:
    """Points of one kind, with its line in the legend."""

    label: str
    points: tuple[Point, ...]
    tone: Tone


@dataclass(frozen=True)
class Line:
    """Straight from corner to corner, cut off where the axes end; in the legend where it has a label."""

    label: str
    corners: tuple[tuple[float, float], ...]
    tone: Tone
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Groups of points, lines over them, and ``identity``: what to call the line x = y, drawn where it has a name.

    With it both axes have the same ends. ``hollow`` says what a hollow diamond stands for, ``note`` in a
    sentence what is to be seen; a ``wide`` one is as wide as the page.
    """

    title: str
    x: Axis
    y: Axis
    groups: tuple[Group, ...] = ()
    lines: tuple[Line, ...] = ()
    identity: str = ""
    hollow: str = ""
    note: str = ""
    wide: bool = False

    def __post_init__(self) -> None:
        if self.identity and self.x.logarithmic != self.y.logarithmic:
            raise ValueError("x = y is a straight line only where both axes are of one kind")

    @property
    def shown(self) -> tuple[Group, ...]:
        """The groups, with the points that the axes hold; those left without any are left out."""
        held = [
            Group(group.label, tuple(p for p in group.points if self.x.holds(p.x) and self.y.holds(p.y)), group.tone)
            for group in self.groups
        ]
        return tuple(group for group in held if group.points)

    def ends(self) -> tuple[Ends, Ends]:
        """Where the axes begin and end: around all points and their intervals, and lines where there are no points."""
        points = [point for group in self.shown for point in group.points]
        across = [point.x for point in points]
        along = [value for point in points for value in (point.y, point.low, point.high)]
        if not points:
            across = [x for line in self.lines for x, _ in line.corners]
            along = [y for line in self.lines for _, y in line.corners]
        if self.identity:
            across = along = [*across, *along]
        return self.x.ends(across), self.y.ends(along)

    def to_json(self) -> dict[str, Any]:
        """What the page's script draws: no number is NaN or infinite."""
        x, y = self.ends()
        return {
            "title": self.title,
            "x": _axis_json(self.x, x),
            "y": _axis_json(self.y, y),
            "groups": [
                {
                    "label": group.label,
                    "colour": group.tone.css,
                    "points": [
                        {
                            "x": drawn(point.x),
                            "y": drawn(point.y),
                            "low": drawn(point.low),
                            "high": drawn(point.high),
                            "title": point.title,
                            "hollow": point.hollow,
                        }
                        for point in group.points
                    ],
                }
                for group in self.shown
            ],
            "lines": [
                {
                    "label": line.label,
                    "colour": line.tone.css,
                    "dashed": line.dashed,
                    "corners": [[drawn(x), drawn(y)] for x, y in line.corners if self.x.holds(x) and self.y.holds(y)],
                }
                for line in self.lines
            ],
            "identity": self.identity,
            "hollow": self.hollow,
        }


def _axis_json(axis: Axis, ends: Ends) -> dict[str, Any]:
    described = {"label": axis.label, "log": axis.logarithmic, "names": list(axis.names), "whole": axis.whole}
    return {**described, "ends": [drawn(end) for end in ends]}


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first column names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, charts and perhaps a table under a heading. ``key`` is its anchor."""

    key: str
    heading: str
    note: str = ""
    statements: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    table: Table | None = None

    @property
    def by_id(self) -> dict[str, Chart]:
        """The charts by the id of the element that each is drawn into."""
        return {f"{self.key}-chart-{number}": chart for number, chart in enumerate(self.charts)}
